// SPDX-License-Identifier: Apache-2.0
//! Getting a change ready: its map pages in memory, its old bytes read, room for all of it.
//!
//! Nothing is changed here. When everything is there, `execute` carries the whole transaction
//! out in one go, and no step of it can fail any more.

use crate::buffer::BLOCK_SIZE;
use crate::disk::Disk;
use crate::keys::is_hidden;
use crate::marks::Overwrite;
use crate::objects::{BAD_FRAME, NO_FRAME};
use crate::op::{Old, Step, StepKind, Work, block_range, cloned_from, is_cloned_before};
use crate::request::{ObjectKey, STEPS_MAX, StoreRefusal};
use crate::space::Space;
use crate::store::{Omit, Progress, Store, StoreState};
use plinth_format::{
    Attributes, MAP_BLOCKS, MAP_UNITS, MapPage, OBJECT_UNITS, UNIT_BLOCKS, UNIT_SIZE,
};

/// What a write does with one unit of the object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Action {
    /// To a new unit; what was at this place is let go.
    Place,
    /// To a new unit, with the blocks of the old one that are not overwritten.
    Copy,
    /// To blocks of its unit that were never written.
    InPlace,
    /// Over written blocks of its unit, under a mark.
    Overwrite,
    /// Into the journal, and to its place later.
    Defer,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct UnitPlan {
    /// Place of the unit in the object.
    pub(crate) index: u32,
    /// Blocks that are written.
    pub(crate) mask: u8,
    /// Blocks of the old unit that stay.
    pub(crate) kept: u8,
    pub(crate) action: Action,
}

/// What a change needs.
#[derive(Clone, Copy, Debug, Default)]
struct Needs {
    units: u32,
    /// Of them: those that make up for no unit that is let go.
    grown: u32,
    /// Blocks that go into the journal.
    deferred: usize,
    record_bytes: usize,
    objects: usize,
}

/// Upper bounds of what steps write into the journal: for each unit that is written, and for
/// each attribute besides its bytes.
const UNIT_RECORDS: usize = 192;
const ATTRIBUTE_RECORD: usize = 20;
/// A unit's owners are counted with 16 bits.
const OWNERS_MAX: usize = u16::MAX as usize;

pub(crate) enum Ready {
    Yes,
    Wait,
    Refuse(StoreRefusal),
}

impl<D: Disk> Store<D> {
    pub(crate) fn attempt_change(&mut self, op: u32) -> Progress {
        // The work is taken out while it is looked at, so that the store can be changed beside.
        let Some(entry) = self.ops.get_mut(op) else { return Progress::Through };
        if let Some(refusal) = entry.refusal {
            self.complete(op, Err(refusal));
            return Progress::Through;
        }
        let mut work = std::mem::replace(&mut entry.work, Work::Flush);
        self.is_single_write = matches!(work, Work::One(_));
        let planned = self.plan_keys(op, &mut work);
        let steps = match &mut work {
            Work::One(step) => std::slice::from_mut(step),
            Work::Many(steps) => steps.as_mut_slice(),
            Work::Read { .. } | Work::Attributes { .. } | Work::Ask(_) | Work::Flush => &mut [],
        };
        let ready = match planned {
            Ready::Yes => self.prepare(op, steps),
            other => other,
        };
        if matches!(ready, Ready::Yes) {
            self.execute(op, steps);
        }
        if let Some(entry) = self.ops.get_mut(op) {
            entry.work = work;
        }
        match ready {
            Ready::Yes => Progress::Through,
            Ready::Wait => Progress::Wait,
            Ready::Refuse(refusal) => {
                self.complete(op, Err(refusal));
                Progress::Through
            }
        }
    }

    fn prepare(&mut self, op: u32, steps: &[Step]) -> Ready {
        if self.state != StoreState::Writable {
            return Ready::Refuse(StoreRefusal::ReadOnly);
        }
        let checks = [
            Self::prepare_frames,
            Self::prepare_expected,
            Self::prepare_marks,
            Self::prepare_old,
            Self::prepare_room,
        ];
        for check in checks {
            match check(self, op, steps) {
                Ready::Yes => {}
                other => return other,
            }
        }
        Ready::Yes
    }

