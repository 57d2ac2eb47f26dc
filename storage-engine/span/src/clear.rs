// SPDX-License-Identifier: Apache-2.0
//! Removing what a disk has of groups that are not its own.

use crate::map::GROUPS;
use crate::mover::{CLEAR_CALL, LISTED, Stage};
use crate::span::{Omit, Span, first_of, last_of, successor};
use plinth_store::{
    ObjectKey, ObjectStore, Operation, PgId, StoreAnswer, StoreRefusal, StoreRequest,
};

impl<S: ObjectStore> Span<S> {
    /// Finds the next run of groups that a disk must not have.
    pub(crate) fn sweep_on(&mut self, number: usize, from: usize) -> bool {
        let pool = self.pool;
        let Some(many) = &mut self.many else { return false };
        let Some(Some(seat)) = self.seats.get(number) else { return true };
        if !seat.is_working() || self.omit == Omit::Sweep {
            return true;
        }
        // Only the owner knows for certain, so its word must be there.
        let is_foreign = |group: usize| {
            let entry = many.map.groups[group];
            let is_there = many.groups[group].seat.is_some();
            entry.owner != seat.disk && entry.target != Some(seat.disk) && is_there
        };
        let Some(first) = (from..GROUPS).find(|&group| is_foreign(group)) else { return true };
        let run = (first..GROUPS).take_while(|&group| is_foreign(group)).count();
        many.mover.sweeps.push_front((number, first + run));
        many.mover.stage = Stage::Clear;
        let (from, to) = (first_of(pool, first), last_of(pool, first + run - 1));
        self.begin_clear(number, from, to);
        true
    }

    pub(crate) fn begin_clear(&mut self, seat: usize, first: ObjectKey, last: ObjectKey) {
        if let Some(many) = &mut self.many {
            many.mover.clearing = Some((seat, first, last));
        }
    }

    /// Lists what is left. A listing under way may still be reading it, so that one ends first.
    pub(crate) fn clear(&mut self) -> bool {
        let Some(many) = &mut self.many else { return false };
        if many.mover.calls > 0 || many.lists > 0 && many.mover.stage == Stage::Clear {
            return false;
        }
        match many.mover.clearing {
            Some((seat, first, last)) if first <= last => {
                let range = first..=last;
                self.call(seat, CLEAR_CALL, StoreRequest::List { range, limit: LISTED });
                false
            }
            _ => {
                many.mover.clearing = None;
                if many.mover.stage == Stage::Clear {
                    many.mover.stage = Stage::Rest;
                } else if let Some(moving) = many.mover.now {
                    many.mover.stage = Stage::Copy;
                    many.mover.heads = false;
                    many.mover.cursor = Some(first_of(self.pool, moving.group));
                }
                true
            }
        }
    }

    pub(crate) fn cleared(&mut self, result: Result<StoreAnswer, StoreRefusal>) {
        let Some(many) = &mut self.many else { return };
        let Some((seat, _, last)) = many.mover.clearing else { return };
        match result {
            Ok(StoreAnswer::Listed { objects, .. }) => {
                let Some(first) = objects.first() else {
                    many.mover.clearing = None;
                    return;
                };
                // A transaction is of one group.
                let pg: PgId = first.key.pg;
                let own = objects.iter().map(|object| object.key).take_while(|key| key.pg == pg);
                let keys: Vec<ObjectKey> = own.collect();
                if let Some(end) = keys.last() {
                    many.mover.clearing = Some((seat, successor(end), last));
                }
                let step = |key| Operation::Remove { key };
                let transaction = keys.into_iter().map(step).collect();
                self.call(seat, CLEAR_CALL, StoreRequest::Apply { transaction });
            }
            Ok(_) => {}
            Err(refusal) => many.mover.failed = Some(refusal),
        }
    }
}
