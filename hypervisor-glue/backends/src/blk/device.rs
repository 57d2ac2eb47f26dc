// SPDX-License-Identifier: Apache-2.0
//! The worker's side of one disk.

use super::{BlkClass, BlkCounters, BlkRequest, BlkStatus, BlkTag, CopyError};
use crate::kicks::KickChange;
use plinth_vhost::QueueChange;
use std::sync::Arc;

/// All queues of one disk, owned by one worker.
#[derive(Debug)]
pub struct BlkDevice {
    class: Arc<BlkClass>,
    counters: BlkCounters,
}

impl BlkDevice {
    pub fn new(class: Arc<BlkClass>) -> Self {
        Self { class, counters: BlkCounters::default() }
    }

    /// Takes over a queue, gives one back or changes its eventfd.
    ///
    /// A queue that is asked back gives out no more requests, and is given back when the last
    /// open request of it was completed.
    pub fn handle(&mut self, change: QueueChange) {
        let _ = (change, &self.class);
        unimplemented!()
    }

    /// The next kick descriptor that came or went.
    pub fn take_kick_change(&mut self) -> Option<KickChange> {
        unimplemented!()
    }

    /// Whether the guest's driver has started at least one queue.
    pub fn is_up(&self) -> bool {
        unimplemented!()
    }

    /// Requests that were given out and are not completed.
    pub fn open_requests(&self) -> usize {
        unimplemented!()
    }

    /// Appends up to `limit` requests to `requests` and returns how many. Those that a process
    /// before this one left unfinished come first. Malformed ones are answered here.
    pub fn poll(&mut self, requests: &mut Vec<BlkRequest>, limit: usize) -> usize {
        let _ = (requests, limit);
        unimplemented!()
    }

    /// Copies the data of a write, from byte `offset` of the request on.
    pub fn copy_out(&self, tag: BlkTag, offset: u32, into: &mut [u8]) -> Result<(), CopyError> {
        let _ = (tag, offset, into);
        unimplemented!()
    }

    /// Fills the data of a read, from byte `offset` of the request on.
    pub fn copy_in(&mut self, tag: BlkTag, offset: u32, from: &[u8]) -> Result<(), CopyError> {
        let _ = (tag, offset, from);
        unimplemented!()
    }

    /// Fills `length` bytes of a read with zeros, from byte `offset` of the request on.
    pub fn zero_in(&mut self, tag: BlkTag, offset: u32, length: u32) -> Result<(), CopyError> {
        let _ = (tag, offset, length);
        unimplemented!()
    }

    /// Answers a request. The guest sees it after [`BlkDevice::flush`]. A tag that is not open
    /// changes nothing and gives `false`.
    pub fn complete(&mut self, tag: BlkTag, status: BlkStatus) -> bool {
        let _ = (tag, status);
        unimplemented!()
    }

    /// Publishes what was completed since the last flush, and wakes the guest where it asked
    /// for that. Once a round.
    pub fn flush(&mut self) {
        unimplemented!()
    }

    /// Asks the guest to kick before the worker sleeps. `true` when requests are there already:
    /// then poll again instead.
    pub fn arm_kicks(&mut self) -> bool {
        unimplemented!()
    }

    /// Tells the guest that kicks are not needed, because the worker polls.
    pub fn disarm_kicks(&mut self) {
        unimplemented!()
    }

    pub fn counters(&self) -> BlkCounters {
        self.counters
    }
}
