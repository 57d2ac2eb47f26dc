// SPDX-License-Identifier: Apache-2.0
//! Mounting what nobody should have written.
//!
//! [`mount_patched`] is the door for fuzzers: bytes in, no panic out, whatever they are. The
//! bytes patch the metadata of a small store that is in use, and most patches are sealed with a
//! right checksum afterwards, so that it is the meaning of fields that is attacked and not the
//! checksum.

use crate::memory::MemoryDisk;
use plinth_store::{
    DiscardOptions, Disk, FormatOptions, IoBuffer, LayoutLimits, ObjectId, ObjectKey, Operation,
    PgId, Store, StoreOptions, StoreRequest, StoreTag, repair_checksum,
};
use std::time::Duration;

const LENGTH: u64 = 2304 * 1024;
/// Bytes that [`mount_patched`] and [`mount_bytes`] allocate at most, all told, given back or not:
/// for making, mounting and using the small store. Some 7 MB were seen; many patches have it do
/// more.
pub const MEMORY_MAX: u64 = 64 << 20;
const PAGE: usize = 4096;

fn key(object: u8) -> ObjectKey {
    ObjectKey { object: ObjectId(u128::from(object)), pg: PgId(0), ..ObjectKey::default() }
}

fn options() -> StoreOptions {
    let discard = DiscardOptions { rate: u64::MAX, delay: Duration::ZERO };
    StoreOptions { cache_pages: 64, overlay_blocks: 16, discard, ..StoreOptions::default() }
}

/// Lets a store run for a while. A store whose disk lies may wait for ever; it must not panic.
fn run<D: Disk>(store: &mut Store<D>) {
    let mut done = Vec::new();
    for _ in 0..200 {
        store.poll(Duration::ZERO, &mut done);
        if store.is_idle() {
            return;
        }
    }
}

/// A store with a few objects, some of it in a checkpoint and some in the journal only.
fn used_disk() -> Option<MemoryDisk> {
    let limits = LayoutLimits { journal_length: 256 * 1024, slot_count: 16 };
    let mut disk = MemoryDisk::new(LENGTH);
    Store::format(&mut disk, &FormatOptions { id: [3; 16], limits: Some(limits) }).ok()?;
    let mut store = Store::mount(disk, options()).ok()?;
    use_store(&mut store, 1);
    store = Store::mount(store.unmount(), options()).ok()?;
    use_store(&mut store, 2);
    Some(store.abandon())
}

fn log(version: u64, byte: u8) -> Operation {
    let ObjectKey { pool, pg, .. } = key(0);
    Operation::LogAppend { pool, pg, version, entry: vec![byte; 70] }
}

/// One of each kind of request, on a few objects.
fn use_store<D: Disk>(store: &mut Store<D>, byte: u8) {
    for object in 0..4 {
        let mut buffer = IoBuffer::zeroed(9 * PAGE);
        buffer.as_bytes_mut().fill(byte);
        let (offset, length) = (u32::from(byte) * 4096, 33_000);
        let write = StoreRequest::Write { key: key(object), offset, length, buffer };
        let _ = store.submit(StoreTag(0), write);
        let buffer = IoBuffer::zeroed(PAGE);
        let write = StoreRequest::Write { key: key(object), offset: 8192, length: 600, buffer };
        let _ = store.submit(StoreTag(0), write);
    }
    run(store);
    let (name, ObjectKey { pool, pg, .. }) = (vec![byte], key(0));
    for operation in [
        Operation::SetKeys {
            key: key(0),
            pairs: (0..60).map(|n| (vec![b'k', n], vec![byte; 90])).collect(),
        },
        Operation::RemoveKeyRange { key: key(0), from: vec![b'k', 5], to: Some(vec![b'k', 9]) },
        log(u64::from(byte), byte),
        Operation::Clone { source: key(0), target: key(5) },
        Operation::Clone { source: key(1), target: key(2) },
        Operation::Zero { key: key(0), offset: 4096, length: 40_960 },
        Operation::SetAttribute { key: key(3), name, value: vec![byte; 100] },
        Operation::Remove { key: key(3) },
        Operation::Truncate { key: key(5), size: 4096 },
        Operation::SetVersion { key: key(1), version: u64::from(byte) << 40 },
        Operation::RaiseVersions { pool, pg, above: u64::from(byte) << 50 },
    ] {
        let _ = store.submit(StoreTag(0), StoreRequest::Apply { transaction: vec![operation] });
        run(store);
    }
    let zero = Operation::Zero { key: key(4), offset: 0, length: 8192 };
    let clone = Operation::Clone { source: key(1), target: key(4) };
    let _ = store.submit(StoreTag(0), StoreRequest::Apply { transaction: vec![clone, zero] });
    let _ = store.submit(StoreTag(0), StoreRequest::UsageOf { keys: (0..6).map(key).collect() });
    for object in 0..6 {
        let buffer = IoBuffer::zeroed(1 << 16);
        let read = StoreRequest::Read { key: key(object), offset: 0, length: 1 << 16, buffer };
        let _ = store.submit(StoreTag(0), read);
        let _ = store.submit(StoreTag(0), StoreRequest::Attributes { key: key(object) });
        let list = StoreRequest::ListKeys { key: key(object), after: None, limit: 50 };
        let _ = store.submit(StoreTag(0), list);
        let _ = store.submit(StoreTag(0), StoreRequest::Usage { key: key(object) });
        let compare = StoreRequest::Compare { a: key(object), b: key(0) };
        let _ = store.submit(StoreTag(0), compare);
    }
    let _ = store.submit(StoreTag(0), StoreRequest::Flush);
    run(store);
}

