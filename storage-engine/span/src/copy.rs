// SPDX-License-Identifier: Apache-2.0
//! Copying one object from the disk that has it to the one that shall.
//!
//! ```text
//!   whole:   version, attributes ─▶ compare ─▶ (remove, clone a base) ─▶ size, attributes ─▶ pieces
//!   parts:   version, attributes ──────────────────────────────────────────────────────────▶ pieces
//!   piece:   read from the source ─▶ zeros: zero; else: write to the target
//!   pieces ─▶ keys, a run at a time: list at both ─▶ differ: cut the run and set it ─▶ version
//! ```
//! The object may change meanwhile; then it is dirty, and is copied again. So the version that was
//! read first is that of what was copied, or of nothing that stays.

mod keys;

use crate::route::Dirt;
use crate::span::Omit;
use plinth_store::{
    BlockRange, BufferPool, IoBuffer, KEY_MAX, ObjectId, ObjectKey, Operation, StoreAnswer,
    StoreRefusal, StoreRequest, VALUE_MAX,
};
use std::collections::VecDeque;

/// Bytes read at once.
pub(crate) const PIECE: u32 = 256 << 10;

/// What is all zeros in steps of this stays unwritten: the store's unit.
const UNIT: u32 = 32 << 10;

const BLOCK: u32 = 4096;

/// Attributes that one transaction sets, beside its other two steps.
const ATTRIBUTES: usize = 30;

/// Pairs of keys that one transaction sets, and their bytes: with the longest pairs some twenty
/// pages of the journal, of which the smallest one takes 32 at once.
const KEYS: usize = 256;
pub(crate) const KEY_BYTES: usize = 16 << 10;

// A run that took no pair would end the copy before its last key.
const _: () = assert!(KEY_MAX + VALUE_MAX <= KEY_BYTES, "a run takes any one pair");

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Parts of an object to copy again before it is copied whole.
const PARTS_MAX: usize = 32;

/// What is to be copied of an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Task {
    /// The target has nothing of it.
    First,
    /// The target may have it, and anything may have changed.
    Whole,
    /// The target has it, but for these bytes.
    Parts(Vec<(u32, u32)>),
}

impl Task {
    pub(crate) fn of(dirt: Dirt) -> Self {
        match dirt {
            Dirt::Whole => Self::Whole,
            Dirt::Range { start, end } => Self::Parts(vec![(start, end)]),
            Dirt::Rest | Dirt::Log { .. } => Self::Parts(Vec::new()),
        }
    }

    /// Joins what changed later.
    pub(crate) fn join(&mut self, dirt: Dirt) {
        match (&mut *self, dirt) {
            (Self::Parts(parts), Dirt::Range { start, end }) => {
                let touching = |part: &(u32, u32)| part.0 <= end && start <= part.1;
                let (mut start, mut end) = (start, end);
                parts.retain(|part| {
                    if touching(part) {
                        (start, end) = (start.min(part.0), end.max(part.1));
                    }
                    !touching(part)
                });
                parts.push((start, end));
                if parts.len() > PARTS_MAX {
                    *self = Self::Whole;
                }
            }
            (Self::First | Self::Whole, _) | (_, Dirt::Rest | Dirt::Log { .. }) => {}
            (Self::Parts(_), Dirt::Whole) => *self = Self::Whole,
        }
    }

    /// Bytes it is about, as far as is known.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::First | Self::Whole => u64::from(plinth_store::OBJECT_SIZE_MAX),
            // A block for its keys, of which nobody knows how many changed.
            Self::Parts(parts) => {
                let bytes = parts.iter().map(|part| u64::from(part.1 - part.0));
                bytes.sum::<u64>() + u64::from(BLOCK)
            }
        }
    }
}

/// What a copier wants done next.
#[derive(Debug)]
pub(crate) enum Action {
    Source(StoreRequest),
    Target(StoreRequest),
    Done,
    Failed(StoreRefusal),
}

/// The answer that a copier goes on with.
pub(crate) type Answer = (Option<IoBuffer>, Result<StoreAnswer, StoreRefusal>);

