// SPDX-License-Identifier: Apache-2.0
//! Where a packet goes: to the owner of its destination MAC in its VNI or, when that is the
//! router's, to the owner of its destination address by the routes of its VPC.

use super::guard;
use super::parse::Parsed;
use super::tunnel;
use crate::flow::{Action, Route, Way};
use crate::pipeline::Waiting;
use crate::route::Routed;
use crate::snapshot::{Destination, Port, Snapshot};
use crate::vpc::is_link_local;
use crate::{DropReason, PortIndex};
use plinth_ids::{MacAddress, Vni};

/// A decision about a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Decision {
    pub(crate) way: Way,
    /// The guest port in whose share of the flow table it may be kept.
    pub(crate) owner: PortIndex,
}

/// What the stages say of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Judgment {
    Forward(Decision),
    /// A guest speaks to its router.
    Router,
}

/// Judges a packet that came in at `ingress`.
pub(crate) fn judge(
    snapshot: &Snapshot,
    ingress: PortIndex,
    flow: &Waiting,
) -> Result<Judgment, DropReason> {
    match flow.tunnel {
        Some(from) => inbound(snapshot, from.vni, &flow.parsed).map(Judgment::Forward),
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
) -> Result<Judgment, DropReason> {
    guard::check_source(port, parsed)?;
    let mac = parsed.expected.destination();
    if mac.is_multicast() {
        return Err(guard::reason_of_group(parsed));
    }
    let (destination, route) = if is_router(snapshot, port.vni, mac) {
        match routed(snapshot, port.vni, parsed)? {
            None => return Ok(Judgment::Router),
            Some((destination, route)) => (Some(destination), Some(route)),
        }
    } else {
        (snapshot.destination(port.vni, mac), None)
    };
    let action = match destination {
        Some(Destination::Local(to)) if to == index => {
            return Err(DropReason::DestinationIsSource);
        }
        Some(Destination::Local(to)) => Action::Deliver(to),
        Some(Destination::Remote(tunnel)) => Action::Encapsulate { tunnel, source_port },
        None => Action::Drop(DropReason::DestinationUnknown),
    };
    Ok(Judgment::Forward(Decision { way: Way { action, route }, owner: index }))
}

/// Judges a packet that came through a tunnel: it goes to a port here or nowhere, never back into
/// a tunnel, so that no loop can arise.
fn inbound(snapshot: &Snapshot, vni: Vni, parsed: &Parsed) -> Result<Decision, DropReason> {
    let mac = parsed.expected.destination();
    if mac.is_multicast() {
        return Err(guard::reason_of_group(parsed));
    }
    // A switch of ours has routed before it sent; another VTEP may leave it to us.
    let (destination, route) = if is_router(snapshot, vni, mac) {
        let (destination, route) =
            routed(snapshot, vni, parsed)?.ok_or(DropReason::RouterUnserved)?;
        (Some(destination), Some(route))
    } else {
        (snapshot.destination(vni, mac), None)
    };
    match destination {
        Some(Destination::Local(to)) => {
            Ok(Decision { way: Way { action: Action::Deliver(to), route }, owner: to })
        }
        Some(Destination::Remote(_)) | None => Err(DropReason::DestinationUnknown),
    }
}

fn is_router(snapshot: &Snapshot, vni: Vni, mac: MacAddress) -> bool {
    snapshot.vpc(vni).is_some_and(|vpc| vpc.is_router(mac))
}

/// The way of a packet that is the router's to forward; `None` when it is for the router itself.
fn routed(
    snapshot: &Snapshot,
    vni: Vni,
    parsed: &Parsed,
) -> Result<Option<(Destination, Route)>, DropReason> {
    let (source, destination) = parsed.key.addresses();
    let (vni, owner) = match snapshot.route(vni, destination)? {
        Routed::Router => return Ok(None),
        Routed::Owner { vni, owner } => (vni, owner),
    };
    // An address of one link means somebody else on another (RFC 4007, section 9).
    if is_link_local(source) {
        return Err(DropReason::RouteUnknown);
    }
    let router = snapshot.vpc(vni).ok_or(DropReason::RouteUnknown)?.router_mac;
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&owner.mac.0);
    macs[6..].copy_from_slice(&router.0);
    Ok(Some((owner.destination, Route { macs, vni })))
}
