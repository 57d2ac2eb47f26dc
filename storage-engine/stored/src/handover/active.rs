// SPDX-License-Identifier: Apache-2.0
//! The old process's side: waits for a successor, gives everything away, and goes on if that
//! comes to nothing.

use super::{
    CHECKPOINT_PATIENCE, DRAIN_PATIENCE, DiskAtRest, PATIENCE, VERSION, Word, hear, say, socket_in,
};
use crate::keeper::{Handed, Keeper, VolumeKey};
use plinth_backends::{HandOverError, HandOverLine, HandedDevice, Successor};
use plinth_manage::{ListenError, Server};
use plinth_obs::Chain;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use tracing::field::display;

/// Starts the management server again after a hand-over that came to nothing.
type Restart = Box<dyn Fn() -> Result<Server, ListenError> + Send>;

/// Waits for a successor for as long as the process serves.
#[derive(Debug)]
pub(crate) struct Active {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    is_stopping: AtomicBool,
    /// The successor serves; nothing is left to do here.
    is_over: AtomicBool,
    management: Mutex<Option<Server>>,
}

impl Active {
    /// Waits on a thread of its own. Takes the management server, because it is stopped before
    /// anything is given away; `restart` makes it again.
    pub(crate) fn start(
        run_dir: &Path,
        keeper: Arc<Keeper>,
        management: Server,
        restart: Restart,
    ) -> io::Result<Self> {
        let path = socket_in(run_dir);
        let listener = Successor::wait_at(&path)?;
        let shared = Arc::new(Shared {
            is_stopping: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            management: Mutex::new(Some(management)),
        });
        let host = Host { path: path.clone(), keeper, shared: shared.clone(), restart };
        let thread = std::thread::Builder::new()
            .name("handover".to_owned())
            .spawn(move || host.wait_for_successors(listener))?;
        Ok(Self { path, shared, thread: Some(thread) })
    }

    /// Whether another process serves in this one's place.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.is_over.load(Ordering::Acquire)
    }

    /// Waits for nobody any more, and stops management.
    pub(crate) fn stop(mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        if !self.is_over() {
            // Wakes the thread, which looks at the flag first.
            let _ = UnixStream::connect(&self.path);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        drop(self.shared.take_management());
    }
}

impl Shared {
    fn take_management(&self) -> Option<Server> {
        self.management.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set_management(&self, server: Server) {
        *self.management.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
    }
}

struct Host {
    path: PathBuf,
    keeper: Arc<Keeper>,
    shared: Arc<Shared>,
    restart: Restart,
}

impl Host {
    fn wait_for_successors(self, mut listener: UnixListener) {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::error!(err = %error, "no successor can be waited for any more");
                    return;
                }
            };
            if self.shared.is_stopping.load(Ordering::Acquire) {
                let _ = std::fs::remove_file(&self.path);
                return;
            }
            match self.meet(stream, listener) {
                Ok(again) => listener = again,
                Err(Over) => return,
            }
        }
    }

    /// One successor. Gives the listener back, or another one, when this process goes on.
    fn meet(&self, stream: UnixStream, listener: UnixListener) -> Result<UnixListener, Over> {
        let (line, process) = match greet(stream) {
            Ok(met) => met,
            Err(error) => {
                let err = display(Chain(&error));
                tracing::warn!(err, "a successor that makes no sense is left alone");
                return Ok(listener);
            }
        };
        tracing::info!("a successor has come; guests and pools are handed over");
        // Under running guests, so that no journal is left whose end they would wait for.
        self.keeper.port().checkpoint(CHECKPOINT_PATIENCE);
        let started = Instant::now();
        drop(self.shared.take_management());
        let handed = match self.keeper.hand_over(DRAIN_PATIENCE) {
            Ok(handed) => handed,
            Err(text) => {
                tracing::warn!(err = text, "nothing was handed over");
                let _ = say(&line, &Word::Refused { text });
                self.go_on(Vec::new());
                return Ok(listener);
            }
        };
        // The next two lines make place for the successor's own sockets.
        drop(listener);
        let _ = std::fs::remove_file(&self.path);
        match give(&line, &handed) {
            Ok(()) => {
                tracing::info!(took = ?started.elapsed(), "the successor serves; this one ends");
                self.shared.is_over.store(true, Ordering::Release);
                Err(Over)
            }
            Err(error) => {
                let err = display(Chain(&error));
                tracing::error!(err, "the successor does not serve; it is ended, and we go on");
                // It must not have a disk when this process opens it.
                process.end();
                self.go_on(handed.devices);
                Successor::wait_at(&self.path).map_err(|error| {
                    tracing::error!(err = %error, "no successor can be waited for any more");
                    Over
                })
            }
        }
    }

    /// Serves again.
    fn go_on(&self, devices: Vec<(VolumeKey, HandedDevice)>) {
        self.keeper.go_on(devices);
        match (self.restart)() {
            Ok(server) => self.shared.set_management(server),
            Err(error) => {
                let err = display(Chain(&error));
                tracing::error!(err, "guests are served, but the management socket is not");
            }
        }
    }
}

/// The thread ends.
struct Over;

/// Hears who it is.
fn greet(stream: UnixStream) -> Result<(HandOverLine, Successor), HandOverError> {
    let process = Successor::of(&stream)?;
    let line = HandOverLine::new(stream, PATIENCE)?;
    match hear(&line)? {
        Word::Hello { version: VERSION } => Ok((line, process)),
        Word::Hello { version } => {
            let text = format!("it speaks version {VERSION} of the hand-over, not {version}");
            let _ = say(&line, &Word::Refused { text });
            Err(HandOverError::Version { found: version })
        }
        _ => Err(HandOverError::Ended),
    }
}

/// Gives everything away and waits until the other serves.
fn give(line: &HandOverLine, handed: &Handed) -> Result<(), HandOverError> {
    for (key, device) in &handed.devices {
        let (pool, volume) = *key;
        say(line, &Word::Device { pool, volume })?;
        let (body, descriptors) = device.emit();
        line.send(&body, &descriptors)?;
    }
    let disks = handed.rests.iter().copied().map(DiskAtRest::from).collect();
    say(line, &Word::Ready { disks })?;
    match hear(line)? {
        Word::Serving => Ok(()),
        _ => Err(HandOverError::Ended),
    }
}
