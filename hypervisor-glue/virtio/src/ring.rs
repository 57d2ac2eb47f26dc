// SPDX-License-Identifier: Apache-2.0
//! The words of a ring, by pointer.
//!
//! Both sides write while the other reads, so every word is an atomic. Partners:
//! * the available index: the driver's Release store makes its descriptors and entries visible
//!   to the device's Acquire load;
//! * the used index: the device's Release store makes its entries and the data it wrote visible
//!   to the driver's Acquire load;
//! * everything else is Relaxed, because one of the two indexes orders it;
//! * a flag or event on one side and an index on the other are a store-load pair (Dekker): each
//!   side stores its own, passes a SeqCst fence, and loads the other's. The fences' partners are
//!   in `DeviceQueue::publish` and `DriverQueue::arm_calls`, and in `DriverQueue::publish` and
//!   `DeviceQueue::arm_kicks`.

use crate::layout::{QUEUE_SIZE_MAX, QueueError, QueueLayout};
use plinth_guest_memory::{GuestAddress, GuestMemory};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// One descriptor, copied out of the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Descriptor {
    pub(crate) address: GuestAddress,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the fields of the word are taken apart")]
    pub(crate) const fn from_words(address: u64, rest: u64) -> Self {
        Self {
            address: GuestAddress(address),
            length: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    #[inline]
    pub(crate) const fn to_words(self) -> [u64; 2] {
        let rest = self.length as u64 | (self.flags as u64) << 32 | (self.next as u64) << 48;
        [self.address.0, rest]
    }
}

/// The three parts of a ring, and the memory in which they lie.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: Arc<GuestMemory>,
    descriptors: *mut u8,
    available: *mut u8,
    used: *mut u8,
    size: u16,
}

// SAFETY: the pointers go into mappings that `memory` keeps, mappings are not tied to a thread,
// and they are reached as atomics only.
unsafe impl Send for Ring {}

