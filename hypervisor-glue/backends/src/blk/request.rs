// SPDX-License-Identifier: Apache-2.0
//! One request of a guest, checked.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

/// Names a request until it is completed. One that was completed is never mistaken for a later.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BlkTag(pub u64);

/// A request that lies inside the disk and whose data has whole sectors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlkRequest {
    pub tag: BlkTag,
    /// The ring it came from.
    pub queue: u16,
    pub operation: BlkOperation,
}

/// Sectors are of 512 bytes. Lengths are in bytes, whole sectors, never zero.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BlkOperation {
    /// Fill with [`super::BlkDevice::copy_in`].
    Read { sector: u64, length: u32 },
    /// Take the data with [`super::BlkDevice::copy_out`].
    Write { sector: u64, length: u32 },
    /// Everything that was completed before is to survive a power cut.
    Flush,
    /// The contents are not needed any more.
    Discard { sector: u64, sectors: u32 },
    /// Reads give zeros from here on. `may_unmap`: space may be freed for it.
    WriteZeroes { sector: u64, sectors: u32, may_unmap: bool },
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BlkStatus {
    Ok,
    IoError,
    Unsupported,
}

impl BlkStatus {
    /// As the driver reads it.
    pub(crate) const fn byte(self) -> u8 {
        #[expect(clippy::cast_possible_truncation, reason = "the status has 8 bits")]
        match self {
            Self::Ok => VIRTIO_BLK_S_OK as u8,
            Self::IoError => VIRTIO_BLK_S_IOERR as u8,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
        }
    }
}

/// Why data was not copied.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CopyError {
    #[error("the request is not open: it was completed, or its queue is gone")]
    NotOpen,
    #[error("the request's data ends before the copy does, or flows the other way")]
    OutsideData,
    #[error("the request's data lies outside the guest's memory")]
    OutsideMemory,
}
