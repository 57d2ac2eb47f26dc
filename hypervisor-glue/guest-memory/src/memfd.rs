// SPDX-License-Identifier: Apache-2.0
//! Memory that we make ourselves, to be shared with another process: the in-flight region of a
//! backend, the guest memory of a driver-side client or of a test.

use crate::GuestAddress;
use crate::mapping::{MapError, Mapping, Shrinkable};
use crate::table::{GuestMemory, RegionSpec, TableError};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64};

/// A file in memory of exactly `length` bytes of zeros, sealed against shrinking and growing.
pub fn sealed_memfd(name: &CStr, length: u64) -> io::Result<File> {
    // SAFETY: `name` is a string with its zero, which the call only reads.
    let fd =
        unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above gave us this descriptor, and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(length)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the descriptor is open, and F_ADD_SEALS takes an integer.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// A shared mapping of a part of a file, reached through atomics at checked offsets.
///
/// For small structures that two processes keep together, such as the in-flight region.
#[derive(Debug)]
pub struct SharedMemory {
    mapping: Mapping,
}

impl SharedMemory {
    /// Maps `length` bytes of `file` from `offset` on.
    pub fn map(
        file: &File,
        offset: u64,
        length: u64,
        shrinkable: Shrinkable,
    ) -> Result<Self, MapError> {
        Ok(Self { mapping: Mapping::new(file, offset, length, shrinkable)? })
    }

    pub fn length(&self) -> usize {
        self.mapping.length()
    }

    /// # Panics
    /// If `offset` is outside of the mapping.
    #[inline]
    pub fn u8_at(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < self.length(), "byte {offset} is past the end of shared memory");
        // SAFETY: inside the mapping, which lives as long as `self`; an atomic byte may be
        // written by other processes at any time.
        unsafe { AtomicU8::from_ptr(self.mapping.base().add(offset)) }
    }

    /// # Panics
    /// If the word is not wholly inside the mapping, or not aligned.
    #[inline]
    pub fn u16_at(&self, offset: usize) -> &AtomicU16 {
        self.check(offset, 2);
        // SAFETY: inside the mapping and aligned, both checked; else as in `u8_at`.
        unsafe { AtomicU16::from_ptr(self.mapping.base().add(offset).cast()) }
    }

    /// # Panics
    /// If the word is not wholly inside the mapping, or not aligned.
    #[inline]
    pub fn u64_at(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, 8);
        // SAFETY: inside the mapping and aligned, both checked; else as in `u8_at`.
        unsafe { AtomicU64::from_ptr(self.mapping.base().add(offset).cast()) }
    }

    #[inline]
    fn check(&self, offset: usize, size: usize) {
        assert!(
            offset <= self.length().saturating_sub(size) && self.length() >= size,
            "a word at {offset} is past the end of shared memory"
        );
        let address = self.mapping.base().addr() + offset;
        assert!(address.is_multiple_of(size), "a word at {offset} is not aligned");
    }
}

/// Guest memory of our own making: for a driver-side client, for fakes and tests.
#[derive(Debug)]
pub struct OwnMemory {
    pub memory: Arc<GuestMemory>,
    /// To be sent to a backend together with `spec`.
    pub file: File,
    pub spec: RegionSpec,
}

impl OwnMemory {
    /// One region of `length` bytes of zeros at `guest`.
    pub fn new(guest: GuestAddress, length: u64) -> Result<Self, OwnMemoryError> {
        let file = sealed_memfd(c"plinth-guest", length)
            .map_err(|source| OwnMemoryError::Make { length, source })?;
        // The frontend's addresses differ from the guest's, so that nobody mixes them up.
        let spec = RegionSpec { guest, length, frontend: guest.0 + (1 << 44), offset: 0 };
        let memory = GuestMemory::default()
            .with_region(spec, &file, Shrinkable::Refuse)
            .map_err(|source| OwnMemoryError::Map { source })?;
        Ok(Self { memory: Arc::new(memory), file, spec })
    }
}

/// Why there is no memory of our own.
#[derive(Debug, thiserror::Error)]
pub enum OwnMemoryError {
    #[error("cannot make a memory file of {length} bytes")]
    Make { length: u64, source: io::Error },
    #[error("cannot map the memory file")]
    Map { source: TableError },
}
