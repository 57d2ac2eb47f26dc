// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The switch's ports, and the path of a packet between them.
//!
//! ```text
//!   guest's ring ──▶ head, copied once ─┐                        ┌─▶ guest's ring
//!   mbuf ──────────▶ head, copied once ─┼─▶ Switch::process ─▶ ──┼─▶ mbuf ─▶ device
//!   memory ────────▶ head, copied once ─┘                        └─▶ memory
//!        └────────────── payload, copied once, straight into its destination ────┘
//! ```
//!
//! [`DataPath`] is the [`plinth_rt::Poller`] of one worker. It owns a [`plinth_vswitch::Switch`]
//! and every port; what it is to do comes as [`Message`]s, and what it no longer needs goes back
//! in the answers, to be dropped where time does not matter.
//!
//! Laws:
//! * A payload is copied once. What a guest changes after its headers were judged is payload.
//! * A packet that cannot be delivered is counted at its destination with a drop reason.
//! * A round takes at most one burst from each queue, and from a port only while it has cycles of
//!   its share left, so no port starves another.
//! * Nothing on the path of a packet allocates, locks, logs or waits.
//!
//! [`MemoryPort`] is the fake twin of the other two, with faults.

mod asking;
mod capture;
mod ethernet;
mod guest;
mod memory;
mod message;
mod path;
mod poller;
mod port;
mod turns;

pub use asking::{
    AnswerLost, AnsweringPort, AskingPort, QUESTION_LENGTH_MAX, QUESTIONS_MAX,
    Question as GuestQuestion, Slip, WakeWorker, asking,
};
pub use capture::{Capture, CaptureBounds, CaptureFilter, CaptureReader, Captured, capture};
pub use ethernet::EthernetPort;
pub use guest::GuestPort;
pub use memory::{Frame, MemoryLink, MemoryPort, memory_port};
pub use message::{
    Answer, Discarded, HandedStep, Message, PortSet, Question, Scanned, UplinkChange,
};
pub use path::StageCycles;
pub use poller::{DEVICE_EVENTS_MAX, DataPath, MESSAGES_MAX};
pub use port::{Delivery, Port};
