// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! QEMU processes: how one is described, started, found again and ended.
//!
//! ```text
//!   Machine ──command_line──▶ arguments ──launch──▶ Process ◀──adopt── folder of a VM
//!                                                     │
//!                                        Monitor (QMP): status, power button, quit,
//!                                                       NICs that come and go
//! ```
//!
//! A process belongs to nobody: it has its own session and its own log, and outlives the node
//! agent. It is found again by its monitor socket, whose owner the kernel names, and held by a
//! pidfd, so that a process id that was given away again can do no harm.
//! Before it answers, the lock that it was begun with tells of it ([`has_begun`]).
//! What to do with a process is decided by `plinth-vm`.

mod accelerator;
mod birth;
mod command;
mod folder;
mod hotplug;
mod launch;
mod monitor;
mod process;

pub use accelerator::{Accelerator, Probe, probe};
pub use birth::has_begun;
pub use command::{Boot, Disk, Machine, NIC_PORTS, Nic, NicNetwork, command_line, network_file};
pub use folder::{FolderError, SOCKET_PATH_MAX, VmFolder, uuid};
pub use hotplug::{AttachError, Attached, DetachError, OldProcess};
pub use launch::{LaunchError, launch};
pub use monitor::{Monitor, MonitorError, RunState};
pub use process::{Identity, Process, ProcessError, adopt, detached, start_time};
