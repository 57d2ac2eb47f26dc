// SPDX-License-Identifier: Apache-2.0
//! Where a frame goes, by its destination MAC inside its VNI.

use super::guard;
use super::parse::Parsed;
use crate::flow::Action;
use crate::snapshot::{Destination, Port, Snapshot};
use crate::{DropReason, PortIndex};
use plinth_ids::Vni;

/// A decision about a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Decision {
    pub(crate) action: Action,
    /// The guest port in whose share of the flow table it may be kept.
    pub(crate) owner: PortIndex,
}

/// Judges a guest's packet. An error is a drop that is judged anew every time: a guest must not
/// fill the table with packets that it may not send.
pub(crate) fn outbound(
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
    Ok(Decision { action, owner: index })
}

/// Judges a packet that came through a tunnel: it goes to a port here or nowhere, never back into
/// a tunnel, so that no loop can arise.
pub(crate) fn inbound(
    snapshot: &Snapshot,
    vni: Vni,
    parsed: &Parsed,
) -> Result<Decision, DropReason> {
    if parsed.expected.destination().is_multicast() {
        return Err(guard::reason_of_group(parsed));
    }
    match snapshot.destination(vni, parsed.expected.destination()) {
        Some(Destination::Local(to)) => Ok(Decision { action: Action::Deliver(to), owner: to }),
        Some(Destination::Remote(_)) | None => Err(DropReason::DestinationUnknown),
    }
}
