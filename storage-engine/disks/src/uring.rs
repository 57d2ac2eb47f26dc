// SPDX-License-Identifier: Apache-2.0
//! A file or block device as a [`Disk`], through io_uring and past the page cache.
//!
//! A disk may be sent to another thread while nothing is in flight, so that what blocks (opening,
//! mounting, unmounting) can be done off the worker's thread.

use plinth_store::{
    Block, Disk, DiskCompletion, DiskError, DiskGeometry, DiskRequest, DiskTag, IoBuffer,
};
use plinth_uring::{
    Access, Batch, Completion, DirectFile, FileKind, Operation, OperationError, Options, Ring,
};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use plinth_uring::{Mode, OpenError, SetupError};

/// Operations under way on one disk, unless said otherwise: more than devices gain from.
pub const DEPTH: u32 = 512;

/// When a disk is busy, requests and ends are handed over in portions so small. The device works on
/// the first of a burst while the others are being made, and a guest gets its first answers,
/// and asks for more, while the others are being checked. With a burst as one portion the device
/// of a virtual machine stood still for a third of the time at depth 32: 57 k reads/s in one
/// portion, 68 k by 8, 78 k by 4, 74 k by 2; fio alone 80 k (perf/store-tries.md).
const PORTION: Batch = Batch { operations: 4, bytes: 128 << 10 };

/// The portion while the device has nothing of ours: what makes it work again is not kept for
/// company. At depth 32 0.97 of fio's reads instead of 0.93, medians of six runs each.
const FIRST: Batch = Batch { operations: 1, ..PORTION };

/// The most bytes of one request: a whole object and then some.
const REQUEST_LENGTH_MAX: usize = 1 << 30;

const NOTHING: Batch = Batch { operations: 0, bytes: 0 };

