// SPDX-License-Identifier: Apache-2.0
//! Every drop reason happens, for the packet that it is named for, and is in the docs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::MacAddress;
use plinth_switch_api::SwitchConfig;
use plinth_vswitch::{DropReason, Offload, PortIndex};
use plinth_wire::checksum::RxChecksum;
use plinth_wire::{PROTOCOL_TCP, PROTOCOL_UDP};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use support::frames;
use support::*;

const GROUP: MacAddress = MacAddress([1, 0, 0x5e, 0, 0, 1]);

/// A packet, and the reason for which it is dropped.
#[derive(Clone)]
struct Case {
    reason: DropReason,
    incoming: Incoming,
}

fn guest(reason: DropReason, frame: Vec<u8>) -> Case {
    Case { reason, incoming: Incoming::new(Rig::new(&two_vpcs()).index(1), frame) }
}

fn wire(reason: DropReason, frame: Vec<u8>) -> Case {
    Case { reason, incoming: Incoming::new(PortIndex::UPLINK, frame) }
}

/// A datagram from NIC 1 to NIC 2.
fn good() -> Vec<u8> {
    frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (1, 2), &[0; 50])
}

fn changed(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

fn cut(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(length);
    frame
}

/// NIC 1's packet for NIC 2, with other MACs or addresses.
fn sent(macs: frames::Macs, ends: (Ipv4Addr, Ipv4Addr)) -> Vec<u8> {
    frames::udp(macs, ends, (1, 2), b"x")
}

fn tunneled(inner: &[u8]) -> Vec<u8> {
    frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), inner)
}

/// What NIC 3 sends to NIC 1.
fn inner() -> Vec<u8> {
    frames::udp((mac(3), mac(1)), (v4(3), v4(1)), (1, 2), b"x")
}

