// SPDX-License-Identifier: Apache-2.0
//! Reads and overwrites of a store allocate nothing, once every table has seen its longest row.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use plinth_disks::flat::FlatDisk;
use plinth_ids::PoolId;
use plinth_rt::{CountingAllocator, allocations};
use plinth_store::{
    Durability, FormatOptions, IoBuffer, ObjectId, ObjectKey, PgId, Store, StoreCompletion,
    StoreOptions, StoreRequest, StoreTag,
};
use std::time::Duration;

#[global_allocator]
static COUNTED: CountingAllocator = CountingAllocator;

const KEY: ObjectKey = ObjectKey { pool: PoolId(1), pg: PgId(0), object: ObjectId(7), snapshot: 0 };
/// Blocks of an object.
const BLOCKS: u32 = 1024;
const DEPTH: usize = 32;

struct Bench {
    store: Store<FlatDisk>,
    free: Vec<IoBuffer>,
    done: Vec<StoreCompletion>,
    next: u32,
}

impl Bench {
    fn new(durability: Durability) -> Self {
        let mut disk = FlatDisk::new(64 << 20);
        Store::format(&mut disk, &FormatOptions { id: [3; 16], limits: None }).unwrap();
        let options = StoreOptions { durability, ..StoreOptions::default() };
        let mut store = Store::mount(disk, options).unwrap();
        let buffer = IoBuffer::zeroed(4 << 20);
        let whole = StoreRequest::Write { key: KEY, offset: 0, length: 4 << 20, buffer };
        store.submit(StoreTag(0), whole).unwrap();
        let free = (0..DEPTH).map(|_| IoBuffer::zeroed(4096)).collect();
        let mut bench = Self { store, free, done: Vec::with_capacity(64), next: 0 };
        while !bench.store.is_idle() {
            bench.store.poll(Duration::ZERO, &mut bench.done);
        }
        bench.done.clear();
        bench
    }

    /// So many requests, always [`DEPTH`] of them on their way, no two on one block.
    fn run(&mut self, count: usize, is_write: bool) {
        let mut ended = 0;
        while ended < count {
            while let Some(buffer) = self.free.pop() {
                let offset = self.next * 37 % BLOCKS * 4096;
                self.next += 1;
                let (key, length) = (KEY, 4096);
                let request = if is_write {
                    StoreRequest::Write { key, offset, length, buffer }
                } else {
                    StoreRequest::Read { key, offset, length, buffer }
                };
                assert!(self.store.submit(StoreTag(1), request).is_ok());
            }
            self.store.poll(Duration::ZERO, &mut self.done);
            for done in self.done.drain(..) {
                assert!(done.result.is_ok());
                self.free.extend(done.buffer);
                ended += 1;
            }
        }
    }
}

#[test]
fn the_counter_counts() {
    let before = allocations();
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert_eq!(allocations() - before, 1);
}

#[test]
fn reads_and_overwrites_allocate_nothing() {
    for durability in [Durability::Device, Durability::Flush] {
        let mut bench = Bench::new(durability);
        for is_write in [false, true] {
            bench.run(2000, is_write);
            let before = allocations();
            bench.run(5000, is_write);
            let made = allocations() - before;
            assert_eq!(made, 0, "{durability:?}, writing: {is_write}");
        }
        let counters = bench.store.counters();
        assert!(counters.blocks_overwritten > 6000, "{counters:?}");
        assert_eq!(counters.checkpoints, 1, "the measured requests met none: {counters:?}");
    }
}

#[test]
fn views_allocate_nothing() {
    let mut bench = Bench::new(Durability::Device);
    let before = allocations();
    for turn in 0..5000 {
        let sight = bench.store.sight(&KEY, turn * 37 % BLOCKS * 4096, 4096).unwrap();
        bench.store.fetch();
        assert_eq!(bench.store.view(&sight).map(<[u8]>::len), Some(4096));
    }
    assert_eq!(allocations() - before, 0);
}
