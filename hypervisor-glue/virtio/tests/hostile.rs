// SPDX-License-Identifier: Apache-2.0
//! Rings that no honest driver makes: each fault has its own name, and none goes further.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use plinth_guest_memory::{
    GuestAddress, GuestMemory, OwnMemory, RegionSpec, Shrinkable, sealed_memfd,
};
use plinth_virtio::{
    Chain, ChainFault, DeviceQueue, DriverQueue, PopFault, QueueError, QueueLayout, RingFault,
    RingFeatures, Segment, copy_in, copy_out,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: u16 = 8;
const MEMORY: u64 = 64 * 1024;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A ring whose every word is written by hand.
struct Ring {
    memory: Arc<GuestMemory>,
    layout: QueueLayout,
    available: u16,
}

impl Ring {
    fn new(memory: Arc<GuestMemory>) -> Self {
        Self { memory, layout: QueueLayout::contiguous(SIZE, GuestAddress(0)), available: 0 }
    }

    fn descriptor_at(
        &self,
        table: u64,
        index: u64,
        (address, length, flags, next): (u64, u32, u16, u16),
    ) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.copy_in(GuestAddress(table + 16 * index), &bytes).unwrap();
    }

    fn descriptor(&self, index: u64, parts: (u64, u32, u16, u16)) {
        self.descriptor_at(0, index, parts);
    }

    fn offer(&mut self, head: u16) {
        let entry = self.layout.available.0 + 4 + 2 * u64::from(self.available % SIZE);
        self.memory.copy_in(GuestAddress(entry), &head.to_le_bytes()).unwrap();
        self.set_index(self.available.wrapping_add(1));
    }

    fn set_index(&mut self, index: u16) {
        self.available = index;
        let place = GuestAddress(self.layout.available.0 + 2);
        self.memory.copy_in(place, &index.to_le_bytes()).unwrap();
    }

    fn device(&self, indirect: bool) -> DeviceQueue {
        let features = RingFeatures { event_index: false, indirect, ..RingFeatures::default() };
        DeviceQueue::new(self.memory.clone(), &self.layout, features, 0, None).unwrap()
    }
}

/// What a device says of descriptors that are written by `write`, the first of them offered.
fn fault(indirect: bool, write: impl FnOnce(&Ring)) -> ChainFault {
    let own = OwnMemory::new(GuestAddress(0), MEMORY).unwrap();
    let mut ring = Ring::new(own.memory.clone());
    write(&ring);
    ring.offer(0);
    let mut device = ring.device(indirect);
    let mut chain = Chain::new();
    let found = match device.pop(&mut chain) {
        Err(PopFault::Chain { head: 0, source }) => source,
        other => panic!("{other:?}"),
    };
    // The chain is given back, and the ring goes on as if nothing had been.
    device.push(chain.head(), 0);
    device.publish();
    ring.descriptor(5, (0x8000, 10, 0, 0));
    ring.offer(5);
    assert_eq!(device.pop(&mut chain), Ok(true));
    assert_eq!(chain.readable(), [Segment { address: GuestAddress(0x8000), length: 10 }]);
    found
}

#[test]
fn a_chain_that_loops() {
    let found = fault(false, |ring| {
        ring.descriptor(0, (0x8000, 1, NEXT, 1));
        ring.descriptor(1, (0x8000, 1, NEXT, 0));
    });
    assert_eq!(found, ChainFault::Loop);
    let found = fault(true, |ring| {
        ring.descriptor(0, (0x4000, 32, INDIRECT, 0));
        ring.descriptor_at(0x4000, 0, (0x8000, 1, NEXT, 1));
        ring.descriptor_at(0x4000, 1, (0x8000, 1, NEXT, 1));
    });
    assert_eq!(found, ChainFault::Loop);
}

#[test]
fn a_chain_that_leads_out_of_its_table() {
    let found = fault(false, |ring| ring.descriptor(0, (0x8000, 1, NEXT, SIZE)));
    assert_eq!(found, ChainFault::NextOutOfRange);
    let found = fault(true, |ring| {
        ring.descriptor(0, (0x4000, 32, INDIRECT, 0));
        ring.descriptor_at(0x4000, 0, (0x8000, 1, NEXT, 2));
    });
    assert_eq!(found, ChainFault::NextOutOfRange);
}

