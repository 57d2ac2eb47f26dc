// SPDX-License-Identifier: Apache-2.0
//! IPv4 (RFC 791).

use crate::{Be16, checksum, view};
use bytemuck::{Pod, Zeroable};
use std::net::Ipv4Addr;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// The fixed part; options follow it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv4Header {
    version_and_length: u8,
    traffic_class: u8,
    total_length: Be16,
    identification: Be16,
    fragment: Be16,
    time_to_live: u8,
    protocol: u8,
    checksum: Be16,
    source: [u8; 4],
    destination: [u8; 4],
}

const _: () = assert!(size_of::<Ipv4Header>() == Ipv4Header::LENGTH);

/// A checked header with its lengths: `header_length <= length <=` what the caller said.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a> {
    pub header: &'a Ipv4Header,
    /// With options.
    pub header_length: usize,
    /// Of the packet, without what Ethernet padded behind it.
    pub length: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Ipv4Error {
    #[error("packet is shorter than its IPv4 header")]
    Truncated,
    #[error("IP version is not 4")]
    Version,
    #[error("IPv4 header length is less than 20 bytes")]
    HeaderLength,
    #[error("IPv4 total length is less than the header or more than the packet")]
    TotalLength,
}

impl Ipv4Header {
    /// Without options.
    pub const LENGTH: usize = 20;

    /// Checks `bytes`, the first of a packet of `length` bytes. Options are within `bytes`.
    #[inline]
    pub fn parse(bytes: &[u8], length: usize) -> Result<Ipv4<'_>, Ipv4Error> {
        let (header, _) = view::<Self>(bytes).ok_or(Ipv4Error::Truncated)?;
        if header.version_and_length >> 4 != 4 {
            return Err(Ipv4Error::Version);
        }
        let header_length = usize::from(header.version_and_length & 0x0f) * 4;
        if header_length < Self::LENGTH {
            return Err(Ipv4Error::HeaderLength);
        }
        if bytes.len() < header_length {
            return Err(Ipv4Error::Truncated);
        }
        let total_length = usize::from(header.total_length.get());
        if total_length < header_length || total_length > length {
            return Err(Ipv4Error::TotalLength);
        }
        Ok(Ipv4 { header, header_length, length: total_length })
    }

    /// A header without options, not to be fragmented (so that an identification of zero is
    /// legal, RFC 6864 section 4.1), with a time to live of 64 and its checksum.
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, total_length: u16) -> Self {
        let mut header = Self {
            version_and_length: 0x45,
            traffic_class: 0,
            total_length: Be16::new(total_length),
            identification: Be16::new(0),
            fragment: Be16::new(DONT_FRAGMENT),
            time_to_live: 64,
            protocol,
            checksum: Be16::new(0),
            source: source.octets(),
            destination: destination.octets(),
        };
        header.checksum = Be16::new(checksum::checksum(bytemuck::bytes_of(&header)));
        header
    }

    /// Says another length, and keeps the checksum right.
    #[inline]
    pub fn set_total_length(&mut self, total_length: u16) {
        let updated = checksum::update(self.checksum.get(), self.total_length.get(), total_length);
        self.checksum = Be16::new(updated);
        self.total_length = Be16::new(total_length);
    }

    /// Counts the time to live down by one hop and keeps the checksum right. `false`, and nothing
    /// done, when there is no hop left.
    #[inline]
    #[must_use]
    pub fn hop(&mut self) -> bool {
        if self.time_to_live <= 1 {
            return false;
        }
        let word = |ttl| u16::from_be_bytes([ttl, self.protocol]);
        let (old, new) = (word(self.time_to_live), word(self.time_to_live - 1));
        self.checksum = Be16::new(checksum::update(self.checksum.get(), old, new));
        self.time_to_live -= 1;
        true
    }

    /// The piece that this is of a packet: its number, where it begins in it in bytes, and whether
    /// more pieces follow.
    pub const fn piece(&self) -> (u16, u16, bool) {
        let fragment = self.fragment.get();
        let start = (fragment & FRAGMENT_OFFSET) * 8;
        (self.identification.get(), start, fragment & MORE_FRAGMENTS != 0)
    }

    /// The header of an answer to this packet: addresses exchanged, a fresh time to live, the
    /// checksum right. Options stay as they are.
    #[must_use]
    pub fn answered(&self) -> Self {
        let word = |ttl| u16::from_be_bytes([ttl, self.protocol]);
        let updated = checksum::update(self.checksum.get(), word(self.time_to_live), word(64));
        Self {
            time_to_live: 64,
            checksum: Be16::new(updated),
            source: self.destination,
            destination: self.source,
            ..*self
        }
    }

    pub const fn source(&self) -> Ipv4Addr {
        let [a, b, c, d] = self.source;
        Ipv4Addr::new(a, b, c, d)
    }

    pub const fn destination(&self) -> Ipv4Addr {
        let [a, b, c, d] = self.destination;
        Ipv4Addr::new(a, b, c, d)
    }

    /// Source and destination, as they stand in the header.
    pub const fn addresses(&self) -> [u8; 8] {
        let ([a, b, c, d], [e, f, g, h]) = (self.source, self.destination);
        [a, b, c, d, e, f, g, h]
    }

    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    pub const fn time_to_live(&self) -> u8 {
        self.time_to_live
    }

    pub const fn dont_fragment(&self) -> bool {
        self.fragment.get() & DONT_FRAGMENT != 0
    }

    /// Whether this is a piece of a packet, first or later.
    pub const fn is_fragment(&self) -> bool {
        self.fragment.get() & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }
}

impl Ipv4<'_> {
    /// Whether the header with its options carries a right checksum; `bytes` are those that were
    /// parsed.
    #[inline]
    pub fn has_right_checksum(&self, bytes: &[u8]) -> bool {
        bytes.get(..self.header_length).is_some_and(checksum::is_right)
    }
}
