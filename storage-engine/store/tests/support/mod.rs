// SPDX-License-Identifier: Apache-2.0
//! A store on a memory disk, driven to the end of each request.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use plinth_disks::memory::MemoryDisk;
use plinth_ids::PoolId;
use plinth_store::{
    Disk, FormatOptions, IoBuffer, LayoutLimits, ObjectId, ObjectKey, Operation, PgId, Store,
    StoreAnswer, StoreCompletion, StoreOptions, StoreRefusal, StoreRequest, StoreTag,
};
use std::time::Duration;

pub(crate) const FORMAT: FormatOptions = FormatOptions {
    id: *b"a store for test",
    limits: Some(LayoutLimits { journal_length: 512 * 1024, slot_count: 64 }),
};

pub(crate) fn key(object: u128) -> ObjectKey {
    ObjectKey { pool: PoolId(1), pg: PgId(0), object: ObjectId(object), snapshot: 0 }
}

pub(crate) fn formatted(mut disk: MemoryDisk) -> MemoryDisk {
    Store::format(&mut disk, &FORMAT).unwrap();
    disk
}

pub(crate) fn fresh(length: u64, options: StoreOptions) -> Store<MemoryDisk> {
    Store::mount(formatted(MemoryDisk::new(length)), options).unwrap()
}

/// Polls until nothing is on its way; at most so often that a stuck store is noticed.
pub(crate) fn settle<D: Disk>(store: &mut Store<D>) -> Vec<StoreCompletion> {
    let mut done = Vec::new();
    for _ in 0..100_000 {
        store.poll(Duration::ZERO, &mut done);
        if store.is_idle() {
            return done;
        }
    }
    panic!("the store is stuck: {:?}", store.counters());
}

pub(crate) fn run<D: Disk>(store: &mut Store<D>, request: StoreRequest) -> StoreCompletion {
    store.submit(StoreTag(7), request).expect("the queue is empty");
    let mut done = settle(store);
    assert_eq!(done.len(), 1, "one request, one end");
    done.pop().unwrap()
}

pub(crate) fn write<D: Disk>(
    store: &mut Store<D>,
    object: u128,
    offset: u32,
    bytes: &[u8],
) -> Result<StoreAnswer, StoreRefusal> {
    run(store, write_request(object, offset, bytes)).result
}

pub(crate) fn write_request(object: u128, offset: u32, bytes: &[u8]) -> StoreRequest {
    let (buffer, length) = lay_out(offset, bytes);
    StoreRequest::Write { key: key(object), offset, length, buffer }
}

pub(crate) fn lay_out(offset: u32, bytes: &[u8]) -> (IoBuffer, u32) {
    let head = (offset % 4096) as usize;
    let mut buffer = IoBuffer::zeroed((head + bytes.len()).next_multiple_of(4096));
    // What is around the range must not matter.
    buffer.as_bytes_mut().fill(0xdb);
    buffer.as_bytes_mut()[head..head + bytes.len()].copy_from_slice(bytes);
    (buffer, u32::try_from(bytes.len()).unwrap())
}

pub(crate) fn read<D: Disk>(
    store: &mut Store<D>,
    object: u128,
    offset: u32,
    length: u32,
) -> Result<Vec<u8>, StoreRefusal> {
    let head = (offset % 4096) as usize;
    let buffer = IoBuffer::zeroed((head + length as usize).next_multiple_of(4096));
    let done = run(store, StoreRequest::Read { key: key(object), offset, length, buffer });
    let buffer = done.buffer.expect("a read gives its buffer back");
    done.result.map(|_| buffer.as_bytes()[head..head + length as usize].to_vec())
}

pub(crate) fn apply<D: Disk>(
    store: &mut Store<D>,
    transaction: Vec<Operation>,
) -> Result<StoreAnswer, StoreRefusal> {
    run(store, StoreRequest::Apply { transaction }).result
}
