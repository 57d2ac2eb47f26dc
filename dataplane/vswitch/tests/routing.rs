// SPDX-License-Identifier: Apache-2.0
//! Stories of packets that the router of a VPC forwards, answers or refuses.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, GroupId, MacAddress};
use plinth_switch_api::{
    Direction, NextHop, Route, RuleProtocol, SecurityGroup, Subnet, SubnetPrefix, SwitchConfig, Vpc,
};
use plinth_vswitch::{DropReason, Limits, PortIndex};
use plinth_wire::{NdSolicitation, PROTOCOL_ICMPV6, PROTOCOL_UDP, checksum, pseudo_header_ipv6};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use support::frames;
use support::*;

const UPLINK: PortIndex = PortIndex::UPLINK;
const ROUTER: MacAddress = MacAddress([2, 0xee, 0, 0, 0, 1]);
const PEER_ROUTER: MacAddress = MacAddress([2, 0xee, 0, 0, 0, 2]);

fn ip4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn ip6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn subnet(name: &str, prefixes: &[(&str, &str)]) -> Subnet {
    let prefixes = prefixes.iter().map(|(prefix, gateway)| SubnetPrefix {
        prefix: prefix.parse().unwrap(),
        gateway: gateway.parse().unwrap(),
    });
    Subnet { name: name.parse().unwrap(), prefixes: prefixes.collect() }
}

fn route(destination: &str, next_hop: NextHop) -> Route {
    Route { destination: destination.parse().unwrap(), next_hop }
}

fn vpc(segment: u32, router_mac: MacAddress, subnets: Vec<Subnet>, routes: Vec<Route>) -> Vpc {
    let name = format!("vpc-{segment}").parse().unwrap();
    Vpc { vni: vni(segment), name, router_mac, subnets, routes }
}

/// VPC 100: NIC 1 in 10.0.1.0/24, NIC 2 in 10.0.2.0/24, NIC 3 in 10.0.2.0/24 behind the near VTEP;
/// a VM that routes, NIC 5, in the first. VPC 300, its peer: NIC 6 in 10.3.0.0/24. VPC 200, a
/// stranger: NIC 7 with the addresses of NIC 2.
fn routed() -> SwitchConfig {
    let mut config = two_vpcs();
    let nic = |id: u32, segment, number, list: &[&str]| {
        let mut port = port(id, segment, number);
        port.addresses = list.iter().map(|text| text.parse().unwrap()).collect();
        port
    };
    let mut far = remote(100, 3, NEAR_VTEP);
    far.addresses = vec![ip4("10.0.2.3").into(), ip6("fd00:0:0:2::3").into()];
    let mut gateway = nic(5, 100, 5, &["10.0.1.5"]);
    gateway.allowed = vec!["192.168.0.0/16".parse().unwrap()];
    config.ports = vec![
        nic(1, 100, 1, &["10.0.1.1", "fd00:0:0:1::1"]),
        nic(2, 100, 2, &["10.0.2.2", "fd00:0:0:2::2"]),
        gateway,
        nic(6, 300, 6, &["10.3.0.6"]),
        nic(7, 200, 2, &["10.0.2.2"]),
    ];
    config.remotes = vec![far];
    let first = [("10.0.1.0/24", "10.0.1.254"), ("fd00:0:0:1::/64", "fd00:0:0:1::fe")];
    let second = [("10.0.2.0/24", "10.0.2.254"), ("fd00:0:0:2::/64", "fd00:0:0:2::fe")];
    config.vpcs = vec![
        vpc(
            100,
            ROUTER,
            vec![subnet("first", &first), subnet("second", &second)],
            vec![
                route("192.168.0.0/16", NextHop::Address(ip4("10.0.1.5").into())),
                route("192.168.7.0/24", NextHop::Blackhole),
                route("192.168.8.0/24", NextHop::Address(ip4("10.0.1.77").into())),
                route("10.3.0.0/24", NextHop::Peer(vni(300))),
            ],
        ),
        vpc(
            300,
            PEER_ROUTER,
            vec![subnet("only", &[("10.3.0.0/24", "10.3.0.254")])],
            vec![route("10.0.0.0/16", NextHop::Peer(vni(100)))],
        ),
    ];
    config
}

