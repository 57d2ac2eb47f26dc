// SPDX-License-Identifier: Apache-2.0
#![allow(unsafe_code, reason = "a fence: the file is mapped and written through atomics")]
//! Counters and latency histograms in a file that others read while it is written.
//!
//! ```text
//!   worker ── Slot::record, add, set ──▶ mapped file ──▶ pread ── read() ──▶ Picture
//!             a load and a store each                     another process, any time
//! ```
//!
//! The layout is described in `docs/formats/metrics.md`. One [`Slot`] has one writer, its owner;
//! nobody ever waits for a reader, and a reader can do nothing to the file. What is read is
//! checked like anything from outside: a file that was cut, torn or forged gives an error or wrong
//! numbers, never a fault of the reader.

mod histogram;
mod layout;
mod map;
mod read;

pub use histogram::{BUCKETS, Histogram, bucket_of};
pub use layout::{COUNTERS, Kind, OPERATIONS, Operation, SLOTS_MAX};
pub use map::{CreateError, Metrics, Slot};
pub use read::{Picture, ReadError, Row, read, read_path};
