// SPDX-License-Identifier: Apache-2.0
//! The store itself: what it is made of, and the doors its owner uses.
//!
//! ```text
//!   submit ──▶ attempt ── map in memory, old bytes there, room ──▶ execute ──▶ data writes
//!                 │ no                                                └──▶ open journal entry
//!               parked ◀── retried when anything moved                        │ poll seals it
//!                                                     acknowledged ◀── durable ┘
//! ```
//!
//! Operations on one object are carried out in the order in which they were submitted; a change
//! is carried out in memory at one moment, all of it. What the disk holds follows through the
//! journal; `docs/storage.md` has the order of writes and why a crash is survived.

use crate::bad::BadBlocks;
use crate::buffer::BufferPool;
use crate::cache::MapCache;
use crate::checkpoint::Checkpoint;
use crate::discard::{DiscardOptions, Discards};
use crate::disk::{Disk, DiskError};
use crate::filter::BlockFilter;
use crate::io::Io;
use crate::journal::Journal;
use crate::ladder::{Ladder, Level};
use crate::marks::Marks;
use crate::mount::MountError;
use crate::objects::Objects;
use crate::op::{Op, Work, admit};
use crate::overlay::Overlay;
use crate::quiet::Quiet;
use crate::request::{
    ObjectKey, ObjectStatus, StoreAnswer, StoreCompletion, StoreRefusal, StoreRequest, StoreTag,
};
use crate::rest::Rest;
use crate::scrub::Scrub;
use crate::slab::Slab;
use crate::space::Space;
use plinth_format::{Layout, Le32, StoreId, UNIT_SIZE};
use plinth_ids::Moment;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

/// When a change is acknowledged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Durability {
    /// After the device's cache was flushed.
    #[default]
    Flush,
    /// When the device has taken it: its cache survives power loss.
    Device,
}

/// What a store is mounted for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Access {
    /// Reads and changes. A store that has lost what was durable is refused.
    #[default]
    Whole,
    /// Reads of what is left: see `rescue.rs`. Nothing is ever written to the disk.
    Rescue,
}

/// What a store may use. The defaults are for a pool of some TiB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StoreOptions {
    pub durability: Durability,
    /// Map pages in memory, 4 KiB each; two hold the map of one full object. At least 64.
    pub cache_pages: usize,
    /// Blocks of 4 KiB that may wait for their write back. At least 16.
    pub overlay_blocks: usize,
    /// Requests that may be on their way. More are given back by `submit`.
    pub requests_max: usize,
    /// Bytes of free buffers to keep.
    pub buffer_bytes: usize,
    /// How full the disk may be.
    pub ladder: Ladder,
    /// How the device is told what is free.
    pub discard: DiscardOptions,
    pub access: Access,
    /// What the process says that had the store before, for a mount that hears it from there.
    pub rest: Option<Rest>,
    /// Which of the protections that the crash test must miss are left out. None of them.
    #[doc(hidden)]
    pub omit: Omit,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            durability: Durability::Flush,
            cache_pages: 8192,
            overlay_blocks: 2048,
            requests_max: 1024,
            buffer_bytes: 32 << 20,
            ladder: Ladder::default(),
            discard: DiscardOptions::default(),
            access: Access::Whole,
            rest: None,
            omit: Omit::Nothing,
        }
    }
}

