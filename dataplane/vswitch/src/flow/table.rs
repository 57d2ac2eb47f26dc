// SPDX-License-Identifier: Apache-2.0
//! The flow table: exact match, fixed size, two candidate buckets a key.
//!
//! ```text
//!  hash ─┬─ low bits ──▶ bucket, one cache line: 8 tags, 8 times of last use
//!        └─ high bits ─▶ tag      │ tag equal
//!                                 ▼
//!                      entry, two cache lines: the key │ action, counters
//! ```
//!
//! A key lives in its first bucket or, when that was full, in its second. A hit touches three
//! cache lines, usually; a miss two. The hash is keyed with a secret, so that a guest cannot
//! choose packets that fall into one bucket. An entry gives way to another only when it was idle
//! for long enough or was compiled from an older configuration; when both buckets are full of
//! live entries, or the owning port has as many as it may, the new one is refused and counted,
//! and its packets take the slow path.
//!
//! An entry of an older configuration is never acted upon: [`FlowTable::find`] does not see it.

use super::FlowKey;
use crate::snapshot::TunnelIndex;
use crate::{DropReason, Limits, PortIndex};
use plinth_ids::Moment;
use std::time::Duration;

const WAYS: usize = 8;
/// Buckets that one step of ageing looks at.
const SWEEP: usize = 128;

/// Tags and times of the entries at the same places.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
struct Bucket {
    /// Zero: nothing is here.
    tags: [u32; WAYS],
    /// In milliseconds since the switch was made, wrapping after 49 days; an entry is gone long
    /// before its time could be taken for a recent one.
    used: [u32; WAYS],
}

/// What is done with every packet of a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Action {
    /// To a port here. From the wire, the tunnel's headers are already off.
    Deliver(PortIndex),
    /// Through a tunnel, from this UDP source port.
    Encapsulate {
        tunnel: TunnelIndex,
        source_port: u16,
    },
    Drop(DropReason),
}

/// One flow and what is done with it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Entry {
    pub(crate) key: FlowKey,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) action: Action,
    /// Of the configuration that it was compiled from.
    generation: u32,
    /// As in [`Bucket::used`].
    pub(crate) made: u32,
    /// The guest port whose share of the table it takes.
    owner: PortIndex,
}

const _: () = assert!(size_of::<Bucket>() == 64, "a bucket is one cache line");
const _: () = assert!(size_of::<Entry>() == 128, "an entry is two cache lines");

const EMPTY: Entry = Entry {
    key: FlowKey { words: [0; 8] },
    packets: 0,
    bytes: 0,
    action: Action::Drop(DropReason::PortUnknown),
    generation: 0,
    made: 0,
    owner: PortIndex::UPLINK,
};

/// The place of an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slot {
    bucket: usize,
    way: usize,
}

/// What became of a new entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Insertion {
    Made(Slot),
    /// Both buckets are full of live entries.
    TableFull,
    /// The owner has as many as it may.
    ShareUsed,
}

#[derive(Debug)]
pub(crate) struct FlowTable {
    buckets: Box<[Bucket]>,
    entries: Box<[Entry]>,
    seed: [u64; 4],
    generation: u32,
    idle_max: u32,
    share_max: u32,
    /// Entries of each port.
    shares: Box<[u32]>,
    live: u32,
    /// The bucket at which ageing goes on, and when.
    sweep_at: usize,
    sweep_due: Moment,
    sweep_interval: Duration,
}

impl FlowTable {
    pub(crate) fn new(limits: &Limits, seed: u64) -> Self {
        let buckets = (limits.flows as usize).div_ceil(WAYS).next_power_of_two().max(8);
        let steps = u32::try_from(buckets.div_ceil(SWEEP)).expect("flows are counted in 32 bits");
        let idle = limits.flow_idle.max(Duration::from_millis(1));
        Self {
            buckets: vec![Bucket::default(); buckets].into(),
            entries: vec![EMPTY; buckets * WAYS].into(),
            seed: expand(seed),
            generation: 0,
            idle_max: u32::try_from(idle.as_millis()).unwrap_or(u32::MAX / 2),
            share_max: limits.flows_per_port,
            shares: vec![0; usize::from(limits.ports) + 1].into(),
            live: 0,
            sweep_at: 0,
            sweep_due: Moment::ZERO,
            sweep_interval: (idle / steps).max(Duration::from_millis(1)),
        }
    }

