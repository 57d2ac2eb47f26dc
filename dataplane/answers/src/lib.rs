// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! What the network itself says to a guest: DHCPv4 (RFC 2131), DHCPv6 (RFC 8415), router
//! advertisements (RFC 4861) and DNS (RFC 1035), all from configuration; and TCP for what is asked
//! by a connection.
//!
//! A [`Directory`] is one configuration, compiled. It is asked with a guest's whole frame and
//! gives a whole frame back, or says that a name is somebody else's to resolve. It keeps nothing
//! between questions: a lease is what control assigned, so there is nothing to remember.
//!
//! Beside it stand those that remember: a [`Schedule`] of advertisements, a [`Forwarder`] of
//! questions that are asked upstream, and the [`Streams`] of guests that ask for their metadata.
//!
//! The frame's source was held to the NIC's addresses before it came here (`plinth-vswitch`);
//! what is inside the message is not believed: a client that calls itself by another MAC than
//! its NIC's gets no answer.
//!
//! This allocates and is not for a worker's round; the switch runs it on a thread of its own.

mod checks;
mod dhcp4;
mod dhcp6;
mod directory;
mod dns;
mod forwarder;
mod frame;
mod question;
mod router;
mod schedule;
mod settings;
mod stack;
mod streams;

pub use checks::{CheckFrame, Checked, Checks, Opinions, WantedCheck, wanted_checks};
pub use directory::{Answer, Directory, Silence};
pub use forwarder::{
    Forwarder, PATIENCE, Reply, Send, Ticket, TooMany, UNDER_WAY_MAX, UNDER_WAY_OF_ONE_MAX,
};
pub use question::Question;
pub use schedule::Schedule;
pub use stack::{CONNECTIONS_MAX, LIFE, REQUEST_MAX};
pub use streams::{Effect, RESPONSE_MAX, STACKS_MAX, Segment, Service, StreamId, Streams};
