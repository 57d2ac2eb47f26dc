// SPDX-License-Identifier: Apache-2.0
//! Whole stories through the doors of a store.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use plinth_disks::memory::{Cache, Cut, Fault, FaultRule, MemoryDisk};
use plinth_ids::PoolId;
use plinth_store::{
    BlockRange, Disk, DiskError, Durability, Level, ObjectKey, Operation, PgId, ReadOnlyReason,
    Store, StoreAnswer, StoreOptions, StoreRefusal, StoreRequest, StoreState, StoreTag,
};
use std::time::Duration;
use support::{apply, formatted, fresh, key, lay_out, read, run, settle, write, write_request};

const MIB: u64 = 1 << 20;

/// Units and objects that there are more after a change.
fn changed(answer: Result<StoreAnswer, StoreRefusal>) -> (i64, i64) {
    match answer {
        Ok(StoreAnswer::Changed { units, objects, .. }) => (units, objects),
        other => panic!("no change: {other:?}"),
    }
}

fn options() -> StoreOptions {
    StoreOptions { cache_pages: 64, overlay_blocks: 64, ..StoreOptions::default() }
}

#[test]
fn what_was_written_is_read_and_the_rest_is_zeros() {
    let mut store = fresh(16 * MIB, options());
    assert_eq!(changed(write(&mut store, 1, 4096, &[7; 8192])), (1, 1));
    let bytes = read(&mut store, 1, 0, 16384).unwrap();
    assert!(bytes[..4096].iter().chain(&bytes[12288..]).all(|&byte| byte == 0));
    assert!(bytes[4096..12288].iter().all(|&byte| byte == 7));
    assert_eq!(read(&mut store, 2, 0, 512).unwrap(), [0; 512]);
    assert_eq!(store.object(&key(1)).unwrap().size, 12288);
    assert_eq!(store.capacity().used, 32768);
    store.check().unwrap();
}

#[test]
fn an_unaligned_write_keeps_what_is_around_it() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[1; 12288]).unwrap();
    write(&mut store, 1, 4000, &[2; 5000]).unwrap();
    let bytes = read(&mut store, 1, 0, 12288).unwrap();
    assert!(bytes[..4000].iter().all(|&byte| byte == 1));
    assert!(bytes[4000..9000].iter().all(|&byte| byte == 2));
    assert!(bytes[9000..].iter().all(|&byte| byte == 1));
    assert_eq!(read(&mut store, 1, 3999, 2).unwrap(), [1, 2]);
    // Inside a block that was never written there are zeros, not what the buffer had.
    write(&mut store, 1, 20000, &[3; 10]).unwrap();
    let bytes = read(&mut store, 1, 16384, 4096).unwrap();
    assert_eq!(bytes.iter().filter(|&&byte| byte != 0).count(), 10);
    store.check().unwrap();
}

#[test]
fn everything_is_there_after_a_remount() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[5; 70_000]).unwrap();
    write(&mut store, 1, 4096, &[6; 100]).unwrap();
    let set = |name: &[u8], value: &[u8]| Operation::SetAttribute {
        key: key(2),
        name: name.to_vec(),
        value: value.to_vec(),
    };
    apply(&mut store, vec![set(b"a", b"1"), set(b"b", b"2")]).unwrap();
    let clone = Operation::Clone { source: key(1), target: key(3) };
    apply(&mut store, vec![clone]).unwrap();
    write(&mut store, 1, 0, &[9; 4096]).unwrap();
    // Once cleanly and once as a power cut leaves it.
    for is_clean in [true, false] {
        let disk = if is_clean { store.unmount() } else { store.abandon() };
        store = Store::mount(disk, options()).unwrap();
        let bytes = read(&mut store, 1, 0, 70_000).unwrap();
        assert!(bytes[..4096].iter().all(|&byte| byte == 9));
        assert!(bytes[4096..4196].iter().all(|&byte| byte == 6));
        assert!(bytes[4196..].iter().all(|&byte| byte == 5));
        assert!(read(&mut store, 3, 0, 4096).unwrap().iter().all(|&byte| byte == 5));
        let done = run(&mut store, StoreRequest::Attributes { key: key(2) });
        let attributes = vec![(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())];
        assert_eq!(done.result, Ok(StoreAnswer::Attributes { size: 0, attributes }));
        let report = store.check().unwrap();
        assert_eq!((report.objects, report.units, report.shared_units), (3, 4, 2));
    }
}

