// SPDX-License-Identifier: Apache-2.0
//! What holds an attachment's requests back before they reach its pool: its limits, and its share
//! beside other attachments of the pool.
//!
//! Requests that are held stay where they are, at most one burst in the worker's hands and the
//! rest in the guest's ring. A queue that is asked back has its requests carried out at once:
//! whoever detaches or hands over must not wait for tokens.

use plinth_backends::blk::BlkOperation;
use plinth_ids::Moment;
use plinth_qos::{Account, Direction, Limiter, Limits, Rate, RatePair};
use plinth_store_api::VolumeLimits;
use std::num::NonZeroU64;

/// The times of a round, read once for all its requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RoundTime {
    pub(crate) now: Moment,
    /// Of the cycle counter.
    pub(crate) cycles: u64,
    /// Since when a request that is seen now may have been in its ring: the round before, if that
    /// one was busy.
    pub(crate) looked: u64,
}

#[derive(Debug)]
pub(crate) struct Pace {
    /// `None` without limits, so that those pay a look at a pointer.
    limiter: Option<Box<Limiter>>,
    account: Account,
    /// So many requests must go whatever the limits say: those in hand when a queue was asked
    /// back, and no later ones of the other queues.
    hurried: usize,
}

impl Pace {
    pub(crate) fn new(limits: Option<VolumeLimits>, account: Account, now: Moment) -> Self {
        let limits = limits.map(buckets).filter(|limits| !limits.is_unlimited());
        let limiter = limits.map(|limits| Box::new(Limiter::new(&limits, now)));
        Self { limiter, account, hurried: 0 }
    }

    pub(crate) const fn account(&self) -> Account {
        self.account
    }

    /// Other limits from now on.
    pub(crate) fn change(&mut self, limits: Option<VolumeLimits>, now: Moment) {
        let limits = limits.map(buckets).filter(|limits| !limits.is_unlimited());
        match (&mut self.limiter, limits) {
            (Some(limiter), Some(limits)) => limiter.change(&limits, now),
            (None, Some(limits)) => self.limiter = Some(Box::new(Limiter::spent(&limits, now))),
            (_, None) => self.limiter = None,
        }
    }

    /// The requests that are in hand must go.
    pub(crate) const fn hurry(&mut self, in_hand: usize) {
        self.hurried = in_hand;
    }

    pub(crate) fn begin_round(&mut self, now: Moment) {
        if let Some(limiter) = &mut self.limiter {
            limiter.refill(now);
        }
    }

    /// The guest has nothing more.
    pub(crate) fn settle(&mut self) {
        self.hurried = 0;
        if let Some(limiter) = &mut self.limiter {
            limiter.settle();
        }
    }

    /// Whether a request may pass its volume's limits. Once for each request that passes.
    pub(crate) fn admit(&mut self, operation: BlkOperation) -> bool {
        let Some(limiter) = &mut self.limiter else { return true };
        let (direction, bytes) = match operation {
            BlkOperation::Read { length, .. } => (Direction::Read, length),
            BlkOperation::Write { length, .. } => (Direction::Write, length),
            BlkOperation::Flush
            | BlkOperation::Discard { .. }
            | BlkOperation::WriteZeroes { .. } => (Direction::Write, 0),
        };
        if self.hurried > 0 {
            self.hurried -= 1;
            limiter.charge(direction, u64::from(bytes));
            return true;
        }
        limiter.admit(direction, u64::from(bytes))
    }

    /// When a request that its limits hold may pass.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.limiter.as_ref()?.deadline()
    }

    /// Requests that waited for the limits.
    pub(crate) fn held_count(&self) -> u64 {
        self.limiter.as_ref().map_or(0, |limiter| limiter.held_count())
    }
}

fn buckets(limits: VolumeLimits) -> Limits {
    let rate = |per_second: u64, burst: u64| {
        let per_second = NonZeroU64::new(per_second)?;
        Some(Rate { per_second, burst: if burst == 0 { per_second.get() } else { burst } })
    };
    let total = RatePair {
        requests: rate(limits.iops, limits.iops_burst),
        bytes: rate(limits.bytes_per_second, limits.bytes_burst),
    };
    Limits { total, ..Limits::default() }
}
