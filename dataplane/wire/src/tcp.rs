// SPDX-License-Identifier: Apache-2.0
//! TCP (RFC 9293): what a switch reads of it.

use crate::{Be16, Be32, view};
use bytemuck::{Pod, Zeroable};

/// The fixed part; options follow it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct TcpHeader {
    source_port: Be16,
    destination_port: Be16,
    sequence: Be32,
    acknowledgment: Be32,
    /// In words of 32 bits, in the upper four bits.
    data_offset: u8,
    flags: u8,
    window: Be16,
    checksum: Be16,
    urgent: Be16,
}

const _: () = assert!(size_of::<TcpHeader>() == TcpHeader::LENGTH);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TcpError {
    #[error("packet is shorter than a TCP header")]
    Truncated,
    #[error("TCP data offset is less than its header")]
    DataOffset,
}

impl TcpHeader {
    /// Without options.
    pub const LENGTH: usize = 20;
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;

    /// The header. Its options may lie past `bytes`.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<&Self, TcpError> {
        let (header, _) = view::<Self>(bytes).ok_or(TcpError::Truncated)?;
        if header.header_length() < Self::LENGTH {
            return Err(TcpError::DataOffset);
        }
        Ok(header)
    }

    /// A header without options or checksum, for tests and generators.
    pub const fn new(source_port: u16, destination_port: u16, sequence: u32, flags: u8) -> Self {
        Self {
            source_port: Be16::new(source_port),
            destination_port: Be16::new(destination_port),
            sequence: Be32::new(sequence),
            acknowledgment: Be32::new(0),
            data_offset: 5 << 4,
            flags,
            window: Be16::new(u16::MAX),
            checksum: Be16::new(0),
            urgent: Be16::new(0),
        }
    }

    pub const fn source_port(&self) -> u16 {
        self.source_port.get()
    }

    pub const fn destination_port(&self) -> u16 {
        self.destination_port.get()
    }

    pub const fn sequence(&self) -> u32 {
        self.sequence.get()
    }

    pub const fn flags(&self) -> u8 {
        self.flags
    }

    /// With options, in bytes.
    pub const fn header_length(&self) -> usize {
        (self.data_offset >> 4) as usize * 4
    }
}
