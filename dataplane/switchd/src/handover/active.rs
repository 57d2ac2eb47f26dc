// SPDX-License-Identifier: Apache-2.0
//! The old process's side: waits for a successor, gives everything away, and goes on if that
//! comes to nothing.

use super::{DRAIN_PATIENCE, PATIENCE, VERSION, Word, emit_places, emit_seats, say, socket_in};
use crate::control::Control;
use crate::worker::{WorkerPort, WorkerSilent};
use plinth_backends::{HandOverError, HandOverLine, HandedDevice, Successor};
use plinth_ids::{Moment, PortId};
use plinth_manage::{ListenError, Server};
use plinth_obs::Chain;
use plinth_ports::{Answer, Question};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use tracing::field::display;

/// Rounds of connections before the gap, and how few in the last make another one idle.
const ROUNDS_MAX: usize = 5;
const FEW: usize = 1000;

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

/// What is given away.
pub(crate) struct Host {
    pub(crate) control: Arc<Control>,
    pub(crate) port: WorkerPort,
    /// Of the run folder. The lock is the open file's, so it goes along with the descriptor.
    pub(crate) lock: File,
    /// Starts the management server again after a hand-over that came to nothing.
    pub(crate) restart: Box<dyn Fn() -> Result<Server, ListenError> + Send>,
}

/// Why a hand-over came to nothing.
#[derive(Debug, thiserror::Error)]
enum GiveError {
    #[error("the way to the successor")]
    Line { source: HandOverError },
    #[error("connections cannot be written down")]
    Worker { source: WorkerSilent },
    #[error("{port} did not let go of its rings")]
    Stuck { port: PortId },
    #[error("the successor said {word} out of turn")]
    OutOfTurn { word: String },
}

impl Active {
    /// Waits on a thread of its own. Takes the management server, which is stopped before
    /// anything is given away.
    pub(crate) fn start(run_dir: &Path, host: Host, management: Server) -> io::Result<Self> {
        let path = socket_in(run_dir);
        let listener = Successor::wait_at(&path)?;
        let shared = Arc::new(Shared {
            is_stopping: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            management: Mutex::new(Some(management)),
        });
        let waiting = Waiting { path: path.clone(), host, shared: Arc::clone(&shared) };
        let thread = std::thread::Builder::new()
            .name("handover".to_owned())
            .spawn(move || waiting.wait_for_successors(listener))?;
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

struct Waiting {
    path: PathBuf,
    host: Host,
    shared: Arc<Shared>,
}

/// The thread ends.
struct Over;

impl Waiting {
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
        let (line, successor) = match greet(stream) {
            Ok(met) => met,
            Err(error) => {
                let err = display(Chain(&error));
                tracing::warn!(err, "a successor that makes no sense is left alone");
                return Ok(listener);
            }
        };
        tracing::info!("a successor has come; guests and connections are handed over");
        drop(self.shared.take_management());
        // Makes place for the successor's own socket.
        drop(listener);
        let _ = std::fs::remove_file(&self.path);
        let mut devices = Vec::new();
        let error = match self.host.give(&line, &mut devices) {
            Ok(()) => {
                self.shared.is_over.store(true, Ordering::Release);
                return Err(Over);
            }
            Err(error) => error,
        };
        let err = display(Chain(&error));
        tracing::error!(err, "the successor does not serve; it is ended, and we go on");
        successor.end();
        self.host.control.go_on(devices);
        match (self.host.restart)() {
            Ok(server) => self.shared.set_management(server),
            Err(error) => {
                let err = display(Chain(&error));
                tracing::error!(err, "guests are served, but the management socket is not");
            }
        }
        Successor::wait_at(&self.path).map_err(|error| {
            tracing::error!(err = %error, "no successor can be waited for any more");
            Over
        })
    }
}

impl Host {
    /// Gives everything away and waits until the other serves. `devices` has what was given up.
    fn give(
        &self,
        line: &HandOverLine,
        devices: &mut Vec<(PortId, HandedDevice)>,
    ) -> Result<(), GiveError> {
        let has_uplink = self.control.freeze();
        let places = match self.port.ask(Question::Places) {
            Ok(Answer::Places(places)) => emit_places(&places),
            Ok(other) => unreachable!("asked for places and told {other:?}"),
            Err(source) => return Err(GiveError::Worker { source }),
        };
        let seats = emit_seats(self.control.snapshot().handed_seats());
        tell(line, &Word::Settled { places, seats, has_uplink })?;
        expect(line, &Word::Prepared)?;
        let mut since = None;
        for _ in 0..ROUNDS_MAX {
            let (begun, count) = self.round(line, since)?;
            tell(line, &Word::RoundEnd)?;
            expect(line, &Word::Taken)?;
            since = Some(begun);
            if count <= FEW {
                break;
            }
        }
        let started = Instant::now();
        *devices =
            self.control.hand_over(DRAIN_PATIENCE).map_err(|port| GiveError::Stuck { port })?;
        let (_, count) = self.round(line, since)?;
        for (port, device) in &*devices {
            tell(line, &Word::Device { port: *port })?;
            let (body, descriptors) = device.emit();
            line.send(&body, &descriptors).map_err(|source| GiveError::Line { source })?;
        }
        let lock = self.lock.as_fd();
        say(line, &Word::Ready, &[lock]).map_err(|source| GiveError::Line { source })?;
        expect(line, &Word::Serving)?;
        let gap = started.elapsed();
        tracing::info!(?gap, last_connections = count, "the successor serves; this one ends");
        Ok(())
    }

    /// Sends the connections that had a packet since then, or all. Says when the worker began, and
    /// how many they were.
    fn round(
        &self,
        line: &HandOverLine,
        since: Option<Moment>,
    ) -> Result<(Moment, usize), GiveError> {
        let (mut begun, mut count, mut next) = (None, 0, Some(0));
        while let Some(from) = next {
            let step = self.port.hand_over(from, since);
            let step = step.map_err(|source| GiveError::Worker { source })?;
            begun.get_or_insert(step.at);
            next = step.next;
            if !step.bytes.is_empty() {
                count += step.bytes.len() / plinth_vswitch::HANDED_BYTES;
                tell(line, &Word::Connections)?;
                line.send(&step.bytes, &[]).map_err(|source| GiveError::Line { source })?;
            }
        }
        Ok((begun.unwrap_or(Moment::ZERO), count))
    }
}

/// Hears who it is.
fn greet(stream: UnixStream) -> Result<(HandOverLine, Successor), HandOverError> {
    let successor = Successor::of(&stream)?;
    let line = HandOverLine::new(stream, PATIENCE)?;
    match hear(&line)? {
        Word::Hello { version: VERSION } => Ok((line, successor)),
        Word::Hello { version } => {
            let text = format!("it speaks version {VERSION} of the hand-over, not {version}");
            let _ = say(&line, &Word::Refused { text }, &[]);
            Err(HandOverError::Version { found: version })
        }
        _ => Err(HandOverError::Ended),
    }
}

fn hear(line: &HandOverLine) -> Result<Word, HandOverError> {
    let (body, _) = line.receive()?;
    serde_json::from_slice(&body).map_err(|source| HandOverError::Image { source })
}

fn tell(line: &HandOverLine, word: &Word) -> Result<(), GiveError> {
    say(line, word, &[]).map_err(|source| GiveError::Line { source })
}

fn expect(line: &HandOverLine, wanted: &Word) -> Result<(), GiveError> {
    let word = hear(line).map_err(|source| GiveError::Line { source })?;
    if word == *wanted { Ok(()) } else { Err(GiveError::OutOfTurn { word: format!("{word:?}") }) }
}
