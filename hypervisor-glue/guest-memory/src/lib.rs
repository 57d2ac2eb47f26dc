// SPDX-License-Identifier: Apache-2.0
#![allow(unsafe_code, reason = "a fence: this crate is where a guest's memory is touched")]
//! A guest's memory, mapped into this process.
//!
//! The guest writes to it while we read, so no `&[u8]` of it may ever exist: Rust assumes that
//! nobody changes what a shared reference points to. Everything goes through copies that are
//! checked against the table of regions; what was copied out is stable and may be judged, what
//! is still in the guest may change after the judgement. The words of a ring are reached as
//! atomics, which may be changed by others at any time.
//!
//! ```text
//!   SET_MEM_TABLE ──▶ RegionSpec + file ──▶ Mapping (sealed, mapped) ─┐
//!                                                                     ├─▶ GuestMemory
//!   the table before ── shares its mappings ──────────────────────────┘
//! ```
//!
//! A [`GuestMemory`] never changes. Adding or removing a region makes another one that shares
//! the mappings that stay, and a mapping goes when the last table that has it goes.

#[cfg(not(target_endian = "little"))]
compile_error!("rings and guests are little-endian, and so must this machine be");

mod copy;
mod mapping;
mod memfd;
mod table;

pub use copy::{prefetch, prefetch_to_write};
pub use mapping::{MapError, Shrinkable};
pub use memfd::{OwnMemory, OwnMemoryError, SharedMemory, sealed_memfd};
pub use table::{Access, GuestMemory, OutsideMemory, REGIONS_MAX, RegionSpec, TableError, Window};

/// An address as the guest's drivers write it into descriptors: guest-physical.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct GuestAddress(pub u64);

impl GuestAddress {
    /// `None` past the end of the address space.
    #[inline]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}
