// SPDX-License-Identifier: Apache-2.0
//! Scrubbing: reading what nobody asks for, so that damage is found while there is a remedy.
//!
//! ```text
//!   light: tables ─▶ maps of each object                  both copies of each page, and whether
//!                                                         maps, bitmap, counts and index agree
//!   deep:  tables ─▶ maps of each object ─▶ its data      every written block, too
//! ```
//!
//! One read is on its way at a time, at most a unit long, and the next one begins when the rate
//! allows it; while requests of clients are on their way it allows half. A bad copy of a page is
//! written anew by a checkpoint, from memory or from the good copy. A page is judged only if no
//! checkpoint came between, a block only if nothing was written to its unit meanwhile and its map
//! says twice that it should be what it is not: so what changes under the scrub is never called
//! bad.

use crate::bad::{BadBlock, FoundBy};
use crate::buffer::{BLOCK_SIZE, IoBuffer};
use crate::disk::{Disk, DiskError};
use crate::io::Context;
use crate::objects::{BAD_FRAME, NO_FRAME};
use crate::space::PageState;
use crate::store::{ReadOnlyReason, Store, StoreState};
use plinth_format::{
    BitmapPage, CountPage, IndexPage, MAP_BLOCKS, MAP_UNITS, MapPage, PAGE_SIZE, Page, UNIT_BLOCKS,
    crc32c,
};
use plinth_ids::Moment;

/// What is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ScrubKind {
    /// Metadata, both copies of each page.
    Light,
    /// All data too.
    Deep,
}

/// How far a scrub is, or how it ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ScrubProgress {
    pub kind: ScrubKind,
    /// Bytes a second.
    pub rate: u64,
    pub started_at: Moment,
    /// `None` while it goes on.
    pub ended_at: Option<Moment>,
    pub objects_done: u64,
    pub objects_total: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Bad blocks, and map pages of which neither copy is good.
    pub found: u64,
    /// Pages of which one copy was bad.
    pub mended: u64,
}

/// The next thing to read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cursor {
    Index(u32),
    Bitmap(u32),
    Count(u32),
    Map { slot: u32, half: u32 },
    Data { slot: u32, half: u32, index: u32 },
    End,
}

#[derive(Debug)]
struct Run {
    progress: ScrubProgress,
    cursor: Cursor,
    /// Bytes that may be read now; negative after a long read.
    allowance: i64,
    last: Moment,
    /// The map page of the cursor's object, as it was when it was read, and whose it is.
    map: Option<(Box<MapPage>, u64)>,
    /// A mismatch that is looked at again: first block of its kind and the checksum it failed.
    suspect: Option<(u32, u32)>,
    is_reading: bool,
    number: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Scrub {
    run: Option<Run>,
    /// The last ones that went through, light and deep.
    last: [Option<ScrubProgress>; 2],
    runs: u64,
}

/// What a read of the scrub is for. A read of an earlier run is thrown away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScrubRead {
    run: u64,
    cursor: Cursor,
    /// The newest superblock when the read began: no checkpoint came between if it still is.
    generation: u64,
    /// Of the object in the cursor's slot.
    incarnation: u64,
    first: u32,
}

/// Bytes that are saved up at most, in quarters of a second.
const SAVED: i64 = 4;

impl<D: Disk> Store<D> {
    /// Begins a scrub; the one under way ends where it is. At most `rate` bytes a second are
    /// read, whose least is 64 KiB.
    pub fn scrub_start(&mut self, kind: ScrubKind, rate: u64) {
        let rate = rate.max(64 << 10);
        self.scrub_stop();
        self.scrub.runs += 1;
        let progress = ScrubProgress {
            kind,
            rate,
            started_at: self.now,
            ended_at: None,
            objects_done: 0,
            objects_total: self.objects.count() as u64,
            bytes: 0,
            found: 0,
            mended: 0,
        };
        self.scrub.run = Some(Run {
            progress,
            cursor: Cursor::Index(0),
            allowance: 0,
            last: self.now,
            map: None,
            suspect: None,
            is_reading: false,
            number: self.scrub.runs,
        });
    }

    /// Ends the scrub under way; says how far it was.
    pub fn scrub_stop(&mut self) -> Option<ScrubProgress> {
        self.scrub.run.take().map(|run| run.progress)
    }

    /// The scrub under way. While there is one, the owner must poll some hundred times a second.
    pub fn scrub_progress(&self) -> Option<ScrubProgress> {
        self.scrub.run.as_ref().map(|run| run.progress)
    }

