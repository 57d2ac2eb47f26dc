// SPDX-License-Identifier: Apache-2.0
//! The greatest segment that a TCP announces, made no greater than its way carries: what its
//! sender's port and what the next link take. So two ends with wrong MTUs do not even have to
//! learn by errors.

use crate::stages::parse::{Class, Parsed};
use crate::{Packet, pipeline::Wholeness};
use plinth_wire::{EthernetHeader, PROTOCOL_TCP, TcpHeader, checksum, segment_size_place};

/// Where TCP's flags stand in its header.
const FLAGS: usize = 13;
const HEADERS_IPV4: u32 = 14 + 20 + 20;
const HEADERS_IPV6: u32 = 14 + 40 + 20;

/// Whether a packet begins a connection, or answers to one that does. Of two loads from lines that
/// the packet's decision has touched, the second is of TCP's packets only.
#[inline]
pub(crate) fn is_beginning(packet: &Packet, parsed: &Parsed, wholeness: Wholeness) -> bool {
    parsed.key.protocol() == PROTOCOL_TCP
        && packet
            .head()
            .get(parsed.upper as usize + FLAGS)
            .is_some_and(|flags| flags & TcpHeader::SYN != 0)
        && wholeness == Wholeness::Whole
        && parsed.class == Class::Flow
        && !parsed.key.is_fragment()
}

/// Lowers what a SYN announces to what a frame of `limit` bytes holds. One without the option
/// means 536 bytes (RFC 9293), which fits everywhere.
#[cold]
#[inline(never)]
pub(crate) fn clamp(packet: &mut Packet, parsed: &Parsed, limit: u32) {
    let headers = if parsed.key.is_ipv4() { HEADERS_IPV4 } else { HEADERS_IPV6 };
    let most = u16::try_from(limit.saturating_sub(headers)).unwrap_or(u16::MAX);
    let upper = parsed.upper as usize;
    // Of a sum that is left to the receiver, the field has the addresses' only.
    let partial = packet.offload().partial;
    let is_partial = partial.is_some_and(|partial| usize::from(partial.start) == upper);
    let _ = lower(packet.head_mut(), (upper, parsed.end as usize), most, is_partial);
}

/// `None` when there is nothing to lower.
fn lower(head: &mut [u8], (upper, end): (usize, usize), most: u16, is_partial: bool) -> Option<()> {
    let end = end.min(head.len());
    debug_assert!(upper >= EthernetHeader::LENGTH, "the upper layer is behind the frame's header");
    let tcp = head.get_mut(upper..end)?;
    let length = TcpHeader::parse(tcp).ok()?.header_length().min(tcp.len());
    let at = TcpHeader::LENGTH + segment_size_place(tcp.get(TcpHeader::LENGTH..length)?)?;
    let before = u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    if before <= most {
        return None;
    }
    tcp[at..at + 2].copy_from_slice(&most.to_be_bytes());
    if !is_partial {
        // Across two words of the sum, its bytes count the other way round (RFC 1071, section 2).
        let word = |value: u16| if at.is_multiple_of(2) { value } else { value.swap_bytes() };
        let sum = u16::from_be_bytes([tcp[16], tcp[17]]);
        let sum = checksum::update(sum, word(before), word(most));
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_wire::checksum::Sum;

    fn syn(options: &[u8]) -> Vec<u8> {
        let header = TcpHeader::new(1, 2, 3, TcpHeader::SYN);
        let mut tcp = [bytemuck::bytes_of(&header), options].concat();
        tcp[12] = u8::try_from((tcp.len() / 4) << 4).unwrap_or(u8::MAX);
        let sum = Sum::new().with(&tcp).checksum();
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        [&[0; 14][..], &tcp].concat()
    }

    #[test]
    fn a_sum_stays_right_wherever_the_option_stands() {
        for options in [&[2, 4, 0x23, 0x28][..], &[1, 2, 4, 0x23, 0x28, 0, 0, 0]] {
            let mut head = syn(options);
            let end = head.len();
            assert_eq!(lower(&mut head, (14, end), 9000, false), None, "it is no greater");
            assert_eq!(head, syn(options));
            assert_eq!(lower(&mut head, (14, end), 1410, false), Some(()));
            let place = options.iter().position(|&byte| byte == 4).unwrap_or_default();
            let mut expected = options.to_vec();
            expected[place + 1..place + 3].copy_from_slice(&1410u16.to_be_bytes());
            assert_eq!(head, syn(&expected));
            let mut head = syn(options);
            assert_eq!(lower(&mut head, (14, end), 1410, true), Some(()));
            assert_eq!(head[30..32], syn(options)[30..32], "a sum that is left is left");
        }
    }

    #[test]
    fn options_that_are_not_there_are_not_lowered() {
        for options in [&[][..], &[1, 1, 2, 4], &[2, 4, 9]] {
            let mut head = syn(options);
            let end = head.len();
            assert_eq!(lower(&mut head, (14, end), 500, false), None);
        }
        let mut head = syn(&[2, 4, 0x23, 0x28]);
        assert_eq!(lower(&mut head, (14, 36), 500, false), None, "it is past what was copied");
    }
}
