// SPDX-License-Identifier: Apache-2.0
//! Packets that do not fit where they go, and what their senders are told; connections whose ends
//! announce longer segments than their way carries. Errors are built anew and compared whole.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_switch_api::SubnetPrefix;
use plinth_vswitch::{DropReason, Limits};
use plinth_wire::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, checksum};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use support::frames::Macs;
use support::outside::*;
use support::*;

const GATEWAY_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
/// Bytes of a packet that come back with an error about it.
const QUOTED: usize = 128;

/// "Fragmentation needed" from one address to another.
fn too_big(ends: (Ipv4Addr, Ipv4Addr), mtu: u16, about: &Ip) -> Ip {
    let about = about.packet(64);
    let [high, low] = mtu.to_be_bytes();
    let mut upper = vec![3, 4, 0, 0, 0, 0, high, low];
    upper.extend_from_slice(&about[..about.len().min(QUOTED)]);
    Ip::new(PROTOCOL_ICMP, ends, upper)
}

/// As the switch says it: with the bit that forbids to cut it.
fn said(error: &Ip, macs: Macs) -> Vec<u8> {
    let mut frame = error.frame(macs, 64);
    frame[20] = 0x40;
    frame[24..26].fill(0);
    let sum = checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn a_guest_with_a_wrong_mtu_is_told_the_right_one() {
    let mut story = Story::new();
    let place = story.rig.index(1);
    for to in [WEB, v4(2), EIP] {
        let long = Ip::udp((v4(1), to), (1000, 53), &[7; 1450]);
        let expected = too_big((GATEWAY_INSIDE, v4(1)), 1450, &long);
        let macs = (ROUTER, mac(1));
        assert_eq!(story.out(1, &long).sent(), (place, said(&expected, macs)));
    }
    let carried = Ip::udp((CARRIED, WEB), (1000, 53), &[7; 1450]);
    let expected = too_big((GATEWAY_INSIDE, CARRIED), 1450, &carried);
    let place = story.rig.index(5);
    assert_eq!(story.out(5, &carried).sent(), (place, said(&expected, (ROUTER, mac(5)))));
    assert_eq!(story.rig.switch.flow_count(), 0, "nothing is kept for what was not sent");
    story.rig.check_books(5);
}

#[test]
fn a_guest_is_told_what_a_neighbor_of_a_smaller_mtu_takes() {
    let mut config = outside();
    config.ports[1].mtu = 1300;
    let mut story = Story::of(config);
    let place = story.rig.index(1);
    // Routed, and straight to the neighbor's MAC.
    for to in [ROUTER, mac(2)] {
        let fits = Ip::udp((v4(1), v4(2)), (1000, 53), &[7; 1272]);
        story.rig.send(place, fits.frame((mac(1), to), 64)).sent();
        let long = Ip::udp((v4(1), v4(2)), (1000, 53), &[7; 1273]);
        let outcome = story.rig.send(place, long.frame((mac(1), to), 64));
        let expected = too_big((GATEWAY_INSIDE, v4(1)), 1300, &long);
        assert_eq!(outcome.sent(), (place, said(&expected, (ROUTER, mac(1)))));
    }
    // What has no hop left is told that, and not the other, also where its flow is known.
    let fits = Ip::udp((v4(1), v4(2)), (1000, 53), &[7; 1272]);
    story.rig.send(place, fits.frame((mac(1), ROUTER), 64)).sent();
    let long = Ip::udp((v4(1), v4(2)), (1000, 53), &[7; 1273]);
    let (_, answer) = story.rig.send(place, long.frame((mac(1), ROUTER), 1)).sent();
    assert_eq!(answer[34..36], [11, 0]);
    story.rig.check_books(5);
}

#[test]
fn the_outside_is_told_by_the_address_that_it_speaks_to() {
    let mut story = Story::new();
    for to in [EIP, CARRIED] {
        let fits = Ip::udp((WEB, to), (5000, 22), &[7; 1422]);
        assert_ne!(story.back(&fits).sent().0, UPLINK);
        let long = Ip::udp((WEB, to), (5000, 22), &[7; 1423]);
        let expected = too_big((to, WEB), 1450, &long);
        let frame = said(&expected, (OUR_MAC, GATEWAY_MAC));
        assert_eq!(story.back(&long).sent(), (UPLINK, frame));
    }
    // The answer of a connection through a gateway.
    let asked = Ip::udp((v4(2), WEB), (1000, 53), b"x");
    let port = source_port(&story.out(2, &asked).sent().1);
    let long = Ip::udp((WEB, SHARED), (53, port), &[7; 1440]);
    let expected = too_big((SHARED, WEB), 1450, &long);
    let frame = said(&expected, (OUR_MAC, GATEWAY_MAC));
    assert_eq!(story.back(&long).sent(), (UPLINK, frame));
    // A port that leads nowhere says nothing.
    let nobody = Ip::udp((WEB, SHARED), (53, 9), &[7; 1440]);
    assert_eq!(story.back(&nobody), Outcome::Dropped(DropReason::NatNoConnection));
    story.rig.check_books(5);
}

#[test]
fn the_outside_tells_a_guest_how_much_its_path_carries() {
    let mut story = Story::new();
    let hop = Ipv4Addr::new(203, 0, 113, 5);
    let place = story.rig.index(2);
    let asked = Ip::udp((v4(2), WEB), (1000, 53), &[7; 1400]);
    let port = source_port(&story.out(2, &asked).sent().1);
    let seen = asked.to((SHARED, WEB)).with_ports(port, 53);
    let (port, frame) = story.back(&too_big((hop, SHARED), 1280, &seen)).sent();
    let expected = too_big((hop, v4(2)), 1280, &asked);
    assert_eq!((port, frame), expected.arrived(place, 2));
}

#[test]
fn a_sender_of_another_node_is_told_through_the_tunnel() {
    let mut config = outside();
    config.remotes = vec![remote(100, 3, NEAR_VTEP)];
    config.ports[0].mtu = 1300;
    let mut story = Story::of(config);
    story.rig.hear_next_hops();
    let long = Ip::udp((v4(3), v4(1)), (1000, 53), &[7; 1273]);
    // Bridged, and routed by the switch there, which has put its router's MAC on it.
    for from in [mac(3), ROUTER] {
        let inner = long.frame((from, mac(1)), 64);
        let macs = (NEAR_MAC, OUR_MAC);
        let outer = frames::vxlan(macs, (NEAR_VTEP, OUR_VTEP), vni(100), &inner);
        let (port, answer) = story.rig.send(UPLINK, outer).sent();
        assert_eq!(port, UPLINK);
        let ends = (OUR_VTEP, NEAR_VTEP);
        let inner = frames::unwrap(&answer, (OUR_MAC, NEAR_MAC), ends, vni(100));
        let expected = too_big((GATEWAY_INSIDE, v4(3)), 1300, &long);
        assert_eq!(inner, said(&expected, (ROUTER, mac(3))));
    }
    // Of whom nothing is known, nobody is told.
    let strange = Ip::udp((v4(77), v4(1)), (1000, 53), &[7; 1273]);
    let inner = strange.frame((mac(77), mac(1)), 64);
    let outer = frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), &inner);
    assert_eq!(story.rig.send(UPLINK, outer), Outcome::Dropped(DropReason::PortMtuExceeded));
    story.rig.check_books(5);
}

