// SPDX-License-Identifier: Apache-2.0
#![allow(unsafe_code, reason = "a fence: affinity, eventfd, epoll and the cycle counter are here")]
//! The worker: one thread, pinned to one CPU if asked, that runs one [`Poller`] in rounds.
//!
//! ```text
//!            work                     idle for `spin`             nothing found
//!   Busy ──────────▶ Busy     Busy ──────────────────▶ Armed ──────────────────▶ Asleep
//!    ▲                                                   │ work                     │
//!    └───────────────────────── disarm ──────────────────┴────── work found ────────┘
//! ```
//!
//! Laws:
//! * A round that found work is followed by another round, never by a sleep.
//! * Before every sleep the poller is armed and polled once more: what came between the last
//!   round and the arming is seen by that round, what comes later makes a descriptor ready.
//! * A sleep has a bound wherever a source of work has no descriptor ([`Wake::Timer`]) or the
//!   poller has a deadline.
//!
//! What a worker does with a panic is the program's choice (`plinth_obs::abort_on_panic`).

mod affinity;
mod clock;
mod counting;
mod descriptor;
mod epoll;
mod inbox;
mod ring;
mod signals;
mod stats;
mod waker;
mod worker;

pub use affinity::{AffinityError, allow_all_cpus, allowed_cpus, pin_to};
pub use clock::{Clock, cycles};
pub use counting::{CountingAllocator, allocated_bytes, allocations};
pub use descriptor::replace_descriptor;
pub use inbox::{Inbox, InboxSender, SendError, inbox};
pub use ring::{Bell, RingReader, RingWriter, ring};
pub use signals::StopSignals;
pub use stats::{StatsSnapshot, WorkerStats};
pub use waker::Waker;
pub use worker::{Mode, SpawnError, Timing, Worker, WorkerConfig};

use plinth_ids::Moment;
use std::os::fd::BorrowedFd;

/// One thing that a worker calls each round.
///
/// It is made, used and dropped on the worker's own thread, so it need not be `Send`.
pub trait Poller {
    /// Does at most one burst of work a source, waits for nothing, and says how much was done
    /// (packets, requests, messages). Zero means idle: a poller that always has something to
    /// report keeps the CPU for ever.
    fn poll(&mut self, now: Moment) -> usize;

    /// When the poller next needs a round even if nothing arrives.
    fn deadline(&self) -> Option<Moment> {
        None
    }

    /// Asks every source to announce its next work through a descriptor of [`Self::watch`].
    /// The worker polls once more after this call, so an implementation only has to make sure
    /// that work which arrives after `arm` returned is announced.
    fn arm(&mut self) -> Wake {
        Wake::Timer
    }

    /// Takes [`Self::arm`] back: the worker polls by itself again.
    fn disarm(&mut self) {}

    /// Names every descriptor that announces work. They are watched edge-triggered, so an
    /// eventfd need not be read to be heard again.
    fn watch(&self, _watch: &mut dyn FnMut(BorrowedFd<'_>)) {}

    /// Changes whenever [`Self::watch`] would name other descriptors than at the last call.
    /// A descriptor that is closed and opened again under the same number is another one.
    fn watch_version(&self) -> u64 {
        0
    }
}

/// How a poller's sources announce work while the worker sleeps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wake {
    /// Each through a descriptor.
    Descriptors,
    /// At least one not at all: the worker must look at it from time to time.
    Timer,
}
