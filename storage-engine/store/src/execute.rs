// SPDX-License-Identifier: Apache-2.0
//! Carrying a change out: maps, bitmap and counts in memory, records in the open entry, data
//! on its way to the disk. Everything that could refuse has been asked before.

use crate::buffer::{BLOCK_SIZE, IoBuffer};
use crate::change::{Action, UnitPlan};
use crate::disk::Disk;
use crate::io::Context;
use crate::keys::is_hidden;
use crate::objects::{BAD_FRAME, key_bytes};
use crate::op::{Old, Step, StepKind, block_range};
use crate::request::{OBJECT_SIZE_MAX, ObjectKey};
use crate::store::{Omit, Store};
use plinth_format::journal::{BlockData, Record};
use plinth_format::{
    Attributes, Le32, MAP_BLOCKS, MAP_UNITS, MapPage, OBJECT_UNITS, UNIT_BLOCKS, crc32c,
};

/// Blocks of a write that go side by side to the disk.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// First block, of the object.
    block: u32,
    count: u32,
    data_block: u64,
}

impl<D: Disk> Store<D> {
    pub(crate) fn execute(&mut self, op: u32, steps: &mut [Step]) {
        self.counters.changes += 1;
        self.raise_versions(steps);
        let version = self.journal.begin_change();
        let before = self.objects.count();
        let is_single = steps.len() == 1;
        for (number, step) in steps.iter_mut().enumerate() {
            if self.options.omit == Omit::KeysApart && number > 0 && is_hidden(&step.key) {
                self.seal_entry();
            }
            let own =
                if is_single { self.ops.get_mut(op).and_then(|op| op.buffer.take()) } else { None };
            let sender = own.is_some().then_some(op);
            let buffer = own.or_else(|| step.buffer.take());
            let left = self.execute_step(op, number, step, buffer, sender);
            match (left, self.ops.get_mut(op)) {
                (Some(buffer), Some(entry)) if sender.is_some() => entry.buffer = Some(buffer),
                (Some(buffer), _) => self.io.pool.put(buffer),
                (None, _) => {}
            }
        }
        if let Some(entry) = self.ops.get_mut(op) {
            for old in entry.old.drain(..) {
                self.io.pool.put(old.buffer);
            }
            let count = |objects: usize| i64::try_from(objects).unwrap_or(i64::MAX);
            entry.version = version;
            entry.objects = count(self.objects.count()) - count(before);
        }
        self.journal.open_entry().ops.push(op);
    }

    /// Before the change has its version, so that this one is above all that it names.
    fn raise_versions(&mut self, steps: &[Step]) {
        let named = steps.iter().filter_map(|step| match step.kind {
            StepKind::SetVersion { version: above } | StepKind::RaiseVersions { above } => {
                Some(above)
            }
            _ => None,
        });
        if let Some(above) = named.max() {
            let record_from = self.journal.records.len();
            self.journal.raise_versions(above);
            if self.options.omit == Omit::VersionBaseRecord {
                self.journal.records.truncate(record_from);
            }
        }
    }

