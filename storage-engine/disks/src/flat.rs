// SPDX-License-Identifier: Apache-2.0
//! A disk in one piece of memory, without faults: for measuring what stands on a disk.
//!
//! A request costs one copy. Memory is taken from the system where it is first written, and given
//! back only with the disk.
//!
//! A queued request is carried out by `complete`: between the two the processor fetches the first
//! line of what will be read, so that a batch hides the way to cold memory.
//!
//! A reader that can do without a buffer of its own looks at the memory itself (`view`), and
//! has the lines fetched that it will look at next (`expect`, `fetch`).

use plinth_bulk::Region;
use plinth_store::{Disk, DiskCompletion, DiskError, DiskGeometry, DiskRequest, DiskTag};
use std::io;
use std::ops::Range;

/// What offsets and lengths are multiples of.
const SECTOR: u32 = 512;

/// Nothing of this disk survives a power cut, so that nothing is ever half there.
const ATOMIC: u32 = 4096;

/// Requests that may wait for `complete`.
const DEPTH: usize = 1024;

/// Bytes that one `fetch` asks for: eleven lines, so that the six calls that a read of 4 KiB has
/// room for ask for all of it. Memory gives a line in 4 to 5 ns at best: many more at once would
/// wait for each other, and be dropped. See `perf/store-tries.md`.
const FETCH: usize = 704;

#[derive(Debug)]
pub struct FlatDisk {
    region: Region,
    atomic_write_size: u32,
    /// What of the expected bytes has not been asked for yet.
    ahead: Range<usize>,
    queue: Vec<(DiskTag, DiskRequest)>,
}

impl FlatDisk {
    /// A disk of `length` bytes, rounded down to whole sectors.
    ///
    /// # Errors
    /// What the system says when there is no room for it.
    pub fn open(length: u64) -> io::Result<Self> {
        let length = length - length % u64::from(SECTOR);
        let region = Region::new(usize::try_from(length).unwrap_or(usize::MAX))?;
        let queue = Vec::with_capacity(DEPTH);
        Ok(Self { region, atomic_write_size: ATOMIC, ahead: 0..0, queue })
    }

    /// As [`FlatDisk::open`], for tests and tools.
    ///
    /// # Panics
    /// When the system has no room for it.
    pub fn new(length: u64) -> Self {
        Self::open(length).expect("the system has room for the disk")
    }

    /// Says to the store above that the disk tears larger writes: for measuring what that costs.
    pub fn set_atomic_write_size(&mut self, size: u32) {
        self.atomic_write_size = size.max(SECTOR);
    }

    fn length(&self) -> u64 {
        self.region.length() as u64
    }

    /// The place of a request's bytes, when they are whole sectors of the disk.
    fn place(&self, offset: u64, length: u64) -> Result<usize, DiskError> {
        let end = offset.saturating_add(length);
        let sector = u64::from(SECTOR);
        if end > self.length() || !offset.is_multiple_of(sector) || !length.is_multiple_of(sector) {
            return Err(DiskError::OutOfRange { offset, end });
        }
        Ok(usize::try_from(offset).expect("it is inside a region"))
    }

    fn carry_out(&mut self, request: &mut DiskRequest) -> Result<(), DiskError> {
        match request {
            DiskRequest::Read { offset, buffer } => {
                let place = self.place(*offset, buffer.length() as u64)?;
                self.region.copy_out(place, buffer.as_bytes_mut());
            }
            DiskRequest::Write { offset, buffer } => {
                let place = self.place(*offset, buffer.length() as u64)?;
                self.region.copy_in(place, buffer.as_bytes());
            }
            // A hint: the bytes stay as they are.
            DiskRequest::Discard { offset, length } => {
                self.place(*offset, *length)?;
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
            atomic_write_size: self.atomic_write_size,
            has_discard: false,
        }
    }

    #[inline]
    fn enqueue(&mut self, tag: DiskTag, request: DiskRequest) -> Result<(), DiskRequest> {
        if self.queue.len() == DEPTH {
            return Err(request);
        }
        if let DiskRequest::Read { offset, .. } = &request {
            self.region.prefetch(usize::try_from(*offset).unwrap_or(usize::MAX));
        }
        self.queue.push((tag, request));
        Ok(())
    }

    fn submit(&mut self) {}

    fn complete(&mut self, into: &mut Vec<DiskCompletion>) {
        let mut queue = std::mem::take(&mut self.queue);
        for (tag, mut request) in queue.drain(..) {
            let result = self.carry_out(&mut request);
            let buffer = match request {
                DiskRequest::Read { buffer, .. } | DiskRequest::Write { buffer, .. } => {
                    Some(buffer)
                }
                DiskRequest::Flush | DiskRequest::Discard { .. } => None,
            };
            into.push(DiskCompletion { tag, buffer, result });
        }
        self.queue = queue;
    }

    #[inline]
    fn lends(&self) -> bool {
        true
    }

    #[inline]
    fn view(&self, offset: u64, length: usize) -> Option<&[u8]> {
        self.region.bytes(usize::try_from(offset).ok()?, length)
    }

    #[inline]
    fn expect(&mut self, offset: u64, length: usize) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        self.ahead = start..start.saturating_add(length);
    }

    #[inline]
    fn fetch(&mut self) {
        let end = self.ahead.start.saturating_add(FETCH).min(self.ahead.end);
        self.region.prefetch_range(self.ahead.start..end);
        self.ahead.start = end;
    }
}
