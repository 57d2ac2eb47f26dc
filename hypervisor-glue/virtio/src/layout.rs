// SPDX-License-Identifier: Apache-2.0
//! Where the three parts of a ring lie, and where the ring stands.

use plinth_guest_memory::{GuestAddress, OutsideMemory};

/// The longest ring that we take: what QEMU and the Linux drivers use at most.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// Where a virtqueue lies in the guest's memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct QueueLayout {
    /// Entries: a power of two.
    pub size: u16,
    pub descriptors: GuestAddress,
    /// Of a packed ring: the driver's event.
    pub available: GuestAddress,
    /// Of a packed ring: the device's event.
    pub used: GuestAddress,
}

impl QueueLayout {
    /// A ring of `size` entries whose parts follow each other from `base`, a multiple of 16.
    pub const fn contiguous(size: u16, base: GuestAddress) -> Self {
        let descriptors = base.0;
        let available = descriptors + Self::descriptors_bytes(size) as u64;
        let used = (available + Self::available_bytes(size) as u64).next_multiple_of(4);
        Self {
            size,
            descriptors: GuestAddress(descriptors),
            available: GuestAddress(available),
            used: GuestAddress(used),
        }
    }

    /// How many bytes [`QueueLayout::contiguous`] takes.
    pub const fn contiguous_bytes(size: u16) -> u64 {
        let layout = Self::contiguous(size, GuestAddress(0));
        layout.used.0 + Self::used_bytes(size) as u64
    }

    pub(crate) const fn descriptors_bytes(size: u16) -> usize {
        16 * size as usize
    }

    /// Flags, index, the entries, and the used event.
    pub(crate) const fn available_bytes(size: u16) -> usize {
        2 * size as usize + 6
    }

    /// Flags, index, the entries, and the available event.
    pub(crate) const fn used_bytes(size: u16) -> usize {
        8 * size as usize + 6
    }
}

/// The ring features that the driver has accepted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RingFeatures {
    /// `VIRTIO_RING_F_EVENT_IDX`
    pub event_index: bool,
    /// `VIRTIO_RING_F_INDIRECT_DESC`
    pub indirect: bool,
    /// `VIRTIO_F_RING_PACKED`
    pub packed: bool,
    /// `VIRTIO_F_IN_ORDER`
    pub in_order: bool,
}

/// Where a ring stands. All that is needed to go on elsewhere.
///
/// Of a packed ring: the slots that are taken and given back next, bit 15 their lap.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RingState {
    /// Of the available ring: the next entry that the device takes.
    pub next_available: u16,
    /// Of the used ring: the next entry that the device writes.
    pub next_used: u16,
}

/// Why a ring cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("a ring of {size} entries; a power of two up to {QUEUE_SIZE_MAX} is taken")]
    Size { size: u16 },
    #[error("the {part} is not memory, not in one region, or not aligned")]
    Place { part: &'static str, source: OutsideMemory },
    #[error("the ring stands at {available} available and {used} used, too far apart for {size}")]
    State { available: u16, used: u16, size: u16 },
    #[error("a packed ring of {size} that stands at slot {slot}")]
    Slot { slot: u16, size: u16 },
    #[error("the in-flight record does not fit the ring")]
    Inflight { source: crate::InflightError },
}
