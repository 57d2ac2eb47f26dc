// SPDX-License-Identifier: Apache-2.0
//! ICMP (RFC 792) and ICMPv6 (RFC 4443): the part that both share.

use crate::{Be16, checksum, view};
use bytemuck::{Pod, Zeroable};

pub const ICMP_ECHO_REPLY: u8 = 0;
pub const ICMP_ECHO_REQUEST: u8 = 8;
pub const ICMPV6_ECHO_REQUEST: u8 = 128;
pub const ICMPV6_ECHO_REPLY: u8 = 129;

/// Of an echo message; in others, the last four bytes mean something else.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct IcmpHeader {
    kind: u8,
    code: u8,
    checksum: Be16,
    identifier: Be16,
    sequence: Be16,
}

const _: () = assert!(size_of::<IcmpHeader>() == IcmpHeader::LENGTH);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("packet is shorter than an ICMP header")]
pub struct IcmpTruncated;

impl IcmpHeader {
    pub const LENGTH: usize = 8;

    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), IcmpTruncated> {
        view(bytes).ok_or(IcmpTruncated)
    }

    /// A message without its checksum.
    pub const fn new(kind: u8, code: u8, identifier: u16, sequence: u16) -> Self {
        Self {
            kind,
            code,
            checksum: Be16::new(0),
            identifier: Be16::new(identifier),
            sequence: Be16::new(sequence),
        }
    }

    /// The reply to this echo request of either version. The payload stays, so the checksum is updated and a wrong
    /// one stays wrong: the asker sees what the wire did to it.
    #[must_use]
    pub fn echo_reply(&self) -> Self {
        let word = |kind| u16::from_be_bytes([kind, self.code]);
        let kind = Self::reply_to(self.kind);
        let (old, new) = (word(self.kind), word(kind));
        let checksum = Be16::new(checksum::update(self.checksum.get(), old, new));
        Self { kind, checksum, ..*self }
    }

    /// As [`Self::echo_reply`], of either version, for a message whose checksum is not taken yet.
    #[must_use]
    pub const fn echo_reply_unsummed(mut self) -> Self {
        self.kind = Self::reply_to(self.kind);
        self
    }

    const fn reply_to(kind: u8) -> u8 {
        if kind == ICMPV6_ECHO_REQUEST { ICMPV6_ECHO_REPLY } else { ICMP_ECHO_REPLY }
    }

    /// The header with the checksum of its message.
    #[must_use]
    pub const fn with_checksum(mut self, checksum: u16) -> Self {
        self.checksum = Be16::new(checksum);
        self
    }

    /// The message's type; `type` is a word of Rust's.
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    pub const fn code(&self) -> u8 {
        self.code
    }

    pub const fn identifier(&self) -> u16 {
        self.identifier.get()
    }

    pub const fn sequence(&self) -> u16 {
        self.sequence.get()
    }
}