/// A protection to leave out, so that the crash test can show that it would notice.
/// Programs always say `Nothing`.
// Not behind a cargo feature that tests switch on: programs are built before tests, so the store and
// all that stands on it would be built twice, and tests would start other programs than are shipped.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Omit {
    #[default]
    Nothing,
    /// Acknowledges before the device's cache is flushed.
    FlushBeforeAcknowledge,
    /// Acknowledges before the data of the entry is written.
    DataBeforeAcknowledge,
    /// Frees units before the entry that lets them go is confirmed.
    Quarantine,
    /// Writes overwritten blocks to their place before their entry is confirmed.
    ConfirmBeforeWriteBack,
    /// Leaves the owners of fresh units out of the journal.
    OwnersRecord,
    /// Leaves the owners of shared units out of the journal.
    SharedOwnersRecord,
    /// Does not compare data with the checksums of entries that may be incomplete.
    Judge,
    /// Writes map pages before the entries they contain are durable.
    WriteAhead,
    /// Does not flush before the superblock names the checkpoint.
    FlushBeforeSuperblock,
    /// Does not flush between a checkpoint's map pages and the index that names them.
    FlushBeforeIndex,
    /// Forgets the blocks in the journal when a checkpoint cuts it.
    WriteBackBeforeCut,
    /// Overwrites written blocks of owned units in place.
    Redirect,
    /// Writes in place to blocks that were unwritten by an entry that is not confirmed.
    ClearGuard,
    /// Writes in place to units whose other owner left by an entry that is not confirmed.
    AloneGuard,
    /// Cuts the journal when one copy of the superblock and of the tables is written.
    Twins,
    /// Takes the first entry that is missing for the journal's end, whatever others say of it.
    JournalVouched,
    /// Replays from the journal without writing deferred blocks to their places.
    ReplayDeferred,
    /// Overwrites in place without a mark.
    Mark,
    /// Overwrites in place before the mark is durable.
    MarkDurable,
    /// Cuts the journal without logging marks that are in use again.
    MarkAtCheckpoint,
    /// Takes blocks that do not match for bad where overwrites were under way, too.
    Adopt,
    /// Takes blocks that do not match for good where no overwrites were under way, too.
    AdoptSuspectsOnly,
    /// Overwrites blocks that recovery may still compare with an entry.
    OverwriteConfirm,
    /// Overwrites blocks in place that recovery may write again from the journal.
    OverwriteDeferred,
    /// Has two writes of one block on their way at once.
    OverwriteSerial,
    /// Clones an object before what was overwritten in it is durable.
    CloneSettled,
    /// Plans a write as if the steps before it in its transaction would not share its units.
    EarlierSteps,
    /// Puts keys and logs into another entry than the rest of their transaction.
    KeysApart,
    /// Does not compare with their checksums the blocks that a write keeps of what it replaces.
    CheckKept,
    /// Leaves marks in the journal of a store that is unmounted.
    MarksEnd,
    /// Takes a map page for the one of its place whatever place it names.
    MapAddress,
    /// Takes the older copy of a map page where the newest is lost.
    MapAge,
    /// Leaves the versions of objects out of the journal.
    VersionRecord,
    /// Leaves the base of versions out of the superblock.
    VersionBase,
    /// Leaves it out of the journal.
    VersionBaseRecord,
    /// Discards units before the entry that lets them go is confirmed.
    DiscardConfirm,
    /// Lets units be taken while a discard of them is on its way.
    DiscardHold,
    /// Writes zeros over a scrapped object's units before that is confirmed.
    WipeConfirm,
    /// Leaves the last entries before a quiet time without one that vouches for them.
    VouchWhenQuiet,
}

/// Whether the store takes changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StoreState {
    Writable,
    ReadOnly(ReadOnlyReason),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReadOnlyReason {
    #[error("writing data failed: {0}")]
    Data(DiskError),
    #[error("writing the journal failed: {0}")]
    Journal(DiskError),
    #[error("flushing failed: {0}")]
    Flush(DiskError),
    #[error("writing metadata failed: {0}")]
    Metadata(DiskError),
    #[error("the maps and the bitmap of the disk contradict each other")]
    Books,
    #[error("it was mounted for rescue, which takes no changes")]
    Rescue,
}

