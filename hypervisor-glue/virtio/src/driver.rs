// SPDX-License-Identifier: Apache-2.0
//! The driver side of one split ring, for clients that measure and for tests.

use crate::chain::{Segment, flags};
use crate::driver_ring::DriverRing;
use crate::layout::{QueueError, QueueLayout, RingFeatures};
use crate::ring::{Descriptor, Ring};
use plinth_guest_memory::{GuestAddress, GuestMemory, OutsideMemory};
use std::sync::Arc;

/// Why a chain was not added. Nothing was changed then.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum QueueFull {
    #[error("{wanted} descriptors are needed and {free} are free")]
    Descriptors { wanted: usize, free: u16 },
    #[error("a chain has one descriptor at least")]
    Empty,
    #[error("the indirect table is not memory")]
    Table { source: OutsideMemory },
}

/// A chain that the device gave back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Used {
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub length: u32,
}

/// The device broke the rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UsedFault {
    #[error("the device's index went from {seen} to {used} in a ring of {size}")]
    IndexJump { used: u16, seen: u16, size: u16 },
    #[error("the device gave back chain {head}, which it does not have")]
    NotTaken { head: u32 },
}

/// The driver side of one split ring.
#[derive(Debug)]
pub struct SplitDriver {
    ring: DriverRing,
    /// The free descriptors, linked: `next[i]` follows `i`.
    next: Box<[u16]>,
    free_head: u16,
    free_count: u16,
    /// How many descriptors the chain that begins here has; 0 when none does.
    chain_length: Box<[u16]>,
}

impl SplitDriver {
    /// A driver for the ring at `layout`, which must be zeros.
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: &QueueLayout,
        features: RingFeatures,
    ) -> Result<Self, QueueError> {
        let ring = Ring::new(memory, layout)?;
        let size = ring.size();
        Ok(Self {
            ring: DriverRing::new(ring, features),
            next: (1..=size).collect(),
            free_head: 0,
            free_count: size,
            chain_length: vec![0; usize::from(size)].into(),
        })
    }

    pub const fn size(&self) -> u16 {
        self.ring.ring.size()
    }

    pub const fn memory(&self) -> &Arc<GuestMemory> {
        self.ring.ring.memory()
    }

    /// Descriptors that are free.
    pub const fn free_count(&self) -> u16 {
        self.free_count
    }

    /// The entry of the used ring that is looked at next. What a frontend gives as base to a
    /// backend that starts anew: see [`crate::DeviceQueue::new`].
    pub const fn next_used(&self) -> u16 {
        self.ring.next_used()
    }

    /// Adds a chain. The device sees it after [`Self::publish`].
    #[inline]
    pub fn add(&mut self, readable: &[Segment], writable: &[Segment]) -> Result<u16, QueueFull> {
        let wanted = readable.len() + writable.len();
        if wanted == 0 {
            return Err(QueueFull::Empty);
        }
        if wanted > usize::from(self.free_count) {
            return Err(QueueFull::Descriptors { wanted, free: self.free_count });
        }
        let head = self.free_head;
        let mut index = head;
        for (at, segment) in readable.iter().chain(writable).enumerate() {
            let is_last = at + 1 == wanted;
            let write = if at >= readable.len() { flags::WRITE } else { 0 };
            let flags = write | if is_last { 0 } else { flags::NEXT };
            let following = self.next[usize::from(index)];
            let next = if is_last { 0 } else { following };
            let (address, length) = (segment.address, segment.length);
            self.ring.ring.set_descriptor(index, Descriptor { address, length, flags, next });
            index = following;
        }
        self.take_free(head, index, u16::try_from(wanted).expect("it is at most the free count"));
        Ok(head)
    }

    /// Adds a chain of one descriptor that points at a table, which is written at `table`: 16
    /// bytes for each segment, that must stay as they are until the chain comes back.
    pub fn add_indirect(
        &mut self,
        table: GuestAddress,
        readable: &[Segment],
        writable: &[Segment],
    ) -> Result<u16, QueueFull> {
        let count = readable.len() + writable.len();
        if count == 0 {
            return Err(QueueFull::Empty);
        }
        if self.free_count == 0 {
            return Err(QueueFull::Descriptors { wanted: 1, free: 0 });
        }
        for (at, segment) in readable.iter().chain(writable).enumerate() {
            let write = if at >= readable.len() { flags::WRITE } else { 0 };
            let flags = write | if at + 1 == count { 0 } else { flags::NEXT };
            let next = u16::try_from(at + 1).unwrap_or(u16::MAX);
            let (address, length) = (segment.address, segment.length);
            let words = Descriptor { address, length, flags, next }.to_words();
            let place = GuestAddress(table.0 + 16 * at as u64);
            let bytes = (u128::from(words[0]) | u128::from(words[1]) << 64).to_le_bytes();
            let memory = self.ring.ring.memory();
            memory.copy_in(place, &bytes).map_err(|source| QueueFull::Table { source })?;
        }
        let head = self.free_head;
        let length = u32::try_from(16 * count).unwrap_or(u32::MAX);
        let flags = flags::INDIRECT;
        self.ring.ring.set_descriptor(head, Descriptor { address: table, length, flags, next: 0 });
        self.take_free(head, self.next[usize::from(head)], 1);
        Ok(head)
    }

    /// Books `count` descriptors from `head` on, and makes the chain available.
    #[inline]
    fn take_free(&mut self, head: u16, free_head: u16, count: u16) {
        self.free_head = free_head;
        self.free_count -= count;
        self.chain_length[usize::from(head)] = count;
        self.ring.make_available(head);
    }

    /// Shows the device all that was added. `true` when it wants to be kicked.
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// The next chain that the device gave back.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<Used>, UsedFault> {
        let Some((raw, length)) = self.ring.take_used()? else { return Ok(None) };
        let not_taken = UsedFault::NotTaken { head: raw };
        let head = u16::try_from(raw).map_err(|_| not_taken)?;
        let count = self.chain_length.get_mut(usize::from(head)).map(std::mem::take);
        let count = count.filter(|count| *count > 0).ok_or(not_taken)?;
        // The chain's links in `next` still stand: its last descriptor leads back to the free.
        let mut last = head;
        for _ in 1..count {
            last = self.next[usize::from(last)];
        }
        self.next[usize::from(last)] = self.free_head;
        self.free_head = head;
        self.free_count += count;
        Ok(Some(Used { head, length }))
    }

    /// Asks the device to call when it gives back more. `true` when there is more already: then
    /// no call may come.
    pub fn arm_calls(&mut self) -> bool {
        self.ring.arm_calls()
    }

    /// Tells the device that calls are not needed.
    pub fn disarm_calls(&mut self) {
        self.ring.disarm_calls();
    }
}