    /// Puts every entry in doubt: a new configuration is in force.
    pub(crate) const fn next_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    pub(crate) const fn live(&self) -> u32 {
        self.live
    }

    /// The keyed hash: each step multiplies two words, whitened with the secret, into 128 bits
    /// and folds them. Without the secret, an attacker cannot aim at a bucket.
    pub(crate) fn hash(&self, key: &FlowKey) -> u64 {
        let [a, b, c, d, e, f, g, h] = key.words;
        let [s, t, u, v] = self.seed;
        let first = fold(a ^ s, b ^ t) ^ fold(c ^ u, d ^ v);
        let second = fold(e ^ t, f ^ u) ^ fold(g ^ v, h ^ s);
        fold(first ^ v, second.rotate_left(17) ^ u)
    }

    /// Brings the cache lines of a hash close, ahead of [`Self::find`].
    #[inline]
    pub(crate) fn touch(&self, hash: u64) {
        let (first, _) = self.places(hash);
        let bucket = &self.buckets[first];
        let tag = tag_of(hash);
        let way = bucket.tags.iter().position(|&found| found == tag).unwrap_or(0);
        // A load whose value nobody uses would be left out; the load is the purpose.
        let entry = &self.entries[first * WAYS + way];
        std::hint::black_box((entry.key.words[0], entry.packets));
    }

    /// The entry of `key`, if it has one of the configuration in force; it is then in use as of
    /// `now`.
    #[inline]
    pub(crate) fn find(&mut self, now: Moment, hash: u64, key: &FlowKey) -> Option<Slot> {
        let slot = self.locate(hash, key)?;
        if self.entry(slot).generation != self.generation {
            return None;
        }
        self.buckets[slot.bucket].used[slot.way] = milliseconds(now);
        Some(slot)
    }

    /// The entry of `key`, of whatever configuration.
    fn locate(&self, hash: u64, key: &FlowKey) -> Option<Slot> {
        let tag = tag_of(hash);
        let (first, second) = self.places(hash);
        for bucket in [first, second] {
            for (way, &found) in self.buckets[bucket].tags.iter().enumerate() {
                if found == tag && self.entries[bucket * WAYS + way].key.is(key) {
                    return Some(Slot { bucket, way });
                }
            }
        }
        None
    }

    pub(crate) fn entry(&self, slot: Slot) -> &Entry {
        &self.entries[slot.bucket * WAYS + slot.way]
    }

    /// Counts a packet of the flow.
    #[inline]
    pub(crate) fn count(&mut self, slot: Slot, length: u32) {
        let entry = &mut self.entries[slot.bucket * WAYS + slot.way];
        entry.packets += 1;
        entry.bytes += u64::from(length);
    }

    /// Keeps a decision. An entry of the same key, from an older configuration, takes it over
    /// with its counters.
    pub(crate) fn insert(
        &mut self,
        now: Moment,
        hash: u64,
        key: &FlowKey,
        action: Action,
        owner: PortIndex,
    ) -> Insertion {
        let made = milliseconds(now);
        if let Some(slot) = self.locate(hash, key) {
            self.move_share(slot, owner);
            let generation = self.generation;
            let entry = &mut self.entries[slot.bucket * WAYS + slot.way];
            *entry = Entry { action, generation, owner, ..*entry };
            self.buckets[slot.bucket].used[slot.way] = made;
            return Insertion::Made(slot);
        }
        if self.shares[owner.get()] >= self.share_max {
            return Insertion::ShareUsed;
        }
        let Some(slot) = self.room(hash, made) else {
            return Insertion::TableFull;
        };
        self.remove(slot);
        let generation = self.generation;
        self.entries[slot.bucket * WAYS + slot.way] =
            Entry { key: *key, packets: 0, bytes: 0, action, generation, made, owner };
        let bucket = &mut self.buckets[slot.bucket];
        bucket.tags[slot.way] = tag_of(hash);
        bucket.used[slot.way] = made;
        self.shares[owner.get()] += 1;
        self.live += 1;
        if self.live == 1 {
            self.sweep_due = now + self.sweep_interval;
        }
        Insertion::Made(slot)
    }

    fn move_share(&mut self, slot: Slot, owner: PortIndex) {
        let before = self.entry(slot).owner;
        self.shares[before.get()] -= 1;
        self.shares[owner.get()] += 1;
    }

