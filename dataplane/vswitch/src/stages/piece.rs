// SPDX-License-Identifier: Apache-2.0
//! What a fragment says of itself, where rules ask for the ports that only the first one has.
//!
//! Refused is what could slip something past the rules: a first piece too short for its ports, a
//! piece that would be laid over the head of another one's TCP header (RFC 1858, RFC 3128), more
//! headers behind IPv6's fragment header, and control messages in pieces (RFC 6980).

use super::guard::is_dhcp_client;
use super::parse::{Parsed, icmp_ports, is_error, is_nd};
use crate::DropReason;
use plinth_wire::{
    EthernetHeader, IcmpHeader, Ipv4Header, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, TcpHeader,
    UdpHeader, is_extension,
};

/// A piece of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Piece {
    /// The number that all pieces of the packet have.
    pub(crate) number: u32,
    /// Of the first one, the packet's ports.
    pub(crate) ports: Option<(u16, u16)>,
    /// Whether there are others.
    pub(crate) has_others: bool,
}

/// Reads the piece whose frame begins with `bytes`.
pub(crate) fn read(bytes: &[u8], parsed: &Parsed) -> Result<Piece, DropReason> {
    let (number, start, has_more) = position(bytes, parsed).ok_or(DropReason::FragmentInvalid)?;
    let (upper, end) = (parsed.upper as usize, parsed.end as usize);
    let protocol = parsed.key.protocol();
    if !parsed.key.is_ipv4() && is_extension(protocol) {
        return Err(DropReason::FragmentInvalid);
    }
    if start > 0 {
        let is_over_header = protocol == PROTOCOL_TCP && usize::from(start) < TcpHeader::LENGTH;
        return if is_over_header {
            Err(DropReason::FragmentInvalid)
        } else {
            Ok(Piece { number, ports: None, has_others: true })
        };
    }
    let upper = bytes.get(upper..end.min(bytes.len())).unwrap_or_default();
    let ports = ports(upper, parsed).ok_or(DropReason::FragmentInvalid)?;
    Ok(Piece { number, ports: Some(ports), has_others: has_more })
}

/// Whether a guest may send the piece, whatever the rules say: what a DHCP server or a router
/// says is no less forbidden in pieces, and receivers ignore neighbor discovery in them (RFC 6980).
///
/// Only first pieces say what they are of, and no later one can be laid over the bytes that say
/// it: pieces begin at multiples of eight bytes.
pub(crate) fn check(bytes: &[u8], parsed: &Parsed) -> Result<(), DropReason> {
    let (protocol, is_ipv4) = (parsed.key.protocol(), parsed.key.is_ipv4());
    let is_hidden = !is_ipv4 && is_extension(protocol);
    let is_nds = !is_ipv4 && protocol == PROTOCOL_ICMPV6;
    if !(is_hidden || is_nds || protocol == PROTOCOL_UDP) {
        return Ok(());
    }
    let (_, start, _) = position(bytes, parsed).ok_or(DropReason::FragmentInvalid)?;
    if start > 0 {
        return Ok(());
    }
    let end = bytes.len().min(parsed.end as usize);
    let upper = bytes.get(parsed.upper as usize..end).unwrap_or_default();
    match upper {
        _ if is_hidden => Err(DropReason::FragmentInvalid),
        [kind, ..] if is_nds && !is_nd(*kind) => Ok(()),
        _ if is_nds => Err(DropReason::FragmentInvalid),
        [_, _, a, b, ..] if is_dhcp_client(u16::from_be_bytes([*a, *b]), is_ipv4) => {
            Err(DropReason::DhcpServerForbidden)
        }
        [_, _, _, _, ..] => Ok(()),
        _ => Err(DropReason::FragmentInvalid),
    }
}

/// The packet's number, where the piece begins in it, and whether more follow.
fn position(bytes: &[u8], parsed: &Parsed) -> Option<(u32, u16, bool)> {
    if parsed.key.is_ipv4() {
        let header: &[u8; Ipv4Header::LENGTH] =
            bytes.get(EthernetHeader::LENGTH..)?.first_chunk()?;
        let (number, start, has_more) =
            bytemuck::cast_ref::<[u8; Ipv4Header::LENGTH], Ipv4Header>(header).piece();
        return Some((number.into(), start, has_more));
    }
    // The fragment header (RFC 8200, section 4.5) ends where the piece's data begins.
    let header: &[u8; 8] = bytes.get(..parsed.upper as usize)?.last_chunk()?;
    let &[_, _, a, b, c, d, e, f] = header;
    let place = u16::from_be_bytes([a, b]);
    Some((u32::from_be_bytes([c, d, e, f]), place & !7, place & 1 != 0))
}

/// As the key has them. `None` when they are not all there, or are of what comes in no pieces.
fn ports(upper: &[u8], parsed: &Parsed) -> Option<(u16, u16)> {
    match parsed.key.protocol() {
        PROTOCOL_TCP => {
            let header = TcpHeader::parse(upper).ok()?;
            Some((header.source_port(), header.destination_port()))
        }
        PROTOCOL_UDP => {
            let (header, _) = UdpHeader::parse(upper).ok()?;
            Some((header.source_port(), header.destination_port()))
        }
        _ if parsed.key.is_icmp() => {
            let (header, _) = IcmpHeader::parse(upper).ok()?;
            let (kind, is_ipv4) = (header.kind(), parsed.key.is_ipv4());
            if is_error(kind, is_ipv4) || !is_ipv4 && is_nd(kind) {
                return None;
            }
            Some(icmp_ports(header, is_ipv4))
        }
        _ => Some((0, 0)),
    }
}
