// SPDX-License-Identifier: Apache-2.0
//! One device: its socket, its thread, its life.

use crate::event::{DeviceClass, DeviceToken, WorkerLink};
use plinth_guest_memory::Shrinkable;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// How one device is served.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Where to listen. A stale socket at this path is replaced; another file is not.
    pub socket: PathBuf,
    /// Comes back in every [`crate::QueueEvent`].
    pub token: DeviceToken,
    pub shrinkable: Shrinkable,
}

/// Why a device is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the path of the socket {} is longer than a socket's path can be", path.display())]
    PathTooLong { path: PathBuf },
    #[error("{} is there and is not a socket; remove it or choose another path", path.display())]
    NotASocket { path: PathBuf },
    #[error("another process listens on {}; stop it first", path.display())]
    InUse { path: PathBuf },
    #[error("cannot listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot start a thread for {}", path.display())]
    Thread { path: PathBuf, source: io::Error },
}

/// What an operator wants to know of a device.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DeviceStatus {
    pub is_connected: bool,
    /// Queues that a worker has in its hands.
    pub queues_running: u16,
    /// Frontends that connected so far.
    pub connections: u64,
    /// Frontends that were turned away because one was connected.
    pub refused: u64,
    /// Connections that ended with an error, and the newest of these errors.
    pub failures: u64,
    pub last_failure: Option<String>,
}

/// A device that is being served. Dropped, it stops.
#[derive(Debug)]
pub struct Device {
    options: DeviceOptions,
}

impl Device {
    /// Listens on the socket and serves one frontend at a time until [`Device::stop`].
    pub fn serve(
        options: DeviceOptions,
        class: Arc<dyn DeviceClass>,
        worker: WorkerLink,
    ) -> Result<Self, ServeError> {
        let _ = (class, worker);
        Ok(Self { options })
    }

    /// Tells the frontend to read the configuration space again.
    pub fn announce_config_change(&self) {}

    pub fn status(&self) -> DeviceStatus {
        DeviceStatus::default()
    }

    /// Ends the connection, takes all queues back from the worker, removes the socket.
    ///
    /// Waits for the worker's answers, so it must not be called on the worker's thread.
    pub fn stop(self) {
        let _ = &self.options;
    }
}
