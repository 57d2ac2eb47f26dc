// SPDX-License-Identifier: Apache-2.0
//! Which eventfds a sleeping worker waits for.

/// A kick descriptor came or went, so that what a sleeping worker waits for must be made anew
/// from `watch_kicks`. Taken with `take_kick_change` once a round, until there is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KickChange {
    Added { queue: u16 },
    Removed { queue: u16 },
}
