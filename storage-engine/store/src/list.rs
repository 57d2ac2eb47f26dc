// SPDX-License-Identifier: Apache-2.0
//! Listing: which objects of a range there are.
//!
//! The index is in memory, so a listing reads nothing. It waits for the changes that were
//! submitted before it and touch its range; who comes later need not wait for it.

use crate::disk::Disk;
use crate::keys::POOL_MAX;
use crate::op::Op;
use crate::query::{Found, Listing};
use crate::request::{ObjectKey, ObjectStatus, StoreAnswer};
use crate::store::Store;
use plinth_ids::PoolId;

/// Behind it are the objects that the store keeps beside those of users.
pub(crate) const LAST: ObjectKey = ObjectKey { pool: PoolId(POOL_MAX), ..ObjectKey::MAX };

impl<D: Disk> Store<D> {
    /// Answers the listing that came as the `number`th request.
    pub(crate) fn list_objects(&self, number: u64, listing: &Listing) -> Found {
        let is_before = |other: &Op| other.number < number && touches(other, listing);
        if self.parked.iter().filter_map(|&other| self.ops.get(other)).any(is_before) {
            return Found::Not;
        }
        let (start, end) = (*listing.range.start(), (*listing.range.end()).min(LAST));
        // A map panics when asked for a range that ends before it begins.
        if start > end {
            return Found::Answer(StoreAnswer::Listed { objects: Vec::new(), next: None });
        }
        let mut found = self.objects.range(start..=end);
        let objects = found.by_ref().take(listing.limit);
        let objects = objects.map(|(key, slot)| self.status(key, slot)).collect();
        let next = found.next().map(|(key, _)| key);
        Found::Answer(StoreAnswer::Listed { objects, next })
    }

    pub(crate) fn status(&self, key: ObjectKey, slot: u32) -> ObjectStatus {
        let slot = self.objects.slot(slot);
        ObjectStatus { key, size: slot.size, units: u32::from(slot.units) }
    }
}

/// Whether an operation may change which objects of the range there are, or their sizes.
fn touches(op: &Op, listing: &Listing) -> bool {
    op.steps().iter().any(|step| listing.range.contains(&step.key))
}
