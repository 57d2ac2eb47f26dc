// SPDX-License-Identifier: Apache-2.0
//! Which data blocks something is on its way to: a table of counters instead of a set.
//!
//! A block counts at the place that its low bits give, so neighbors lie side by side and a range
//! is one run of memory. Two blocks that share a place are taken for one another, which costs a
//! wait and nothing else: with 128 random blocks under way, one request in 64.

const PLACES: usize = 8192;

#[derive(Debug)]
pub(crate) struct BlockFilter {
    counts: Box<[u32]>,
    /// Blocks that were added and not removed.
    total: u64,
}

impl BlockFilter {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; PLACES].into_boxed_slice(), total: 0 }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.total == 0
    }

    #[inline]
    fn place(block: u64) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
        {
            block as usize % PLACES
        }
    }

    #[inline]
    pub(crate) fn add(&mut self, first: u64, count: u32) {
        for block in first..first + u64::from(count) {
            self.counts[Self::place(block)] += 1;
        }
        self.total += u64::from(count);
    }

    /// Takes out what was put in with the same numbers.
    #[inline]
    pub(crate) fn remove(&mut self, first: u64, count: u32) {
        for block in first..first + u64::from(count) {
            self.counts[Self::place(block)] -= 1;
        }
        self.total -= u64::from(count);
    }

    /// `false`: none of the blocks is there. `true`: perhaps one is.
    #[inline]
    pub(crate) fn may_have(&self, first: u64, count: u32) -> bool {
        self.total > 0
            && (first..first + u64::from(count)).any(|block| self.counts[Self::place(block)] > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_there_until_it_is_removed_as_often() {
        let mut filter = BlockFilter::new();
        filter.add(8190, 4);
        filter.add(8193, 1);
        assert!(filter.may_have(8192, 1) && filter.may_have(8000, 200) && filter.may_have(1, 1));
        assert!(!filter.may_have(8189, 1) && !filter.may_have(8194, 100));
        filter.remove(8190, 4);
        assert!(filter.may_have(8193, 1) && !filter.may_have(8190, 3) && !filter.is_empty());
        filter.remove(8193, 1);
        assert!(filter.is_empty() && !filter.may_have(0, 8192));
    }
}
