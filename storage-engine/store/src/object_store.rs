// SPDX-License-Identifier: Apache-2.0
//! What volumes and pools see of a store, or of several that act as one.
//!
//! Nothing here waits: all that needs an answer is a [`StoreRequest`], so that an implementation
//! may have its disks on other threads.

use crate::buffer::IoBuffer;
use crate::disk::Disk;
use crate::request::{ObjectKey, StoreCompletion, StoreRequest, StoreTag};
use crate::store::{Store, StoreCapacity, StoreState};
use crate::view::Sight;
use plinth_ids::Moment;

/// Objects, changed and read by requests with answers.
pub trait ObjectStore {
    /// Takes a request. Its end comes out of [`ObjectStore::poll`], never out of this call.
    ///
    /// # Errors
    /// Gives the request back when as many as can be are on their way.
    fn submit(&mut self, tag: StoreTag, request: StoreRequest) -> Result<(), StoreRequest>;

    /// Moves everything that can move and appends what ended. Says whether anything did.
    fn poll(&mut self, now: Moment, into: &mut Vec<StoreCompletion>) -> bool;

    /// How many more requests `submit` takes. Where requests go to several disks, one of them
    /// may be full before this is zero.
    fn room(&self) -> usize;

    /// Whether nothing is on its way.
    fn is_idle(&self) -> bool;

    fn state(&self) -> StoreState;

    fn capacity(&self) -> StoreCapacity;

    /// A buffer from the pool; reads and writes give it back with their completion.
    fn take_buffer(&mut self, length: usize) -> IoBuffer;

    fn put_buffer(&mut self, buffer: IoBuffer);

    /// Whether [`ObjectStore::sight`] may find anything.
    fn lends(&self) -> bool {
        false
    }

    /// As [`Store::sight`].
    fn sight(&mut self, _key: &ObjectKey, _offset: u32, _length: u32) -> Option<Sight> {
        None
    }

    /// As [`Store::view`].
    fn view(&mut self, _sight: &Sight) -> Option<&[u8]> {
        None
    }

    /// As [`Store::fetch`].
    fn fetch(&mut self) {}
}

impl<D: Disk> ObjectStore for Store<D> {
    fn submit(&mut self, tag: StoreTag, request: StoreRequest) -> Result<(), StoreRequest> {
        Self::submit(self, tag, request)
    }

    fn poll(&mut self, now: Moment, into: &mut Vec<StoreCompletion>) -> bool {
        Self::poll(self, now, into)
    }

    fn room(&self) -> usize {
        Self::room(self)
    }

    fn is_idle(&self) -> bool {
        Self::is_idle(self)
    }

    fn state(&self) -> StoreState {
        Self::state(self)
    }

    fn capacity(&self) -> StoreCapacity {
        Self::capacity(self)
    }

    fn take_buffer(&mut self, length: usize) -> IoBuffer {
        Self::take_buffer(self, length)
    }

    fn put_buffer(&mut self, buffer: IoBuffer) {
        Self::put_buffer(self, buffer);
    }

    #[inline]
    fn lends(&self) -> bool {
        Self::lends(self)
    }

    #[inline]
    fn sight(&mut self, key: &ObjectKey, offset: u32, length: u32) -> Option<Sight> {
        Self::sight(self, key, offset, length)
    }

    #[inline]
    fn view(&mut self, sight: &Sight) -> Option<&[u8]> {
        Self::view(self, sight)
    }

    #[inline]
    fn fetch(&mut self) {
        Self::fetch(self);
    }
}
