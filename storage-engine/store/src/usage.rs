// SPDX-License-Identifier: Apache-2.0
//! What an object holds, and where two objects differ: answered from their maps, no data is read.

use crate::disk::Disk;
use crate::query::{Counting, Found};
use crate::request::{BlockRange, ObjectKey, StoreAnswer, StoreRefusal};
use crate::store::Store;
use plinth_format::{MAP_BLOCKS, MapPage, OBJECT_UNITS, UNIT_BLOCKS};

impl<D: Disk> Store<D> {
    pub(crate) fn object_status(&mut self, key: &ObjectKey) -> Found {
        let Some(slot) = self.objects.find(key) else {
            return Found::Refusal(StoreRefusal::NotFound { key: *key });
        };
        match self.need_pages(&[slot]) {
            Ok(true) => {}
            Ok(false) => return Found::Not,
            Err(refusal) => return Found::Refusal(refusal),
        }
        let object = self.status(*key, slot);
        Found::Answer(StoreAnswer::Status { object, version: self.version(slot) })
    }

    /// The version of an object whose map pages are both in memory: each page notes the changes
    /// that touched it.
    pub(crate) fn version(&self, slot: u32) -> u64 {
        let frames = self.objects.slot(slot).frames.into_iter();
        frames.map(|frame| self.cache.frame(frame).page.version()).max().unwrap_or(0)
    }

    pub(crate) fn usage(&mut self, key: &ObjectKey) -> Found {
        let Some(slot) = self.objects.find(key) else {
            return Found::Refusal(StoreRefusal::NotFound { key: *key });
        };
        match self.need_pages(&[slot]) {
            Ok(true) => {}
            Ok(false) => return Found::Not,
            Err(refusal) => return Found::Refusal(refusal),
        }
        let (mut units, mut unique, mut blocks) = (0, 0, 0);
        for index in 0..OBJECT_UNITS {
            let Some(unit) = self.unit_of(slot, index) else { continue };
            units += 1;
            unique += u32::from(!self.space.is_shared(unit));
            blocks += self.written_of(slot, index).count_ones();
        }
        Found::Answer(StoreAnswer::Usage { units, unique, blocks })
    }

    /// Goes on with a count, as far as the next object whose pages must come first.
    pub(crate) fn usage_of(&mut self, counting: &mut Counting) -> Found {
        while let Some(key) = counting.keys.get(counting.done) {
            if let Some(slot) = self.objects.find(key) {
                match self.need_pages(&[slot]) {
                    Ok(true) => {}
                    Ok(false) => return Found::Not,
                    Err(refusal) => return Found::Refusal(refusal),
                }
                for index in 0..OBJECT_UNITS {
                    counting.units.extend(self.unit_of(slot, index));
                    counting.blocks += self.written_of(slot, index).count_ones();
                }
            }
            counting.done += 1;
        }
        counting.units.sort_unstable();
        let (mut units, mut unique) = (0, 0);
        for same in counting.units.chunk_by(|one, other| one == other) {
            units += 1;
            unique += u32::from(usize::from(self.space.owners(same[0])) == same.len());
        }
        Found::Answer(StoreAnswer::Usage { units, unique, blocks: counting.blocks })
    }

    pub(crate) fn compare(&mut self, a: &ObjectKey, b: &ObjectKey) -> Found {
        let found = [a, b].map(|key| self.objects.find(key));
        let slots: Vec<u32> = found.into_iter().flatten().collect();
        match self.need_pages(&slots) {
            Ok(true) => {}
            Ok(false) => return Found::Not,
            Err(refusal) => return Found::Refusal(refusal),
        }
        let mut ranges: Vec<BlockRange> = Vec::new();
        for index in 0..OBJECT_UNITS {
            let mut mask = self.differences(found, index);
            while mask != 0 {
                let at = mask.trailing_zeros();
                mask &= mask - 1;
                let block = index * UNIT_BLOCKS + at;
                match ranges.last_mut() {
                    Some(last) if last.first + last.count == block => last.count += 1,
                    _ => ranges.push(BlockRange { first: block, count: 1 }),
                }
            }
        }
        Found::Answer(StoreAnswer::Compared { ranges })
    }

    /// The blocks of one unit's place in which two objects may differ.
    fn differences(&self, [a, b]: [Option<u32>; 2], index: u32) -> u8 {
        let unit = |slot: Option<u32>| slot.and_then(|slot| self.unit_of(slot, index));
        let written = |slot: Option<u32>| slot.map_or(0, |slot| self.written_of(slot, index));
        let (in_a, in_b) = (written(a), written(b));
        match (unit(a), unit(b)) {
            // One may have unwritten blocks of a unit that the other still needs.
            (Some(one), Some(other)) if one == other => {
                let both = (0..UNIT_BLOCKS).filter(|at| in_a & in_b & (1 << at) != 0);
                let is_other =
                    |at: &u32| self.checksum(a, index, *at) != self.checksum(b, index, *at);
                both.filter(is_other).fold(in_a ^ in_b, |mask, at| mask | 1 << at)
            }
            _ => in_a | in_b,
        }
    }

    fn checksum(&self, slot: Option<u32>, index: u32, at: u32) -> Option<u32> {
        let block = index * UNIT_BLOCKS + at;
        let frame = self.objects.slot(slot?).frames[(block / MAP_BLOCKS) as usize];
        let page: &MapPage = &self.cache.frame(frame).page;
        page.checksum(block % MAP_BLOCKS)
    }
}
