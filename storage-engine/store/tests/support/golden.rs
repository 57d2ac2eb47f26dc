// SPDX-License-Identifier: Apache-2.0
//! A store with all that format version 2 has beside data: keys, a log, snapshots, versions that
//! were taken over. Half of it is in a checkpoint, half in the journal behind it.

use crate::support::{apply, fresh, key, lay_out, run};
use crate::{LENGTH, options};
use plinth_disks::memory::MemoryDisk;
use plinth_store::{ObjectKey, Operation, Store, StoreAnswer, StoreRefusal, StoreRequest};

/// Versions that another store gave: before the checkpoint, and behind it.
const TAKEN: [u64; 2] = [1 << 40, 1 << 50];

fn snapshot(number: u64) -> ObjectKey {
    ObjectKey { snapshot: number, ..key(1) }
}

fn name(number: u32) -> Vec<u8> {
    format!("key {number:03}").into_bytes()
}

/// Long enough that forty fill a branch and several leaves.
fn value(byte: u8) -> Vec<u8> {
    vec![byte; 700]
}

/// The first write after a snapshot.
fn write_behind(store: &mut Store<MemoryDisk>, number: u64, byte: u8) {
    let (buffer, length) = lay_out(4096, &[byte; 4096]);
    let clone = Operation::Clone { source: key(1), target: snapshot(number) };
    let write = Operation::Write { key: key(1), offset: 4096, length, buffer };
    apply(store, vec![clone, write]).unwrap();
}

fn set_keys(store: &mut Store<MemoryDisk>, numbers: std::ops::Range<u32>, byte: u8) {
    let pairs = numbers.map(|number| (name(number), value(byte))).collect();
    apply(store, vec![Operation::SetKeys { key: key(1), pairs }]).unwrap();
}

fn append(version: u64) -> Operation {
    let (pool, pg) = (key(0).pool, key(0).pg);
    let entry = vec![u8::try_from(version).unwrap(); 100];
    Operation::LogAppend { pool, pg, version, entry }
}

pub(crate) fn make() -> MemoryDisk {
    let (pool, pg) = (key(0).pool, key(0).pg);
    let mut store = fresh(LENGTH, options());
    crate::support::write(&mut store, 1, 0, &[1; 65536]).unwrap();
    set_keys(&mut store, 0..40, 10);
    write_behind(&mut store, 3, 2);
    apply(&mut store, (1..=30).map(append).collect()).unwrap();
    apply(&mut store, vec![Operation::LogTrim { pool, pg, up_to: 12 }]).unwrap();
    apply(&mut store, vec![Operation::SetVersion { key: key(2), version: TAKEN[0] }]).unwrap();
    let mut store = Store::mount(store.unmount(), options()).unwrap();
    set_keys(&mut store, 38..42, 20);
    let cut = Operation::RemoveKeyRange { key: key(1), from: name(5), to: Some(name(10)) };
    apply(&mut store, vec![cut]).unwrap();
    write_behind(&mut store, 5, 3);
    let names = vec![name(41)];
    apply(&mut store, vec![Operation::RemoveKeys { key: key(1), names }, append(31)]).unwrap();
    apply(&mut store, vec![Operation::SetVersion { key: key(4), version: TAKEN[1] }]).unwrap();
    apply(&mut store, vec![Operation::Touch { key: key(6) }]).unwrap();
    store.abandon()
}

/// The keys with these names and this byte in their values.
fn check_keys(store: &mut Store<MemoryDisk>, at: ObjectKey, expected: &[(u32, u8)]) {
    let done = run(store, StoreRequest::ListKeys { key: at, after: None, limit: 1000 });
    let pairs = expected.iter().map(|&(number, byte)| (name(number), value(byte))).collect();
    assert_eq!(done.result, Ok(StoreAnswer::Keys { pairs, more: false }), "keys of {at}");
}

fn check_second_block(store: &mut Store<MemoryDisk>, at: ObjectKey, byte: u8) {
    let buffer = plinth_store::IoBuffer::zeroed(65536);
    let done = run(store, StoreRequest::Read { key: at, offset: 0, length: 65536, buffer });
    done.result.unwrap();
    let mut bytes = vec![1; 65536];
    bytes[4096..8192].fill(byte);
    assert_eq!(done.buffer.unwrap().as_bytes(), bytes, "bytes of {at}");
}

fn version(store: &mut Store<MemoryDisk>, object: u128) -> u64 {
    match run(store, StoreRequest::Status { key: key(object) }).result {
        Ok(StoreAnswer::Status { version, .. }) => version,
        other => panic!("a status was answered by {other:?}"),
    }
}

pub(crate) fn check(disk: MemoryDisk) {
    let (pool, pg) = (key(0).pool, key(0).pg);
    let mut store = Store::mount(disk, options()).unwrap();
    let report = store.check().unwrap();
    // Six of users, the keys of one and of its two copies, a log.
    assert_eq!((report.objects, report.damaged), (10, 0));
    for (at, byte) in [(snapshot(3), 1), (snapshot(5), 2), (key(1), 3)] {
        check_second_block(&mut store, at, byte);
    }
    let old: Vec<(u32, u8)> = (0..40).map(|number| (number, 10)).collect();
    let rest = |number: &u32| !(5..10).contains(number);
    let byte = |number: u32| if number < 38 { 10 } else { 20 };
    let mut new: Vec<_> = (0..42).filter(rest).map(|number| (number, byte(number))).collect();
    check_keys(&mut store, snapshot(3), &old);
    check_keys(&mut store, snapshot(5), &new);
    new.pop();
    check_keys(&mut store, key(1), &new);
    let done = run(&mut store, StoreRequest::ReadLog { pool, pg, after: 0, limit: 100 });
    let entries = (13..=31).map(|version| (version, vec![u8::try_from(version).unwrap(); 100]));
    let log = StoreAnswer::Log { entries: entries.collect(), last: 31, more: false };
    assert_eq!(done.result, Ok(log));
    assert_eq!([version(&mut store, 2), version(&mut store, 4)], TAKEN);
    assert!(version(&mut store, 6) > TAKEN[1]);
    // It goes on where it was.
    let late = apply(&mut store, vec![append(31)]).unwrap_err();
    assert!(matches!(late, StoreRefusal::LogOrder { last: 31, .. }), "{late:?}");
    let stale = vec![Operation::Expect { key: key(2), version: TAKEN[0] }, append(32)];
    let Ok(StoreAnswer::Changed { version: next, .. }) = apply(&mut store, stale) else {
        panic!("the version that was taken over is the object's");
    };
    assert!(next > version(&mut store, 6));
    set_keys(&mut store, 0..40, 30);
    store.check().unwrap();
}
