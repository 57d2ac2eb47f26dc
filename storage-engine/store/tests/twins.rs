// SPDX-License-Identifier: Apache-2.0
//! Of everything that exists twice either copy will do: superblocks, index, bitmap, counts.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use plinth_disks::memory::{Fault, FaultRule, MemoryDisk};
use plinth_store::{DiskError, MountError, Omit, Operation, Store, StoreOptions};
use support::{apply, fresh, key, read, write};

const LENGTH: u64 = 4 << 20;
const OBJECTS: u8 = 20;

fn options(omit: Omit) -> StoreOptions {
    StoreOptions { cache_pages: 64, overlay_blocks: 64, omit, ..StoreOptions::default() }
}

fn page(disk: &MemoryDisk, at: u64) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    disk.peek(at, &mut bytes);
    bytes
}

/// Several sessions with checkpoints, and behind the last of them changes in the journal.
fn cut_off(omit: Omit) -> MemoryDisk {
    let mut store = fresh(LENGTH, options(omit));
    for value in 1..=OBJECTS {
        write(&mut store, value.into(), 0, &[value; 4096]).unwrap();
        if value == 9 {
            let clone = Operation::Clone { source: key(1), target: key(30) };
            apply(&mut store, vec![clone]).unwrap();
        }
        if value % 4 == 0 {
            store.request_checkpoint();
            support::settle(&mut store);
        }
        if value == 7 || value == 14 {
            store = Store::mount(store.unmount(), options(omit)).unwrap();
        }
        if value == 18 {
            store = Store::mount(store.abandon(), options(omit)).unwrap();
        }
    }
    store.abandon()
}

/// The pages that are no journal's and no map's, with what they are.
fn tables(disk: &MemoryDisk) -> Vec<(u64, &'static str)> {
    let kinds: [(&[u8], &'static str); 4] = [
        (b"PLNsuper", "superblock"),
        (b"PLNindex", "index"),
        (b"PLNbits\0", "bitmap"),
        (b"PLNcount", "counts"),
    ];
    let kind = |at: u64| kinds.iter().find(|(magic, _)| page(disk, at).starts_with(magic));
    (0..LENGTH).step_by(4096).filter_map(|at| Some((at, kind(at)?.1))).collect()
}

fn harm(disk: &mut MemoryDisk, how: usize, at: u64) {
    match how {
        0 => {
            let mut bytes = page(disk, at);
            bytes[1000] ^= 1;
            disk.overwrite(at, &bytes);
        }
        1 => {
            let bytes = page(disk, (at + 8192) % LENGTH);
            disk.overwrite(at, &bytes);
        }
        _ => disk.add_rule(FaultRule {
            is_write: false,
            bytes: at..at + 4096,
            skip: 0,
            times: u32::MAX,
            fault: Fault::Fail(DiskError::Device { errno: 5 }),
        }),
    }
}

/// Everything that was acknowledged is there.
fn is_whole(disk: MemoryDisk, omit: Omit) -> Result<(), String> {
    let mut store = Store::mount(disk, options(omit)).map_err(|error| error.to_string())?;
    store.check().map_err(|error| error.to_string())?;
    for value in 1..=OBJECTS {
        let found = read(&mut store, value.into(), 0, 4096).map_err(|error| error.to_string())?;
        if found != [value; 4096] {
            return Err(format!("object {value} is {}", found[0]));
        }
    }
    let clone = read(&mut store, 30, 0, 4096).map_err(|error| error.to_string())?;
    if clone == [1; 4096] { Ok(()) } else { Err(format!("the clone is {}", clone[0])) }
}

#[test]
fn every_page_of_a_table_may_be_lost() {
    let all = tables(&cut_off(Omit::Nothing));
    for kind in ["superblock", "index", "bitmap", "counts"] {
        let copies = all.iter().filter(|(_, found)| *found == kind).count();
        assert_eq!(copies, 2, "{kind} has both copies");
    }
    for &(at, kind) in &all {
        for how in 0..3 {
            let mut disk = cut_off(Omit::Nothing);
            harm(&mut disk, how, at);
            is_whole(disk, Omit::Nothing).unwrap_or_else(|e| panic!("{kind} at {at}: {e}"));
        }
    }
}

#[test]
fn what_one_copy_says_is_in_both_after_the_next_mount() {
    for &(at, kind) in &tables(&cut_off(Omit::Nothing)) {
        let mut disk = cut_off(Omit::Nothing);
        harm(&mut disk, 0, at);
        // The other copy of the same page goes later.
        let other = if kind == "superblock" { at ^ 32768 } else { at ^ 4096 };
        let mut disk = Store::mount(disk, options(Omit::Nothing)).unwrap().abandon();
        harm(&mut disk, 0, other);
        is_whole(disk, Omit::Nothing).unwrap_or_else(|e| panic!("{kind} at {at}: {e}"));
    }
}

#[test]
fn without_twins_a_lost_copy_is_lost_changes_or_a_refusal() {
    let failed = |&(at, _): &(u64, &str)| {
        let mut disk = cut_off(Omit::Twins);
        harm(&mut disk, 0, at);
        is_whole(disk, Omit::Twins).is_err()
    };
    assert!(tables(&cut_off(Omit::Twins)).iter().any(failed));
}

#[test]
fn a_superblock_that_an_earlier_program_wrote_alone_is_missed_by_its_session() {
    // Such a program cut the journal when one copy was written, here the first of its session.
    let mut store = fresh(LENGTH, options(Omit::Twins));
    write(&mut store, 1, 0, &[1; 4096]).unwrap();
    let mut disk = store.abandon();
    let generation = |at| u64::from_le_bytes(page(&disk, at)[24..32].try_into().unwrap());
    let newest = if generation(0) > generation(32768) { 0 } else { 32768 };
    harm(&mut disk, 0, newest);
    let error = Store::mount(disk, options(Omit::Nothing)).map(drop).unwrap_err();
    assert!(
        matches!(error, MountError::Superseded { session, found } if session > found),
        "{error}"
    );
    assert!(error.to_string().contains("superblock is lost"), "{error}");
}