/// Patches a store's metadata, mounts it, and uses it if it lets itself be mounted. Says whether
/// it did.
///
/// Each patch takes eight bytes: two for the page, two for the byte in it, one for the number of
/// bytes, one that says whether the checksum is made right, two for what is written.
pub fn mount_patched(data: &[u8]) -> bool {
    let Some(mut disk) = used_disk() else { return false };
    let mut metadata = Vec::new();
    for page in 0..LENGTH / PAGE as u64 {
        let mut bytes = [0; PAGE];
        disk.peek(page * PAGE as u64, &mut bytes);
        if bytes.starts_with(b"PLN") {
            metadata.push(page);
        }
    }
    for patch in data.chunks_exact(8).take(64) {
        let number = |at: usize| usize::from(u16::from_le_bytes([patch[at], patch[at + 1]]));
        let Some(&page) = metadata.get(number(0) % metadata.len().max(1)) else {
            continue;
        };
        let mut bytes = [0; PAGE];
        disk.peek(page * PAGE as u64, &mut bytes);
        let from = number(2) % PAGE;
        let to = (from + usize::from(patch[4] % 16) + 1).min(PAGE);
        for (index, byte) in bytes[from..to].iter_mut().enumerate() {
            *byte = patch[6 + index % 2];
        }
        if patch[5] % 4 != 0 {
            repair_checksum(&mut bytes);
        }
        disk.overwrite(page * PAGE as u64, &bytes);
    }
    match Store::mount(disk, options()) {
        Err(_) => false,
        Ok(mut store) => {
            use_store(&mut store, 3);
            if store.is_idle() {
                let _ = store.check();
            }
            true
        }
    }
}

/// Mounts a disk that holds exactly these bytes.
pub fn mount_bytes(data: &[u8]) -> bool {
    let mut disk = MemoryDisk::new(LENGTH);
    let length = data.len().min(usize::try_from(LENGTH).unwrap_or(0));
    disk.overwrite(0, &data[..length]);
    Store::mount(disk, options()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Seed;

    #[test]
    fn patched_stores_are_refused_or_served_and_never_panic() {
        let mut seed = Seed(7);
        let mut mounted = 0;
        const ROUNDS: u32 = 1500;
        for _ in 0..ROUNDS {
            let patches = 1 + seed.below(4);
            let data: Vec<u8> = (0..patches).flat_map(|_| seed.draw().to_le_bytes()).collect();
            mounted += u32::from(mount_patched(&data));
        }
        assert!(mounted > ROUNDS / 10 && mounted < ROUNDS, "{mounted} of {ROUNDS} were mounted");
    }

    #[test]
    fn bytes_that_are_no_store_are_refused() {
        assert!(!mount_bytes(&[]));
        assert!(!mount_bytes(&[0xff; 100_000]));
        assert!(!mount_bytes(b"PLNsuper"));
        assert!(mount_patched(&[]), "the store itself can be mounted");
    }
}