    /// Asks for every map page the steps need; ready when all are in memory at once.
    fn prepare_frames(&mut self, _op: u32, steps: &[Step]) -> Ready {
        if let Err(refusal) = self.check_width(steps, 0) {
            return Ready::Refuse(refusal);
        }
        for step in steps {
            for (key, half) in pages_of(step) {
                let Some(slot) = self.objects.find(&key) else { continue };
                let is_removed = key == step.key
                    && matches!(step.kind, StepKind::Remove | StepKind::Clone { .. });
                match self.need_frame(slot, half) {
                    Err(refusal) if !is_removed => return Ready::Refuse(refusal),
                    Ok(_) | Err(_) => {}
                }
            }
        }
        // A page that came in may have pushed another of them out, so all are looked at again.
        for step in steps {
            for (key, half) in pages_of(step) {
                let Some(slot) = self.objects.find(&key) else { continue };
                if self.objects.slot(slot).frames[half as usize] == NO_FRAME {
                    return Ready::Wait;
                }
            }
        }
        Ready::Yes
    }

    /// Refuses what would wait for ever: pages that the cache cannot hold at once, beside so many
    /// frames for new objects. Half of the cache is left to those that are read through, written,
    /// or not on the disk yet, and to another transaction that waits for as many.
    fn check_width(&self, steps: &[Step], new_frames: usize) -> Result<(), StoreRefusal> {
        let limit = self.cache.capacity() / 2;
        // At most two halves of the step's own object and two of a clone's source.
        if steps.len() * 4 + new_frames <= limit {
            return Ok(());
        }
        let pages = steps.iter().flat_map(pages_of);
        let mut pages: Vec<(u32, u32)> =
            pages.filter_map(|(key, half)| Some((self.objects.find(&key)?, half))).collect();
        pages.sort_unstable();
        pages.dedup();
        let pages = pages.len() + new_frames;
        if pages <= limit {
            return Ok(());
        }
        Err(StoreRefusal::TransactionTooWide { pages, limit })
    }

    /// Compares versions with those that the steps name.
    fn prepare_expected(&mut self, _op: u32, steps: &[Step]) -> Ready {
        for step in steps {
            let StepKind::Expect { version: expected } = step.kind else { continue };
            let found = self.objects.find(&step.key).map_or(0, |slot| self.version(slot));
            if found != expected {
                let key = step.key;
                return Ready::Refuse(StoreRefusal::VersionMismatch { key, expected, found });
            }
        }
        Ready::Yes
    }

    /// Reads the blocks that the steps keep of what they overwrite in part.
    fn prepare_old(&mut self, op: u32, steps: &[Step]) -> Ready {
        if self.ops.get(op).is_some_and(|op| op.must_retry) {
            // A write back came between: the bytes are read again from where they are.
            let old = self.ops.get_mut(op).map(|op| {
                op.must_retry = false;
                std::mem::take(&mut op.old)
            });
            for old in old.into_iter().flatten() {
                self.io.pool.put(old.buffer);
            }
        }
        let mut is_waiting = false;
        for (number, step) in steps.iter().enumerate() {
            let StepKind::Write { offset, length } = step.kind else { continue };
            let Some(slot) = self.found_by(steps, number) else { continue };
            let is_shared = self.will_be_shared(steps, number);
            let (first, end) = block_range(offset, length);
            let edges = [first / UNIT_BLOCKS, (end - 1) / UNIT_BLOCKS];
            for (edge, &unit) in edges.iter().enumerate() {
                if edge == 1 && edges[0] == unit {
                    continue;
                }
                let mask = self.old_mask(slot, unit, offset, length, is_shared);
                let has = |old: &Old| old.step == number && old.unit == unit;
                if mask == 0 || self.ops.get(op).is_some_and(|op| op.old.iter().any(has)) {
                    continue;
                }
                let block = unit * UNIT_BLOCKS;
                if self.has_writes(slot, block, block + UNIT_BLOCKS) {
                    return Ready::Wait;
                }
                let mut buffer = self.io.pool.take(UNIT_SIZE as usize);
                // Blocks that were never written are zeros around a write that does not fill them.
                buffer.as_bytes_mut().fill(0);
                let Some(entry) = self.ops.get_mut(op) else { return Ready::Wait };
                entry.old.push(Old { step: number, unit, buffer });
                let index = entry.old.len() - 1;
                self.read_old(op, slot, unit, mask, index);
                is_waiting |= self.ops.get(op).is_some_and(|op| op.pending > 0);
            }
        }
        if is_waiting { Ready::Wait } else { Ready::Yes }
    }

