// SPDX-License-Identifier: Apache-2.0
//! What volumes and store cost by themselves: requests of 4 KiB on one core, on memory or on a
//! file through io_uring.
//!
//! ```text
//! cargo run --release -p plinth-volume --example speed -- [memory | memory512 | FILE] [seconds] [only] [MiB]
//! ```
//! On `memory512` blocks may be torn, so that overwrites go through the journal. `FILE` is an existing file or device, which is formatted. `only` is a part of a line's name,
//! such as `overwrite` or `depth 32`; the last is the volume's size: 512, or so little that the
//! caches hold it and the cost of the code alone is left. CPU time is this thread's; on a busy machine it says more
//! than the rate.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "it measures time")]
#![allow(clippy::cast_precision_loss, reason = "rates are rounded")]

use plinth_disks::flat::FlatDisk;
use plinth_disks::memory::Seed;
use plinth_disks::uring::{DEPTH, Mode, UringDisk};
use plinth_ids::{PoolId, VolumeId};
use plinth_store::{Disk, Durability, FormatOptions, IoBuffer, Store, StoreOptions};
use plinth_volume::{VolumeHandle, VolumeRequest, VolumeSpec, VolumeTag, Volumes};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Load {
    Read,
    Overwrite,
    /// Seven reads to three writes.
    Mixed,
    /// Every write is followed by a flush; the write counts when the flush ended.
    Durable,
}

fn settle<D: Disk>(volumes: &mut Volumes<Store<D>>) {
    let mut done = Vec::new();
    while !volumes.is_idle() {
        volumes.poll(Duration::ZERO, &mut done);
    }
}

fn prepare<D: Disk>(
    mut disk: D,
    durability: Durability,
    size: u64,
) -> (Volumes<Store<D>>, VolumeHandle) {
    let options = FormatOptions { id: [1; 16], limits: None };
    Store::format(&mut disk, &options).expect("a GiB is enough");
    let options = StoreOptions { durability, ..StoreOptions::default() };
    let store = Store::mount(disk, options).expect("it was just formatted");
    let mut volumes = Volumes::start(store, PoolId(1));
    settle(&mut volumes);
    let name = "speed".parse().expect("a good name");
    let spec = VolumeSpec { volume: VolumeId(1), name, size, created_at: 0 };
    let taken = volumes.submit(VolumeTag(0), VolumeRequest::Create { spec });
    assert!(taken.is_ok(), "the queue is empty");
    settle(&mut volumes);
    let volume = volumes.attach(VolumeId(1)).expect("it was just made");
    for offset in (0..size).step_by(1 << 20) {
        let (length, buffer) = (1 << 20, IoBuffer::zeroed(1 << 20));
        let taken =
            volumes.submit(VolumeTag(0), VolumeRequest::Write { volume, offset, length, buffer });
        assert!(taken.is_ok(), "one request at a time");
        settle(&mut volumes);
    }
    (volumes, volume)
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split_whitespace().next().and_then(|word| word.parse().ok());
    Duration::from_nanos(first.unwrap_or(0))
}

#[derive(Debug, Default)]
struct Measured {
    count: u64,
    failed: u64,
    seconds: f64,
    cpu: f64,
    latencies: Vec<Duration>,
    written: u64,
    user: u64,
    flushes: u64,
}

impl Measured {
    fn line(&mut self, name: &str) -> String {
        self.latencies.sort_unstable();
        let at = |percent: usize| {
            let index = self.latencies.len() * percent / 100;
            let found = self.latencies.get(index).or(self.latencies.last());
            found.map_or(0.0, |latency| latency.as_nanos() as f64 / 1000.0)
        };
        let (p50, p99, worst) = (at(50), at(99), at(100));
        let rate = self.count as f64 / self.seconds;
        let each = self.cpu * 1e9 / self.count as f64;
        let amplification = self.written as f64 / (self.user.max(1)) as f64;
        format!(
            "{name}: {rate:.0} requests/s, cpu {each:.0} ns each, p50 {p50:.1} p99 {p99:.1} worst \
             {worst:.0} us, bytes written a byte {amplification:.2}, flushes {}",
            self.flushes
        )
    }
}