/// Why a disk is not opened.
#[derive(Debug, thiserror::Error)]
pub enum UringDiskError {
    #[error("the disk cannot be opened")]
    Open(#[from] OpenError),
    #[error("no io_uring for the disk")]
    Setup(#[from] SetupError),
    #[error("{path:?} has sectors of {sector} bytes; 512 to 4096 can be used")]
    Sector { path: PathBuf, sector: u32 },
    #[error("the system has no room for a disk of {length} bytes in memory")]
    Memory { length: u64, source: std::io::Error },
}

/// A disk of which this process is the only owner.
#[derive(Debug)]
pub struct UringDisk {
    ring: Ring<Block>,
    geometry: DiskGeometry,
    /// Reused by every `complete`.
    reaped: Vec<Completion<Block>>,
    /// Ends that did not come from the ring: requests refused for their range, or lost with it.
    ended: Vec<DiskCompletion>,
    is_gone: bool,
    /// Whether the kernel was called since the last `complete`.
    was_called: bool,
    /// How long the device may end nothing of what is under way before it is given up.
    patience: Option<Duration>,
    /// Since when nothing has ended, while there is a patience.
    silent_since: Option<Instant>,
    /// What was queued since the kernel was last called.
    queued: Batch,
}

impl UringDisk {
    /// Opens and locks a file or block device that exists.
    pub fn open(path: &Path, mode: Mode, depth: u32) -> Result<Self, UringDiskError> {
        let file = DirectFile::open(path, Access::ReadWrite)?;
        let facts = file.geometry();
        let sector_size = facts.logical_sector.max(512);
        if !sector_size.is_power_of_two() || sector_size > 4096 {
            return Err(UringDiskError::Sector { path: path.into(), sector: sector_size });
        }
        let geometry = DiskGeometry {
            length: facts.size - facts.size % u64::from(sector_size),
            sector_size,
            atomic_write_size: facts.atomic_write.max(sector_size),
            has_discard: match file.kind() {
                FileKind::Regular => true,
                FileKind::BlockDevice => facts.has_discard,
            },
        };
        let ring = Ring::new(file, Options { depth, mode })?;
        Ok(Self {
            ring,
            geometry,
            reaped: Vec::new(),
            ended: Vec::new(),
            is_gone: false,
            was_called: false,
            patience: None,
            silent_since: None,
            queued: NOTHING,
        })
    }

    /// Says what the device never tears, where it is known better than the device tells. 512 for
    /// one whose physical block is a lie.
    pub fn set_atomic_write_size(&mut self, size: u32) {
        self.geometry.atomic_write_size = size.max(self.geometry.sector_size);
    }

    /// Gives the device up once nothing of what is under way has ended for so long: everything
    /// then ends with [`DiskError::Hung`], and later requests with [`DiskError::Gone`]. `None`,
    /// as it is in the beginning, waits for ever: a device in service may take its time, but who
    /// mounts and unmounts polls until there is an end, and must come to one.
    pub fn set_patience(&mut self, patience: Option<Duration>) {
        self.patience = patience;
        self.silent_since = None;
    }

    /// Looks whether the patience has come to its end.
    fn watch(&mut self, patience: Duration, has_ended: bool) {
        if has_ended || self.ring.in_flight() == 0 {
            self.silent_since = None;
            return;
        }
        let now = Instant::now();
        let since = *self.silent_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= patience {
            let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
            self.lose_as(DiskError::Hung { millis });
        }
    }

    /// Sleeps until something can be completed or `timeout` has passed. For tools that have
    /// nothing else to do; a worker sleeps on [`AsFd`].
    pub fn wait(&mut self, timeout: Duration) {
        if self.ended.is_empty() && self.ring.wait(timeout).is_err() {
            self.lose();
        }
    }

    /// How often the kernel was called for requests.
    pub const fn system_calls(&self) -> u64 {
        self.ring.system_calls()
    }

    /// Requests accepted and not yet completed.
    pub fn in_flight(&self) -> usize {
        self.ring.in_flight() + self.ended.len()
    }

    /// The ring failed for good: everything under way ends with [`DiskError::Gone`]. The kernel
    /// may still have the buffers, so others go back in their place.
    fn lose(&mut self) {
        self.lose_as(DiskError::Gone);
    }

    fn lose_as(&mut self, error: DiskError) {
        self.is_gone = true;
        for lost in self.ring.abandon() {
            self.ended.push(DiskCompletion {
                tag: DiskTag(lost.tag),
                buffer: lost.buffer_size.map(IoBuffer::zeroed),
                result: Err(error),
            });
        }
    }

    /// How much is handed over at once, to the kernel and from it.
    fn portion(&mut self) -> Batch {
        let ours = self.queued.operations + self.ring.delivered();
        if self.ring.in_flight() > ours { PORTION } else { FIRST }
    }

    /// Whether a request's range is whole sectors of the disk.
    fn check(&self, request: &DiskRequest) -> Result<(), DiskError> {
        if self.is_gone {
            return Err(DiskError::Gone);
        }
        let (offset, length) = match request {
            DiskRequest::Read { offset, buffer } | DiskRequest::Write { offset, buffer } => {
                (*offset, buffer.length() as u64)
            }
            DiskRequest::Discard { offset, length } => (*offset, *length),
            DiskRequest::Flush => return Ok(()),
        };
        let sector = u64::from(self.geometry.sector_size);
        let end = offset.saturating_add(length);
        let is_whole = offset.is_multiple_of(sector) && length.is_multiple_of(sector);
        let is_transfer = !matches!(request, DiskRequest::Discard { .. });
        let is_too_long = is_transfer && length > REQUEST_LENGTH_MAX as u64;
        if !is_whole || end > self.geometry.length || is_too_long {
            return Err(DiskError::OutOfRange { offset, end });
        }
        Ok(())
    }
}

impl Disk for UringDisk {
    fn geometry(&self) -> DiskGeometry {
        self.geometry
    }

    fn enqueue(&mut self, tag: DiskTag, request: DiskRequest) -> Result<(), DiskRequest> {
        if let Err(fault) = self.check(&request) {
            let buffer = match request {
                DiskRequest::Read { buffer, .. } | DiskRequest::Write { buffer, .. } => {
                    Some(buffer)
                }
                DiskRequest::Flush | DiskRequest::Discard { .. } => None,
            };
            self.ended.push(DiskCompletion { tag, buffer, result: Err(fault) });
            return Ok(());
        }
        if self.ring.is_full() {
            return Err(request);
        }
        let operation = match request {
            DiskRequest::Read { offset: at, buffer } => {
                let length = buffer.length();
                Operation::Read { at, buffer: buffer.into_blocks(), length }
            }
            DiskRequest::Write { offset: at, buffer } => {
                let length = buffer.length();
                Operation::Write { at, buffer: buffer.into_blocks(), length }
            }
            DiskRequest::Flush => Operation::Flush,
            DiskRequest::Discard { offset: at, length } => Operation::Discard { at, length },
        };
        if let Operation::Read { length, .. } | Operation::Write { length, .. } = &operation {
            self.queued.bytes += *length;
        }
        let portion = self.portion();
        self.queued.operations += 1;
        self.ring.push(tag.0, operation).expect("the ring was not full just above");
        if self.queued.operations >= portion.operations || self.queued.bytes >= portion.bytes {
            self.submit();
        }
        Ok(())
    }

    fn submit(&mut self) {
        self.was_called = true;
        self.queued = NOTHING;
        if !self.is_gone && self.ring.submit().is_err() {
            self.lose();
        }
    }

    fn complete(&mut self, into: &mut Vec<DiskCompletion>) {
        // The kernel delivers when it is called, which the round's `submit` has done, so that a
        // round has one call. Who only completes, and waits, needs the call made here.
        if !std::mem::take(&mut self.was_called) {
            self.submit();
            self.was_called = false;
        }
        let before = into.len();
        into.append(&mut self.ended);
        let portion = self.portion();
        self.ring.reap_batch(&mut self.reaped, portion);
        if let Some(patience) = self.patience {
            let has_ended = into.len() > before || !self.reaped.is_empty();
            self.watch(patience, has_ended);
            into.append(&mut self.ended);
        }
        into.extend(self.reaped.drain(..).map(|done| DiskCompletion {
            tag: DiskTag(done.tag),
            buffer: done.buffer.map(|(blocks, length)| IoBuffer::from_blocks(blocks, length)),
            result: done.result.map_err(disk_error),
        }));
    }
}

/// Becomes ready when there may be something to complete. To be watched edge-triggered.
impl AsFd for UringDisk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

fn disk_error(error: OperationError) -> DiskError {
    match error {
        OperationError::Device { errno } => DiskError::Device { errno },
        OperationError::Short { moved, wanted } => DiskError::Short {
            moved: u32::try_from(moved).unwrap_or(u32::MAX),
            wanted: u32::try_from(wanted).unwrap_or(u32::MAX),
        },
    }
}
