// SPDX-License-Identifier: Apache-2.0
//! The way of an attachment's requests to a pool that another worker keeps.
//!
//! ```text
//!   worker of the queues                       worker of the pool
//!   Attachment ─▶ Door ── pieces, buffers ──▶ Guests ─▶ Volumes ─▶ Span
//!                  ▲                             │
//!                  └────────── ends ─────────────┘
//! ```
//!
//! A door has fairness of its own, between the attachments behind it. What it has under way is
//! bounded by its ring, so a full ring is back-pressure on guests' queues and nothing else.

use crate::pool::Pool;
use plinth_ids::PoolId;
use plinth_qos::Fair;
use plinth_rt::{Bell, RingReader, RingWriter, ring};
use plinth_store::Sight;
use plinth_volume::{VolumeCompletion, VolumeHandle, VolumeRequest, VolumeTag};

/// Pieces under way through one door. Four guests with full queues of 128.
const DEPTH: usize = 512;

/// Pieces taken from a door in one round, so that several doors share a pool.
pub(crate) const BURST: usize = 64;

/// What an attachment needs of its pool, wherever that is.
pub(crate) trait Front {
    fn fair(&mut self) -> &mut Fair;

    /// Whether another piece can be given to it.
    fn has_room(&self) -> bool;

    /// Gives it a piece. Call only after [`Front::has_room`].
    fn submit(&mut self, number: u32, request: VolumeRequest);

    /// As [`plinth_volume::Volumes::lends`], and so are those below. Nothing is seen through a
    /// door: what is lent is the memory of the pool's worker.
    fn lends(&self) -> bool {
        false
    }

    fn sight(&mut self, _volume: VolumeHandle, _offset: u64, _length: u32) -> Option<Sight> {
        None
    }

    fn view(&mut self, _sight: &Sight) -> Option<&[u8]> {
        None
    }

    fn fetch(&mut self) {}
}

impl Front for Pool {
    #[inline]
    fn fair(&mut self) -> &mut Fair {
        &mut self.fair
    }

    #[inline]
    fn has_room(&self) -> bool {
        Self::has_room(self)
    }

    #[inline]
    fn submit(&mut self, number: u32, request: VolumeRequest) {
        Self::submit(self, number, request);
    }

    #[inline]
    fn lends(&self) -> bool {
        self.volumes.lends()
    }

    #[inline]
    fn sight(&mut self, volume: VolumeHandle, offset: u64, length: u32) -> Option<Sight> {
        self.volumes.sight(volume, offset, length)
    }

    #[inline]
    fn view(&mut self, sight: &Sight) -> Option<&[u8]> {
        self.volumes.view(sight)
    }

    #[inline]
    fn fetch(&mut self) {
        self.volumes.fetch();
    }
}

#[derive(Debug)]
struct Sent {
    number: u32,
    request: VolumeRequest,
}

/// A pool as a worker sees it that does not keep it.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) pool: PoolId,
    pub(crate) fair: Fair,
    requests: RingWriter<Sent>,
    answers: RingReader<VolumeCompletion>,
    keeper: Bell,
    under_way: usize,
}

/// The guests of another worker, as the worker of their pool sees them.
#[derive(Debug)]
pub(crate) struct Guests {
    requests: RingReader<Sent>,
    answers: RingWriter<VolumeCompletion>,
    asker: Bell,
}

/// Makes the two ends. The bells are those of the workers that will have them.
pub(crate) fn door(pool: PoolId, asker: Bell, keeper: Bell) -> (Door, Guests) {
    let (requests, incoming) = ring(DEPTH);
    let (outgoing, answers) = ring(DEPTH);
    let door = Door { pool, fair: Fair::new(), requests, answers, keeper, under_way: 0 };
    (door, Guests { requests: incoming, answers: outgoing, asker })
}

impl Door {
    /// One round: what was submitted goes out, what has ended comes in.
    pub(crate) fn poll(&mut self, landed: &mut Vec<VolumeCompletion>) -> usize {
        let mut moved = 0;
        if self.requests.publish() {
            self.keeper.ring();
            moved += 1;
        }
        while let Some(completion) = self.answers.pop() {
            self.under_way -= 1;
            moved += 1;
            landed.push(completion);
        }
        moved
    }
}

impl Front for Door {
    fn fair(&mut self) -> &mut Fair {
        &mut self.fair
    }

    fn has_room(&self) -> bool {
        self.under_way < DEPTH
    }

    fn submit(&mut self, number: u32, request: VolumeRequest) {
        self.under_way += 1;
        let sent = self.requests.push(Sent { number, request });
        assert!(sent.is_ok(), "the ring has a slot for all that may be under way");
    }
}

impl Guests {
    /// The next piece, with its number at the door.
    pub(crate) fn take(&mut self) -> Option<(u32, VolumeRequest)> {
        self.requests.pop().map(|Sent { number, request }| (number, request))
    }

    /// The end of a piece, under the number that it came with.
    pub(crate) fn answer(&mut self, number: u32, completion: VolumeCompletion) {
        let tag = VolumeTag(u64::from(number));
        let sent = self.answers.push(VolumeCompletion { tag, ..completion });
        assert!(sent.is_ok(), "the ring has a slot for every piece under way");
    }

    /// Shows the other side what was answered.
    pub(crate) fn publish(&mut self) {
        if self.answers.publish() {
            self.asker.ring();
        }
    }
}
