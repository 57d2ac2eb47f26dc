// SPDX-License-Identifier: Apache-2.0
//! Who owns the units: the bitmap, the counts of shared units, and the quarantine.
//!
//! ```text
//!   free ── take ──▶ one owner ── share ──▶ several ── drop ──▶ one ── drop ──▶ quarantine ──▶ free
//! ```
//!
//! A unit whose last owner let go stays in quarantine until the journal entry that says so is
//! *confirmed*: durable, and known to be so by a later durable entry. Before that a crash may
//! bring the owner back, or recovery may still compare the unit with its checksums, so nobody
//! else may write to it. A free unit that the device is told to discard is held until that has
//! ended. On the disk's bitmap quarantined and held units are free.

use crate::bitmap::UnitBitmap;
use crate::discard::{self, Chunks};
use bytemuck::Zeroable;
use plinth_format::{BITMAP_UNITS, BitmapPage, COUNT_UNITS, CountPage, Le16, Le64, Page};
use std::collections::{BTreeMap, VecDeque};

/// What memory knows about a page that exists twice on the disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PageState {
    pub(crate) generation: u64,
    pub(crate) is_dirty: bool,
    /// Whether a copy was ever written.
    pub(crate) is_on_disk: bool,
}

type Counts = Box<[u16; COUNT_UNITS as usize]>;

#[derive(Debug)]
pub(crate) struct Space {
    bitmap: UnitBitmap,
    /// Owners of shared units, by count page; 0 stands for "not shared".
    counts: Vec<Option<Counts>>,
    quarantine: VecDeque<(u64, u32)>,
    /// Runs of free units that cannot be taken: first and how many.
    held: Vec<(u32, u32)>,
    held_count: u32,
    /// Where units were freed since it was last looked.
    pub(crate) fresh: Chunks,
    /// Units that one of two owners let go, and by which entry. Until that is confirmed a crash
    /// may bring the other owner back, which may need blocks that this one does not.
    left_alone: BTreeMap<u32, u64>,
    pub(crate) bitmap_pages: Vec<PageState>,
    pub(crate) count_pages: Vec<PageState>,
    cursor: u32,
    unit_count: u32,
    shared_count: u32,
    /// Times that a map and the bitmap contradicted each other. The disk may say anything with
    /// a right checksum, so this is no assertion; the store stops writing when it is not zero.
    pub(crate) fault_count: u64,
}

impl Space {
    pub(crate) fn new(unit_count: u32) -> Self {
        let pages = |each: u32| vec![PageState::default(); unit_count.div_ceil(each) as usize];
        let count_pages = pages(COUNT_UNITS);
        Self {
            bitmap: UnitBitmap::new(unit_count),
            counts: count_pages.iter().map(|_| None).collect(),
            quarantine: VecDeque::new(),
            held: Vec::new(),
            held_count: 0,
            fresh: Chunks::new(unit_count),
            left_alone: BTreeMap::new(),
            bitmap_pages: pages(BITMAP_UNITS),
            count_pages,
            cursor: 0,
            unit_count,
            shared_count: 0,
            fault_count: 0,
        }
    }

    pub(crate) const fn unit_count(&self) -> u32 {
        self.unit_count
    }

    /// Units that can be taken.
    pub(crate) const fn free_count(&self) -> u32 {
        self.bitmap.free_count()
    }

    /// Units that nobody owns and that cannot be taken yet: they are not confirmed, or held.
    pub(crate) fn quarantined(&self) -> u32 {
        let waiting = u32::try_from(self.quarantine.len());
        waiting.expect("no more units than 2^32 are quarantined") + self.held_count
    }

    /// For checks: goes through the quarantine.
    pub(crate) fn is_quarantined(&self, unit: u32) -> bool {
        let is_held = |&(first, count): &(u32, u32)| (first..first + count).contains(&unit);
        self.quarantine.iter().any(|&(_, other)| other == unit) || self.held.iter().any(is_held)
    }

    /// The entry by which the first unit in quarantine came there.
    pub(crate) fn quarantined_by(&self) -> Option<u64> {
        self.quarantine.front().map(|&(seq, _)| seq)
    }

    /// The first unit from `from` on that can be taken.
    pub(crate) fn next_free(&self, from: u32) -> Option<u32> {
        self.bitmap.next_free(from)
    }