/// What happened since the mount. Counters only rise.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StoreCounters {
    pub reads: u64,
    pub changes: u64,
    pub flushes: u64,
    pub refusals: u64,
    /// Blocks that did not match their checksum.
    pub bad_blocks: u64,
    /// Blocks that the device failed to read.
    pub read_errors: u64,
    /// Map pages of which neither copy could be understood.
    pub bad_metadata: u64,
    /// Reads that met a change on their way and were started again.
    pub read_retries: u64,
    pub journal_entries: u64,
    pub checkpoints: u64,
    pub disk_bytes_read: u64,
    pub disk_bytes_written: u64,
    pub disk_flushes: u64,
    /// Bytes that requests asked to write.
    pub user_bytes_written: u64,
    pub map_page_reads: u64,
    /// Blocks that were written over in place, under a mark.
    pub blocks_overwritten: u64,
    /// Blocks that a crash had caught being overwritten, and that were taken as they were.
    pub adopted_blocks: u64,
    /// Runs of free units that the device was told of.
    pub discards: u64,
    pub discarded_bytes: u64,
    pub discard_errors: u64,
}

/// Space of the data region, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StoreCapacity {
    pub total: u64,
    pub used: u64,
    /// Of the used: owned by more than one object.
    pub shared: u64,
    pub objects: u64,
    pub objects_max: u64,
    pub level: Level,
}

/// Whether an operation got anywhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Progress {
    /// It is carried out or ended.
    Through,
    /// It waits for something; try again when anything moved.
    Wait,
}

/// The object store of one disk. One owner calls it; see the crate's first page.
#[derive(Debug)]
pub struct Store<D> {
    pub(crate) io: Io<D>,
    pub(crate) layout: Layout,
    pub(crate) id: StoreId,
    pub(crate) options: StoreOptions,
    pub(crate) space: Space,
    pub(crate) objects: Objects,
    pub(crate) cache: MapCache,
    pub(crate) overlay: Overlay,
    pub(crate) journal: Journal,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) ops: Slab<Op>,
    /// Reads on their way that are no operations.
    pub(crate) quick_reads: usize,
    /// Requests that were taken so far.
    pub(crate) requests: u64,
    /// Calls of `submit` and `poll`: what was looked up before another one counts no more.
    pub(crate) calls: u64,
    /// Operations that wait, oldest first, and the same by object.
    pub(crate) parked: VecDeque<u32>,
    pub(crate) queues: BTreeMap<ObjectKey, VecDeque<u32>>,
    pub(crate) loading: BTreeSet<(u32, u32)>,
    /// Data blocks that writes of entries are on their way to.
    pub(crate) writing: BlockFilter,
    pub(crate) marks: Marks,
    pub(crate) flushing: Option<Flushing>,
    /// Flush requests and the entry each one waits for.
    pub(crate) flush_waiters: VecDeque<(u64, u32)>,
    /// What a mount for rescue has passed over.
    pub(crate) lost: Option<MountError>,
    pub(crate) wants_confirm: bool,
    pub(crate) quiet: Quiet,
    /// A change needs more room in the overlay than there is.
    pub(crate) wants_write_back: bool,
    pub(crate) state: StoreState,
    pub(crate) counters: StoreCounters,
    pub(crate) completions: Vec<StoreCompletion>,
    pub(crate) bad: BadBlocks,
    pub(crate) scrub: Scrub,
    pub(crate) discards: Discards,
    /// As the owner said in its last poll.
    pub(crate) now: Moment,
    pub(crate) checksums: Vec<Le32>,
    pub(crate) has_moved: bool,
    /// The change that is carried out finds no new units for what it overwrites whole.
    pub(crate) is_full_plan: bool,
    /// The change that is looked at is one write and no transaction, so that its blocks need not
    /// all be there after a crash or none.
    pub(crate) is_single_write: bool,
}

/// A flush of the device on its way.
#[derive(Debug)]
pub(crate) struct Flushing {
    /// Entries up to this one are durable afterwards.
    pub(crate) covers: u64,
    pub(crate) ops: Vec<u32>,
    pub(crate) is_checkpoints: bool,
}

/// The store's id is random, and nobody who names objects knows it.
fn hash_seed(id: &StoreId) -> u64 {
    let half = |at: usize| id[at..at + 8].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    half(0) ^ half(8).rotate_left(29)
}

/// Pages that a store has on top of its cache once it is read-only: for the longest question, and for
/// others that are asked beside it.
const READ_ONLY_PAGES: usize = 64;

