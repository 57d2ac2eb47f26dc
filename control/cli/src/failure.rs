// SPDX-License-Identifier: Apache-2.0
//! What can go wrong, and the exit code for each.

use plinth_api::{Code, Refusal};
use plinth_client::{CallError, ConfigError, ConnectError, IdentityError};
use std::io;
use std::path::PathBuf;

/// Exit codes; `docs/operate/cli.md` has the same table.
pub mod exit {
    pub const DONE: u8 = 0;
    /// The answer is no, or something failed.
    pub const REFUSED: u8 = 1;
    /// The command line is not understood. Also clap's own.
    pub const USAGE: u8 = 2;
    /// The service cannot be reached, or does not know us.
    pub const UNREACHABLE: u8 = 3;
    /// It was taken, and is not done yet: the time is up or the node does not answer.
    pub const NOT_YET: u8 = 4;
}

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(
        "this machine has no operator certificate; `plinth cluster init` writes one, or give the \
         folder that has one with --config-dir"
    )]
    NoConfig(#[source] ConfigError),
    #[error(
        "the operator certificate is not usable; copy the folder that `plinth cluster init` wrote"
    )]
    NoIdentity(#[source] IdentityError),
    #[error("the control service cannot be reached")]
    Connect(#[from] ConnectError),
    #[error("the control service did not answer")]
    Call(#[from] CallError),
    #[error("the control service gave another answer than was asked for")]
    Answer,
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}; give another file with -w", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("the terminal cannot be used")]
    Terminal(#[source] io::Error),
    #[error(transparent)]
    Init(#[from] crate::init::InitError),
    #[error(transparent)]
    Join(#[from] crate::join::JoinFailure),
}

impl Failure {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(refusal) => match refusal.code() {
                Some(Code::Timeout | Code::Unreachable) => exit::NOT_YET,
                _ => exit::REFUSED,
            },
            Self::NoConfig(_) | Self::NoIdentity(_) | Self::Connect(_) | Self::Call(_) => {
                exit::UNREACHABLE
            }
            Self::Join(err) if err.is_connection() => exit::UNREACHABLE,
            Self::Answer
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Runtime(_)
            | Self::Terminal(_)
            | Self::Init(_)
            | Self::Join(_) => exit::REFUSED,
        }
    }

    /// The error as a refusal, so that `--json` has one shape for all.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal.clone(),
            Self::Join(crate::join::JoinFailure::Refused(refusal)) => refusal.clone(),
            other => {
                let code = match other.exit_code() {
                    exit::UNREACHABLE => Code::Unreachable,
                    _ => Code::Failed,
                };
                Refusal::new(code, plinth_obs::Chain(other).to_string())
            }
        }
    }
}