    /// Gives the buffer back unless it is on its way to the disk.
    fn execute_step(
        &mut self,
        op: u32,
        number: usize,
        step: &Step,
        buffer: Option<IoBuffer>,
        sender: Option<u32>,
    ) -> Option<IoBuffer> {
        if !self.bad.is_empty() {
            self.forget_bad(step);
        }
        match &step.kind {
            StepKind::Touch => {
                self.need_object(step.key);
            }
            // Compared when the change was prepared, and raised before the first step.
            StepKind::Expect { .. } | StepKind::RaiseVersions { .. } => {}
            StepKind::SetVersion { version } => self.set_version(step.key, *version),
            StepKind::Write { offset, length } => {
                let slot = self.need_object(step.key);
                self.counters.user_bytes_written += u64::from(*length);
                self.note_version(slot, *offset / (MAP_BLOCKS * plinth_format::BLOCK_SIZE));
                return self.write(op, number, slot, (*offset, *length), buffer?, sender);
            }
            StepKind::WriteFull { length } => {
                let slot = self.need_object(step.key);
                self.counters.user_bytes_written += u64::from(*length);
                self.note_version(slot, 0);
                self.clear(op, slot, 0, OBJECT_UNITS * UNIT_BLOCKS);
                self.set_size(slot, *length);
                return self.write(op, number, slot, (0, *length), buffer?, sender);
            }
            StepKind::Zero { offset, length } => {
                if let Some(slot) = self.objects.find(&step.key) {
                    let (first, end) = block_range(*offset, *length);
                    self.note_version(slot, first / MAP_BLOCKS);
                    self.clear(op, slot, first, end);
                }
            }
            StepKind::Scrap => {
                if let Some(slot) = self.objects.find(&step.key) {
                    self.note_version(slot, 0);
                    self.scrap(op, slot);
                }
            }
            StepKind::Truncate { size } => {
                let slot = self.need_object(step.key);
                self.note_version(slot, 0);
                if *size < OBJECT_SIZE_MAX {
                    let (first, end) = block_range(*size, OBJECT_SIZE_MAX - *size);
                    self.clear(op, slot, first, end);
                }
                self.set_size(slot, *size);
            }
            StepKind::Remove => {
                if let Some(slot) = self.objects.find(&step.key) {
                    self.remove(op, slot);
                }
            }
            StepKind::Clone { source } => {
                if let Some(slot) = self.objects.find(&step.key) {
                    self.remove(op, slot);
                }
                // An object without keys has no companion.
                if !is_hidden(source) || self.objects.find(source).is_some() {
                    self.clone_object(op, source, step.key);
                }
            }
            // Their pages are written by steps of their own.
            StepKind::Keys(change) => self.note_keys(step.key, change.makes()),
            StepKind::SetAttribute { name, value } => self.set_attribute(step.key, name, value),
            StepKind::RemoveAttribute { name } => {
                if let Some(slot) = self.objects.find(&step.key) {
                    self.note_version(slot, 0);
                    self.change_page(slot, 0).remove_attribute(name);
                    self.journal.record(&Record::RemoveAttribute { slot, name });
                }
            }
        }
        buffer
    }

    /// A change of keys is one of their object, which it may make.
    fn note_keys(&mut self, key: ObjectKey, makes: bool) {
        if makes {
            self.need_object(key);
        }
        if let Some(slot) = self.objects.find(&key)
            && !is_hidden(&key)
        {
            self.note_version(slot, 0);
        }
    }

    /// The slot of the object, which is made if it is not there.
    fn need_object(&mut self, key: ObjectKey) -> u32 {
        if let Some(slot) = self.objects.find(&key) {
            return slot;
        }
        let incarnation = (self.journal.open_seq() << 16) + self.journal.creations + 1;
        self.journal.creations += 1;
        let slot = self.objects.create(key, incarnation);
        let slot = slot.expect("`prepare_room` counted the free slots");
        let key = key_bytes(&key);
        for half in 0..2 {
            let page = MapPage::empty(key, incarnation);
            let frame = self.install(slot, half, &page, 0);
            frame.expect("`prepare_room` reserved two frames for each new object");
        }
        self.journal.record(&Record::Create { slot, key, incarnation });
        self.note_version(slot, 0);
        slot
    }

    /// Gives the object the version of the change that is carried out, in one of its pages.
    pub(crate) fn note_version(&mut self, slot: u32, half: u32) {
        let version = self.journal.version();
        self.change_page(slot, half).set_version(version);
        if self.options.omit == Omit::VersionRecord {
            return;
        }
        self.journal.record_version(slot, u8::from(half > 0));
    }

    fn set_version(&mut self, key: ObjectKey, version: u64) {
        let slot = self.need_object(key);
        for half in 0..2 {
            self.change_page(slot, u32::from(half)).set_version(version);
            self.journal.record(&Record::SetVersion { slot, half, version });
        }
    }

    /// A map page for a change of the open entry.
    fn change_page(&mut self, slot: u32, half: u32) -> &mut MapPage {
        let frame = self.objects.slot(slot).frames[half as usize];
        let seq = self.journal.open_seq();
        &mut self.cache.change(frame, seq).page
    }

