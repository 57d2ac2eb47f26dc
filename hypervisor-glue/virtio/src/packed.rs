// SPDX-License-Identifier: Apache-2.0
//! The device side of one packed ring.
//!
//! Chains are given back to the driver in the order in which they were taken, in whatever order
//! the caller is done with them. So the slots that the device has are one stretch of the ring:
//!
//! ```text
//!   … used │ done, shown by publish │ taken, some done │ available …
//!          used                                        available
//! ```
//!
//! A chain's name here is its first slot: the driver's buffer id is its own affair, is believed in
//! nothing and only given back.

use crate::chain::{Chain, flags};
use crate::device::{KIND_FLAGS, PopFault, RingFault};
use crate::layout::{QueueError, QueueLayout, RingFeatures, RingState};
use crate::packed_ring::{Cursor, Event, PER_LINE, PackedRing, event, used_flags};
use plinth_guest_memory::{Access, GuestMemory, Window};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// A chain that the device has, kept at its first slot.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    length: u32,
    id: u16,
    slots: u16,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    /// No chain that the device has begins here.
    #[default]
    Free,
    Out,
    Done,
}

/// The device side of one packed ring.
#[derive(Debug)]
pub struct PackedQueue {
    ring: PackedRing,
    features: RingFeatures,
    /// The slot that is taken next, and the one that is given back next.
    available: Cursor,
    used: Cursor,
    /// Slots between the two.
    held: u16,
    taken: Box<[Taken]>,
    taken_count: u16,
    /// So many slots from `available` on had their buffers asked for.
    fetched: u16,
    /// Nothing was published yet, so nobody knows which calls the driver has seen.
    is_first: bool,
}

impl PackedQueue {
    /// A queue that goes on at `base`, as the frontend has it: a slot, bit 15 its lap.
    ///
    /// A frontend whose backend was killed does not know. Then the marks in the ring are believed,
    /// which are as old as the last thing the driver was shown. With in-order use there are none,
    /// and `base` is believed.
    pub(crate) fn new(
        memory: Arc<GuestMemory>,
        layout: &QueueLayout,
        features: RingFeatures,
        base: u16,
    ) -> Result<Self, QueueError> {
        let ring = PackedRing::new(memory, layout)?;
        let size = ring.size();
        let given = Cursor::from_word(base);
        let found = if features.in_order { None } else { ring.find_device() };
        let at = found.unwrap_or(given);
        if at.slot() >= size {
            return Err(QueueError::Slot { slot: at.slot(), size });
        }
        Ok(Self {
            ring,
            features,
            available: at,
            used: at,
            held: 0,
            taken: vec![Taken::default(); usize::from(size)].into(),
            taken_count: 0,
            fetched: 0,
            is_first: true,
        })
    }

    pub(crate) const fn state(&self) -> RingState {
        RingState { next_available: self.available.to_word(), next_used: self.used.to_word() }
    }

    #[inline]
    pub(crate) const fn size(&self) -> u16 {
        self.ring.size()
    }

    #[inline]
    pub(crate) const fn memory(&self) -> &Arc<GuestMemory> {
        self.ring.memory()
    }

    #[inline]
    pub(crate) const fn taken_count(&self) -> u16 {
        self.taken_count
    }

    fn has_next(&self) -> bool {
        self.held < self.size()
            && self.ring.descriptor(self.available.slot()).is_available(self.available.lap)
    }

    /// How many slots the driver has made available. Looks at each.
    pub(crate) fn available_count(&self) -> u16 {
        let (mut cursor, mut count) = (self.available, 0);
        while self.held + count < self.size()
            && self.ring.descriptor(cursor.slot()).is_available(cursor.lap)
        {
            cursor.advance(1, self.size());
            count += 1;
        }
        count
    }

