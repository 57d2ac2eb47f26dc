// SPDX-License-Identifier: Apache-2.0
//! The thread of one device: accepts a frontend, carries out its messages, turns others away.

use crate::backchannel::{self, Backchannel, Glimpse};
use crate::event::{DeviceClass, WorkerLink};
use crate::handover::{HandedConnection, HandedDevice};
use crate::listen::SocketFile;
use crate::protocol::Protocol;
use crate::{DeviceOptions, DeviceStatus};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError, VhostUserBackendReqHandlerMut};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What the epoll set tells apart.
const LISTENER: u64 = 0;
const WAKE: u64 = 1;
const CONNECTION: u64 = 2;

/// What the thread and its [`crate::Device`] share.
#[derive(Debug)]
pub(crate) struct Shared {
    status: Mutex<DeviceStatus>,
    /// Shut down to get the thread out of a message that does not end.
    connection: Mutex<Option<UnixStream>>,
    wake: EventFd,
    /// Relaxed, both: the eventfd behind them orders them.
    must_stop: AtomicBool,
    must_announce: AtomicBool,
    hand_over: Mutex<HandOver>,
    /// Told when `hand_over` becomes `Done`.
    handed: Condvar,
}

/// How far a hand-over is. `No` again when it was called off.
#[derive(Debug, Default)]
enum HandOver {
    #[default]
    No,
    Wanted,
    Done(Box<HandedDevice>),
}