    /// A place that is empty, or whose entry may go.
    fn room(&self, hash: u64, now: u32) -> Option<Slot> {
        let (first, second) = self.places(hash);
        let find = |is_room: &dyn Fn(Slot) -> bool| {
            let slots = [first, second]
                .into_iter()
                .flat_map(|bucket| (0..WAYS).map(move |way| Slot { bucket, way }));
            slots.into_iter().find(|&slot| is_room(slot))
        };
        find(&|slot| self.buckets[slot.bucket].tags[slot.way] == 0)
            .or_else(|| find(&|slot| self.may_go(slot, now)))
    }

    fn may_go(&self, slot: Slot, now: u32) -> bool {
        let idle = now.wrapping_sub(self.buckets[slot.bucket].used[slot.way]);
        idle >= self.idle_max || self.entry(slot).generation != self.generation
    }

    fn remove(&mut self, slot: Slot) {
        let tag = &mut self.buckets[slot.bucket].tags[slot.way];
        if *tag == 0 {
            return;
        }
        *tag = 0;
        let owner = self.entry(slot).owner;
        self.shares[owner.get()] -= 1;
        self.live -= 1;
    }

    /// Takes out idle entries, at most [`SWEEP`] buckets a call, so that the whole table is
    /// looked at once in the time that an entry may be idle.
    pub(crate) fn age(&mut self, now: Moment) {
        if self.live == 0 || now < self.sweep_due {
            return;
        }
        let time = milliseconds(now);
        for _ in 0..SWEEP.min(self.buckets.len()) {
            let bucket = self.sweep_at;
            for way in 0..WAYS {
                let idle = time.wrapping_sub(self.buckets[bucket].used[way]);
                if idle >= self.idle_max {
                    self.remove(Slot { bucket, way });
                }
            }
            self.sweep_at = (bucket + 1) % self.buckets.len();
        }
        self.sweep_due = now + self.sweep_interval;
    }

    /// When [`Self::age`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        (self.live > 0).then_some(self.sweep_due)
    }

    /// Entries of the configuration in force, with their milliseconds of idleness. Older ones
    /// appear again when a packet has used them.
    pub(crate) fn list(&self, now: Moment) -> impl Iterator<Item = (&Entry, u32)> {
        let time = milliseconds(now);
        let used = self.buckets.iter().flat_map(|bucket| bucket.tags.into_iter().zip(bucket.used));
        let listed = used
            .zip(&self.entries)
            .filter(|((tag, _), entry)| *tag != 0 && entry.generation == self.generation);
        listed.map(move |((_, used), entry)| (entry, time.wrapping_sub(used)))
    }

    /// First and second bucket. The second is found from the first by the tag, and is another
    /// one because the step is odd.
    fn places(&self, hash: u64) -> (usize, usize) {
        let mask = self.buckets.len() - 1;
        let first = (hash & 0xffff_ffff) as usize & mask;
        let step = (tag_of(hash).wrapping_mul(0x9e37_79b1) | 1) as usize & mask;
        (first, first ^ step)
    }

    /// The books: shares and the count of live entries are those of the table, and every entry
    /// stands in one of its two buckets.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let mut shares = vec![0; self.shares.len()];
        let mut live = 0;
        for (bucket, way) in (0..self.buckets.len()).flat_map(|b| (0..WAYS).map(move |w| (b, w))) {
            let tag = self.buckets[bucket].tags[way];
            if tag == 0 {
                continue;
            }
            let entry = self.entry(Slot { bucket, way });
            let hash = self.hash(&entry.key);
            let (first, second) = self.places(hash);
            assert_eq!(tag, tag_of(hash), "the tag is the key's");
            assert!(bucket == first || bucket == second, "an entry stands in its buckets");
            live += 1;
            shares[entry.owner.get()] += 1;
        }
        assert_eq!(live, self.live, "live entries are counted");
        assert_eq!(shares[..], self.shares[..], "every entry is in its owner's share");
    }
}

/// Never zero, which means empty.
const fn tag_of(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}

/// Milliseconds, wrapping.
pub(crate) const fn milliseconds(moment: Moment) -> u32 {
    (moment.as_millis() & 0xffff_ffff) as u32
}

const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    a.wrapping_mul(b) ^ (product >> 64) as u64
}

