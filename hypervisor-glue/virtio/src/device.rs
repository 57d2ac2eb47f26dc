// SPDX-License-Identifier: Apache-2.0
//! The device side of one split ring.

use crate::chain::{Chain, ChainFault, flags};
use crate::inflight::InflightQueue;
use crate::layout::{QueueError, QueueLayout, RingFeatures, RingState};
use crate::ring::{Ring, passes};
use plinth_guest_memory::{Access, GuestMemory, Window};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

#[expect(clippy::cast_possible_truncation, reason = "the flags of a ring have 16 bits")]
pub(crate) mod ring_flags {
    pub(crate) const NO_INTERRUPT: u16 = super::VRING_AVAIL_F_NO_INTERRUPT as u16;
    pub(crate) const NO_NOTIFY: u16 = super::VRING_USED_F_NO_NOTIFY as u16;
}

/// What makes a descriptor something else than one plain readable buffer.
pub(crate) const KIND_FLAGS: u16 = flags::NEXT | flags::WRITE | flags::INDIRECT;

/// Used entries in a cache line.
const USED_PER_LINE: usize = 8;

/// The ring itself is nonsense: nothing in it can be believed, and its use ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RingFault {
    #[error("the driver's index went from {taken} to {available} in a ring of {size}")]
    IndexJump { available: u16, taken: u16, size: u16 },
    #[error("the driver made descriptor {head} available in a ring of {size}")]
    HeadOutOfRange { head: u16, size: u16 },
    #[error("the driver made chain {head} available, which the device still has")]
    HeadTwice { head: u16 },
    #[error("the chain at slot {head} has no end within the {room} slots that the driver may fill")]
    ChainWithoutEnd { head: u16, room: u16 },
}

/// Why [`crate::DeviceQueue::pop`] gave no chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PopFault {
    /// The chain was taken and must be given back: [`Chain::head`] is set. What stands before
    /// the fault is in the chain.
    #[error("chain {head} is malformed")]
    Chain { head: u16, source: ChainFault },
    #[error("the ring is malformed")]
    Ring { source: RingFault },
}

/// A 16-bit index that is kept in 32 bits. The compiler reads a 16-bit field that happens to lie on a
/// multiple of four with a 32-bit load, which cannot take its value from the 16-bit store of the
/// packet before: the load then waits until the store has reached the cache, which was 7 % of a
/// packet's time on Zen 4.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Index(u32);

impl Index {
    const fn new(at: u16) -> Self {
        Self(at as u32)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the upper half is always zero")]
    const fn get(self) -> u16 {
        self.0 as u16
    }

    #[inline]
    const fn advance(&mut self) {
        self.0 = (self.0 + 1) & 0xFFFF;
    }
}

/// The device side of one split ring.
#[derive(Debug)]
pub struct SplitQueue {
    ring: Ring,
    features: RingFeatures,
    /// What the device has done: entries taken, entries given back (published or not).
    next_available: Index,
    next_used: Index,
    /// Used entries that the driver was shown.
    published: u16,
    /// The driver's index as last read.
    available_seen: Index,
    /// Heads that were taken and not given back: a driver that makes one available twice would
    /// have two requests share a buffer and a record.
    is_taken: Box<[bool]>,
    taken_count: u16,
    /// Heads that a process before this one left, to be taken before anything else.
    leftover: VecDeque<u16>,
    leftover_count: u16,
    inflight: Option<InflightQueue>,
    /// With in-order use: the heads that were taken, and how many bytes were written to those that
    /// the caller is done with while one before them is not. Empty without.
    order: VecDeque<(u16, Option<u32>)>,
    /// Heads given back and not published, kept only with an in-flight record.
    batch: Vec<u16>,
    /// Up to this entry of the available ring, lines were asked for.
    fetched: u16,
    /// No index was published yet, so nobody knows which calls the driver has seen.
    is_first: bool,
}

impl SplitQueue {
    /// A queue that goes on at available entry `base`, as the frontend has it.
    ///
    /// With an in-flight record that knows this ring, `base` is not believed: what was taken is
    /// what was given back, up to the ring's used index, and what the record says was left.
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: &QueueLayout,
        features: RingFeatures,
        base: u16,
        mut inflight: Option<InflightQueue>,
    ) -> Result<Self, QueueError> {
        let ring = Ring::new(memory, layout)?;
        let size = ring.size();
        let next_used = ring.used_index();
        let known = match &mut inflight {
            Some(record) => {
                record.recover(size, next_used).map_err(|source| QueueError::Inflight { source })?
            }
            None => None,
        };
        let is_known = known.is_some();
        let leftover = VecDeque::from(known.unwrap_or_default());
        let leftover_count = u16::try_from(leftover.len())
            .expect("the record has an entry for each of at most 1024 heads");
        let next_available = if is_known { next_used.wrapping_add(leftover_count) } else { base };
        if next_available.wrapping_sub(next_used) > size {
            return Err(QueueError::State { available: next_available, used: next_used, size });
        }
        Ok(Self {
            ring,
            features,
            next_available: Index::new(next_available),
            next_used: Index::new(next_used),
            published: next_used,
            available_seen: Index::new(next_available),
            is_taken: vec![false; usize::from(size)].into(),
            taken_count: 0,
            leftover,
            leftover_count,
            inflight,
            order: VecDeque::with_capacity(if features.in_order { usize::from(size) } else { 0 }),
            batch: Vec::with_capacity(usize::from(size)),
            fetched: next_available,
            is_first: true,
        })
    }

