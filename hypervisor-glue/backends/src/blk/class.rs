// SPDX-License-Identifier: Apache-2.0
//! What a virtio-blk device says of itself.

use crate::config::ConfigSpace;
use plinth_vhost::{ConfigRefusal, DeviceClass};
use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU64, Ordering};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES, virtio_blk_config,
};

/// Data segments of one request, at most: with header and status a ring of 128 holds it.
pub const SEGMENTS_MAX: u32 = 126;

/// Bytes of one segment, at most.
pub const SEGMENT_BYTES_MAX: u32 = 64 * 1024;

/// Bytes of one request, at most. Longer ones are refused, so that the caller can say how much
/// memory its requests need.
pub const REQUEST_BYTES_MAX: u32 = SEGMENTS_MAX * SEGMENT_BYTES_MAX;

/// Sectors that one discard or zeroing covers, at most: 128 MiB, so that its work is bounded.
pub const DISCARD_SECTORS_MAX: u32 = 128 * 1024 * 2;

/// The block of the disk in sectors as a power of two: checksums are kept for each 4 KiB, so
/// smaller writes cost a read.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

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
    pub discard_unit: u32,
}

/// For [`plinth_vhost::Device::serve`]; shared with the worker's [`super::BlkDevice`].
#[derive(Debug)]
pub struct BlkClass {
    options: BlkOptions,
    /// In sectors. Relaxed everywhere: no other memory hangs on it, and a worker that sees a
    /// larger disk one round later only refuses what the guest cannot know of yet.
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

    /// Makes the disk larger; never smaller. Requests up to the new end are let through from
    /// here on. The guest hears of it from [`plinth_vhost::Device::announce_config_change`].
    pub fn grow(&self, capacity: u64) {
        self.capacity.fetch_max(capacity, Ordering::Relaxed);
    }

    pub const fn options(&self) -> &BlkOptions {
        &self.options
    }
}

impl DeviceClass for BlkClass {
    fn features(&self) -> u64 {
        let read_only = if self.options.is_read_only { 1 << VIRTIO_BLK_F_RO } else { 0 };
        1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_MQ
            | 1 << VIRTIO_BLK_F_DISCARD
            | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            | read_only
    }

    fn queue_count(&self) -> u16 {
        self.options.queues
    }

    fn keeps_inflight(&self) -> bool {
        true
    }

    fn offers_config(&self) -> bool {
        true
    }

    fn read_config(&self, offset: usize, into: &mut [u8]) {
        type Config = virtio_blk_config;
        let mut space = ConfigSpace::<{ size_of::<Config>() }>::new();
        let BlkOptions { queues, discard_unit, .. } = self.options;
        let discard_max = DISCARD_SECTORS_MAX.to_le_bytes();
        space.put(offset_of!(Config, capacity), self.capacity().to_le_bytes());
        space.put(offset_of!(Config, size_max), SEGMENT_BYTES_MAX.to_le_bytes());
        space.put(offset_of!(Config, seg_max), SEGMENTS_MAX.to_le_bytes());
        space.put(offset_of!(Config, blk_size), 512u32.to_le_bytes());
        space.put(offset_of!(Config, physical_block_exp), [PHYSICAL_BLOCK_EXPONENT]);
        space.put(offset_of!(Config, min_io_size), (1u16 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
        space.put(offset_of!(Config, opt_io_size), discard_unit.to_le_bytes());
        // There is a volatile cache: what is not flushed may be lost with the power.
        space.put(offset_of!(Config, wce), [1]);
        space.put(offset_of!(Config, num_queues), queues.to_le_bytes());
        space.put(offset_of!(Config, max_discard_sectors), discard_max);
        space.put(offset_of!(Config, max_discard_seg), 1u32.to_le_bytes());
        space.put(offset_of!(Config, discard_sector_alignment), discard_unit.to_le_bytes());
        space.put(offset_of!(Config, max_write_zeroes_sectors), discard_max);
        space.put(offset_of!(Config, max_write_zeroes_seg), 1u32.to_le_bytes());
        space.put(offset_of!(Config, write_zeroes_may_unmap), [1]);
        space.read(offset, into);
    }

    fn write_config(&self, offset: usize, bytes: &[u8]) -> Result<(), ConfigRefusal> {
        // The only field that a driver may write is the cache mode, with a feature that is not
        // offered.
        Err(ConfigRefusal { offset, length: bytes.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(is_read_only: bool) -> BlkClass {
        let serial = [0; 20];
        BlkClass::new(BlkOptions {
            capacity: 2048,
            is_read_only,
            queues: 3,
            serial,
            discard_unit: 64,
        })
    }

    #[test]
    fn the_configuration_space_follows_a_growing_disk() {
        let class = class(false);
        let mut bytes = [0; 60];
        class.read_config(0, &mut bytes);
        assert_eq!(bytes[..8], 2048u64.to_le_bytes());
        assert_eq!(bytes[20..24], 512u32.to_le_bytes());
        assert_eq!(bytes[34..36], 3u16.to_le_bytes());
        class.grow(4096);
        class.grow(1024);
        class.read_config(0, &mut bytes[..8]);
        assert_eq!(bytes[..8], 4096u64.to_le_bytes(), "a disk never shrinks");
    }

    #[test]
    fn a_read_only_disk_says_so() {
        assert_eq!(class(false).features() & 1 << VIRTIO_BLK_F_RO, 0);
        assert_ne!(class(true).features() & 1 << VIRTIO_BLK_F_RO, 0);
        assert!(class(true).write_config(32, &[0]).is_err());
    }
}
