// SPDX-License-Identifier: Apache-2.0
//! What a snapshot, a clone and the first overwrite behind a snapshot cost by themselves, on the
//! flat memory disk: the median time from a request to its end, one request at a time.
//!
//! ```text
//! cargo run --release -p plinth-volume --example snapshots
//! ```

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "it measures time")]
#![allow(clippy::cast_precision_loss, reason = "times are rounded")]

use plinth_disks::flat::FlatDisk;
use plinth_ids::{PoolId, SnapshotId, VolumeId};
use plinth_store::{Durability, FormatOptions, IoBuffer, Store, StoreOptions};
use plinth_volume::{SnapshotSpec, VolumeHandle, VolumeRequest, VolumeSpec, VolumeTag, Volumes};
use std::io::Write;
use std::time::{Duration, Instant};

const OBJECT: u64 = 4 << 20;
/// Objects with data; the volume itself is a TiB.
const OBJECTS: u64 = 2048;

type Pool = Volumes<Store<FlatDisk>>;

fn run(pool: &mut Pool, request: VolumeRequest) -> Duration {
    let start = Instant::now();
    assert!(pool.submit(VolumeTag(0), request).is_ok(), "one request at a time");
    let mut done = Vec::new();
    while done.is_empty() {
        pool.poll(Duration::ZERO, &mut done);
    }
    let took = start.elapsed();
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    while !pool.is_idle() {
        pool.poll(Duration::ZERO, &mut done);
    }
    took
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn write(pool: &mut Pool, volume: VolumeHandle, offset: u64) -> Duration {
    let (length, buffer) = (4096, IoBuffer::zeroed(4096));
    run(pool, VolumeRequest::Write { volume, offset, length, buffer })
}

fn main() {
    let mut disk = FlatDisk::new(1 << 30);
    let limits = plinth_store::LayoutLimits { journal_length: 32 << 20, slot_count: 16_384 };
    let options = FormatOptions { id: [1; 16], limits: Some(limits) };
    Store::format(&mut disk, &options).expect("a GiB is enough");
    let options = StoreOptions { durability: Durability::Device, ..StoreOptions::default() };
    let store = Store::mount(disk, options).expect("it was just formatted");
    let mut pool = Volumes::start(store, PoolId(1));
    while !pool.is_idle() {
        pool.poll(Duration::ZERO, &mut Vec::new());
    }
    let spec = |volume: u64, size| VolumeSpec {
        volume: VolumeId(volume),
        name: format!("v-{volume}").parse().expect("a good name"),
        size,
        created_at: 0,
    };
    run(&mut pool, VolumeRequest::Create { spec: spec(1, 1 << 40) });
    let disk = pool.attach(VolumeId(1)).expect("it was just made");
    for object in 0..OBJECTS {
        write(&mut pool, disk, object * OBJECT);
    }
    let plain: Vec<_> = (0..OBJECTS).map(|at| write(&mut pool, disk, at * OBJECT)).collect();
    let take = |snapshot: u64| VolumeRequest::SnapshotCreate {
        spec: SnapshotSpec {
            volume: VolumeId(1),
            snapshot: SnapshotId(snapshot),
            name: format!("s-{snapshot}").parse().expect("a good name"),
            identity: [1; 16],
            created_at: 0,
        },
    };
    let taken: Vec<_> = (1..=32).map(|number| run(&mut pool, take(number))).collect();
    let first: Vec<_> = (0..OBJECTS).map(|at| write(&mut pool, disk, at * OBJECT)).collect();
    let second: Vec<_> = (0..OBJECTS).map(|at| write(&mut pool, disk, at * OBJECT)).collect();
    let cloned = (2..34).map(|volume| {
        let (source, snapshot) = (VolumeId(1), Some(SnapshotId(1)));
        run(&mut pool, VolumeRequest::Clone { source, snapshot, spec: spec(volume, 1 << 40) })
    });
    let cloned: Vec<_> = cloned.collect();
    let lines = [
        ("snapshot", taken),
        ("clone", cloned),
        ("4 KiB overwrite, no snapshot", plain),
        ("first 4 KiB overwrite of an object after one", first),
        ("the next one", second),
    ];
    let mut out = std::io::stdout().lock();
    for (name, times) in lines {
        let line = writeln!(out, "{name}: {:.1} us", median(times));
        line.expect("the report can be printed");
    }
}
