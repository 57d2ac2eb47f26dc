// SPDX-License-Identifier: Apache-2.0
//! Overwrites in place: what they cost the disk, and whom a crash may make doubt.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use plinth_disks::memory::{Cache, Cut, MemoryDisk};
use plinth_store::{Omit, Operation, Store, StoreOptions, StoreRefusal, StoreRequest, StoreTag};
use std::time::Duration;
use support::{formatted, key, lay_out, read, settle, write, write_request};

const MIB: u64 = 1 << 20;
/// Where the second half of an object begins.
const SECOND: u32 = 2 << 20;

fn options(omit: Omit) -> StoreOptions {
    StoreOptions { cache_pages: 64, overlay_blocks: 64, omit, ..StoreOptions::default() }
}

fn mounted(atomic: u32) -> Store<MemoryDisk> {
    let mut disk = MemoryDisk::new(16 * MIB);
    disk.set_atomic_write_size(atomic);
    let mut disk = formatted(disk);
    disk.restart(Cache::Volatile, 1);
    Store::mount(disk, options(Omit::Nothing)).unwrap()
}

/// Two halves of an object are written; a block of the first is overwritten in place.
fn overwritten() -> Store<MemoryDisk> {
    let mut store = mounted(4096);
    write(&mut store, 1, 0, &[1; 32768]).unwrap();
    write(&mut store, 1, SECOND, &[1; 32768]).unwrap();
    write(&mut store, 1, 4096, &[2; 4096]).unwrap();
    assert_eq!(store.counters().blocks_overwritten, 1);
    store
}

/// Changes a byte of the block that holds nothing but `byte`, in its place on the disk.
fn spoil(disk: &mut MemoryDisk, byte: u8, skip: usize) -> u64 {
    let mut all = vec![0; 16 << 20];
    disk.peek(0, &mut all);
    let is_it = |block: &[u8]| block.iter().all(|&other| other == byte);
    let blocks = all.chunks_exact(4096).enumerate().filter(|(_, block)| is_it(block));
    let (index, _) = blocks.skip(8).nth(skip).unwrap();
    let at = index as u64 * 4096;
    disk.overwrite(at + 5, &[0xdd]);
    at
}

#[test]
fn an_overwrite_is_written_once_where_the_disk_does_not_tear_it_and_twice_elsewhere() {
    for (atomic, once) in [(4096, true), (512, false)] {
        let mut store = mounted(atomic);
        write(&mut store, 1, 0, &[1; 32768]).unwrap();
        // The first one has its half marked.
        write(&mut store, 1, 0, &[2; 4096]).unwrap();
        let before = store.counters();
        for at in 1..8 {
            write(&mut store, 1, at * 4096, &[3; 4096]).unwrap();
        }
        let after = store.counters();
        assert_eq!(after.blocks_overwritten - before.blocks_overwritten, u64::from(once) * 7);
        let data = after.disk_bytes_written - before.disk_bytes_written;
        // An entry each, as one is written at a time; where it is deferred its data is in it.
        assert_eq!(data, 7 * 8192, "and where not once, the write back comes on top");
        assert_eq!(read(&mut store, 1, 0, 4096).unwrap(), [2; 4096]);
        assert_eq!(read(&mut store, 1, 7 * 4096, 4096).unwrap(), [3; 4096]);
        store.check().unwrap();
    }
}

#[test]
fn a_block_that_does_not_match_is_bad_outside_of_what_was_being_overwritten() {
    for (omit, is_adopted) in [(Omit::Nothing, false), (Omit::AdoptSuspectsOnly, true)] {
        let mut disk = overwritten().abandon().cut(Cut::Keep);
        spoil(&mut disk, 1, 4);
        let mut store = Store::mount(disk, options(omit)).unwrap();
        let found: Vec<_> =
            (0..8).map(|block| read(&mut store, 1, SECOND + block * 4096, 4096)).collect();
        let is_bad =
            |result: &&Result<Vec<u8>, _>| matches!(result, Err(StoreRefusal::BadBlock { .. }));
        assert_eq!(found.iter().filter(is_bad).count(), usize::from(!is_adopted), "{omit:?}");
        assert_eq!(store.counters().bad_blocks, u64::from(!is_adopted));
    }
}

