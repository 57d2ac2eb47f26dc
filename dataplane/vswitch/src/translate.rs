// SPDX-License-Identifier: Apache-2.0
//! Carries an edit record out on a packet: addresses, ports, and every sum over them.
//!
//! ```text
//!  whole packet, first piece   IP header, its sum │ ports, the upper layer's sum
//!  other pieces                IP header, its sum
//!  ICMP error                  IP header, its sum │ the packet that it quotes, backwards │ its sum
//! ```

use crate::flow::{Edit, added, has_identifier, updated};
use crate::stages::parse::Parsed;
use crate::{DropReason, Packet};
use plinth_wire::checksum::Sum;
use plinth_wire::{
    EthernetHeader, IcmpHeader, Ipv4Header, Ipv6Header, PROTOCOL_ICMP, PROTOCOL_ICMPV6,
    PROTOCOL_TCP, PROTOCOL_UDP, upper_layer,
};

/// How much of its flow's headers a packet has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shape {
    /// All of them.
    Headers,
    /// A later piece: addresses only.
    Piece,
    /// It is an ICMP error, and quotes a packet of the other direction.
    Error,
}

/// Edits a packet of a flow.
///
/// # Errors
/// When headers that were looked at are not there: the packet is then not to be sent.
#[inline]
pub(crate) fn translate(
    packet: &mut Packet,
    edit: &Edit,
    parsed: &Parsed,
    shape: Shape,
) -> Result<(), DropReason> {
    let is_ipv4 = parsed.key.is_ipv4();
    let upper = parsed.upper as usize;
    // The field of a checksum that is left to the receiver holds the sum over the addresses only.
    let partial = packet.offload().partial;
    let is_partial = partial.is_some_and(|partial| usize::from(partial.start) == upper);
    let head = packet.head_mut();
    if shape == Shape::Error {
        let end = (parsed.end as usize).min(head.len());
        return error(&mut head[..end], edit, upper, (is_ipv4, is_partial));
    }
    addresses(&mut head[EthernetHeader::LENGTH..], edit, is_ipv4)?;
    if shape == Shape::Piece {
        return Ok(());
    }
    let upper = head.get_mut(upper..).ok_or(DropReason::Truncated)?;
    ports(upper, edit, parsed.key.protocol(), (is_ipv4, is_partial))
}

/// Writes the addresses, and the sum of an IPv4 header.
#[inline]
fn addresses(ip: &mut [u8], edit: &Edit, is_ipv4: bool) -> Result<(), DropReason> {
    if is_ipv4 {
        let ip: &mut [u8; Ipv4Header::LENGTH] =
            ip.first_chunk_mut().ok_or(DropReason::Truncated)?;
        let sum = updated(u16::from_be_bytes([ip[10], ip[11]]), [edit.of_addresses(), 0]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip[12..20].copy_from_slice(&edit.ipv4());
    } else {
        let ip: &mut [u8; Ipv6Header::LENGTH] =
            ip.first_chunk_mut().ok_or(DropReason::Truncated)?;
        ip[8..40].copy_from_slice(&edit.ipv6());
    }
    Ok(())
}

/// Writes ports or identifier, and the upper layer's sum.
#[inline]
fn ports(
    upper: &mut [u8],
    edit: &Edit,
    protocol: u8,
    (is_ipv4, is_partial): (bool, bool),
) -> Result<(), DropReason> {
    let (source, destination) = edit.ports();
    let both = [edit.of_addresses(), edit.of_ports()];
    let (sum_at, changes) = match (protocol, is_ipv4) {
        (PROTOCOL_TCP, _) => (16, both),
        (PROTOCOL_UDP, _) => (6, both),
        // Over no addresses, of IPv4.
        (PROTOCOL_ICMP, true) => (2, [0, edit.of_ports()]),
        (PROTOCOL_ICMPV6, false) => (2, both),
        _ => return Ok(()),
    };
    if matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP) {
        let field = upper.get_mut(..4).ok_or(DropReason::Truncated)?;
        field[..2].copy_from_slice(&source.to_be_bytes());
        field[2..].copy_from_slice(&destination.to_be_bytes());
    } else if upper.first().is_some_and(|&kind| has_identifier(kind, is_ipv4)) {
        let field = upper.get_mut(4..6).ok_or(DropReason::Truncated)?;
        field.copy_from_slice(&source.to_be_bytes());
    }
    let field = upper.get_mut(sum_at..sum_at + 2).ok_or(DropReason::Truncated)?;
    let before = u16::from_be_bytes([field[0], field[1]]);
    let after = if is_partial {
        // Ports are summed by whoever fills it in.
        let of_addresses = if protocol == PROTOCOL_ICMP { 0 } else { edit.of_addresses() };
        added(before, [of_addresses, 0])
    } else if protocol == PROTOCOL_UDP {
        match before {
            // There is none (RFC 768), and a result of zero must not look so.
            0 => 0,
            _ => match updated(before, changes) {
                0 => 0xffff,
                sum => sum,
            },
        }
    } else {
        updated(before, changes)
    };
    field.copy_from_slice(&after.to_be_bytes());
    Ok(())
}

