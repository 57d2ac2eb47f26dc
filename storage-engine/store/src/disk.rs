// SPDX-License-Identifier: Apache-2.0
//! What a store needs of a disk.
//!
//! ```text
//!   enqueue(tag, request) ──▶ queue ── submit ──▶ device ──▶ complete ──▶ (tag, buffer, result)
//! ```
//!
//! The laws every driver keeps:
//! - Nothing blocks. A request that does not fit is given back by `enqueue`.
//! - The disk owns the buffer from `enqueue` until the completion; every accepted request
//!   completes exactly once, and a request with a buffer gives that same buffer back.
//! - Requests complete in any order, and requests that overlap and are in flight together may
//!   take effect in any order. Who needs an order waits for the completion.
//! - A write is durable once a [`DiskRequest::Flush`] that was enqueued after the write's
//!   completion has completed, or when it completes where the pool says its devices'
//!   caches survive power loss. Until then any part of it may be lost, sector by sector.
//! - A discard is a hint: the range may read as anything until it is written again.

use crate::buffer::IoBuffer;

/// The caller's name for a request. It comes back with the completion.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct DiskTag(pub u64);

/// What a disk is like. Constant for as long as it is open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DiskGeometry {
    /// Bytes, a multiple of the sector size.
    pub length: u64,
    /// Offsets and lengths of requests are multiples of this. 512 or 4096.
    pub sector_size: u32,
    /// A write of this many bytes, aligned to it, is never half done after a power cut.
    /// The sector size where nothing better is known.
    pub atomic_write_size: u32,
    /// Whether [`DiskRequest::Discard`] does anything.
    pub has_discard: bool,
}

/// One request. Offsets are bytes from the start of the disk, aligned to sectors.
#[derive(Debug)]
pub enum DiskRequest {
    /// Fills the buffer's bytes in use from `offset`.
    Read { offset: u64, buffer: IoBuffer },
    /// Writes the buffer's bytes in use at `offset`.
    Write { offset: u64, buffer: IoBuffer },
    /// Makes durable every write that had completed when this was enqueued.
    Flush,
    /// Says that the bytes are of no use any more.
    Discard { offset: u64, length: u64 },
}

/// Why a request failed. The request may have been carried out in part.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DiskError {
    /// What the operating system said.
    #[error("the device failed with errno {errno}")]
    Device { errno: i32 },
    /// Fewer bytes than asked for were moved.
    #[error("the device moved {moved} of {wanted} bytes")]
    Short { moved: u32, wanted: u32 },
    /// The request is past the end of the disk or not aligned to its sectors.
    #[error("bytes {offset} to {end} are not whole sectors of the disk")]
    OutOfRange { offset: u64, end: u64 },
    /// The disk is gone.
    #[error("the device is gone")]
    Gone,
    /// Nothing that was under way ended in this time; the disk was given up.
    #[error(
        "the device has not answered for {millis} ms and was given up: look at its cables, its driver's log, its file system"
    )]
    Hung { millis: u64 },
}

/// The end of one request.
#[derive(Debug)]
pub struct DiskCompletion {
    pub tag: DiskTag,
    /// The buffer of a read or write, also when it failed.
    pub buffer: Option<IoBuffer>,
    pub result: Result<(), DiskError>,
}

/// A disk, seen from the store that owns it.
pub trait Disk {
    fn geometry(&self) -> DiskGeometry;

    /// Takes a request. It may start at once, and need not before [`Disk::submit`].
    ///
    /// # Errors
    /// Gives the request back when the queue is full: try again after some completions.
    fn enqueue(&mut self, tag: DiskTag, request: DiskRequest) -> Result<(), DiskRequest>;

    /// Starts everything that was enqueued: one system call for a batch, where it takes one.
    fn submit(&mut self);

    /// Appends what has completed, all of it or a portion: only when nothing was appended there is
    /// no more. Never waits. A queue that was full has room afterwards if anything was appended.
    fn complete(&mut self, into: &mut Vec<DiskCompletion>);

    /// Whether [`Disk::view`] may give anything: the disk is memory of this process.
    fn lends(&self) -> bool {
        false
    }

    /// The bytes themselves, as the writes left them that have completed. `None` where they can
    /// only be read by a request.
    fn view(&self, _offset: u64, _length: usize) -> Option<&[u8]> {
        None
    }

    /// Says that these bytes will be viewed soon, and none that were expected before.
    fn expect(&mut self, _offset: u64, _length: usize) {}

    /// Has the processor fetch the next few lines of what is expected. To be called now and then
    /// while something else is done: asked for all at once, lines wait for each other.
    fn fetch(&mut self) {}

    /// So many bytes were viewed for a reader: for disks that count.
    fn note_view(&mut self, _length: usize) {}
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn geometry(&self) -> DiskGeometry {
        (**self).geometry()
    }

    fn enqueue(&mut self, tag: DiskTag, request: DiskRequest) -> Result<(), DiskRequest> {
        (**self).enqueue(tag, request)
    }

    fn submit(&mut self) {
        (**self).submit();
    }

    fn complete(&mut self, into: &mut Vec<DiskCompletion>) {
        (**self).complete(into);
    }

    fn lends(&self) -> bool {
        (**self).lends()
    }

    fn view(&self, offset: u64, length: usize) -> Option<&[u8]> {
        (**self).view(offset, length)
    }

    fn expect(&mut self, offset: u64, length: usize) {
        (**self).expect(offset, length);
    }

    fn fetch(&mut self) {
        (**self).fetch();
    }

    fn note_view(&mut self, length: usize) {
        (**self).note_view(length);
    }
}

impl<D: Disk + ?Sized> Disk for &mut D {
    fn geometry(&self) -> DiskGeometry {
        (**self).geometry()
    }

    fn enqueue(&mut self, tag: DiskTag, request: DiskRequest) -> Result<(), DiskRequest> {
        (**self).enqueue(tag, request)
    }

    fn submit(&mut self) {
        (**self).submit();
    }

    fn complete(&mut self, into: &mut Vec<DiskCompletion>) {
        (**self).complete(into);
    }

    fn lends(&self) -> bool {
        (**self).lends()
    }

    fn view(&self, offset: u64, length: usize) -> Option<&[u8]> {
        (**self).view(offset, length)
    }

    fn expect(&mut self, offset: u64, length: usize) {
        (**self).expect(offset, length);
    }

    fn fetch(&mut self) {
        (**self).fetch();
    }

    fn note_view(&mut self, length: usize) {
        (**self).note_view(length);
    }
}
