// SPDX-License-Identifier: Apache-2.0
//! Stories of packets whose addresses and ports become others on the way out and in. Every frame
//! is sent twice, by the stages and by its entry, and compared with one that was built anew, with
//! its sums taken over all bytes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::GroupId;
use plinth_switch_api::{
    Direction, Priority, Rule, RulePeer, RuleProtocol, RuleVerdict, SecurityGroup,
};
use plinth_vswitch::DropReason;
use plinth_wire::{PROTOCOL_TCP, checksum};
use std::net::Ipv4Addr;
use std::time::Duration;
use support::frames;
use support::outside::*;
use support::*;

#[test]
fn a_datagram_goes_out_under_the_external_address_and_its_answer_comes_back() {
    let mut story = Story::new();
    for payload in [&b""[..], b"x", b"xyz", &[0xff; 999]] {
        let asked = Ip::udp((v4(1), WEB), (1000, 53), payload);
        assert_eq!(story.out(1, &asked).sent(), asked.to((EIP, WEB)).left());
        let answer = Ip::udp((WEB, EIP), (53, 1000), payload);
        let place = story.rig.index(1);
        assert_eq!(story.back(&answer).sent(), answer.to((WEB, v4(1))).arrived(place, 1));
    }
    story.rig.check_books(5);
    let counted = story.rig.switch.external_addresses();
    let eip = counted.iter().find(|counted| counted.address == EIP).unwrap();
    assert_eq!((eip.packets_in, eip.packets_out), (8, 8));
}

#[test]
fn a_datagram_without_a_checksum_stays_without() {
    let mut story = Story::new();
    let mut asked = Ip::udp((v4(1), WEB), (1000, 53), b"x");
    asked.upper[6..8].fill(0);
    let expected = Ip { ends: (EIP, WEB), ..asked.clone() };
    assert_eq!(story.out(1, &asked).sent(), expected.left());
}

#[test]
fn a_sum_of_zero_is_written_as_all_ones() {
    let mut story = Story::new();
    // The payload that makes the new sum zero: the sum itself.
    let asked = Ip::udp((EIP, WEB), (1000, 53), &[0, 0]);
    let filler = [asked.upper[6], asked.upper[7]];
    let asked = Ip::udp((v4(1), WEB), (1000, 53), &filler);
    let (_, frame) = story.out(1, &asked).sent();
    assert_eq!(frame[40..42], [0xff, 0xff]);
    assert_eq!((UPLINK, frame), asked.to((EIP, WEB)).left());
}

#[test]
fn the_outside_reaches_an_external_address() {
    let mut story = Story::new();
    let place = story.rig.index(1);
    let syn = Ip::tcp((WEB, EIP), (5000, 22), SYN, (100, 0));
    assert_eq!(story.back(&syn).sent(), syn.to((WEB, v4(1))).arrived(place, 1));
    let answer = Ip::tcp((v4(1), WEB), (22, 5000), SYN | ACK, (500, 101));
    assert_eq!(story.out(1, &answer).sent(), answer.to((EIP, WEB)).left());
    let ping = Ip::icmp((WEB, EIP), 8, 77, b"hello");
    assert_eq!(story.back(&ping).sent(), ping.to((WEB, v4(1))).arrived(place, 1));
    let pong = Ip::icmp((v4(1), WEB), 0, 77, b"hello");
    assert_eq!(story.out(1, &pong).sent(), pong.to((EIP, WEB)).left());
    // A protocol without ports.
    let other = Ip { protocol: 132, ..Ip::icmp((WEB, EIP), 8, 77, b"hello") };
    let expected = Ip { ends: (WEB, v4(1)), ..other.clone() };
    assert_eq!(story.back(&other).sent(), expected.arrived(place, 1));
}

