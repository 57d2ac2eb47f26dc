// SPDX-License-Identifier: Apache-2.0
//! Does to a packet what was decided for its flow.

use crate::clamp::{clamp, is_beginning};
use crate::flow::{Action, Link, Route, Way};
use crate::pipeline::{Waiting, Wholeness};
use crate::snapshot::{Port, Snapshot, TUNNEL_MTU_OVERHEAD, UplinkTables};
use crate::stages::parse::Class;
use crate::stages::{too_big, tunnel};
use crate::switch::Switch;
use crate::translate::{Shape, translate};
use crate::{DropReason, Packet, PortIndex, Verdict};
use plinth_ids::{Moment, Vni};
use plinth_wire::{EthernetHeader, Ipv4Header, Ipv6Header};

/// Sends a packet on its way, edited, or says why not.
#[inline]
pub(crate) fn carry_out(
    switch: &mut Switch,
    snapshot: &Snapshot,
    packet: &mut Packet,
    way: Way,
    (now, flow): (Moment, &Waiting),
) -> Result<Verdict, DropReason> {
    let is_ipv4 = flow.parsed.key.is_ipv4();
    let vni = way.route.map_or(flow.vni, |route| route.vni);
    let (limit, reason) = link(snapshot, way.action, vni)?;
    if packet.frame_length() > limit {
        if way.route.is_some() {
            check_alive(packet, is_ipv4)?;
        }
        return too_big::tell(switch, snapshot, now, (packet, flow), (limit, reason));
    }
    if let Some(route) = way.route {
        hop(packet, &route, is_ipv4)?;
    }
    if way.edit != Link::NONE {
        let shape = match (flow.parsed.class, flow.wholeness) {
            (Class::Error, _) => Shape::Error,
            (_, Wholeness::Later) => Shape::Piece,
            (_, Wholeness::Whole | Wholeness::First) => Shape::Headers,
        };
        translate(packet, &switch.flows.edit(way.edit), &flow.parsed, shape)?;
    }
    if is_beginning(packet, &flow.parsed, flow.wholeness) {
        let sender = snapshot.port(packet.port()).map_or(u32::MAX, |port| port.frame_length_max);
        clamp(packet, &flow.parsed, sender.min(limit));
    }
    match way.action {
        Action::Deliver(to) => Ok(Verdict::Send(to)),
        Action::Encapsulate { tunnel, source_port } => {
            let uplink = snapshot.uplink.as_ref().ok_or(DropReason::PortUnknown)?;
            let way = (tunnel, vni, source_port);
            tunnel::encapsulate(snapshot, uplink, &switch.neighbors, packet, way)?;
            Ok(Verdict::Send(PortIndex::UPLINK))
        }
        Action::External { next_hop, address } => {
            let uplink = snapshot.uplink.as_ref().ok_or(DropReason::PortUnknown)?;
            leave(switch, uplink, packet, next_hop)?;
            if !switch.external.count_out(now, address, packet.output_length()) {
                return Err(DropReason::ExternalRateExceeded);
            }
            Ok(Verdict::Send(PortIndex::UPLINK))
        }
        Action::Drop(reason) => Err(reason),
    }
}

/// How long a frame may be that goes this way, and why not longer.
#[inline]
fn link(snapshot: &Snapshot, action: Action, vni: Vni) -> Result<(u32, DropReason), DropReason> {
    let uplink = || snapshot.uplink.as_ref().ok_or(DropReason::PortUnknown);
    match action {
        Action::Deliver(to) => {
            Ok((isolated(snapshot, to, vni)?.frame_length_max, DropReason::PortMtuExceeded))
        }
        Action::Encapsulate { .. } => {
            let inner = uplink()?.frame_length_max - u32::from(TUNNEL_MTU_OVERHEAD);
            Ok((inner, DropReason::UnderlayMtuExceeded))
        }
        Action::External { .. } => {
            Ok((uplink()?.frame_length_max, DropReason::UnderlayMtuExceeded))
        }
        Action::Drop(reason) => Err(reason),
    }
}

/// Sends a packet to the next hop of a line, from the uplink's own MAC.
#[inline]
fn leave(
    switch: &Switch,
    uplink: &UplinkTables,
    packet: &mut Packet,
    next_hop: u16,
) -> Result<(), DropReason> {
    let mac = switch.neighbors.mac(next_hop).ok_or(DropReason::NextHopUnresolved)?;
    let macs = packet.head_mut().get_mut(..12).ok_or(DropReason::Truncated)?;
    macs[..6].copy_from_slice(&mac.0);
    macs[6..].copy_from_slice(&uplink.mac.0);
    Ok(())
}

/// What every router does: other MACs, and one hop less to live.
#[inline]
fn hop(packet: &mut Packet, route: &Route, is_ipv4: bool) -> Result<(), DropReason> {
    let head = packet.head_mut();
    let ip = &mut head[EthernetHeader::LENGTH..];
    let is_alive = if is_ipv4 {
        let ip: &mut [u8; Ipv4Header::LENGTH] =
            ip.first_chunk_mut().ok_or(DropReason::Truncated)?;
        bytemuck::cast_mut::<[u8; Ipv4Header::LENGTH], Ipv4Header>(ip).hop()
    } else {
        let ip: &mut [u8; Ipv6Header::LENGTH] =
            ip.first_chunk_mut().ok_or(DropReason::Truncated)?;
        bytemuck::cast_mut::<[u8; Ipv6Header::LENGTH], Ipv6Header>(ip).hop()
    };
    if !is_alive {
        return Err(DropReason::TimeToLiveExceeded);
    }
    head[..12].copy_from_slice(&route.macs);
    Ok(())
}

/// Whether a router may still forward the packet; asked before anything is kept for its sake.
pub(crate) fn check_alive(packet: &Packet, is_ipv4: bool) -> Result<(), DropReason> {
    let place = EthernetHeader::LENGTH + if is_ipv4 { 8 } else { 7 };
    match packet.head().get(place) {
        Some(0 | 1) => Err(DropReason::TimeToLiveExceeded),
        _ => Ok(()),
    }
}

/// The port that a packet goes to.
///
/// # Panics
/// If it is another VPC's than the packet leaves in. The stages and the key make that impossible;
/// a bug that broke one of them must stop the switch and not leak a tenant's packet. It costs one
/// comparison of numbers that are in the cache.
fn isolated(snapshot: &Snapshot, to: PortIndex, vni: Vni) -> Result<&Port, DropReason> {
    let port = snapshot.port(to).ok_or(DropReason::PortUnknown)?;
    assert!(port.vni == vni, "a packet of vni {vni} was sent to {} of vni {}", port.id, port.vni);
    Ok(port)
}
