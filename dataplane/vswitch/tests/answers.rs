// SPDX-License-Identifier: Apache-2.0
//! Stories of questions: ARP and neighbor discovery from guests and from tunnels.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, MacAddress, Name, PortId};
use plinth_switch_api::{Subnet, SubnetPrefix, SwitchConfig, Vpc};
use plinth_vswitch::{DropReason, Offload, Origin, Packet, PortIndex, Switch, Verdict};
use plinth_wire::{
    ETHERTYPE_IPV6, EthernetHeader, ND_ADVERTISEMENT, ND_ROUTER_ADVERTISEMENT, NdAdvertisement,
    NdSolicitation, PROTOCOL_ICMPV6, PROTOCOL_UDP, TcpHeader, link_local_of, solicited_node,
};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use support::frames::{self, Segment, unwrap};
use support::*;

const UPLINK: PortIndex = PortIndex::UPLINK;
const ROUTER: MacAddress = MacAddress([2, 0xff, 0, 0, 0, 1]);

/// VPC 100 of [`two_vpcs`] with a router, whose guests are given addresses and names; VPC 200 has
/// a router only.
fn served() -> SwitchConfig {
    let mut config = two_vpcs();
    let ranges = [("10.0.0.0/24", "10.0.0.254"), ("fd00::/64", "fd00::fe")];
    for segment in [100, 200] {
        let prefixes = ranges.map(|(prefix, gateway)| SubnetPrefix {
            prefix: prefix.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
        });
        let name: Name = "front".parse().unwrap();
        let subnets = vec![Subnet { name: name.clone(), prefixes: prefixes.into() }];
        let (vni, routes) = (vni(segment), Vec::new());
        config.vpcs.push(Vpc { vni, name, router_mac: ROUTER, subnets, routes });
    }
    for port in &mut config.ports {
        port.subnet = Some("front".parse().unwrap());
    }
    for remote in &mut config.remotes {
        remote.subnet = Some("front".parse().unwrap());
    }
    let dhcp = r#"{"vni": 100, "subnet": "front", "lease_seconds": 3600}"#;
    config.answers.dhcp.push(serde_json::from_str(dhcp).unwrap());
    let dns = r#"{"vni": 100, "zone": "shop.internal"}"#;
    config.answers.dns.push(serde_json::from_str(dns).unwrap());
    config
}

/// The questions of NIC 1's guest: what it asks, and whether it asks a group.
fn questions() -> Vec<Vec<u8>> {
    let broadcast = (mac(1), MacAddress::BROADCAST);
    let nobody = Ipv4Addr::UNSPECIFIED;
    let gateway = Ipv4Addr::new(10, 0, 0, 254);
    let own = link_local_of(mac(1));
    let all_servers: Ipv6Addr = "ff02::1:2".parse().unwrap();
    let all_routers: Ipv6Addr = "ff02::2".parse().unwrap();
    let group = (mac(1), MacAddress([0x33, 0x33, 0, 0, 0, 2]));
    let to_router = (mac(1), ROUTER);
    let gateway6: Ipv6Addr = "fd00::fe".parse().unwrap();
    let question = frames::datagram((4000, 53), &[0; 30]);
    let (flags, sequence, acknowledgment, window, length) = (TcpHeader::SYN, 1, 0, 8192, 0);
    let syn = Segment { flags, sequence, acknowledgment, window, length };
    vec![
        frames::udp(broadcast, (nobody, Ipv4Addr::BROADCAST), (68, 67), &[0; 300]),
        frames::udp(to_router, (v4(1), gateway), (68, 67), &[0; 300]),
        frames::udp(to_router, (v4(1), gateway), (4000, 53), &[0; 30]),
        frames::ipv6(to_router, (v6(1), gateway6), PROTOCOL_UDP, &question),
        frames::tcp(to_router, (v4(1), gateway), (4000, 53), syn),
        frames::ipv6(
            group,
            (own, all_servers),
            PROTOCOL_UDP,
            &frames::datagram((546, 547), &[0; 40]),
        ),
        frames::ipv6(group, (own, all_routers), PROTOCOL_ICMPV6, &[133, 0, 0, 0, 0, 0, 0, 0]),
    ]
}

