// SPDX-License-Identifier: Apache-2.0
//! Where a frame goes, by its destination MAC inside its VNI.

use super::guard;
use super::parse::Parsed;
use super::tunnel;
use crate::flow::{Action, Way};
use crate::pipeline::Waiting;
use crate::snapshot::{Destination, Port, Snapshot};
use crate::{DropReason, PortIndex};
use plinth_ids::Vni;

/// A decision about a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Decision {
    pub(crate) way: Way,
    /// The guest port in whose share of the flow table it may be kept.
    pub(crate) owner: PortIndex,
}

/// Judges a packet that came in at `ingress`.
pub(crate) fn judge(
    snapshot: &Snapshot,
    ingress: PortIndex,
    flow: &Waiting,
) -> Result<Decision, DropReason> {
    match flow.tunnel {
        Some(from) => inbound(snapshot, from.vni, &flow.parsed),
        None => {
            let port = snapshot.port(ingress).ok_or(DropReason::PortUnknown)?;
            outbound(snapshot, ingress, port, &flow.parsed, tunnel::source_port(flow.hash))
        }
    }
}

/// Judges a guest's packet. An error is a drop that is judged anew every time: a guest must not
/// fill the table with packets that it may not send.
fn outbound(
    snapshot: &Snapshot,
    index: PortIndex,
    port: &Port,
    parsed: &Parsed,
    source_port: u16,
) -> Result<Decision, DropReason> {
    guard::check_source(port, parsed)?;
    if parsed.expected.destination().is_multicast() {
        return Err(guard::reason_of_group(parsed));
    }
    let action = match snapshot.destination(port.vni, parsed.expected.destination()) {
        Some(Destination::Local(to)) if to == index => {
            return Err(DropReason::DestinationIsSource);
        }
        Some(Destination::Local(to)) => Action::Deliver(to),
        Some(Destination::Remote(tunnel)) => Action::Encapsulate { tunnel, source_port },
        None => Action::Drop(DropReason::DestinationUnknown),
    };
    Ok(Decision { way: Way { action, route: None }, owner: index })
}

/// Judges a packet that came through a tunnel: it goes to a port here or nowhere, never back into
/// a tunnel, so that no loop can arise.
fn inbound(
    snapshot: &Snapshot,
    vni: Vni,
    parsed: &Parsed,
) -> Result<Decision, DropReason> {
    if parsed.expected.destination().is_multicast() {
        return Err(guard::reason_of_group(parsed));
    }
    match snapshot.destination(vni, parsed.expected.destination()) {
        Some(Destination::Local(to)) => {
            let way = Way { action: Action::Deliver(to), route: None };
            Ok(Decision { way, owner: to })
        },
        Some(Destination::Remote(_)) | None => Err(DropReason::DestinationUnknown),
    }
}