    /// Whether the object of this step shares all its units by the time the step is carried out.
    fn will_be_shared(&self, steps: &[Step], number: usize) -> bool {
        let is_cloned = is_cloned_before(steps, number) || cloned_from(steps, number).is_some();
        self.options.omit != Omit::EarlierSteps && is_cloned
    }

    /// The object whose data the `number`th step finds under its key: what an earlier step has
    /// cloned into it, else its own.
    fn found_by(&self, steps: &[Step], number: usize) -> Option<u32> {
        let source = if number > 0 { cloned_from(steps, number) } else { None };
        self.objects.find(&source.unwrap_or(steps[number].key))
    }

    /// The blocks of a unit whose old bytes a write of this range needs.
    fn old_mask(&self, slot: u32, index: u32, offset: u32, length: u32, is_shared: bool) -> u8 {
        let Some(unit) = self.unit_of(slot, index) else { return 0 };
        let written = self.written_of(slot, index);
        let mut partial = 0;
        for edge in [offset, offset + length] {
            if !edge.is_multiple_of(plinth_format::BLOCK_SIZE) {
                let block = edge / plinth_format::BLOCK_SIZE;
                if block / UNIT_BLOCKS == index {
                    partial |= 1 << (block % UNIT_BLOCKS);
                }
            }
        }
        let (first, end) = block_range(offset, length);
        let is_shared = is_shared || self.space.is_shared(unit);
        let kept = if is_shared { !unit_mask(index, first, end) } else { 0 };
        written & (partial | kept)
    }

    pub(crate) fn written_of(&self, slot: u32, index: u32) -> u8 {
        let frame = self.objects.slot(slot).frames[(index / MAP_UNITS) as usize];
        self.cache.frame(frame).page.written(index % MAP_UNITS)
    }

    /// Whether units, journal, overlay, slots and frames suffice.
    fn prepare_room(&mut self, _op: u32, steps: &[Step]) -> Ready {
        self.is_full_plan = false;
        let mut needs = match self.needs(steps, false) {
            Ok(needs) => needs,
            Err(refusal) => return Ready::Refuse(refusal),
        };
        if !self.may_own(needs.grown) {
            return Ready::Refuse(StoreRefusal::NoSpace);
        }
        if needs.units > self.space.free_count() {
            if self.space.quarantined() > 0 {
                self.wants_confirm = true;
                return Ready::Wait;
            }
            // Whole units that are overwritten go through the journal when there is no new unit.
            needs = match self.needs(steps, true) {
                Ok(needs) if needs.units <= self.space.free_count() => {
                    self.is_full_plan = true;
                    needs
                }
                _ => return Ready::Refuse(StoreRefusal::NoSpace),
            };
        }
        if !self.objects.has_room(needs.objects) {
            return Ready::Refuse(StoreRefusal::NoObjectSlot);
        }
        let data = needs.deferred * BLOCK_SIZE;
        if !self.journal.could_have_room(needs.record_bytes, data)
            || needs.deferred > self.overlay.capacity()
        {
            let is_data = needs.deferred > 0 && steps.len() == 1;
            let (space, large) = (StoreRefusal::NoSpace, StoreRefusal::TransactionTooLarge);
            return Ready::Refuse(if is_data { space } else { large });
        }
        if self.overlay.len() + needs.deferred > self.overlay.capacity() {
            self.wants_confirm = true;
            self.wants_write_back = true;
            return Ready::Wait;
        }
        if !self.journal.has_room(needs.record_bytes, data) {
            self.checkpoint.is_wanted |= self.journal.used() > self.journal.length() / 4;
            return Ready::Wait;
        }
        let frames = needs.objects * 2;
        if let Err(refusal) = self.check_width(steps, frames) {
            return Ready::Refuse(refusal);
        }
        if frames > 0 && !self.reserve_frames(frames) {
            return Ready::Wait;
        }
        if frames == 0 {
            return Ready::Yes;
        }
        // Reserving may have pushed out a page that the steps need, and bringing it back may have
        // taken a frame that was reserved: then the new objects would push out what they are
        // made from.
        match self.prepare_frames(0, steps) {
            Ready::Yes if self.cache.free_count() < frames => {
                self.has_moved = true;
                Ready::Wait
            }
            ready => ready,
        }
    }

