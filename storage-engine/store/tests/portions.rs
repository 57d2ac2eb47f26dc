// SPDX-License-Identifier: Apache-2.0
//! A store on a disk that gives out what has ended little by little, and what a flush waits for.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use plinth_disks::memory::{Cache, MemoryDisk};
use plinth_store::{
    Disk, DiskCompletion, DiskGeometry, DiskRequest, DiskTag, Durability, Store, StoreAnswer,
    StoreOptions, StoreRequest, StoreTag,
};
use std::time::Duration;
use support::{formatted, settle, write, write_request};

/// Gives out one end at a time.
struct Slow {
    disk: MemoryDisk,
    ended: Vec<DiskCompletion>,
}

impl Disk for Slow {
    fn geometry(&self) -> DiskGeometry {
        self.disk.geometry()
    }

    fn enqueue(&mut self, tag: DiskTag, request: DiskRequest) -> Result<(), DiskRequest> {
        self.disk.enqueue(tag, request)
    }

    fn submit(&mut self) {
        self.disk.submit();
    }

    fn complete(&mut self, into: &mut Vec<DiskCompletion>) {
        self.disk.complete(&mut self.ended);
        into.extend(self.ended.pop());
    }
}

#[test]
fn a_store_says_that_it_moved_for_as_long_as_the_disk_may_have_more() {
    for durability in [Durability::Flush, Durability::Device] {
        let disk = formatted(MemoryDisk::new(16 << 20));
        let disk = Slow { disk, ended: Vec::new() };
        let options = StoreOptions { durability, ..StoreOptions::default() };
        let mut store = Store::mount(disk, options).unwrap();
        let mut done = Vec::new();
        for tag in 0..200_u32 {
            let request = write_request(1, tag % 32 * 4096, &[7; 4096]);
            store.submit(StoreTag(u64::from(tag)), request).unwrap();
        }
        let mut quiet = 0;
        while !store.is_idle() {
            let has_moved = store.poll(Duration::ZERO, &mut done);
            quiet += u32::from(!has_moved);
            // Who sleeps now is woken by what ends from here on, and by nothing else.
            assert!(has_moved || store.disk().ended.is_empty(), "ends are left behind");
            assert!(quiet < 100_000, "the store is stuck");
        }
        assert_eq!(done.len(), 200);
        store.check().unwrap();
    }
}

#[test]
fn a_flush_does_not_wait_for_what_is_not_acknowledged() {
    for durability in [Durability::Flush, Durability::Device] {
        let disk = formatted(MemoryDisk::with_seed(16 << 20, Cache::Volatile, 6));
        let options = StoreOptions { durability, ..StoreOptions::default() };
        let mut store = Store::mount(disk, options).unwrap();
        write(&mut store, 1, 0, &[1; 4096]).unwrap();
        store.submit(StoreTag(8), StoreRequest::Flush).unwrap();
        settle(&mut store);
        store.submit(StoreTag(1), write_request(1, 8192, &[2; 4096])).unwrap();
        store.submit(StoreTag(2), StoreRequest::Flush).unwrap();
        let mut done = Vec::new();
        store.poll(Duration::ZERO, &mut done);
        // All that was acknowledged is flushed, so nothing is left to wait for.
        assert_eq!(done.len(), 1, "{done:?}");
        assert_eq!((done[0].tag, &done[0].result), (StoreTag(2), &Ok(StoreAnswer::Flushed)));
        assert_eq!(settle(&mut store).len(), 1);
    }
}
