// SPDX-License-Identifier: Apache-2.0
//! The disks of a pool, each with its store at hand or behind a ring.

use super::DISK_LENGTH;
use plinth_disks::memory::{Cache, MemoryDisk, Seed};
use plinth_ids::{DiskId, Moment};
use plinth_relay::{RelayHost, RelayStore, relay};
use plinth_rt::Bell;
use plinth_span::{Member, read_map};
use plinth_store::{
    FormatOptions, IoBuffer, LayoutLimits, ObjectStore, Store, StoreCapacity, StoreCompletion,
    StoreOptions, StoreRequest, StoreState, StoreTag,
};

/// The store of a disk of the pool: at hand, or behind a ring, with the other end polled when
/// chance will have it.
pub(crate) enum Store1 {
    Here(Box<Store<MemoryDisk>>),
    There { near: Box<RelayStore>, host: Box<RelayHost<Store<MemoryDisk>>>, chance: Seed },
}

impl Store1 {
    pub(super) fn there(store: Store<MemoryDisk>, seed: u64) -> Self {
        // Nobody sleeps here, so nobody hears the bells.
        let bell = || Bell::new().unwrap();
        let (near, host) = relay(store, bell(), bell());
        Self::There { near: Box::new(near), host: Box::new(host), chance: Seed(seed) }
    }

    pub(super) fn store(&self) -> &Store<MemoryDisk> {
        match self {
            Self::Here(store) => store,
            Self::There { host, .. } => host.store(),
        }
    }

    pub(super) fn store_mut(&mut self) -> &mut Store<MemoryDisk> {
        match self {
            Self::Here(store) => store,
            Self::There { host, .. } => host.store_mut(),
        }
    }

    pub(super) fn near(&self) -> &dyn ObjectStore {
        match self {
            Self::Here(store) => &**store,
            Self::There { near, .. } => &**near,
        }
    }

    pub(super) fn near_mut(&mut self) -> &mut dyn ObjectStore {
        match self {
            Self::Here(store) => &mut **store,
            Self::There { near, .. } => &mut **near,
        }
    }
}

impl ObjectStore for Store1 {
    fn submit(&mut self, tag: StoreTag, request: StoreRequest) -> Result<(), StoreRequest> {
        self.near_mut().submit(tag, request)
    }

    fn poll(&mut self, now: Moment, into: &mut Vec<StoreCompletion>) -> bool {
        let mut has_moved = false;
        if let Self::There { host, chance, .. } = self {
            for _ in 0..chance.below(3) {
                has_moved |= host.poll(now);
            }
        }
        has_moved | self.near_mut().poll(now, into)
    }

    fn room(&self) -> usize {
        self.near().room()
    }

    fn is_idle(&self) -> bool {
        self.near().is_idle() && self.store().is_idle()
    }

    fn state(&self) -> StoreState {
        self.near().state()
    }

    fn capacity(&self) -> StoreCapacity {
        self.near().capacity()
    }

    fn take_buffer(&mut self, length: usize) -> IoBuffer {
        self.near_mut().take_buffer(length)
    }

    fn put_buffer(&mut self, buffer: IoBuffer) {
        self.near_mut().put_buffer(buffer);
    }
}

pub(super) fn options() -> StoreOptions {
    StoreOptions {
        cache_pages: 64,
        overlay_blocks: 64,
        requests_max: 64,
        ..StoreOptions::default()
    }
}

pub(crate) fn formatted(number: u32, seed: u64) -> MemoryDisk {
    let mut id = [3; 16];
    id[..4].copy_from_slice(&number.to_le_bytes());
    let limits = Some(LayoutLimits { journal_length: 1 << 20, slot_count: 512 });
    let mut disk = MemoryDisk::new(DISK_LENGTH);
    Store::format(&mut disk, &FormatOptions { id, limits }).unwrap();
    disk.restart(Cache::Volatile, seed);
    disk
}

pub(crate) fn member(number: u32, disk: MemoryDisk) -> Member<Store1> {
    let mut serial = [3; 16];
    serial[..4].copy_from_slice(&number.to_le_bytes());
    let mut store = Store::mount(disk, options()).unwrap();
    let map = read_map(&mut store).unwrap().map(|(_, map)| map);
    Member { disk: DiskId(number), serial, store: Store1::Here(Box::new(store)), map }
}

/// The same, of which another worker is the owner if `seed` says so.
pub(super) fn member_of(number: u32, disk: MemoryDisk, workers: u32, seed: u64) -> Member<Store1> {
    let mut member = member(number, disk);
    if !seed.is_multiple_of(u64::from(workers)) {
        let Store1::Here(store) = member.store else { return member };
        member.store = Store1::there(*store, seed);
    }
    member
}
