// SPDX-License-Identifier: Apache-2.0
//! Transactions that need as many map pages as the smallest cache has: they end, or are refused.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use plinth_disks::memory::MemoryDisk;
use plinth_store::{
    FormatOptions, IoBuffer, LayoutLimits, Operation, Store, StoreAnswer, StoreOptions,
    StoreRefusal, StoreRequest, StoreTag,
};
use support::{FORMAT, apply, key, read, settle, write};

const MIB: u64 = 1 << 20;
/// Bytes of an object that one map page is for.
const HALF: u32 = 2 << 20;
const OBJECTS: u128 = 48;

/// The smallest cache there is.
fn options() -> StoreOptions {
    StoreOptions { cache_pages: 64, overlay_blocks: 64, ..StoreOptions::default() }
}

/// Objects with a block in either half, 96 pages, and none of them in memory.
fn cold() -> Store<MemoryDisk> {
    let mut disk = MemoryDisk::new(64 * MIB);
    let limits = Some(LayoutLimits { journal_length: 4 << 20, slot_count: 64 });
    Store::format(&mut disk, &FormatOptions { limits, ..FORMAT }).unwrap();
    let mut store = Store::mount(disk, options()).unwrap();
    for object in 0..OBJECTS {
        for half in 0..2 {
            write(&mut store, object, half * HALF, &[1; 4096]).unwrap();
        }
    }
    Store::mount(store.unmount(), options()).unwrap()
}

/// One write for each object, across the end of its first half.
fn writes(objects: impl Iterator<Item = u128>, byte: u8) -> Vec<Operation> {
    let write = |object: u128| {
        let mut buffer = IoBuffer::zeroed(8192);
        buffer.as_bytes_mut().fill(byte);
        Operation::Write { key: key(object), offset: HALF - 4096, length: 8192, buffer }
    };
    objects.map(write).collect()
}

#[test]
fn the_widest_that_is_taken_ends_with_others_that_wait_for_as_many_pages() {
    for together in [1, 2, 3, 7, 12] {
        let mut store = cold();
        for number in 0..together {
            // Half of them share their objects with the next one.
            let first = u128::from(number) * 8 % OBJECTS;
            let objects = (first..first + 16).map(|object| object % OBJECTS);
            let transaction = writes(objects, 10 + number);
            let tag = StoreTag(number.into());
            store.submit(tag, StoreRequest::Apply { transaction }).unwrap();
        }
        let done = settle(&mut store);
        assert_eq!(done.len(), together.into());
        for completion in done {
            let (tag, result) = (completion.tag, completion.result);
            assert!(matches!(result, Ok(StoreAnswer::Changed { .. })), "{tag:?}: {result:?}");
        }
        let bytes = read(&mut store, 3, HALF, 4096).unwrap();
        assert!(bytes.iter().all(|&byte| byte >= 10), "{together}: object 3 was not written");
        store.check().unwrap();
    }
}

#[test]
fn what_the_cache_cannot_hold_is_refused_by_its_name_and_changes_nothing() {
    let mut store = cold();
    // 96 pages, more than there are: without a bound it would wait for ever.
    let clone = |object| Operation::Clone { source: key(object), target: key(100 + object) };
    let remove = |object: u128| Operation::Remove { key: key(16 + object) };
    let both = (0..16).map(clone).chain((0..16).map(remove)).collect();
    let refusal = apply(&mut store, both).unwrap_err();
    assert!(matches!(refusal, StoreRefusal::TransactionTooWide { limit: 32, .. }), "{refusal}");
    let removes = |count| (0..count).map(|object| Operation::Remove { key: key(object) }).collect();
    let refusal = apply(&mut store, removes(32)).unwrap_err();
    assert_eq!(refusal, StoreRefusal::TransactionTooWide { pages: 64, limit: 32 });
    let refusal = apply(&mut store, writes(0..17, 3)).unwrap_err();
    assert_eq!(refusal, StoreRefusal::TransactionTooWide { pages: 34, limit: 32 });
    assert!(refusal.to_string().contains("larger cache"), "{refusal}");
    // Of new objects and clones too: a clone needs its source's pages and two of its own.
    let clones = (0..12).map(clone).collect();
    let refusal = apply(&mut store, clones).unwrap_err();
    assert_eq!(refusal, StoreRefusal::TransactionTooWide { pages: 48, limit: 32 });
    assert_eq!(u128::from(store.check().unwrap().objects), OBJECTS);
    assert_eq!(read(&mut store, 31, HALF, 4096).unwrap(), [1; 4096]);
    apply(&mut store, removes(16)).unwrap();
    assert_eq!(u128::from(store.check().unwrap().objects), OBJECTS - 16);
    // With a cache of the usual size nothing is too wide.
    let mut store = Store::mount(store.unmount(), StoreOptions::default()).unwrap();
    let rest = (16..48).map(|object| Operation::Remove { key: key(object) }).collect();
    apply(&mut store, rest).unwrap();
    assert_eq!(store.check().unwrap().objects, 0);
}
