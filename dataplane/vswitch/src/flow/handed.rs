// SPDX-License-Identifier: Apache-2.0
//! Connections on their way from one process to the next (ADR-101).
//!
//! ```text
//!  0    key of the opener's packets, 6 words      128  TCP's state, "loose", kind, "answered",
//!  48   key of the answers, 6 words                    "translated", zero
//!  96   TCP: two sides of 16                      136  idle for: opener, answers; made before (ms)
//!                                                 148  owner's place, zero
//! ```
//!
//! Integers are little-endian. Times go as ages, because the clocks of the two may have begun at
//! different times. An entry's decision does not go along: it is judged again, as after a change
//! of the configuration, and the rules are not asked because the connection stands. Nor do edit
//! records: where packets go is the key of the answers turned round, so the two keys say all.

use super::connection::{Connection, Direction, Link, Tracked};
use super::edit::Edit;
use super::table::{FlowTable, Hashed, WAYS, milliseconds};
use super::{FlowKey, Tcp};
use crate::PortIndex;
use plinth_ids::Moment;

/// Bytes of one connection.
pub(crate) const RECORD: usize = 152;
/// Buckets that one step looks at.
const BUCKETS: usize = 4096;
/// Connections of one step, at most, but for those of the last bucket.
const RECORDS: usize = 512;

/// One connection of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handed {
    pub(crate) keys: [FlowKey; 2],
    tcp: Tcp,
    tracked: Tracked,
    is_answered: bool,
    /// What happens to the packets of each direction, if something does.
    edits: Option<[Edit; 2]>,
    idle: [u32; 2],
    age: u32,
    pub(crate) owner: u16,
}

impl Handed {
    fn emit(&self, into: &mut Vec<u8>) {
        let start = into.len();
        for key in &self.keys {
            into.extend(key.words.iter().flat_map(|word| word.to_le_bytes()));
        }
        self.tcp.emit(into);
        let is_translated = u8::from(self.edits.is_some());
        let answered = u8::from(self.is_answered);
        into.extend([self.tracked.number(), answered, is_translated, 0, 0, 0]);
        for time in [self.idle[0], self.idle[1], self.age] {
            into.extend(time.to_le_bytes());
        }
        into.extend(self.owner.to_le_bytes());
        into.extend([0; 2]);
        debug_assert_eq!(into.len() - start, RECORD, "the drawing above");
    }

    /// `None` if no switch of this version would have sent it.
    pub(crate) fn parse(bytes: &[u8; RECORD]) -> Option<Self> {
        let (words, rest) = bytes.split_at(96);
        let mut keys = [FlowKey::default(); 2];
        let (words, _) = words.as_chunks::<8>();
        for (key, words) in keys.iter_mut().zip(words.chunks(6)) {
            for (word, bytes) in key.words.iter_mut().zip(words) {
                *word = u64::from_le_bytes(*bytes);
            }
        }
        let (tcp, rest) = rest.split_first_chunk()?;
        let &[tracked, answered, translated, 0, 0, 0, ref rest @ ..] = rest else { return None };
        let (times, owner) = rest.split_at_checked(12)?;
        let (times, _) = times.as_chunks::<4>();
        let time = |nth: usize| times.get(nth).map(|bytes| u32::from_le_bytes(*bytes));
        let &[low, high, 0, 0] = owner else { return None };
        Some(Self {
            keys,
            tcp: Tcp::parse(tcp)?,
            tracked: Tracked::from_number(tracked)?,
            is_answered: flag(answered)?,
            edits: match flag(translated)? {
                true => Some(edits(&keys)?),
                false => None,
            },
            idle: [time(0)?, time(1)?],
            age: time(2)?,
            owner: u16::from_le_bytes([low, high]),
        })
    }
}

