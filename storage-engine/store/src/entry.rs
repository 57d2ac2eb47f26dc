// SPDX-License-Identifier: Apache-2.0
//! The way of a journal entry from sealed to durable, and every end of a disk request.

use crate::disk::{Disk, DiskError};
use crate::io::{Context, Done};
use crate::request::StoreAnswer;
use crate::store::{Durability, Flushing, Omit, ReadOnlyReason, Store, StoreState};
use plinth_format::UNIT_BLOCKS;
use plinth_format::journal::{EntryHeader, entry_length, seal};

/// An open entry that is at least so long is sealed although another one is on its way.
const SEAL_BYTES: usize = 64 * 1024;
/// The same for one with so many changes. They need not wait for the device to end the entry before
/// them, and one page for so many blocks is an eighth of their bytes.
const SEAL_CHANGES: usize = 8;
/// The most blocks on their way back to their places: what keeps a device busy, and no more.
const WRITE_BACKS_MAX: usize = 128;
/// The most entries on their way to the disk.
const ENTRIES_IN_FLIGHT: u32 = 4;

impl<D: Disk> Store<D> {
    /// One disk request ended.
    pub(crate) fn finish(&mut self, done: Done) {
        let Done { context, buffer, result } = done;
        match context {
            Context::Read(run) => self.finish_run(run, buffer, result),
            Context::PageIn { slot, half, incarnation } => {
                self.finish_page_in((slot, half, incarnation), buffer, result);
            }
            Context::Quick(read) => self.finish_quick(read, buffer, result),
            Context::Judge(run) => self.finish_judge(run, buffer, result),
            Context::Data { seq, data_block, count, op } => {
                self.finish_data(seq, data_block, count, result);
                match (op.and_then(|op| self.ops.get_mut(op)), buffer) {
                    (Some(entry), buffer) => {
                        entry.buffer = buffer;
                        entry.pending -= 1;
                        if let (Some(op), Some(refusal)) = (op, entry.refusal) {
                            self.complete(op, Err(refusal));
                        }
                    }
                    (None, Some(buffer)) => self.io.pool.put(buffer),
                    (None, None) => {}
                }
            }
            Context::Journal { seq } => {
                if let Some(buffer) = buffer {
                    self.io.pool.put(buffer);
                }
                self.journal.writes_in_flight -= 1;
                match result {
                    Ok(()) => {
                        if let Some(entry) = self.journal.entry(seq) {
                            entry.is_written = true;
                        }
                    }
                    Err(error) => self.turn_read_only(ReadOnlyReason::Journal(error)),
                }
            }
            Context::Scrub(read) => self.finish_scrub(read, buffer, result),
            Context::Wipe { op, data_block, blocks } => {
                if let Some(buffer) = buffer {
                    self.io.pool.put(buffer);
                }
                self.finish_zeros(op, data_block, blocks, result);
            }
            Context::Flush => self.finish_flush(result),
            Context::Discard { first, count } => self.finish_discard(first, count, result),
            Context::Page(kind) => {
                if let Some(buffer) = buffer {
                    self.io.pool.put(buffer);
                }
                self.finish_page(kind, result);
            }
            Context::WriteBack(run) => {
                if let Some(buffer) = buffer {
                    self.io.pool.put(buffer);
                }
                match result {
                    Ok(()) => self.overlay.written(&run, &mut self.io.pool),
                    Err(error) => self.turn_read_only(ReadOnlyReason::Data(error)),
                }
            }
        }
    }

    fn finish_data(
        &mut self,
        seq: u64,
        data_block: u64,
        count: u32,
        result: Result<(), DiskError>,
    ) {
        self.writing.remove(data_block, count);
        if let Some(entry) = self.journal.entry(seq) {
            entry.data_pending = entry.data_pending.saturating_sub(1);
        }
        if let Err(error) = result {
            self.turn_read_only(ReadOnlyReason::Data(error));
        }
    }