#[test]
fn zeroed_and_removed_space_comes_back() {
    let mut store = fresh(16 * MIB, options());
    let before = store.capacity().used;
    write(&mut store, 1, 0, &[5; 4 << 20]).unwrap();
    let zero = Operation::Zero { key: key(1), offset: 4096, length: 64 * 1024 };
    assert_eq!(changed(apply(&mut store, vec![zero])), (-1, 0));
    let bytes = read(&mut store, 1, 0, 128 * 1024).unwrap();
    assert!(bytes[4096..69632].iter().all(|&byte| byte == 0));
    assert!(bytes[..4096].iter().chain(&bytes[69632..]).all(|&byte| byte == 5));
    let truncate = Operation::Truncate { key: key(1), size: 8192 };
    apply(&mut store, vec![truncate]).unwrap();
    assert_eq!(store.capacity().used - before, 32768);
    apply(&mut store, vec![Operation::Remove { key: key(1) }]).unwrap();
    assert_eq!(store.capacity().used, before);
    assert_eq!(store.object(&key(1)), None);
    store.check().unwrap();
}

#[test]
fn a_clone_shares_until_either_is_written() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[1; 65536]).unwrap();
    let clone = Operation::Clone { source: key(1), target: key(2) };
    apply(&mut store, vec![clone]).unwrap();
    assert_eq!(store.capacity().used, 65536);
    assert_eq!(store.capacity().shared, 65536);
    write(&mut store, 2, 4096, &[2; 4096]).unwrap();
    assert_eq!(store.capacity().used, 3 * 32768);
    write(&mut store, 1, 32768, &[3; 100]).unwrap();
    let one = read(&mut store, 1, 0, 65536).unwrap();
    let two = read(&mut store, 2, 0, 65536).unwrap();
    assert!(one[..32768].iter().all(|&byte| byte == 1));
    assert!(one[32768..32868].iter().all(|&byte| byte == 3));
    assert!(two[4096..8192].iter().all(|&byte| byte == 2));
    assert!(two[..4096].iter().chain(&two[8192..]).all(|&byte| byte == 1));
    apply(&mut store, vec![Operation::Remove { key: key(1) }]).unwrap();
    assert_eq!(store.capacity().shared, 0);
    assert_eq!(read(&mut store, 2, 0, 65536).unwrap(), two);
    store.check().unwrap();
}

#[test]
fn a_full_disk_refuses_new_units_and_takes_overwrites_and_deletes() {
    let mut store = fresh(16 * MIB, options());
    let (mut object, total) = (0, store.capacity().total);
    while write(&mut store, object, 0, &[1; 1 << 20]).is_ok() {
        object += 1;
    }
    while write(&mut store, object, 0, &[1; 32768]).is_ok() {
        object += 1;
    }
    assert_eq!(write(&mut store, object, 0, &[1; 4096]), Err(StoreRefusal::NoSpace));
    assert_eq!(store.capacity().used, total / 32768 * 95 / 100 * 32768);
    assert_eq!(store.capacity().level, Level::Full);
    // Overwrites of what is there still work, small ones and whole units.
    write(&mut store, 0, 0, &[2; 4096]).unwrap();
    write(&mut store, 0, 32768, &[3; 32768]).unwrap();
    assert_eq!(read(&mut store, 0, 32768, 32768).unwrap(), [3; 32768]);
    // A clone takes no units, a write to it does.
    apply(&mut store, vec![Operation::Clone { source: key(0), target: key(99) }]).unwrap();
    assert_eq!(write(&mut store, 99, 0, &[4; 100]), Err(StoreRefusal::NoSpace));
    apply(&mut store, vec![Operation::Remove { key: key(1) }]).unwrap();
    write(&mut store, 99, 0, &[4; 100]).unwrap();
    store.check().unwrap();
    let mut store = Store::mount(store.abandon(), options()).unwrap();
    assert_eq!(read(&mut store, 0, 32768, 32768).unwrap(), [3; 32768]);
    store.check().unwrap();
}

#[test]
fn a_bad_block_costs_that_block_and_is_named() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[1; 8192]).unwrap();
    write(&mut store, 2, 0, &[2; 4096]).unwrap();
    let mut disk = store.unmount();
    let mut bytes = vec![0; usize::try_from(disk.geometry().length).unwrap()];
    disk.peek(0, &mut bytes);
    let at = bytes.windows(4096).position(|window| window == [1; 4096]).unwrap();
    disk.overwrite(at as u64 + 77, &[9]);
    let mut store = Store::mount(disk, options()).unwrap();
    let bad = StoreRefusal::BadBlock { key: key(1), block: 0 };
    assert_eq!(read(&mut store, 1, 0, 8192), Err(bad));
    assert_eq!(read(&mut store, 1, 4096, 4096).unwrap(), [1; 4096]);
    assert_eq!(read(&mut store, 2, 0, 4096).unwrap(), [2; 4096]);
    assert_eq!(store.counters().bad_blocks, 1);
    // A part of the bad block cannot be overwritten, all of it can.
    assert_eq!(write(&mut store, 1, 0, &[3; 100]), Err(bad));
    write(&mut store, 1, 0, &[3; 4096]).unwrap();
    assert_eq!(read(&mut store, 1, 0, 4096).unwrap(), [3; 4096]);
}

