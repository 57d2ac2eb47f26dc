// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The object store of one disk, and the [`Disk`] trait it stands on.
//!
//! A store has one owner, does no I/O itself and reads no clock: it hands [`DiskRequest`]s to a
//! [`Disk`], and its owner polls it until the answers are out.
//!
//! The doors of a store, as its owner sees them:
//! ```text
//! Store::<D: Disk>::format(&mut disk, &FormatOptions) -> Result<(), FormatError>
//! Store::mount(disk, StoreOptions { durability, .. })  -> Result<Store<D>, MountError>
//!     (both poll the disk until they are done; bounded by superblock + checkpoint + journal)
//! store.submit(StoreTag, StoreRequest) -> Result<(), StoreRequest>      back-pressure gives it back
//! store.poll(now, &mut Vec<StoreCompletion>)  -> bool (something moved)  call it every round
//! store.list(range, limit) -> objects; store.counters(); store.state(); store.capacity()
//! store.unmount() -> D                                                   checkpoint, flush, give the disk back
//! ```
//! What stands on a store without caring how many disks it has uses [`ObjectStore`].

mod bad;
mod bitmap;
mod blocking;
mod buffer;
mod cache;
mod change;
mod check;
mod checkpoint;
mod discard;
mod disk;
mod door;
mod entry;
mod execute;
mod filter;
mod format;
mod io;
mod journal;
mod keyhash;
mod keys;
mod ladder;
mod list;
mod marks;
mod mount;
mod object_store;
mod objects;
mod op;
mod overlay;
mod query;
mod quick;
mod quiet;
mod read;
mod replay;
mod request;
mod rescue;
mod rest;
mod scan;
mod scrub;
mod slab;
mod space;
mod store;
mod suspect;
mod tree;
mod usage;
mod view;
mod wipe;

pub use bad::{BAD_BLOCKS_MAX, BadBlock, FoundBy};
pub use buffer::{BLOCK_SIZE, Block, BufferPool, IoBuffer};
pub use check::{CheckFault, CheckReport};
pub use discard::DiscardOptions;
pub use disk::{Disk, DiskCompletion, DiskError, DiskGeometry, DiskRequest, DiskTag};
pub use door::walk_key_pages;
pub use format::{FormatError, FormatOptions, Found};
pub use ladder::{Ladder, Level};
pub use mount::{MountError, repair_checksum};
pub use object_store::ObjectStore;
pub use plinth_format::keys::{KEY_MAX, VALUE_MAX};
pub use plinth_format::{Layout, LayoutLimits, StoreId};
pub use request::{
    BlockRange, LIST_MAX, OBJECT_SIZE_MAX, ObjectId, ObjectKey, ObjectStatus, Operation, PgId,
    STEPS_MAX, StoreAnswer, StoreCompletion, StoreRefusal, StoreRequest, StoreTag,
};
pub use rest::Rest;
pub use scrub::{ScrubKind, ScrubProgress};
pub use store::{
    Access, Durability, Omit, ReadOnlyReason, Store, StoreCapacity, StoreCounters, StoreOptions,
    StoreState,
};
pub use view::Sight;
