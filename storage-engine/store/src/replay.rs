// SPDX-License-Identifier: Apache-2.0
//! Replaying journal entries over the tables and maps that a crash left.
//!
//! A map page contains every entry up to the number it carries, so a record of such an entry is
//! skipped. Bitmap, counts and index may be older or newer than an entry: their records say
//! what is, and the last one wins. A map page that cannot be read is left alone; if its object is
//! still there in the end, requests on that half are refused, and nothing else is.

use crate::blocking;
use crate::buffer::IoBuffer;
use crate::checkpoint::put_page;
use crate::disk::Disk;
use crate::mount::{MountError, is_newer, numbers_lost};
use crate::objects::{BAD_FRAME, NO_FRAME, key_bytes, object_key};
use crate::request::ObjectKey;
use crate::scan::{Found, read_entry};
use crate::store::{Access, Omit, Store};
use plinth_format::journal::{BlockData, Record, change_version, entry_length};
use plinth_format::{
    BLOCK_SIZE, Le32, MAP_BLOCKS, MAP_UNITS, MapPage, OBJECT_SIZE_MAX, OBJECT_UNITS, PAGE_SIZE,
    UNIT_BLOCKS, generation_mark,
};
use std::collections::{BTreeMap, BTreeSet};

/// The number under which recovery may give up frames: all entries are confirmed.
const ALL: u64 = u64::MAX;

pub(crate) struct Replay<'a, D> {
    store: &'a mut Store<D>,
    /// Data blocks whose newest bytes are in the journal, and at which byte of the disk.
    deferred: BTreeMap<u64, u64>,
    /// The entry that is being replayed.
    seq: u64,
    /// Halves of objects that were being overwritten in place.
    marks: BTreeSet<(u32, u32)>,
    /// The last entry that there is, and the byte of the disk behind it.
    last: u64,
    end: u64,
}

impl<'a, D: Disk> Replay<'a, D> {
    pub(crate) fn run(store: &'a mut Store<D>, entries: &[Found]) -> Result<(), MountError> {
        let found = entries.last();
        let last = found.map_or(0, |entry| entry.header.seq.get());
        let end = found.map_or(0, |entry| entry.offset + entry.header.length())
            + store.layout.journal_offset;
        let (deferred, marks) = (BTreeMap::new(), BTreeSet::new());
        let mut replay = Self { store, deferred, seq: 0, marks, last, end };
        for &entry in entries {
            replay.entry(entry)?;
        }
        if replay.store.options.access == Access::Rescue {
            replay.keep_deferred();
            return Ok(());
        }
        replay.write_deferred()?;
        let Self { store, marks, seq, .. } = replay;
        let is_there = |&(slot, _): &(u32, u32)| store.objects.occupied(slot).is_some();
        let suspects: BTreeSet<_> = marks.into_iter().filter(is_there).collect();
        if suspects.len() > store.marks.max() {
            return Err(MountError::Bounds { seq });
        }
        store.marks.suspects = suspects;
        Ok(())
    }

    fn entry(&mut self, entry: Found) -> Result<(), MountError> {
        let seq = entry.header.seq.get();
        self.seq = seq;
        let bytes = read_entry(&mut self.store.io.disk, &self.store.layout, entry)?;
        let opened = entry.header.open(bytes.as_bytes());
        let (records, _) = opened.map_err(|_| MountError::JournalCut { seq })?;
        let records_bytes = entry.header.record_bytes.get() as usize;
        let data_at =
            self.store.layout.journal_offset + entry.offset + entry_length(records_bytes, 0) as u64;
        let data_blocks = entry.header.data_blocks.get();
        for record in records {
            let record = record.map_err(|source| MountError::Record { seq, source })?;
            self.record(seq, &record, data_at, data_blocks)?;
        }
        Ok(())
    }

