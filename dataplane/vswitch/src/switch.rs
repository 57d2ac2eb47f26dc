// SPDX-License-Identifier: Apache-2.0
//! The machine's doors.

use crate::balance::BalancerState;
use crate::counters::PortCounters;
use crate::external::{ExternalCounters, OUTSIDE};
use crate::flow::{FlowTable, Ingress};
use crate::fragments::Fragments;
use crate::neighbors::Neighbors;
use crate::pipeline::Waiting;
use crate::questions::QuestionBudget;
use crate::rates::Rates;
use crate::snapshot::UplinkTables;
use crate::stages::router::ErrorBudget;
use crate::{
    BURST_MAX, ConfigError, DropReason, Limits, Packet, PortChange, PortIndex, Snapshot, Verdict,
};
use plinth_ids::{Epoch, MacAddress, Moment, PortId};
use plinth_switch_api::{SwitchConfig, WEIGHT_DEFAULT};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Of what the switch sends of its own accord: ARP behind Ethernet.
const CONTROL_FRAME_LENGTH: usize = 42;

/// A frame that the switch sends of its own accord: ARP on the underlay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ControlFrame {
    pub port: PortIndex,
    bytes: [u8; CONTROL_FRAME_LENGTH],
}

impl ControlFrame {
    /// The whole frame, without Ethernet's padding.
    pub const fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What happened to the flow table, in numbers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FlowCounters {
    /// Packets that found an entry.
    pub hits: u64,
    /// Packets that were judged by the stages.
    pub misses: u64,
    /// Entries made, or made anew after a change of configuration that may concern them.
    pub made: u64,
    /// Entries refused because the table had no room; their packets were judged all the same.
    pub refused_table_full: u64,
    /// Entries refused because the port had its share; as above.
    pub refused_share_used: u64,
}

/// One worker's switch.
#[derive(Debug)]
pub struct Switch {
    pub(crate) limits: Limits,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) flows: FlowTable,
    pub(crate) fragments: Fragments,
    pub(crate) errors: ErrorBudget,
    pub(crate) questions: QuestionBudget,
    pub(crate) neighbors: Neighbors,
    pub(crate) rates: Rates,
    /// By [`PortIndex`].
    pub(crate) counters: Box<[PortCounters]>,
    pub(crate) flow_counters: FlowCounters,
    pub(crate) external: ExternalCounters,
    pub(crate) balancers: BalancerState,
    /// By [`PortIndex`]: how many ports had this place.
    pub(crate) incarnations: Box<[u32]>,
    /// Until then, TCP connections are picked up in their middle.
    pub(crate) grace_until: Moment,
    /// Connections that the last burst began.
    pub(crate) beginnings: u64,
    /// Scratch of one burst.
    pub(crate) waiting: Vec<Waiting>,
}

impl Switch {
    /// A switch without ports. All its memory is taken here. `seed` keys the hash of the flow
    /// table and must not be known to guests.
    pub fn new(limits: Limits, seed: u64) -> Self {
        let snapshot = Arc::<Snapshot>::default();
        let mut flows = FlowTable::new(&limits, seed);
        flows.install(&snapshot.stamps);
        Self {
            limits,
            snapshot,
            flows,
            fragments: Fragments::new(limits.fragments),
            errors: ErrorBudget::new(limits.icmp_errors_per_second),
            questions: QuestionBudget::new(
                limits.questions_per_second,
                usize::from(limits.ports) + 1,
            ),
            neighbors: Neighbors::new(limits.next_hops),
            rates: Rates::new(usize::from(limits.ports) + 1),
            counters: vec![PortCounters::ZERO; usize::from(limits.ports) + 1].into(),
            flow_counters: FlowCounters::default(),
            external: ExternalCounters::new(limits.external_addresses),
            balancers: BalancerState::new(limits.balancers.listeners, limits.balancers.clients),
            incarnations: vec![0; usize::from(limits.ports) + 1].into(),
            grace_until: Moment::ZERO,
            waiting: vec![Waiting::NOTHING; BURST_MAX],
            beginnings: 0,
        }
    }

