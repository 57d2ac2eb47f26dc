// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! Volumes made of objects.
//!
//! ```text
//!   id object      volume 7: its name
//!   header object  volume 7: size, times, state
//!   data objects   volume 7: bytes 0 to 4 MiB │ 4 to 8 MiB │ …    made when first written
//! ```
//!
//! [`Volumes`] owns the store of a pool's disk. A worker submits requests with tags and polls;
//! reads and writes of an attached volume become one store request for each data object they
//! touch. Creating, cloning, growing and deleting are jobs, carried out one after the other in
//! bounded steps beside the I/O: a volume that is being made or deleted when the power goes is
//! removed after the next start.
//!
//! ```text
//!   Volumes::start(store, pool) ── poll until is_ready ──▶ attach, submit, poll …  ── stop ──▶ disk
//! ```

mod act;
mod chores;
mod gate;
mod header;
mod jobs;
mod key;
mod pending;
mod question;
mod range;
mod request;
mod search;
mod start;
mod table;
mod view;
mod volume;
mod volumes;
mod zero;

pub use key::data_place;
pub use request::{
    ChangedRange, Changes, ChoreKind, ChoreStatus, REQUEST_BYTES_MAX, SnapshotSpec, SnapshotStatus,
    VolumeAnswer, VolumeCompletion, VolumeHandle, VolumeRefusal, VolumeRequest, VolumeSpec,
    VolumeStatus, VolumeTag, VolumeUsage, WipeStatus,
};
pub use volumes::{Omit, VOLUMES_MAX, Volumes};
