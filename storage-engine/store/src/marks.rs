// SPDX-License-Identifier: Apache-2.0
//! Overwriting in place, and the marks under which that is safe.
//!
//! ```text
//!   unmarked ─ first overwrite: a Mark record, the write waits ─▶ marked: data and record side
//!      ▲                                                  │       by side, one flush for both
//!      │ a checkpoint finds it unused since the last      │ a checkpoint logs it again
//!      └──────────────────────────────────────────────────┘
//!   crash ─▶ suspect: a block that does not match its checksum is adopted ─ judged ─▶ unmarked
//! ```
//!
//! Only where the disk never tears 4 KiB: there a block that a crash caught being overwritten is
//! the old one or the new one, both of which are legal for a write that nobody was told of. The
//! mark says where this can have happened. `docs/formats/store.md` has the argument.
//!
//! A mark is for one half of an object, which is one map page, and lives with the page in memory.

use crate::change::{Ready, unit_mask};
use crate::disk::Disk;
use crate::filter::BlockFilter;
use crate::objects::BAD_FRAME;
use crate::op::{Step, StepKind, block_range};
use crate::store::{Omit, Store};
use plinth_format::journal::Record;
use plinth_format::{MAP_UNITS, UNIT_BLOCKS};
use std::collections::{BTreeSet, VecDeque};

/// The most marks in the live part of the journal: what recovery may have to judge.
const MARKS_MAX: u64 = 65_536;
/// Bytes of a Mark record.
const MARK_BYTES: usize = 8;

#[derive(Debug)]
pub(crate) struct Marks {
    /// Whether the disk never tears a block.
    is_on: bool,
    max: usize,
    /// Mark records behind the replay point of the newest superblock, and of those the ones
    /// behind the replay point of the checkpoint that is under way.
    logged: usize,
    since: usize,
    /// Blocks that were written directly by entries that are not confirmed: recovery compares
    /// them with those entries' checksums, so nothing may be written over them.
    direct: VecDeque<(u64, u64, u32)>,
    direct_blocks: BlockFilter,
    /// Halves of objects, as slot and half, whose blocks a crash may have caught being
    /// overwritten.
    pub(crate) suspects: BTreeSet<(u32, u32)>,
    pub(crate) judging: Option<crate::suspect::Judging>,
}

/// What stands in the way of overwriting blocks of a unit in place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Overwrite {
    /// Nothing.
    Yes,
    /// It is no overwrite, or may not be one for as long as this journal lives.
    No,
    /// The half must be marked, durably.
    Mark,
    /// The disk is writing one of the blocks.
    Busy,
    /// Recovery may need the blocks until some entry is confirmed.
    Unconfirmed,
}

impl Marks {
    pub(crate) fn new(atomic_write_size: u32, journal_length: u64) -> Self {
        let max = MARKS_MAX.min(journal_length / 256);
        Self {
            is_on: atomic_write_size >= plinth_format::BLOCK_SIZE,
            max: usize::try_from(max).unwrap_or(0),
            logged: 0,
            since: 0,
            direct: VecDeque::new(),
            direct_blocks: BlockFilter::new(),
            suspects: BTreeSet::new(),
            judging: None,
        }
    }

    pub(crate) const fn is_on(&self) -> bool {
        self.is_on
    }

    /// The most marks that a recovery may find.
    pub(crate) const fn max(&self) -> usize {
        self.max
    }

    const fn has_room(&self) -> bool {
        self.logged < self.max
    }

    const fn count(&mut self) {
        self.logged += 1;
        self.since += 1;
    }

    /// A checkpoint has cut the journal.
    pub(crate) const fn cut(&mut self) {
        self.logged = self.since;
    }

    pub(crate) fn note_direct(&mut self, seq: u64, data_block: u64, count: u32) {
        if self.is_on {
            self.direct.push_back((seq, data_block, count));
            self.direct_blocks.add(data_block, count);
        }
    }

    pub(crate) fn confirm(&mut self, confirmed: u64) {
        while let Some(&(seq, data_block, count)) = self.direct.front()
            && seq <= confirmed
        {
            self.direct.pop_front();
            self.direct_blocks.remove(data_block, count);
        }
    }

    /// The object is gone, and what is suspected of it.
    pub(crate) fn forget(&mut self, slot: u32) {
        if !self.suspects.is_empty() {
            self.suspects.remove(&(slot, 0));
            self.suspects.remove(&(slot, 1));
        }
    }
}

