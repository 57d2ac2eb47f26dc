// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! Several stores that act as one: a pool's disks, and who of them has what.
//!
//! ```text
//!            volumes
//!               │ StoreRequest, one placement group each       List, Flush: all disks
//!   ┌─────── Span ─────────┐
//!   │ group ─▶ disk        │ ◀── mover: copies groups that belong elsewhere, one at a time
//!   └──┬────────┬───────┬──┘
//!    store    store   store      each with the pool's map as an object on it
//! ```
//!
//! A [`Span`] is an [`plinth_store::ObjectStore`] over others, has one owner, and like them does
//! no I/O itself and reads no clock. Whatever shares units has the same placement group, and a
//! group is on one disk, so a transaction never leaves its disk.
//! `docs/storage.md` has the moves drawn and argues their crashes.

mod clear;
mod copy;
mod log;
mod map;
mod mover;
mod pace;
mod plan;
mod route;
mod seats;
mod span;
mod start;

pub use map::{DISKS_MAX, GROUPS, Map, MapError, Standing};
pub use mover::{Moving, RATE_DEFAULT};
pub use seats::{DiskCondition, SpanDisk};
pub use span::{Omit, Span};
pub use start::{JoinError, LeaveError, Member, Refused, StartError, Started, read_map};
