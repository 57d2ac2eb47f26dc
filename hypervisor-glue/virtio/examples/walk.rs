// SPDX-License-Identifier: Apache-2.0
//! Measures the device side of the ring: nanoseconds for taking a chain and giving it back.
//!
//! One thread plays both sides in turns of a burst; only the device's turn is timed. So the
//! figure has no traffic between caches of two cores in it, and is the cost of the walker alone.

use plinth_guest_memory::{GuestAddress, OwnMemory};
use plinth_virtio::{Chain, DeviceQueue, DriverQueue, QueueLayout, RingFeatures, Segment};
use std::time::{Duration, Instant};

const SIZE: u16 = 256;
const BURST: u32 = 32;
const BURSTS: u32 = 100_000;

fn main() {
    println!("{:28} {:>12} {:>12}", "chain", "ns (best)", "ns (median)");
    let shapes = [
        ("1 descriptor", 1, false),
        ("3 descriptors", 3, false),
        ("3 descriptors, indirect", 3, true),
    ];
    for (name, count, is_indirect) in shapes {
        for event_index in [false, true] {
            let mut runs: Vec<f64> =
                (0..9).map(|_| measure(count, is_indirect, event_index)).collect();
            runs.sort_by(f64::total_cmp);
            let name = if event_index { format!("{name}, events") } else { name.to_owned() };
            println!("{name:28} {:12.1} {:12.1}", runs[0], runs[4]);
        }
    }
}

/// Nanoseconds a chain in one run.
fn measure(count: u64, is_indirect: bool, event_index: bool) -> f64 {
    let own = OwnMemory::new(GuestAddress(0), 1 << 20).expect("a memory file can be made");
    let layout = QueueLayout::contiguous(SIZE, GuestAddress(0));
    let features = RingFeatures { event_index, indirect: is_indirect, ..RingFeatures::default() };
    let mut driver =
        DriverQueue::new(own.memory.clone(), &layout, features).expect("the ring lies in memory");
    let mut device = DeviceQueue::new(own.memory.clone(), &layout, features, 0, None)
        .expect("the ring lies in memory");
    let segments: Vec<Segment> = (0..count)
        .map(|at| Segment { address: GuestAddress(0x8000 + 0x1000 * at), length: 512 })
        .collect();
    let mut chain = Chain::new();
    let mut spent = Duration::ZERO;
    for _ in 0..BURSTS {
        for slot in 0..u64::from(BURST) {
            let added = if is_indirect {
                let table = GuestAddress(0x4_0000 + 64 * slot);
                driver.add_indirect(table, &segments[..1], &segments[1..])
            } else {
                driver.add(&segments[..1], &segments[1..])
            };
            added.expect("the ring has room for a burst");
        }
        driver.publish();
        let start = Instant::now();
        while device.pop(&mut chain).expect("the driver keeps the rules") {
            device.push(chain.head(), 0);
        }
        device.publish();
        spent += start.elapsed();
        while driver.poll().expect("the device keeps the rules").is_some() {}
    }
    spent.as_secs_f64() * 1e9 / f64::from(BURST * BURSTS)
}