#[test]
fn a_carried_address_passes_as_it_is() {
    let mut story = Story::new();
    let asked = Ip::udp((CARRIED, WEB), (1000, 53), b"x");
    assert_eq!(story.out(5, &asked).sent(), asked.left());
    let answer = Ip::udp((WEB, CARRIED), (53, 1000), b"y");
    let place = story.rig.index(5);
    assert_eq!(story.back(&answer).sent(), answer.arrived(place, 5));
    let error = Ip::error((WEB, CARRIED), &asked, 28);
    assert_eq!(story.back(&error).sent(), error.arrived(place, 5));
    let stolen = story.out(1, &asked);
    assert_eq!(stolen, Outcome::Dropped(DropReason::SourceAddressSpoofed));
}

#[test]
fn a_gateway_gives_connections_ports_and_takes_them_back() {
    let mut story = Story::new();
    let place = story.rig.index(2);
    let ports: Vec<u16> = (0..64)
        .map(|number| {
            let asked = Ip::udp((v4(2), WEB), (2000 + number, 53), b"x");
            let (_, frame) = story.out(2, &asked).sent();
            let port = source_port(&frame);
            assert_eq!((UPLINK, frame), asked.to((SHARED, WEB)).with_ports(port, 53).left());
            let answer = Ip::udp((WEB, SHARED), (53, port), b"y");
            let expected = answer.to((WEB, v4(2))).with_ports(53, 2000 + number);
            assert_eq!(story.back(&answer).sent(), expected.arrived(place, 2));
            port
        })
        .collect();
    let mut sorted = ports.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), 64, "every connection has its own port");
    assert!(sorted[63] - sorted[0] < 64, "of the NIC's block");
    let more = Ip::udp((v4(2), WEB), (3000, 53), b"x");
    assert_eq!(story.out(2, &more), Outcome::Dropped(DropReason::NatPortsExhausted));
    // Another's ports are its own, and another destination another matter.
    let neighbor = Ip::udp((v4(5), WEB), (3000, 53), b"x");
    let (_, frame) = story.out(5, &neighbor).sent();
    assert!(!sorted.contains(&source_port(&frame)));
    let elsewhere = Ip::udp((v4(2), Ipv4Addr::new(192, 0, 2, 81)), (3000, 53), b"x");
    story.out(2, &elsewhere).sent();
    story.wait(250);
    story.hear_next_hop();
    story.out(2, &more).sent();
}

#[test]
fn a_ping_through_a_gateway_has_an_identifier_of_its_own() {
    let mut story = Story::new();
    let ping = Ip::icmp((v4(2), WEB), 8, 7, b"hello!!");
    let (_, frame) = story.out(2, &ping).sent();
    let identifier = source_port(&frame);
    let expected = Ip::icmp((SHARED, WEB), 8, identifier, b"hello!!");
    assert_eq!((UPLINK, frame), expected.left());
    let pong = Ip::icmp((WEB, SHARED), 0, identifier, b"hello!!");
    let place = story.rig.index(2);
    let expected = Ip::icmp((WEB, v4(2)), 0, 7, b"hello!!");
    assert_eq!(story.back(&pong).sent(), expected.arrived(place, 2));
}

#[test]
fn a_port_of_a_gateway_leads_to_a_nic() {
    let mut story = Story::new();
    let place = story.rig.index(2);
    let syn = Ip::tcp((WEB, SHARED), (5000, 8003), SYN, (100, 0));
    let expected = syn.to((WEB, v4(2))).with_ports(5000, 83);
    assert_eq!(story.back(&syn).sent(), expected.arrived(place, 2));
    let answer = Ip::tcp((v4(2), WEB), (83, 5000), SYN | ACK, (500, 101));
    let expected = answer.to((SHARED, WEB)).with_ports(8003, 5000);
    assert_eq!(story.out(2, &answer).sent(), expected.left());
    for port in [7999, 8010, 1024] {
        let syn = Ip::tcp((WEB, SHARED), (5000, port), SYN, (100, 0));
        assert_eq!(story.back(&syn), Outcome::Dropped(DropReason::NatNoConnection));
    }
    let datagram = Ip::udp((WEB, SHARED), (5000, 8003), b"x");
    assert_eq!(story.back(&datagram), Outcome::Dropped(DropReason::NatNoConnection));
}

