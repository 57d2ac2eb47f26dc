// SPDX-License-Identifier: Apache-2.0
//! What a guest says to be somebody else: a router, a neighbor, a server, or the receiver of
//! what is another's.

use super::support::generate::Random;
use super::support::*;
use super::world::*;
use plinth_ids::{GroupId, MacAddress};
use plinth_switch_api::{Direction, RuleProtocol, SecurityGroup};
use plinth_vswitch::{DropReason, PortIndex};
use plinth_wire::{NdSolicitation, PROTOCOL_ICMPV6, PROTOCOL_UDP, pseudo_header_ipv6};
use std::net::{IpAddr, Ipv6Addr};

fn v6_of(of: IpAddr) -> Ipv6Addr {
    let IpAddr::V6(of) = of else { panic!("{of} is of IPv4") };
    of
}

fn link_local(mac: MacAddress) -> Ipv6Addr {
    plinth_wire::link_local_of(mac)
}

/// An ICMPv6 message with its sum, and the hop limit that neighbor discovery wants.
fn message(macs: frames::Macs, ends: (Ipv6Addr, Ipv6Addr), mut bytes: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap();
    let sum = pseudo_header_ipv6(ends.0, ends.1, PROTOCOL_ICMPV6, length).with(&bytes).checksum();
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = frames::ipv6(macs, ends, PROTOCOL_ICMPV6, &bytes);
    frame[21] = 255;
    frame
}

/// An advertisement of a router with a prefix and its own MAC, or of a neighbor, or a redirect.
fn claim(random: &mut Random, mac: MacAddress, target: Ipv6Addr) -> Vec<u8> {
    let own = [&[2, 1][..], &mac.0].concat();
    match random.below(3) {
        0 => {
            let prefix = [&[3, 4, 64, 0xc0][..], &[0xff; 8], &[0; 4], &target.octets()].concat();
            let source = [&[1, 1][..], &mac.0].concat();
            [&[134, 0, 0, 0, 64, 0, 7, 8][..], &[0; 8], &source, &prefix].concat()
        }
        1 => [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &target.octets(), &own].concat(),
        _ => {
            let ends = [target.octets(), target.octets()].concat();
            [&[137, 0, 0, 0, 0, 0, 0, 0][..], &ends, &own].concat()
        }
    }
}

const NEIGHBOR: &str = "a neighbor";

/// What nobody but routers, servers and the neighbor himself may say; whoever hears it.
fn forged(random: &mut Random, (tenant, nic): (usize, usize)) -> (Vec<u8>, &'static str) {
    let other = 1 + random.below(NICS);
    let target = v6_of(address(random.below(TENANTS), other, true));
    let own = v6_of(address(tenant, nic, true));
    let source =
        random.pick(&[own, link_local(mac_of(nic)), link_local(router_of(tenant)), target]);
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    let group = MacAddress([0x33, 0x33, 0, 0, 0, 1]);
    let by =
        [(mac_of(other), target), (group, all), (router_of(tenant), target), (mac_of(other), all)];
    let (to_mac, to) = random.pick(&by);
    let mac = if random.percent(80) { mac_of(nic) } else { mac_of(other) };
    let macs = (mac, to_mac);
    match random.below(4) {
        0 => {
            let datagram = frames::datagram((547, 546), b"advertise");
            (frames::ipv6(macs, (source, to), PROTOCOL_UDP, &datagram), "a server of DHCPv6")
        }
        1 => {
            let ends = (address(tenant, nic, false), address(tenant, other, false));
            let (IpAddr::V4(own), IpAddr::V4(to)) = ends else { unreachable!() };
            let from = random.pick(&[v4(254), own]);
            (frames::udp(macs, (from, to), (67, 68), b"offer"), "a server of DHCP")
        }
        _ => {
            let claim = claim(random, mac, target);
            let what = if claim[0] == 136 { NEIGHBOR } else { "a router" };
            (message(macs, (source, to), claim), what)
        }
    }
}

#[test]
fn nobody_hears_a_guest_that_plays_a_router_a_neighbor_or_a_server() {
    let mut random = Random(0x15_01a7e);
    let mut refused = 0;
    for round in 0..200 {
        let config = config(&mut random, round + 1);
        let mut rig = Rig::with_limits(&config, plinth_vswitch::Limits { ports: 32, ..limits() });
        rig.hear_next_hops();
        for _ in 0..1000 {
            let (tenant, nic) = (random.below(TENANTS), 1 + random.below(NICS - 1));
            let (frame, what) = forged(&mut random, (tenant, nic));
            let place = rig.index(port_id(tenant, nic));
            match rig.once(place, frame) {
                // An advertisement of oneself is heard by the switch alone.
                Outcome::Absorbed if what == NEIGHBOR => {}
                Outcome::Dropped(_) => refused += 1,
                heard => panic!("{what} is heard: {heard:?}"),
            }
        }
    }
    println!("200000 packets: {refused} were refused");
    assert!(refused > 150_000, "{refused}");
}

