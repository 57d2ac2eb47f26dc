// SPDX-License-Identifier: Apache-2.0
//! The disk with a memory of what each request on its way is for.

use crate::buffer::{BufferPool, IoBuffer};
use crate::disk::{Disk, DiskCompletion, DiskError, DiskRequest, DiskTag};
use crate::slab::Slab;
use std::collections::VecDeque;

/// Where the bytes of a read go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// The operation's own buffer went down to the disk.
    Whole,
    /// To this byte of the operation's buffer.
    Part { at: usize },
    /// To this byte of the n-th unit of old bytes that a change needs.
    Old { index: usize, at: usize },
    /// A page of the n-th tree of keys that the operation walks.
    Node { tree: usize },
}

/// Blocks of an object on their way up, and what they will be compared with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadRun {
    pub(crate) op: u32,
    pub(crate) frame: u32,
    pub(crate) version: u64,
    /// First block, of the object.
    pub(crate) block: u32,
    pub(crate) count: u32,
    pub(crate) place: Place,
}

/// What a request is for.
#[derive(Debug)]
pub(crate) enum Context {
    Read(ReadRun),
    PageIn {
        slot: u32,
        half: u32,
        incarnation: u64,
    },
    /// Data of entry `seq`; the buffer is that operation's own if `op` is there.
    Data {
        seq: u64,
        data_block: u64,
        count: u32,
        op: Option<u32>,
    },
    /// Zeros for nobody to read.
    Wipe {
        op: u32,
        data_block: u64,
        blocks: u32,
    },
    Judge(crate::suspect::JudgeRun),
    Quick(crate::quick::QuickRead),
    Scrub(crate::scrub::ScrubRead),
    Journal {
        seq: u64,
    },
    Flush,
    /// Free units that the device need not keep.
    Discard {
        first: u32,
        count: u32,
    },
    /// A page of the running checkpoint.
    Page(PageKind),
    WriteBack(crate::overlay::Run),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PageKind {
    Map { frame: u32, slot: u32, half: u32, incarnation: u64 },
    Count { page: u32 },
    Bitmap { page: u32 },
    Index { page: u32 },
    Superblock,
}

/// A request that ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) context: Context,
    pub(crate) buffer: Option<IoBuffer>,
    pub(crate) result: Result<(), DiskError>,
}

#[derive(Debug)]
pub(crate) struct Io<D> {
    pub(crate) disk: D,
    pub(crate) pool: BufferPool,
    contexts: Slab<Context>,
    /// Requests that the disk had no room for, in order.
    backlog: VecDeque<(DiskTag, DiskRequest)>,
    completions: Vec<DiskCompletion>,
    has_new: bool,
    pub(crate) bytes_written: u64,
    pub(crate) bytes_read: u64,
    pub(crate) flushes: u64,
}

impl<D: Disk> Io<D> {
    pub(crate) fn new(disk: D, pool: BufferPool) -> Self {
        Self {
            disk,
            pool,
            contexts: Slab::new(),
            backlog: VecDeque::new(),
            completions: Vec::new(),
            has_new: false,
            bytes_written: 0,
            bytes_read: 0,
            flushes: 0,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.contexts.len()
    }

    pub(crate) fn read(&mut self, offset: u64, buffer: IoBuffer, context: Context) {
        self.bytes_read += buffer.length() as u64;
        self.start(context, DiskRequest::Read { offset, buffer });
    }

    pub(crate) fn write(&mut self, offset: u64, buffer: IoBuffer, context: Context) {
        self.bytes_written += buffer.length() as u64;
        self.start(context, DiskRequest::Write { offset, buffer });
    }

    pub(crate) fn flush(&mut self) {
        self.flushes += 1;
        self.start(Context::Flush, DiskRequest::Flush);
    }

    pub(crate) fn discard(&mut self, offset: u64, length: u64, context: Context) {
        self.start(context, DiskRequest::Discard { offset, length });
    }

    fn start(&mut self, context: Context, request: DiskRequest) {
        let tag = DiskTag(u64::from(self.contexts.insert(context)));
        self.has_new = true;
        if !self.backlog.is_empty() {
            self.backlog.push_back((tag, request));
        } else if let Err(request) = self.disk.enqueue(tag, request) {
            self.backlog.push_back((tag, request));
        }
    }

    /// Starts what was asked for since the last call.
    pub(crate) fn submit(&mut self) {
        while let Some((tag, request)) = self.backlog.pop_front() {
            self.has_new = true;
            if let Err(request) = self.disk.enqueue(tag, request) {
                self.backlog.push_front((tag, request));
                break;
            }
        }
        if std::mem::take(&mut self.has_new) {
            self.disk.submit();
        }
    }

    /// Asks the disk what has ended. [`Io::next`] gives it out one by one.
    pub(crate) fn poll(&mut self) {
        if self.contexts.len() > 0 {
            self.disk.complete(&mut self.completions);
        }
    }

    pub(crate) fn next(&mut self) -> Option<Done> {
        loop {
            let DiskCompletion { tag, buffer, result } = self.completions.pop()?;
            let index = u32::try_from(tag.0).unwrap_or(u32::MAX);
            // A tag that is not ours would be a driver's mistake; there is nothing to end then.
            if let Some(context) = self.contexts.remove(index) {
                return Some(Done { context, buffer, result });
            }
        }
    }
}
