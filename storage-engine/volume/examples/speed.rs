// SPDX-License-Identifier: Apache-2.0
//! What volumes and store cost by themselves: 4 KiB requests on one core, on memory.
//!
//! `cargo run --release -p plinth-volume --example speed [seconds]`

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "it measures time")]
#![allow(clippy::cast_precision_loss, reason = "rates are rounded")]

use plinth_disks::flat::FlatDisk;
use plinth_disks::memory::Seed;
use plinth_ids::{PoolId, VolumeId};
use plinth_store::{Durability, FormatOptions, IoBuffer, Store, StoreOptions};
use plinth_volume::{VolumeHandle, VolumeRequest, VolumeSpec, VolumeTag, Volumes};
use std::io::Write;
use std::time::{Duration, Instant};

const VOLUME_BYTES: u64 = 256 << 20;

fn settle(volumes: &mut Volumes<FlatDisk>) {
    let mut done = Vec::new();
    while !volumes.is_idle() {
        volumes.poll(Duration::ZERO, &mut done);
    }
}

fn prepare() -> (Volumes<FlatDisk>, VolumeHandle) {
    let mut disk = FlatDisk::new(1 << 30);
    let options = FormatOptions { id: [1; 16], limits: None };
    Store::format(&mut disk, &options).expect("a GiB is enough");
    let options = StoreOptions { durability: Durability::Device, ..StoreOptions::default() };
    let store = Store::mount(disk, options).expect("it was just formatted");
    let mut volumes = Volumes::start(store, PoolId(1));
    settle(&mut volumes);
    let name = "speed".parse().expect("a good name");
    let spec = VolumeSpec { volume: VolumeId(1), name, size: VOLUME_BYTES, created_at: 0 };
    let taken = volumes.submit(VolumeTag(0), VolumeRequest::Create { spec });
    assert!(taken.is_ok(), "the queue is empty");
    settle(&mut volumes);
    let volume = volumes.attach(VolumeId(1)).expect("it was just made");
    for offset in (0..VOLUME_BYTES).step_by(1 << 20) {
        let (length, buffer) = (1 << 20, IoBuffer::zeroed(1 << 20));
        let taken =
            volumes.submit(VolumeTag(0), VolumeRequest::Write { volume, offset, length, buffer });
        assert!(taken.is_ok(), "one request at a time");
        settle(&mut volumes);
    }
    (volumes, volume)
}

/// Requests a second at this queue depth.
fn measure(depth: usize, is_write: bool, length: Duration) -> f64 {
    let (mut volumes, volume) = prepare();
    let mut seed = Seed(1);
    let mut free: Vec<IoBuffer> = (0..depth).map(|_| IoBuffer::zeroed(4096)).collect();
    let mut done = Vec::new();
    let (mut count, mut failed) = (0_u64, 0_u64);
    let start = Instant::now();
    while start.elapsed() < length {
        for _ in 0..64 {
            while let Some(buffer) = free.pop() {
                let offset = seed.below(VOLUME_BYTES / 4096) * 4096;
                let (tag, length) = (VolumeTag(0), 4096);
                let request = if is_write {
                    VolumeRequest::Write { volume, offset, length, buffer }
                } else {
                    VolumeRequest::Read { volume, offset, length, buffer }
                };
                assert!(volumes.submit(tag, request).is_ok(), "the queue is deeper than this");
            }
            volumes.poll(Duration::ZERO, &mut done);
            for done in done.drain(..) {
                count += 1;
                failed += u64::from(done.result.is_err());
                free.extend(done.buffer);
            }
        }
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    assert_eq!(failed, 0, "every request succeeds");
    rate
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let length = Duration::from_secs_f64(seconds);
    let mut out = std::io::stdout().lock();
    for (name, is_write) in [("read", false), ("overwrite", true)] {
        for depth in [1, 32, 128] {
            let rate = measure(depth, is_write, length);
            let line = writeln!(out, "4 KiB random {name}, depth {depth}: {rate:.0} requests/s");
            line.expect("the report can be printed");
        }
    }
}
