// SPDX-License-Identifier: Apache-2.0
//! Stories of gateways whose ports stand for addresses and ports inside, whoever is spoken to.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_switch_api::{ForwardProtocol, PortMapping};
use plinth_vswitch::{DropReason, Snapshot};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use support::outside::*;
use support::*;

const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

fn mapped(mapping: PortMapping) -> Story {
    let mut config = outside();
    config.external.gateways[0].mapping = mapping;
    Story::of(config)
}

impl Story {
    /// A datagram of NIC 2 from a port to somebody; the port that it left by.
    fn says(&mut self, port: u16, remote: Ipv4Addr, to: u16) -> u16 {
        let said = Ip::udp((v4(2), remote), (port, to), b"x");
        let (place, frame) = self.out(2, &said).sent();
        let left = source_port(&frame);
        let expected = said.with_ports(left, to).to((SHARED, remote));
        assert_eq!((place, frame), expected.left());
        left
    }

    /// What somebody says to a port of the gateway arrives at NIC 2's port 1000.
    fn hears(&mut self, from: (Ipv4Addr, u16), port: u16) {
        let said = Ip::udp((from.0, SHARED), (from.1, port), b"x");
        let place = self.rig.index(2);
        let expected = said.with_ports(from.1, 1000).to((from.0, v4(2)));
        assert_eq!(self.back(&said).sent(), expected.arrived(place, 2));
    }

    fn hears_nothing(&mut self, from: (Ipv4Addr, u16), port: u16) {
        let said = Ip::udp((from.0, SHARED), (from.1, port), b"x");
        assert_eq!(self.back(&said), Outcome::Dropped(DropReason::NatNoConnection));
    }
}

#[test]
fn an_end_inside_has_one_port_outside_whoever_is_spoken_to() {
    let mut story = mapped(PortMapping::Independent);
    let port = story.says(1000, WEB, 53);
    for (remote, to) in [(WEB, 54), (OTHER, 53), (OTHER, 9), (EIP, 53)] {
        if remote == EIP {
            // To NIC 1 of the same node, under the same port.
            let said = Ip::udp((v4(2), EIP), (1000, to), b"x");
            let (_, frame) = story.out(2, &said).sent();
            assert_eq!(source_port(&frame), port, "hairpin");
            continue;
        }
        assert_eq!(story.says(1000, remote, to), port);
    }
    // Another one has another, and TCP one of its own.
    let others: Vec<u16> = (2000..2040).map(|from| story.says(from, WEB, 53)).collect();
    assert!(!others.contains(&port), "{port} in {others:?}");
    let syn = |remote| Ip::tcp((v4(2), remote), (1000, 80), SYN, (1, 0));
    let (_, first) = story.out(2, &syn(WEB)).sent();
    let (_, second) = story.out(2, &syn(OTHER)).sent();
    assert_eq!(source_port(&first), source_port(&second));
}

#[test]
fn who_was_not_spoken_to_is_not_heard_unless_the_gateway_is_open() {
    let mut story = mapped(PortMapping::Independent);
    let port = story.says(1000, WEB, 53);
    story.hears((WEB, 53), port);
    story.hears_nothing((WEB, 54), port);
    story.hears_nothing((OTHER, 53), port);
    let mut story = mapped(PortMapping::Open);
    let port = story.says(1000, WEB, 53);
    for from in [(WEB, 53), (WEB, 54), (OTHER, 53)] {
        story.hears(from, port);
        assert_eq!(story.says(1000, from.0, from.1), port, "the answer");
    }
    let unmapped = if port == 1087 { 1086 } else { port + 1 };
    story.hears_nothing((OTHER, 53), unmapped);
    // TCP has mappings of its own.
    let syn = Ip::tcp((OTHER, SHARED), (53, port), SYN, (1, 0));
    assert_eq!(story.back(&syn), Outcome::Dropped(DropReason::NatNoConnection));
    // What strangers began ends when they may begin nothing more.
    story.apply(|config| config.external.gateways[0].mapping = PortMapping::Independent);
    story.hears_nothing((OTHER, 53), port);
    story.hears((WEB, 53), port);
}

#[test]
fn guests_of_one_node_meet_at_an_open_port() {
    let mut story = mapped(PortMapping::Open);
    let port = story.says(1000, WEB, 53);
    let said = Ip::udp((v4(5), SHARED), (4000, port), b"x");
    let (place, frame) = story.out(5, &said).sent();
    let theirs = source_port(&frame);
    let two = story.rig.index(2);
    let expected = said.with_ports(theirs, 1000).to((SHARED, v4(2)));
    assert_eq!((place, frame), expected.arrived(two, 2));
    let answer = Ip::udp((v4(2), SHARED), (1000, theirs), b"y");
    let five = story.rig.index(5);
    let expected = answer.with_ports(port, 4000).to((SHARED, v4(5)));
    assert_eq!(story.out(2, &answer).sent(), expected.arrived(five, 5));
    // Nobody meets himself there.
    let own = Ip::udp((v4(2), SHARED), (1000, port), b"z");
    assert!(matches!(story.out(2, &own), Outcome::Dropped(_)));
}