/// A datagram to a router, as its sender makes it.
fn outgoing(number: u8, router: MacAddress, ends: (&str, &str)) -> Vec<u8> {
    let ends = (ip4(ends.0), ip4(ends.1));
    frames::udp((mac(number), router), ends, (1000, 2000), &[9; 100])
}

/// What becomes of a frame on its way through a router: other MACs, one hop less, and a checksum
/// that is right.
fn hopped(mut frame: Vec<u8>, router: MacAddress, to: u8) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac(to).0);
    frame[6..12].copy_from_slice(&router.0);
    if frame[12] == 8 {
        frame[22] -= 1;
        frame[24..26].fill(0);
        let sum = checksum::checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[21] -= 1;
    }
    frame
}

#[test]
fn a_packet_goes_from_subnet_to_subnet() {
    let mut rig = Rig::resolved(&routed());
    let frame = outgoing(1, ROUTER, ("10.0.1.1", "10.0.2.2"));
    let expected = hopped(frame.clone(), ROUTER, 2);
    assert_eq!(rig.send(rig.index(1), frame).sent(), (rig.index(2), expected));
    let payload = frames::datagram((1, 2), &[3; 30]);
    let ends = (ip6("fd00:0:0:1::1"), ip6("fd00:0:0:2::2"));
    let frame = frames::ipv6((mac(1), ROUTER), ends, PROTOCOL_UDP, &payload);
    let expected = hopped(frame.clone(), ROUTER, 2);
    assert_eq!(rig.send(rig.index(1), frame).sent(), (rig.index(2), expected));
    rig.check_books(5);
}

#[test]
fn a_packet_is_routed_before_it_goes_into_its_tunnel() {
    let mut rig = Rig::resolved(&routed());
    let frame = outgoing(1, ROUTER, ("10.0.1.1", "10.0.2.3"));
    let expected = hopped(frame.clone(), ROUTER, 3);
    let (port, outer) = rig.send(rig.index(1), frame).sent();
    assert_eq!(port, UPLINK);
    let inner = frames::unwrap(&outer, (OUR_MAC, NEAR_MAC), (OUR_VTEP, NEAR_VTEP), vni(100));
    assert_eq!(inner, expected);
}

#[test]
fn from_a_tunnel_what_is_left_to_the_router_reaches_ports_here_only() {
    let mut rig = Rig::resolved(&routed());
    let tunneled =
        |frame: &[u8]| frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), frame);
    let frame = outgoing(3, ROUTER, ("10.0.2.3", "10.0.1.1"));
    let expected = hopped(frame.clone(), ROUTER, 1);
    assert_eq!(rig.send(UPLINK, tunneled(&frame)).sent(), (rig.index(1), expected));
    let back = outgoing(3, ROUTER, ("10.0.2.3", "10.0.2.3"));
    let dropped = Outcome::Dropped(DropReason::DestinationUnknown);
    assert_eq!(rig.send(UPLINK, tunneled(&back)), dropped);
    let ours = outgoing(3, ROUTER, ("10.0.2.3", "10.0.2.254"));
    let dropped = Outcome::Dropped(DropReason::RouterUnserved);
    assert_eq!(rig.send(UPLINK, tunneled(&ours)), dropped);
}

