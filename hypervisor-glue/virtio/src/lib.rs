// SPDX-License-Identifier: Apache-2.0
#![allow(unsafe_code, reason = "a fence: this crate touches rings in shared memory")]
//! Split virtqueues in poll mode.

/// Where a ring stands. All that is needed to go on elsewhere.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RingState {
    /// Of the available ring: the next entry that the device takes.
    pub next_available: u16,
    /// Of the used ring: the next entry that the device writes.
    pub next_used: u16,
}

/// An eventfd of the frontend that we write to: call or error.
#[derive(Debug)]
pub struct Notifier {
    file: std::fs::File,
}

impl Notifier {
    /// Wakes the other side.
    pub fn notify(&self) {
        use std::io::Write;
        // A full counter is a wake-up that has not been seen yet, so nothing is lost.
        let _ = (&self.file).write(&1u64.to_le_bytes());
    }
}

/// The device side of one ring.
#[derive(Debug)]
pub struct DeviceQueue {
    state: RingState,
}

impl DeviceQueue {
    /// Where the ring stands.
    pub fn state(&self) -> RingState {
        self.state
    }
}