#[test]
fn a_bad_map_page_costs_that_object() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[1; 8192]).unwrap();
    write(&mut store, 2, 0, &[2; 4096]).unwrap();
    let mut disk = store.unmount();
    let mut bytes = vec![0; usize::try_from(disk.geometry().length).unwrap()];
    disk.peek(0, &mut bytes);
    let mut hits = 0;
    for at in (0..bytes.len()).step_by(4096) {
        if bytes[at..].starts_with(b"PLNmap") && bytes[at + 72] == 1 {
            disk.overwrite(at as u64 + 2000, &[0xff; 64]);
            hits += 1;
        }
    }
    assert!(hits > 0, "the test found the map page");
    let mut store = Store::mount(disk, options()).unwrap();
    assert_eq!(read(&mut store, 1, 0, 8192), Err(StoreRefusal::BadMetadata { key: key(1) }));
    assert_eq!(write(&mut store, 1, 0, &[1; 10]), Err(StoreRefusal::BadMetadata { key: key(1) }));
    assert_eq!(read(&mut store, 2, 0, 4096).unwrap(), [2; 4096]);
    assert_eq!(store.counters().bad_metadata, 1);
    assert_eq!(store.check().unwrap().damaged, 1);
    // It can be removed, and its place used again.
    apply(&mut store, vec![Operation::Remove { key: key(1) }]).unwrap();
    write(&mut store, 1, 0, &[4; 4096]).unwrap();
    assert_eq!(read(&mut store, 1, 0, 4096).unwrap(), [4; 4096]);
}

#[test]
fn a_failed_write_turns_the_store_read_only_and_reads_go_on() {
    let disk = formatted(MemoryDisk::with_seed(16 * MIB, Cache::Volatile, 1));
    let mut store = Store::mount(disk, options()).unwrap();
    write(&mut store, 1, 0, &[1; 4096]).unwrap();
    let error = DiskError::Device { errno: 5 };
    store.disk_mut().add_rule(FaultRule {
        is_write: true,
        bytes: 0..16 * MIB,
        skip: 0,
        times: 1,
        fault: Fault::Fail(error),
    });
    assert_eq!(write(&mut store, 2, 0, &[2; 4096]), Err(StoreRefusal::ReadOnly));
    let StoreState::ReadOnly(reason) = store.state() else { panic!("the store goes on writing") };
    assert!(matches!(reason, ReadOnlyReason::Data(e) | ReadOnlyReason::Journal(e) if e == error));
    assert_eq!(run(&mut store, StoreRequest::Flush).result, Err(StoreRefusal::ReadOnly));
    assert_eq!(read(&mut store, 1, 0, 4096).unwrap(), [1; 4096]);
    let mut store = Store::mount(store.abandon(), options()).unwrap();
    assert_eq!(read(&mut store, 1, 0, 4096).unwrap(), [1; 4096]);
    store.check().unwrap();
}

#[test]
fn a_read_error_is_that_blocks_and_counted() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[1; 8192]).unwrap();
    let fault = Fault::Fail(DiskError::Device { errno: 5 });
    let rule = FaultRule { is_write: false, bytes: 0..16 * MIB, skip: 0, times: 1, fault };
    store.disk_mut().add_rule(rule);
    let failed = StoreRefusal::ReadFailed { key: key(1), block: 0 };
    assert_eq!(read(&mut store, 1, 0, 4096), Err(failed));
    assert_eq!(read(&mut store, 1, 0, 4096).unwrap(), [1; 4096]);
    assert_eq!((store.counters().read_errors, store.counters().bad_blocks), (1, 0));
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[1; 4096]).unwrap();
    let (buffer, length) = lay_out(0, &[2; 4096]);
    let transaction = vec![
        Operation::Write { key: key(1), offset: 0, length, buffer },
        Operation::SetAttribute { key: key(2), name: b"n".to_vec(), value: vec![1; 5000] },
    ];
    assert_eq!(apply(&mut store, transaction), Err(StoreRefusal::AttributesFull { key: key(2) }));
    assert_eq!(read(&mut store, 1, 0, 4096).unwrap(), [1; 4096]);
    assert_eq!(store.object(&key(2)), None);
    let missing = Operation::Clone { source: key(7), target: key(8) };
    assert_eq!(
        apply(&mut store, vec![Operation::Touch { key: key(3) }, missing]),
        Err(StoreRefusal::NotFound { key: key(7) })
    );
    assert_eq!(store.object(&key(3)), None);
    let (buffer, length) = lay_out(0, &[4; 10_000]);
    apply(&mut store, vec![Operation::WriteFull { key: key(1), length, buffer }]).unwrap();
    assert_eq!(store.object(&key(1)).unwrap().size, 10_000);
    assert_eq!(read(&mut store, 1, 9_999, 2).unwrap(), [4, 0]);
    store.check().unwrap();
}

