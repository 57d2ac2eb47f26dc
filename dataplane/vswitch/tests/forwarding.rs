// SPDX-License-Identifier: Apache-2.0
//! Stories of packets between guests, here and through tunnels. Every frame is sent twice, by the
//! slow and the fast path, and the bytes are compared.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, MacAddress, PortId};
use plinth_vswitch::{DropReason, Offload, PortChange, PortIndex};
use plinth_wire::checksum::{self, PartialChecksum, RxChecksum};
use plinth_wire::{PROTOCOL_UDP, VXLAN_PORT};
use std::time::Duration;
use support::frames::{self, unwrap};
use support::*;

const UPLINK: PortIndex = PortIndex::UPLINK;

#[test]
fn a_frame_reaches_the_neighbor_on_the_same_node_unchanged() {
    let mut rig = Rig::resolved(&two_vpcs());
    let frame = frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (1000, 2000), &[7; 900]);
    assert_eq!(rig.send(rig.index(1), frame.clone()).sent(), (rig.index(2), frame));
    let counters = rig.switch.flow_counters();
    assert_eq!((counters.misses, counters.hits, counters.made), (1, 1, 1));
    rig.check_books(4);
}

#[test]
fn ipv6_goes_the_same_way() {
    let mut rig = Rig::resolved(&two_vpcs());
    let payload = frames::datagram((1, 2), &[1; 40]);
    let frame = frames::ipv6((mac(1), mac(2)), (v6(1), v6(2)), PROTOCOL_UDP, &payload);
    assert_eq!(rig.send(rig.index(1), frame.clone()).sent(), (rig.index(2), frame));
}

#[test]
fn a_frame_to_a_remote_goes_into_its_tunnel() {
    let mut rig = Rig::resolved(&two_vpcs());
    let frame = frames::udp((mac(1), mac(3)), (v4(1), v4(3)), (1000, 2000), &[7; 1000]);
    let (port, outer) = rig.send(rig.index(1), frame.clone()).sent();
    assert_eq!(port, UPLINK);
    assert_eq!(unwrap(&outer, (OUR_MAC, NEAR_MAC), (OUR_VTEP, NEAR_VTEP), vni(100)), frame);
    rig.check_books(4);
}

#[test]
fn a_vtep_outside_the_prefix_is_reached_by_the_gateway() {
    let mut rig = Rig::resolved(&two_vpcs());
    let frame = frames::udp((mac(2), mac(4)), (v4(2), v4(4)), (1, 2), b"far");
    let (_, outer) = rig.send(rig.index(2), frame.clone()).sent();
    assert_eq!(unwrap(&outer, (OUR_MAC, GATEWAY_MAC), (OUR_VTEP, FAR_VTEP), vni(100)), frame);
}

#[test]
fn a_frame_from_a_tunnel_reaches_its_port() {
    let mut rig = Rig::resolved(&two_vpcs());
    let inner = frames::udp((mac(3), mac(1)), (v4(3), v4(1)), (1, 2), &[9; 1200]);
    for (segment, id) in [(100, 1), (200, 3)] {
        let outer = frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(segment), &inner);
        assert_eq!(rig.send(UPLINK, outer).sent(), (rig.index(id), inner.clone()));
    }
    rig.check_books(4);
}

/// RFC 7348, section 5: reserved fields are ignored on receipt. Open vSwitch and the group-policy
/// extension do set some.
#[test]
fn reserved_bits_of_the_tunnel_change_nothing() {
    let mut rig = Rig::resolved(&two_vpcs());
    let inner = frames::udp((mac(3), mac(1)), (v4(3), v4(1)), (1, 2), b"x");
    let mut outer = frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), &inner);
    outer[42] |= 0xf7;
    outer[43..46].fill(0xff);
    outer[49] = 0xff;
    assert_eq!(rig.send(UPLINK, outer).sent(), (rig.index(1), inner));
}

#[test]
fn padding_behind_the_outer_packet_is_not_delivered() {
    let mut rig = Rig::resolved(&two_vpcs());
    for (length, padding) in [(1, 17), (1, 300), (600, 5)] {
        let inner = frames::udp((mac(3), mac(1)), (v4(3), v4(1)), (1, 2), &vec![1; length]);
        let mut outer = frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), &inner);
        outer.extend(vec![0xee; padding]);
        assert_eq!(rig.send(UPLINK, outer).sent(), (rig.index(1), inner));
    }
}