fn guest_cases() -> Vec<Case> {
    use DropReason as D;
    let tcp = frames::tcp_partial((mac(1), mac(2)), (v4(1), v4(2)), b"x");
    let payload = frames::datagram((1, 2), b"x");
    let v6_frame = frames::ipv6((mac(1), mac(2)), (v6(1), v6(2)), PROTOCOL_UDP, &payload);
    let long_v6 = {
        // Four extension headers of 64 bytes each, and UDP behind them.
        let mut chain = Vec::new();
        for next in [60, 60, 60, PROTOCOL_UDP] {
            chain.extend([next, 7]);
            chain.extend([1, 60].into_iter().chain([0; 60]));
        }
        chain.extend(&payload);
        frames::ipv6((mac(1), mac(2)), (v6(1), v6(2)), 60, &chain)
    };
    let many_v6 = {
        let chain = [60, 0, 1, 4, 0, 0, 0, 0].repeat(12);
        frames::ipv6((mac(1), mac(2)), (v6(1), v6(2)), 60, &chain)
    };
    let unspecified = Ipv4Addr::UNSPECIFIED;
    let broadcast = MacAddress::BROADCAST;
    let dhcp =
        frames::udp((mac(1), broadcast), (unspecified, Ipv4Addr::BROADCAST), (68, 67), &[0; 300]);
    vec![
        guest(D::Truncated, vec![]),
        guest(D::Truncated, cut(good(), 13)),
        guest(D::Truncated, cut(good(), 33)),
        guest(D::Truncated, cut(good(), 60)),
        guest(D::Truncated, cut(frames::arp_request((mac(1), v4(1)), v4(2)), 41)),
        guest(D::Truncated, changed(good(), 38, &[0, 200])),
        guest(D::Truncated, changed(good(), 16, &[0, 27])),
        guest(D::Truncated, changed(tcp.clone(), 46, &[0xf0])),
        guest(D::Truncated, changed(v6_frame.clone(), 18, &[1, 0])),
        guest(D::Truncated, changed(v6_frame.clone(), 20, &[60])),
        guest(D::HeadersTooLong, long_v6),
        guest(D::HeaderInvalid, many_v6),
        guest(D::HeaderInvalid, changed(good(), 14, &[0x65])),
        guest(D::HeaderInvalid, changed(good(), 14, &[0x44])),
        guest(D::HeaderInvalid, changed(good(), 38, &[0, 7])),
        guest(D::HeaderInvalid, changed(tcp, 46, &[0x40])),
        guest(D::HeaderInvalid, sent((GROUP, mac(2)), (v4(1), v4(2)))),
        guest(D::HeaderInvalid, changed(v6_frame, 14, &[0x40])),
        guest(D::HeaderInvalid, changed(frames::arp_request((mac(1), v4(1)), v4(2)), 21, &[3])),
        guest(D::VlanTagged, changed(good(), 12, &[0x81, 0])),
        guest(D::VlanTagged, changed(good(), 12, &[0x88, 0xa8])),
        guest(D::EthertypeUnsupported, changed(good(), 12, &[0x88, 0xcc])),
        guest(D::EthertypeUnsupported, changed(good(), 12, &[0, 46])),
        guest(
            D::PortMtuExceeded,
            frames::udp((mac(1), mac(2)), (v4(1), v4(2)), (1, 2), &[0; 1423]),
        ),
        guest(D::SourceMacSpoofed, sent((mac(2), mac(2)), (v4(1), v4(2)))),
        guest(D::SourceMacSpoofed, sent((mac(9), broadcast), (v4(1), v4(2)))),
        guest(D::SourceAddressSpoofed, sent((mac(1), mac(2)), (v4(2), v4(2)))),
        guest(D::SourceAddressSpoofed, sent((mac(1), broadcast), (v4(2), v4(2)))),
        guest(D::SourceAddressSpoofed, sent((mac(1), mac(2)), (unspecified, v4(2)))),
        guest(D::DhcpUnanswered, dhcp),
        guest(D::BroadcastUnsupported, sent((mac(1), broadcast), (v4(1), v4(255)))),
        guest(D::MulticastUnsupported, sent((mac(1), GROUP), (v4(1), [224, 0, 0, 1].into()))),
        guest(D::DestinationUnknown, sent((mac(1), mac(99)), (v4(1), v4(2)))),
        guest(D::DestinationIsSource, sent((mac(1), mac(1)), (v4(1), v4(2)))),
        guest(D::ArpTargetUnknown, frames::arp_request((mac(1), v4(1)), v4(99))),
        guest(
            D::NdTargetUnknown,
            plinth_wire::NdSolicitation::frame((mac(1), v6(1)), v6(99)).to_vec(),
        ),
        guest(D::RouterMessageForbidden, {
            let message = [vec![134, 0, 0, 0], vec![0; 12]].concat();
            frames::ipv6((mac(1), mac(2)), (v6(1), v6(2)), 58, &message)
        }),
    ]
}

/// What only a DHCP server says.
fn server_cases() -> Vec<Case> {
    let offer = |target| frames::udp((mac(1), target), (v4(1), v4(2)), (67, 68), b"an offer");
    let reply = frames::datagram((547, 546), b"a reply");
    [
        offer(mac(2)),
        offer(MacAddress::BROADCAST),
        frames::ipv6((mac(1), mac(2)), (v6(1), v6(2)), PROTOCOL_UDP, &reply),
    ]
    .map(|frame| guest(DropReason::DhcpServerForbidden, frame))
    .into()
}

