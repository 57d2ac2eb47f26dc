// SPDX-License-Identifier: Apache-2.0
//! Disks come together to a pool, join it, and leave it.

use crate::map::{DISKS_MAX, DiskEntry, GROUPS, MAP_BYTES, Map, MapError, Standing};
use crate::mover::Mover;
use crate::seats::Seat;
use crate::span::{Group, Many, OWN_PG, OWN_REQUESTS, Op, Span, Writing};
use plinth_ids::{DiskId, Moment, PoolId};
use plinth_store::{
    IoBuffer, ObjectId, ObjectKey, ObjectStore, Operation, StoreAnswer, StoreCompletion,
    StoreRefusal, StoreRequest, StoreTag,
};
use std::collections::VecDeque;

/// A mounted disk that is to be of a pool.
#[derive(Debug)]
pub struct Member<S> {
    pub disk: DiskId,
    /// What tells the disk from all others: the number that its store was formatted with.
    pub serial: [u8; 16],
    pub store: S,
    /// What [`read_map`] found.
    pub map: Option<Map>,
}

/// Why a disk is not taken into a pool.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum JoinError {
    #[error("the disk is of {pool}: take another one, or format it")]
    OtherPool { pool: PoolId },
    #[error("the disk is {number} of its pool: say so in the configuration")]
    OtherNumber { number: DiskId },
    #[error("it is not the disk that the pool has under this number: give a new disk a new number")]
    NotTheDisk,
    #[error("the disk left the pool for good: format it, and give it a new number")]
    Left,
    #[error("the disk has objects, but no map of its pool: format it if they are not needed")]
    HasObjects,
    #[error("a disk with this number is in service")]
    Twice,
    #[error("the pool has had 64 disks, which is the most there can be")]
    TooMany,
    #[error("the disk takes too few requests at a time for a pool of several disks")]
    TooFewRequests,
}

/// Why the disks that are there are no pool.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StartError {
    #[error("none of the pool's disks can be used")]
    NoDisk,
    #[error(
        "no disk that is there has a map of the pool, and {missing} is missing: bring it back, or \
         take it out of the configuration if the pool is new"
    )]
    NoMap { missing: DiskId },
}

/// Why a disk cannot be forgotten.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LeaveError {
    #[error("the pool has no such disk")]
    Unknown,
    #[error("it is the pool's only disk")]
    Last,
    #[error("{groups} placement groups are on it: drain it first")]
    Needed { groups: usize },
    #[error("{objects} objects of moved groups are still being removed from it: try again soon")]
    Cleaning { objects: u64 },
}

/// A disk that was not taken, and why.
#[derive(Debug)]
pub struct Refused<S> {
    pub member: Member<S>,
    pub error: JoinError,
}

/// A pool, and the disks that are none of it.
pub type Started<S> = (Span<S>, Vec<Refused<S>>);

/// The same for every pool, so that a disk of another one is recognised. The pool is the last
/// number that the store leaves to its users.
const fn map_key() -> ObjectKey {
    ObjectKey { pool: PoolId((1 << 30) - 1), pg: OWN_PG, object: ObjectId(1), snapshot: 0 }
}

/// Reads a disk's map of its pool, polling until it is there.
///
/// # Errors
/// When there is one that cannot be read. None at all is no error.
pub fn read_map<S: ObjectStore>(store: &mut S) -> Result<Option<(DiskId, Map)>, MapError> {
    let ask = |store: &mut S, request: StoreRequest| {
        store.submit(StoreTag(0), request).map_err(|_| MapError::Read)?;
        let mut ended: Vec<StoreCompletion> = Vec::new();
        // Until nothing at all is under way: the disk may go to another thread after this.
        while ended.is_empty() || !store.is_idle() {
            store.poll(Moment::ZERO, &mut ended);
        }
        ended.pop().ok_or(MapError::Read)
    };
    let key = map_key();
    match ask(store, StoreRequest::Attributes { key })?.result {
        Err(StoreRefusal::NotFound { .. }) => return Ok(None),
        Err(_) => return Err(MapError::Read),
        Ok(_) => {}
    }
    let length = u32::try_from(MAP_BYTES).unwrap_or(0);
    let buffer = IoBuffer::zeroed(MAP_BYTES);
    let read = ask(store, StoreRequest::Read { key, offset: 0, length, buffer })?;
    match (read.result, read.buffer) {
        (Ok(StoreAnswer::Read), Some(buffer)) => Map::parse(buffer.as_bytes()).map(Some),
        _ => Err(MapError::Read),
    }
}

