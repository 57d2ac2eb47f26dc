// SPDX-License-Identifier: Apache-2.0
//! A tenant's network: its subnets and where packets between them go.

use plinth_ids::{MacAddress, Name, Prefix, Vni};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// A VPC whose switch routes. A VNI without one is a flat segment: frames go by MAC only.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Vpc {
    pub vni: Vni,
    pub name: Name,
    /// Of the gateway of every subnet, the same on every node.
    pub router_mac: MacAddress,
    pub subnets: Vec<Subnet>,
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Absent: the switch answers no DNS.
    #[serde(default)]
    pub dns: Option<VpcDns>,
}

/// The names of a VPC, answered at every gateway address.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VpcDns {
    /// The domain of the VPC's own names, as `shop.internal`: `web-1.shop.internal` is the NIC
    /// whose host name is `web-1`.
    pub zone: String,
    /// Who is asked about all other names, in this order, from the node's own network. Empty:
    /// other names are refused.
    #[serde(default)]
    pub upstream: Vec<SocketAddr>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    pub name: Name,
    /// One per family at least; IPv4 and IPv6.
    pub prefixes: Vec<SubnetPrefix>,
    /// Absent: NICs of the subnet are given nothing by DHCP or router advertisements.
    #[serde(default)]
    pub dhcp: Option<Dhcp>,
}

/// What a guest of a subnet is told by DHCPv4, DHCPv6 and router advertisements, beside its
/// address, its gateway and its MTU, which are those of its NIC.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Dhcp {
    /// 60 or more.
    pub lease_seconds: u32,
    /// Empty: the subnet's gateways, if the VPC has [`VpcDns`].
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Told as the domain to search. Absent: the zone of [`VpcDns`].
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

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetPrefix {
    pub prefix: Prefix,
    /// The router's own address in it.
    pub gateway: IpAddr,
}

/// Beyond the subnets, which are connected routes. The longest prefix decides.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub destination: Prefix,
    pub next_hop: NextHop,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum NextHop {
    /// A NIC of this VPC: a VM that routes.
    Address(IpAddr),
    /// The subnets of another VPC, which has a route back. Its own routes are not followed: one
    /// VPC is no way through to a third.
    Peer(Vni),
    /// Dropped.
    Blackhole,
}
