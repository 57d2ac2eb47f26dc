// SPDX-License-Identifier: Apache-2.0
//! The new process's side.

use super::{PATIENCE, VERSION, Word, parse_places, parse_seats, say, socket_in};
use crate::worker::{WorkerPort, WorkerSilent};
use plinth_backends::{HandOverError, HandOverLine, HandedDevice};
use plinth_ids::PortId;
use plinth_vswitch::{HandedPlace, HandedSeat};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why nothing was taken over. The old process goes on, if there is one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeOverError {
    #[error("nobody waits for a successor at {path:?}: start without --take-over")]
    Nobody { path: PathBuf, source: io::Error },
    #[error("the running process refuses: {text}")]
    Refused { text: String },
    #[error("the running process said {word} out of turn")]
    OutOfTurn { word: String },
    #[error("the way to the running process")]
    Line { source: HandOverError },
    #[error("connections of the running process are not understood")]
    Connections { source: plinth_vswitch::TakeOverError },
    #[error("connections cannot be taken in")]
    Worker { source: WorkerSilent },
    #[error("the running process has kept the lock on the run folder")]
    Lock,
    #[error("{port} did not come into service")]
    NotServing { port: PortId },
}

/// A process that is about to take over.
#[derive(Debug)]
pub(crate) struct Standby {
    line: HandOverLine,
    places: Arc<[HandedPlace]>,
    pub(crate) seats: Vec<HandedSeat>,
    /// Whether the running process has its device to the underlay open.
    pub(crate) other_has_uplink: bool,
}

/// What was the running process's.
#[derive(Debug)]
pub(crate) struct TakenOver {
    pub(crate) devices: Vec<(PortId, HandedDevice)>,
    pub(crate) lock: File,
}

impl Standby {
    /// Meets the running process. Afterwards the kept configuration does not change.
    pub(crate) fn meet(run_dir: &Path) -> Result<Self, TakeOverError> {
        let path = socket_in(run_dir);
        let nobody = |source| TakeOverError::Nobody { path: path.clone(), source };
        let stream = UnixStream::connect(&path).map_err(nobody)?;
        let line = HandOverLine::new(stream, PATIENCE);
        let line = line.map_err(|source| TakeOverError::Line { source })?;
        tell(&line, &Word::Hello { version: VERSION })?;
        match hear(&line)?.0 {
            Word::Settled { places, seats, has_uplink } => {
                let places = parse_places(&places).into();
                Ok(Self { line, places, seats: parse_seats(seats), other_has_uplink: has_uplink })
            }
            Word::Refused { text } => Err(TakeOverError::Refused { text }),
            word => Err(out_of_turn(&word)),
        }
    }

    /// Takes everything, once the configuration is in force here.
    pub(crate) fn take(&self, port: &WorkerPort) -> Result<TakenOver, TakeOverError> {
        tell(&self.line, &Word::Prepared)?;
        let mut devices = Vec::new();
        let (mut taken, mut lost) = (0, 0);
        loop {
            let (word, mut descriptors) = hear(&self.line)?;
            match word {
                Word::Connections => {
                    let (bytes, _) = self.receive()?;
                    let told = port
                        .take_over(&self.places, bytes)
                        .map_err(|source| TakeOverError::Worker { source })?
                        .map_err(|source| TakeOverError::Connections { source })?;
                    taken += told.taken;
                    lost += told.strangers + told.refused;
                }
                Word::RoundEnd => tell(&self.line, &Word::Taken)?,
                Word::Device { port } => {
                    let (body, descriptors) = self.receive()?;
                    let device = HandedDevice::parse(&body, descriptors)
                        .map_err(|source| TakeOverError::Line { source })?;
                    devices.push((port, device));
                }
                Word::Ready => {
                    let lock = descriptors.pop().map(File::from).ok_or(TakeOverError::Lock)?;
                    tracing::info!(taken, lost, "connections taken over, some several times");
                    return Ok(TakenOver { devices, lock });
                }
                word => return Err(out_of_turn(&word)),
            }
        }
    }

    /// Lets the old process end. It has killed us if it no longer waits.
    pub(crate) fn serves(self) -> Result<(), TakeOverError> {
        tell(&self.line, &Word::Serving)
    }

    fn receive(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), TakeOverError> {
        self.line.receive().map_err(|source| TakeOverError::Line { source })
    }
}

fn out_of_turn(word: &Word) -> TakeOverError {
    TakeOverError::OutOfTurn { word: format!("{word:?}") }
}

fn hear(line: &HandOverLine) -> Result<(Word, Vec<OwnedFd>), TakeOverError> {
    let (body, descriptors) = line.receive().map_err(|source| TakeOverError::Line { source })?;
    let word = serde_json::from_slice(&body);
    let word =
        word.map_err(|source| TakeOverError::Line { source: HandOverError::Image { source } })?;
    Ok((word, descriptors))
}

fn tell(line: &HandOverLine, word: &Word) -> Result<(), TakeOverError> {
    say(line, word, &[]).map_err(|source| TakeOverError::Line { source })
}
