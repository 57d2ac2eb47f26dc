// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The lifecycle of one VM: from wish and events to what to do with its QEMU process.
//!
//! ```text
//!   Off ──wish to run──▶ Launching ──launched──▶ Running ──wish to stop──▶ Stopping
//!    ▲                    │      ▲                │    │                    │    │
//!    │              failed│      │wait over       │    │guest off           │    │grace over,
//!    │                    ▼      │          exited│    │                    │    │guest off
//!    │                   Waiting ◀────────────────┘    │              exited│    ▼
//!    │                    │ too often                  └────────────────────┼─▶ Quitting
//!    │                    ▼                                                 │    │ too slow
//!    │                   Failed                                             │    ▼
//!    └◀── wish to stop ───┴──────────◀── exited ────────────────────────────┴─ Killing
//! ```
//!
//! The laws: at most one process exists; a process that died unasked is started again, with
//! growing pauses, until it died too often; a guest that switched itself off stays off until an
//! operator asks for a start with a higher start number.
//!
//! This crate does no I/O. `plinth-qemu` carries the effects out, `plinth-node` joins the two.

mod lifecycle;

pub use lifecycle::{
    Effect, Input, KILL_PAUSE, Lifecycle, PRESS_PAUSE, QUIT_TIME, RESTART_MAX, Record, STABLE_TIME,
    State, Wish,
};