#[test]
fn one_flow_takes_one_source_port_and_flows_spread() {
    let mut rig = Rig::resolved(&two_vpcs());
    let mut ports = std::collections::BTreeSet::new();
    for flow in 0..64 {
        let frame = frames::udp((mac(1), mac(3)), (v4(1), v4(3)), (1000 + flow, 53), b"q");
        let (_, outer) = rig.send(rig.index(1), frame).sent();
        ports.insert(u16::from_be_bytes([outer[34], outer[35]]));
    }
    assert!(ports.len() > 56, "64 flows use only {} source ports", ports.len());
}

#[test]
fn a_partial_checksum_stays_partial_between_guests() {
    let mut rig = Rig::resolved(&two_vpcs());
    let frame = frames::tcp_partial((mac(1), mac(2)), (v4(1), v4(2)), &[5; 700]);
    let offload = partial(34, 16);
    let incoming = Incoming { port: rig.index(1), frame: frame.clone(), offload };
    let expected = Outcome::Sent { port: rig.index(2), frame, partial: offload.partial };
    assert_eq!(rig.offer(&incoming), expected);
}

#[test]
fn a_partial_checksum_is_completed_before_the_wire() {
    let mut rig = Rig::resolved(&two_vpcs());
    let frame = frames::tcp_partial((mac(1), mac(3)), (v4(1), v4(3)), &[5; 701]);
    let incoming = Incoming { port: rig.index(1), frame, offload: partial(34, 16) };
    let Outcome::Sent { mut frame, partial, .. } = rig.offer(&incoming) else {
        panic!("it is sent");
    };
    assert_eq!(partial, Some(PartialChecksum { start: 84, offset: 16 }));
    checksum::complete(&mut frame, partial.unwrap()).unwrap();
    let segment = &frame[84..];
    let length = u32::try_from(segment.len()).unwrap();
    let pseudo = plinth_wire::pseudo_header_ipv4(v4(1), v4(3), 6, length);
    assert_eq!(pseudo.with(segment).fold(), 0xffff);
}

/// A checksum field laid over the source address would be written after anti-spoofing.
#[test]
fn a_partial_checksum_cannot_rewrite_what_was_judged() {
    let mut rig = Rig::resolved(&two_vpcs());
    let frame = frames::tcp_partial((mac(1), mac(2)), (v4(1), v4(2)), &[5; 100]);
    let length = u16::try_from(frame.len()).unwrap();
    let hostile = [
        (0, 6),
        (14, 12),
        (26, 0),
        (33, 1),
        (34, 0),
        (34, 2),
        (34, 13),
        (35, 0),
        (53, 0),
        (34, length),
        (length, 0),
        (length - 1, 0),
        (u16::MAX, u16::MAX),
        (34, u16::MAX),
    ];
    for (start, offset) in hostile {
        let offload = partial(start, offset);
        let incoming = Incoming { port: rig.index(1), frame: frame.clone(), offload };
        let dropped = Outcome::Dropped(DropReason::OffloadInvalid);
        assert_eq!(rig.offer(&incoming), dropped, "{start} + {offset}");
    }
    // Inside the payload, as of a tunnel in the guest, it is the guest's own business.
    let incoming = Incoming { port: rig.index(1), frame, offload: partial(54, 6) };
    assert!(matches!(rig.offer(&incoming), Outcome::Sent { .. }));
}

#[test]
fn a_wrong_outer_checksum_is_dropped_and_an_unchecked_one_is_not() {
    let mut rig = Rig::resolved(&two_vpcs());
    let inner = frames::udp((mac(3), mac(1)), (v4(3), v4(1)), (1, 2), b"x");
    let mut frame = frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), &inner);
    frame[40..42].copy_from_slice(&[0x12, 0x34]);
    let looked = checksum::rx_checksum(&frame);
    assert_eq!(looked, RxChecksum::Wrong);
    let delivered = Outcome::Sent { port: rig.index(1), frame: inner, partial: None };
    for (udp, expected) in [
        (looked, Outcome::Dropped(DropReason::UnderlayChecksumWrong)),
        (RxChecksum::Right, delivered.clone()),
        (RxChecksum::Unknown, delivered),
    ] {
        let offload = Offload { partial: None, udp };
        let incoming = Incoming { port: UPLINK, frame: frame.clone(), offload };
        assert_eq!(rig.offer(&incoming), expected);
    }
}

