// SPDX-License-Identifier: Apache-2.0
//! The memory that is shared with a backend: one region, given out from its begin.

use plinth_guest_memory::{
    GuestAddress, GuestMemory, MapError, RegionSpec, Shrinkable, TableError, sealed_memfd,
};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vhost::VhostUserMemoryRegionInfo;

/// Where the region begins for the backend's eyes. Neither is 0, and they differ, so that an
/// address of the wrong space is outside of everything.
const GUEST_BEGIN: u64 = 0x1_0000_0000;
const FRONTEND_BEGIN: u64 = 0x7e00_0000_0000;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("{length} bytes of shared memory cannot be made")]
    Make { length: u64, source: io::Error },
    #[error("the shared memory cannot be mapped")]
    Map { source: TableError },
    #[error("{wanted} bytes of shared memory, {left} left")]
    Full { wanted: u64, left: u64 },
}

impl From<MapError> for MemoryError {
    fn from(source: MapError) -> Self {
        let guest = GuestAddress(GUEST_BEGIN);
        Self::Map { source: TableError::Map { guest, length: 0, source } }
    }
}

/// One region of memory and how much of it is given out. Nothing is given back: a client's
/// buffers live as long as the client.
#[derive(Debug)]
pub struct Memory {
    file: File,
    guest: Arc<GuestMemory>,
    length: u64,
    taken: u64,
}

impl Memory {
    /// # Errors
    /// When the kernel gives no memory file or mapping of that length.
    pub fn new(length: u64) -> Result<Self, MemoryError> {
        let length = length.next_multiple_of(4096);
        let file = sealed_memfd(c"plinth-frontend", length)
            .map_err(|source| MemoryError::Make { length, source })?;
        let spec = RegionSpec {
            guest: GuestAddress(GUEST_BEGIN),
            length,
            frontend: FRONTEND_BEGIN,
            offset: 0,
        };
        let region = file.try_clone().map_err(|source| MemoryError::Make { length, source })?;
        let guest = GuestMemory::default()
            .with_region(spec, &region, Shrinkable::Refuse)
            .map_err(|source| MemoryError::Map { source })?;
        Ok(Self { file, guest: Arc::new(guest), length, taken: 0 })
    }

    /// Gives out `length` bytes at a multiple of `align`, which is a power of two.
    ///
    /// # Errors
    /// When there are not that many left.
    pub fn take(&mut self, length: u64, align: u64) -> Result<GuestAddress, MemoryError> {
        let begin = self.taken.next_multiple_of(align);
        let end = begin.checked_add(length).filter(|end| *end <= self.length);
        let Some(end) = end else {
            return Err(MemoryError::Full { wanted: length, left: self.length - self.taken });
        };
        self.taken = end;
        Ok(GuestAddress(GUEST_BEGIN + begin))
    }

    /// The mapping, for copies in and out.
    #[must_use]
    pub const fn guest(&self) -> &Arc<GuestMemory> {
        &self.guest
    }

    /// Where the backend is told that the frontend has `address`: ring addresses are sent so.
    #[must_use]
    pub const fn frontend_address(address: GuestAddress) -> u64 {
        address.0 - GUEST_BEGIN + FRONTEND_BEGIN
    }

    /// What SET_MEM_TABLE says.
    pub(crate) fn table(&self) -> [VhostUserMemoryRegionInfo; 1] {
        [VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_BEGIN,
            memory_size: self.length,
            userspace_addr: FRONTEND_BEGIN,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
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
