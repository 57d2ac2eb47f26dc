// SPDX-License-Identifier: Apache-2.0
//! Requests in, to the disk that has their group, and answers out.
//!
//! ```text
//!   submit ─▶ group held? ── yes ─▶ held, in order ── let go ─┐
//!                │ no                                         │
//!                └──────▶ number ─▶ store of the disk ◀───────┘
//! ```
//! While the pool has had one disk only, requests pass with the tag they came with: one branch.

use crate::map::{GROUPS, Map};
use crate::mover::Mover;
use crate::route::{Dirt, Route, dirt, route};
use crate::seats::Seat;
use crate::start::Member;
use plinth_ids::{DiskId, Moment, PoolId};
use plinth_store::{
    BufferPool, IoBuffer, LIST_MAX, Level, ObjectId, ObjectKey, ObjectStatus, ObjectStore, PgId,
    Sight, StoreAnswer, StoreCapacity, StoreCompletion, StoreRefusal, StoreRequest, StoreState,
    StoreTag,
};
use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// The most requests that a disk has of the mover and of the map's writer.
pub(crate) const OWN_REQUESTS: usize = 16;

/// Bytes of free buffers that are kept.
const BUFFER_BYTES: usize = 32 << 20;

/// The group of what is every disk's own: its map.
pub(crate) const OWN_PG: PgId = PgId(u32::MAX);

/// What is known of a group, beside its entry in the map.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Group {
    /// The seat of its disk, `None` when that is not there or must not be asked.
    pub(crate) seat: Option<u8>,
    /// Its requests wait.
    pub(crate) is_held: bool,
    /// Changes say what they change, because the group is being copied.
    pub(crate) is_tracked: bool,
    /// Requests that a store has, and how many of those are changes that did not say.
    pub(crate) in_flight: u32,
    pub(crate) untracked: u32,
}

/// A request that stores have.
#[derive(Debug)]
pub(crate) enum Op {
    One {
        tag: StoreTag,
        group: u16,
        seat: u8,
        is_change: bool,
        dirt: Option<Vec<(ObjectKey, Dirt)>>,
    },
    List {
        tag: StoreTag,
        rest: RangeInclusive<ObjectKey>,
        limit: usize,
        found: Vec<ObjectStatus>,
    },
    Flush {
        tag: StoreTag,
        left: usize,
        refusal: Option<StoreRefusal>,
    },
    /// The mover's, with its own number for it.
    Move(u32),
    /// The map was sent to the disk of this seat.
    Map {
        seat: usize,
    },
}

/// A protection to leave out, so that the simulation can show that it would notice.
/// Programs always say `Nothing`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Omit {
    #[default]
    Nothing,
    /// Does not copy again what changed while it was copied.
    Dirt,
    /// Does not hold the group's requests while the last bytes are copied.
    Hold,
    /// Removes the source's copy before the switch is durable.
    SwitchBeforeClear,
    /// Does not clear what an earlier try left on the target.
    ClearTarget,
    /// Does not remove what a crash left on disks that do not own it.
    Sweep,
    /// Does not copy those again that were compared with what changed.
    Relatives,
    /// Does not copy keys.
    Keys,
    /// Leaves objects the versions that the target gave them.
    Versions,
    /// Does not lift the target's versions over the source's.
    LiftVersions,
    /// Does not copy again what is appended to the log while it is copied.
    Log,
    /// Leaves logs where groups are cleared.
    ClearLog,
}

/// What there is when the pool has, or had, several disks.
#[derive(Debug)]
pub(crate) struct Many {
    pub(crate) map: Map,
    pub(crate) groups: Vec<Group>,
    pub(crate) ops: Vec<Option<Op>>,
    pub(crate) free: Vec<u32>,
    /// Requests of the owner on their way, held ones not counted.
    pub(crate) requests: usize,
    /// How many may be, held ones included: what the narrowest disk takes, less what the span
    /// itself asks of a disk. One request is at most one of each disk at a time.
    pub(crate) limit: usize,
    pub(crate) lists: usize,
    pub(crate) held: VecDeque<(StoreTag, StoreRequest)>,
    pub(crate) mover: Mover,
    pub(crate) writing: Writing,
    pub(crate) completions: Vec<StoreCompletion>,
}

