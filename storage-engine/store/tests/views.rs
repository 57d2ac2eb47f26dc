// SPDX-License-Identifier: Apache-2.0
//! Bytes that are looked at where they are: what a read gives, or nothing.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use plinth_disks::flat::FlatDisk;
use plinth_disks::memory::{Cache, MemoryDisk, Seed};
use plinth_store::{
    Disk, Operation, Store, StoreCounters, StoreOptions, StoreRefusal, StoreRequest, StoreTag,
};
use std::time::Duration;
use support::{FORMAT, apply, formatted, fresh, key, read, run, settle, write, write_request};

const MIB: u64 = 1 << 20;
const BLOCK: u32 = 4096;
/// Of objects, and of the blocks of each that are written: the two ends of its halves.
const OBJECTS: usize = 3;
const BLOCKS: [u32; 24] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 504, 505, 506, 507, 508, 509, 510, 511, 512, 513, 514,
    515,
];

fn view<D: Disk>(store: &mut Store<D>, object: u128, offset: u32, length: u32) -> Option<Vec<u8>> {
    let sight = store.sight(&key(object), offset, length)?;
    store.view(&sight).map(<[u8]>::to_vec)
}

/// What every block holds once all that was submitted is done: a byte, or zero. `None`: there is
/// no such object.
type Model = Vec<Option<[u8; BLOCKS.len()]>>;

/// A change of one block or object, which the model has seen.
fn change(model: &mut Model, random: &mut Seed) -> StoreRequest {
    let at = usize::try_from(random.below(OBJECTS as u64)).unwrap();
    let place = usize::try_from(random.below(BLOCKS.len() as u64)).unwrap();
    let value = u8::try_from(1 + random.below(255)).unwrap();
    let next = (at + 1) % OBJECTS;
    let (object, offset) = (key(at as u128), BLOCKS[place] * BLOCK);
    let one = |step| StoreRequest::Apply { transaction: vec![step] };
    let (copy, is_taken) = (model[at], model[next].is_some());
    match (random.below(12), &mut model[at]) {
        (0, Some(blocks)) => {
            blocks[place] = 0;
            one(Operation::Zero { key: object, offset, length: BLOCK })
        }
        (1, there @ Some(_)) => {
            *there = None;
            one(Operation::Remove { key: object })
        }
        (2 | 3, Some(_)) if !is_taken => {
            model[next] = copy;
            one(Operation::Clone { source: object, target: key(next as u128) })
        }
        (_, blocks) => {
            blocks.get_or_insert_default()[place] = value;
            write_request(at as u128, offset, &[value; BLOCK as usize])
        }
    }
}

/// Looks at every block while changes are under way. Says how many showed their bytes.
fn look(store: &mut Store<impl Disk>, model: &Model) -> usize {
    let mut seen = 0;
    for (object, blocks) in (0..).zip(model) {
        for (block, value) in BLOCKS.iter().zip(blocks.unwrap_or_default()) {
            let Some(bytes) = view(store, object, block * BLOCK, BLOCK) else { continue };
            let is_it = bytes.iter().all(|&byte| byte == value) && bytes.len() == BLOCK as usize;
            assert!(is_it, "object {object} block {block}: {} and not {value}", bytes[0]);
            seen += 1;
        }
    }
    seen
}

#[test]
fn a_view_under_changes_is_what_the_last_change_wrote_or_nothing() {
    let (mut seen, mut all, mut clones) = (0, 0, 0);
    for seed in 1..=40 {
        let mut disk = MemoryDisk::new(32 * MIB);
        disk.set_atomic_write_size(512 << (seed % 2 * 3));
        let mut disk = formatted(disk);
        disk.restart(Cache::Volatile, seed);
        let mut store = Store::mount(disk, StoreOptions::default()).unwrap();
        let (mut random, mut done) = (Seed(seed), Vec::new());
        let mut model: Model = vec![None; OBJECTS];
        for _ in 0..400 {
            let request = change(&mut model, &mut random);
            clones += usize::from(format!("{request:?}").contains("Clone"));
            store.submit(StoreTag(1), request).unwrap();
            seen += look(&mut store, &model);
            for _ in 0..random.below(6) {
                store.poll(Duration::ZERO, &mut done);
            }
            done.drain(..).for_each(|done| assert!(done.result.is_ok(), "{:?}", done.result));
            seen += look(&mut store, &model);
            all += 2 * model.iter().flatten().flatten().filter(|&&value| value != 0).count();
        }
    }
    println!("{seen} of {all} blocks were seen, {clones} clones");
    assert!(seen * 10 > all, "{seen} of {all} blocks were seen");
    assert!(seen < all && clones > 100, "some were on their way");
}

