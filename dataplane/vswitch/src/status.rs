// SPDX-License-Identifier: Apache-2.0
//! The machine's tables as plain data, for the management thread to send on.

use crate::balance;
use crate::flow::{Action, Entry, FlowKey};
use crate::switch::{FlowCounters, Switch};
use crate::{DropReason, PortCounters, PortIndex, Snapshot};
use plinth_ids::{MacAddress, Moment, Name, Vni};
use plinth_switch_api::{BackendStatus, DropCount, ExternalStatus, FlowStatus, PortStatus, UPLINK};

/// The most flow entries that one question is answered with.
pub const FLOWS_LISTED_MAX: usize = 4096;

impl Snapshot {
    /// The backends of one balancer, each with its connections out of `counts`, which are
    /// [`Switch::backend_counts`] of the machine that has this configuration.
    pub fn backends<'a>(
        &'a self,
        balancer: &'a Name,
        counts: &'a [u32],
    ) -> impl Iterator<Item = BackendStatus> + 'a {
        let config = self.settings().into_iter();
        config.flat_map(move |config| balance::status(config, &self.balancers, balancer, counts))
    }
}

impl Switch {
    /// Every port with its counters, the uplink first. `is_up` is what the driver knows of it.
    pub fn ports(&self, is_up: impl Fn(PortIndex) -> bool) -> Vec<PortStatus> {
        let uplink = self.snapshot.settings().and_then(|config| config.underlay.as_ref());
        let uplink = uplink.map(|underlay| PortStatus {
            id: UPLINK,
            name: "uplink".to_owned(),
            mac: underlay.mac,
            addresses: vec![underlay.vtep.into()],
            is_up: is_up(PortIndex::UPLINK),
            ..self.counted(PortIndex::UPLINK)
        });
        let guests = self.snapshot.ports().map(|(index, port)| PortStatus {
            id: port.id,
            name: port.name.to_string(),
            vni: Some(port.vni),
            mac: port.mac,
            addresses: port.addresses.to_vec(),
            is_up: is_up(index),
            ..self.counted(index)
        });
        uplink.into_iter().chain(guests).collect()
    }

    /// A port's counters, with nothing else filled in.
    fn counted(&self, index: PortIndex) -> PortStatus {
        let counters = self.counters(index);
        PortStatus {
            id: UPLINK,
            name: String::new(),
            vni: None,
            mac: MacAddress::default(),
            addresses: Vec::new(),
            is_up: false,
            packets_received: counters.received,
            bytes_received: counters.bytes_received,
            packets_sent: counters.sent,
            bytes_sent: counters.bytes_sent,
            drops: drop_counts(|reason| counters.drops(reason)),
        }
    }

    /// The counters of a place. They begin anew when another port takes it over.
    pub fn counters(&self, index: PortIndex) -> &PortCounters {
        &self.counters[index.get()]
    }

    /// The newest `limit` flow entries of the configuration in force, at most
    /// [`FLOWS_LISTED_MAX`].
    ///
    /// Reads the whole flow table and allocates: for the management thread's rare question. The
    /// worker forwards nothing meanwhile.
    pub fn flows(&self, now: Moment, limit: usize) -> Vec<FlowStatus> {
        let limit = limit.min(FLOWS_LISTED_MAX);
        let time = crate::flow::milliseconds(now);
        let order = |left: &(u32, &Entry, u32), right: &(u32, &Entry, u32)| {
            (left.0, left.1.key.words).cmp(&(right.0, right.1.key.words))
        };
        // The newest so far, in no order, and as many again; a list of all entries would be large
        // enough to cost more than reading the table.
        let mut newest = Vec::with_capacity(2 * limit + 1);
        for (entry, idle) in self.flows.list(now) {
            newest.push((time.wrapping_sub(entry.made), entry, idle));
            if newest.len() > 2 * limit {
                newest.select_nth_unstable_by(limit, order);
                newest.truncate(limit);
            }
        }
        newest.sort_unstable_by(order);
        newest.truncate(limit);
        newest
            .into_iter()
            .filter_map(|(age, entry, idle)| self.flow_status(entry, (age, idle)))
            .collect()
    }

    fn flow_status(&self, entry: &Entry, (age, idle): (u32, u32)) -> Option<FlowStatus> {
        let key = &entry.key;
        let (port, vni) = self.ingress(key)?;
        let action = match entry.action {
            Action::Deliver(to) => self.snapshot.port(to)?.id.to_string(),
            Action::Encapsulate { tunnel, .. } => {
                format!("vtep {}", self.snapshot.tunnel(tunnel).vtep)
            }
            Action::External { address, .. } => self.snapshot.external_name(address)?,
            Action::Drop(reason) => reason.name().to_owned(),
        };
        let connection = entry.link.get();
        let state = |index| self.flows.connection(index).state_name().to_owned();
        Some(FlowStatus {
            port,
            vni,
            key: key.to_string(),
            action,
            packets: entry.packets,
            bytes: entry.bytes,
            idle_ms: idle.into(),
            age_ms: age.into(),
            state: connection.map(|(index, _)| state(index)),
            direction: connection.map(|(_, direction)| direction.name().to_owned()),
        })
    }

    fn ingress(&self, key: &FlowKey) -> Option<(plinth_ids::PortId, Vni)> {
        let ingress = key.ingress();
        match PortIndex(ingress.place) {
            PortIndex::UPLINK => Some((UPLINK, ingress.vni)),
            index => self.snapshot.port(index).map(|port| (port.id, port.vni)),
        }
    }

    /// Connections of the backends, by their place, for [`Snapshot::backends`].
    pub fn backend_counts(&self) -> &[u32] {
        self.flows.backend_counts()
    }

    /// External addresses with what went through them.
    pub fn external_addresses(&self) -> Vec<ExternalStatus> {
        self.external.status(&self.snapshot.external)
    }

    /// Drops of all ports together, every reason that happened.
    pub fn drops(&self) -> Vec<DropCount> {
        drop_counts(|reason| self.counters.iter().map(|port| port.drops(reason)).sum())
    }

    /// How the flow table fares.
    pub const fn flow_counters(&self) -> FlowCounters {
        self.flow_counters
    }

    /// Entries in the flow table, in use or not yet aged out.
    pub const fn flow_count(&self) -> u32 {
        self.flows.live()
    }

    /// Connections that are followed; each has two of the entries.
    pub const fn connection_count(&self) -> u32 {
        self.flows.live_connections()
    }
}

fn drop_counts(count: impl Fn(DropReason) -> u64) -> Vec<DropCount> {
    let counted = DropReason::ALL.iter().map(|&reason| (reason, count(reason)));
    counted
        .filter(|&(_, packets)| packets > 0)
        .map(|(reason, packets)| DropCount { reason: reason.name().to_owned(), packets })
        .collect()
}
