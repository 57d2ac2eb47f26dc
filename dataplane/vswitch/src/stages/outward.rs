// SPDX-License-Identifier: Apache-2.0
//! Between the VPCs and the outside: under which address and port a connection goes out, to which
//! NIC one comes in, and both at once for one that goes out only to come back.

use super::balance;
use super::forward::{Decision, Judgment};
use super::parse::Class;
use crate::balance::Chosen;
use crate::external::{Block, Identity, OUTSIDE, join};
use crate::flow::{Action, FlowKey, Ingress, Link, Route, Way};
use crate::pipeline::Waiting;
use crate::snapshot::{Destination, Snapshot};
use crate::switch::Switch;
use crate::vpc::is_routable;
use crate::{DropReason, PortIndex};
use plinth_ids::{Moment, Vni};
use plinth_switch_api::PortMapping;
use std::net::{IpAddr, Ipv4Addr};

/// What becomes of the packets of a connection that is translated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Translation {
    /// Of the packets as they go.
    pub(crate) key: FlowKey,
    /// Where their destination is: a VPC, or [`OUTSIDE`].
    pub(crate) vni: Vni,
    /// The address of the NIC that they go to; of the outside, their destination.
    pub(crate) nic: IpAddr,
    /// What a balancer has chosen, of a connection that begins.
    pub(crate) backend: Option<Chosen>,
}

/// Ports that are tried for a new connection; of a block nine tenths in use, one in a thousand
/// new connections is then refused.
const TRIES: u64 = 64;
/// A prime, so that the ports tried are spread over a block and are all of a small one.
const STRIDE: u64 = 257;

/// Judges a guest's packet that the router sends to the outside. `standing` is what its
/// connection says, if there is one.
pub(crate) fn out(
    switch: &Switch,
    snapshot: &Snapshot,
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
        None => choose(switch, snapshot, flow)?,
    };
    let is_translated = translation.key != *key;
    if flow.parsed.class == Class::Error && is_translated && standing.is_none() {
        return Err(DropReason::IcmpUnrelated);
    }
    let (action, route) = if translation.vni == OUTSIDE {
        let (source, _) = ipv4(&translation.key)?;
        let known = snapshot.external.known(source).ok_or(DropReason::ExternalAddressMissing)?;
        let action = Action::External { next_hop: known.next_hop, address: known.place };
        (action, Route { macs: [0; 12], vni: OUTSIDE })
    } else {
        enter(snapshot, &translation)?
    };
    if action == Action::Deliver(index) {
        return Err(DropReason::DestinationIsSource);
    }
    Ok(decide(action, route, index, is_translated.then_some(translation)))
}

/// Judges a packet from the outside.
pub(crate) fn inward(
    switch: &Switch,
    snapshot: &Snapshot,
    now: Moment,
    flow: &Waiting,
    standing: Option<Translation>,
) -> Result<Judgment, DropReason> {
    let key = &flow.parsed.key;
    let (source, destination) = ipv4(key)?;
    if !is_routable(source.into()) {
        return Err(DropReason::HeaderInvalid);
    }
    if snapshot.external.known(source).is_some() {
        return Err(DropReason::SourceAddressSpoofed);
    }
    if key.is_fragment() {
        return Ok(Judgment::Pieces);
    }
    let translation = match standing {
        Some(translation) => translation,
        None if snapshot.balancers.has(OUTSIDE, destination.into()) => {
            if flow.parsed.class == Class::Error {
                return Err(DropReason::IcmpUnrelated);
            }
            balance::choose(switch, snapshot, now, flow)?
        }
        None => {
            let unknown = match flow.parsed.class {
                Class::Error => DropReason::IcmpUnrelated,
                _ => DropReason::NatNoConnection,
            };
            let found = snapshot.external.inward(key);
            let found = found.or_else(|| inward_mapped(switch, snapshot, key));
            let (vni, nic, key) = found.ok_or(unknown)?;
            Translation { key, vni, nic: nic.into(), backend: None }
        }
    };
    let is_translated = translation.key != *key;
    if flow.parsed.class == Class::Error && is_translated && standing.is_none() {
        return Err(DropReason::IcmpUnrelated);
    }
    if translation.vni == OUTSIDE {
        return Err(DropReason::NatNoConnection);
    }
    let (action, route) = enter(snapshot, &translation)?;
    let owner = match action {
        Action::Deliver(to) => to,
        Action::Encapsulate { .. } | Action::External { .. } | Action::Drop(_) => {
            return Err(DropReason::DestinationUnknown);
        }
    };
    Ok(decide(action, route, owner, is_translated.then_some(translation)))
}

fn decide(
    action: Action,
    route: Route,
    owner: PortIndex,
    translation: Option<Translation>,
) -> Judgment {
    let way = Way { action, route: Some(route), edit: Link::NONE };
    Judgment::Forward(Decision { way, owner, translation })
}

/// To the NIC, which is a port here: an external address is where its NIC is.
fn enter(snapshot: &Snapshot, translation: &Translation) -> Result<(Action, Route), DropReason> {
    let Translation { vni, nic, .. } = *translation;
    // A carried address is no NIC's in the tables of the VPC.
    let nic = snapshot.external.carrier(vni, nic);
    let owner = snapshot.owner(vni, nic).ok_or(DropReason::DestinationUnknown)?;
    let Destination::Local(to) = owner.destination else {
        return Err(DropReason::DestinationUnknown);
    };
    let router = snapshot.vpc(vni).ok_or(DropReason::DestinationUnknown)?.router_mac;
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&owner.mac.0);
    macs[6..].copy_from_slice(&router.0);
    Ok((Action::Deliver(to), Route { macs, vni }))
}