    fn set_size(&mut self, slot: u32, size: u32) {
        self.objects.change(slot).size = size;
        self.record_object(slot);
    }

    fn record_object(&mut self, slot: u32) {
        let place = self.objects.slot(slot);
        let (size, units) = (place.size, place.units);
        self.journal.record(&Record::Object { slot, size, units });
    }

    fn set_attribute(&mut self, key: ObjectKey, name: &[u8], value: &[u8]) {
        let slot = self.need_object(key);
        self.note_version(slot, 0);
        let set = self.change_page(slot, 0).set_attribute(name, value);
        set.expect("`check_attribute` has set it in a copy of the page");
        self.journal.record(&Record::SetAttribute { slot, name, value });
    }

    fn add_units(&mut self, op: u32, slot: u32, change: i64) {
        let place = self.objects.change(slot);
        let units = i64::from(place.units) + change;
        place.units = u16::try_from(units.clamp(0, i64::from(OBJECT_UNITS))).unwrap_or(0);
        if let Some(op) = self.ops.get_mut(op) {
            op.units += change;
        }
    }

    /// Lets go of a unit, and forgets its waiting blocks if nobody else has it.
    fn drop_unit(&mut self, unit: u32) {
        let seq = match self.options.omit {
            Omit::Quarantine => 0,
            _ => self.journal.open_seq(),
        };
        let left = self.space.drop_owner(unit, seq);
        if left == 0 && !self.overlay.is_empty() {
            let first = u64::from(unit) * u64::from(UNIT_BLOCKS);
            for block in first..first + u64::from(UNIT_BLOCKS) {
                self.overlay.drop_block(block, &mut self.io.pool);
            }
        }
        self.record_owners(unit, 1, left);
    }

    fn record_owners(&mut self, first: u32, count: u16, owners: u16) {
        let is_omitted = match self.options.omit {
            Omit::OwnersRecord => owners == 1,
            Omit::SharedOwnersRecord => owners > 1,
            _ => false,
        };
        if !is_omitted {
            self.journal.record(&Record::Owners { first, count, owners });
        }
    }

    /// Unwrites blocks; units that nothing is left in are let go.
    fn clear(&mut self, op: u32, slot: u32, first: u32, end: u32) {
        let mut dropped = 0;
        for index in first / UNIT_BLOCKS..=(end - 1) / UNIT_BLOCKS {
            let Some(unit) = self.unit_of(slot, index) else { continue };
            let mask = crate::change::unit_mask(index, first, end);
            let written = self.written_of(slot, index);
            let half = index / MAP_UNITS;
            if written & !mask == 0 {
                self.change_page(slot, half).set_unit(index % MAP_UNITS, None);
                let index = u16::try_from(index).expect("an object has 128 units");
                self.journal.record(&Record::Units { slot, index, count: 1, first: None });
                self.drop_unit(unit);
                dropped += 1;
            } else if written & mask != 0 {
                self.clear_blocks(slot, index, unit, mask);
            }
        }
        if dropped > 0 {
            self.add_units(op, slot, -dropped);
            self.record_object(slot);
        }
    }

    /// Unwrites everything; units that nobody else has stay.
    fn scrap(&mut self, op: u32, slot: u32) {
        let mut dropped = 0;
        for index in 0..OBJECT_UNITS {
            let Some(unit) = self.unit_of(slot, index) else { continue };
            if !self.space.is_shared(unit) {
                self.clear_blocks(slot, index, unit, u8::MAX);
                continue;
            }
            self.change_page(slot, index / MAP_UNITS).set_unit(index % MAP_UNITS, None);
            let index = u16::try_from(index).expect("an object has 128 units");
            self.journal.record(&Record::Units { slot, index, count: 1, first: None });
            self.drop_unit(unit);
            dropped += 1;
        }
        if dropped > 0 {
            self.add_units(op, slot, -dropped);
            self.record_object(slot);
        }
    }

