// SPDX-License-Identifier: Apache-2.0
//! The driver's side of one split virtqueue (virtio 1.2, section 2.7).
//!
//! The caller decides which descriptors make a chain: [`Ring`] gives a fixed number of *slots*,
//! each with the same number of descriptors, so that a slot's chain is written once and then
//! only offered again. That is what a load generator wants, and what makes resubmission after
//! a backend's death simple: the slots that are out are known.
//!
//! `plinth_virtio::DriverQueue` is the plain driver side. It begins with an empty ring, and a
//! frontend has to go on with chains that a dead backend still has.

use plinth_guest_memory::{GuestAddress, GuestMemory, OutsideMemory};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use crate::memory::{Memory, MemoryError};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// The device asks for no kicks (without EVENT_IDX).
const USED_NO_NOTIFY: u16 = 1;

/// One descriptor of a chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Buffer {
    pub address: GuestAddress,
    pub length: u32,
    /// Whether the device writes it; those come last.
    pub is_writable: bool,
}

/// A chain that the device has given back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Used {
    pub slot: u16,
    /// Bytes the device says it wrote.
    pub length: u32,
}

/// The backend broke the ring's rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RingBroken {
    #[error("the backend gave back descriptor {id}, which begins no chain of ours")]
    UnknownChain { id: u32 },
    #[error("the backend gave back slot {slot}, which it did not have")]
    NotOut { slot: u16 },
}

/// Where a ring is and where the backend is to begin.
#[derive(Clone, Copy, Debug)]
pub struct RingPlan {
    pub size: u16,
    pub base: u16,
    pub descriptors: GuestAddress,
    pub available: GuestAddress,
    pub used: GuestAddress,
}

#[derive(Debug)]
pub struct Ring {
    memory: Arc<GuestMemory>,
    size: u16,
    per_slot: u16,
    descriptors: GuestAddress,
    available: GuestAddress,
    used: GuestAddress,
    /// Of the available ring: the next entry that we write.
    next_available: u16,
    /// What the device has been shown of it.
    published: u16,
    /// Of the used ring: the next entry that we take.
    next_used: u16,
    is_out: Vec<bool>,
    has_event_idx: bool,
}

/// `address + offset`, which is inside our own region and so cannot wrap.
const fn plus(address: GuestAddress, offset: u64) -> GuestAddress {
    GuestAddress(address.0 + offset)
}

impl Ring {
    /// Takes memory for a ring of `size` descriptors, a power of two, in slots of `per_slot`.
    ///
    /// # Errors
    /// When `memory` is full.
    pub fn new(memory: &mut Memory, size: u16, per_slot: u16) -> Result<Self, MemoryError> {
        assert!(size.is_power_of_two(), "a split ring's size is a power of two");
        assert!(per_slot > 0 && per_slot <= size, "a slot has at least one descriptor");
        let entries = u64::from(size);
        let descriptors = memory.take(16 * entries, 4096)?;
        let available = memory.take(6 + 2 * entries, 64)?;
        let used = memory.take(6 + 8 * entries, 4096)?;
        Ok(Self {
            memory: Arc::clone(memory.guest()),
            size,
            per_slot,
            descriptors,
            available,
            used,
            next_available: 0,
            published: 0,
            next_used: 0,
            is_out: vec![false; usize::from(size / per_slot)],
            has_event_idx: false,
        })
    }

    /// How many slots there are.
    #[must_use]
    pub const fn slots(&self) -> u16 {
        self.size / self.per_slot
    }

    /// Whether the device has the slot.
    #[must_use]
    pub fn is_out(&self, slot: u16) -> bool {
        self.is_out[usize::from(slot)]
    }

