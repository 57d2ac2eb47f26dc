// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The stage for tests with real processes.
//!
//! ```text
//!   runner ── one child process a test, bounded in time ──▶ test
//!                                                           ├─ Scratch     a folder of its own
//!                                                           ├─ Namespace   ip netns, veth
//!                                                           ├─ Daemon      a process of ours
//!                                                           │   ├─ Switch  plinth-switchd
//!                                                           │   ├─ Store   plinth-stored
//!                                                           │   └─ TapGuest
//!                                                           └─ Capture     frames of a wire
//! ```
//!
//! Everything a test makes is undone when its guard is dropped. A test that runs out of time
//! is ended with its whole process group, and the runner then removes the namespaces that bear
//! its number.

pub mod capture;
pub mod daemon;
pub mod namespace;
pub mod runner;
pub mod scratch;
pub mod store;
pub mod switch;
pub mod tap_guest;
pub mod wait;

pub use daemon::Daemon;
pub use namespace::Namespace;
pub use scratch::Scratch;
pub use store::Store;
pub use switch::Switch;
pub use tap_guest::TapGuest;
pub use wait::{until, within};
