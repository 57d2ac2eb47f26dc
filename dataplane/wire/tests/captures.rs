// SPDX-License-Identifier: Apache-2.0
//! What Linux puts on the wire is read right, and what it would have written is written alike.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use plinth_ids::MacAddress;
use plinth_wire::checksum::{self, PartialChecksum, RxChecksum};
use plinth_wire::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const CAPTURES: &str = include_str!("captures/linux-vxlan.txt");
const MAC_1: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const MAC_2: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
const V4_1: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const V4_2: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const V6_1: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const V6_2: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

fn frame(name: &str) -> Vec<u8> {
    let lines = CAPTURES.lines().filter(|line| !line.starts_with('#'));
    let found = lines.map(|line| line.split_once(' ').unwrap()).find(|(found, _)| *found == name);
    let (_, text) = found.unwrap_or_else(|| panic!("there is no capture {name}"));
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// The frame inside the tunnel, after the outer headers were checked.
fn inner(name: &str) -> Vec<u8> {
    let frame = frame(name);
    let (ethernet, packet) = EthernetHeader::parse(&frame).unwrap();
    assert_eq!(ethernet.ethertype(), ETHERTYPE_IPV4);
    let ip = Ipv4Header::parse(packet, packet.len()).unwrap();
    assert!(ip.has_right_checksum(packet));
    assert_eq!((ip.header.protocol(), ip.length), (PROTOCOL_UDP, packet.len()));
    let (udp, payload) = UdpHeader::parse(&packet[ip.header_length..]).unwrap();
    assert_eq!(udp.destination_port(), VXLAN_PORT);
    let (vxlan, inner) = VxlanHeader::parse(payload).unwrap();
    assert_eq!(vxlan.vni().get(), 100);
    inner.to_vec()
}

#[test]
fn the_outer_checksum_is_judged_as_linux_wrote_it() {
    let mut frame = frame("ping-request");
    let written = [frame[40], frame[41]];
    assert_ne!(written, [0, 0], "Linux takes a checksum unless it is told not to");
    assert_eq!(checksum::rx_checksum(&frame), RxChecksum::Right);
    frame[60] ^= 1;
    assert_eq!(checksum::rx_checksum(&frame), RxChecksum::Wrong);
    frame[40..42].fill(0);
    assert_eq!(checksum::rx_checksum(&frame), RxChecksum::Right, "there is none to check");
    assert_eq!(checksum::rx_checksum(&frame[..60]), RxChecksum::Unknown);
    // Completed by us from the pseudo header's sum, it is the one that Linux wrote.
    frame[60] ^= 1;
    let ends = (Ipv4Addr::new(172, 16, 0, 1), Ipv4Addr::new(172, 16, 0, 2));
    let length = u32::from(u16::from_be_bytes([frame[38], frame[39]]));
    let sum = pseudo_header_ipv4(ends.0, ends.1, PROTOCOL_UDP, length);
    frame[40..42].copy_from_slice(&sum.fold().to_be_bytes());
    checksum::complete(&mut frame, PartialChecksum { start: 34, offset: 6 }).unwrap();
    assert_eq!([frame[40], frame[41]], written);
}

#[test]
fn arp_is_read_and_written_as_linux_does() {
    let request = ArpPacket::request((MAC_1, V4_1), V4_2);
    assert_eq!(request.frame(MacAddress::BROADCAST)[..], inner("arp-request")[..]);
    let reply = ArpPacket::reply((MAC_2, V4_2), (MAC_1, V4_1));
    assert_eq!(reply.frame(MAC_1)[..], inner("arp-reply")[..]);
    let read = inner("arp-reply");
    assert_eq!(ArpPacket::parse(&read[14..]), Ok(&reply));
    assert_eq!(reply.operation(), ArpOperation::Reply);
}

#[test]
fn neighbor_discovery_is_read_and_written_as_linux_does() {
    assert_eq!(NdSolicitation::frame((MAC_1, V6_1), V6_2)[..], inner("nd-solicitation")[..]);
    let read = inner("nd-solicitation");
    let ip = Ipv6Header::parse(&read[14..], read.len() - 14).unwrap();
    let question = NdSolicitation::parse(ip.header, &read[54..], NdChecksum::Complete);
    let expected = NdSolicitation { source: V6_1, target: V6_2, source_mac: Some(MAC_1) };
    assert_eq!(question, Ok(expected));
    let answer = NdAdvertisement {
        owner: MAC_2,
        target: V6_2,
        asker: MAC_1,
        asker_address: V6_1,
        is_router: false,
    };
    assert_eq!(answer.frame()[..], inner("nd-advertisement")[..]);
}

#[test]
fn the_upper_layer_is_found_behind_options_and_extensions() {
    let upper = |name: &str| {
        let frame = inner(name);
        let packet = frame[14..].to_vec();
        let ip = Ipv6Header::parse(&packet, packet.len()).unwrap();
        upper_layer(&packet, &ip).unwrap()
    };
    // The multicast listener report carries a router alert option, hop by hop.
    let report = upper("mld-report");
    assert_eq!(report, UpperLayer { protocol: PROTOCOL_ICMPV6, offset: 48, is_fragment: false });
    assert_eq!(upper("ping6-request").offset, 40);
}

#[test]
fn tcp_udp_and_icmp_are_read_as_linux_wrote_them() {
    let syn = inner("tcp-syn");
    let tcp = TcpHeader::parse(&syn[34..]).unwrap();
    assert_eq!((tcp.destination_port(), tcp.flags(), tcp.header_length()), (9, TcpHeader::SYN, 40));
    let reset = inner("tcp-reset");
    let tcp = TcpHeader::parse(&reset[34..]).unwrap();
    assert_eq!((tcp.source_port(), tcp.flags()), (9, TcpHeader::RST | TcpHeader::ACK));
    let datagram = inner("udp");
    let (udp, payload) = UdpHeader::parse(&datagram[34..]).unwrap();
    assert_eq!((udp.destination_port(), payload), (53, &b"hello\n"[..]));
    assert_eq!(checksum::rx_checksum(&datagram), RxChecksum::Right);
    let ping = inner("ping-request");
    let (icmp, _) = IcmpHeader::parse(&ping[34..]).unwrap();
    assert_eq!((icmp.kind(), icmp.code(), icmp.sequence()), (ICMP_ECHO_REQUEST, 0, 1));
    assert!(checksum::is_right(&ping[34..]));
}

/// Linux turned this request into this reply; so do we.
#[test]
fn a_ping_is_answered_as_linux_does() {
    let (request, reply) = (inner("ping-request"), inner("ping-reply"));
    let (icmp, _) = IcmpHeader::parse(&request[34..]).unwrap();
    let (expected, _) = IcmpHeader::parse(&reply[34..]).unwrap();
    assert_eq!(&icmp.echo_reply(), expected);
    let ip = Ipv4Header::parse(&request[14..], request.len() - 14).unwrap();
    let answered = ip.header.answered();
    assert_eq!((answered.source(), answered.destination()), (V4_2, V4_1));
    assert!(checksum::is_right(bytemuck::bytes_of(&answered)));
}

/// The bytes of RFC 7348, section 5, and of RFC 791 around them.
#[test]
fn a_tunnels_headers_have_the_bytes_of_the_rfcs() {
    let vni = plinth_ids::Vni::new(0x12_34_56).unwrap();
    let macs = (MAC_1, MAC_2);
    let ends = ([172, 16, 0, 1].into(), [172, 16, 0, 2].into());
    let headers = TunnelHeaders::new(macs, ends, vni, 50_000, 100);
    let expected = [
        &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0][..],
        &[0x45, 0, 0, 136, 0, 0, 0x40, 0, 64, 17, 0xe2, 0x41, 172, 16, 0, 1, 172, 16, 0, 2],
        &[0xc3, 0x50, 0x12, 0xb5, 0, 116, 0, 0],
        &[8, 0, 0, 0, 0x12, 0x34, 0x56, 0],
    ];
    assert_eq!(bytemuck::bytes_of(&headers), expected.concat());
}
