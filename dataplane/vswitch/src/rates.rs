// SPDX-License-Identifier: Apache-2.0
//! How fast packets may pass: buckets of every port in both directions, and room for buckets that
//! several flows share.
//!
//! What a guest sends is never dropped for its rate: the driver asks for an [`allowance`] before
//! it takes packets, and what may not pass waits in the guest's own queue. A burst that turns out
//! longer than was thought is owed, and paid before the next one, so that the rate is exact over
//! time. What goes to a guest comes from others who cannot be held: it is dropped.
//!
//! Where no port has a limit the price is one branch a burst.
//!
//! [`allowance`]: crate::Switch::outbound_allowance

use crate::{BURST_MAX, PortIndex, Snapshot};
use plinth_bucket::{Bucket, Late, Rate};
use plinth_ids::Moment;
use plinth_switch_api::{PortLimits, RateLimit};
use std::num::NonZeroU64;

/// What is saved up when nothing is said about it: this part of a second.
const BURST_SHARE: u64 = 20;
/// And at least one longest packet.
const BYTES_BURST_MIN: u64 = 64 * 1024;
const PACKETS_BURST_MIN: u64 = BURST_MAX as u64;

/// The buckets of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pair {
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
}

fn rate(per_second: Option<u64>, burst: Option<u64>, burst_min: u64) -> Option<Rate> {
    let per_second = NonZeroU64::new(per_second?)?;
    let burst = burst.unwrap_or_else(|| (per_second.get() / BURST_SHARE).max(burst_min));
    Some(Rate { per_second, burst })
}

/// Bytes and packets; a bit more or less of an eighth is nobody's.
fn rates(limit: &RateLimit) -> [Option<Rate>; 2] {
    let RateLimit { bits_per_second, bits_burst, packets_per_second, packets_burst } = *limit;
    let bytes = rate(
        bits_per_second.map(|bits| bits.div_ceil(8)),
        bits_burst.map(|bits| bits.div_ceil(8)),
        BYTES_BURST_MIN,
    );
    [bytes, rate(packets_per_second, packets_burst, PACKETS_BURST_MIN)]
}

impl Pair {
    pub(crate) const NONE: Self = Self { bytes: None, packets: None };

    /// Other limits from `now` on. Debts stay, and a limit that was not there begins with
    /// nothing saved, so that who changes limits all the time gains nothing.
    pub(crate) fn change(&mut self, now: Moment, limit: &RateLimit, is_new: bool) {
        let buckets = [&mut self.bytes, &mut self.packets];
        for (bucket, rate) in buckets.into_iter().zip(rates(limit)) {
            *bucket = match (bucket.take(), rate) {
                (_, None) => None,
                (Some(kept), Some(rate)) if !is_new && kept.rate() == rate => Some(kept),
                (Some(mut kept), Some(rate)) if !is_new => {
                    kept.change(rate, now);
                    Some(kept)
                }
                (None, Some(rate)) if !is_new => Some(Bucket::empty(rate, now)),
                (_, Some(rate)) => Some(Bucket::new(rate, now)),
            };
        }
    }

    const fn is_limited(&self) -> bool {
        self.bytes.is_some() || self.packets.is_some()
    }

    fn refill(&mut self, now: Moment) {
        for bucket in [&mut self.bytes, &mut self.packets].into_iter().flatten() {
            bucket.refill(now, Late::Nothing);
        }
    }

    fn spend(&mut self, length: u32) {
        if let Some(bucket) = &mut self.bytes {
            bucket.spend(length.into());
        }
        if let Some(bucket) = &mut self.packets {
            bucket.spend(1);
        }
    }

    /// Takes a packet's tokens if all are there.
    pub(crate) fn admit(&mut self, now: Moment, length: u32) -> bool {
        self.refill(now);
        let has = |bucket: &Option<Bucket>, tokens| {
            bucket.as_ref().is_none_or(|bucket| bucket.has(tokens))
        };
        let may_pass = has(&self.bytes, length.into()) && has(&self.packets, 1);
        if may_pass {
            self.spend(length);
        }
        may_pass
    }

    /// How many packets of `length` may be asked for now.
    fn allowance(&mut self, now: Moment, length: u32) -> usize {
        self.refill(now);
        let of = |bucket: &Option<Bucket>, each: u64| match bucket {
            None => BURST_MAX as u64,
            Some(bucket) if bucket.has(1) => (bucket.tokens() / each).max(1),
            Some(_) => 0,
        };
        let length = u64::from(length.max(1));
        let least = of(&self.bytes, length).min(of(&self.packets, 1)).min(BURST_MAX as u64);
        usize::try_from(least).unwrap_or(BURST_MAX)
    }

    /// When [`Self::allowance`] is not nothing any more.
    fn ready_at(&self) -> Option<Moment> {
        let buckets = [&self.bytes, &self.packets].into_iter().flatten();
        buckets.map(|bucket| bucket.ready_at(1)).max()
    }
}

/// One port's, or one shared limit's.
#[derive(Clone, Copy, Debug, Default)]
struct Both {
    outbound: Pair,
    inbound: Pair,
    /// Of the longest packet of the last burst: what the next one is taken for.
    length: u32,
}

/// The buckets of one worker.
#[derive(Debug)]
pub(crate) struct Rates {
    /// By [`PortIndex`].
    ports: Box<[Both]>,
    /// When the first port that was refused packets may be asked again.
    held_until: Option<Moment>,
}

impl Rates {
    pub(crate) fn new(ports: usize) -> Self {
        let none = Both { outbound: Pair::NONE, inbound: Pair::NONE, length: 0 };
        Self { ports: vec![none; ports].into(), held_until: None }
    }

    /// Takes over the limits of a configuration; `is_new` says which places have another port.
    pub(crate) fn install(
        &mut self,
        now: Moment,
        snapshot: &Snapshot,
        is_new: impl Fn(PortIndex) -> bool,
    ) {
        self.held_until = None;
        for (index, port) in snapshot.ports() {
            let PortLimits { outbound, inbound, .. } = &port.limits;
            let both = &mut self.ports[index.get()];
            let is_new = is_new(index);
            both.outbound.change(now, outbound, is_new);
            both.inbound.change(now, inbound, is_new);
        }
    }

    /// How many packets may be taken from a port now.
    pub(crate) fn allowance(&mut self, now: Moment, port: PortIndex) -> usize {
        let both = &mut self.ports[port.get()];
        if !both.outbound.is_limited() {
            return BURST_MAX;
        }
        let allowance = both.outbound.allowance(now, both.length);
        if allowance == 0
            && let Some(ready) = both.outbound.ready_at()
        {
            let held = self.held_until.filter(|&held| held > now);
            self.held_until = Some(held.map_or(ready, |held| held.min(ready)));
        }
        // Forgotten with time, so that one long packet does not make all bursts short for ever.
        both.length /= 2;
        allowance
    }

    /// Counts a packet that was taken from a port.
    pub(crate) fn spend(&mut self, port: PortIndex, length: u32) {
        let both = &mut self.ports[port.get()];
        if both.outbound.is_limited() {
            both.outbound.spend(length);
            both.length = both.length.max(length);
        }
    }

    /// Whether a packet may go out at a port.
    pub(crate) fn admit(&mut self, now: Moment, port: PortIndex, length: u32) -> bool {
        let pair = &mut self.ports[port.get()].inbound;
        !pair.is_limited() || pair.admit(now, length)
    }

    pub(crate) const fn held_until(&self) -> Option<Moment> {
        self.held_until
    }
}