fn flag(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// What happens to the packets of each direction of a connection that is translated: they go as
/// what the other direction's packets answer.
fn edits([forward, back]: &[FlowKey; 2]) -> Option<[Edit; 2]> {
    let is_one = forward.is_ipv4() == back.is_ipv4() && forward.protocol() == back.protocol();
    let (going, coming) = (back.answer(back.ingress())?, forward.answer(forward.ingress())?);
    is_one.then(|| [Edit::new(forward, &going), Edit::new(back, &coming)])
}

impl FlowTable {
    /// Writes down connections from bucket `from` on, those that had a packet since a time or
    /// all, and says where to go on. Looks at [`BUCKETS`] buckets at most.
    pub(crate) fn hand_over(
        &self,
        now: Moment,
        from: usize,
        since: Option<Moment>,
        into: &mut Vec<u8>,
    ) -> Option<usize> {
        let (now, since) = (milliseconds(now), since.map(milliseconds));
        let room = into.len() + RECORDS * RECORD;
        let end = self.buckets.len().min(from.saturating_add(BUCKETS));
        for bucket in from..end {
            for way in 0..WAYS {
                if let Some(handed) = self.handed(bucket, way, now, since) {
                    handed.emit(into);
                }
            }
            if into.len() >= room {
                return (bucket + 1 < self.buckets.len()).then_some(bucket + 1);
            }
        }
        (end < self.buckets.len()).then_some(end)
    }

    /// The connection of an entry that was used since then, if it is not told by its other entry.
    fn handed(&self, bucket: usize, way: usize, now: u32, since: Option<u32>) -> Option<Handed> {
        let slots = &self.buckets[bucket];
        let is_used =
            |used: u32| since.is_none_or(|since| used.wrapping_sub(since).cast_signed() >= 0);
        if slots.tags[way] == 0 || !is_used(slots.used[way]) {
            return None;
        }
        let entry = &self.entries[bucket * WAYS + way];
        let (index, direction) = entry.link.get()?;
        let connection = self.connections.get(index);
        // One that has lost an entry for want of room comes back as a stranger.
        let forward = connection.entry(Direction::Forward)?;
        let back = connection.entry(Direction::Back)?;
        let used = [forward, back].map(|slot| self.buckets[slot.bucket()].used[slot.way()]);
        if direction == Direction::Back && is_used(used[0]) {
            return None;
        }
        let keys = [self.entry(forward).key, self.entry(back).key];
        Some(Handed {
            edits: if entry.is_translated { Some(edits(&keys)?) } else { None },
            keys,
            tcp: connection.tcp,
            tracked: connection.tracked,
            is_answered: connection.is_answered,
            idle: used.map(|used| now.wrapping_sub(used)),
            age: now.wrapping_sub(connection.made),
            owner: self.entry(forward).owner.0,
        })
    }

    /// Goes on with a connection of another process, whose keys and owner are in our places
    /// already. What had its keys here ends. `false`: there is no room.
    pub(crate) fn take_over(&mut self, now: Moment, handed: &Handed, owner: PortIndex) -> bool {
        let time = milliseconds(now);
        let made = time.wrapping_sub(handed.age);
        // The process before may not have asked the rules in force about it yet.
        let generation = self.generation().wrapping_sub(1);
        let mut connection = Connection::new(handed.tracked, handed.tcp, generation, made);
        connection.is_answered = handed.is_answered;
        let flows: [Hashed; 2] = handed.keys.map(|key| self.hashed(key));
        let edits = handed.edits.as_ref();
        let Ok(index) = self.open(now, &flows, owner, connection, edits) else { return false };
        for (direction, idle) in [Direction::Forward, Direction::Back].into_iter().zip(handed.idle)
        {
            if let Some(slot) = self.connection(index).entry(direction) {
                debug_assert_eq!(self.entry(slot).link, Link::new(index, direction), "just made");
                self.buckets[slot.bucket()].used[slot.way()] = time.wrapping_sub(idle);
            }
        }
        true
    }
}
