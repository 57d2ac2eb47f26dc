// SPDX-License-Identifier: Apache-2.0
//! Removing what a disk has of groups that are not its own.

use crate::map::GROUPS;
use crate::mover::{CLEAR_CALL, Stage};
use crate::span::{Omit, Span, first_of, last_of, successor};
use plinth_store::{
    ObjectKey, ObjectStore, Operation, PgId, StoreAnswer, StoreRefusal, StoreRequest,
};

/// Objects removed at once. A store has all their map pages in memory at once, four of each object
/// with keys, beside those that are not written yet; its cache may have as few as 64.
const CLEARED: usize = 8;

/// A run of groups that is removed from a disk: first the objects, then the logs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clearing {
    seat: usize,
    /// Objects before this are gone.
    first: ObjectKey,
    last: ObjectKey,
    /// The next group whose log is to go, once there are no objects.
    log: u32,
    /// The answer that is waited for is about a log.
    asks_for_log: bool,
}

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
            let (log, asks_for_log) = (first.pg.0, false);
            many.mover.clearing = Some(Clearing { seat, first, last, log, asks_for_log });
        }
    }

    /// Lists what is left. A listing under way may still be reading it, so that one ends first.
    pub(crate) fn clear(&mut self) -> bool {
        let Some(many) = &mut self.many else { return false };
        if many.mover.calls > 0 || many.lists > 0 && many.mover.stage == Stage::Clear {
            return false;
        }
        match &mut many.mover.clearing {
            Some(clearing) if clearing.first <= clearing.last => {
                let (seat, range) = (clearing.seat, clearing.first..=clearing.last);
                self.call(seat, CLEAR_CALL, StoreRequest::List { range, limit: CLEARED });
                false
            }
            Some(clearing) if clearing.log <= clearing.last.pg.0 && self.omit != Omit::ClearLog => {
                let (seat, pg) = (clearing.seat, PgId(clearing.log));
                clearing.log += 1;
                clearing.asks_for_log = true;
                let (pool, after) = (self.pool, u64::MAX);
                self.call(seat, CLEAR_CALL, StoreRequest::ReadLog { pool, pg, after, limit: 1 });
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
        let Some(clearing) = &mut many.mover.clearing else { return };
        let seat = clearing.seat;
        if std::mem::take(&mut clearing.asks_for_log) {
            let (pool, pg) = (self.pool, PgId(clearing.log - 1));
            // Also one that cannot be read: it is to go.
            if !matches!(result, Ok(StoreAnswer::Log { last: 0, .. })) {
                let transaction = vec![Operation::LogRemove { pool, pg }];
                self.call(seat, CLEAR_CALL, StoreRequest::Apply { transaction });
            }
            return;
        }
        match result {
            Ok(StoreAnswer::Listed { objects, .. }) => {
                let Some(first) = objects.first() else {
                    // Behind the last one.
                    clearing.first = successor(&clearing.last);
                    return;
                };
                // A transaction is of one group.
                let pg: PgId = first.key.pg;
                let own = objects.iter().map(|object| object.key).take_while(|key| key.pg == pg);
                let keys: Vec<ObjectKey> = own.collect();
                if let Some(end) = keys.last() {
                    clearing.first = successor(end);
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