impl<D: Disk> Store<D> {
    pub(crate) fn new(
        disk: D,
        layout: Layout,
        id: StoreId,
        options: StoreOptions,
        journal: Journal,
        session: u64,
    ) -> Self {
        let options = StoreOptions {
            cache_pages: options.cache_pages.max(64),
            overlay_blocks: options.overlay_blocks.max(16),
            requests_max: options.requests_max.clamp(1, 1 << 20),
            ..options
        };
        let marks = Marks::new(disk.geometry().atomic_write_size, layout.journal_length);
        Self {
            io: Io::new(disk, BufferPool::new(options.buffer_bytes)),
            layout,
            id,
            space: Space::new(layout.unit_count),
            objects: Objects::new(layout.slot_count, hash_seed(&id)),
            cache: MapCache::new(options.cache_pages),
            overlay: Overlay::new(options.overlay_blocks),
            journal,
            checkpoint: Checkpoint::new(session),
            ops: Slab::new(),
            quick_reads: 0,
            requests: 0,
            calls: 0,
            parked: VecDeque::new(),
            queues: BTreeMap::new(),
            loading: BTreeSet::new(),
            writing: BlockFilter::new(),
            marks,
            flushing: None,
            flush_waiters: VecDeque::new(),
            lost: None,
            wants_confirm: false,
            quiet: Quiet::default(),
            wants_write_back: false,
            state: StoreState::Writable,
            counters: StoreCounters::default(),
            completions: Vec::new(),
            bad: BadBlocks::default(),
            scrub: Scrub::default(),
            discards: Discards::new(layout.unit_count),
            now: Moment::default(),
            checksums: Vec::new(),
            has_moved: false,
            is_full_plan: false,
            is_single_write: false,
            options,
        }
    }

    /// Takes a request. Its end comes out of [`Store::poll`], never out of this call.
    ///
    /// # Errors
    /// Gives the request back when as many as the options allow are on their way.
    pub fn submit(&mut self, tag: StoreTag, request: StoreRequest) -> Result<(), StoreRequest> {
        if self.room() == 0 {
            return Err(request);
        }
        self.calls += 1;
        let request = match request {
            StoreRequest::Read { .. } => match self.read_quickly(tag, request) {
                Ok(()) => return Ok(()),
                Err(request) => request,
            },
            StoreRequest::Write { .. } if self.marks.is_on() => {
                match self.overwrite_quickly(tag, request) {
                    Ok(()) => return Ok(()),
                    Err(request) => request,
                }
            }
            other => other,
        };
        let (work, buffer) = admit(request);
        match work {
            Ok(work) => {
                self.requests += 1;
                let op = self.ops.insert(Op::new(tag, self.requests, work, buffer));
                self.start(op);
            }
            Err(refusal) => {
                self.counters.refusals += 1;
                self.completions.push(StoreCompletion { tag, buffer, result: Err(refusal) });
            }
        }
        Ok(())
    }

    /// Moves everything that can move and appends what ended. Says whether anything did.
    ///
    /// At most what the disk completed since the last call is handled, and each waiting
    /// operation is tried once; a checkpoint goes on by a few pages a call.
    pub fn poll(&mut self, now: Moment, into: &mut Vec<StoreCompletion>) -> bool {
        // Time has a part in rates and in what is quiet only.
        self.now = now;
        self.calls += 1;
        self.io.poll();
        let mut has_ended = false;
        while let Some(done) = self.io.next() {
            has_ended = true;
            self.has_moved = true;
            self.finish(done);
        }
        self.advance_entries();
        if !self.has_moved {
            // Between two reads of the judging the disk is idle, for who waits for that.
            self.advance_judging();
        }
        if std::mem::take(&mut self.has_moved) || self.checkpoint.is_running() {
            self.retry_parked();
        }
        self.advance_checkpoint();
        self.vouch_when_quiet();
        self.seal_if_useful();
        self.advance_turn();
        self.flush_if_useful();
        self.advance_scrub();
        self.advance_discards();
        self.io.submit();
        // The disk may have more that has ended than it gave out at once: who sleeps when nothing
        // moved must not sleep now.
        has_ended |= !self.completions.is_empty();
        into.append(&mut self.completions);
        has_ended || self.has_moved
    }

