// SPDX-License-Identifier: Apache-2.0
//! Translated connections that another process goes on with.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{GroupId, PortId};
use plinth_switch_api::{Direction, RuleProtocol, SecurityGroup, SwitchConfig};
use plinth_vswitch::{DropReason, Snapshot, TakeOverError, TakenConnections};
use std::sync::Arc;
use std::time::Duration;
use support::outside::*;
use support::*;

/// Everything that a successor hears of connections.
fn handed(rig: &Rig) -> Vec<u8> {
    let (mut bytes, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        next = rig.switch.hand_over(rig.now, from, None, &mut bytes);
    }
    bytes
}

/// A process that goes on with what another one has, on a clock of its own. `seats` says whether
/// it hears of NICs' ports.
fn successor(story: &Story, config: SwitchConfig, seats: bool) -> Story {
    let mut rig = Rig::new(&two_vpcs());
    rig.switch = plinth_vswitch::Switch::new(limits(), 77);
    rig.now += Duration::from_secs(3);
    let known = if seats { story.rig.switch.snapshot().handed_seats() } else { Vec::new() };
    let snapshot = Snapshot::compile(&config, &limits(), &Snapshot::seated(&known)).unwrap();
    rig.switch.install(rig.now, Arc::new(snapshot));
    let mut next = Story { rig, config };
    next.hear_next_hop();
    next
}

fn taken(story: &Story, next: &mut Story) -> TakenConnections {
    let places = story.rig.switch.handed_places();
    let now = next.rig.now;
    next.rig.switch.take_over(now, &places, &handed(&story.rig)).unwrap()
}

/// A TCP connection out and one in, a ping and a datagram: four ways to the outside.
fn begun(story: &mut Story) -> u16 {
    // The one that carries its address is followed because it is filtered.
    story.apply(|config| {
        config.security_groups = vec![SecurityGroup {
            id: GroupId(1),
            name: "out".parse().unwrap(),
            rules: vec![allow(Direction::Outbound, RuleProtocol::Any, None)],
        }];
        config.ports.last_mut().unwrap().security_groups = Some(vec![GroupId(1)]);
    });
    let syn = Ip::tcp((v4(2), WEB), (5000, 80), SYN, (100, 0));
    let (_, frame) = story.out(2, &syn).sent();
    let port = source_port(&frame);
    let answer = Ip::tcp((WEB, SHARED), (80, port), SYN | ACK, (900, 101));
    story.back(&answer).sent();
    story.out(2, &Ip::tcp((v4(2), WEB), (5000, 80), ACK, (101, 901))).sent();
    story.back(&Ip::tcp((WEB, SHARED), (6000, 8003), SYN, (70, 0))).sent();
    story.out(2, &Ip::tcp((v4(2), WEB), (83, 6000), SYN | ACK, (40, 71))).sent();
    story.back(&Ip::tcp((WEB, SHARED), (6000, 8003), ACK, (71, 41))).sent();
    story.out(1, &Ip::icmp((v4(1), WEB), 8, 77, b"ping")).sent();
    story.out(5, &Ip::udp((CARRIED, WEB), (1000, 53), b"x")).sent();
    port
}

#[test]
fn translated_connections_go_on_in_the_next_process() {
    let mut story = Story::new();
    let port = begun(&mut story);
    let mut next = successor(&story, story.config.clone(), true);
    let told = taken(&story, &mut next);
    assert_eq!((told.taken, told.strangers, told.refused), (4, 0, 0));
    let (one, two, five) = (next.rig.index(1), next.rig.index(2), next.rig.index(5));
    // Either side may be the first to speak: nothing of these is a connection's first packet.
    let data = Ip::tcp((WEB, SHARED), (80, port), ACK, (901, 101));
    let inside = Ip { ends: (WEB, v4(2)), ..data.with_ports(80, 5000) }.summed();
    assert_eq!(next.back(&data).sent(), inside.arrived(two, 2));
    let data = Ip::tcp((v4(2), WEB), (5000, 80), ACK, (101, 901));
    let outside = Ip { ends: (SHARED, WEB), ..data.with_ports(port, 80) }.summed();
    assert_eq!(next.out(2, &data).sent(), outside.left());
    let data = Ip::tcp((v4(2), WEB), (83, 6000), ACK, (41, 71));
    let outside = Ip { ends: (SHARED, WEB), ..data.with_ports(8003, 6000) }.summed();
    assert_eq!(next.out(2, &data).sent(), outside.left());
    let pong = Ip::icmp((WEB, EIP), 0, 77, b"ping");
    assert_eq!(next.back(&pong).sent(), pong.to((WEB, v4(1))).arrived(one, 1));
    let answer = Ip::udp((WEB, CARRIED), (53, 1000), b"x");
    assert_eq!(next.back(&answer).sent(), answer.arrived(five, 5));
    // TCP's windows came along.
    let wild = Ip::tcp((WEB, SHARED), (80, port), ACK, (900_000_000, 101));
    assert!(matches!(next.back(&wild), Outcome::Dropped(_)));
}

