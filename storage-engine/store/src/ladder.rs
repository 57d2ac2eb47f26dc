// SPDX-License-Identifier: Apache-2.0
//! How full a disk is, and what it then refuses.
//!
//! ```text
//!   0 ── ok ── warn 80 % ── nearfull 85 % ── full 95 % ── reserve ── 100 %
//! ```
//!
//! From `full` on a change that leaves more units owned than before is refused. What is behind it
//! is the reserve of the store itself: a change that gives a unit of its own back may take its new
//! one there, so that overwrites of whole units go on at their speed, and none of it is ever
//! owned by more. Deletes, zeroing and overwrites of owned blocks need no unit, and metadata has
//! its own regions. Units that were let go and are not confirmed count as free here: a change that
//! needs one waits for the confirmation. So a disk that is full takes writes again as soon as
//! something is deleted.

use crate::disk::Disk;
use crate::store::Store;

/// From which share of its units on, in percent, a disk is at a level.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ladder {
    pub warn: u8,
    pub nearfull: u8,
    /// Changes that need new units are refused. 100 leaves no reserve.
    pub full: u8,
}

impl Default for Ladder {
    fn default() -> Self {
        Self { warn: 80, nearfull: 85, full: 95 }
    }
}

/// How full a disk is.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    #[default]
    Ok,
    Warn,
    Nearfull,
    /// Changes that need new units are refused until some are freed.
    Full,
}

impl Ladder {
    /// Units that may be owned, of so many.
    pub(crate) fn full_units(&self, units: u32) -> u32 {
        share(self.full, units)
    }

    pub(crate) fn level(&self, used: u32, units: u32) -> Level {
        let is_at = |percent| used >= share(percent, units);
        match () {
            () if is_at(self.full) => Level::Full,
            () if is_at(self.nearfull) => Level::Nearfull,
            () if is_at(self.warn) => Level::Warn,
            () => Level::Ok,
        }
    }
}

/// `percent` of `units`, rounded down. A hundredth part of 2^32 times 100 fits easily.
fn share(percent: u8, units: u32) -> u32 {
    let units = u64::from(units) * u64::from(percent.min(100)) / 100;
    u32::try_from(units).unwrap_or(u32::MAX)
}

impl<D: Disk> Store<D> {
    /// Units that some object owns.
    pub(crate) fn owned_units(&self) -> u32 {
        let free = self.space.free_count() + self.space.quarantined();
        self.space.unit_count().saturating_sub(free)
    }

    /// Whether so many more units may be owned.
    pub(crate) fn may_own(&self, more: u32) -> bool {
        let limit = self.options.ladder.full_units(self.space.unit_count());
        more == 0 || self.owned_units().saturating_add(more) <= limit
    }

    pub(crate) fn level(&self) -> Level {
        self.options.ladder.level(self.owned_units(), self.space.unit_count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_begins_at_its_share() {
        let level = |used| Ladder::default().level(used, 1000);
        assert_eq!([0, 799].map(level), [Level::Ok; 2]);
        assert_eq!([800, 849].map(level), [Level::Warn; 2]);
        assert_eq!([850, 949].map(level), [Level::Nearfull; 2]);
        assert_eq!([950, 1000].map(level), [Level::Full; 2]);
        assert_eq!(Ladder::default().full_units(u32::MAX), 4_080_218_930);
    }
}
