// SPDX-License-Identifier: Apache-2.0
//! What guests are to be told beside what the switch's own configuration says of their NICs.

use plinth_ids::{MacAddress, Name, Prefix, Vni};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// A VPC that is not here has no DNS.
    pub dns: BTreeMap<Vni, VpcDns>,
    /// By VPC and subnet. NICs of a subnet that is not here are given nothing by DHCP or router
    /// advertisements.
    pub dhcp: BTreeMap<(Vni, Name), Dhcp>,
    /// What a NIC's guest is told that it is called, and what DNS calls it, here and elsewhere.
    pub host_names: BTreeMap<(Vni, MacAddress), Name>,
}

/// The names of a VPC, answered at every gateway address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VpcDns {
    /// The domain of the VPC's own names, as `shop.internal`: `web-1.shop.internal` is the NIC
    /// whose host name is `web-1`.
    pub zone: String,
    /// Who is asked about all other names, in this order, from the node's own network. Empty:
    /// other names are refused.
    pub upstream: Vec<SocketAddr>,
}

/// What a guest of a subnet is told by DHCPv4, DHCPv6 and router advertisements, beside its
/// address, its gateway and its MTU, which are those of its NIC.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Dhcp {
    /// 60 or more.
    pub lease_seconds: u32,
    /// Empty: the subnet's gateways, if the VPC has [`VpcDns`].
    pub dns: Vec<IpAddr>,
    /// Told as the domain to search. Absent: the zone of [`VpcDns`].
    pub domain: Option<String>,
    /// Beside the default route (RFC 3442). IPv4 only.
    pub routes: Vec<DhcpRoute>,
    /// Time servers. IPv4 only.
    pub ntp: Vec<Ipv4Addr>,
}

/// A route that a guest is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DhcpRoute {
    pub destination: Prefix,
    pub gateway: Ipv4Addr,
}
