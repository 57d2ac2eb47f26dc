// SPDX-License-Identifier: Apache-2.0
//! What a full configuration takes in memory: 100 000 rules, and the neighbors of 100 000 NICs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, GroupId, Prefix};
use plinth_switch_api::{
    Direction, Priority, Remote, Rule, RulePeer, RuleProtocol, RuleVerdict, SecurityGroup,
    SwitchConfig,
};
use plinth_vswitch::{Limits, Snapshot};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use support::*;

const COUNT: u32 = 100_000;

/// Bytes that a compiled snapshot keeps, with its own copy of `config`.
fn kept(config: &SwitchConfig) -> u64 {
    let mut snapshot = None;
    let counted = allocation_counter::measure(|| {
        snapshot =
            Some(Snapshot::compile(config, &Limits::default(), &Snapshot::default()).unwrap());
    });
    drop(snapshot);
    u64::try_from(counted.bytes_current).unwrap()
}

/// Bytes of a copy of `config`, which every snapshot keeps beside its tables.
fn copied(config: &SwitchConfig) -> u64 {
    let mut copy = None;
    let counted = allocation_counter::measure(|| copy = Some(config.clone()));
    drop(copy);
    u64::try_from(counted.bytes_current).unwrap()
}

#[test]
fn a_hundred_thousand_rules_take_what_the_docs_say() {
    let mut config = SwitchConfig::empty(Epoch(1));
    for (id, first) in (1u32..).zip((0..COUNT).step_by(1000)) {
        let rules = (first..first + 1000).map(|number| Rule {
            direction: Direction::Inbound,
            priority: Priority::Mid,
            verdict: RuleVerdict::Allow,
            protocol: RuleProtocol::Tcp,
            ports: Some((80, 80)),
            icmp: None,
            // Half name a prefix of IPv4, half name a group and stand in the lists of both.
            peer: match number % 2 {
                0 => RulePeer::Prefix(Prefix::host(Ipv4Addr::from_bits(number).into())),
                _ => RulePeer::Group(GroupId(number)),
            },
        });
        let name = format!("group-{id}").parse().unwrap();
        config.security_groups.push(SecurityGroup {
            id: GroupId(id),
            name,
            rules: rules.collect(),
        });
    }
    let (whole, copy) = (kept(&config), copied(&config));
    let per_rule = (whole - copy) / u64::from(COUNT);
    println!("rules: {whole} bytes, of which {copy} the configuration; {per_rule} a rule compiled");
    // 24 of IPv4 for every rule, 48 of IPv6 for every second one, and the groups themselves.
    assert!((48..=49).contains(&per_rule), "{per_rule} bytes a rule");
    assert!(whole < 12 << 20, "{whole} bytes");
}

#[test]
fn the_neighbors_of_a_hundred_thousand_nics_take_what_the_docs_say() {
    let mut config = SwitchConfig { ..two_vpcs() };
    config.ports.clear();
    config.remotes.clear();
    for number in 0..COUNT {
        let [_, a, b, c] = number.to_be_bytes();
        let addresses: Vec<IpAddr> = vec![
            Ipv4Addr::new(10, a, b, c).into(),
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, a.into(), u16::from_be_bytes([b, c])).into(),
        ];
        let mac = plinth_ids::MacAddress([2, 0, 0, a, b, c]);
        config.remotes.push(Remote {
            mac,
            addresses,
            security_groups: vec![GroupId(number % 100 + 1), GroupId(7)],
            ..remote(100, 1, NEAR_VTEP)
        });
    }
    for remote in &mut config.remotes {
        remote.security_groups.dedup();
    }
    let (whole, copy) = (kept(&config), copied(&config));
    let per_nic = (whole - copy) / u64::from(COUNT);
    println!("remotes: {whole} bytes, of which {copy} the configuration; {per_nic} a NIC compiled");
    assert!(per_nic <= 196, "{per_nic} bytes a NIC");
    assert!(whole < 48 << 20, "{whole} bytes");
}
