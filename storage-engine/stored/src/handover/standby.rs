// SPDX-License-Identifier: Apache-2.0
//! The new process's side.

use super::{PATIENCE, VERSION, Word, hear, say, socket_in};
use crate::keeper::Handed;
use plinth_backends::{HandOverError, HandOverLine, HandedDevice};
use plinth_store::Rest;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

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
    #[error("volume {volume} of {pool} did not come into service: {fault}")]
    NotServing { pool: plinth_ids::PoolId, volume: plinth_ids::VolumeId, fault: String },
}

/// What the process before this one served, which waits to hear that they are served.
#[derive(Debug)]
pub(crate) struct TakenOver {
    line: HandOverLine,
    pub(crate) handed: Handed,
}

/// Asks the running process for everything that it serves. Afterwards the disks are free.
pub(crate) fn take_over(run_dir: &Path) -> Result<TakenOver, TakeOverError> {
    let path = socket_in(run_dir);
    let nobody = |source| TakeOverError::Nobody { path: path.clone(), source };
    let stream = UnixStream::connect(&path).map_err(nobody)?;
    let fault = |source| TakeOverError::Line { source };
    let line = HandOverLine::new(stream, PATIENCE).map_err(fault)?;
    say(&line, &Word::Hello { version: VERSION }).map_err(fault)?;
    let mut devices = Vec::new();
    loop {
        match hear(&line).map_err(fault)? {
            Word::Device { pool, volume } => {
                let (body, descriptors) = line.receive().map_err(fault)?;
                let device = HandedDevice::parse(&body, descriptors).map_err(fault)?;
                devices.push(((pool, volume), device));
            }
            Word::Ready { disks } => {
                let rests = disks.into_iter().map(Rest::from).collect();
                return Ok(TakenOver { line, handed: Handed { devices, rests } });
            }
            Word::Refused { text } => return Err(TakeOverError::Refused { text }),
            word @ (Word::Hello { .. } | Word::Serving) => {
                return Err(TakeOverError::OutOfTurn { word: format!("{word:?}") });
            }
        }
    }
}

impl TakenOver {
    /// Lets the old process end. It has killed us if it no longer waits.
    pub(crate) fn serves(self) -> Result<(), TakeOverError> {
        say(&self.line, &Word::Serving).map_err(|source| TakeOverError::Line { source })
    }
}
