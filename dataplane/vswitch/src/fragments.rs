// SPDX-License-Identifier: Apache-2.0
//! Which ports the pieces of a packet belong to: the first piece says it, the others follow it.
//!
//! A fixed number of packets is remembered, four in a set, each for half a minute. A newcomer takes
//! the place of what is old, else of what its own port has in the set, else of the oldest: who
//! sends many first pieces disturbs himself first. What was forgotten is dropped when it comes.

use crate::flow::{FlowKey, milliseconds};
use plinth_ids::Moment;

const WAYS: usize = 4;
/// Reassembly gives up after 15 to 60 s, by system; the pieces of one packet come together.
const KEPT_MILLISECONDS: u32 = 30_000;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Record {
    /// That of the pieces, with the packet's number for ports.
    key: FlowKey,
    ports: (u16, u16),
    /// In milliseconds, wrapping.
    made: u32,
    is_taken: bool,
}

const _: () = assert!(size_of::<Record>() == 64, "a record is one cache line");

const EMPTY: Record =
    Record { key: FlowKey { words: [0; 6] }, ports: (0, 0), made: 0, is_taken: false };

#[derive(Debug)]
pub(crate) struct Fragments {
    records: Box<[Record]>,
}

impl Fragments {
    pub(crate) fn new(count: u32) -> Self {
        let count = (count as usize).next_power_of_two().max(WAYS);
        Self { records: vec![EMPTY; count].into() }
    }

    fn set(&self, hash: u64) -> usize {
        (hash & 0xffff_ffff) as usize & (self.records.len() / WAYS - 1)
    }

    /// The ports that the first piece of this packet had.
    pub(crate) fn find(&self, now: Moment, hash: u64, key: &FlowKey) -> Option<(u16, u16)> {
        let first = self.set(hash) * WAYS;
        let now = milliseconds(now);
        let set = self.records[first..first + WAYS].iter();
        set.into_iter().find(|record| record.is_live(now) && record.key.is(key)).map(|r| r.ports)
    }

    pub(crate) fn remember(&mut self, now: Moment, hash: u64, key: &FlowKey, ports: (u16, u16)) {
        let first = self.set(hash) * WAYS;
        let now = milliseconds(now);
        let place = key.ingress().place;
        let rank = |record: &Record| match record {
            record if record.is_live(now) && record.key.is(key) => (0, 0),
            record if !record.is_live(now) => (1, 0),
            record if record.key.ingress().place == place => (2, u32::MAX - record.age(now)),
            record => (3, u32::MAX - record.age(now)),
        };
        let set = self.records[first..first + WAYS].iter_mut();
        let record = set.into_iter().min_by_key(|record| rank(record));
        *record.expect("a set has places") = Record { key: *key, ports, made: now, is_taken: true };
    }
}

impl Record {
    const fn age(&self, now: u32) -> u32 {
        now.wrapping_sub(self.made)
    }

    const fn is_live(&self, now: u32) -> bool {
        self.is_taken && self.age(now) < KEPT_MILLISECONDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{FlowKind, Ingress};
    use plinth_ids::Vni;
    use std::time::Duration;

    fn key(place: u16, number: u16) -> FlowKey {
        let mut key = FlowKey::new(FlowKind::Ipv4Fragment, 17);
        key.set_ports(number, 0);
        key.set_ingress(Ingress { place, incarnation: 0, vni: Vni::new(7).unwrap() });
        key
    }

    #[test]
    fn pieces_follow_the_first_one_for_half_a_minute() {
        let mut fragments = Fragments::new(8);
        fragments.remember(Moment::ZERO, 1, &key(1, 1), (5, 6));
        assert_eq!(fragments.find(Moment::ZERO, 1, &key(1, 1)), Some((5, 6)));
        assert_eq!(fragments.find(Moment::ZERO, 1, &key(1, 2)), None);
        assert_eq!(fragments.find(Moment::ZERO, 1, &key(2, 1)), None);
        fragments.remember(Moment::ZERO, 1, &key(1, 1), (7, 8));
        assert_eq!(fragments.find(Duration::from_millis(29_999), 1, &key(1, 1)), Some((7, 8)));
        assert_eq!(fragments.find(Duration::from_secs(30), 1, &key(1, 1)), None);
    }

    #[test]
    fn who_sends_many_first_pieces_disturbs_himself() {
        let mut fragments = Fragments::new(4);
        fragments.remember(Moment::ZERO, 0, &key(1, 1), (5, 6));
        for number in 0..1000 {
            fragments.remember(Moment::ZERO, 0, &key(2, number), (1, 2));
        }
        assert_eq!(fragments.find(Moment::ZERO, 0, &key(1, 1)), Some((5, 6)));
        assert_eq!(fragments.find(Moment::ZERO, 0, &key(2, 999)), Some((1, 2)));
    }
}
