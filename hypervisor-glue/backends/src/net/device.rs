// SPDX-License-Identifier: Apache-2.0
//! The worker's side of one NIC.

use super::{NetCounters, Offload, OutboundBurst, Payload};
use crate::kicks::KickChange;
use plinth_vhost::QueueChange;

/// Why a packet was not put into the guest's ring. Nothing was written then.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeliverRefusal {
    #[error("the guest's driver has not started this queue")]
    Down,
    #[error("the guest has made no buffers available")]
    NoBuffers,
    #[error("the packet does not fit a buffer and the driver does not take several")]
    TooLong,
    #[error("the guest's buffers are malformed")]
    BuffersMalformed,
}

/// All queues of one NIC, owned by one worker.
#[derive(Debug)]
pub struct NetDevice {
    counters: NetCounters,
}

impl NetDevice {
    /// `queue_pairs` as in [`super::NetOptions`].
    pub fn new(queue_pairs: u16) -> Self {
        let _ = queue_pairs;
        unimplemented!()
    }

    /// Takes over a queue, gives one back or changes its eventfd. No burst may be outstanding
    /// when a queue is asked back: the answer then waits for its release.
    pub fn handle(&mut self, change: QueueChange) {
        let _ = change;
        unimplemented!()
    }

    /// The next kick descriptor that came or went.
    pub fn take_kick_change(&mut self) -> Option<KickChange> {
        unimplemented!()
    }

    /// Whether the guest's driver has started at least one queue.
    pub fn is_up(&self) -> bool {
        unimplemented!()
    }

    /// Queue pairs of which both rings run.
    pub fn pairs_running(&self) -> impl Iterator<Item = u16> {
        std::iter::empty()
    }

    /// Takes up to [`super::BURST`] packets that the guest has sent on `pair`. Malformed ones
    /// are counted, released and not among them. Returns the burst's length.
    ///
    /// # Panics
    /// If `burst` holds packets: release it first.
    pub fn receive(&mut self, pair: u16, burst: &mut OutboundBurst) -> usize {
        let _ = (pair, burst);
        unimplemented!()
    }

    /// Gives the buffers of a burst back to the guest that it came from.
    pub fn release(&mut self, burst: &mut OutboundBurst) {
        let _ = burst;
        unimplemented!()
    }

    /// Writes one packet into the guest's ring: `head`, then `payload`.
    ///
    /// An offload that the guest's driver has not negotiated is done here in software (a
    /// checksum) so that every guest can be sent every packet.
    pub fn deliver(
        &mut self,
        pair: u16,
        head: &[u8],
        payload: Payload<'_>,
        offload: Offload,
    ) -> Result<(), DeliverRefusal> {
        let _ = (pair, head, payload, offload);
        unimplemented!()
    }

    /// Publishes what was delivered and released since the last flush, and wakes the guest
    /// where it asked for that. Once a burst.
    pub fn flush(&mut self) {
        unimplemented!()
    }

    /// Asks the guest to kick before the worker sleeps. `true` when packets are there already:
    /// then poll again instead.
    pub fn arm_kicks(&mut self) -> bool {
        unimplemented!()
    }

    /// Tells the guest that kicks are not needed, because the worker polls.
    pub fn disarm_kicks(&mut self) {
        unimplemented!()
    }

    pub fn counters(&self) -> NetCounters {
        self.counters
    }
}
