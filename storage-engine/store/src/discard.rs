// SPDX-License-Identifier: Apache-2.0
//! Freed space is given back to the device, in the background.
//!
//! ```text
//!   unit free for good ─▶ its chunk is fresh ── delay ──▶ ripe ── rate ──▶ free runs held
//!                                                                            │ discard
//!                                        can be taken again ◀── ended ───────┘
//! ```
//!
//! A discard is one more write of nobody's bytes to units that are free and confirmed to be, as
//! the write of a new owner is; so it may begin when they could be taken, and not before. While
//! it is on its way its units are held, because a write beside it could end before it and be
//! lost. What is free is looked up when it is time: a unit that was taken again in between stays.
//!
//! The delay lets units that are freed and taken in turns be; whole neighbors go in one request.
//! Only memory knows what is still to do. The superblock says whether there was something, and
//! then the next mount begins with all that is free.

use crate::bitmap::UnitBitmap;
use crate::disk::{Disk, DiskError};
use crate::io::Context;
use crate::store::{Omit, Store, StoreState};
use plinth_format::{UNIT_BLOCKS, UNIT_SIZE};
use plinth_ids::Moment;
use std::time::Duration;

/// Units whose freedom is one bit here: a word of the bitmap, 2 MiB.
const CHUNK_UNITS: u32 = 64;

/// Units that are held at once, at most: 64 MiB.
const HELD_MAX: u32 = 2048;

/// Requests on their way at once.
const REQUESTS_MAX: usize = 16;

/// Chunks that are looked at in one poll.
const CHUNKS_MAX: u32 = 256;

/// How freed space is given back. A device that does not know how is never asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DiscardOptions {
    /// Bytes a second. 0: nothing is given back. `u64::MAX`: as fast as the device goes.
    pub rate: u64,
    /// How long a unit has been free before, at least.
    pub delay: Duration,
}

impl DiscardOptions {
    pub const OFF: Self = Self { rate: 0, delay: Duration::ZERO };
}

impl Default for DiscardOptions {
    /// 1 GiB a second, which is 16 requests of 64 MiB or 512 of 2 MiB, after a quarter of a
    /// minute.
    fn default() -> Self {
        Self { rate: 1 << 30, delay: Duration::from_secs(15) }
    }
}

/// A set of chunks: 64 KiB for each TiB.
#[derive(Debug)]
pub(crate) struct Chunks {
    words: Box<[u64]>,
    count: u32,
}

impl Chunks {
    pub(crate) fn new(units: u32) -> Self {
        let chunks = units.div_ceil(CHUNK_UNITS) as usize;
        Self { words: vec![0; chunks.div_ceil(64)].into_boxed_slice(), count: 0 }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn insert_unit(&mut self, unit: u32) {
        let chunk = unit / CHUNK_UNITS;
        let word = &mut self.words[chunk as usize / 64];
        self.count += u32::from(*word & (1 << (chunk % 64)) == 0);
        *word |= 1 << (chunk % 64);
    }

    /// Takes out the first chunk from `from` on.
    fn take_next(&mut self, from: u32) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        let first = from as usize / 64;
        for (index, word) in self.words.iter_mut().enumerate().skip(first) {
            let mask = if index == first { !0 << (from % 64) } else { !0 };
            let bits = *word & mask;
            if bits != 0 {
                let bit = bits.trailing_zeros();
                *word &= !(1 << bit);
                self.count -= 1;
                return u32::try_from(index).ok().map(|index| index * 64 + bit);
            }
        }
        None
    }
}

#[derive(Debug)]
pub(crate) struct Discards {
    /// Whether discards may begin: not while a mount goes on or the store is on its way out.
    pub(crate) is_open: bool,
    ripe: Chunks,
    cursor: u32,
    /// Since when there is a fresh chunk.
    fresh_since: Option<Moment>,
    /// Bytes that may be given back now; negative after a large batch.
    allowance: i64,
    last: Moment,
    on_their_way: usize,
}

impl Discards {
    pub(crate) fn new(units: u32) -> Self {
        Self {
            is_open: false,
            ripe: Chunks::new(units),
            cursor: 0,
            fresh_since: None,
            allowance: 0,
            last: Moment::ZERO,
            on_their_way: 0,
        }
    }
}

