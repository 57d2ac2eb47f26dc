// SPDX-License-Identifier: Apache-2.0
//! IPv6 (RFC 8200) and the walk over its extension headers.

use crate::{Be16, Be32, view};
use bytemuck::{Pod, Zeroable};
use plinth_ids::MacAddress;
use std::net::Ipv6Addr;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// More extension headers than this are refused: no sender needs them, and the walk is bounded.
pub const EXTENSION_HEADERS_MAX: usize = 8;

#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Header {
    version_class_flow: Be32,
    payload_length: Be16,
    next_header: u8,
    hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

const _: () = assert!(size_of::<Ipv6Header>() == Ipv6Header::LENGTH);

/// A checked header and the packet's length without what Ethernet padded behind it.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<'a> {
    pub header: &'a Ipv6Header,
    pub length: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Ipv6Error {
    #[error("packet is shorter than an IPv6 header")]
    Truncated,
    #[error("IP version is not 6")]
    Version,
    #[error("IPv6 payload length is more than the packet, or that of a jumbogram")]
    PayloadLength,
    #[error("an extension header runs past the packet")]
    Extension,
    #[error("extension headers run past the bytes that are looked at")]
    ExtensionsTooLong,
    #[error("more than {EXTENSION_HEADERS_MAX} extension headers")]
    TooManyExtensions,
}

/// What lies behind the extension headers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UpperLayer {
    pub protocol: u8,
    /// From the first byte of the IPv6 header. For a later fragment, this is payload.
    pub offset: usize,
    pub is_fragment: bool,
}

impl Ipv6Header {
    pub const LENGTH: usize = 40;

    /// Checks `bytes`, the first of a packet of `length` bytes.
    #[inline]
    pub fn parse(bytes: &[u8], length: usize) -> Result<Ipv6<'_>, Ipv6Error> {
        let (header, _) = view::<Self>(bytes).ok_or(Ipv6Error::Truncated)?;
        if header.version_class_flow.get() >> 28 != 6 {
            return Err(Ipv6Error::Version);
        }
        let total = usize::from(header.payload_length.get()) + Self::LENGTH;
        let is_jumbogram = header.payload_length.get() == 0 && header.next_header == HOP_BY_HOP;
        if total > length || is_jumbogram {
            return Err(Ipv6Error::PayloadLength);
        }
        Ok(Ipv6 { header, length: total })
    }

    pub const fn new(
        source: Ipv6Addr,
        destination: Ipv6Addr,
        next_header: u8,
        hop_limit: u8,
        payload_length: u16,
    ) -> Self {
        Self {
            version_class_flow: Be32::new(6 << 28),
            payload_length: Be16::new(payload_length),
            next_header,
            hop_limit,
            source: source.octets(),
            destination: destination.octets(),
        }
    }

    /// Counts the hop limit down by one. `false`, and nothing done, when there is no hop left.
    #[inline]
    #[must_use]
    pub const fn hop(&mut self) -> bool {
        if self.hop_limit <= 1 {
            return false;
        }
        self.hop_limit -= 1;
        true
    }

    pub const fn source(&self) -> Ipv6Addr {
        Ipv6Addr::from_octets(self.source)
    }

    pub const fn destination(&self) -> Ipv6Addr {
        Ipv6Addr::from_octets(self.destination)
    }

    /// Source and destination, as they stand in the header.
    pub fn addresses(&self) -> &[u8; 32] {
        bytemuck::bytes_of(self).last_chunk().expect("the header ends with both addresses")
    }

    pub const fn next_header(&self) -> u8 {
        self.next_header
    }

    pub const fn hop_limit(&self) -> u8 {
        self.hop_limit
    }
}

/// Whether a next-header value is that of an extension header, which others may follow.
pub const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// Walks from the fixed header to what it carries. `bytes` start at the IPv6 header and were
/// parsed into `ip`; they may be fewer than the packet.
///
/// A fragment header ends the walk: what follows it in a later fragment is no header.
pub fn upper_layer(bytes: &[u8], ip: &Ipv6<'_>) -> Result<UpperLayer, Ipv6Error> {
    let mut protocol = ip.header.next_header;
    let mut offset = Ipv6Header::LENGTH;
    for _ in 0..=EXTENSION_HEADERS_MAX {
        if !is_extension(protocol) {
            return Ok(UpperLayer { protocol, offset, is_fragment: false });
        }
        if offset + 8 > ip.length {
            return Err(Ipv6Error::Extension);
        }
        let Some(&[next, length]) = bytes.get(offset..).and_then(|rest| rest.first_chunk()) else {
            return Err(Ipv6Error::ExtensionsTooLong);
        };
        let step = match protocol {
            FRAGMENT => 8,
            // Counted in words of 32 bits, less two (RFC 4302, section 2.2).
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        offset += step;
        if offset > ip.length {
            return Err(Ipv6Error::Extension);
        }
        if protocol == FRAGMENT {
            return Ok(UpperLayer { protocol: next, offset, is_fragment: true });
        }
        protocol = next;
    }
    Err(Ipv6Error::TooManyExtensions)
}

/// The link-local address that an interface makes from its MAC (RFC 4291, appendix A).
pub const fn link_local_of(mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let identifier = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let [i, j, k, l, m, n, o, p] = identifier;
    Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, i, j, k, l, m, n, o, p])
}
