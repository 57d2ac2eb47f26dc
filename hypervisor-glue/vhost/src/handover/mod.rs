// SPDX-License-Identifier: Apache-2.0
//! A device on its way from one process to the next, with its frontend connected.
//!
//! ```text
//!   old process                                new process
//!   Device::begin_hand_over                        │
//!     rings back from the worker                   │
//!   Device::finish_hand_over ─▶ HandedDevice       │
//!     HandOverLine::send ══ JSON + descriptors ══▶ HandOverLine::receive
//!                                               HandedDevice::parse
//!                                               Device::take_over ─▶ its worker polls the rings
//! ```
//!
//! The frontend notices nothing: its connection, the listening socket, the guest's memory, the
//! in-flight record and the rings' eventfds go along as descriptors. Rings are handed over
//! empty-handed: the old worker has answered all that it took, so the record has no mark. What
//! the guest makes available meanwhile stays in the ring and is found by the first poll.
//!
//! Who hands over keeps its own descriptors until it knows that the other serves. So it can go
//! on itself when the other does not come up.

mod image;
mod line;
mod successor;

pub use image::HandOverError;
pub use line::HandOverLine;
pub use successor::Successor;

use plinth_guest_memory::RegionSpec;
use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A device that no process serves at this moment.
#[derive(Debug)]
pub struct HandedDevice {
    pub(crate) path: PathBuf,
    pub(crate) listener: UnixListener,
    pub(crate) connection: Option<HandedConnection>,
}

impl HandedDevice {
    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a frontend is connected.
    pub const fn is_connected(&self) -> bool {
        self.connection.is_some()
    }
}

#[derive(Debug)]
pub(crate) struct HandedConnection {
    pub(crate) stream: UnixStream,
    /// The channel for announcements to the frontend.
    pub(crate) backchannel: Option<UnixStream>,
    pub(crate) state: HandedState,
}

/// What a frontend has said and brought so far.
#[derive(Debug, Default)]
pub(crate) struct HandedState {
    pub(crate) features: u64,
    pub(crate) protocol_features: u64,
    pub(crate) regions: Vec<(RegionSpec, File)>,
    pub(crate) record: Option<HandedRecord>,
    pub(crate) rings: Vec<HandedRing>,
}

/// The in-flight record's file.
#[derive(Debug)]
pub(crate) struct HandedRecord {
    pub(crate) file: File,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) queues: u16,
    pub(crate) size: u16,
}

#[derive(Debug, Default)]
pub(crate) struct HandedRing {
    pub(crate) size: u16,
    pub(crate) addresses: Option<[u64; 3]>,
    pub(crate) base: u16,
    pub(crate) kick: Option<File>,
    pub(crate) call: Option<File>,
    pub(crate) error: Option<File>,
    pub(crate) is_started: bool,
    pub(crate) is_enabled: bool,
}