    fn clear_blocks(&mut self, slot: u32, index: u32, unit: u32, mask: u8) {
        let frame = self.objects.slot(slot).frames[(index / MAP_UNITS) as usize];
        let seq = self.journal.open_seq();
        let is_shared = self.space.is_shared(unit);
        let frame = self.cache.change(frame, seq);
        frame.clear_seq = seq;
        for at in (0..UNIT_BLOCKS).filter(|at| mask & (1 << at) != 0) {
            frame.page.set_checksum((index * UNIT_BLOCKS + at) % MAP_BLOCKS, None);
            if !is_shared {
                let block = u64::from(unit) * u64::from(UNIT_BLOCKS) + u64::from(at);
                self.overlay.drop_block(block, &mut self.io.pool);
            }
        }
        // The mask is one run: it is the part of one range that lies in this unit.
        let first = index * UNIT_BLOCKS + mask.trailing_zeros();
        let block = u16::try_from(first).expect("an object has 1024 blocks");
        let count = u16::try_from(mask.count_ones()).expect("a unit has eight blocks");
        self.journal.record(&Record::Clear { slot, block, count });
    }

    fn remove(&mut self, op: u32, slot: u32) {
        let frames = self.objects.slot(slot).frames;
        let mut dropped = 0;
        for frame in frames.into_iter().filter(|&frame| frame < BAD_FRAME) {
            for index in 0..MAP_UNITS {
                if let Some(unit) = self.cache.frame(frame).page.unit(index) {
                    self.drop_unit(unit);
                    dropped += 1;
                }
            }
            self.cache.discard(frame);
        }
        if let Some(op) = self.ops.get_mut(op) {
            op.units -= dropped;
        }
        self.objects.remove(slot);
        self.marks.forget(slot);
        self.journal.record(&Record::Remove { slot });
    }

    fn clone_object(&mut self, op: u32, source: &ObjectKey, target: ObjectKey) {
        let from = self.objects.find(source).expect("`needs` found the source");
        let to = self.need_object(target);
        let mut units = 0;
        for half in 0..2 {
            let frame = self.objects.slot(from).frames[half as usize];
            let page = *self.cache.frame(frame).page;
            let (clear_seq, deferred_seq) = {
                let frame = self.cache.frame(frame);
                (frame.clear_seq, frame.deferred_seq)
            };
            units += self.clone_half(to, half, &page);
            let frame = self.objects.slot(to).frames[half as usize];
            let seq = self.journal.open_seq();
            let frame = self.cache.change(frame, seq);
            (frame.clear_seq, frame.deferred_seq) = (clear_seq, deferred_seq);
            frame.page.copy_attributes(&page);
            let attributes = Attributes::parse(&page).expect("the page was judged when it came in");
            for (name, value) in attributes.iter() {
                self.journal.record(&Record::SetAttribute { slot: to, name, value });
            }
        }
        // What is not known of the source's blocks is not known of the same blocks here.
        for half in 0..2 {
            if !self.marks.suspects.contains(&(from, half)) {
                continue;
            }
            self.marks.suspects.insert((to, half));
            self.log_mark(to, half);
        }
        self.objects.change(to).size = self.objects.slot(from).size;
        self.add_units(op, to, units);
        self.record_object(to);
    }

    fn clone_half(&mut self, to: u32, half: u32, page: &MapPage) -> i64 {
        let mut units = 0;
        for (index, unit) in page.units() {
            self.change_page(to, half).set_unit(index, Some(unit));
            let place = u16::try_from(half * MAP_UNITS + index).expect("an object has 128 units");
            let first = Some(unit);
            self.journal.record(&Record::Units { slot: to, index: place, count: 1, first });
            let owners = self.space.share(unit);
            self.record_owners(unit, 1, owners);
            units += 1;
            let mut at = 0;
            while at < UNIT_BLOCKS {
                let first = index * UNIT_BLOCKS + at;
                self.checksums.clear();
                while at < UNIT_BLOCKS
                    && let Some(checksum) = page.checksum(index * UNIT_BLOCKS + at)
                {
                    self.checksums.push(Le32::new(checksum));
                    at += 1;
                }
                self.record_run(to, half * MAP_BLOCKS + first, BlockData::Shared);
                at += 1;
            }
        }
        units
    }