#[test]
fn a_view_gives_the_whole_blocks_of_a_run_on_a_disk_in_one_piece() {
    let mut disk = FlatDisk::new(32 * MIB);
    Store::format(&mut disk, &FORMAT).unwrap();
    let mut store = Store::mount(disk, StoreOptions::default()).unwrap();
    let bytes: Vec<u8> = (0..40 * BLOCK).map(|at| u8::try_from(at / 512 % 251).unwrap()).collect();
    write(&mut store, 1, 8 * BLOCK, &bytes).unwrap();
    let before = store.counters();
    let found = view(&mut store, 1, 9 * BLOCK + 512, 9 * BLOCK).unwrap();
    assert_eq!(found, bytes[BLOCK as usize..11 * BLOCK as usize]);
    let counted = |counters: StoreCounters| (counters.reads, counters.disk_bytes_read);
    let (reads, read) = counted(before);
    assert_eq!(counted(store.counters()), (reads + 1, read + u64::from(10 * BLOCK)));
    assert_eq!(view(&mut store, 1, 0, BLOCK), None, "it was never written");
    assert_eq!(view(&mut store, 1, 7 * BLOCK, 2 * BLOCK), None, "nor was its first block");
    assert_eq!(view(&mut store, 2, 0, BLOCK), None, "there is no such object");
    assert_eq!(view(&mut store, 1, u32::MAX, BLOCK), None);
    assert_eq!(view(&mut store, 1, 8 * BLOCK, 0), None);
}

#[test]
fn a_block_that_does_not_match_is_not_shown_and_named_by_the_read() {
    let mut store = fresh(16 * MIB, StoreOptions::default());
    write(&mut store, 1, 0, &[0x5a; 32768]).unwrap();
    let mut all = vec![0; 16 << 20];
    store.disk().peek(0, &mut all);
    let at = all.chunks_exact(4096).position(|block| block == [0x5a; 4096]).unwrap() as u64;
    store.disk_mut().overwrite((at + 3) * 4096 + 4000, &[0x5b]);
    assert_eq!(view(&mut store, 1, 3 * BLOCK, BLOCK), None);
    assert_eq!(view(&mut store, 1, 2 * BLOCK, BLOCK), Some(vec![0x5a; 4096]));
    let bad = StoreRefusal::BadBlock { key: key(1), block: 3 };
    assert_eq!(read(&mut store, 1, 3 * BLOCK, BLOCK), Err(bad));
}

#[test]
fn a_sight_ends_with_the_next_request_and_the_next_poll() {
    let mut store = fresh(16 * MIB, StoreOptions::default());
    for object in [1, 2] {
        write(&mut store, object, 0, &[7; 4096]).unwrap();
    }
    let sight = store.sight(&key(1), 0, BLOCK).unwrap();
    let other = store.sight(&key(2), 0, BLOCK).unwrap();
    assert!(store.view(&sight).is_some() && store.view(&other).is_some());
    store.poll(Duration::ZERO, &mut Vec::new());
    assert!(store.view(&sight).is_none(), "a poll may give its map page to another object");
    let sight = store.sight(&key(1), 0, BLOCK).unwrap();
    store.submit(StoreTag(1), StoreRequest::Flush).unwrap();
    assert!(store.view(&sight).is_none());
    settle(&mut store);
    apply(&mut store, vec![Operation::Remove { key: key(1) }]).unwrap();
    assert!(store.view(&sight).is_none());
    assert!(store.sight(&key(1), 0, BLOCK).is_none());
    run(&mut store, StoreRequest::Flush).result.unwrap();
}
