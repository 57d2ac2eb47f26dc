// SPDX-License-Identifier: Apache-2.0
//! What a hop costs: `cargo run --release -p plinth-relay --example hop [asker's CPU] [owner's]`.
//!
//! Two pinned threads, one with a store that answers at once, so all that is measured is the way
//! there and back. Both spin; nobody sleeps.
#![allow(clippy::unwrap_used, reason = "a measurement may stop where it stands")]
#![allow(clippy::print_stdout, reason = "printing is what it is for")]
#![allow(clippy::disallowed_methods, reason = "who runs it says where")]

use plinth_ids::{Moment, PoolId};
use plinth_relay::{RelayStore, relay};
use plinth_rt::{Bell, cycles, pin_to};
use plinth_store::{
    IoBuffer, Level, ObjectId, ObjectKey, ObjectStore, PgId, StoreAnswer, StoreCapacity,
    StoreCompletion, StoreRequest, StoreState, StoreTag,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Answers in its next round.
#[derive(Default)]
struct Echo {
    taken: Vec<(StoreTag, StoreRequest)>,
}

impl ObjectStore for Echo {
    fn submit(&mut self, tag: StoreTag, request: StoreRequest) -> Result<(), StoreRequest> {
        self.taken.push((tag, request));
        Ok(())
    }

    fn poll(&mut self, _: Moment, into: &mut Vec<StoreCompletion>) -> bool {
        let answer = |(tag, request)| match request {
            StoreRequest::Read { buffer, .. } => {
                StoreCompletion { tag, buffer: Some(buffer), result: Ok(StoreAnswer::Read) }
            }
            _ => StoreCompletion { tag, buffer: None, result: Ok(StoreAnswer::Flushed) },
        };
        into.extend(self.taken.drain(..).map(answer));
        false
    }

    fn room(&self) -> usize {
        1024
    }

    fn is_idle(&self) -> bool {
        self.taken.is_empty()
    }

    fn state(&self) -> StoreState {
        StoreState::Writable
    }

    fn capacity(&self) -> StoreCapacity {
        let level = Level::Ok;
        StoreCapacity { total: 1, used: 0, shared: 0, objects: 0, objects_max: 0, level }
    }

    fn take_buffer(&mut self, length: usize) -> IoBuffer {
        IoBuffer::zeroed(length)
    }

    fn put_buffer(&mut self, _: IoBuffer) {}
}

/// Cycles for each of `count` requests, `depth` of them under way.
fn run(near: &mut RelayStore, depth: usize, count: usize) -> u64 {
    let key = ObjectKey { pool: PoolId(1), pg: PgId(0), object: ObjectId(1), snapshot: 0 };
    let mut free: Vec<_> = (0..depth).map(|_| IoBuffer::zeroed(4096)).collect();
    let mut ended = Vec::with_capacity(depth);
    let started = cycles();
    let mut done = 0;
    while done < count {
        while let Some(buffer) = free.pop() {
            let request = StoreRequest::Read { key, offset: 0, length: 4096, buffer };
            near.submit(StoreTag(done as u64), request).unwrap();
        }
        near.poll(Moment::ZERO, &mut ended);
        done += ended.len();
        free.extend(ended.drain(..).filter_map(|completion| completion.buffer));
    }
    let spent = cycles() - started;
    while near.under_way() > 0 {
        near.poll(Moment::ZERO, &mut ended);
    }
    spent / done as u64
}

fn main() {
    let mut cpus = std::env::args().skip(1).map(|text| text.parse::<u32>().unwrap());
    let (asker, owner) = (cpus.next().unwrap_or(0), cpus.next().unwrap_or(1));
    let bell = || Bell::new().unwrap();
    let (mut near, mut host) = relay(Echo::default(), bell(), bell());
    let is_over = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_over);
    let other = std::thread::spawn(move || {
        pin_to(owner).unwrap();
        while !flag.load(Ordering::Relaxed) {
            if !host.poll(Moment::ZERO) {
                std::hint::spin_loop();
            }
        }
    });
    pin_to(asker).unwrap();
    for depth in [1, 8, 32, 128] {
        let mut runs: Vec<_> = (0..9).map(|_| run(&mut near, depth, 300_000)).collect();
        runs.sort_unstable();
        println!(
            "depth {depth}: {} cycles for a request there and back (of nine runs: {} to {})",
            runs[4], runs[0], runs[8]
        );
    }
    is_over.store(true, Ordering::Relaxed);
    other.join().unwrap();
}
