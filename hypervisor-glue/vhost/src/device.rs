// SPDX-License-Identifier: Apache-2.0
//! One device: its socket, its thread, its life.

use crate::event::{DeviceClass, DeviceToken, WorkerLink};
use crate::handover::{HandedConnection, HandedDevice};
use crate::listen::{ServeError, SocketFile};
use crate::server::{Server, Shared};
use plinth_guest_memory::Shrinkable;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

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
        let socket = SocketFile::bind(&options.socket)?;
        Self::start(socket, options, class, worker, None)
    }

    /// Goes on with a device that another process has handed over: its rings are polled again,
    /// and its frontend has noticed nothing. A connection that cannot be gone on with (another
    /// number of rings, features that are not offered any more) is closed, the reason noted, and
    /// its frontend connects again. When this returns, the worker has been sent every ring that ran.
    ///
    /// # Errors
    /// When no thread or descriptor is left. The device is as it was handed over only for the
    /// process that handed it over and kept its own descriptors.
    pub fn take_over(
        options: DeviceOptions,
        class: Arc<dyn DeviceClass>,
        worker: WorkerLink,
        handed: HandedDevice,
    ) -> Result<Self, ServeError> {
        let HandedDevice { listener, connection, .. } = handed;
        let socket = SocketFile::adopt(listener, &options.socket);
        Self::start(socket, options, class, worker, connection)
    }

    fn start(
        socket: SocketFile,
        options: DeviceOptions,
        class: Arc<dyn DeviceClass>,
        worker: WorkerLink,
        handed: Option<HandedConnection>,
    ) -> Result<Self, ServeError> {
        let path = options.socket.clone();
        let start = |source| ServeError::Start { path: path.clone(), source };
        let shared = Arc::new(Shared::new().map_err(start)?);
        let mut server =
            Server::new(socket, options, class, worker, shared.clone()).map_err(start)?;
        if let Some(handed) = handed {
            server.adopt(handed);
        }
        let serve = move || server.run();
        let thread = std::thread::Builder::new()
            .name("vhost-user".to_owned())
            .spawn(serve)
            .map_err(start)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Asks the device to make itself ready for another process: its rings leave the worker.
    /// Returns at once, so that several devices do it side by side.
    pub fn begin_hand_over(&self) {
        self.shared.request_hand_over();
    }

    /// The device without a process, to be sent to another one or taken over by this one again.
    /// Its socket goes on listening.
    ///
    /// # Errors
    /// Gives the device back when it was not ready within `patience`, because requests are under
    /// way that do not end or a frontend is in the middle of a message: then it goes on here.
    pub fn finish_hand_over(mut self, patience: Duration) -> Result<HandedDevice, Self> {
        let Some(handed) = self.shared.wait_for_hand_over(patience) else { return Err(self) };
        if let Some(thread) = self.thread.take() {
            // It ends by itself after it has handed over.
            let _ = thread.join();
        }
        Ok(handed)
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
        if let Some(thread) = self.thread.take() {
            self.shared.request_stop();
            // A panic of the thread has been reported by the hook that aborts, or by the test.
            let _ = thread.join();
        }
    }
}