    fn reserve_frames(&mut self, count: usize) -> bool {
        let (confirmed, objects) = (self.journal.confirmed_seq, &mut self.objects);
        let is_reserved = self
            .cache
            .reserve(count, confirmed, |slot, half| objects.set_frame(slot, half, NO_FRAME));
        if !is_reserved {
            self.checkpoint.is_wanted = true;
            self.wants_confirm = true;
        }
        is_reserved
    }

    fn needs(&self, steps: &[Step], is_full: bool) -> Result<Needs, StoreRefusal> {
        let mut needs = Needs::default();
        let mut made: Vec<ObjectKey> = Vec::new();
        let mut pages: Vec<(ObjectKey, Box<MapPage>)> = Vec::new();
        let is_attribute = |step: &Step| matches!(step.kind, StepKind::SetAttribute { .. });
        let sets_attributes = steps.iter().any(is_attribute);
        for (number, step) in steps.iter().enumerate() {
            let found = self.objects.find(&step.key);
            needs.record_bytes += 160;
            let makes = match &step.kind {
                StepKind::Remove
                | StepKind::Zero { .. }
                | StepKind::Scrap
                | StepKind::Expect { .. }
                | StepKind::RaiseVersions { .. }
                | StepKind::RemoveAttribute { .. } => false,
                StepKind::Clone { source } => {
                    !is_hidden(source) || self.objects.find(source).is_some()
                }
                StepKind::Keys(change) => {
                    change.makes() && found.is_none() && !made.contains(&step.key)
                }
                _ => found.is_none() && !made.contains(&step.key),
            };
            if makes {
                made.push(step.key);
                needs.objects += 1;
            }
            self.step_needs(steps, number, is_full, &mut needs)?;
            match &step.kind {
                StepKind::SetAttribute { name, value } => {
                    // Once for the object, and once for each clone that is made of it behind this.
                    let bytes = ATTRIBUTE_RECORD + name.len() + value.len();
                    needs.record_bytes += bytes * (1 + clones_after(steps, number));
                    let page = self.attribute_page(&mut pages, step.key);
                    let set = page.set_attribute(name, value);
                    set.map_err(|_| StoreRefusal::AttributesFull { key: step.key })?;
                }
                StepKind::RemoveAttribute { name } => {
                    self.attribute_page(&mut pages, step.key).remove_attribute(name);
                }
                StepKind::Clone { source } if sets_attributes => {
                    let page = Box::new(*self.attribute_page(&mut pages, *source));
                    pages.retain(|(key, _)| *key != step.key);
                    pages.push((step.key, page));
                }
                _ => {}
            }
        }
        Ok(needs)
    }

    fn step_needs(
        &self,
        steps: &[Step],
        number: usize,
        is_full: bool,
        needs: &mut Needs,
    ) -> Result<(), StoreRefusal> {
        let step = &steps[number];
        let found = match step.kind {
            // What is replaced is let go.
            StepKind::Clone { .. } => self.objects.find(&step.key),
            _ => self.found_by(steps, number),
        };
        match &step.kind {
            StepKind::Write { offset, length } => {
                let (first, end) = block_range(*offset, *length);
                let is_shared = self.will_be_shared(steps, number);
                for index in first / UNIT_BLOCKS..=(end - 1) / UNIT_BLOCKS {
                    let mut plan = self.plan_unit(found, index, first, end, is_full);
                    if is_shared {
                        plan.action = Action::Copy;
                    }
                    let blocks = plan.mask.count_ones() as usize;
                    match plan.action {
                        Action::Place | Action::Copy => {
                            needs.units += 1;
                            let is_own = !is_shared && self.owns(found, index);
                            needs.grown += u32::from(!is_own);
                        }
                        Action::Defer => needs.deferred += blocks,
                        Action::InPlace | Action::Overwrite => {}
                    }
                    // An earlier step may let go of a unit that both shared, and change the plan.
                    // So may one that writes another page of the same keys.
                    let may_change = steps.len() > 1 && (!is_shared || is_hidden(&step.key));
                    if may_change && plan.action != Action::Defer && found.is_some() {
                        needs.deferred += blocks;
                    }
                    needs.record_bytes += UNIT_RECORDS;
                }
            }
            StepKind::WriteFull { length } => {
                let units = length.div_ceil(UNIT_SIZE);
                let is_shared = self.will_be_shared(steps, number);
                let own = (0..OBJECT_UNITS).filter(|&index| !is_shared && self.owns(found, index));
                let own = own.count();
                needs.units += units;
                needs.grown += units.saturating_sub(u32::try_from(own).unwrap_or(0));
                needs.record_bytes += OBJECT_UNITS as usize * UNIT_RECORDS;
            }
            StepKind::Clone { source } => {
                let Some(slot) = self.objects.find(source) else {
                    if is_hidden(source) {
                        needs.record_bytes += self.removal_records(found);
                        return Ok(());
                    }
                    return Err(StoreRefusal::NotFound { key: *source });
                };
                self.check_shares(slot, *source)?;
                needs.record_bytes += self.clone_records(slot) + self.removal_records(found);
            }
            StepKind::Zero { length, .. } => {
                needs.record_bytes += (*length / UNIT_SIZE + 2) as usize * 60;
            }
            StepKind::Truncate { .. } | StepKind::Remove | StepKind::Scrap => {
                needs.record_bytes += self.removal_records(found);
            }
            StepKind::Keys(_)
            | StepKind::Touch
            | StepKind::Expect { .. }
            | StepKind::SetVersion { .. }
            | StepKind::RaiseVersions { .. }
            | StepKind::SetAttribute { .. } => {}
            StepKind::RemoveAttribute { name } => {
                needs.record_bytes += ATTRIBUTE_RECORD + name.len();
            }
        }
        Ok(())
    }

