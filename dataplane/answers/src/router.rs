// SPDX-License-Identifier: Apache-2.0
//! Router advertisements (RFC 4861, section 6.2): who the gateway is, what is on the link, how a
//! guest comes by its address and who resolves names (RFC 8106).

use crate::directory::{Nic, Silence};
use crate::frame::{Kind, Macs, Received, checksum, packet};
use plinth_wire::{
    ND_ROUTER_ADVERTISEMENT, ND_ROUTER_SOLICITATION, PROTOCOL_ICMPV6, link_local_of,
};
use std::net::{IpAddr, Ipv6Addr};

/// The hop limit of every ND message, which shows that no router forwarded it.
const HOP_LIMIT: u8 = 255;
/// That of the guest's own packets.
const GUEST_HOP_LIMIT: u8 = 64;
/// Three times the longest time between two advertisements of the switch (RFC 4861, 6.2.1).
pub(crate) const ROUTER_LIFETIME_SECONDS: u16 = 1800;
/// A guest asks DHCPv6 for its address, or for settings only.
const MANAGED: u8 = 0x80;
const OTHER: u8 = 0x40;
const ON_LINK: u8 = 0x80;
const AUTONOMOUS: u8 = 0x40;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Answers a router solicitation with a whole frame.
pub(crate) fn answer(
    nic: &Nic,
    received: &Received<'_>,
    hop_limit: u8,
) -> Result<Vec<u8>, Silence> {
    let Kind::Icmpv6 { message: [ND_ROUTER_SOLICITATION, code, ..], .. } = received.kind else {
        return Err(Silence::Malformed);
    };
    if hop_limit != HOP_LIMIT || *code != 0 {
        return Err(Silence::Malformed);
    }
    let destination = match received.source {
        IpAddr::V6(source) if !source.is_unspecified() => source,
        _ => ALL_NODES,
    };
    advertise(nic, destination).ok_or(Silence::NotServed)
}

/// An advertisement to all nodes of the link, who are one guest.
pub(crate) fn unsolicited(nic: &Nic) -> Option<Vec<u8>> {
    advertise(nic, ALL_NODES)
}

/// It goes to the guest's own MAC even when its destination is all nodes.
fn advertise(nic: &Nic, destination: Ipv6Addr) -> Option<Vec<u8>> {
    nic.terms.dhcp.as_ref()?;
    let lease = nic.ipv6.as_ref()?;
    let makes_own = lease.prefix_length == 64 && made_of_mac(nic) == Some(lease.address);
    let flags = if makes_own { OTHER } else { MANAGED | OTHER };
    let mut message = vec![ND_ROUTER_ADVERTISEMENT, 0, 0, 0, GUEST_HOP_LIMIT, flags];
    message.extend_from_slice(&ROUTER_LIFETIME_SECONDS.to_be_bytes());
    // Reachable time and retransmission timer: not specified.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[1, 1]);
    message.extend_from_slice(&nic.router_mac.0);
    message.extend_from_slice(&[5, 1, 0, 0]);
    message.extend_from_slice(&u32::from(nic.mtu).to_be_bytes());
    let lease_seconds = nic.terms.dhcp.as_ref().map_or(0, |dhcp| dhcp.lease_seconds);
    let prefix_flags = if makes_own { ON_LINK | AUTONOMOUS } else { ON_LINK };
    message.extend_from_slice(&[3, 4, lease.prefix_length, prefix_flags]);
    message.extend_from_slice(&lease_seconds.to_be_bytes());
    message.extend_from_slice(&lease_seconds.to_be_bytes());
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&lease.network.octets());
    push_dns(&mut message, nic);
    let ends = (link_local_of(nic.router_mac).into(), destination.into());
    let sum = checksum(ends, PROTOCOL_ICMPV6, &message)?;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let macs = Macs { source: nic.router_mac, destination: nic.mac };
    packet(macs, ends, (PROTOCOL_ICMPV6, HOP_LIMIT), &message)
}

/// The address that a guest makes of its prefix and its MAC by itself (RFC 4862, RFC 2464).
fn made_of_mac(nic: &Nic) -> Option<Ipv6Addr> {
    let lease = nic.ipv6.as_ref()?;
    let identifier = link_local_of(nic.mac).to_bits() & u128::from(u64::MAX);
    Some(Ipv6Addr::from_bits(lease.network.to_bits() | identifier))
}

/// Servers and the domain to search, for as long as the router itself is believed.
fn push_dns(message: &mut Vec<u8>, nic: &Nic) {
    let lifetime = u32::from(ROUTER_LIFETIME_SECONDS).to_be_bytes();
    // An option's length is counted in eight bytes and has eight bits.
    let mut servers = nic.terms.dns_ipv6();
    servers.truncate(8);
    if let Ok(count) = u8::try_from(servers.len())
        && count > 0
    {
        message.extend_from_slice(&[25, 1 + 2 * count, 0, 0]);
        message.extend_from_slice(&lifetime);
        for server in servers {
            message.extend_from_slice(&server.octets());
        }
    }
    let Some(mut names) = nic.terms.domain.as_deref().and_then(labels) else { return };
    names.resize(names.len().next_multiple_of(8), 0);
    if let Ok(units) = u8::try_from(1 + names.len() / 8) {
        message.extend_from_slice(&[31, units, 0, 0]);
        message.extend_from_slice(&lifetime);
        message.extend_from_slice(&names);
    }
}

/// A domain as it stands in DNS messages; `None` when it is none.
fn labels(domain: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in domain.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= 255).then_some(bytes)
}