#[test]
fn a_change_that_changes_nothing_is_answered() {
    let mut store = fresh(16 * MIB, options());
    assert_eq!(changed(apply(&mut store, vec![Operation::Remove { key: key(1) }])), (0, 0));
    let zero = Operation::Zero { key: key(1), offset: 0, length: 4096 };
    assert_eq!(changed(apply(&mut store, vec![zero])), (0, 0));
}

#[test]
fn a_flush_ends_behind_a_flush_of_the_device_that_began_after_every_write() {
    for durability in [Durability::Flush, Durability::Device] {
        let disk = formatted(MemoryDisk::with_seed(16 * MIB, Cache::Volatile, 3));
        let mut store = Store::mount(disk, StoreOptions { durability, ..options() }).unwrap();
        write(&mut store, 1, 0, &[1; 4096]).unwrap();
        let before = store.disk().flushes_completed();
        assert_eq!(run(&mut store, StoreRequest::Flush).result, Ok(StoreAnswer::Flushed));
        // Where changes are acknowledged behind a flush there is nothing left to flush.
        let own = u64::from(durability == Durability::Device);
        assert_eq!(store.disk().flushes_completed(), before + own);
        assert_eq!(run(&mut store, StoreRequest::Flush).result, Ok(StoreAnswer::Flushed));
        assert_eq!(store.disk().flushes_completed(), before + own);
        let cut = store.disk().cut(Cut::Lose);
        let mut store = Store::mount(cut, options()).unwrap();
        assert_eq!(read(&mut store, 1, 0, 4096).unwrap(), [1; 4096]);
    }
}

#[test]
fn requests_over_the_limit_are_given_back() {
    let disk = formatted(MemoryDisk::new(16 * MIB));
    let mut store = Store::mount(disk, StoreOptions { requests_max: 2, ..options() }).unwrap();
    for tag in 0..2 {
        store.submit(StoreTag(tag), write_request(1, 0, &[1; 4096])).unwrap();
    }
    assert!(store.submit(StoreTag(2), StoreRequest::Flush).is_err());
    assert_eq!(settle(&mut store).len(), 2);
    store.submit(StoreTag(2), StoreRequest::Flush).unwrap();
}

#[test]
fn many_writes_to_one_object_at_once_leave_the_last() {
    let disk = formatted(MemoryDisk::with_seed(16 * MIB, Cache::Volatile, 9));
    let mut store = Store::mount(disk, options()).unwrap();
    let mut done = Vec::new();
    for round in 0..200_u32 {
        let byte = u8::try_from(round % 251).unwrap();
        let request = write_request(1, round % 3 * 2048, &[byte; 6000]);
        store.submit(StoreTag(u64::from(round)), request).unwrap();
        store.poll(Duration::ZERO, &mut done);
    }
    done.extend(settle(&mut store));
    assert_eq!(done.len(), 200);
    assert!(done.iter().all(|done| done.result.is_ok()));
    let bytes = read(&mut store, 1, 0, 12288).unwrap();
    // Round 199 wrote from 2048 on, 198 from 0 on, 197 from 4096 on.
    assert!(bytes[..2048].iter().all(|&byte| byte == 198));
    assert!(bytes[2048..8048].iter().all(|&byte| byte == 199));
    assert!(bytes[8048..10096].iter().all(|&byte| byte == 197));
    store.check().unwrap();
}

#[test]
fn the_journal_is_cut_again_and_again() {
    let mut store = fresh(16 * MIB, options());
    for round in 0..600_u32 {
        let byte = u8::try_from(round % 251).unwrap();
        write(&mut store, u128::from(round % 5), round % 7 * 4096, &[byte; 4096]).unwrap();
    }
    assert!(store.counters().checkpoints > 3, "{:?}", store.counters());
    store.check().unwrap();
    let mut store = Store::mount(store.abandon(), options()).unwrap();
    assert_eq!(
        read(&mut store, 4, 4096 * 2, 4096).unwrap(),
        [u8::try_from(569 % 251).unwrap(); 4096]
    );
    store.check().unwrap();
}

