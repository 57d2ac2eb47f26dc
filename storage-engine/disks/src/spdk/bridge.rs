// SPDX-License-Identifier: Apache-2.0
//! The worker's half: batches over to the device's thread, ends back.

use crossbeam_channel::{Receiver, Sender, bounded};
use plinth_store::{Disk, DiskCompletion, DiskError, DiskGeometry, DiskRequest, DiskTag, IoBuffer};

/// What becomes of a write that the device has confirmed when the power goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WriteCache {
    /// It survives: the device has no write cache, or one with a power supply of its own.
    Protected,
    /// It may be lost until a flush, which cannot be asked for.
    Volatile,
}

/// Why a device is not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SpdkDiskError {
    #[error(
        "the device's write cache may lose what it has confirmed, and no flush can be sent to it: \
         use a device with power-loss protection, switch the cache off, or open the device \
         through io_uring"
    )]
    VolatileCache,
    #[error("the device has blocks of {size} bytes; 512 and 4096 can be used")]
    BlockSize { size: u32 },
    #[error("the device cannot be opened by SPDK under this name")]
    Open,
    #[error("SPDK does not answer: its application has not been started, or has ended")]
    Gone,
}

/// What the device is like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LowerGeometry {
    /// Bytes.
    pub block_size: u32,
    pub block_count: u64,
}

/// The device's half of the bridge: SPDK's, or a fake.
pub trait Lower {
    /// Starts jobs on the device's own thread. Each is ended once, by [`Job::end`] or by being
    /// dropped, which is an end with [`DiskError::Gone`].
    fn start(&mut self, jobs: Vec<Job>);
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum JobKind {
    Read,
    Write,
}

/// One request on its way through the device.
#[derive(Debug)]
pub struct Job {
    kind: JobKind,
    offset: u64,
    tag: DiskTag,
    buffer: Option<IoBuffer>,
    ends: Sender<DiskCompletion>,
}

impl Job {
    pub const fn kind(&self) -> JobKind {
        self.kind
    }

    /// Byte of the device, a multiple of its block size.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// What is written.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], IoBuffer::as_bytes)
    }

    /// Where what was read goes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], IoBuffer::as_bytes_mut)
    }

    /// Gives the request back to the worker.
    pub fn end(mut self, result: Result<(), DiskError>) {
        self.give_back(result);
    }

    fn give_back(&mut self, result: Result<(), DiskError>) {
        if let Some(buffer) = self.buffer.take() {
            // The channel has room for all that may be under way; without a worker nobody waits.
            let _ =
                self.ends.try_send(DiskCompletion { tag: self.tag, buffer: Some(buffer), result });
        }
    }
}

impl Drop for Job {
    /// A device whose thread ends loses no request: its buffer goes back with an error.
    fn drop(&mut self) {
        self.give_back(Err(DiskError::Gone));
    }
}

/// A device on another thread as a disk.
#[derive(Debug)]
pub struct BridgeDisk<L> {
    lower: L,
    geometry: DiskGeometry,
    depth: usize,
    batch: Vec<Job>,
    /// Flushes and discards, which end here.
    ended: Vec<DiskCompletion>,
    in_flight: usize,
    ends: Receiver<DiskCompletion>,
    sender: Sender<DiskCompletion>,
}

impl<L: Lower> BridgeDisk<L> {
    /// A disk with at most `depth` requests under way.
    ///
    /// # Errors
    /// `VolatileCache` and `BlockSize`.
    pub fn new(
        lower: L,
        facts: LowerGeometry,
        cache: WriteCache,
        depth: usize,
    ) -> Result<Self, SpdkDiskError> {
        let size = facts.block_size;
        if cache == WriteCache::Volatile {
            return Err(SpdkDiskError::VolatileCache);
        }
        if size != 512 && size != 4096 {
            return Err(SpdkDiskError::BlockSize { size });
        }
        let depth = depth.max(1);
        let (sender, ends) = bounded(depth);
        let geometry = DiskGeometry {
            length: facts.block_count.saturating_mul(u64::from(size)),
            sector_size: size,
            // A device promises its block and nothing that SPDK could tell us beyond it.
            atomic_write_size: size,
            has_discard: false,
        };
        let (batch, ended) = (Vec::with_capacity(depth), Vec::new());
        Ok(Self { lower, geometry, depth, batch, ended, in_flight: 0, ends, sender })
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let end = offset.saturating_add(length);
        let sector = u64::from(self.geometry.sector_size);
        let is_whole = offset.is_multiple_of(sector) && length.is_multiple_of(sector);
        if is_whole && end <= self.geometry.length {
            Ok(())
        } else {
            Err(DiskError::OutOfRange { offset, end })
        }
    }

    fn take(&mut self, tag: DiskTag, kind: JobKind, offset: u64, buffer: IoBuffer) {
        self.in_flight += 1;
        match self.check(offset, buffer.length() as u64) {
            Ok(()) => {
                let (buffer, ends) = (Some(buffer), self.sender.clone());
                self.batch.push(Job { kind, offset, tag, buffer, ends });
            }
            Err(error) => {
                let (buffer, result) = (Some(buffer), Err(error));
                self.ended.push(DiskCompletion { tag, buffer, result });
            }
        }
    }
}

impl<L: Lower> Disk for BridgeDisk<L> {
    fn geometry(&self) -> DiskGeometry {
        self.geometry
    }

    fn enqueue(&mut self, tag: DiskTag, request: DiskRequest) -> Result<(), DiskRequest> {
        if self.in_flight == self.depth {
            return Err(request);
        }
        match request {
            DiskRequest::Read { offset, buffer } => self.take(tag, JobKind::Read, offset, buffer),
            DiskRequest::Write { offset, buffer } => self.take(tag, JobKind::Write, offset, buffer),
            // What the device has confirmed is durable, or the disk would not have been opened.
            DiskRequest::Flush => {
                self.in_flight += 1;
                self.ended.push(DiskCompletion { tag, buffer: None, result: Ok(()) });
            }
            DiskRequest::Discard { offset, length } => {
                self.in_flight += 1;
                let result = self.check(offset, length);
                self.ended.push(DiskCompletion { tag, buffer: None, result });
            }
        }
        Ok(())
    }

    fn submit(&mut self) {
        if !self.batch.is_empty() {
            let next = Vec::with_capacity(self.depth);
            self.lower.start(std::mem::replace(&mut self.batch, next));
        }
    }

    fn complete(&mut self, into: &mut Vec<DiskCompletion>) {
        let before = into.len();
        into.append(&mut self.ended);
        // Until the channel is empty; its sender is also here, so it is never cut off.
        while let Ok(end) = self.ends.try_recv() {
            into.push(end);
        }
        self.in_flight -= into.len() - before;
    }
}
