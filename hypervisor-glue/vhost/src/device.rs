// SPDX-License-Identifier: Apache-2.0
//! One device: its socket, its thread, its life.

use crate::event::{DeviceClass, DeviceToken, WorkerLink};
use crate::listen::{ServeError, SocketFile};
use crate::server::{Server, Shared};
use plinth_guest_memory::Shrinkable;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

/// How one device is served.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Where to listen. A stale socket at this path is replaced; another file is not.
    pub socket: PathBuf,
    /// Comes back in every [`crate::QueueEvent`].
    pub token: DeviceToken,
    pub shrinkable: Shrinkable,
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
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Device {
    /// Listens on the socket and serves one frontend at a time until [`Device::stop`].
    pub fn serve(
        options: DeviceOptions,
        class: Arc<dyn DeviceClass>,
        worker: WorkerLink,
    ) -> Result<Self, ServeError> {
        let path = options.socket.clone();
        let start = |source| ServeError::Start { path: path.clone(), source };
        let socket = SocketFile::bind(&options.socket)?;
        let shared = Arc::new(Shared::new().map_err(start)?);
        let server = Server::new(socket, options, class, worker, shared.clone()).map_err(start)?;
        let thread = std::thread::Builder::new()
            .name("vhost-user".to_owned())
            .spawn(move || server.run())
            .map_err(start)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Tells the frontend that the configuration space has changed, such as a disk's size. One
    /// that is not connected, or has not opened the way for that, reads it when it connects.
    pub fn announce_config_change(&self) {
        self.shared.announce_config_change();
    }

    pub fn status(&self) -> DeviceStatus {
        self.shared.status().clone()
    }

    /// Ends the connection, takes all queues back from the worker, removes the socket.
    ///
    /// Waits for the worker's answers, so it must not be called on the worker's thread, nor may
    /// the device be dropped there. A worker that has ended must have dropped its end of the
    /// events' channel: else nobody answers, and this waits without end.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.request_stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the hook that aborts, or by the test.
            let _ = thread.join();
        }
    }
}
