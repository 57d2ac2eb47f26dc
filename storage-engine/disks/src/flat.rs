// SPDX-License-Identifier: Apache-2.0
//! A disk in one piece of memory, without faults: for measuring what stands on a disk.
//!
//! A request costs one copy. Memory is taken from the system where it is first written, and given
//! back only with the disk.

use plinth_store::{Disk, DiskCompletion, DiskError, DiskGeometry, DiskRequest, DiskTag};

/// What offsets and lengths are multiples of.
const SECTOR: u32 = 512;

/// Requests that may wait for `complete`.
const DEPTH: usize = 1024;

#[derive(Debug)]
pub struct FlatDisk {
    /// Words, not bytes: only of numbers does the system give fresh zeros without touching them.
    words: Vec<u64>,
    ended: Vec<DiskCompletion>,
}

impl FlatDisk {
    /// A disk of `length` bytes, rounded down to whole sectors.
    pub fn new(length: u64) -> Self {
        let length = length - length % u64::from(SECTOR);
        let words = usize::try_from(length / 8).unwrap_or(usize::MAX);
        Self { words: vec![0; words], ended: Vec::with_capacity(DEPTH) }
    }

    fn length(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    /// The place of a request's bytes, when they are whole sectors of the disk.
    fn range(&self, offset: u64, length: u64) -> Result<std::ops::Range<usize>, DiskError> {
        let end = offset.saturating_add(length);
        let sector = u64::from(SECTOR);
        if end > self.length() || !offset.is_multiple_of(sector) || !length.is_multiple_of(sector) {
            return Err(DiskError::OutOfRange { offset, end });
        }
        let place = |at: u64| usize::try_from(at).expect("it is inside a slice");
        Ok(place(offset)..place(end))
    }

    fn carry_out(&mut self, request: &mut DiskRequest) -> Result<(), DiskError> {
        match request {
            DiskRequest::Read { offset, buffer } => {
                let range = self.range(*offset, buffer.length() as u64)?;
                let bytes: &[u8] = bytemuck::cast_slice(&self.words);
                buffer.as_bytes_mut().copy_from_slice(&bytes[range]);
            }
            DiskRequest::Write { offset, buffer } => {
                let range = self.range(*offset, buffer.length() as u64)?;
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words);
                bytes[range].copy_from_slice(buffer.as_bytes());
            }
            // A hint: the bytes stay as they are.
            DiskRequest::Discard { offset, length } => {
                self.range(*offset, *length)?;
            }
            DiskRequest::Flush => {}
        }
        Ok(())
    }
}

impl Disk for FlatDisk {
    fn geometry(&self) -> DiskGeometry {
        DiskGeometry {
            length: self.length(),
            sector_size: SECTOR,
            atomic_write_size: SECTOR,
            has_discard: false,
        }
    }

    fn enqueue(&mut self, tag: DiskTag, mut request: DiskRequest) -> Result<(), DiskRequest> {
        if self.ended.len() == DEPTH {
            return Err(request);
        }
        let result = self.carry_out(&mut request);
        let buffer = match request {
            DiskRequest::Read { buffer, .. } | DiskRequest::Write { buffer, .. } => Some(buffer),
            DiskRequest::Flush | DiskRequest::Discard { .. } => None,
        };
        self.ended.push(DiskCompletion { tag, buffer, result });
        Ok(())
    }

    fn submit(&mut self) {}

    fn complete(&mut self, into: &mut Vec<DiskCompletion>) {
        into.append(&mut self.ended);
    }
}
