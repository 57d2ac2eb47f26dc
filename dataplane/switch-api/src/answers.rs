// SPDX-License-Identifier: Apache-2.0
//! What the switch itself says to guests that ask it: DHCP, router advertisements and DNS.
//!
//! It stands beside ports and VPCs and not in them: no packet is forwarded by it.

use plinth_ids::{MacAddress, Name, Prefix, Vni};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

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
}

impl Answers {
    /// Nobody is answered.
    pub const NONE: Self = Self { dns: Vec::new(), dhcp: Vec::new(), names: Vec::new() };
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
