// SPDX-License-Identifier: Apache-2.0
//! The header before each packet (virtio 1.2, section 5.1.6).
//!
//! ```text
//!   0 flags   1 gso type   2 header length   4 gso size   6 sum start   8 sum offset   10 buffers
//! ```

use super::{ChecksumRequest, Offload, SegmentRequest};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM,
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
mod gso {
    use virtio_bindings::virtio_net::{
        VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
        VIRTIO_NET_HDR_GSO_TCPV6,
    };
    pub(super) const NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
    pub(super) const TCP4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
    pub(super) const TCP6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
    pub(super) const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;
}

const fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

/// Reads the header of an outbound packet of `length` bytes. `None` when it asks for what was
/// not negotiated, or points outside of the packet.
#[inline]
pub(crate) fn parse(header: &[u8; HEADER_MAX], length: usize, features: u64) -> Option<Offload> {
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let segments = match header[1] {
        gso::NONE => None,
        kind => Some(parse_segments(kind, word(4), word(2), features)?),
    };
    if header[0] & NEEDS_CSUM == 0 {
        // Segments without a sum to be completed were never sums at all.
        return segments.is_none().then(Offload::default);
    }
    let (start, offset) = (word(6), word(8));
    let is_inside = usize::from(start) + usize::from(offset) + 2 <= length;
    if !has(features, VIRTIO_NET_F_CSUM) || !is_inside {
        return None;
    }
    let checksum = Some(ChecksumRequest { start, offset });
    Some(Offload { checksum, is_verified: false, segments })
}

#[cold]
fn parse_segments(kind: u8, size: u16, headers: u16, features: u64) -> Option<SegmentRequest> {
    let (is_ipv6, feature) = match kind & !gso::ECN {
        gso::TCP4 => (false, VIRTIO_NET_F_HOST_TSO4),
        gso::TCP6 => (true, VIRTIO_NET_F_HOST_TSO6),
        _ => return None,
    };
    let has_ecn = kind & gso::ECN != 0;
    let is_negotiated =
        has(features, feature) && (!has_ecn || has(features, VIRTIO_NET_F_HOST_ECN));
    (is_negotiated && size > 0).then_some(SegmentRequest { size, is_ipv6, has_ecn, headers })
}

/// Whether a driver with these features takes a packet that is still to be cut.
pub(crate) fn takes_segments(features: u64, request: SegmentRequest) -> bool {
    let feature = if request.is_ipv6 { VIRTIO_NET_F_GUEST_TSO6 } else { VIRTIO_NET_F_GUEST_TSO4 };
    has(features, VIRTIO_NET_F_GUEST_CSUM)
        && has(features, feature)
        && (!request.has_ecn || has(features, VIRTIO_NET_F_GUEST_ECN))
}

/// The header of an inbound packet in `buffers` buffers.
///
/// Made of two whole words: fields written one by one and then copied as words would hold up every
/// packet until they had left the store buffer, which was a tenth of its time.
#[inline(always)]
pub(crate) fn emit(offload: Offload, has_guest_checksum: bool, buffers: u16) -> [u8; HEADER_MAX] {
    let (flags, request) = match offload {
        Offload { checksum: Some(request), .. } if has_guest_checksum => (NEEDS_CSUM, request),
        Offload { is_verified: true, .. } if has_guest_checksum => (DATA_VALID, NO_REQUEST),
        Offload { .. } => (0, NO_REQUEST),
    };
    let front = u64::from(flags) | u64::from(request.start) << 48 | segment_fields(offload);
    let back = u32::from(request.offset) | u32::from(buffers) << 16;
    let mut header = [0; HEADER_MAX];
    header[..8].copy_from_slice(&front.to_le_bytes());
    header[8..].copy_from_slice(&back.to_le_bytes());
    header
}

/// `gso_type`, `hdr_len` and `gso_size`, where they stand in the header's first eight bytes.
#[inline(always)]
fn segment_fields(offload: Offload) -> u64 {
    let Some(request) = offload.segments else { return 0 };
    let kind = if request.is_ipv6 { gso::TCP6 } else { gso::TCP4 };
    let kind = if request.has_ecn { kind | gso::ECN } else { kind };
    u64::from(kind) << 8 | u64::from(request.headers) << 16 | u64::from(request.size) << 32
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

    const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;

    #[test]
    fn a_checksum_request_must_lie_inside_the_packet_and_be_negotiated() {
        let mut header = [0; HEADER_MAX];
        header[0] = 1;
        header[6] = 34;
        header[8] = 16;
        let request = Some(ChecksumRequest { start: 34, offset: 16 });
        assert_eq!(parse(&header, 52, CSUM).unwrap().checksum, request);
        assert_eq!(parse(&header, 51, CSUM), None);
        assert_eq!(parse(&header, 52, 0), None);
        header[7] = 0xFF;
        header[9] = 0xFF;
        assert_eq!(parse(&header, 1500, CSUM), None);
        assert_eq!(parse(&[0; 12], 60, 0), Some(Offload::default()));
    }

    #[test]
    fn segmentation_is_taken_as_it_was_negotiated_and_with_a_checksum_only() {
        let all = CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_HOST_ECN;
        let mut header = [1, 0x81, 54, 0, 0xA8, 5, 34, 0, 16, 0, 0, 0];
        let request = SegmentRequest { size: 1448, is_ipv6: false, has_ecn: true, headers: 54 };
        assert_eq!(parse(&header, 9000, all).unwrap().segments, Some(request));
        for missing in [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_ECN] {
            assert_eq!(parse(&header, 9000, all & !(1 << missing)), None, "feature {missing}");
        }
        for kind in [2, 3, 5, 0x80, 0x7F] {
            header[1] = kind;
            assert_eq!(parse(&header, 9000, all), None, "kind {kind}");
        }
        header[1] = 4;
        assert!(parse(&header, 9000, all).unwrap().segments.unwrap().is_ipv6);
        header[0] = 0;
        assert_eq!(parse(&header, 9000, all), None, "no sum to be completed");
        header[0] = 1;
        header[4..6].fill(0);
        assert_eq!(parse(&header, 9000, all), None, "segments of no bytes");
    }

    #[test]
    fn what_is_emitted_is_what_is_parsed() {
        let features = u64::MAX;
        for is_ipv6 in [false, true] {
            let segments = SegmentRequest { size: 1400, is_ipv6, has_ecn: is_ipv6, headers: 66 };
            let checksum = Some(ChecksumRequest { start: 34, offset: 16 });
            let offload = Offload { checksum, is_verified: false, segments: Some(segments) };
            let header = emit(offload, true, 3);
            assert_eq!(parse(&header, 5000, features), Some(offload));
            assert_eq!(header[10..], [3, 0]);
            assert!(takes_segments(features, segments));
            assert!(!takes_segments(features & !(1 << VIRTIO_NET_F_GUEST_CSUM), segments));
        }
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
