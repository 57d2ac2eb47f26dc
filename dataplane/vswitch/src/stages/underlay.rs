// SPDX-License-Identifier: Apache-2.0
//! The outermost headers of what comes from the wire: is it for us, and is it whole?

use crate::external::ExternalTables;
use crate::neighbors::Neighbors;
use crate::snapshot::UplinkTables;
use crate::{DropReason, Packet};
use plinth_ids::{MacAddress, Moment};
use plinth_wire::{
    ArpOperation, ArpPacket, ETHERTYPE_ARP, ETHERTYPE_IPV4, EthernetHeader, ICMP_ECHO_REQUEST,
    IcmpHeader, Ipv4Error, Ipv4Header, PROTOCOL_ICMP, PROTOCOL_UDP,
};
use std::net::Ipv4Addr;

/// A UDP packet for the VTEP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram {
    pub(crate) source: Ipv4Addr,
    /// Where UDP begins and where the packet ends, from the frame's first byte.
    pub(crate) upper: usize,
    pub(crate) end: usize,
}

/// What came from the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arrival {
    Datagram(Datagram),
    /// For the external address at this place.
    External(u16),
    /// The packet has become the answer.
    Answered,
    Absorbed,
}

/// Judges a frame from the wire; answers what is for the VTEP itself.
pub(crate) fn arrive(
    uplink: &UplinkTables,
    external: &ExternalTables,
    neighbors: &mut Neighbors,
    now: Moment,
    packet: &mut Packet,
) -> Result<Arrival, DropReason> {
    let length = packet.output_length() as usize;
    let (ethernet, rest) =
        EthernetHeader::parse(packet.head()).map_err(|_| DropReason::Truncated)?;
    if ethernet.source().is_multicast() {
        return Err(DropReason::HeaderInvalid);
    }
    if ethernet.is_tagged() {
        return Err(DropReason::VlanTagged);
    }
    let is_broadcast = ethernet.destination() == MacAddress::BROADCAST;
    let ethertype = ethernet.ethertype();
    if ethernet.destination() != uplink.mac && !(is_broadcast && ethertype == ETHERTYPE_ARP) {
        return Err(DropReason::UnderlayMacForeign);
    }
    match ethertype {
        ETHERTYPE_ARP => {
            let arp = *ArpPacket::parse(rest).map_err(|_| DropReason::UnderlayArpInvalid)?;
            answer_arp((uplink, external), neighbors, now, packet, &arp)
        }
        ETHERTYPE_IPV4 => ipv4(uplink, external, packet, length),
        _ => Err(DropReason::UnderlayEthertypeUnsupported),
    }
}

/// Learns from ARP of next hops, and tells who asks for the VTEP or an external address.
fn answer_arp(
    (uplink, external): (&UplinkTables, &ExternalTables),
    neighbors: &mut Neighbors,
    now: Moment,
    packet: &mut Packet,
    arp: &ArpPacket,
) -> Result<Arrival, DropReason> {
    let (mac, sender) = (arp.sender_mac(), arp.sender_address());
    if mac.is_multicast() || mac == MacAddress([0; 6]) {
        return Err(DropReason::UnderlayArpInvalid);
    }
    let is_own = |address| address == uplink.vtep || external.known(address).is_some();
    if is_own(sender) {
        // Our own announcement, sent back by a switch that loops, is no conflict.
        let is_ours = mac == uplink.mac;
        return if is_ours {
            Ok(Arrival::Absorbed)
        } else {
            Err(DropReason::UnderlayAddressConflict)
        };
    }
    neighbors.learn(now, sender, mac);
    let target = arp.target_address();
    if arp.operation() == ArpOperation::Reply || !is_own(target) {
        return Ok(Arrival::Absorbed);
    }
    let reply = ArpPacket::reply((uplink.mac, target), (mac, sender));
    packet.replace(&reply.frame(mac));
    Ok(Arrival::Answered)
}

fn ipv4(
    uplink: &UplinkTables,
    external: &ExternalTables,
    packet: &mut Packet,
    length: usize,
) -> Result<Arrival, DropReason> {
    let bytes = &packet.head()[EthernetHeader::LENGTH..];
    let ip =
        Ipv4Header::parse(bytes, length - EthernetHeader::LENGTH).map_err(|error| match error {
            Ipv4Error::Truncated | Ipv4Error::TotalLength => DropReason::Truncated,
            Ipv4Error::Version | Ipv4Error::HeaderLength => DropReason::HeaderInvalid,
        })?;
    let known = match ip.header.destination() {
        destination if destination == uplink.vtep => None,
        destination => Some(external.known(destination).ok_or(DropReason::UnderlayAddressForeign)?),
    };
    if !ip.has_right_checksum(bytes) {
        return Err(DropReason::UnderlayChecksumWrong);
    }
    let end = EthernetHeader::LENGTH + ip.length;
    if let Some(known) = known {
        // Ethernet's padding is no part of what a guest gets.
        packet.truncate(end);
        return Ok(Arrival::External(known.place));
    }
    if ip.header.is_fragment() {
        return Err(DropReason::UnderlayFragment);
    }
    let upper = EthernetHeader::LENGTH + ip.header_length;
    match ip.header.protocol() {
        PROTOCOL_UDP => {
            let source = ip.header.source();
            Ok(Arrival::Datagram(Datagram { source, upper, end }))
        }
        PROTOCOL_ICMP => answer_ping(packet, upper, end),
        _ => Err(DropReason::UnderlayProtocolUnsupported),
    }
}

/// Turns a ping of the VTEP into its answer, where it stands: the payload follows unread.
fn answer_ping(packet: &mut Packet, upper: usize, end: usize) -> Result<Arrival, DropReason> {
    packet.truncate(end);
    let bytes = packet.head_mut();
    let (ethernet, rest) = bytes.split_at_mut(EthernetHeader::LENGTH);
    let (ip, rest) = rest.split_at_mut(Ipv4Header::LENGTH);
    let ethernet: &mut EthernetHeader = bytemuck::from_bytes_mut(ethernet);
    let ip: &mut Ipv4Header = bytemuck::from_bytes_mut(ip);
    let message = upper - EthernetHeader::LENGTH - Ipv4Header::LENGTH;
    let message =
        rest.get_mut(message..message + IcmpHeader::LENGTH).ok_or(DropReason::Truncated)?;
    let message: &mut IcmpHeader = bytemuck::from_bytes_mut(message);
    if message.kind() != ICMP_ECHO_REQUEST {
        return Err(DropReason::UnderlayProtocolUnsupported);
    }
    let source = ip.source();
    if source.is_unspecified() || source.is_multicast() || source.is_broadcast() {
        return Err(DropReason::HeaderInvalid);
    }
    *message = message.echo_reply();
    *ip = ip.answered();
    *ethernet = EthernetHeader::new(ethernet.source(), ethernet.destination(), ETHERTYPE_IPV4);
    Ok(Arrival::Answered)
}
