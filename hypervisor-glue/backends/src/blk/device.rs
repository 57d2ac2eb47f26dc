// SPDX-License-Identifier: Apache-2.0
//! The worker's side of one disk.

use super::parse::{HEADER, Limits, Parsed, parse, status_address};
use super::{BlkClass, BlkCounters, BlkOperation, BlkRequest, BlkStatus, BlkTag, CopyError};
use crate::kicks::KickChange;
use crate::slots::{Handled, Slot, Slots};
use plinth_guest_memory::{GuestAddress, GuestMemory};
use plinth_vhost::QueueChange;
use plinth_virtio::{Chain, PopFault, Segment, copy_in, copy_out, zero_in};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A request that was given out.
#[derive(Debug, Default)]
struct OpenRequest {
    chain: Chain,
    /// Rises with every use of the place, so that a late tag is not mistaken for a new one.
    generation: u32,
    is_open: bool,
    status: GuestAddress,
    /// What is done. A place that was never used has no meaning in it.
    operation: Option<BlkOperation>,
}

/// So many chains ahead the line of a header, which the driver's core has, is fetched. Measured with
/// `--example answer`, pair, best tenth, on two cores that are far apart: see perf/ring-tries.md.
const AHEAD: u16 = 8;

/// All queues of one disk, owned by one worker.
#[derive(Debug)]
pub struct BlkDevice {
    class: Arc<BlkClass>,
    slots: Slots,
    /// By queue, then by head. Made when a queue first starts.
    requests: Vec<Vec<OpenRequest>>,
    open_count: usize,
    /// Where the next poll begins, so that no queue starves the others.
    next_queue: u16,
    counters: BlkCounters,
    /// The chain being read, before it goes to its place.
    scratch: Chain,
}

fn tag(queue: u16, head: u16, generation: u32) -> BlkTag {
    BlkTag(u64::from(queue) << 48 | u64::from(head) << 32 | u64::from(generation))
}

#[expect(clippy::cast_possible_truncation, reason = "the parts of a tag are taken apart")]
const fn untag(tag: BlkTag) -> (u16, u16, u32) {
    ((tag.0 >> 48) as u16, (tag.0 >> 32) as u16, tag.0 as u32)
}

impl BlkDevice {
    pub fn new(class: Arc<BlkClass>) -> Self {
        let queues = class.options().queues;
        Self {
            class,
            slots: Slots::new(queues, |_| true),
            requests: (0..queues).map(|_| Vec::new()).collect(),
            open_count: 0,
            next_queue: 0,
            counters: BlkCounters::default(),
            scratch: Chain::new(),
        }
    }

    /// Takes over a queue, gives one back or changes its eventfd.
    ///
    /// A queue that is asked back gives out no more requests, and is given back when the last
    /// open request of it was completed.
    pub fn handle(&mut self, change: QueueChange) {
        if let Handled::Started(index) = self.slots.handle(change)
            && let Some(slot) = self.slots.get(index)
        {
            let places = &mut self.requests[usize::from(index)];
            let size = usize::from(slot.queue.size());
            places.resize_with(places.len().max(size), OpenRequest::default);
            self.counters.resubmitted += u64::from(slot.queue.leftover_count());
        }
    }

    /// The next kick descriptor that came or went.
    pub fn take_kick_change(&mut self) -> Option<KickChange> {
        self.slots.take_kick_change()
    }

    /// Gives `watch` every descriptor whose readiness means work. Wait for them edge-triggered
    /// and never read them: a read of a descriptor that is shared with another process can
    /// block.
    pub fn watch_kicks(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.slots.watch_kicks(watch);
    }

    /// Whether the guest's driver has started at least one queue.
    pub fn is_up(&self) -> bool {
        self.slots.iter().any(|(_, slot)| slot.is_running())
    }

    /// Requests that were given out and are not completed.
    pub const fn open_requests(&self) -> usize {
        self.open_count
    }

