// SPDX-License-Identifier: Apache-2.0
//! Stories of backends that are checked: what of theirs is handed on, and what being unfit means.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]
#![allow(dead_code, reason = "other tests use the rest of the support")]

mod support;

use plinth_ids::MacAddress;
use plinth_switch_api::{
    Backend, BackendState, Balancer, CHECK_PORT_FIRST, CheckKind, ForwardProtocol, HealthCheck,
    Listener, Scheduler, Subnet, SubnetPrefix, SwitchConfig, Vpc,
};
use plinth_vswitch::{ConfigError, DropReason, Limits, Snapshot};
use plinth_wire::{IcmpHeader, PROTOCOL_ICMP, TcpHeader};
use std::net::Ipv4Addr;
use support::frames::{self, Segment};
use support::*;

const ROUTER: MacAddress = MacAddress([2, 0xff, 0, 0, 0, 1]);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

/// NIC 2 of VPC 100 is a backend that is checked; NIC 1 is not, and neither is anybody else.
fn served() -> SwitchConfig {
    let mut config = two_vpcs();
    for segment in [100, 200] {
        let prefix = "10.0.0.0/24".parse().unwrap();
        let prefixes = vec![SubnetPrefix { prefix, gateway: GATEWAY.into() }];
        let subnets = vec![Subnet { name: "front".parse().unwrap(), prefixes }];
        let (vni, name) = (vni(segment), "front".parse().unwrap());
        config.vpcs.push(Vpc { vni, name, router_mac: ROUTER, subnets, routes: Vec::new() });
    }
    let check = HealthCheck {
        kind: CheckKind::Tcp,
        port: None,
        interval_ms: 1000,
        timeout_ms: 1000,
        rise: 2,
        fall: 3,
    };
    let (address, state) = (v4(2).into(), BackendState::Active);
    config.balancers = vec![Balancer {
        name: "web".parse().unwrap(),
        vni: vni(100),
        address: Ipv4Addr::new(10, 0, 0, 200).into(),
        line: None,
        listeners: vec![Listener {
            protocol: ForwardProtocol::Tcp,
            ports: (80, 80),
            scheduler: Scheduler::RoundRobin,
            stickiness: None,
            check: Some(check),
            backends: vec![Backend { address, port: 8080, weight: 10, state }],
        }],
    }];
    config
}

fn answer(number: u8, to: u16) -> Vec<u8> {
    let flags = TcpHeader::SYN | TcpHeader::ACK;
    let both = Segment { flags, sequence: 1, acknowledgment: 2, window: 8192, length: 0 };
    frames::tcp((mac(number), ROUTER), (v4(number), GATEWAY), (8080, to), both)
}

fn echo(number: u8, kind: u8, identifier: u16) -> Vec<u8> {
    let header = IcmpHeader::new(kind, 0, identifier, 1);
    let ends = (v4(number), GATEWAY);
    frames::ipv4((mac(number), ROUTER), ends, PROTOCOL_ICMP, bytemuck::bytes_of(&header))
}

#[test]
fn only_a_checked_backend_answers_checks() {
    let mut rig = Rig::resolved(&served());
    assert_eq!(rig.send(rig.index(2), answer(2, CHECK_PORT_FIRST)), Outcome::Asked);
    assert_eq!(rig.send(rig.index(2), answer(2, u16::MAX)), Outcome::Asked);
    assert_eq!(rig.send(rig.index(2), echo(2, 0, CHECK_PORT_FIRST)), Outcome::Asked);
    let unserved = Outcome::Dropped(DropReason::RouterUnserved);
    assert_eq!(rig.send(rig.index(2), answer(2, CHECK_PORT_FIRST - 1)), unserved);
    assert_eq!(rig.send(rig.index(2), echo(2, 0, CHECK_PORT_FIRST - 1)), unserved);
    assert_eq!(rig.send(rig.index(1), answer(1, CHECK_PORT_FIRST)), unserved);
    assert_eq!(rig.send(rig.index(1), echo(1, 0, CHECK_PORT_FIRST)), unserved);
    let spoofed = Outcome::Dropped(DropReason::SourceAddressSpoofed);
    let mut lie = answer(1, CHECK_PORT_FIRST);
    lie[6..12].copy_from_slice(&mac(2).0);
    assert_eq!(rig.send(rig.index(2), lie), spoofed);
}

#[test]
fn a_check_that_cannot_be_is_refused() {
    let faults: [fn(&mut HealthCheck); 6] = [
        |check| check.interval_ms = 199,
        |check| check.timeout_ms = 1001,
        |check| check.rise = 0,
        |check| check.fall = 0,
        |check| check.port = Some(0),
        |check| check.kind = CheckKind::Http { path: "/a b".to_owned() },
    ];
    for fault in faults {
        let mut config = served();
        fault(config.balancers[0].listeners[0].check.as_mut().unwrap());
        let error = Snapshot::compile(&config, &Limits::default(), &Snapshot::default());
        assert_eq!(error.unwrap_err().code(), "balancer-check");
    }
    let fine: Result<_, ConfigError> =
        Snapshot::compile(&served(), &Limits::default(), &Snapshot::default());
    fine.unwrap();
}