    fn record(
        &mut self,
        seq: u64,
        record: &Record<'_>,
        data_at: u64,
        data_blocks: u32,
    ) -> Result<(), MountError> {
        let bounds = Err(MountError::Bounds { seq });
        match *record {
            Record::Create { slot, key, incarnation } => {
                self.forget(slot);
                let is_placed = self.store.objects.place(slot, object_key(&key), incarnation);
                if !is_placed || incarnation == 0 {
                    return bounds;
                }
            }
            Record::Mark { slot, halves } => self.mark(slot, halves),
            Record::Remove { slot } => {
                self.forget(slot);
                self.store.objects.vacate(slot);
            }
            Record::Object { slot, size, units } => {
                if size > OBJECT_SIZE_MAX || u32::from(units) > OBJECT_UNITS {
                    return bounds;
                }
                if self.store.objects.occupied(slot).is_some() {
                    let place = self.store.objects.change(slot);
                    (place.size, place.units) = (size, units);
                }
            }
            Record::Units { slot, index, count, first } => {
                let end = first.map_or(Some(0), |first| first.checked_add(count.into()));
                if end.is_none_or(|end| end > self.store.layout.unit_count) {
                    return bounds;
                }
                for (step, index) in (u32::from(index)..).take(count.into()).enumerate() {
                    let unit = first.map(|first| first + u32::try_from(step).unwrap_or(0));
                    self.change(seq, slot, index / MAP_UNITS, |page| {
                        page.set_unit(index % MAP_UNITS, unit);
                    })?;
                }
            }
            Record::Checksums { slot, block, data, checksums } => {
                self.note_data(seq, data, checksums.len(), data_at, data_blocks)?;
                self.set_checksums(seq, slot, block.into(), checksums)?;
            }
            Record::Clear { slot, block, count } => {
                self.clear(seq, slot, block, count)?;
            }
            Record::Owners { first, count, owners } => {
                let end = first.checked_add(count.into());
                if end.is_none_or(|end| end > self.store.layout.unit_count) {
                    return bounds;
                }
                self.set_owners(first, count, owners);
            }
            Record::SetAttribute { slot, name, value } => {
                // It cannot fail for the object it was written for; a slot that has a later
                // object in the index is emptied by a later record.
                self.change(seq, slot, 0, |page| _ = page.set_attribute(name, value))?;
            }
            Record::Version { slot, half, number } => {
                let version = self.store.journal.version_base + change_version(seq, number);
                self.change(seq, slot, half.into(), |page| page.set_version(version))?;
            }
            Record::SetVersion { slot, half, version } => {
                self.change(seq, slot, half.into(), |page| page.set_version(version))?;
            }
            Record::VersionBase { base } => {
                let known = &mut self.store.journal.version_base;
                *known = base.max(*known);
            }
            Record::RemoveAttribute { slot, name } => {
                self.change(seq, slot, 0, |page| page.remove_attribute(name))?;
            }
        }
        Ok(())
    }

    fn clear(&mut self, seq: u64, slot: u32, block: u16, count: u16) -> Result<(), MountError> {
        for block in (u32::from(block)..).take(count.into()) {
            self.change(seq, slot, block / MAP_BLOCKS, |page| {
                page.set_checksum(block % MAP_BLOCKS, None);
            })?;
        }
        Ok(())
    }

    fn set_owners(&mut self, first: u32, count: u16, owners: u16) {
        for unit in (first..).take(count.into()) {
            self.store.space.set_owners(unit, owners);
            if owners == 0 {
                self.forget_deferred(u64::from(unit) * u64::from(UNIT_BLOCKS), UNIT_BLOCKS);
            }
        }
    }

    fn mark(&mut self, slot: u32, halves: u8) {
        let marked = (0..2).filter(|half| halves & (1 << half) != 0);
        self.marks.extend(marked.map(|half| (slot, half)));
    }

    fn forget_deferred(&mut self, first: u64, count: u32) {
        if !self.deferred.is_empty() {
            for block in first..first + u64::from(count) {
                self.deferred.remove(&block);
            }
        }
    }