impl Ring {
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
        // 16 bytes is what virtio asks of the table; 8 is what the pointers here need, and both
        // are checked because they differ only in what a broken driver may do.
        let descriptors =
            pin("descriptor table", layout.descriptors, QueueLayout::descriptors_bytes(size), 16)?;
        let available =
            pin("available ring", layout.available, QueueLayout::available_bytes(size), 2)?;
        let used = pin("used ring", layout.used, QueueLayout::used_bytes(size), 4)?;
        Ok(Self { memory, descriptors, available, used, size })
    }

    #[inline]
    pub(crate) const fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    pub(crate) const fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// # Panics
    /// If `index` is not below the ring's size.
    #[inline]
    fn descriptor_words(&self, index: u16) -> [&AtomicU64; 2] {
        assert!(index < self.size, "callers mask or check a descriptor's index");
        let place = self.descriptors.wrapping_add(16 * usize::from(index));
        // SAFETY: the table has 16 bytes for each index below `size`, was pinned with alignment
        // 16, and `self.memory` keeps it mapped while `self` is borrowed. Atomics may be changed
        // by the guest at any time.
        unsafe {
            [AtomicU64::from_ptr(place.cast()), AtomicU64::from_ptr(place.wrapping_add(8).cast())]
        }
    }

    /// A word of the available ring: 0 is flags, 1 the index, 2 + n entry n, last the event.
    #[inline]
    fn available_word(&self, word: usize) -> &AtomicU16 {
        assert!(word < usize::from(self.size) + 3, "the ring has no such word");
        // SAFETY: `available_bytes` is twice `size + 3`, aligned to 2; else as above.
        unsafe { AtomicU16::from_ptr(self.available.wrapping_add(2 * word).cast()) }
    }

    /// Flags (0) or index (1) of the used ring.
    #[inline]
    fn used_word(&self, word: usize) -> &AtomicU16 {
        assert!(word < 2, "the used ring has two 16-bit words in front");
        // SAFETY: the ring begins with these two words, aligned to 4; else as above.
        unsafe { AtomicU16::from_ptr(self.used.wrapping_add(2 * word).cast()) }
    }

    #[inline]
    fn used_entry(&self, at: u16) -> [&AtomicU32; 2] {
        let place = self.used.wrapping_add(4 + 8 * usize::from(at & (self.size - 1)));
        // SAFETY: the masked entry is inside the ring's `size` entries of 8 bytes behind the
        // first 4 bytes, aligned to 4; else as above.
        unsafe {
            [AtomicU32::from_ptr(place.cast()), AtomicU32::from_ptr(place.wrapping_add(4).cast())]
        }
    }

    #[inline]
    fn available_event_word(&self) -> &AtomicU16 {
        let place = self.used.wrapping_add(4 + 8 * usize::from(self.size));
        // SAFETY: `used_bytes` counts this word behind the entries; aligned to 4; else as above.
        unsafe { AtomicU16::from_ptr(place.cast()) }
    }

    #[inline]
    pub(crate) fn descriptor(&self, index: u16) -> Descriptor {
        let [address, rest] = self.descriptor_words(index);
        // Relaxed: made visible by the Acquire load of the available index.
        Descriptor::from_words(address.load(Ordering::Relaxed), rest.load(Ordering::Relaxed))
    }

    /// Has the descriptor that an available entry names fetched. A hint.
    #[inline]
    pub(crate) fn prefetch_descriptor(&self, at: u16) {
        // Any place is good for a hint; masked, so that it is one in the table.
        let index = self.available_entry(at) & (self.size - 1);
        plinth_guest_memory::prefetch(self.descriptors.wrapping_add(16 * usize::from(index)));
    }

    /// Has the line of a used entry fetched, to be written. A hint.
    #[inline]
    pub(crate) fn prefetch_used_entry(&self, at: u16) {
        let place = self.used.wrapping_add(4 + 8 * usize::from(at & (self.size - 1)));
        plinth_guest_memory::prefetch_to_write(place);
    }

    #[inline]
    pub(crate) fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        let ([address, rest], [first, second]) =
            (self.descriptor_words(index), descriptor.to_words());
        // Relaxed: made visible by the Release store of the available index.
        address.store(first, Ordering::Relaxed);
        rest.store(second, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn available_index(&self) -> u16 {
        // Acquire: the partner is `set_available_index`; entries and descriptors before it are
        // visible after it.
        self.available_word(1).load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn set_available_index(&self, index: u16) {
        // Release: the partner is `available_index`.
        self.available_word(1).store(index, Ordering::Release);
    }

    #[inline]
    pub(crate) fn available_entry(&self, at: u16) -> u16 {
        // Relaxed: ordered by the available index.
        self.available_word(2 + usize::from(at & (self.size - 1))).load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_available_entry(&self, at: u16, head: u16) {
        // Relaxed: ordered by the available index.
        self.available_word(2 + usize::from(at & (self.size - 1))).store(head, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn used_index(&self) -> u16 {
        // Acquire: the partner is `set_used_index`; used entries and data before it are visible.
        self.used_word(1).load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn set_used_index(&self, index: u16) {
        // Release: the partner is `used_index`.
        self.used_word(1).store(index, Ordering::Release);
    }

    #[inline]
    pub(crate) fn used_element(&self, at: u16) -> (u32, u32) {
        let [head, length] = self.used_entry(at);
        // Relaxed: ordered by the used index.
        (head.load(Ordering::Relaxed), length.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn set_used_element(&self, at: u16, head: u16, length: u32) {
        let [first, second] = self.used_entry(at);
        // Relaxed: ordered by the used index.
        first.store(u32::from(head), Ordering::Relaxed);
        second.store(length, Ordering::Relaxed);
    }

    // The words below take part in the store-load pairs of the module's text; their order comes
    // from the SeqCst fence between the two.

    #[inline]
    pub(crate) fn available_flags(&self) -> u16 {
        self.available_word(0).load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_available_flags(&self, flags: u16) {
        self.available_word(0).store(flags, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn used_flags(&self) -> u16 {
        self.used_word(0).load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_used_flags(&self, flags: u16) {
        self.used_word(0).store(flags, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn used_event(&self) -> u16 {
        self.available_word(2 + usize::from(self.size)).load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_used_event(&self, index: u16) {
        self.available_word(2 + usize::from(self.size)).store(index, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn available_event(&self) -> u16 {
        self.available_event_word().load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_available_event(&self, index: u16) {
        self.available_event_word().store(index, Ordering::Relaxed);
    }
}

/// Whether moving an index from `old` to `new` passes `event` (virtio 1.2, 2.7.7.2 and 2.7.10.1).
#[inline]
pub(crate) const fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_passed_when_it_lies_between_the_old_and_the_new_index() {
        assert!(passes(5, 5, 6));
        assert!(!passes(6, 5, 6));
        assert!(!passes(4, 5, 6));
        assert!(passes(u16::MAX, u16::MAX, 0));
        assert!(passes(0, u16::MAX - 3, 4));
        assert!(!passes(7, 7, 7), "an index that did not move passes nothing");
    }

    #[test]
    fn a_descriptor_survives_its_words() {
        let descriptor =
            Descriptor { address: GuestAddress(0x1122_3344_5566), length: 77, flags: 3, next: 9 };
        let [first, second] = descriptor.to_words();
        assert_eq!(Descriptor::from_words(first, second), descriptor);
    }

    #[test]
    fn a_ring_outside_of_memory_or_of_an_odd_size_is_refused() {
        let memory = Arc::new(GuestMemory::default());
        let layout = QueueLayout::contiguous(8, GuestAddress(0));
        let error = Ring::new(memory.clone(), &layout).unwrap_err();
        assert!(matches!(error, QueueError::Place { part: "descriptor table", .. }), "{error}");
        for size in [0, 3, 2048] {
            let error = Ring::new(memory.clone(), &QueueLayout { size, ..layout }).unwrap_err();
            assert!(matches!(error, QueueError::Size { .. }), "{error}");
        }
    }
}
