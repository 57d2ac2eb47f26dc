// SPDX-License-Identifier: Apache-2.0
//! Which group is moved next, and how its owner steers that.

use crate::map::{GROUPS, Standing};
use crate::mover::{FULL, Move, Moving, PATIENCE, Stage};
use crate::seats::Seat;
use crate::span::Span;
use plinth_ids::{DiskId, Moment};
use plinth_store::ObjectStore;

/// What the owner of the pool may say and ask.
impl<S: ObjectStore> Span<S> {
    /// Limits how fast groups are copied, in bytes a second. 0 is taken as 1. It may be said before
    /// there is a second disk.
    pub fn set_rate(&mut self, rate: u64) {
        self.rate = rate.max(1);
        if let Some(many) = &mut self.many {
            many.mover.pace.rate = self.rate;
        }
    }

    /// Ends or resumes all moving, in the middle of whatever it is. What waits for a move that is
    /// about to end waits on.
    pub fn pause(&mut self, is_paused: bool) {
        if let Some(many) = &mut self.many {
            many.mover.is_paused = is_paused;
        }
    }

    /// Whether nothing is on its way, of whoever asks or of the mover, which must be paused.
    pub fn is_settled(&self) -> bool {
        let is_quiet = |many: &crate::span::Many| {
            many.ops.len() == many.free.len() && many.held.is_empty() && many.mover.is_resting()
        };
        self.alone == 0 && self.many.as_deref().is_none_or(is_quiet)
    }

    /// The group that is moved now.
    pub fn moving(&self) -> Option<Moving> {
        let mover = &self.many.as_ref()?.mover;
        let now = mover.now?;
        let disk = |seat: usize| Some(self.seats.get(seat)?.as_ref()?.disk);
        Some(Moving {
            group: u32::try_from(now.group).unwrap_or(u32::MAX),
            source: disk(now.source)?,
            target: disk(now.target)?,
            objects: mover.objects,
        })
    }

    /// Why the last move that failed did so, until one succeeds.
    pub fn trouble(&self) -> Option<&str> {
        let trouble = self.many.as_ref()?.mover.trouble.as_ref();
        trouble.map(|(_, text)| text.as_str())
    }

    /// Whether groups are moved or removed now, so that it must be polled by the clock.
    pub fn is_moving(&self) -> bool {
        self.many.as_ref().is_some_and(|many| !many.mover.is_done() && !many.mover.is_paused)
    }

    /// When a move that failed is tried again.
    pub fn deadline(&self) -> Option<Moment> {
        self.many.as_ref()?.mover.look_at
    }
}

impl<S: ObjectStore> Span<S> {
    /// Begins with whatever is to be done next.
    pub(crate) fn choose(&mut self, now: Moment) -> bool {
        let Some(many) = &mut self.many else { return false };
        // Rubbish first: it may be what the next move needs the room for.
        if let Some((seat, from)) = many.mover.sweeps.pop_front() {
            return self.sweep_on(seat, from);
        }
        if std::mem::take(&mut many.mover.looks) {
            let map = &many.map;
            let is_elsewhere = |group: &usize| {
                let entry = map.groups[*group];
                let place = map.place(*group);
                entry.target.is_some() || place.is_some_and(|place| place != entry.owner)
            };
            let mut plan: Vec<_> = (0..GROUPS).filter(is_elsewhere).collect();
            // What must leave goes before what would only sit better elsewhere.
            let leaves = |group: &usize| {
                let owner = map.groups[*group].owner;
                map.disks.get(&owner).is_some_and(|disk| disk.standing == Standing::Draining)
            };
            plan.sort_by_key(|group| !leaves(group));
            many.mover.plan = plan.into();
        }
        let Some(group) = many.mover.plan.pop_front() else { return false };
        self.begin(group, now);
        true
    }

    /// The disk that a group is to have. A disk that is out keeps its place, but what must leave
    /// another one goes where it can.
    fn place_of(&self, group: usize) -> Option<DiskId> {
        let many = self.many.as_ref()?;
        let seat = |disk: DiskId| self.seats.iter().flatten().find(|seat| seat.disk == disk);
        let is_working = |disk: DiskId| seat(disk).is_some_and(Seat::is_working);
        let place = many.map.place(group)?;
        let owner = many.map.groups[group].owner;
        let leaves = many.map.disks.get(&owner)?.standing == Standing::Draining;
        if is_working(place) || !leaves {
            Some(place)
        } else {
            many.map.place_among(group, is_working)
        }
    }

    pub(crate) fn begin(&mut self, group: usize, now: Moment) {
        let Some(many) = &mut self.many else { return };
        if many.writing.left > 0 || many.writing.is_wanted {
            many.mover.plan.push_front(group);
            return;
        }
        let entry = many.map.groups[group];
        if many.groups[group].seat.is_none() {
            return;
        }
        let Some(place) = entry.target.or_else(|| self.place_of(group)) else { return };
        if place == entry.owner {
            return;
        }
        let (Some(source), Some(target)) = (self.seat_of(entry.owner), self.seat_of(place)) else {
            return;
        };
        if let Err(why) = self.may_move(source, target) {
            if let Some(many) = &mut self.many {
                many.mover.trouble = Some((group, why));
                many.mover.look_at.get_or_insert(now + PATIENCE);
            }
            return;
        }
        let Some(many) = &mut self.many else { return };
        many.mover.forget_move();
        many.mover.now = Some(Move { group, source, target });
        many.groups[group].is_tracked = true;
        let entry = &mut many.map.groups[group];
        entry.target = Some(place);
        entry.version += 1;
        self.write_in_order(source, Stage::Announce);
    }

    fn may_move(&self, source: usize, target: usize) -> Result<(), String> {
        let seat = |number: usize| self.seats.get(number).and_then(Option::as_ref);
        let (Some(source), Some(target)) = (seat(source), seat(target)) else {
            return Err("a disk is not there".to_owned());
        };
        for seat in [source, target] {
            if !seat.is_working() {
                return Err(format!("{} is out: {}", seat.disk, seat.condition()));
            }
        }
        let capacity = target.store.capacity();
        if capacity.used.saturating_mul(100) > capacity.total.saturating_mul(FULL) {
            return Err(format!("{} is fuller than {FULL} % and is given nothing", target.disk));
        }
        Ok(())
    }
}
