// SPDX-License-Identifier: Apache-2.0
//! The driver side of a ring in slots, for clients that outlive their device.
//!
//! A ring of fixed *slots*, each with the same number of descriptors: a slot's chain is written
//! once and may be offered again and again. That is what a load generator wants, and it makes
//! resubmission after a device's death simple: the slots that are out are known.
//! [`crate::DriverQueue`] is the other driver side: chains of any length from a free list.

use crate::chain::flags;
use crate::driver::UsedFault;
use crate::driver_ring::DriverRing;
use crate::layout::{QueueError, QueueLayout, RingFeatures};
use crate::ring::{Descriptor, Ring};
use plinth_guest_memory::{GuestAddress, GuestMemory};
use std::sync::Arc;

/// One descriptor of a chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Buffer {
    pub address: GuestAddress,
    pub length: u32,
    /// Whether the device writes it; those come last.
    pub is_writable: bool,
}

/// A slot that the device has given back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UsedSlot {
    pub slot: u16,
    /// Bytes the device says it wrote.
    pub length: u32,
}

/// Where a ring is and where the device is to begin.
#[derive(Clone, Copy, Debug)]
pub struct RingPlan {
    pub layout: QueueLayout,
    pub base: u16,
}

/// The driver side of one ring.
#[derive(Debug)]
pub struct SlotQueue {
    ring: DriverRing,
    layout: QueueLayout,
    per_slot: u16,
    is_out: Box<[bool]>,
}

impl SlotQueue {
    /// A ring of slots with `per_slot` descriptors each at `layout`, which must be zeros.
    ///
    /// # Panics
    /// If a slot has no descriptor, or more than there are.
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: &QueueLayout,
        per_slot: u16,
    ) -> Result<Self, QueueError> {
        assert!(per_slot > 0 && per_slot <= layout.size, "a slot has at least one descriptor");
        let ring = DriverRing::new(Ring::new(memory, layout)?, RingFeatures::default());
        let slots = usize::from(layout.size / per_slot);
        Ok(Self { ring, layout: *layout, per_slot, is_out: vec![false; slots].into() })
    }

    /// How many slots there are.
    pub const fn slots(&self) -> u16 {
        self.layout.size / self.per_slot
    }

    /// Whether the device has the slot.
    #[inline]
    pub fn is_out(&self, slot: u16) -> bool {
        self.is_out[usize::from(slot)]
    }

    /// Writes the chain of a slot. It stays until it is written again.
    ///
    /// # Panics
    /// If the slot is out, or the chain is empty or longer than a slot.
    pub fn set_chain(&mut self, slot: u16, chain: &[Buffer]) {
        assert!(!self.is_out(slot), "the device has slot {slot}");
        assert!(!chain.is_empty() && chain.len() <= usize::from(self.per_slot), "a slot's chain");
        let first = slot * self.per_slot;
        let last = chain.len() - 1;
        for (step, (index, buffer)) in (first..).zip(chain).enumerate() {
            let write = if buffer.is_writable { flags::WRITE } else { 0 };
            let (flags, next) =
                if step < last { (write | flags::NEXT, index + 1) } else { (write, 0) };
            let Buffer { address, length, .. } = *buffer;
            self.ring.ring.set_descriptor(index, Descriptor { address, length, flags, next });
        }
    }

    /// Gives a slot to the device; it is seen with the next [`SlotQueue::publish`].
    ///
    /// # Panics
    /// If the device has it already.
    #[inline]
    pub fn offer(&mut self, slot: u16) {
        let out = &mut self.is_out[usize::from(slot)];
        assert!(!*out, "the device has slot {slot} already");
        *out = true;
        self.ring.make_available(slot * self.per_slot);
    }

    /// Shows the device what was offered. Returns whether it wants a kick for it.
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Takes the next slot that the device gave back, if any.
    #[inline]
    pub fn take_used(&mut self) -> Result<Option<UsedSlot>, UsedFault> {
        let Some((head, length)) = self.ring.take_used()? else { return Ok(None) };
        let slot = self.slot_of(head).ok_or(UsedFault::NotTaken { head })?;
        let out = &mut self.is_out[usize::from(slot)];
        if !*out {
            return Err(UsedFault::NotTaken { head });
        }
        *out = false;
        Ok(Some(UsedSlot { slot, length }))
    }

    /// The slot that will be taken after `ahead` others, as far as that was seen: for a caller that
    /// wants its lines on their way before it comes to it.
    #[inline]
    pub fn peek_used(&self, ahead: u16) -> Option<u16> {
        self.slot_of(self.ring.peek_used(ahead)?)
    }

    /// The slot whose chain begins at a head.
    #[inline]
    fn slot_of(&self, head: u32) -> Option<u16> {
        let head = u16::try_from(head).ok()?;
        let slot = head / self.per_slot;
        (head.is_multiple_of(self.per_slot) && slot < self.slots()).then_some(slot)
    }

    /// Asks for a call with the next used chain, or for none. After asking, look once more:
    /// what came before the asking is not called for.
    pub fn want_calls(&mut self, wanted: bool) {
        if wanted {
            self.ring.arm_calls();
        } else {
            self.ring.disarm_calls();
        }
    }

    /// Makes the ring ready for a new life of the device and says where it is to begin.
    ///
    /// A device with an in-flight record finds the chains that are out by itself. For one
    /// without, they are offered again, in slot order, behind what it has used.
    pub fn restart(&mut self, has_inflight: bool, event_index: bool) -> RingPlan {
        self.ring.features =
            RingFeatures { event_index, indirect: false, ..RingFeatures::default() };
        // Entries that are used but not yet taken stay where they are and are taken later.
        let used = self.ring.ring.used_index();
        if !has_inflight {
            let untaken = self.untaken(used);
            let out: Vec<u16> = (0..self.slots())
                .filter(|slot| self.is_out(*slot) && !untaken.contains(slot))
                .collect();
            self.ring.begin_at(used);
            for slot in out {
                self.ring.make_available(slot * self.per_slot);
            }
            self.ring.show();
        }
        RingPlan { layout: self.layout, base: used }
    }

    /// Slots in the used ring that were not taken yet.
    fn untaken(&self, used: u16) -> Vec<u16> {
        let next = self.ring.next_used();
        let count = used.wrapping_sub(next).min(self.layout.size);
        let head = |step| self.ring.ring.used_element(next.wrapping_add(step)).0;
        (0..count).filter_map(|step| self.slot_of(head(step))).collect()
    }
}
