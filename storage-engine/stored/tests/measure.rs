// SPDX-License-Identifier: Apache-2.0
//! Latencies, counters and slow requests, as whoever operates the node sees them.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

mod support;

use plinth_metrics::{Kind, Operation, read_path};
use plinth_store_api::{Answer, Attachment, Metrics, SlowRequest, Verb, VolumeLimits};
use std::process::Command;
use support::guest::{Guest, Io, OK};
use support::{Daemon, Folder, MIB, VOLUME, attachment, config, serving};

fn metrics(daemon: &Daemon) -> Metrics {
    match daemon.call(Verb::Metrics) {
        Ok(Answer::Metrics(metrics)) => metrics,
        other => panic!("{other:?}"),
    }
}

fn slow_requests(daemon: &Daemon, limit: u32) -> Vec<SlowRequest> {
    match daemon.call(Verb::SlowRequests { limit }) {
        Ok(Answer::SlowRequests(slow)) => slow,
        other => panic!("{other:?}"),
    }
}

/// 50 writes, 100 reads and 5 flushes.
fn work(guest: &mut Guest) {
    for block in 0..50 {
        assert_eq!(guest.write(block * 8, &[7; 4096]), OK);
    }
    for block in 0..100 {
        guest.read(block * 8, 4096);
    }
    for _ in 0..5 {
        guest.flush();
    }
}

#[test]
fn what_guests_and_disks_do_is_counted_and_timed() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, 16 * MIB, 1);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    work(&mut guest);
    let seen = metrics(&daemon);
    let [volume] = &seen.attachments[..] else { panic!("{seen:?}") };
    let counts = [volume.read, volume.write, volume.flush].map(|latency| latency.count);
    assert_eq!((volume.volume, counts), (VOLUME, [100, 50, 5]));
    assert_eq!((volume.read_bytes, volume.written_bytes), (100 * 4096, 50 * 4096));
    assert_eq!((volume.errors, volume.throttled), (0, 0));
    for latency in [volume.read, volume.write, volume.flush] {
        let steps = [latency.p50, latency.p99, latency.p999, latency.max];
        assert!(steps.is_sorted(), "{latency:?}");
        // A request of a process next door: no less than 100 ns, no more than the test may take.
        assert!(latency.p50 > 100 && latency.max < 60_000_000_000, "{latency:?}");
    }
    let [disk] = &seen.disks[..] else { panic!("{seen:?}") };
    assert!(disk.write.count >= 50 && disk.flush.count >= 5, "{disk:?}");
    assert_eq!(disk.write.count, disk.counters.writes);
    assert!(disk.counters.written_bytes >= 50 * 4096, "{disk:?}");
    assert!(disk.write.p50 > 1000, "{disk:?}");
    // An error is one: past the end of the disk.
    assert_ne!(guest.run(&Io::Read { sector: 16 * MIB / 512, length: 4096 }).status, OK);
    work(&mut guest);
    let seen = metrics(&daemon);
    assert_eq!((seen.attachments[0].errors, seen.attachments[0].read.count), (1, 200));
}

#[test]
fn the_file_is_read_without_the_process() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, 16 * MIB, 1);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    work(&mut guest);
    let path = folder.path("run").join("stored.metrics");
    let process = daemon.status().process;
    // It can do nothing for whoever reads.
    let signal = |name: &str| {
        let done = Command::new("kill").args([name, &process.to_string()]).status();
        assert!(done.unwrap().success());
    };
    signal("-STOP");
    let picture = read_path(&path).unwrap();
    let printed = Command::new(env!("CARGO_BIN_EXE_plinth-stored"))
        .arg("--show-metrics")
        .arg(&path)
        .output()
        .unwrap();
    signal("-CONT");
    assert_eq!(picture.process, process);
    let row = picture.rows.iter().find(|row| row.kind == Kind::Attachment).unwrap();
    assert_eq!((row.id, row.histogram(Operation::Read).count()), (VOLUME.0, 100));
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.status.success() && text.contains("pool-1 volume-7"), "{text}");
    let wrong = Command::new(env!("CARGO_BIN_EXE_plinth-stored"))
        .args(["--show-metrics", "/dev/null"])
        .output()
        .unwrap();
    assert!(!wrong.status.success());
    // Whoever is detached has no row, and whoever comes back starts at nothing.
    daemon.apply(config(3, &folder.path("pool"), &[]));
    assert_eq!(metrics(&daemon).attachments, []);
    let again = attachment(VOLUME, &folder.path("blk.sock"), 1);
    daemon.apply(config(4, &folder.path("pool"), &[again]));
    assert_eq!(metrics(&daemon).attachments[0].read.count, 0);
}

#[test]
fn a_slow_request_says_what_it_waited_for() {
    let folder = Folder::new();
    let daemon = serving(&folder, 64 * MIB, 16 * MIB, 1);
    let mut guest = Guest::boot(&folder.path("blk.sock"), 1);
    guest.read(80, 4096);
    // The slowest are there though they were fast.
    let slow = slow_requests(&daemon, 10);
    let [fast] = &slow[..] else { panic!("{slow:?}") };
    assert_eq!((fast.kind.as_str(), fast.offset, fast.length), ("read", 80 * 512, 4096));
    let sum: u64 = fast.waits.iter().map(|wait| wait.ns).sum();
    assert!(sum.abs_diff(fast.total_ns) <= 10, "{fast:?}");
    let limits = Some(VolumeLimits { iops: 5, iops_burst: 1, bytes_per_second: 0, bytes_burst: 0 });
    let limited = Attachment { limits, ..attachment(VOLUME, &folder.path("blk.sock"), 1) };
    daemon.apply(config(3, &folder.path("pool"), &[limited]));
    for block in 0..4 {
        assert_eq!(guest.write(block * 8, &[1; 512]), OK);
    }
    let slow = slow_requests(&daemon, 2);
    assert_eq!(slow.len(), 2);
    for request in &slow {
        assert_eq!((request.kind.as_str(), request.volume), ("write", VOLUME));
        assert!(request.total_ns > 100_000_000, "{request:?}");
        let longest = request.waits.iter().max_by_key(|wait| wait.ns).unwrap();
        assert_eq!(longest.stage, "limits", "{request:?}");
    }
    assert!(slow[0].at_ms >= slow[1].at_ms && slow[0].offset > slow[1].offset, "newest first");
    assert!(metrics(&daemon).attachments[0].throttled >= 3);
}