#[test]
fn a_write_behind_a_clone_in_one_transaction_leaves_the_clone_alone() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[1; 65536]).unwrap();
    let (buffer, length) = lay_out(4000, &[2; 5000]);
    let clone = Operation::Clone { source: key(1), target: key(2) };
    let write = Operation::Write { key: key(1), offset: 4000, length, buffer };
    let name = Operation::SetAttribute { key: key(2), name: b"of".to_vec(), value: b"1".to_vec() };
    let answer = apply(&mut store, vec![clone, write, name]);
    // The clone has both units; the head has one of its own for the one it wrote to.
    assert_eq!(changed(answer), (2, 1));
    for mount in 0..2 {
        let mut expected = vec![1; 65536];
        assert_eq!(read(&mut store, 2, 0, 65536).unwrap(), expected, "mount {mount}");
        expected[4000..9000].fill(2);
        assert_eq!(read(&mut store, 1, 0, 65536).unwrap(), expected, "mount {mount}");
        let report = store.check().unwrap();
        assert_eq!((report.objects, report.units, report.shared_units), (2, 3, 1));
        store = Store::mount(store.abandon(), options()).unwrap();
    }
}

#[test]
fn a_list_shows_what_was_changed_before_it_a_few_at_a_time() {
    let mut store = fresh(16 * MIB, options());
    for object in 1..=5 {
        store.submit(StoreTag(0), write_request(object, 0, &[1; 4096])).unwrap();
    }
    let list = |from, limit| StoreRequest::List { range: key(from)..=key(4), limit };
    store.submit(StoreTag(1), list(2, 2)).unwrap();
    let done = settle(&mut store);
    let listed = done.iter().find(|done| done.tag == StoreTag(1)).unwrap();
    let Ok(StoreAnswer::Listed { objects, next }) = &listed.result else { panic!("{listed:?}") };
    let keys: Vec<_> = objects.iter().map(|object| (object.key, object.size)).collect();
    assert_eq!(keys, [(key(2), 4096), (key(3), 4096)]);
    assert_eq!(*next, Some(key(4)));
    let done = run(&mut store, list(4, 100)).result;
    assert!(matches!(done, Ok(StoreAnswer::Listed { objects, next: None }) if objects.len() == 1));
    let backwards = StoreRequest::List { range: key(3)..=key(2), limit: 0 };
    let nothing = StoreAnswer::Listed { objects: Vec::new(), next: None };
    assert_eq!(run(&mut store, backwards).result, Ok(nothing));
}

#[test]
fn a_list_waits_for_a_change_that_waits_for_its_map() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[1; 8192]).unwrap();
    // After a mount the map of object 1 is not in memory, so that a change of it is parked.
    let mut store = Store::mount(store.unmount(), options()).unwrap();
    let zero = Operation::Zero { key: key(1), offset: 0, length: 4096 };
    let transaction = vec![zero, Operation::Touch { key: key(2) }];
    store.submit(StoreTag(0), StoreRequest::Apply { transaction }).unwrap();
    assert!(store.object(&key(2)).is_none(), "the change waits");
    store.submit(StoreTag(1), StoreRequest::List { range: key(0)..=key(9), limit: 9 }).unwrap();
    let done = settle(&mut store);
    let listed = done.into_iter().find(|done| done.tag == StoreTag(1)).unwrap().result;
    let Ok(StoreAnswer::Listed { objects, .. }) = listed else { panic!("{listed:?}") };
    assert_eq!(objects.iter().map(|object| object.key).collect::<Vec<_>>(), [key(1), key(2)]);
}