#[test]
fn fragments_are_forwarded_by_address() {
    let mut rig = Rig::resolved(&two_vpcs());
    let mut frame = frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (1, 2), &[1; 64]);
    frame[20] = 0x20;
    assert_eq!(rig.send(rig.index(1), frame.clone()).sent(), (rig.index(2), frame.clone()));
    // A later piece has no ports; what stands there is payload and may be anything.
    frame[20..22].copy_from_slice(&[0x00, 0x08]);
    frame[34..42].fill(0xff);
    assert_eq!(rig.send(rig.index(1), frame.clone()).sent(), (rig.index(2), frame));
    assert_eq!(rig.switch.flow_count(), 1);
}

/// Between ports without security groups nobody asks for the ports of pieces, and the guards hold
/// all the same.
#[test]
fn what_servers_and_routers_say_is_forbidden_in_pieces_too() {
    let mut rig = Rig::resolved(&two_vpcs());
    let first = |destination: u16| {
        let ports = (67, destination);
        let mut frame = frames::udp((mac(1), mac(2)), (v4(1), v4(2)), ports, &[1; 64]);
        frame[20] = 0x20;
        frame
    };
    let forbidden = Outcome::Dropped(DropReason::DhcpServerForbidden);
    // One that is allowed comes before, and its flow is that of all pieces.
    rig.send(rig.index(1), first(69)).sent();
    assert_eq!(rig.send(rig.index(1), first(68)), forbidden);
    let piece = |protocol: u8, offset: u8, upper: &[u8]| {
        let chain = [&[protocol, 0, offset, 1, 0, 0, 0, 9][..], upper].concat();
        frames::ipv6((mac(1), mac(2)), (v6(1), v6(2)), 44, &chain)
    };
    let reply = frames::datagram((547, 546), &[0; 24]);
    rig.send(rig.index(1), piece(17, 0, &frames::datagram((1, 2), &[0; 24]))).sent();
    assert_eq!(rig.send(rig.index(1), piece(17, 0, &reply)), forbidden);
    let invalid = Outcome::Dropped(DropReason::FragmentInvalid);
    for kind in [134, 135, 136, 137] {
        assert_eq!(rig.send(rig.index(1), piece(58, 0, &[kind; 32])), invalid);
    }
    rig.send(rig.index(1), piece(58, 0, &[128; 32])).sent();
    // What stands in a later piece is payload.
    rig.send(rig.index(1), piece(58, 8, &[134; 32])).sent();
    // Another header that hides what comes, and pieces that end before they say it.
    assert_eq!(rig.send(rig.index(1), piece(60, 0, &[58, 0, 0, 0, 0, 0, 0, 0])), invalid);
    assert_eq!(rig.send(rig.index(1), piece(58, 0, &[])), invalid);
    assert_eq!(rig.send(rig.index(1), piece(17, 0, &[0; 3])), invalid);
    rig.check_books(4);
}

#[test]
fn a_configuration_change_reaches_flows_that_exist() {
    let mut config = two_vpcs();
    let mut rig = Rig::resolved(&config);
    let frame = frames::udp((mac(1), mac(3)), (v4(1), v4(3)), (1, 2), b"moves");
    let (port, _) = rig.send(rig.index(1), frame.clone()).sent();
    assert_eq!(port, UPLINK);
    // NIC 3 moves to this node.
    config.epoch = Epoch(2);
    config.remotes.retain(|remote| remote.mac != mac(3) || remote.vni != vni(100));
    config.ports.push(port_of_nic_3());
    rig.switch.apply(rig.now, &config).unwrap();
    assert_eq!(rig.send(rig.index(1), frame.clone()).sent(), (rig.index(9), frame.clone()));
    // And is deleted.
    config.epoch = Epoch(3);
    config.ports.pop();
    rig.switch.apply(rig.now, &config).unwrap();
    let unknown = Outcome::Dropped(DropReason::DestinationUnknown);
    assert_eq!(rig.send(rig.index(1), frame), unknown);
    let counters = rig.switch.flow_counters();
    assert_eq!((counters.misses, counters.hits), (3, 3));
    assert_eq!(rig.switch.flow_count(), 1, "one flow, judged three times");
}

