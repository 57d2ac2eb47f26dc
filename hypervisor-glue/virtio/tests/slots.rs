// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]
//! The driver side in slots, against a device that is written out word by word.

use plinth_guest_memory::{GuestAddress, GuestMemory, OwnMemory};
use plinth_virtio::{QueueLayout, RingPlan, SlotQueue, UsedFault, UsedSlot};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const USED_NO_NOTIFY: u16 = 1;

const fn plus(address: GuestAddress, offset: u64) -> GuestAddress {
    GuestAddress(address.0 + offset)
}

/// What a device sees and does, on the same memory.
struct Device {
    memory: Arc<GuestMemory>,
    plan: RingPlan,
    next: u16,
    used: u16,
}

impl Device {
    fn new(memory: &OwnMemory, plan: RingPlan) -> Self {
        let (next, used) = (plan.base, plan.base);
        Self { memory: Arc::clone(&memory.memory), plan, next, used }
    }

    fn take(&mut self) -> Option<u16> {
        let available = self.plan.layout.available;
        let index = self.memory.u16_at(plus(available, 2)).unwrap().load(Ordering::Acquire);
        if index == self.next {
            return None;
        }
        let entry = u64::from(self.next % self.plan.layout.size);
        self.next = self.next.wrapping_add(1);
        let head = self.memory.u16_at(plus(available, 4 + 2 * entry)).unwrap();
        Some(head.load(Ordering::Relaxed))
    }

    fn give(&mut self, head: u32, length: u32) {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&head.to_le_bytes());
        bytes[4..].copy_from_slice(&length.to_le_bytes());
        let entry = u64::from(self.used % self.plan.layout.size);
        self.memory.copy_in(plus(self.plan.layout.used, 4 + 8 * entry), &bytes).unwrap();
        self.used = self.used.wrapping_add(1);
        let index = self.memory.u16_at(plus(self.plan.layout.used, 2)).unwrap();
        index.store(self.used, Ordering::Release);
    }
}

/// Eight descriptors in slots of two.
fn ring(memory: &OwnMemory, base: u64) -> SlotQueue {
    let layout = QueueLayout::contiguous(8, GuestAddress(base));
    SlotQueue::new(Arc::clone(&memory.memory), &layout, 2).unwrap()
}

fn pair() -> (OwnMemory, SlotQueue, Device) {
    let memory = OwnMemory::new(GuestAddress(0), 1 << 20).unwrap();
    let mut ring = ring(&memory, 0);
    let plan = ring.restart(false, false);
    let device = Device::new(&memory, plan);
    (memory, ring, device)
}

#[test]
fn chains_go_out_and_come_back_for_ever() {
    let (_memory, mut ring, mut device) = pair();
    // More than 65536 rounds, so that every index wraps.
    for round in 0..70_000u32 {
        let slot = u16::try_from(round % 4).unwrap();
        ring.offer(slot);
        assert_eq!(device.take(), None, "not before it is published");
        assert!(ring.publish());
        let head = device.take().unwrap();
        assert_eq!(head, slot * 2);
        assert_eq!(ring.take_used(), Ok(None));
        device.give(u32::from(head), round);
        assert_eq!(ring.take_used(), Ok(Some(UsedSlot { slot, length: round })));
    }
}

#[test]
fn a_backend_that_gives_back_what_it_never_had_is_named() {
    let (_memory, mut ring, mut device) = pair();
    device.give(3, 0);
    assert_eq!(ring.take_used(), Err(UsedFault::NotTaken { head: 3 }));
    device.give(80, 0);
    assert_eq!(ring.take_used(), Err(UsedFault::NotTaken { head: 80 }));
    device.give(4, 0);
    assert_eq!(ring.take_used(), Err(UsedFault::NotTaken { head: 4 }));
}

#[test]
fn what_was_out_is_offered_again_to_a_backend_that_forgot() {
    let (memory, mut ring, mut device) = pair();
    (0..4).for_each(|slot| ring.offer(slot));
    ring.publish();
    let heads: Vec<u16> = std::iter::from_fn(|| device.take()).collect();
    assert_eq!(heads, [0, 2, 4, 6]);
    // The second comes back and is taken, the fourth comes back and is not taken yet.
    device.give(2, 0);
    assert_eq!(ring.take_used().unwrap().unwrap().slot, 1);
    device.give(6, 0);
    let mut reborn = Device::new(&memory, ring.restart(false, false));
    let heads: Vec<u16> = std::iter::from_fn(|| reborn.take()).collect();
    assert_eq!(heads, [0, 4]);
    heads.iter().for_each(|head| reborn.give(u32::from(*head), 0));
    let slots: Vec<u16> =
        std::iter::from_fn(|| ring.take_used().unwrap()).map(|used| used.slot).collect();
    assert_eq!(slots, [3, 0, 2]);
    assert!((0..4).all(|slot| !ring.is_out(slot)));
}

#[test]
fn a_backend_with_inflight_region_finds_the_ring_as_it_was() {
    let (memory, mut ring, mut device) = pair();
    (0..3).for_each(|slot| ring.offer(slot));
    ring.publish();
    device.take();
    device.give(0, 0);
    let plan = ring.restart(true, false);
    assert_eq!(plan.base, 1);
    let mut reborn = Device::new(&memory, plan);
    assert_eq!(std::iter::from_fn(|| reborn.take()).collect::<Vec<_>>(), [2, 4]);
}

#[test]
fn kicks_are_left_out_where_the_device_does_not_want_them() {
    let (memory, mut ring, device) = pair();
    let flags = device.memory.u16_at(device.plan.layout.used).unwrap();
    flags.store(USED_NO_NOTIFY, Ordering::Relaxed);
    ring.offer(0);
    assert!(!ring.publish());
    // With EVENT_IDX the device names the entry it wants to be told of.
    let mut ring = self::ring(&memory, 4096);
    let plan = ring.restart(false, true);
    let event = plus(plan.layout.used, 4 + 8 * 8);
    device.memory.u16_at(event).unwrap().store(1, Ordering::Relaxed);
    ring.offer(0);
    assert!(!ring.publish(), "entry 0 is not the one");
    ring.offer(1);
    assert!(ring.publish(), "entry 1 is");
}

#[test]
fn what_was_seen_can_be_looked_at_before_it_is_taken() {
    let (_memory, mut ring, mut device) = pair();
    (0..3).for_each(|slot| ring.offer(slot));
    ring.publish();
    [4, 0, 2].into_iter().for_each(|head| device.give(head, 0));
    assert_eq!(ring.peek_used(0), None, "the index was not looked at");
    assert_eq!(ring.take_used().unwrap().unwrap().slot, 2);
    assert_eq!((ring.peek_used(0), ring.peek_used(1), ring.peek_used(2)), (Some(0), Some(1), None));
}

#[test]
fn a_device_whose_index_jumps_is_named() {
    let (_memory, mut ring, mut device) = pair();
    device.used = 8;
    device.give(0, 0);
    assert_eq!(ring.take_used(), Err(UsedFault::IndexJump { used: 9, seen: 0, size: 8 }));
}