#[test]
fn what_objects_share_is_told_without_reading_it() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[1; 3 * 32768]).unwrap();
    let clone = Operation::Clone { source: key(1), target: key(2) };
    apply(&mut store, vec![clone]).unwrap();
    let usage = |store: &mut _, object| run(store, StoreRequest::Usage { key: key(object) }).result;
    let compare =
        |store: &mut _, a, b| run(store, StoreRequest::Compare { a: key(a), b: key(b) }).result;
    let ranges = |ranges: &[(u32, u32)]| {
        let range = |&(first, count): &(u32, u32)| BlockRange { first, count };
        Ok(StoreAnswer::Compared { ranges: ranges.iter().map(range).collect() })
    };
    let shared = Ok(StoreAnswer::Usage { units: 3, unique: 0, blocks: 24 });
    assert_eq!([usage(&mut store, 1), usage(&mut store, 2)], [shared.clone(), shared]);
    assert_eq!(compare(&mut store, 1, 2), ranges(&[]));
    // One block of the first unit, two of the others unwritten across their border.
    write(&mut store, 1, 4096, &[1; 4096]).unwrap();
    let zero = Operation::Zero { key: key(2), offset: 15 * 4096, length: 8192 };
    apply(&mut store, vec![zero]).unwrap();
    let mut store = Store::mount(store.unmount(), options()).unwrap();
    assert_eq!(compare(&mut store, 1, 2), ranges(&[(0, 8), (15, 2)]));
    assert_eq!(compare(&mut store, 2, 9), ranges(&[(0, 15), (17, 7)]));
    assert_eq!(compare(&mut store, 8, 9), ranges(&[]));
    let one = StoreAnswer::Usage { units: 3, unique: 1, blocks: 24 };
    let two = StoreAnswer::Usage { units: 3, unique: 1, blocks: 22 };
    assert_eq!([usage(&mut store, 1), usage(&mut store, 2)], [Ok(one), Ok(two)]);
    assert_eq!(usage(&mut store, 9), Err(StoreRefusal::NotFound { key: key(9) }));
}

fn version(store: &mut Store<MemoryDisk>, object: u128) -> u64 {
    match run(store, StoreRequest::Status { key: key(object) }).result {
        Ok(StoreAnswer::Status { version, .. }) => version,
        Err(StoreRefusal::NotFound { .. }) => 0,
        other => panic!("no status: {other:?}"),
    }
}

#[test]
fn every_change_raises_the_version_and_a_wrong_one_refuses_all() {
    let mut store = fresh(16 * MIB, options());
    let mut last = 0;
    // Both halves, and a change of the size alone.
    write(&mut store, 1, 0, &[1; 4096]).unwrap();
    let truncate = |size| Operation::Truncate { key: key(1), size };
    for round in 0..6_u32 {
        let answer = match round % 3 {
            0 => write(&mut store, 1, 3 << 20, &[2; 4096]),
            1 => write(&mut store, 1, 0, &[3; 512]),
            _ => apply(&mut store, vec![truncate(round * 4096)]),
        };
        let Ok(StoreAnswer::Changed { version: given, .. }) = answer else { panic!("{answer:?}") };
        assert!(given > last, "round {round}");
        last = given;
        if round % 2 == 0 {
            store = Store::mount(store.abandon(), options()).unwrap();
        }
        assert_eq!(version(&mut store, 1), last, "round {round}");
    }
    let expect = |object, version| Operation::Expect { key: key(object), version };
    let touch = |object| Operation::Touch { key: key(object) };
    let mismatch = |object, expected, found| {
        Err(StoreRefusal::VersionMismatch { key: key(object), expected, found })
    };
    let answer = apply(&mut store, vec![touch(5), expect(1, last - 1), truncate(0)]);
    assert_eq!(answer, mismatch(1, last - 1, last));
    assert_eq!((version(&mut store, 5), version(&mut store, 1)), (0, last));
    assert_eq!(apply(&mut store, vec![expect(5, 9), touch(5)]), mismatch(5, 9, 0));
    changed(apply(&mut store, vec![expect(5, 0), expect(1, last), touch(5), truncate(0)]));
    assert!(version(&mut store, 5) > last);
    assert_eq!(version(&mut store, 5), version(&mut store, 1));
}

#[test]
fn changes_that_share_an_entry_have_versions_of_their_own() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[1; 32768]).unwrap();
    for _ in 0..8 {
        store.submit(StoreTag(0), write_request(1, 512, &[2; 512])).unwrap();
    }
    let versions: Vec<u64> = settle(&mut store)
        .into_iter()
        .map(|done| match done.result {
            Ok(StoreAnswer::Changed { version, .. }) => version,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(versions.windows(2).all(|pair| pair[0] < pair[1]), "{versions:?}");
    assert!(versions.windows(2).any(|pair| pair[0] >> 16 == pair[1] >> 16), "{versions:?}");
}

#[test]
fn a_version_that_a_crash_took_back_is_never_given_again() {
    let disk = formatted(MemoryDisk::with_seed(16 * MIB, Cache::Volatile, 3));
    let mut store = Store::mount(disk, options()).unwrap();
    store.submit(StoreTag(0), write_request(1, 0, &[1; 512])).unwrap();
    store.submit(StoreTag(1), StoreRequest::Status { key: key(1) }).unwrap();
    let mut done = Vec::new();
    store.poll(Duration::ZERO, &mut done);
    let Ok(StoreAnswer::Status { version: seen, .. }) = done[0].result else { panic!("{done:?}") };
    let mut store = Store::mount(store.disk().cut(Cut::Lose), options()).unwrap();
    assert_eq!(version(&mut store, 1), 0, "the change is lost");
    write(&mut store, 1, 0, &[2; 512]).unwrap();
    assert!(version(&mut store, 1) > seen);
}

fn pairs(store: &mut Store<MemoryDisk>, object: u128) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    loop {
        let after = all.last().map(|(name, _)| name.clone());
        let request = StoreRequest::ListKeys { key: key(object), after, limit: 100 };
        let Ok(StoreAnswer::Keys { pairs, more }) = run(store, request).result else {
            panic!("no keys")
        };
        all.extend(pairs);
        if !more {
            return all;
        }
    }
}

