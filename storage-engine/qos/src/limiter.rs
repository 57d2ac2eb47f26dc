// SPDX-License-Identifier: Apache-2.0
//! The limits of one volume.
//!
//! ```text
//!   request ─▶ total requests ─▶ total bytes ─▶ requests and bytes of its direction ─▶ passes
//!                  └───────── any of them empty: held, in order, until `deadline` ─────────┘
//! ```
//!
//! Requests pass in the order they came: one that is held holds those behind it, also those of
//! the other direction.

use plinth_bucket::{Bucket, Late, Rate};
use plinth_ids::Moment;

/// What a request counts as. A flush, a discard and zeroing count as writes without bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    Read,
    Write,
}

/// Limits on requests and on bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RatePair {
    pub requests: Option<Rate>,
    pub bytes: Option<Rate>,
}

/// All limits of a volume. What is `None` is not limited.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Limits {
    pub total: RatePair,
    pub read: RatePair,
    pub write: RatePair,
}

impl Limits {
    /// In the order of the limiter's buckets: requests and bytes of all, reads, writes.
    const fn rates(&self) -> [Option<Rate>; 6] {
        let Self { total, read, write } = self;
        [total.requests, total.bytes, read.requests, read.bytes, write.requests, write.bytes]
    }

    pub fn is_unlimited(&self) -> bool {
        self.rates().iter().all(Option::is_none)
    }
}

/// A request that waits for tokens.
#[derive(Clone, Copy, Debug)]
struct Held {
    direction: Direction,
    bytes: u64,
}

/// Holds one volume to its limits.
#[derive(Clone, Debug)]
pub struct Limiter {
    buckets: [Option<Bucket>; 6],
    /// The request that waits.
    held: Option<Held>,
    /// Something was held and the guest has not run dry since.
    is_behind: bool,
    held_count: u64,
}

/// Which buckets a request of a direction draws from, and whether they count bytes.
const fn draws_from(direction: Direction) -> [(usize, bool); 4] {
    match direction {
        Direction::Read => [(0, false), (1, true), (2, false), (3, true)],
        Direction::Write => [(0, false), (1, true), (4, false), (5, true)],
    }
}

const fn tokens(is_bytes: bool, bytes: u64) -> u64 {
    if is_bytes { bytes } else { 1 }
}

impl Limiter {
    /// Starts with a full burst.
    pub fn new(limits: &Limits, now: Moment) -> Self {
        let buckets = limits.rates().map(|rate| rate.map(|rate| Bucket::new(rate, now)));
        Self { buckets, held: None, is_behind: false, held_count: 0 }
    }

    /// For a volume that had no limits until now: it has used up its burst.
    pub fn spent(limits: &Limits, now: Moment) -> Self {
        let buckets = limits.rates().map(|rate| rate.map(|rate| Bucket::empty(rate, now)));
        Self { buckets, held: None, is_behind: false, held_count: 0 }
    }

    /// Other limits from `now` on. Debts stay, and a limit that was not there starts with an
    /// empty burst: who changes limits all the time gains nothing.
    pub fn change(&mut self, limits: &Limits, now: Moment) {
        for (bucket, rate) in self.buckets.iter_mut().zip(limits.rates()) {
            match (bucket.as_mut(), rate) {
                (Some(bucket), Some(rate)) => bucket.change(rate, now),
                (None, Some(rate)) => *bucket = Some(Bucket::empty(rate, now)),
                (_, None) => *bucket = None,
            }
        }
    }

    /// Once a round, before requests are asked for.
    pub fn refill(&mut self, now: Moment) {
        for place in 0..self.buckets.len() {
            let late = self.late(place);
            if let Some(bucket) = &mut self.buckets[place] {
                bucket.refill(now, late);
            }
        }
    }

    fn late(&self, place: usize) -> Late {
        let Some(Held { direction, bytes }) = self.held else {
            return if self.is_behind { Late::Kept } else { Late::Nothing };
        };
        let waits = draws_from(direction).iter().any(|&(drawn, is_bytes)| {
            let lacks = |bucket: &Bucket| !bucket.has(tokens(is_bytes, bytes));
            drawn == place && self.buckets[place].as_ref().is_some_and(lacks)
        });
        if waits { Late::Due } else { Late::Kept }
    }

    /// Whether a request may pass, and takes its tokens if so. Nothing behind one that may not
    /// should be asked for: the next question is for the same request, after a refill.
    pub fn admit(&mut self, direction: Direction, bytes: u64) -> bool {
        let draws = draws_from(direction);
        let has_all = draws.iter().all(|&(place, is_bytes)| {
            self.buckets[place].as_ref().is_none_or(|bucket| bucket.has(tokens(is_bytes, bytes)))
        });
        if !has_all {
            self.held_count += u64::from(self.held.is_none());
            self.held = Some(Held { direction, bytes });
            self.is_behind = true;
            return false;
        }
        self.charge(direction, bytes);
        true
    }

    /// Takes a request's tokens whether they are there or not: it must go now, and what it takes
    /// is owed.
    pub fn charge(&mut self, direction: Direction, bytes: u64) {
        for (place, is_bytes) in draws_from(direction) {
            if let Some(bucket) = &mut self.buckets[place] {
                bucket.spend(tokens(is_bytes, bytes));
            }
        }
        self.held = None;
    }

    /// When the guest has nothing more: what was saved beyond the burst is lost.
    pub fn settle(&mut self) {
        (self.held, self.is_behind) = (None, false);
        for bucket in self.buckets.iter_mut().flatten() {
            bucket.settle();
        }
    }

    /// When the request that is held may pass.
    pub fn deadline(&self) -> Option<Moment> {
        let Held { direction, bytes } = self.held?;
        let ready = |&(place, is_bytes): &(usize, bool)| {
            self.buckets[place].as_ref().map(|bucket| bucket.ready_at(tokens(is_bytes, bytes)))
        };
        draws_from(direction).iter().filter_map(ready).max()
    }

    /// Requests that had to wait for tokens.
    pub const fn held_count(&self) -> u64 {
        self.held_count
    }
}
