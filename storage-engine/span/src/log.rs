// SPDX-License-Identifier: Apache-2.0
//! Copying the log of a group, as far as it has come; and lifting the versions of its new disk.
//!
//! ```text
//!   (began anew: remove the target's) ─▶ read behind the last one ─▶ append ─▶ ... ─▶ nothing more
//!     ─▶ read the first one ─▶ trim what is before it, or all
//! ```
//! Entries never change and only leave at the beginning, so each run goes on where the last one
//! ended.

use crate::mover::{FLUSH_CALL, LIFT_CALL, LOG_CALL};
use crate::span::{Omit, Span};
use plinth_store::{
    ObjectStore, Operation, PgId, StoreAnswer, StoreRefusal, StoreRequest, VALUE_MAX,
};

/// Entries of one transaction, and their bytes: what the smallest journal takes at once.
const ENTRIES: usize = 30;
pub(crate) const ENTRY_BYTES: usize = 16 << 10;

// A run that took no entry would end the copy before the log's last. An entry is a value.
const _: () = assert!(VALUE_MAX <= ENTRY_BYTES, "a run takes any one entry");

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Step {
    #[default]
    Rest,
    Removing,
    Reading,
    /// Whether the last entry that there was is among these.
    Appending {
        more: bool,
    },
    LookingForFirst,
    Trimming,
}

/// How far the log of the group that moves has come.
#[derive(Debug, Default)]
pub(crate) struct LogCopy {
    step: Step,
    /// The last version that the target has.
    at: u64,
    /// It changed since the last run began, or never was copied.
    pub(crate) is_dirty: bool,
    /// It began anew since then.
    is_new: bool,
    /// No run has begun.
    is_first: bool,
}

impl LogCopy {
    /// A group's that has not been copied.
    pub(crate) fn first() -> Self {
        Self { is_dirty: true, is_first: true, ..Self::default() }
    }

    /// Whether the first run is still to come.
    pub(crate) const fn is_first(&self) -> bool {
        self.is_first
    }

    pub(crate) fn soil(&mut self, is_new: bool) {
        self.is_dirty = true;
        self.is_new |= is_new;
    }
}

impl<S: ObjectStore> Span<S> {
    fn moving_pg(&self) -> Option<PgId> {
        let moving = self.many.as_ref()?.mover.now?;
        u32::try_from(moving.group).ok().map(PgId)
    }

    /// Begins a run.
    pub(crate) fn copy_log(&mut self) {
        let (pool, Some(pg)) = (self.pool, self.moving_pg()) else { return };
        let Some(many) = &mut self.many else { return };
        let log = &mut many.mover.log;
        (log.is_dirty, log.is_first) = (false, false);
        if self.omit == Omit::Log && log.at > 0 {
            return;
        }
        if std::mem::take(&mut log.is_new) {
            (log.step, log.at) = (Step::Removing, 0);
            let transaction = vec![Operation::LogRemove { pool, pg }];
            return self.call_target(LOG_CALL, StoreRequest::Apply { transaction });
        }
        self.read_log();
    }

    fn read_log(&mut self) {
        let (pool, Some(pg)) = (self.pool, self.moving_pg()) else { return };
        let Some(many) = &mut self.many else { return };
        many.mover.log.step = Step::Reading;
        let after = many.mover.log.at;
        let request = StoreRequest::ReadLog { pool, pg, after, limit: ENTRIES };
        self.call_source_in_time(LOG_CALL, request);
    }

