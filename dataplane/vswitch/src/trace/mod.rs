// SPDX-License-Identifier: Apache-2.0
//! What the switch would do with a packet that nobody has sent, and why.
//!
//! The packet goes through the same code and the same compiled configuration as every other, in a
//! switch of its own whose tables are empty; so the worker is not asked, and nothing that it
//! counts or remembers changes. Beside that, the questions of the slow path are put one by one,
//! and their answers written down.
//!
//! Slow and allocating: for a person's question on the management thread.

mod explain;
mod imagine;

pub use imagine::{ImagineError, Imagined, Sender, load_seen};

use crate::switch::Switch;
use crate::{DropReason, Limits, Packet, Snapshot, Verdict};
use plinth_ids::{MacAddress, Moment};
use std::sync::Arc;

/// One stage's word about the packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    pub stage: &'static str,
    /// What was looked at, and found.
    pub text: String,
    /// Why the packet goes no further, if it does not.
    pub refused: Option<DropReason>,
}

/// A packet's way. Afterwards the packet itself is as it would be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Traced {
    pub steps: Vec<Step>,
    pub verdict: Verdict,
}

/// What a trace needs of the worker's switch.
#[derive(Clone, Debug)]
pub struct Scene {
    limits: Limits,
    snapshot: Arc<Snapshot>,
    /// In the order of the configuration.
    next_hops: Vec<Option<MacAddress>>,
}

/// A time that is far enough from the beginning for everything that is refilled to be full.
const NOW: Moment = Moment::from_secs(1 << 20);

impl Scene {
    /// The configuration in force.
    pub const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Sends a loaded packet on its way through a switch without a past.
    pub fn trace(&self, packet: &mut Packet) -> Traced {
        self.walk(packet, self.switch())
    }

    /// The same for a packet that may be in the middle of a connection: one whose beginning was
    /// allowed either way is taken for begun.
    pub fn trace_amid(&self, packet: &mut Packet) -> Traced {
        let mut switch = self.switch();
        switch.begin_grace(NOW + Moment::from_secs(1));
        self.walk(packet, switch)
    }

    fn walk(&self, packet: &mut Packet, mut switch: Switch) -> Traced {
        let mut imagined = packet.clone();
        switch.process(NOW, std::slice::from_mut(packet));
        let verdict = packet.verdict();
        let mut steps = explain::before(&mut self.switch(), NOW, &mut imagined, verdict);
        if steps.last().is_none_or(|step| step.refused.is_none()) {
            steps.push(explain::end(&self.snapshot, packet));
        }
        Traced { steps, verdict }
    }

    /// With room for one connection, which is what a trace makes.
    fn switch(&self) -> Switch {
        let flows = 64;
        let limits = Limits { flows, flows_per_port: flows, fragments: 1, ..self.limits };
        let mut switch = Switch::new(limits, 0);
        switch.install(NOW, Arc::clone(&self.snapshot));
        let uplink = self.snapshot.uplink.as_ref();
        let hops = uplink.map(|uplink| &uplink.next_hops[..]).unwrap_or_default();
        for (&address, mac) in hops.iter().zip(&self.next_hops) {
            if let Some(mac) = *mac {
                switch.neighbors.learn(NOW, address, mac);
            }
        }
        switch
    }
}

impl Switch {
    /// What traces need. Copies a handle and a MAC for each next hop.
    pub fn scene(&self) -> Scene {
        let uplink = self.snapshot.uplink.as_ref();
        let count = uplink.map_or(0, |uplink| uplink.next_hops.len());
        let next_hops = (0..count).map(|at| self.neighbors.mac(u16::try_from(at).ok()?)).collect();
        Scene { limits: self.limits, snapshot: Arc::clone(&self.snapshot), next_hops }
    }
}