impl<D: Disk> Store<D> {
    fn gives_back(&self) -> bool {
        self.options.discard.rate > 0 && self.io.disk.geometry().has_discard
    }

    /// Whether free units may still have bytes that the device need not keep.
    pub(crate) fn has_discards(&self) -> bool {
        let is_some = !self.discards.ripe.is_empty() || !self.space.fresh.is_empty();
        self.gives_back() && (is_some || self.space.quarantined() > 0)
    }

    /// Takes all that is free for not given back yet.
    pub(crate) fn discard_all_free(&mut self) {
        if !self.gives_back() {
            return;
        }
        let mut from = 0;
        while let Some(unit) = self.space.next_free(from) {
            self.space.fresh.insert_unit(unit);
            from = (unit / CHUNK_UNITS + 1) * CHUNK_UNITS;
            if from >= self.space.unit_count() {
                return;
            }
        }
    }

    /// Begins no more discards: for an owner who wants the disk to come to rest.
    pub fn stop_discards(&mut self) {
        self.discards.is_open = false;
    }

    /// When the store must be polled, if nothing else happens: for a discard to begin, or to
    /// vouch for the last changes.
    pub fn deadline(&self) -> Option<Moment> {
        [self.discard_deadline(), self.quiet_deadline()].into_iter().flatten().min()
    }

    fn discard_deadline(&self) -> Option<Moment> {
        let discards = &self.discards;
        let is_on = discards.is_open && self.state == StoreState::Writable && self.gives_back();
        if !is_on || discards.on_their_way > 0 {
            return None;
        }
        let DiscardOptions { rate, delay } = self.options.discard;
        if !discards.ripe.is_empty() {
            let owed = u128::from(discards.allowance.min(0).unsigned_abs());
            let nanos = owed * 1_000_000_000 / u128::from(rate);
            let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            return Some(discards.last.saturating_add(wait));
        }
        discards.fresh_since.map(|since| since.saturating_add(delay))
    }

    /// Begins a batch of discards if it is time.
    pub(crate) fn advance_discards(&mut self) {
        if !self.discards.is_open || self.discards.on_their_way > 0 || !self.has_discards() {
            return;
        }
        if self.state != StoreState::Writable {
            return;
        }
        self.ripen();
        if self.discards.ripe.is_empty() || !self.may_discard() {
            return;
        }
        let most = (self.space.free_count() / 8).clamp(1, HELD_MAX);
        let mut runs: Vec<(u32, u32)> = Vec::with_capacity(REQUESTS_MAX);
        let mut units = 0;
        for _ in 0..CHUNKS_MAX {
            if units >= most {
                break;
            }
            let Some(chunk) = self.next_ripe(&mut runs) else { break };
            units += free_runs(self.space.free_word(chunk), chunk * CHUNK_UNITS, &mut runs);
        }
        let bytes = u64::from(units) * u64::from(UNIT_SIZE);
        self.discards.allowance =
            self.discards.allowance.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        for (first, count) in runs {
            if self.options.omit != Omit::DiscardHold {
                self.space.hold(first, count);
            }
            self.send_discard(first, count);
        }
    }

    /// The next ripe chunk, if requests for its runs may still be added.
    fn next_ripe(&mut self, runs: &mut [(u32, u32)]) -> Option<u32> {
        // A chunk has 32 runs at most, and must not be cut: what is left of it would be forgotten.
        if runs.len() >= REQUESTS_MAX {
            return None;
        }
        let discards = &mut self.discards;
        let found = discards.ripe.take_next(discards.cursor);
        let found = found.or_else(|| discards.ripe.take_next(0))?;
        discards.cursor = found + 1;
        Some(found)
    }

    fn send_discard(&mut self, first: u32, count: u32) {
        let unit = u64::from(UNIT_SIZE);
        let address = self.layout.data_address(u64::from(first) * u64::from(UNIT_BLOCKS));
        self.discards.on_their_way += 1;
        self.counters.discards += 1;
        self.counters.discarded_bytes += u64::from(count) * unit;
        self.io.discard(address, u64::from(count) * unit, Context::Discard { first, count });
    }

