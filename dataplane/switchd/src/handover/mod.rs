// SPDX-License-Identifier: Apache-2.0
//! Hot restart: a new plinth-switchd takes over from the one that runs, under running guests
//! (ADR-101).
//!
//! ```text
//!   old, serving                              new, started with --take-over
//!     │ ◀───────────── hello ──────────────────│  DPDK and worker are up
//!   management stops                           │
//!     │ ── settled: places, uplink ───────────▶│  kept configuration in force without guests,
//!     │ ◀──────────── prepared ────────────────│  its own device to the underlay
//!     │ ── connections, all ──────────────────▶│  taken in while the old one forwards
//!     │ ── connections with packets since ────▶│  again, until they are few
//!   rings back from the worker ═══ the gap begins
//!     │ ── connections with packets since ────▶│
//!     │ ── device + descriptors (each) ───────▶│
//!     │ ── ready + lock ──────────────────────▶│  rings polled ═══ and ends
//!     │ ◀──────────── serving ─────────────────│
//!   ends                                       │
//! ```
//!
//! At every moment at most one of the two has the rings. If the new one does not say `serving`,
//! the old one kills it and goes on with the descriptors that it kept.

mod active;
mod standby;

pub(crate) use active::{Active, Host};
pub(crate) use standby::{Standby, TakeOverError, TakenOver};

use plinth_backends::{HandOverError, HandOverLine};
use plinth_ids::{Name, PortId};
use plinth_vswitch::{HandedPlace, HandedSeat};
use serde::{Deserialize, Serialize};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The version of the words below and of a connection's bytes.
const VERSION: u32 = 2;

/// How long each side waits for the other's next word. Opening the underlay and compiling the
/// configuration are the longest of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long devices may take to let go of their rings. They need one answer of the worker.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// Where a running process waits for its successor.
fn socket_in(run_dir: &Path) -> PathBuf {
    run_dir.join("switchd.handover")
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
    /// The configuration does not change any more. Each place is number, incarnation, port; each
    /// seat is a NAT gateway, a port, and which block of the gateway's is its.
    Settled {
        places: Vec<(u16, u32, PortId)>,
        seats: Vec<(Name, PortId, u32)>,
        has_uplink: bool,
    },
    Prepared,
    /// The next message is connections.
    Connections,
    /// All that were there, or have changed since the round before.
    RoundEnd,
    /// And they are taken in.
    Taken,
    /// The next message is the device of this port.
    Device {
        port: PortId,
    },
    Ready,
    Serving,
}

fn emit_places(places: &[HandedPlace]) -> Vec<(u16, u32, PortId)> {
    places.iter().map(|handed| (handed.place, handed.incarnation, handed.port)).collect()
}

fn parse_places(places: &[(u16, u32, PortId)]) -> Vec<HandedPlace> {
    let each = places.iter();
    each.map(|&(place, incarnation, port)| HandedPlace { place, incarnation, port }).collect()
}

fn emit_seats(seats: Vec<HandedSeat>) -> Vec<(Name, PortId, u32)> {
    seats.into_iter().map(|HandedSeat { gateway, port, seat }| (gateway, port, seat)).collect()
}

fn parse_seats(seats: Vec<(Name, PortId, u32)>) -> Vec<HandedSeat> {
    let each = seats.into_iter();
    each.map(|(gateway, port, seat)| HandedSeat { gateway, port, seat }).collect()
}

fn say(
    line: &HandOverLine,
    word: &Word,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), HandOverError> {
    let body = serde_json::to_vec(word).expect("numbers and text only");
    line.send(&body, descriptors)
}
