// SPDX-License-Identifier: Apache-2.0
//! Frames, built whole.

use plinth_ids::{MacAddress, Vni};
use plinth_wire::checksum;
use plinth_wire::{
    ArpPacket, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, IcmpHeader, Ipv4Header, Ipv6Header,
    PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, TUNNEL_OVERHEAD, TcpHeader, TunnelHeaders,
    UdpHeader, pseudo_header_ipv4,
};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Source and destination MAC.
pub(crate) type Macs = (MacAddress, MacAddress);

pub(crate) fn ethernet((source, destination): Macs, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let header = EthernetHeader::new(destination, source, ethertype);
    [bytemuck::bytes_of(&header), payload].concat()
}

pub(crate) fn ipv4(
    macs: Macs,
    ends: (Ipv4Addr, Ipv4Addr),
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(Ipv4Header::LENGTH + payload.len()).unwrap();
    let header = Ipv4Header::new(ends.0, ends.1, protocol, length);
    ethernet(macs, ETHERTYPE_IPV4, &[bytemuck::bytes_of(&header), payload].concat())
}

pub(crate) fn ipv6(
    macs: Macs,
    ends: (Ipv6Addr, Ipv6Addr),
    next_header: u8,
    payload: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let header = Ipv6Header::new(ends.0, ends.1, next_header, 64, length);
    ethernet(macs, ETHERTYPE_IPV6, &[bytemuck::bytes_of(&header), payload].concat())
}

/// A datagram without IP around it, its checksum left at zero.
pub(crate) fn datagram(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(UdpHeader::LENGTH + payload.len()).unwrap();
    let header = UdpHeader::new(ports.0, ports.1, length);
    [bytemuck::bytes_of(&header), payload].concat()
}

pub(crate) fn udp(
    macs: Macs,
    ends: (Ipv4Addr, Ipv4Addr),
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    ipv4(macs, ends, PROTOCOL_UDP, &datagram(ports, payload))
}

/// A segment whose checksum field holds the pseudo header's sum, as a guest leaves it to us.
pub(crate) fn tcp_partial(macs: Macs, ends: (Ipv4Addr, Ipv4Addr), payload: &[u8]) -> Vec<u8> {
    let header = TcpHeader::new(40_000, 80, 1, TcpHeader::ACK);
    let mut segment = [bytemuck::bytes_of(&header), payload].concat();
    let length = u32::try_from(segment.len()).unwrap();
    let sum = pseudo_header_ipv4(ends.0, ends.1, PROTOCOL_TCP, length).fold();
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ipv4(macs, ends, PROTOCOL_TCP, &segment)
}

pub(crate) fn icmp(kind: u8, payload: &[u8]) -> Vec<u8> {
    let header = IcmpHeader::new(kind, 0, 7, 1);
    let mut message = [bytemuck::bytes_of(&header), payload].concat();
    let sum = checksum::checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

pub(crate) fn ping(macs: Macs, ends: (Ipv4Addr, Ipv4Addr), payload: &[u8]) -> Vec<u8> {
    ipv4(macs, ends, PROTOCOL_ICMP, &icmp(plinth_wire::ICMP_ECHO_REQUEST, payload))
}

/// Who has `target`? As a broadcast.
pub(crate) fn arp_request(sender: (MacAddress, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    ArpPacket::request(sender, target).frame(MacAddress::BROADCAST).to_vec()
}

pub(crate) fn arp_reply(owner: (MacAddress, Ipv4Addr), asker: (MacAddress, Ipv4Addr)) -> Vec<u8> {
    ArpPacket::reply(owner, asker).frame(asker.0).to_vec()
}

/// An inner frame in its tunnel.
pub(crate) fn vxlan(macs: Macs, vteps: (Ipv4Addr, Ipv4Addr), vni: Vni, inner: &[u8]) -> Vec<u8> {
    let length = u16::try_from(inner.len()).unwrap();
    let headers = TunnelHeaders::new(macs, vteps, vni, 50_000, length);
    [bytemuck::bytes_of(&headers), inner].concat()
}

/// Takes a tunnel's headers off what was sent to the uplink, after checking them.
pub(crate) fn unwrap(frame: &[u8], macs: Macs, vteps: (Ipv4Addr, Ipv4Addr), vni: Vni) -> Vec<u8> {
    let (outer, inner) = frame.split_at(TUNNEL_OVERHEAD);
    let source_port = u16::from_be_bytes([outer[34], outer[35]]);
    assert!(source_port >= 49_152, "source port {source_port} is not a dynamic one");
    let length = u16::try_from(inner.len()).unwrap();
    let expected = TunnelHeaders::new(macs, vteps, vni, source_port, length);
    assert_eq!(outer, bytemuck::bytes_of(&expected));
    inner.to_vec()
}

/// What a segment says besides its ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) window: u16,
    pub(crate) length: usize,
}

pub(crate) fn tcp(
    macs: Macs,
    ends: (Ipv4Addr, Ipv4Addr),
    ports: (u16, u16),
    segment: Segment,
) -> Vec<u8> {
    let header = TcpHeader::new(ports.0, ports.1, segment.sequence, segment.flags)
        .acknowledging(segment.acknowledgment, segment.window);
    let payload = vec![0x55; segment.length];
    ipv4(macs, ends, PROTOCOL_TCP, &[bytemuck::bytes_of(&header), &payload].concat())
}

/// The news from `from` that a packet, whose whole frame is `about`, did not arrive.
pub(crate) fn unreachable(macs: Macs, ends: (Ipv4Addr, Ipv4Addr), about: &[u8]) -> Vec<u8> {
    let quoted = &about[EthernetHeader::LENGTH..];
    let header = IcmpHeader::new(3, 3, 0, 0);
    let quoted = &quoted[..quoted.len().min(28)];
    let mut message = [bytemuck::bytes_of(&header), quoted].concat();
    let sum = checksum::checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(macs, ends, PROTOCOL_ICMP, &message)
}