#[test]
fn a_guest_reaches_another_by_its_outside() {
    let mut story = Story::new();
    let (first, second) = (story.rig.index(1), story.rig.index(2));
    let syn = Ip::tcp((v4(2), EIP), (1000, 22), SYN, (100, 0));
    let (place, frame) = story.out(2, &syn).sent();
    let port = source_port(&frame);
    let expected = syn.to((SHARED, v4(1))).with_ports(port, 22).arrived(first, 1);
    assert_eq!((place, frame), expected);
    let answer = Ip::tcp((v4(1), SHARED), (22, port), SYN | ACK, (500, 101));
    let expected = answer.to((EIP, v4(2))).with_ports(22, 1000).arrived(second, 2);
    assert_eq!(story.out(1, &answer).sent(), expected);
    let syn = Ip::tcp((v4(1), SHARED), (1000, 8000), SYN, (100, 0));
    let expected = syn.to((EIP, v4(2))).with_ports(1000, 80).arrived(second, 2);
    assert_eq!(story.out(1, &syn).sent(), expected);
    let own = Ip::tcp((v4(1), EIP), (1000, 22), SYN, (100, 0));
    assert_eq!(story.out(1, &own), Outcome::Dropped(DropReason::DestinationIsSource));
    let nobody = Ip::tcp((v4(1), SHARED), (1000, 9000), SYN, (100, 0));
    assert_eq!(story.out(1, &nobody), Outcome::Dropped(DropReason::NatNoConnection));
}

#[test]
fn errors_from_outside_are_told_of_the_packet_as_it_was_sent() {
    let mut story = Story::new();
    let hop = Ipv4Addr::new(203, 0, 113, 5);
    let place = story.rig.index(2);
    for (asked, kind) in [
        (Ip::udp((v4(2), WEB), (1000, 53), b"payload"), "udp"),
        (Ip::tcp((v4(2), WEB), (1000, 80), SYN, (7, 0)), "tcp"),
        (Ip::icmp((v4(2), WEB), 8, 99, b"odd"), "icmp"),
    ] {
        let (_, frame) = story.out(2, &asked).sent();
        let mut seen = asked.to((SHARED, WEB));
        let port = source_port(&frame);
        let at = if kind == "icmp" { 4 } else { 0 };
        seen.upper[at..at + 2].copy_from_slice(&port.to_be_bytes());
        let seen = seen.summed();
        for quoted in [28, 29, 40, 500] {
            let error = Ip::error((hop, SHARED), &seen, quoted);
            let expected = Ip::error((hop, v4(2)), &asked, quoted);
            let (to, frame) = story.back(&error).sent();
            assert_eq!((to, frame), expected.arrived(place, 2), "{kind}, {quoted} bytes quoted");
        }
    }
    let strange = Ip::error((hop, SHARED), &Ip::udp((SHARED, WEB), (1, 2), b""), 28);
    assert_eq!(story.back(&strange), Outcome::Dropped(DropReason::IcmpUnrelated));
}

#[test]
fn errors_from_inside_say_nothing_of_the_inside() {
    let mut story = Story::new();
    let place = story.rig.index(2);
    let asked = Ip::tcp((WEB, SHARED), (5000, 8003), SYN, (100, 0));
    let inside = asked.to((WEB, v4(2))).with_ports(5000, 83);
    assert_eq!(story.back(&asked).sent(), inside.arrived(place, 2));
    let error = Ip::error((v4(2), WEB), &inside, 500);
    let expected = Ip::error((SHARED, WEB), &asked, 500);
    assert_eq!(story.out(2, &error).sent(), expected.left());
    let strange = Ip::error((v4(2), WEB), &Ip::udp((WEB, v4(2)), (1, 2), b""), 28);
    assert_eq!(story.out(2, &strange), Outcome::Dropped(DropReason::IcmpUnrelated));
}

