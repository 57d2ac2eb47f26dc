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
    /// Not 0: free units may have bytes that the device was not told to forget.
    pub undiscarded: Le32,
    /// What was added to versions when the first entry that recovery replays was opened.
    pub version_base: Le64,
    pub reserved: [u8; 3904],
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
    /// Bits 0 and 1: map page h is on the disk; else it is empty. Bits 2 to 8 and 9 to 15: which
    /// generation of map page 0 and 1 was on the disk, as [`generation_mark`] has it.
    pub maps: Le16,
}

impl IndexEntry {
    /// Which map pages are on the disk, one bit each.
    pub fn halves(&self) -> u8 {
        u8::try_from(self.maps.get() & 3).unwrap_or(0)
    }

    /// What the generations of the map pages were. 0: not known.
    pub fn marks(&self) -> [u8; 2] {
        let mark = |at: u16| u8::try_from(self.maps.get() >> at & 127).unwrap_or(0);
        [mark(2), mark(9)]
    }

    pub fn set_maps(&mut self, halves: u8, marks: [u8; 2]) {
        let mark = |half: usize| u16::from(marks[half] & 127);
        self.maps = Le16::new(u16::from(halves & 3) | mark(0) << 2 | mark(1) << 9);
    }
}

/// What of a map page's generation fits the index: 1 to 127.
pub fn generation_mark(generation: u64) -> u8 {
    u8::try_from(generation % 127).unwrap_or(0) + 1
}

/// Whether a page of this generation is older than the index says: the copy that the index speaks
/// of is lost. A page may be newer, by as many checkpoints as were cut off; the other copy is
/// older by a few at most.
pub fn is_older(generation: u64, mark: u8) -> bool {
    let ahead = (i16::from(generation_mark(generation)) - i16::from(mark)).rem_euclid(127);
    mark != 0 && ahead >= 119
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_generation_is_told_from_a_newer_one() {
        let mut entry = IndexEntry::zeroed();
        for generation in 1..1000_u64 {
            entry.set_maps(3, [generation_mark(generation), 127]);
            assert_eq!((entry.halves(), entry.marks()[1]), (3, 127));
            let mark = entry.marks()[0];
            assert!((generation..generation + 100).all(|newer| !is_older(newer, mark)));
            let least = generation.saturating_sub(8);
            assert!((least..generation).all(|older| is_older(older, mark)), "{generation}");
            assert!(!is_older(generation.saturating_sub(1), 0));
        }
    }
}
