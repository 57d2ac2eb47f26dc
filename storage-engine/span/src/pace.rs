// SPDX-License-Identifier: Apache-2.0
//! The rate of moves: what is read from the source waits here until that is allowed.
//!
//! Only the first copy of a group is held back (`Stage::Copy`): its data, its keys and its log.
//! What changed meanwhile is copied as fast as it goes, for it must be copied faster than it changes.
//! How much a run of keys or of a log has is known when it is there, so the most that a run may
//! have is taken before, and the rest given back.

use crate::copy::KEY_BYTES;
use crate::log::ENTRY_BYTES;
use crate::mover::{COPIERS, LOG_CALL, Stage};
use crate::span::Span;
use plinth_ids::Moment;
use plinth_store::{ObjectStore, StoreAnswer, StoreRefusal, StoreRequest};
use std::collections::VecDeque;

#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes a second.
    pub(crate) rate: u64,
    allowance: u64,
    filled_at: Moment,
    /// Requests that wait for the rate.
    waiting: VecDeque<(u32, StoreRequest)>,
    /// What was taken for a run that is being read, of each copier and of the log.
    taken: [u64; COPIERS + 1],
}

/// The most that a request copies; `None` for one that is not held back.
fn cost(call: u32, request: &StoreRequest) -> Option<u64> {
    match request {
        StoreRequest::Read { length, .. } => Some(u64::from(*length)),
        StoreRequest::ListKeys { .. } => Some(KEY_BYTES as u64),
        StoreRequest::ReadLog { .. } if call == LOG_CALL => Some(ENTRY_BYTES as u64),
        _ => None,
    }
}

/// Where a call has its place among what was taken.
fn place(call: u32) -> Option<usize> {
    if call == LOG_CALL { Some(COPIERS) } else { Some(call as usize).filter(|&at| at < COPIERS) }
}

impl Pace {
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            rate,
            allowance: 0,
            filled_at: Moment::ZERO,
            waiting: VecDeque::new(),
            taken: [0; COPIERS + 1],
        }
    }

    /// How many requests wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Adds what the time since the last call allows.
    pub(crate) fn refill(&mut self, now: Moment) {
        let passed = now.saturating_sub(self.filled_at);
        self.filled_at = now;
        let more = u128::from(self.rate) * passed.as_micros() / 1_000_000;
        self.give(u64::try_from(more).unwrap_or(u64::MAX));
    }

    /// At most a quarter of a second's worth is kept.
    fn give(&mut self, bytes: u64) {
        let most = (self.rate / 4).max(u64::from(crate::copy::PIECE));
        self.allowance = self.allowance.saturating_add(bytes).min(most);
    }

    /// Hears of an answer from either side, and gives back what a run did not have.
    pub(crate) fn heard(&mut self, call: u32, result: &Result<StoreAnswer, StoreRefusal>) {
        let Some(place) = place(call) else { return };
        let taken = std::mem::take(&mut self.taken[place]);
        let had: usize = match result {
            Ok(StoreAnswer::Keys { pairs, .. }) => {
                pairs.iter().map(|(name, value)| name.len() + value.len()).sum()
            }
            Ok(StoreAnswer::Log { entries, .. }) => {
                entries.iter().map(|(_, entry)| entry.len()).sum()
            }
            _ => 0,
        };
        self.give(taken.saturating_sub(had as u64));
    }
}

impl<S: ObjectStore> Span<S> {
    /// Reads from the source when the rate allows it.
    pub(crate) fn call_source_in_time(&mut self, call: u32, request: StoreRequest) {
        let Some(many) = &mut self.many else { return };
        let mover = &mut many.mover;
        if mover.stage != Stage::Copy || cost(call, &request).is_none() {
            return self.call_source(call, request);
        }
        mover.pace.waiting.push_back((call, request));
        mover.calls += 1;
        self.release_throttled();
    }

    pub(crate) fn release_throttled(&mut self) {
        loop {
            let Some(many) = &mut self.many else { return };
            let mover = &mut many.mover;
            let pace = &mut mover.pace;
            let Some((call, request)) = pace.waiting.front() else { return };
            let (call, cost) = (*call, cost(*call, request).unwrap_or(0));
            let is_limited = mover.stage == Stage::Copy && mover.failed.is_none();
            if is_limited && pace.allowance < cost {
                return;
            }
            let Some((_, request)) = pace.waiting.pop_front() else { return };
            let taken = cost.min(pace.allowance);
            pace.allowance -= taken;
            if let Some(place) =
                place(call).filter(|_| !matches!(request, StoreRequest::Read { .. }))
            {
                pace.taken[place] = taken;
            }
            mover.calls -= 1;
            self.call_source(call, request);
        }
    }
}
