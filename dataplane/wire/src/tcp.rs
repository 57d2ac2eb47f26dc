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

    /// Means something when [`Self::ACK`] is set.
    pub const fn acknowledgment(&self) -> u32 {
        self.acknowledgment.get()
    }

    /// As it stands there, not scaled.
    pub const fn window(&self) -> u16 {
        self.window.get()
    }

    /// The same header with another acknowledgment and window, for tests and generators.
    #[must_use]
    pub const fn acknowledging(mut self, acknowledgment: u32, window: u16) -> Self {
        self.acknowledgment = Be32::new(acknowledgment);
        self.window = Be16::new(window);
        self
    }

    pub const fn flags(&self) -> u8 {
        self.flags
    }

    /// With options, in bytes.
    pub const fn header_length(&self) -> usize {
        (self.data_offset >> 4) as usize * 4
    }
}

/// The shift that a SYN announces for the windows that follow it (RFC 7323, section 2.2): at most
/// 14, `None` without the option. `options` are those of the header, as far as they are there.
pub fn window_scale(mut options: &[u8]) -> Option<u8> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const WINDOW_SCALE: u8 = 3;
    const SHIFT_MAX: u8 = 14;
    loop {
        options = match *options {
            [] | [END, ..] => return None,
            [NOTHING, ref rest @ ..] => rest,
            [WINDOW_SCALE, 3, shift, ..] => return Some(shift.min(SHIFT_MAX)),
            [_, length, ..] if length >= 2 => options.get(usize::from(length)..)?,
            _ => return None,
        };
    }
}

/// Where the greatest segment that a SYN announces stands (RFC 9293, section 3.7.1): the place of
/// its two bytes among `options`, `None` without the option.
pub fn segment_size_place(options: &[u8]) -> Option<usize> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const SEGMENT_SIZE: u8 = 2;
    let mut at = 0;
    loop {
        at += match *options.get(at..)? {
            [] | [END, ..] => return None,
            [NOTHING, ..] => 1,
            [SEGMENT_SIZE, 4, _, _, ..] => return Some(at + 2),
            [_, length, ..] if length >= 2 => usize::from(length),
            _ => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_found_among_other_options() {
        assert_eq!(window_scale(&[2, 4, 5, 0xb4, 1, 3, 3, 7]), Some(7));
        assert_eq!(window_scale(&[3, 3, 200]), Some(14), "a greater shift counts as 14");
        assert_eq!(window_scale(&[2, 4, 5, 0xb4, 0, 3, 3, 7]), None, "nothing follows the end");
        assert_eq!(window_scale(&[4, 2, 1, 1, 1]), None);
    }

    #[test]
    fn the_segment_size_is_found_among_other_options() {
        assert_eq!(segment_size_place(&[2, 4, 5, 0xb4]), Some(2));
        assert_eq!(segment_size_place(&[1, 3, 3, 7, 2, 4, 5, 0xb4]), Some(6));
        assert_eq!(segment_size_place(&[0, 2, 4, 5, 0xb4]), None, "nothing follows the end");
        for options in [&[2, 4, 5][..], &[2], &[2, 3, 1], &[8, 1, 2, 4, 5, 6], &[8, 9], &[]] {
            assert_eq!(segment_size_place(options), None, "{options:?}");
        }
    }

    #[test]
    fn options_that_break_their_rules_end_the_search() {
        for options in
            [&[3, 3][..], &[3], &[3, 4, 7, 0], &[8, 0, 3, 3, 7], &[8, 1, 3, 3, 7], &[8, 9]]
        {
            assert_eq!(window_scale(options), None, "{options:?}");
        }
    }
}
