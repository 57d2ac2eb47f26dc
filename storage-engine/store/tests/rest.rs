// SPDX-License-Identifier: Apache-2.0
//! A mount that is told how the store was left spares itself the look through the journal, and only
//! where the disk is still as it was left.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use plinth_disks::memory::{Fault, FaultRule, MemoryDisk};
use plinth_store::{Access, DiskError, MountError, Rest, Store, StoreOptions};
use support::{FORMAT, formatted, read, write};

const LENGTH: u64 = 4 << 20;
const JOURNAL: u64 = 65536;

fn options(rest: Option<Rest>) -> StoreOptions {
    StoreOptions { cache_pages: 64, overlay_blocks: 64, rest, ..StoreOptions::default() }
}

fn put_away() -> (MemoryDisk, Rest) {
    let mut store = Store::mount(formatted(MemoryDisk::new(LENGTH)), options(None)).unwrap();
    for value in 1..=9 {
        write(&mut store, 1, u32::from(value) * 4096, &[value; 4096]).unwrap();
    }
    let (disk, rest) = store.put_away();
    (disk, rest.unwrap())
}

/// A disk whose journal has the entries of a later session, and whose superblocks do not know of it:
/// whoever looks through the journal refuses it.
fn with_later_entries() -> (MemoryDisk, Rest) {
    let (disk, _) = put_away();
    let mut later = Store::mount(disk, options(None)).unwrap();
    for value in 1..=9 {
        write(&mut later, 2, u32::from(value) * 4096, &[value; 4096]).unwrap();
    }
    let later = later.abandon();
    let (mut disk, rest) = put_away();
    let end = JOURNAL + FORMAT.limits.unwrap().journal_length;
    for at in (JOURNAL..end).step_by(4096) {
        let mut page = [0; 4096];
        later.peek(at, &mut page);
        if page.starts_with(b"PLNentry") {
            disk.overwrite(at, &page);
        }
    }
    (disk, rest)
}

#[test]
fn who_is_told_how_the_store_was_left_does_not_look_through_the_journal() {
    let (disk, rest) = with_later_entries();
    let mut store = Store::mount(disk, options(Some(rest))).unwrap();
    assert_eq!(read(&mut store, 1, 9 * 4096, 4096).unwrap()[0], 9);
    write(&mut store, 1, 0, &[77; 4096]).unwrap();
    let mut store = Store::mount(store.abandon(), options(None)).unwrap();
    assert_eq!(read(&mut store, 1, 0, 4096).unwrap()[0], 77, "its numbers begin behind the others");
}

#[test]
fn a_word_that_does_not_fit_the_disk_is_not_believed() {
    let (_, rest) = with_later_entries();
    let mut store = rest.store;
    store[15] ^= 1;
    let words = [
        None,
        Some(Rest { store, ..rest }),
        Some(Rest { generation: rest.generation - 1, ..rest }),
        Some(Rest { generation: rest.generation + 1, ..rest }),
        Some(Rest { last_seq: rest.last_seq - 1, ..rest }),
        Some(Rest { last_seq: rest.last_seq + 1, ..rest }),
    ];
    for word in words {
        let (disk, _) = with_later_entries();
        let error = Store::mount(disk, options(word)).map(drop).err();
        assert!(matches!(error, Some(MountError::Superseded { .. })), "{word:?}: {error:?}");
    }
}

#[test]
fn what_a_session_in_between_has_lost_is_missed() {
    let (disk, rest) = put_away();
    let mut between = Store::mount(disk, options(None)).unwrap();
    for value in 1..=9 {
        write(&mut between, 1, u32::from(value) * 4096, &[value + 1; 4096]).unwrap();
    }
    let mut disk = between.abandon();
    let end = JOURNAL + FORMAT.limits.unwrap().journal_length;
    let mut newest = (0, 0);
    for at in (JOURNAL..end).step_by(4096) {
        let mut page = [0; 4096];
        disk.peek(at, &mut page);
        if page.starts_with(b"PLNentry") {
            let seq = u64::from_le_bytes(page[48..56].try_into().unwrap());
            newest = newest.max((seq, at));
        }
    }
    // The one before the newest: that one says that it was durable.
    disk.overwrite(newest.1 - 4096, &[0; 4096]);
    disk.overwrite(newest.1 - 8192, &[0; 4096]);
    let error = Store::mount(disk, options(Some(rest))).map(drop).unwrap_err();
    assert!(matches!(error, MountError::Journal { .. }), "{error}");
}

#[test]
fn nothing_is_said_of_a_store_that_others_must_mend() {
    let (mut disk, _) = put_away();
    disk.add_rule(FaultRule {
        is_write: true,
        bytes: JOURNAL..LENGTH,
        skip: 40,
        times: u32::MAX,
        fault: Fault::Fail(DiskError::Device { errno: 5 }),
    });
    let mut store = Store::mount(disk, options(None)).unwrap();
    let mut written = (0..200_u32).map(|turn| write(&mut store, 1, turn % 9 * 4096, &[7; 4096]));
    assert!(written.any(|written| written.is_err()), "the disk fails");
    drop(written);
    assert_eq!(store.put_away().1, None);

    let (disk, _) = put_away();
    let rescue = StoreOptions { access: Access::Rescue, ..options(None) };
    assert_eq!(Store::mount(disk, rescue).unwrap().put_away().1, None);
}