#[test]
fn questions_to_the_network_are_handed_on_as_they_came() {
    let mut rig = Rig::resolved(&served());
    for question in questions() {
        assert_eq!(rig.send(rig.index(1), question), Outcome::Asked);
    }
    assert_eq!(rig.switch.flow_count(), 0, "each is judged by itself");
    rig.check_books(4);
}

#[test]
fn where_nobody_answers_nothing_is_handed_on() {
    let mut rig = Rig::resolved(&served());
    let reasons = [
        DropReason::DhcpUnanswered,
        DropReason::RouterUnserved,
        DropReason::RouterUnserved,
        DropReason::RouterUnserved,
        DropReason::RouterUnserved,
        DropReason::DhcpUnanswered,
        DropReason::MulticastUnsupported,
    ];
    for (question, reason) in questions().into_iter().zip(reasons) {
        assert_eq!(rig.send(rig.index(3), question), Outcome::Dropped(reason));
    }
}

#[test]
fn a_question_with_a_false_source_is_not_handed_on() {
    let mut rig = Rig::resolved(&served());
    for question in questions() {
        let spoofed = Outcome::Dropped(DropReason::SourceMacSpoofed);
        assert_eq!(rig.send(rig.index(2), question.clone()), spoofed);
        let mut stolen = question.clone();
        stolen[6..12].copy_from_slice(&mac(2).0);
        let is_nobodys = stolen[12..14] == [8, 0] && stolen[26..30] == [0; 4];
        let expected = match is_nobodys {
            true => Outcome::Asked,
            false => Outcome::Dropped(DropReason::SourceAddressSpoofed),
        };
        assert_eq!(rig.send(rig.index(2), stolen), expected);
        // No question comes through a tunnel.
        let mut inner = question;
        inner[6..12].copy_from_slice(&mac(3).0);
        let outer = frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), &inner);
        assert!(matches!(rig.send(UPLINK, outer), Outcome::Dropped(_)));
    }
}

#[test]
fn a_guest_that_asks_too_often_is_not_heard() {
    let mut rig = Rig::resolved(&served());
    let question = questions().remove(2);
    let asked = |rig: &mut Rig, port: u32, question: &[u8]| {
        let many = (0..200).map(|_| rig.once(rig.index(port), question.to_vec()));
        many.filter(|outcome| *outcome == Outcome::Asked).count()
    };
    assert_eq!(asked(&mut rig, 1, &question), 64);
    let too_often = rig.switch.counters(rig.index(1)).drops(DropReason::QuestionRateExceeded);
    assert_eq!(too_often, 136);
    let mut others = question.clone();
    others[6..12].copy_from_slice(&mac(2).0);
    others[26..30].copy_from_slice(&v4(2).octets());
    assert_eq!(asked(&mut rig, 2, &others), 64, "another guest has its own share");
    rig.now += Duration::from_millis(20);
    assert_eq!(asked(&mut rig, 1, &question), 20);
    rig.check_books(4);
}

#[test]
fn an_answer_reaches_whoever_asked_and_nobody_in_its_place() {
    let mut config = served();
    let mut rig = Rig::resolved(&config);
    let mut packet = Packet::empty();
    let question = questions().remove(2);
    let length = u32::try_from(question.len()).unwrap();
    packet.load(rig.index(1), length, Offload::default()).copy_from_slice(&question);
    let mut packets = [packet];
    rig.switch.process(rig.now, &mut packets);
    assert_eq!(packets[0].verdict(), Verdict::Ask);
    let origin = rig.switch.origin(&packets[0]).unwrap();
    assert_eq!(rig.switch.say(&origin, 100), Some(rig.index(1)));
    assert_eq!(rig.switch.say(&origin, 1465), None, "longer than the port's frames");
    assert_eq!(rig.switch.counters(rig.index(1)).sent, 1);
    rig.switch.unsaid(rig.index(1), 100, DropReason::PortDown);
    assert_eq!(rig.switch.counters(rig.index(1)).sent, 0);
    // The port goes, and one of the same name comes in its place.
    let port = config.ports.remove(0);
    config.epoch = Epoch(2);
    rig.switch.apply(rig.now, &config).unwrap();
    assert_eq!(rig.switch.say(&origin, 100), None);
    config.ports.insert(0, port);
    config.epoch = Epoch(3);
    rig.switch.apply(rig.now, &config).unwrap();
    assert_eq!(rig.switch.say(&origin, 100), None, "it has asked nothing");
    let unasked = Origin::unasked(PortId(1), vni(100), mac(1));
    assert_eq!(rig.switch.say(&unasked, 100), Some(rig.index(1)));
    assert_eq!(rig.switch.say(&Origin::unasked(PortId(1), vni(200), mac(1)), 100), None);
    assert_eq!(rig.switch.say(&Origin::unasked(PortId(1), vni(100), mac(2)), 100), None);
}

