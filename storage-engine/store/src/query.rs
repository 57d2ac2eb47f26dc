// SPDX-License-Identifier: Apache-2.0
//! Questions that change nothing: which they are, what they wait for, who answers them.

use crate::disk::Disk;
use crate::objects::NO_FRAME;
use crate::op::Work;
use crate::request::{ObjectKey, StoreAnswer, StoreRefusal};
use crate::store::{Progress, Store};
use std::ops::RangeInclusive;

/// A question. In a box, so that it makes no other request larger.
#[derive(Clone, Debug)]
pub(crate) enum Query {
    List(Listing),
    Status {
        key: ObjectKey,
    },
    Usage {
        key: ObjectKey,
    },
    UsageOf(Counting),
    Compare {
        a: ObjectKey,
        b: ObjectKey,
    },
    GetKeys {
        key: ObjectKey,
        names: Vec<Vec<u8>>,
    },
    ListKeys {
        key: ObjectKey,
        after: Option<Vec<u8>>,
        limit: usize,
    },
    ReadLog {
        key: ObjectKey,
        after: u64,
        limit: usize,
    },
    /// `sent`: how many units the zeros that are on their way are for.
    Wipe {
        key: ObjectKey,
        sent: Option<u32>,
    },
    /// `until`: how many turns must have ended.
    TurnJournal {
        until: Option<u64>,
    },
}

/// A range of keys that is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) range: RangeInclusive<ObjectKey>,
    pub(crate) limit: usize,
}

/// Objects whose units are counted, one after the other: their pages need not be in memory at once.
/// Nothing changes the others meanwhile, because requests on them wait behind this.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counting {
    pub(crate) keys: Vec<ObjectKey>,
    pub(crate) done: usize,
    pub(crate) units: Vec<u32>,
    pub(crate) blocks: u32,
}

impl Query {
    /// The objects whose earlier changes come first; a listing sees to that by itself.
    pub(crate) fn for_each_key(&self, mut visit: impl FnMut(&ObjectKey)) {
        match self {
            Self::List(_) | Self::TurnJournal { .. } => {}
            Self::Status { key }
            | Self::Usage { key }
            | Self::Wipe { key, .. }
            | Self::GetKeys { key, .. }
            | Self::ListKeys { key, .. }
            | Self::ReadLog { key, .. } => visit(key),
            Self::UsageOf(counting) => counting.keys.iter().for_each(visit),
            Self::Compare { a, b } => {
                visit(a);
                visit(b);
            }
        }
    }
}

/// What became of a question.
pub(crate) enum Found {
    /// It waits for the disk or for changes before it.
    Not,
    /// It waits for what it has begun, and goes on like this.
    Later(Query),
    Answer(StoreAnswer),
    Refusal(StoreRefusal),
}

impl<D: Disk> Store<D> {
    pub(crate) fn attempt_query(&mut self, op: u32) -> Progress {
        let Some(entry) = self.ops.get_mut(op) else { return Progress::Through };
        if let Some(refusal) = entry.refusal {
            self.complete(op, Err(refusal));
            return Progress::Through;
        }
        let number = entry.number;
        // The question is taken out while the store looks for the answer.
        let mut work = std::mem::replace(&mut entry.work, Work::Flush);
        let Work::Ask(query) = &mut work else { return Progress::Through };
        let found = match &mut **query {
            Query::List(listing) => self.list_objects(number, listing),
            Query::Status { key } => self.object_status(key),
            Query::Usage { key } => self.usage(key),
            Query::UsageOf(counting) => self.usage_of(counting),
            Query::GetKeys { key, names } => self.get_keys(op, key, names),
            Query::ListKeys { key, after, limit } => {
                self.list_keys(op, key, after.as_deref(), *limit)
            }
            Query::ReadLog { key, after, limit } => self.read_log(op, *key, *after, *limit),
            Query::Compare { a, b } => self.compare(a, b),
            Query::Wipe { key, sent } => self.wipe(op, key, *sent),
            Query::TurnJournal { until } => self.turn_journal(*until),
        };
        match found {
            Found::Not => {
                if let Some(entry) = self.ops.get_mut(op) {
                    entry.work = work;
                }
                return Progress::Wait;
            }
            Found::Later(next) => {
                if let Some(entry) = self.ops.get_mut(op) {
                    entry.work = Work::Ask(Box::new(next));
                }
                return Progress::Wait;
            }
            Found::Answer(answer) => self.complete(op, Ok(answer)),
            Found::Refusal(refusal) => self.complete(op, Err(refusal)),
        }
        Progress::Through
    }

    /// Asks for both map pages of some objects. `true` when all are in memory at once.
    ///
    /// # Errors
    /// When a page is damaged.
    pub(crate) fn need_pages(&mut self, slots: &[u32]) -> Result<bool, StoreRefusal> {
        for &slot in slots {
            for half in 0..2 {
                self.need_frame(slot, half)?;
            }
        }
        // A page that came in may have pushed another of them out, so all are looked at again.
        let is_there = |&slot: &u32| !self.objects.slot(slot).frames.contains(&NO_FRAME);
        Ok(slots.iter().all(is_there))
    }
}
