// SPDX-License-Identifier: Apache-2.0
//! The flow table: exact match, fixed size, two candidate buckets a key.
//!
//! ```text
//!  hash ─┬─ low bits ──▶ bucket, one cache line: 8 tags, 8 times of last use
//!        └─ high bits ─▶ tag      │ tag equal
//!                                 ▼
//!                      entry, two cache lines: key, expectation │ action, counters
//!                                 │ of TCP
//!                                 ▼
//!                      connection, one cache line ──▶ the entries of both directions
//! ```
//!
//! A key lives in its first bucket or, when that was full, in its second. A hit touches three
//! cache lines, usually, one of TCP that is tracked four; a miss two. The hash is keyed with a
//! secret, so that a guest cannot choose packets that fall into one bucket. What gives way to
//! what when both buckets are full is in `room.rs`.
//!
//! An entry that an installation since has put in doubt, or whose expectation the packet does not meet, is found as
//! [`Found::Stale`]: it says which connection the packet belongs to, and nothing else is believed
//! of it.

use super::connection::{Connection, ConnectionIndex, Connections, Direction, Link, Milliseconds};
use super::doubt::Doubt;
use super::edit::{Edit, Edits};
use super::{Expected, FlowKey};
use crate::snapshot::TunnelIndex;
use crate::{DropReason, Limits, PortIndex};
use plinth_ids::{Moment, Vni};
use std::num::NonZeroU32;
use std::time::Duration;

pub(super) const WAYS: usize = 8;
/// Buckets that one step of ageing looks at.
pub(super) const SWEEP: usize = 128;

/// Tags and times of the entries at the same places.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    /// Zero: nothing is here.
    pub(super) tags: [u32; WAYS],
    /// In milliseconds since the switch was made, wrapping after 49 days; an entry is gone long
    /// before its time could be taken for a recent one.
    pub(super) used: [u32; WAYS],
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
    /// Out of the node's uplink as it is, to the next hop of a line to the outside.
    External {
        next_hop: u16,
        /// The place of the sender's external address, under which it is counted.
        address: u16,
    },
    Drop(DropReason),
}

/// What a router does to a packet besides counting its time to live down.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Route {
    /// Destination and source, as they stand in a frame.
    pub(crate) macs: [u8; 12],
    /// The VPC that it leaves in: another one than it came in when the two are peers.
    pub(crate) vni: Vni,
}

/// Where the packets of a flow go, and what is done to them on the way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Way {
    pub(crate) action: Action,
    pub(crate) route: Option<Route>,
    /// Of the edit record; [`Link::NONE`] if there is none.
    pub(crate) edit: Link,
}

/// One flow and what is done with it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Entry {
    pub(crate) key: FlowKey,
    pub(super) expected: Expected,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) action: Action,
    pub(crate) route: Option<Route>,
    pub(crate) link: Link,
    /// Of the newest configuration by which it was judged, or which was seen not to concern it.
    pub(super) generation: u32,
    /// As in [`Bucket::used`].
    pub(crate) made: u32,
    /// The guest port whose share of the table it takes.
    pub(super) owner: PortIndex,
    /// Whether its connection looks at every packet.
    pub(crate) is_followed: bool,
    /// Whether there is an edit record for it.
    pub(crate) is_translated: bool,
}

impl Entry {
    /// What is done with its packets.
    #[inline]
    pub(crate) fn way(&self) -> Way {
        let edit = if self.is_translated { self.link } else { Link::NONE };
        Way { action: self.action, route: self.route, edit }
    }
}

const _: () = assert!(size_of::<Bucket>() == 64, "a bucket is one cache line");
const _: () = assert!(size_of::<Entry>() == 128, "an entry is two cache lines");

const EMPTY: Entry = Entry {
    key: FlowKey { words: [0; 6] },
    expected: Expected::NOTHING,
    packets: 0,
    bytes: 0,
    action: Action::Drop(DropReason::PortUnknown),
    route: None,
    link: Link::NONE,
    generation: 0,
    made: 0,
    owner: PortIndex::UPLINK,
    is_followed: false,
    is_translated: false,
};

