// SPDX-License-Identifier: Apache-2.0
//! The outermost headers of what comes from the wire: is it for us, and is it whole?

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
    /// The packet has become the answer.
    Answered,
    Absorbed,
}

/// Judges a frame from the wire; answers what is for the VTEP itself.
pub(crate) fn arrive(
    uplink: &UplinkTables,
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
            answer_arp(uplink, neighbors, now, packet, &arp)
        }
        ETHERTYPE_IPV4 => ipv4(uplink, packet, length),
        _ => Err(DropReason::UnderlayEthertypeUnsupported),
    }
}

/// Learns from ARP of next hops, and tells who asks for the VTEP.
fn answer_arp(
    uplink: &UplinkTables,
    neighbors: &mut Neighbors,
    now: Moment,
    packet: &mut Packet,
    arp: &ArpPacket,
) -> Result<Arrival, DropReason> {
    let (mac, sender) = (arp.sender_mac(), arp.sender_address());
    if mac.is_multicast() || mac == MacAddress([0; 6]) {
        return Err(DropReason::UnderlayArpInvalid);
    }
    if sender == uplink.vtep {
        // Our own announcement, sent back by a switch that loops, is no conflict.
        let is_ours = mac == uplink.mac;
        return if is_ours {
            Ok(Arrival::Absorbed)
        } else {
            Err(DropReason::UnderlayAddressConflict)
        };
    }
    neighbors.learn(now, sender, mac);
    if arp.operation() == ArpOperation::Reply || arp.target_address() != uplink.vtep {
        return Ok(Arrival::Absorbed);
    }
    let reply = ArpPacket::reply((uplink.mac, uplink.vtep), (mac, sender));
    packet.replace(&reply.frame(mac));
    Ok(Arrival::Answered)
}

fn ipv4(uplink: &UplinkTables, packet: &mut Packet, length: usize) -> Result<Arrival, DropReason> {
    let bytes = &packet.head()[EthernetHeader::LENGTH..];
    let ip =
        Ipv4Header::parse(bytes, length - EthernetHeader::LENGTH).map_err(|error| match error {
            Ipv4Error::Truncated | Ipv4Error::TotalLength => DropReason::Truncated,
            Ipv4Error::Version | Ipv4Error::HeaderLength => DropReason::HeaderInvalid,
        })?;
    if ip.header.destination() != uplink.vtep {
        return Err(DropReason::UnderlayAddressForeign);
    }
    if !ip.has_right_checksum(bytes) {
        return Err(DropReason::UnderlayChecksumWrong);
    }
    if ip.header.is_fragment() {
        return Err(DropReason::UnderlayFragment);
    }
    let upper = EthernetHeader::LENGTH + ip.header_length;
    let end = EthernetHeader::LENGTH + ip.length;
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