fn wire_cases() -> Vec<Case> {
    use DropReason as D;
    let outer = tunneled(&inner());
    let to_us = |frame| wire(D::UnderlayProtocolUnsupported, frame);
    let ours = (NEAR_MAC, OUR_MAC);
    let ends = (NEAR_VTEP, OUR_VTEP);
    vec![
        wire(D::Truncated, cut(outer.clone(), 20)),
        wire(D::Truncated, cut(outer.clone(), 90)),
        wire(D::Truncated, tunneled(&[0; 13])),
        wire(D::Truncated, changed(outer.clone(), 38, &[0, 200])),
        wire(D::Truncated, changed(outer.clone(), 38, &[0, 7])),
        wire(D::Truncated, tunneled(&cut(inner(), 20))),
        wire(D::HeaderInvalid, changed(outer.clone(), 6, &[1])),
        wire(D::HeaderInvalid, changed(outer.clone(), 14, &[0x55])),
        wire(D::VlanTagged, changed(outer.clone(), 12, &[0x81, 0])),
        wire(D::VlanTagged, tunneled(&changed(inner(), 12, &[0x81, 0]))),
        wire(D::EthertypeUnsupported, tunneled(&changed(inner(), 12, &[0x88, 0xcc]))),
        wire(D::UnderlayMacForeign, changed(outer.clone(), 0, &NEAR_MAC.0)),
        wire(D::UnderlayMacForeign, changed(outer.clone(), 0, &[0xff; 6])),
        wire(D::UnderlayAddressForeign, {
            frames::vxlan(ours, (NEAR_VTEP, GATEWAY), vni(100), &inner())
        }),
        wire(D::UnderlayEthertypeUnsupported, changed(outer.clone(), 12, &[0x86, 0xdd])),
        wire(D::UnderlayFragment, with_ip_checksum(changed(outer.clone(), 20, &[0x20, 0]))),
        wire(D::UnderlayFragment, with_ip_checksum(changed(outer.clone(), 20, &[0, 1]))),
        wire(D::UnderlayChecksumWrong, changed(outer.clone(), 24, &[0, 0])),
        to_us(frames::ipv4(ours, ends, PROTOCOL_TCP, &[0; 40])),
        to_us(frames::udp(ours, ends, (1, 53), &[0; 40])),
        to_us(frames::ipv4(ours, ends, 1, &frames::icmp(0, b"reply"))),
        wire(D::UnderlayArpInvalid, cut(frames::arp_request((NEAR_MAC, NEAR_VTEP), OUR_VTEP), 41)),
        wire(
            D::UnderlayArpInvalid,
            changed(frames::arp_request((NEAR_MAC, NEAR_VTEP), OUR_VTEP), 22, &[1]),
        ),
        wire(D::UnderlayAddressConflict, frames::arp_request((NEAR_MAC, OUR_VTEP), OUR_VTEP)),
        wire(D::VxlanInvalid, changed(outer.clone(), 42, &[0xf7])),
        wire(D::VniUnknown, frames::vxlan(ours, ends, vni(300), &inner())),
        wire(D::VtepUnknown, frames::vxlan(ours, (GATEWAY, OUR_VTEP), vni(100), &inner())),
        // A remote of one VPC may not send for another.
        wire(D::VtepUnknown, frames::vxlan(ours, (FAR_VTEP, OUR_VTEP), vni(200), &inner())),
        wire(D::DestinationUnknown, tunneled(&changed(inner(), 0, &mac(99).0))),
        // Not back into a tunnel.
        wire(D::DestinationUnknown, tunneled(&changed(inner(), 0, &mac(4).0))),
        wire(D::BroadcastUnsupported, tunneled(&changed(inner(), 0, &[0xff; 6]))),
        wire(D::MulticastUnsupported, tunneled(&changed(inner(), 0, &GROUP.0))),
        wire(
            D::PortMtuExceeded,
            tunneled(&frames::udp((mac(3), mac(1)), (v4(3), v4(1)), (1, 2), &[0; 1423])),
        ),
        wire(
            D::HeaderInvalid,
            tunneled(&changed(frames::arp_request((mac(3), v4(3)), v4(1)), 22, &mac(4).0)),
        ),
        Case {
            reason: D::OffloadInvalid,
            incoming: Incoming { port: PortIndex::UPLINK, frame: outer, offload: partial(84, 6) },
        },
    ]
}

