// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The node agent: makes one node what its [`plinth_api::NodeSpec`] says.
//!
//! ```text
//!   service ──Agent (trait)──▶ NodeAgent ──▶ reconciler ──┬─▶ keeper of plinth-switchd
//!                                 │   kept spec           ├─▶ keeper of plinth-stored
//!                                 └─ commands, status     └─▶ one runner for each VM ──▶ QEMU
//! ```
//!
//! The laws:
//! * Everything is level-triggered: each round compares what is with what is to be. A round that
//!   was cut short by a crash is done again, to the same end.
//! * A port and an attachment are there before the VM that uses them is started, and stay until
//!   its process is gone.
//! * The daemons and QEMU outlive the agent; it finds them again.
//! * The last spec and one record for each VM lie in the state folder, so that a node starts
//!   into service with the control service dead.
//!
//! What a VM's next step is, is decided in `plinth-vm`; what a spec means for the daemons and
//! for QEMU, in [`translate`]. Where everything lies is in [`Places`].

mod agent;
mod balance;
mod console;
mod contract;
mod daemon;
mod external;
mod facts;
mod keeper;
mod metadata;
mod metadata_socket;
mod network;
mod nics;
mod perform;
mod places;
mod preflight;
mod reconcile;
mod runner;
mod storage;
mod store;
mod switch;
pub mod translate;

pub use agent::{NodeAgent, NodeConfig, StartError};
pub use places::{PlaceError, Places};
pub use preflight::{Surroundings, accelerator, checks, facts};