    /// Where the ring stands. Chains that are taken and not given back are behind it, so that
    /// whoever goes on must know of them from elsewhere.
    pub const fn state(&self) -> RingState {
        RingState { next_available: self.next_available.get(), next_used: self.next_used.get() }
    }

    #[inline]
    pub const fn size(&self) -> u16 {
        self.ring.size()
    }

    #[inline]
    pub const fn memory(&self) -> &Arc<GuestMemory> {
        self.ring.memory()
    }

    /// Chains that were taken and not given back.
    #[inline]
    pub const fn taken_count(&self) -> u16 {
        self.taken_count
    }

    /// Chains that a process before this one left unfinished, counted at the start.
    pub const fn leftover_count(&self) -> u16 {
        self.leftover_count
    }

    /// How many chains could be taken now.
    pub fn available_count(&mut self) -> Result<u16, RingFault> {
        let waiting = self.look()?;
        Ok(waiting.saturating_add(u16::try_from(self.leftover.len()).unwrap_or(u16::MAX)))
    }

    /// Takes the next chain into `chain`. `Ok(false)` when there is none.
    ///
    /// # Errors
    /// [`PopFault::Chain`] for a chain that breaks the rules: it was taken, and must be given
    /// back like a good one. [`PopFault::Ring`] ends the ring.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, PopFault> {
        if !self.leftover.is_empty() {
            return self.pop_leftover(chain);
        }
        if self.next_available == self.available_seen {
            let waiting = self.look().map_err(|source| PopFault::Ring { source })?;
            if waiting == 0 {
                return Ok(false);
            }
        }
        let head = self.ring.available_entry(self.next_available.get());
        self.mark_taken(head).map_err(|source| PopFault::Ring { source })?;
        if let Some(record) = &mut self.inflight {
            record.take(head);
        }
        self.next_available.advance();
        self.read(chain, head)
    }

    /// Has the first buffer of the chain that will be popped after `ahead` others fetched, if the
    /// driver was seen to have made it available. A hint: what is read of the ring here is judged by
    /// nobody and forgotten, and the pop reads it again.
    #[inline]
    pub fn prefetch(&self, ahead: u16) {
        if self.available_seen.get().wrapping_sub(self.next_available.get()) <= ahead {
            return;
        }
        let head = self.ring.available_entry(self.next_available.get().wrapping_add(ahead));
        if head < self.ring.size() {
            let descriptor = self.ring.descriptor(head);
            self.ring.memory().prefetch_to_write(descriptor.address);
        }
    }

    /// How many of the driver's entries wait, up to `most`, with at most one look at its index. For a
    /// caller that has a burst's lines fetched before it pops.
    ///
    /// # Errors
    /// When the driver's index is nonsense; the next pop says so too.
    #[inline]
    pub fn ready(&mut self, most: u16) -> Result<u16, RingFault> {
        let seen = self.available_seen.get().wrapping_sub(self.next_available.get());
        if seen >= most { Ok(most) } else { Ok(self.look()?.min(most)) }
    }

    /// Has the lines fetched that the next `count` chains will need, as far as the driver has made
    /// them available: descriptors, used entries, and of each first buffer up to `length` bytes.
    /// What an earlier call has had fetched is left out, so that a caller may ask for the next burst
    /// while it works on this one: a line that another core has just written takes some 50 to 100 ns,
    /// and a burst has a hundred of them.
    ///
    /// A hint, like [`Self::prefetch`]; a fault of the ring is found by the pop that follows.
    #[inline]
    pub fn fetch_ahead(&mut self, count: u16, length: usize, access: Access) {
        let Ok(ready) = self.ready(count) else { return };
        let done = self.fetched.wrapping_sub(self.next_available.get());
        let begin = if done <= ready { done } else { 0 };
        for ahead in begin..ready {
            self.ring.prefetch_descriptor(self.next_available.get().wrapping_add(ahead));
        }
        for ahead in (begin..ready).step_by(USED_PER_LINE) {
            self.ring.prefetch_used_entry(self.next_used.get().wrapping_add(ahead));
        }
        for ahead in begin..ready {
            self.prefetch_buffer(ahead, length, access);
        }
        self.fetched = self.next_available.get().wrapping_add(ready);
    }

    #[inline]
    fn prefetch_buffer(&self, ahead: u16, length: usize, access: Access) {
        let head = self.ring.available_entry(self.next_available.get().wrapping_add(ahead));
        if head < self.ring.size() {
            let descriptor = self.ring.descriptor(head);
            let length = length.min(descriptor.length as usize);
            self.ring.memory().prefetch_range(descriptor.address, length, access);
        }
    }

    /// If the next chain is one plain buffer to be written with room for `length` bytes, has it
    /// filled and gives it back at once: pop, copy and push of nearly every packet to a guest,
    /// without a list of segments in between. `false`, with nothing taken, for every other chain,
    /// for a fault, and where an in-flight record is kept: then [`Self::pop`] does it or says why.
    #[inline]
    pub fn fill_next(&mut self, length: u32, fill: impl FnOnce(&Window<'_>)) -> bool {
        let is_plain = self.next_available != self.available_seen
            && self.inflight.is_none()
            && self.order.is_empty()
            && self.leftover.is_empty();
        if !is_plain {
            return false;
        }
        let head = self.ring.available_entry(self.next_available.get());
        // A head that the device still has, or that is out of range, is the pop's to refuse.
        if self.is_taken.get(usize::from(head)) != Some(&false) {
            return false;
        }
        let descriptor = self.ring.descriptor(head);
        if descriptor.flags & KIND_FLAGS != flags::WRITE || descriptor.length < length {
            return false;
        }
        let room = descriptor.length as usize;
        let Some(window) = self.ring.memory().window(descriptor.address, room) else {
            return false;
        };
        fill(&window);
        self.next_available.advance();
        self.ring.set_used_element(self.next_used.get(), head, length);
        self.next_used.advance();
        true
    }

    fn pop_leftover(&mut self, chain: &mut Chain) -> Result<bool, PopFault> {
        let Some(head) = self.leftover.pop_front() else { return Ok(false) };
        // Its mark and its place in the order stand already.
        self.mark_taken(head).map_err(|source| PopFault::Ring { source })?;
        self.read(chain, head)
    }

    #[inline]
    fn read(&self, chain: &mut Chain, head: u16) -> Result<bool, PopFault> {
        match chain.read(&self.ring, head, self.features.indirect) {
            Ok(()) => Ok(true),
            Err(source) => Err(PopFault::Chain { head, source }),
        }
    }

    /// Reads the driver's index and says how many entries wait.
    #[inline]
    fn look(&mut self) -> Result<u16, RingFault> {
        let available = self.ring.available_index();
        let waiting = available.wrapping_sub(self.next_available.get());
        if waiting > self.ring.size() {
            let (taken, size) = (self.next_available.get(), self.ring.size());
            return Err(RingFault::IndexJump { available, taken, size });
        }
        self.available_seen = Index::new(available);
        Ok(waiting)
    }

    #[inline]
    fn mark_taken(&mut self, head: u16) -> Result<(), RingFault> {
        let size = self.ring.size();
        let Some(slot) = self.is_taken.get_mut(usize::from(head)) else {
            return Err(RingFault::HeadOutOfRange { head, size });
        };
        if *slot {
            return Err(RingFault::HeadTwice { head });
        }
        *slot = true;
        self.taken_count += 1;
        if self.features.in_order {
            self.order.push_back((head, None));
        }
        Ok(())
    }

    /// Takes back the newest `heads` that were popped, in the order of popping: they will be
    /// popped again. For a receive queue that has not buffers enough for a packet.
    ///
    /// With an in-flight record their marks stand, and they wait as leftovers do: the record's
    /// sum, used index + marks = next entry, is then true at every moment a kill may come.
    ///
    /// # Panics
    /// If a head was not taken.
    pub fn rewind(&mut self, heads: &[u16]) {
        for head in heads {
            self.unmark(*head);
        }
        if self.features.in_order {
            // They are the newest, so they stand at the end.
            self.order.truncate(self.order.len() - heads.len());
        }
        if self.inflight.is_some() {
            for head in heads.iter().rev() {
                self.leftover.push_front(*head);
            }
            return;
        }
        let count = u16::try_from(heads.len()).expect("no more heads are taken than a ring has");
        self.next_available = Index::new(self.next_available.get().wrapping_sub(count));
    }

    #[inline]
    fn unmark(&mut self, head: u16) {
        let slot = &mut self.is_taken[usize::from(head)];
        assert!(*slot, "chain {head} is given back without having been taken");
        *slot = false;
        self.taken_count -= 1;
    }

    /// Gives a chain back with `length` bytes written. The driver sees it after
    /// [`Self::publish`].
    ///
    /// # Panics
    /// If `head` was not taken: the caller's books are wrong.
    #[inline]
    pub fn push(&mut self, head: u16, length: u32) {
        self.unmark(head);
        if self.features.in_order {
            return self.push_in_order(head, length);
        }
        self.give_back(head, length);
    }

    /// Gives back all up to the first that the caller is not done with.
    fn push_in_order(&mut self, head: u16, length: u32) {
        let entry =
            self.order.iter_mut().find(|(taken, written)| *taken == head && written.is_none());
        entry.expect("a head that was taken stands in the order").1 = Some(length);
        while let Some((head, Some(length))) = self.order.front().copied() {
            self.order.pop_front();
            self.give_back(head, length);
        }
    }

    #[inline]
    fn give_back(&mut self, head: u16, length: u32) {
        self.ring.set_used_element(self.next_used.get(), head, length);
        self.next_used.advance();
        if let Some(record) = &self.inflight {
            record.give_back(head);
            self.batch.push(head);
        }
    }

    /// Shows the driver all that was given back. `true` when it wants to be called.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.next_used.get() {
            return false;
        }
        let old = self.published;
        self.ring.set_used_index(self.next_used.get());
        self.published = self.next_used.get();
        if let Some(record) = &self.inflight {
            record.batch_is_out(&self.batch, self.next_used.get());
            self.batch.clear();
        }
        // SeqCst: the partner is the fence in `DriverQueue::arm_calls`. Either we see the
        // driver's wish to be called, or it sees our used index.
        fence(Ordering::SeqCst);
        let is_first = std::mem::take(&mut self.is_first);
        is_first || self.wants_call(old)
    }

    fn wants_call(&self, old: u16) -> bool {
        if self.features.event_index {
            passes(self.ring.used_event(), old, self.next_used.get())
        } else {
            self.ring.available_flags() & ring_flags::NO_INTERRUPT == 0
        }
    }

    /// Asks the driver to kick when it makes more available. `true` when there is more already:
    /// then no kick may come.
    pub fn arm_kicks(&mut self) -> Result<bool, RingFault> {
        if self.features.event_index {
            self.ring.set_available_event(self.next_available.get());
        } else {
            self.ring.set_used_flags(0);
        }
        // SeqCst: the partner is the fence in `DriverQueue::publish`. Either the driver sees our
        // wish to be kicked, or we see its index.
        fence(Ordering::SeqCst);
        Ok(self.available_count()? > 0)
    }

    /// Tells the driver that kicks are not needed.
    ///
    /// With event indexes there is nothing to say: the event stays where it is, the driver's
    /// index leaves it behind, and it kicks once more at most until the index wraps.
    pub fn disarm_kicks(&mut self) {
        if !self.features.event_index {
            // Relaxed inside: a kick too many is harmless.
            self.ring.set_used_flags(ring_flags::NO_NOTIFY);
        }
    }
}
