// SPDX-License-Identifier: Apache-2.0
//! What a scrub finds, mends, names and leaves alone.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
#![allow(clippy::cast_possible_truncation, reason = "numbers below small limits")]

mod support;

use plinth_disks::memory::{Cache, Fault, FaultRule, MemoryDisk, Seed};
use plinth_store::{
    Disk, DiskError, FoundBy, Operation, ScrubKind, ScrubProgress, Store, StoreOptions,
    StoreRefusal, StoreRequest, StoreState, StoreTag,
};
use std::time::Duration;
use support::{apply, formatted, fresh, key, read, write, write_request};

const MIB: u64 = 1 << 20;
const RATE: u64 = 16 << 20;

fn options() -> StoreOptions {
    StoreOptions { cache_pages: 64, overlay_blocks: 64, ..StoreOptions::default() }
}

/// Runs a scrub to its end, a millisecond a poll.
fn scrub<D: Disk>(store: &mut Store<D>, kind: ScrubKind) -> ScrubProgress {
    let mut done = Vec::new();
    store.poll(Duration::from_secs(1), &mut done);
    store.scrub_start(kind, RATE);
    for tick in 1..100_000 {
        store.poll(Duration::from_millis(1000 + tick), &mut done);
        if store.scrub_progress().is_none() && store.is_idle() {
            return store.scrub_result(kind).unwrap();
        }
    }
    panic!("the scrub has no end: {:?}, {}", store.scrub_progress(), store.waits());
}

/// A store with a few objects, some sharing units, as a checkpoint leaves it.
fn used() -> Store<MemoryDisk> {
    let mut store = fresh(16 * MIB, options());
    for round in 0..3 {
        for object in 0..6 {
            write(&mut store, object, round * 8192, &[object as u8 + 1; 40_960]).unwrap();
        }
        if round == 0 {
            write(&mut store, 6, 0, &[77; 20_480]).unwrap();
        }
        write(&mut store, 7, (2 << 20) + round * 4096, &[9; 4096]).unwrap();
        let clone = Operation::Clone { source: key(0), target: key(8 + u128::from(round)) };
        apply(&mut store, vec![clone]).unwrap();
        store = Store::mount(store.unmount(), options()).unwrap();
    }
    store
}

/// Where the metadata pages of these kinds are.
fn pages(disk: &MemoryDisk, magics: &[&[u8]]) -> Vec<u64> {
    let mut bytes = vec![0; 4096];
    let is_one = |at: &u64| {
        disk.peek(*at, &mut bytes);
        magics.iter().any(|magic| bytes.starts_with(magic))
    };
    (0..disk.geometry().length).step_by(4096).filter(is_one).collect()
}

fn is_readable(store: &mut Store<MemoryDisk>) {
    for object in 0..6 {
        let bytes = read(store, object, 0, 57_344).unwrap();
        assert!(bytes.iter().all(|&byte| byte == object as u8 + 1));
    }
    assert_eq!(read(store, 7, 2 << 20, 12_288).unwrap(), [9; 12_288]);
    store.check().unwrap();
}

#[test]
fn a_healthy_store_is_read_through_and_nothing_is_found() {
    let mut store = used();
    let light = scrub(&mut store, ScrubKind::Light);
    assert_eq!((light.found, light.mended, light.objects_done), (0, 0, 11));
    let deep = scrub(&mut store, ScrubKind::Deep);
    assert_eq!((deep.found, deep.mended, deep.objects_total), (0, 0, 11));
    // Every written block was read at least.
    assert!(deep.bytes - light.bytes >= 6 * 57_344 + 20_480 + 12_288, "{deep:?} {light:?}");
    is_readable(&mut store);
}

