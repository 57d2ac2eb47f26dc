// SPDX-License-Identifier: Apache-2.0
#![allow(unsafe_code, reason = "a fence: this crate is where a guest's memory is touched")]
//! A guest's memory, mapped into this process.
//!
//! The guest writes to it while we read, so no `&[u8]` of it may ever exist: Rust assumes that
//! nobody changes what a shared reference points to. Everything goes through copies that are
//! checked against the table of regions; what was copied out is stable and may be judged, what
//! is still in the guest may change after the judgement.

/// An address as the guest's drivers write it into descriptors.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct GuestAddress(pub u64);

/// What to do with a region whose file its owner could shrink under our mapping.
///
/// A read behind the end of a shrunk file is a bus error, which would end the whole daemon.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Shrinkable {
    /// Take only files that are sealed against shrinking, or that can be sealed by us.
    #[default]
    Refuse,
    /// Take any file. For peers that are trusted like ourselves, such as a generator of load.
    Accept,
}

/// The regions of one guest's memory. A change of the table is a new `GuestMemory`.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<()>,
}

impl GuestMemory {
    /// How many regions there are.
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }
}