    /// Which units of 64 can be taken, one bit each.
    pub(crate) fn free_word(&self, chunk: u32) -> u64 {
        discard::free_word(&self.bitmap, chunk)
    }

    /// Keeps free units from being taken.
    pub(crate) fn hold(&mut self, first: u32, count: u32) {
        (first..first + count).for_each(|unit| self.bitmap.set(unit));
        self.held.push((first, count));
        self.held_count += count;
    }

    /// Ends a [`Space::hold`]. Units that are not held are left alone.
    pub(crate) fn let_go(&mut self, first: u32, count: u32) {
        let Some(at) = self.held.iter().position(|&run| run == (first, count)) else { return };
        self.held.swap_remove(at);
        self.held_count -= count;
        for unit in first..first + count {
            if self.bitmap.is_used(unit) {
                self.bitmap.clear(unit);
            } else {
                self.fault_count += 1;
            }
        }
    }

    /// For the fault that discards too soon: what was quarantined last.
    pub(crate) fn newly_quarantined(&self) -> Vec<u32> {
        self.quarantine.iter().rev().take(4).map(|&(_, unit)| unit).collect()
    }

    pub(crate) const fn shared_count(&self) -> u32 {
        self.shared_count
    }

    /// Takes a unit, `hint` if it is free.
    pub(crate) fn take(&mut self, hint: Option<u32>) -> Option<u32> {
        let hint = hint.filter(|&unit| unit < self.unit_count && !self.bitmap.is_used(unit));
        let unit = self.bitmap.take(hint.unwrap_or(self.cursor))?;
        self.cursor = (unit + 1) % self.unit_count;
        self.bitmap_pages[(unit / BITMAP_UNITS) as usize].is_dirty = true;
        Some(unit)
    }

    /// How many objects own the unit. A quarantined unit has none.
    pub(crate) fn owners(&self, unit: u32) -> u16 {
        match self.count(unit) {
            0 => u16::from(self.bitmap.is_used(unit)),
            count => count,
        }
    }

    /// Whether nobody else can need a block of the unit, now or after a crash.
    pub(crate) fn is_alone(&self, unit: u32) -> bool {
        !self.is_shared(unit) && !self.left_alone.contains_key(&unit)
    }

    pub(crate) fn is_shared(&self, unit: u32) -> bool {
        self.count(unit) > 1
    }

    fn count(&self, unit: u32) -> u16 {
        let page = self.counts[(unit / COUNT_UNITS) as usize].as_ref();
        page.map_or(0, |page| page[(unit % COUNT_UNITS) as usize])
    }

    fn set_count(&mut self, unit: u32, count: u16) {
        let page = (unit / COUNT_UNITS) as usize;
        if count == 0 && self.counts[page].is_none() {
            return;
        }
        let counts = self.counts[page].get_or_insert_with(|| Box::new([0; COUNT_UNITS as usize]));
        let place = &mut counts[(unit % COUNT_UNITS) as usize];
        match (*place, count) {
            (0, 0) => return,
            (0, _) => self.shared_count += 1,
            (_, 0) => self.shared_count -= 1,
            _ => {}
        }
        *place = count;
        self.count_pages[page].is_dirty = true;
    }

    /// Gives the unit one more owner and says how many it has.
    ///
    /// # Panics
    /// If it has as many as can be counted: the caller asked before.
    pub(crate) fn share(&mut self, unit: u32) -> u16 {
        if !self.bitmap.is_used(unit) {
            self.fault_count += 1;
            self.bitmap.set(unit);
        }
        let owners = self.owners(unit).checked_add(1).expect("the caller compared with the limit");
        self.set_count(unit, owners);
        owners
    }

    /// Takes one owner from the unit and says how many are left. With none left it goes into
    /// quarantine until entry `seq` is confirmed.
    pub(crate) fn drop_owner(&mut self, unit: u32, seq: u64) -> u16 {
        let Some(left) = self.owners(unit).checked_sub(1) else {
            self.fault_count += 1;
            return 0;
        };
        self.set_count(unit, if left > 1 { left } else { 0 });
        if left == 1 {
            self.left_alone.insert(unit, seq);
        }
        if left == 0 {
            assert!(self.quarantine.back().is_none_or(|&(last, _)| last <= seq), "entries go up");
            self.quarantine.push_back((seq, unit));
            self.bitmap_pages[(unit / BITMAP_UNITS) as usize].is_dirty = true;
        }
        left
    }