    /// How the last scrub of this kind that went through to its end ended.
    pub fn scrub_result(&self, kind: ScrubKind) -> Option<ScrubProgress> {
        self.scrub.last[place(kind)]
    }

    /// The blocks that are known to be bad, by object.
    pub fn bad_blocks(&self) -> impl Iterator<Item = &BadBlock> {
        self.bad.iter()
    }

    pub fn bad_block_count(&self) -> usize {
        self.bad.len()
    }

    /// Begins the next read if it is time.
    pub(crate) fn advance_scrub(&mut self) {
        let is_busy = self.ops.len() + self.quick_reads > 0;
        let Some(run) = &mut self.scrub.run else { return };
        let passed = self.now.saturating_sub(run.last).as_nanos();
        let share = if is_busy { 2 } else { 1 };
        let gain = passed * u128::from(run.progress.rate) / 1_000_000_000 / share;
        if gain > 0 {
            run.last = self.now;
            let most = i64::try_from(run.progress.rate).unwrap_or(i64::MAX) / SAVED;
            let gain = i64::try_from(gain).unwrap_or(i64::MAX);
            run.allowance = run.allowance.saturating_add(gain).min(most);
        }
        // Steps that need no read go on at once, but not for ever in one poll.
        for _ in 0..256 {
            let Some(run) = &self.scrub.run else { return };
            if run.is_reading || run.allowance <= 0 || !self.scrub_step() {
                return;
            }
        }
    }

    /// Starts a read or moves the cursor on. `false`: it waits.
    fn scrub_step(&mut self) -> bool {
        let Some(run) = &self.scrub.run else { return false };
        let cursor = run.cursor;
        let is_metadata = !matches!(cursor, Cursor::Data { .. } | Cursor::End);
        if is_metadata && self.checkpoint.is_running() {
            return false;
        }
        let layout = self.layout;
        let is_there =
            |pages: &[PageState], page: u32| pages.get(page as usize).map(|state| state.is_on_disk);
        let (found, address, next) = match cursor {
            Cursor::Index(page) => {
                let found = is_there(&self.objects.pages, page);
                (found, layout.index_address(page, 0), Cursor::Bitmap(0))
            }
            Cursor::Bitmap(page) => {
                let found = is_there(&self.space.bitmap_pages, page);
                (found, layout.bitmap_address(page, 0), Cursor::Count(0))
            }
            Cursor::Count(page) => {
                let found = is_there(&self.space.count_pages, page);
                (found, layout.count_address(page, 0), Cursor::Map { slot: 0, half: 0 })
            }
            Cursor::Map { slot, half } => return self.scrub_map(slot, half),
            Cursor::Data { slot, half, index } => return self.scrub_data(slot, half, index),
            Cursor::End => {
                if let Some(ended) = self.scrub_stop() {
                    let ended = ScrubProgress { ended_at: Some(self.now), ..ended };
                    self.scrub.last[place(ended.kind)] = Some(ended);
                }
                return false;
            }
        };
        match found {
            Some(true) => self.scrub_read(cursor, address, 2 * PAGE_SIZE, 0),
            Some(false) => self.scrub_go(after(cursor)),
            None => self.scrub_go(next),
        }
    }

    fn scrub_go(&mut self, cursor: Cursor) -> bool {
        if let Some(run) = &mut self.scrub.run {
            run.cursor = cursor;
        }
        true
    }

    fn scrub_read(&mut self, cursor: Cursor, address: u64, length: usize, first: u32) -> bool {
        let generation = self.checkpoint.generation;
        let incarnation = match cursor {
            Cursor::Map { slot, .. } => self.incarnation(slot),
            _ => 0,
        };
        let Some(run) = &mut self.scrub.run else { return false };
        run.is_reading = true;
        run.allowance -= i64::try_from(length).unwrap_or(i64::MAX);
        run.progress.bytes += length as u64;
        let read = ScrubRead { run: run.number, cursor, generation, incarnation, first };
        let buffer = self.io.pool.take(length);
        self.io.read(address, buffer, Context::Scrub(read));
        false
    }