#[test]
fn a_packet_of_ipv6_is_too_big_in_its_own_words() {
    let mut config = outside();
    config.vpcs[0].subnets[0]
        .prefixes
        .push(SubnetPrefix { prefix: "fd00::/64".parse().unwrap(), gateway: IpAddr::V6(v6(254)) });
    let mut story = Story::of(config);
    let place = story.rig.index(1);
    let upper = frames::datagram((1000, 53), &[7; 1403]);
    let frame = frames::ipv6((mac(1), ROUTER), (v6(1), v6(2)), PROTOCOL_UDP, &upper);
    let (port, answer) = story.rig.send(place, frame.clone()).sent();
    assert_eq!(port, place);
    assert_eq!(answer[54..62], [2, 0, answer[56], answer[57], 0, 0, 5, 0xaa]);
    assert_eq!(answer[22..54], [v6(254).octets(), v6(1).octets()].concat()[..]);
    assert_eq!(answer[62..], frame[14..14 + QUOTED]);
    let mut covered = answer[22..54].to_vec();
    covered.extend_from_slice(&[0, 58]);
    covered.extend_from_slice(&u16::try_from(answer.len() - 54).unwrap().to_be_bytes());
    covered.extend_from_slice(&answer[54..]);
    assert!(checksum::is_right(&covered));
}

