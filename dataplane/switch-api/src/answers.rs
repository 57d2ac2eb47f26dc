// SPDX-License-Identifier: Apache-2.0
//! What the switch itself says to guests that ask it: DHCP, router advertisements, DNS and metadata.
//!
//! It stands beside ports and VPCs and not in them: no packet is forwarded by it.

use plinth_ids::{MacAddress, Name, PortId, Prefix, Vni};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where a guest asks what its node knows of it, by HTTP.
pub const METADATA_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const METADATA_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
pub const METADATA_PORT: u16 = 80;

/// Of whoever answers for the node, in the run folder: a stream socket. A connection is one
/// request: a [`MetadataAsker`] as a line of JSON, the head of the guest's HTTP request as it
/// came, and the end of what is sent; then the whole HTTP response, and the end.
pub const METADATA_SOCKET: &str = "metadata.sock";

/// A response that is longer is not passed on.
pub const METADATA_RESPONSE_MAX: usize = 16 * 1024;

/// The NIC whose guest asks: known by the port that its packets came from, after its MAC and its
/// addresses were found to be its own.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataAsker {
    pub port: PortId,
    pub vni: Vni,
    pub mac: MacAddress,
}

/// Who is answered, and what he is told beside what his port's configuration says.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// A VPC that is not here has no DNS.
    #[serde(default)]
    pub dns: Vec<VpcDns>,
    /// NICs of a subnet that is not here are given nothing by DHCP or router advertisements.
    #[serde(default)]
    pub dhcp: Vec<SubnetDhcp>,
    #[serde(default)]
    pub names: Vec<HostName>,
    /// VPCs whose guests reach their metadata. For guests of others its addresses are like any.
    #[serde(default)]
    pub metadata: Vec<Vni>,
}

impl Answers {
    /// Nobody is answered.
    pub const NONE: Self =
        Self { dns: Vec::new(), dhcp: Vec::new(), names: Vec::new(), metadata: Vec::new() };
}

/// The names of a VPC, answered at every gateway address.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VpcDns {
    pub vni: Vni,
    /// The domain of the VPC's own names, as `shop.internal`: `web-1.shop.internal` is the NIC
    /// whose host name is `web-1`.
    pub zone: String,
    /// Who is asked about all other names, in this order, from the node's own network. Empty:
    /// other names are refused.
    #[serde(default)]
    pub upstreams: Vec<SocketAddr>,
}

/// What guests of a subnet are told by DHCPv4, DHCPv6 and router advertisements, beside their
/// address, gateway and MTU.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetDhcp {
    pub vni: Vni,
    pub subnet: Name,
    /// 60 or more.
    pub lease_seconds: u32,
    /// Empty: the subnet's gateways, if the VPC has DNS.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Told as the domain to search. Absent: the zone of the VPC's DNS.
    #[serde(default)]
    pub domain: Option<String>,
    /// Beside the default route (RFC 3442). IPv4 only.
    #[serde(default)]
    pub routes: Vec<DhcpRoute>,
    /// Time servers. IPv4 only.
    #[serde(default)]
    pub ntp: Vec<Ipv4Addr>,
}

/// A route that a guest is told.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DhcpRoute {
    pub destination: Prefix,
    pub gateway: Ipv4Addr,
}

/// What became of guests' questions since the switch was started.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct AnswerCounts {
    /// That the worker handed on.
    pub questions: u64,
    pub answers: u64,
    /// For names of other people, asked upstream.
    pub forwarded: u64,
    /// Of metadata, that whoever answers for the node was asked.
    #[serde(default)]
    pub metadata: u64,
    /// Of routers, unasked.
    pub advertisements: u64,
    /// Without an answer from upstream, or without a buffer on the way.
    pub lost: u64,
}

/// What a NIC's guest is told that it is called, and what DNS calls it, here and elsewhere.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HostName {
    pub vni: Vni,
    pub mac: MacAddress,
    pub name: Name,
}
