// SPDX-License-Identifier: Apache-2.0
//! Hot restart: a new plinth-stored takes over from the one that runs, under running guests.
//!
//! ```text
//!   old, serving                              new, started with --take-over
//!     │ ◀───────────── hello ──────────────────│  worker is up, nothing opened
//!   checkpoints, under running guests          │
//!   management stops                           │
//!   rings back from the worker, pools closed   │
//!     │ ── device + descriptors (each) ───────▶│
//!     │ ── ready, how the disks are left ─────▶│  kept configuration, pools mounted without
//!     │                                        │  a look through journals, rings polled
//!     │ ◀──────────── serving ─────────────────│
//!   ends                                       │
//! ```
//!
//! At every moment at most one of the two has the disks and the rings: the old one before
//! `ready`, the new one after it. If the new one does not say `serving`, the old one kills it (by
//! a pidfd, so it is that very process), and goes on with the descriptors that it kept.

mod active;
mod standby;

pub(crate) use active::Active;
pub(crate) use standby::{TakeOverError, TakenOver, take_over};

use plinth_backends::{HandOverError, HandOverLine};
use plinth_ids::{PoolId, VolumeId};
use plinth_store::{Rest, StoreId};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The version of the words below.
const VERSION: u32 = 2;

/// How long each side waits for the other's next word. Mounting is the longest of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long requests under way may take before a hand-over is called off.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// How long the checkpoints before a hand-over may take. Guests do not wait for them, the
/// successor does, and for less than [`PATIENCE`].
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(10);

/// Where a running process waits for its successor.
pub(crate) fn socket_in(run_dir: &Path) -> PathBuf {
    run_dir.join("stored.handover")
}

/// What the two say to each other.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Word {
    Hello {
        version: u32,
    },
    /// The hand-over does not take place, and why.
    Refused {
        text: String,
    },
    /// The next message is the device of this volume.
    Device {
        pool: PoolId,
        volume: VolumeId,
    },
    /// That was all of them, and the disks are free.
    Ready {
        disks: Vec<DiskAtRest>,
    },
    Serving,
}

/// A [`Rest`] as it is said.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct DiskAtRest {
    store: StoreId,
    generation: u64,
    last_seq: u64,
}

impl From<Rest> for DiskAtRest {
    fn from(Rest { store, generation, last_seq }: Rest) -> Self {
        Self { store, generation, last_seq }
    }
}

impl From<DiskAtRest> for Rest {
    fn from(DiskAtRest { store, generation, last_seq }: DiskAtRest) -> Self {
        Self { store, generation, last_seq }
    }
}

fn say(line: &HandOverLine, word: &Word) -> Result<(), HandOverError> {
    let body = serde_json::to_vec(word).expect("numbers and text only");
    line.send(&body, &[])
}

fn hear(line: &HandOverLine) -> Result<Word, HandOverError> {
    let (body, _) = line.receive()?;
    serde_json::from_slice(&body).map_err(|source| HandOverError::Image { source })
}
