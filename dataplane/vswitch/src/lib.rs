// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The forwarding machine: configuration in, packets in, verdicts out.
//!
//! [`Switch`] holds one worker's tables. It does no I/O and reads no clock: the driver copies the
//! headers of a burst into [`Packet`]s, calls [`Switch::process`], and carries out each packet's
//! [`Verdict`]; it calls [`Switch::tick`] when [`Switch::deadline`] has come and sends the frames
//! that it is given.
//!
//! ```text
//!  SwitchConfig ──▶ Snapshot::compile ──▶ Switch::install
//!                    (any thread, may                        ┌─ hit ─▶ entry's action ─┐
//!                     refuse)            packet ─▶ parse ─▶ flow table                 ├─▶ verdict
//!                                                    │       └─ miss ─▶ stages ────────┤
//!                                                    └─ ARP, ND, underlay ─▶ answers ──┘
//! ```
//!
//! The laws: a packet of one VNI never reaches a port or tunnel of another; every packet that came
//! in is sent, absorbed or dropped for one [`DropReason`], and counted; nothing allocates while
//! packets are processed; nothing that a guest or a peer sends makes it panic.
//!
//! Not here: ports, threads and DPDK (`plinth-ports`, `plinth-switchd`).

mod balance;
mod carry;
mod change;
mod clamp;
mod config_error;
mod counters;
mod drop_reason;
mod external;
mod flow;
mod fragments;
pub mod fuzz;
mod handover;
mod judge;
mod limits;
mod lookup;
mod meters;
mod neighbors;
mod packet;
mod pipeline;
mod prefix_table;
mod questions;
mod rates;
#[allow(dead_code, reason = "the stages that route and filter take it up")]
mod route;
mod scan;
#[allow(dead_code, reason = "the stages that route and filter take it up")]
mod security;
mod snapshot;
mod stages;
mod stamps;
mod status;
mod switch;
mod trace;
mod translate;
mod validate;
#[allow(dead_code, reason = "the stages that route and filter take it up")]
mod vpc;

pub use change::ChangeError;
pub use config_error::{ConfigError, Place};
pub use counters::PortCounters;
pub use drop_reason::DropReason;
pub use handover::{HANDED_BYTES, HandedPlace, HandedSeat, TakeOverError, TakenConnections};
pub use limits::{BalancerLimits, Limits, Timeouts, VpcLimits};
pub use packet::{BURST_MAX, HEADERS_MAX, Offload, Packet, PortIndex, Verdict};
pub use questions::Origin;
pub use scan::{FLOW_ROOM_MIN, FlowCopy, FlowFilter};
pub use snapshot::{PortChange, Snapshot};
pub use status::FLOWS_LISTED_MAX;
pub use switch::{ControlFrame, FlowCounters, Switch};
pub use trace::{ImagineError, Imagined, Scene, Sender, Step, Traced, load_seen};
pub use validate::{
    AnswersError, BalancerError, ExternalError, RulePlace, SecurityError, VpcError,
};
