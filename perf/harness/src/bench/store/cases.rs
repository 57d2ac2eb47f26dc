// SPDX-License-Identifier: Apache-2.0
//! What is measured of the store: the rows of its speed table.

use super::measures::Measure;
use super::server::Who;
use super::{Bar, Case, Job};

const READ_1: &[&str] = &["--depth", "1"];
const READ_32: &[&str] = &["--depth", "32"];
const READ_128: &[&str] = &["--depth", "128"];
const WRITE_1: &[&str] = &["--depth", "1", "--writes", "100"];
const WRITE_32: &[&str] = &["--depth", "32", "--writes", "100"];
const WRITE_128: &[&str] = &["--depth", "128", "--writes", "100"];
const LARGE_READ: &[&str] = &["--depth", "32", "--block-size", "131072", "--order", "seq"];
const LARGE_WRITE: &[&str] =
    &["--depth", "32", "--block-size", "131072", "--order", "seq", "--writes", "100"];
const DURABLE_1: &[&str] = &["--depth", "1", "--writes", "100", "--durable"];
const DURABLE_32: &[&str] = &["--depth", "32", "--writes", "100", "--durable"];

const SPDK_NULL: &str = "The volume answers at once and moves no data. SPDK's vhost on its null \
    bdev gave 1.2 / 2.5 to 3.4 / 3.8 to 5.4 M requests/s on this kind of machine.";
const MEMORY: &str = "Volume, store, checksums and two copies, on the store's memory disk. SPDK's \
    vhost on its malloc bdev, without checksum, snapshot or thin, gave 0.45 / 0.93 / 0.87 M.";
const FILE: &str = "Pool and peer each on a file of the same ext4, O_DIRECT, every block written \
    before. Durability `device`.";
const FLUSHED: &str = "Each write is followed by a flush when it has ended, and counts when that \
    has; fio by fdatasync=1. Durability `flush`.";
const CPU: &str = "plinth-stored in `--mode interrupt`, so that what the kernel counts as its CPU \
    time has no spinning in it. Both on files, O_DIRECT.";
const QUEUES: &str = "128 requests under way in either: 4 volumes with a queue of 32 each, or one \
    volume with a queue of 128.";

fn load(
    name: &'static str,
    arguments: &'static [&'static str],
    contenders: &[Who],
    bars: &[Bar],
    note: &'static str,
) -> Case {
    let (contenders, bars) = (contenders.to_vec(), bars.to_vec());
    Case { name, unit: "IOPS", job: Job::Load(arguments), contenders, bars, note }
}

pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, arguments, bar) in [
        ("store-null-1", READ_1, 1.2e6),
        ("store-null-32", READ_32, 4e6),
        ("store-null-128", READ_128, 5e6),
    ] {
        cases.push(load(name, arguments, &[Who::Null], &[Bar::AtLeast(bar)], SPDK_NULL));
    }
    let two_us = Bar::P50AtMost(2.0);
    for (name, arguments, bars) in [
        ("store-memory-read-4k-1", READ_1, vec![two_us]),
        ("store-memory-read-4k-32", READ_32, vec![Bar::AtLeast(1.2e6)]),
        ("store-memory-read-4k-128", READ_128, vec![Bar::AtLeast(1.2e6)]),
        ("store-memory-write-4k-1", WRITE_1, vec![two_us]),
        ("store-memory-write-4k-32", WRITE_32, vec![Bar::AtLeast(0.8e6)]),
        ("store-memory-write-4k-128", WRITE_128, vec![Bar::AtLeast(0.8e6)]),
        ("store-memory-read-128k-32", LARGE_READ, vec![]),
        ("store-memory-write-128k-32", LARGE_WRITE, vec![]),
    ] {
        cases.push(load(name, arguments, &[Who::Memory], &bars, MEMORY));
    }
    let whos = [Who::MemoryFour, Who::MemoryOne];
    cases.push(load("store-queues-4", READ_32, &whos, &[Bar::Ratio(1, 0.9)], QUEUES));
    let fair = [Bar::UnfairnessAtMost(10.0)];
    let note = "16 volumes with one request under way each, served by one thread of the client.";
    cases.push(load("store-fair-16", READ_1, &[Who::MemorySixteen], &fair, note));
    let peers = [Who::File, Who::Fio, Who::QemuStorageDaemon];
    let (reads, writes) = (vec![Bar::Ratio(1, 0.95)], vec![Bar::Ratio(1, 0.8)]);
    let amplification = vec![Bar::Ratio(1, 0.8), Bar::AmplificationAtMost(1.3)];
    for (name, arguments, bars) in [
        ("store-file-read-4k-1", READ_1, &reads),
        ("store-file-read-4k-32", READ_32, &reads),
        ("store-file-read-4k-128", READ_128, &reads),
        ("store-file-write-4k-1", WRITE_1, &writes),
        ("store-file-write-4k-32", WRITE_32, &amplification),
        ("store-file-write-4k-128", WRITE_128, &writes),
        ("store-file-read-128k-32", LARGE_READ, &reads),
        ("store-file-write-128k-32", LARGE_WRITE, &reads),
    ] {
        cases.push(load(name, arguments, &peers, bars, FILE));
    }
    let flushed = [Who::FileFlush, Who::Fio];
    let bars = [Bar::Ratio(1, 0.9)];
    cases.push(load("store-file-write-flush-4k-1", DURABLE_1, &flushed, &bars, FLUSHED));
    let bars = [Bar::Ratio(1, 3.0)];
    cases.push(load("store-file-write-flush-4k-32", DURABLE_32, &flushed, &bars, FLUSHED));
    let note = "The same writes as store-file-write-4k-32 on a pool of durability `flush`.";
    cases.push(load("store-file-write-4k-32-flush", WRITE_32, &[Who::FileFlush], &[], note));
    let sleepers = [Who::FileInterrupt, Who::QemuStorageDaemon];
    let bars = [Bar::CpuRatioAtMost(1, 0.5)];
    cases.push(load("store-cpu-read-4k-32", READ_32, &sleepers, &bars, CPU));
    cases.push(load("store-cpu-write-4k-32", WRITE_32, &sleepers, &bars, CPU));
    for measure in Measure::ALL {
        let (name, unit, note) = (measure.name(), measure.unit(), measure.note());
        let (job, contenders) = (Job::Measure(measure), Vec::new());
        cases.push(Case { name, unit, job, contenders, bars: Vec::new(), note });
    }
    cases
}