#[test]
fn tables_that_may_not_be() {
    let table = |length, flags| {
        move |ring: &Ring| {
            ring.descriptor(0, (0x4000, length, flags, 1));
            ring.descriptor_at(0x4000, 0, (0x8000, 1, 0, 0));
        }
    };
    assert_eq!(fault(false, table(16, INDIRECT)), ChainFault::IndirectNotNegotiated);
    assert_eq!(fault(true, table(16, INDIRECT | NEXT)), ChainFault::IndirectWithNext);
    for length in [0, 8, 17, 16 * 1025, u32::MAX] {
        assert_eq!(fault(true, table(length, INDIRECT)), ChainFault::IndirectLength, "{length}");
    }
    let found = fault(true, |ring| {
        ring.descriptor(0, (0x4000, 16, INDIRECT, 0));
        ring.descriptor_at(0x4000, 0, (0x5000, 16, INDIRECT, 0));
    });
    assert_eq!(found, ChainFault::IndirectInIndirect);
    let found = fault(true, |ring| ring.descriptor(0, (MEMORY - 8, 16, INDIRECT, 0)));
    assert_eq!(found, ChainFault::OutsideMemory);
    let found = fault(true, |ring| ring.descriptor(0, (u64::MAX - 8, 32, INDIRECT, 0)));
    assert_eq!(found, ChainFault::OutsideMemory);
}

#[test]
fn buffers_that_are_none() {
    let one = |address, length, flags| {
        fault(false, move |ring| ring.descriptor(0, (address, length, flags, 0)))
    };
    assert_eq!(one(0x8000, 0, 0), ChainFault::ZeroLength);
    assert_eq!(one(MEMORY, 1, 0), ChainFault::OutsideMemory);
    assert_eq!(one(MEMORY - 10, 11, WRITE), ChainFault::OutsideMemory);
    assert_eq!(one(u64::MAX, 2, 0), ChainFault::OutsideMemory);
    assert_eq!(one(0x8000, u32::MAX, 0), ChainFault::OutsideMemory);
    let found = fault(false, |ring| {
        ring.descriptor(0, (0x8000, 1, NEXT | WRITE, 1));
        ring.descriptor(1, (0x8000, 1, 0, 0));
    });
    assert_eq!(found, ChainFault::ReadableBehindWritable);
}

#[test]
fn a_chain_of_more_bytes_than_a_length_can_say() {
    // Only a guest with much memory can say so without leaving it: a sparse file will do.
    let length = 3u64 << 30;
    let file = sealed_memfd(c"plinth-test", length).unwrap();
    let spec = RegionSpec { guest: GuestAddress(0), length, frontend: 0, offset: 0 };
    let memory = GuestMemory::map([(spec, file)], Shrinkable::Refuse).unwrap();
    let mut ring = Ring::new(Arc::new(memory));
    ring.descriptor(0, (0, 0x8000_0000, NEXT, 1));
    ring.descriptor(1, (0, 0x8000_0000, 0, 0));
    ring.offer(0);
    let popped = ring.device(false).pop(&mut Chain::new());
    assert_eq!(popped, Err(PopFault::Chain { head: 0, source: ChainFault::TooLong }));
}

#[test]
fn an_indirect_table_may_lie_across_two_regions() {
    let regions = [(0u64, 0x4000u64), (0x4000, 0xC000)].map(|(guest, length)| {
        let spec = RegionSpec {
            guest: GuestAddress(guest),
            length,
            frontend: guest + (1 << 40) * (guest + 1),
            offset: 0,
        };
        (spec, sealed_memfd(c"plinth-test", length).unwrap())
    });
    let memory = GuestMemory::map(regions, Shrinkable::Refuse).unwrap();
    let mut ring = Ring::new(Arc::new(memory));
    ring.descriptor(0, (0x3FF8, 48, INDIRECT, 0));
    ring.descriptor_at(0x3FF8, 0, (0x3F00, 0x200, NEXT, 1));
    ring.descriptor_at(0x3FF8, 1, (0x8000, 7, NEXT | WRITE, 2));
    ring.descriptor_at(0x3FF8, 2, (0x9000, 9, WRITE, 0));
    ring.offer(0);
    let mut chain = Chain::new();
    assert_eq!(ring.device(true).pop(&mut chain), Ok(true));
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (0x200, 16));
    let mut bytes = vec![0; 0x200];
    assert_eq!(copy_out(&ring.memory, chain.readable(), 0, &mut bytes), Ok(true));
}