/// The map on its way to the disks.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    /// It changed since it was last sent.
    pub(crate) is_wanted: bool,
    /// The first one did not take it.
    pub(crate) has_failed: bool,
    /// The seat that must have it before others, while that one writes.
    pub(crate) first: Option<usize>,
    pub(crate) left: usize,
}

/// Stores that act as one. One owner calls it; see the crate's first page.
#[derive(Debug)]
pub struct Span<S> {
    pub(crate) pool: PoolId,
    pub(crate) seats: Vec<Option<Seat<S>>>,
    /// `None` while the pool has had one disk only.
    pub(crate) many: Option<Box<Many>>,
    /// Requests that the only store has, and disks that wait for them to end.
    pub(crate) alone: usize,
    pub(crate) joining: Vec<Member<S>>,
    pub(crate) buffers: BufferPool,
    pub(crate) omit: Omit,
    /// Bytes a second that moves may read, which a mover that is yet to come begins with.
    pub(crate) rate: u64,
    /// Rises whenever a disk comes or goes.
    pub(crate) version: u64,
    /// The seat of the last sight, which expects bytes.
    sighted: u8,
    answers: Vec<StoreCompletion>,
}

impl Many {
    pub(crate) fn insert(&mut self, op: Op) -> StoreTag {
        if let Some(number) = self.free.pop() {
            self.ops[number as usize] = Some(op);
            return StoreTag(u64::from(number));
        }
        self.ops.push(Some(op));
        StoreTag(self.ops.len() as u64 - 1)
    }

    fn take(&mut self, tag: StoreTag) -> Option<Op> {
        let number = u32::try_from(tag.0).ok()?;
        let op = self.ops.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(op)
    }

    pub(crate) fn refuse(&mut self, tag: StoreTag, request: StoreRequest, refusal: StoreRefusal) {
        let buffer = match request {
            StoreRequest::Read { buffer, .. } | StoreRequest::Write { buffer, .. } => Some(buffer),
            _ => None,
        };
        self.completions.push(StoreCompletion { tag, buffer, result: Err(refusal) });
    }

    /// Whether a request must wait behind those that are held.
    fn must_wait(&self, route: Route) -> bool {
        match route {
            Route::Group { key, .. } => {
                self.groups.get(key.pg.0 as usize).is_some_and(|group| group.is_held)
            }
            // Both promise something about every change that was submitted before.
            Route::Range | Route::All => !self.held.is_empty(),
            Route::Nowhere => false,
        }
    }
}

impl<S: ObjectStore> Span<S> {
    pub(crate) fn with_seats(pool: PoolId, seats: Vec<Option<Seat<S>>>) -> Self {
        Self {
            pool,
            seats,
            many: None,
            alone: 0,
            joining: Vec::new(),
            buffers: BufferPool::new(BUFFER_BYTES),
            omit: Omit::Nothing,
            rate: crate::mover::RATE_DEFAULT,
            version: 0,
            sighted: 0,
            answers: Vec::new(),
        }
    }

    /// For the simulation alone.
    pub fn omit(&mut self, omit: Omit) {
        self.omit = omit;
    }

    /// Rises whenever the disks that are there become others.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Whether a group's disk is there, so that its objects can be read.
    pub fn has_group(&self, group: usize) -> bool {
        let Some(many) = &self.many else { return true };
        many.groups.get(group).is_some_and(|group| group.seat.is_some())
    }

