// SPDX-License-Identifier: Apache-2.0
//! Freed space is given back to the device: when, how fast, and after a restart too.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use plinth_disks::memory::MemoryDisk;
use plinth_store::{DiscardOptions, Operation, Store, StoreOptions};
use std::time::Duration;
use support::{apply, formatted, fresh, key, read, settle, write};

const UNIT: usize = 32 << 10;
const LENGTH: u64 = 64 << 20;

fn options(rate: u64, delay: u64) -> StoreOptions {
    let discard = DiscardOptions { rate, delay: Duration::from_secs(delay) };
    StoreOptions { cache_pages: 64, overlay_blocks: 64, discard, ..StoreOptions::default() }
}

/// Blocks of the disk that begin with these bytes.
fn blocks_with(disk: &MemoryDisk, mark: [u8; 8]) -> usize {
    let mut block = [0; 8];
    let starts = (0..LENGTH / 4096).map(|block| block * 4096);
    starts
        .filter(|&at| {
            disk.peek(at, &mut block);
            block == mark
        })
        .count()
}

/// Polls for so long, a hundred times a second.
fn live(store: &mut Store<MemoryDisk>, from: f64, to: f64) {
    let mut ends = Vec::new();
    let mut now = Duration::from_secs_f64(from);
    while now <= Duration::from_secs_f64(to) {
        store.poll(now, &mut ends);
        now += Duration::from_millis(10);
    }
}

#[test]
fn what_is_freed_is_forgotten_by_the_device_after_the_delay_and_what_is_owned_is_not() {
    let mut store = fresh(LENGTH, options(u64::MAX, 5));
    write(&mut store, 1, 0, &b"gone....".repeat(16 * UNIT / 8)).unwrap();
    write(&mut store, 2, 0, &b"stays...".repeat(16 * UNIT / 8)).unwrap();
    apply(&mut store, vec![Operation::Remove { key: key(1) }]).unwrap();
    live(&mut store, 0.1, 4.9);
    assert_eq!(blocks_with(store.disk(), *b"gone...."), 128, "too early");
    assert_eq!(store.counters().discards, 0);
    assert_eq!(store.deadline(), Some(Duration::from_secs(5)));
    live(&mut store, 4.9, 6.0);
    assert_eq!(blocks_with(store.disk(), *b"gone...."), 0);
    assert_eq!(blocks_with(store.disk(), *b"stays..."), 128);
    assert_eq!(read(&mut store, 2, 0, 8).unwrap(), b"stays...");
    // Neighbors went in one request; what lies free behind them in their chunk may go again.
    let counters = store.counters();
    assert!(counters.discards <= 2 && counters.discarded_bytes >= 16 * UNIT as u64, "{counters:?}");
    assert_eq!(counters.discard_errors, 0);
    live(&mut store, 6.0, 30.0);
    assert_eq!(store.counters().discards, counters.discards, "once is enough");
    assert_eq!(store.deadline(), None);
    store.check().unwrap();
}

#[test]
fn units_that_were_taken_again_are_not_discarded() {
    let mut store = fresh(LENGTH, options(u64::MAX, 5));
    write(&mut store, 1, 0, &b"gone....".repeat(16 * UNIT / 8)).unwrap();
    apply(&mut store, vec![Operation::Remove { key: key(1) }]).unwrap();
    // Most of the disk twice, so that the freed units are among those that are taken.
    for _ in 0..2 {
        for object in 2..14 {
            apply(&mut store, vec![Operation::Remove { key: key(object) }]).unwrap();
            write(&mut store, object, 0, &b"stays...".repeat((4 << 20) / 8)).unwrap();
        }
    }
    assert_eq!(blocks_with(store.disk(), *b"gone...."), 0, "they were not taken");
    live(&mut store, 0.1, 12.0);
    assert!(store.counters().discards > 0 || store.deadline().is_none());
    for object in 2..14 {
        let found = read(&mut store, object, 0, 4 << 20).unwrap();
        assert!(found == b"stays...".repeat((4 << 20) / 8), "object {object}");
    }
}

#[test]
fn the_rate_is_kept() {
    let rate = 4 << 20;
    let mut store = fresh(LENGTH, options(rate, 0));
    for object in 0..8 {
        write(&mut store, object, 0, &b"gone....".repeat((4 << 20) / 8)).unwrap();
    }
    for object in 0..8 {
        apply(&mut store, vec![Operation::Remove { key: key(object) }]).unwrap();
    }
    live(&mut store, 0.1, 4.1);
    let early = store.counters().discarded_bytes;
    // A batch may go ahead of the rate; it is an eighth of what is free at most, and a chunk.
    assert!(early >= 4 * rate && early <= 4 * rate + (10 << 20), "{early}");
    assert!(blocks_with(store.disk(), *b"gone....") > 0);
    live(&mut store, 4.1, 30.0);
    assert_eq!(blocks_with(store.disk(), *b"gone...."), 0);
}

#[test]
fn what_a_stop_came_before_is_given_back_after_the_next_mount() {
    for is_clean in [true, false] {
        let mut store = fresh(LENGTH, options(u64::MAX, 5));
        write(&mut store, 1, 0, &b"gone....".repeat(16 * UNIT / 8)).unwrap();
        apply(&mut store, vec![Operation::Remove { key: key(1) }]).unwrap();
        settle(&mut store);
        let disk = if is_clean { store.unmount() } else { store.abandon() };
        assert_eq!(blocks_with(&disk, *b"gone...."), 128, "too early");
        let mut store = Store::mount(disk, options(u64::MAX, 5)).unwrap();
        live(&mut store, 0.1, 6.0);
        assert_eq!(blocks_with(store.disk(), *b"gone...."), 0, "clean: {is_clean}");
        // And then no more: the next mount finds nothing to do.
        let mut store = Store::mount(store.unmount(), options(u64::MAX, 5)).unwrap();
        live(&mut store, 0.1, 6.0);
        assert_eq!(store.counters().discards, 0);
    }
}

#[test]
fn nothing_is_discarded_where_that_is_not_wanted() {
    let mut store = fresh(LENGTH, options(0, 0));
    write(&mut store, 1, 0, &b"gone....".repeat(16 * UNIT / 8)).unwrap();
    apply(&mut store, vec![Operation::Remove { key: key(1) }]).unwrap();
    live(&mut store, 0.1, 6.0);
    assert_eq!(blocks_with(store.disk(), *b"gone...."), 128);
    assert_eq!((store.counters().discards, store.deadline()), (0, None));
    // Of a clean stop nothing is left to do either.
    let disk = Store::mount(store.unmount(), options(0, 0)).unwrap().unmount();
    assert_eq!(blocks_with(&formatted(disk), *b"gone...."), 128, "formatting writes no data");
}