    /// See [`crate::DeviceQueue::pop`]. Looks at no more slots than the device has not.
    #[inline]
    pub(crate) fn pop(&mut self, chain: &mut Chain) -> Result<bool, PopFault> {
        let size = self.size();
        let room = size - self.held;
        let head = self.available.slot();
        let mut descriptor = self.ring.descriptor(head);
        if room == 0 || !descriptor.is_available(self.available.lap) {
            return Ok(false);
        }
        chain.begin(head);
        let (mut slots, mut fault) = (1, None);
        loop {
            // The rest of a chain with a fault is looked at all the same: where the next one
            // begins can only be learnt from its end.
            if fault.is_none() {
                let memory = self.ring.memory();
                fault = chain.push_packed(memory, descriptor, self.features.indirect).err();
            }
            if descriptor.flags & flags::NEXT == 0 {
                break;
            }
            if slots == room {
                let source = RingFault::ChainWithoutEnd { head, room };
                return Err(PopFault::Ring { source });
            }
            // Made available with the first, whose flags the driver writes last.
            descriptor = self.ring.descriptor(head.wrapping_add(slots));
            slots += 1;
        }
        self.take(head, Taken { length: 0, id: descriptor.id, slots, state: State::Out });
        self.taken_count += 1;
        match fault {
            None => Ok(true),
            Some(source) => Err(PopFault::Chain { head, source }),
        }
    }

    #[inline]
    fn take(&mut self, head: u16, taken: Taken) {
        self.taken[usize::from(head)] = taken;
        self.held += taken.slots;
        self.fetched = self.fetched.saturating_sub(taken.slots);
        self.available.advance(taken.slots, self.ring.size());
    }

    /// See [`crate::DeviceQueue::prefetch`].
    #[inline]
    pub(crate) fn prefetch(&self, ahead: u16) {
        let mut cursor = self.available;
        if ahead >= self.size() - self.held {
            return;
        }
        cursor.advance(ahead, self.size());
        let descriptor = self.ring.descriptor(cursor.slot());
        if descriptor.is_available(cursor.lap) {
            self.ring.memory().prefetch_to_write(descriptor.address);
        }
    }

    /// See [`crate::DeviceQueue::fetch_ahead`]. Used entries need nothing: they are written where
    /// the descriptors were read.
    #[inline]
    pub(crate) fn fetch_ahead(&mut self, count: u16, length: usize, access: Access) {
        let size = self.size();
        let count = count.min(size - self.held);
        let mut cursor = self.available;
        cursor.advance(self.fetched, size);
        let begin = self.fetched;
        while self.fetched < count {
            let descriptor = self.ring.descriptor(cursor.slot());
            if !descriptor.is_available(cursor.lap) {
                break;
            }
            let length = length.min(descriptor.length as usize);
            self.ring.memory().prefetch_range(descriptor.address, length, access);
            cursor.advance(1, size);
            self.fetched += 1;
        }
        // The descriptors behind those, which the next call looks at.
        for ahead in (0..self.fetched - begin.min(self.fetched)).step_by(usize::from(PER_LINE)) {
            self.ring.prefetch(cursor.slot().wrapping_add(ahead));
        }
    }