#[test]
fn what_guests_cannot_be_told_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut SwitchConfig)| {
        let mut config = served();
        change(&mut config);
        let error = Switch::new(limits(), 7).apply(Duration::ZERO, &config).unwrap_err();
        assert!(error.to_string().contains(':'), "{error} names a remedy");
        error.code()
    };
    assert_eq!(refused(&|c| c.answers.dns[0].vni = vni(9)), "answers-vpc-unknown");
    assert_eq!(refused(&|c| c.answers.dhcp[0].vni = vni(9)), "answers-vpc-unknown");
    assert_eq!(refused(&|c| c.answers.dns.push(c.answers.dns[0].clone())), "dns-twice");
    for zone in ["", ".", "a..b", "shop.internal.", "sh op", &"a.".repeat(100)] {
        assert_eq!(refused(&|c| c.answers.dns[0].zone = zone.to_owned()), "domain");
        assert_eq!(refused(&|c| c.answers.dhcp[0].domain = Some(zone.to_owned())), "domain");
    }
    for upstream in ["0.0.0.0:53", "10.0.0.1:0", "224.0.0.1:53"] {
        let upstream = upstream.parse().unwrap();
        assert_eq!(refused(&|c| c.answers.dns[0].upstreams.push(upstream)), "dns-upstream");
    }
    let other = || "other".parse().unwrap();
    assert_eq!(refused(&|c| c.answers.dhcp[0].subnet = other()), "dhcp-subnet-unknown");
    assert_eq!(refused(&|c| c.answers.dhcp.push(c.answers.dhcp[0].clone())), "dhcp-twice");
    assert_eq!(refused(&|c| c.answers.dhcp[0].lease_seconds = 59), "dhcp-lease");
    let nobody = Ipv4Addr::UNSPECIFIED;
    assert_eq!(refused(&|c| c.answers.dhcp[0].dns.push(nobody.into())), "dhcp-server");
    assert_eq!(refused(&|c| c.answers.dhcp[0].ntp.push(nobody)), "dhcp-server");
    let many = || vec![v4(1).into(); 9];
    assert_eq!(refused(&|c| c.answers.dhcp[0].dns = many()), "too-many");
    let route = r#"{"destination": "10.9.0.0/16", "gateway": "10.8.0.1"}"#;
    let stray = || serde_json::from_str(route).unwrap();
    assert_eq!(refused(&|c| c.answers.dhcp[0].routes.push(stray())), "dhcp-route-gateway");
    assert_eq!(refused(&|c| c.answers.metadata = vec![vni(9)]), "answers-vpc-unknown");
    assert_eq!(refused(&|c| c.answers.metadata = vec![vni(100); 2]), "metadata-twice");
    let host = || serde_json::from_str(r#"{"vni": 100, "mac": "02:00:00:00:00:01", "name": "a"}"#);
    assert_eq!(refused(&|c| c.answers.names = vec![host().unwrap(); 2]), "host-name-twice");
}

