// SPDX-License-Identifier: Apache-2.0
//! What a worker counts, readable from every thread while it runs.

use crate::cycles;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One writer, the worker; any number of readers. Every counter only grows.
///
/// All accesses are relaxed: each counter is true by itself, and no reader concludes from one
/// of them on memory that another thread wrote.
#[derive(Debug)]
#[repr(align(64))]
pub struct WorkerStats {
    started_at_cycles: u64,
    rounds: AtomicU64,
    busy_rounds: AtomicU64,
    busy_cycles: AtomicU64,
    work: AtomicU64,
    sleeps: AtomicU64,
    unwatchable: AtomicU64,
}

/// The counters at one time.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StatsSnapshot {
    /// The cycle counter when the snapshot was taken.
    pub at_cycles: u64,
    pub rounds: u64,
    /// Rounds that found work.
    pub busy_rounds: u64,
    /// Cycles spent in them.
    pub busy_cycles: u64,
    /// The sum of what [`crate::Poller::poll`] returned: packets, requests, messages.
    pub work: u64,
    pub sleeps: u64,
    /// Descriptors that could not be watched; their sources are polled by the timer.
    pub unwatchable: u64,
}

impl WorkerStats {
    pub(crate) fn new() -> Self {
        Self {
            started_at_cycles: cycles(),
            rounds: AtomicU64::new(0),
            busy_rounds: AtomicU64::new(0),
            busy_cycles: AtomicU64::new(0),
            work: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            unwatchable: AtomicU64::new(0),
        }
    }

    pub fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            at_cycles: cycles(),
            rounds: self.rounds.load(Relaxed),
            busy_rounds: self.busy_rounds.load(Relaxed),
            busy_cycles: self.busy_cycles.load(Relaxed),
            work: self.work.load(Relaxed),
            sleeps: self.sleeps.load(Relaxed),
            unwatchable: self.unwatchable.load(Relaxed),
        }
    }

    /// A snapshot of the moment the worker started: the first `earlier` of
    /// [`StatsSnapshot::busy_share_since`].
    pub fn at_start(&self) -> StatsSnapshot {
        StatsSnapshot { at_cycles: self.started_at_cycles, ..StatsSnapshot::default() }
    }

    pub(crate) fn count_round(&self, work: usize, spent: u64) {
        add(&self.rounds, 1);
        if work > 0 {
            add(&self.busy_rounds, 1);
            add(&self.busy_cycles, spent);
            add(&self.work, work as u64);
        }
    }

    pub(crate) fn count_sleep(&self) {
        add(&self.sleeps, 1);
    }

    pub(crate) fn count_unwatchable(&self) {
        add(&self.unwatchable, 1);
    }
}

/// A load and a store instead of a locked addition: there is one writer.
#[inline]
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(amount), Relaxed);
}

impl StatsSnapshot {
    /// Share of time between the two snapshots that was spent on work, 0 to 1.
    pub fn busy_share_since(&self, earlier: &Self) -> f64 {
        let all = self.at_cycles.saturating_sub(earlier.at_cycles);
        let busy = self.busy_cycles.saturating_sub(earlier.busy_cycles);
        if all == 0 { 0.0 } else { (busy as f64 / all as f64).min(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busy_share_is_of_the_time_between_two_snapshots() {
        let at = |at_cycles, busy_cycles| StatsSnapshot {
            at_cycles,
            busy_cycles,
            ..StatsSnapshot::default()
        };
        assert_eq!(at(200, 50).busy_share_since(&at(100, 0)), 0.5);
        assert_eq!(at(200, 50).busy_share_since(&at(100, 50)), 0.0);
        assert_eq!(at(100, 0).busy_share_since(&at(100, 0)), 0.0);
    }
}
