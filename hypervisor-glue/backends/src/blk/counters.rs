// SPDX-License-Identifier: Apache-2.0
//! What a disk's queues have seen.

/// Summed over the device's queues.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BlkCounters {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub zeroings: u64,
    /// Requests that a process before this one left unfinished and that were given out again.
    pub resubmitted: u64,
    /// Requests that were answered here with an I/O error: malformed, or outside the disk.
    pub refused: u64,
    /// Requests of a kind that we do not know.
    pub unsupported: u64,
    /// Requests that the caller completed with an error.
    pub failed: u64,
    /// Rings that were given up because they, or a request without a status byte, were nonsense.
    pub queues_broken: u64,
    /// Eventfds written to wake the guest.
    pub calls: u64,
}