    /// Appends up to `limit` requests to `requests` and returns how many. Those that a process
    /// before this one left unfinished come first, in the order in which that one took them.
    /// Malformed ones are answered here.
    ///
    /// Looks at no more than `limit` chains of each queue, so that a guest that sends nothing
    /// but malformed ones does not keep the worker here.
    pub fn poll(&mut self, requests: &mut Vec<BlkRequest>, limit: usize) -> usize {
        let before = requests.len();
        let queues = self.slots.count();
        for step in 0..queues {
            let index = (self.next_queue + step) % queues;
            for taken in 0..limit {
                if requests.len() - before == limit || !self.poll_one(index, requests) {
                    break;
                }
                // The first chain has shown how many there are; from then on one more each time.
                if let Some(slot) = self.slots.get(index) {
                    let first = if taken == 0 { 0 } else { AHEAD - 1 };
                    (first..AHEAD).for_each(|ahead| slot.queue.prefetch(ahead));
                }
            }
        }
        self.next_queue = (self.next_queue + 1) % queues.max(1);
        requests.len() - before
    }

    /// Takes one chain of a queue. `false` when there is none.
    fn poll_one(&mut self, index: u16, requests: &mut Vec<BlkRequest>) -> bool {
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.is_running()) else {
            return false;
        };
        match slot.queue.pop(&mut self.scratch) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(fault) => {
                // A chain that cannot be walked has no status byte that could say so.
                self.counters.queues_broken += 1;
                slot.mark_broken();
                if let PopFault::Chain { head, .. } = fault {
                    slot.queue.push(head, 0);
                }
                return false;
            }
        }
        let head = self.scratch.head();
        let Some(status) = status_address(&self.scratch) else {
            self.counters.queues_broken += 1;
            slot.mark_broken();
            slot.queue.push(head, 0);
            return false;
        };
        // Linux's driver keeps the header on the same line, which is read next: it crosses between
        // the cores once then, and not again for the status.
        slot.queue.memory().prefetch_to_write(status);
        let capacity = self.class.capacity();
        let limits = Limits { capacity, is_read_only: self.class.options().is_read_only };
        match parse(slot.queue.memory(), &self.scratch, limits) {
            Parsed::Operation(operation) => {
                let place = &mut self.requests[usize::from(index)][usize::from(head)];
                // The place keeps the chain and leaves its old one as scratch: nothing is
                // copied, and nothing allocated once both have seen their longest.
                std::mem::swap(&mut place.chain, &mut self.scratch);
                place.generation = place.generation.wrapping_add(1);
                (place.is_open, place.status, place.operation) = (true, status, Some(operation));
                self.open_count += 1;
                let tag = tag(index, head, place.generation);
                requests.push(BlkRequest { tag, queue: index, operation });
            }
            Parsed::Identify => {
                let answer =
                    identify(slot.queue.memory(), &self.scratch, &self.class.options().serial);
                self.counters.refused += u64::from(answer != BlkStatus::Ok);
                answer_chain(slot, &self.scratch, status, answer);
            }
            Parsed::Refused => {
                self.counters.refused += 1;
                answer_chain(slot, &self.scratch, status, BlkStatus::IoError);
            }
            Parsed::Unsupported => {
                self.counters.unsupported += 1;
                answer_chain(slot, &self.scratch, status, BlkStatus::Unsupported);
            }
        }
        true
    }

    /// Copies the data of a write, from byte `offset` of the request on.
    ///
    /// Two calls may see two contents: the guest may write to it all the time.
    pub fn copy_out(&self, tag: BlkTag, offset: u32, into: &mut [u8]) -> Result<(), CopyError> {
        let (memory, request) = self.open(tag)?;
        let Some(BlkOperation::Write { length, .. }) = request.operation else {
            return Err(CopyError::OutsideData);
        };
        check_inside(offset, into.len(), length)?;
        let segments = request.chain.readable();
        done(copy_out(memory, segments, HEADER + offset as usize, into))
    }

    /// Fills the data of a read, from byte `offset` of the request on.
    pub fn copy_in(&mut self, tag: BlkTag, offset: u32, from: &[u8]) -> Result<(), CopyError> {
        let (memory, segments) = self.to_guest(tag, offset, from.len())?;
        done(copy_in(memory, segments, offset as usize, from))
    }

    /// Fills `length` bytes of a read with zeros, from byte `offset` of the request on.
    pub fn zero_in(&mut self, tag: BlkTag, offset: u32, length: u32) -> Result<(), CopyError> {
        let (memory, segments) = self.to_guest(tag, offset, length as usize)?;
        done(zero_in(memory, segments, offset as usize, length as usize))
    }

    fn to_guest(
        &self,
        tag: BlkTag,
        offset: u32,
        length: usize,
    ) -> Result<(&GuestMemory, &[Segment]), CopyError> {
        let (memory, request) = self.open(tag)?;
        let Some(BlkOperation::Read { length: all, .. }) = request.operation else {
            return Err(CopyError::OutsideData);
        };
        check_inside(offset, length, all)?;
        Ok((memory, request.chain.writable()))
    }

    fn open(&self, tag: BlkTag) -> Result<(&GuestMemory, &OpenRequest), CopyError> {
        let (queue, head, generation) = untag(tag);
        let slot = self.slots.get(queue).ok_or(CopyError::NotOpen)?;
        let request = self
            .requests
            .get(usize::from(queue))
            .and_then(|places| places.get(usize::from(head)))
            .filter(|request| request.is_open && request.generation == generation)
            .ok_or(CopyError::NotOpen)?;
        Ok((slot.queue.memory(), request))
    }

    /// Answers a request. The guest sees it after [`BlkDevice::flush`]. A tag that is not open
    /// changes nothing and gives `false`.
    pub fn complete(&mut self, tag: BlkTag, status: BlkStatus) -> bool {
        let (queue, head, generation) = untag(tag);
        let Some(slot) = self.slots.get_mut(queue) else { return false };
        let Some(request) = self
            .requests
            .get_mut(usize::from(queue))
            .and_then(|places| places.get_mut(usize::from(head)))
            .filter(|request| request.is_open && request.generation == generation)
        else {
            return false;
        };
        request.is_open = false;
        self.open_count -= 1;
        self.counters.failed += u64::from(status != BlkStatus::Ok);
        if let (BlkStatus::Ok, Some(operation)) = (status, request.operation) {
            count(&mut self.counters, operation);
        }
        answer_chain(slot, &request.chain, request.status, status);
        self.slots.give_back_if_idle(queue);
        true
    }

    /// Shows the guest what was completed since the last flush, and calls it where it asked for
    /// that. Once a round.
    pub fn flush(&mut self) {
        for slot in self.slots.iter_mut() {
            self.counters.calls += u64::from(slot.flush());
        }
    }

    /// Asks the guest to kick before the worker sleeps. `true` when requests are there already:
    /// then poll again instead.
    pub fn arm_kicks(&mut self) -> bool {
        self.slots.arm_kicks(&mut self.counters.queues_broken)
    }

    /// Tells the guest that kicks are not needed, because the worker polls.
    pub fn disarm_kicks(&mut self) {
        self.slots.disarm_kicks();
    }

    pub const fn counters(&self) -> BlkCounters {
        self.counters
    }
}