    /// Moves entries on: complete, durable, acknowledged, confirmed.
    pub(crate) fn advance_entries(&mut self) {
        if self.state != StoreState::Writable {
            return;
        }
        self.journal.advance_complete();
        let omit = self.options.omit;
        if self.options.durability == Durability::Device || omit == Omit::FlushBeforeAcknowledge {
            self.journal.durable_seq = self.journal.complete_seq;
        }
        let before = self.journal.confirmed_seq;
        while let Some(ops) = self.journal.pop_durable() {
            self.has_moved = true;
            for &op in &ops {
                let changes = self.ops.get(op).map(|op| (op.units, op.objects, op.version));
                let (units, objects, version) = changes.unwrap_or_default();
                self.complete(op, Ok(StoreAnswer::Changed { units, objects, version }));
            }
            self.journal.recycle(ops);
        }
        if omit == Omit::ConfirmBeforeWriteBack {
            self.journal.confirmed_seq = self.journal.open_seq();
        }
        if self.journal.confirmed_seq > before {
            self.space.confirm(self.journal.confirmed_seq);
            self.marks.confirm(self.journal.confirmed_seq);
        }
        // Not only when more is confirmed: a unit may have waited for the disk's last write to it.
        if self.space.quarantined() > 0 {
            self.release_units();
        }
        if self.space.fault_count > 0 {
            self.turn_read_only(ReadOnlyReason::Books);
        }
        self.write_back();
    }

    fn release_units(&mut self) {
        let (writing, overlay) = (&self.writing, &self.overlay);
        let first = |unit: u32| u64::from(unit) * u64::from(UNIT_BLOCKS);
        let is_busy =
            |unit| writing.may_have(first(unit), UNIT_BLOCKS) || overlay.writes_in_unit(unit);
        let released = self.space.release(self.journal.confirmed_seq, is_busy);
        self.has_moved |= released > 0;
    }

    /// Writes deferred blocks to their places: all that a checkpoint waits for, else so many at a
    /// time as their room is filling up. From an eighth on one of eight that are over it is on
    /// its way, so that the room never fills at once and writers need not stand still while it is
    /// emptied. Blocks that are written again soon are written back once.
    fn write_back(&mut self) {
        if self.overlay.is_empty() || self.state != StoreState::Writable {
            self.wants_write_back = false;
            return;
        }
        let (waiting, capacity) = (self.overlay.len(), self.overlay.capacity());
        let is_pressed =
            self.wants_write_back || waiting * 4 > capacity * 3 || self.checkpoint.is_running();
        // Who still lacks room says so again when it is tried again.
        self.wants_write_back &= waiting * 2 > capacity;
        let over = waiting.saturating_sub(capacity / 8);
        let limit = if is_pressed { (capacity / 2).min(WRITE_BACKS_MAX) } else { over.div_ceil(8) };
        if limit == 0 {
            return;
        }
        let confirmed = self.journal.confirmed_seq;
        if is_pressed && self.overlay.newest().is_some_and(|seq| seq > confirmed) {
            self.wants_confirm = true;
        }
        while self.overlay.writing_count() < limit.min(WRITE_BACKS_MAX) {
            let Some((run, buffer)) = self.overlay.next_run(confirmed, &mut self.io.pool) else {
                break;
            };
            let address = self.layout.data_address(run.first);
            self.io.write(address, buffer, Context::WriteBack(run));
        }
    }

