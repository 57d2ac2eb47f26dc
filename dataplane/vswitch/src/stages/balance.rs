// SPDX-License-Identifier: Apache-2.0
//! To a balancer's address: which backend a new connection gets, and the way to the one that a
//! connection has.

use super::forward::{Decision, Judgment};
use super::outward::Translation;
use super::parse::Class;
use super::tunnel;
use crate::balance::{Choice, ListenerTables};
use crate::flow::{Action, FlowKey, Ingress, Link, Route, Way};
use crate::pipeline::Waiting;
use crate::snapshot::{Destination, Snapshot};
use crate::switch::Switch;
use crate::{DropReason, PortIndex};
use plinth_ids::{Moment, Vni};
use std::net::IpAddr;

/// Backends that are tried for a new connection: with one in two hundred of a client's ports in
/// use, more than two are hardly ever needed.
const TRIES: u32 = 16;

/// Judges a guest's packet to a balancer's address in its own VPC.
pub(crate) fn within(
    switch: &Switch,
    snapshot: &Snapshot,
    now: Moment,
    index: PortIndex,
    flow: &Waiting,
    standing: Option<Translation>,
) -> Result<Judgment, DropReason> {
    let key = &flow.parsed.key;
    if key.is_fragment() {
        return Ok(Judgment::Pieces);
    }
    let translation = match standing {
        Some(translation) => translation,
        None if flow.parsed.class == Class::Error => return Err(DropReason::IcmpUnrelated),
        // The router has the address as well as its own, and answers pings of both.
        None if key.is_icmp() => return Ok(Judgment::Router),
        None => choose(switch, snapshot, now, flow)?,
    };
    let (action, route) = way_to(snapshot, translation.vni, translation.nic, flow.hash)
        .ok_or(DropReason::BalancerNoBackend)?;
    if action == Action::Deliver(index) {
        return Err(DropReason::DestinationIsSource);
    }
    let way = Way { action, route: Some(route), edit: Link::NONE };
    Ok(Judgment::Forward(Decision { way, owner: index, translation: Some(translation) }))
}

/// Finds a new connection its backend: the one that the client had, if that is to be so, else the
/// one that the scheduler says, else another.
pub(crate) fn choose(
    switch: &Switch,
    snapshot: &Snapshot,
    now: Moment,
    flow: &Waiting,
) -> Result<Translation, DropReason> {
    let key = &flow.parsed.key;
    let listener = snapshot.balancers.listener_of(flow.vni, key);
    let listener = listener.ok_or(DropReason::BalancerNoListener)?;
    if listener.choices.is_empty() {
        return Err(DropReason::BalancerNoBackend);
    }
    let had = if listener.is_sticky() {
        let clients = &switch.balancers.clients;
        let place = clients.find(now, &switch.flows, key, listener.place);
        place.and_then(|place| listener.choice_at(place))
    } else {
        None
    };
    let turn = switch.balancers.turn(listener.place);
    let counts = switch.flows.backend_counts();
    let tries = TRIES.min(u32::try_from(listener.choices.len()).unwrap_or(TRIES) * 4);
    let picked = (0..tries).map(|attempt| listener.pick(key, turn, counts, attempt));
    let mut refused = DropReason::DestinationIsSource;
    for number in had.into_iter().chain(picked) {
        let choice = &listener.choices[number];
        match offer(switch, snapshot, flow, (listener, choice)) {
            Ok(translation) => return Ok(translation),
            Err(DropReason::DestinationIsSource) => {}
            Err(reason) => refused = reason,
        }
    }
    Err(refused)
}

/// What becomes of a connection with a backend, if it can have one.
fn offer(
    switch: &Switch,
    snapshot: &Snapshot,
    flow: &Waiting,
    (listener, choice): (&ListenerTables, &Choice),
) -> Result<Translation, DropReason> {
    let key = &flow.parsed.key;
    let (source, _) = key.addresses();
    let (action, _) = way_to(snapshot, listener.home, choice.address, flow.hash)
        .ok_or(DropReason::BalancerNoBackend)?;
    let here = key.ingress();
    let place = match action {
        Action::Deliver(to) if to.0 == here.place => return Err(DropReason::DestinationIsSource),
        Action::Deliver(to) => to,
        Action::Encapsulate { .. } | Action::External { .. } | Action::Drop(_) => PortIndex::UPLINK,
    };
    // The source is kept, so a client that is the backend would be answered by itself.
    if source == choice.address && flow.vni == listener.home {
        return Err(DropReason::DestinationIsSource);
    }
    let mut going = *key;
    set_destination(&mut going, choice.address);
    let port = listener.port_at(choice, key.destination_port());
    going.set_ports(key.source_port(), port);
    let incarnation = switch.incarnations[place.get()];
    let answers = Ingress { place: place.0, incarnation, vni: listener.home };
    if is_taken(switch, &going, answers) {
        return Err(DropReason::BalancerBackendBusy);
    }
    Ok(Translation {
        key: going,
        vni: listener.home,
        nic: choice.address,
        backend: Some(listener.chosen(choice)),
    })
}

/// Whether the answers would be those of another connection, which the client has with the
/// backend from the same port, itself or by another balancer. What is not established gives way,
/// and so does what was picked up without its beginning.
fn is_taken(switch: &Switch, going: &FlowKey, answers: Ingress) -> bool {
    let flows = &switch.flows;
    let found = going.answer(answers).and_then(|answer| {
        let answer = flows.hashed(answer);
        flows.locate(answer.hash, &answer.key)
    });
    let link = found.and_then(|slot| flows.entry(slot).link.get());
    link.is_some_and(|(connection, _)| {
        let connection = flows.connection(connection);
        connection.is_assured() && !connection.tcp.is_loose
    })
}

fn set_destination(key: &mut FlowKey, address: IpAddr) {
    let (source, _) = key.addresses();
    match (source, address) {
        (IpAddr::V4(source), IpAddr::V4(address)) => {
            key.set_ipv4(crate::external::join(source, address));
        }
        (IpAddr::V6(source), IpAddr::V6(address)) => {
            key.set_ipv6(&bytemuck::cast([source.octets(), address.octets()]));
        }
        // Validation takes backends of the balancer's family only.
        _ => {}
    }
}

/// The way to whoever has an address in a VPC.
fn way_to(snapshot: &Snapshot, vni: Vni, address: IpAddr, hash: u64) -> Option<(Action, Route)> {
    let owner = snapshot.owner(vni, address)?;
    let router = snapshot.vpc(vni)?.router_mac;
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&owner.mac.0);
    macs[6..].copy_from_slice(&router.0);
    let action = match owner.destination {
        Destination::Local(to) => Action::Deliver(to),
        Destination::Remote(tunnel) => {
            Action::Encapsulate { tunnel, source_port: tunnel::source_port(hash) }
        }
    };
    Some((action, Route { macs, vni }))
}
