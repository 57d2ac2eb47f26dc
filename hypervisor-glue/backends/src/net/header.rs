// SPDX-License-Identifier: Apache-2.0
//! The header before each packet (virtio 1.2, section 5.1.6).
//!
//! ```text
//!   0 flags   1 gso type   2 header length   4 gso size   6 sum start   8 sum offset   10 buffers
//! ```

use super::{ChecksumRequest, Offload};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
};

/// With the count of buffers, which drivers of virtio 1 always have.
pub(crate) const HEADER_MAX: usize = 12;
/// Of a driver before virtio 1 that takes no packet in several buffers.
pub(crate) const HEADER_LEGACY: usize = 10;

#[expect(clippy::cast_possible_truncation, reason = "the flags of the header have 8 bits")]
const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
#[expect(clippy::cast_possible_truncation, reason = "the flags of the header have 8 bits")]
const DATA_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
#[expect(clippy::cast_possible_truncation, reason = "the type in the header has 8 bits")]
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;

/// Reads the header of an outbound packet of `length` bytes. `None` when it asks for what was
/// not negotiated, or points outside of the packet.
pub(crate) fn parse(header: &[u8], length: usize, has_checksum: bool) -> Option<Offload> {
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if header[1] != GSO_NONE {
        return None;
    }
    if header[0] & NEEDS_CSUM == 0 {
        return Some(Offload::default());
    }
    let (start, offset) = (word(6), word(8));
    let is_inside = usize::from(start) + usize::from(offset) + 2 <= length;
    if !has_checksum || !is_inside {
        return None;
    }
    Some(Offload { checksum: Some(ChecksumRequest { start, offset }), is_verified: false })
}

/// The header of an inbound packet in `buffers` buffers.
///
/// Made of two whole words: fields written one by one and then copied as words would hold up every
/// packet until they had left the store buffer, which was a tenth of its time.
#[inline]
pub(crate) fn emit(offload: Offload, has_guest_checksum: bool, buffers: u16) -> [u8; HEADER_MAX] {
    let (flags, request) = match offload {
        Offload { checksum: Some(request), .. } if has_guest_checksum => (NEEDS_CSUM, request),
        Offload { is_verified: true, .. } if has_guest_checksum => (DATA_VALID, NO_REQUEST),
        Offload { .. } => (0, NO_REQUEST),
    };
    let front = u64::from(flags) | u64::from(request.start) << 48;
    let back = u32::from(request.offset) | u32::from(buffers) << 16;
    let mut header = [0; HEADER_MAX];
    header[..8].copy_from_slice(&front.to_le_bytes());
    header[8..].copy_from_slice(&back.to_le_bytes());
    header
}

const NO_REQUEST: ChecksumRequest = ChecksumRequest { start: 0, offset: 0 };

/// Carries out a checksum request on a whole packet. One that points outside changes nothing.
pub(crate) fn complete_checksum(packet: &mut [u8], request: ChecksumRequest) {
    let (start, offset) = (usize::from(request.start), usize::from(request.offset));
    let Some(rest) = packet.get(start..) else { return };
    let mut sum = 0u64;
    let mut pairs = rest.chunks_exact(2);
    for pair in &mut pairs {
        sum += u64::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        sum += u64::from(u16::from_be_bytes([*last, 0]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    let folded = !u16::try_from(sum).expect("it was folded until 16 bits were left");
    // A UDP checksum of zero means none; its other form says the same sum. TCP does not mind.
    let written = if folded == 0 { 0xFFFF } else { folded };
    if let Some(field) = rest_field(packet, start, offset) {
        field.copy_from_slice(&written.to_be_bytes());
    }
}

fn rest_field(packet: &mut [u8], start: usize, offset: usize) -> Option<&mut [u8]> {
    packet.get_mut(start + offset..start + offset + 2)
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the numbers of these tests are small")]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_request_must_lie_inside_the_packet_and_be_negotiated() {
        let mut header = [0; HEADER_MAX];
        header[0] = 1;
        header[6] = 34;
        header[8] = 16;
        let request = Some(ChecksumRequest { start: 34, offset: 16 });
        assert_eq!(parse(&header, 52, true).unwrap().checksum, request);
        assert_eq!(parse(&header, 51, true), None);
        assert_eq!(parse(&header, 52, false), None);
        header[7] = 0xFF;
        header[9] = 0xFF;
        assert_eq!(parse(&header, 1500, true), None);
        assert_eq!(parse(&[0; 12], 60, false), Some(Offload::default()));
        let mut segmented = [0; HEADER_MAX];
        segmented[1] = 1;
        assert_eq!(parse(&segmented, 60, true), None, "segmentation was never offered");
    }

    #[test]
    fn a_completed_checksum_sums_to_all_ones() {
        for length in [20usize, 21, 61, 1480] {
            let mut packet: Vec<u8> = (0..length).map(|at| (at * 31 % 251) as u8).collect();
            packet[14 + 2..14 + 4].copy_from_slice(&[0x12, 0x34]);
            complete_checksum(&mut packet, ChecksumRequest { start: 14, offset: 2 });
            // The field held the pseudo-header's sum, 0x1234, which the receiver adds.
            let mut sum = 0x1234u64;
            for pair in packet[14..].chunks(2) {
                sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
            }
            while sum >> 16 != 0 {
                sum = (sum & 0xFFFF) + (sum >> 16);
            }
            assert_eq!(sum, 0xFFFF, "length {length}");
        }
        complete_checksum(&mut [1; 10], ChecksumRequest { start: 40, offset: 2 });
        complete_checksum(&mut [1; 10], ChecksumRequest { start: 9, offset: 2 });
    }
}
