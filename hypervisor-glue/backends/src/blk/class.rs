// SPDX-License-Identifier: Apache-2.0
//! What a virtio-blk device says of itself.

use plinth_vhost::{ConfigRefusal, DeviceClass};
use std::sync::atomic::{AtomicU64, Ordering};

/// The disk as its owner wants it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlkOptions {
    /// In sectors of 512 bytes.
    pub capacity: u64,
    pub is_read_only: bool,
    /// 1 to 16.
    pub queues: u16,
    /// What GET_ID answers; shorter ones are filled with zeros.
    pub serial: [u8; 20],
    /// The unit of the backend in sectors: discards of whole, aligned units free space.
    /// A power of two.
    pub discard_unit: u32,
}

/// For [`plinth_vhost::Device::serve`]; shared with the worker's [`super::BlkDevice`].
#[derive(Debug)]
pub struct BlkClass {
    options: BlkOptions,
    capacity: AtomicU64,
}

impl BlkClass {
    pub fn new(options: BlkOptions) -> Self {
        Self { options, capacity: AtomicU64::new(options.capacity) }
    }

    /// In sectors.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Makes the disk larger. Requests up to the new end are let through from here on.
    pub fn grow(&self, capacity: u64) {
        self.capacity.fetch_max(capacity, Ordering::Relaxed);
    }
}

impl DeviceClass for BlkClass {
    fn features(&self) -> u64 {
        unimplemented!()
    }

    fn queue_count(&self) -> u16 {
        self.options.queues
    }

    fn keeps_inflight(&self) -> bool {
        true
    }

    fn read_config(&self, _offset: usize, _into: &mut [u8]) {
        unimplemented!()
    }

    fn write_config(&self, offset: usize, bytes: &[u8]) -> Result<(), ConfigRefusal> {
        Err(ConfigRefusal { offset, length: bytes.len() })
    }
}