    /// Puts a compiled configuration into force, between two bursts, without allocating, and
    /// gives back the one before, to be dropped where time does not matter.
    ///
    /// The snapshot must have been compiled with this switch's limits and upon the snapshot that
    /// is in force.
    ///
    /// # Panics
    /// If it was compiled with greater limits and exceeds this switch's.
    pub fn install(&mut self, now: Moment, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        let identity = |tables: &UplinkTables| (tables.vtep, tables.mac);
        let before: Option<(Ipv4Addr, MacAddress)> = self.snapshot.uplink.as_ref().map(identity);
        let after = snapshot.uplink.as_ref().map(identity);
        let next_hops = snapshot.uplink.as_ref().map(|uplink| &uplink.next_hops[..]);
        self.neighbors.install(now, next_hops.unwrap_or_default());
        if after.is_some() && after != before {
            self.neighbors.announce(now);
        }
        for change in snapshot.changes() {
            if let PortChange::Added { index, .. } = change {
                self.counters[index.get()] = PortCounters::ZERO;
                let incarnation = &mut self.incarnations[index.get()];
                *incarnation = incarnation.wrapping_add(1);
                self.questions.renew(now, *index);
            }
        }
        let changes = snapshot.changes();
        self.rates.install(now, &snapshot, |place| {
            let is_here = |change: &PortChange| {
                matches!(change, PortChange::Added { index, .. } if *index == place)
            };
            changes.iter().any(is_here)
        });
        self.external.install(now, &snapshot.external);
        self.flows.install(&snapshot.stamps);
        std::mem::replace(&mut self.snapshot, snapshot)
    }

    /// How many packets the driver may take from a port now: [`BURST_MAX`] unless the port's limit
    /// is reached. Those that are taken are counted by [`Self::process`].
    #[inline]
    pub fn outbound_allowance(&mut self, now: Moment, port: PortIndex) -> usize {
        if !self.snapshot.has_limits {
            return BURST_MAX;
        }
        self.rates.allowance(now, port)
    }

    /// When a port whose packets are held may be asked for some again, if there is one.
    pub const fn held_until(&self) -> Option<Moment> {
        self.rates.held_until()
    }

    /// Where packets of the outside come in.
    pub(crate) fn outside(&self) -> Ingress {
        let place = PortIndex::UPLINK;
        Ingress { place: place.0, incarnation: self.incarnations[place.get()], vni: OUTSIDE }
    }

    /// A port's weight beside others.
    pub fn weight(&self, port: PortIndex) -> u16 {
        let weight = self.snapshot.port(port).and_then(|port| port.limits.weight);
        weight.unwrap_or(WEIGHT_DEFAULT)
    }

    /// Until then, a segment in the middle of a TCP connection that nobody knows is taken for one
    /// whose beginning happened before the switch was started, if the rules allow a connection
    /// between the two. Its windows are not known and not checked.
    pub const fn begin_grace(&mut self, until: Moment) {
        self.grace_until = until;
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

    /// Takes back a [`Verdict::Send`] that could not be carried out, for a reason that
    /// [`is_of_delivery`](DropReason::is_of_delivery). It is counted at the port that it was to
    /// be sent to. To be called before the next configuration is installed.
    ///
    /// # Panics
    /// If the packet was not to be sent or the reason is another: the driver's books are wrong.
    pub fn undelivered(&mut self, packet: &Packet, reason: DropReason) {
        assert!(reason.is_of_delivery(), "{reason:?} is decided by the machine, not by a driver");
        let Verdict::Send(port) = packet.verdict() else {
            panic!("a packet that was not to be sent cannot have failed to be");
        };
        self.counters[port.get()].count_undelivered(packet.output_length(), reason);
    }

    /// Does what is due. The frame, if any, is to be sent, and `tick` to be called again with the
    /// same `now` until it returns `None`. It may be called at any time.
    ///
    /// A call looks at 1024 flow entries and at every next hop once, at most.
    pub fn tick(&mut self, now: Moment) -> Option<ControlFrame> {
        self.flows.age(now);
        let uplink = self.snapshot.uplink.as_ref()?;
        let asking = match self.external.tick(now, &self.snapshot.external, uplink) {
            Some(asking) => asking,
            None => self.neighbors.tick(now, uplink)?,
        };
        let bytes = asking.message.frame(asking.destination);
        let length = u32::try_from(bytes.len()).expect("an ARP frame is short");
        self.counters[PortIndex::UPLINK.get()].count_sent(length);
        Some(ControlFrame { port: PortIndex::UPLINK, bytes })
    }

    /// When [`Self::tick`] is next needed; `None` when nothing is going on.
    pub fn deadline(&self) -> Option<Moment> {
        let deadlines =
            [self.flows.deadline(), self.neighbors.deadline(), self.external.deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// Decides on at most [`BURST_MAX`] packets: afterwards each has its verdict.
    ///
    /// Allocates nothing.
    ///
    /// # Panics
    /// If there are more, or one is from a port past the limits.
    pub fn process(&mut self, now: Moment, packets: &mut [Packet]) {
        assert!(packets.len() <= BURST_MAX, "a burst has at most {BURST_MAX} packets");
        crate::pipeline::run(self, now, packets);
    }
}
