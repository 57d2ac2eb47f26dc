// SPDX-License-Identifier: Apache-2.0
//! Reads a guest's frame as far as the flow key needs.
//!
//! Lengths inside the packet are compared with the packet's length; headers must lie within the
//! bytes that were copied. Nothing is believed yet: whose addresses these are is asked later.

use crate::DropReason;
use crate::flow::{Expected, FlowKey, FlowKind, has_identifier};
use plinth_wire::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, IcmpHeader, Ipv4Error,
    Ipv4Header, Ipv6Error, Ipv6Header, ND_ADVERTISEMENT, ND_REDIRECT, ND_ROUTER_ADVERTISEMENT,
    ND_SOLICITATION, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, TcpError,
    TcpHeader, UdpError, UdpHeader, upper_layer,
};

/// What kind of answer a frame needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Class {
    /// Belongs to a flow; all of [`Parsed`] is filled in.
    Flow,
    /// Of the fields, only the MACs are filled in.
    Arp,
    /// A neighbor discovery message of this ICMPv6 type.
    Nd(u8),
    /// An ICMP message about a packet that its receiver sent.
    Error,
}

/// Filled in where it stays until the packet is decided: it is large, and copying what was just
/// written costs more than writing it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parsed {
    pub(crate) class: Class,
    /// Without the ingress, which is added when the packet goes to the flow table.
    pub(crate) key: FlowKey,
    /// Without the VTEP, which is added likewise.
    pub(crate) expected: Expected,
    /// Where the upper layer begins and where the packet ends, from the frame's first byte.
    pub(crate) upper: u32,
    pub(crate) end: u32,
}

impl Parsed {
    pub(crate) const NOTHING: Self = Self {
        class: Class::Arp,
        key: FlowKey { words: [0; 6] },
        expected: Expected::NOTHING,
        upper: 14,
        end: 14,
    };
}

/// Reads `bytes`, the first of a frame of `length` bytes, into `parsed`.
pub(crate) fn parse(bytes: &[u8], length: usize, parsed: &mut Parsed) -> Result<(), DropReason> {
    let (ethernet, packet) = EthernetHeader::parse(bytes).map_err(|_| DropReason::Truncated)?;
    if ethernet.source().is_multicast() {
        return Err(DropReason::HeaderInvalid);
    }
    let macs = bytes.first_chunk().expect("the Ethernet header was parsed");
    parsed.expected = Expected::new(macs);
    let frame = Frame { packet, length: length - EthernetHeader::LENGTH };
    match ethernet.ethertype() {
        ETHERTYPE_IPV4 => frame.ipv4(parsed),
        ETHERTYPE_IPV6 => frame.ipv6(parsed),
        ETHERTYPE_ARP => {
            parsed.class = Class::Arp;
            parsed.key.begin(FlowKind::Ipv4, 0);
            (parsed.upper, parsed.end) = ends(0, 0);
            Ok(())
        }
        _ if ethernet.is_tagged() => Err(DropReason::VlanTagged),
        _ => Err(DropReason::EthertypeUnsupported),
    }
}

/// What lies behind the Ethernet header, as far as it was copied, and its whole length.
struct Frame<'a> {
    packet: &'a [u8],
    length: usize,
}

/// [`Parsed::upper`] and [`Parsed::end`] of a packet behind its Ethernet header.
fn ends(upper: usize, end: usize) -> (u32, u32) {
    let from_frame = |at: usize| u32::try_from(EthernetHeader::LENGTH + at);
    let place = "an IP packet has at most 64 KiB and its header";
    (from_frame(upper).expect(place), from_frame(end).expect(place))
}

