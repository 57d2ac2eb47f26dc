// SPDX-License-Identifier: Apache-2.0
//! Images of every released format version are opened for ever.
//!
//! An image is kept as its blocks that are not zero: index, then runs of equal bytes. It holds a
//! store as a power cut left it: one checkpoint, and a journal with deferred blocks behind it.
//! `PLINTH_GOLDEN=path` writes the image that this program would make, for a new version;
//! `PLINTH_GOLDEN_KEYS=path` that with keys, a log and snapshots.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
#![allow(clippy::disallowed_methods, reason = "who runs the test tells it what to do")]

#[path = "support/golden.rs"]
mod rich;
mod support;

use plinth_disks::memory::MemoryDisk;
use plinth_store::{Operation, Store, StoreAnswer, StoreOptions, StoreRequest};
use support::{apply, fresh, key, read, run, write};

const LENGTH: u64 = 4 << 20;
const VERSION_1: &[u8] = include_bytes!("golden/version-1.image");
const VERSION_2: &[u8] = include_bytes!("golden/version-2.image");
const VERSION_2_KEYS: &[u8] = include_bytes!("golden/version-2-keys.image");

fn options() -> StoreOptions {
    StoreOptions { cache_pages: 64, overlay_blocks: 64, ..StoreOptions::default() }
}

/// The store whose image is kept.
fn make() -> MemoryDisk {
    let mut store = fresh(LENGTH, options());
    write(&mut store, 1, 0, &[1; 65536]).unwrap();
    write(&mut store, 2, 2_097_152 - 4096, &[2; 8192]).unwrap();
    apply(&mut store, vec![Operation::Clone { source: key(1), target: key(3) }]).unwrap();
    let mut store = Store::mount(store.unmount(), options()).unwrap();
    write(&mut store, 3, 4096, &[3; 4096]).unwrap();
    write(&mut store, 2, 2_097_152 - 100, &[4; 200]).unwrap();
    let (name, value) = (b"color".to_vec(), b"blue".to_vec());
    apply(&mut store, vec![Operation::SetAttribute { key: key(4), name, value }]).unwrap();
    write(&mut store, 5, 0, &[5; 4096]).unwrap();
    apply(&mut store, vec![Operation::Remove { key: key(5) }]).unwrap();
    store.abandon()
}

/// The same, and behind it a mark, a block that was overwritten in place, and another overwrite of
/// it whose record was lost with the power.
fn make_marked() -> MemoryDisk {
    let mut disk = make();
    disk.set_atomic_write_size(4096);
    let mut store = Store::mount(disk, options()).unwrap();
    write(&mut store, 2, 2_097_152, &[6; 4096]).unwrap();
    write(&mut store, 2, 2_097_152, &[7; 4096]).unwrap();
    assert_eq!(store.counters().blocks_overwritten, 2);
    let mut disk = store.abandon();
    let mut bytes = [0; 4096];
    for block in 0..LENGTH / 4096 {
        disk.peek(block * 4096, &mut bytes);
        if bytes == [7; 4096] {
            disk.overwrite(block * 4096, &[8; 4096]);
        }
    }
    disk
}

fn encode(disk: &MemoryDisk) -> Vec<u8> {
    let mut out = Vec::new();
    for block in 0..LENGTH / 4096 {
        let mut bytes = [0; 4096];
        disk.peek(block * 4096, &mut bytes);
        if bytes == [0; 4096] {
            continue;
        }
        out.extend_from_slice(&u32::try_from(block).unwrap().to_le_bytes());
        let mut at = 0;
        while at < bytes.len() {
            let run = bytes[at..].iter().take_while(|&&byte| byte == bytes[at]).count();
            out.extend_from_slice(&u16::try_from(run).unwrap().to_le_bytes());
            out.push(bytes[at]);
            at += run;
        }
    }
    out
}

fn decode(mut image: &[u8]) -> MemoryDisk {
    let mut disk = MemoryDisk::new(LENGTH);
    while let Some((block, mut rest)) = image.split_first_chunk::<4>() {
        let mut bytes = Vec::new();
        while bytes.len() < 4096 {
            let (run, behind) = rest.split_first_chunk::<3>().expect("a run has three bytes");
            let count = usize::from(u16::from_le_bytes([run[0], run[1]]));
            bytes.extend(std::iter::repeat_n(run[2], count));
            rest = behind;
        }
        disk.overwrite(u64::from(u32::from_le_bytes(*block)) * 4096, &bytes);
        image = rest;
    }
    disk
}

/// `border` is what the first block of the second half of object 2 holds.
fn check(disk: MemoryDisk, border: Option<u8>) {
    let mut store = Store::mount(disk, options()).unwrap();
    let report = store.check().unwrap();
    assert_eq!((report.objects, report.shared_units, report.damaged), (4, 1, 0));
    assert_eq!(read(&mut store, 1, 0, 65536).unwrap(), [1; 65536]);
    let mut third = vec![1; 65536];
    third[4096..8192].fill(3);
    assert_eq!(read(&mut store, 3, 0, 65536).unwrap(), third);
    let mut second = vec![2; 8192];
    second[3996..4196].fill(4);
    second[4096..].fill(border.unwrap_or(2));
    second[4096..4196].fill(border.unwrap_or(4));
    assert_eq!(read(&mut store, 2, 2_097_152 - 4096, 8192).unwrap(), second);
    assert_eq!(store.counters().adopted_blocks, u64::from(border.is_some()));
    let done = run(&mut store, StoreRequest::Attributes { key: key(4) });
    let attributes = vec![(b"color".to_vec(), b"blue".to_vec())];
    assert_eq!(done.result, Ok(StoreAnswer::Attributes { size: 0, attributes }));
    assert_eq!(store.object(&key(5)), None);
    // It is a store like any other.
    write(&mut store, 5, 0, &[9; 100_000]).unwrap();
    store.check().unwrap();
}

#[test]
fn version_1_is_read() {
    check(decode(VERSION_1), None);
}

#[test]
fn version_2_is_read() {
    check(decode(VERSION_2), Some(8));
}

#[test]
fn what_is_written_is_read_and_fits_the_encoding() {
    check(make(), None);
    let disk = make_marked();
    let image = encode(&disk);
    if let Ok(path) = std::env::var("PLINTH_GOLDEN") {
        std::fs::write(path, &image).unwrap();
    }
    check(decode(&image), Some(8));
    check(disk, Some(8));
}

#[test]
fn version_2_is_read_with_keys_log_snapshots_and_versions_of_another_store() {
    rich::check(decode(VERSION_2_KEYS));
}

#[test]
fn what_is_written_of_keys_log_and_snapshots_is_read() {
    let disk = rich::make();
    let image = encode(&disk);
    if let Ok(path) = std::env::var("PLINTH_GOLDEN_KEYS") {
        std::fs::write(path, &image).unwrap();
    }
    rich::check(decode(&image));
    rich::check(disk);
}
