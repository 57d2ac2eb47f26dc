// SPDX-License-Identifier: Apache-2.0
//! What the agent says to plinth-switchd.

use crate::keeper::{Seen, Speaker, Trouble};
use plinth_api as api;
use plinth_ids::Epoch;
use plinth_manage::Client;
use plinth_switch_api::{
    Answer, DropCount, FlowStatus, ForwardProtocol, Look, PortStatus, Reply, Request, Sight,
    SwitchConfig, UnfitBackend, Verb,
};
use std::path::PathBuf;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

/// Asks the switch, one connection a question: it may have been another process a second ago.
#[derive(Clone, Debug)]
pub(crate) struct Switch {
    socket: PathBuf,
}

impl Switch {
    pub(crate) const fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    fn ask(&self, verb: Verb) -> Result<Answer, Trouble> {
        let reply: Reply = Client::connect(&self.socket, LIMIT)?.call(&Request { id: 1, verb })?;
        reply.result.map_err(|no| Trouble::Refused { code: no.code, text: no.text })
    }

    pub(crate) fn ports(&self) -> Result<Vec<api::SwitchPort>, Trouble> {
        match self.ask(Verb::Ports)? {
            Answer::Ports(ports) => Ok(ports.into_iter().map(port).collect()),
            _ => Err(Trouble::Confused),
        }
    }

    pub(crate) fn flows(&self, limit: u32) -> Result<Vec<api::FlowStatus>, Trouble> {
        match self.ask(Verb::Flows { limit })? {
            Answer::Flows(flows) => Ok(flows.into_iter().map(flow).collect()),
            _ => Err(Trouble::Confused),
        }
    }

    pub(crate) fn drops(&self) -> Result<Vec<api::DropCount>, Trouble> {
        match self.ask(Verb::Drops)? {
            Answer::Drops(drops) => Ok(drops.into_iter().map(drop_count).collect()),
            _ => Err(Trouble::Confused),
        }
    }

    pub(crate) fn look(&self, look: Look) -> Result<Sight, Trouble> {
        match self.ask(Verb::Look(look))? {
            Answer::Sight(sight) => Ok(sight),
            _ => Err(Trouble::Confused),
        }
    }
}

impl Speaker for Switch {
    type Config = SwitchConfig;
    /// Backends that are unfit; `None` until the switch has said so.
    type Extra = Option<Vec<api::UnfitBackend>>;

    fn status(&mut self) -> Result<Seen, Trouble> {
        match self.ask(Verb::Status)? {
            Answer::Status(status) => Ok(Seen {
                process: status.process,
                version: status.version,
                epoch: status.epoch,
                text: status.memory,
            }),
            _ => Err(Trouble::Confused),
        }
    }

    fn apply(&mut self, config: SwitchConfig, epoch: Epoch) -> Result<(), Trouble> {
        match self.ask(Verb::Apply(SwitchConfig { epoch, ..config }))? {
            Answer::Applied { .. } => Ok(()),
            _ => Err(Trouble::Confused),
        }
    }

    fn extra(&mut self) -> Result<Self::Extra, Trouble> {
        match self.ask(Verb::Unfit)? {
            Answer::Unfit(unfit) => Ok(Some(unfit.into_iter().map(unfit_backend).collect())),
            _ => Err(Trouble::Confused),
        }
    }
}

fn unfit_backend(unfit: UnfitBackend) -> api::UnfitBackend {
    api::UnfitBackend {
        balancer: unfit.balancer,
        protocol: match unfit.protocol {
            ForwardProtocol::Tcp => api::ForwardProtocol::Tcp,
            ForwardProtocol::Udp => api::ForwardProtocol::Udp,
        },
        port: unfit.port,
        address: unfit.backend,
        nic_port: unfit.backend_port,
    }
}

fn port(port: PortStatus) -> api::SwitchPort {
    api::SwitchPort {
        id: port.id,
        name: port.name,
        vni: port.vni,
        mac: port.mac,
        addresses: port.addresses,
        is_up: port.is_up,
        packets_received: port.packets_received,
        bytes_received: port.bytes_received,
        packets_sent: port.packets_sent,
        bytes_sent: port.bytes_sent,
        drops: port.drops.into_iter().map(drop_count).collect(),
    }
}

fn flow(flow: FlowStatus) -> api::FlowStatus {
    api::FlowStatus {
        port: flow.port,
        vni: flow.vni,
        key: flow.key,
        action: flow.action,
        packets: flow.packets,
        bytes: flow.bytes,
        idle_ms: flow.idle_ms,
    }
}

fn drop_count(count: DropCount) -> api::DropCount {
    api::DropCount { reason: count.reason, packets: count.packets }
}