    /// The disk that keeps a group from being asked: its owner, or the one it was on its way to.
    pub fn missing_of(&self, group: usize) -> Option<DiskId> {
        let entry = self.many.as_ref()?.map.groups.get(group)?;
        let disks = [Some(entry.owner), entry.target];
        disks.into_iter().flatten().find(|&disk| self.seat_of(disk).is_none())
    }

    fn only(&mut self) -> &mut S {
        &mut self.seats[0].as_mut().expect("a span without a map has one seat").store
    }

    /// Gives a request to whoever has its group. There is room in the slab of requests.
    pub(crate) fn send(&mut self, tag: StoreTag, request: StoreRequest) {
        let Some(many) = &mut self.many else { return };
        match route(&request) {
            Route::Group { key, is_change } => self.send_one(tag, key, is_change, request),
            Route::Range => self.send_list(tag, request),
            Route::All => self.send_to_all(tag, &request),
            Route::Nowhere => many.refuse(tag, request, StoreRefusal::TransactionTooLarge),
        }
    }

    fn send_one(&mut self, tag: StoreTag, key: ObjectKey, is_change: bool, request: StoreRequest) {
        let Some(many) = &mut self.many else { return };
        let pg = key.pg.0;
        let group = usize::try_from(pg).unwrap_or(usize::MAX);
        let Some(known) = many.groups.get_mut(group) else {
            return many.refuse(tag, request, StoreRefusal::BadGroup { key });
        };
        let Some(number) = known.seat else {
            return many.refuse(tag, request, StoreRefusal::DiskOut { key });
        };
        let place = self.seats.get_mut(usize::from(number)).and_then(Option::as_mut);
        let Some(seat) = place.filter(|seat| seat.read_failures < crate::seats::READ_FAILURES_MAX)
        else {
            return many.refuse(tag, request, StoreRefusal::DiskOut { key });
        };
        let dirt = (is_change && known.is_tracked).then(|| dirt(&request));
        let group16 = u16::try_from(group).unwrap_or(u16::MAX);
        known.in_flight += 1;
        known.untracked += u32::from(is_change && dirt.is_none());
        let op = Op::One { tag, group: group16, seat: number, is_change, dirt };
        let inner = many.insert(op);
        many.requests += 1;
        // Every disk has room for all that is let in: see `Many::limit`.
        assert!(seat.store.submit(inner, request).is_ok(), "the disk has room for every request");
    }

    fn send_to_all(&mut self, tag: StoreTag, request: &StoreRequest) {
        let is_turn = matches!(request, StoreRequest::TurnJournal);
        let Some(many) = &mut self.many else { return };
        let inner = many.insert(Op::Flush { tag, left: 0, refusal: None });
        many.requests += 1;
        let mut sent = 0;
        // A disk that failed has refused whatever was not durable on it.
        for seat in self.seats.iter_mut().flatten().filter(|seat| seat.is_working()) {
            let request = if is_turn { StoreRequest::TurnJournal } else { StoreRequest::Flush };
            let taken = seat.store.submit(inner, request);
            assert!(taken.is_ok(), "the disk has room for every request");
            sent += 1;
        }
        if let Some(Some(Op::Flush { left, .. })) = many.ops.get_mut(index(inner)) {
            *left = sent;
        }
        if sent == 0 {
            many.end(inner, Ok(StoreAnswer::Flushed), None);
        }
    }

    fn send_list(&mut self, tag: StoreTag, request: StoreRequest) {
        let Some(many) = &mut self.many else { return };
        let StoreRequest::List { range, limit } = request else { return };
        let limit = limit.clamp(1, LIST_MAX);
        let inner = many.insert(Op::List { tag, rest: range, limit, found: Vec::new() });
        many.requests += 1;
        many.lists += 1;
        self.go_on_with_list(inner);
    }