    /// Lets chunks go from fresh to ripe, all together.
    fn ripen(&mut self) {
        if self.options.omit == Omit::DiscardConfirm {
            for unit in self.space.newly_quarantined() {
                self.send_discard(unit, 1);
            }
        }
        let unconfirmed = self.space.quarantined_by();
        if self.space.fresh.is_empty() && unconfirmed.is_none() {
            self.discards.fresh_since = None;
            return;
        }
        let since = *self.discards.fresh_since.get_or_insert(self.now);
        let is_old = self.now.saturating_sub(since) >= self.options.discard.delay;
        if is_old && self.discards.ripe.is_empty() && !self.space.fresh.is_empty() {
            std::mem::swap(&mut self.space.fresh, &mut self.discards.ripe);
            self.discards.fresh_since = None;
        }
        // Where no later change confirms that units are free an empty entry must.
        self.wants_confirm |= is_old && unconfirmed > Some(self.journal.confirmed_seq);
    }

    /// Whether the rate allows a batch.
    fn may_discard(&mut self) -> bool {
        let rate = self.options.discard.rate;
        let discards = &mut self.discards;
        if rate == u64::MAX {
            discards.allowance = 0;
            return true;
        }
        let passed = self.now.saturating_sub(discards.last).as_nanos();
        let gain = passed * u128::from(rate) / 1_000_000_000;
        discards.last = self.now;
        let gain = i64::try_from(gain).unwrap_or(i64::MAX);
        // Nothing is saved up: after a pause one batch goes, as at any time.
        discards.allowance = discards.allowance.saturating_add(gain).min(0);
        discards.allowance >= 0
    }

    /// A discard has ended. One that failed has cost space of the device and nothing else.
    pub(crate) fn finish_discard(&mut self, first: u32, count: u32, result: Result<(), DiskError>) {
        self.discards.on_their_way -= 1;
        self.counters.discard_errors += u64::from(result.is_err());
        self.space.let_go(first, count);
    }
}

/// Appends the runs of free units of one word; one that goes on from the last run is joined to
/// it. Says how many units they are.
fn free_runs(free: u64, first: u32, runs: &mut Vec<(u32, u32)>) -> u32 {
    let mut left = free;
    while left != 0 {
        let start = left.trailing_zeros();
        let count = (left >> start).trailing_ones();
        left &= !(run_mask(count) << start);
        match runs.last_mut() {
            Some((before, length)) if *before + *length == first + start => *length += count,
            _ => runs.push((first + start, count)),
        }
    }
    free.count_ones()
}

/// `count` low bits, 1 to 64.
const fn run_mask(count: u32) -> u64 {
    !0 >> (64 - count)
}

/// The free units of a chunk, one bit each.
pub(crate) fn free_word(bitmap: &UnitBitmap, chunk: u32) -> u64 {
    let first = chunk * CHUNK_UNITS;
    let inside = bitmap.unit_count().saturating_sub(first).min(CHUNK_UNITS);
    if inside == 0 { 0 } else { !bitmap.word(chunk as usize) & run_mask(inside) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_in_a_word_and_joined_across_words() {
        let mut runs = Vec::new();
        assert_eq!(free_runs(0xf000_0000_0000_00f1, 64, &mut runs), 9);
        assert_eq!(runs, [(64, 1), (68, 4), (124, 4)]);
        assert_eq!(free_runs(!0, 128, &mut runs), 64);
        assert_eq!(free_runs(1, 256, &mut runs), 1);
        assert_eq!(runs, [(64, 1), (68, 4), (124, 68), (256, 1)]);
    }

    #[test]
    fn units_past_the_end_are_not_free() {
        let mut bitmap = UnitBitmap::new(70);
        bitmap.set(65);
        assert_eq!(free_word(&bitmap, 0), !0);
        assert_eq!(free_word(&bitmap, 1), 0b11_1101);
    }

    #[test]
    fn chunks_are_taken_once_each_in_order() {
        let mut chunks = Chunks::new(64 * 200);
        for unit in [64 * 199, 5, 6, 64 * 70 + 63] {
            chunks.insert_unit(unit);
        }
        assert_eq!(chunks.take_next(1), Some(70));
        assert_eq!(chunks.take_next(71), Some(199));
        assert_eq!(chunks.take_next(200), None);
        assert_eq!((chunks.take_next(0), chunks.is_empty()), (Some(0), true));
        assert_eq!(chunks.take_next(0), None);
    }
}
