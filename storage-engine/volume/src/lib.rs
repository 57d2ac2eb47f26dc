// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! Volumes made of objects.
//!
//! The doors, as a poll-mode worker sees them:
//! ```text
//! Volumes::start(store, pool)                 owns the store; reads the headers, resumes deletes
//! volumes.submit(VolumeTag, VolumeRequest) -> Result<(), VolumeRequest>   back-pressure gives it back
//! volumes.poll(now, &mut Vec<VolumeCompletion>) -> bool                   every round
//! volumes.is_ready()                          the headers are read
//! volumes.list() / volumes.status(VolumeId)   from memory
//! volumes.attach(VolumeId) -> Result<VolumeHandle, VolumeRefusal>; volumes.detach(handle)
//! volumes.store() -> &Store<D>; volumes.stop() -> D
//! ```

mod request;

pub use request::{
    VolumeCompletion, VolumeHandle, VolumeRefusal, VolumeRequest, VolumeSpec, VolumeStatus,
    VolumeTag,
};