#[test]
fn a_ring_in_two_regions_is_refused() {
    let regions = [(0u64, 0x1000u64), (0x1000, 0x1000)].map(|(guest, length)| {
        let spec = RegionSpec {
            guest: GuestAddress(guest),
            length,
            frontend: (1 << 40) * (guest + 1),
            offset: 0,
        };
        (spec, sealed_memfd(c"plinth-test", length).unwrap())
    });
    let memory = Arc::new(GuestMemory::map(regions, Shrinkable::Refuse).unwrap());
    let layout = QueueLayout::contiguous(64, GuestAddress(0xF00));
    let refused = DeviceQueue::new(memory, &layout, RingFeatures::default(), 0, None);
    assert!(matches!(refused, Err(QueueError::Place { part: "descriptor table", .. })));
}

#[test]
fn an_index_that_jumps_ends_the_ring() {
    let own = OwnMemory::new(GuestAddress(0), MEMORY).unwrap();
    let mut ring = Ring::new(own.memory.clone());
    let mut device = ring.device(false);
    ring.set_index(SIZE + 1);
    let jump = RingFault::IndexJump { available: SIZE + 1, taken: 0, size: SIZE };
    assert_eq!(device.pop(&mut Chain::new()), Err(PopFault::Ring { source: jump }));
    assert_eq!(device.arm_kicks(), Err(jump));
    ring.set_index(u16::MAX);
    assert!(matches!(device.pop(&mut Chain::new()), Err(PopFault::Ring { .. })), "backwards, too");
}

#[test]
fn a_head_that_is_none_and_a_head_given_twice_end_the_ring() {
    let own = OwnMemory::new(GuestAddress(0), MEMORY).unwrap();
    let mut ring = Ring::new(own.memory.clone());
    ring.descriptor(3, (0x8000, 1, 0, 0));
    ring.offer(3);
    ring.offer(3);
    ring.offer(SIZE);
    let mut device = ring.device(false);
    let mut chain = Chain::new();
    assert_eq!(device.pop(&mut chain), Ok(true));
    let twice = RingFault::HeadTwice { head: 3 };
    assert_eq!(device.pop(&mut chain), Err(PopFault::Ring { source: twice }));
    device.push(3, 0);
    assert_eq!(device.pop(&mut chain), Ok(true), "given back, it may come again");
    let out = RingFault::HeadOutOfRange { head: SIZE, size: SIZE };
    assert_eq!(device.pop(&mut chain), Err(PopFault::Ring { source: out }));
}

#[test]
fn a_base_that_does_not_fit_the_used_index_is_refused() {
    let own = OwnMemory::new(GuestAddress(0), MEMORY).unwrap();
    let ring = Ring::new(own.memory.clone());
    let open = |base| {
        DeviceQueue::new(own.memory.clone(), &ring.layout, RingFeatures::default(), base, None)
    };
    assert!(open(SIZE).is_ok());
    assert!(matches!(open(SIZE + 1), Err(QueueError::State { .. })));
    assert!(matches!(open(u16::MAX), Err(QueueError::State { .. })));
}