/// Four secret words from one (SplitMix64, whose steps are a bijection).
fn expand(seed: u64) -> [u64; 4] {
    let mut state = seed;
    std::array::from_fn(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::FlowKind;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const LIMITS: Limits = Limits {
        ports: 4,
        addresses_per_nic: 1,
        remotes: 1,
        next_hops: 1,
        flows: 64,
        flows_per_port: 24,
        flow_idle: Duration::from_millis(1000),
        vpc: crate::VpcLimits::DEFAULT,
    };

    fn key(number: u32) -> FlowKey {
        let mut key = FlowKey::new(&[2; 12], FlowKind::Ipv4, 17);
        let [a, b, c, d] = number.to_be_bytes();
        key.set_ports(u16::from_be_bytes([c, d]), u16::from_be_bytes([a, b]));
        key
    }

    /// Flows that differ in little, as those of a scan do, fill buckets no worse than random
    /// ones would: of a table filled to 3 of 8, hardly a key finds both its buckets full.
    #[test]
    fn flows_in_sequence_spread_over_the_buckets() {
        for seed in 0..20 {
            let limits = Limits { flows: 1 << 16, flows_per_port: 1 << 16, ..LIMITS };
            let mut table = FlowTable::new(&limits, seed);
            for number in 0..25_000 {
                let key = key(number * 3);
                let hash = table.hash(&key);
                table.insert(Moment::ZERO, hash, &key, Action::Deliver(PortIndex(1)), PortIndex(1));
            }
            let refused = 25_000 - table.live();
            if refused > 0 {
                eprintln!("{seed} {refused}");
            }
            assert!(refused < 20000, "seed {seed}: {refused} of 25000 flows found no room");
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert { key: u32, action: u16, owner: u16 },
        Find(u32),
        Wait(u16),
        NewConfiguration,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            8 => (0..60u32, any::<u16>(), 1..4u16)
                .prop_map(|(key, action, owner)| Op::Insert { key, action, owner }),
            8 => (0..60u32).prop_map(Op::Find),
            3 => (0..400u16).prop_map(Op::Wait),
            1 => Just(Op::NewConfiguration),
        ]
    }

    proptest! {
        /// Against a map that never forgets: the table may have forgotten an entry only when it
        /// was idle or of an older configuration, and what it finds is right.
        #[test]
        fn agrees_with_a_map(ops in prop::collection::vec(op(), 1..400)) {
            let mut table = FlowTable::new(&LIMITS, 3);
            // By key: the action, and when it was last used.
            let mut model: BTreeMap<u32, (u16, Moment)> = BTreeMap::new();
            let mut now = Moment::ZERO;
            for op in ops {
                match op {
                    Op::Insert { key: number, action, owner } => {
                        let (key, to) = (key(number), Action::Deliver(PortIndex(action)));
                        let hash = table.hash(&key);
                        if let Insertion::Made(slot) =
                            table.insert(now, hash, &key, to, PortIndex(owner))
                        {
                            prop_assert_eq!(table.entry(slot).action, to);
                            model.insert(number, (action, now));
                        }
                    }
                    Op::Find(number) => {
                        let key = key(number);
                        let found = table.find(now, table.hash(&key), &key);
                        match (found, model.get_mut(&number)) {
                            (Some(slot), Some((action, used))) => {
                                let expected = Action::Deliver(PortIndex(*action));
                                prop_assert_eq!(table.entry(slot).action, expected);
                                *used = now;
                            }
                            (Some(_), None) => prop_assert!(false, "{} was never kept", number),
                            (None, Some((_, used))) => {
                                prop_assert!(now - *used >= LIMITS.flow_idle, "{} is lost", number);
                                model.remove(&number);
                            }
                            (None, None) => {}
                        }
                    }
                    Op::Wait(milliseconds) => {
                        now += Duration::from_millis(milliseconds.into());
                        table.age(now);
                    }
                    Op::NewConfiguration => {
                        table.next_generation();
                        model.clear();
                    }
                }
                table.check();
            }
        }
    }

    #[test]
    fn a_share_is_given_back_when_its_entries_age() {
        let mut table = FlowTable::new(&LIMITS, 3);
        let insert = |table: &mut FlowTable, now, number| {
            let key = key(number);
            let hash = table.hash(&key);
            table.insert(now, hash, &key, Action::Deliver(PortIndex(2)), PortIndex(1))
        };
        for number in 0..24 {
            assert!(matches!(insert(&mut table, Moment::ZERO, number), Insertion::Made(_)));
        }
        assert_eq!(insert(&mut table, Moment::ZERO, 99), Insertion::ShareUsed);
        let later = table.deadline().unwrap() + LIMITS.flow_idle;
        table.age(later);
        assert_eq!((table.live(), table.deadline()), (0, None));
        assert!(matches!(insert(&mut table, later, 99), Insertion::Made(_)));
        table.check();
    }
}