    /// Asks the disk that has the next groups of a listing, or ends it.
    fn go_on_with_list(&mut self, inner: StoreTag) {
        let Some(many) = &mut self.many else { return };
        let Some(Some(Op::List { rest, limit, found, .. })) = many.ops.get_mut(index(inner)) else {
            return;
        };
        let first = rest.start().pg.0 as usize;
        if rest.start() > rest.end() || first >= GROUPS {
            let objects = std::mem::take(found);
            return many.end(inner, Ok(StoreAnswer::Listed { objects, next: None }), None);
        }
        if found.len() >= *limit {
            let (objects, next) = (std::mem::take(found), Some(*rest.start()));
            return many.end(inner, Ok(StoreAnswer::Listed { objects, next }), None);
        }
        let Some(number) = many.groups[first].seat else {
            let refusal = StoreRefusal::DiskOut { key: *rest.start() };
            return many.end(inner, Err(refusal), None);
        };
        // Keys of other pools are nobody's: the range is within one.
        let same = |group: &Group| group.seat == Some(number);
        let run = many.groups[first..].iter().take_while(|group| same(group)).count();
        let end = last_of(rest.start().pool, first + run - 1).min(*rest.end());
        let part = StoreRequest::List { range: *rest.start()..=end, limit: *limit - found.len() };
        *rest = successor(&end)..=*rest.end();
        let seat = self.seats[usize::from(number)].as_mut().expect("a group's seat is there");
        let taken = seat.store.submit(inner, part);
        assert!(taken.is_ok(), "the disk has room for every request");
    }

    fn settle_answer(&mut self, seat: usize, completion: StoreCompletion) {
        let StoreCompletion { tag: inner, buffer, result } = completion;
        let Some(many) = &mut self.many else { return };
        match many.ops.get_mut(index(inner)) {
            Some(Some(Op::One { .. })) => self.settle_one(inner, buffer, result),
            Some(Some(Op::List { found, rest, .. })) => match result {
                Ok(StoreAnswer::Listed { objects, next }) => {
                    found.extend(objects);
                    if let Some(next) = next {
                        *rest = next..=*rest.end();
                    }
                    self.go_on_with_list(inner);
                }
                Ok(_) => unreachable!("a list is answered by a list"),
                Err(refusal) => many.end(inner, Err(refusal), None),
            },
            Some(Some(Op::Flush { left, refusal, .. })) => {
                *left -= 1;
                *refusal = refusal.or(result.err());
                if *left == 0 {
                    let result = refusal.map_or(Ok(StoreAnswer::Flushed), Err);
                    many.end(inner, result, None);
                }
            }
            Some(Some(Op::Move(number))) => {
                let number = *number;
                many.take(inner);
                self.move_answer(number, buffer, result);
            }
            Some(Some(Op::Map { seat: of })) => {
                debug_assert_eq!(*of, seat, "the map's answer comes from where it was sent");
                many.take(inner);
                if let Some(buffer) = buffer {
                    self.buffers.put(buffer);
                }
                self.map_written(seat, result.is_ok());
            }
            Some(None) | None => {}
        }
    }

    fn settle_one(
        &mut self,
        inner: StoreTag,
        buffer: Option<IoBuffer>,
        result: Result<StoreAnswer, StoreRefusal>,
    ) {
        let Some(many) = &mut self.many else { return };
        let Some(Op::One { tag, group, seat, is_change, dirt }) = many.take(inner) else { return };
        many.requests -= 1;
        let known = &mut many.groups[usize::from(group)];
        known.in_flight -= 1;
        known.untracked -= u32::from(is_change && dirt.is_none());
        if let Some(seat) = &mut self.seats[usize::from(seat)] {
            match &result {
                Ok(StoreAnswer::Read) => seat.read_failures = 0,
                Err(StoreRefusal::ReadFailed { .. }) => seat.read_failures += 1,
                Ok(_) | Err(_) => {}
            }
        }
        // Also of a change that was refused: who knows how far it came.
        if self.omit != Omit::Dirt {
            many.mover.note(group, dirt);
        }
        many.completions.push(StoreCompletion { tag, buffer, result });
    }

