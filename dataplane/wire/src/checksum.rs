// SPDX-License-Identifier: Apache-2.0
//! The internet checksum (RFC 1071), its incremental update (RFC 1624), and the completion of the
//! partial checksums that guests leave to the device (virtio 1.2, section 5.1.6.2).
//!
//! The sum is taken over little-endian words, eight lanes wide, which the compiler turns into
//! vector adds; one's-complement sums do not care about byte order until the last step, where the
//! bytes are swapped back (RFC 1071, section 2 B).

use crate::ipv4::{self, Ipv4Header};
use crate::udp::UdpHeader;
use crate::{ETHERTYPE_IPV4, EthernetHeader, PROTOCOL_UDP, pseudo_header_ipv4};

/// Where a checksum is still to be filled in: as virtio's `csum_start` and `csum_offset`.
///
/// The field at `start + offset` holds the sum of the pseudo header; the checksum covers the
/// frame from `start` to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PartialChecksum {
    /// From the first byte of the frame.
    pub start: u16,
    /// From `start`.
    pub offset: u16,
}

/// The checksum field does not lie inside the frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a checksum field at {start} + {offset} is outside a frame of {length} bytes")]
pub struct OutsideFrame {
    start: u16,
    offset: u16,
    length: usize,
}

/// What is known about the outermost UDP checksum of a frame from a wire.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RxChecksum {
    /// Nobody looked. RFC 7348 lets a tunnel's end accept such a packet.
    #[default]
    Unknown,
    /// The device or [`rx_checksum`] found it right, or there is none to check.
    Right,
    Wrong,
}

/// A one's-complement sum under construction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Of little-endian 16-bit words; always less than 2^17, so that no addition overflows.
    words: u32,
    /// Whether an odd number of bytes was added so far.
    is_odd: bool,
}

impl Sum {
    pub const fn new() -> Self {
        Self { words: 0, is_odd: false }
    }

    /// The sum with `bytes` added, as if they followed what was added before.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        let piece = sum_words(bytes);
        let piece = if self.is_odd { piece.swap_bytes() } else { piece };
        let words = self.words + u32::from(piece);
        Self {
            words: (words & 0xffff) + (words >> 16),
            is_odd: self.is_odd ^ (bytes.len() % 2 == 1),
        }
    }

    /// The sum itself, folded to 16 bits, as it stands in a partial checksum field.
    pub fn fold(self) -> u16 {
        fold(u64::from(self.words)).swap_bytes()
    }

    /// The checksum: the complement of the sum, in host order.
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The folded sum of little-endian 16-bit words; an odd last byte is padded with zero.
#[inline]
fn sum_words(bytes: &[u8]) -> u16 {
    let mut lanes = [0u64; 8];
    let mut chunks = bytes.chunks_exact(32);
    for chunk in &mut chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_le_bytes(*word));
        }
    }
    // A frame has at most 64 KiB, so a lane holds at most 2^11 words of 32 bits; eight lanes and
    // the rest stay far below 2^64.
    let mut sum: u64 = lanes.iter().sum();
    let (words, rest) = chunks.remainder().as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_le_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    fold(sum + u64::from(u32::from_le_bytes(last)))
}

/// Adds the carries back until 16 bits are left.
#[inline]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from(sum).expect("a sum below 2^17, folded once more, fits 16 bits")
}

/// The checksum of `bytes`, whose own checksum field is zero.
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::new().with(bytes).checksum()
}

/// Whether `bytes`, with their checksum field inside, sum to the all-ones of a right checksum.
#[inline]
pub fn is_right(bytes: &[u8]) -> bool {
    // All ones read the same in either byte order.
    sum_words(bytes) == 0xffff
}

/// What `checksum` becomes when one 16-bit word under it changes from `old` to `new` (RFC 1624,
/// equation 3).
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u64::from(!checksum) + u64::from(!old) + u64::from(new);
    !fold(sum)
}

/// Fills in a checksum that was left partial: the field holds the pseudo header's sum, and
/// becomes the checksum of the frame from `partial.start` to its end.
///
/// A result of zero is written as all ones, which means the same and which UDP does not mistake
/// for "no checksum" (RFC 768).
///
/// # Errors
/// When the field lies outside `frame`; the frame is then unchanged.
pub fn complete(frame: &mut [u8], partial: PartialChecksum) -> Result<(), OutsideFrame> {
    let PartialChecksum { start, offset } = partial;
    let error = OutsideFrame { start, offset, length: frame.len() };
    let covered = frame.get_mut(usize::from(start)..).ok_or(error)?;
    if covered.len() < usize::from(offset) + 2 {
        return Err(error);
    }
    let value = match checksum(covered) {
        0 => 0xffff,
        value => value,
    };
    covered[usize::from(offset)..][..2].copy_from_slice(&value.to_be_bytes());
    Ok(())
}

