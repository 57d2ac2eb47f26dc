// SPDX-License-Identifier: Apache-2.0
//! Where the next request goes and what it does, the same for the same seed.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Order {
    #[default]
    Rand,
    Seq,
}

/// One request's kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Read,
    Write,
}

/// A small generator with a 64-bit state (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not 0. Without division: the high half of a product.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.number()) * u128::from(bound);
        u64::try_from(product >> 64).expect("the high half of a 128-bit product has 64 bits")
    }
}

/// Gives out slots (block-size steps of the disk) and kinds.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    random: Random,
    order: Order,
    slots: u64,
    next: u64,
    write_percent: u64,
}

impl Pattern {
    /// `slots` is at least 1, `write_percent` at most 100.
    pub(crate) const fn new(seed: u64, order: Order, slots: u64, write_percent: u64) -> Self {
        Self { random: Random::new(seed), order, slots, next: 0, write_percent }
    }

    pub(crate) fn take(&mut self) -> (Kind, u64) {
        let slot = match self.order {
            Order::Rand => self.random.below(self.slots),
            Order::Seq => {
                let slot = self.next;
                self.next = (slot + 1) % self.slots;
                slot
            }
        };
        let is_write = match self.write_percent {
            0 => false,
            100 => true,
            percent => self.random.below(100) < percent,
        };
        (if is_write { Kind::Write } else { Kind::Read }, slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_slots_go_round() {
        let mut pattern = Pattern::new(1, Order::Seq, 3, 0);
        let slots: Vec<_> = (0..5).map(|_| pattern.take()).collect();
        assert_eq!(slots, [0, 1, 2, 0, 1].map(|slot| (Kind::Read, slot)));
    }

    #[test]
    fn random_slots_reach_the_whole_span_and_no_further() {
        let mut pattern = Pattern::new(1, Order::Rand, 10, 30);
        let mut hits = [0u32; 10];
        let mut writes = 0;
        for _ in 0..10_000 {
            let (kind, slot) = pattern.take();
            hits[usize::try_from(slot).unwrap()] += 1;
            writes += u32::from(kind == Kind::Write);
        }
        assert!(hits.iter().all(|count| (800..1200).contains(count)), "{hits:?}");
        assert!((2700..3300).contains(&writes), "{writes}");
    }
}