/// An error goes the way of its flow, and what it quotes went the other: its source is the
/// flow's destination. Who says it may be a router in between, which keeps its address unless
/// the flow hides its source.
fn error(
    head: &mut [u8],
    edit: &Edit,
    upper: usize,
    (is_ipv4, is_partial): (bool, bool),
) -> Result<(), DropReason> {
    let (outer, message) = head.split_at_mut_checked(upper).ok_or(DropReason::Truncated)?;
    let ip = &mut outer[EthernetHeader::LENGTH..];
    let before = address_sum(ip, is_ipv4)?;
    redirect(ip, edit, is_ipv4)?;
    let after = address_sum(ip, is_ipv4)?;
    let outer_changes = [!before, after];
    if is_ipv4 {
        let sum = ip.get_mut(10..12).ok_or(DropReason::Truncated)?;
        let value = updated(u16::from_be_bytes([sum[0], sum[1]]), outer_changes);
        sum.copy_from_slice(&value.to_be_bytes());
    }
    let (header, quoted) =
        message.split_at_mut_checked(IcmpHeader::LENGTH).ok_or(DropReason::Truncated)?;
    let before = Sum::new().with(quoted).fold();
    quote(quoted, edit, is_ipv4)?;
    let after = Sum::new().with(quoted).fold();
    let sum = u16::from_be_bytes([header[2], header[3]]);
    let of_pseudo = if is_ipv4 { [0, 0] } else { outer_changes };
    let sum = if is_partial {
        added(sum, of_pseudo)
    } else {
        updated(updated(sum, [!before, after]), of_pseudo)
    };
    header[2..4].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

fn address_sum(ip: &[u8], is_ipv4: bool) -> Result<u16, DropReason> {
    let place = if is_ipv4 { 12..20 } else { 8..40 };
    let bytes = ip.get(place).ok_or(DropReason::Truncated)?;
    Ok(Sum::new().with(bytes).fold())
}

/// Writes the addresses of an error.
fn redirect(ip: &mut [u8], edit: &Edit, is_ipv4: bool) -> Result<(), DropReason> {
    let (at, length) = if is_ipv4 { (12, 4) } else { (8, 16) };
    let fields = ip.get_mut(at..at + 2 * length).ok_or(DropReason::Truncated)?;
    let bytes = if is_ipv4 { pad(edit.ipv4()) } else { edit.ipv6() };
    if edit.hides_source() {
        fields[..length].copy_from_slice(&bytes[..length]);
    }
    fields[length..].copy_from_slice(&bytes[length..2 * length]);
    Ok(())
}

fn pad(bytes: [u8; 8]) -> [u8; 32] {
    let mut padded = [0; 32];
    padded[..8].copy_from_slice(&bytes);
    padded
}

/// Edits the beginning of a packet of the other direction.
fn quote(quoted: &mut [u8], edit: &Edit, is_ipv4: bool) -> Result<(), DropReason> {
    let (at, length, upper, protocol) = place_of(quoted, is_ipv4).ok_or(DropReason::Truncated)?;
    let bytes = if is_ipv4 { pad(edit.ipv4()) } else { edit.ipv6() };
    let (source, destination) = bytes[..2 * length].split_at(length);
    let before = Sum::new().with(&quoted[at..at + 2 * length]).fold();
    quoted[at..at + length].copy_from_slice(destination);
    quoted[at + length..at + 2 * length].copy_from_slice(source);
    let after = Sum::new().with(&quoted[at..at + 2 * length]).fold();
    let of_addresses = [!before, after];
    if is_ipv4 {
        let sum = updated(u16::from_be_bytes([quoted[10], quoted[11]]), of_addresses);
        quoted[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let Some(upper) = quoted.get_mut(upper..) else { return Ok(()) };
    let (source, destination) = edit.ports();
    // Of a question, the identifier is a source; nothing else of ICMP is translated.
    let (sum_at, at, first, second) = match protocol {
        PROTOCOL_TCP => (16, 0, destination, Some(source)),
        PROTOCOL_UDP => (6, 0, destination, Some(source)),
        PROTOCOL_ICMP | PROTOCOL_ICMPV6 => (2, 4, source, None),
        _ => return Ok(()),
    };
    let at = at..if second.is_some() { at + 4 } else { at + 2 };
    let Some(field) = upper.get_mut(at) else { return Ok(()) };
    let old = Sum::new().with(field).fold();
    field[..2].copy_from_slice(&first.to_be_bytes());
    if let Some(second) = second {
        field[2..].copy_from_slice(&second.to_be_bytes());
    }
    let new = Sum::new().with(field).fold();
    // Of a packet cut short, the sum may not be there.
    let Some(sum) = upper.get_mut(sum_at..sum_at + 2) else { return Ok(()) };
    let value = u16::from_be_bytes([sum[0], sum[1]]);
    if protocol == PROTOCOL_UDP && value == 0 {
        return Ok(());
    }
    let over_addresses = if protocol == PROTOCOL_ICMP { [0, 0] } else { of_addresses };
    let value = updated(updated(value, [!old, new]), over_addresses);
    sum.copy_from_slice(&value.to_be_bytes());
    Ok(())
}

/// Where addresses begin and how long one is, where the upper layer begins, and which it is.
fn place_of(quoted: &[u8], is_ipv4: bool) -> Option<(usize, usize, usize, u8)> {
    if is_ipv4 {
        let ip = Ipv4Header::parse(quoted, usize::MAX).ok()?;
        return Some((12, 4, ip.header_length, ip.header.protocol()));
    }
    let ip = Ipv6Header::parse(quoted, usize::MAX).ok()?;
    let upper = upper_layer(quoted, &ip).ok()?;
    Some((8, 16, upper.offset, upper.protocol))
}
