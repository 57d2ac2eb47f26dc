// SPDX-License-Identifier: Apache-2.0
//! Entry for the fuzzer: any bytes parse or name their fault, and what parses keeps its promises.

use crate::checksum::{self, PartialChecksum};
use crate::{
    ArpPacket, EthernetHeader, IcmpHeader, Ipv4Header, Ipv6Header, NdChecksum, NdSolicitation,
    TcpHeader, UdpHeader, VlanTag, VxlanHeader, upper_layer,
};

/// Reads `data` as every header there is.
///
/// # Panics
/// If a parser breaks its promise; it is the fuzzer's finding.
pub fn headers(data: &[u8]) {
    if let Ok((ethernet, rest)) = EthernetHeader::parse(data) {
        assert_eq!(rest.len() + EthernetHeader::LENGTH, data.len());
        assert_eq!(ethernet.is_tagged(), matches!(ethernet.ethertype(), 0x8100 | 0x88a8));
    }
    if let Ok((tag, _)) = VlanTag::parse(data) {
        assert!(tag.id() < 4096);
    }
    if let Ok(arp) = ArpPacket::parse(data) {
        let reply = ArpPacket::reply(
            (arp.target_mac(), arp.target_address()),
            (arp.sender_mac(), arp.sender_address()),
        );
        assert!(ArpPacket::parse(bytemuck::bytes_of(&reply)).is_ok());
    }
    ip(data);
    if let Ok((udp, _)) = UdpHeader::parse(data) {
        assert!(usize::from(udp.length()) >= UdpHeader::LENGTH);
    }
    if let Ok(tcp) = TcpHeader::parse(data) {
        assert!((TcpHeader::LENGTH..=60).contains(&tcp.header_length()));
    }
    if let Ok((vxlan, _)) = VxlanHeader::parse(data) {
        let emitted = VxlanHeader::new(vxlan.vni());
        let (again, _) = VxlanHeader::parse(bytemuck::bytes_of(&emitted)).expect("it was emitted");
        assert_eq!(again.vni(), vxlan.vni());
    }
    if let Ok((icmp, _)) = IcmpHeader::parse(data) {
        assert_eq!(icmp.echo_reply().identifier(), icmp.identifier());
    }
    checksums(data);
}

fn ip(data: &[u8]) {
    for length in [data.len(), data.len() + 1000] {
        if let Ok(ip) = Ipv4Header::parse(data, length) {
            assert!(Ipv4Header::LENGTH <= ip.header_length && ip.header_length <= ip.length);
            assert!(ip.header_length <= data.len() && ip.length <= length);
            // A right checksum stays right, a wrong one stays wrong.
            let mut answered = data[..ip.header_length].to_vec();
            answered[..Ipv4Header::LENGTH]
                .copy_from_slice(bytemuck::bytes_of(&ip.header.answered()));
            assert_eq!(ip.has_right_checksum(data), checksum::is_right(&answered));
        }
        if let Ok(ip) = Ipv6Header::parse(data, length) {
            assert!(Ipv6Header::LENGTH <= ip.length && ip.length <= length);
            if let Ok(upper) = upper_layer(data, &ip) {
                assert!(Ipv6Header::LENGTH <= upper.offset && upper.offset <= ip.length);
            }
            let message = &data[Ipv6Header::LENGTH..];
            let complete = NdSolicitation::parse(ip.header, message, NdChecksum::Complete);
            let partial = NdSolicitation::parse(ip.header, message, NdChecksum::Partial);
            assert!(complete.is_err() || complete == partial);
        }
    }
}

fn checksums(data: &[u8]) {
    checksum::rx_checksum(data);
    let Some(&[a, b, c, d]) = data.first_chunk() else { return };
    let partial = PartialChecksum {
        start: u16::from_be_bytes([a & 3, b]),
        offset: u16::from_be_bytes([c & 3, d]),
    };
    let mut frame = data.to_vec();
    let field = usize::from(partial.start) + usize::from(partial.offset);
    match checksum::complete(&mut frame, partial) {
        Ok(()) => {
            assert_ne!(frame[field..field + 2], [0, 0], "zero would mean none");
            frame[field..field + 2].copy_from_slice(&data[field..field + 2]);
            assert_eq!(frame, data, "nothing but the field is written");
        }
        Err(_) => {
            assert_eq!(frame, data, "a refusal changes nothing");
            assert!(field + 2 > data.len());
        }
    }
}
