// SPDX-License-Identifier: Apache-2.0
//! How much may go through an external address each way.
//!
//! What is over a limit is dropped in both directions: a guest's queue carries also what does not
//! leave by the address, and what comes from outside cannot be held. Where no address has a limit
//! the price is one branch a packet of the outside.

use crate::external::ExternalTables;
use crate::rates::Pair;
use plinth_ids::Moment;

/// The buckets of one worker, by place of the address. All of it is taken at the start.
#[derive(Debug)]
pub(crate) struct Meters {
    outbound: Box<[Pair]>,
    inbound: Box<[Pair]>,
    is_limited: bool,
}

impl Meters {
    pub(crate) fn new(places: u16) -> Self {
        let none = || vec![Pair::NONE; usize::from(places)].into();
        Self { outbound: none(), inbound: none(), is_limited: false }
    }

    /// Takes over the limits of a configuration. An address that stays keeps what it owes.
    pub(crate) fn install(&mut self, now: Moment, tables: &ExternalTables) {
        let is_new = |place: u16| tables.added.contains(&place);
        if self.is_limited || !tables.limits.is_empty() {
            for place in 0..tables.count() {
                let limits = tables.limits.get(&place).copied().unwrap_or_default();
                let (at, is_new) = (usize::from(place), is_new(place));
                self.outbound[at].change(now, &limits.outbound, is_new);
                self.inbound[at].change(now, &limits.inbound, is_new);
            }
        }
        self.is_limited = !tables.limits.is_empty();
    }

    #[inline]
    pub(crate) fn admit_out(&mut self, now: Moment, place: u16, length: u32) -> bool {
        !self.is_limited || self.outbound[usize::from(place)].admit(now, length)
    }

    #[inline]
    pub(crate) fn admit_in(&mut self, now: Moment, place: u16, length: u32) -> bool {
        !self.is_limited || self.inbound[usize::from(place)].admit(now, length)
    }
}