    /// How many more requests `submit` takes.
    pub fn room(&self) -> usize {
        self.options.requests_max.saturating_sub(self.ops.len() + self.quick_reads)
    }

    /// Whether nothing is on its way: no request, no disk request, no checkpoint.
    pub fn is_idle(&self) -> bool {
        self.ops.len() == 0
            && self.io.in_flight() == 0
            && self.completions.is_empty()
            && !self.checkpoint.is_running()
            && (self.state != StoreState::Writable || self.journal.is_open_empty())
    }

    /// Requests on their way to the disk.
    pub fn disk_requests(&self) -> usize {
        self.io.in_flight()
    }

    pub fn state(&self) -> StoreState {
        self.state
    }

    pub fn counters(&self) -> StoreCounters {
        StoreCounters {
            disk_bytes_read: self.io.bytes_read,
            disk_bytes_written: self.io.bytes_written,
            disk_flushes: self.io.flushes,
            ..self.counters
        }
    }

    pub fn capacity(&self) -> StoreCapacity {
        let unit = u64::from(UNIT_SIZE);
        StoreCapacity {
            total: u64::from(self.space.unit_count()) * unit,
            used: u64::from(self.owned_units()) * unit,
            shared: u64::from(self.space.shared_count()) * unit,
            objects: self.objects.count() as u64,
            objects_max: u64::from(self.objects.slot_count()),
            level: self.level(),
        }
    }

    /// One object's size and units.
    pub fn object(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        Some(self.status(*key, self.objects.find(key)?))
    }

    /// At most `limit` objects of the range, in order. Call again from the last key's successor.
    pub fn list(&self, range: RangeInclusive<ObjectKey>, limit: usize) -> Vec<ObjectStatus> {
        let (start, end) = (*range.start(), (*range.end()).min(crate::list::LAST));
        let is_some = start <= end;
        let found = is_some.then(|| self.objects.range(start..=end)).into_iter().flatten();
        let found = found.take(limit);
        found.map(|(key, slot)| self.status(key, slot)).collect()
    }

    /// A buffer from the store's pool; reads and writes give it back with their completion.
    pub fn take_buffer(&mut self, length: usize) -> crate::buffer::IoBuffer {
        self.io.pool.take(length)
    }

    pub fn put_buffer(&mut self, buffer: crate::buffer::IoBuffer) {
        self.io.pool.put(buffer);
    }