impl Frame<'_> {
    fn ipv4(&self, parsed: &mut Parsed) -> Result<(), DropReason> {
        let ip = Ipv4Header::parse(self.packet, self.length).map_err(|error| match error {
            Ipv4Error::Truncated | Ipv4Error::TotalLength => DropReason::Truncated,
            Ipv4Error::Version | Ipv4Error::HeaderLength => DropReason::HeaderInvalid,
        })?;
        let header = ip.header;
        let kind = if header.is_fragment() { FlowKind::Ipv4Fragment } else { FlowKind::Ipv4 };
        parsed.class = Class::Flow;
        parsed.key.begin(kind, header.protocol());
        parsed.key.set_ipv4(header.addresses());
        (parsed.upper, parsed.end) = ends(ip.header_length, ip.length);
        self.ports(parsed)
    }

    fn ipv6(&self, parsed: &mut Parsed) -> Result<(), DropReason> {
        let reason = |error| match error {
            Ipv6Error::Truncated | Ipv6Error::PayloadLength | Ipv6Error::Extension => {
                DropReason::Truncated
            }
            Ipv6Error::Version | Ipv6Error::TooManyExtensions => DropReason::HeaderInvalid,
            Ipv6Error::ExtensionsTooLong => DropReason::HeadersTooLong,
        };
        let ip = Ipv6Header::parse(self.packet, self.length).map_err(reason)?;
        let upper = upper_layer(self.packet, &ip).map_err(reason)?;
        let kind = if upper.is_fragment { FlowKind::Ipv6Fragment } else { FlowKind::Ipv6 };
        parsed.class = Class::Flow;
        parsed.key.begin(kind, upper.protocol);
        parsed.key.set_ipv6(ip.header.addresses());
        (parsed.upper, parsed.end) = ends(upper.offset, ip.length);
        self.ports(parsed)
    }

    /// Fills in ports, or an ICMP message's type and code, which stand for them.
    fn ports(&self, parsed: &mut Parsed) -> Result<(), DropReason> {
        if parsed.key.is_fragment() {
            return Ok(());
        }
        let length = (parsed.end - parsed.upper) as usize;
        let from = parsed.upper as usize - EthernetHeader::LENGTH;
        // What was copied of the upper layer, without padding behind the packet.
        let copied = self.packet.get(from..).unwrap_or_default();
        let upper = &copied[..copied.len().min(length)];
        let truncated =
            if upper.len() < length { DropReason::HeadersTooLong } else { DropReason::Truncated };
        match parsed.key.protocol() {
            PROTOCOL_TCP => {
                let tcp = TcpHeader::parse(upper).map_err(|error| match error {
                    TcpError::Truncated => truncated,
                    TcpError::DataOffset => DropReason::HeaderInvalid,
                })?;
                if tcp.header_length() > length {
                    return Err(DropReason::Truncated);
                }
                parsed.key.set_ports(tcp.source_port(), tcp.destination_port());
            }
            PROTOCOL_UDP => {
                let (udp, _) = UdpHeader::parse(upper).map_err(|error| match error {
                    UdpError::Truncated => truncated,
                    UdpError::Length => DropReason::HeaderInvalid,
                })?;
                if usize::from(udp.length()) > length {
                    return Err(DropReason::Truncated);
                }
                parsed.key.set_ports(udp.source_port(), udp.destination_port());
            }
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 => {
                let (icmp, _) = IcmpHeader::parse(upper).map_err(|_| truncated)?;
                // The other version's ICMP is a protocol like any that has no ports.
                if parsed.key.is_icmp() {
                    icmp_class(icmp, parsed);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Fills in what stands for the ports of an ICMP message, and what it is.
fn icmp_class(icmp: &IcmpHeader, parsed: &mut Parsed) {
    let (kind, is_ipv4) = (icmp.kind(), parsed.key.is_ipv4());
    let (identifier, message) = icmp_ports(icmp, is_ipv4);
    parsed.key.set_ports(identifier, message);
    if !is_ipv4 && is_nd(kind) {
        parsed.class = Class::Nd(kind);
    } else if is_error(kind, is_ipv4) {
        parsed.class = Class::Error;
    }
}

/// What stands for the ports of an ICMP message.
pub(crate) const fn icmp_ports(icmp: &IcmpHeader, is_ipv4: bool) -> (u16, u16) {
    let kind = icmp.kind();
    let identifier = if has_identifier(kind, is_ipv4) { icmp.identifier() } else { 0 };
    (identifier, u16::from_be_bytes([kind, icmp.code()]))
}

/// The messages that carry the beginning of another packet (RFC 792, RFC 4443 section 2.1). An
/// IPv4 redirect is one too.
pub(crate) const fn is_error(kind: u8, is_ipv4: bool) -> bool {
    if is_ipv4 { matches!(kind, 3 | 4 | 5 | 11 | 12) } else { kind < 128 }
}

/// The messages that the switch answers or forbids itself. A router solicitation is none: it goes
/// to a group, where nobody hears it.
pub(crate) const fn is_nd(kind: u8) -> bool {
    matches!(kind, ND_SOLICITATION | ND_ADVERTISEMENT | ND_ROUTER_ADVERTISEMENT | ND_REDIRECT)
}
