// SPDX-License-Identifier: Apache-2.0
//! Requests of clients on their way.

use crate::range::Direction;
use crate::request::{VolumeCompletion, VolumeRefusal, VolumeTag};
use crate::volumes::Volumes;
use crate::zero::Zeroing;
use plinth_store::{IoBuffer, ObjectStore, StoreAnswer, StoreRefusal};

/// The part of a request in the tag of a store request, above the request's number.
const PART_SHIFT: u32 = 40;

#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) tag: VolumeTag,
    /// The volume's place in the table.
    pub(crate) at: u32,
    pub(crate) buffer: Option<IoBuffer>,
    pub(crate) parts: u32,
    pub(crate) refusal: Option<VolumeRefusal>,
    /// Its parts change the volume.
    pub(crate) is_change: bool,
    pub(crate) kind: PendingKind,
}

#[derive(Debug)]
pub(crate) enum PendingKind {
    /// One store request carries the buffer.
    Whole,
    /// Several store requests carry parts; where each begins in the buffer.
    Parts { starts: [usize; 2], direction: Direction },
    /// A range that is zeroed object by object.
    Zero(Box<Zeroing>),
}

#[derive(Debug, Default)]
pub(crate) struct Requests {
    places: Vec<Option<Pending>>,
    free: Vec<u32>,
    /// Zeroed ranges that have objects left.
    pub(crate) zeroing: Vec<u32>,
}

impl Requests {
    pub(crate) fn is_empty(&self) -> bool {
        self.places.len() == self.free.len()
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut Pending> {
        self.places.get_mut(number as usize)?.as_mut()
    }
}

pub(crate) const fn part_tag(number: u32, part: usize) -> u64 {
    number as u64 | (part as u64) << PART_SHIFT
}

impl<S: ObjectStore> Volumes<S> {
    pub(crate) fn insert(&mut self, pending: Pending) -> u32 {
        if let Some(volume) = self.place_mut(pending.at) {
            volume.under_way += 1;
        }
        let requests = &mut self.requests;
        if let Some(number) = requests.free.pop() {
            requests.places[number as usize] = Some(pending);
            return number;
        }
        requests.places.push(Some(pending));
        u32::try_from(requests.places.len() - 1).expect("clients bound what is on its way")
    }

    /// A store request of a client's request has ended, one that went straight to its object.
    pub(crate) fn request_answer(
        &mut self,
        tag: u64,
        buffer: Option<IoBuffer>,
        result: Result<StoreAnswer, StoreRefusal>,
    ) {
        let number = u32::try_from(tag & ((1 << PART_SHIFT) - 1)).unwrap_or(u32::MAX);
        let part = usize::try_from(tag >> PART_SHIFT).unwrap_or(0);
        if self.zero_listed(number, part, &result) {
            return;
        }
        let Some(pending) = self.requests.get_mut(number) else { return };
        let (at, is_change) = (pending.at, pending.is_change);
        let result = match result {
            Ok(StoreAnswer::Changed { units, objects, .. }) => {
                if let Some(volume) = self.place_mut(at) {
                    volume.heads.add(units, objects);
                }
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(refusal) => Err(VolumeRefusal::Store(refusal)),
        };
        if is_change && let Some(volume) = self.place_mut(at) {
            volume.changing -= 1;
        }
        self.part_done(number, part, buffer, result);
    }

    /// One part of a request has ended.
    pub(crate) fn part_done(
        &mut self,
        number: u32,
        part: usize,
        buffer: Option<IoBuffer>,
        result: Result<(), VolumeRefusal>,
    ) {
        let Some(pending) = self.requests.get_mut(number) else { return };
        pending.refusal = pending.refusal.or(result.err());
        pending.parts -= 1;
        match (&pending.kind, buffer) {
            (PendingKind::Whole, Some(buffer)) => pending.buffer = Some(buffer),
            (PendingKind::Parts { starts, direction }, Some(buffer)) => {
                if let (Direction::Read, Some(whole)) = (direction, &mut pending.buffer) {
                    let at = starts[part.min(1)];
                    let bytes = buffer.as_bytes();
                    whole.as_bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
                }
                self.store.put_buffer(buffer);
            }
            (PendingKind::Zero(_), Some(buffer)) => self.store.put_buffer(buffer),
            (_, None) => {}
        }
        self.end_if_done(number);
    }

    /// Ends a request whose parts have all been answered.
    pub(crate) fn end_if_done(&mut self, number: u32) {
        let Some(pending) = self.requests.get_mut(number) else { return };
        let has_more = match &pending.kind {
            PendingKind::Zero(zeroing) => {
                zeroing.is_listing || (!zeroing.is_done() && pending.refusal.is_none())
            }
            PendingKind::Whole | PendingKind::Parts { .. } => false,
        };
        if pending.parts > 0 || has_more {
            return;
        }
        if let Some(pending) = self.requests.places[number as usize].take() {
            self.requests.free.push(number);
            if let Some(volume) = self.place_mut(pending.at) {
                volume.under_way -= 1;
            }
            let Pending { tag, buffer, refusal, .. } = pending;
            let result = refusal.map_or(Ok(()), Err);
            self.completions.push(VolumeCompletion { tag, buffer, result, answer: None });
        }
    }
}