/// A queue of this depth, kept full for so long.
fn measure<D: Disk>(
    volumes: &mut Volumes<Store<D>>,
    volume: VolumeHandle,
    (depth, load): (usize, Load),
    length: Duration,
) -> Measured {
    let mut seed = Seed(1);
    let mut free: Vec<(usize, IoBuffer)> =
        (0..depth).map(|number| (number, IoBuffer::zeroed(4096))).collect();
    let mut started = vec![Instant::now(); depth];
    let mut flushing: Vec<Option<IoBuffer>> = (0..depth).map(|_| None).collect();
    let mut done = Vec::new();
    let mut found = Measured { latencies: Vec::with_capacity(4 << 20), ..Measured::default() };
    let before = volumes.store().counters();
    let blocks = volumes.size(volume).expect("it is attached") / 4096;
    let (start, cpu_start) = (Instant::now(), cpu());
    while start.elapsed() < length {
        for _ in 0..64 {
            while let Some((number, buffer)) = free.pop() {
                let offset = seed.below(blocks) * 4096;
                let (tag, length) = (VolumeTag(number as u64), 4096);
                let is_write = match load {
                    Load::Read => false,
                    Load::Overwrite | Load::Durable => true,
                    Load::Mixed => seed.below(10) < 3,
                };
                let request = if is_write {
                    VolumeRequest::Write { volume, offset, length, buffer }
                } else {
                    VolumeRequest::Read { volume, offset, length, buffer }
                };
                // The clock is read for one request of sixteen: it would be a tenth of the cost.
                if number % 16 == 0 {
                    started[number] = Instant::now();
                }
                assert!(volumes.submit(tag, request).is_ok(), "the queue is deeper than this");
            }
            volumes.poll(Duration::ZERO, &mut done);
            for done in done.drain(..) {
                let number = usize::try_from(done.tag.0).expect("a small number");
                found.failed += u64::from(done.result.is_err());
                let buffer = match (load, done.buffer) {
                    (Load::Durable, Some(buffer)) => {
                        flushing[number] = Some(buffer);
                        let request = VolumeRequest::Flush { volume };
                        assert!(volumes.submit(done.tag, request).is_ok(), "there is room");
                        continue;
                    }
                    (Load::Durable, None) => flushing[number].take(),
                    (_, buffer) => buffer,
                };
                found.count += 1;
                if number.is_multiple_of(16) && found.latencies.len() < found.latencies.capacity() {
                    found.latencies.push(started[number].elapsed());
                }
                free.extend(buffer.map(|buffer| (number, buffer)));
            }
        }
    }
    (found.seconds, found.cpu) = (start.elapsed().as_secs_f64(), (cpu() - cpu_start).as_secs_f64());
    settle(volumes);
    let after = volumes.store().counters();
    found.written = after.disk_bytes_written - before.disk_bytes_written;
    found.user = after.user_bytes_written - before.user_bytes_written;
    found.flushes = after.disk_flushes - before.disk_flushes;
    assert_eq!(found.failed, 0, "every request succeeds");
    found
}

fn run<D: Disk>(disk: D, size: u64, length: Duration, only: &str) {
    let (mut volumes, volume) = prepare(disk, Durability::Device, size);
    let loads = [
        ("read", Load::Read),
        ("overwrite", Load::Overwrite),
        ("mixed 70/30", Load::Mixed),
        ("write and flush", Load::Durable),
    ];
    for (name, load) in loads {
        for depth in [1, 32, 128] {
            let name = format!("4 KiB random {name}, depth {depth}");
            if !name.contains(only) {
                continue;
            }
            let line = measure(&mut volumes, volume, (depth, load), length).line(&name);
            writeln!(std::io::stdout().lock(), "{line}").expect("the report can be printed");
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let place = arguments.next().unwrap_or_else(|| "memory".to_owned());
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let only = arguments.next().unwrap_or_default();
    let size = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(512_u64) << 20;
    let length = Duration::from_secs_f64(seconds);
    if let Some(atomic) = place.strip_prefix("memory") {
        let mut disk = FlatDisk::new(1 << 30);
        disk.set_atomic_write_size(atomic.parse().unwrap_or(4096));
        run(disk, size, length, &only);
    } else {
        let disk = UringDisk::open(Path::new(&place), Mode::Worker, DEPTH);
        run(disk.expect("the file can be opened"), size, length, &only);
    }
}