fn port_of_nic_3() -> plinth_switch_api::GuestPort {
    port(9, 100, 3)
}

#[test]
fn a_place_is_given_on_with_fresh_counters() {
    let mut config = two_vpcs();
    let mut rig = Rig::resolved(&config);
    let place = rig.index(2);
    let frame = frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (1, 2), b"x");
    rig.send(rig.index(1), frame);
    assert_eq!(rig.switch.counters(place).sent, 2);
    config.epoch = Epoch(2);
    config.ports[1] = port(7, 200, 7);
    let changes = rig.switch.apply(rig.now, &config).unwrap();
    assert_eq!(
        changes,
        [
            PortChange::Removed { id: PortId(2), index: place },
            PortChange::Added { id: PortId(7), index: place },
        ]
    );
    assert_eq!(rig.switch.counters(place).sent, 0);
    assert_eq!(rig.switch.port_index(PortId(2)), None);
    config.epoch = Epoch(3);
    config.ports[1].mtu = 1400;
    let changes = rig.switch.apply(rig.now, &config).unwrap();
    assert_eq!(changes, [PortChange::Changed { id: PortId(7), index: place }]);
}

#[test]
fn what_a_port_did_not_take_is_counted_there() {
    let mut rig = Rig::resolved(&two_vpcs());
    let frame = frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (1, 2), b"x");
    let mut packet = plinth_vswitch::Packet::empty();
    let length = u32::try_from(frame.len()).unwrap();
    packet.load(rig.index(1), length, Offload::default()).copy_from_slice(&frame);
    let mut packets = [packet];
    rig.switch.process(rig.now, &mut packets);
    rig.switch.undelivered(&packets[0], DropReason::PortQueueFull);
    let to = rig.switch.counters(rig.index(2));
    assert_eq!((to.sent, to.bytes_sent, to.drops(DropReason::PortQueueFull)), (0, 0, 1));
    assert_eq!(rig.switch.counters(rig.index(1)).forwarded, 1);
    rig.check_books(4);
}

#[test]
fn idle_flows_go_and_busy_ones_stay() {
    let mut rig = Rig::resolved(&two_vpcs());
    let flow = |number| frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (number, 1), b"x");
    for number in 0..100 {
        rig.send(rig.index(1), flow(number));
    }
    assert_eq!(rig.switch.flow_count(), 100);
    for _ in 0..40 {
        rig.now += Duration::from_secs(1);
        rig.said();
        rig.send(rig.index(1), flow(5));
        rig.said();
    }
    assert_eq!(rig.switch.flow_count(), 1);
}

#[test]
fn a_full_share_refuses_entries_but_not_packets() {
    let limits = plinth_vswitch::Limits { flows_per_port: 8, ..limits() };
    let mut rig = Rig::with_limits(&two_vpcs(), limits);
    for number in 0..20 {
        let frame = frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (number, 1), b"x");
        assert_eq!(rig.once(rig.index(1), frame.clone()).sent(), (rig.index(2), frame));
    }
    // Another guest is not disturbed.
    let frame = frames::udp((mac(2), mac(1)), (v4(2), v4(1)), (1, 1), b"x");
    rig.send(rig.index(2), frame);
    let counters = rig.switch.flow_counters();
    assert_eq!((counters.refused_share_used, counters.made, counters.hits), (12, 9, 1));
}

