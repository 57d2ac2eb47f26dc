// SPDX-License-Identifier: Apache-2.0
#![allow(unsafe_code, reason = "an allocator that counts can only be written so")]
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]
//! The hot paths allocate nothing once every place has seen its longest chain.

use plinth_backends::blk::{BlkClass, BlkDevice, BlkOptions, BlkStatus};
use plinth_backends::fake::{FakeDisk, FakeNic};
use plinth_backends::net::{HEAD_MAX, NetDevice, Offload, OutboundBurst};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it came; the count is a plain cell of the
// thread, whose initial value is a constant, so that counting allocates nothing itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many allocations `work` makes on this thread.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.with(Cell::get);
    work();
    COUNT.with(Cell::get) - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(vec![1u8; 100])), 1);
}

#[test]
fn a_burst_of_packets_allocates_nothing() {
    let features = 1 << 15 | 1 << 1 | 1;
    let (mut a, mut b) = (FakeNic::new(features, 128), FakeNic::new(features, 128));
    let (mut left, mut right) = (NetDevice::new(1), NetDevice::new(1));
    for index in 0..2 {
        left.handle(a.guest.start(index, 0, None));
        right.handle(b.guest.start(index, 0, None));
    }
    b.provide(100, 1024);
    let mut burst = OutboundBurst::new();
    let mut counts = Vec::new();
    for _ in 0..6 {
        for _ in 0..20 {
            a.send(&[7; 1514], Offload::default(), 700);
        }
        counts.push(allocations(|| {
            assert_eq!(left.receive(0, &mut burst), 20);
            for packet in burst.iter() {
                let mut head = [0; HEAD_MAX];
                let head = &mut head[..packet.head_length()];
                packet.copy_head(head);
                right.deliver(0, head, packet.payload(head.len()), packet.offload()).unwrap();
            }
            left.release(&mut burst);
            left.flush();
            right.flush();
        }));
        a.reclaim();
        while b.receive().is_some() {}
    }
    assert_eq!(counts[1..], [0; 5], "the first burst may: {counts:?}");
}

#[test]
fn a_batch_of_requests_allocates_nothing() {
    let mut disk = FakeDisk::new(1, 64, 64 << 20);
    let options = BlkOptions {
        capacity: 4096,
        is_read_only: false,
        queues: 1,
        serial: [0; 20],
        discard_unit: 64,
    };
    let mut device = BlkDevice::new(Arc::new(BlkClass::new(options)));
    device.handle(disk.guest.start(0, 0, None));
    let (mut requests, mut buffer) = (Vec::with_capacity(64), [0; 4096]);
    let mut counts = Vec::new();
    for _ in 0..20 {
        for sector in 0..10 {
            disk.read(0, sector, 4096);
            disk.write(0, sector, &[3; 4096]);
        }
        counts.push(allocations(|| {
            requests.clear();
            assert_eq!(device.poll(&mut requests, 64), 20);
            for request in &requests {
                let _ = device.copy_in(request.tag, 0, &buffer);
                let _ = device.copy_out(request.tag, 0, &mut buffer);
                device.complete(request.tag, BlkStatus::Ok);
            }
            device.flush();
        }));
        while disk.poll(0).is_some() {}
    }
    assert_eq!(counts[10..], [0; 10], "the first batches may: {counts:?}");
}