/// The place of an entry, or of any record in a table of fewer than 2^32.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slot(NonZeroU32);

impl Slot {
    /// # Panics
    /// If the place does not fit 32 bits: tables are made smaller.
    pub(crate) fn new(place: usize) -> Self {
        Self::at(u32::try_from(place).expect("tables have fewer than 2^32 places"))
    }

    pub(crate) const fn at(place: u32) -> Self {
        Self(NonZeroU32::new(place.wrapping_add(1)).expect("tables have fewer than 2^32 places"))
    }

    pub(crate) const fn raw(self) -> u32 {
        self.0.get() - 1
    }

    pub(crate) const fn get(self) -> usize {
        self.raw() as usize
    }

    pub(super) const fn bucket(self) -> usize {
        self.get() / WAYS
    }

    pub(super) const fn way(self) -> usize {
        self.get() % WAYS
    }

    pub(super) fn of(bucket: usize, way: usize) -> Self {
        Self::new(bucket * WAYS + way)
    }
}

/// Something of a line that was brought close. A load whose value nobody uses would be left out, and
/// the load is the purpose; one that is stored at once holds up every store behind it. So what a
/// burst has touched is added up, and looked at once.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub(crate) struct Touched(u64);

impl Touched {
    #[inline]
    pub(crate) const fn and(&mut self, other: Self) {
        self.0 ^= other.0;
    }

    #[inline]
    pub(crate) fn end(self) {
        std::hint::black_box(self.0);
    }
}

/// What the table has for a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Found {
    /// Its decision holds.
    Fresh(Slot),
    /// The packet is the flow's, but is to be judged again.
    Stale(Slot),
    Nothing,
}

/// Why there is no entry for a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NoRoom {
    /// Both buckets are full of entries that may not go.
    TableFull,
    /// The owner has as many as it may.
    ShareUsed,
}

/// A flow's key with its hash.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hashed {
    pub(crate) key: FlowKey,
    pub(crate) hash: u64,
}

#[derive(Debug)]
pub(crate) struct FlowTable {
    pub(super) buckets: Box<[Bucket]>,
    pub(super) entries: Box<[Entry]>,
    pub(super) connections: Connections,
    pub(super) edits: Edits,
    /// How many of the connections are mappings.
    pub(super) mappings: u32,
    /// Connections that each backend of a balancer has, by its place.
    backends: Box<[u32]>,
    seed: [u64; 6],
    pub(super) generation: u32,
    pub(super) doubt: Doubt,
    pub(super) idle_max: u32,
    pub(super) timeouts: Milliseconds,
    pub(super) share_max: u32,
    /// Entries of each port.
    pub(super) shares: Box<[u32]>,
    pub(super) live: u32,
    /// The bucket at which ageing goes on, and when.
    pub(super) sweep_at: usize,
    pub(super) sweep_due: Moment,
    pub(super) sweep_interval: Duration,
}

impl FlowTable {
    pub(crate) fn new(limits: &Limits, seed: u64) -> Self {
        let buckets = (limits.flows as usize).div_ceil(WAYS).next_power_of_two().max(8);
        let steps = u32::try_from(buckets.div_ceil(SWEEP)).expect("flows are counted in 32 bits");
        let idle = limits.flow_idle.max(Duration::from_millis(1));
        Self {
            buckets: vec![Bucket::default(); buckets].into(),
            entries: vec![EMPTY; buckets * WAYS].into(),
            // One more than a full table has, for the one that takes the place of another.
            connections: Connections::new(buckets * WAYS / 2 + 1),
            edits: Edits::new(buckets * WAYS / 2 + 1),
            mappings: 0,
            backends: vec![0; limits.balancers.backends as usize].into(),
            seed: expand(seed),
            generation: 0,
            doubt: Doubt::default(),
            idle_max: milliseconds_of(idle),
            timeouts: Milliseconds::new(&limits.timeouts, idle),
            share_max: limits.flows_per_port,
            shares: vec![0; usize::from(limits.ports) + 1].into(),
            live: 0,
            sweep_at: 0,
            sweep_due: Moment::ZERO,
            sweep_interval: (idle / steps).max(Duration::from_millis(1)),
        }
    }