    /// Bytes of the records that let go of all that an object has.
    fn removal_records(&self, found: Option<u32>) -> usize {
        found.map_or(0, |slot| usize::from(self.objects.slot(slot).units) * 60)
    }

    /// Whether an object has a unit at this place that nobody else has.
    fn owns(&self, slot: Option<u32>, index: u32) -> bool {
        let unit = slot.and_then(|slot| self.unit_of(slot, index));
        unit.is_some_and(|unit| !self.space.is_shared(unit))
    }

    /// Bytes of the records that make a clone of the object.
    fn clone_records(&self, slot: u32) -> usize {
        let mut bytes = 256;
        for frame in self.objects.slot(slot).frames {
            let page = &self.cache.frame(frame).page;
            for (index, _) in page.units() {
                let written = page.written(index);
                let runs = (written & !(written << 1)).count_ones();
                bytes += 2 * 20 + runs as usize * 20 + written.count_ones() as usize * 4;
            }
            if let Ok(attributes) = Attributes::parse(page) {
                let each = |(name, value): (&[u8], &[u8])| name.len() + value.len();
                bytes += attributes.iter().map(|pair| ATTRIBUTE_RECORD + each(pair)).sum::<usize>();
            }
        }
        bytes
    }

    /// Whether every unit of the object can have one more owner. Other steps of the transaction
    /// may give it more, so the last few places are kept for them.
    fn check_shares(&self, slot: u32, key: ObjectKey) -> Result<(), StoreRefusal> {
        let is_full = |unit| usize::from(self.space.owners(unit)) + STEPS_MAX > OWNERS_MAX;
        let has_full = (0..OBJECT_UNITS).filter_map(|index| self.unit_of(slot, index)).any(is_full);
        if has_full { Err(StoreRefusal::TooManyClones { key }) } else { Ok(()) }
    }

