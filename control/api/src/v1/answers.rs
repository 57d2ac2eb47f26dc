// SPDX-License-Identifier: Apache-2.0
//! What the network tells its guests: addresses, settings and names.

use crate::with::Raw;
use plinth_ids::{MacAddress, Name, Prefix};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What guests of a subnet are told beside address, gateway and MTU of their NIC.
#[derive(
    Clone,
    Debug,
    Eq,
    PartialEq,
    rkyv::Archive,
    rkyv::Deserialize,
    rkyv::Serialize,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(deny_unknown_fields)]
pub struct DhcpSpec {
    pub lease_seconds: u32,
    /// Empty: the router, which knows the names of the VPC.
    pub dns: Vec<IpAddr>,
    /// To search. Absent: the domain of the VPC.
    pub domain: Option<String>,
    /// Beside the default route.
    pub routes: Vec<DhcpRouteSpec>,
    /// Time servers.
    pub ntp: Vec<Ipv4Addr>,
}

impl Default for DhcpSpec {
    /// A day's lease, and names from the router.
    fn default() -> Self {
        Self {
            lease_seconds: 86_400,
            dns: Vec::new(),
            domain: None,
            routes: Vec::new(),
            ntp: Vec::new(),
        }
    }
}

/// A route that guests are told.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    PartialEq,
    rkyv::Archive,
    rkyv::Deserialize,
    rkyv::Serialize,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(deny_unknown_fields)]
pub struct DhcpRouteSpec {
    #[rkyv(with = Raw)]
    pub destination: Prefix,
    pub gateway: Ipv4Addr,
}

/// The names of a VPC.
#[derive(
    Clone,
    Debug,
    Eq,
    PartialEq,
    rkyv::Archive,
    rkyv::Deserialize,
    rkyv::Serialize,
    serde::Deserialize,
    serde::Serialize,
)]
pub struct DnsSpec {
    /// The domain of its VMs.
    pub zone: String,
    /// Who is asked about all other names, from the node's own network.
    pub upstreams: Vec<SocketAddr>,
}

/// What the guest of a NIC is called in its VPC.
#[derive(
    Clone,
    Debug,
    Eq,
    PartialEq,
    rkyv::Archive,
    rkyv::Deserialize,
    rkyv::Serialize,
    serde::Deserialize,
    serde::Serialize,
)]
pub struct HostSpec {
    #[rkyv(with = Raw)]
    pub mac: MacAddress,
    #[rkyv(with = Raw)]
    pub name: Name,
}
