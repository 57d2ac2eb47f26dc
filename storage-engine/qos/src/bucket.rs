// SPDX-License-Identifier: Apache-2.0
//! A token bucket in integers.
//!
//! Credit is counted in tokens times nanoseconds-in-a-second, so that a nanosecond at a rate of
//! `r` is worth exactly `r`: nothing is rounded, whatever the rate and however often the bucket is
//! looked at. A change of the rate leaves credit and debt as they are.

use plinth_ids::Moment;
use std::num::NonZeroU64;

/// What one token is worth in credit.
const TOKEN: i128 = 1_000_000_000;

/// A bucket holds at least what comes in this part of a second: with less, each look that comes
/// late loses tokens.
const SHARE_MIN: u64 = 100;

/// How long a worker may be kept from looking while requests wait without their volume losing
/// what it was due, as a part of a second.
const LATENESS: i128 = 4;

/// Tokens in a second, and how many may be saved up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    pub per_second: NonZeroU64,
    /// Tokens that an idle bucket collects. Fewer than 10 ms of the rate are taken as that.
    pub burst: u64,
}

impl Rate {
    fn capacity(self) -> i128 {
        let least = (self.per_second.get() / SHARE_MIN).max(1);
        i128::from(self.burst.max(least)) * TOKEN
    }
}

/// What a bucket may hold beyond its burst.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Late {
    Nothing,
    /// What it has: the guest still wants it.
    Kept,
    /// A request waits for this bucket, so what comes until the worker looks is due, up to a
    /// quarter of a second's worth: that it was not spent yet is the worker's doing.
    Due,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    /// Negative after something larger than the bucket went through.
    credit: i128,
    /// Nanoseconds at which `credit` was true.
    at: u64,
}

fn nanoseconds(moment: Moment) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(rate: Rate, now: Moment) -> Self {
        Self { rate, credit: rate.capacity(), at: nanoseconds(now) }
    }

    /// A bucket that has saved nothing.
    pub(crate) fn empty(rate: Rate, now: Moment) -> Self {
        Self { rate, credit: 0, at: nanoseconds(now) }
    }

    /// Brings the credit up to `now`. What `late` says comes on top of the burst.
    pub(crate) fn refill(&mut self, now: Moment, late: Late) {
        let now = nanoseconds(now);
        let elapsed = now.saturating_sub(self.at);
        if elapsed == 0 {
            return;
        }
        self.at = now;
        let (rate, capacity) = (i128::from(self.rate.per_second.get()), self.rate.capacity());
        let most = match late {
            Late::Nothing => capacity,
            Late::Kept => capacity.max(self.credit),
            Late::Due => capacity + rate * TOKEN / LATENESS,
        };
        let came = i128::from(elapsed).saturating_mul(rate);
        self.credit = self.credit.saturating_add(came).min(most);
    }

    /// What is saved above the burst is lost: nobody waits for it.
    pub(crate) fn settle(&mut self) {
        self.credit = self.credit.min(self.rate.capacity());
    }

    /// Whether `tokens` may pass. More than the bucket holds passes when it is full.
    pub(crate) fn has(&self, tokens: u64) -> bool {
        self.credit >= self.needed(tokens)
    }

    /// Takes them, into debt if they are more than the bucket holds.
    pub(crate) fn spend(&mut self, tokens: u64) {
        self.credit -= i128::from(tokens) * TOKEN;
    }

    /// When [`Self::has`] becomes true if nothing is spent.
    pub(crate) fn ready_at(&self, tokens: u64) -> Moment {
        let missing = (self.needed(tokens) - self.credit).max(0);
        let rate = i128::from(self.rate.per_second.get());
        let wait = u64::try_from((missing + rate - 1) / rate).unwrap_or(u64::MAX);
        Moment::from_nanos(self.at.saturating_add(wait))
    }

    /// Another rate from now on. What is owed stays owed; what is saved is cut to the new burst.
    pub(crate) fn change(&mut self, rate: Rate, now: Moment) {
        self.refill(now, Late::Nothing);
        self.rate = rate;
        self.settle();
    }

    fn needed(&self, tokens: u64) -> i128 {
        (i128::from(tokens) * TOKEN).min(self.rate.capacity())
    }
}