    /// A copy of the page with an object's attributes, as the steps so far leave it: so that a
    /// transaction that would fill it up is refused before anything is done.
    fn attribute_page<'a>(
        &self,
        pages: &'a mut Vec<(ObjectKey, Box<MapPage>)>,
        key: ObjectKey,
    ) -> &'a mut MapPage {
        let at = pages.iter().position(|(other, _)| *other == key).unwrap_or_else(|| {
            let frame = self.objects.find(&key).map(|slot| self.objects.slot(slot).frames[0]);
            let page = match frame {
                Some(frame) if frame < BAD_FRAME => self.cache.frame(frame).page.clone(),
                _ => Box::new(bytemuck::Zeroable::zeroed()),
            };
            pages.push((key, page));
            pages.len() - 1
        });
        &mut pages[at].1
    }

    /// What a write of blocks `first..end` does with the unit at `index`.
    ///
    /// Old bytes that a crash may need are never overwritten: the first write of a block goes to
    /// its place, a whole unit goes to a new one, the rest goes through the journal.
    pub(crate) fn plan_unit(
        &self,
        slot: Option<u32>,
        index: u32,
        first: u32,
        end: u32,
        is_full: bool,
    ) -> UnitPlan {
        let mask = unit_mask(index, first, end);
        let plan = |action| UnitPlan { index, mask, kept: 0, action };
        let Some(slot) = slot else { return plan(Action::Place) };
        let Some(unit) = self.unit_of(slot, index) else { return plan(Action::Place) };
        let written = self.written_of(slot, index);
        if self.space.is_shared(unit) {
            let kept = written & !mask;
            let action = if kept == 0 { Action::Place } else { Action::Copy };
            return UnitPlan { kept, ..plan(action) };
        }
        let omit = self.options.omit;
        if written & mask == 0 && self.can_write_in_place(slot, unit, index, mask) {
            return plan(Action::InPlace);
        }
        if self.overwrite(slot, index, mask) == Overwrite::Yes {
            return plan(Action::Overwrite);
        }
        if mask == u8::MAX && !is_full && omit != Omit::Redirect {
            return plan(Action::Place);
        }
        plan(if omit == Omit::Redirect { Action::InPlace } else { Action::Defer })
    }

    /// Whether nobody, now or after a crash, can need the old bytes of unwritten blocks.
    fn can_write_in_place(&self, slot: u32, unit: u32, index: u32, mask: u8) -> bool {
        let frame = self.objects.slot(slot).frames[(index / MAP_UNITS) as usize];
        let omit = self.options.omit;
        let is_clear = self.cache.frame(frame).clear_seq <= self.journal.confirmed_seq;
        let is_alone = is_alone(&self.space, unit) || omit == Omit::AloneGuard;
        let first = u64::from(unit) * u64::from(UNIT_BLOCKS);
        let is_writing = |block: u32| {
            mask & (1 << block) != 0 && self.overlay.is_writing(first + u64::from(block))
        };
        (is_clear || omit == Omit::ClearGuard) && is_alone && !(0..UNIT_BLOCKS).any(is_writing)
    }
}

fn is_alone(space: &Space, unit: u32) -> bool {
    space.is_alone(unit)
}

/// The blocks of a unit that are in `first..end`.
pub(crate) fn unit_mask(index: u32, first: u32, end: u32) -> u8 {
    let start = index * UNIT_BLOCKS;
    let from = first.max(start) - start;
    let to = end.min(start + UNIT_BLOCKS).saturating_sub(start);
    let bits = ((1_u32 << to) - 1) & !((1_u32 << from) - 1);
    u8::try_from(bits).expect("a unit has eight blocks")
}

/// How many clones are made of the object of a step behind that step.
fn clones_after(steps: &[Step], number: usize) -> usize {
    let key = steps[number].key;
    let clones = |step: &&Step| matches!(&step.kind, StepKind::Clone { source } if *source == key);
    steps[number..].iter().filter(clones).count()
}

/// The map pages that a step reads or changes, as key and half.
fn pages_of(step: &Step) -> impl Iterator<Item = (ObjectKey, u32)> {
    let source = match &step.kind {
        StepKind::Clone { source } => Some(*source),
        _ => None,
    };
    let own = halves_of(&step.kind).map(|half| (step.key, half));
    own.chain(source.into_iter().flat_map(|key| (0..2).map(move |half| (key, half))))
}

/// The halves of its object that a step reads or changes.
fn halves_of(kind: &StepKind) -> std::ops::Range<u32> {
    match kind {
        StepKind::Write { offset, length } | StepKind::Zero { offset, length } => {
            let (first, end) = block_range(*offset, *length);
            first / MAP_BLOCKS..(end - 1) / MAP_BLOCKS + 1
        }
        StepKind::Touch
        | StepKind::SetAttribute { .. }
        | StepKind::RemoveAttribute { .. }
        | StepKind::Keys(_) => 0..1,
        StepKind::WriteFull { .. }
        | StepKind::Truncate { .. }
        | StepKind::Scrap
        | StepKind::Remove
        | StepKind::Expect { .. }
        | StepKind::SetVersion { .. }
        | StepKind::Clone { .. } => 0..2,
        StepKind::RaiseVersions { .. } => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_blocks_of_the_range() {
        assert_eq!(unit_mask(0, 0, 8), 0xff);
        assert_eq!(unit_mask(0, 3, 5), 0b0001_1000);
        assert_eq!(unit_mask(1, 3, 9), 0b0000_0001);
        assert_eq!(unit_mask(1, 15, 1000), 0b1000_0000);
    }
}