    /// Remembers where deferred blocks are, and that directly written ones are at their place.
    fn note_data(
        &mut self,
        seq: u64,
        data: BlockData,
        count: usize,
        data_at: u64,
        data_blocks: u32,
    ) -> Result<(), MountError> {
        let blocks = u64::from(self.store.layout.unit_count) * u64::from(UNIT_BLOCKS);
        let is_inside =
            |first: u64| first.checked_add(count as u64).is_some_and(|end| end <= blocks);
        match data {
            BlockData::Direct { data_block } => {
                if !is_inside(data_block) {
                    return Err(MountError::Bounds { seq });
                }
                self.forget_deferred(data_block, u32::try_from(count).unwrap_or(0));
            }
            BlockData::Deferred { index, data_block } => {
                let end = usize::from(index) + count;
                if !is_inside(data_block) || end > data_blocks as usize {
                    return Err(MountError::Bounds { seq });
                }
                for step in 0..count as u64 {
                    let at = data_at + (u64::from(index) + step) * u64::from(BLOCK_SIZE);
                    self.deferred.insert(data_block + step, at);
                }
            }
            // Nothing is deferred for these, for they are not overwritten in place before a
            // checkpoint has cut the entry that deferred them; but for a recovery from the older
            // of two superblocks, which programs that wrote only one of them have left.
            BlockData::InPlace { data_block } => {
                if !is_inside(data_block) {
                    return Err(MountError::Bounds { seq });
                }
                self.forget_deferred(data_block, u32::try_from(count).unwrap_or(0));
            }
            BlockData::Shared => {}
        }
        Ok(())
    }

    fn set_checksums(
        &mut self,
        seq: u64,
        slot: u32,
        block: u32,
        checksums: &[Le32],
    ) -> Result<(), MountError> {
        for (block, checksum) in (block..).zip(checksums) {
            // A block without a unit is that of an earlier object: the index may be newer than
            // this entry, and a later record empties the slot.
            self.change(seq, slot, block / MAP_BLOCKS, |page| {
                let block = block % MAP_BLOCKS;
                if page.unit(block / UNIT_BLOCKS).is_some() {
                    page.set_checksum(block, Some(checksum.get()));
                }
            })?;
        }
        Ok(())
    }

    /// Changes a map page unless it contains the entry already. No object, no change.
    fn change(
        &mut self,
        seq: u64,
        slot: u32,
        half: u32,
        change: impl FnOnce(&mut MapPage),
    ) -> Result<(), MountError> {
        let Some(frame) = self.frame(slot, half)? else { return Ok(()) };
        if is_newer(seq, self.store.cache.frame(frame).page.seq)
            || self.store.cache.frame(frame).replayed_seq == seq
        {
            let frame = self.store.cache.change(frame, seq);
            frame.replayed_seq = seq;
            change(&mut frame.page);
        }
        Ok(())
    }

    /// Loads a page; `None` for a free slot or a page that is lost.
    fn frame(&mut self, slot: u32, half: u32) -> Result<Option<u32>, MountError> {
        let Some(&place) = self.store.objects.occupied(slot) else { return Ok(None) };
        match place.frames[half as usize] {
            BAD_FRAME => return Ok(None),
            NO_FRAME => {}
            frame => return Ok(Some(frame)),
        }
        let mut page = MapPage::empty(key_bytes(&place.key), place.incarnation);
        let mut generation = 0;
        if place.halves & (1 << half) != 0 {
            let address = self.store.layout.map_address(slot, half, 0);
            let buffer = IoBuffer::zeroed(2 * PAGE_SIZE);
            let bytes = blocking::read(&mut self.store.io.disk, address, buffer);
            match bytes.ok().and_then(|bytes| self.store.choose_map(slot, half, &bytes)) {
                Some((found, newest)) => {
                    self.judge_page(place.key, found.seq.get())?;
                    (page, generation) = (found, newest);
                }
                None => {
                    self.store.counters.bad_metadata += 1;
                    self.store.objects.set_frame(slot, half, BAD_FRAME);
                    return Ok(None);
                }
            }
        }
        self.insert(slot, half, &page, generation).map(Some)
    }