fn set_keys(object: u128, names: impl Iterator<Item = u32>, byte: u8) -> Operation {
    let pair = |name: u32| (format!("{name:08}").into_bytes(), vec![byte; 60]);
    Operation::SetKeys { key: key(object), pairs: names.map(pair).collect() }
}

#[test]
fn thousands_of_keys_are_kept_in_order_and_go_with_their_object() {
    let options = StoreOptions { overlay_blocks: 256, ..options() };
    let mut store = fresh(32 * MIB, options);
    let before = store.capacity();
    // Not in order, in batches, some of them twice.
    for batch in 0..700_u32 {
        let names = (0..8).map(|index| (batch * 8 + index) * 2611 % 6007);
        apply(&mut store, vec![set_keys(1, names, 1)]).unwrap();
        if batch % 100 == 7 {
            store = Store::mount(store.abandon(), options).unwrap();
        }
    }
    let first = pairs(&mut store, 1);
    assert!(first.len() > 5000, "{}", first.len());
    assert!(first.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert_eq!(store.capacity().objects, before.objects + 2);
    let seen = store.list(key(0)..=ObjectKey::MAX, 100);
    assert_eq!(seen.len(), 1, "what holds the keys is no object of users: {seen:?}");
    // A clone shares their pages; each changes for itself, also in the transaction of the clone.
    let clone = Operation::Clone { source: key(1), target: key(2) };
    let some = set_keys(1, 0..20, 2);
    let units = store.capacity().used;
    apply(&mut store, vec![clone, some]).unwrap();
    assert!(store.capacity().used <= units + 4 * 32768, "only what changed is copied");
    assert_eq!(pairs(&mut store, 2), first);
    let names = vec![b"00000003".to_vec(), b"x".to_vec(), b"00000001".to_vec()];
    let found = run(&mut store, StoreRequest::GetKeys { key: key(1), names }).result;
    let pair = |name: &[u8]| (name.to_vec(), vec![2; 60]);
    let expected = vec![pair(b"00000003"), pair(b"00000001")];
    assert_eq!(found, Ok(StoreAnswer::Keys { pairs: expected, more: false }));
    // Keys that go meanwhile do not disturb a list.
    let range = |from: &[u8], to: Option<&[u8]>| Operation::RemoveKeyRange {
        key: key(1),
        from: from.to_vec(),
        to: to.map(<[u8]>::to_vec),
    };
    apply(&mut store, vec![range(b"00000010", Some(b"00005000"))]).unwrap();
    let after = Some(b"00000015".to_vec());
    let list = StoreRequest::ListKeys { key: key(1), after, limit: 1 };
    let Ok(StoreAnswer::Keys { pairs: left, .. }) = run(&mut store, list).result else { panic!() };
    assert!(left[0].0.as_slice() >= b"00005000".as_slice());
    apply(&mut store, vec![range(b"", None)]).unwrap();
    assert!(pairs(&mut store, 1).is_empty());
    assert_eq!(pairs(&mut store, 2), first);
    let remove = |object| Operation::Remove { key: key(object) };
    apply(&mut store, vec![remove(1), remove(2)]).unwrap();
    assert_eq!(store.capacity(), before);
    store.check().unwrap();
}

#[test]
fn keys_that_cannot_be_are_refused_by_name() {
    let mut store = fresh(16 * MIB, options());
    let set = |name: &[u8], length| Operation::SetKeys {
        key: key(1),
        pairs: vec![(name.to_vec(), vec![1; length])],
    };
    let bad = Err(StoreRefusal::BadPair { key: key(1) });
    assert_eq!(apply(&mut store, vec![set(b"", 1)]), bad);
    assert_eq!(apply(&mut store, vec![set(&[7; 256], 1)]), bad);
    assert_eq!(apply(&mut store, vec![set(b"a", 3073)]), bad);
    apply(&mut store, vec![set(&[7; 255], 3072), set(b"a", 0)]).unwrap();
    assert_eq!(pairs(&mut store, 1).len(), 2);
    let missing = StoreRefusal::NotFound { key: key(2) };
    let list = StoreRequest::ListKeys { key: key(2), after: None, limit: 1 };
    assert_eq!(run(&mut store, list).result, Err(missing));
    let hidden = ObjectKey { pool: PoolId(1 << 30), ..key(1) };
    let refused = apply(&mut store, vec![Operation::Touch { key: hidden }]);
    assert_eq!(refused, Err(StoreRefusal::BadPool { key: hidden }));
}

#[test]
fn a_bad_page_of_keys_costs_the_keys_of_that_object() {
    let mut store = fresh(16 * MIB, options());
    write(&mut store, 1, 0, &[1; 4096]).unwrap();
    apply(&mut store, vec![set_keys(1, 0..20, 1)]).unwrap();
    apply(&mut store, vec![set_keys(2, 0..20, 2)]).unwrap();
    let mut disk = store.unmount();
    let mut bytes = [0; 4096];
    let of_one = (0..4096).map(|block| block * 4096).find(|&at| {
        disk.peek(at, &mut bytes);
        bytes.starts_with(b"PLNk") && bytes[100..140].contains(&1)
    });
    bytes[60] ^= 1;
    disk.overwrite(of_one.unwrap(), &bytes);
    let mut store = Store::mount(disk, options()).unwrap();
    let list = StoreRequest::ListKeys { key: key(1), after: None, limit: 1 };
    let refusal = run(&mut store, list).result.unwrap_err();
    assert!(refusal.to_string().contains("block 0 of the keys of pool-1/0/"), "{refusal}");
    assert!(apply(&mut store, vec![set_keys(1, 5..6, 3)]).is_err());
    assert_eq!(read(&mut store, 1, 0, 4096).unwrap(), [1; 4096]);
    assert_eq!(pairs(&mut store, 2).len(), 20);
    apply(&mut store, vec![Operation::Remove { key: key(1) }]).unwrap();
    apply(&mut store, vec![set_keys(1, 5..6, 3)]).unwrap();
    assert_eq!(pairs(&mut store, 1).len(), 1);
    store.check().unwrap();
}

#[test]
fn a_log_rises_is_read_and_trimmed_and_remembers_where_it_was() {
    let mut store = fresh(16 * MIB, options());
    let (pool, pg) = (key(0).pool, key(0).pg);
    let append = |version| {
        let entry = format!("entry {version}").into_bytes();
        Operation::LogAppend { pool, pg, version, entry }
    };
    let low = |version, last| Err(StoreRefusal::LogOrder { pool, pg, version, last });
    for version in (10..300).step_by(2) {
        let touch = Operation::Touch { key: key(u128::from(version % 3)) };
        apply(&mut store, vec![touch, append(version), append(version + 1)]).unwrap();
    }
    let touch = Operation::Touch { key: key(9) };
    assert_eq!(apply(&mut store, vec![touch, append(299)]), low(299, 299));
    assert_eq!(store.object(&key(9)), None, "all of it is refused");
    let read = |store: &mut _, after, limit| match run(
        store,
        StoreRequest::ReadLog { pool, pg, after, limit },
    )
    .result
    {
        Ok(StoreAnswer::Log { entries, last, more }) => (entries, last, more),
        other => panic!("{other:?}"),
    };
    let (entries, last, more) = read(&mut store, 100, 5);
    let versions: Vec<u64> = entries.iter().map(|(version, _)| *version).collect();
    assert_eq!((versions, last, more), (vec![101, 102, 103, 104, 105], 299, true));
    assert_eq!(entries[0].1, b"entry 101");
    apply(&mut store, vec![Operation::LogTrim { pool, pg, up_to: 297 }]).unwrap();
    assert_eq!(read(&mut store, 0, 9).0.len(), 2);
    apply(&mut store, vec![Operation::LogTrim { pool, pg, up_to: u64::MAX }]).unwrap();
    let mut store = Store::mount(store.abandon(), options()).unwrap();
    assert_eq!(read(&mut store, 0, 9), (Vec::new(), 299, false));
    assert_eq!(apply(&mut store, vec![append(299)]), low(299, 299));
    apply(&mut store, vec![append(300)]).unwrap();
    assert_eq!(read(&mut store, 299, 9).0, [(300, b"entry 300".to_vec())]);
    // A transaction has one group's log only.
    let other = Operation::LogAppend { pool, pg: PgId(1), version: 1, entry: Vec::new() };
    let refused = apply(&mut store, vec![Operation::Touch { key: key(1) }, other]);
    assert!(matches!(refused, Err(StoreRefusal::BadTransaction { .. })), "{refused:?}");
}
