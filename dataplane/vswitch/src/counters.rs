// SPDX-License-Identifier: Apache-2.0
//! Counters of one port: plain numbers that one worker writes.
//!
//! What comes in is conserved: `received = forwarded + answered + absorbed + drops`, where drops
//! are those that the machine decided. Delivery may fail afterwards; that is counted at the port
//! that did not take the packet, and taken off its `sent`.

use crate::{DropReason, PortIndex, Verdict};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PortCounters {
    /// From the guest, or from the wire.
    pub received: u64,
    pub bytes_received: u64,
    /// To the guest, or to the wire, with what the switch says of its own accord.
    pub sent: u64,
    pub bytes_sent: u64,
    /// Of those received: sent to another port.
    pub forwarded: u64,
    /// Of those received: answered by the switch, to the port they came from.
    pub answered: u64,
    /// Of those received: for the switch itself, also to be answered beside the worker.
    pub absorbed: u64,
    drops: [u64; DropReason::COUNT],
}

impl PortCounters {
    pub(crate) const ZERO: Self = Self {
        received: 0,
        bytes_received: 0,
        sent: 0,
        bytes_sent: 0,
        forwarded: 0,
        answered: 0,
        absorbed: 0,
        drops: [0; DropReason::COUNT],
    };

    pub const fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason.index()]
    }

    /// Drops that the machine decided, of packets received here.
    pub fn drops_decided(&self) -> u64 {
        let decided = DropReason::ALL.iter().filter(|reason| !reason.is_of_delivery());
        decided.map(|&reason| self.drops(reason)).sum()
    }

    /// Drops of packets that were to be sent here and were not taken.
    pub fn drops_of_delivery(&self) -> u64 {
        let failed = DropReason::ALL.iter().filter(|reason| reason.is_of_delivery());
        failed.map(|&reason| self.drops(reason)).sum()
    }

    pub(crate) const fn count_drop(&mut self, reason: DropReason) {
        self.drops[reason.index()] += 1;
    }

    /// Counts a packet that came in here and what became of it.
    pub(crate) fn count_received(&mut self, here: PortIndex, length: u32, verdict: Verdict) {
        self.received += 1;
        self.bytes_received += u64::from(length);
        match verdict {
            Verdict::Send(port) if port == here => self.answered += 1,
            Verdict::Send(_) => self.forwarded += 1,
            Verdict::Absorbed | Verdict::Ask => self.absorbed += 1,
            Verdict::Drop(reason) => self.count_drop(reason),
        }
    }

    pub(crate) fn count_sent(&mut self, length: u32) {
        self.sent += 1;
        self.bytes_sent += u64::from(length);
    }

    /// Turns a question that nobody could be handed into a drop.
    pub(crate) fn count_unasked(&mut self, reason: DropReason) {
        self.absorbed = self.absorbed.saturating_sub(1);
        self.count_drop(reason);
    }

    /// Turns a packet counted as sent into a drop.
    pub(crate) fn count_undelivered(&mut self, length: u32, reason: DropReason) {
        // A port may have been replaced, and its counters begun again, in between.
        self.sent = self.sent.saturating_sub(1);
        self.bytes_sent = self.bytes_sent.saturating_sub(u64::from(length));
        self.count_drop(reason);
    }
}
