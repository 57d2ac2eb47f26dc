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
//! Not here: what is in the rings. See `plinth-backends`.

mod device;
mod event;

pub use device::{Device, DeviceOptions, DeviceStatus, ServeError};
pub use event::{
    ConfigRefusal, DeviceClass, DeviceToken, QueueChange, QueueEvent, StartedQueue, StopTicket,
    WorkerLink,
};
pub use plinth_guest_memory::Shrinkable;