impl Shared {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            status: Mutex::default(),
            connection: Mutex::default(),
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            must_stop: AtomicBool::new(false),
            must_announce: AtomicBool::new(false),
            hand_over: Mutex::default(),
            handed: Condvar::new(),
        })
    }

    fn hand_over(&self) -> MutexGuard<'_, HandOver> {
        // Each section is one assignment.
        self.hand_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn request_hand_over(&self) {
        *self.hand_over() = HandOver::Wanted;
        self.wake();
    }

    /// Waits for the thread to hand over. Calls it off when that takes longer than `patience`.
    pub(crate) fn wait_for_hand_over(&self, patience: Duration) -> Option<HandedDevice> {
        let deadline = Instant::now() + patience;
        let mut state = self.hand_over();
        loop {
            match std::mem::take(&mut *state) {
                HandOver::Done(device) => return Some(*device),
                HandOver::No => return None,
                HandOver::Wanted => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            *state = HandOver::Wanted;
            let waited = self.handed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn wants_hand_over(&self) -> bool {
        matches!(*self.hand_over(), HandOver::Wanted)
    }

    pub(crate) fn status(&self) -> MutexGuard<'_, DeviceStatus> {
        // Counters are whole after every statement, so a panic elsewhere spoils nothing.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn request_stop(&self) {
        self.must_stop.store(true, Ordering::Relaxed);
        if let Some(stream) = &*self.connection() {
            // It is closed already, or it is now.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.wake();
    }

    pub(crate) fn announce_config_change(&self) {
        self.must_announce.store(true, Ordering::Relaxed);
        self.wake();
    }

    fn wake(&self) {
        // A full counter is a wake-up already.
        let _ = self.wake.write(1);
    }
}

/// A frontend that is being served.
struct Connection {
    handler: BackendReqHandler<Mutex<Protocol>>,
    protocol: Arc<Mutex<Protocol>>,
    /// The same socket, to look at messages before they are taken.
    socket: UnixStream,
    backchannel: Option<Backchannel>,
}

impl Connection {
    /// Carries out one message.
    fn serve(&mut self) -> Result<(), VhostError> {
        match backchannel::peek(&self.socket) {
            Some(Glimpse::Channel(channel)) => self.backchannel = Some(channel),
            Some(Glimpse::Enable) if !self.protocol().has_enable() => return self.enable(),
            Some(Glimpse::Enable) | None => {}
        }
        self.handler.handle_request()
    }

    fn protocol(&self) -> MutexGuard<'_, Protocol> {
        // It is used on this thread alone; the crate wants the lock.
        self.protocol.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a SET_VRING_ENABLE that came before SET_FEATURES, which the crate refuses.
    fn enable(&self) -> Result<(), VhostError> {
        let request = backchannel::take_enable(&self.socket).map_err(VhostError::SocketBroken)?;
        let mut protocol = self.protocol();
        let result = protocol.set_vring_enable(request.index, request.value == 1);
        if request.needs_reply && protocol.has_reply_ack() {
            backchannel::acknowledge_enable(&self.socket, result.is_ok())
                .map_err(VhostError::SocketBroken)?;
        }
        result
    }
}

/// The thread's own.
pub(crate) struct Server {
    socket: SocketFile,
    options: DeviceOptions,
    class: Arc<dyn DeviceClass>,
    worker: WorkerLink,
    shared: Arc<Shared>,
    epoll: Epoll,
    connection: Option<Connection>,
}

impl Server {
    pub(crate) fn new(
        socket: SocketFile,
        options: DeviceOptions,
        class: Arc<dyn DeviceClass>,
        worker: WorkerLink,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let add =
            |fd, data| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, data));
        add(socket.listener.as_raw_fd(), LISTENER)?;
        add(shared.wake.as_raw_fd(), WAKE)?;
        Ok(Self { socket, options, class, worker, shared, epoll, connection: None })
    }

    /// Serves until [`Shared::request_stop`].
    pub(crate) fn run(mut self) {
        let mut events = [EpollEvent::default(); 4];
        while !self.shared.must_stop.load(Ordering::Relaxed) {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(socket = %self.name(), err = %error, "device gives up waiting");
                    break;
                }
            };
            for event in &events[..count] {
                match event.data() {
                    LISTENER => self.accept(),
                    CONNECTION => self.serve(),
                    _ => self.wake(),
                }
            }
            if self.shared.wants_hand_over() {
                match self.hand_over() {
                    Some(server) => self = server,
                    None => return,
                }
            }
        }
        self.disconnect();
    }

    /// Takes the rings back and puts the device where [`Shared::wait_for_hand_over`] finds it.
    /// Gives itself back when that was called off meanwhile, or cannot be done.
    fn hand_over(mut self) -> Option<Self> {
        let shared = self.shared.clone();
        if let Some(connection) = &self.connection {
            // This waits for the worker, for as long as requests are under way.
            connection.protocol().take_back_all();
        }
        let mut state = shared.hand_over();
        let listener = self.socket.listener.try_clone();
        if let (HandOver::Wanted, Ok(listener)) = (&*state, listener) {
            let connection = self.connection.take().map(|served| {
                let handed = served.protocol().hand_over();
                let backchannel = served.backchannel.map(Backchannel::into_stream);
                HandedConnection { stream: served.socket, backchannel, state: handed }
            });
            self.socket.keep_file();
            let path = self.options.socket.clone();
            *state = HandOver::Done(Box::new(HandedDevice { path, listener, connection }));
            shared.handed.notify_all();
            return None;
        }
        *state = HandOver::No;
        drop(state);
        tracing::warn!(socket = %self.name(), "the hand-over was called off; the device goes on");
        if let Some(Err(error)) = self.connection.as_ref().map(|served| served.protocol().resume())
        {
            self.note_failure(&error);
            self.disconnect();
        }
        Some(self)
    }

    /// Goes on with the connection that another process had.
    pub(crate) fn adopt(&mut self, handed: HandedConnection) {
        match self.try_adopt(handed) {
            Ok(connection) => {
                self.connection = Some(connection);
                let mut status = self.shared.status();
                status.is_connected = true;
                status.connections += 1;
            }
            Err(error) => {
                // The frontend sees its connection end, and comes again.
                *self.shared.connection() = None;
                self.note_failure(&error);
            }
        }
    }

    fn try_adopt(&self, handed: HandedConnection) -> Result<Connection, VhostError> {
        let HandedConnection { stream, backchannel, state } = handed;
        let own = |error: io::Error| VhostError::ReqHandlerError(error);
        let (stand_in, feeder) = UnixStream::pair().map_err(own)?;
        let mut connection = self.open(stand_in, stream).map_err(own)?;
        // The crate keeps what was agreed on to itself and cannot be told: it hears the four
        // messages again, from a socket of ours that is then exchanged for the frontend's.
        let agreed = [state.features, state.protocol_features];
        for message in backchannel::agreement(agreed) {
            io::Write::write_all(&mut &feeder, &message).map_err(own)?;
            connection.handler.handle_request()?;
        }
        plinth_rt::replace_descriptor(&connection.handler, connection.socket.as_fd())
            .map_err(own)?;
        let refused = |error| VhostError::ReqHandlerError(io::Error::other(error));
        connection.protocol().adopt(state).map_err(refused)?;
        connection.protocol().resume().map_err(refused)?;
        connection.backchannel = backchannel.map(Backchannel::from_stream);
        Ok(connection)
    }

    fn name(&self) -> std::path::Display<'_> {
        self.options.socket.display()
    }

    fn accept(&mut self) {
        let stream = match self.socket.listener.accept() {
            Ok((stream, _)) => stream,
            // Whoever it was is gone again, or descriptors are short: it will come again.
            Err(error) => {
                tracing::debug!(socket = %self.name(), err = %error, "no connection after all");
                return;
            }
        };
        if self.connection.is_some() {
            self.shared.status().refused += 1;
            tracing::warn!(socket = %self.name(), "a second frontend is turned away");
            return;
        }
        match self.connect(stream) {
            Ok(connection) => {
                self.connection = Some(connection);
                let mut status = self.shared.status();
                status.is_connected = true;
                status.connections += 1;
            }
            Err(error) => self.note_failure(&error),
        }
    }

    fn connect(&self, stream: UnixStream) -> io::Result<Connection> {
        stream.set_nonblocking(false)?;
        let socket = stream.try_clone()?;
        self.open(stream, socket)
    }

    /// A connection whose messages the crate reads from `stream`, and which ends with `socket`.
    fn open(&self, stream: UnixStream, socket: UnixStream) -> io::Result<Connection> {
        *self.shared.connection() = Some(socket.try_clone()?);
        // The order matters: a stop that came before the line above found no connection, and is
        // seen at the next round, because its wake-up stays.
        let interest = EpollEvent::new(EventSet::IN | EventSet::READ_HANG_UP, CONNECTION);
        self.epoll.ctl(ControlOperation::Add, socket.as_raw_fd(), interest)?;
        let protocol = Protocol::new(
            self.options.clone(),
            self.class.clone(),
            self.worker.clone(),
            self.shared.clone(),
        );
        let protocol = Arc::new(Mutex::new(protocol));
        let handler = BackendReqHandler::from_stream(stream, protocol.clone());
        Ok(Connection { handler, protocol, socket, backchannel: None })
    }

    fn serve(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        match connection.serve() {
            Ok(()) => return,
            Err(VhostError::SocketRetry(_)) => return,
            Err(VhostError::Disconnected) => {
                tracing::debug!(socket = %self.name(), "frontend has left");
            }
            Err(_) if self.shared.must_stop.load(Ordering::Relaxed) => {}
            Err(error) => self.note_failure(&error),
        }
        self.disconnect();
    }

    /// Ends the connection; returns when the worker has nothing of it any more.
    fn disconnect(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let _ = self.epoll.ctl(
            ControlOperation::Delete,
            connection.socket.as_raw_fd(),
            EpollEvent::default(),
        );
        *self.shared.connection() = None;
        connection.protocol().take_back_all();
        self.shared.status().is_connected = false;
    }

    /// Says it once: a frontend that connects every second and fails each time in the same way
    /// does not fill the log.
    fn note_failure(&self, error: &(dyn std::error::Error + 'static)) {
        let text = chain(error);
        let mut status = self.shared.status();
        status.failures += 1;
        if status.last_failure.as_ref() != Some(&text) {
            tracing::warn!(socket = %self.name(), err = %text, "connection closed");
            status.last_failure = Some(text);
        }
    }

    fn wake(&mut self) {
        // Emptied, so that the next wake-up is seen; it has a counter to empty or it has not.
        let _ = self.shared.wake.read();
        if !self.shared.must_announce.swap(false, Ordering::Relaxed) {
            return;
        }
        let channel = self.connection.as_mut().and_then(|served| served.backchannel.as_mut());
        let Some(channel) = channel else {
            tracing::debug!(socket = %self.name(), "no channel to announce a change on");
            return;
        };
        if let Err(error) = channel.announce_config_change() {
            tracing::warn!(socket = %self.name(), err = %error, "change was not announced");
        }
    }
}

/// An error with its causes. The crate shows the innermost of ours in its own text, so what is
/// said already is not said twice.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = match error.downcast_ref::<VhostError>() {
        Some(VhostError::ReqHandlerError(inner)) => {
            inner.get_ref().and_then(|error| error.source())
        }
        _ => error.source(),
    };
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