/// Counts a request that ended well.
fn count(counters: &mut BlkCounters, operation: BlkOperation) {
    match operation {
        BlkOperation::Read { length, .. } => {
            counters.reads += 1;
            counters.read_bytes += u64::from(length);
        }
        BlkOperation::Write { length, .. } => {
            counters.writes += 1;
            counters.written_bytes += u64::from(length);
        }
        BlkOperation::Flush => counters.flushes += 1,
        BlkOperation::Discard { .. } => counters.discards += 1,
        BlkOperation::WriteZeroes { .. } => counters.zeroings += 1,
    }
}

fn check_inside(offset: u32, length: usize, all: u32) -> Result<(), CopyError> {
    let end = (offset as usize).checked_add(length).ok_or(CopyError::OutsideData)?;
    if end <= all as usize { Ok(()) } else { Err(CopyError::OutsideData) }
}

fn done<E>(is_whole: Result<bool, E>) -> Result<(), CopyError> {
    match is_whole {
        Ok(true) => Ok(()),
        Ok(false) => Err(CopyError::OutsideData),
        Err(_) => Err(CopyError::OutsideMemory),
    }
}

/// Writes the disk's name into a GET_ID's data.
fn identify(memory: &GuestMemory, chain: &Chain, serial: &[u8; 20]) -> BlkStatus {
    let room = chain.writable_bytes() as usize - 1;
    let name = &serial[..serial.len().min(room)];
    match copy_in(memory, chain.writable(), 0, name) {
        Ok(true) if room > 0 => BlkStatus::Ok,
        _ => BlkStatus::IoError,
    }
}

/// Writes the status and gives the chain back.
fn answer_chain(slot: &mut Slot, chain: &Chain, status: GuestAddress, answer: BlkStatus) {
    // The chain was checked against this very table, which never changes, so this cannot fail;
    // if it could, the guest would miss a status byte in memory that is not there.
    let _ = slot.queue.memory().put_byte(status, answer.byte());
    slot.queue.push(chain.head(), chain.writable_bytes());
}