#[test]
fn a_mapping_lasts_as_long_as_one_of_its_connections_and_goes_after_them() {
    let mut story = mapped(PortMapping::Independent);
    let port = story.says(1000, WEB, 53);
    story.hears((WEB, 53), port);
    for _ in 0..20 {
        story.wait(60);
        story.hears((WEB, 53), port);
    }
    story.hear_next_hop();
    assert_eq!(story.says(1000, OTHER, 53), port, "after twenty minutes");
    story.wait(600);
    assert_eq!(story.rig.switch.connection_count(), 0, "nothing is left behind");
}

#[test]
fn a_port_that_leads_elsewhere_now_stands_for_nobody() {
    let mut story = mapped(PortMapping::Independent);
    let port = story.says(1000, WEB, 53);
    story.apply(|config| {
        let forwards = &mut config.external.gateways[0].forwards;
        let mut other = forwards[0].clone();
        other.ports = (port, port);
        other.protocol = ForwardProtocol::Udp;
        forwards.push(other);
    });
    let other = story.says(1000, OTHER, 53);
    assert_ne!(other, port);
    assert_eq!(story.says(1000, OTHER, 54), other, "the new one is the mapping");
}

#[test]
fn a_block_has_as_many_mappings_as_ports() {
    let mut story = mapped(PortMapping::Independent);
    let mut left: Vec<u16> = (0..64).map(|nth| story.says(2000 + nth, WEB, 53)).collect();
    left.sort_unstable();
    left.dedup();
    assert_eq!(left.len(), 64);
    // Even to somebody whom none of them speaks to.
    let said = Ip::udp((v4(2), OTHER), (3000, 53), b"x");
    assert_eq!(story.out(2, &said), Outcome::Dropped(DropReason::NatPortsExhausted));
    // Who is mapped goes on to anybody.
    assert!(left.contains(&story.says(2000, OTHER, 53)));
    story.apply(|config| config.external.gateways[0].mapping = PortMapping::PerConnection);
    story.says(3000, OTHER, 53);
}

#[test]
fn a_mapping_goes_along_to_the_next_process() {
    let mut story = mapped(PortMapping::Open);
    // Not the port that its hash would choose.
    let port = story.says(1000, WEB, 53);
    let (mut bytes, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        next = story.rig.switch.hand_over(story.rig.now, from, None, &mut bytes);
    }
    let mut rig = Rig::new(&two_vpcs());
    rig.switch = plinth_vswitch::Switch::new(limits(), 77);
    rig.now += Duration::from_secs(3);
    let seats = Snapshot::seated(&story.rig.switch.snapshot().handed_seats());
    let snapshot = Snapshot::compile(&story.config, &limits(), &seats).unwrap();
    rig.switch.install(rig.now, Arc::new(snapshot));
    let places = story.rig.switch.handed_places();
    let told = rig.switch.take_over(rig.now, &places, &bytes).unwrap();
    assert_eq!((told.taken, told.strangers, told.refused), (2, 0, 0));
    let mut next = Story { rig, config: story.config.clone() };
    next.hear_next_hop();
    next.hears((OTHER, 4000), port);
    assert_eq!(next.says(1000, OTHER, 53), port);
}

#[test]
fn the_next_vm_with_an_address_does_not_get_what_was_mapped_for_the_one_before() {
    let mut story = mapped(PortMapping::Open);
    let port = story.says(1000, WEB, 53);
    story.hears((OTHER, 53), port);
    let mut two = None;
    story.apply(|config| {
        two = config.ports.iter().find(|port| port.vni == vni(100) && port.mac == mac(2)).cloned();
        config.ports.retain(|port| !(port.vni == vni(100) && port.mac == mac(2)));
        config.external.gateways[0].forwards.clear();
    });
    story.apply(|config| config.ports.push(two.unwrap()));
    // Nor who has spoken to it already.
    story.hears_nothing((OTHER, 53), port);
    story.hears_nothing((OTHER, 54), port);
    story.hears_nothing((WEB, 53), port);
}

#[test]
fn what_may_not_begin_opens_no_port() {
    let mut config = outside();
    config.external.gateways[0].mapping = PortMapping::Open;
    // No rule lets it speak.
    config.ports[1].security_groups = Some(Vec::new());
    let mut story = Story::of(config);
    let said = Ip::udp((v4(2), WEB), (1000, 53), b"x");
    assert_eq!(story.out(2, &said), Outcome::Dropped(DropReason::SecurityGroupDenied));
    assert_eq!(story.rig.switch.connection_count(), 0);
    story.apply(|config| config.ports[1].security_groups = None);
    let amid = Ip::tcp((v4(2), WEB), (1000, 80), ACK, (1, 1));
    assert_eq!(story.out(2, &amid), Outcome::Dropped(DropReason::TcpNoConnection));
    assert_eq!(story.rig.switch.connection_count(), 0);
}
