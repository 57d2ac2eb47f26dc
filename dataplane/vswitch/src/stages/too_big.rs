// SPDX-License-Identifier: Apache-2.0
//! What is said about a packet that does not fit where it goes: to its sender, how long packets
//! may be (RFC 792 with RFC 1191, RFC 4443 section 3.2), so that a stack with a wrong MTU learns
//! the right one and nothing vanishes unheard.
//!
//! ```text
//!  sender is      who says it                        how it goes
//!  a guest here   its router, in the sender's subnet back to its port
//!  elsewhere      the router of the VPC              back through the tunnel
//!  outside        the external address it spoke to   to the line's next hop
//! ```
//!
//! Whether a packet may not be cut is not asked: nobody here cuts packets of others, and a sender
//! that is told so cuts them itself.

use super::parse::{Class, Parsed};
use super::{guard, router, tunnel};
use crate::pipeline::Waiting;
use crate::snapshot::{Destination, Snapshot};
use crate::switch::Switch;
use crate::{DropReason, Packet, PortIndex, Verdict};
use plinth_ids::Moment;
use plinth_wire::{EthernetHeader, IcmpHeader, Ipv4Header};
use std::net::IpAddr;

const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const TOO_BIG_IPV6: u8 = 2;

/// Puts the news in the place of a packet whose frame is longer than `limit`; the packet is as it
/// came.
///
/// # Errors
/// `reason`, and the packet as it was, when there is nobody to tell, nobody to say it, or it was
/// said too often.
#[cold]
#[inline(never)]
pub(crate) fn tell(
    switch: &mut Switch,
    snapshot: &Snapshot,
    now: Moment,
    (packet, flow): (&mut Packet, &Waiting),
    (limit, reason): (u32, DropReason),
) -> Result<Verdict, DropReason> {
    let told = if !is_answerable(packet, &flow.parsed) {
        None
    } else if packet.port() != PortIndex::UPLINK {
        tell_guest(switch, snapshot, now, (packet, flow), limit)
    } else if flow.tunnel.is_some() {
        tell_remote(switch, snapshot, now, (packet, flow), limit)
    } else {
        tell_outside(switch, snapshot, now, (packet, flow), limit)
    };
    told.map(|()| Verdict::Send(packet.port())).ok_or(reason)
}

/// Nothing is said about what may itself be such news, about a later piece, nor to or about a
/// group (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e).
fn is_answerable(packet: &Packet, parsed: &Parsed) -> bool {
    let (source, destination) = parsed.key.addresses();
    let is_host = |address: IpAddr| {
        !address.is_multicast()
            && !address.is_unspecified()
            && !address.is_loopback()
            && !matches!(address, IpAddr::V4(address) if address.is_broadcast())
    };
    parsed.class == Class::Flow
        && is_host(source)
        && is_host(destination)
        && !parsed.expected.destination().is_multicast()
        && (!parsed.key.is_fragment() || is_first_piece(packet.head(), parsed))
}

fn is_first_piece(head: &[u8], parsed: &Parsed) -> bool {
    if parsed.key.is_ipv4() {
        let packet = head.get(EthernetHeader::LENGTH..).unwrap_or_default();
        return Ipv4Header::parse(packet, usize::MAX).is_ok_and(|ip| ip.header.piece().1 == 0);
    }
    // Before the upper layer stands the fragment header, or one that follows it, which no stack
    // sends: then nothing is said.
    let header = head.get(..parsed.upper as usize).and_then(|head| head.last_chunk::<8>());
    header.is_some_and(|header| u16::from_be_bytes([header[2], header[3]]) & !7 == 0)
}

/// The message for a frame of at most `limit` bytes.
fn message(limit: u32, is_ipv4: bool) -> IcmpHeader {
    let mtu = limit.saturating_sub(14).min(u32::from(u16::MAX));
    let mtu = u16::try_from(mtu).expect("it was cut to 16 bits");
    if is_ipv4 {
        IcmpHeader::new(UNREACHABLE, FRAGMENTATION_NEEDED, 0, mtu)
    } else {
        IcmpHeader::new(TOO_BIG_IPV6, 0, 0, mtu)
    }
}

type About<'a> = (&'a mut Packet, &'a Waiting);

fn tell_guest(
    switch: &mut Switch,
    snapshot: &Snapshot,
    now: Moment,
    (packet, flow): About<'_>,
    limit: u32,
) -> Option<()> {
    let parsed = &flow.parsed;
    let port = snapshot.port(packet.port())?;
    guard::check_source(port, parsed).ok()?;
    let vpc = snapshot.vpc(port.vni)?;
    let (source, _) = parsed.key.addresses();
    let is_ipv4 = parsed.key.is_ipv4();
    let gateway = router::nearest_gateway(vpc, port, source)?;
    switch.errors.spend(now).then_some(())?;
    let macs = (vpc.router_mac, parsed.expected.source());
    router::replace(packet, parsed, macs, (gateway, source), message(limit, is_ipv4))
}

fn tell_remote(
    switch: &mut Switch,
    snapshot: &Snapshot,
    now: Moment,
    (packet, flow): About<'_>,
    limit: u32,
) -> Option<()> {
    let (parsed, from) = (&flow.parsed, flow.tunnel?);
    let uplink = snapshot.uplink.as_ref()?;
    let vpc = snapshot.vpc(from.vni)?;
    let (source, destination) = parsed.key.addresses();
    let is_ipv4 = parsed.key.is_ipv4();
    let subnet = vpc.subnet_of(source).or_else(|| vpc.subnet_of(destination))?;
    let gateway = vpc.subnet(subnet).gateway(is_ipv4)?.gateway;
    // Its frame may have a router's MAC by now, and the switch there sends nothing further.
    let owner = snapshot.owner(from.vni, source)?;
    matches!(owner.destination, Destination::Remote(_)).then_some(())?;
    switch.errors.spend(now).then_some(())?;
    let macs = (vpc.router_mac, owner.mac);
    router::replace(packet, parsed, macs, (gateway, source), message(limit, is_ipv4))?;
    let way = (from.tunnel, from.vni, tunnel::source_port(flow.hash));
    tunnel::encapsulate(snapshot, uplink, &switch.neighbors, packet, way).ok()
}

fn tell_outside(
    switch: &mut Switch,
    snapshot: &Snapshot,
    now: Moment,
    (packet, flow): About<'_>,
    limit: u32,
) -> Option<()> {
    let parsed = &flow.parsed;
    let uplink = snapshot.uplink.as_ref()?;
    let (source, destination) = parsed.key.addresses();
    let IpAddr::V4(address) = destination else { return None };
    let known = snapshot.external.known(address)?;
    let mac = switch.neighbors.mac(known.next_hop)?;
    switch.errors.spend(now).then_some(())?;
    let ends = (destination, source);
    router::replace(packet, parsed, (uplink.mac, mac), ends, message(limit, true))?;
    switch.external.count_out(now, known.place, packet.output_length()).then_some(())
}
