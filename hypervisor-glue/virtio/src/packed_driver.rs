// SPDX-License-Identifier: Apache-2.0
//! The driver side of one packed ring, for tests.

use crate::chain::{Segment, flags};
use crate::driver::{QueueFull, Used, UsedFault};
use crate::layout::{QueueError, QueueLayout, RingFeatures};
use crate::packed_ring::{Cursor, Event, PackedRing, available_flags, event};
use plinth_guest_memory::{GuestAddress, GuestMemory};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// A first descriptor that is not shown yet.
#[derive(Clone, Copy, Debug)]
struct Head {
    at: Cursor,
    length: u32,
    id: u16,
    flags: u16,
}

/// The driver side of one packed ring.
#[derive(Debug)]
pub struct PackedDriver {
    ring: PackedRing,
    features: RingFeatures,
    available: Cursor,
    published: Cursor,
    used: Cursor,
    free_count: u16,
    /// Buffer ids that no chain has, the next one first.
    free_ids: VecDeque<u16>,
    /// Slots of the chain with an id; 0 when the device has none of that id.
    slots: Box<[u16]>,
    /// Ids in the order in which their chains were made available.
    order: VecDeque<u16>,
    /// The rest of a batch that the device showed with one descriptor, by in-order use.
    batch: VecDeque<u16>,
    unshown: Vec<Head>,
}

impl PackedDriver {
    pub(crate) fn new(
        memory: Arc<GuestMemory>,
        layout: &QueueLayout,
        features: RingFeatures,
    ) -> Result<Self, QueueError> {
        let ring = PackedRing::new(memory, layout)?;
        let size = ring.size();
        Ok(Self {
            ring,
            features,
            available: Cursor::START,
            published: Cursor::START,
            used: Cursor::START,
            free_count: size,
            free_ids: (0..size).collect(),
            slots: vec![0; usize::from(size)].into(),
            order: VecDeque::new(),
            batch: VecDeque::new(),
            unshown: Vec::new(),
        })
    }

    pub(crate) const fn size(&self) -> u16 {
        self.ring.size()
    }

    pub(crate) const fn memory(&self) -> &Arc<GuestMemory> {
        self.ring.memory()
    }

    pub(crate) const fn free_count(&self) -> u16 {
        self.free_count
    }

    pub(crate) const fn next_used(&self) -> u16 {
        self.used.to_word()
    }

    pub(crate) fn add(
        &mut self,
        readable: &[Segment],
        writable: &[Segment],
    ) -> Result<u16, QueueFull> {
        let wanted = readable.len() + writable.len();
        if wanted == 0 {
            return Err(QueueFull::Empty);
        }
        if wanted > usize::from(self.free_count) {
            return Err(QueueFull::Descriptors { wanted, free: self.free_count });
        }
        let chain: Vec<_> = described(readable, writable)
            .enumerate()
            .map(|(at, (segment, write))| {
                (segment, write | if at + 1 == wanted { 0 } else { flags::NEXT })
            })
            .collect();
        Ok(self.put(&chain))
    }

    pub(crate) fn add_indirect(
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
        for (at, (segment, flags)) in described(readable, writable).enumerate() {
            let rest = u128::from(segment.length) | u128::from(flags) << 48;
            let bytes = (u128::from(segment.address.0) | rest << 64).to_le_bytes();
            let place = GuestAddress(table.0 + 16 * at as u64);
            self.memory().copy_in(place, &bytes).map_err(|source| QueueFull::Table { source })?;
        }
        let length = u32::try_from(16 * count).unwrap_or(u32::MAX);
        Ok(self.put(&[(Segment { address: table, length }, flags::INDIRECT)]))
    }

    /// Puts a chain into the next slots. Its first descriptor is shown by `publish`.
    fn put(&mut self, chain: &[(Segment, u16)]) -> u16 {
        let id = self.free_ids.pop_front().expect("there are as many ids as slots");
        let count = u16::try_from(chain.len()).expect("it is at most the free count");
        for (at, (segment, flags)) in chain.iter().enumerate() {
            let (slot, lap) = (self.available.slot(), self.available.lap);
            let flags = flags | available_flags(lap);
            self.ring.set_address(slot, segment.address);
            if at == 0 {
                let length = segment.length;
                self.unshown.push(Head { at: self.available, length, id, flags });
            } else {
                self.ring.show(slot, segment.length, id, flags);
            }
            self.available.advance(1, self.ring.size());
        }
        self.free_count -= count;
        self.slots[usize::from(id)] = count;
        self.order.push_back(id);
        id
    }

    pub(crate) fn publish(&mut self) -> bool {
        if self.unshown.is_empty() {
            return false;
        }
        for Head { at, length, id, flags } in self.unshown.drain(..) {
            self.ring.show(at.slot(), length, id, flags);
        }
        let old = std::mem::replace(&mut self.published, self.available);
        // SeqCst: the partner is the fence in the device's `arm_kicks`. Either we see the
        // device's wish to be kicked, or it sees our descriptors.
        fence(Ordering::SeqCst);
        let wish = self.ring.device_event();
        wish.wants(self.features.event_index, old, self.available, self.ring.size())
    }

    pub(crate) fn poll(&mut self) -> Result<Option<Used>, UsedFault> {
        if let Some(head) = self.batch.pop_front() {
            return Ok(Some(Used { head, length: 0 }));
        }
        let descriptor = self.ring.descriptor(self.used.slot());
        if self.free_count == self.size() || !descriptor.is_used(self.used.lap) {
            return Ok(None);
        }
        let last = descriptor.id;
        let not_taken = UsedFault::NotTaken { head: u32::from(last) };
        if self.slots.get(usize::from(last)).is_none_or(|slots| *slots == 0) {
            return Err(not_taken);
        }
        if !self.features.in_order {
            self.order.retain(|id| *id != last);
            self.free(last);
            return Ok(Some(Used { head: last, length: descriptor.length }));
        }
        while let Some(id) = self.order.pop_front() {
            self.free(id);
            self.batch.push_back(id);
            if id == last {
                break;
            }
        }
        let head = self.batch.pop_front().ok_or(not_taken)?;
        Ok(Some(Used { head, length: descriptor.length }))
    }

    fn free(&mut self, id: u16) {
        let count = std::mem::take(&mut self.slots[usize::from(id)]);
        self.used.advance(count, self.ring.size());
        self.free_count += count;
        self.free_ids.push_back(id);
    }

    pub(crate) fn arm_calls(&mut self) -> bool {
        self.ring.set_driver_event(if self.features.event_index {
            Event { at: self.used, flags: event::AT_SLOT }
        } else {
            Event::ALWAYS
        });
        // SeqCst: the partner is the fence in the device's `publish`. Either the device sees our
        // wish to be called, or we see its descriptors.
        fence(Ordering::SeqCst);
        !self.batch.is_empty()
            || self.free_count < self.size()
                && self.ring.descriptor(self.used.slot()).is_used(self.used.lap)
    }

    pub(crate) fn disarm_calls(&mut self) {
        self.ring.set_driver_event(Event::NEVER);
    }
}

/// Segments with the flag of what the device may do with them.
fn described<'a>(
    readable: &'a [Segment],
    writable: &'a [Segment],
) -> impl Iterator<Item = (Segment, u16)> + 'a {
    let readable = readable.iter().map(|segment| (*segment, 0));
    readable.chain(writable.iter().map(|segment| (*segment, flags::WRITE)))
}