    /// Frees what was quarantined by entries up to `confirmed`; units that the disk is writing
    /// to wait, and those behind them.
    pub(crate) fn release(&mut self, confirmed: u64, is_busy: impl Fn(u32) -> bool) -> u32 {
        let mut released = 0;
        while let Some(&(seq, unit)) = self.quarantine.front()
            && seq <= confirmed
            && !is_busy(unit)
        {
            self.quarantine.pop_front();
            if self.bitmap.is_used(unit) {
                self.bitmap.clear(unit);
                self.fresh.insert_unit(unit);
                released += 1;
            } else {
                self.fault_count += 1;
            }
        }
        released
    }

    /// Forgets which units had a second owner before `confirmed`.
    pub(crate) fn confirm(&mut self, confirmed: u64) {
        if !self.left_alone.is_empty() {
            self.left_alone.retain(|_, seq| *seq > confirmed);
        }
    }

    /// Sets how many owners a unit has: for recovery, where a record says what is.
    pub(crate) fn set_owners(&mut self, unit: u32, owners: u16) {
        match (self.bitmap.is_used(unit), owners) {
            (true, 0) => self.bitmap.clear(unit),
            (false, 1..) => self.bitmap.set(unit),
            (true, _) | (false, 0) => {}
        }
        self.set_count(unit, if owners > 1 { owners } else { 0 });
        self.bitmap_pages[(unit / BITMAP_UNITS) as usize].is_dirty = true;
    }

    /// The bitmap page as the disk should have it.
    pub(crate) fn bitmap_page(&self, page: u32) -> BitmapPage {
        let mut out = BitmapPage::zeroed();
        let first_word = (page * (BITMAP_UNITS / 64)) as usize;
        for (index, word) in out.words.iter_mut().enumerate() {
            *word = Le64::new(self.bitmap.word(first_word + index));
        }
        let range = page * BITMAP_UNITS..(page + 1).saturating_mul(BITMAP_UNITS);
        let held = self.held.iter().flat_map(|&(first, count)| first..first + count);
        for unit in self.quarantine.iter().map(|&(_, unit)| unit).chain(held) {
            if range.contains(&unit) {
                let at = unit - range.start;
                let word = &mut out.words[at as usize / 64];
                *word = Le64::new(word.get() & !(1 << (at % 64)));
            }
        }
        let mut counts = 0;
        for bit in 0..16 {
            let state = self.count_pages.get((page * 16 + bit) as usize);
            counts |= u16::from(state.is_some_and(|state| state.is_on_disk)) << bit;
        }
        out.set_counts(counts);
        out
    }

    pub(crate) fn count_page(&self, page: u32) -> CountPage {
        let mut out = CountPage::zeroed();
        if let Some(counts) = &self.counts[page as usize] {
            for (place, count) in out.owners.iter_mut().zip(counts.iter()) {
                *place = Le16::new(*count);
            }
        }
        out
    }

    /// Takes over a bitmap page that was read, and says which count pages to read.
    pub(crate) fn load_bitmap(&mut self, page: u32, from: &BitmapPage) -> u16 {
        let first = page * BITMAP_UNITS;
        for (index, word) in (0..).zip(&from.words) {
            let mut bits = word.get();
            while bits != 0 {
                let unit = first + index * 64 + bits.trailing_zeros();
                if unit < self.unit_count {
                    self.bitmap.set(unit);
                }
                bits &= bits - 1;
            }
        }
        let state = &mut self.bitmap_pages[page as usize];
        *state = PageState { generation: from.generation(), is_dirty: false, is_on_disk: true };
        from.counts()
    }

    pub(crate) fn load_counts(&mut self, page: u32, from: &CountPage) {
        for (index, count) in (0..).zip(&from.owners) {
            let unit = page * COUNT_UNITS + index;
            if count.get() > 1 && unit < self.unit_count {
                self.set_count(unit, count.get());
            }
        }
        let state = &mut self.count_pages[page as usize];
        *state = PageState { generation: from.generation(), is_dirty: false, is_on_disk: true };
    }
}