#[test]
fn custom_routes_lead_to_a_vm_a_peer_or_nowhere() {
    let mut rig = Rig::resolved(&routed());
    let sender = rig.index(2);
    let to = |rig: &mut Rig, address: &str| {
        let frame = outgoing(2, ROUTER, ("10.0.2.2", address));
        (frame.clone(), rig.send(sender, frame))
    };
    let (frame, outcome) = to(&mut rig, "192.168.1.1");
    assert_eq!(outcome.sent(), (rig.index(5), hopped(frame, ROUTER, 5)));
    let (frame, outcome) = to(&mut rig, "10.3.0.6");
    assert_eq!(outcome.sent(), (rig.index(6), hopped(frame, PEER_ROUTER, 6)), "the peer's router");
    for (address, reason) in [
        ("192.168.7.7", DropReason::RouteBlackhole),
        ("192.168.8.8", DropReason::RouteNextHopUnknown),
        ("10.0.2.99", DropReason::DestinationUnknown),
        ("10.3.0.99", DropReason::DestinationUnknown),
        ("8.8.8.8", DropReason::RouteUnknown),
        ("169.254.1.1", DropReason::RouteUnknown),
        ("10.0.2.2", DropReason::DestinationIsSource),
        ("10.0.2.254", DropReason::RouterUnserved),
    ] {
        assert_eq!(to(&mut rig, address).1, Outcome::Dropped(reason), "{address}");
    }
    // The VM that routes speaks for those behind it, and nobody else does.
    let frame = outgoing(5, ROUTER, ("192.168.1.1", "10.0.2.2"));
    assert_eq!(rig.send(rig.index(5), frame).sent().0, rig.index(2));
    let frame = outgoing(1, ROUTER, ("192.168.1.1", "10.0.2.2"));
    let spoofed = Outcome::Dropped(DropReason::SourceAddressSpoofed);
    assert_eq!(rig.send(rig.index(1), frame), spoofed);
    rig.check_books(5);
}

#[test]
fn answers_of_a_peer_find_their_way_back() {
    let mut config = routed();
    config.security_groups = vec![SecurityGroup {
        id: GroupId(1),
        name: "client".parse().unwrap(),
        rules: vec![allow(Direction::Outbound, RuleProtocol::Any, None)],
    }];
    config.ports[0].security_groups = Some(vec![GroupId(1)]);
    let mut rig = Rig::resolved(&config);
    let ends = ("10.3.0.6", "10.0.1.1");
    let answer = frames::udp((mac(6), PEER_ROUTER), (ip4(ends.0), ip4(ends.1)), (2000, 1000), b"x");
    let denied = Outcome::Dropped(DropReason::SecurityGroupDenied);
    assert_eq!(rig.send(rig.index(6), answer.clone()), denied);
    let question = outgoing(1, ROUTER, ("10.0.1.1", "10.3.0.6"));
    rig.send(rig.index(1), question).sent();
    let expected = hopped(answer.clone(), ROUTER, 1);
    assert_eq!(rig.send(rig.index(6), answer).sent(), (rig.index(1), expected));
    assert_eq!(rig.switch.connection_count(), 1);
}

#[test]
fn a_vpc_without_a_route_hears_nothing() {
    let mut rig = Rig::resolved(&routed());
    // Equal addresses, another VPC, no router: the router's MAC is nobody's there.
    let frame = outgoing(2, ROUTER, ("10.0.2.2", "10.0.1.1"));
    let unknown = Outcome::Dropped(DropReason::DestinationUnknown);
    assert_eq!(rig.send(rig.index(7), frame), unknown);
    // The peering is taken away: flows that went through it end with the next packet.
    let mut config = routed();
    let frame = outgoing(1, ROUTER, ("10.0.1.1", "10.3.0.6"));
    rig.send(rig.index(1), frame.clone()).sent();
    config.epoch = Epoch(2);
    config.vpcs[0].routes.pop();
    config.vpcs[1].routes.pop();
    rig.switch.apply(rig.now, &config).unwrap();
    let unknown = Outcome::Dropped(DropReason::RouteUnknown);
    assert_eq!(rig.send(rig.index(1), frame), unknown);
}

#[test]
fn link_local_addresses_are_not_routed() {
    let mut rig = Rig::resolved(&routed());
    let own = plinth_wire::link_local_of(mac(1));
    let payload = frames::datagram((1, 2), b"x");
    let frame = frames::ipv6((mac(1), ROUTER), (own, ip6("fd00:0:0:2::2")), PROTOCOL_UDP, &payload);
    let unknown = Outcome::Dropped(DropReason::RouteUnknown);
    assert_eq!(rig.send(rig.index(1), frame), unknown);
}