#[test]
fn a_guest_is_told_of_ports_here_and_elsewhere() {
    let mut rig = Rig::resolved(&two_vpcs());
    for number in [2, 3, 4] {
        let question = frames::arp_request((mac(1), v4(1)), v4(number));
        let answer = frames::arp_reply((mac(number), v4(number)), (mac(1), v4(1)));
        assert_eq!(rig.send(rig.index(1), question).sent(), (rig.index(1), answer));
    }
    assert_eq!(rig.switch.counters(rig.index(1)).answered, 6);
    assert_eq!(rig.switch.counters(rig.index(2)).sent, 0, "nobody else hears the question");
    rig.check_books(4);
}

#[test]
fn a_guest_is_not_told_of_another_vpc() {
    let mut rig = Rig::resolved(&two_vpcs());
    // NIC 4 exists in VPC 100 only; ports 3 and 4 are of VPC 200.
    let question = frames::arp_request((mac(1), v4(1)), v4(4));
    let unknown = Outcome::Dropped(DropReason::ArpTargetUnknown);
    assert_eq!(rig.send(rig.index(3), question), unknown);
}

/// RFC 5227: a host that asks for its own new address must not be told that somebody has it, and
/// one that asks for another's must.
#[test]
fn a_probe_finds_a_conflict_with_others_only() {
    let mut rig = Rig::resolved(&two_vpcs());
    let nobody = Ipv4Addr::UNSPECIFIED;
    let probe = |target| frames::arp_request((mac(1), nobody), target);
    assert_eq!(rig.send(rig.index(1), probe(v4(1))), Outcome::Absorbed);
    let conflict = frames::arp_reply((mac(2), v4(2)), (mac(1), nobody));
    assert_eq!(rig.send(rig.index(1), probe(v4(2))).sent(), (rig.index(1), conflict));
}

#[test]
fn announcements_and_answers_of_guests_go_nowhere() {
    let mut rig = Rig::resolved(&two_vpcs());
    let announcement = frames::arp_request((mac(1), v4(1)), v4(1));
    assert_eq!(rig.send(rig.index(1), announcement), Outcome::Absorbed);
    let answer = frames::arp_reply((mac(1), v4(1)), (mac(2), v4(2)));
    assert_eq!(rig.send(rig.index(1), answer), Outcome::Absorbed);
}

#[test]
fn a_guest_cannot_claim_what_is_anothers_by_arp() {
    let mut rig = Rig::resolved(&two_vpcs());
    let lies = [
        (frames::arp_request((mac(2), v4(1)), v4(2)), DropReason::SourceMacSpoofed),
        (frames::arp_request((mac(1), v4(2)), v4(3)), DropReason::SourceAddressSpoofed),
        (frames::arp_request((mac(1), v4(2)), v4(2)), DropReason::SourceAddressSpoofed),
        (frames::arp_reply((mac(1), v4(2)), (mac(2), v4(9))), DropReason::SourceAddressSpoofed),
        (
            frames::arp_reply((mac(1), Ipv4Addr::UNSPECIFIED), (mac(2), v4(9))),
            DropReason::SourceAddressSpoofed,
        ),
    ];
    for (frame, reason) in lies {
        assert_eq!(rig.send(rig.index(1), frame), Outcome::Dropped(reason));
    }
    // The Ethernet header tells the truth, the message does not.
    let mut frame = frames::arp_request((mac(1), v4(1)), v4(2));
    frame[22..28].copy_from_slice(&mac(2).0);
    assert_eq!(rig.send(rig.index(1), frame), Outcome::Dropped(DropReason::SourceMacSpoofed));
}

/// Linux's vxlan device without learning of addresses asks every VTEP by broadcast.
#[test]
fn a_tunnel_is_told_of_ports_here_only() {
    let mut rig = Rig::resolved(&two_vpcs());
    let ask = |target| {
        let inner = frames::arp_request((mac(3), v4(3)), target);
        frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), &inner)
    };
    let (port, outer) = rig.send(UPLINK, ask(v4(1))).sent();
    assert_eq!(port, UPLINK);
    let inner = unwrap(&outer, (OUR_MAC, NEAR_MAC), (OUR_VTEP, NEAR_VTEP), vni(100));
    assert_eq!(inner, frames::arp_reply((mac(1), v4(1)), (mac(3), v4(3))));
    let unknown = Outcome::Dropped(DropReason::ArpTargetUnknown);
    assert_eq!(rig.send(UPLINK, ask(v4(4))), unknown);
    rig.check_books(4);
}

