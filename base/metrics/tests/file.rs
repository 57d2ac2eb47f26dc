// SPDX-License-Identifier: Apache-2.0
//! A file that is written and read at once, and files that are not what they should be.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use plinth_metrics::{Kind, Metrics, Operation, Picture, ReadError, SLOTS_MAX, read, read_path};
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("plinth-metrics-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn what_is_counted_is_read_by_whoever_opens_the_file() {
    let place = Place::new();
    let metrics = Metrics::create(&place.0, 4).unwrap();
    let mut volume = metrics.claim(Kind::Attachment, 3, 70).unwrap();
    let mut disk = metrics.claim(Kind::Disk, 3, 1).unwrap();
    for ticks in 1..=1000 {
        volume.record(Operation::Read, ticks * 1000);
    }
    volume.add(2, 5);
    volume.add(2, 6);
    disk.set(0, 9);
    disk.record(Operation::Flush, 77);
    let picture = read_path(&place.0).unwrap();
    assert_eq!((picture.process, picture.rows.len(), picture.unread), (std::process::id(), 2, 0));
    let [first, second] = &picture.rows[..] else { panic!("{picture:?}") };
    assert_eq!((first.kind, first.pool, first.id), (Kind::Attachment, 3, 70));
    let reads = first.histogram(Operation::Read);
    assert_eq!((reads.count(), first.counters[2]), (1000, 11));
    let p99 = reads.quantile(990);
    assert!((990_000..=1_006_000).contains(&p99), "{p99}");
    assert_eq!(first.histogram(Operation::Write).count(), 0);
    assert_eq!((second.kind, second.id, second.counters[0]), (Kind::Disk, 1, 9));
    assert_eq!(second.histogram(Operation::Flush).max(), 77);
    // A rate that could be a CPU's.
    assert!((100_000_000..20_000_000_000).contains(&metrics.measure_rate()));
    assert_eq!(Picture { rate: 2_000_000_000, ..picture }.nanoseconds(3), 1);
}

#[test]
fn slots_are_bounded_and_start_empty_for_their_next_owner() {
    let place = Place::new();
    let metrics = Metrics::create(&place.0, 2).unwrap();
    let mut first = metrics.claim(Kind::Attachment, 1, 1).unwrap();
    first.record(Operation::Write, 5);
    first.add(0, 1);
    let _second = metrics.claim(Kind::Attachment, 1, 2).unwrap();
    assert!(metrics.claim(Kind::Attachment, 1, 3).is_none());
    drop(first);
    let ids = |picture: &Picture| picture.rows.iter().map(|row| row.id).collect::<Vec<_>>();
    assert_eq!(ids(&read(metrics.file()).unwrap()), [2]);
    let _third = metrics.claim(Kind::Attachment, 1, 3).unwrap();
    let picture = read(metrics.file()).unwrap();
    assert_eq!(ids(&picture), [3, 2]);
    assert_eq!(picture.rows[0].counters[0], 0);
    assert_eq!(picture.rows[0].histogram(Operation::Write).count(), 0);
    for slots in [0, SLOTS_MAX + 1] {
        assert!(Metrics::create(&Place::new().0, slots).is_err());
    }
}

#[test]
fn a_new_process_does_not_write_into_the_file_of_the_old_one() {
    let place = Place::new();
    let old = Metrics::create(&place.0, 1).unwrap();
    let _slot = old.claim(Kind::Disk, 1, 1).unwrap();
    let new = Metrics::create(&place.0, 1).unwrap();
    assert_eq!(read_path(&place.0).unwrap().rows.len(), 0);
    assert_eq!(read(old.file()).unwrap().rows.len(), 1);
    assert_eq!(read(new.file()).unwrap().rows.len(), 0);
}

#[test]
fn readers_see_whole_rows_while_owners_come_and_go() {
    let place = Place::new();
    let metrics = Metrics::create(&place.0, 2).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut id = 0;
            while !is_over.load(Ordering::Relaxed) {
                id += 1;
                let mut slot = metrics.claim(Kind::Attachment, 1, id).unwrap();
                for _ in 0..if id % 4 == 0 { 9000 } else { 30 } {
                    slot.set(0, id);
                    slot.record(Operation::Read, id);
                }
            }
        });
        let mut owners = BTreeSet::new();
        for _ in 0..10_000 {
            for row in read_path(&place.0).unwrap().rows {
                owners.insert(row.id);
                assert!(row.counters[0] == row.id || row.counters[0] == 0, "{row:?}");
                let reads = row.histogram(Operation::Read);
                // All of it of this owner, none of another.
                assert!(reads.count() <= 9000, "{} of owner {}", reads.count(), row.id);
                let times = [reads.quantile(1), reads.max()];
                assert!(reads.count() == 0 || times[0] == times[1], "{times:?}");
            }
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(owners.len() > 5, "{} owners were seen", owners.len());
    });
}

#[test]
fn a_file_that_is_not_right_is_refused_by_name_and_never_ends_the_reader() {
    let place = Place::new();
    let metrics = Metrics::create(&place.0, 2).unwrap();
    let mut slot = metrics.claim(Kind::Attachment, 1, 1).unwrap();
    slot.record(Operation::Read, 5);
    let file = OpenOptions::new().write(true).read(true).open(&place.0).unwrap();
    let broken = |at: u64, bytes: &[u8]| {
        let mut before = vec![0; bytes.len()];
        file.read_exact_at(&mut before, at).unwrap();
        file.write_all_at(bytes, at).unwrap();
        let outcome = read_path(&place.0);
        file.write_all_at(&before, at).unwrap();
        outcome
    };
    assert!(matches!(broken(0, b"X"), Err(ReadError::Magic)));
    assert!(matches!(broken(8, &[9]), Err(ReadError::Version { version: 9 })));
    for at in [16, 20, 24, 28] {
        let refused = broken(at, &[0xff; 4]);
        assert!(matches!(refused, Err(ReadError::Layout { .. })), "{at}: {refused:?}");
    }
    assert!(matches!(broken(32, &[0; 8]), Err(ReadError::Layout { .. })));
    // More slots than there is file.
    assert!(matches!(broken(16, &[3]), Err(ReadError::Io { .. })));
    assert_eq!(broken(4096 + 8, &[7]).unwrap().unread, 1);
    let picture = broken(4096 + 256, &[0xff; 3 * 8 * 100]).unwrap();
    assert_eq!(picture.rows[0].histogram(Operation::Read).count(), u64::MAX);
    let _ = picture.nanoseconds(u64::MAX);
    drop(slot);
    drop(metrics);
    // Noise everywhere but where it would be refused at once.
    let mut state = 1_u64;
    for round in 0..50 {
        let mut noise = vec![0; 120_000];
        for byte in &mut noise {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = state.to_le_bytes()[7];
        }
        file.write_all_at(&noise, 4096 - (round % 2) * 4064).unwrap();
        if let Ok(picture) = read_path(&place.0) {
            for row in &picture.rows {
                let reads = row.histogram(Operation::Read);
                let _ = picture.nanoseconds(reads.quantile(999).max(reads.max()));
            }
        }
        file.set_len(4096 + 57_344 - round * 100).unwrap();
        assert!(read_path(&place.0).is_err());
        file.set_len(4096 + 2 * 57_344).unwrap();
    }
}
