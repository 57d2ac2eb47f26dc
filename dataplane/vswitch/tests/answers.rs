// SPDX-License-Identifier: Apache-2.0
//! Stories of questions: ARP and neighbor discovery from guests and from tunnels.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::MacAddress;
use plinth_vswitch::{DropReason, PortIndex};
use plinth_wire::{
    ETHERTYPE_IPV6, EthernetHeader, ND_ADVERTISEMENT, ND_ROUTER_ADVERTISEMENT, NdAdvertisement,
    NdSolicitation, PROTOCOL_ICMPV6, link_local_of, solicited_node,
};
use std::net::{Ipv4Addr, Ipv6Addr};
use support::frames::{self, unwrap};
use support::*;

const UPLINK: PortIndex = PortIndex::UPLINK;

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
        let advertisement = NdAdvertisement { owner, target, asker: mac(1), asker_address: source };
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
    let advertisement =
        NdAdvertisement { owner: mac(2), target: v6(2), asker: mac(3), asker_address: v6(3) };
    assert_eq!(inner, advertisement.frame());
    let unknown = Outcome::Dropped(DropReason::NdTargetUnknown);
    assert_eq!(rig.send(UPLINK, ask(v6(4))), unknown);
    assert_eq!(EthernetHeader::parse(&inner).unwrap().0.ethertype(), ETHERTYPE_IPV6);
}