impl<S: ObjectStore> Span<S> {
    /// A pool of one disk, as long as no other joins.
    pub fn of_one(pool: PoolId, disk: DiskId, serial: [u8; 16], store: S) -> Self {
        let seat = Seat { disk, store, serial, read_failures: 0, has_left: false };
        Self::with_seats(pool, vec![Some(seat)])
    }

    /// Brings the disks of a pool together. Those that are not the pool's come back. `missing`
    /// are those that should be there too.
    ///
    /// # Errors
    /// When what is there is no pool. All disks come back.
    pub fn start(
        pool: PoolId,
        mut members: Vec<Member<S>>,
        missing: &[DiskId],
    ) -> Result<Started<S>, (StartError, Vec<Member<S>>)> {
        let has_map = |member: &Member<S>| member.map.is_some();
        if members.len() == 1
            && missing.is_empty()
            && let Some(only) = members.pop_if(|member| !has_map(member))
        {
            return Ok((Self::of_one(pool, only.disk, only.serial, only.store), Vec::new()));
        }
        if members.is_empty() {
            return Err((StartError::NoDisk, members));
        }
        // Those with a map first, then the one with objects: it had the pool for itself.
        members.sort_by_key(|member| {
            (!has_map(member), member.store.capacity().objects == 0, member.disk)
        });
        let (mut refused, mut span) = (Vec::new(), None::<Self>);
        let mut rest = VecDeque::from(members);
        while let Some(member) = rest.pop_front() {
            let Some(known) = &mut span else {
                if let (None, Some(&missing)) = (&member.map, missing.first()) {
                    rest.push_front(member);
                    rest.extend(refused.into_iter().map(|refused: Refused<S>| refused.member));
                    return Err((StartError::NoMap { missing }, rest.into()));
                }
                match Self::found(pool, member) {
                    Ok(found) => span = Some(found),
                    Err(error) => refused.push(error),
                }
                continue;
            };
            refused.extend(known.take_in(member).err());
        }
        let Some(mut span) = span else {
            let all = refused.into_iter().map(|refused| refused.member).collect();
            return Err((StartError::NoDisk, all));
        };
        span.spread_if_empty();
        Ok((span, refused))
    }

    /// The pool as its first disk knows it.
    fn found(pool: PoolId, mut member: Member<S>) -> Result<Self, Refused<S>> {
        let own = member.map.take();
        let map = match own {
            Some(map) => match judge(&map, pool, &member) {
                Ok(()) => map,
                Err(error) => return Err(Refused { member, error }),
            },
            None => Map::of_one(pool, member.disk, member.serial, member.store.capacity().total),
        };
        if member.store.room() <= OWN_REQUESTS {
            return Err(Refused { member, error: JoinError::TooFewRequests });
        }
        let mut span = Self::with_seats(pool, Vec::new());
        span.become_many(map);
        span.seat(member);
        Ok(span)
    }

