// SPDX-License-Identifier: Apache-2.0
//! Judging, after a crash, the halves of objects that were being overwritten in place.
//!
//! In a suspect half a block that does not match its checksum is the old or the new one of a
//! write that nobody was told of, and either is legal: what is there is *adopted*, its checksum
//! goes into the map and the journal. Reads adopt what they meet; a pass in the background goes
//! through each suspect half once, a unit at a time, and then it is suspected no more. Nobody
//! waits for the pass. Elsewhere a block that does not match is bad, as ever.

use crate::buffer::{BLOCK_SIZE, IoBuffer};
use crate::disk::{Disk, DiskError};
use crate::io::{Context, ReadRun};
use crate::objects::BAD_FRAME;
use crate::store::{Omit, Store, StoreState};
use plinth_format::journal::BlockData;
use plinth_format::{Le32, MAP_BLOCKS, MAP_UNITS, UNIT_BLOCKS, crc32c};

/// Bytes of the record that adopts one block.
const ADOPTION_BYTES: usize = 24;

/// The half that is being judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judging {
    slot: u32,
    half: u32,
    /// The next unit of the half.
    unit: u32,
    is_reading: bool,
}

/// Blocks of a unit on their way up to be judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JudgeRun {
    slot: u32,
    half: u32,
    frame: u32,
    version: u64,
    /// First block, of the half.
    first: u32,
    /// Those that waited for their write back when the read began, the first one's bit lowest: what
    /// came up may be older than what the disk has by now, and nobody doubts what it will have.
    deferred: u8,
}

impl<D: Disk> Store<D> {
    /// Whether what is found there after a crash counts although it does not match.
    fn is_suspect(&self, slot: u32, half: u32) -> bool {
        let is_there = || self.marks.suspects.contains(&(slot, half));
        match self.options.omit {
            Omit::Adopt => false,
            Omit::AdoptSuspectsOnly => true,
            _ => !self.marks.suspects.is_empty() && is_there(),
        }
    }

    /// A read found bytes that do not match, through a page that has not changed. Adopts them if
    /// they may be; the read is then to be judged again. `None`: try again later.
    pub(crate) fn adopt_run(&mut self, run: &ReadRun, buffer: &IoBuffer) -> Option<bool> {
        let frame = self.cache.frame(run.frame);
        let (slot, half) = (frame.slot, frame.half);
        if !self.is_suspect(slot, half) {
            return Some(false);
        }
        let first = run.block % MAP_BLOCKS;
        // A read goes to the disk only for blocks that wait for nothing.
        self.adopt(slot, half, first, 0, buffer).then_some(true)
    }

    /// Gives the written blocks from `first` of the half on the checksums of these bytes, but for
    /// those that were deferred. `false` when the journal has no room.
    fn adopt(&mut self, slot: u32, half: u32, first: u32, deferred: u8, buffer: &IoBuffer) -> bool {
        let frame = self.objects.slot(slot).frames[half as usize];
        let blocks = buffer.length() / BLOCK_SIZE;
        if self.state != StoreState::Writable {
            return true;
        }
        if !self.journal.has_room(blocks * ADOPTION_BYTES, 0) {
            self.checkpoint.is_wanted = true;
            return false;
        }
        for (block, bytes) in (first..).zip(buffer.as_bytes().chunks_exact(BLOCK_SIZE)) {
            if u32::from(deferred).checked_shr(block - first).unwrap_or(0) & 1 != 0 {
                continue;
            }
            let page = &self.cache.frame(frame).page;
            let (Some(known), Some(unit)) = (page.checksum(block), page.unit(block / UNIT_BLOCKS))
            else {
                continue;
            };
            let found = crc32c(bytes);
            let data_block = u64::from(unit) * u64::from(UNIT_BLOCKS);
            if found == known || self.overlay.holds(data_block + u64::from(block % UNIT_BLOCKS)) {
                continue;
            }
            let seq = self.journal.open_seq();
            self.cache.change(frame, seq).page.set_checksum(block, Some(found));
            let block = half * MAP_BLOCKS + block;
            self.journal.record_checksums(slot, block, BlockData::Shared, &[Le32::new(found)]);
            self.counters.adopted_blocks += 1;
        }
        true
    }

