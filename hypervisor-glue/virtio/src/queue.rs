// SPDX-License-Identifier: Apache-2.0
//! A ring of either layout, device side and driver side.

use crate::chain::{Chain, Segment};
use crate::device::{PopFault, RingFault, SplitQueue};
use crate::driver::{QueueFull, SplitDriver, Used, UsedFault};
use crate::inflight::InflightQueue;
use crate::layout::{QueueError, QueueLayout, RingFeatures, RingState};
use crate::packed::PackedQueue;
use crate::packed_driver::PackedDriver;
use plinth_guest_memory::{Access, GuestAddress, GuestMemory, Window};
use std::sync::Arc;

/// The device side of one ring.
#[derive(Debug)]
pub enum DeviceQueue {
    Split(SplitQueue),
    Packed(PackedQueue),
}

/// Calls a method of the ring of either layout.
macro_rules! either {
    ($kind:ident, $queue:expr, $method:ident ( $($argument:expr),* )) => {
        match $queue {
            $kind::Split(queue) => queue.$method($($argument),*),
            $kind::Packed(queue) => queue.$method($($argument),*),
        }
    };
}

impl DeviceQueue {
    /// A queue that goes on at `base`, as the frontend has it: an available entry, or a slot of a
    /// packed ring with its lap in bit 15.
    ///
    /// With an in-flight record that knows this ring, `base` is not believed: what was taken is
    /// what was given back, up to the ring's used index, and what the record says was left.
    /// A packed ring needs no record and keeps none: see [`PackedQueue`].
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: &QueueLayout,
        features: RingFeatures,
        base: u16,
        inflight: Option<InflightQueue>,
    ) -> Result<Self, QueueError> {
        if features.packed {
            return PackedQueue::new(memory, layout, features, base).map(Self::Packed);
        }
        SplitQueue::new(memory, layout, features, base, inflight).map(Self::Split)
    }

    /// Where the ring stands. Chains that are taken and not given back are behind it, so that
    /// whoever goes on must know of them from elsewhere.
    pub const fn state(&self) -> RingState {
        either!(Self, self, state())
    }

    #[inline]
    pub const fn size(&self) -> u16 {
        either!(Self, self, size())
    }

    #[inline]
    pub const fn memory(&self) -> &Arc<GuestMemory> {
        either!(Self, self, memory())
    }

    /// Chains that were taken and not given back.
    #[inline]
    pub const fn taken_count(&self) -> u16 {
        either!(Self, self, taken_count())
    }

    /// Chains that a process before this one left unfinished, counted at the start.
    pub const fn leftover_count(&self) -> u16 {
        match self {
            Self::Split(queue) => queue.leftover_count(),
            Self::Packed(_) => 0,
        }
    }

    /// How many chains could be taken now; of a packed ring, how many slots.
    pub fn available_count(&mut self) -> Result<u16, RingFault> {
        match self {
            Self::Split(queue) => queue.available_count(),
            Self::Packed(queue) => Ok(queue.available_count()),
        }
    }

    /// Takes the next chain into `chain`. `Ok(false)` when there is none.
    ///
    /// # Errors
    /// [`PopFault::Chain`] for a chain that breaks the rules: it was taken, and must be given
    /// back like a good one. [`PopFault::Ring`] ends the ring.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, PopFault> {
        either!(Self, self, pop(chain))
    }

    /// Has the first buffer of the chain that will be popped after `ahead` others fetched, if the
    /// driver was seen to have made it available. A hint: what is read of the ring here is judged
    /// by nobody and forgotten, and the pop reads it again.
    #[inline]
    pub fn prefetch(&self, ahead: u16) {
        either!(Self, self, prefetch(ahead));
    }

    /// Has the lines fetched that the next `count` chains will need, as far as the driver has made
    /// them available: descriptors, used entries, and of each first buffer up to `length` bytes.
    /// What an earlier call has had fetched is left out, so that a caller may ask for the next
    /// burst while it works on this one: a line that another core has just written takes some 50
    /// to 100 ns, and a burst has a hundred of them. A hint, like [`Self::prefetch`].
    #[inline]
    pub fn fetch_ahead(&mut self, count: u16, length: usize, access: Access) {
        either!(Self, self, fetch_ahead(count, length, access));
    }

    /// If the next chain is one plain buffer to be written with room for `length` bytes, has it
    /// filled and gives it back at once: pop, copy and push of nearly every packet to a guest,
    /// without a list of segments in between. `false`, with nothing taken, for every other chain,
    /// for a fault, and where an in-flight record is kept: then [`Self::pop`] does it or says why.
    #[inline(always)]
    pub fn fill_next(&mut self, length: u32, fill: impl FnOnce(&Window<'_>)) -> bool {
        either!(Self, self, fill_next(length, fill))
    }

    /// Takes back the newest `heads` that were popped, in the order of popping: they will be
    /// popped again. For a receive queue that has not buffers enough for a packet.
    ///
    /// # Panics
    /// If a head was not taken.
    pub fn rewind(&mut self, heads: &[u16]) {
        either!(Self, self, rewind(heads));
    }

    /// Gives a chain back with `length` bytes written. The driver sees it after
    /// [`DeviceQueue::publish`]; of a packed ring, and with in-order use, also not before all that
    /// were taken before it.
    ///
    /// # Panics
    /// If `head` was not taken: the caller's books are wrong.
    #[inline]
    pub fn push(&mut self, head: u16, length: u32) {
        either!(Self, self, push(head, length));
    }

    /// Gives several chains back with nothing written, as [`Self::push`] does one.
    ///
    /// # Panics
    /// If one was not taken.
    #[inline]
    pub fn push_all(&mut self, heads: impl Iterator<Item = u16>) {
        match self {
            Self::Split(queue) => heads.for_each(|head| queue.push(head, 0)),
            Self::Packed(queue) => heads.for_each(|head| queue.push(head, 0)),
        }
    }

    /// Shows the driver all that was given back. `true` when it wants to be called.
    #[inline]
    pub fn publish(&mut self) -> bool {
        either!(Self, self, publish())
    }

    /// Asks the driver to kick when it makes more available. `true` when there is more already:
    /// then no kick may come.
    pub fn arm_kicks(&mut self) -> Result<bool, RingFault> {
        match self {
            Self::Split(queue) => queue.arm_kicks(),
            Self::Packed(queue) => Ok(queue.arm_kicks()),
        }
    }

    /// Tells the driver that kicks are not needed.
    pub fn disarm_kicks(&mut self) {
        either!(Self, self, disarm_kicks());
    }
}

