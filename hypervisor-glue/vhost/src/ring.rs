// SPDX-License-Identifier: Apache-2.0
//! One ring as the frontend has described it so far.

use plinth_guest_memory::{GuestAddress, GuestMemory};
use plinth_virtio::{Notifier, NotifierError, QueueError, QueueLayout};
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

/// Why a message of the frontend was not carried out. It ends the connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("ring {index} of a device with {count}")]
    NoSuchRing { index: u32, count: u16 },
    #[error("features {features:#x} with bits that were not offered")]
    FeaturesNotOffered { features: u64 },
    #[error("a ring of {size} entries")]
    RingSize { size: u32 },
    #[error("a ring that begins at entry {base}")]
    RingBase { base: u32 },
    #[error("ring {index} was started before it was given a size, addresses and memory")]
    RingIncomplete { index: u16 },
    #[error("ring {index}: {part} at {address:#x} is in no region of memory")]
    RingAddress { index: u16, part: &'static str, address: u64 },
    #[error("ring {index} cannot be used")]
    Ring { index: u16, source: QueueError },
    #[error("ring {index}: the eventfd")]
    Eventfd { index: u16, source: NotifierError },
    #[error("ring {index}: no further descriptor")]
    Descriptor { index: u16, source: io::Error },
    #[error("the memory table")]
    Memory { source: plinth_guest_memory::TableError },
    #[error("the in-flight region")]
    Inflight { source: plinth_virtio::InflightError },
    #[error("an in-flight region for {queues} rings of {size} entries")]
    InflightShape { queues: u16, size: u16 },
    #[error("the driver writes to the configuration space")]
    Config { source: crate::ConfigRefusal },
    #[error("a connection of {found} rings was handed over for a device of {wanted}")]
    HandedRings { found: usize, wanted: usize },
    #[error("a connection with features {unknown:#x} was handed over, which are not offered here")]
    HandedFeatures { unknown: u64 },
    #[error("{what} is not offered")]
    NotOffered { what: &'static str },
}

/// One ring as the frontend has described it so far.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    pub(crate) size: u16,
    /// Descriptors, available and used ring, as the frontend has them.
    pub(crate) addresses: Option<[u64; 3]>,
    pub(crate) base: u16,
    pub(crate) kick: Option<File>,
    pub(crate) call: Option<File>,
    pub(crate) error: Option<File>,
    /// Between a kick descriptor and GET_VRING_BASE.
    pub(crate) is_started: bool,
    pub(crate) is_enabled: bool,
    /// What the worker has, for as long as it has it.
    pub(crate) running: Option<QueueLayout>,
}

impl Ring {
    /// Where the ring lies in the guest's memory.
    pub(crate) fn layout(
        &self,
        index: u16,
        memory: &GuestMemory,
    ) -> Result<QueueLayout, RequestError> {
        let Some([descriptors, available, used]) = self.addresses.filter(|_| self.size > 0) else {
            return Err(RequestError::RingIncomplete { index });
        };
        let translate = |part, address| {
            memory.from_frontend(address).ok_or(RequestError::RingAddress { index, part, address })
        };
        Ok(QueueLayout {
            size: self.size,
            descriptors: translate("the descriptor table", descriptors)?,
            available: translate("the available ring", available)?,
            used: translate("the used ring", used)?,
        })
    }

    /// A notifier of the worker's own for a descriptor that the frontend gave.
    pub(crate) fn notifier(
        index: u16,
        file: Option<&File>,
    ) -> Result<Option<Notifier>, RequestError> {
        let Some(file) = file else { return Ok(None) };
        let own = file.try_clone().map_err(|source| RequestError::Descriptor { index, source })?;
        let notifier =
            Notifier::new(own).map_err(|source| RequestError::Eventfd { index, source })?;
        Ok(Some(notifier))
    }
}

/// The used index that stands in a ring.
pub(crate) fn used_index(layout: &QueueLayout, memory: &GuestMemory) -> Option<u16> {
    let word = memory.u16_at(GuestAddress(layout.used.0.checked_add(2)?)).ok()?;
    // Acquire: the partner is the store of a worker that is gone; what it wrote is behind it.
    Some(word.load(Ordering::Acquire))
}
