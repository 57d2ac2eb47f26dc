// SPDX-License-Identifier: Apache-2.0
//! The words of a packed ring, by pointer (virtio 1.2, section 2.8).
//!
//! ```text
//!   descriptor:  0 u64 address   8 u32 length   12 u16 buffer id   14 u16 flags
//!   event:       0 u16 slot, bit 15 its lap     2 u16 flags: 0 tell, 1 do not, 2 tell at the slot
//! ```
//!
//! Both sides write to one table. Length, id and flags are one word here, stored and loaded
//! whole. Partners: the Release store of that word by either side makes all that it wrote before
//! visible to the other's Acquire load. Events and descriptors are a store-load pair, as in
//! [`crate::ring`]: each side stores its own, passes a SeqCst fence, and loads the other's.

use crate::layout::{QUEUE_SIZE_MAX, QueueError, QueueLayout};
use plinth_guest_memory::{GuestAddress, GuestMemory};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use virtio_bindings::virtio_ring::{
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
};

const AVAILABLE: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;

/// Descriptors in a cache line.
pub(crate) const PER_LINE: u16 = 4;

#[expect(clippy::cast_possible_truncation, reason = "the flags of an event have 16 bits")]
pub(crate) mod event {
    pub(crate) const ENABLE: u16 = super::VRING_PACKED_EVENT_FLAG_ENABLE as u16;
    pub(crate) const DISABLE: u16 = super::VRING_PACKED_EVENT_FLAG_DISABLE as u16;
    pub(crate) const AT_SLOT: u16 = super::VRING_PACKED_EVENT_FLAG_DESC as u16;
}

/// A place in the ring and the lap in which it is reached: odd laps have their bit set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Cursor {
    /// In 32 bits, for the reason that [`crate::device`] gives of its indexes.
    slot: u32,
    pub(crate) lap: bool,
}

impl Cursor {
    pub(crate) const START: Self = Self { slot: 0, lap: true };

    /// As the vhost-user protocol and events write it: bit 15 is the lap.
    pub(crate) const fn from_word(word: u16) -> Self {
        Self { slot: (word & 0x7FFF) as u32, lap: word & 0x8000 != 0 }
    }

    #[inline]
    pub(crate) const fn to_word(self) -> u16 {
        self.slot() | (self.lap as u16) << 15
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "slots are below the ring's size")]
    pub(crate) const fn slot(self) -> u16 {
        self.slot as u16
    }

    /// `by` is at most the size.
    #[inline]
    pub(crate) fn advance(&mut self, by: u16, size: u16) {
        let next = self.slot + u32::from(by);
        let is_over = next >= u32::from(size);
        self.slot = if is_over { next - u32::from(size) } else { next };
        self.lap ^= is_over;
    }

    /// `by` is at most the size.
    pub(crate) fn retreat(&mut self, by: u16, size: u16) {
        let is_over = u32::from(by) > self.slot;
        self.slot = if is_over { self.slot + u32::from(size) } else { self.slot } - u32::from(by);
        self.lap ^= is_over;
    }
}

/// One descriptor, copied out of the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PackedDescriptor {
    pub(crate) address: GuestAddress,
    pub(crate) length: u32,
    pub(crate) id: u16,
    pub(crate) flags: u16,
}

impl PackedDescriptor {
    /// Whether the driver has made it available in this lap.
    #[inline]
    pub(crate) const fn is_available(&self, lap: bool) -> bool {
        self.flags & (AVAILABLE | USED) == available_flags(lap)
    }

    /// Whether the device has used it in this lap.
    #[inline]
    pub(crate) const fn is_used(&self, lap: bool) -> bool {
        self.flags & (AVAILABLE | USED) == used_flags(lap)
    }
}

/// What a driver sets in the flags of a descriptor that it makes available in a lap.
#[inline]
pub(crate) const fn available_flags(lap: bool) -> u16 {
    if lap { AVAILABLE } else { USED }
}

/// What a device sets in the flags of a descriptor that it uses in a lap.
#[inline]
pub(crate) const fn used_flags(lap: bool) -> u16 {
    if lap { AVAILABLE | USED } else { 0 }
}

/// The table and the two events, and the memory in which they lie.
#[derive(Debug)]
pub(crate) struct PackedRing {
    memory: Arc<GuestMemory>,
    descriptors: *mut u8,
    driver_event: *mut u8,
    device_event: *mut u8,
    size: u16,
}