#[test]
fn a_neighbor_solicitation_is_answered_from_configuration() {
    let mut rig = Rig::resolved(&two_vpcs());
    let own = link_local_of(mac(1));
    for (source, target, owner) in [
        (v6(1), v6(2), mac(2)),
        (v6(1), v6(3), mac(3)),
        (own, link_local_of(mac(2)), mac(2)),
        (own, link_local_of(mac(4)), mac(4)),
        (Ipv6Addr::UNSPECIFIED, v6(2), mac(2)),
    ] {
        let question = NdSolicitation::frame((mac(1), source), target).to_vec();
        // A probe carries no link-layer address (RFC 4861, section 4.3).
        let question = if source.is_unspecified() { without_option(&question) } else { question };
        let advertisement = NdAdvertisement {
            owner,
            target,
            asker: mac(1),
            asker_address: source,
            is_router: false,
        };
        let answer = advertisement.frame().to_vec();
        assert_eq!(rig.send(rig.index(1), question).sent(), (rig.index(1), answer));
    }
    let question = NdSolicitation::frame((mac(1), v6(1)), v6(77)).to_vec();
    let unknown = Outcome::Dropped(DropReason::NdTargetUnknown);
    assert_eq!(rig.send(rig.index(1), question), unknown);
    let about_itself =
        without_option(&NdSolicitation::frame((mac(1), Ipv6Addr::UNSPECIFIED), v6(1)));
    assert_eq!(rig.send(rig.index(1), about_itself), Outcome::Absorbed);
}

/// The question without its option, lengths and checksum right.
fn without_option(frame: &[u8]) -> Vec<u8> {
    let (source, group) = (address(&frame[22..38]), address(&frame[38..54]));
    let macs = (MacAddress(bytes(&frame[6..12])), MacAddress(bytes(&frame[..6])));
    nd_frame(macs, (source, group), 255, &frame[54..78])
}

fn address(octets: &[u8]) -> Ipv6Addr {
    Ipv6Addr::from_octets(bytes(octets))
}

fn bytes<const N: usize>(slice: &[u8]) -> [u8; N] {
    slice.try_into().unwrap()
}

/// An ICMPv6 message with a right checksum.
fn nd_frame(
    macs: frames::Macs,
    ends: (Ipv6Addr, Ipv6Addr),
    hop_limit: u8,
    message: &[u8],
) -> Vec<u8> {
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let length = u32::try_from(message.len()).unwrap();
    let sum = plinth_wire::pseudo_header_ipv6(ends.0, ends.1, PROTOCOL_ICMPV6, length);
    let sum = sum.with(&message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = frames::ipv6(macs, ends, PROTOCOL_ICMPV6, &message);
    frame[21] = hop_limit;
    frame
}

#[test]
fn a_faulty_solicitation_is_not_answered() {
    let mut rig = Rig::resolved(&two_vpcs());
    let good = NdSolicitation::frame((mac(1), v6(1)), v6(2)).to_vec();
    let macs = (mac(1), MacAddress(bytes(&good[..6])));
    let ends = (v6(1), solicited_node(v6(2)));
    let rebuilt = |hop_limit, change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = good[54..].to_vec();
        change(&mut message);
        nd_frame(macs, ends, hop_limit, &message)
    };
    assert_eq!(rebuilt(255, &|_| {}), good);
    let faulty = [
        ("hop limit", rebuilt(254, &|_| {})),
        ("code", rebuilt(255, &|message| message[1] = 1)),
        ("multicast target", rebuilt(255, &|message| message[8] = 0xff)),
        ("option without length", rebuilt(255, &|message| message[25] = 0)),
        ("option past the end", rebuilt(255, &|message| message[25] = 2)),
        ("half an option", rebuilt(255, &|message| message.truncate(25))),
        ("too short", rebuilt(255, &|message| message.truncate(23))),
        ("checksum", {
            let mut frame = good.clone();
            frame[56] ^= 1;
            frame
        }),
    ];
    for (fault, frame) in faulty {
        let dropped = Outcome::Dropped(DropReason::HeaderInvalid);
        assert_eq!(rig.send(rig.index(1), frame), dropped, "{fault}");
    }
    // A checksum that was left to us is not there to be checked.
    let mut frame = good;
    frame[56] ^= 1;
    let incoming = Incoming { port: rig.index(1), frame, offload: partial(54, 2) };
    assert!(matches!(rig.offer(&incoming), Outcome::Sent { partial: None, .. }));
}

