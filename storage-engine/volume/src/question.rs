// SPDX-License-Identifier: Apache-2.0
//! Questions that go over a volume's objects: what it holds, and where two states of it differ.
//!
//! Both are answered from the maps, without reading data. Deleting a snapshot removes the copies
//! that it alone reads; so what only those copies have is what deleting it would free.

use crate::gate::{Slow, SlowWork};
use crate::key::OBJECT_SIZE;
use crate::request::{
    ChangedRange, Changes, ChoreKind, VolumeAnswer, VolumeRefusal, VolumeRequest, VolumeTag,
    VolumeUsage,
};
use crate::volume::Volume;
use crate::volumes::{UNIT, Volumes};
use plinth_ids::{SnapshotId, VolumeId};
use plinth_store::{BLOCK_SIZE, BlockRange, ObjectStatus, ObjectStore, StoreAnswer};

/// Ranges of one answer; one more object's may come on top.
const RANGES: usize = 4096;

#[derive(Debug)]
pub(crate) enum Question {
    Usage {
        usage: VolumeUsage,
        /// The numbers of the snapshots in `usage`.
        numbers: Vec<u64>,
    },
    Changes {
        from: Option<u64>,
        to: u64,
        start: u64,
        size: u64,
        /// Objects that exist in any state, ascending once all are known.
        indexes: Vec<u32>,
        is_sorted: bool,
        /// Of `indexes`, those that were compared.
        asked: usize,
        found: Vec<ChangedRange>,
    },
}

/// Whose an object is, for the sum of what it has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Owner {
    Head,
    /// A copy, the place among the snapshots of the one that alone reads it, and whether its object
    /// has no other copy.
    Copy {
        only: Option<usize>,
        is_all: bool,
    },
    /// All copies of an object together.
    Copies,
}

impl Question {
    /// Who reads an object, when the next lower version of it has the number `below`.
    pub(crate) fn owner(
        &self,
        volume: &Volume,
        below: u64,
        object: &ObjectStatus,
    ) -> Option<Owner> {
        let Self::Usage { numbers, .. } = self else { return None };
        let number = object.key.snapshot;
        if number == 0 {
            return Some(Owner::Head);
        }
        let live = volume.snapshots.iter().map(|kept| &kept.record);
        let mut readers = live.filter(|record| {
            !record.is_leaving && record.number > below && record.number <= number
        });
        let first = readers.next();
        let only = first.filter(|_| readers.next().is_none());
        let only = only.and_then(|record| numbers.iter().position(|&known| known == record.number));
        Some(Owner::Copy { only, is_all: false })
    }

    pub(crate) fn count(&mut self, owner: Owner, answer: &StoreAnswer) {
        let (Self::Usage { usage, .. }, StoreAnswer::Usage { units, unique, .. }) = (self, answer)
        else {
            return;
        };
        let (units, unique) = (u64::from(*units) * UNIT, u64::from(*unique) * UNIT);
        match owner {
            Owner::Head => {
                usage.written += units;
                usage.unique += unique;
            }
            Owner::Copies => usage.snapshots_unique += unique,
            Owner::Copy { only, is_all } => {
                if is_all {
                    usage.snapshots_unique += unique;
                }
                if let Some((_, own)) = only.and_then(|only| usage.snapshots.get_mut(only)) {
                    *own += unique;
                }
            }
        }
    }

    pub(crate) fn name(&mut self, index: u32) {
        if let Self::Changes { indexes, start, .. } = self
            && u64::from(index) * OBJECT_SIZE + OBJECT_SIZE > *start
        {
            indexes.push(index);
        }
    }

    /// The next object to compare.
    pub(crate) fn next(&mut self) -> Option<(u32, Option<u64>, u64)> {
        let Self::Changes { from, to, indexes, is_sorted, asked, found, .. } = self else {
            return None;
        };
        if !*is_sorted {
            indexes.sort_unstable();
            indexes.dedup();
            *is_sorted = true;
        }
        if found.len() >= RANGES {
            return None;
        }
        let index = *indexes.get(*asked)?;
        *asked += 1;
        Some((index, *from, *to))
    }

    fn differs(&mut self, index: u32, differs: &[BlockRange], written: &[BlockRange]) {
        let Self::Changes { start, size, found, .. } = self else { return };
        let block = BLOCK_SIZE as u64;
        for (first, count, is_zero) in marked(differs, written) {
            let offset = u64::from(index) * OBJECT_SIZE + u64::from(first) * block;
            let end = (offset + u64::from(count) * block).min(*size);
            let from = offset.max(*start);
            if from < end {
                found.push(ChangedRange { offset: from, length: end - from, is_zero });
            }
        }
    }

