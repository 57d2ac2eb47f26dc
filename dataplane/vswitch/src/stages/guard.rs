// SPDX-License-Identifier: Apache-2.0
//! What a guest may claim: its own MAC, its own addresses, and a checksum where there is one.

use super::parse::Parsed;
use crate::DropReason;
use crate::snapshot::Port;
use plinth_ids::MacAddress;
use plinth_wire::checksum::PartialChecksum;
use plinth_wire::{
    DHCP_SERVER_PORT, DHCPV6_SERVER_PORT, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP,
    PROTOCOL_UDP,
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
    let may_have = parsed.class != super::parse::Class::Arp && !parsed.key.is_fragment();
    if may_have && is_inside && is_harmless { Ok(()) } else { Err(DropReason::OffloadInvalid) }
}

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
    check_address(port, source)
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