#[test]
fn pieces_follow_the_first_one() {
    let mut story = Story::new();
    let whole = Ip::udp((v4(2), WEB), (1000, 53), &[7; 1600]);
    let cut = |whole: &Ip| {
        let (first, second) = whole.upper.split_at(800);
        let piece = |start, has_more, upper: &[u8]| Ip {
            piece: (9, start, has_more),
            upper: upper.to_vec(),
            ..whole.clone()
        };
        [piece(0, true, first), piece(800, false, second)]
    };
    let [first, second] = cut(&whole);
    assert_eq!(story.out(2, &second), Outcome::Dropped(DropReason::FragmentUnmatched));
    let (_, frame) = story.out(2, &first).sent();
    let seen = whole.to((SHARED, WEB)).with_ports(source_port(&frame), 53);
    let expected = cut(&seen);
    assert_eq!((UPLINK, frame), expected[0].left());
    assert_eq!(story.out(2, &second).sent(), expected[1].left());
    // And the answer, in pieces.
    let answer = Ip::udp((WEB, SHARED), (53, source_port(&expected[0].left().1)), &[8; 1600]);
    let inside = cut(&answer.to((WEB, v4(2))).with_ports(53, 1000));
    let place = story.rig.index(2);
    for (piece, expected) in cut(&answer).iter().zip(inside) {
        assert_eq!(story.back(piece).sent(), expected.arrived(place, 2));
    }
}

#[test]
fn a_connection_survives_what_does_not_concern_it() {
    let mut story = Story::new();
    let asked = Ip::udp((v4(2), WEB), (1000, 53), b"x");
    let (_, before) = story.out(2, &asked).sent();
    let answer = Ip::udp((WEB, SHARED), (53, source_port(&before)), b"y");
    story.back(&answer).sent();
    story.apply(|config| config.ports.retain(|port| port.id.0 != 4));
    assert_eq!(story.out(2, &asked).sent().1, before);
    story.back(&answer).sent();
}

#[test]
fn what_is_unbound_ends_at_once() {
    let mut story = Story::new();
    let asked = Ip::udp((v4(1), WEB), (1000, 53), b"x");
    let answer = Ip::udp((WEB, EIP), (53, 1000), b"y");
    story.out(1, &asked).sent();
    story.back(&answer).sent();
    story.apply(|config| drop(config.external.addresses.remove(0)));
    assert_eq!(story.back(&answer), Outcome::Dropped(DropReason::UnderlayAddressForeign));
    let (_, frame) = story.out(1, &asked).sent();
    assert_eq!(frame[26..30], SHARED.octets(), "the gateway of the VPC is what is left");
    story.apply(|config| config.external.gateways.clear());
    assert_eq!(story.out(1, &asked), Outcome::Dropped(DropReason::ExternalAddressMissing));
}

#[test]
fn an_address_that_moves_takes_no_connection_along() {
    let mut story = Story::new();
    story.out(1, &Ip::udp((v4(1), WEB), (1000, 53), b"x")).sent();
    story.apply(|config| config.external.addresses[0].nic = v4(2));
    let answer = Ip::udp((WEB, EIP), (53, 1000), b"y");
    let place = story.rig.index(2);
    assert_eq!(story.back(&answer).sent(), answer.to((WEB, v4(2))).arrived(place, 2));
}

#[test]
fn nobody_else_has_the_outside_of_a_vpc() {
    let mut story = Story::new();
    let asked = Ip::udp((v4(1), WEB), (1000, 53), b"x");
    let place = story.rig.index(3);
    let outcome = story.rig.send(place, asked.frame((mac(1), ROUTER), 64));
    assert_eq!(outcome, Outcome::Dropped(DropReason::ExternalAddressMissing));
}

