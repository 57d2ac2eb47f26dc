// SPDX-License-Identifier: Apache-2.0
//! What a chain asks for (virtio 1.2, section 5.2.6).
//!
//! ```text
//!   readable:  type u32, reserved u32, sector u64 | data of a write, or ranges
//!   writable:  data of a read                     | status u8, the very last byte
//! ```

use super::class::{DISCARD_SECTORS_MAX, REQUEST_BYTES_MAX};
use super::{BlkOperation, SECTOR_SIZE};
use plinth_guest_memory::{GuestAddress, GuestMemory};
use plinth_virtio::{Chain, copy_out};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// Bytes before the data of a write.
pub(crate) const HEADER: usize = 16;

/// A range of a discard: sector u64, count u32, flags u32.
const RANGE: usize = 16;

/// What to do about a chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Parsed {
    /// The caller's.
    Operation(BlkOperation),
    /// Answered here: the disk's name goes into the data.
    Identify,
    /// Answered here with an I/O error.
    Refused,
    /// Answered here: we do not know such a request.
    Unsupported,
}

/// Where the status goes: the last writable byte. `None` when nothing is writable.
pub(crate) fn status_address(chain: &Chain) -> Option<GuestAddress> {
    let last = chain.writable().last()?;
    // The segment is not empty and was found to be memory, so its last byte has an address.
    Some(GuestAddress(last.address.0 + u64::from(last.length) - 1))
}

/// The disk, as far as requests are judged by it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) capacity: u64,
    pub(crate) is_read_only: bool,
}

impl Limits {
    fn has(self, sector: u64, sectors: u64) -> bool {
        sector.checked_add(sectors).is_some_and(|end| end <= self.capacity)
    }
}

/// Judges a chain that has a status byte.
pub(crate) fn parse(memory: &GuestMemory, chain: &Chain, limits: Limits) -> Parsed {
    let mut header = [0; HEADER];
    let is_whole = copy_out(memory, chain.readable(), 0, &mut header);
    if is_whole != Ok(true) {
        return Parsed::Refused;
    }
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let sector = word_64(&header[8..]);
    let read_length = chain.writable_bytes() - 1;
    let written_length = chain.readable_bytes() - 16;
    match kind {
        VIRTIO_BLK_T_IN if written_length == 0 && fits(limits, sector, read_length) => {
            Parsed::Operation(BlkOperation::Read { sector, length: read_length })
        }
        VIRTIO_BLK_T_OUT if !limits.is_read_only && fits(limits, sector, written_length) => {
            Parsed::Operation(BlkOperation::Write { sector, length: written_length })
        }
        VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => Parsed::Refused,
        VIRTIO_BLK_T_FLUSH => Parsed::Operation(BlkOperation::Flush),
        VIRTIO_BLK_T_GET_ID => Parsed::Identify,
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            parse_range(memory, chain, limits, kind == VIRTIO_BLK_T_WRITE_ZEROES)
        }
        _ => Parsed::Unsupported,
    }
}

/// Whether data of whole sectors, not none and not too many, lies on the disk.
fn fits(limits: Limits, sector: u64, length: u32) -> bool {
    let (length, most) = (u64::from(length), u64::from(REQUEST_BYTES_MAX));
    length > 0
        && length <= most
        && length.is_multiple_of(SECTOR_SIZE)
        && limits.has(sector, length / SECTOR_SIZE)
}

fn parse_range(memory: &GuestMemory, chain: &Chain, limits: Limits, is_zeroing: bool) -> Parsed {
    let mut range = [0; RANGE];
    let is_single = chain.readable_bytes() as usize == HEADER + RANGE;
    let is_whole = copy_out(memory, chain.readable(), HEADER, &mut range);
    if limits.is_read_only || !is_single || is_whole != Ok(true) {
        return Parsed::Refused;
    }
    let sector = word_64(&range);
    let sectors = u32::from_le_bytes([range[8], range[9], range[10], range[11]]);
    let flags = u32::from_le_bytes([range[12], range[13], range[14], range[15]]);
    let known_flags = if is_zeroing { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
    if flags & !known_flags != 0 {
        return Parsed::Unsupported;
    }
    if sectors == 0 || sectors > DISCARD_SECTORS_MAX || !limits.has(sector, u64::from(sectors)) {
        return Parsed::Refused;
    }
    let may_unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    Parsed::Operation(if is_zeroing {
        BlkOperation::WriteZeroes { sector, sectors, may_unmap }
    } else {
        BlkOperation::Discard { sector, sectors }
    })
}

/// The first 8 bytes of `bytes` as a number.
fn word_64(bytes: &[u8]) -> u64 {
    let word = bytes.first_chunk().expect("callers pass 8 bytes or more");
    u64::from_le_bytes(*word)
}