    /// A page is written when the entries whose changes it has are durable. One that has changes
    /// of an entry behind the last says that the journal went on. Numbers that recovery passes over
    /// are not those of an earlier try of this recovery, which may have adopted blocks.
    fn judge_page(&self, key: ObjectKey, seq: u64) -> Result<(), MountError> {
        let lost = numbers_lost(&self.store.layout);
        if self.store.options.omit == Omit::JournalVouched
            || self.store.options.access == Access::Rescue
            || !(self.last + 1..=self.last + lost).contains(&seq)
        {
            return Ok(());
        }
        Err(MountError::PageAhead { key, seq: self.last + 1, last: seq, offset: self.end })
    }

    fn insert(
        &mut self,
        slot: u32,
        half: u32,
        page: &MapPage,
        generation: u64,
    ) -> Result<u32, MountError> {
        loop {
            let found = self.store.cache.insert(slot, half, page, generation, ALL);
            if let Some((frame, evicted)) = found {
                if let Some((slot, half)) = evicted {
                    self.store.objects.set_frame(slot, half, NO_FRAME);
                }
                self.store.objects.set_frame(slot, half, frame);
                return Ok(frame);
            }
            if !self.spill()? {
                // Every page is one that this entry changes: they must stay until its end.
                self.store.cache.grow(64);
            }
        }
    }

    /// Writes changed pages to their older copies, so that their frames can be given up. The
    /// entries they contain are durable and judged; those of the entry that is being replayed
    /// wait, because a page on the disk contains all of an entry. `false` when there is none.
    fn spill(&mut self) -> Result<bool, MountError> {
        if self.store.options.access == Access::Rescue {
            return Ok(false);
        }
        let cache = &self.store.cache;
        let is_done = |&index: &u32| cache.frame(index).replayed_seq != self.seq;
        let frames: Vec<u32> = cache.dirty_frames().filter(is_done).collect();
        let has_some = !frames.is_empty();
        for index in frames {
            let frame = self.store.cache.begin_write(index);
            let (slot, half, generation) = (frame.slot, frame.half, frame.generation);
            let mut page = frame.page.clone();
            let address = self.store.layout.map_address(slot, half, generation % 2);
            let mut buffer = IoBuffer::zeroed(PAGE_SIZE);
            put_page(&mut buffer, &mut *page, self.store.id, address, generation);
            blocking::write(&mut self.store.io.disk, address, buffer)?;
            self.store.cache.end_write(index);
            let place = self.store.objects.change(slot);
            place.halves |= 1 << half;
            place.marks[half as usize] = generation_mark(generation);
        }
        Ok(has_some)
    }

    /// Drops the frames of a slot whose object ends or begins.
    fn forget(&mut self, slot: u32) {
        self.marks.remove(&(slot, 0));
        self.marks.remove(&(slot, 1));
        let Some(&place) = self.store.objects.occupied(slot) else { return };
        for frame in place.frames.into_iter().filter(|&frame| frame < BAD_FRAME) {
            self.store.cache.discard(frame);
        }
    }

    /// Keeps in memory what would be written to its place. What cannot be read is not there: its
    /// place does not match its checksum.
    fn keep_deferred(&mut self) {
        let store = &mut *self.store;
        for (&data_block, &at) in &self.deferred {
            let buffer = IoBuffer::zeroed(BLOCK_SIZE as usize);
            if let Ok(bytes) = blocking::read(&mut store.io.disk, at, buffer) {
                store.overlay.put(data_block, self.last, bytes.as_bytes(), &mut store.io.pool);
            }
        }
    }

    fn write_deferred(&mut self) -> Result<(), MountError> {
        if self.store.options.omit == Omit::ReplayDeferred {
            return Ok(());
        }
        for (&data_block, &at) in &self.deferred {
            let buffer = IoBuffer::zeroed(BLOCK_SIZE as usize);
            let bytes = blocking::read(&mut self.store.io.disk, at, buffer)?;
            let address = self.store.layout.data_address(data_block);
            blocking::write(&mut self.store.io.disk, address, bytes)?;
        }
        Ok(())
    }
}
