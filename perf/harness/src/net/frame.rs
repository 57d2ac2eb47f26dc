// SPDX-License-Identifier: Apache-2.0
//! The frames that are sent: UDP over IPv4, with a stamp that says when and in which run.
//!
//! ```text
//!   Ethernet 14 │ IPv4 20 │ UDP 8 │ run 8 │ sent at (ns of the run) 8 │ number 8 │ zeroes
//! ```

use super::options::SIZE_MIN;
use super::tunnel::Tunnel;
use plinth_ids::MacAddress;
use std::net::Ipv4Addr;

const UDP: usize = 14 + 20;
const STAMP: usize = UDP + 8;

/// First of the ports that flows use: below are those that switches treat in their own way.
const PORT_FIRST: u32 = 1024;
/// Flows that differ in their source port only; beyond, target ports differ too.
const PORTS: u32 = 32_768;

/// RFC 6335's dynamic ports.
const EPHEMERAL_FIRST: u32 = 49_152;
const EPHEMERALS: u32 = 16_384;

/// A frame that needs its ports, time and number filled in.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    /// Where the frame begins that a guest sees: behind the headers of a tunnel.
    inner: usize,
    /// Of a conversation's two ends, the one that answers: its ports are the other way round.
    answers: bool,
}

/// What a received frame says of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stamp {
    pub run: u64,
    pub sent_at: u64,
    pub number: u64,
}

impl Template {
    pub(crate) fn new(
        size: usize,
        (source_mac, source): (MacAddress, Ipv4Addr),
        (target_mac, target): (MacAddress, Ipv4Addr),
        run: u64,
    ) -> Self {
        let size = size.max(SIZE_MIN);
        let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
        let mut bytes = vec![0; size];
        bytes[..6].copy_from_slice(&target_mac.0);
        bytes[6..12].copy_from_slice(&source_mac.0);
        bytes[12..14].copy_from_slice(&[0x08, 0x00]);
        bytes[14] = 0x45;
        bytes[16..18].copy_from_slice(&length(size - 14));
        bytes[22] = 64;
        bytes[23] = 17;
        bytes[26..30].copy_from_slice(&source.octets());
        bytes[30..34].copy_from_slice(&target.octets());
        let sum = header_checksum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        // The UDP checksum stays 0, which says that there is none.
        bytes[UDP + 4..UDP + 6].copy_from_slice(&length(size - UDP));
        bytes[STAMP..STAMP + 8].copy_from_slice(&run.to_le_bytes());
        Self { bytes, inner: 0, answers: false }
    }

    /// The other end of the same conversations.
    pub(crate) const fn answering(mut self) -> Self {
        self.answers = true;
        self
    }

    /// The frame inside the headers of a tunnel.
    pub(crate) fn inside(mut self, tunnel: &Tunnel) -> Self {
        let mut bytes = tunnel.headers(self.bytes.len());
        self.inner = bytes.len();
        bytes.append(&mut self.bytes);
        self.bytes = bytes;
        self
    }

    pub(crate) fn set_run(&mut self, run: u64) {
        let at = self.inner + STAMP;
        self.bytes[at..at + 8].copy_from_slice(&run.to_le_bytes());
    }

    pub(crate) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the frame of `flow` into a buffer of its length.
    pub(crate) fn emit(&self, flow: u32, sent_at: u64, number: u64, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes);
        let port = |number: u32| u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
        let (mut from, mut to) = (port(PORT_FIRST + flow % PORTS), port(PORT_FIRST + flow / PORTS));
        if self.answers {
            std::mem::swap(&mut from, &mut to);
        }
        if self.inner > 0 {
            // RFC 7348 §5: the outer source port tells flows apart.
            into[UDP..UDP + 2].copy_from_slice(&port(EPHEMERAL_FIRST + flow % EPHEMERALS));
        }
        let into = &mut into[self.inner..];
        into[UDP..UDP + 2].copy_from_slice(&from);
        into[UDP + 2..UDP + 4].copy_from_slice(&to);
        into[STAMP + 8..STAMP + 16].copy_from_slice(&sent_at.to_le_bytes());
        into[STAMP + 16..STAMP + 24].copy_from_slice(&number.to_le_bytes());
    }
}

/// The stamp of a UDP frame that is long enough to have one.
pub(crate) fn stamp(frame: &[u8]) -> Option<Stamp> {
    if frame.get(12..14)? != [0x08, 0x00] || *frame.get(23)? != 17 {
        return None;
    }
    let word = |at: usize| Some(u64::from_le_bytes(*frame.get(at..)?.first_chunk::<8>()?));
    Some(Stamp { run: word(STAMP)?, sent_at: word(STAMP + 8)?, number: word(STAMP + 16)? })
}

/// RFC 1071 over a header whose checksum field is zero.
pub(crate) fn header_checksum(header: &[u8]) -> u16 {
    let (pairs, _) = header.as_chunks::<2>();
    let sum: u32 = pairs.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(size: usize) -> Template {
        let a = (MacAddress([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 0, 0, 1));
        let b = (MacAddress([2, 0, 0, 0, 0, 2]), Ipv4Addr::new(10, 0, 0, 2));
        Template::new(size, a, b, 99)
    }

    #[test]
    fn a_frame_carries_its_stamp() {
        let mut frame = vec![0; 128];
        template(128).emit(70_000, 123, 456, &mut frame);
        assert_eq!(stamp(&frame), Some(Stamp { run: 99, sent_at: 123, number: 456 }));
        // 70000 = 2 * 32768 + 4464.
        assert_eq!(frame[34..38], [0x15, 0x70, 0x04, 0x02]);
        assert_eq!(stamp(&frame[..60]), None);
    }

    #[test]
    fn the_headers_are_right() {
        let mut frame = vec![0; SIZE_MIN];
        template(SIZE_MIN).emit(0, 0, 0, &mut frame);
        let (pairs, _) = frame[14..34].as_chunks::<2>();
        let sum: u32 = pairs.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "a right header sums to all ones");
        assert_eq!(frame[16..18], [0, 52]);
        assert_eq!(frame[38..40], [0, 32]);
    }

    #[test]
    fn an_answer_has_the_ports_of_its_question_the_other_way_round() {
        let (mut question, mut answer) = (vec![0; 128], vec![0; 128]);
        template(128).emit(70_000, 1, 2, &mut question);
        template(128).answering().emit(70_000, 1, 2, &mut answer);
        assert_eq!((&question[34..36], &question[36..38]), (&answer[36..38], &answer[34..36]));
    }

    #[test]
    fn flows_differ_in_their_ports() {
        let mut seen = std::collections::BTreeSet::new();
        let mut frame = vec![0; SIZE_MIN];
        for flow in 0..100_000 {
            template(SIZE_MIN).emit(flow, 0, 0, &mut frame);
            seen.insert([frame[34], frame[35], frame[36], frame[37]]);
        }
        assert_eq!(seen.len(), 100_000);
    }
}