#[test]
fn the_router_says_where_it_is() {
    let mut rig = Rig::resolved(&routed());
    let question = frames::arp_request((mac(1), ip4("10.0.1.1")), ip4("10.0.1.254"));
    let expected = frames::arp_reply((ROUTER, ip4("10.0.1.254")), (mac(1), ip4("10.0.1.1")));
    assert_eq!(rig.send(rig.index(1), question).sent(), (rig.index(1), expected));
    for target in [ip6("fd00:0:0:1::fe"), plinth_wire::link_local_of(ROUTER)] {
        let question = NdSolicitation::frame((mac(1), ip6("fd00:0:0:1::1")), target).to_vec();
        let (port, answer) = rig.send(rig.index(1), question).sent();
        assert_eq!((port, &answer[6..12]), (rig.index(1), &ROUTER.0[..]));
        assert_eq!(answer[62..78], target.octets());
        // As which a kernel knows it: told otherwise, it would give up its default route.
        assert_eq!(answer[58], 0xe0, "a router, solicited, override");
        assert!(is_whole(&answer));
    }
    let question = NdSolicitation::frame((mac(1), ip6("fd00:0:0:1::1")), ip6("fd00:0:0:2::3"));
    let (_, answer) = rig.send(rig.index(1), question.to_vec()).sent();
    assert_eq!(answer[58], 0x60, "NIC 3 is no router");
    // Behind a tunnel, the router is that switch's own.
    let question = frames::arp_request((mac(3), ip4("10.0.2.3")), ip4("10.0.2.254"));
    let outer = frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), &question);
    let unknown = Outcome::Dropped(DropReason::ArpTargetUnknown);
    assert_eq!(rig.send(UPLINK, outer), unknown);
}

/// Both ends of a frame's IP packet.
fn ends_of(frame: &[u8]) -> (IpAddr, IpAddr) {
    if frame[12] == 8 {
        let at = |at: usize| Ipv4Addr::from_octets(frame[at..at + 4].try_into().unwrap());
        (at(26).into(), at(30).into())
    } else {
        let at = |at: usize| Ipv6Addr::from_octets(frame[at..at + 16].try_into().unwrap());
        (at(22).into(), at(38).into())
    }
}

/// Whether the checksum of a frame's ICMP or ICMPv6 message, and of its IPv4 header, is right.
fn is_whole(frame: &[u8]) -> bool {
    match ends_of(frame) {
        (IpAddr::V4(_), _) => {
            checksum::is_right(&frame[14..34]) && checksum::is_right(&frame[34..])
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let message = &frame[54..];
            let length = u32::try_from(message.len()).unwrap();
            let sum = pseudo_header_ipv6(source, destination, PROTOCOL_ICMPV6, length);
            sum.with(message).fold() == 0xffff
        }
        _ => false,
    }
}