    pub(crate) fn log_answer(&mut self, result: Result<StoreAnswer, StoreRefusal>) {
        let (pool, Some(pg)) = (self.pool, self.moving_pg()) else { return };
        let Some(many) = &mut self.many else { return };
        let log = &mut many.mover.log;
        let answer = match result {
            Ok(answer) => answer,
            Err(refusal) => {
                many.mover.failed = many.mover.failed.or(Some(refusal));
                return;
            }
        };
        match (std::mem::take(&mut log.step), answer) {
            (Step::Removing, _) => self.read_log(),
            (Step::Reading, StoreAnswer::Log { entries, more, .. }) => {
                self.append(pool, pg, entries, more);
            }
            (Step::Appending { more: true }, _) => self.read_log(),
            (Step::Appending { more: false }, _) => self.look_for_first(pool, pg),
            (Step::LookingForFirst, StoreAnswer::Log { entries, last, .. }) => {
                let first = entries.first().map(|(version, _)| *version);
                self.trim(pool, pg, first, last);
            }
            (Step::Trimming | Step::Rest, _) => {}
            (step, answer) => unreachable!("{step:?} is not answered by {answer:?}"),
        }
    }

    fn append(
        &mut self,
        pool: plinth_ids::PoolId,
        pg: PgId,
        mut entries: Vec<(u64, Vec<u8>)>,
        more: bool,
    ) {
        let Some(many) = &mut self.many else { return };
        let mut bytes = 0;
        let fits = entries.iter().take_while(|(_, entry)| {
            bytes += entry.len();
            bytes <= ENTRY_BYTES
        });
        let fits = fits.count();
        let more = more || fits < entries.len();
        entries.truncate(fits);
        let Some(&(last, _)) = entries.last() else { return self.look_for_first(pool, pg) };
        (many.mover.log.at, many.mover.log.step) = (last, Step::Appending { more });
        let append = |(version, entry)| Operation::LogAppend { pool, pg, version, entry };
        let transaction = entries.into_iter().map(append).collect();
        self.call_target(LOG_CALL, StoreRequest::Apply { transaction });
    }

    fn look_for_first(&mut self, pool: plinth_ids::PoolId, pg: PgId) {
        let Some(many) = &mut self.many else { return };
        many.mover.log.step = Step::LookingForFirst;
        self.call_source(LOG_CALL, StoreRequest::ReadLog { pool, pg, after: 0, limit: 1 });
    }

    fn trim(&mut self, pool: plinth_ids::PoolId, pg: PgId, first: Option<u64>, last: u64) {
        let Some(many) = &mut self.many else { return };
        let log = &mut many.mover.log;
        let up_to = first.map_or(last, |first| first.saturating_sub(1));
        if up_to == 0 {
            // Nothing was trimmed, or there is no log.
            return;
        }
        let mut transaction = Vec::new();
        if log.at < up_to {
            // All that came since was trimmed; its last version is remembered.
            log.at = up_to;
            transaction.push(Operation::LogAppend { pool, pg, version: up_to, entry: Vec::new() });
        }
        transaction.push(Operation::LogTrim { pool, pg, up_to });
        log.step = Step::Trimming;
        self.call_target(LOG_CALL, StoreRequest::Apply { transaction });
    }

    /// Asks the source how high its versions are; the group's requests wait.
    pub(crate) fn lift_versions(&mut self) {
        let (pool, Some(pg)) = (self.pool, self.moving_pg()) else { return };
        if self.omit == Omit::LiftVersions {
            return self.call_target(FLUSH_CALL, StoreRequest::Flush);
        }
        let transaction = vec![Operation::RaiseVersions { pool, pg, above: 0 }];
        self.call_source(LIFT_CALL, StoreRequest::Apply { transaction });
    }

    pub(crate) fn lifted(&mut self, result: Result<StoreAnswer, StoreRefusal>) {
        let (pool, Some(pg)) = (self.pool, self.moving_pg()) else { return };
        let Some(many) = &mut self.many else { return };
        match result {
            Ok(StoreAnswer::Changed { version, .. }) if many.mover.lift_from.is_none() => {
                many.mover.lift_from = Some(version);
                let transaction = vec![Operation::RaiseVersions { pool, pg, above: version }];
                self.call_target(LIFT_CALL, StoreRequest::Apply { transaction });
            }
            Ok(_) => self.call_target(FLUSH_CALL, StoreRequest::Flush),
            Err(refusal) => many.mover.failed = Some(refusal),
        }
    }
}