    pub(crate) const fn live(&self) -> u32 {
        self.live
    }

    pub(crate) const fn live_connections(&self) -> u32 {
        self.connections.live()
    }

    /// The keyed hash: each step multiplies two words, whitened with the secret, into 128 bits
    /// and folds them. Without the secret, an attacker cannot aim at a bucket.
    ///
    /// Both directions of a TCP or UDP exchange have one hash but for its lowest bit: their ends
    /// are hashed alike and added, and where the packet came in is left out. So the entries of a
    /// connection are in neighboring buckets, and who begins one finds close what the answers
    /// need. In one bucket they would fill it in pairs, which leaves 7 % of the entries in their
    /// second bucket where the table is half full; so it is 1 %.
    #[inline]
    pub(crate) fn hash(&self, key: &FlowKey) -> u64 {
        let [s, t, u, v, w, x] = self.seed;
        let [a, b, c, d, ports, _] = key.words;
        let (source, destination) = (ports & 0xffff, ports >> 16 & 0xffff);
        let (one, other) = if key.is_ipv4() {
            let end = |address: u64, port: u64| fold(address ^ s, port ^ t);
            (end(a & 0xffff_ffff, source), end(a >> 32, destination))
        } else {
            let end = |low, high, port| fold(fold(low ^ s, high ^ t) ^ u, port ^ v);
            (end(a, b, source), end(c, d, destination))
        };
        let both = fold(one.wrapping_add(other) ^ w, key.exchange() ^ x);
        both ^ u64::from(one < other)
    }

    pub(crate) fn hashed(&self, key: FlowKey) -> Hashed {
        Hashed { key, hash: self.hash(&key) }
    }

    /// Brings the bucket of a hash close, ahead of [`Self::touch`].
    #[inline]
    pub(crate) fn touch_bucket(&self, hash: u64) -> Touched {
        let (first, _) = self.places(hash);
        Touched(u64::from(self.buckets[first].tags[0]))
    }

    /// Brings the entry of a hash close, ahead of [`Self::find`]. Says where it probably is.
    ///
    /// What is not there is not looked for in its second bucket: a branch here costs every hit 5 ns.
    #[inline]
    pub(crate) fn touch(&self, hash: u64) -> (usize, Touched) {
        let (first, _) = self.places(hash);
        let found = ways_of(&self.buckets[first].tags, tag_of(hash));
        let place = first * WAYS + found.trailing_zeros() as usize % WAYS;
        (place, self.touch_entry(place))
    }

    /// Brings both buckets of a hash close, and those of its answers, ahead of [`Self::open`],
    /// which reads them one after the other.
    #[inline]
    pub(crate) fn touch_buckets(&self, hash: u64) -> Touched {
        let ((first, second), tag) = (self.places(hash), |at: usize| self.buckets[at].tags[0]);
        Touched((tag(first) ^ tag(second) ^ tag(first ^ 1) ^ tag(second ^ 1)).into())
    }

    /// Whether nothing in either bucket of a hash has its tag.
    #[inline]
    pub(crate) fn is_absent(&self, hash: u64) -> bool {
        let ((first, second), tag) = (self.places(hash), tag_of(hash));
        ways_of(&self.buckets[first].tags, tag) | ways_of(&self.buckets[second].tags, tag) == 0
    }

    /// Brings close what [`Self::open`] will write for the `nth` beginning of a burst: the places
    /// of both entries, if they are in their first buckets, and the connection's.
    #[inline]
    pub(crate) fn touch_room(&self, hash: u64, nth: usize) -> Touched {
        let mut touched = Touched(self.connections.touch_next(nth));
        let (first, _) = self.places(hash);
        for bucket in [first, first ^ 1] {
            let free = ways_of(&self.buckets[bucket].tags, 0);
            touched.and(self.touch_entry(bucket * WAYS + free.trailing_zeros() as usize % WAYS));
        }
        touched
    }