#[test]
fn a_question_is_answered_with_the_own_tenants_neighbors_and_to_nobody_else() {
    let mut random = Random(0x15_01a7f);
    let mut answered = 0;
    for round in 0..100 {
        let config = config(&mut random, round + 1);
        let mut rig = Rig::with_limits(&config, plinth_vswitch::Limits { ports: 32, ..limits() });
        for _ in 0..500 {
            let (tenant, nic) = (random.below(TENANTS), 1 + random.below(NICS - 1));
            let (of, other) = (random.below(TENANTS), 1 + random.below(NICS));
            let target = v6_of(address(of, other, true));
            let own = v6_of(address(tenant, nic, true));
            let question = NdSolicitation::frame((mac_of(nic), own), target);
            let place = rig.index(port_id(tenant, nic));
            let is_there = address(tenant, other, true) == address(of, other, true);
            match rig.once(place, question.to_vec()) {
                Outcome::Sent { port, frame, .. } => {
                    assert!(is_there && other != nic, "{target} is a stranger's");
                    assert_eq!(port, place, "the answer is for who asks");
                    assert_eq!(frame[6..12], mac_of(other).0, "{target}");
                    answered += 1;
                }
                Outcome::Absorbed => assert!(is_there && other == nic),
                Outcome::Dropped(reason) => {
                    assert!(!is_there, "{target} is a neighbor");
                    assert_eq!(reason, DropReason::NdTargetUnknown);
                }
                Outcome::Asked => panic!("nobody is served here"),
            }
        }
    }
    assert!(answered > 5000, "{answered}");
}

/// VPC 100 has NIC 1, which may speak, NIC 2, which may be spoken to, and NIC 5, which may not.
fn three() -> Rig {
    let mut config = two_vpcs();
    config.ports.push(port(5, 100, 5));
    let rule = |direction| allow(direction, RuleProtocol::Any, None);
    config.security_groups = vec![SecurityGroup {
        id: GroupId(1),
        name: "open".parse().unwrap(),
        rules: vec![rule(Direction::Outbound), rule(Direction::Inbound)],
    }];
    config.ports[0].security_groups = Some(vec![GroupId(1)]);
    config.ports[1].security_groups = Some(vec![GroupId(1)]);
    config.ports.last_mut().unwrap().security_groups = Some(Vec::new());
    Rig::new(&config)
}

#[test]
fn what_one_may_hear_is_not_sent_to_another_by_his_mac() {
    let mut rig = three();
    let (one, two) = (rig.index(1), rig.index(2));
    let denied = Outcome::Dropped(DropReason::SecurityGroupDenied);
    let said = |to: u8| frames::udp((mac(1), mac(to)), (v4(1), v4(2)), (1000, 53), b"said");
    let to = |place: PortIndex, frame| Outcome::Sent { port: place, frame, partial: None };
    assert_eq!(rig.once(one, said(2)), to(two, said(2)));
    assert_eq!(rig.once(one, said(5)), denied, "of the connection to another");
    // Nor what is said to be lost of it.
    assert_eq!(rig.once(one, said(2)), to(two, said(2)));
    let answer = frames::udp((mac(2), mac(1)), (v4(2), v4(1)), (53, 1000), b"heard");
    assert_eq!(rig.once(two, answer.clone()), to(one, answer.clone()));
    let lost = frames::unreachable((mac(1), mac(5)), (v4(1), v4(2)), &answer);
    assert_eq!(rig.once(one, lost), denied);
}

#[test]
fn a_range_of_everything_allows_no_source_that_is_no_hosts() {
    let mut config = two_vpcs();
    config.ports[0].allowed = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    let mut rig = Rig::new(&config);
    let one = rig.index(1);
    let macs = (mac(1), mac(2));
    let mut says = |source: &str| {
        let datagram = frames::datagram((1000, 53), b"said");
        let frame = match source.parse().unwrap() {
            IpAddr::V4(source) => frames::ipv4(macs, (source, v4(2)), PROTOCOL_UDP, &datagram),
            IpAddr::V6(source) => frames::ipv6(macs, (source, v6(2)), PROTOCOL_UDP, &datagram),
        };
        rig.once(one, frame)
    };
    for source in ["192.0.2.1", "2001:db8::1"] {
        assert!(matches!(says(source), Outcome::Sent { .. }), "{source}");
    }
    let spoofed = Outcome::Dropped(DropReason::SourceAddressSpoofed);
    for source in
        ["127.0.0.1", "169.254.1.1", "255.255.255.255", "::1", "fe80::99", "0.0.0.0", "::"]
    {
        assert_eq!(says(source), spoofed, "{source}");
    }
}
