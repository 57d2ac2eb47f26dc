// SPDX-License-Identifier: Apache-2.0
//! The machine's doors.

use crate::{ConfigError, DropReason, Limits, Packet, PortChange, PortIndex, Snapshot};
use plinth_ids::{Epoch, Moment, PortId};
use plinth_switch_api::{DropCount, FlowStatus, PortStatus, SwitchConfig};
use std::sync::Arc;

/// A frame that the switch sends of its own accord: ARP on the underlay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ControlFrame {
    pub port: PortIndex,
    bytes: [u8; 64],
    length: u8,
}

impl ControlFrame {
    /// The whole frame, without Ethernet's padding.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// One worker's switch.
#[derive(Debug)]
pub struct Switch {
    limits: Limits,
    snapshot: Arc<Snapshot>,
}

impl Switch {
    /// A switch without ports. All its memory is taken here. `seed` keys the hash of the flow
    /// table and must not be known to guests.
    pub fn new(limits: Limits, seed: u64) -> Self {
        let _ = seed;
        Self { limits, snapshot: Arc::default() }
    }

    /// Puts a compiled configuration into force, between two bursts, without allocating, and
    /// gives back the one before, to be dropped where time does not matter.
    ///
    /// The snapshot must have been compiled with this switch's limits and upon the snapshot that
    /// is in force.
    pub fn install(&mut self, now: Moment, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        let _ = now;
        std::mem::replace(&mut self.snapshot, snapshot)
    }

    /// Checks a configuration and puts it into force: compile and install in one, for drivers
    /// with one thread. Says what became of the ports.
    ///
    /// # Errors
    /// When the configuration is refused. The one before stays in force.
    pub fn apply(
        &mut self,
        now: Moment,
        config: &SwitchConfig,
    ) -> Result<Vec<PortChange>, ConfigError> {
        let snapshot = Snapshot::compile(config, &self.limits, &self.snapshot)?;
        let changes = snapshot.changes().to_vec();
        self.install(now, Arc::new(snapshot));
        Ok(changes)
    }

    /// What is in force, for compiling the next configuration on another thread.
    pub const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Of the configuration in force; `None` before the first.
    pub fn epoch(&self) -> Option<Epoch> {
        self.snapshot.epoch()
    }

    /// The place of a configured port.
    pub fn port_index(&self, id: PortId) -> Option<PortIndex> {
        self.snapshot.port_index(id)
    }

    /// Decides on at most [`crate::BURST_MAX`] packets: afterwards each has its verdict.
    ///
    /// # Panics
    /// If there are more.
    pub fn process(&mut self, now: Moment, packets: &mut [Packet]) {
        assert!(packets.len() <= crate::BURST_MAX, "a burst is bounded");
        let _ = now;
    }

    /// Takes back a [`crate::Verdict::Send`] that could not be carried out, for one of
    /// [`DropReason::PortDown`], [`DropReason::PortQueueFull`], [`DropReason::PortBufferInvalid`]
    /// and [`DropReason::PayloadUnreadable`]. It is counted at the port that it was sent to.
    pub fn undelivered(&mut self, packet: &Packet, reason: DropReason) {
        let _ = (packet, reason);
    }

    /// Does what is due. The frame, if any, is to be sent, and `tick` to be called again with the
    /// same `now` until it returns `None`. It may be called at any time.
    pub fn tick(&mut self, now: Moment) -> Option<ControlFrame> {
        let _ = now;
        None
    }

    /// When [`Self::tick`] is next needed; `None` when nothing is going on.
    pub fn deadline(&self) -> Option<Moment> {
        None
    }

    /// Every port with its counters, the uplink first. `is_up` is what the driver knows of it.
    pub fn ports(&self, is_up: impl Fn(PortIndex) -> bool) -> Vec<PortStatus> {
        let _ = is_up;
        Vec::new()
    }

    /// The newest `limit` flow entries. Reads the whole flow table: for the management thread's
    /// rare question, not for every burst.
    pub fn flows(&self, now: Moment, limit: usize) -> Vec<FlowStatus> {
        let _ = (now, limit);
        Vec::new()
    }

    /// Drops of all ports together, every reason that happened.
    pub fn drops(&self) -> Vec<DropCount> {
        Vec::new()
    }
}