fn ping6(ends: (Ipv6Addr, Ipv6Addr), payload: &[u8]) -> Vec<u8> {
    let mut message = [&[128, 0, 0, 0, 0, 7, 0, 1][..], payload].concat();
    let length = u32::try_from(message.len()).unwrap();
    let sum = pseudo_header_ipv6(ends.0, ends.1, PROTOCOL_ICMPV6, length).with(&message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    frames::ipv6((mac(1), ROUTER), ends, PROTOCOL_ICMPV6, &message)
}

#[test]
fn the_router_answers_pings() {
    let mut rig = Rig::resolved(&routed());
    let payload = [0xabu8; 600];
    for gateway in ["10.0.1.254", "10.0.2.254"] {
        let ping = frames::ping((mac(1), ROUTER), (ip4("10.0.1.1"), ip4(gateway)), &payload);
        let (port, answer) = rig.send(rig.index(1), ping.clone()).sent();
        assert_eq!((port, answer.len(), answer[34]), (rig.index(1), ping.len(), 0));
        assert_eq!(ends_of(&answer), (ip4(gateway).into(), ip4("10.0.1.1").into()));
        assert_eq!(answer[..12], [mac(1).0, ROUTER.0].concat());
        assert!(is_whole(&answer) && answer[42..] == payload);
    }
    for gateway in [ip6("fd00:0:0:1::fe"), plinth_wire::link_local_of(ROUTER)] {
        let ping = ping6((ip6("fd00:0:0:1::1"), gateway), &payload);
        let (port, answer) = rig.send(rig.index(1), ping).sent();
        assert_eq!((port, answer[54], answer[21]), (rig.index(1), 129, 64));
        assert_eq!(ends_of(&answer), (gateway.into(), ip6("fd00:0:0:1::1").into()));
        assert!(is_whole(&answer));
    }
    let unserved = Outcome::Dropped(DropReason::RouterUnserved);
    let frame = outgoing(1, ROUTER, ("10.0.1.1", "10.0.1.254"));
    assert_eq!(rig.send(rig.index(1), frame), unserved);
    rig.check_books(5);
}

#[test]
fn the_last_hop_is_told_to_the_sender() {
    let mut rig = Rig::resolved(&routed());
    for hops in [0, 1] {
        let mut frame = outgoing(1, ROUTER, ("10.0.1.1", "10.0.2.2"));
        frame[22] = hops;
        let (port, answer) = rig.send(rig.index(1), frame.clone()).sent();
        assert_eq!((port, answer[34..36].to_vec()), (rig.index(1), vec![11, 0]));
        assert_eq!(ends_of(&answer), (ip4("10.0.1.254").into(), ip4("10.0.1.1").into()));
        assert!(is_whole(&answer));
        assert_eq!(answer[42..70], frame[14..42], "the header and eight bytes of it");
    }
    let payload = frames::datagram((1, 2), &[3; 600]);
    let ends = (ip6("fd00:0:0:1::1"), ip6("fd00:0:0:2::2"));
    let mut frame = frames::ipv6((mac(1), ROUTER), ends, PROTOCOL_UDP, &payload);
    frame[21] = 1;
    let (_, answer) = rig.send(rig.index(1), frame).sent();
    assert_eq!(answer[54..56], [3, 0]);
    assert!(is_whole(&answer));
    assert_eq!(rig.switch.flow_count(), 0, "nothing is kept for what ends here");
    rig.check_books(5);
}

/// A hit counts each packet's hops: the flow is there, and this one ends.
#[test]
fn a_flow_that_is_known_does_not_carry_a_packet_without_hops() {
    let mut rig = Rig::resolved(&routed());
    let frame = outgoing(1, ROUTER, ("10.0.1.1", "10.0.2.2"));
    rig.send(rig.index(1), frame.clone()).sent();
    let mut last = frame.clone();
    last[22] = 2;
    assert_eq!(rig.send(rig.index(1), last.clone()).sent().1[22], 1);
    last[22] = 1;
    let (port, answer) = rig.send(rig.index(1), last).sent();
    assert_eq!((port, answer[34]), (rig.index(1), 11));
    assert_eq!(rig.send(rig.index(1), frame).sent().0, rig.index(2));
}

#[test]
fn errors_are_limited_and_never_about_errors_or_the_wire() {
    let limits = Limits { icmp_errors_per_second: 10, ..limits() };
    let mut rig = Rig::with_limits(&routed(), limits);
    rig.hear_next_hops();
    let exceeded = Outcome::Dropped(DropReason::TimeToLiveExceeded);
    let dying = |number, ends| {
        let mut frame = outgoing(number, ROUTER, ends);
        frame[22] = 1;
        frame
    };
    let frame = dying(1, ("10.0.1.1", "10.0.2.2"));
    let said = (0..50).filter(|_| rig.once(rig.index(1), frame.clone()) != exceeded).count();
    assert_eq!(said, 10);
    rig.now += Duration::from_secs(5);
    let about = outgoing(2, ROUTER, ("10.0.2.2", "10.0.1.1"));
    let ends = (ip4("10.0.1.1"), ip4("10.0.2.2"));
    let mut error = frames::unreachable((mac(1), ROUTER), ends, &about);
    error[22] = 1;
    assert_eq!(rig.send(rig.index(1), error), exceeded);
    let inner = dying(3, ("10.0.2.3", "10.0.1.1"));
    let outer = frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), &inner);
    assert_eq!(rig.send(UPLINK, outer), exceeded);
    rig.check_books(5);
}
