// SPDX-License-Identifier: Apache-2.0
#![allow(unsafe_code, reason = "a fence: this crate is where memory is lent to the kernel")]
//! io_uring on one file or block device.
//!
//! ```text
//!   push(tag, operation with its buffer) ──▶ queued ── submit() ──▶ in the kernel
//!                                                                     │
//!   reap(&mut completions) ◀── buffer, tag, result ◀──────────────────┘
//! ```
//!
//! Laws:
//! * An operation owns its buffer from [`Ring::push`] to its completion. Nobody can look at it,
//!   free it or reuse it in between; dropping the ring waits for the kernel, and leaks the buffer
//!   of an operation that does not come back.
//! * One `io_uring_enter` a round: [`Ring::submit`] makes none when nothing is queued and the
//!   kernel has nothing to deliver; [`Ring::reap`] never makes one.
//! * Every pushed operation has exactly one completion. A short transfer is carried on until it
//!   is whole, the file ends or the device fails.
//! * Operations are not ordered. Who needs order waits for the completion: a flush covers the
//!   writes that had completed when it was pushed, no others.
//!
//! Not here: what the bytes mean (`storage-engine/store`), the joining of both
//! (`storage-engine/disks`).

mod error;
mod file;
mod ring;
mod slots;
mod sparse;

pub use error::{OpenError, OperationError, SetupError};
pub use file::{Access, DirectFile, FileKind, Geometry};
pub use ring::{Abandoned, Batch, Completion, Mode, Operation, Options, Ring};
pub use sparse::next_data;