    /// See [`crate::DeviceQueue::fill_next`].
    #[inline]
    pub(crate) fn fill_next(&mut self, length: u32, fill: impl FnOnce(&Window<'_>)) -> bool {
        let head = self.available.slot();
        let descriptor = self.ring.descriptor(head);
        let is_plain = self.held < self.ring.size()
            && descriptor.is_available(self.available.lap)
            && descriptor.flags & KIND_FLAGS == flags::WRITE
            && descriptor.length >= length;
        if !is_plain {
            return false;
        }
        let room = descriptor.length as usize;
        let Some(window) = self.ring.memory().window(descriptor.address, room) else {
            return false;
        };
        fill(&window);
        self.take(head, Taken { length, id: descriptor.id, slots: 1, state: State::Done });
        true
    }

    /// See [`crate::DeviceQueue::rewind`].
    ///
    /// # Panics
    /// If a head was not taken.
    pub(crate) fn rewind(&mut self, heads: &[u16]) {
        for head in heads {
            let taken = std::mem::take(&mut self.taken[usize::from(*head)]);
            assert!(
                taken.state == State::Out,
                "chain {head} is put back without having been taken"
            );
            self.held -= taken.slots;
            self.taken_count -= 1;
            self.available.retreat(taken.slots, self.ring.size());
        }
        // Their buffers are near, or soon will be; asking again costs little.
        self.fetched = 0;
    }

    /// See [`crate::DeviceQueue::push`].
    ///
    /// # Panics
    /// If `head` was not taken.
    #[inline]
    pub(crate) fn push(&mut self, head: u16, length: u32) {
        let taken = &mut self.taken[usize::from(head)];
        assert!(taken.state == State::Out, "chain {head} is given back without having been taken");
        (taken.length, taken.state) = (length, State::Done);
        self.taken_count -= 1;
    }

    /// See [`crate::DeviceQueue::publish`]. Shows what is done up to the first chain that is not.
    ///
    /// Descriptors are written from the first to the last, each shown at once: a process that is
    /// killed in between leaves marks that say how far it came. With in-order use a run of chains
    /// with nothing written is shown by one descriptor, with the last one's id.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        let (old, held) = (self.used, self.held);
        while self.held > 0 {
            let Taken { length, mut id, mut slots, state } =
                self.taken[usize::from(self.used.slot())];
            if state != State::Done {
                break;
            }
            let at = self.used;
            self.pass(slots);
            if self.features.in_order {
                while let Some(more) = self.next_done_of_no_bytes(length) {
                    id = more.id;
                    self.pass(more.slots);
                }
                slots = 1;
            }
            self.show_used(at, slots, id, length);
        }
        held != self.held && self.wants_call(old)
    }

    #[inline]
    fn pass(&mut self, slots: u16) {
        self.taken[usize::from(self.used.slot())].state = State::Free;
        self.used.advance(slots, self.ring.size());
        self.held -= slots;
    }

    #[inline]
    fn next_done_of_no_bytes(&self, length: u32) -> Option<Taken> {
        let next = self.taken[usize::from(self.used.slot())];
        (length == 0 && self.held > 0 && next.state == State::Done && next.length == 0)
            .then_some(next)
    }

    #[inline]
    fn show_used(&self, at: Cursor, slots: u16, id: u16, length: u32) {
        // The first last: until it is shown the chain was not given back.
        for ahead in (1..slots).rev() {
            let mut cursor = at;
            cursor.advance(ahead, self.ring.size());
            self.ring.mark_passed(cursor.slot(), cursor.lap);
        }
        let written = if length > 0 { flags::WRITE } else { 0 };
        self.ring.show(at.slot(), length, id, used_flags(at.lap) | written);
    }

    #[inline]
    fn wants_call(&mut self, old: Cursor) -> bool {
        // SeqCst: the partner is the fence in the driver's `arm_calls`. Either we see the driver's
        // wish to be called, or it sees our descriptors.
        fence(Ordering::SeqCst);
        let wish = self.ring.driver_event();
        let is_wanted = wish.wants(self.features.event_index, old, self.used, self.ring.size());
        std::mem::take(&mut self.is_first) || is_wanted
    }

    /// See [`crate::DeviceQueue::arm_kicks`].
    pub(crate) fn arm_kicks(&mut self) -> bool {
        self.ring.set_device_event(if self.features.event_index {
            Event { at: self.available, flags: event::AT_SLOT }
        } else {
            Event::ALWAYS
        });
        // SeqCst: the partner is the fence in the driver's `publish`. Either the driver sees our
        // wish to be kicked, or we see its descriptors.
        fence(Ordering::SeqCst);
        self.has_next()
    }

    /// See [`crate::DeviceQueue::disarm_kicks`].
    pub(crate) fn disarm_kicks(&mut self) {
        // A kick too many is harmless.
        self.ring.set_device_event(Event::NEVER);
    }
}