#[test]
fn one_bad_copy_of_any_metadata_page_is_mended() {
    let kinds: [&[u8]; 4] = [b"PLNindex", b"PLNbits", b"PLNcount", b"PLNmap"];
    let (mut mended, mut lost) = (0, 0);
    let count = pages(used().disk(), &kinds).len();
    assert!(count > 20, "{count}");
    for number in 0..count {
        let mut store = used();
        let at = pages(store.disk(), &kinds)[number];
        store.disk_mut().overwrite(at + 300, &[0x5a; 512]);
        let result = scrub(&mut store, ScrubKind::Light);
        (mended, lost) = (mended + result.mended, lost + result.found);
        if result.found > 0 {
            // The newest copy of a map that is not in memory: the older one would tell old things.
            assert_eq!((result.found, store.bad_block_count()), (1, 1));
            let key = store.bad_blocks().next().unwrap().key;
            apply(&mut store, vec![Operation::Remove { key }]).unwrap();
            continue;
        }
        assert_eq!(scrub(&mut store, ScrubKind::Light).mended, 0, "page at {at}");
        // Whichever copy was good before may be lost now.
        is_readable(&mut store);
        let mut store = Store::mount(store.unmount(), options()).unwrap();
        is_readable(&mut store);
    }
    assert_eq!((mended + lost) as usize, count, "{mended} mended and {lost} lost");
    assert!(mended > 8 && lost > 8, "{mended} mended and {lost} lost");
}

#[test]
fn a_map_page_without_a_good_copy_is_found_and_named() {
    let mut store = used();
    let mut bytes = vec![0; 4096];
    for at in pages(store.disk(), &[b"PLNmap"]) {
        store.disk().peek(at, &mut bytes);
        if bytes[72] == 7 {
            store.disk_mut().overwrite(at + 2000, &[1; 9]);
        }
    }
    assert_eq!(scrub(&mut store, ScrubKind::Light).found, 2);
    let bad: Vec<_> = store.bad_blocks().copied().collect();
    assert_eq!((bad.len(), bad[1].key, bad[1].block), (2, key(7), 512));
    assert_eq!(bad[0].found_by, FoundBy::LightScrub);
    let refused = StoreRefusal::BadMetadata { key: key(7) };
    assert_eq!(read(&mut store, 7, 2 << 20, 4096), Err(refused));
    apply(&mut store, vec![Operation::Remove { key: key(7) }]).unwrap();
    assert_eq!(store.bad_block_count(), 0);
}

#[test]
fn a_deep_scrub_names_the_bad_block_and_an_overwrite_mends_it() {
    let mut store = used();
    let bytes = {
        let mut bytes = vec![0; 16 << 20];
        store.disk().peek(0, &mut bytes);
        bytes
    };
    let at = bytes.chunks(4096).position(|block| block == [77; 4096]).unwrap() as u64 * 4096;
    store.disk_mut().overwrite(at + 77, &[0]);
    assert_eq!(scrub(&mut store, ScrubKind::Light).found, 0);
    assert_eq!(scrub(&mut store, ScrubKind::Deep).found, 1);
    let bad: Vec<_> = store.bad_blocks().copied().collect();
    assert_eq!((bad.len(), bad[0].key, bad[0].offset), (1, key(6), at));
    assert_eq!((bad[0].found_by, bad[0].is_device), (FoundBy::DeepScrub, false));
    let block = bad[0].block;
    let refused = StoreRefusal::BadBlock { key: key(6), block };
    assert_eq!(read(&mut store, 6, block * 4096, 4096), Err(refused));
    assert_eq!(store.bad_block_count(), 1, "it is known already");
    write(&mut store, 6, block * 4096, &[77; 4096]).unwrap();
    assert_eq!(store.bad_block_count(), 0);
    assert_eq!(scrub(&mut store, ScrubKind::Deep).found, 0);
    is_readable(&mut store);
}

#[test]
fn a_block_that_the_device_read_again_is_bad_no_more() {
    let mut store = used();
    // The map comes up before the device fails.
    read(&mut store, 2, 0, 4096).unwrap();
    let fault = Fault::Fail(DiskError::Device { errno: 5 });
    let rule = FaultRule { is_write: false, bytes: 0..16 * MIB, skip: 0, times: 1, fault };
    store.disk_mut().add_rule(rule);
    assert!(read(&mut store, 2, 8192, 4096).is_err());
    let bad: Vec<_> = store.bad_blocks().copied().collect();
    assert_eq!((bad[0].key, bad[0].block), (key(2), 2));
    assert_eq!((bad[0].found_by, bad[0].is_device), (FoundBy::Read, true));
    assert_eq!(scrub(&mut store, ScrubKind::Deep).found, 0);
    assert_eq!(store.bad_block_count(), 0);
}

