// SPDX-License-Identifier: Apache-2.0
//! What every driver side does with a ring: show what is available, take what is used, say who
//! wants to be called. Which descriptors make a chain is decided above it, by
//! [`crate::DriverQueue`] and [`crate::SlotQueue`].

use crate::device::ring_flags;
use crate::driver::UsedFault;
use crate::layout::RingFeatures;
use crate::ring::{Ring, passes};
use std::sync::atomic::{Ordering, fence};

#[derive(Debug)]
pub(crate) struct DriverRing {
    pub(crate) ring: Ring,
    pub(crate) features: RingFeatures,
    next_available: u16,
    published: u16,
    next_used: u16,
    /// The device's index as last read. It is read again when all before it was taken: the device
    /// writes to its line, so that each look costs a trip between cores.
    used_seen: u16,
}

impl DriverRing {
    pub(crate) const fn new(ring: Ring, features: RingFeatures) -> Self {
        Self { ring, features, next_available: 0, published: 0, next_used: 0, used_seen: 0 }
    }

    pub(crate) const fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Begins with available entry `next`, nothing after it shown yet.
    pub(crate) fn begin_at(&mut self, next: u16) {
        self.next_available = next;
    }

    #[inline]
    pub(crate) fn make_available(&mut self, head: u16) {
        self.ring.set_available_entry(self.next_available, head);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Shows the device all that was made available. `true` when it wants to be kicked.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        if self.published == self.next_available {
            return false;
        }
        let old = self.show();
        // SeqCst: the partner is the fence in `DeviceQueue::arm_kicks`. Either we see the
        // device's wish to be kicked, or it sees our index.
        fence(Ordering::SeqCst);
        if self.features.event_index {
            passes(self.ring.available_event(), old, self.published)
        } else {
            self.ring.used_flags() & ring_flags::NO_NOTIFY == 0
        }
    }

    /// Stores the index and says what it was.
    #[inline]
    pub(crate) fn show(&mut self) -> u16 {
        self.ring.set_available_index(self.next_available);
        std::mem::replace(&mut self.published, self.next_available)
    }

    /// The head and length of the next used entry.
    #[inline]
    pub(crate) fn take_used(&mut self) -> Result<Option<(u32, u32)>, UsedFault> {
        if self.next_used == self.used_seen {
            let used = self.ring.used_index();
            if used == self.next_used {
                return Ok(None);
            }
            let (seen, size) = (self.next_used, self.ring.size());
            if used.wrapping_sub(seen) > size {
                return Err(UsedFault::IndexJump { used, seen, size });
            }
            self.used_seen = used;
        }
        let element = self.ring.used_element(self.next_used);
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(element))
    }

    /// The head of the entry that is `ahead` behind the next one, if it is known to be used.
    #[inline]
    pub(crate) fn peek_used(&self, ahead: u16) -> Option<u32> {
        let is_known = self.used_seen.wrapping_sub(self.next_used) > ahead;
        is_known.then(|| self.ring.used_element(self.next_used.wrapping_add(ahead)).0)
    }

    /// Asks the device to call when it gives back more. `true` when there is more already: then
    /// no call may come.
    pub(crate) fn arm_calls(&mut self) -> bool {
        if self.features.event_index {
            self.ring.set_used_event(self.next_used);
        } else {
            self.ring.set_available_flags(0);
        }
        // SeqCst: the partner is the fence in `DeviceQueue::publish`. Either the device sees our
        // wish to be called, or we see its used index.
        fence(Ordering::SeqCst);
        self.ring.used_index() != self.next_used
    }

    /// Tells the device that calls are not needed.
    pub(crate) fn disarm_calls(&mut self) {
        if self.features.event_index {
            // An index that lies half the space behind is not reached before it is set again,
            // except by who takes 32 768 chains without asking: that is one call too many.
            self.ring.set_used_event(self.next_used.wrapping_sub(1 << 15));
        } else {
            self.ring.set_available_flags(ring_flags::NO_INTERRUPT);
        }
    }
}
