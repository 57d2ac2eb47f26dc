// SPDX-License-Identifier: Apache-2.0
//! UDP datagrams in their frames, read and written, and what else comes in frames, read.

use plinth_ids::MacAddress;
use plinth_wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, Ipv4Header, Ipv6Header, PROTOCOL_ICMPV6,
    PROTOCOL_TCP, PROTOCOL_UDP, TcpHeader, UdpHeader, pseudo_header_ipv4, pseudo_header_ipv6,
    upper_layer,
};
use std::net::{IpAddr, SocketAddr};

/// Of what the switch sends to a guest of its own accord.
const HOP_LIMIT: u8 = 64;

/// A guest's datagram, or its router solicitation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Received<'a> {
    pub(crate) macs: Macs,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) kind: Kind<'a>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Macs {
    pub(crate) source: MacAddress,
    pub(crate) destination: MacAddress,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind<'a> {
    Udp {
        source: u16,
        destination: u16,
        payload: &'a [u8],
    },
    Icmpv6 {
        message: &'a [u8],
        hop_limit: u8,
    },
    /// A segment that is not looked into, and the IP packet that it is in.
    Tcp {
        destination: u16,
        packet: &'a [u8],
    },
}

impl<'a> Received<'a> {
    /// `None` for a frame that is not whole, or that is neither UDP, TCP nor ICMPv6.
    pub(crate) fn parse(frame: &'a [u8]) -> Option<Self> {
        let (ethernet, packet) = EthernetHeader::parse(frame).ok()?;
        let macs = Macs { source: ethernet.source(), destination: ethernet.destination() };
        match ethernet.ethertype() {
            ETHERTYPE_IPV4 => {
                let ip = Ipv4Header::parse(packet, packet.len()).ok()?;
                let bytes = packet.get(ip.header_length..ip.length)?;
                let kind = match ip.header.protocol() {
                    _ if ip.header.is_fragment() => return None,
                    PROTOCOL_UDP => udp(bytes)?,
                    PROTOCOL_TCP => tcp(bytes, packet.get(..ip.length)?)?,
                    _ => return None,
                };
                let (source, destination) = (ip.header.source(), ip.header.destination());
                Some(Self { macs, source: source.into(), destination: destination.into(), kind })
            }
            ETHERTYPE_IPV6 => {
                let ip = Ipv6Header::parse(packet, packet.len()).ok()?;
                let upper = upper_layer(packet, &ip).ok()?;
                let bytes = packet.get(upper.offset..ip.length)?;
                let kind = match upper.protocol {
                    _ if upper.is_fragment => return None,
                    PROTOCOL_UDP => udp(bytes)?,
                    PROTOCOL_TCP => tcp(bytes, packet.get(..ip.length)?)?,
                    PROTOCOL_ICMPV6 => {
                        Kind::Icmpv6 { message: bytes, hop_limit: ip.header.hop_limit() }
                    }
                    _ => return None,
                };
                let (source, destination) = (ip.header.source(), ip.header.destination());
                Some(Self { macs, source: source.into(), destination: destination.into(), kind })
            }
            _ => None,
        }
    }
}

fn udp(datagram: &[u8]) -> Option<Kind<'_>> {
    let (header, _) = UdpHeader::parse(datagram).ok()?;
    let payload = datagram.get(UdpHeader::LENGTH..usize::from(header.length()))?;
    let (source, destination) = (header.source_port(), header.destination_port());
    Some(Kind::Udp { source, destination, payload })
}

fn tcp<'a>(segment: &[u8], packet: &'a [u8]) -> Option<Kind<'a>> {
    let header = TcpHeader::parse(segment).ok()?;
    Some(Kind::Tcp { destination: header.destination_port(), packet })
}

/// The whole frame of a datagram. `None` when the payload is too long for one, or when the two
/// addresses are not of one family.
pub(crate) fn datagram(
    macs: Macs,
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let length = u16::try_from(UdpHeader::LENGTH + payload.len()).ok()?;
    let mut udp =
        bytemuck::bytes_of(&UdpHeader::new(source.port(), destination.port(), length)).to_vec();
    udp.extend_from_slice(payload);
    let ends = (source.ip(), destination.ip());
    let checksum = match checksum(ends, PROTOCOL_UDP, &udp)? {
        // Zero would mean that there is none (RFC 768).
        0 => 0xffff,
        checksum => checksum,
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    packet(macs, ends, (PROTOCOL_UDP, HOP_LIMIT), &udp)
}

/// The checksum over `bytes`, whose own field is zero, and their pseudo header.
pub(crate) fn checksum(ends: (IpAddr, IpAddr), protocol: u8, bytes: &[u8]) -> Option<u16> {
    let length = u32::try_from(bytes.len()).ok()?;
    let pseudo = match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => pseudo_header_ipv4(from, to, protocol, length),
        (IpAddr::V6(from), IpAddr::V6(to)) => pseudo_header_ipv6(from, to, protocol, length),
        _ => return None,
    };
    Some(pseudo.with(bytes).checksum())
}

/// Puts Ethernet and IP headers in front of `upper`.
pub(crate) fn packet(
    macs: Macs,
    ends: (IpAddr, IpAddr),
    (protocol, hop_limit): (u8, u8),
    upper: &[u8],
) -> Option<Vec<u8>> {
    let ethernet = |ethertype| EthernetHeader::new(macs.destination, macs.source, ethertype);
    let mut frame = Vec::with_capacity(EthernetHeader::LENGTH + Ipv6Header::LENGTH + upper.len());
    match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = u16::try_from(Ipv4Header::LENGTH + upper.len()).ok()?;
            frame.extend_from_slice(bytemuck::bytes_of(&ethernet(ETHERTYPE_IPV4)));
            let ip = Ipv4Header::new(from, to, protocol, length);
            frame.extend_from_slice(bytemuck::bytes_of(&ip));
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u16::try_from(upper.len()).ok()?;
            frame.extend_from_slice(bytemuck::bytes_of(&ethernet(ETHERTYPE_IPV6)));
            let ip = Ipv6Header::new(from, to, protocol, hop_limit, length);
            frame.extend_from_slice(bytemuck::bytes_of(&ip));
        }
        _ => return None,
    }
    frame.extend_from_slice(upper);
    Some(frame)
}
