// SPDX-License-Identifier: Apache-2.0
//! Stories of the wire: the VTEP's own ARP and ping, next hops, and what is turned away.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, MacAddress};
use plinth_vswitch::{DropReason, PortIndex};
use plinth_wire::{ArpOperation, ArpPacket, ICMP_ECHO_REPLY, PROTOCOL_ICMP};
use std::net::Ipv4Addr;
use std::time::Duration;
use support::frames;
use support::*;

const UPLINK: PortIndex = PortIndex::UPLINK;
const HOST: (MacAddress, Ipv4Addr) =
    (MacAddress([2, 0xbb, 0, 0, 0, 9]), Ipv4Addr::new(172, 16, 0, 99));

fn arp_of(frame: &[u8]) -> (MacAddress, ArpPacket) {
    (MacAddress(frame[..6].try_into().unwrap()), *ArpPacket::parse(&frame[14..]).unwrap())
}

#[test]
fn the_vtep_announces_itself_and_asks_for_its_next_hops() {
    let mut rig = Rig::new(&two_vpcs());
    assert_eq!(rig.switch.deadline(), Some(Duration::ZERO));
    let said: Vec<_> = rig.said().iter().map(|frame| arp_of(frame)).collect();
    let targets: Vec<_> = said.iter().map(|(_, arp)| arp.target_address()).collect();
    assert_eq!(targets, [OUR_VTEP, NEAR_VTEP, GATEWAY]);
    for (destination, arp) in said {
        assert_eq!(destination, MacAddress::BROADCAST);
        assert_eq!(arp.operation(), ArpOperation::Request);
        assert_eq!((arp.sender_mac(), arp.sender_address()), (OUR_MAC, OUR_VTEP));
    }
    assert_eq!(rig.switch.counters(UPLINK).sent, 3);
    // A second later it asks again, two seconds later it announces itself again.
    assert_eq!(rig.switch.deadline(), Some(Duration::from_secs(2)));
    rig.now = Duration::from_secs(2);
    assert_eq!(rig.said().len(), 2);
}

#[test]
fn a_packet_before_the_answer_is_dropped_and_after_it_is_sent() {
    let mut rig = Rig::new(&two_vpcs());
    let frame = frames::udp((mac(1), mac(3)), (v4(1), v4(3)), (1, 2), b"early");
    let waiting = Outcome::Dropped(DropReason::NextHopUnresolved);
    assert_eq!(rig.send(rig.index(1), frame.clone()), waiting);
    rig.hear_next_hops();
    assert!(matches!(rig.send(rig.index(1), frame), Outcome::Sent { port: UPLINK, .. }));
}

#[test]
fn a_next_hop_that_moves_is_followed_and_one_that_dies_is_given_up() {
    let mut rig = Rig::resolved(&two_vpcs());
    let frame = frames::udp((mac(1), mac(3)), (v4(1), v4(3)), (1, 2), b"x");
    let to = |rig: &mut Rig| match rig.send(rig.index(1), frame.clone()) {
        Outcome::Sent { frame, .. } => Some(MacAddress(frame[..6].try_into().unwrap())),
        _ => None,
    };
    assert_eq!(to(&mut rig), Some(NEAR_MAC));
    // A gratuitous announcement from the new place.
    rig.once(UPLINK, frames::arp_request((HOST.0, NEAR_VTEP), NEAR_VTEP));
    assert_eq!(to(&mut rig), Some(HOST.0));
    for _ in 0..40 {
        rig.now += Duration::from_secs(1);
        rig.said();
    }
    assert_eq!(to(&mut rig), None);
    // Its own question is an answer as well.
    let question = frames::arp_request((NEAR_MAC, NEAR_VTEP), OUR_VTEP);
    assert!(matches!(rig.once(UPLINK, question), Outcome::Sent { .. }));
    assert_eq!(to(&mut rig), Some(NEAR_MAC));
}

#[test]
fn who_asks_for_the_vtep_is_told() {
    let mut rig = Rig::resolved(&two_vpcs());
    let answer = frames::arp_reply((OUR_MAC, OUR_VTEP), HOST);
    let question = frames::arp_request(HOST, OUR_VTEP);
    assert_eq!(rig.send(UPLINK, question).sent(), (UPLINK, answer.clone()));
    let mut unicast = frames::arp_request(HOST, OUR_VTEP);
    unicast[..6].copy_from_slice(&OUR_MAC.0);
    assert_eq!(rig.send(UPLINK, unicast).sent(), (UPLINK, answer));
    let about_another = frames::arp_request(HOST, NEAR_VTEP);
    assert_eq!(rig.send(UPLINK, about_another), Outcome::Absorbed);
}

#[test]
fn another_machine_with_the_vteps_address_is_named() {
    let mut rig = Rig::resolved(&two_vpcs());
    let claim = frames::arp_request((HOST.0, OUR_VTEP), OUR_VTEP);
    let conflict = Outcome::Dropped(DropReason::UnderlayAddressConflict);
    assert_eq!(rig.send(UPLINK, claim), conflict);
    let echo = frames::arp_request((OUR_MAC, OUR_VTEP), OUR_VTEP);
    assert_eq!(rig.send(UPLINK, echo), Outcome::Absorbed);
}

#[test]
fn the_vtep_answers_a_ping_of_any_length() {
    let mut rig = Rig::resolved(&two_vpcs());
    for length in [0, 1, 56, 300, 1472] {
        let payload: Vec<u8> = (0..length).map(|byte: u16| byte.to_le_bytes()[0]).collect();
        let mut ping = frames::ping((HOST.0, OUR_MAC), (HOST.1, OUR_VTEP), &payload);
        let reply = frames::icmp(ICMP_ECHO_REPLY, &payload);
        let expected = frames::ipv4((OUR_MAC, HOST.0), (OUR_VTEP, HOST.1), PROTOCOL_ICMP, &reply);
        // A time to live of its own is given to the answer; padding is left off.
        ping[22] = 3;
        fix_ip_checksum(&mut ping);
        ping.extend([0; 18]);
        assert_eq!(rig.send(UPLINK, ping).sent(), (UPLINK, expected), "{length} bytes");
    }
}

#[test]
fn a_ping_from_a_group_is_not_answered() {
    let mut rig = Rig::resolved(&two_vpcs());
    for source in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)] {
        let ping = frames::ping((HOST.0, OUR_MAC), (source, OUR_VTEP), b"x");
        assert_eq!(rig.send(UPLINK, ping), Outcome::Dropped(DropReason::HeaderInvalid));
    }
}

fn fix_ip_checksum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = plinth_wire::checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn without_an_underlay_the_wire_is_not_listened_to() {
    let mut config = two_vpcs();
    config.underlay = None;
    config.remotes.clear();
    let mut rig = Rig::new(&config);
    let question = frames::arp_request(HOST, OUR_VTEP);
    assert_eq!(rig.send(UPLINK, question), Outcome::Dropped(DropReason::PortUnknown));
    assert_eq!(rig.said(), Vec::<Vec<u8>>::new());
    assert_eq!(rig.switch.deadline(), None);
    // And taken away from a running switch, tunnels end.
    let mut rig = Rig::resolved(&two_vpcs());
    let frame = frames::udp((mac(1), mac(3)), (v4(1), v4(3)), (1, 2), b"x");
    assert!(matches!(rig.send(rig.index(1), frame.clone()), Outcome::Sent { .. }));
    config.epoch = Epoch(2);
    rig.switch.apply(rig.now, &config).unwrap();
    let unknown = Outcome::Dropped(DropReason::DestinationUnknown);
    assert_eq!(rig.send(rig.index(1), frame), unknown);
}