    /// Both lines of an entry.
    #[inline]
    fn touch_entry(&self, place: usize) -> Touched {
        let entry = &self.entries[place];
        Touched(entry.key.words[0] ^ entry.packets)
    }

    /// Brings the connection of the entry at a place close, if it looks at every packet.
    #[inline]
    pub(crate) fn touch_connection(&self, place: usize) -> Touched {
        let entry = &self.entries[place];
        let mut touched = 0;
        if entry.is_followed
            && let Some((connection, _)) = entry.link.get()
        {
            touched = u64::from(self.connections.get(connection).generation);
        }
        if entry.is_translated && entry.link != Link::NONE {
            touched ^= self.edits.touch(entry.link);
        }
        Touched(touched)
    }

    /// The edit record of a link that has one.
    #[inline]
    pub(crate) fn edit(&self, link: Link) -> Edit {
        self.edits.get(link)
    }

    /// The entry of `key`, and whether its decision holds for a packet that looks like this.
    /// `place` is where [`Self::touch`] has seen it.
    #[inline]
    pub(crate) fn find(&self, place: usize, hash: u64, key: &FlowKey, expected: Expected) -> Found {
        let is_there = self.buckets[place / WAYS].tags[place % WAYS] == tag_of(hash)
            && self.entries[place].key.is(key);
        let found = if is_there { Some(Slot::new(place)) } else { self.locate(hash, key) };
        let Some(slot) = found else { return Found::Nothing };
        let entry = self.entry(slot);
        let [a, b] = entry.expected.words;
        let difference = (a ^ expected.words[0]) | (b ^ expected.words[1]);
        if difference != 0 || !self.is_current(entry) {
            return Found::Stale(slot);
        }
        Found::Fresh(slot)
    }

    /// The entry of `key`, whatever it is worth.
    pub(crate) fn locate(&self, hash: u64, key: &FlowKey) -> Option<Slot> {
        let tag = tag_of(hash);
        let (first, second) = self.places(hash);
        for bucket in [first, second] {
            for (way, &found) in self.buckets[bucket].tags.iter().enumerate() {
                if found == tag && self.entries[bucket * WAYS + way].key.is(key) {
                    return Some(Slot::of(bucket, way));
                }
            }
        }
        None
    }

    #[inline]
    pub(crate) fn entry(&self, slot: Slot) -> &Entry {
        &self.entries[slot.get()]
    }

    /// Counts a packet of the flow, whose decision holds and which is then in use as of `now`.
    #[inline]
    pub(crate) fn count(&mut self, now: Moment, slot: Slot, length: u32) {
        self.buckets[slot.bucket()].used[slot.way()] = milliseconds(now);
        let generation = self.generation;
        let entry = &mut self.entries[slot.get()];
        entry.generation = generation;
        entry.packets += 1;
        entry.bytes += u64::from(length);
    }

    pub(crate) fn connection(&self, index: ConnectionIndex) -> &Connection {
        self.connections.get(index)
    }

    pub(crate) fn connection_mut(&mut self, index: ConnectionIndex) -> &mut Connection {
        self.connections.get_mut(index)
    }

    /// Keeps a decision for a flow without a connection. An entry of the same key takes it over
    /// with its counters, unless it was of a connection, which then ends.
    pub(crate) fn keep(
        &mut self,
        now: Moment,
        flow: &Hashed,
        expected: Expected,
        way: Way,
        owner: PortIndex,
    ) -> Result<Slot, NoRoom> {
        let before = self.locate(flow.hash, &flow.key);
        let before = before.filter(|&slot| self.entry(slot).link == Link::NONE);
        let slot = match before {
            Some(slot) => {
                self.move_share(slot, owner);
                slot
            }
            None => self.place(now, flow, owner, Link::NONE)?,
        };
        self.renew(now, slot, expected, way);
        Ok(slot)
    }

