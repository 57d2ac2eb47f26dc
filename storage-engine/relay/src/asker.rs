// SPDX-License-Identifier: Apache-2.0
//! The end that stands where a store would.

use crate::{Sent, Told, Word};
use plinth_ids::Moment;
use plinth_rt::{Bell, RingReader, RingWriter};
use plinth_store::{
    BufferPool, DiskError, IoBuffer, ObjectStore, ReadOnlyReason, StoreCapacity, StoreCompletion,
    StoreRefusal, StoreRequest, StoreState, StoreTag,
};

/// Bytes of free buffers that are kept.
const BUFFER_BYTES: usize = 32 << 20;

/// A store on another worker. See the crate's first page.
#[derive(Debug)]
pub struct RelayStore {
    requests: RingWriter<Sent>,
    answers: RingReader<Word>,
    owner: Bell,
    told: Told,
    /// The tags of what is under way, by place.
    places: Vec<Option<StoreTag>>,
    free: Vec<u32>,
    buffers: BufferPool,
    /// The host's end is gone.
    is_cut: bool,
}

impl RelayStore {
    pub(crate) fn new(
        requests: RingWriter<Sent>,
        answers: RingReader<Word>,
        owner: Bell,
        told: Told,
        depth: usize,
    ) -> Self {
        let count = u32::try_from(depth).expect("a relay's depth is small");
        Self {
            requests,
            answers,
            owner,
            told,
            places: vec![None; depth],
            free: (0..count).rev().collect(),
            buffers: BufferPool::new(BUFFER_BYTES),
            is_cut: false,
        }
    }

    /// Requests that have no answer yet.
    pub fn under_way(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn take_answers(&mut self, into: &mut Vec<StoreCompletion>) -> bool {
        let mut has_moved = false;
        while let Some(word) = self.answers.pop() {
            has_moved = true;
            match word {
                Word::Told(told) => self.told = told,
                Word::Ended { place, buffer, result } => {
                    let tag = self.places.get_mut(place as usize).and_then(Option::take);
                    let tag = tag.expect("the host answers each request once");
                    self.free.push(place);
                    into.push(StoreCompletion { tag, buffer, result });
                }
            }
        }
        has_moved
    }

    /// The host is gone: nothing that is under way will be answered by it. Whether it was carried
    /// out is not known, as of a disk that fails.
    fn cut(&mut self, into: &mut Vec<StoreCompletion>) -> bool {
        self.take_answers(into);
        self.is_cut = true;
        self.told.state = StoreState::ReadOnly(ReadOnlyReason::Data(DiskError::Gone));
        for (place, tag) in (0..).zip(&mut self.places) {
            let Some(tag) = tag.take() else { continue };
            self.free.push(place);
            let result = Err(StoreRefusal::ReadOnly);
            into.push(StoreCompletion { tag, buffer: None, result });
        }
        true
    }
}

impl ObjectStore for RelayStore {
    fn submit(&mut self, tag: StoreTag, request: StoreRequest) -> Result<(), StoreRequest> {
        let Some(place) = self.free.pop() else { return Err(request) };
        match self.requests.push(Sent { place, request }) {
            Ok(()) => {
                self.places[place as usize] = Some(tag);
                Ok(())
            }
            // The ring has a slot for every place, so this is never so; and if it were, the
            // request would wait like any other that finds the store full.
            Err(Sent { request, .. }) => {
                self.free.push(place);
                Err(request)
            }
        }
    }

    fn poll(&mut self, _now: Moment, into: &mut Vec<StoreCompletion>) -> bool {
        let has_sent = self.requests.publish();
        if has_sent {
            self.owner.ring();
        }
        let has_taken = self.take_answers(into);
        if self.under_way() > 0 && !has_taken && self.answers.is_abandoned() {
            return self.cut(into);
        }
        has_sent | has_taken
    }

    fn room(&self) -> usize {
        self.free.len()
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.places.len()
    }

    fn state(&self) -> StoreState {
        self.told.state
    }

    fn capacity(&self) -> StoreCapacity {
        self.told.capacity
    }

    fn take_buffer(&mut self, length: usize) -> IoBuffer {
        self.buffers.take(length)
    }

    fn put_buffer(&mut self, buffer: IoBuffer) {
        self.buffers.put(buffer);
    }
}
