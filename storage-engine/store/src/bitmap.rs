// SPDX-License-Identifier: Apache-2.0
//! Which units of a disk are used: one bit a unit, 1 used, 0 free.
//!
//! ```text
//!   level 2   │0│                     one bit for 64 words of level 1, 1 when all are full
//!   level 1   │1 0 …│                 one bit for each word of level 0, 1 when it is full
//!   level 0   │1111…│1011…│ …         one bit for each unit
//! ```
//!
//! The next free unit is found by climbing until a word has room and going down again: three
//! or four words looked at on a disk of any size. A disk of 1 TiB has 2^25 units and 4 MiB of
//! level 0; the levels above add a 64th.

#[derive(Debug)]
pub(crate) struct UnitBitmap {
    /// Bits past the end are set at every level, so that they are never found.
    levels: Vec<Box<[u64]>>,
    unit_count: u32,
    free_count: u32,
}

impl UnitBitmap {
    pub(crate) fn new(unit_count: u32) -> Self {
        let mut levels = Vec::new();
        let mut bits = unit_count as usize;
        loop {
            let mut words = vec![0_u64; bits.div_ceil(64)].into_boxed_slice();
            if let Some(last) = words.last_mut()
                && !bits.is_multiple_of(64)
            {
                *last = !0 << (bits % 64);
            }
            bits = words.len();
            levels.push(words);
            if bits <= 1 {
                return Self { levels, unit_count, free_count: unit_count };
            }
        }
    }

    pub(crate) const fn free_count(&self) -> u32 {
        self.free_count
    }

    pub(crate) const fn unit_count(&self) -> u32 {
        self.unit_count
    }

    pub(crate) fn is_used(&self, unit: u32) -> bool {
        assert!(unit < self.unit_count, "unit {unit} is past the end");
        self.levels[0][unit as usize / 64] & (1 << (unit % 64)) != 0
    }

    /// The first free unit at or after `from`.
    pub(crate) fn next_free(&self, from: u32) -> Option<u32> {
        self.next_clear(0, from as usize).and_then(|bit| u32::try_from(bit).ok())
    }

    fn next_clear(&self, level: usize, from: usize) -> Option<usize> {
        let words = self.levels.get(level)?;
        let word = from / 64;
        let here = !words.get(word)? & (!0 << (from % 64));
        if here != 0 {
            return Some(word * 64 + here.trailing_zeros() as usize);
        }
        let word = self.next_clear(level + 1, word + 1)?;
        Some(word * 64 + (!words[word]).trailing_zeros() as usize)
    }

    /// Takes the first free unit at or after `from`, else the first of the disk.
    pub(crate) fn take(&mut self, from: u32) -> Option<u32> {
        let unit = self.next_free(from).or_else(|| self.next_free(0))?;
        self.set(unit);
        Some(unit)
    }

    /// Marks a free unit used.
    ///
    /// # Panics
    /// If it is used already: one unit would have two owners.
    pub(crate) fn set(&mut self, unit: u32) {
        assert!(!self.is_used(unit), "unit {unit} is taken twice");
        self.free_count -= 1;
        let mut bit = unit as usize;
        for words in &mut self.levels {
            words[bit / 64] |= 1 << (bit % 64);
            if words[bit / 64] != !0 {
                return;
            }
            bit /= 64;
        }
    }

    /// Marks a used unit free.
    ///
    /// # Panics
    /// If it is free already: the caller's books are wrong.
    pub(crate) fn clear(&mut self, unit: u32) {
        assert!(self.is_used(unit), "unit {unit} is released twice");
        self.free_count += 1;
        let mut bit = unit as usize;
        for words in &mut self.levels {
            let was_full = words[bit / 64] == !0;
            words[bit / 64] &= !(1 << (bit % 64));
            if !was_full {
                return;
            }
            bit /= 64;
        }
    }

    /// 64 units from `64 * index` on, those past the end as free.
    pub(crate) fn word(&self, index: usize) -> u64 {
        let word = self.levels[0].get(index).copied().unwrap_or(0);
        let past = (index as u64 + 1) * 64;
        let over = past.saturating_sub(u64::from(self.unit_count)).min(64);
        if over == 64 { 0 } else { word & (!0 >> over) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Against a set of unit numbers, which has no levels to get wrong.
        #[test]
        fn agrees_with_a_set(
            unit_count in 1..9000_u32,
            ops in prop::collection::vec((any::<u32>(), any::<bool>()), 1..400),
        ) {
            let mut bitmap = UnitBitmap::new(unit_count);
            let mut used = BTreeSet::new();
            for (pick, is_release) in ops {
                if is_release && let Some(&unit) = used.iter().nth(pick as usize % used.len().max(1)) {
                    bitmap.clear(unit);
                    used.remove(&unit);
                } else if !is_release {
                    let hint = pick % unit_count;
                    let free = |from: u32| (from..unit_count).find(|unit| !used.contains(unit));
                    let first = free(hint).or_else(|| free(0));
                    let found = bitmap.take(hint);
                    prop_assert_eq!(found, first);
                    used.extend(found);
                }
                prop_assert_eq!(bitmap.free_count() as usize, unit_count as usize - used.len());
            }
            for unit in 0..unit_count {
                prop_assert_eq!(bitmap.is_used(unit), used.contains(&unit));
                let bit = bitmap.word(unit as usize / 64) & (1 << (unit % 64)) != 0;
                prop_assert_eq!(bit, used.contains(&unit));
            }
            prop_assert_eq!(bitmap.word(unit_count as usize / 64 + 1), 0);
        }
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn a_second_release_is_refused() {
        let mut bitmap = UnitBitmap::new(8);
        bitmap.set(1);
        bitmap.clear(1);
        bitmap.clear(1);
    }
}
