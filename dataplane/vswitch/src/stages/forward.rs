// SPDX-License-Identifier: Apache-2.0
//! Where a packet goes: to the owner of its destination MAC in its VNI or, when that is the
//! router's, to the owner of its destination address by the routes of its VPC.

use super::balance;
use super::guard;
use super::outward::{self, Translation};
use super::parse::Parsed;
use super::tunnel;
use crate::flow::{Action, Link, Route, Way};
use crate::pipeline::Waiting;
use crate::questions;
use crate::route::Routed;
use crate::snapshot::{Destination, Port, Snapshot};
use crate::switch::Switch;
use crate::vpc::is_link_local;
use crate::{DropReason, PortIndex};
use plinth_ids::{MacAddress, Moment, Vni};

/// A decision about a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Decision {
    pub(crate) way: Way,
    /// The guest port in whose share of the flow table it may be kept.
    pub(crate) owner: PortIndex,
    /// If addresses or ports become others.
    pub(crate) translation: Option<Translation>,
}

/// What the stages say of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Judgment {
    Forward(Decision),
    /// A guest speaks to its router.
    Router,
    /// A guest asks what is answered beside the worker.
    Question,
    /// A piece of a packet of which the ports must be known.
    Pieces,
}

/// Judges a packet that came in at `ingress`.
///
/// `standing` is what becomes of its connection's packets, if that has begun.
pub(crate) fn judge(
    switch: &Switch,
    snapshot: &Snapshot,
    now: Moment,
    ingress: PortIndex,
    flow: &Waiting,
    standing: Option<Translation>,
) -> Result<Judgment, DropReason> {
    match flow.tunnel {
        Some(from) => {
            if is_balanced_piece(snapshot, from.vni, &flow.parsed) {
                return Ok(Judgment::Pieces);
            }
            let decision = inbound(snapshot, from.vni, &flow.parsed)?;
            Ok(Judgment::Forward(Decision { translation: standing, ..decision }))
        }
        None if ingress == PortIndex::UPLINK => {
            outward::inward(switch, snapshot, now, flow, standing)
        }
        None => {
            let port = snapshot.port(ingress).ok_or(DropReason::PortUnknown)?;
            if is_to_metadata(snapshot, port, &flow.parsed) {
                return metadata(port, &flow.parsed);
            }
            let is_outward = is_outward(snapshot, port, &flow.parsed)?;
            if is_outward {
                return outward::out(switch, snapshot, ingress, flow, standing);
            }
            if is_for_balancer(snapshot, port.vni, &flow.parsed) {
                return balance::within(switch, snapshot, now, ingress, flow, standing);
            }
            if is_balanced_piece(snapshot, port.vni, &flow.parsed) {
                return Ok(Judgment::Pieces);
            }
            let is_backends = |standing: Translation| {
                snapshot.balancers.has(standing.vni, standing.key.addresses().0)
            };
            if standing.is_some_and(|standing| !is_backends(standing)) {
                // What led outside leads elsewhere now, and the connection with it nowhere.
                return Err(DropReason::RouteUnknown);
            }
            let source_port = tunnel::source_port(flow.hash);
            match outbound(snapshot, ingress, port, &flow.parsed, source_port)? {
                Judgment::Forward(decision) => {
                    Ok(Judgment::Forward(Decision { translation: standing, ..decision }))
                }
                other => Ok(other),
            }
        }
    }
}

/// Whether a guest's packet is for where its metadata is, which is never forwarded to anybody.
fn is_to_metadata(snapshot: &Snapshot, port: &Port, parsed: &Parsed) -> bool {
    let (_, destination) = parsed.key.addresses();
    port.answered.is_metadata(destination)
        && is_router(snapshot, port.vni, parsed.expected.destination())
}

fn metadata(port: &Port, parsed: &Parsed) -> Result<Judgment, DropReason> {
    guard::check_source(port, parsed)?;
    let is_question = questions::is_of_metadata(parsed);
    Ok(if is_question { Judgment::Question } else { Judgment::Router })
}

/// Whether a guest's packet is for a balancer's address, which its router has.
fn is_for_balancer(snapshot: &Snapshot, vni: Vni, parsed: &Parsed) -> bool {
    let (source, destination) = parsed.key.addresses();
    snapshot.balancers.has(vni, destination)
        && is_router(snapshot, vni, parsed.expected.destination())
        && !is_link_local(source)
}

/// Whether a packet is a piece of what may be a backend's answer, which only its ports tell.
fn is_balanced_piece(snapshot: &Snapshot, vni: Vni, parsed: &Parsed) -> bool {
    parsed.key.is_fragment() && snapshot.balancers.are_in(vni)
}

/// Whether a guest's packet is one that its router sends to the outside.
fn is_outward(snapshot: &Snapshot, port: &Port, parsed: &Parsed) -> Result<bool, DropReason> {
    guard::check_source(port, parsed)?;
    if !is_router(snapshot, port.vni, parsed.expected.destination()) {
        return Ok(false);
    }
    let (source, destination) = parsed.key.addresses();
    let is_external = matches!(snapshot.route(port.vni, destination), Ok(Routed::External));
    Ok(is_external && !is_link_local(source))
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
        let is_question = questions::is_to_group(port, parsed);
        return is_question
            .then_some(Judgment::Question)
            .ok_or_else(|| guard::reason_of_group(parsed));
    }
    let (destination, route) = if is_router(snapshot, port.vni, mac) {
        match routed(snapshot, port.vni, parsed)? {
            None if questions::is_to_router(port, parsed) => return Ok(Judgment::Question),
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
    let way = Way { action, route, edit: Link::NONE };
    Ok(Judgment::Forward(Decision { way, owner: index, translation: None }))
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
            let way = Way { action: Action::Deliver(to), route, edit: Link::NONE };
            Ok(Decision { way, owner: to, translation: None })
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
        // A guest's is judged elsewhere; what comes from a tunnel has no way out here.
        Routed::External => return Err(DropReason::RouteUnknown),
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
