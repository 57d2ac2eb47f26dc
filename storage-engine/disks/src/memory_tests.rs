// SPDX-License-Identifier: Apache-2.0
//! The memory disk fails as it is told, and no other way.

use super::*;

fn write(disk: &mut MemoryDisk, offset: u64, byte: u8) {
    let mut buffer = IoBuffer::zeroed(4096);
    buffer.as_bytes_mut().fill(byte);
    disk.enqueue(DiskTag(1), DiskRequest::Write { offset, buffer }).unwrap();
}

fn settle(disk: &mut MemoryDisk) -> Vec<Result<(), DiskError>> {
    let mut done = Vec::new();
    while !disk.queue.is_empty() {
        disk.complete(&mut done);
    }
    done.into_iter().map(|done| done.result).collect()
}

fn byte(disk: &MemoryDisk, offset: u64) -> u8 {
    let mut one = [0];
    disk.peek(offset, &mut one);
    one[0]
}

#[test]
fn a_cut_keeps_what_was_flushed_and_may_lose_the_rest() {
    let mut disk = MemoryDisk::with_seed(1 << 20, Cache::Volatile, 1);
    write(&mut disk, 0, 1);
    settle(&mut disk);
    disk.enqueue(DiskTag(2), DiskRequest::Flush).unwrap();
    settle(&mut disk);
    write(&mut disk, 0, 2);
    write(&mut disk, 4096, 2);
    settle(&mut disk);
    assert_eq!((byte(&disk, 0), byte(&disk, 4096)), (2, 2));
    let lost = disk.cut(Cut::Lose);
    assert_eq!((byte(&lost, 0), byte(&lost, 4096)), (1, 0));
    let kept = disk.cut(Cut::Keep);
    assert_eq!((byte(&kept, 0), byte(&kept, 4096)), (2, 2));
    // Some seed keeps one write and not the other, and some seed tears one.
    let cuts: Vec<_> = (0..100).map(|seed| disk.cut(Cut::Any(seed))).collect();
    assert!(cuts.iter().any(|cut| (byte(cut, 0), byte(cut, 4096)) == (1, 2)));
    assert!(cuts.iter().any(|cut| byte(cut, 0) != byte(cut, 512)));
}

#[test]
fn a_cut_keeps_exactly_the_writes_that_it_is_told() {
    let mut disk = MemoryDisk::with_seed(1 << 20, Cache::Volatile, 1);
    let before = disk.outcome();
    for block in 0..3 {
        write(&mut disk, block * 4096, 1);
        settle(&mut disk);
    }
    assert!(disk.outcome() > before && disk.volatile_writes() == 3);
    for kept in 0..8_u64 {
        let cut = disk.cut(Cut::Writes { kept, torn: None, seed: 0 });
        let found: u64 = (0..3).map(|at| u64::from(byte(&cut, at * 4096)) << at).sum();
        assert_eq!(found, kept);
    }
    let torn = |seed| disk.cut(Cut::Writes { kept: 0, torn: Some(1), seed });
    let has_some = |disk: &MemoryDisk| (0..8).any(|at| byte(disk, 4096 + at * 512) == 1);
    assert!((0..20).any(|seed| has_some(&torn(seed)) && byte(&torn(seed), 8191) == 0));
    disk.set_atomic_write_size(4096);
    let cuts = (0..20).map(|seed| disk.cut(Cut::Any(seed)));
    assert!(cuts.into_iter().all(|cut| byte(&cut, 4096) == byte(&cut, 4096 + 512)));
}

#[test]
fn a_discarded_range_reads_as_nonsense_until_it_is_written() {
    let mut disk = MemoryDisk::with_seed(1 << 20, Cache::Volatile, 1);
    write(&mut disk, 0, 1);
    settle(&mut disk);
    disk.enqueue(DiskTag(2), DiskRequest::Flush).unwrap();
    settle(&mut disk);
    disk.enqueue(DiskTag(2), DiskRequest::Discard { offset: 0, length: 4096 }).unwrap();
    settle(&mut disk);
    assert_eq!(byte(&disk, 0), DISCARDED);
    assert_eq!(byte(&disk.cut(Cut::Lose), 0), 1);
    assert_eq!(byte(&disk.cut(Cut::Keep), 0), DISCARDED);
}

#[test]
fn a_flush_covers_only_what_had_completed() {
    let mut disk = MemoryDisk::with_seed(1 << 20, Cache::Volatile, 1);
    write(&mut disk, 0, 1);
    disk.enqueue(DiskTag(2), DiskRequest::Flush).unwrap();
    settle(&mut disk);
    assert_eq!(byte(&disk.cut(Cut::Lose), 0), 0);
    let mut protected = MemoryDisk::with_seed(1 << 20, Cache::Protected, 1);
    write(&mut protected, 0, 1);
    settle(&mut protected);
    assert_eq!(byte(&protected.cut(Cut::Lose), 0), 1);
}

#[test]
fn faults_hit_what_they_are_meant_for() {
    let mut disk = MemoryDisk::with_seed(1 << 20, Cache::Volatile, 1);
    let error = DiskError::Device { errno: 5 };
    let rule = |bytes, fault| FaultRule { is_write: true, bytes, skip: 0, times: 1, fault };
    disk.add_rule(rule(0..4096, Fault::Fail(error)));
    disk.add_rule(rule(4096..8192, Fault::Lose));
    disk.add_rule(rule(8192..12288, Fault::Misdirect { offset: 40960 }));
    disk.add_rule(rule(12288..16384, Fault::Corrupt { bit: 0 }));
    for block in 0..4 {
        write(&mut disk, block * 4096, 2);
    }
    let results = settle(&mut disk);
    assert_eq!(results.iter().filter(|result| **result == Err(error)).count(), 1);
    let found = [0, 4096, 8192, 40960, 12288, 12289].map(|at| byte(&disk, at));
    assert_eq!(found, [0, 0, 0, 2, 3, 2]);
    write(&mut disk, 0, 4);
    assert_eq!(settle(&mut disk), [Ok(())]);
}

#[test]
fn a_request_outside_the_disk_is_refused_and_a_full_queue_gives_back() {
    let mut disk = MemoryDisk::new(8192);
    disk.set_queue_depth(1);
    write(&mut disk, 8192, 1);
    assert!(disk.enqueue(DiskTag(2), DiskRequest::Flush).is_err());
    assert_eq!(settle(&mut disk), [Err(DiskError::OutOfRange { offset: 8192, end: 12288 })]);
}