    pub(crate) fn become_many(&mut self, map: Map) {
        let limit = self.seats.iter().flatten().map(|seat| seat.store.room()).min();
        self.many = Some(Box::new(Many {
            map,
            groups: vec![Group::default(); GROUPS],
            ops: Vec::new(),
            free: Vec::new(),
            requests: 0,
            lists: 0,
            limit: limit.map_or(usize::MAX, |room| room.saturating_sub(OWN_REQUESTS)),
            held: VecDeque::new(),
            mover: Mover::new(self.rate),
            writing: Writing { is_wanted: true, ..Writing::default() },
            completions: Vec::new(),
        }));
        self.seat_groups();
    }

    /// A pool without objects needs no moves: its groups are where they belong from the first.
    fn spread_if_empty(&mut self) {
        let is_empty = self.seats.iter().flatten().all(|seat| seat.store.capacity().objects == 0);
        let Some(many) = self.many.as_mut().filter(|_| is_empty) else { return };
        for group in 0..GROUPS {
            if let Some(place) = many.map.place(group) {
                let entry = &mut many.map.groups[group];
                entry.owner = place;
                entry.version += 1;
            }
        }
        self.seat_groups();
    }

    /// Takes another disk in while the pool is served.
    ///
    /// # Errors
    /// Gives the disk back when it is not the pool's, or cannot become so.
    pub fn join(&mut self, member: Member<S>) -> Result<(), Refused<S>> {
        if self.many.is_some() {
            return self.take_in(member);
        }
        let known = self.seats.iter().flatten().map(|seat| seat.disk);
        let waiting = self.joining.iter().map(|member| member.disk);
        let error = if known.chain(waiting).any(|disk| disk == member.disk) {
            JoinError::Twice
        } else if member.map.is_some() {
            // The pool has no map, so whatever map this is, it is none of this pool.
            JoinError::OtherPool { pool: member.map.as_ref().map_or(self.pool, |map| map.pool) }
        } else if member.store.capacity().objects > 0 {
            JoinError::HasObjects
        } else if member.store.room() <= OWN_REQUESTS {
            JoinError::TooFewRequests
        } else {
            self.joining.push(member);
            return Ok(());
        };
        Err(Refused { member, error })
    }

    /// Goes over to a map once the only store has nothing under way.
    pub(crate) fn admit_joining(&mut self) -> bool {
        if self.joining.is_empty() || self.alone > 0 {
            return false;
        }
        if self.many.is_none()
            && let Some(Some(only)) = self.seats.first()
        {
            let weight = only.store.capacity().total;
            self.become_many(Map::of_one(self.pool, only.disk, only.serial, weight));
        }
        for member in std::mem::take(&mut self.joining) {
            // It was judged when it came.
            let _ = self.take_in(member);
        }
        true
    }

    fn take_in(&mut self, mut member: Member<S>) -> Result<(), Refused<S>> {
        let refuse = |member, error| Err(Refused { member, error });
        let Some(many) = &mut self.many else { return refuse(member, JoinError::HasObjects) };
        if self.seats.iter().flatten().any(|seat| seat.disk == member.disk) {
            return refuse(member, JoinError::Twice);
        }
        if member.store.room() <= OWN_REQUESTS {
            return refuse(member, JoinError::TooFewRequests);
        }
        if let Some(map) = member.map.take() {
            if let Err(error) = judge(&map, self.pool, &member) {
                return refuse(member, error);
            }
            let before = many.map.clone();
            many.map.merge(&map);
            if let Err(error) = judge(&many.map, self.pool, &member) {
                many.map = before;
                return refuse(member, error);
            }
            many.writing.is_wanted |= many.map != map || many.map != before;
        } else {
            if many.map.disks.contains_key(&member.disk) {
                // A crash may have come before its first map: then the number tells.
                if let Err(error) = judge(&many.map, self.pool, &member) {
                    return refuse(member, error);
                }
                many.writing.is_wanted = true;
                self.seat(member);
                return Ok(());
            }
            if member.store.capacity().objects > 0 {
                return refuse(member, JoinError::HasObjects);
            }
            if many.map.disks.len() == DISKS_MAX {
                return refuse(member, JoinError::TooMany);
            }
            let weight = member.store.capacity().total;
            let (standing, serial) = (Standing::In, member.serial);
            let entry = DiskEntry { standing, version: 1, serial, weight };
            many.map.disks.insert(member.disk, entry);
            many.writing.is_wanted = true;
        }
        self.seat(member);
        Ok(())
    }

