// SPDX-License-Identifier: Apache-2.0
//! Requests that took long, with what they waited for.
//!
//! Two ways lead in: taking longer than the threshold, and being one of the slowest eight of ten
//! seconds, so that there is something to see where nothing is wrong. Nobody else costs more than
//! one comparison.

use crate::flight::Times;
use plinth_backends::blk::BlkOperation;
use plinth_ids::{PoolId, VolumeId};
use std::collections::VecDeque;

/// Requests that are kept.
const KEPT: usize = 256;

/// The slowest of an interval that are kept even if they were fast.
const WORST: usize = 8;

/// Seconds of an interval.
const INTERVAL: u64 = 10;

/// A request that was slow. Times are of the cycle counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slow {
    pub(crate) pool: PoolId,
    pub(crate) volume: VolumeId,
    pub(crate) operation: BlkOperation,
    pub(crate) times: Times,
    pub(crate) ended: u64,
}

impl Slow {
    const fn total(&self) -> u64 {
        self.ended.saturating_sub(self.times.taken)
    }
}

#[derive(Debug)]
pub(crate) struct SlowLog {
    kept: VecDeque<Slow>,
    worst: Vec<Slow>,
    /// What takes less is of no interest.
    floor: u64,
    threshold: u64,
    interval: u64,
    ends: u64,
}

impl SlowLog {
    /// `rate` is the cycle counter's, `threshold` is in milliseconds.
    pub(crate) fn new(rate: u64, threshold: u64) -> Self {
        Self {
            kept: VecDeque::with_capacity(KEPT),
            worst: Vec::with_capacity(WORST),
            floor: 0,
            threshold: (rate / 1000).saturating_mul(threshold),
            interval: rate.saturating_mul(INTERVAL),
            ends: 0,
        }
    }

    /// Whether a request that took `ticks` should be noted.
    #[inline]
    pub(crate) const fn wants(&self, ticks: u64) -> bool {
        ticks >= self.floor
    }

    pub(crate) fn note(&mut self, slow: Slow) {
        if slow.total() >= self.threshold {
            self.keep(slow);
            return;
        }
        if self.worst.len() < WORST {
            self.worst.push(slow);
        } else if let Some(least) = self.worst.iter_mut().min_by_key(|known| known.total())
            && least.total() < slow.total()
        {
            *least = slow;
        }
        if self.worst.len() == WORST {
            self.floor = self.worst.iter().map(Slow::total).min().unwrap_or(0);
        }
    }

    /// Once a round: ends the interval when it is over.
    #[inline]
    pub(crate) fn turn(&mut self, now: u64) {
        if now >= self.ends {
            self.end_interval(now);
        }
    }

    fn end_interval(&mut self, now: u64) {
        self.ends = now.saturating_add(self.interval);
        self.floor = 0;
        self.worst.sort_unstable_by_key(|slow| slow.ended);
        for index in 0..self.worst.len() {
            self.keep(self.worst[index]);
        }
        self.worst.clear();
    }

    fn keep(&mut self, slow: Slow) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(slow);
    }

    /// What is kept and the slowest of the interval that goes on, newest first.
    pub(crate) fn list(&self, limit: usize) -> Vec<Slow> {
        let mut list: Vec<_> = self.kept.iter().chain(&self.worst).copied().collect();
        list.sort_unstable_by_key(|slow| std::cmp::Reverse(slow.ended));
        list.truncate(limit);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1000 ticks a second, so a tick is a millisecond.
    fn log() -> SlowLog {
        SlowLog::new(1000, 100)
    }

    fn note(log: &mut SlowLog, taken: u64, ticks: u64) {
        if log.wants(ticks) {
            let times = Times { taken, ..Times::default() };
            let (pool, volume) = (PoolId(1), VolumeId(1));
            let operation = BlkOperation::Flush;
            log.note(Slow { pool, volume, operation, times, ended: taken + ticks });
        }
    }

    fn totals(log: &SlowLog) -> Vec<u64> {
        log.list(usize::MAX).iter().map(Slow::total).collect()
    }

    #[test]
    fn whatever_takes_longer_than_the_threshold_is_kept_up_to_a_bound() {
        let mut log = log();
        for request in 0..1000 {
            note(&mut log, request, 100 + request);
        }
        let totals = totals(&log);
        assert_eq!(totals.len(), KEPT);
        assert_eq!((totals[0], totals[255]), (1099, 844));
        assert_eq!(log.list(3).len(), 3);
    }

    #[test]
    fn the_slowest_of_an_interval_are_kept_though_they_were_fast() {
        let mut log = log();
        log.turn(0);
        for ticks in [5, 1, 9, 3, 7, 2, 8, 4, 6, 10, 1, 1] {
            note(&mut log, 0, ticks);
        }
        let mut worst = totals(&log);
        worst.sort_unstable();
        assert_eq!(worst, [3, 4, 5, 6, 7, 8, 9, 10]);
        assert!(!log.wants(2));
        log.turn(9_999);
        assert!(!log.wants(2), "the interval is not over");
        log.turn(10_000);
        assert!(log.wants(0), "the next interval begins with any request");
        note(&mut log, 10_001, 1);
        assert_eq!(totals(&log).len(), WORST + 1);
    }
}
