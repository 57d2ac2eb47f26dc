// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! A vhost-user frontend without a machine around it.
//!
//! It does what QEMU does between a guest and a backend: negotiates, shares its memory, starts
//! rings, keeps the in-flight region across a backend's restart. What goes into the rings is
//! its caller's: a load generator, a test, a TAP device.
//!
//! ```text
//!   Memory ── SharedMemory, one region, survives reconnects
//!     └─ SlotQueue (driver side, of plinth-virtio) ── slots, descriptors
//!   Nic ── memory, two rings and a session: a guest that sends a packet now and then
//!   Session ── one connection: negotiated ─▶ started ─▶ lost ─▶ a new Session, same Memory
//! ```
//!
//! Not here: QEMU's side of migration, memory hotplug, packed rings.

mod memory;
mod nic;
mod session;

pub use memory::{Memory, MemoryError};
pub use nic::{Nic, NicError};
pub use plinth_virtio::{Buffer, RingPlan, SlotQueue, UsedFault, UsedSlot};
pub use session::{Inflight, Session, SessionError, Wish};