    /// Puts `self.checksums` into the map and into the journal.
    pub(crate) fn record_run(&mut self, slot: u32, block: u32, data: BlockData) {
        if self.checksums.is_empty() {
            return;
        }
        let checksums = std::mem::take(&mut self.checksums);
        for (block, checksum) in (block..).zip(&checksums) {
            let page = self.change_page(slot, block / MAP_BLOCKS);
            page.set_checksum(block % MAP_BLOCKS, Some(checksum.get()));
        }
        if let BlockData::Direct { data_block } = data {
            let seq = self.journal.open_seq();
            self.marks.note_direct(seq, data_block, to_u32(checksums.len()));
        }
        self.journal.record_checksums(slot, block, data, &checksums);
        self.checksums = checksums;
    }

    fn write(
        &mut self,
        op: u32,
        number: usize,
        slot: u32,
        (offset, length): (u32, u32),
        mut buffer: IoBuffer,
        sender: Option<u32>,
    ) -> Option<IoBuffer> {
        let old = self.ops.get_mut(op).map(|op| std::mem::take(&mut op.old)).unwrap_or_default();
        merge_edges(&mut buffer, offset, length, number, &old);
        let (first, end) = block_range(offset, length);
        let before = *self.objects.slot(slot);
        let mut pending: Option<Segment> = None;
        let mut buffer = Some(buffer);
        for index in first / UNIT_BLOCKS..=(end - 1) / UNIT_BLOCKS {
            let plan = self.plan_unit(Some(slot), index, first, end, self.is_full_plan);
            let bytes = buffer.as_ref().expect("the buffer goes down after the last unit");
            let from = index * UNIT_BLOCKS + plan.mask.trailing_zeros();
            let at = (from - first) as usize * BLOCK_SIZE;
            let count = plan.mask.count_ones();
            let part = &bytes.as_bytes()[at..at + count as usize * BLOCK_SIZE];
            match plan.action {
                Action::Defer => self.defer(slot, from, part),
                Action::Copy => {
                    let found = old.iter().find(|old| old.step == number && old.unit == index);
                    let unit = self.place_unit(op, slot, index);
                    self.copy_unit(slot, plan, unit, part, found);
                }
                Action::Place | Action::InPlace | Action::Overwrite => {
                    let unit = match plan.action {
                        Action::Place => self.place_unit(op, slot, index),
                        _ => self.unit_of(slot, index).expect("`plan_unit` saw the unit"),
                    };
                    let data_block =
                        u64::from(unit) * u64::from(UNIT_BLOCKS) + u64::from(from % UNIT_BLOCKS);
                    let next = Segment { block: from, count, data_block };
                    pending = match pending {
                        Some(last) if follows(&last, &next) => {
                            Some(Segment { count: last.count + count, ..last })
                        }
                        last => {
                            self.send(op, slot, first, end, last, &mut buffer, None);
                            Some(next)
                        }
                    };
                }
            }
        }
        self.send(op, slot, first, end, pending, &mut buffer, sender);
        let place = *self.objects.slot(slot);
        let grown = (offset + length).max(place.size);
        if grown != place.size || place.units != before.units {
            self.set_size(slot, grown);
        }
        if let Some(op) = self.ops.get_mut(op) {
            op.old = old;
        }
        buffer
    }

    /// Sends a segment down: the whole buffer if it is all of it and may go, else a copy.
    #[expect(clippy::too_many_arguments, reason = "the write's range, and one piece of it")]
    fn send(
        &mut self,
        op: u32,
        slot: u32,
        first: u32,
        end: u32,
        segment: Option<Segment>,
        buffer: &mut Option<IoBuffer>,
        sender: Option<u32>,
    ) {
        let Some(segment) = segment else { return };
        let Some(whole) = buffer.take() else { return };
        let at = (segment.block - first) as usize * BLOCK_SIZE;
        let length = segment.count as usize * BLOCK_SIZE;
        self.sum(&whole.as_bytes()[at..at + length]);
        self.record_written(slot, segment);
        if segment.count == end - first && sender.is_some() {
            if let Some(op) = self.ops.get_mut(op) {
                op.pending += 1;
            }
            self.write_data(segment.data_block, whole, sender);
            return;
        }
        let mut part = self.io.pool.take(length);
        part.as_bytes_mut().copy_from_slice(&whole.as_bytes()[at..at + length]);
        *buffer = Some(whole);
        self.write_data(segment.data_block, part, None);
    }