#[test]
fn the_outside_may_not_call_itself_an_external_address() {
    let mut story = Story::new();
    let spoofed = Ip::udp((SHARED, EIP), (1000, 53), b"x");
    assert_eq!(story.back(&spoofed), Outcome::Dropped(DropReason::SourceAddressSpoofed));
    let nobody = Ip::udp((Ipv4Addr::LOCALHOST, EIP), (1000, 53), b"x");
    assert_eq!(story.back(&nobody), Outcome::Dropped(DropReason::HeaderInvalid));
}

#[test]
fn external_addresses_are_announced_and_asked_for() {
    let mut story = Story::new();
    let announced = |said: &[Vec<u8>], address: Ipv4Addr| {
        let whole = frames::arp_request((OUR_MAC, address), address);
        said.iter().filter(|frame| **frame == whole).count()
    };
    let said = story.rig.said();
    for address in [EIP, SHARED, CARRIED] {
        assert_eq!(announced(&said, address), 1);
    }
    assert_eq!(announced(&story.rig.said(), EIP), 0);
    story.rig.now += Duration::from_secs(2);
    assert_eq!(announced(&story.rig.said(), EIP), 1);
    story.rig.now += Duration::from_secs(2);
    assert_eq!(announced(&story.rig.said(), EIP), 0);
    let question = frames::arp_request((GATEWAY_MAC, GATEWAY), EIP);
    let (port, answer) = story.rig.once(UPLINK, question).sent();
    assert_eq!(port, UPLINK);
    assert_eq!(answer, frames::arp_reply((OUR_MAC, EIP), (GATEWAY_MAC, GATEWAY)));
}

#[test]
fn a_checksum_left_to_the_switch_is_left_with_the_right_sum() {
    let mut story = Story::new();
    let frame = frames::tcp_partial((mac(1), ROUTER), (v4(1), WEB), b"data");
    let mut syn = frame.clone();
    syn[47] = SYN;
    let incoming =
        Incoming { port: story.rig.index(1), frame: syn.clone(), offload: partial(34, 16) };
    let Outcome::Sent { frame, partial: Some(left), .. } = story.rig.offer(&incoming) else {
        panic!("it is sent, with its checksum still open");
    };
    let mut done = frame;
    checksum::complete(&mut done, left).unwrap();
    let mut expected = Ip::new(PROTOCOL_TCP, (EIP, WEB), syn[34..].to_vec());
    expected = expected.summed();
    // The header of IP has a bit that this file's packets do not have: don't fragment.
    assert_eq!(done[34..], expected.left().1[34..]);
    assert!(checksum::is_right(&done[14..34]));
    assert_eq!(done[26..34], expected.left().1[26..34]);
}

#[test]
fn rules_see_the_address_that_their_side_sees() {
    let mut config = outside();
    let rule = |direction, peer: &str, port| Rule {
        direction,
        priority: Priority::Mid,
        verdict: RuleVerdict::Allow,
        protocol: RuleProtocol::Tcp,
        ports: Some((port, port)),
        icmp: None,
        peer: RulePeer::Prefix(peer.parse().unwrap()),
    };
    let rules = vec![
        rule(Direction::Outbound, "192.0.2.80/32", 80),
        rule(Direction::Inbound, "192.0.2.80/32", 83),
    ];
    config.security_groups =
        vec![SecurityGroup { id: GroupId(1), name: "group".parse().unwrap(), rules }];
    config.ports[1].security_groups = Some(vec![GroupId(1)]);
    let mut story = Story::of(config);
    let opened =
        |story: &mut Story, port| story.out(2, &Ip::tcp((v4(2), WEB), (9, port), SYN, (1, 0)));
    opened(&mut story, 80).sent();
    assert_eq!(opened(&mut story, 81), Outcome::Dropped(DropReason::SecurityGroupDenied));
    let called = |story: &mut Story, from, port| {
        story.back(&Ip::tcp((from, SHARED), (9, port), SYN, (1, 0)))
    };
    called(&mut story, WEB, 8003).sent();
    let denied = Outcome::Dropped(DropReason::SecurityGroupDenied);
    assert_eq!(called(&mut story, WEB, 8004), denied);
    assert_eq!(called(&mut story, Ipv4Addr::new(192, 0, 2, 81), 8003), denied);
    // A rule that goes takes the connection with it, whichever side sends next.
    story.apply(|config| config.security_groups[0].rules.truncate(1));
    let answer = Ip::tcp((v4(2), WEB), (83, 9), SYN | ACK, (5, 2));
    let place = story.rig.index(2);
    assert_eq!(story.rig.once(place, answer.frame((mac(2), ROUTER), 64)), denied);
}