/// A change of rules is asked about when a connection's next packet comes, and that may come to
/// the next process.
#[test]
fn what_a_change_forbade_stays_forbidden_in_the_next_process() {
    let mut story = Story::new();
    begun(&mut story);
    story.apply(|config| config.security_groups[0].rules.clear());
    let mut next = successor(&story, story.config.clone(), true);
    assert_eq!(taken(&story, &mut next).taken, 4);
    let answer = Ip::udp((WEB, CARRIED), (53, 1000), b"x");
    assert_eq!(next.back(&answer), Outcome::Dropped(DropReason::SecurityGroupDenied));
    // And the others go on.
    let pong = Ip::icmp((WEB, EIP), 0, 77, b"ping");
    next.back(&pong).sent();
}

#[test]
fn nics_keep_their_ports_in_the_next_process_and_through_its_next_configuration() {
    let mut story = Story::new();
    // NIC 5 has another block than it would have in a process that knows of no history.
    story.apply(|config| {
        config.external.addresses.clear();
        config.external.gateways[0].forwards.clear();
        config.ports.retain(|port| port.id == PortId(5));
    });
    let ports = two_vpcs().ports;
    story.apply(|config| config.ports.insert(0, ports[1].clone()));
    let before = story.rig.switch.snapshot().handed_seats();
    let port = begun_out(&mut story);
    for seats in [true, false] {
        let mut next = successor(&story, story.config.clone(), seats);
        assert_eq!(next.rig.switch.snapshot().handed_seats() == before, seats);
        taken(&story, &mut next);
        next.apply(|_| {});
        let data = Ip::udp((WEB, SHARED), (53, port), b"x");
        assert_eq!(matches!(next.back(&data), Outcome::Sent { .. }), seats);
    }
}

fn begun_out(story: &mut Story) -> u16 {
    let (_, frame) = story.out(5, &Ip::udp((v4(5), WEB), (5000, 53), b"x")).sent();
    source_port(&frame)
}

#[test]
fn what_the_next_process_does_not_have_is_counted_and_not_guessed() {
    let mut story = Story::new();
    begun(&mut story);
    // Without the NIC that carries an address, and with the gateway gone.
    let mut config = story.config.clone();
    config.ports.retain(|port| port.id != PortId(5));
    config.external.addresses.truncate(1);
    config.external.gateways.clear();
    let mut next = successor(&story, config, true);
    let told = taken(&story, &mut next);
    assert_eq!((told.taken, told.strangers), (3, 1));
    next.apply(|_| {});
    let data = Ip::tcp((v4(2), WEB), (5000, 80), ACK, (101, 901));
    assert!(matches!(next.out(2, &data), Outcome::Dropped(_)), "no gateway, no way out");
}

#[test]
fn bytes_that_make_no_sense_are_refused() {
    let mut story = Story::new();
    begun(&mut story);
    let (bytes, places) = (handed(&story.rig), story.rig.switch.handed_places());
    let mut next = successor(&story, story.config.clone(), true);
    let now = next.rig.now;
    let torn = next.rig.switch.take_over(now, &places, &bytes[1..]);
    assert!(matches!(torn, Err(TakeOverError::Torn { .. })));
    let mut wrong = bytes.clone();
    wrong[plinth_vswitch::HANDED_BYTES + 132] = 2;
    let nonsense = next.rig.switch.take_over(now, &places, &wrong);
    assert_eq!(nonsense, Err(TakeOverError::Nonsense { number: 1 }));
}
