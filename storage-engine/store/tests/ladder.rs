// SPDX-License-Identifier: Apache-2.0
//! Filling, deleting and refilling for ever, at every level, with snapshots that share units.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
#![allow(clippy::cast_possible_truncation, reason = "numbers below small limits")]

mod support;

use plinth_disks::memory::{Cache, MemoryDisk, Seed};
use plinth_store::{
    Ladder, Level, Operation, Store, StoreCompletion, StoreOptions, StoreRefusal, StoreRequest,
    StoreState, StoreTag,
};
use std::collections::BTreeSet;
use std::time::Duration;
use support::{apply, formatted, key, settle, write, write_request};

const LENGTH: u64 = 4 << 20;
const UNIT: u32 = 32 * 1024;

fn options(full: u8) -> StoreOptions {
    let ladder = Ladder { warn: full.min(80), nearfull: full.min(85), full };
    StoreOptions { cache_pages: 64, overlay_blocks: 64, ladder, ..StoreOptions::default() }
}

fn store(full: u8, seed: u64) -> Store<MemoryDisk> {
    let disk = formatted(MemoryDisk::new(LENGTH));
    let mut store = Store::mount(disk, options(full)).unwrap();
    store.disk_mut().restart(Cache::Volatile, seed);
    store
}

fn limit(store: &Store<MemoryDisk>, full: u8) -> u64 {
    store.capacity().total / u64::from(UNIT) * u64::from(full) / 100 * u64::from(UNIT)
}

/// What must work on a disk that refuses new units: each of it needs none that stays.
fn works_when_full(store: &mut Store<MemoryDisk>, object: u128, seed: &mut Seed) {
    let at = seed.below(4) as u32 * 4096;
    write(store, object, at, &[7; 4096]).unwrap();
    write(store, object, at + 100, &[8; 700]).unwrap();
    // A whole unit that is overwritten may take its new place in the reserve.
    write(store, object, 0, &[9; UNIT as usize]).unwrap();
    apply(store, vec![Operation::Zero { key: key(object), offset: at, length: 4096 }]).unwrap();
}

/// One round: fill until it is refused, look at what still works, make room.
fn round(store: &mut Store<MemoryDisk>, full: u8, own: &mut BTreeSet<u128>, seed: &mut Seed) {
    let mut refused = 0;
    while refused < 3 {
        let object = u128::from(seed.below(24));
        let before = store.capacity().used;
        match seed.below(8) {
            0 if own.contains(&object) => {
                let (source, target) = (key(object), key(object + 24));
                apply(store, vec![Operation::Clone { source, target }]).unwrap();
                own.insert(object + 24);
                own.remove(&object);
            }
            1 => {
                apply(store, vec![Operation::Remove { key: key(object) }]).unwrap();
                own.remove(&object);
            }
            _ => match write(store, object, 0, &vec![1; UNIT as usize * 3]) {
                Ok(_) => _ = own.insert(object),
                Err(StoreRefusal::NoSpace) => {
                    refused += 1;
                    assert_eq!(store.capacity().used, before, "a refusal takes nothing");
                }
                Err(other) => panic!("{other}"),
            },
        }
        assert!(store.capacity().used <= limit(store, full), "the reserve is eaten");
    }
    for object in own.iter().copied().filter(|object| *object < 24).collect::<Vec<_>>() {
        if store.object(&key(object)).is_some() && !is_shared(store, object) {
            works_when_full(store, object, seed);
            assert!(store.capacity().used <= limit(store, full), "the reserve is eaten");
        }
    }
}

/// Whether a snapshot of the object was taken, so that its units may have two owners.
fn is_shared(store: &Store<MemoryDisk>, object: u128) -> bool {
    store.object(&key(object + 24)).is_some()
}

#[test]
fn a_disk_is_filled_and_emptied_for_ever_at_every_level() {
    for (number, full) in [50, 80, 95, 100].into_iter().enumerate() {
        let mut seed = Seed(number as u64 + 1);
        let mut store = store(full, seed.draw());
        let mut own = BTreeSet::new();
        for _ in 0..12 {
            round(&mut store, full, &mut own, &mut seed);
            // Room is made by deleting snapshots or heads, and there at once, without a restart.
            let before = store.capacity().used;
            let mut object = seed.below(48);
            while store.capacity().used + u64::from(UNIT) * 6 > before {
                object = (object + 1) % 48;
                let remove = Operation::Remove { key: key(u128::from(object)) };
                apply(&mut store, vec![remove]).unwrap();
                own.remove(&u128::from(object));
            }
            write(&mut store, 100, 0, &vec![5; UNIT as usize * 6]).unwrap();
            apply(&mut store, vec![Operation::Remove { key: key(100) }]).unwrap();
            assert_eq!(store.state(), StoreState::Writable);
            store.check().unwrap();
            if seed.one_in(3) {
                let disk = store.abandon();
                store = Store::mount(disk, options(full)).unwrap();
            }
        }
    }
}

#[test]
fn many_at_once_do_not_eat_the_reserve() {
    for seed in 1..20 {
        let mut store = store(80, seed);
        let mut done: Vec<StoreCompletion> = Vec::new();
        let mut draw = Seed(seed);
        for tag in 0..400 {
            let object = u128::from(draw.below(40));
            let request = match draw.below(4) {
                0 => {
                    let transaction = vec![Operation::Remove { key: key(object) }];
                    StoreRequest::Apply { transaction }
                }
                _ => write_request(object, 0, &vec![3; UNIT as usize * 4]),
            };
            store.submit(StoreTag(tag), request).unwrap();
            store.poll(Duration::ZERO, &mut done);
            assert!(store.capacity().used <= limit(&store, 80));
        }
        done.extend(settle(&mut store));
        assert_eq!(done.len(), 400, "everything is answered");
        let refused = done.iter().filter(|done| done.result == Err(StoreRefusal::NoSpace)).count();
        assert!((1..300).contains(&refused), "{refused}");
        store.check().unwrap();
    }
}

#[test]
fn levels_are_told_as_the_disk_fills() {
    let mut store = store(95, 1);
    let units = store.capacity().total / u64::from(UNIT);
    let mut seen = vec![store.capacity().level];
    for unit in 0.. {
        if write(&mut store, 1, unit * UNIT, &[1; UNIT as usize]).is_err() {
            break;
        }
        let (level, used) = (store.capacity().level, store.capacity().used / u64::from(UNIT));
        let expected = match used {
            used if used >= units * 95 / 100 => Level::Full,
            used if used >= units * 85 / 100 => Level::Nearfull,
            used if used >= units * 80 / 100 => Level::Warn,
            _ => Level::Ok,
        };
        assert_eq!(level, expected, "{used} of {units}");
        seen.push(level);
    }
    seen.dedup();
    assert_eq!(seen, [Level::Ok, Level::Warn, Level::Nearfull, Level::Full]);
}