#[derive(Debug)]
enum Step {
    Begin,
    Version,
    Attributes,
    Sharing,
    Comparing,
    Removing,
    Cloning,
    /// The attributes that came with the clone.
    Inherited,
    Making,
    Reading {
        start: u32,
        length: u32,
    },
    Writing,
    /// A run of keys of the source.
    Keys,
    /// The same run of the target's keys.
    KnownKeys {
        pairs: Pairs,
        is_last: bool,
    },
    SettingKeys {
        is_last: bool,
    },
    Finishing,
}

#[derive(Debug)]
pub(crate) struct Copier {
    key: ObjectKey,
    task: Task,
    step: Step,
    omit: Omit,
    version: u64,
    /// The last key of the runs that are equal on both sides.
    after: Option<Vec<u8>>,
    /// `None` while the source did not say that there is such an object.
    size: Option<u32>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Objects that the target has as the source has them, to be compared with.
    candidates: Vec<ObjectKey>,
    comparing: Option<ObjectKey>,
    /// The one that differs least so far, `None` for an object of zeros, and by what.
    base: Option<ObjectKey>,
    ranges: Option<Vec<BlockRange>>,
    parts: VecDeque<(u32, u32)>,
}

impl Copier {
    pub(crate) fn new(key: ObjectKey, task: Task, candidates: Vec<ObjectKey>, omit: Omit) -> Self {
        Self {
            omit,
            version: 0,
            after: None,
            key,
            task,
            step: Step::Begin,
            size: None,
            attributes: Vec::new(),
            candidates,
            comparing: None,
            base: None,
            ranges: None,
            parts: VecDeque::new(),
        }
    }

    pub(crate) const fn key(&self) -> ObjectKey {
        self.key
    }

    /// Takes the answer to the last action, none to begin, and says what to do next.
    pub(crate) fn next(&mut self, answer: Option<Answer>, buffers: &mut BufferPool) -> Action {
        match answer {
            None => self.begin(),
            Some((buffer, Ok(answer))) => self.go_on(answer, buffer, buffers),
            Some((buffer, Err(refusal))) => {
                if let Some(buffer) = buffer {
                    buffers.put(buffer);
                }
                match (&self.step, refusal) {
                    (Step::Version | Step::Attributes, StoreRefusal::NotFound { .. }) => {
                        self.remove()
                    }
                    // It was removed meanwhile, and will be so on the target.
                    (Step::Keys, StoreRefusal::NotFound { .. }) => Action::Done,
                    (Step::KnownKeys { .. }, StoreRefusal::NotFound { .. }) => {
                        self.settle_keys(&[])
                    }
                    (
                        Step::Cloning,
                        StoreRefusal::TooManyClones { .. } | StoreRefusal::NotFound { .. },
                    ) => {
                        // Then without sharing.
                        self.candidates.clear();
                        (self.base, self.ranges) = (None, None);
                        self.compare(None)
                    }
                    _ => Action::Failed(refusal),
                }
            }
        }
    }

    fn begin(&mut self) -> Action {
        self.step = Step::Version;
        Action::Source(StoreRequest::Status { key: self.key })
    }