#[test]
fn a_full_table_refuses_entries_but_not_packets() {
    let limits = plinth_vswitch::Limits { flows: 64, flows_per_port: 1000, ..limits() };
    let mut rig = Rig::with_limits(&two_vpcs(), limits);
    for number in 0..200 {
        let frame = frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (number, 1), b"x");
        assert_eq!(rig.once(rig.index(1), frame.clone()).sent(), (rig.index(2), frame));
    }
    let counters = rig.switch.flow_counters();
    assert!(rig.switch.flow_count() > 50, "the table is used: {}", rig.switch.flow_count());
    assert_eq!(counters.made + counters.refused_table_full, 200);
    assert_eq!(counters.made, u64::from(rig.switch.flow_count()));
}

#[test]
fn the_lists_say_what_happened() {
    let mut rig = Rig::resolved(&two_vpcs());
    let stray = frames::udp((mac(1), mac(99)), (v4(1), v4(9)), (1, 2), b"x");
    rig.send(rig.index(1), stray);
    rig.now += Duration::from_secs(2);
    let frame = frames::udp((mac(1), mac(3)), (v4(1), v4(3)), (1000, 53), b"x");
    rig.send(rig.index(1), frame.clone());
    rig.now += Duration::from_secs(1);
    let inner = frames::udp((mac(3), mac(1)), (v4(3), v4(1)), (53, 1000), b"y");
    let outer = frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), &inner);
    rig.send(UPLINK, outer);
    let flows = rig.switch.flows(rig.now, 10);
    let lines: Vec<_> = flows
        .iter()
        .map(|flow| {
            format!(
                "{} {} {} | {} | {} {}",
                flow.port, flow.vni, flow.key, flow.action, flow.packets, flow.idle_ms
            )
        })
        .collect();
    assert_eq!(
        lines,
        [
            "port-0 100 udp 10.0.0.3:53 -> 10.0.0.1:1000 | port-1 | 2 0",
            "port-1 100 udp 10.0.0.1:1000 -> 10.0.0.3:53 | vtep 172.16.0.2 | 2 1000",
            "port-1 100 udp 10.0.0.1:1 -> 10.0.0.9:2 | destination-unknown | 2 3000",
        ]
    );
    assert_eq!(flows[1].bytes, 2 * frame.len() as u64);
    assert_eq!(rig.switch.flows(rig.now, 1).len(), 1);
    let ports = rig.switch.ports(|index| index != UPLINK);
    assert_eq!(ports.len(), 5);
    let first = &ports[1];
    assert_eq!((first.id, first.vni, first.is_up), (PortId(1), Some(vni(100)), true));
    assert_eq!((first.packets_received, first.packets_sent), (4, 2));
    assert_eq!(
        (first.drops[0].reason.as_str(), first.drops[0].packets),
        ("destination-unknown", 2)
    );
    let uplink = &ports[0];
    assert_eq!((uplink.name.as_str(), uplink.vni, uplink.is_up), ("uplink", None, false));
    assert_eq!((uplink.packets_received, uplink.packets_sent), (4, 2));
    assert_eq!(rig.switch.drops(), first.drops);
}

#[test]
fn the_newest_flows_are_listed_first_and_no_more_than_asked() {
    let mut rig = Rig::resolved(&two_vpcs());
    for number in 0..300 {
        rig.now += Duration::from_millis(1);
        let frame = frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (number, 9), b"x");
        rig.send(rig.index(1), frame);
    }
    let keys = |limit| -> Vec<String> {
        rig.switch.flows(rig.now, limit).into_iter().map(|flow| flow.key).collect()
    };
    let expected: Vec<String> =
        (0..300).rev().map(|number| format!("udp 10.0.0.1:{number} -> 10.0.0.2:9")).collect();
    for limit in [0, 1, 7, 299, 300, 1000, usize::MAX] {
        assert_eq!(keys(limit), expected[..limit.min(300)], "limit {limit}");
    }
}

#[test]
fn a_switch_without_configuration_drops_everything() {
    let mut rig = Rig::resolved(&two_vpcs());
    rig.switch = plinth_vswitch::Switch::new(limits(), SEED);
    let dropped = Outcome::Dropped(DropReason::PortUnknown);
    assert_eq!(rig.once(UPLINK, vec![0; 100]), dropped);
    assert_eq!(rig.switch.deadline(), None);
    assert_eq!(rig.switch.epoch(), None);
    assert_eq!(VXLAN_PORT, 4789);
    assert!(MacAddress::BROADCAST.is_multicast());
}
