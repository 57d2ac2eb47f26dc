// SPDX-License-Identifier: Apache-2.0
//! The end that has the store.

use crate::{Sent, Told, Word};
use plinth_ids::Moment;
use plinth_rt::{Bell, RingReader, RingWriter};
use plinth_store::{ObjectStore, StoreCompletion, StoreTag};

/// A store that is asked by another worker. See the crate's first page.
#[derive(Debug)]
pub struct RelayHost<S> {
    store: S,
    requests: RingReader<Sent>,
    answers: RingWriter<Word>,
    asker: Bell,
    told: Told,
    /// What the store is like has changed since it was told, or may have.
    is_stale: bool,
    /// The most requests that can be under way.
    depth: usize,
    under_way: usize,
    ended: Vec<StoreCompletion>,
}

impl<S: ObjectStore> RelayHost<S> {
    pub(crate) fn new(
        store: S,
        requests: RingReader<Sent>,
        answers: RingWriter<Word>,
        asker: Bell,
        told: Told,
        depth: usize,
    ) -> Self {
        let ended = Vec::with_capacity(depth);
        Self { store, requests, answers, asker, told, is_stale: true, depth, under_way: 0, ended }
    }

    pub const fn store(&self) -> &S {
        &self.store
    }

    pub const fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Requests that the store has.
    pub const fn under_way(&self) -> usize {
        self.under_way
    }

    /// One round: requests in, the store's own round, answers out. Says whether anything moved.
    pub fn poll(&mut self, now: Moment) -> bool {
        let has_taken = self.take_requests();
        let has_moved = self.store.poll(now, &mut self.ended);
        self.is_stale |= has_moved | !self.ended.is_empty();
        let has_answered = self.send_answers();
        has_taken | has_moved | has_answered
    }

    fn take_requests(&mut self) -> bool {
        let mut has_taken = false;
        while self.store.room() > 0 {
            let Some(Sent { place, request }) = self.requests.pop() else { break };
            has_taken = true;
            let taken = self.store.submit(StoreTag(u64::from(place)), request);
            assert!(taken.is_ok(), "the store said that it had room");
            self.under_way += 1;
        }
        has_taken
    }

    fn send_answers(&mut self) -> bool {
        self.tell();
        for StoreCompletion { tag, buffer, result } in self.ended.drain(..) {
            self.under_way -= 1;
            let place = u32::try_from(tag.0).expect("tags are places");
            // What is told leaves a slot for each: see `tell`.
            let sent = self.answers.push(Word::Ended { place, buffer, result });
            assert!(sent.is_ok(), "the ring has a slot for every answer");
        }
        let has_answered = self.answers.publish();
        if has_answered {
            self.asker.ring();
        }
        has_answered
    }

    /// Tells what has become of the store, where that is another thing than was told. Put off
    /// while the asker does not listen, so that it never takes an answer's slot.
    fn tell(&mut self) {
        if !self.is_stale {
            return;
        }
        let told = Told::of(&self.store);
        if told == self.told {
            self.is_stale = false;
        } else if self.answers.room() > self.depth {
            (self.told, self.is_stale) = (told, false);
            let sent = self.answers.push(Word::Told(told));
            assert!(sent.is_ok(), "there was room");
        }
    }

    /// The store, whose asker has let go.
    ///
    /// # Panics
    /// If requests are under way: their answers would have nowhere to go.
    pub fn into_store(self) -> S {
        assert_eq!(self.under_way, 0, "a store is taken back when nothing is under way");
        self.store
    }

    /// Whether the asker is gone.
    pub fn is_abandoned(&self) -> bool {
        self.requests.is_abandoned()
    }
}
