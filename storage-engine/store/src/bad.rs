// SPDX-License-Identifier: Apache-2.0
//! Which blocks are known to be bad: those that a read or a scrub could not get as they were
//! written.
//!
//! The list is in memory and bounded. After a restart a scrub finds again what is still bad. A
//! block leaves the list when it is overwritten, zeroed or removed, or when a deep scrub reads it
//! as it should be.

use crate::disk::Disk;
use crate::op::{Step, StepKind, block_range};
use crate::request::ObjectKey;
use crate::store::Store;
use plinth_format::{BLOCK_SIZE, MAP_BLOCKS, OBJECT_UNITS, UNIT_BLOCKS};
use plinth_ids::Moment;
use std::collections::BTreeMap;

/// The most bad blocks that are remembered one by one; all are counted.
pub const BAD_BLOCKS_MAX: usize = 1024;

/// Who met a bad block first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FoundBy {
    Read,
    LightScrub,
    DeepScrub,
}

/// A block of 4 KiB that cannot be read as it was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BadBlock {
    pub key: ObjectKey,
    /// Of the object.
    pub block: u32,
    /// Byte of the device.
    pub offset: u64,
    pub found_by: FoundBy,
    /// By the clock that the owner polls with.
    pub found_at: Moment,
    /// The device said that it cannot be read; else it does not match its checksum.
    pub is_device: bool,
}

#[derive(Debug, Default)]
pub(crate) struct BadBlocks {
    blocks: BTreeMap<(ObjectKey, u32), BadBlock>,
}

impl BadBlocks {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &BadBlock> {
        self.blocks.values()
    }

    /// Remembers a block, unless it is known or the list is full. Says whether it was not known.
    pub(crate) fn add(&mut self, bad: BadBlock) -> bool {
        let at = (bad.key, bad.block);
        if self.blocks.contains_key(&at) || self.blocks.len() >= BAD_BLOCKS_MAX {
            return false;
        }
        self.blocks.insert(at, bad);
        true
    }

    /// The blocks `first..end` of the object are as they should be, or gone.
    pub(crate) fn forget(&mut self, key: ObjectKey, first: u32, end: u32) {
        if first >= end {
            return;
        }
        while let Some((&at, _)) = self.blocks.range((key, first)..(key, end)).next() {
            self.blocks.remove(&at);
        }
    }
}

impl<D: Disk> Store<D> {
    /// A step is carried out: what it writes, unwrites or removes is bad no more.
    pub(crate) fn forget_bad(&mut self, step: &Step) {
        let all = OBJECT_UNITS * UNIT_BLOCKS;
        let (first, end) = match &step.kind {
            StepKind::Write { offset, length } | StepKind::Zero { offset, length } => {
                block_range(*offset, *length)
            }
            StepKind::WriteFull { .. }
            | StepKind::Scrap
            | StepKind::Remove
            | StepKind::Clone { .. } => (0, all),
            StepKind::Truncate { size } => (size.div_ceil(BLOCK_SIZE), all),
            _ => return,
        };
        self.bad.forget(step.key, first, end);
    }

    /// A read met a bad block of the object whose map is in this frame.
    pub(crate) fn note_bad(&mut self, key: ObjectKey, frame: u32, block: u32, is_device: bool) {
        let page = &self.cache.frame(frame).page;
        let unit = page.unit(block % MAP_BLOCKS / UNIT_BLOCKS).unwrap_or(0);
        let data_block = u64::from(unit) * u64::from(UNIT_BLOCKS) + u64::from(block % UNIT_BLOCKS);
        let (offset, found_at) = (self.layout.data_address(data_block), self.now);
        let found_by = FoundBy::Read;
        self.bad.add(BadBlock { key, block, offset, found_by, found_at, is_device });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(block: u32) -> BadBlock {
        let (key, found_by) = (ObjectKey::default(), FoundBy::Read);
        let found_at = Moment::default();
        BadBlock { key, block, offset: 0, found_by, found_at, is_device: false }
    }

    #[test]
    fn the_list_is_bounded_and_forgets_what_was_mended() {
        let mut blocks = BadBlocks::default();
        for block in (0..).take(2 * BAD_BLOCKS_MAX) {
            blocks.add(bad(block));
        }
        assert_eq!(blocks.len(), BAD_BLOCKS_MAX);
        blocks.forget(ObjectKey::default(), 10, 20);
        blocks.forget(ObjectKey::MAX, 0, u32::MAX);
        assert_eq!(blocks.len(), BAD_BLOCKS_MAX - 10);
        assert!(blocks.add(bad(10)) && !blocks.add(bad(10)));
    }
}
