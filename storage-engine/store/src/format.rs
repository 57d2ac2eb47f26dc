// SPDX-License-Identifier: Apache-2.0
//! Making an empty store on a disk.

use crate::blocking;
use crate::buffer::IoBuffer;
use crate::checkpoint::put_page;
use crate::disk::{Disk, DiskError};
use crate::space::Space;
use crate::store::Store;
use bytemuck::Zeroable;
use plinth_format::{
    BITMAP_UNITS, BitmapPage, Layout, LayoutError, LayoutLimits, Le64, PAGE_SIZE, Page, StoreId,
    Superblock,
};

/// How a disk is formatted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FormatOptions {
    /// A number that no other store has: random bytes.
    pub id: StoreId,
    /// Journal and object slots; `None` takes what suits the disk's length.
    pub limits: Option<LayoutLimits>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FormatError {
    #[error("the disk cannot be laid out")]
    Layout(#[from] LayoutError),
    #[error("the disk's sectors have {size} bytes; 512 to 4096 are needed")]
    Sectors { size: u32 },
    #[error("the disk failed")]
    Disk(#[from] DiskError),
}

/// Whether a store is on the disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// Neither superblock is one.
    Nothing,
    /// At least one superblock is whole: formatting would destroy this store.
    Store(StoreId),
}

impl<D: Disk> Store<D> {
    /// Looks for a store, without judging whether it can be mounted.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn probe(disk: &mut D) -> Result<Found, DiskError> {
        for copy in 0..2 {
            let address = copy * u64::from(plinth_format::UNIT_SIZE);
            if disk.geometry().length < address + PAGE_SIZE as u64 {
                break;
            }
            let bytes = blocking::read(disk, address, IoBuffer::zeroed(PAGE_SIZE))?;
            let page: Superblock = *bytemuck::from_bytes(bytes.as_bytes());
            if page.verify(None, address).is_ok() {
                return Ok(Found::Store(page.store()));
            }
        }
        Ok(Found::Nothing)
    }

    /// Makes an empty store. What was on the disk is lost.
    ///
    /// The old superblocks go first and the new ones come last, so that a disk whose formatting
    /// was cut short has no store at all.
    ///
    /// # Errors
    /// When the disk is too small, has odd sectors, or fails.
    pub fn format(disk: &mut D, options: &FormatOptions) -> Result<(), FormatError> {
        let geometry = disk.geometry();
        if !matches!(geometry.sector_size, 512 | 1024 | 2048 | 4096) {
            return Err(FormatError::Sectors { size: geometry.sector_size });
        }
        let limits = options.limits.unwrap_or_else(|| LayoutLimits::for_length(geometry.length));
        let layout = Layout::new(geometry.length, limits)?;
        for copy in 0..2 {
            let address = layout.superblock_address(copy);
            blocking::write(disk, address, IoBuffer::zeroed(PAGE_SIZE))?;
        }
        blocking::flush(disk)?;
        let space = Space::new(layout.unit_count);
        for page in 0..layout.unit_count.div_ceil(BITMAP_UNITS) {
            let mut image: BitmapPage = space.bitmap_page(page);
            for generation in 1..=2 {
                let address = layout.bitmap_address(page, generation % 2);
                let mut buffer = IoBuffer::zeroed(PAGE_SIZE);
                put_page(&mut buffer, &mut image, options.id, address, generation);
                blocking::write(disk, address, buffer)?;
            }
        }
        blocking::flush(disk)?;
        let mut image = Superblock::zeroed();
        layout.emit(&mut image);
        image.session = Le64::new(1);
        image.replay_seq = Le64::new(1);
        for generation in 1..=2 {
            let address = layout.superblock_address(generation % 2);
            let mut buffer = IoBuffer::zeroed(PAGE_SIZE);
            put_page(&mut buffer, &mut image, options.id, address, generation);
            blocking::write(disk, address, buffer)?;
        }
        blocking::flush(disk)?;
        Ok(())
    }
}
