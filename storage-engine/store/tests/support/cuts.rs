// SPDX-License-Identifier: Apache-2.0
//! Which cuts are tried at a moment of a history.
//!
//! A cut leaves what is durable and any subset of the writes that are not, one or more of them
//! torn. Where few writes are volatile every subset is tried, and each write is torn in turn beside
//! a drawn subset of the others. Where there are many, subsets are drawn. A moment at which a cut
//! could leave nothing else than at the moment before, and nothing more is acknowledged, is
//! passed over.

use super::Tally;
use plinth_disks::memory::{Cut, MemoryDisk, Seed};

/// How thoroughly the power is cut at each moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cuts {
    /// Volatile writes up to which every subset is tried.
    pub(crate) exhaustive: u32,
    /// Cuts that are drawn where there are more.
    pub(crate) drawn: u32,
}

impl Cuts {
    pub(crate) const NONE: Self = Self { exhaustive: 0, drawn: 0 };
    /// Some, for looking for faults that any will show.
    pub(crate) const SOME: Self = Self { exhaustive: 1, drawn: 3 };
    /// What a continuous check has time for: up to 64 subsets at a moment.
    pub(crate) const MANY: Self = Self { exhaustive: 6, drawn: 16 };
}

pub(crate) struct Cutter {
    pub(crate) seed: Seed,
    cuts: Cuts,
    /// Of the last moment: what a cut could leave, and how much was acknowledged.
    last: Option<(u64, u64)>,
}

impl Cutter {
    pub(crate) const fn new(seed: u64, cuts: Cuts) -> Self {
        Self { seed: Seed(seed ^ 0x5eed), cuts, last: None }
    }

    pub(crate) fn cuts(
        &mut self,
        disk: &MemoryDisk,
        acknowledged: u64,
        tally: &mut Tally,
    ) -> Vec<Cut> {
        let moment = Some((disk.outcome(), acknowledged));
        if self.cuts.drawn == 0 || self.last == moment {
            return Vec::new();
        }
        self.last = moment;
        tally.moments += 1;
        let count = u32::try_from(disk.volatile_writes()).unwrap_or(u32::MAX);
        if count > self.cuts.exhaustive {
            let drawn = (2..self.cuts.drawn).map(|_| Cut::Any(self.seed.draw()));
            tally.torn += u64::from(self.cuts.drawn.saturating_sub(2));
            return [Cut::Lose, Cut::Keep].into_iter().chain(drawn).collect();
        }
        tally.exhausted += 1;
        tally.torn += u64::from(count);
        let subsets = (0..1_u64 << count).map(|kept| Cut::Writes { kept, torn: None, seed: 0 });
        let mut all: Vec<Cut> = subsets.collect();
        for torn in 0..count {
            let (kept, seed) = (self.seed.below(1 << count), self.seed.draw());
            all.push(Cut::Writes { kept, torn: Some(torn), seed });
        }
        all
    }
}
