// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
//! What every disk promises, as one list of tests that runs over each of them: the memory disks,
//! and files on the disk's file system and on tmpfs behind io_uring.

mod support;

use plinth_disks::flat::FlatDisk;
use plinth_disks::memory::MemoryDisk;
use plinth_disks::uring::{Mode, UringDisk};
use plinth_store::{Disk, DiskError, DiskRequest, DiskTag, IoBuffer};
use std::path::Path;
use support::{Scratch, finish, write};

const LENGTH: u64 = 1 << 20;

/// Runs a test over each disk. A disk's file lives as long as the test.
fn over_each(test: impl Fn(&mut dyn Disk, &str)) {
    test(&mut MemoryDisk::new(LENGTH), "memory");
    test(&mut FlatDisk::new(LENGTH), "flat memory");
    let mut folders = vec![std::env::temp_dir()];
    let shared = Path::new("/dev/shm");
    if shared.is_dir() {
        folders.push(shared.into());
    }
    for folder in folders {
        let scratch = Scratch::file_in(&folder, LENGTH);
        let mut disk = UringDisk::open(scratch.path(), Mode::Worker, 32).unwrap();
        test(&mut disk, &format!("io_uring in {}", folder.display()));
    }
}

fn read(disk: &mut dyn Disk, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
    let buffer = IoBuffer::zeroed(length);
    disk.enqueue(DiskTag(9), DiskRequest::Read { offset, buffer }).unwrap();
    let end = finish(disk, 1).remove(0);
    assert_eq!(end.tag, DiskTag(9));
    let buffer = end.buffer.expect("a read gives its buffer back, whatever its end");
    assert_eq!(buffer.length(), length);
    end.result.map(|()| buffer.as_bytes().to_vec())
}

#[test]
fn the_geometry_can_be_worked_with() {
    over_each(|disk, name| {
        let geometry = disk.geometry();
        assert_eq!(geometry.length, LENGTH, "{name}");
        assert!([512, 4096].contains(&geometry.sector_size), "{name}");
        assert!(geometry.atomic_write_size >= geometry.sector_size, "{name}");
    });
}

#[test]
fn what_was_written_is_read_and_what_was_not_is_zeros() {
    over_each(|disk, name| {
        for (fill, offset) in (1..).zip([0, 12_288, LENGTH - 4096]) {
            assert_eq!(write(disk, offset, 4096, fill), Ok(()), "{name}");
        }
        assert_eq!(write(disk, 65_536, 131_072, 7), Ok(()), "{name}");
        assert_eq!(read(disk, 0, 16_384).unwrap()[4096..12_288], [0; 8192], "{name}");
        assert_eq!(read(disk, 12_288, 4096).unwrap(), [2; 4096], "{name}");
        assert_eq!(read(disk, LENGTH - 4096, 4096).unwrap(), [3; 4096], "{name}");
        assert_eq!(read(disk, 65_536, 131_072).unwrap(), vec![7; 131_072], "{name}");
    });
}

#[test]
fn only_the_bytes_in_use_are_moved() {
    over_each(|disk, name| {
        assert_eq!(write(disk, 0, 8192, 1), Ok(()), "{name}");
        let mut buffer = IoBuffer::zeroed(8192);
        buffer.as_bytes_mut().fill(2);
        buffer.set_length(4096);
        disk.enqueue(DiskTag(1), DiskRequest::Write { offset: 0, buffer }).unwrap();
        let end = finish(disk, 1).remove(0);
        assert_eq!(
            end.buffer.map(|buffer| (buffer.length(), buffer.capacity())),
            Some((4096, 8192))
        );
        let found = read(disk, 0, 8192).unwrap();
        assert_eq!((found[4095], found[4096]), (2, 1), "{name}");
    });
}

#[test]
fn every_accepted_request_ends_once_and_a_full_queue_gives_back() {
    over_each(|disk, name| {
        let mut ended = vec![0; 4096];
        let (mut next, mut refused, mut done) = (0, 0, 0);
        while done < ended.len() {
            while next < ended.len() {
                let offset = next as u64 % 256 * 4096;
                let request = DiskRequest::Write { offset, buffer: IoBuffer::zeroed(4096) };
                match disk.enqueue(DiskTag(next as u64), request) {
                    Ok(()) => next += 1,
                    Err(DiskRequest::Write { offset: same, buffer }) => {
                        assert_eq!((same, buffer.length()), (offset, 4096), "{name}");
                        refused += 1;
                        break;
                    }
                    Err(other) => panic!("{name} gave back {other:?}"),
                }
            }
            for end in finish(disk, 1) {
                assert_eq!(end.result, Ok(()), "{name}");
                ended[usize::try_from(end.tag.0).unwrap()] += 1;
                done += 1;
            }
        }
        assert!(ended.iter().all(|&count| count == 1), "{name}");
        assert!(refused > 0, "{name} has no bound");
    });
}

#[test]
fn a_flush_and_a_discard_end_well() {
    over_each(|disk, name| {
        assert_eq!(write(disk, 0, 65_536, 1), Ok(()), "{name}");
        disk.enqueue(DiskTag(1), DiskRequest::Flush).unwrap();
        assert_eq!(finish(disk, 1)[0].result, Ok(()), "{name}");
        disk.enqueue(DiskTag(2), DiskRequest::Discard { offset: 0, length: 32_768 }).unwrap();
        let end = finish(disk, 1).remove(0);
        assert_eq!(
            (end.tag, end.result, end.buffer.is_none()),
            (DiskTag(2), Ok(()), true),
            "{name}"
        );
        assert_eq!(read(disk, 32_768, 4096).unwrap(), [1; 4096], "{name}");
        assert_eq!(write(disk, 0, 4096, 2), Ok(()), "{name}");
        assert_eq!(read(disk, 0, 4096).unwrap(), [2; 4096], "{name}");
    });
}

#[test]
fn a_request_outside_the_disk_is_refused_and_harms_nothing() {
    over_each(|disk, name| {
        assert_eq!(write(disk, LENGTH - 4096, 4096, 5), Ok(()), "{name}");
        let out =
            |result: Result<(), DiskError>| matches!(result, Err(DiskError::OutOfRange { .. }));
        assert!(out(write(disk, LENGTH, 4096, 1)), "{name}");
        assert!(out(write(disk, LENGTH - 4096, 8192, 1)), "{name}");
        assert!(out(write(disk, u64::MAX - 4095, 4096, 1)), "{name}");
        assert!(out(write(disk, 100, 4096, 1)), "{name}: a part of a sector");
        assert!(out(read(disk, LENGTH, 4096).map(|_| ())), "{name}");
        let discard = DiskRequest::Discard { offset: LENGTH - 4096, length: 8192 };
        disk.enqueue(DiskTag(0), discard).unwrap();
        assert!(out(finish(disk, 1)[0].result), "{name}");
        assert_eq!(read(disk, LENGTH - 4096, 4096).unwrap(), [5; 4096], "{name}");
    });
}