    /// Goes on with judging: at most one unit is on its way up.
    pub(crate) fn advance_judging(&mut self) {
        if self.state != StoreState::Writable || self.marks.suspects.is_empty() {
            return;
        }
        let judging = match self.marks.judging {
            Some(judging) if judging.is_reading => return,
            Some(judging) if self.marks.suspects.contains(&(judging.slot, judging.half)) => judging,
            _ => match self.marks.suspects.first() {
                Some(&(slot, half)) => Judging { slot, half, unit: 0, is_reading: false },
                None => return,
            },
        };
        let judging = self.judge_next(judging);
        self.marks.judging = judging;
    }

    fn judge_next(&mut self, mut judging: Judging) -> Option<Judging> {
        let Judging { slot, half, .. } = judging;
        let is_damaged = match self.need_frame(slot, half) {
            Ok(None) => return Some(judging),
            Ok(Some(_)) => false,
            Err(_) => true,
        };
        if is_damaged {
            self.marks.suspects.remove(&(slot, half));
            return None;
        }
        while judging.unit < MAP_UNITS {
            let place = half * MAP_UNITS + judging.unit;
            let (unit, written) = (self.unit_of(slot, place), self.written_of(slot, place));
            let Some(unit) = unit.filter(|_| written != 0) else {
                judging.unit += 1;
                continue;
            };
            let (from, to) = (written.trailing_zeros(), 8 - written.leading_zeros());
            let data_block = u64::from(unit) * u64::from(UNIT_BLOCKS) + u64::from(from);
            if self.writing.may_have(data_block, to - from) {
                return Some(judging);
            }
            let frame = self.objects.slot(slot).frames[half as usize];
            let touched = self.cache.touch(frame);
            touched.pins += 1;
            let (version, first) = (touched.version, judging.unit * UNIT_BLOCKS + from);
            let held = (0..to - from).filter(|&at| self.overlay.holds(data_block + u64::from(at)));
            let deferred = held.fold(0, |mask, at| mask | 1 << at);
            let buffer = self.io.pool.take((to - from) as usize * BLOCK_SIZE);
            let context = Context::Judge(JudgeRun { slot, half, frame, version, first, deferred });
            self.io.read(self.layout.data_address(data_block), buffer, context);
            judging.is_reading = true;
            return Some(judging);
        }
        // Judged: the next checkpoint does not log it again.
        self.marks.suspects.remove(&(slot, half));
        self.has_moved = true;
        None
    }

    pub(crate) fn finish_judge(
        &mut self,
        run: JudgeRun,
        buffer: Option<IoBuffer>,
        result: Result<(), DiskError>,
    ) {
        let JudgeRun { slot, half, frame, version, first, deferred } = run;
        let mut is_done = true;
        let has_page = self.marks.suspects.contains(&(slot, half))
            && self.objects.slot(slot).frames[half as usize] == frame
            && frame < BAD_FRAME;
        if let (true, Ok(()), Some(buffer)) = (has_page, result, &buffer) {
            // Where the page has changed, bytes that do not match may be older than the change.
            let is_same = self.cache.frame(frame).version == version;
            let is_good = self.matches(frame, first, buffer);
            let is_omitted = self.options.omit == Omit::Adopt;
            is_done = is_good
                || is_omitted
                || (is_same && self.adopt(slot, half, first, deferred, buffer));
        }
        if let Some(buffer) = buffer {
            self.io.pool.put(buffer);
        }
        self.cache.release(frame);
        if let Some(judging) = &mut self.marks.judging {
            judging.is_reading = false;
            judging.unit += u32::from(is_done);
        }
    }

    fn matches(&self, frame: u32, first: u32, buffer: &IoBuffer) -> bool {
        let page = &self.cache.frame(frame).page;
        let blocks = (first..).zip(buffer.as_bytes().chunks_exact(BLOCK_SIZE));
        blocks
            .filter_map(|(block, bytes)| Some((page.checksum(block)?, bytes)))
            .all(|(known, bytes)| crc32c(bytes) == known)
    }
}