    /// Records a segment: the blocks that were unwritten as written directly, those that were
    /// written as overwritten in place.
    fn record_written(&mut self, slot: u32, segment: Segment) {
        let all = std::mem::take(&mut self.checksums);
        let mut rest = &all[..];
        let (mut block, mut data_block) = (segment.block, segment.data_block);
        while let Some(is_over) = (!rest.is_empty()).then(|| self.is_overwritten(slot, block)) {
            let mut count = 1;
            while count < rest.len() && self.is_overwritten(slot, block + to_u32(count)) == is_over
            {
                count += 1;
            }
            let (run, next) = rest.split_at(count);
            self.checksums.clear();
            self.checksums.extend_from_slice(run);
            if is_over {
                self.note_overwrite(slot, block, to_u32(count));
                self.record_run(slot, block, BlockData::InPlace { data_block });
            } else {
                self.record_run(slot, block, BlockData::Direct { data_block });
            }
            (rest, block, data_block) = (next, block + to_u32(count), data_block + count as u64);
        }
        self.checksums = all;
    }

    fn is_overwritten(&self, slot: u32, block: u32) -> bool {
        let frame = self.objects.slot(slot).frames[(block / MAP_BLOCKS) as usize];
        self.marks.is_on()
            && self.options.omit != Omit::Redirect
            && self.cache.frame(frame).page.checksum(block % MAP_BLOCKS).is_some()
    }

    pub(crate) fn note_overwrite(&mut self, slot: u32, block: u32, count: u32) {
        let seq = self.journal.open_seq();
        self.counters.blocks_overwritten += u64::from(count);
        for half in block / MAP_BLOCKS..=(block + count - 1) / MAP_BLOCKS {
            let frame = self.objects.slot(slot).frames[half as usize];
            let frame = self.cache.touch(frame);
            (frame.is_mark_used, frame.in_place_seq) = (true, seq);
        }
    }

    pub(crate) fn sum(&mut self, bytes: &[u8]) {
        self.checksums.clear();
        let sums = bytes.chunks_exact(BLOCK_SIZE).map(|block| Le32::new(crc32c(block)));
        self.checksums.extend(sums);
    }

    /// Starts a data write that belongs to the open entry.
    pub(crate) fn write_data(&mut self, data_block: u64, buffer: IoBuffer, op: Option<u32>) {
        let count = to_u32(buffer.length() / BLOCK_SIZE);
        self.writing.add(data_block, count);
        let entry = self.journal.open_entry();
        entry.data_pending += 1;
        let seq = entry.seq;
        let address = self.layout.data_address(data_block);
        self.io.write(address, buffer, Context::Data { seq, data_block, count, op });
    }

    /// Gives the object a new unit at this place and lets go of the old one.
    fn place_unit(&mut self, op: u32, slot: u32, index: u32) -> u32 {
        let before = index.checked_sub(1).and_then(|index| self.unit_of(slot, index));
        let taken = self.space.take(before.map(|unit| unit + 1));
        let unit = taken.expect("`prepare_room` counted the free units");
        let earlier = self.unit_of(slot, index);
        self.change_page(slot, index / MAP_UNITS).set_unit(index % MAP_UNITS, Some(unit));
        let place = u16::try_from(index).expect("an object has 128 units");
        let first = Some(unit);
        self.journal.record(&Record::Units { slot, index: place, count: 1, first });
        self.record_owners(unit, 1, 1);
        match earlier {
            Some(earlier) => self.drop_unit(earlier),
            None => self.add_units(op, slot, 1),
        }
        unit
    }

