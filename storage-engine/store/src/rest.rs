// SPDX-License-Identifier: Apache-2.0
//! What a process that put a store away in order tells the one that takes it up next.
//!
//! A mount looks through the whole journal for entries that vouch for others, because damage must
//! not pass for the journal's end ([`crate::MountError::Journal`]). That is up to 256 MiB to be
//! read, under guests that wait when a process is replaced. The process before knows where its
//! journal ended, so where the disk is still as it left it, its word does as well.

use crate::disk::Disk;
use crate::scan::Found;
use crate::store::{Access, Store, StoreState};
use plinth_format::{Page, StoreId, Superblock};

/// How a store was left. Worth something only to a process that was told by the one that left it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rest {
    pub store: StoreId,
    /// Of the newest superblock.
    pub generation: u64,
    /// The last journal entry that was written; none has a higher number.
    pub last_seq: u64,
}

impl Rest {
    /// The highest number of an entry, if this tells of the disk as it is.
    ///
    /// `entries` were read from the replay point on. Whoever had the store in between has written
    /// superblocks of higher generations, and an entry that was lost leaves fewer of them.
    pub(crate) fn highest(&self, superblock: &Superblock, entries: &[Found]) -> Option<u64> {
        let is_same =
            self.store == superblock.store() && self.generation == superblock.generation();
        let read = match entries.last() {
            Some(last) => last.header.seq.get(),
            None => superblock.replay_seq.get().checked_sub(1)?,
        };
        (is_same && self.last_seq == read).then_some(read)
    }
}

impl<D: Disk> Store<D> {
    /// How the store is left when nothing of it is under way; `None` when it is not for others to
    /// rely on.
    pub(crate) fn rest(&self) -> Option<Rest> {
        let is_good = self.state == StoreState::Writable && self.options.access == Access::Whole;
        let last_seq = self.journal.open_seq().checked_sub(1)?;
        let generation = self.checkpoint.generation;
        (is_good && self.journal.is_open_empty()).then_some(Rest {
            store: self.id,
            generation,
            last_seq,
        })
    }
}