fn with_ip_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let sum = plinth_wire::checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Runs the cases; says how often each reason was seen.
fn run(config: &SwitchConfig, cases: Vec<Case>) -> BTreeMap<DropReason, u64> {
    let mut rig = Rig::resolved(config);
    let mut seen = BTreeMap::new();
    for (number, Case { reason, incoming }) in cases.into_iter().enumerate() {
        let outcome = rig.offer(&incoming);
        assert_eq!(outcome, Outcome::Dropped(reason), "case {number}: {:02x?}", incoming.frame);
        *seen.entry(reason).or_default() += 2;
    }
    rig.check_books(config.ports.len());
    let listed: BTreeMap<_, _> =
        rig.switch.drops().into_iter().map(|drop| (drop.reason, drop.packets)).collect();
    let expected: BTreeMap<_, _> =
        seen.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect();
    assert_eq!(listed, expected, "every drop is counted under its name");
    seen
}

#[test]
fn every_reason_happens_to_the_packet_it_is_named_for() {
    let mut seen = run(&two_vpcs(), [guest_cases(), server_cases()].concat());
    seen.extend(run(&two_vpcs(), wire_cases()));
    let elsewhere = [
        // A story of its own in underlay.rs and forwarding.rs.
        DropReason::NextHopUnresolved,
        DropReason::PortUnknown,
        // A story of answers.rs.
        DropReason::QuestionRateExceeded,
        // Stories of connections.rs.
        DropReason::SecurityGroupDenied,
        DropReason::ConnectionTableFull,
        DropReason::IcmpUnrelated,
        DropReason::FragmentUnmatched,
        DropReason::FragmentInvalid,
        DropReason::TcpFlagsInvalid,
        DropReason::TcpOutOfWindow,
        DropReason::TcpNoConnection,
        // Stories of routing.rs.
        DropReason::RouteUnknown,
        DropReason::RouteBlackhole,
        DropReason::RouteNextHopUnknown,
        DropReason::RouterUnserved,
        DropReason::TimeToLiveExceeded,
        // Stories of translation.rs.
        DropReason::ExternalAddressMissing,
        DropReason::NatPortsExhausted,
        DropReason::NatNoConnection,
        DropReason::ExternalRateExceeded,
        // Stories of balance.rs.
        DropReason::BalancerNoListener,
        DropReason::BalancerNoBackend,
        DropReason::BalancerBackendBusy,
        // A configuration in which it could happen is refused; a unit test of the stage has it.
        DropReason::UnderlayMtuExceeded,
    ];
    for &reason in DropReason::ALL {
        let is_tested =
            seen.contains_key(&reason) || reason.is_of_delivery() || elsewhere.contains(&reason);
        assert!(is_tested, "{reason:?} never happened");
    }
}

#[test]
fn a_driver_may_say_what_a_port_did_not_take() {
    for &reason in DropReason::ALL.iter().filter(|reason| reason.is_of_delivery()) {
        let mut rig = Rig::resolved(&two_vpcs());
        let mut packet = plinth_vswitch::Packet::empty();
        let frame = good();
        let length = u32::try_from(frame.len()).unwrap();
        packet
            .load(rig.index(1), length, Offload { partial: None, udp: RxChecksum::Unknown })
            .copy_from_slice(&frame);
        let mut packets = [packet];
        rig.switch.process(rig.now, &mut packets);
        rig.switch.undelivered(&packets[0], reason);
        assert_eq!(rig.switch.counters(rig.index(2)).drops(reason), 1);
        rig.check_books(4);
    }
}

/// The table in the docs and the enum say the same, in the same order.
#[test]
fn the_docs_list_every_reason_with_its_meaning() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/dataplane.md");
    let text = std::fs::read_to_string(page).unwrap();
    let rows: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("| drop reason "))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    let expected: Vec<String> = DropReason::ALL
        .iter()
        .map(|reason| format!("| `{}` | {} |", reason.name(), reason.meaning().trim()))
        .collect();
    assert_eq!(rows, expected, "the rows belong in docs/dataplane.md:\n{}", expected.join("\n"));
}