/// Checks the UDP checksum of a whole Ethernet frame, as a NIC with receive offload would.
///
/// `Unknown` for anything that is not an unfragmented IPv4 UDP packet with a checksum.
pub fn rx_checksum(frame: &[u8]) -> RxChecksum {
    verify_udp(frame).unwrap_or(RxChecksum::Unknown)
}

fn verify_udp(frame: &[u8]) -> Option<RxChecksum> {
    let (ethernet, packet) = EthernetHeader::parse(frame).ok()?;
    if ethernet.ethertype() != ETHERTYPE_IPV4 {
        return None;
    }
    let ip = Ipv4Header::parse(packet, packet.len()).ok()?;
    let ipv4::Ipv4 { header, header_length, length } = ip;
    if header.protocol() != PROTOCOL_UDP || header.is_fragment() {
        return None;
    }
    let datagram = &packet[header_length..length];
    let (udp, _) = UdpHeader::parse(datagram).ok()?;
    let covered = datagram.get(..usize::from(udp.length()))?;
    if udp.checksum() == 0 {
        return Some(RxChecksum::Right);
    }
    let length = u32::from(udp.length());
    let pseudo = pseudo_header_ipv4(header.source(), header.destination(), PROTOCOL_UDP, length);
    let sum = pseudo.with(covered).fold();
    Some(if sum == 0xffff { RxChecksum::Right } else { RxChecksum::Wrong })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 as it is written: add 16-bit words, fold the carries, complement.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::new().with(&bytes).fold(), 0xddf2);
    }

    #[test]
    fn a_field_outside_the_frame_is_refused() {
        let mut frame = [0; 60];
        for (start, offset) in [(60, 0), (58, 1), (61, 0), (0, 59), (u16::MAX, u16::MAX)] {
            assert!(complete(&mut frame, PartialChecksum { start, offset }).is_err());
        }
        assert!(complete(&mut frame, PartialChecksum { start: 58, offset: 0 }).is_ok());
    }

    #[test]
    fn a_completed_checksum_is_never_zero() {
        // The words sum to all ones, so the complement would be zero.
        let mut frame = [0xff, 0xff, 0, 0];
        complete(&mut frame, PartialChecksum { start: 0, offset: 2 }).unwrap();
        assert_eq!(frame, [0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn the_sum_of_the_longest_frame_does_not_overflow() {
        let bytes = vec![0xff; 65_535 + 64];
        assert_eq!(checksum(&bytes), slow(&bytes));
    }

    proptest! {
        #[test]
        fn agrees_with_the_rfc_word_by_word(bytes: Vec<u8>, cut: prop::sample::Index) {
            prop_assert_eq!(checksum(&bytes), slow(&bytes));
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(Sum::new().with(head).with(tail).checksum(), slow(&bytes));
        }

        #[test]
        fn an_update_equals_a_new_sum(
            mut bytes in prop::collection::vec(any::<u8>(), 4..100),
            at: prop::sample::Index,
            new: u16,
        ) {
            let word = at.index(bytes.len() / 2) * 2;
            let before = checksum(&bytes);
            let old = u16::from_be_bytes([bytes[word], bytes[word + 1]]);
            bytes[word..word + 2].copy_from_slice(&new.to_be_bytes());
            // Zero and all ones are one value in one's complement; an update may give either.
            let (updated, fresh) = (update(before, old, new), checksum(&bytes));
            prop_assert!(updated == fresh || (updated ^ fresh) == 0xffff && (fresh == 0 || updated == 0));
        }

        #[test]
        fn a_completed_frame_sums_to_all_ones(
            mut frame in prop::collection::vec(any::<u8>(), 20..300),
            start in 0..10u16,
            offset in (0..4u16).prop_map(|half| half * 2),
        ) {
            // The pseudo header's sum is whatever stands in the field: take it as given.
            let field = usize::from(start + offset);
            let pseudo = u16::from_be_bytes([frame[field], frame[field + 1]]);
            complete(&mut frame, PartialChecksum { start, offset }).unwrap();
            let sum = Sum::new().with(&frame[usize::from(start)..]).with(&[]).fold();
            let whole = u32::from(sum) + u32::from(pseudo);
            prop_assert_eq!((whole & 0xffff) + (whole >> 16), 0xffff);
        }
    }
}