    /// Begins a connection: an entry for each direction, neither of which has been judged. What
    /// had their keys before ends. `edits` are those of both directions, if it is translated.
    pub(crate) fn open(
        &mut self,
        now: Moment,
        flows: &[Hashed; 2],
        owner: PortIndex,
        connection: Connection,
        edits: Option<&[Edit; 2]>,
    ) -> Result<ConnectionIndex, NoRoom> {
        // There is one for every two entries, but some may have lost one.
        let index = self.connections.take(connection).ok_or(NoRoom::TableFull)?;
        self.mappings += u32::from(connection.tracked == super::Tracked::Mapping);
        self.connections.get_mut(index).is_translated = edits.is_some();
        for (flow, direction) in flows.iter().zip([Direction::Forward, Direction::Back]) {
            let link = Link::new(index, direction);
            if let Some(edits) = edits {
                self.edits.set(link, &edits[direction.number()]);
                if direction == Direction::Forward {
                    self.count_backend(index, 1);
                }
            }
            match self.place(now, flow, owner, link) {
                Ok(slot) => self.connections.get_mut(index).set_entry(direction, Some(slot)),
                Err(reason) => {
                    self.close(index);
                    return Err(reason);
                }
            }
        }
        Ok(index)
    }

    /// How many connections each backend of a balancer has, by its place.
    pub(crate) fn backend_counts(&self) -> &[u32] {
        &self.backends
    }

    /// Counts a connection with its backend, if it has one, or no more. A place that has another
    /// backend by then counts what it had before until that has ended.
    pub(super) fn count_backend(&mut self, index: ConnectionIndex, change: i32) {
        let edit = self.edits.get(Link::new(index, Direction::Forward));
        if let Some(count) = edit.backend().and_then(|place| self.backends.get_mut(place)) {
            *count = count.saturating_add_signed(change);
        }
    }

    /// Writes down what was decided for an entry by the configuration in force.
    pub(crate) fn renew(&mut self, now: Moment, slot: Slot, expected: Expected, way: Way) {
        let generation = self.generation;
        let entry = &mut self.entries[slot.get()];
        (entry.expected, entry.generation) = (expected, generation);
        (entry.action, entry.route) = (way.action, way.route);
        self.buckets[slot.bucket()].used[slot.way()] = milliseconds(now);
    }

    /// Says that the packets of a connection in `direction` come in as `flow`, which they may
    /// not have done so far: its other side has moved.
    pub(crate) fn rebind(
        &mut self,
        now: Moment,
        connection: ConnectionIndex,
        direction: Direction,
        flow: &Hashed,
    ) {
        let before = self.connections.get(connection).entry(direction);
        if before.is_some_and(|slot| self.entry(slot).key.is(&flow.key)) {
            return;
        }
        let other = self.connections.get(connection).entry(direction.other());
        let owner = other.map_or(PortIndex::UPLINK, |slot| self.entry(slot).owner);
        if let Some(slot) = before {
            self.clear(slot, self.entry(slot).owner);
        }
        // Without room it comes back as a stranger; the connection goes on in this direction.
        let slot = self.place(now, flow, owner, Link::new(connection, direction)).ok();
        self.connections.get_mut(connection).set_entry(direction, slot);
    }

    fn move_share(&mut self, slot: Slot, owner: PortIndex) {
        let before = std::mem::replace(&mut self.entries[slot.get()].owner, owner);
        self.shares[before.get()] -= 1;
        self.shares[owner.get()] += 1;
    }

