// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! What the control service decides, without touching the world.
//!
//! A [`Cluster`] is every record of the registry in memory. A request is *planned* against it:
//! the answer is a refusal that names field and remedy, or a [`Change`], which the service
//! commits to the registry and then applies here. What a node has yet to do is read off the
//! records' states ([`Cluster::due`]); what it answered is settled into a next change
//! ([`Cluster::settle`]). Because both depend on records only, a service that was killed
//! anywhere goes on where the registry stands.
//!
//! ```text
//!   request ─▶ plan ─▶ Change ─▶ registry ─▶ apply
//!                                              │ due
//!   Change ◀─ settle ◀─ answer ◀─ node ◀───────┘
//! ```

mod act;
mod answers;
mod balance;
mod change;
mod check;
mod clock;
mod cluster;
mod disk;
mod external;
mod gateway;
mod group;
mod image;
mod names;
mod nic;
mod node;
mod place;
mod pool;
mod record;
mod route;
mod size;
mod snapshot;
mod spec;
mod subnet;
mod view;
mod vm;
mod volume;
mod vpc;

pub use act::Act;
pub use change::{Change, Key, Record, RecordError, Write};
pub use cluster::{Cluster, Observed, Seen};
pub use disk::check_scrub_rate;
pub use names::find;
pub use node::TOKENS_MAX;
pub use place::{Candidate, Demand, NodeRefusal, place};
pub use record::{
    BackendRecord, BalancerRecord, Copy, Disk, DiskRecord, EipBindingRecord, EipRecord,
    ForwardRecord, GatewayAddress, GatewayRecord, GroupRecord, ImageRecord, LineRecord,
    ListenerRecord, Meta, Nic, NodeRecord, PoolRecord, RouteRecord, RuleRecord, Schedule,
    SnapshotRecord, Source, State, SubnetRecord, TokenRecord, VmRecord, VolumeRecord, VpcRecord,
};
pub use size::Size;
pub use subnet::Network;
