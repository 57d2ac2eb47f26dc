// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The headers of packets, read and written in place.
//!
//! A header is a plain struct with the byte layout of the wire and alignment 1, borrowed from the
//! frame, never copied out of it. `parse` checks lengths and versions once and gives a value whose
//! accessors cannot fail, or an error that names the fault. What is written is written whole,
//! reserved bits zero; what is read follows the RFC on reserved bits, which is to ignore them.
//!
//! A switch sees only the first bytes of a frame, so lengths from inside a packet are compared
//! with the packet's length, which the caller says, and not with the bytes that are there.
//!
//! Not here: what a packet means to the switch (`plinth-vswitch`), and any I/O.

mod arp;
mod be;
pub mod checksum;
mod ethernet;
pub mod fuzz;
mod icmp;
mod ipv4;
mod ipv6;
mod nd;
mod segment;
mod tcp;
mod udp;
mod vxlan;

pub use arp::{ARP_LENGTH, ArpError, ArpOperation, ArpPacket};
pub use be::{Be16, Be32};
pub use ethernet::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, EthernetHeader,
    EthernetTruncated, VlanTag,
};
pub use icmp::{
    ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, ICMPV6_ECHO_REPLY, ICMPV6_ECHO_REQUEST, IcmpHeader,
    IcmpTruncated,
};
pub use ipv4::{Ipv4, Ipv4Error, Ipv4Header};
pub use ipv6::{
    EXTENSION_HEADERS_MAX, Ipv6, Ipv6Error, Ipv6Header, UpperLayer, is_extension, link_local_of,
    upper_layer,
};
pub use nd::{
    ND_ADVERTISEMENT, ND_REDIRECT, ND_ROUTER_ADVERTISEMENT, ND_ROUTER_SOLICITATION,
    ND_SOLICITATION, NdAdvertisement, NdChecksum, NdError, NdSolicitation, solicited_node,
};
pub use segment::{SEGMENTS_MAX, Segmentation, Segments};
pub use tcp::{TcpError, TcpHeader, segment_size_place, window_scale};
pub use udp::{UdpError, UdpHeader};
pub use vxlan::{
    TUNNEL_OVERHEAD, TunnelHeaders, VXLAN_PORT, VXLAN_SOURCE_PORT_FIRST, VxlanError, VxlanHeader,
};

use checksum::Sum;
use std::net::{Ipv4Addr, Ipv6Addr};

/// IP protocol numbers (IANA), as they stand in IPv4's protocol and IPv6's next-header field.
pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Ports of DHCP (RFC 2131) and DHCPv6 (RFC 8415).
pub const DHCP_SERVER_PORT: u16 = 67;
pub const DHCPV6_SERVER_PORT: u16 = 547;
/// Ports that servers answer to.
pub const DHCP_CLIENT_PORT: u16 = 68;
pub const DHCPV6_CLIENT_PORT: u16 = 546;

/// Splits the header `T` off the front of `bytes`; `None` when they are too few.
fn view<T: bytemuck::Pod>(bytes: &[u8]) -> Option<(&T, &[u8])> {
    const { assert!(align_of::<T>() == 1, "a header is read wherever it lies") };
    let (header, rest) = bytes.split_at_checked(size_of::<T>())?;
    Some((bytemuck::try_from_bytes(header).ok()?, rest))
}

/// The sum of IPv4's pseudo header (RFC 768, RFC 9293 section 3.1).
pub fn pseudo_header_ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    length: u32,
) -> Sum {
    Sum::new()
        .with(&source.octets())
        .with(&destination.octets())
        .with(&[0, protocol])
        .with(&length.to_be_bytes())
}

/// The sum of IPv6's pseudo header (RFC 8200, section 8.1).
pub fn pseudo_header_ipv6(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    protocol: u8,
    length: u32,
) -> Sum {
    Sum::new()
        .with(&source.octets())
        .with(&destination.octets())
        .with(&length.to_be_bytes())
        .with(&[0, 0, 0, protocol])
}