/// The driver side of one ring.
#[derive(Debug)]
pub enum DriverQueue {
    Split(SplitDriver),
    Packed(PackedDriver),
}

impl DriverQueue {
    /// A driver for the ring at `layout`, which must be zeros.
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: &QueueLayout,
        features: RingFeatures,
    ) -> Result<Self, QueueError> {
        if features.packed {
            return PackedDriver::new(memory, layout, features).map(Self::Packed);
        }
        SplitDriver::new(memory, layout, features).map(Self::Split)
    }

    pub const fn size(&self) -> u16 {
        either!(Self, self, size())
    }

    pub const fn memory(&self) -> &Arc<GuestMemory> {
        either!(Self, self, memory())
    }

    /// Descriptors that are free.
    pub const fn free_count(&self) -> u16 {
        either!(Self, self, free_count())
    }

    /// The place of the ring that is looked at next. What a frontend gives as base to a backend
    /// that starts anew: see [`DeviceQueue::new`].
    pub const fn next_used(&self) -> u16 {
        either!(Self, self, next_used())
    }

    /// Adds a chain. The device sees it after [`DriverQueue::publish`].
    #[inline]
    pub fn add(&mut self, readable: &[Segment], writable: &[Segment]) -> Result<u16, QueueFull> {
        either!(Self, self, add(readable, writable))
    }

    /// Adds a chain of one descriptor that points at a table, which is written at `table`: 16
    /// bytes for each segment, that must stay as they are until the chain comes back.
    pub fn add_indirect(
        &mut self,
        table: GuestAddress,
        readable: &[Segment],
        writable: &[Segment],
    ) -> Result<u16, QueueFull> {
        either!(Self, self, add_indirect(table, readable, writable))
    }

    /// Shows the device all that was added. `true` when it wants to be kicked.
    #[inline]
    pub fn publish(&mut self) -> bool {
        either!(Self, self, publish())
    }

    /// The next chain that the device gave back.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<Used>, UsedFault> {
        either!(Self, self, poll())
    }

    /// Asks the device to call when it gives back more. `true` when there is more already: then
    /// no call may come.
    pub fn arm_calls(&mut self) -> bool {
        either!(Self, self, arm_calls())
    }

    /// Tells the device that calls are not needed.
    pub fn disarm_calls(&mut self) {
        either!(Self, self, disarm_calls());
    }
}