#[test]
fn a_guest_cannot_claim_what_is_anothers_by_nd() {
    let mut rig = Rig::resolved(&two_vpcs());
    let question = NdSolicitation::frame((mac(1), v6(2)), v6(3)).to_vec();
    let spoofed = Outcome::Dropped(DropReason::SourceAddressSpoofed);
    assert_eq!(rig.send(rig.index(1), question), spoofed);
    let group = solicited_node(v6(3));
    let mut message = NdSolicitation::frame((mac(1), v6(1)), v6(3))[54..].to_vec();
    message[26..32].copy_from_slice(&mac(2).0);
    let frame = nd_frame((mac(1), MacAddress([0x33; 6])), (v6(1), group), 255, &message);
    let spoofed = Outcome::Dropped(DropReason::SourceMacSpoofed);
    assert_eq!(rig.send(rig.index(1), frame), spoofed);
}

#[test]
fn routers_are_not_among_the_guests() {
    let mut rig = Rig::resolved(&two_vpcs());
    let message = |kind: u8| [vec![kind, 0, 0, 0], vec![0; 20]].concat();
    let ends = (link_local_of(mac(1)), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
    let macs = (mac(1), MacAddress([0x33, 0x33, 0, 0, 0, 1]));
    let advertisement = nd_frame(macs, ends, 255, &message(ND_ROUTER_ADVERTISEMENT));
    let forbidden = Outcome::Dropped(DropReason::RouterMessageForbidden);
    assert_eq!(rig.send(rig.index(1), advertisement), forbidden);
    // To one neighbor, too.
    let unicast = nd_frame((mac(1), mac(2)), (ends.0, v6(2)), 255, &message(134));
    assert_eq!(rig.send(rig.index(1), unicast), forbidden);
    let redirect = nd_frame((mac(1), mac(2)), (ends.0, v6(2)), 255, &message(137));
    assert_eq!(rig.send(rig.index(1), redirect), forbidden);
    let neighbor = nd_frame(macs, ends, 255, &message(ND_ADVERTISEMENT));
    assert_eq!(rig.send(rig.index(1), neighbor), Outcome::Absorbed);
    let solicitation = nd_frame(macs, ends, 255, &message(133));
    let unheard = Outcome::Dropped(DropReason::MulticastUnsupported);
    assert_eq!(rig.send(rig.index(1), solicitation), unheard);
}

#[test]
fn a_tunnel_asks_by_nd_as_well() {
    let mut rig = Rig::resolved(&two_vpcs());
    let ask = |target| {
        let inner = NdSolicitation::frame((mac(3), v6(3)), target);
        frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(200), &inner)
    };
    let (_, outer) = rig.send(UPLINK, ask(v6(2))).sent();
    let inner = unwrap(&outer, (OUR_MAC, NEAR_MAC), (OUR_VTEP, NEAR_VTEP), vni(200));
    let advertisement = NdAdvertisement {
        owner: mac(2),
        target: v6(2),
        asker: mac(3),
        asker_address: v6(3),
        is_router: false,
    };
    assert_eq!(inner, advertisement.frame());
    let unknown = Outcome::Dropped(DropReason::NdTargetUnknown);
    assert_eq!(rig.send(UPLINK, ask(v6(4))), unknown);
    assert_eq!(EthernetHeader::parse(&inner).unwrap().0.ethertype(), ETHERTYPE_IPV6);
}
