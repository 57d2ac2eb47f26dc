// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The control service: carries out what the planner decides.
//!
//! ```text
//!   operator ─▶ Api ──plan──▶ Store ──commit──▶ registry
//!                               │ changed
//!                 Link (one a node): probe, push spec, carry out acts ──▶ agent
//! ```
//!
//! [`Store`] has records and observations and is the only one who writes. A [`Link`] keeps a
//! node's agent in step: every second, and at every change, it asks for the status, pushes the
//! whole spec where the agent's is older, and has due acts carried out. Nothing that matters is
//! in memory only, so the process may be killed anywhere.

mod answer;
mod api;
mod balance;
mod external;
mod image;
mod join;
mod link;
mod network;
mod schedule;
mod service;
mod storage;
mod store;
mod wait;

pub use link::Link;
pub use service::{FirstNode, Service, ServiceOptions, StartError};
pub use store::{Store, StoreError, now};