    fn scrub_map(&mut self, slot: u32, half: u32) -> bool {
        if slot >= self.objects.slots_used() {
            return self.scrub_go(Cursor::End);
        }
        let on_disk = self.objects.occupied(slot).is_some_and(|at| at.halves & 1 << half != 0);
        if on_disk {
            let address = self.layout.map_address(slot, half, 0);
            return self.scrub_read(Cursor::Map { slot, half }, address, 2 * PAGE_SIZE, 0);
        }
        // A page that no checkpoint has written yet is in memory, if there is one.
        let place =
            self.objects.occupied(slot).map(|at| (at.frames[half as usize], at.incarnation));
        match place {
            Some((frame, incarnation)) if frame < BAD_FRAME => {
                let page = self.cache.frame(frame).page.clone();
                self.scrub_agree(slot, half, page, incarnation);
                true
            }
            _ => self.scrub_next_half(slot, half),
        }
    }

    fn incarnation(&self, slot: u32) -> u64 {
        self.objects.occupied(slot).map_or(0, |place| place.incarnation)
    }

    fn scrub_next_half(&mut self, slot: u32, half: u32) -> bool {
        let is_object = half == 1 && self.objects.occupied(slot).is_some();
        if let Some(run) = &mut self.scrub.run {
            run.map = None;
            run.suspect = None;
            run.progress.objects_done += u64::from(is_object);
        }
        let (slot, half) = if half == 0 { (slot, 1) } else { (slot + 1, 0) };
        self.scrub_go(Cursor::Map { slot, half })
    }

    /// A read of the scrub came up.
    pub(crate) fn finish_scrub(
        &mut self,
        read: ScrubRead,
        buffer: Option<IoBuffer>,
        result: Result<(), DiskError>,
    ) {
        let is_current = self.scrub.run.as_ref().is_some_and(|run| run.number == read.run);
        let Some(buffer) = buffer.filter(|_| is_current) else { return };
        if let Some(run) = &mut self.scrub.run {
            run.is_reading = false;
        }
        let is_metadata = !matches!(read.cursor, Cursor::Data { .. });
        let is_quiet =
            !self.checkpoint.is_running() && read.generation == self.checkpoint.generation;
        // What a checkpoint wrote meanwhile is read again.
        if !is_metadata || is_quiet {
            match read.cursor {
                Cursor::Index(page) => {
                    let newest = self.objects.pages[page as usize].generation;
                    let address = self.layout.index_address(page, 0);
                    let bad = self.bad_copy::<IndexPage>(&buffer, address, newest, result);
                    self.mend_state(|store| &mut store.objects.pages[page as usize], bad);
                    self.scrub_go(after(read.cursor));
                }
                Cursor::Bitmap(page) => {
                    let newest = self.space.bitmap_pages[page as usize].generation;
                    let address = self.layout.bitmap_address(page, 0);
                    let bad = self.bad_copy::<BitmapPage>(&buffer, address, newest, result);
                    self.mend_state(|store| &mut store.space.bitmap_pages[page as usize], bad);
                    self.scrub_go(after(read.cursor));
                }
                Cursor::Count(page) => {
                    let newest = self.space.count_pages[page as usize].generation;
                    let address = self.layout.count_address(page, 0);
                    let bad = self.bad_copy::<CountPage>(&buffer, address, newest, result);
                    self.mend_state(|store| &mut store.space.count_pages[page as usize], bad);
                    self.scrub_go(after(read.cursor));
                }
                // Another object in the slot is one that this scrub need not look at.
                Cursor::Map { slot, half } if self.incarnation(slot) != read.incarnation => {
                    self.scrub_next_half(slot, half);
                }
                Cursor::Map { slot, half } => self.judge_map(slot, half, &buffer, result),
                Cursor::Data { slot, half, index } => {
                    self.judge_data((slot, half, index), read.first, &buffer, result);
                }
                Cursor::End => {}
            }
        }
        self.io.pool.put(buffer);
    }

    /// A checkpoint will write the page anew, over the copy that is not the newest.
    fn scrub_mends(&mut self) {
        self.checkpoint.is_wanted = true;
        if let Some(run) = &mut self.scrub.run {
            run.progress.mended += 1;
        }
    }

    /// Which copy of a page is not what it should be, if one is not. `newest` is the generation
    /// that memory or the other copy vouches for.
    fn bad_copy<P: Page>(
        &self,
        buffer: &IoBuffer,
        base: u64,
        newest: u64,
        result: Result<(), DiskError>,
    ) -> Option<Which> {
        let is_bad = |copy: u64| {
            let at = usize::try_from(copy).unwrap_or(0) * PAGE_SIZE;
            let page: &P = bytemuck::from_bytes(&buffer.as_bytes()[at..at + PAGE_SIZE]);
            let address = base + copy * PAGE_SIZE as u64;
            let is_good = page.verify(Some(self.id), address).is_ok();
            result.is_err() || !is_good || (newest % 2 == copy && page.generation() != newest)
        };
        if is_bad(newest % 2) {
            return Some(Which::Newest);
        }
        // A page that was written once has one copy.
        (newest > 1 && is_bad(1 - newest % 2)).then_some(Which::Older)
    }

