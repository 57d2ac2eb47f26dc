// SPDX-License-Identifier: Apache-2.0
//! Where the regions of a store are.

use crate::bytes::{Le32, Le64};
use crate::page::PAGE_SIZE;
use crate::pages::{BITMAP_UNITS, COUNT_UNITS, INDEX_ENTRIES, Superblock};
use crate::{BLOCK_SIZE, UNIT_SIZE};

const PAGE: u64 = PAGE_SIZE as u64;
const UNIT: u64 = UNIT_SIZE as u64;
/// Bytes before the journal: the two superblocks, a unit each.
const JOURNAL_OFFSET: u64 = 2 * UNIT;
/// Two halves, two copies each.
const SLOT_BYTES: u64 = 4 * PAGE;
/// The journal has room for the largest entry several times.
const JOURNAL_MIN: u64 = 256 * 1024;
const JOURNAL_MAX: u64 = 1 << 30;
/// Units are numbered with 32 bits, one number of which means none.
const UNITS_MAX: u64 = u32::MAX as u64 - 1;
/// Bounds the index, and with it the memory that a mount takes.
const SLOTS_MAX: u64 = 1 << 26;

/// The sizes that a formatter may choose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LayoutLimits {
    /// Bytes of the journal, a multiple of 4096.
    pub journal_length: u64,
    /// Objects that fit.
    pub slot_count: u32,
}

impl LayoutLimits {
    /// A journal of 1/128 of the disk (4 to 256 MiB) and room for four times as many objects as
    /// full ones would fit: clones share their units but not their maps.
    pub fn for_length(length: u64) -> Self {
        let journal = (length / 128).clamp(4 << 20, 256 << 20);
        let small = (length / (1 << 20)).min(1024);
        let slots = (length / (1 << 20) + small).clamp(64, SLOTS_MAX);
        Self {
            journal_length: journal.min(length / 8).max(JOURNAL_MIN) / PAGE * PAGE,
            slot_count: u32::try_from(slots).unwrap_or(u32::MAX),
        }
    }
}

/// Where the regions are, in bytes. Every value that exists is consistent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Layout {
    pub length: u64,
    pub journal_offset: u64,
    pub journal_length: u64,
    pub index_offset: u64,
    pub bitmap_offset: u64,
    pub count_offset: u64,
    pub map_offset: u64,
    pub data_offset: u64,
    pub slot_count: u32,
    pub unit_count: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LayoutError {
    #[error("a disk of {length} bytes is too small: {needed} bytes are needed")]
    TooSmall { length: u64, needed: u64 },
    #[error("a disk of {length} bytes is larger than 128 TiB")]
    TooLarge { length: u64 },
    #[error("a journal of {length} bytes is not a multiple of 4096 from 256 KiB to 1 GiB")]
    Journal { length: u64 },
    #[error("{count} object slots are not 1 to {SLOTS_MAX}")]
    Slots { count: u32 },
    #[error("the superblock's regions are not those that its sizes give")]
    Regions,
}

impl Layout {
    /// Lays out a disk of `length` bytes.
    ///
    /// # Errors
    /// When the limits are out of range or leave no room for data.
    pub fn new(length: u64, limits: LayoutLimits) -> Result<Self, LayoutError> {
        let journal = limits.journal_length;
        if !(JOURNAL_MIN..=JOURNAL_MAX).contains(&journal) || !journal.is_multiple_of(PAGE) {
            return Err(LayoutError::Journal { length: journal });
        }
        let slots = u64::from(limits.slot_count);
        if slots == 0 || slots > SLOTS_MAX {
            return Err(LayoutError::Slots { count: limits.slot_count });
        }
        if length / UNIT > UNITS_MAX {
            return Err(LayoutError::TooLarge { length });
        }
        // The bitmap is sized for the whole disk, which is a little more than the data: that
        // spares a fixed point and costs 8 KiB a GiB at most of what is not data.
        let units = length / UNIT;
        let index_offset = JOURNAL_OFFSET + journal;
        let bitmap_offset = index_offset + 2 * PAGE * slots.div_ceil(u64::from(INDEX_ENTRIES));
        let bitmap_pages = units.div_ceil(u64::from(BITMAP_UNITS)).max(1);
        let count_offset = bitmap_offset + 2 * PAGE * bitmap_pages;
        let map_offset = count_offset + 2 * PAGE * 16 * bitmap_pages;
        let data_offset = (map_offset + SLOT_BYTES * slots).next_multiple_of(UNIT);
        let unit_count = length.saturating_sub(data_offset) / UNIT;
        if unit_count == 0 {
            return Err(LayoutError::TooSmall { length, needed: data_offset + UNIT });
        }
        Ok(Self {
            length,
            journal_offset: JOURNAL_OFFSET,
            journal_length: journal,
            index_offset,
            bitmap_offset,
            count_offset,
            map_offset,
            data_offset,
            slot_count: limits.slot_count,
            unit_count: u32::try_from(unit_count).map_err(|_| LayoutError::TooLarge { length })?,
        })
    }

