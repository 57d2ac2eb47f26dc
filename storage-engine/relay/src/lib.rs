// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! A store that another worker owns, reached by a ring.
//!
//! ```text
//!   worker of the pool                              worker of the disk
//!   Span ─▶ RelayStore ── requests, with buffers ──▶ RelayHost ─▶ Store ─▶ Disk
//!               ▲                                        │
//!               └──────── answers, what the disk has ────┘
//! ```
//!
//! [`RelayStore`] is an [`plinth_store::ObjectStore`] like the one behind it. Buffers travel as
//! they are: nothing is copied, locked or allocated for a request. What is under way is bounded by
//! what both the ring and the store take, so no request is ever refused half way, and none is lost
//! while both ends live.
//!
//! Laws:
//! * Requests reach the store in the order of their submission, and each has one answer.
//! * What is told of the store (its state and capacity) comes before the answers of the same
//!   round, so that whoever hears that a write failed knows already that the disk takes none.
//! * If the host's end goes away, what is under way is answered with
//!   [`plinth_store::StoreRefusal::ReadOnly`], and so is everything later.

mod asker;
mod host;

pub use asker::RelayStore;
pub use host::RelayHost;

use plinth_rt::{Bell, ring};
use plinth_store::{
    ObjectStore, StoreAnswer, StoreCapacity, StoreRefusal, StoreRequest, StoreState,
};

/// The most requests on their way through one relay. A worker has at most 4096 pieces of guests
/// under way, and a store of a disk takes fewer than this at a time.
pub const DEPTH: usize = 4096;

/// A request, under its place at the asker.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) place: u32,
    pub(crate) request: StoreRequest,
}

/// What comes back.
#[derive(Debug)]
pub(crate) enum Word {
    Ended {
        place: u32,
        buffer: Option<plinth_store::IoBuffer>,
        result: Result<StoreAnswer, StoreRefusal>,
    },
    /// What the store is like from here on.
    Told(Told),
}

/// What an asker knows of the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Told {
    pub(crate) state: StoreState,
    pub(crate) capacity: StoreCapacity,
}

impl Told {
    pub(crate) fn of(store: &impl ObjectStore) -> Self {
        Self { state: store.state(), capacity: store.capacity() }
    }
}

/// Puts a relay before a store with nothing under way. `asker` and `owner` are the bells of the
/// workers that will poll the two ends.
pub fn relay<S: ObjectStore>(store: S, asker: Bell, owner: Bell) -> (RelayStore, RelayHost<S>) {
    let depth = store.room().clamp(1, DEPTH);
    let told = Told::of(&store);
    let (requests, incoming) = ring(depth);
    // An answer to each request, and as much again for what is told between them.
    let (answers, outgoing) = ring(2 * depth);
    let near = RelayStore::new(requests, outgoing, owner, told, depth);
    (near, RelayHost::new(store, incoming, answers, asker, told, depth))
}