    /// Writes the chain of a slot. The slot must not be out.
    ///
    /// # Panics
    /// If the slot is out, or the chain is empty or longer than a slot.
    pub fn set_chain(&mut self, slot: u16, chain: &[Buffer]) {
        assert!(!self.is_out(slot), "the device has slot {slot}");
        assert!(!chain.is_empty() && chain.len() <= usize::from(self.per_slot), "a slot's chain");
        let first = slot * self.per_slot;
        let last = chain.len() - 1;
        for (step, (index, buffer)) in (first..).zip(chain).enumerate() {
            let mut flags = if buffer.is_writable { WRITE } else { 0 };
            let mut next = 0;
            if step < last {
                flags |= NEXT;
                next = index + 1;
            }
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&buffer.address.0.to_le_bytes());
            bytes[8..12].copy_from_slice(&buffer.length.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.to_le_bytes());
            let place = plus(self.descriptors, 16 * u64::from(index));
            ours(self.memory.copy_in(place, &bytes));
        }
    }

    /// Gives a slot to the device; it is seen with the next [`Ring::publish`].
    ///
    /// # Panics
    /// If the device has it already.
    pub fn offer(&mut self, slot: u16) {
        let out = &mut self.is_out[usize::from(slot)];
        assert!(!*out, "the device has slot {slot} already");
        *out = true;
        self.write_available(slot);
    }

    fn write_available(&mut self, slot: u16) {
        let entry = u64::from(self.next_available % self.size);
        // Relaxed: the index, stored with release, makes the entry visible.
        self.u16_at(self.available, 4 + 2 * entry)
            .store((slot * self.per_slot).to_le(), Ordering::Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Shows the device what was offered. Returns whether it wants a kick for it.
    pub fn publish(&mut self) -> bool {
        if self.published == self.next_available {
            return false;
        }
        let before = self.published;
        self.published = self.next_available;
        // Release, with the device's acquire of the index: chains and entries come first.
        self.u16_at(self.available, 2).store(self.published.to_le(), Ordering::Release);
        // The index must be visible before we look whether the device sleeps, as the device
        // looks at the index after it said that it will: else both could miss the other.
        fence(Ordering::SeqCst);
        if self.has_event_idx {
            let place = 4 + 8 * u64::from(self.size);
            let wanted = u16::from_le(self.u16_at(self.used, place).load(Ordering::Relaxed));
            let past = self.published.wrapping_sub(wanted).wrapping_sub(1);
            past < self.published.wrapping_sub(before)
        } else {
            let flags = u16::from_le(self.u16_at(self.used, 0).load(Ordering::Relaxed));
            flags & USED_NO_NOTIFY == 0
        }
    }

    /// Takes the next chain that the device gave back, if any.
    ///
    /// # Errors
    /// When the device gives back what it never had.
    pub fn take_used(&mut self) -> Result<Option<Used>, RingBroken> {
        // Acquire, with the device's release of the index: the entry and the data come after.
        let index = u16::from_le(self.u16_at(self.used, 2).load(Ordering::Acquire));
        if index == self.next_used {
            return Ok(None);
        }
        let entry = u64::from(self.next_used % self.size);
        let mut bytes = [0; 8];
        ours(self.memory.copy_out(plus(self.used, 4 + 8 * entry), &mut bytes));
        let [a, b, c, d, e, f, g, h] = bytes;
        let (id, length) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        self.next_used = self.next_used.wrapping_add(1);
        let slot = u16::try_from(id)
            .ok()
            .filter(|id| id.is_multiple_of(self.per_slot))
            .map(|id| id / self.per_slot)
            .filter(|slot| *slot < self.slots())
            .ok_or(RingBroken::UnknownChain { id })?;
        let out = &mut self.is_out[usize::from(slot)];
        if !*out {
            return Err(RingBroken::NotOut { slot });
        }
        *out = false;
        Ok(Some(Used { slot, length }))
    }

    /// Asks for a call with the next used chain, or for none. After asking, look once more:
    /// what came before the asking is not called for.
    pub fn want_calls(&mut self, wanted: bool) {
        if self.has_event_idx {
            // An index that lies half the space behind is not reached before it is set again.
            let event = if wanted { self.next_used } else { self.next_used.wrapping_sub(1 << 15) };
            let place = 4 + 2 * u64::from(self.size);
            self.u16_at(self.available, place).store(event.to_le(), Ordering::Relaxed);
        } else {
            self.u16_at(self.available, 0).store(u16::from(!wanted).to_le(), Ordering::Relaxed);
        }
        // As in `publish`: our wish must be visible before the caller looks again.
        fence(Ordering::SeqCst);
    }

    /// Makes the ring ready for a new life of the backend and says where it is to begin.
    ///
    /// A backend with an in-flight region finds the chains that are out by itself. For one
    /// without, they are offered again, in slot order, behind what it has used.
    pub fn restart(&mut self, has_inflight: bool, has_event_idx: bool) -> RingPlan {
        self.has_event_idx = has_event_idx;
        // Entries that are used but not yet taken stay where they are and are taken later.
        let used = u16::from_le(self.u16_at(self.used, 2).load(Ordering::Acquire));
        if !has_inflight {
            let untaken = self.untaken(used);
            let out: Vec<u16> = (0..self.slots())
                .filter(|slot| self.is_out(*slot) && !untaken.contains(slot))
                .collect();
            self.next_available = used;
            for slot in out {
                self.write_available(slot);
            }
            self.published = self.next_available;
            self.u16_at(self.available, 2).store(self.published.to_le(), Ordering::Release);
        }
        RingPlan {
            size: self.size,
            base: used,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
        }
    }

    /// Slots in the used ring that were not taken yet.
    fn untaken(&self, used: u16) -> Vec<u16> {
        let count = used.wrapping_sub(self.next_used);
        let entries = (0..count).map(|step| self.next_used.wrapping_add(step) % self.size);
        entries
            .map(|entry| {
                let mut bytes = [0; 4];
                let place = plus(self.used, 4 + 8 * u64::from(entry));
                ours(self.memory.copy_out(place, &mut bytes));
                u16::try_from(u32::from_le_bytes(bytes)).unwrap_or(u16::MAX) / self.per_slot
            })
            .collect()
    }

    fn u16_at(&self, base: GuestAddress, offset: u64) -> &AtomicU16 {
        ours(self.memory.u16_at(plus(base, offset)))
    }
}

/// The ring's own addresses are inside the memory that they were taken from.
fn ours<T>(result: Result<T, OutsideMemory>) -> T {
    result.expect("the ring was taken from this memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device sees and does, on the same memory.
    struct Device {
        memory: Arc<GuestMemory>,
        plan: RingPlan,
        next: u16,
        used: u16,
    }

    impl Device {
        fn new(memory: &Memory, plan: RingPlan) -> Self {
            let (next, used) = (plan.base, plan.base);
            Self { memory: Arc::clone(memory.guest()), plan, next, used }
        }

        fn take(&mut self) -> Option<u16> {
            let available = self.plan.available;
            let index = self.memory.u16_at(plus(available, 2)).unwrap().load(Ordering::Acquire);
            if index == self.next {
                return None;
            }
            let entry = u64::from(self.next % self.plan.size);
            self.next = self.next.wrapping_add(1);
            let head = self.memory.u16_at(plus(available, 4 + 2 * entry)).unwrap();
            Some(head.load(Ordering::Relaxed))
        }

        fn give(&mut self, head: u32, length: u32) {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&head.to_le_bytes());
            bytes[4..].copy_from_slice(&length.to_le_bytes());
            let entry = u64::from(self.used % self.plan.size);
            self.memory.copy_in(plus(self.plan.used, 4 + 8 * entry), &bytes).unwrap();
            self.used = self.used.wrapping_add(1);
            let index = self.memory.u16_at(plus(self.plan.used, 2)).unwrap();
            index.store(self.used, Ordering::Release);
        }
    }

    fn pair() -> (Memory, Ring, Device) {
        let mut memory = Memory::new(1 << 20).unwrap();
        let mut ring = Ring::new(&mut memory, 8, 2).unwrap();
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
            assert_eq!(ring.take_used(), Ok(Some(Used { slot, length: round })));
        }
    }

    #[test]
    fn a_backend_that_gives_back_what_it_never_had_is_named() {
        let (_memory, mut ring, mut device) = pair();
        device.give(3, 0);
        assert_eq!(ring.take_used(), Err(RingBroken::UnknownChain { id: 3 }));
        device.give(80, 0);
        assert_eq!(ring.take_used(), Err(RingBroken::UnknownChain { id: 80 }));
        device.give(4, 0);
        assert_eq!(ring.take_used(), Err(RingBroken::NotOut { slot: 2 }));
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
        let flags = device.memory.u16_at(device.plan.used).unwrap();
        flags.store(USED_NO_NOTIFY, Ordering::Relaxed);
        ring.offer(0);
        assert!(!ring.publish());
        // With EVENT_IDX the device names the entry it wants to be told of.
        let mut ring = Ring::new(&mut { memory }, 8, 2).unwrap();
        let plan = ring.restart(false, true);
        let event = plus(plan.used, 4 + 8 * 8);
        device.memory.u16_at(event).unwrap().store(1, Ordering::Relaxed);
        ring.offer(0);
        assert!(!ring.publish(), "entry 0 is not the one");
        ring.offer(1);
        assert!(ring.publish(), "entry 1 is");
    }
}
