// SPDX-License-Identifier: Apache-2.0
//! Which eventfds a sleeping worker waits for.

use std::fs::File;

/// A kick descriptor came or went. Taken with `take_kick_change` after each call of `handle`,
/// `release`, `complete` or `flush`, until there is none.
#[derive(Debug)]
pub enum KickChange {
    /// Wait for it, edge-triggered; never read it. It stays open until the matching
    /// [`KickChange::Removed`], which brings the same descriptor back.
    Added { queue: u16, descriptor: std::os::fd::RawFd },
    /// Stop waiting for it; dropping `file` closes it.
    Removed { queue: u16, file: File },
}
