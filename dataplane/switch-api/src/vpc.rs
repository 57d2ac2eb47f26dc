// SPDX-License-Identifier: Apache-2.0
//! A tenant's network: its subnets and where packets between them go.

use plinth_ids::{MacAddress, Name, Prefix, Vni};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

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
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    pub name: Name,
    /// One per family at least; IPv4 and IPv6.
    pub prefixes: Vec<SubnetPrefix>,
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
    /// The outside, under the NIC's external address or that of a gateway. IPv4 only.
    External,
    /// Dropped.
    Blackhole,
}
