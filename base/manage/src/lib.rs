// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! How a daemon of the data plane is told what to do: JSON, one message a line, over a unix
//! socket; and how it keeps what it was told.
//!
//! ```text
//!   client ── {"id":1,"verb":"status"}\n ──▶ server ── Service::handle ──▶ reply, one line
//! ```
//!
//! Laws:
//! * One connection is served in order; connections are served side by side.
//! * A line is at most [`LINE_LENGTH_MAX`] bytes, a server has at most `connections_max`
//!   connections, and a connection that says nothing is closed after a while.
//! * What one connection does wrong is answered on that connection and harms no other.
//! * A socket that a dead process left behind is replaced; that of a living one is not.

mod client;
mod journal;
mod keep;
mod line;
mod server;

pub use client::{CallError, Client};
pub use journal::{Found, Journal};
pub use keep::{KeepError, Kept, LoadError};
pub use line::LINE_LENGTH_MAX;
pub use server::{ListenError, Server, ServerConfig, Service, bind};

/// Why a line was no request. It is given to [`Service::refuse`], which puts it into the
/// service's own words.
#[derive(Debug, thiserror::Error)]
pub enum LineFault {
    #[error("the line is longer than {LINE_LENGTH_MAX} bytes; send less in one message")]
    TooLong,
    #[error("the last line has no line feed; end every message with one")]
    Unfinished,
    #[error("the line is not a request: {source}")]
    NotARequest { source: serde_json::Error },
    #[error("all {connections_max} connections are in use; close one and try again")]
    TooManyConnections { connections_max: usize },
}

impl LineFault {
    /// The fault's stable name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong => "line-too-long",
            Self::Unfinished => "line-unfinished",
            Self::NotARequest { .. } => "not-a-request",
            Self::TooManyConnections { .. } => "too-many-connections",
        }
    }
}
