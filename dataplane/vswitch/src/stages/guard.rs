// SPDX-License-Identifier: Apache-2.0
//! What a guest may claim: its own MAC, its own addresses, and a checksum where there is one.

use super::parse::{Class, Parsed};
use crate::snapshot::Port;
use crate::{DropReason, Packet};
use plinth_ids::MacAddress;
use plinth_wire::checksum::PartialChecksum;
use plinth_wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DHCPV6_CLIENT_PORT, DHCPV6_SERVER_PORT, PROTOCOL_ICMP,
    PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Segmentation, Segments, TcpHeader,
};
use std::net::IpAddr;

/// Where a guest may leave a checksum to us.
///
/// The two bytes are overwritten after the packet was judged, so they must not be any that were
/// judged by: a checksum "field" over the source address would undo anti-spoofing. A checksum
/// from the upper layer's start lies at its protocol's place; one that starts deeper, as that of
/// a tunnel inside the guest, lies behind the upper layer's header.
pub(crate) fn check_offload(
    partial: Option<PartialChecksum>,
    parsed: &Parsed,
    length: usize,
) -> Result<(), DropReason> {
    let Some(PartialChecksum { start, offset }) = partial else { return Ok(()) };
    let (start, offset) = (usize::from(start), usize::from(offset));
    let is_inside = start + offset + 2 <= length.min(parsed.end as usize);
    let upper = parsed.upper as usize;
    let header = match parsed.key.protocol() {
        PROTOCOL_TCP => Some((16, 20)),
        PROTOCOL_UDP => Some((6, 8)),
        PROTOCOL_ICMP | PROTOCOL_ICMPV6 => Some((2, 8)),
        _ => None,
    };
    let is_harmless = match header {
        Some((field, _)) if start == upper => offset == field,
        Some((_, header)) => start >= upper + header,
        None => start >= upper,
    };
    // ARP has no upper layer; of a fragment, nobody knows where the upper layer's header is.
    let may_have = parsed.class != Class::Arp && !parsed.key.is_fragment();
    if may_have && is_inside && is_harmless { Ok(()) } else { Err(DropReason::OffloadInvalid) }
}

/// Whether a packet may be cut as its guest asked, and if so how: after [`check_offload`].
///
/// Only TCP that carries data, whole and in the copied headers, with its checksum left to us at
/// TCP's own place, and segments that the port's MTU allows: a frame longer than the MTU is legal
/// in no other form. What is not longer than one segment needs no cutting.
pub(crate) fn check_segmentation(
    packet: &mut Packet,
    parsed: &Parsed,
    frame_length_max: u32,
) -> Result<(), DropReason> {
    let Some(asked) = packet.segmentation() else { return Ok(()) };
    let plan = plan_of(packet, parsed, asked).ok_or(DropReason::OffloadInvalid)?;
    packet.set_segmentation(Some(plan));
    if packet.frame_length() > frame_length_max {
        return Err(DropReason::PortMtuExceeded);
    }
    if packet.frame_length() == packet.length() {
        packet.set_segmentation(None);
    }
    Ok(())
}

fn plan_of(packet: &Packet, parsed: &Parsed, asked: Segmentation) -> Option<Segmentation> {
    let is_tcp = parsed.class == Class::Flow
        && parsed.key.protocol() == PROTOCOL_TCP
        && !parsed.key.is_fragment()
        && parsed.key.addresses().0.is_ipv6() == asked.is_ipv6;
    let transport = u16::try_from(parsed.upper).ok()?;
    let has_sum = packet.offload().partial
        == Some(PartialChecksum { start: transport, offset: TCP_CHECKSUM_OFFSET });
    // Bytes behind the IP packet would become a segment's.
    let is_whole = parsed.end == packet.length();
    if !(is_tcp && has_sum && is_whole) {
        return None;
    }
    let tcp = TcpHeader::parse(packet.head().get(usize::from(transport)..)?).ok()?;
    // A connection is not begun or ended by many, and the urgent pointer is of one segment.
    if tcp.flags() & (TcpHeader::SYN | TcpHeader::RST | TCP_URGENT) != 0 {
        return None;
    }
    let headers = transport + u16::try_from(tcp.header_length()).ok()?;
    if usize::from(headers) > packet.head().len() {
        return None;
    }
    let plan = Segmentation { transport, headers, ..asked };
    Segments::new(plan, packet.length() as usize).map(|_| plan)
}

const TCP_CHECKSUM_OFFSET: u16 = 16;
const TCP_URGENT: u8 = 0x20;

/// Only the port's own MAC is a source.
pub(crate) fn check_mac(port: &Port, source: MacAddress) -> Result<(), DropReason> {
    if source == port.mac { Ok(()) } else { Err(DropReason::SourceMacSpoofed) }
}

/// Only an address of the port is a source.
pub(crate) fn check_address(port: &Port, source: IpAddr) -> Result<(), DropReason> {
    if port.has_address(source) { Ok(()) } else { Err(DropReason::SourceAddressSpoofed) }
}

/// Judges the source of an IP packet.
///
/// To a group, a guest without an address yet may speak from the unspecified one: nothing of it
/// is forwarded, and its reason should say what it was and not cry of spoofing.
pub(crate) fn check_source(port: &Port, parsed: &Parsed) -> Result<(), DropReason> {
    check_mac(port, parsed.expected.source())?;
    let (source, _) = parsed.key.addresses();
    if source.is_unspecified() && parsed.expected.destination().is_multicast() {
        return Ok(());
    }
    check_address(port, source)?;
    check_no_server(parsed)
}

/// A guest that answers for DHCP would give others its own gateway. Pieces of packets are looked
/// at in `piece.rs`.
fn check_no_server(parsed: &Parsed) -> Result<(), DropReason> {
    let key = &parsed.key;
    let is_server = key.protocol() == PROTOCOL_UDP
        && !key.is_fragment()
        && is_dhcp_client(key.destination_port(), key.is_ipv4());
    if is_server { Err(DropReason::DhcpServerForbidden) } else { Ok(()) }
}

/// Whether only DHCP's servers speak to this port.
pub(crate) const fn is_dhcp_client(port: u16, is_ipv4: bool) -> bool {
    port == if is_ipv4 { DHCP_CLIENT_PORT } else { DHCPV6_CLIENT_PORT }
}

/// Why a packet to a group ends here.
pub(crate) fn reason_of_group(parsed: &Parsed) -> DropReason {
    let server = match parsed.key.addresses().0 {
        IpAddr::V4(_) => DHCP_SERVER_PORT,
        IpAddr::V6(_) => DHCPV6_SERVER_PORT,
    };
    let is_dhcp = parsed.key.protocol() == PROTOCOL_UDP
        && !parsed.key.is_fragment()
        && parsed.key.destination_port() == server;
    match parsed.expected.destination() {
        _ if is_dhcp => DropReason::DhcpUnanswered,
        MacAddress::BROADCAST => DropReason::BroadcastUnsupported,
        _ => DropReason::MulticastUnsupported,
    }
}
