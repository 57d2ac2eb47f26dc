// SPDX-License-Identifier: Apache-2.0
//! Whether two ends may have a connection: the rules of the sender's groups for what goes out,
//! and those of the receiver's for what comes in. An end behind a tunnel is judged by its own
//! switch.

use crate::flow::{Action, FlowKey};
use crate::security::{GroupSet, Question};
use crate::snapshot::{Port, Snapshot};
use crate::vpc::Hop;
use crate::{DropReason, PortIndex};
use plinth_ids::Vni;
use plinth_switch_api::Direction;
use std::net::IpAddr;

/// The ports here that a connection begins and ends at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends<'a> {
    from: Option<&'a Port>,
    to: Option<&'a Port>,
}

impl<'a> Ends<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, ingress: PortIndex, action: Action) -> Self {
        let to = match action {
            Action::Deliver(port) => snapshot.port(port),
            Action::Encapsulate { .. } | Action::External { .. } | Action::Drop(_) => None,
        };
        // The uplink's place has no guest port.
        Self { from: snapshot.port(ingress), to }
    }

    /// Whether rules stand at either end.
    pub(crate) fn are_filtered(&self) -> bool {
        [self.from, self.to].into_iter().flatten().any(Port::is_filtered)
    }

    /// As the answers see them.
    pub(crate) const fn exchanged(&self) -> Self {
        Self { from: self.to, to: self.from }
    }
}

/// Whether the rules of both ends allow a connection that begins with a packet that comes as
/// `key` and goes as `going`: its sender sees the one, its receiver the other.
pub(crate) fn permit(
    snapshot: &Snapshot,
    ends: &Ends<'_>,
    key: &FlowKey,
    going: &FlowKey,
) -> Result<(), DropReason> {
    questions(snapshot, ends, key, going)
        .try_for_each(|(port, question)| snapshot.permits(port, &question))
}

/// What is asked of whose rules, one after the other.
pub(crate) fn questions<'a>(
    snapshot: &Snapshot,
    ends: &Ends<'a>,
    key: &FlowKey,
    going: &FlowKey,
) -> impl Iterator<Item = (&'a Port, Question)> {
    let ask = |port: &'a Port, direction, key: &FlowKey, peer| {
        let question = Question {
            direction,
            protocol: key.protocol(),
            port: key.has_ports().then(|| key.destination_port()),
            peer,
            peer_groups: groups_of(snapshot, port.vni, peer),
        };
        (port, question)
    };
    let (from, to) = (ends.from, ends.to);
    let out = from.filter(|port| port.is_filtered());
    let out = out.map(|port| ask(port, Direction::Outbound, key, key.addresses().1));
    let into = to.filter(|port| port.is_filtered());
    let into = into.map(|port| ask(port, Direction::Inbound, going, going.addresses().0));
    [out, into].into_iter().flatten()
}

/// The groups of whoever has `address`, in this VPC or in the peer that it leads to.
fn groups_of(snapshot: &Snapshot, vni: Vni, address: IpAddr) -> GroupSet {
    if snapshot.owner(vni, address).is_some() {
        return snapshot.groups_of(vni, address);
    }
    match snapshot.vpc(vni).and_then(|vpc| vpc.hop(address)) {
        Some(Hop::Peer(peer)) => snapshot.groups_of(peer, address),
        _ => GroupSet::default(),
    }
}
