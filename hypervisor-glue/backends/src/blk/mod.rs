// SPDX-License-Identifier: Apache-2.0
//! virtio-blk: a guest's requests, and their answers.

mod class;
mod counters;
mod device;
mod parse;
mod request;

pub use class::{
    BlkClass, BlkOptions, DISCARD_SECTORS_MAX, REQUEST_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENTS_MAX,
};
pub use counters::BlkCounters;
pub use device::BlkDevice;
pub use request::{BlkOperation, BlkRequest, BlkStatus, BlkTag, CopyError};

/// A sector of the virtio-blk protocol, whatever the block size.
pub const SECTOR_SIZE: u64 = 512;
