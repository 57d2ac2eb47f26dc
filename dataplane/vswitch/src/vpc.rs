// SPDX-License-Identifier: Apache-2.0
//! A VPC as the stages see it: its router's addresses, its subnets, and the way of an address.

use crate::prefix_table::PrefixTable;
use plinth_ids::{MacAddress, Name, Prefix, Vni};
use plinth_switch_api::{NextHop, SubnetPrefix, Vpc};
use plinth_wire::link_local_of;
use std::net::{IpAddr, Ipv6Addr};

/// Whether an address is of one link only: the router never takes a packet to or from it.
pub(crate) const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Whether a packet to `address` may be routed at all.
pub(crate) fn is_routable(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_multicast()
        || address.is_loopback()
        || address.is_unspecified()
        || is_broadcast
        || is_link_local(address))
}

/// Where a prefix leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Hop {
    /// To whoever has the address: it is of a subnet.
    Connected,
    /// To the NIC that has this address.
    Address(IpAddr),
    /// Into the subnets of another VPC.
    Peer(Vni),
    External,
    Blackhole,
}

#[derive(Debug)]
pub(crate) struct SubnetTables {
    pub(crate) name: Name,
    pub(crate) prefixes: Box<[SubnetPrefix]>,
}

impl SubnetTables {
    /// The router's address in the first prefix of a family.
    pub(crate) fn gateway(&self, is_ipv4: bool) -> Option<SubnetPrefix> {
        self.prefixes.iter().find(|given| given.prefix.is_ipv4() == is_ipv4).copied()
    }
}

/// A place in [`VpcTables::subnets`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SubnetIndex(u16);

#[derive(Debug)]
pub(crate) struct VpcTables {
    pub(crate) vni: Vni,
    pub(crate) name: Name,
    pub(crate) router_mac: MacAddress,
    /// The router's own of IPv6, the same in every subnet.
    pub(crate) link_local: Ipv6Addr,
    subnets: Box<[SubnetTables]>,
    /// Sorted.
    gateways: Box<[IpAddr]>,
    connected: PrefixTable<SubnetIndex>,
    /// Subnets and routes.
    hops: PrefixTable<Hop>,
}

impl VpcTables {
    pub(crate) fn new(vpc: &Vpc) -> Self {
        let indexed = || (0..).map(SubnetIndex).zip(&vpc.subnets);
        let prefixes = || {
            indexed().flat_map(|(index, subnet)| {
                subnet.prefixes.iter().map(move |&given| (index, given))
            })
        };
        let mut gateways: Vec<IpAddr> = prefixes().map(|(_, given)| given.gateway).collect();
        gateways.sort();
        let routes = vpc.routes.iter().map(|route| {
            let hop = match route.next_hop {
                NextHop::Address(address) => Hop::Address(address),
                NextHop::Peer(peer) => Hop::Peer(peer),
                NextHop::External => Hop::External,
                NextHop::Blackhole => Hop::Blackhole,
            };
            (route.destination, hop)
        });
        let subnets = vpc.subnets.iter().map(|subnet| SubnetTables {
            name: subnet.name.clone(),
            prefixes: subnet.prefixes.clone().into(),
        });
        Self {
            vni: vpc.vni,
            name: vpc.name.clone(),
            router_mac: vpc.router_mac,
            link_local: link_local_of(vpc.router_mac),
            subnets: subnets.collect(),
            gateways: gateways.into(),
            connected: prefixes().map(|(index, given)| (given.prefix, index)).collect(),
            hops: routes
                .chain(prefixes().map(|(_, given)| (given.prefix, Hop::Connected)))
                .collect(),
        }
    }

    pub(crate) fn is_router(&self, mac: MacAddress) -> bool {
        mac == self.router_mac
    }

    /// Whether the router itself has this address.
    pub(crate) fn is_router_address(&self, address: IpAddr) -> bool {
        address == IpAddr::V6(self.link_local) || self.gateways.binary_search(&address).is_ok()
    }

    pub(crate) fn subnet(&self, index: SubnetIndex) -> &SubnetTables {
        &self.subnets[usize::from(index.0)]
    }

    pub(crate) fn subnet_named(&self, name: &Name) -> Option<SubnetIndex> {
        let place = self.subnets.iter().position(|subnet| subnet.name == *name)?;
        Some(SubnetIndex(u16::try_from(place).expect("subnets are limited to 65535")))
    }

    /// The subnet that has this address.
    pub(crate) fn subnet_of(&self, address: IpAddr) -> Option<SubnetIndex> {
        self.connected.get(address).copied()
    }

    /// Where the longest prefix of `address` leads.
    pub(crate) fn hop(&self, address: IpAddr) -> Option<Hop> {
        self.hops.get(address).copied()
    }

    /// The same, with the prefix itself.
    pub(crate) fn longest(&self, address: IpAddr) -> Option<(Prefix, Hop)> {
        self.hops.longest(address).map(|(prefix, hop)| (prefix, *hop))
    }
}