// SAFETY: the pointers go into mappings that `memory` keeps, mappings are not tied to a thread,
// and they are reached as atomics only.
unsafe impl Send for PackedRing {}

impl PackedRing {
    pub(crate) fn new(memory: Arc<GuestMemory>, layout: &QueueLayout) -> Result<Self, QueueError> {
        let size = layout.size;
        if !size.is_power_of_two() || size > QUEUE_SIZE_MAX {
            return Err(QueueError::Size { size });
        }
        let pin = |part, address, length, alignment| {
            memory
                .pin(address, length, alignment)
                .map_err(|source| QueueError::Place { part, source })
        };
        let bytes = QueueLayout::descriptors_bytes(size);
        let descriptors = pin("descriptor ring", layout.descriptors, bytes, 16)?;
        let driver_event = pin("driver's event", layout.available, 4, 4)?;
        let device_event = pin("device's event", layout.used, 4, 4)?;
        Ok(Self { memory, descriptors, driver_event, device_event, size })
    }

    #[inline]
    pub(crate) const fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    pub(crate) const fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    #[inline]
    fn place(&self, slot: u16) -> *mut u8 {
        // Masked: the size is a power of two.
        self.descriptors.wrapping_add(16 * usize::from(slot & (self.size - 1)))
    }

    #[inline]
    fn words(&self, slot: u16) -> [&AtomicU64; 2] {
        let place = self.place(slot);
        // SAFETY: the masked slot is one of the table's `size` places of 16 bytes, which was
        // pinned with alignment 16, and `self.memory` keeps it mapped while `self` is borrowed.
        // Atomics may be changed by the guest at any time.
        unsafe {
            [AtomicU64::from_ptr(place.cast()), AtomicU64::from_ptr(place.wrapping_add(8).cast())]
        }
    }

    #[inline]
    fn driver_word(&self) -> &AtomicU32 {
        // SAFETY: four bytes were pinned there with alignment 4, and `self.memory` keeps them
        // mapped while `self` is borrowed. Atomics may be changed by the guest at any time.
        unsafe { AtomicU32::from_ptr(self.driver_event.cast()) }
    }