    /// Reads the layout from a superblock whose checksum was checked.
    ///
    /// # Errors
    /// `Regions` and the errors of [`Layout::new`] for values that do not fit together;
    /// `TooSmall` for a disk that is shorter than what was formatted.
    pub fn parse(superblock: &Superblock, disk_length: u64) -> Result<Self, LayoutError> {
        let limits = LayoutLimits {
            journal_length: superblock.journal_length.get(),
            slot_count: superblock.slot_count.get(),
        };
        let layout = Self::new(superblock.length.get(), limits)?;
        if layout.length > disk_length {
            return Err(LayoutError::TooSmall { length: disk_length, needed: layout.length });
        }
        let mut expected = *superblock;
        layout.emit(&mut expected);
        if bytemuck::bytes_of(&expected) != bytemuck::bytes_of(superblock) {
            return Err(LayoutError::Regions);
        }
        Ok(layout)
    }

    /// Writes the layout's fields into a superblock.
    pub fn emit(&self, superblock: &mut Superblock) {
        superblock.length = Le64::new(self.length);
        superblock.journal_offset = Le64::new(self.journal_offset);
        superblock.journal_length = Le64::new(self.journal_length);
        superblock.index_offset = Le64::new(self.index_offset);
        superblock.bitmap_offset = Le64::new(self.bitmap_offset);
        superblock.count_offset = Le64::new(self.count_offset);
        superblock.map_offset = Le64::new(self.map_offset);
        superblock.data_offset = Le64::new(self.data_offset);
        superblock.slot_count = Le32::new(self.slot_count);
        superblock.unit_count = Le32::new(self.unit_count);
        superblock.block_size = Le32::new(BLOCK_SIZE);
        superblock.unit_size = Le32::new(UNIT_SIZE);
    }

    pub fn superblock_address(&self, copy: u64) -> u64 {
        copy * UNIT
    }

    pub fn index_pages(&self) -> u32 {
        self.slot_count.div_ceil(INDEX_ENTRIES)
    }

    pub fn index_address(&self, page: u32, copy: u64) -> u64 {
        self.index_offset + (u64::from(page) * 2 + copy) * PAGE
    }

    pub fn bitmap_pages(&self) -> u32 {
        self.unit_count.div_ceil(BITMAP_UNITS)
    }

    pub fn bitmap_address(&self, page: u32, copy: u64) -> u64 {
        self.bitmap_offset + (u64::from(page) * 2 + copy) * PAGE
    }

    pub fn count_pages(&self) -> u32 {
        self.unit_count.div_ceil(COUNT_UNITS)
    }

    pub fn count_address(&self, page: u32, copy: u64) -> u64 {
        self.count_offset + (u64::from(page) * 2 + copy) * PAGE
    }

    pub fn map_address(&self, slot: u32, half: u32, copy: u64) -> u64 {
        self.map_offset + u64::from(slot) * SLOT_BYTES + (u64::from(half) * 2 + copy) * PAGE
    }

    /// Where a block of the data region is: unit times eight, plus the block in it.
    pub fn data_address(&self, data_block: u64) -> u64 {
        self.data_offset + data_block * PAGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;

    #[test]
    fn regions_follow_each_other_and_fit_the_disk() {
        for shift in [24, 26, 30, 34, 40, 46] {
            let length = 1 << shift;
            let layout = Layout::new(length, LayoutLimits::for_length(length)).unwrap();
            let last_index = layout.index_address(layout.index_pages() - 1, 1) + PAGE;
            assert!(last_index <= layout.bitmap_offset);
            let last_bitmap = layout.bitmap_address(layout.bitmap_pages() - 1, 1) + PAGE;
            assert!(last_bitmap <= layout.count_offset);
            let last_count = layout.count_address(layout.count_pages() - 1, 1) + PAGE;
            assert!(last_count <= layout.map_offset);
            assert!(layout.map_address(layout.slot_count - 1, 1, 1) + PAGE <= layout.data_offset);
            let blocks = u64::from(layout.unit_count) * 8;
            assert!(layout.data_address(blocks - 1) + PAGE <= length);
            // What is not data stays under 4 % from 1 GiB on.
            assert!(shift < 30 || layout.data_offset < length / 25, "at {length}");
        }
    }

    #[test]
    fn a_superblock_with_other_regions_is_refused() {
        let layout = Layout::new(1 << 30, LayoutLimits::for_length(1 << 30)).unwrap();
        let mut superblock = Superblock::zeroed();
        layout.emit(&mut superblock);
        assert_eq!(Layout::parse(&superblock, 1 << 30), Ok(layout));
        let short = Layout::parse(&superblock, (1 << 30) - 1);
        assert!(matches!(short, Err(LayoutError::TooSmall { .. })));
        superblock.data_offset = Le64::new(0);
        assert_eq!(Layout::parse(&superblock, 1 << 30), Err(LayoutError::Regions));
        superblock.length = Le64::new(u64::MAX);
        assert!(matches!(Layout::parse(&superblock, 1 << 30), Err(LayoutError::TooLarge { .. })));
    }

    #[test]
    fn limits_out_of_range_are_refused() {
        let limits = |journal_length, slot_count| LayoutLimits { journal_length, slot_count };
        let new = |limits| Layout::new(1 << 24, limits).map(|_| ());
        assert!(matches!(new(limits(4096, 64)), Err(LayoutError::Journal { .. })));
        assert!(matches!(new(limits(1 << 20, 0)), Err(LayoutError::Slots { .. })));
        assert!(matches!(new(limits(1 << 20, 4096)), Err(LayoutError::TooSmall { .. })));
    }
}