impl<D: Disk> Store<D> {
    /// What a write of these blocks of one unit could do in place. The map page is in memory.
    pub(crate) fn overwrite(&self, slot: u32, index: u32, mask: u8) -> Overwrite {
        if !self.marks.is_on || !self.is_single_write {
            return Overwrite::No;
        }
        let frame = self.objects.slot(slot).frames[(index / MAP_UNITS) as usize];
        if frame >= BAD_FRAME {
            return Overwrite::No;
        }
        let frame = self.cache.frame(frame);
        let Some(unit) = frame.page.unit(index % MAP_UNITS) else { return Overwrite::No };
        let written = frame.page.written(index % MAP_UNITS);
        let (omit, journal) = (self.options.omit, &self.journal);
        if written & mask == 0 || self.space.is_shared(unit) {
            return Overwrite::No;
        }
        // A deferred block is written again by recovery for as long as its entry is there.
        if frame.deferred_seq >= journal.cut_seq && omit != Omit::OverwriteDeferred {
            return Overwrite::No;
        }
        let first = u64::from(unit) * u64::from(UNIT_BLOCKS) + u64::from(mask.trailing_zeros());
        let count = mask.count_ones();
        if (first..first + u64::from(count)).any(|block| self.overlay.holds(block)) {
            return Overwrite::No;
        }
        if frame.mark_seq == 0 {
            return if self.marks.has_room() { Overwrite::Mark } else { Overwrite::No };
        }
        if frame.mark_seq > journal.durable_seq && omit != Omit::MarkDurable {
            return Overwrite::Mark;
        }
        if self.writing.may_have(first, count) && omit != Omit::OverwriteSerial {
            return Overwrite::Busy;
        }
        let is_clear = mask & !written == 0
            || frame.clear_seq <= journal.confirmed_seq
            || omit == Omit::ClearGuard;
        let is_alone = self.space.is_alone(unit) || omit == Omit::AloneGuard;
        let is_judged =
            !self.marks.direct_blocks.may_have(first, count) || omit == Omit::OverwriteConfirm;
        if is_clear && is_alone && is_judged { Overwrite::Yes } else { Overwrite::Unconfirmed }
    }

    /// Has what a write overwrites marked; ready when it may be overwritten, or will not be.
    pub(crate) fn prepare_marks(&mut self, _op: u32, steps: &[Step]) -> Ready {
        if !self.marks.is_on {
            return Ready::Yes;
        }
        let mut is_waiting = false;
        for step in steps {
            match step.kind {
                StepKind::Clone { source } => is_waiting |= !self.is_settled(&source),
                StepKind::Write { offset, length } if self.is_single_write => {
                    let Some(slot) = self.objects.find(&step.key) else { continue };
                    let (first, end) = block_range(offset, length);
                    for index in first / UNIT_BLOCKS..=(end - 1) / UNIT_BLOCKS {
                        let mask = unit_mask(index, first, end);
                        is_waiting |= self.must_wait(slot, index, mask);
                    }
                }
                _ => {}
            }
        }
        if is_waiting { Ready::Wait } else { Ready::Yes }
    }

    fn must_wait(&mut self, slot: u32, index: u32, mask: u8) -> bool {
        let found = self.overwrite(slot, index, mask);
        // A whole unit could go to a new one at once. It waits for its mark all the same: in place
        // the volume keeps its layout, and the disk is not asked for memory or extents that it
        // has never given. It needs no patience with other writes.
        let is_whole = mask == u8::MAX;
        match found {
            Overwrite::Yes | Overwrite::No => return false,
            Overwrite::Mark => self.mark(slot, index / MAP_UNITS),
            _ if is_whole => return false,
            Overwrite::Busy => {}
            Overwrite::Unconfirmed => self.wants_confirm = true,
        }
        true
    }

    /// Writes a mark into the open entry, unless one is on its way.
    fn mark(&mut self, slot: u32, half: u32) {
        let frame = self.objects.slot(slot).frames[half as usize];
        if self.cache.frame(frame).mark_seq != 0 {
            return;
        }
        if !self.journal.has_room(MARK_BYTES, 0) {
            self.checkpoint.is_wanted |= self.journal.used() > self.journal.length() / 4;
            return;
        }
        if self.options.omit == Omit::Mark {
            self.cache.touch(frame).mark_seq = 1;
            return;
        }
        self.log_mark(slot, half);
        self.cache.touch(frame).mark_seq = self.journal.open_seq();
    }

    pub(crate) fn log_mark(&mut self, slot: u32, half: u32) {
        self.journal.record(&Record::Mark { slot, halves: 1 << half });
        self.marks.count();
    }

    /// Whether what was written in place in an object is durable: a clone has its own map, and
    /// would not know what to think of a block that is the old one after a crash.
    fn is_settled(&self, source: &crate::request::ObjectKey) -> bool {
        let Some(slot) = self.objects.find(source) else { return true };
        // A clone of what is suspected is suspected, and marked.
        let is_suspected = !self.marks.suspects.is_empty()
            && (0..2).any(|half| self.marks.suspects.contains(&(slot, half)));
        if is_suspected && !self.marks.has_room() {
            return false;
        }
        let frames = self.objects.slot(slot).frames;
        let mut known = frames.into_iter().filter(|&frame| frame < BAD_FRAME);
        let durable = self.journal.durable_seq;
        known.all(|frame| self.cache.frame(frame).in_place_seq <= durable)
            || self.options.omit == Omit::CloneSettled
    }

    /// A checkpoint begins: marks that were used since the last one, and what is suspected, go
    /// into the part of the journal that stays. The superblock that cuts the rest waits until
    /// they are durable, so writes go on under the old ones meanwhile.
    pub(crate) fn log_marks_again(&mut self) {
        self.marks.since = 0;
        if self.options.omit == Omit::MarkAtCheckpoint {
            return;
        }
        let suspects = std::mem::take(&mut self.marks.suspects);
        for &(slot, half) in &suspects {
            self.log_mark(slot, half);
        }
        self.marks.suspects = suspects;
        for index in 0..self.cache.frame_count() {
            let Some((slot, half)) = self.cache.renew_mark(index) else { continue };
            self.log_mark(slot, half);
        }
    }
}
