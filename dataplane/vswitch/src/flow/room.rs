// SPDX-License-Identifier: Apache-2.0
//! What gives way to what in the flow table, and when entries go by themselves.
//!
//! * An entry without a connection is a decision that can be made again: it may go when it is of
//!   an older configuration, when nobody used it for a while, and when a connection wants its
//!   place.
//! * The entries of a connection go together, when neither was used for as long as the
//!   connection's state says. Before both sides have answered they may go for a new connection as
//!   well; afterwards never: no flood of beginnings can end what has begun.
//! * Who has its share of the table used up takes new places from itself only.

use super::connection::{ConnectionIndex, Direction, Link, Tracked};
use super::table::{Entry, FlowTable, NoRoom, SWEEP, Slot, WAYS, milliseconds};
use crate::PortIndex;
use plinth_ids::Moment;

impl FlowTable {
    /// A place for a new entry of `owner`, which may be another entry's that has to go: of those
    /// that may, the one that was not used for longest.
    ///
    /// An entry is two lines that nobody has fetched, and there are sixteen: none is read before
    /// both buckets are seen to be full, and then the one that most probably goes is the first.
    pub(super) fn room(
        &self,
        hash: u64,
        now: u32,
        owner: PortIndex,
        link: Link,
    ) -> Result<Slot, NoRoom> {
        let (first, second) = self.places(hash);
        let has_share = self.shares[owner.get()] < self.share_max;
        if has_share {
            let empty = self.empty(first).or_else(|| self.empty(second));
            if let Some(slot) = empty {
                return Ok(slot);
            }
        }
        let mut left: [Option<(u32, Slot)>; 2 * WAYS] = std::array::from_fn(|nth| {
            let slot = Slot::of(if nth < WAYS { first } else { second }, nth % WAYS);
            let is_taken = self.buckets[slot.bucket()].tags[slot.way()] != 0;
            is_taken.then(|| (self.idle(slot, now), slot))
        });
        // `None` is less than any time.
        while let Some(oldest) = left.iter_mut().max_by_key(|slot| slot.map(|(idle, _)| idle))
            && let Some((_, slot)) = oldest.take()
        {
            let entry = self.entry(slot);
            let is_reachable = has_share || entry.owner == owner;
            let is_weak = || link != Link::NONE && self.is_weak(entry, link);
            if is_reachable && (self.may_go(slot, now) || is_weak()) {
                return Ok(slot);
            }
        }
        Err(if has_share { NoRoom::TableFull } else { NoRoom::ShareUsed })
    }

    fn empty(&self, bucket: usize) -> Option<Slot> {
        let way = self.buckets[bucket].tags.iter().position(|&tag| tag == 0)?;
        Some(Slot::of(bucket, way))
    }

    /// Whether an entry may go for the connection of `link`, which must not take from itself.
    fn is_weak(&self, entry: &Entry, link: Link) -> bool {
        let own = link.get().map(|(connection, _)| connection);
        match entry.link.get() {
            None => true,
            Some((connection, _)) => {
                Some(connection) != own && !self.connections.get(connection).is_assured()
            }
        }
    }

    /// Whether an entry may go for anything.
    fn may_go(&self, slot: Slot, now: u32) -> bool {
        let idle = self.idle(slot, now);
        let entry = self.entry(slot);
        match entry.link.get() {
            None => idle >= self.idle_max || !self.is_current(entry),
            Some((connection, _)) => idle >= self.timeouts.least && self.is_over(connection, now),
        }
    }

    fn idle(&self, slot: Slot, now: u32) -> u32 {
        now.wrapping_sub(self.buckets[slot.bucket()].used[slot.way()])
    }

    /// Whether neither direction was used for as long as the connection may be idle.
    fn is_over(&self, connection: ConnectionIndex, now: u32) -> bool {
        let connection = self.connections.get(connection);
        let timeout = connection.timeout(&self.timeouts);
        let directions = [Direction::Forward, Direction::Back].into_iter();
        let entries = directions.filter_map(|direction| connection.entry(direction));
        entries.into_iter().all(|slot| self.idle(slot, now) >= timeout)
    }

    /// Takes out an entry, and with it its connection and the other direction's entry.
    pub(super) fn remove(&mut self, slot: Slot) {
        if self.buckets[slot.bucket()].tags[slot.way()] == 0 {
            return;
        }
        let entry = self.entry(slot);
        let owner = entry.owner;
        match entry.link.get() {
            None => self.clear(slot, owner),
            Some((connection, _)) => self.close_of(connection, owner),
        }
    }

    /// Ends a connection.
    pub(crate) fn close(&mut self, connection: ConnectionIndex) {
        let record = self.connections.get(connection);
        let entry = record.entry(Direction::Forward).or(record.entry(Direction::Back));
        let owner = entry.map_or(PortIndex::UPLINK, |slot| self.entry(slot).owner);
        self.close_of(connection, owner);
    }

    /// Both entries of a connection are of one owner's share, so that only one has to be read.
    fn close_of(&mut self, connection: ConnectionIndex, owner: PortIndex) {
        for direction in [Direction::Forward, Direction::Back] {
            if let Some(slot) = self.connections.get(connection).entry(direction) {
                debug_assert_eq!(self.entry(slot).owner, owner, "both directions have one owner");
                self.clear(slot, owner);
            }
        }
        if self.connections.get(connection).is_translated {
            self.count_backend(connection, -1);
        }
        let is_mapping = self.connections.get(connection).tracked == Tracked::Mapping;
        self.mappings -= u32::from(is_mapping);
        self.connections.give_back(connection);
    }

    /// Makes the place of an entry of `owner` empty.
    pub(super) fn clear(&mut self, slot: Slot, owner: PortIndex) {
        self.buckets[slot.bucket()].tags[slot.way()] = 0;
        self.shares[owner.get()] -= 1;
        self.live -= 1;
    }

    /// Takes out idle entries, at most [`SWEEP`] buckets a call, so that the whole table is
    /// looked at once in the time that an entry without a connection may be idle.
    pub(crate) fn age(&mut self, now: Moment) {
        if self.live == 0 || now < self.sweep_due {
            return;
        }
        let time = milliseconds(now);
        for _ in 0..SWEEP.min(self.buckets.len()) {
            let bucket = self.sweep_at;
            for way in 0..WAYS {
                let slot = Slot::of(bucket, way);
                if self.buckets[bucket].tags[way] == 0 {
                    continue;
                }
                if self.has_aged(slot, time) {
                    self.remove(slot);
                } else if self.mappings > 0 {
                    self.prolong_mapping(slot, time);
                }
            }
            self.sweep_at = (bucket + 1) % self.buckets.len();
        }
        self.sweep_due = now + self.sweep_interval;
    }

    fn has_aged(&self, slot: Slot, now: u32) -> bool {
        let idle = self.idle(slot, now);
        match self.entry(slot).link.get() {
            None => idle >= self.idle_max,
            Some((connection, _)) => idle >= self.timeouts.least && self.is_over(connection, now),
        }
    }

    /// When [`Self::age`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        (self.live > 0).then_some(self.sweep_due)
    }
}