/// Finds a connection an address and a port to go out under.
fn choose(switch: &Switch, snapshot: &Snapshot, flow: &Waiting) -> Result<Translation, DropReason> {
    let key = &flow.parsed.key;
    let (source, destination) = ipv4(key)?;
    let identity = snapshot.external.identity(flow.vni, source);
    let identity = identity.ok_or(DropReason::ExternalAddressMissing)?;
    // To an external address of this node it would come back at once.
    let (vni, nic, going) = if snapshot.external.known(destination).is_some() {
        let found = snapshot.external.inward(key);
        let found = found.or_else(|| inward_mapped(switch, snapshot, key));
        found.ok_or(DropReason::NatNoConnection)?
    } else {
        (OUTSIDE, destination, *key)
    };
    let (_, destination) = ipv4(&going)?;
    let mut translation = Translation { key: going, vni, nic: nic.into(), backend: None };
    match identity {
        Identity::Own(address) => translation.key.set_ipv4(join(address, destination)),
        Identity::Shared(block) => {
            translation.key.set_ipv4(join(block.address, destination));
            let answers = answers_of(switch, snapshot, &translation)?;
            match mapped_port(switch, snapshot, key, &block) {
                Some(port) => {
                    translation.key.set_ports(port, translation.key.destination_port());
                    if !is_free(switch, &translation.key, answers) {
                        return Err(DropReason::NatPortsExhausted);
                    }
                }
                None => {
                    let hash = flow.hash;
                    take_port(switch, snapshot, &mut translation.key, &block, (answers, hash))?;
                }
            }
        }
    }
    Ok(translation)
}

/// Where the answers of a new connection come in.
fn answers_of(
    switch: &Switch,
    snapshot: &Snapshot,
    translation: &Translation,
) -> Result<Ingress, DropReason> {
    let vni = translation.vni;
    let place = match vni {
        OUTSIDE => PortIndex::UPLINK,
        _ => match enter(snapshot, translation)?.0 {
            Action::Deliver(to) => to,
            Action::Encapsulate { .. } | Action::External { .. } | Action::Drop(_) => {
                PortIndex::UPLINK
            }
        },
    };
    Ok(Ingress { place: place.0, incarnation: switch.incarnations[place.get()], vni })
}

/// Whether nobody else waits for the answers to packets that go as `key`.
fn is_free(switch: &Switch, key: &FlowKey, answers: Ingress) -> bool {
    key.answer(answers).is_some_and(|answer| {
        let answer = switch.flows.hashed(answer);
        switch.flows.locate(answer.hash, &answer.key).is_none()
    })
}

/// The port that stands for the sender's address and port already, if they are mapped.
fn mapped_port(switch: &Switch, snapshot: &Snapshot, key: &FlowKey, block: &Block) -> Option<u16> {
    if block.mapping == PortMapping::PerConnection {
        return None;
    }
    let (address, port) = switch.flows.mapped_end(key)?;
    let is_valid = address == block.address
        && block.has(port)
        && !snapshot.external.is_forwarded(address, key.protocol(), port);
    is_valid.then_some(port)
}

/// To which NIC a packet goes that is for a mapped port, if everybody may speak to it.
pub(crate) fn inward_mapped(
    switch: &Switch,
    snapshot: &Snapshot,
    key: &FlowKey,
) -> Option<(Vni, Ipv4Addr, FlowKey)> {
    let (source, destination) = ipv4(key).ok()?;
    let inside = switch.flows.inside_of(key, switch.outside())?;
    let (nic, _) = ipv4(&inside).ok()?;
    let Ingress { place, incarnation, vni } = inside.ingress();
    let Destination::Local(to) = snapshot.owner(vni, nic.into())?.destination else {
        return None;
    };
    // Who has the NIC's place now may be another than who made the mapping.
    let is_its = to.0 == place && switch.incarnations.get(to.get()) == Some(&incarnation);
    if !is_its || !snapshot.external.is_open((vni, nic), (destination, key)) {
        return None;
    }
    let mut to = *key;
    to.set_ipv4(join(source, nic));
    to.set_ports(key.source_port(), inside.source_port());
    Some((vni, nic, to))
}

/// Takes the first port of the block, from a place that the hash says, whose answers nobody else
/// waits for. A protocol without ports has one try.
fn take_port(
    switch: &Switch,
    snapshot: &Snapshot,
    going: &mut FlowKey,
    block: &Block,
    (answers, hash): (Ingress, u64),
) -> Result<(), DropReason> {
    let is_mapped = block.mapping != PortMapping::PerConnection;
    let is_free = |key: &FlowKey| {
        is_free(switch, key, answers)
            && !(is_mapped && switch.flows.is_end_taken(key, switch.outside()))
    };
    let protocol = going.protocol();
    if !going.has_ports() {
        return if is_free(going) { Ok(()) } else { Err(DropReason::NatPortsExhausted) };
    }
    if going.is_icmp() && going.answer(answers).is_none() {
        return Err(DropReason::IcmpUnrelated);
    }
    let count = u64::from(block.count);
    for attempt in 0..TRIES.min(count) {
        let offset = (hash % count + attempt * STRIDE) % count;
        let port = block.first + u16::try_from(offset).unwrap_or(0);
        if !going.is_icmp() && snapshot.external.is_forwarded(block.address, protocol, port) {
            continue;
        }
        going.set_ports(port, going.destination_port());
        if is_free(going) {
            return Ok(());
        }
    }
    Err(DropReason::NatPortsExhausted)
}

/// Only IPv4 is translated; nothing else gets here.
fn ipv4(key: &FlowKey) -> Result<(Ipv4Addr, Ipv4Addr), DropReason> {
    match key.addresses() {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Ok((source, destination)),
        _ => Err(DropReason::RouteUnknown),
    }
}
