// SPDX-License-Identifier: Apache-2.0
//! Which flow an ICMP error is about: that of the packet whose beginning it carries.

use super::parse::{Parsed, icmp_ports};
use crate::flow::{FlowKey, FlowKind, Ingress};
use plinth_wire::{IcmpHeader, Ipv4Header, Ipv6Header, PROTOCOL_TCP, PROTOCOL_UDP, upper_layer};

/// The key of the flow that goes the error's way: from where it came in, back to who sent the
/// packet that it is about. `None` when it carries no beginning of a packet of its receiver.
pub(crate) fn flow_of(bytes: &[u8], parsed: &Parsed, ingress: Ingress) -> Option<FlowKey> {
    let (upper, end) = (parsed.upper as usize, parsed.end as usize);
    let quoted = bytes.get(upper + IcmpHeader::LENGTH..end.min(bytes.len()))?;
    let key = if parsed.key.is_ipv4() { quoted_ipv4(quoted) } else { quoted_ipv6(quoted) }?;
    let (sender, _) = key.addresses();
    let (_, receiver) = parsed.key.addresses();
    if sender != receiver {
        return None;
    }
    key.answer(ingress)
}

/// The lengths in a quoted header are those of the whole packet, of which the rest is not there.
const ANY_LENGTH: usize = usize::MAX;

fn quoted_ipv4(quoted: &[u8]) -> Option<FlowKey> {
    let ip = Ipv4Header::parse(quoted, ANY_LENGTH).ok()?;
    let (_, start, _) = ip.header.piece();
    if start > 0 {
        return None;
    }
    let mut key = FlowKey::default();
    key.begin(FlowKind::Ipv4, ip.header.protocol());
    key.set_ipv4(ip.header.addresses());
    set_ports(&mut key, quoted.get(ip.header_length..)?)?;
    Some(key)
}

fn quoted_ipv6(quoted: &[u8]) -> Option<FlowKey> {
    let ip = Ipv6Header::parse(quoted, ANY_LENGTH).ok()?;
    let upper = upper_layer(quoted, &ip).ok()?;
    let rest = quoted.get(upper.offset..)?;
    if upper.is_fragment {
        let header: &[u8; 8] = quoted.get(..upper.offset)?.last_chunk()?;
        if u16::from_be_bytes([header[2], header[3]]) & !7 != 0 {
            return None;
        }
    }
    let mut key = FlowKey::default();
    key.begin(FlowKind::Ipv6, upper.protocol);
    key.set_ipv6(ip.header.addresses());
    set_ports(&mut key, rest)?;
    Some(key)
}

/// Eight bytes behind the IP header are always quoted (RFC 792), and enough.
fn set_ports(key: &mut FlowKey, upper: &[u8]) -> Option<()> {
    match key.protocol() {
        PROTOCOL_TCP | PROTOCOL_UDP => {
            let &[a, b, c, d] = upper.first_chunk()?;
            key.set_ports(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        }
        _ if key.is_icmp() => {
            let (header, _) = IcmpHeader::parse(upper).ok()?;
            let (identifier, message) = icmp_ports(header, key.is_ipv4());
            key.set_ports(identifier, message);
        }
        _ => {}
    }
    Some(())
}