    /// Has a checkpoint write a page of a table anew.
    fn mend_state(&mut self, table: impl Fn(&mut Self) -> &mut PageState, bad: Option<Which>) {
        let Some(bad) = bad else { return };
        let state = table(self);
        state.is_dirty = true;
        state.generation += bad.skip();
        self.scrub_mends();
    }

    fn mend_frame(&mut self, frame: u32, bad: Option<Which>) {
        let Some(bad) = bad else { return };
        self.cache.mark_dirty(frame, bad.skip());
        self.scrub_mends();
    }

    fn judge_map(
        &mut self,
        slot: u32,
        half: u32,
        buffer: &IoBuffer,
        result: Result<(), DiskError>,
    ) {
        let Some(&place) = self.objects.occupied(slot) else {
            self.scrub_next_half(slot, half);
            return;
        };
        let frame = place.frames[half as usize];
        let is_cached = frame < BAD_FRAME;
        let found = result.ok().and_then(|()| self.choose_map(slot, half, buffer));
        let newest = if is_cached {
            self.cache.frame(frame).generation
        } else {
            found.as_ref().map_or(0, |(_, generation)| *generation)
        };
        let base = self.layout.map_address(slot, half, 0);
        let bad = self.bad_copy::<MapPage>(buffer, base, newest, result);
        if is_cached {
            self.mend_frame(frame, bad);
            let page = self.cache.frame(frame).page.clone();
            self.scrub_agree(slot, half, page, place.incarnation);
            return;
        }
        let Some((page, generation)) = found else {
            if frame != BAD_FRAME {
                self.counters.bad_metadata += 1;
                self.objects.set_frame(slot, half, BAD_FRAME);
            }
            if let Some(run) = &mut self.scrub.run {
                run.progress.found += 1;
            }
            // It stands for the blocks that nobody can find any more.
            self.bad.add(BadBlock {
                key: place.key,
                block: half * MAP_BLOCKS,
                offset: base,
                found_by: FoundBy::LightScrub,
                found_at: self.now,
                is_device: result.is_err(),
            });
            self.scrub_next_half(slot, half);
            return;
        };
        if bad.is_some() && frame == NO_FRAME {
            match self.install(slot, half, &page, generation) {
                Some(frame) => self.mend_frame(frame, bad),
                // No frame can be given up: after the checkpoint that this asks for it is read
                // again.
                None => return,
            }
        }
        self.scrub_agree(slot, half, Box::new(page), place.incarnation);
    }

    /// Compares a map with bitmap and counts, and goes on to its data.
    fn scrub_agree(&mut self, slot: u32, half: u32, page: Box<MapPage>, incarnation: u64) {
        let is_free = |unit| self.space.owners(unit) == 0;
        if page.units().any(|(_, unit)| is_free(unit)) {
            // A unit that is somebody's and counts as free would be given to somebody else.
            self.turn_read_only(ReadOnlyReason::Books);
        }
        let Some(run) = &mut self.scrub.run else { return };
        if run.progress.kind == ScrubKind::Light {
            self.scrub_next_half(slot, half);
            return;
        }
        run.map = Some((page, incarnation));
        run.cursor = Cursor::Data { slot, half, index: 0 };
    }

    /// The map page as it is: the cached one, else the copy that was read. A page that is not in
    /// memory does not change.
    fn scrub_page(&self, slot: u32, half: u32) -> Option<&MapPage> {
        let (copy, incarnation) = self.scrub.run.as_ref()?.map.as_ref()?;
        let place = self.objects.occupied(slot).filter(|at| at.incarnation == *incarnation)?;
        match place.frames[half as usize] {
            NO_FRAME => Some(copy),
            BAD_FRAME => None,
            frame => Some(&self.cache.frame(frame).page),
        }
    }

    /// Whether nothing is on its way to any block of the unit.
    fn is_unit_quiet(&self, unit: u32) -> bool {
        let first = u64::from(unit) * u64::from(UNIT_BLOCKS);
        let mut blocks = first..first + u64::from(UNIT_BLOCKS);
        !self.writing.may_have(first, UNIT_BLOCKS)
            && !self.overlay.writes_in_unit(unit)
            && !blocks.any(|block| self.overlay.get(block).is_some())
    }