    /// Takes a place for a flow. Its entry is not judged.
    fn place(
        &mut self,
        now: Moment,
        flow: &Hashed,
        owner: PortIndex,
        link: Link,
    ) -> Result<Slot, NoRoom> {
        if let Some(slot) = self.locate(flow.hash, &flow.key) {
            let connection = |link: Link| link.get().map(|(connection, _)| connection);
            if link != Link::NONE && connection(self.entry(slot).link) == connection(link) {
                // Both directions have one key: nobody can answer himself.
                return Err(NoRoom::TableFull);
            }
            self.remove(slot);
        }
        let made = milliseconds(now);
        let slot = self.room(flow.hash, made, owner, link)?;
        self.remove(slot);
        let is_followed = link.get().is_some_and(|(connection, _)| {
            self.connections.get(connection).tracked == super::Tracked::Tcp
        });
        let is_translated = link
            .get()
            .is_some_and(|(connection, _)| self.connections.get(connection).is_translated);
        let key = flow.key;
        self.entries[slot.get()] =
            Entry { key, link, made, owner, is_followed, is_translated, ..EMPTY };
        let bucket = &mut self.buckets[slot.bucket()];
        bucket.tags[slot.way()] = tag_of(flow.hash);
        bucket.used[slot.way()] = made;
        self.shares[owner.get()] += 1;
        self.live += 1;
        if self.live == 1 {
            self.sweep_due = now + self.sweep_interval;
        }
        Ok(slot)
    }

    /// Entries whose decisions hold, with their milliseconds of idleness. Others
    /// appear again when a packet has used them.
    pub(crate) fn list(&self, now: Moment) -> impl Iterator<Item = (&Entry, u32)> {
        let time = milliseconds(now);
        let used = self.buckets.iter().flat_map(|bucket| bucket.tags.into_iter().zip(bucket.used));
        let listed =
            used.zip(&self.entries).filter(|((tag, _), entry)| *tag != 0 && self.is_judged(entry));
        listed.map(move |((_, used), entry)| (entry, time.wrapping_sub(used)))
    }

    pub(crate) const fn bucket_count(&self) -> usize {
        self.buckets.len()
    }

    /// What stands in a bucket and may be shown, with its milliseconds of idleness: a connection's
    /// entry that no packet has come to yet is not.
    pub(crate) fn bucket_entries(
        &self,
        bucket: usize,
        now: Moment,
    ) -> impl Iterator<Item = (&Entry, u32)> {
        let time = milliseconds(now);
        let Bucket { tags, used } = &self.buckets[bucket];
        let entries = &self.entries[bucket * WAYS..(bucket + 1) * WAYS];
        let all = tags.iter().zip(used).zip(entries);
        all.filter(|((tag, _), _)| **tag != 0)
            .map(move |((_, used), entry)| (entry, time.wrapping_sub(*used)))
    }

    /// First and second bucket. The second is found from the first by the tag, and is another
    /// one because the step is not zero, and of the same direction because it is even.
    pub(super) fn places(&self, hash: u64) -> (usize, usize) {
        let mask = self.buckets.len() - 1;
        let first = (hash & 0xffff_ffff) as usize & mask;
        let step = (tag_of(hash).wrapping_mul(0x9e37_79b1) << 1 | 2) as usize & mask;
        (first, first ^ step)
    }
}

/// The ways that have a tag, a bit for each: no branch that hangs on where it is, which nobody can
/// foresee, so that the loads of the next packets begin meanwhile.
#[inline]
fn ways_of(tags: &[u32; WAYS], tag: u32) -> u32 {
    tags.iter().enumerate().fold(0, |ways, (way, &found)| ways | u32::from(found == tag) << way)
}

/// Never zero, which means empty.
pub(super) const fn tag_of(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}

/// Milliseconds, wrapping.
pub(crate) const fn milliseconds(moment: Moment) -> u32 {
    (moment.as_millis() & 0xffff_ffff) as u32
}

/// Of a time to wait: at most half of the time after which milliseconds wrap.
pub(crate) fn milliseconds_of(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).min(u32::MAX / 2)
}

const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    a.wrapping_mul(b) ^ (product >> 64) as u64
}

/// Secret words from one (SplitMix64, whose steps are a bijection).
fn expand(seed: u64) -> [u64; 6] {
    let mut state = seed;
    std::array::from_fn(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}