    fn seat(&mut self, member: Member<S>) {
        let Member { disk, serial, store, .. } = member;
        let room = store.room().saturating_sub(OWN_REQUESTS);
        self.version += 1;
        let seat = Some(Seat { disk, store, serial, read_failures: 0, has_left: false });
        let number = match self.seats.iter().position(Option::is_none) {
            Some(number) => {
                self.seats[number] = seat;
                number
            }
            None => {
                self.seats.push(seat);
                self.seats.len() - 1
            }
        };
        if let Some(many) = &mut self.many {
            many.limit = many.limit.min(room);
            many.mover.sweep(number);
        }
        self.seat_groups();
    }

    /// Finds the seats of all groups anew.
    pub(crate) fn seat_groups(&mut self) {
        let seats: Vec<_> = self.seats.iter().map(|seat| seat.as_ref().map(|s| s.disk)).collect();
        let Some(many) = &mut self.many else { return };
        let seat_of = |disk: DiskId| {
            let place = seats.iter().position(|known| *known == Some(disk))?;
            u8::try_from(place).ok()
        };
        for (group, entry) in many.groups.iter_mut().zip(&many.map.groups) {
            // Half of a move cannot know whether the other half saw its end.
            let is_whole = entry.target.is_none_or(|target| seat_of(target).is_some());
            group.seat = seat_of(entry.owner).filter(|_| is_whole);
        }
        many.mover.look_again();
    }

    /// Says that a disk is to be emptied, or is not any more.
    ///
    /// # Errors
    /// When the pool has no such disk, or no other one.
    pub fn set_draining(&mut self, disk: DiskId, is_draining: bool) -> Result<(), LeaveError> {
        let Some(many) = &mut self.many else {
            let is_it = self.seats.iter().flatten().any(|seat| seat.disk == disk);
            return match (is_it, is_draining) {
                (false, _) => Err(LeaveError::Unknown),
                (true, true) => Err(LeaveError::Last),
                (true, false) => Ok(()),
            };
        };
        let is_other = |(&other, entry): (&DiskId, &DiskEntry)| {
            other != disk && entry.standing == Standing::In
        };
        let has_other = many.map.disks.iter().any(is_other);
        let entry = many.map.disks.get_mut(&disk).filter(|disk| disk.standing != Standing::Left);
        let entry = entry.ok_or(LeaveError::Unknown)?;
        if is_draining && !has_other {
            return Err(LeaveError::Last);
        }
        let standing = if is_draining { Standing::Draining } else { Standing::In };
        if entry.standing != standing {
            entry.standing = standing;
            entry.version += 1;
            many.writing.is_wanted = true;
            many.mover.look_again();
        }
        Ok(())
    }

    /// Forgets a disk that nothing is on, for good. [`Span::take_left`] gives its store back.
    ///
    /// # Errors
    /// Says what is still on it.
    pub fn leave(&mut self, disk: DiskId) -> Result<(), LeaveError> {
        let Some(many) = &mut self.many else { return Err(LeaveError::Last) };
        let is_of_it =
            |entry: &&crate::map::GroupEntry| entry.owner == disk || entry.target == Some(disk);
        let groups = many.map.groups.iter().filter(is_of_it).count();
        let entry = many.map.disks.get_mut(&disk).ok_or(LeaveError::Unknown)?;
        if groups > 0 {
            return Err(LeaveError::Needed { groups });
        }
        let seat = self.seats.iter_mut().flatten().find(|seat| seat.disk == disk);
        if let Some(seat) = seat {
            let objects = seat.store.capacity().objects.saturating_sub(1);
            if seat.is_working() && objects > 0 {
                return Err(LeaveError::Cleaning { objects });
            }
            seat.has_left = true;
        }
        if entry.standing != Standing::Left {
            entry.standing = Standing::Left;
            entry.version += 1;
            many.writing.is_wanted = true;
            many.mover.look_again();
        }
        Ok(())
    }