#[test]
fn a_reset_ends_a_connection_through_a_gateway() {
    let mut story = Story::new();
    let syn = Ip::tcp((v4(2), WEB), (1000, 80), SYN, (100, 0));
    let (_, frame) = story.out(2, &syn).sent();
    let port = source_port(&frame);
    let reset = Ip::tcp((WEB, SHARED), (80, port), RST | ACK, (0, 101));
    let place = story.rig.index(2);
    let expected = reset.to((WEB, v4(2))).with_ports(80, 1000);
    assert_eq!(story.back(&reset).sent(), expected.arrived(place, 2));
    story.wait(60);
    assert_eq!(story.rig.switch.connection_count(), 0);
    assert_eq!(story.back(&reset), Outcome::Dropped(DropReason::NatNoConnection));
}

#[test]
fn the_far_end_may_not_begin_anew_what_a_guest_has_begun() {
    let mut story = Story::new();
    let syn = Ip::tcp((v4(2), WEB), (1000, 80), SYN, (100, 0));
    let (_, frame) = story.out(2, &syn).sent();
    let port = source_port(&frame);
    let reset = Ip::tcp((WEB, SHARED), (80, port), RST | ACK, (0, 101));
    story.back(&reset).sent();
    // The port is nobody's but for what the guest has asked for, and that has ended.
    let theirs = Ip::tcp((WEB, SHARED), (80, port), SYN, (900, 0));
    assert_eq!(story.back(&theirs), Outcome::Dropped(DropReason::NatNoConnection));
    // The guest itself may, and is answered.
    let again = Ip::tcp((v4(2), WEB), (1000, 80), SYN, (70_000, 0));
    let (_, frame) = story.out(2, &again).sent();
    let answer = Ip::tcp((WEB, SHARED), (80, source_port(&frame)), SYN | ACK, (5, 70_001));
    let place = story.rig.index(2);
    let expected = answer.to((WEB, v4(2))).with_ports(80, 1000);
    assert_eq!(story.back(&answer).sent(), expected.arrived(place, 2));
}

#[test]
fn a_carried_address_is_reached_by_neighbors_and_answers_them() {
    let mut story = Story::new();
    let (one, five) = (story.rig.index(1), story.rig.index(5));
    for payload in [&b"x"[..], b"yz"] {
        let asked = Ip::udp((v4(1), CARRIED), (1000, 53), payload);
        assert_eq!(story.out(1, &asked).sent(), asked.to((EIP, CARRIED)).arrived(five, 5));
        let answer = Ip::udp((CARRIED, EIP), (53, 1000), payload);
        assert_eq!(story.out(5, &answer).sent(), answer.to((CARRIED, v4(1))).arrived(one, 1));
    }
    let asked = Ip::udp((CARRIED, EIP), (7, 8), b"x");
    assert_eq!(story.out(5, &asked).sent(), asked.to((CARRIED, v4(1))).arrived(one, 1));
    let answer = Ip::udp((v4(1), CARRIED), (8, 7), b"y");
    assert_eq!(story.out(1, &answer).sent(), answer.to((EIP, CARRIED)).arrived(five, 5));
}