    pub fn disk(&self) -> &D {
        &self.io.disk
    }

    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.io.disk
    }

    /// Gives the disk back as it is, as a power cut would. What was not durable may be lost.
    pub fn abandon(self) -> D {
        self.io.disk
    }

    /// What the store waits for, for the person who asks why nothing moves.
    pub fn waits(&self) -> String {
        let parked: Vec<&Op> = self.parked.iter().filter_map(|&op| self.ops.get(op)).collect();
        let journal = &self.journal;
        format!(
            "{} on the disk, free {} quarantined {}, overlay {} of {}, entry {} open (complete {}, \
             durable {}, confirmed {}), journal {} of {}, checkpoint {}, dirty {}, parked {:?}",
            self.io.in_flight(),
            self.space.free_count(),
            self.space.quarantined(),
            self.overlay.len(),
            self.overlay.capacity(),
            journal.open_seq(),
            journal.complete_seq,
            journal.durable_seq,
            journal.confirmed_seq,
            journal.used(),
            journal.length(),
            self.checkpoint.is_running(),
            self.cache.dirty_count(),
            parked,
        )
    }

    /// Asks for a checkpoint: afterwards the journal is empty. [`Store::is_idle`] says when.
    pub fn request_checkpoint(&mut self) {
        self.checkpoint.is_wanted = true;
        self.has_moved = true;
    }

    /// Ends an operation.
    pub(crate) fn complete(&mut self, op: u32, result: Result<StoreAnswer, StoreRefusal>) {
        let Some(op) = self.ops.remove(op) else { return };
        if result.is_err() {
            self.counters.refusals += 1;
        }
        for old in op.old {
            self.io.pool.put(old.buffer);
        }
        self.has_moved = true;
        self.completions.push(StoreCompletion { tag: op.tag, buffer: op.buffer, result });
    }

    fn start(&mut self, op: u32) {
        let Some(entry) = self.ops.get(op) else { return };
        if matches!(entry.work, Work::Flush) {
            self.start_flush(op);
            return;
        }
        let mut must_wait = false;
        if !self.queues.is_empty() {
            let queues = &self.queues;
            entry.for_each_key(|key| must_wait |= queues.contains_key(key));
        }
        if must_wait || self.attempt(op) == Progress::Wait {
            self.park(op);
        }
    }

    pub(crate) fn park(&mut self, op: u32) {
        let Some(entry) = self.ops.get_mut(op) else { return };
        entry.is_parked = true;
        let queues = &mut self.queues;
        entry.for_each_key(|key| queues.entry(*key).or_default().push_back(op));
        self.parked.push_back(op);
    }

    /// Tries every waiting operation once that no earlier one on the same object is before.
    fn retry_parked(&mut self) {
        for _ in 0..self.parked.len() {
            let Some(op) = self.parked.pop_front() else { return };
            let Some(entry) = self.ops.get(op) else { continue };
            let mut is_first = true;
            let queues = &self.queues;
            entry.for_each_key(|key| {
                is_first &= queues.get(key).is_none_or(|queue| queue.front() == Some(&op));
            });
            // The keys are read before the attempt: afterwards the operation may be gone.
            let mut keys: [Option<ObjectKey>; 2] = [None; 2];
            let mut more = Vec::new();
            entry.for_each_key(|key| match keys.iter_mut().find(|place| place.is_none()) {
                Some(place) => *place = Some(*key),
                None => more.push(*key),
            });
            if !is_first || self.attempt(op) == Progress::Wait {
                self.parked.push_back(op);
                continue;
            }
            for key in keys.into_iter().flatten().chain(more) {
                self.leave_queue(&key, op);
            }
        }
    }

    fn leave_queue(&mut self, key: &ObjectKey, op: u32) {
        if let Some(queue) = self.queues.get_mut(key) {
            if queue.front() == Some(&op) {
                queue.pop_front();
            }
            if queue.is_empty() {
                self.queues.remove(key);
            }
        }
    }

    fn attempt(&mut self, op: u32) -> Progress {
        let Some(entry) = self.ops.get(op) else { return Progress::Through };
        if entry.pending > 0 {
            return Progress::Wait;
        }
        match entry.work {
            Work::Read { key, offset, length } => self.attempt_read(op, key, offset, length),
            Work::Attributes { key } => self.attempt_attributes(op, key),
            Work::Ask(_) => self.attempt_query(op),
            Work::One(_) | Work::Many(_) => self.attempt_change(op),
            Work::Flush => Progress::Through,
        }
    }

    /// Stops taking changes: a failed write may have half-changed what it went to.
    pub(crate) fn turn_read_only(&mut self, reason: ReadOnlyReason) {
        if self.state != StoreState::Writable {
            return;
        }
        self.state = StoreState::ReadOnly(reason);
        // No page becomes clean any more; questions need some that may go all the same.
        self.cache.grow(READ_ONLY_PAGES);
        let mut ops = self.journal.abandon();
        ops.extend(self.flush_waiters.drain(..).map(|(_, op)| op));
        if let Some(flushing) = &mut self.flushing {
            ops.append(&mut flushing.ops);
        }
        for op in ops {
            self.refuse(op, StoreRefusal::ReadOnly);
        }
        self.has_moved = true;
    }

    /// Ends an operation with a refusal as soon as the disk has given its buffer back.
    pub(crate) fn refuse(&mut self, op: u32, refusal: StoreRefusal) {
        let Some(entry) = self.ops.get_mut(op) else { return };
        entry.refusal = Some(refusal);
        if entry.pending == 0 {
            self.complete(op, Err(refusal));
        }
    }
}
