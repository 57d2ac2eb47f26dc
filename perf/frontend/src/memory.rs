// SPDX-License-Identifier: Apache-2.0
//! The memory that is shared with a backend: one region, given out from its begin.

use plinth_guest_memory::{GuestAddress, GuestMemory, OwnMemory, OwnMemoryError};
use plinth_virtio::{QueueError, QueueLayout, SlotQueue};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vhost::VhostUserMemoryRegionInfo;

/// Where the region begins for the backend's eyes: not at 0, so that an address that was never
/// filled in is outside of everything.
const BEGIN: GuestAddress = GuestAddress(0x1_0000_0000);

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("shared memory of {length} bytes")]
    Make { length: u64, source: OwnMemoryError },
    #[error("{wanted} bytes of shared memory, {left} left")]
    Full { wanted: u64, left: u64 },
    #[error("a ring")]
    Ring(#[from] QueueError),
}

/// One region of memory and how much of it is given out. Nothing is given back: a client's
/// buffers live as long as the client.
#[derive(Debug)]
pub struct Memory {
    own: OwnMemory,
    taken: u64,
}

impl Memory {
    /// # Errors
    /// When the kernel gives no memory file or mapping of that length.
    pub fn new(length: u64) -> Result<Self, MemoryError> {
        let length = length.next_multiple_of(4096);
        let own = OwnMemory::new(BEGIN, length);
        let own = own.map_err(|source| MemoryError::Make { length, source })?;
        Ok(Self { own, taken: 0 })
    }

    /// Gives out `length` bytes at a multiple of `align`, which is a power of two.
    ///
    /// # Errors
    /// When there are not that many left.
    pub fn take(&mut self, length: u64, align: u64) -> Result<GuestAddress, MemoryError> {
        let begin = self.taken.next_multiple_of(align);
        let end = begin.checked_add(length).filter(|end| *end <= self.own.spec.length);
        let Some(end) = end else {
            return Err(MemoryError::Full {
                wanted: length,
                left: self.own.spec.length - self.taken,
            });
        };
        self.taken = end;
        Ok(GuestAddress(BEGIN.0 + begin))
    }

    /// A ring of `size` descriptors, a power of two, in slots of `per_slot`.
    ///
    /// # Errors
    /// When there is not that much memory left, or no such ring.
    pub fn ring(&mut self, size: u16, per_slot: u16) -> Result<SlotQueue, MemoryError> {
        let entries = u64::from(size);
        // On pages and lines of their own: the two sides write to different parts.
        let descriptors = self.take(16 * entries, 4096)?;
        let available = self.take(6 + 2 * entries, 64)?;
        let used = self.take(6 + 8 * entries, 4096)?;
        let layout = QueueLayout { size, descriptors, available, used };
        Ok(SlotQueue::new(Arc::clone(self.guest()), &layout, per_slot)?)
    }

    /// The mapping, for copies in and out.
    #[must_use]
    pub const fn guest(&self) -> &Arc<GuestMemory> {
        &self.own.memory
    }

    /// Where the backend is told that the frontend has `address`: ring addresses are sent so.
    #[must_use]
    pub const fn frontend_address(&self, address: GuestAddress) -> u64 {
        address.0 - self.own.spec.guest.0 + self.own.spec.frontend
    }

    /// What SET_MEM_TABLE says.
    pub(crate) fn table(&self) -> [VhostUserMemoryRegionInfo; 1] {
        let spec = &self.own.spec;
        [VhostUserMemoryRegionInfo {
            guest_phys_addr: spec.guest.0,
            memory_size: spec.length,
            userspace_addr: spec.frontend,
            mmap_offset: spec.offset,
            mmap_handle: self.own.file.as_raw_fd(),
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_out_is_aligned_and_never_overlaps() {
        let mut memory = Memory::new(8192).unwrap();
        let first = memory.take(10, 1).unwrap();
        let second = memory.take(4096, 4096).unwrap();
        assert_eq!(second.0 % 4096, 0);
        assert!(first.0 + 10 <= second.0);
        assert!(matches!(memory.take(1, 1), Err(MemoryError::Full { wanted: 1, left: 0 })));
        memory.guest().copy_in(second, &[7; 4096]).unwrap();
        let mut byte = [0];
        memory.guest().copy_out(GuestAddress(second.0 + 4095), &mut byte).unwrap();
        assert_eq!(byte, [7]);
    }
}
