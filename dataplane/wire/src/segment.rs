// SPDX-License-Identifier: Apache-2.0
//! Cutting a long TCP packet into segments, as a NIC with segmentation offload would.
//!
//! ```text
//!   whole     [ outer 50? | Ethernet | IP | TCP ][ payload ................................ ]
//!   segment 0 [ headers, lengths and sums anew  ][ size bytes ]
//!   segment 1 [ headers, sequence + size …      ]             [ size bytes ]
//!   last      [ headers, FIN and PSH if set     ]                          [ the rest ]
//! ```
//!
//! The driver puts the bytes of each segment together, headers first, and [`Segments::finish`]
//! makes them a frame. What is rewritten: IPv4 total length, identification and sum, IPv6 payload
//! length, TCP sequence, flags and sum; in front of a tunnel's inner frame, the outer IPv4 length
//! and sum and the outer UDP length.

use crate::checksum::Sum;
use crate::{PROTOCOL_TCP, TcpHeader, TunnelHeaders};
use std::ops::Range;

/// Segments of one packet, at most: 64 KiB in pieces of 512 bytes. A guest that asks for more,
/// and so for ever smaller ones, would have one packet cost what a thousand do.
pub const SEGMENTS_MAX: usize = 128;

/// How a packet is to be cut.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segmentation {
    /// Bytes of payload in every segment but the last, which may have fewer.
    pub size: u16,
    pub is_ipv6: bool,
    /// The sender follows RFC 3168: "congestion window reduced" belongs to the first segment only.
    pub has_ecn: bool,
    /// Where the IP header begins, from the frame's first byte.
    pub network: u16,
    /// Where TCP's header begins.
    pub transport: u16,
    /// Where the payload begins: bytes that every segment has in front.
    pub headers: u16,
}

/// The segments of one packet of a known length.
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    plan: Segmentation,
    payload: usize,
}

const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_SUM: usize = 16;
/// PSH and FIN belong to the last segment, CWR to the first (RFC 3168, section 6.1.2).
const FLAG_PUSH: u8 = 0x08;
const FLAG_CWR: u8 = 0x80;

impl Segments {
    /// `None` for a plan that is none: no payload, no size, too many segments, or headers that are
    /// not in their order. `length` is the frame's.
    pub fn new(plan: Segmentation, length: usize) -> Option<Self> {
        let Segmentation { network, transport, headers, .. } = plan;
        let payload = length.checked_sub(usize::from(headers)).filter(|&payload| payload > 0)?;
        let ip = if plan.is_ipv6 { 40 } else { 20 };
        let is_in_order = network == 14 || usize::from(network) == TunnelHeaders::LENGTH + 14;
        let has_headers = usize::from(network) + ip <= usize::from(transport)
            && usize::from(transport) + TcpHeader::LENGTH <= usize::from(headers);
        let is_bounded = plan.size > 0 && payload.div_ceil(usize::from(plan.size)) <= SEGMENTS_MAX;
        (is_in_order && has_headers && is_bounded).then_some(Self { plan, payload })
    }

    pub fn count(&self) -> usize {
        self.payload.div_ceil(usize::from(self.plan.size))
    }

    pub const fn headers(&self) -> usize {
        self.plan.headers as usize
    }

    /// Which bytes of the payload segment `nth` has.
    pub fn payload(&self, nth: usize) -> Range<usize> {
        let begin = nth * usize::from(self.plan.size);
        begin..self.payload.min(begin + usize::from(self.plan.size))
    }

    /// Makes `frame`, the packet's headers and then [`Self::payload`] of segment `nth`, a whole
    /// frame with its lengths and sums.
    ///
    /// # Panics
    /// If `frame` has another length.
    pub fn finish(&self, nth: usize, frame: &mut [u8]) {
        let payload = self.payload(nth);
        assert_eq!(frame.len(), self.headers() + payload.len(), "headers and their payload");
        let (network, transport) =
            (usize::from(self.plan.network), usize::from(self.plan.transport));
        if network > TunnelHeaders::LENGTH {
            TunnelHeaders::set_length(frame);
        }
        let packet = &mut frame[network..];
        if self.plan.is_ipv6 {
            put(packet, 4, length_of(packet.len() - 40));
        } else {
            let step = u16::try_from(nth).expect("a packet has few segments");
            let identification = get(packet, 4).wrapping_add(step);
            put(packet, 2, length_of(packet.len()));
            put(packet, 4, identification);
            put(packet, 10, 0);
            let sum = Sum::new().with(&packet[..transport - network]).checksum();
            put(packet, 10, sum);
        }
        let sum = self.pseudo_sum(packet, transport - network);
        let is_last = nth + 1 == self.count();
        self.finish_tcp(&mut packet[transport - network..], sum, payload.start, (nth, is_last));
    }

    /// Of addresses, protocol and length: what a sender leaves in the field is for the whole packet.
    fn pseudo_sum(&self, packet: &[u8], upper: usize) -> Sum {
        let addresses = if self.plan.is_ipv6 { &packet[8..40] } else { &packet[12..20] };
        let length = length_of(packet.len() - upper);
        Sum::new().with(addresses).with(&[0, PROTOCOL_TCP]).with(&length.to_be_bytes())
    }

    fn finish_tcp(&self, tcp: &mut [u8], pseudo: Sum, offset: usize, place: (usize, bool)) {
        let (nth, is_last) = place;
        let before: [u8; 4] = tcp[TCP_SEQUENCE..][..4].try_into().expect("four bytes");
        let step = u32::try_from(offset).expect("a packet has at most 64 KiB");
        let sequence = u32::from_be_bytes(before).wrapping_add(step);
        tcp[TCP_SEQUENCE..][..4].copy_from_slice(&sequence.to_be_bytes());
        if !is_last {
            tcp[TCP_FLAGS] &= !(TcpHeader::FIN | FLAG_PUSH);
        }
        if nth > 0 && self.plan.has_ecn {
            tcp[TCP_FLAGS] &= !FLAG_CWR;
        }
        put(tcp, TCP_SUM, 0);
        let sum = pseudo.with(tcp).checksum();
        put(tcp, TCP_SUM, sum);
    }
}

fn length_of(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("a segment is shorter than the packet it is of")
}

fn get(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