/// A guest that rewrites its descriptors all the time while the device walks them: what the
/// device uses was checked, so no copy ever fails, whatever stands there at that moment.
#[test]
fn descriptors_that_change_after_the_check_change_nothing() {
    let own = OwnMemory::new(GuestAddress(0), MEMORY).unwrap();
    let mut ring = Ring::new(own.memory.clone());
    let good = [(0x8000, 64, NEXT, 1), (0x9000, 64, WRITE, 0)];
    let bad = [(u64::MAX - 7, u32::MAX, NEXT | INDIRECT, 7), (MEMORY - 1, 4096, 0, 1)];
    for (index, parts) in (0..).zip(good) {
        ring.descriptor(index, parts);
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let racer = {
        let (ring, is_over) = (Ring::new(own.memory.clone()), is_over.clone());
        std::thread::spawn(move || {
            let mut rounds = 0u64;
            while !is_over.load(Ordering::Relaxed) {
                for parts in [bad, good] {
                    for (index, parts) in (0..).zip(parts) {
                        ring.descriptor(index, parts);
                    }
                }
                rounds += 1;
            }
            rounds
        })
    };
    let mut device = ring.device(true);
    let mut chain = Chain::new();
    let mut buffer = [0; 64];
    let (mut whole, mut broken) = (0, 0);
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while whole.min(broken) < 1000 {
        assert!(std::time::Instant::now() < patience, "{whole} whole and {broken} broken chains");
        ring.offer(0);
        match device.pop(&mut chain) {
            Ok(true) => {
                whole += 1;
                for segment in chain.readable().iter().chain(chain.writable()) {
                    assert!(own.memory.check(segment.address, u64::from(segment.length)).is_ok());
                }
                let length = chain.readable_bytes().min(64) as usize;
                assert_eq!(
                    copy_out(&own.memory, chain.readable(), 0, &mut buffer[..length]),
                    Ok(true)
                );
                let length = chain.writable_bytes().min(64) as usize;
                assert_eq!(copy_in(&own.memory, chain.writable(), 0, &buffer[..length]), Ok(true));
            }
            Err(PopFault::Chain { .. }) => broken += 1,
            other => panic!("{other:?}"),
        }
        device.push(chain.head(), 0);
        device.publish();
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(racer.join().unwrap() > 0);
}

/// Both sides sleep whenever they may, on two threads: if a wake-up were lost, both would sleep
/// for ever. A wake-up here is a flag that the sleeper waits for.
#[test]
fn no_wake_up_is_lost_between_two_threads() {
    for event_index in [false, true] {
        let own = OwnMemory::new(GuestAddress(0), MEMORY).unwrap();
        let layout = QueueLayout::contiguous(SIZE, GuestAddress(0));
        let features = RingFeatures { event_index, indirect: false, ..RingFeatures::default() };
        let mut driver = DriverQueue::new(own.memory.clone(), &layout, features).unwrap();
        let mut device = DeviceQueue::new(own.memory.clone(), &layout, features, 0, None).unwrap();
        let [kick, call] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let rounds = 60_000u32;
        // Waits for the flag; a lost wake-up ends the test instead of hanging it.
        let sleep = |flag: &AtomicBool, who: &str| {
            let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while !flag.swap(false, Ordering::AcqRel) {
                assert!(std::time::Instant::now() < patience, "{who} sleeps for ever");
                std::thread::yield_now();
            }
        };
        let device_side = {
            let (kick, call) = (kick.clone(), call.clone());
            std::thread::spawn(move || {
                let (mut chain, mut done) = (Chain::new(), 0);
                while done < rounds {
                    device.disarm_kicks();
                    while device.pop(&mut chain).unwrap() {
                        device.push(chain.head(), done);
                        done += 1;
                        if device.publish() {
                            call.store(true, Ordering::Release);
                        }
                    }
                    if done < rounds && !device.arm_kicks().unwrap() {
                        sleep(&kick, "the device");
                    }
                }
            })
        };
        let (mut sent, mut received) = (0, 0);
        while received < rounds {
            driver.disarm_calls();
            while sent < rounds && driver.free_count() > 0 {
                driver.add(&[Segment { address: GuestAddress(0x8000), length: 1 }], &[]).unwrap();
                sent += 1;
                if driver.publish() {
                    kick.store(true, Ordering::Release);
                }
            }
            while let Some(used) = driver.poll().unwrap() {
                assert_eq!(used.length, received);
                received += 1;
            }
            let is_waiting = driver.free_count() == 0 || sent == rounds;
            if received < rounds && is_waiting && !driver.arm_calls() {
                sleep(&call, "the driver");
            }
        }
        device_side.join().unwrap();
    }
}
