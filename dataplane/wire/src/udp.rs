// SPDX-License-Identifier: Apache-2.0
//! UDP (RFC 768).

use crate::{Be16, view};
use bytemuck::{Pod, Zeroable};

#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct UdpHeader {
    source_port: Be16,
    destination_port: Be16,
    length: Be16,
    checksum: Be16,
}

const _: () = assert!(size_of::<UdpHeader>() == UdpHeader::LENGTH);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UdpError {
    #[error("packet is shorter than a UDP header")]
    Truncated,
    #[error("UDP length is less than its header")]
    Length,
}

impl UdpHeader {
    pub const LENGTH: usize = 8;

    /// The header, and the payload as far as it is there. The UDP length is at least that of the
    /// header; whether the packet is so long is for the caller to compare.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(&Self, &[u8]), UdpError> {
        let (header, payload) = view::<Self>(bytes).ok_or(UdpError::Truncated)?;
        if usize::from(header.length.get()) < Self::LENGTH {
            return Err(UdpError::Length);
        }
        Ok((header, payload))
    }

    /// A header without a checksum, which IPv4 allows and VXLAN asks for.
    pub const fn new(source_port: u16, destination_port: u16, length: u16) -> Self {
        Self {
            source_port: Be16::new(source_port),
            destination_port: Be16::new(destination_port),
            length: Be16::new(length),
            checksum: Be16::new(0),
        }
    }

    pub const fn source_port(&self) -> u16 {
        self.source_port.get()
    }

    pub const fn destination_port(&self) -> u16 {
        self.destination_port.get()
    }

    /// Of header and payload.
    pub const fn length(&self) -> u16 {
        self.length.get()
    }

    /// Zero: the sender took none.
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }
}