    /// Lets go what was held and may go on, in order.
    fn send_held(&mut self) -> bool {
        let Some(many) = &mut self.many else { return false };
        if many.held.is_empty() {
            return false;
        }
        let mut has_moved = false;
        let waiting = std::mem::take(&mut many.held);
        for (tag, request) in waiting {
            let Some(many) = &mut self.many else { return has_moved };
            if many.must_wait(route(&request)) {
                many.held.push_back((tag, request));
            } else {
                has_moved = true;
                self.send(tag, request);
            }
        }
        has_moved
    }
}

impl<S: ObjectStore> ObjectStore for Span<S> {
    fn submit(&mut self, tag: StoreTag, request: StoreRequest) -> Result<(), StoreRequest> {
        let Some(many) = &mut self.many else {
            if !self.joining.is_empty() {
                return Err(request);
            }
            self.only().submit(tag, request)?;
            self.alone += 1;
            return Ok(());
        };
        if many.requests + many.held.len() >= many.limit {
            return Err(request);
        }
        // What is held goes first wherever it may matter to the order.
        if many.must_wait(route(&request)) {
            many.held.push_back((tag, request));
        } else {
            self.send(tag, request);
        }
        Ok(())
    }

    fn poll(&mut self, now: Moment, into: &mut Vec<StoreCompletion>) -> bool {
        if self.many.is_none() {
            let before = into.len();
            let has_moved = self.only().poll(now, into);
            self.alone -= into.len() - before;
            return has_moved | self.admit_joining();
        }
        let mut has_moved = self.send_held();
        let mut answers = std::mem::take(&mut self.answers);
        for number in 0..self.seats.len() {
            let Some(seat) = &mut self.seats[number] else { continue };
            has_moved |= seat.store.poll(now, &mut answers);
            for answer in answers.drain(..) {
                self.settle_answer(number, answer);
            }
        }
        self.answers = answers;
        has_moved |= self.admit_joining();
        has_moved |= self.advance_writing();
        has_moved |= self.advance_mover(now);
        has_moved |= self.send_held();
        if let Some(many) = &mut self.many {
            has_moved |= !many.completions.is_empty();
            into.append(&mut many.completions);
        }
        has_moved
    }

    fn room(&self) -> usize {
        match &self.many {
            Some(many) => many.limit.saturating_sub(many.requests + many.held.len()),
            None if self.joining.is_empty() => {
                self.seats[0].as_ref().map_or(0, |seat| seat.store.room())
            }
            None => 0,
        }
    }

    fn is_idle(&self) -> bool {
        let is_quiet = |many: &Many| {
            many.ops.len() == many.free.len()
                && many.held.is_empty()
                && many.completions.is_empty()
                && !many.writing.is_wanted
                && many.mover.is_resting()
        };
        self.joining.is_empty()
            && self.many.as_deref().is_none_or(is_quiet)
            && self.seats.iter().flatten().all(|seat| seat.store.is_idle())
    }

    /// That of the first disk that takes changes. [`Span::disks`] has those that do not.
    fn state(&self) -> StoreState {
        let mut states = self.seats.iter().flatten().map(|seat| seat.store.state());
        let first = states.clone().find(|state| *state == StoreState::Writable);
        first.or_else(|| states.next()).unwrap_or(StoreState::Writable)
    }

    fn capacity(&self) -> StoreCapacity {
        let none = StoreCapacity {
            total: 0,
            used: 0,
            shared: 0,
            objects: 0,
            objects_max: 0,
            level: Level::Ok,
        };
        let sum = |sum: StoreCapacity, one: StoreCapacity| StoreCapacity {
            total: sum.total + one.total,
            used: sum.used + one.used,
            shared: sum.shared + one.shared,
            objects: sum.objects + one.objects,
            objects_max: sum.objects_max + one.objects_max,
            level: sum.level.max(one.level),
        };
        self.seats.iter().flatten().map(|seat| seat.store.capacity()).fold(none, sum)
    }