    fn go_on(
        &mut self,
        answer: StoreAnswer,
        buffer: Option<IoBuffer>,
        buffers: &mut BufferPool,
    ) -> Action {
        match (std::mem::replace(&mut self.step, Step::Begin), answer) {
            (Step::Version, StoreAnswer::Status { version, .. }) => {
                self.version = version;
                self.step = Step::Attributes;
                Action::Source(StoreRequest::Attributes { key: self.key })
            }
            (Step::Attributes, StoreAnswer::Attributes { size, attributes, .. }) => {
                (self.size, self.attributes) = (Some(size), attributes);
                if let Task::Parts(parts) = &self.task {
                    // Nothing past the end, which would make the target larger than the source.
                    let inside = parts.iter().map(|part| (part.0, part.1.min(size)));
                    self.parts = inside.collect();
                    return self.read(buffers);
                }
                if self.candidates.is_empty() {
                    return self.compare(None);
                }
                self.step = Step::Sharing;
                Action::Source(StoreRequest::Usage { key: self.key })
            }
            (Step::Sharing, StoreAnswer::Usage { units, unique, .. }) => {
                if units == unique {
                    self.candidates.clear();
                }
                self.compare(None)
            }
            (Step::Comparing, StoreAnswer::Compared { ranges }) => self.compared(ranges),
            (Step::Removing, _) => {
                if self.size.is_some() {
                    self.clone_base()
                } else {
                    Action::Done
                }
            }
            (Step::Cloning, _) => {
                self.step = Step::Inherited;
                Action::Target(StoreRequest::Attributes { key: self.key })
            }
            (Step::Inherited, StoreAnswer::Attributes { attributes, .. }) => self.shed(attributes),
            (Step::Making, _) if !self.attributes.is_empty() => self.make(),
            (Step::Making, _) => {
                self.lay_out();
                self.read(buffers)
            }
            (Step::Reading { start, length }, _) => match buffer {
                Some(buffer) => self.write(start, length, buffer, buffers),
                None => Action::Failed(StoreRefusal::ShortBuffer),
            },
            (Step::Writing, _) => {
                if let Some(buffer) = buffer {
                    buffers.put(buffer);
                }
                self.read(buffers)
            }
            (Step::Keys, StoreAnswer::Keys { pairs, more }) => self.look_at_keys(pairs, more),
            (Step::KnownKeys { pairs, is_last }, StoreAnswer::Keys { pairs: known, .. }) => {
                self.step = Step::KnownKeys { pairs, is_last };
                self.settle_keys(&known)
            }
            (Step::SettingKeys { is_last }, _) => self.next_keys(is_last),
            (Step::Finishing, _) => Action::Done,
            (step, answer) => unreachable!("{step:?} is not answered by {answer:?}"),
        }
    }

    /// Asks how the object differs from an object of zeros, or from a candidate.
    fn compare(&mut self, with: Option<ObjectKey>) -> Action {
        let nothing = ObjectKey { object: ObjectId(u128::MAX), snapshot: u64::MAX, ..self.key };
        self.comparing = with;
        self.step = Step::Comparing;
        Action::Source(StoreRequest::Compare { a: with.unwrap_or(nothing), b: self.key })
    }

    fn compared(&mut self, ranges: Vec<BlockRange>) -> Action {
        let blocks = |ranges: &[BlockRange]| ranges.iter().map(|range| range.count).sum::<u32>();
        if self.ranges.as_ref().is_none_or(|best| blocks(&ranges) < blocks(best)) {
            (self.base, self.ranges) = (self.comparing, Some(ranges));
        }
        match self.candidates.pop() {
            Some(candidate) => self.compare(Some(candidate)),
            None => self.remove(),
        }
    }

    fn remove(&mut self) -> Action {
        if self.task == Task::First {
            return if self.size.is_some() { self.clone_base() } else { Action::Done };
        }
        self.step = Step::Removing;
        let transaction = vec![Operation::Remove { key: self.key }];
        Action::Target(StoreRequest::Apply { transaction })
    }

    fn clone_base(&mut self) -> Action {
        let Some(source) = self.base else { return self.make() };
        self.step = Step::Cloning;
        let transaction = vec![Operation::Clone { source, target: self.key }];
        Action::Target(StoreRequest::Apply { transaction })
    }

    /// Sets the size and some of the attributes.
    fn make(&mut self) -> Action {
        let key = self.key;
        let size = self.size.unwrap_or(0) / BLOCK * BLOCK;
        let mut transaction = vec![Operation::Truncate { key, size }];
        let first = self.attributes.len().saturating_sub(ATTRIBUTES);
        for (name, value) in self.attributes.drain(first..) {
            transaction.push(Operation::SetAttribute { key, name, value });
        }
        self.step = Step::Making;
        Action::Target(StoreRequest::Apply { transaction })
    }

