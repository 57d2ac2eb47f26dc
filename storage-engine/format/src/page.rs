// SPDX-License-Identifier: Apache-2.0
//! What every page begins with, and how it is sealed and checked.

use crate::bytes::{Le32, Le64};
use crate::{BLOCK_SIZE, FORMAT_VERSION, FORMAT_VERSION_MIN};
use bytemuck::{Pod, Zeroable};
use crc_fast::CrcAlgorithm;

/// Bytes of a page.
pub const PAGE_SIZE: usize = BLOCK_SIZE as usize;

/// Counters on the disk stay below this, which no store reaches: so adding to one never overflows.
pub const COUNTERS_MAX: u64 = 1 << 46;

/// What tells one store from another, so that a page of a store that was on the disk earlier is
/// never taken for one of this store.
pub type StoreId = [u8; 16];

/// The first 64 bytes of every page but a journal entry's.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct PageHeader {
    pub(crate) magic: [u8; 8],
    /// crc32c of the page from byte 12 to its end.
    crc: Le32,
    version: Le32,
    /// Byte offset of this copy on the disk.
    address: Le64,
    generation: Le64,
    store: StoreId,
    /// What the kind of page needs besides.
    pub(crate) own: [u8; 16],
}

const _: () = assert!(size_of::<PageHeader>() == 64);

/// A kind of page: a plain struct of 4 KiB that begins with a [`PageHeader`].
pub trait Page: Pod {
    const MAGIC: [u8; 8];

    fn header(&self) -> &PageHeader;
    fn header_mut(&mut self) -> &mut PageHeader;

    /// Fills in the header; afterwards [`Page::verify`] with the same arguments succeeds.
    fn seal(&mut self, store: StoreId, address: u64, generation: u64) {
        const { assert!(size_of::<Self>() == PAGE_SIZE) }
        let header = self.header_mut();
        header.magic = Self::MAGIC;
        header.version = Le32::new(FORMAT_VERSION);
        header.address = Le64::new(address);
        header.generation = Le64::new(generation);
        header.store = store;
        let crc = crc32c(&bytemuck::bytes_of(self)[12..]);
        self.header_mut().crc = Le32::new(crc);
    }

    /// Checks kind, checksum, version, store and address, in this order.
    ///
    /// # Errors
    /// Names the first thing that is wrong. `store` is not compared when it is `None`.
    fn verify(&self, store: Option<StoreId>, address: u64) -> Result<(), PageFault> {
        let header = self.header();
        if header.magic != Self::MAGIC {
            return Err(PageFault::Magic);
        }
        if header.crc.get() != crc32c(&bytemuck::bytes_of(self)[12..]) {
            return Err(PageFault::Checksum);
        }
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&header.version.get()) {
            return Err(PageFault::Version { found: header.version.get() });
        }
        if store.is_some_and(|store| store != header.store) {
            return Err(PageFault::Store);
        }
        if header.address.get() != address {
            return Err(PageFault::Address { found: header.address.get() });
        }
        if header.generation.get() > COUNTERS_MAX {
            return Err(PageFault::Field);
        }
        Ok(())
    }

    fn generation(&self) -> u64 {
        self.header().generation.get()
    }

    fn store(&self) -> StoreId {
        self.header().store
    }
}

/// Why bytes are not the page that should be there.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PageFault {
    #[error("the page is of another kind or was never written")]
    Magic,
    #[error("the page does not match its checksum")]
    Checksum,
    #[error("the page has format version {found}, this program knows 1 to {}", FORMAT_VERSION)]
    Version { found: u32 },
    #[error("the page belongs to another store")]
    Store,
    #[error("the page belongs at byte {found}")]
    Address { found: u64 },
    #[error("the page belongs to another object or place in its table")]
    Owner,
    #[error("a field of the page has a value that cannot be")]
    Field,
}

/// CRC-32/ISCSI, with the widest instructions that the processor has.
pub fn crc32c(bytes: &[u8]) -> u32 {
    // The algorithm is 32 bits wide, so the upper half is zero.
    (crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) & 0xffff_ffff) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CountPage;

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        // RFC 3720, appendix B.4: 32 bytes of zeros, and "123456789" by common use.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn each_fault_of_a_page_is_named() {
        let (store, other) = ([1; 16], [2; 16]);
        let mut page = CountPage::zeroed();
        page.seal(store, 4096, 7);
        assert_eq!(page.verify(Some(store), 4096), Ok(()));
        assert_eq!(page.generation(), 7);
        assert_eq!(page.verify(Some(other), 4096), Err(PageFault::Store));
        assert_eq!(page.verify(Some(store), 8192), Err(PageFault::Address { found: 4096 }));
        let mut torn = page;
        bytemuck::bytes_of_mut(&mut torn)[4095] ^= 1;
        assert_eq!(torn.verify(Some(store), 4096), Err(PageFault::Checksum));
        assert_eq!(CountPage::zeroed().verify(None, 0), Err(PageFault::Magic));
        let mut newer = page;
        newer.header_mut().version = Le32::new(FORMAT_VERSION + 1);
        let crc = crc32c(&bytemuck::bytes_of(&newer)[12..]);
        newer.header_mut().crc = Le32::new(crc);
        let found = FORMAT_VERSION + 1;
        assert_eq!(newer.verify(Some(store), 4096), Err(PageFault::Version { found }));
    }
}