    fn take_buffer(&mut self, length: usize) -> IoBuffer {
        if self.many.is_none() {
            self.only().take_buffer(length)
        } else {
            self.buffers.take(length)
        }
    }

    fn put_buffer(&mut self, buffer: IoBuffer) {
        if self.many.is_none() {
            self.only().put_buffer(buffer);
        } else {
            self.buffers.put(buffer);
        }
    }

    fn lends(&self) -> bool {
        self.seats.iter().flatten().all(|seat| seat.store.lends())
    }

    #[inline]
    fn sight(&mut self, key: &ObjectKey, offset: u32, length: u32) -> Option<Sight> {
        let number = match &self.many {
            None => 0,
            Some(many) => {
                let group = many.groups.get(usize::try_from(key.pg.0).ok()?)?;
                group.seat.filter(|_| !group.is_held)?
            }
        };
        let seat = self.seats.get_mut(usize::from(number))?.as_mut()?;
        if seat.read_failures >= crate::seats::READ_FAILURES_MAX {
            return None;
        }
        let mut sight = seat.store.sight(key, offset, length)?;
        sight.place = number;
        self.sighted = number;
        Some(sight)
    }

    #[inline]
    fn view(&mut self, sight: &Sight) -> Option<&[u8]> {
        self.seats.get_mut(usize::from(sight.place))?.as_mut()?.store.view(sight)
    }

    #[inline]
    fn fetch(&mut self) {
        if let Some(Some(seat)) = self.seats.get_mut(usize::from(self.sighted)) {
            seat.store.fetch();
        }
    }
}

impl Many {
    /// Ends a list or flush.
    fn end(
        &mut self,
        inner: StoreTag,
        result: Result<StoreAnswer, StoreRefusal>,
        buffer: Option<IoBuffer>,
    ) {
        match self.take(inner) {
            Some(Op::List { tag, .. }) => {
                self.lists -= 1;
                self.requests -= 1;
                self.completions.push(StoreCompletion { tag, buffer, result });
            }
            Some(Op::Flush { tag, .. }) => {
                self.requests -= 1;
                self.completions.push(StoreCompletion { tag, buffer, result });
            }
            Some(_) | None => unreachable!("only lists and flushes end here"),
        }
    }
}

pub(crate) fn index(tag: StoreTag) -> usize {
    usize::try_from(tag.0).unwrap_or(usize::MAX)
}

/// The last key there can be in a group.
pub(crate) fn last_of(pool: PoolId, group: usize) -> ObjectKey {
    let pg = PgId(u32::try_from(group).unwrap_or(u32::MAX));
    ObjectKey { pool, pg, object: ObjectId(u128::MAX), snapshot: u64::MAX }
}

pub(crate) fn first_of(pool: PoolId, group: usize) -> ObjectKey {
    let pg = PgId(u32::try_from(group).unwrap_or(u32::MAX));
    ObjectKey { pool, pg, object: ObjectId(0), snapshot: 0 }
}

/// The key behind another one.
pub(crate) fn successor(key: &ObjectKey) -> ObjectKey {
    let mut next = *key;
    if let Some(snapshot) = next.snapshot.checked_add(1) {
        next.snapshot = snapshot;
        return next;
    }
    next.snapshot = 0;
    if let Some(object) = next.object.0.checked_add(1) {
        next.object.0 = object;
        return next;
    }
    next.object.0 = 0;
    if let Some(pg) = next.pg.0.checked_add(1) {
        next.pg.0 = pg;
        return next;
    }
    next.pg.0 = 0;
    // The last key of all has none behind it; nobody asks for that one's successor's successor.
    next.pool.0 = next.pool.0.wrapping_add(1);
    next
}