    #[inline]
    fn device_word(&self) -> &AtomicU32 {
        // SAFETY: as in `driver_word`.
        unsafe { AtomicU32::from_ptr(self.device_event.cast()) }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the fields of the word are taken apart")]
    pub(crate) fn descriptor(&self, slot: u16) -> PackedDescriptor {
        let [address, rest] = self.words(slot);
        // Acquire: the partner is the other side's store of the flags, the last of what it writes.
        let rest = rest.load(Ordering::Acquire);
        PackedDescriptor {
            address: GuestAddress(address.load(Ordering::Relaxed)),
            length: rest as u32,
            id: (rest >> 32) as u16,
            flags: (rest >> 48) as u16,
        }
    }

    /// Writes length, id and flags, and with them shows the descriptor to the other side.
    #[inline]
    pub(crate) fn show(&self, slot: u16, length: u32, id: u16, flags: u16) {
        let rest = u64::from(length) | u64::from(id) << 32 | u64::from(flags) << 48;
        // Release: the partner is `descriptor` on the other side.
        self.words(slot)[1].store(rest, Ordering::Release);
    }

    #[inline]
    pub(crate) fn set_address(&self, slot: u16, address: GuestAddress) {
        // Relaxed: `show` makes it visible.
        self.words(slot)[0].store(address.0, Ordering::Relaxed);
    }

    /// Notes in a descriptor that is not the first of its chain that the device has passed it in
    /// this lap. No driver looks there; [`Self::find_device`] does.
    pub(crate) fn mark_passed(&self, slot: u16, lap: bool) {
        let PackedDescriptor { length, id, flags, .. } = self.descriptor(slot);
        let flags = if lap { flags | USED } else { flags & !USED };
        self.show(slot, length, id, flags);
    }

    /// Where a device stands that marks every slot that it passes. Drivers never change the used
    /// bit of a slot: they make it available with the bit that the last lap has left there. So the
    /// bits of the slots that were passed in this lap differ from those of all the others.
    /// `None` when the bits are in more than two such parts, so that they say nothing.
    pub(crate) fn find_device(&self) -> Option<Cursor> {
        let bit = |slot| self.descriptor(slot).flags & USED != 0;
        let first = bit(0);
        let Some(slot) = (1..self.size).find(|slot| bit(*slot) != first) else {
            return Some(Cursor { slot: 0, lap: !first });
        };
        let is_clear = (slot..self.size).all(|slot| bit(slot) != first);
        is_clear.then_some(Cursor { slot: u32::from(slot), lap: first })
    }

    /// Has the line of a descriptor fetched. A hint.
    #[inline]
    pub(crate) fn prefetch(&self, slot: u16) {
        plinth_guest_memory::prefetch(self.place(slot));
    }

    // The two events take part in the store-load pairs of the module's text; their order comes
    // from the SeqCst fence between the two.

    #[inline]
    pub(crate) fn driver_event(&self) -> Event {
        Event::from_word(self.driver_word().load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn device_event(&self) -> Event {
        Event::from_word(self.device_word().load(Ordering::Relaxed))
    }

    pub(crate) fn set_driver_event(&self, event: Event) {
        self.driver_word().store(event.to_word(), Ordering::Relaxed);
    }

    pub(crate) fn set_device_event(&self, event: Event) {
        self.device_word().store(event.to_word(), Ordering::Relaxed);
    }
}

/// When a side wants to be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Event {
    pub(crate) at: Cursor,
    pub(crate) flags: u16,
}

impl Event {
    pub(crate) const ALWAYS: Self = Self { at: Cursor::from_word(0), flags: event::ENABLE };
    pub(crate) const NEVER: Self = Self { at: Cursor::from_word(0), flags: event::DISABLE };

    #[expect(clippy::cast_possible_truncation, reason = "the fields of the word are taken apart")]
    const fn from_word(word: u32) -> Self {
        Self { at: Cursor::from_word(word as u16), flags: (word >> 16) as u16 }
    }

    const fn to_word(self) -> u32 {
        self.at.to_word() as u32 | (self.flags as u32) << 16
    }

    /// Whether who wrote this wants to be told of a move from `old` to `new` in a ring of `size`.
    /// Flags that have no meaning, or ask for a slot without the feature, are a wish: a call too
    /// many is harmless.
    #[inline]
    pub(crate) fn wants(self, has_slots: bool, old: Cursor, new: Cursor, size: u16) -> bool {
        match self.flags {
            event::DISABLE => false,
            event::AT_SLOT if has_slots => {
                // All three on a line of their own that ends at `new`'s lap: a cursor of the lap
                // before lies one size lower.
                let place = |cursor: Cursor| {
                    let slot = cursor.slot();
                    if cursor.lap == new.lap { slot } else { slot.wrapping_sub(size) }
                };
                crate::ring::passes(place(self.at), place(old), place(new))
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_goes_round_and_back() {
        let mut cursor = Cursor::START;
        cursor.advance(7, 8);
        assert_eq!((cursor.slot(), cursor.lap), (7, true));
        cursor.advance(3, 8);
        assert_eq!((cursor.slot(), cursor.lap), (2, false));
        assert_eq!(Cursor::from_word(cursor.to_word()), cursor);
        cursor.retreat(3, 8);
        assert_eq!((cursor.slot(), cursor.lap), (7, true));
        cursor.advance(8, 8);
        assert_eq!((cursor.slot(), cursor.lap), (7, false), "a whole lap");
    }

    #[test]
    fn an_event_is_passed_in_its_lap_only() {
        let at = |slot: u16, lap: bool| Cursor::from_word(slot | u16::from(lap) << 15);
        let event = |cursor| Event { at: cursor, flags: event::AT_SLOT };
        let wants = |wish: Event, old, new| wish.wants(true, old, new, 8);
        assert!(wants(event(at(3, true)), at(3, true), at(4, true)));
        assert!(!wants(event(at(4, true)), at(3, true), at(4, true)));
        assert!(!wants(event(at(3, false)), at(3, true), at(4, true)), "that is a lap before");
        assert!(wants(event(at(7, true)), at(6, true), at(1, false)));
        assert!(wants(event(at(0, false)), at(6, true), at(1, false)));
        assert!(!wants(event(at(1, false)), at(6, true), at(1, false)));
        assert!(!wants(Event::NEVER, at(0, true), at(7, true)));
        assert!(wants(Event::ALWAYS, at(0, true), at(1, true)));
        let without = event(at(4, true)).wants(false, at(3, true), at(4, true), 8);
        assert!(without, "slots were not agreed on");
    }
}
