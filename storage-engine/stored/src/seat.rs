// SPDX-License-Identifier: Apache-2.0
//! A disk's store as its pool sees it: at hand, or owned by another worker.

use crate::place::DiskStore;
use plinth_ids::Moment;
use plinth_relay::RelayStore;
use plinth_store::{
    IoBuffer, ObjectKey, ObjectStore, Sight, StoreCapacity, StoreCompletion, StoreRequest,
    StoreState, StoreTag,
};

/// The number of a store that a worker holds for others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct HostId(pub(crate) u64);

/// A store on another worker.
#[derive(Debug)]
pub(crate) struct Far {
    pub(crate) store: RelayStore,
    pub(crate) worker: usize,
    pub(crate) host: HostId,
}

/// Where only one worker is, every seat is `Here`, and the branch is always the same.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the large one is the ordinary one")]
pub(crate) enum DiskSeat {
    Here(DiskStore),
    There(Box<Far>),
}

impl DiskSeat {
    /// The store, if it is this worker's.
    pub(crate) const fn here(&self) -> Option<&DiskStore> {
        match self {
            Self::Here(store) => Some(store),
            Self::There(_) => None,
        }
    }

    /// The store, if it is this worker's.
    pub(crate) const fn here_mut(&mut self) -> Option<&mut DiskStore> {
        match self {
            Self::Here(store) => Some(store),
            Self::There(_) => None,
        }
    }
}

impl ObjectStore for DiskSeat {
    #[inline]
    fn submit(&mut self, tag: StoreTag, request: StoreRequest) -> Result<(), StoreRequest> {
        match self {
            Self::Here(store) => store.submit(tag, request),
            Self::There(far) => far.store.submit(tag, request),
        }
    }

    #[inline]
    fn poll(&mut self, now: Moment, into: &mut Vec<StoreCompletion>) -> bool {
        match self {
            Self::Here(store) => store.poll(now, into),
            Self::There(far) => far.store.poll(now, into),
        }
    }

    #[inline]
    fn room(&self) -> usize {
        match self {
            Self::Here(store) => store.room(),
            Self::There(far) => far.store.room(),
        }
    }

    fn is_idle(&self) -> bool {
        match self {
            Self::Here(store) => store.is_idle(),
            Self::There(far) => far.store.is_idle(),
        }
    }

    fn state(&self) -> StoreState {
        match self {
            Self::Here(store) => store.state(),
            Self::There(far) => far.store.state(),
        }
    }

    fn capacity(&self) -> StoreCapacity {
        match self {
            Self::Here(store) => store.capacity(),
            Self::There(far) => far.store.capacity(),
        }
    }

    #[inline]
    fn take_buffer(&mut self, length: usize) -> IoBuffer {
        match self {
            Self::Here(store) => store.take_buffer(length),
            Self::There(far) => far.store.take_buffer(length),
        }
    }

    #[inline]
    fn lends(&self) -> bool {
        match self {
            Self::Here(store) => store.lends(),
            Self::There(_) => false,
        }
    }

    #[inline]
    fn sight(&mut self, key: &ObjectKey, offset: u32, length: u32) -> Option<Sight> {
        match self {
            Self::Here(store) => store.sight(key, offset, length),
            Self::There(_) => None,
        }
    }

    #[inline]
    fn view(&mut self, sight: &Sight) -> Option<&[u8]> {
        match self {
            Self::Here(store) => store.view(sight),
            Self::There(_) => None,
        }
    }

    #[inline]
    fn fetch(&mut self) {
        match self {
            Self::Here(store) => store.fetch(),
            Self::There(_) => {}
        }
    }

    #[inline]
    fn put_buffer(&mut self, buffer: IoBuffer) {
        match self {
            Self::Here(store) => store.put_buffer(buffer),
            Self::There(far) => far.store.put_buffer(buffer),
        }
    }
}
