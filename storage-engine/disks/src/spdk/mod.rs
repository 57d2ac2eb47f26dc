// SPDX-License-Identifier: Apache-2.0
//! A block device of SPDK as a [`Disk`](plinth_store::Disk).
//!
//! ```text
//!   worker                                  SPDK's thread
//!   BridgeDisk::enqueue ─ batch             Bdev (feature `spdk`)
//!   BridgeDisk::submit ══ one message ═════▶ copy to DMA memory, read or write, copy back
//!   BridgeDisk::complete ◀══ channel ═══════ the end of each
//! ```
//!
//! SPDK runs its devices on threads of its own, so a request goes over and comes back. The half
//! on our side, [`BridgeDisk`], is always built and tested, over a fake device. The half on
//! SPDK's side is `bdev`, which needs the feature `spdk` and an installed libspdk.
//!
//! Two things that `ironspdk` 0.2 does not know decide for which devices this is: it has neither
//! flush nor unmap. So a device is taken only if whoever opens it says that its write cache
//! survives power loss, or that it has none ([`WriteCache::Protected`]); then a flush has nothing
//! to do. Nothing is discarded.

mod bridge;

#[cfg(feature = "spdk")]
pub mod bdev;

pub use bridge::{BridgeDisk, Job, JobKind, Lower, LowerGeometry, SpdkDiskError, WriteCache};
