// SPDX-License-Identifier: Apache-2.0
//! Superblock, index, bitmap and count pages.

use crate::bytes::{Le16, Le32, Le64};
use crate::page::{PAGE_SIZE, Page, PageHeader};
use bytemuck::{Pod, Zeroable};

macro_rules! page {
    ($name:ident, $magic:literal) => {
        const _: () = assert!(size_of::<$name>() == PAGE_SIZE);

        impl Page for $name {
            const MAGIC: [u8; 8] = *$magic;

            fn header(&self) -> &PageHeader {
                &self.header
            }

            fn header_mut(&mut self) -> &mut PageHeader {
                &mut self.header
            }
        }
    };
}
pub(crate) use page;

/// Where everything is, and where recovery begins. Two copies, at bytes 0 and 32768; the one with
/// the higher generation counts.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Superblock {
    pub(crate) header: PageHeader,
    /// Bytes of the disk when it was formatted.
    pub length: Le64,
    pub journal_offset: Le64,
    pub journal_length: Le64,
    pub index_offset: Le64,
    pub bitmap_offset: Le64,
    pub count_offset: Le64,
    pub map_offset: Le64,
    pub data_offset: Le64,
    pub slot_count: Le32,
    pub unit_count: Le32,
    pub block_size: Le32,
    pub unit_size: Le32,
    /// Counts mounts: journal entries of an earlier session are void.
    pub session: Le64,
    /// The first entry that recovery replays, and its byte offset in the journal.
    pub replay_seq: Le64,
    pub replay_offset: Le64,
    /// Not 0: recovery has judged the journal, and replays exactly the entries up to this one.
    pub judged_seq: Le64,
    /// Index pages below this were written; those from here on are empty.
    pub index_pages: Le32,
    pub reserved: [u8; 3916],
}
page!(Superblock, b"PLNsuper");

/// An object's key as bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct KeyBytes {
    pub pool: Le32,
    pub pg: Le32,
    /// Low half, then high half.
    pub object: [Le64; 2],
    pub snapshot: Le64,
}

const _: () = assert!(size_of::<KeyBytes>() == 32);

/// One slot: an object, or free.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct IndexEntry {
    pub key: KeyBytes,
    /// Tells the objects that use the slot one after the other apart. 0: the slot is free.
    pub incarnation: Le64,
    /// Bytes.
    pub size: Le32,
    /// Units the object has.
    pub units: Le16,
    /// Bit h: map page h is on the disk; else it is empty.
    pub halves: u8,
    pub reserved: u8,
}

const _: () = assert!(size_of::<IndexEntry>() == 48);

/// Slots in an index page.
pub const INDEX_ENTRIES: u32 = 84;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct IndexPage {
    pub(crate) header: PageHeader,
    pub entries: [IndexEntry; INDEX_ENTRIES as usize],
}
page!(IndexPage, b"PLNindex");

/// Bytes of bits in a bitmap page.
const BITMAP_BYTES: u32 = 4032;
/// Units in a bitmap page.
pub const BITMAP_UNITS: u32 = BITMAP_BYTES * 8;

/// Bit `u % 8` of byte `u / 8` is 1 when unit `u` of the page is used.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BitmapPage {
    pub(crate) header: PageHeader,
    pub words: [Le64; BITMAP_BYTES as usize / 8],
}
page!(BitmapPage, b"PLNbits\0");

impl BitmapPage {
    /// Bit c: count page c of this page's 16 is in use; else none of its units is shared.
    pub const fn counts(&self) -> u16 {
        u16::from_le_bytes([self.header.own[0], self.header.own[1]])
    }

    pub const fn set_counts(&mut self, counts: u16) {
        let [low, high] = counts.to_le_bytes();
        self.header.own[0] = low;
        self.header.own[1] = high;
    }
}

/// Units in a count page.
pub const COUNT_UNITS: u32 = 2016;
const _: () = assert!(BITMAP_UNITS == 16 * COUNT_UNITS, "a bitmap page has 16 count pages");

/// How many objects own a unit, for units with more than one owner; 0 for all others.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct CountPage {
    pub(crate) header: PageHeader,
    pub owners: [Le16; COUNT_UNITS as usize],
}
page!(CountPage, b"PLNcount");