#[test]
fn the_rate_is_kept_and_clients_have_the_larger_share() {
    let run = |has_clients: bool| {
        let mut store = fresh(16 * MIB, options());
        write(&mut store, 1, 0, &vec![1; 4 << 20]).unwrap();
        let mut disk = store.unmount();
        // A request on its way stays there for some polls.
        disk.restart(Cache::Volatile, 1);
        let mut store = Store::mount(disk, options()).unwrap();
        let (mut done, mut submitted) = (Vec::new(), 0);
        store.poll(Duration::ZERO, &mut done);
        store.scrub_start(ScrubKind::Deep, MIB);
        for tick in 0..4000_u32 {
            while has_clients && submitted < done.len() + 4 {
                store.submit(StoreTag(1), write_request(2, 0, &[2; 4096])).unwrap();
                submitted += 1;
            }
            store.poll(Duration::from_micros(u64::from(tick) * 250), &mut done);
        }
        store.scrub_progress().unwrap().bytes
    };
    let (alone, beside) = (run(false), run(true));
    assert!((MIB * 9 / 10..MIB + 65_536).contains(&alone), "{alone}");
    assert!((MIB * 3 / 10..MIB * 8 / 10).contains(&beside), "{beside}");
}

#[test]
fn a_scrub_amid_writes_calls_nothing_bad() {
    let mut scrubs = 0;
    for seed in 1..40 {
        let mut disk = formatted(MemoryDisk::new(8 * MIB));
        disk.restart(Cache::Volatile, seed);
        if seed % 2 == 0 {
            disk.set_atomic_write_size(4096);
        }
        let mut store = Store::mount(disk, options()).unwrap();
        let mut draw = Seed(seed);
        let mut done = Vec::new();
        for tick in 0..6000_u32 {
            let object = u128::from(draw.below(6));
            let (offset, length) = (draw.below(80) as u32 * 4096, 1 + draw.below(40_000) as usize);
            if draw.one_in(3) {
                let request = match draw.below(12) {
                    0 => {
                        let (source, target) = (key(object), key(object + 10));
                        let target = if draw.one_in(2) { key(object + 20) } else { target };
                        StoreRequest::Apply {
                            transaction: vec![Operation::Clone { source, target }],
                        }
                    }
                    1 => {
                        let transaction = vec![Operation::Remove { key: key(object + 10) }];
                        StoreRequest::Apply { transaction }
                    }
                    _ => write_request(object, offset, &vec![seed as u8; length]),
                };
                let _ = store.submit(StoreTag(1), request);
            }
            if draw.one_in(200) {
                store.request_checkpoint();
            }
            store.poll(Duration::from_millis(tick.into()), &mut done);
            if store.scrub_progress().is_none() {
                scrubs += u32::from(store.scrub_result(ScrubKind::Deep).is_some());
                store.scrub_start(ScrubKind::Deep, 1 << 30);
            }
            let found = store.scrub_progress().map_or(0, |progress| progress.found);
            assert_eq!((found, store.bad_block_count()), (0, 0), "seed {seed}");
            assert_eq!(store.scrub_progress().map_or(0, |at| at.mended), 0, "seed {seed}");
        }
        assert_eq!(store.state(), StoreState::Writable);
        assert_eq!(store.counters().bad_blocks, 0);
    }
    // A scrub reads tables and maps between checkpoints, which take three flushes each.
    assert!(scrubs > 50, "{scrubs} scrubs went through");
}

#[test]
fn data_whose_map_no_checkpoint_has_written_is_scrubbed() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[3; 40_960]).unwrap();
    let mut bytes = vec![0; 16 << 20];
    store.disk().peek(0, &mut bytes);
    let at = bytes.chunks(4096).position(|block| block == [3; 4096]).unwrap() as u64 * 4096;
    store.disk_mut().overwrite(at + 9, &[0]);
    assert_eq!(scrub(&mut store, ScrubKind::Deep).found, 1);
    assert_eq!(store.bad_blocks().next().unwrap().offset, at);
}
