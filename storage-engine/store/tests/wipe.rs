// SPDX-License-Identifier: Apache-2.0
//! What is wiped is gone from the disk, wherever its bytes had been.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use plinth_disks::memory::MemoryDisk;
use plinth_store::{Operation, Store, StoreAnswer, StoreOptions, StoreRequest};
use support::{apply, formatted, key, read, run, settle, write};

const LENGTH: u64 = 32 << 20;
const MARK: [u8; 8] = *b"secrets.";

fn options() -> StoreOptions {
    StoreOptions { cache_pages: 64, overlay_blocks: 64, ..StoreOptions::default() }
}

fn mounted(atomic: u32) -> Store<MemoryDisk> {
    let mut disk = formatted(MemoryDisk::new(LENGTH));
    disk.set_atomic_write_size(atomic);
    Store::mount(disk, options()).unwrap()
}

/// Sectors of the whole disk that have the mark.
fn marked(disk: &MemoryDisk) -> usize {
    let mut bytes = vec![0; usize::try_from(LENGTH).unwrap()];
    disk.peek(0, &mut bytes);
    bytes
        .chunks_exact(512)
        .filter(|sector| sector.chunks_exact(8).any(|eight| eight == MARK))
        .count()
}

/// An object with whole units, parts of units and blocks that went through the journal.
fn fill(store: &mut Store<MemoryDisk>, object: u128) {
    write(store, object, 0, &MARK.repeat(100 << 10)).unwrap();
    write(store, object, 3 << 20, &MARK.repeat(700)).unwrap();
    for at in 0..40 {
        write(store, object, at * 20_480 + 512, &MARK.repeat(128)).unwrap();
    }
}

fn wipe(store: &mut Store<MemoryDisk>, object: u128) -> u32 {
    apply(store, vec![Operation::Scrap { key: key(object) }]).unwrap();
    let wiped = run(store, StoreRequest::Wipe { key: key(object) }).result.unwrap();
    apply(store, vec![Operation::Remove { key: key(object) }]).unwrap();
    match wiped {
        StoreAnswer::Wiped { units } => units,
        other => panic!("{other:?}"),
    }
}

fn turn(store: &mut Store<MemoryDisk>) {
    assert_eq!(run(store, StoreRequest::TurnJournal).result, Ok(StoreAnswer::Flushed));
}

#[test]
fn a_wiped_object_is_nowhere_on_the_disk() {
    for atomic in [512, 4096] {
        let mut store = mounted(atomic);
        fill(&mut store, 1);
        let there = marked(store.disk());
        assert!(there > 1600, "{there}");
        let journal = 512 * 1024 / 512;
        assert_eq!(wipe(&mut store, 1), 26);
        let left = marked(store.disk());
        assert!(left <= journal, "what is left is in the journal: {left}");
        assert_eq!(left > 0, atomic == 512, "{left}: overwrites went through the journal or not");
        turn(&mut store);
        assert_eq!(marked(store.disk()), 0);
        store.check().unwrap();
        let capacity = store.capacity();
        assert_eq!((capacity.used, capacity.objects), (0, 0));
    }
}

#[test]
fn what_others_have_is_not_wiped() {
    let mut store = mounted(4096);
    fill(&mut store, 1);
    let clone = Operation::Clone { source: key(1), target: key(2) };
    apply(&mut store, vec![clone]).unwrap();
    // The clone keeps the old bytes of what is written now.
    write(&mut store, 1, 0, &MARK.repeat(4096)).unwrap();
    let before = read(&mut store, 2, 0, 4 << 20).unwrap();
    assert_eq!(wipe(&mut store, 1), 1);
    assert!(read(&mut store, 2, 0, 4 << 20).unwrap() == before);
    assert_eq!(wipe(&mut store, 2), 26);
    turn(&mut store);
    assert_eq!(marked(store.disk()), 0);
}

#[test]
fn what_is_written_is_not_wiped_and_what_was_scrapped_can_be_written_again() {
    let mut store = mounted(512);
    fill(&mut store, 1);
    let before = read(&mut store, 1, 0, 4 << 20).unwrap();
    let wiped = run(&mut store, StoreRequest::Wipe { key: key(1) }).result;
    assert_eq!(wiped, Ok(StoreAnswer::Wiped { units: 0 }));
    assert!(read(&mut store, 1, 0, 4 << 20).unwrap() == before);
    let missing = run(&mut store, StoreRequest::Wipe { key: key(9) }).result;
    assert_eq!(missing, Ok(StoreAnswer::Wiped { units: 0 }));
    apply(&mut store, vec![Operation::Scrap { key: key(1) }]).unwrap();
    assert!(read(&mut store, 1, 0, 4 << 20).unwrap().iter().all(|&byte| byte == 0));
    write(&mut store, 1, 8192, &MARK.repeat(512)).unwrap();
    // All but the unit that is written.
    let wiped = run(&mut store, StoreRequest::Wipe { key: key(1) }).result;
    assert_eq!(wiped, Ok(StoreAnswer::Wiped { units: 25 }));
    assert!(read(&mut store, 1, 8192, 4096).unwrap() == MARK.repeat(512));
    assert!(read(&mut store, 1, 0, 8192).unwrap().iter().all(|&byte| byte == 0));
    store.check().unwrap();
}

#[test]
fn the_journal_is_turned_while_others_write_and_holds_after_a_restart() {
    let mut store = mounted(512);
    fill(&mut store, 1);
    for (tag, object) in (1..).zip(2..40) {
        let request = support::write_request(object, 512, &b"others..".repeat(600));
        store.submit(plinth_store::StoreTag(tag), request).unwrap();
    }
    store.submit(plinth_store::StoreTag(100), StoreRequest::TurnJournal).unwrap();
    store.submit(plinth_store::StoreTag(101), StoreRequest::TurnJournal).unwrap();
    let ends = settle(&mut store);
    assert!(ends.iter().all(|end| end.result.is_ok()), "{ends:?}");
    assert_eq!(ends.len(), 40);
    let mut store = Store::mount(store.abandon(), options()).unwrap();
    for object in 2..40 {
        assert!(read(&mut store, object, 512, 4800).unwrap() == b"others..".repeat(600));
    }
}
