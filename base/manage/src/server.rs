// SPDX-License-Identifier: Apache-2.0
//! The answering end: one thread that accepts, one for each connection.

use crate::LineFault;
use crate::line::{Line, read_line};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest path of a socket: `sun_path` has 108 bytes, the last a zero (unix(7)).
const SOCKET_PATH_LENGTH_MAX: usize = 107;

/// What a daemon answers. Called from several threads at once.
pub trait Service: Send + Sync + 'static {
    type Request: DeserializeOwned;
    type Reply: Serialize;

    fn handle(&self, request: Self::Request) -> Self::Reply;

    /// Puts a line that was no request into the service's words.
    fn refuse(&self, fault: LineFault) -> Self::Reply;
}

#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub path: PathBuf,
    pub connections_max: usize,
    /// A connection that sends nothing, or takes nothing, for this long is closed.
    pub idle_max: Duration,
}

impl ServerConfig {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), connections_max: 32, idle_max: Duration::from_secs(300) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "the socket path {} has {} bytes, the system takes at most {SOCKET_PATH_LENGTH_MAX}; \
         choose a shorter run folder",
        path.display(), path.as_os_str().len()
    )]
    PathTooLong { path: PathBuf },
    #[error("a living process answers at {}; stop it or choose another path", path.display())]
    InUse { path: PathBuf },
    #[error("{} exists and is no socket; move it away", path.display())]
    NotASocket { path: PathBuf },
    #[error("the socket {} cannot be made", path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("the thread for {} cannot be started", path.display())]
    Thread { path: PathBuf, source: io::Error },
}

/// A running server. Dropping it closes every connection and removes the socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    is_stopping: AtomicBool,
    connections_max: usize,
    idle_max: Duration,
    connections: Mutex<Connections>,
}

/// The living connections, by a number that is not used twice.
#[derive(Debug, Default)]
struct Connections {
    next: u64,
    living: BTreeMap<u64, (UnixStream, Option<JoinHandle<()>>)>,
}

impl Server {
    /// Makes the socket (mode 0600), and answers on it until the server is dropped.
    pub fn start<S: Service>(config: ServerConfig, service: Arc<S>) -> Result<Self, ListenError> {
        let listener = bind(&config.path)?;
        let shared = Arc::new(Shared {
            is_stopping: AtomicBool::new(false),
            connections_max: config.connections_max,
            idle_max: config.idle_max,
            connections: Mutex::default(),
        });
        let thread_shared = Arc::clone(&shared);
        let accepting = std::thread::Builder::new()
            .name("manage-accept".to_owned())
            .spawn(move || accept(&listener, &thread_shared, &service))
            .map_err(|source| ListenError::Thread { path: config.path.clone(), source })?;
        Ok(Self { path: config.path, shared, accepting: Some(accepting) })
    }

    /// Requests that are being answered get their answer; nothing more is read.
    pub fn stop(self) {}
}

impl Drop for Server {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `accept`. Only the flag itself is told.
        self.shared.is_stopping.store(true, Ordering::Release);
        // A connection wakes the accepting thread, which looks at the flag first.
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
        let living = std::mem::take(&mut self.shared.lock().living);
        for (stream, thread) in living.into_values() {
            let _ = stream.shutdown(Shutdown::Read);
            if let Some(thread) = thread {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    /// A thread that panicked while it held the lock has changed nothing by halves: each
    /// critical section is one insertion, one removal or one look.
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a socket that only its owner may connect to (mode 0600), in the place of one that nobody
/// serves any more.
///
/// # Errors
/// When somebody serves it, or something else is in its place.
pub fn bind(path: &Path) -> Result<UnixListener, ListenError> {
    let path_owned = || path.to_owned();
    if path.as_os_str().len() > SOCKET_PATH_LENGTH_MAX {
        return Err(ListenError::PathTooLong { path: path_owned() });
    }
    let fault = |source| ListenError::Bind { path: path_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path_owned() });
        }
        Ok(_) => {
            if UnixStream::connect(path).is_ok() {
                return Err(ListenError::InUse { path: path_owned() });
            }
            fs::remove_file(path).map_err(fault)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fault(error)),
    }
    let listener = UnixListener::bind(path).map_err(fault)?;
    // Between the two calls the umask decides, which on every system we know keeps others from
    // writing, and who may not write may not connect.
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(fault)?;
    Ok(listener)
}

fn accept<S: Service>(listener: &UnixListener, shared: &Arc<Shared>, service: &Arc<S>) {
    loop {
        let stream = listener.accept();
        if shared.is_stopping.load(Ordering::Acquire) {
            return;
        }
        match stream {
            Ok((stream, _)) => take_in(stream, shared, service),
            Err(error) => {
                // Out of descriptors, most likely. The connection stays in the backlog; without
                // a pause this loop would spin on it.
                let err = tracing::field::display(error);
                tracing::warn!(err, "a management connection cannot be accepted");
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
    }
}

fn take_in<S: Service>(stream: UnixStream, shared: &Arc<Shared>, service: &Arc<S>) {
    let limited = stream
        .set_read_timeout(Some(shared.idle_max))
        .and_then(|()| stream.set_write_timeout(Some(shared.idle_max)));
    let Ok(copy) = limited.and_then(|()| stream.try_clone()) else { return };
    let mut connections = shared.lock();
    if connections.living.len() >= shared.connections_max {
        drop(connections);
        let connections_max = shared.connections_max;
        // One short line into an empty socket buffer does not block.
        let _ = answer(
            &mut &stream,
            &service.refuse(LineFault::TooManyConnections { connections_max }),
        );
        return;
    }
    let number = connections.next;
    connections.next += 1;
    connections.living.insert(number, (copy, None));
    let (thread_shared, thread_service) = (Arc::clone(shared), Arc::clone(service));
    let thread = std::thread::Builder::new().name("manage".to_owned()).spawn(move || {
        let _gone = Gone { shared: &thread_shared, number };
        serve(&stream, &*thread_service);
    });
    // The lock is held since before the thread started, so its `Gone` comes after this.
    match (thread, connections.living.get_mut(&number)) {
        (Ok(thread), Some(living)) => living.1 = Some(thread),
        (Ok(_), None) => unreachable!("inserted above, under the same lock"),
        (Err(error), _) => {
            connections.living.remove(&number);
            let err = tracing::field::display(error);
            tracing::warn!(err, "no thread for a management connection");
        }
    }
}

/// Takes a connection off the list when its thread ends, however it ends.
struct Gone<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.shared.lock().living.remove(&self.number);
    }
}

/// Answers until the other end closes, goes silent or breaks the framing.
fn serve<S: Service>(stream: &UnixStream, service: &S) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        let (reply, is_last) = match read_line(&mut reader, &mut line) {
            Err(_) | Ok(Line::End) => return,
            Ok(Line::Unfinished) => (service.refuse(LineFault::Unfinished), true),
            Ok(Line::TooLong) => (service.refuse(LineFault::TooLong), true),
            Ok(Line::Whole) => match serde_json::from_slice(&line) {
                Ok(request) => (service.handle(request), false),
                Err(source) => (service.refuse(LineFault::NotARequest { source }), false),
            },
        };
        if answer(&mut &*stream, &reply).is_err() || is_last {
            return;
        }
    }
}

fn answer(stream: &mut impl Write, reply: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(reply)?;
    text.push(b'\n');
    stream.write_all(&text)
}
