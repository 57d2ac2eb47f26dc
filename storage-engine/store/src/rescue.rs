// SPDX-License-Identifier: Apache-2.0
//! A mount that reads what is left of a store, for an operator who saves volumes from it.
//!
//! ```text
//!   superblock ▶ tables, as far as they are there ▶ journal, as far as it goes without a gap
//!              ▶ replay in memory ▶ read-only, and nothing was written
//! ```
//!
//! Behind a gap in the journal lie acknowledged changes that cannot be replayed, and the disk has
//! some of their bytes: units that they freed may be another object's, and blocks may be
//! overwritten. So a block is what it was at some time, or is refused because it does not match its
//! checksum. Nothing is excused as an interrupted overwrite here, as it is after a crash: what was
//! being overwritten when the journal ends may have been given away since.

use crate::disk::Disk;
use crate::journal::Journal;
use crate::mount::{MountError, numbers_lost};
use crate::replay::Replay;
use crate::scan::Found;
use crate::store::{ReadOnlyReason, Store};

impl<D: Disk> Store<D> {
    /// What a mount for rescue passed over and could not replay or read; `None` for a store from
    /// which nothing is missing.
    pub const fn rescued_from(&self) -> Option<MountError> {
        self.lost
    }

    /// Brings memory to the last entry before the gap, and takes no changes from then on.
    pub(crate) fn rescue(&mut self, entries: &[Found]) -> Result<(), MountError> {
        Replay::run(self, entries)?;
        // Index pages may be of different times: of a key that two slots hold the younger counts.
        for slot in self.objects.older_twins() {
            self.objects.vacate(slot);
        }
        self.objects.rebuild().map_err(|key| MountError::Twice { key })?;
        let last = entries.last().map_or(0, |entry| entry.header.seq.get());
        // Behind everything that was read, so that pages may leave the cache.
        let next = last.saturating_add(1).saturating_add(numbers_lost(&self.layout));
        self.journal = Journal::new(self.layout.journal_length, 0, next);
        self.turn_read_only(ReadOnlyReason::Rescue);
        Ok(())
    }
}
