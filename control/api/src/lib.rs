// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! What the CLI, the control service and the node agents say to each other.
//!
//! A message is a [`frame`]: a header {version, kind, length} and a payload in rkyv's format.
//! Everything from outside goes through [`frame::Header::parse`] and [`frame::decode`], which
//! check it before a byte of it is believed. The messages themselves stand in one module for
//! each version: [`v1`]. A version is frozen when it is released; a change after that is a new
//! module and a conversion at the border.
//!
//! Which message goes where:
//!
//! ```text
//!   plinth ──Request/Reply──▶ plinthd (service) ──AgentRequest/AgentReply──▶ plinthd (agent)
//!   a new node ──Join/Joined──▶ plinthd (service)
//! ```

pub mod frame;
pub mod v1;
mod with;

pub use v1::*;
pub use with::Raw;