    /// A disk that left, once all others know that and nothing is under way on it.
    pub fn take_left(&mut self) -> Option<(DiskId, S)> {
        let is_told = |many: &Many| !many.writing.is_wanted && many.writing.left == 0;
        if !self.many.as_deref().is_some_and(is_told) {
            return None;
        }
        let may_go = |seat: &Option<Seat<S>>| {
            seat.as_ref().is_some_and(|seat| seat.has_left && seat.store.is_idle())
        };
        let place = self.seats.iter().position(may_go)?;
        let seat = self.seats[place].take()?;
        self.version += 1;
        self.seat_groups();
        Some((seat.disk, seat.store))
    }

    /// All disks with their stores, for whoever ends the pool.
    pub fn into_stores(self) -> Vec<(DiskId, S)> {
        let joining = self.joining.into_iter().map(|member| (member.disk, member.store));
        let seated = self.seats.into_iter().flatten().map(|seat| (seat.disk, seat.store));
        seated.chain(joining).collect()
    }

    /// Sends the map where it is wanted.
    pub(crate) fn advance_writing(&mut self) -> bool {
        let Some(many) = &mut self.many else { return false };
        if !many.writing.is_wanted || many.writing.left > 0 || many.mover.is_writing() {
            return false;
        }
        many.writing.is_wanted = false;
        for seat in 0..self.seats.len() {
            self.write_map(seat);
        }
        true
    }

    /// Sends the map to one disk, if it can be written.
    pub(crate) fn write_map(&mut self, number: usize) {
        let (Some(many), Some(Some(seat))) = (&mut self.many, self.seats.get_mut(number)) else {
            return;
        };
        if seat.store.state() != plinth_store::StoreState::Writable {
            return;
        }
        let mut buffer = IoBuffer::zeroed(MAP_BYTES);
        many.map.emit(seat.disk, buffer.as_bytes_mut());
        let length = u32::try_from(MAP_BYTES).unwrap_or(0);
        let transaction = vec![Operation::WriteFull { key: map_key(), length, buffer }];
        let inner = many.insert(Op::Map { seat: number });
        many.writing.left += 1;
        let taken = seat.store.submit(inner, StoreRequest::Apply { transaction });
        assert!(taken.is_ok(), "the disk has room for the span's own requests");
    }

    pub(crate) fn map_written(&mut self, seat: usize, is_ok: bool) {
        let Some(many) = &mut self.many else { return };
        many.writing.left -= 1;
        if many.writing.first == Some(seat) {
            many.writing.first = None;
            if is_ok {
                for other in (0..self.seats.len()).filter(|&other| other != seat) {
                    self.write_map(other);
                }
            } else {
                many.writing.has_failed = true;
            }
        }
    }
}

/// Whether a map is of this pool, and this disk the one that it names.
fn judge<S>(map: &Map, pool: PoolId, member: &Member<S>) -> Result<(), JoinError> {
    if map.pool != pool {
        return Err(JoinError::OtherPool { pool: map.pool });
    }
    match map.disks.get(&member.disk) {
        None => {
            let of_it = map.disks.iter().find(|(_, entry)| entry.serial == member.serial);
            Err(of_it
                .map_or(JoinError::NotTheDisk, |(&number, _)| JoinError::OtherNumber { number }))
        }
        Some(entry) if entry.serial != member.serial => Err(JoinError::NotTheDisk),
        Some(entry) if entry.standing == Standing::Left => Err(JoinError::Left),
        Some(_) => Ok(()),
    }
}