#[test]
fn what_a_crash_left_of_an_overwrite_is_taken_as_it_is_and_judged_once() {
    let mut store = overwritten();
    // Its record is lost with the power, its data is there.
    let old = store.disk().cut(Cut::Keep);
    store.submit(StoreTag(1), write_request(1, 4096, &[3; 4096])).unwrap();
    let mut done = Vec::new();
    let cut = loop {
        store.poll(Duration::ZERO, &mut done);
        let cut = store.disk().cut(Cut::Keep);
        let mut bytes = vec![0; 16 << 20];
        cut.peek(0, &mut bytes);
        if bytes.chunks_exact(4096).any(|block| block == [3; 4096]) {
            break cut;
        }
    };
    drop(old);
    let mut store = Store::mount(cut, options(Omit::Nothing)).unwrap();
    let found = read(&mut store, 1, 4096, 4096).unwrap();
    assert!(found == [2; 4096] || found == [3; 4096]);
    // The pass in the background ends by itself; from then on nothing is excused any more.
    for _ in 0..2000 {
        store.poll(Duration::ZERO, &mut done);
    }
    settle(&mut store);
    let mut disk = store.unmount();
    let byte = found[0];
    let mut all = vec![0; 16 << 20];
    disk.peek(0, &mut all);
    let at = all.chunks_exact(4096).position(|block| block == [byte; 4096]).unwrap();
    disk.overwrite(at as u64 * 4096 + 5, &[0xdd]);
    let mut store = Store::mount(disk, options(Omit::Nothing)).unwrap();
    let bad = StoreRefusal::BadBlock { key: key(1), block: 1 };
    assert_eq!(read(&mut store, 1, 4096, 4096), Err(bad));
}

#[test]
fn whole_units_wait_for_their_mark_and_stay_where_they_are() {
    for (atomic, blocks) in [(4096, 40), (512, 0)] {
        let mut store = mounted(atomic);
        write(&mut store, 1, 0, &vec![1; 5 * 32768]).unwrap();
        write(&mut store, 1, 0, &vec![2; 5 * 32768]).unwrap();
        assert_eq!(store.counters().blocks_overwritten, blocks);
        assert_eq!(read(&mut store, 1, 0, 5 * 32768).unwrap(), vec![2; 5 * 32768]);
    }
}

#[test]
fn writes_of_a_block_come_one_after_the_other_and_reads_see_one_of_them_whole() {
    let mut store = overwritten();
    for round in 0..40_u8 {
        store.submit(StoreTag(1), write_request(1, 4096, &[round; 4096])).unwrap();
        let (buffer, length) = lay_out(4096, &[0; 4096]);
        let request = StoreRequest::Read { key: key(1), offset: 4096, length, buffer };
        store.submit(StoreTag(2 + u64::from(round)), request).unwrap();
        if round % 7 == 6 {
            for done in settle(&mut store) {
                done.result.unwrap();
                let Some(least) = done.tag.0.checked_sub(2) else { continue };
                // A write that came later may be seen, an older one may not, and never two.
                let bytes = done.buffer.unwrap();
                let first = bytes.as_bytes()[0];
                assert!(u64::from(first) >= least && first <= round, "{least} {first} {round}");
                assert!(bytes.as_bytes().iter().all(|&byte| byte == first));
            }
        }
    }
}

/// After a crash that left halves to judge, blocks of them are overwritten through the journal:
/// while one is written back to its place, the judging may read what was there before.
#[test]
fn a_block_that_is_written_back_while_it_is_judged_keeps_its_checksum() {
    const UNIT: u32 = 32768;
    let mut store = mounted(4096);
    for object in 0..4 {
        write(&mut store, object, 0, &[1; 2 << 20]).unwrap();
        write(&mut store, object, 4096, &[2; 4096]).unwrap();
    }
    for seed in 0..100 {
        // A disk that ends requests at once, so that there is something to judge after the mount.
        let disk = store.disk().cut(Cut::Keep);
        let options = StoreOptions { overlay_blocks: 256, ..options(Omit::Nothing) };
        let mut store = Store::mount(disk, options).unwrap();
        store.disk_mut().restart(Cache::Volatile, seed);
        let places = (0..4).flat_map(|object| (0..60).step_by(2).map(move |unit| (object, unit)));
        let mut done = Vec::new();
        for (tag, (object, unit)) in (0..).zip(places.clone()) {
            let (buffer, length) = lay_out(unit * UNIT + 8192, &[3; 4096]);
            let step =
                Operation::Write { key: key(object), offset: unit * UNIT + 8192, length, buffer };
            let request = StoreRequest::Apply { transaction: vec![step, touch(object)] };
            store.submit(StoreTag(tag), request).unwrap();
        }
        for poll in 0..5000 {
            if poll == 40 + seed {
                store.request_checkpoint();
            }
            store.poll(Duration::ZERO, &mut done);
        }
        settle(&mut store);
        assert!(done.len() == 120 && done.iter().all(|done| done.result.is_ok()));
        assert_eq!(store.counters().adopted_blocks, 0, "seed {seed}: every block matched");
        for (object, unit) in places {
            let found = read(&mut store, object, unit * UNIT + 8192, 4096).unwrap();
            assert!(found == [3; 4096], "seed {seed} object {object} unit {unit}");
        }
    }
}

fn touch(object: u128) -> Operation {
    Operation::Touch { key: key(object) }
}
