// SPDX-License-Identifier: Apache-2.0
//! What a request costs when nothing stands below: taken from the ring, judged, answered.
//!
//! `alone`: one thread plays both sides in turns, and only the device's turn is timed, so that no
//! traffic between caches is in the figure.
//! `pair`: a driver on another thread keeps the ring full; the rate is that of windows of 1 ms. On a
//! busy machine the best windows say what the code costs, because nothing else ran in them.
//!
//!     cargo run --release -p plinth-backends --example answer

use plinth_backends::Shrinkable;
use plinth_backends::blk::{BlkClass, BlkDevice, BlkOptions, BlkRequest, BlkStatus};
use plinth_backends::fake::FakeGuest;
use plinth_guest_memory::GuestAddress;
use plinth_virtio::{Buffer, Inflight, SlotQueue};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const BURST: usize = 64;
const SIZE: u16 = 512;

/// A driver that reads the same blocks again and again.
struct Driver {
    queue: SlotQueue,
    heads: Vec<GuestAddress>,
    free: Vec<u16>,
    guest: FakeGuest,
}

impl Driver {
    fn new(depth: u16) -> (Self, BlkDevice) {
        let mut guest = FakeGuest::new(1, SIZE, 0, 64 << 20);
        let mut queue = SlotQueue::new(guest.memory(), &guest.layouts[0], 3).expect("a ring");
        let _plan = queue.restart(true, true);
        let heads: Vec<_> = (0..depth).map(|_| guest.allocate(64)).collect();
        for (slot, head) in (0..).zip(&heads) {
            let data = guest.allocate(4096);
            let buffer = |address, length, is_writable| Buffer { address, length, is_writable };
            let status = GuestAddress(head.0 + 16);
            queue.set_chain(
                slot,
                &[buffer(*head, 16, false), buffer(data, 4096, true), buffer(status, 1, true)],
            );
        }
        queue.want_calls(false);
        let record = Inflight::create(1, SIZE).expect("a record");
        let record =
            Inflight::open(&record, 0, Inflight::bytes(1, SIZE), 1, SIZE, Shrinkable::Refuse)
                .and_then(|record| record.queue(0))
                .expect("a record");
        let class = BlkClass::new(BlkOptions {
            capacity: 1 << 21,
            is_read_only: false,
            queues: 1,
            serial: [0; 20],
            discard_unit: 64,
        });
        let mut device = BlkDevice::new(Arc::new(class));
        device.handle(guest.start(0, 0, Some(record)));
        (Self { queue, heads, free: (0..depth).collect(), guest }, device)
    }

    fn fill(&mut self, sector: &mut u64) {
        let memory = Arc::clone(&self.guest.own.memory);
        while let Some(slot) = self.free.pop() {
            let mut header = [0; 17];
            *sector = sector.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            header[8..16].copy_from_slice(&(*sector >> 46 << 3).to_le_bytes());
            memory.copy_in(self.heads[usize::from(slot)], &header).expect("it is memory");
            self.queue.offer(slot);
        }
        self.queue.publish();
    }

    fn collect(&mut self) {
        let memory = &self.guest.own.memory;
        while let Some(used) = self.queue.take_used().expect("the device keeps the rules") {
            if let Some(slot) = self.queue.peek_used(4) {
                memory.prefetch(self.heads[usize::from(slot)]);
            }
            self.free.push(used.slot);
        }
    }
}

fn serve(device: &mut BlkDevice, requests: &mut Vec<BlkRequest>) -> usize {
    let count = device.poll(requests, BURST);
    for request in requests.drain(..) {
        device.complete(request.tag, BlkStatus::Ok);
    }
    device.flush();
    count
}

fn alone(depth: u16) {
    let (mut driver, mut device) = Driver::new(depth);
    let (mut requests, mut sector, mut turns) = (Vec::with_capacity(BURST), 1, Vec::new());
    for _ in 0..2_000_000 / u32::from(depth) {
        driver.fill(&mut sector);
        let start = Instant::now();
        let mut count = 0;
        while count < usize::from(depth) {
            count += serve(&mut device, &mut requests);
        }
        turns.push(start.elapsed());
        driver.collect();
    }
    turns.sort_unstable();
    let each = |turn: Duration| turn.as_secs_f64() * 1e9 / f64::from(depth);
    let (best, middle) = (each(turns[turns.len() / 100]), each(turns[turns.len() / 2]));
    println!("alone  depth {depth:3}: {best:6.1} ns (best of a hundred), {middle:6.1} ns (median)");
}

fn pair(depth: u16) {
    let (mut driver, mut device) = Driver::new(depth);
    let is_over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_over);
    let thread = std::thread::spawn(move || {
        let mut sector = 1;
        // Relaxed: a flag by itself.
        while !seen.load(Ordering::Relaxed) {
            driver.fill(&mut sector);
            driver.collect();
        }
        drop(driver);
    });
    let mut requests = Vec::with_capacity(BURST);
    let (begin, mut rates) = (Instant::now(), Vec::new());
    while begin.elapsed() < Duration::from_secs(2) {
        let (start, mut count) = (Instant::now(), 0);
        let mut rounds = 0u32;
        loop {
            count += serve(&mut device, &mut requests);
            rounds += 1;
            if rounds.is_multiple_of(16) && start.elapsed() > Duration::from_millis(1) {
                break;
            }
        }
        rates.push(count as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
    is_over.store(true, Ordering::Relaxed);
    thread.join().expect("the driver ended");
    rates.sort_by(f64::total_cmp);
    let at = |share: usize| rates[(rates.len() - 1) * share / 100];
    println!(
        "pair   depth {depth:3}: {:5.2} M/s (median), {:5.2} (90 %), {:5.2} (99 %)",
        at(50),
        at(90),
        at(99)
    );
}

fn main() {
    for depth in [1, 32, 128] {
        alone(depth);
        pair(depth);
    }
}
