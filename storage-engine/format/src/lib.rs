// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The on-disk records of Plinth's object store.
//!
//! ```text
//! superblocks │ journal │ index pages │ bitmap pages │ count pages │ map pages │ data units
//! ```
//!
//! Every page is 4 KiB, little-endian, and knows its kind, its format version, its own address,
//! its generation and the store it belongs to; [`PageHeader`] is checked before a field behind it
//! is looked at. Pages that change in place exist twice, side by side, and the two are written by
//! turns: a torn write costs the older copy nothing. The journal's entries are in [`journal`].
//! The drawing of every byte and the argument why a crash is survived stand in
//! `docs/formats/store.md`.

mod bytes;
mod delta;
pub mod journal;
pub mod keys;
mod layout;
mod map;
mod page;
mod pages;

pub use bytes::{Le16, Le32, Le64};
pub use delta::{
    DELTA_DATA_MAX, DELTA_HEAD, DELTA_HEADER, DeltaEnd, DeltaFault, DeltaHeader, DeltaKind,
    DeltaRecord, DeltaScan, fuzz_delta, judge_delta,
};
pub use layout::{Layout, LayoutError, LayoutLimits};
pub use map::{AttributeError, Attributes, MAP_ATTRIBUTES_MAX, MapPage};
pub use page::{COUNTERS_MAX, PAGE_SIZE, Page, PageFault, PageHeader, StoreId, crc32c};
pub use pages::{
    BITMAP_UNITS, BitmapPage, COUNT_UNITS, CountPage, INDEX_ENTRIES, IndexEntry, IndexPage,
    KeyBytes, Superblock, generation_mark, is_older,
};

/// The format version this crate writes. Since 2: marks, and overwrites in place under them;
/// versions of objects; keys and logs.
pub const FORMAT_VERSION: u32 = 2;
/// The oldest version that this crate reads. What a store of it writes is of the newest.
pub const FORMAT_VERSION_MIN: u32 = 1;
/// What a checksum covers.
pub const BLOCK_SIZE: u32 = 4096;
/// What space is handed out in.
pub const UNIT_SIZE: u32 = 32 * 1024;
pub const UNIT_BLOCKS: u32 = UNIT_SIZE / BLOCK_SIZE;
/// The largest object.
pub const OBJECT_SIZE_MAX: u32 = 4 << 20;
pub const OBJECT_BLOCKS: u32 = OBJECT_SIZE_MAX / BLOCK_SIZE;
pub const OBJECT_UNITS: u32 = OBJECT_SIZE_MAX / UNIT_SIZE;
/// A map page covers half an object.
pub const MAP_UNITS: u32 = OBJECT_UNITS / 2;
pub const MAP_BLOCKS: u32 = OBJECT_BLOCKS / 2;
