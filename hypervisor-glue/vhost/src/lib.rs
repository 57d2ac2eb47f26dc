// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The vhost-user device server.
//!
//! One [`Device`] is one unix socket on which we listen and QEMU is the client with
//! `reconnect=1`. A thread of its own speaks the protocol; it never touches a ring. A queue
//! that the frontend has started and enabled is handed to a worker as a [`QueueEvent`], and is
//! taken back before any answer goes out that gives the ring or its memory to somebody else:
//!
//! ```text
//!  frontend        device thread                    worker
//!     │ KICK, ENABLE   │                               │
//!     │───────────────▶│ QueueChange::Start(queue) ───▶│ polls the ring
//!     │ GET_VRING_BASE │                               │
//!     │───────────────▶│ QueueChange::Stop(ticket) ───▶│ finishes what is in flight
//!     │                │◀───────── ticket.answer(state)│ never touches the ring again
//!     │◀───────────────│ base                          │
//! ```
//!
//! A thread for each device, rather than one for all: a frontend that stops in the middle of a
//! message holds up its own device and no other. Their number is that of the configured
//! devices, and they sleep.
//!
//! A message that breaks the protocol, or asks for what cannot be done, closes the connection;
//! the frontend may connect again. One frontend is served at a time, and others are turned away.
//!
//! Not here: what is in the rings; see `plinth-backends`. Not offered, because the `vhost` crate
//! cannot speak it or nobody needs it yet: STATUS, NET_MTU, LOG_SHMFD (migration), postcopy,
//! packed rings, in-band notifications.

mod backchannel;
mod device;
mod event;
mod handover;
mod listen;
mod protocol;
mod ring;
mod server;

pub use device::{Device, DeviceOptions, DeviceStatus};
pub use event::{
    ConfigRefusal, DeviceClass, DeviceToken, QueueChange, QueueEvent, StartedQueue, StopTicket,
    WorkerLink,
};
pub use handover::{HandOverError, HandOverLine, HandedDevice, Successor};
pub use listen::ServeError;
pub use plinth_guest_memory::Shrinkable;