#[test]
fn nothing_is_said_of_what_must_not_be_answered() {
    let mut story = Story::new();
    let refused = Outcome::Dropped(DropReason::PortMtuExceeded);
    let error = Ip::error((v4(1), WEB), &Ip::udp((WEB, v4(1)), (1, 2), &[7; 1500]), 1500);
    assert_eq!(story.out(1, &error), refused);
    let piece = |start| {
        let mut piece = Ip::udp((v4(1), WEB), (1000, 53), &[7; 1600]);
        piece.piece = (9, start, true);
        piece
    };
    assert_eq!(story.out(1, &piece(800)), refused);
    assert_eq!(
        story.out(1, &piece(0)).sent().0,
        story.rig.index(1),
        "the first one stands for all"
    );
    for source in [v4(2), WEB, Ipv4Addr::UNSPECIFIED] {
        assert_eq!(story.out(1, &Ip::udp((source, WEB), (1, 2), &[7; 1600])), refused);
    }
    let group = Ip::udp((v4(1), Ipv4Addr::new(224, 0, 0, 9)), (1, 2), &[7; 1600]);
    assert_eq!(story.out(1, &group), refused);
    // A flat segment has no router that could say it.
    story.apply(|config| {
        config.vpcs.clear();
        config.external = plinth_switch_api::External::default();
    });
    assert_eq!(story.out(1, &Ip::udp((v4(1), v4(2)), (1, 2), &[7; 1600])), refused);
}

#[test]
fn it_is_said_so_often_and_no_more() {
    let config = outside();
    let limits = Limits { icmp_errors_per_second: 10, ..limits() };
    let mut rig = Rig::with_limits(&config, limits);
    rig.now += Duration::from_secs(5);
    let place = rig.index(1);
    let long = Ip::udp((v4(1), v4(2)), (1, 2), &[7; 1600]).frame((mac(1), ROUTER), 64);
    let refused = Outcome::Dropped(DropReason::PortMtuExceeded);
    let said = (0..50).filter(|_| rig.once(place, long.clone()) != refused).count();
    assert_eq!(said, 10);
}

/// A SYN that announces segments of `size` bytes, the option where it is in no whole word.
fn announcing(ends: (Ipv4Addr, Ipv4Addr), ports: (u16, u16), flags: u8, size: u16) -> Ip {
    let mut upper = Ip::tcp(ends, ports, flags, (100, 101)).upper;
    upper[12] = 7 << 4;
    let [high, low] = size.to_be_bytes();
    upper.extend_from_slice(&[1, 2, 4, high, low, 0, 0, 0]);
    Ip::new(PROTOCOL_TCP, ends, upper)
}

#[test]
fn segments_that_are_announced_fit_the_way() {
    let mut config = outside();
    config.ports[1].mtu = 1300;
    let mut story = Story::of(config);
    let first = story.rig.index(1);
    for (size, lowered) in [(8960, 1410), (1411, 1410), (1410, 1410), (536, 536)] {
        let syn = |size| announcing((v4(1), WEB), (1000, 80), SYN, size);
        let expected = syn(lowered).to((EIP, WEB)).left();
        assert_eq!(story.out(1, &syn(size)).sent(), expected, "out: the sender's port");
        let syn = |size| announcing((WEB, EIP), (5000, 22), SYN, size);
        let expected = syn(lowered).to((WEB, v4(1))).arrived(first, 1);
        assert_eq!(story.back(&syn(size)).sent(), expected, "in: the receiver's");
    }
    let answer = |size| announcing((v4(1), WEB), (22, 5000), SYN | ACK, size);
    let expected = answer(1410).to((EIP, WEB)).left();
    assert_eq!(story.out(1, &answer(8960)).sent(), expected, "an answer as well");
    let second = story.rig.index(2);
    let syn = |size| announcing((v4(1), v4(2)), (1000, 80), SYN, size);
    assert_eq!(story.out(1, &syn(1410)).sent(), syn(1260).arrived(second, 2), "the smaller");
    let data = |size| announcing((v4(5), v4(2)), (1000, 80), ACK, size);
    assert_eq!(story.out(5, &data(1410)).sent(), data(1410).arrived(second, 2), "no beginning");
}