    pub(crate) fn answer(self) -> VolumeAnswer {
        match self {
            Self::Usage { usage, .. } => VolumeAnswer::Usage(usage),
            Self::Changes { indexes, asked, mut found, .. } => {
                found.sort_unstable();
                let mut ranges: Vec<ChangedRange> = Vec::with_capacity(found.len());
                for range in found {
                    match ranges.last_mut() {
                        Some(last)
                            if last.offset + last.length == range.offset
                                && last.is_zero == range.is_zero =>
                        {
                            last.length += range.length;
                        }
                        _ => ranges.push(range),
                    }
                }
                let next = indexes.get(asked).map(|&index| u64::from(index) * OBJECT_SIZE);
                VolumeAnswer::Changes(Changes { ranges, next })
            }
        }
    }

    /// The snapshots that must stay while this is answered.
    pub(crate) fn held(&self) -> impl Iterator<Item = u64> {
        let (from, to) = match self {
            Self::Usage { .. } => (None, None),
            Self::Changes { from, to, .. } => (*from, Some(*to).filter(|&to| to > 0)),
        };
        from.into_iter().chain(to)
    }
}

impl<S: ObjectStore> Volumes<S> {
    pub(crate) fn begin_question(
        &mut self,
        tag: Option<VolumeTag>,
        request: VolumeRequest,
    ) -> Result<(), VolumeRefusal> {
        let (at, question) = match request {
            VolumeRequest::Usage { volume } => self.usage_of(volume)?,
            VolumeRequest::Changes { volume, from, to, start } => {
                self.changes_of(volume, from, to, start)?
            }
            _ => return Err(VolumeRefusal::BadRange),
        };
        for number in question.held() {
            if let Some(kept) = self.place_mut(at).and_then(|found| found.numbered_mut(number)) {
                kept.holders += 1;
            }
        }
        let number = self.begin_chore(at, ChoreKind::Count, tag);
        self.ask(number, question);
        Ok(())
    }

    fn usage_of(&self, volume: VolumeId) -> Result<(u32, Question), VolumeRefusal> {
        let (at, found) = self.ready(volume)?;
        let seen = found.snapshots.iter().map(|kept| &kept.record);
        let seen = seen.filter(|record| !record.is_leaving && record.name.is_some());
        let usage = VolumeUsage {
            snapshots: seen.clone().map(|record| (record.id, 0)).collect(),
            ..VolumeUsage::default()
        };
        let numbers = seen.map(|record| record.number).collect();
        Ok((at, Question::Usage { usage, numbers }))
    }

    fn changes_of(
        &self,
        volume: VolumeId,
        from: Option<SnapshotId>,
        to: Option<SnapshotId>,
        start: u64,
    ) -> Result<(u32, Question), VolumeRefusal> {
        let (at, found) = self.ready(volume)?;
        let number = |snapshot| -> Result<(u64, u64), VolumeRefusal> {
            let kept = found.named(snapshot).ok_or(VolumeRefusal::SnapshotMissing)?;
            Ok((kept.record.number, kept.record.size))
        };
        let from = from.map(number).transpose()?.map(|(number, _)| number);
        let (to, size) = to.map_or(Ok((0, found.header.size)), number)?;
        let question = Question::Changes {
            from,
            to,
            start,
            size,
            indexes: Vec::new(),
            is_sorted: false,
            asked: 0,
            found: Vec::new(),
        };
        Ok((at, question))
    }

    /// Sends the next comparison of a chore to the object's gate.
    pub(crate) fn send_comparison(&mut self, chore: u32, at: u32) -> bool {
        let next = self.question_mut(chore).and_then(Question::next);
        let Some((index, from, to)) = next else { return false };
        let work = SlowWork::Differ { chore, from, to };
        self.chore_work_begun(chore);
        self.queue_slow(Slow { at, index, work });
        true
    }

    pub(crate) fn chore_differs(
        &mut self,
        chore: u32,
        index: u32,
        differs: &[BlockRange],
        written: &[BlockRange],
    ) {
        if let Some(question) = self.question_mut(chore) {
            question.differs(index, differs, written);
        }
    }
}

/// Runs of blocks that differ, cut where written ones begin and end: first, count, and whether
/// they are zeros.
fn marked(differs: &[BlockRange], written: &[BlockRange]) -> Vec<(u32, u32, bool)> {
    let is_written = |block: u32| {
        let at = written.partition_point(|range| range.first + range.count <= block);
        written.get(at).is_some_and(|range| range.first <= block)
    };
    let mut runs: Vec<(u32, u32, bool)> = Vec::new();
    for block in differs.iter().flat_map(|range| range.first..range.first + range.count) {
        let is_zero = !is_written(block);
        match runs.last_mut() {
            Some((first, count, zero)) if *first + *count == block && *zero == is_zero => {
                *count += 1;
            }
            _ => runs.push((block, 1, is_zero)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_zeros_where_nothing_is_written() {
        let range = |first, count| BlockRange { first, count };
        let runs = marked(&[range(2, 4), range(10, 3)], &[range(0, 3), range(5, 1), range(11, 9)]);
        assert_eq!(
            runs,
            [(2, 1, false), (3, 2, true), (5, 1, false), (10, 1, true), (11, 2, false)]
        );
        assert!(marked(&[], &[range(0, 9)]).is_empty());
    }
}
