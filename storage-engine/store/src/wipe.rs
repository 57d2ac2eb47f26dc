// SPDX-License-Identifier: Apache-2.0
//! Zeros over what an object has, before its units are free again.
//!
//! ```text
//!   Scrap ─ durable, confirmed ─▶ Wipe: zeros to its own units ─ on the device ─▶ Remove ─▶ free
//! ```
//!
//! `Scrap` leaves the object its units and says that nothing is written in them. From its
//! confirmation on nobody, now or after a crash, can need their bytes, so zeros need no record:
//! the same law under which data goes to unwritten blocks. A crash between leaves an object with
//! units of zeros or old bytes that read as zeros; who wipes begins again with the object.
//!
//! `TurnJournal` goes once round the journal, whose entries may have bytes of small writes: with
//! entries that have zeros for data and say nothing. Recovery passes over them as over any.

use crate::disk::{Disk, DiskError};
use crate::io::Context;
use crate::query::{Found, Query};
use crate::request::{ObjectKey, StoreAnswer, StoreRefusal};
use crate::store::{Omit, ReadOnlyReason, Store, StoreState};
use plinth_format::{MAP_UNITS, OBJECT_UNITS, UNIT_BLOCKS, UNIT_SIZE};

/// Units that one write of zeros goes over, at most.
const RUN_MAX: u32 = 8;

impl<D: Disk> Store<D> {
    /// Sends the zeros, or says that they are there.
    pub(crate) fn wipe(&mut self, op: u32, key: &ObjectKey, sent: Option<u32>) -> Found {
        if let Some(units) = sent {
            return Found::Answer(StoreAnswer::Wiped { units });
        }
        if self.state != StoreState::Writable {
            return Found::Refusal(StoreRefusal::ReadOnly);
        }
        let Some(slot) = self.objects.find(key) else {
            return Found::Answer(StoreAnswer::Wiped { units: 0 });
        };
        match self.need_pages(&[slot]) {
            Ok(true) => {}
            Ok(false) => return Found::Not,
            Err(refusal) => return Found::Refusal(refusal),
        }
        let Some(units) = self.units_to_wipe(slot) else { return Found::Not };
        let count = u32::try_from(units.len()).unwrap_or(u32::MAX);
        if units.is_empty() {
            return Found::Answer(StoreAnswer::Wiped { units: 0 });
        }
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for unit in units {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == unit && *count < RUN_MAX => *count += 1,
                _ => runs.push((unit, 1)),
            }
        }
        for (first, count) in runs {
            self.send_zeros(op, first, count);
        }
        Found::Later(Query::Wipe { key: *key, sent: Some(count) })
    }

    /// The object's units in which nothing is written and that nobody else has or had. `None`
    /// when that must be waited for.
    fn units_to_wipe(&mut self, slot: u32) -> Option<Vec<u32>> {
        let is_early = self.options.omit == Omit::WipeConfirm;
        let mut units = Vec::new();
        for index in 0..OBJECT_UNITS {
            let Some(unit) = self.unit_of(slot, index) else { continue };
            if self.written_of(slot, index) != 0 || self.space.is_shared(unit) {
                continue;
            }
            let frame = self.objects.slot(slot).frames[(index / MAP_UNITS) as usize];
            let is_clear = self.cache.frame(frame).clear_seq <= self.journal.confirmed_seq;
            if !is_early && (!is_clear || !self.space.is_alone(unit)) {
                self.wants_confirm = true;
                return None;
            }
            let first = u64::from(unit) * u64::from(UNIT_BLOCKS);
            if self.writing.may_have(first, UNIT_BLOCKS) || self.overlay.writes_in_unit(unit) {
                return None;
            }
            units.push(unit);
        }
        units.sort_unstable();
        Some(units)
    }

    fn send_zeros(&mut self, op: u32, first: u32, count: u32) {
        let blocks = count * UNIT_BLOCKS;
        let data_block = u64::from(first) * u64::from(UNIT_BLOCKS);
        let mut buffer = self.io.pool.take((count * UNIT_SIZE) as usize);
        buffer.as_bytes_mut().fill(0);
        // Later writes to these blocks, and their units' freedom, wait for the zeros.
        self.writing.add(data_block, blocks);
        if let Some(entry) = self.ops.get_mut(op) {
            entry.pending += 1;
        }
        let address = self.layout.data_address(data_block);
        self.io.write(address, buffer, Context::Wipe { op, data_block, blocks });
    }

    pub(crate) fn finish_zeros(
        &mut self,
        op: u32,
        data_block: u64,
        blocks: u32,
        result: Result<(), DiskError>,
    ) {
        self.writing.remove(data_block, blocks);
        if let Some(entry) = self.ops.get_mut(op) {
            entry.pending -= 1;
            if result.is_err() {
                // It is parked, and ends when it is tried again.
                entry.refusal = Some(StoreRefusal::ReadOnly);
            }
        }
        if let Err(error) = result {
            self.turn_read_only(ReadOnlyReason::Data(error));
        }
    }

    /// Waits until the journal has been gone round, for which [`Store::advance_turn`] cares.
    pub(crate) fn turn_journal(&mut self, until: Option<u64>) -> Found {
        if self.state != StoreState::Writable {
            return Found::Refusal(StoreRefusal::ReadOnly);
        }
        match until {
            None => Found::Later(Query::TurnJournal { until: Some(self.journal.begin_turn()) }),
            Some(number) if self.journal.turns_done() >= number => {
                Found::Answer(StoreAnswer::Flushed)
            }
            Some(_) => Found::Not,
        }
    }

    /// Writes the next piece of the journal over, where somebody wants that.
    pub(crate) fn advance_turn(&mut self) {
        if self.state != StoreState::Writable || !self.journal.is_turning() {
            return;
        }
        if self.journal.finish_turn() {
            self.has_moved = true;
            return;
        }
        if !self.journal.is_open_empty() || self.journal.writes_in_flight > 0 {
            return;
        }
        match self.journal.filler() {
            Some(bytes) => {
                self.journal.data.resize(bytes, 0);
                self.seal_entry();
            }
            // What is left to do is on its way to the disk.
            None if self.journal.is_turned() || self.checkpoint.is_running() => {}
            None => self.request_checkpoint(),
        }
    }
}
