// SPDX-License-Identifier: Apache-2.0
//! A second reader of IPv4 frames, which shares no code with the machine that it judges.

use std::net::Ipv4Addr;
use std::ops::Range;

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// What an IPv4 packet says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    pub(super) protocol: u8,
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    /// Of ICMP questions and answers, the identifier twice. `None` where there are none.
    pub(super) ports: Option<(u16, u16)>,
    pub(super) is_piece: bool,
    /// Whether it is a piece behind the first one.
    pub(super) is_later: bool,
    /// Type and code of an ICMP message.
    pub(super) message: Option<[u8; 2]>,
    /// Where the packet begins and where its content does, in what was read.
    header: Range<usize>,
    upper: Range<usize>,
}

impl Seen {
    /// Of a frame.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let is_ipv4 = frame.get(12..14)? == [8, 0];
        if !is_ipv4 { None } else { Self::packet(frame, 14, false) }
    }

    /// Of the packet that an ICMP error quotes, which may be cut short.
    pub(super) fn quoted(&self, frame: &[u8]) -> Option<Self> {
        let is_error = self.message.is_some_and(|[kind, _]| matches!(kind, 3 | 4 | 5 | 11 | 12));
        if is_error && !self.is_later {
            Self::packet(frame.get(..self.upper.end)?, self.upper.start + 8, true)
        } else {
            None
        }
    }

    fn packet(bytes: &[u8], at: usize, is_cut: bool) -> Option<Self> {
        let ip = bytes.get(at..at + 20)?;
        let length = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let header = usize::from(ip[0] & 15) * 4;
        let end = if is_cut { bytes.len().min(at + length) } else { at + length };
        if ip[0] >> 4 != 4 || header < 20 || end > bytes.len() || at + header > end {
            return None;
        }
        let place = u16::from_be_bytes([ip[6], ip[7]]);
        let is_later = place & 0x1fff != 0;
        let upper = &bytes[at + header..end];
        let word = |at: usize| Some(u16::from_be_bytes([*upper.get(at)?, *upper.get(at + 1)?]));
        let message = upper.first_chunk().copied().filter(|_| ip[9] == ICMP && !is_later);
        let ports = match (ip[9], message) {
            _ if is_later => None,
            (TCP | UDP, _) => word(0).zip(word(2)),
            (ICMP, Some([0 | 8 | 13 | 14, _])) => word(4).zip(word(4)),
            _ => None,
        };
        let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        Some(Self {
            protocol: ip[9],
            source: address(12),
            destination: address(16),
            ports,
            is_piece: place & 0x3fff != 0,
            is_later,
            message,
            header: at..at + header,
            upper: at + header..end,
        })
    }

    /// One's-complement sums over the header, and over what the upper layer's checksum covers and
    /// a translation may change: neither grows by one that is right. `None` for what has no sum.
    pub(super) fn sums(&self, frame: &[u8]) -> (u16, Option<u16>) {
        let upper = &frame[self.upper.clone()];
        let addresses = &frame[self.header.start + 12..self.header.start + 20];
        let has_sum = |at: usize| upper.get(at..at + 2).is_some_and(|sum| sum != [0, 0]);
        let over = match self.protocol {
            _ if self.is_piece => None,
            TCP if upper.len() >= 20 => Some(ones(&[addresses, upper])),
            UDP if has_sum(6) => Some(ones(&[addresses, upper])),
            ICMP => Some(ones(&[upper])),
            _ => None,
        };
        (ones(&[&frame[self.header.clone()]]), over)
    }

    /// Puts the right sum into the header.
    pub(super) fn mend(&self, frame: &mut [u8]) {
        let header = self.header.clone();
        frame[header.start + 10..header.start + 12].fill(0);
        let sum = !ones(&[&frame[header.clone()]]);
        frame[header.start + 10..header.start + 12].copy_from_slice(&sum.to_be_bytes());
    }

    /// The TCP flags and sequence number.
    pub(super) fn tcp(&self, frame: &[u8]) -> Option<(u8, u32)> {
        let upper = frame.get(self.upper.clone())?.first_chunk::<20>()?;
        let sequence = u32::from_be_bytes([upper[4], upper[5], upper[6], upper[7]]);
        (self.protocol == TCP && !self.is_later).then_some((upper[13], sequence))
    }
}

/// The sum as a residue: both zeros are one.
fn ones(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words
        .map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    u16::try_from(sum % 0xffff).expect("a residue fits")
}
