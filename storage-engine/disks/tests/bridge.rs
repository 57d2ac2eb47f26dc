// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
//! The bridge to a device on another thread, over a fake device that ends requests in any order,
//! fails some, and may end itself.

use plinth_disks::spdk::{
    BridgeDisk, Job, JobKind, Lower, LowerGeometry, SpdkDiskError, WriteCache,
};
use plinth_store::{
    Disk, DiskCompletion, DiskError, DiskRequest, DiskTag, FormatOptions, IoBuffer, ObjectId,
    ObjectKey, PgId, Store, StoreAnswer, StoreOptions, StoreRequest, StoreTag,
};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

const BLOCK: u32 = 512;
const LENGTH: u64 = 64 << 20;

/// A device whose bytes lie in a thread of its own, as SPDK's do.
struct Fake {
    jobs: Option<Sender<Vec<Job>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fake {
    /// Fails writes to the last block; ends after `lives` batches.
    fn new(lives: usize) -> Self {
        let (jobs, taken) = channel::<Vec<Job>>();
        let thread = std::thread::spawn(move || {
            let mut bytes = vec![0; usize::try_from(LENGTH).unwrap()];
            for mut batch in taken.iter().take(lives) {
                // The last comes first: a device orders nothing.
                while let Some(mut job) = batch.pop() {
                    let at = usize::try_from(job.offset()).unwrap();
                    let end = at + job.bytes().len();
                    if job.kind() == JobKind::Write && job.offset() == LENGTH - u64::from(BLOCK) {
                        job.end(Err(DiskError::Device { errno: 5 }));
                        continue;
                    }
                    match job.kind() {
                        JobKind::Read => job.bytes_mut().copy_from_slice(&bytes[at..end]),
                        JobKind::Write => bytes[at..end].copy_from_slice(job.bytes()),
                    }
                    job.end(Ok(()));
                }
            }
        });
        Self { jobs: Some(jobs), thread: Some(thread) }
    }
}

impl Lower for Fake {
    fn start(&mut self, jobs: Vec<Job>) {
        // A thread that has ended drops what was sent to it.
        let _ = self.jobs.as_ref().unwrap().send(jobs);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.jobs = None;
        self.thread.take().unwrap().join().unwrap();
    }
}

fn disk(lives: usize, depth: usize) -> BridgeDisk<Fake> {
    let facts = LowerGeometry { block_size: BLOCK, block_count: LENGTH / u64::from(BLOCK) };
    BridgeDisk::new(Fake::new(lives), facts, WriteCache::Protected, depth).unwrap()
}

fn finish(disk: &mut dyn Disk, count: usize) -> Vec<DiskCompletion> {
    disk.submit();
    let (mut ends, started) = (Vec::new(), Instant::now());
    while ends.len() < count {
        disk.complete(&mut ends);
        assert!(started.elapsed() < Duration::from_secs(20), "{} of {count} came", ends.len());
        std::thread::yield_now();
    }
    ends
}

fn filled(length: usize, fill: u8) -> IoBuffer {
    let mut buffer = IoBuffer::zeroed(length);
    buffer.as_bytes_mut().fill(fill);
    buffer
}

#[test]
fn a_store_lives_on_a_device_of_another_thread() {
    let mut disk = disk(usize::MAX, 64);
    Store::format(&mut disk, &FormatOptions { id: [3; 16], limits: None }).unwrap();
    let mut store = Store::mount(disk, StoreOptions::default()).unwrap();
    let key = ObjectKey { pg: PgId(0), object: ObjectId(5), ..ObjectKey::default() };
    let ask = |store: &mut Store<_>, tag, request| {
        store.submit(StoreTag(tag), request).unwrap();
        let mut ends = Vec::new();
        while ends.is_empty() {
            store.poll(Duration::ZERO, &mut ends);
            std::thread::yield_now();
        }
        ends.remove(0)
    };
    for (tag, fill) in (0..20_u8).enumerate() {
        let (offset, buffer) = (u32::from(fill) * 8192, filled(8192, fill));
        let write = StoreRequest::Write { key, offset, length: 8192, buffer };
        assert!(ask(&mut store, tag as u64, write).result.is_ok());
    }
    assert_eq!(ask(&mut store, 99, StoreRequest::Flush).result, Ok(StoreAnswer::Flushed));
    let disk = store.unmount();
    let mut store = Store::mount(disk, StoreOptions::default()).unwrap();
    for fill in 0..20_u8 {
        let (offset, buffer) = (u32::from(fill) * 8192, IoBuffer::zeroed(8192));
        let read = StoreRequest::Read { key, offset, length: 8192, buffer };
        let end = ask(&mut store, 7, read);
        assert_eq!(end.result, Ok(StoreAnswer::Read));
        assert!(end.buffer.unwrap().as_bytes().iter().all(|&byte| byte == fill));
    }
}

#[test]
fn each_request_ends_once_and_a_full_queue_gives_it_back() {
    let mut disk = disk(usize::MAX, 4);
    let request = |at: u64| DiskRequest::Write { offset: at * 4096, buffer: filled(4096, 1) };
    for at in 0..4 {
        disk.enqueue(DiskTag(at), request(at)).unwrap();
    }
    assert!(disk.enqueue(DiskTag(4), request(4)).is_err());
    assert!(disk.enqueue(DiskTag(4), DiskRequest::Flush).is_err());
    let mut tags: Vec<u64> = finish(&mut disk, 4).iter().map(|end| end.tag.0).collect();
    tags.sort_unstable();
    assert_eq!(tags, [0, 1, 2, 3]);
    disk.enqueue(DiskTag(5), DiskRequest::Flush).unwrap();
    disk.enqueue(DiskTag(6), DiskRequest::Discard { offset: 0, length: 4096 }).unwrap();
    assert!(finish(&mut disk, 2).iter().all(|end| end.result.is_ok() && end.buffer.is_none()));
}

#[test]
fn errors_of_the_device_and_of_the_caller_come_back_with_the_buffer() {
    let mut disk = disk(usize::MAX, 4);
    let last = LENGTH - u64::from(BLOCK);
    for (offset, length, error) in [
        (last, 512, DiskError::Device { errno: 5 }),
        (last, 1024, DiskError::OutOfRange { offset: last, end: LENGTH + 512 }),
        (100, 512, DiskError::OutOfRange { offset: 100, end: 612 }),
    ] {
        let buffer = filled(length, 1);
        disk.enqueue(DiskTag(1), DiskRequest::Write { offset, buffer }).unwrap();
        let end = finish(&mut disk, 1).remove(0);
        assert_eq!((end.result, end.buffer.unwrap().length()), (Err(error), length));
    }
}

#[test]
fn a_device_whose_thread_ends_loses_no_request() {
    let mut disk = disk(1, 8);
    let request = |at: u64| DiskRequest::Read { offset: at * 4096, buffer: IoBuffer::zeroed(4096) };
    disk.enqueue(DiskTag(0), request(0)).unwrap();
    assert_eq!(finish(&mut disk, 1)[0].result, Ok(()));
    for at in 1..8 {
        disk.enqueue(DiskTag(at), request(at)).unwrap();
    }
    let ends = finish(&mut disk, 7);
    assert!(ends.iter().all(|end| end.result == Err(DiskError::Gone) && end.buffer.is_some()));
}

#[test]
fn a_device_that_could_lose_what_it_confirmed_is_not_taken() {
    let open = |block_size, cache| {
        let facts = LowerGeometry { block_size, block_count: 1024 };
        BridgeDisk::new(Fake::new(1), facts, cache, 8).err()
    };
    assert_eq!(open(512, WriteCache::Volatile), Some(SpdkDiskError::VolatileCache));
    assert_eq!(open(520, WriteCache::Protected), Some(SpdkDiskError::BlockSize { size: 520 }));
    assert_eq!(open(4096, WriteCache::Protected), None);
}