    /// Takes away those attributes of the base that the object does not have.
    fn shed(&mut self, inherited: Vec<(Vec<u8>, Vec<u8>)>) -> Action {
        let own = |name: &Vec<u8>| self.attributes.iter().any(|(known, _)| known == name);
        let foreign = inherited.into_iter().map(|(name, _)| name).filter(|name| !own(name));
        let key = self.key;
        let step = |name| Operation::RemoveAttribute { key, name };
        // An attribute that is left over shows again when these are gone.
        let transaction: Vec<_> = foreign.take(ATTRIBUTES).map(step).collect();
        if transaction.is_empty() {
            return self.make();
        }
        self.step = Step::Cloning;
        Action::Target(StoreRequest::Apply { transaction })
    }

    /// The parts to copy: the blocks that differ.
    fn lay_out(&mut self) {
        let size = self.size.unwrap_or(0);
        let part = |range: &BlockRange| {
            (range.first * BLOCK, ((range.first + range.count) * BLOCK).min(size))
        };
        self.parts = self.ranges.iter().flatten().map(part).collect();
        // What is past the last whole block was cut off, so that writing it makes the size.
        let whole = size / BLOCK * BLOCK;
        self.parts.retain(|part| part.0 < whole);
        if let Some(last) = self.parts.back_mut() {
            last.1 = last.1.min(whole);
        }
        self.parts.push_back((whole, size));
    }

    fn read(&mut self, buffers: &mut BufferPool) -> Action {
        let (key, offset, length) = loop {
            let Some((start, end)) = self.parts.pop_front() else {
                return self.next_keys(self.omit == Omit::Keys);
            };
            if start >= end {
                continue;
            }
            // Pieces end at multiples, so that zeros are seen in whole units.
            let stop = end.min(start / PIECE * PIECE + PIECE);
            self.parts.push_front((stop, end));
            break (self.key, start, stop - start);
        };
        self.step = Step::Reading { start: offset, length };
        let buffer = buffers.take((offset % BLOCK + length).next_multiple_of(BLOCK) as usize);
        Action::Source(StoreRequest::Read { key, offset, length, buffer })
    }

    /// Writes the first run of units that are all zeros, or all not; the rest is read again, which
    /// costs less than a second buffer would, for such pieces are few.
    fn write(
        &mut self,
        start: u32,
        length: u32,
        mut buffer: IoBuffer,
        buffers: &mut BufferPool,
    ) -> Action {
        let (skew, end) = (start % BLOCK, start + length);
        // Where the target has nothing, what the source has written is written as it is.
        let is_fresh = self.base.is_none() && !matches!(self.task, Task::Parts(_));
        let is_zero = |from: u32, to: u32| {
            let bytes = &buffer.as_bytes()[(skew + from - start) as usize..];
            !is_fresh && is_zero(&bytes[..(to - from) as usize])
        };
        let unit_end = |at: u32| (at / UNIT * UNIT + UNIT).min(end);
        let are_zeros = is_zero(start, unit_end(start));
        let mut stop = unit_end(start);
        while stop < end && is_zero(stop, unit_end(stop)) == are_zeros {
            stop = unit_end(stop);
        }
        if stop < end {
            self.parts.push_front((stop, end));
        }
        let key = self.key;
        self.step = Step::Writing;
        let length = stop - start;
        let is_aligned = start.is_multiple_of(BLOCK) && stop.is_multiple_of(BLOCK);
        if are_zeros && is_aligned {
            buffers.put(buffer);
            let transaction = vec![Operation::Zero { key, offset: start, length }];
            return Action::Target(StoreRequest::Apply { transaction });
        }
        buffer.set_length((skew + length).next_multiple_of(BLOCK) as usize);
        Action::Target(StoreRequest::Write { key, offset: start, length, buffer })
    }
}

/// Sixteen bytes at a time; a loop over bytes with an early end is not vectorised.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_le_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_touch_become_one_and_too_many_the_whole() {
        let mut task = Task::of(Dirt::Range { start: 10, end: 20 });
        task.join(Dirt::Range { start: 30, end: 40 });
        task.join(Dirt::Range { start: 20, end: 30 });
        assert_eq!(task, Task::Parts(vec![(10, 40)]));
        for number in 1..=u32::try_from(PARTS_MAX).unwrap() {
            task.join(Dirt::Range { start: number * 100, end: number * 100 + 1 });
        }
        assert_eq!(task, Task::Whole);
    }
}