    /// Seals the open entry when it has something to say and the disk is free for it.
    pub(crate) fn seal_if_useful(&mut self) {
        if self.state != StoreState::Writable {
            return;
        }
        let in_flight = self.journal.writes_in_flight;
        if self.journal.is_open_empty() {
            let last = self.journal.open_seq() - 1;
            let is_settled = in_flight == 0 && self.journal.durable_seq == last;
            let is_news = self.journal.confirmed_seq < last;
            let wants = std::mem::take(&mut self.wants_confirm);
            if wants
                && is_news
                && is_settled
                && self.journal.can_confirm(self.checkpoint.has_begun())
            {
                self.seal_entry();
            } else if wants && is_news {
                // What is on its way comes first.
                self.wants_confirm = true;
            }
            return;
        }
        let is_long = self.journal.records.len() + self.journal.data.len() >= SEAL_BYTES
            || self.journal.open_entry().ops.len() >= SEAL_CHANGES;
        if in_flight == 0 || (is_long && in_flight < ENTRIES_IN_FLIGHT) {
            self.seal_entry();
        }
    }

    pub(crate) fn seal_entry(&mut self) {
        let (seq, offset) = self.journal.seal();
        let durable = self.journal.entry(seq).map_or(0, |entry| entry.durable_seq);
        let header = EntryHeader::new(self.checkpoint.session, seq, durable);
        let address = self.layout.journal_offset + offset;
        let length = entry_length(self.journal.records.len(), self.journal.data.len());
        let mut buffer = self.io.pool.take(length);
        let (records, data) = (&self.journal.records, &self.journal.data);
        seal(buffer.as_bytes_mut(), header, self.id, address, records, data);
        self.journal.records.clear();
        self.journal.data.clear();
        self.counters.journal_entries += 1;
        if self.options.omit == Omit::DataBeforeAcknowledge
            && let Some(entry) = self.journal.entry(seq)
        {
            entry.data_pending = 0;
        }
        self.io.write(address, buffer, Context::Journal { seq });
        self.has_moved = true;
    }

    /// A flush request ends behind a flush of the device that began after everything that was
    /// acknowledged before the request was complete. What is not acknowledged yet is not waited
    /// for: no disk promises that, and with many writers there is always something.
    pub(crate) fn start_flush(&mut self, op: u32) {
        if self.state == StoreState::ReadOnly(ReadOnlyReason::Rescue) {
            // Nothing was ever taken, so all of it is durable.
            self.complete(op, Ok(StoreAnswer::Flushed));
            return;
        }
        if self.state != StoreState::Writable {
            self.complete(op, Err(crate::request::StoreRefusal::ReadOnly));
            return;
        }
        let target = self.journal.durable_seq;
        self.counters.flushes += 1;
        if target <= self.journal.flushed_seq {
            // A flush that began after all of it was complete has ended: where every change is
            // acknowledged behind one, as a rule.
            self.complete(op, Ok(StoreAnswer::Flushed));
            return;
        }
        self.flush_waiters.push_back((target, op));
    }

    /// Starts a flush of the device when something waits for one.
    pub(crate) fn flush_if_useful(&mut self) {
        if self.flushing.is_some() || self.state != StoreState::Writable {
            return;
        }
        let complete = self.journal.complete_seq;
        let mut ops = Vec::new();
        while let Some(&(target, op)) = self.flush_waiters.front()
            && target <= complete
        {
            self.flush_waiters.pop_front();
            ops.push(op);
        }
        let is_needed =
            !ops.is_empty() || complete > self.journal.durable_seq || self.checkpoint.wants_flush();
        if is_needed {
            let is_checkpoints = self.checkpoint.take_flush();
            self.flushing = Some(Flushing { covers: complete, ops, is_checkpoints });
            self.io.flush();
        }
    }

    fn finish_flush(&mut self, result: Result<(), DiskError>) {
        let Some(flushing) = self.flushing.take() else { return };
        if let Err(error) = result {
            self.flushing = Some(flushing);
            self.turn_read_only(ReadOnlyReason::Flush(error));
            self.flushing = None;
            return;
        }
        self.journal.flushed_seq = self.journal.flushed_seq.max(flushing.covers);
        self.journal.durable_seq = self.journal.durable_seq.max(flushing.covers);
        for op in flushing.ops {
            self.complete(op, Ok(StoreAnswer::Flushed));
        }
        if flushing.is_checkpoints {
            self.checkpoint.flushed();
        }
    }
}