    fn scrub_data(&mut self, slot: u32, half: u32, index: u32) -> bool {
        if index >= MAP_UNITS || self.state != StoreState::Writable {
            return self.scrub_next_half(slot, half);
        }
        // A suspect half is judged by itself, and what is there may not match yet.
        if self.marks.suspects.contains(&(slot, half)) {
            return self.scrub_next_half(slot, half);
        }
        let unit = self.scrub_page(slot, half).map(|page| (page.unit(index), page.written(index)));
        match unit {
            None => self.scrub_next_half(slot, half),
            Some((Some(unit), written)) if written != 0 && self.is_unit_quiet(unit) => {
                let first = written.trailing_zeros();
                let count = u8::BITS - written.leading_zeros() - first;
                let block = u64::from(unit) * u64::from(UNIT_BLOCKS) + u64::from(first);
                let address = self.layout.data_address(block);
                let cursor = Cursor::Data { slot, half, index };
                self.scrub_read(cursor, address, count as usize * BLOCK_SIZE, first)
            }
            // What is being written is new enough; the next scrub looks at it.
            Some(_) => self.scrub_go(Cursor::Data { slot, half, index: index + 1 }),
        }
    }

    fn judge_data(
        &mut self,
        (slot, half, index): (u32, u32, u32),
        first: u32,
        buffer: &IoBuffer,
        result: Result<(), DiskError>,
    ) {
        let next = Cursor::Data { slot, half, index: index + 1 };
        let Some(page) = self.scrub_page(slot, half) else {
            self.scrub_next_half(slot, half);
            return;
        };
        let unit = page.unit(index).filter(|&unit| self.is_unit_quiet(unit));
        let Some(unit) = unit else {
            self.scrub_go(next);
            return;
        };
        let mut bad: Vec<(u32, u32)> = Vec::new();
        for (at, bytes) in (first..).zip(buffer.as_bytes().chunks_exact(BLOCK_SIZE)) {
            let block = index * UNIT_BLOCKS + at;
            if let Some(sum) = page.checksum(block)
                && (result.is_err() || sum != crc32c(bytes))
            {
                bad.push((block, sum));
            }
        }
        let key = self.objects.slot(slot).key;
        let origin = half * MAP_BLOCKS;
        let Some(run) = &mut self.scrub.run else { return };
        // The first look at a mismatch is not believed: the unit is read once more.
        if let Some(&one) = bad.first()
            && run.suspect != Some(one)
        {
            run.suspect = Some(one);
            return;
        }
        run.suspect = None;
        let found_by = FoundBy::DeepScrub;
        let now = self.now;
        if bad.is_empty() && !self.bad.is_empty() {
            let block = origin + index * UNIT_BLOCKS;
            self.bad.forget(key, block, block + UNIT_BLOCKS);
        }
        for (block, _) in bad {
            let data_block =
                u64::from(unit) * u64::from(UNIT_BLOCKS) + u64::from(block % UNIT_BLOCKS);
            let offset = self.layout.data_address(data_block);
            let is_device = result.is_err();
            let block = origin + block;
            self.bad.add(BadBlock { key, block, offset, found_by, found_at: now, is_device });
            match is_device {
                true => self.counters.read_errors += 1,
                false => self.counters.bad_blocks += 1,
            }
            if let Some(run) = &mut self.scrub.run {
                run.progress.found += 1;
            }
        }
        self.scrub_go(next);
    }
}

/// One of the two copies of a page.
#[derive(Clone, Debug)]
enum Which {
    Newest,
    Older,
}

impl Which {
    /// How many generations are left out, so that the next one goes over the bad copy: it must
    /// not go over the one that is good.
    const fn skip(&self) -> u64 {
        match self {
            Self::Newest => 1,
            Self::Older => 0,
        }
    }
}

const fn place(kind: ScrubKind) -> usize {
    match kind {
        ScrubKind::Light => 0,
        ScrubKind::Deep => 1,
    }
}

/// The next page of the same table.
const fn after(cursor: Cursor) -> Cursor {
    match cursor {
        Cursor::Index(page) => Cursor::Index(page + 1),
        Cursor::Bitmap(page) => Cursor::Bitmap(page + 1),
        Cursor::Count(page) => Cursor::Count(page + 1),
        other => other,
    }
}