    /// Writes a whole unit: the new blocks, and the old ones that stay.
    fn copy_unit(&mut self, slot: u32, plan: UnitPlan, unit: u32, part: &[u8], old: Option<&Old>) {
        let mut whole = self.io.pool.take(UNIT_BLOCKS as usize * BLOCK_SIZE);
        let old = old.expect("`prepare_old` read what a shared unit keeps");
        whole.as_bytes_mut().copy_from_slice(old.buffer.as_bytes());
        let at = plan.mask.trailing_zeros() as usize * BLOCK_SIZE;
        whole.as_bytes_mut()[at..at + part.len()].copy_from_slice(part);
        let written = plan.mask | plan.kept;
        let mut block = 0;
        while block < UNIT_BLOCKS {
            let count = (written >> block).trailing_ones();
            if count == 0 {
                block += 1;
                continue;
            }
            let at = block as usize * BLOCK_SIZE;
            let bytes = &whole.as_bytes()[at..at + count as usize * BLOCK_SIZE];
            let mut run = self.io.pool.take(bytes.len());
            run.as_bytes_mut().copy_from_slice(bytes);
            self.sum(run.as_bytes());
            let data_block = u64::from(unit) * u64::from(UNIT_BLOCKS) + u64::from(block);
            let data = BlockData::Direct { data_block };
            self.record_run(slot, plan.index * UNIT_BLOCKS + block, data);
            self.write_data(data_block, run, None);
            block += count;
        }
        self.io.pool.put(whole);
    }

    /// Puts blocks of one unit into the open entry and the overlay.
    fn defer(&mut self, slot: u32, block: u32, bytes: &[u8]) {
        let unit = self.unit_of(slot, block / UNIT_BLOCKS).expect("`plan_unit` saw the unit");
        let data_block = u64::from(unit) * u64::from(UNIT_BLOCKS) + u64::from(block % UNIT_BLOCKS);
        let seq = self.journal.open_seq();
        let mut first_index = None;
        for (target, bytes) in (data_block..).zip(bytes.chunks_exact(BLOCK_SIZE)) {
            let index = self.journal.push_data(bytes);
            first_index.get_or_insert(index);
            self.overlay.put(target, seq, bytes, &mut self.io.pool);
        }
        let frame = self.objects.slot(slot).frames[(block / MAP_BLOCKS) as usize];
        self.cache.touch(frame).deferred_seq = seq;
        self.sum(bytes);
        let index = first_index.expect("a write has a block");
        self.record_run(slot, block, BlockData::Deferred { index, data_block });
    }
}

fn to_u32(blocks: usize) -> u32 {
    u32::try_from(blocks).expect("an object has 1024 blocks")
}

fn follows(last: &Segment, next: &Segment) -> bool {
    last.block + last.count == next.block
        && last.data_block + u64::from(last.count) == next.data_block
}

/// Fills the rest of the first and last block with what was there, or zeros.
fn merge_edges(buffer: &mut IoBuffer, offset: u32, length: u32, step: usize, old: &[Old]) {
    let block_size = plinth_format::BLOCK_SIZE;
    let (first, _) = block_range(offset, length);
    let mut fill = |block: u32, from: usize, to: usize| {
        let at = (block - first) as usize * BLOCK_SIZE;
        let target = &mut buffer.as_bytes_mut()[at + from..at + to];
        let unit = block / UNIT_BLOCKS;
        match old.iter().find(|old| old.step == step && old.unit == unit) {
            Some(old) => {
                let at = (block % UNIT_BLOCKS) as usize * BLOCK_SIZE;
                target.copy_from_slice(&old.buffer.as_bytes()[at + from..at + to]);
            }
            None => target.fill(0),
        }
    };
    let end = offset + length;
    if !offset.is_multiple_of(block_size) {
        fill(offset / block_size, 0, (offset % block_size) as usize);
    }
    if !end.is_multiple_of(block_size) {
        fill(end / block_size, (end % block_size) as usize, BLOCK_SIZE);
    }
}
