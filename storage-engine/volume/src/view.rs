// SPDX-License-Identifier: Apache-2.0
//! Reads of an attached volume without a request, where the pool's disks are memory.

use crate::range::first_part;
use crate::request::VolumeHandle;
use crate::volume::Access;
use crate::volumes::Volumes;
use plinth_store::{ObjectStore, Sight};

impl<S: ObjectStore> Volumes<S> {
    /// Whether [`Volumes::sight`] may find anything.
    #[inline]
    pub fn lends(&self) -> bool {
        self.store.lends()
    }

    /// Finds where the bytes of a read are, and expects to view them. `None`, also for what would
    /// be refused: read them by a request.
    #[inline]
    pub fn sight(&mut self, handle: VolumeHandle, offset: u64, length: u32) -> Option<Sight> {
        let attached = self.check_range(handle, offset, u64::from(length)).ok()?;
        if attached.view != 0 {
            return None;
        }
        let part = first_part(offset, u64::from(length));
        if part.length != length {
            return None;
        }
        let key = self.place(attached.at)?.direct(self.pool, part.index, Access::Read)?;
        self.store.sight(&key, part.offset, length)
    }

    /// The whole blocks around a read's bytes, compared with their checksums. `None` where they
    /// must be read by a request, as after any other call than [`Volumes::sight`] and
    /// [`Volumes::fetch`].
    #[inline]
    pub fn view(&mut self, sight: &Sight) -> Option<&[u8]> {
        self.store.view(sight)
    }

    /// Has some of what is expected fetched, while something else is done.
    #[inline]
    pub fn fetch(&mut self) {
        self.store.fetch();
    }
}
