// SPDX-License-Identifier: Apache-2.0
//! Where everything is in the file; `docs/formats/metrics.md` draws it.

use crate::histogram::BUCKETS;

pub(crate) const MAGIC: [u8; 8] = *b"PLNTHMTR";
pub(crate) const VERSION: u32 = 1;

/// Byte offsets in the header.
pub(crate) const AT_VERSION: usize = 8;
pub(crate) const AT_PROCESS: usize = 12;
pub(crate) const AT_SLOTS: usize = 16;
pub(crate) const AT_SLOT_SIZE: usize = 20;
pub(crate) const AT_COUNTERS: usize = 24;
pub(crate) const AT_BUCKETS: usize = 28;
pub(crate) const AT_RATE: usize = 32;
pub(crate) const AT_STARTED: usize = 40;
pub(crate) const HEADER_SIZE: usize = 4096;

/// Byte offsets in a slot.
pub(crate) const AT_GENERATION: usize = 0;
pub(crate) const AT_KIND: usize = 8;
pub(crate) const AT_POOL: usize = 12;
pub(crate) const AT_ID: usize = 16;
pub(crate) const AT_COUNTS: usize = 64;

/// Counters of a slot. Their meaning is the program's, by the kind of the slot.
pub const COUNTERS: usize = 24;
pub(crate) const AT_HISTOGRAMS: usize = AT_COUNTS + COUNTERS * 8;

/// Histograms of a slot, one for each [`Operation`].
pub const OPERATIONS: usize = 3;
pub(crate) const SLOT_SIZE: usize =
    (AT_HISTOGRAMS + OPERATIONS * BUCKETS * 8).next_multiple_of(4096);

/// The most slots of a file.
pub const SLOTS_MAX: u32 = 4096;

/// What a slot is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Kind {
    /// An attachment; its id is the volume's.
    Attachment = 1,
    /// A disk; its id is its number in the pool.
    Disk = 2,
}

/// What a time is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    Read = 0,
    Write = 1,
    Flush = 2,
}
