// SPDX-License-Identifier: Apache-2.0
//! Where a request belongs, and what it changes.

use plinth_ids::PoolId;
use plinth_store::{ObjectId, ObjectKey, Operation, PgId, StoreRequest};

/// What must be copied again of an object that was changed while its group is copied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Dirt {
    /// These bytes, rounded outwards to blocks by whoever copies.
    Range { start: u32, end: u32 },
    /// What is copied whatever task there is: its keys and its version.
    Rest,
    /// All of it, and whether it is there at all.
    Whole,
    /// None of an object, but the group's log.
    Log {
        /// Whether it began anew.
        is_new: bool,
    },
}

/// Which disks a request goes to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Route {
    /// That of the group. `is_change` where it may change an object.
    Group {
        key: ObjectKey,
        is_change: bool,
    },
    /// Those of a range of groups, one after the other.
    Range,
    All,
    /// A transaction without steps: any store refuses it.
    Nowhere,
}

pub(crate) fn route(request: &StoreRequest) -> Route {
    match request {
        StoreRequest::Write { key, .. } => Route::Group { key: *key, is_change: true },
        StoreRequest::Apply { transaction } => match transaction.first() {
            // That all steps are of one group is for the store to judge.
            Some(step) => Route::Group { key: key_of(step), is_change: true },
            None => Route::Nowhere,
        },
        StoreRequest::Read { key, .. }
        | StoreRequest::Attributes { key }
        | StoreRequest::Status { key }
        | StoreRequest::Usage { key }
        | StoreRequest::Wipe { key }
        | StoreRequest::GetKeys { key, .. }
        | StoreRequest::ListKeys { key, .. }
        | StoreRequest::Compare { a: key, .. } => Route::Group { key: *key, is_change: false },
        StoreRequest::ReadLog { pool, pg, .. } => {
            Route::Group { key: of_group(*pool, *pg), is_change: false }
        }
        // That all are of one group is for the store to judge.
        StoreRequest::UsageOf { keys } => match keys.first() {
            Some(key) => Route::Group { key: *key, is_change: false },
            None => Route::Nowhere,
        },
        StoreRequest::List { .. } => Route::Range,
        StoreRequest::Flush | StoreRequest::TurnJournal => Route::All,
    }
}

/// Some key of the group.
const fn of_group(pool: PoolId, pg: PgId) -> ObjectKey {
    ObjectKey { pool, pg, object: ObjectId(0), snapshot: 0 }
}

/// Whether a step leaves all that is in the group as it is.
const fn is_idle(step: &Operation) -> bool {
    matches!(step, Operation::Expect { .. } | Operation::RaiseVersions { .. })
}

const fn key_of(step: &Operation) -> ObjectKey {
    match step {
        Operation::Touch { key }
        | Operation::Expect { key, .. }
        | Operation::Write { key, .. }
        | Operation::WriteFull { key, .. }
        | Operation::Zero { key, .. }
        | Operation::Scrap { key }
        | Operation::Truncate { key, .. }
        | Operation::Remove { key }
        | Operation::SetAttribute { key, .. }
        | Operation::RemoveAttribute { key, .. }
        | Operation::SetVersion { key, .. }
        | Operation::SetKeys { key, .. }
        | Operation::RemoveKeys { key, .. }
        | Operation::RemoveKeyRange { key, .. } => *key,
        Operation::LogAppend { pool, pg, .. }
        | Operation::LogTrim { pool, pg, .. }
        | Operation::LogRemove { pool, pg }
        | Operation::RaiseVersions { pool, pg, .. } => of_group(*pool, *pg),
        Operation::Clone { target, .. } => *target,
    }
}

/// What a change leaves to be copied again.
pub(crate) fn dirt(request: &StoreRequest) -> Vec<(ObjectKey, Dirt)> {
    match request {
        StoreRequest::Write { key, offset, length, .. } => vec![(*key, range(*offset, *length))],
        StoreRequest::Apply { transaction } => transaction
            .iter()
            .filter(|step| !is_idle(step))
            .map(|step| {
                let dirt = match step {
                    Operation::Write { offset, length, .. }
                    | Operation::Zero { offset, length, .. } => range(*offset, *length),
                    Operation::SetKeys { .. }
                    | Operation::RemoveKeys { .. }
                    | Operation::RemoveKeyRange { .. }
                    | Operation::Touch { .. }
                    | Operation::SetVersion { .. } => Dirt::Rest,
                    Operation::LogAppend { .. } | Operation::LogTrim { .. } => {
                        Dirt::Log { is_new: false }
                    }
                    Operation::LogRemove { .. } => Dirt::Log { is_new: true },
                    _ => Dirt::Whole,
                };
                (key_of(step), dirt)
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// A range that a store will refuse changes nothing, so what comes of it here does not matter.
const fn range(offset: u32, length: u32) -> Dirt {
    Dirt::Range { start: offset, end: offset.saturating_add(length) }
}
