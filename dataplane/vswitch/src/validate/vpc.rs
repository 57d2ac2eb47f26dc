// SPDX-License-Identifier: Apache-2.0
//! What a VPC must hold: subnets apart from each other, gateways inside them, routes that lead
//! somewhere.

use super::{Owners, check_mac};
use crate::{ConfigError, Place, VpcLimits};
use plinth_ids::{MacAddress, Name, Prefix, Vni};
use plinth_switch_api::{NextHop, Route, Subnet, SubnetPrefix, SwitchConfig, Vpc};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What is wrong with a VPC, its subnets or its routes.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VpcError {
    #[error(
        "vpc {vpc}: {found} {what} are more than the limit of {limit}: remove some or raise the limit"
    )]
    TooMany { vpc: Name, what: &'static str, found: usize, limit: usize },
    #[error("vni {vni} is given to vpc {first} and to vpc {second}: give each its own")]
    VniTwice { vni: Vni, first: Name, second: Name },
    #[error(
        "vpc {vpc}: router_mac {mac} is that of {owner}: choose one that no NIC of the vpc has"
    )]
    RouterMacTaken { vpc: Name, mac: MacAddress, owner: Place },
    #[error("vpc {vpc}: subnet {subnet} is given twice: give each its own name")]
    SubnetTwice { vpc: Name, subnet: Name },
    #[error("vpc {vpc}: subnet {subnet} has no prefix: give it at least one")]
    SubnetEmpty { vpc: Name, subnet: Name },
    #[error(
        "vpc {vpc}: subnet {subnet}: {prefix} is no range for NICs: use /1 to /30 of IPv4 or /1 to /126 of IPv6, unicast and not link-local"
    )]
    SubnetPrefix { vpc: Name, subnet: Name, prefix: Prefix },
    #[error(
        "vpc {vpc}: {second_prefix} of subnet {second} overlaps {first_prefix} of subnet {first}: choose ranges apart from each other"
    )]
    SubnetOverlap {
        vpc: Name,
        first: Name,
        first_prefix: Prefix,
        second: Name,
        second_prefix: Prefix,
    },
    #[error(
        "vpc {vpc}: subnet {subnet}: gateway {gateway} is no host address of {prefix}: use one inside it, as its second address"
    )]
    GatewayOutside { vpc: Name, subnet: Name, gateway: IpAddr, prefix: Prefix },
    #[error(
        "vpc {vpc}: subnet {subnet}: gateway {gateway} is an address of {owner}: take it from the NIC or choose another gateway"
    )]
    GatewayTaken { vpc: Name, subnet: Name, gateway: IpAddr, owner: Place },
    #[error("vpc {vpc}: route {destination} is given twice: keep one next hop for it")]
    RouteTwice { vpc: Name, destination: Prefix },
    #[error(
        "vpc {vpc}: route {destination} is that of subnet {subnet}: remove it, or use a longer prefix"
    )]
    RouteIsSubnet { vpc: Name, destination: Prefix, subnet: Name },
    #[error(
        "vpc {vpc}: route {destination}: next hop {next_hop} is of the other address family: use one of the destination's"
    )]
    NextHopFamily { vpc: Name, destination: Prefix, next_hop: IpAddr },
    #[error(
        "vpc {vpc}: route {destination}: next hop {next_hop} is in no subnet of the vpc: use the address of a NIC in it"
    )]
    NextHopUnknown { vpc: Name, destination: Prefix, next_hop: IpAddr },
    #[error(
        "vpc {vpc}: route {destination}: next hop {next_hop} is the vpc's own router: use the address of a NIC"
    )]
    NextHopIsRouter { vpc: Name, destination: Prefix, next_hop: IpAddr },
    #[error(
        "vpc {vpc}: route {destination}: the outside is reached by IPv4 only: use an IPv4 prefix"
    )]
    ExternalFamily { vpc: Name, destination: Prefix },
    #[error(
        "vpc {vpc}: route {destination} leads back to the vpc itself: name another vpc as peer"
    )]
    PeerIsSelf { vpc: Name, destination: Prefix },
    #[error(
        "vpc {vpc}: route {destination}: vni {peer} is no vpc of this configuration: add the vpc or remove the route"
    )]
    PeerUnknown { vpc: Name, destination: Prefix, peer: Vni },
    #[error(
        "vpc {vpc}: route {destination}: vpc {peer} has no route back: add one there or remove this one"
    )]
    PeerOneSided { vpc: Name, destination: Prefix, peer: Name },
    #[error(
        "{place}: vni {vni} has no subnet {subnet}: add it to the vpc or name one of its subnets"
    )]
    SubnetUnknown { place: Place, vni: Vni, subnet: Name },
    #[error(
        "{place}: address {address} is outside of subnet {subnet}: use one inside its prefixes"
    )]
    AddressOutside { place: Place, address: IpAddr, subnet: Name },
    #[error("{place}: {found} allowed ranges are more than the limit of {limit}: join some")]
    TooManyAllowed { place: Place, found: usize, limit: usize },
}

impl VpcError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooMany { .. } => "too-many",
            Self::VniTwice { .. } => "vni-twice",
            Self::RouterMacTaken { .. } => "router-mac-taken",
            Self::SubnetTwice { .. } => "subnet-twice",
            Self::SubnetEmpty { .. } => "subnet-empty",
            Self::SubnetPrefix { .. } => "subnet-prefix",
            Self::SubnetOverlap { .. } => "subnet-overlap",
            Self::GatewayOutside { .. } => "gateway-outside",
            Self::GatewayTaken { .. } => "gateway-taken",
            Self::RouteTwice { .. } => "route-twice",
            Self::RouteIsSubnet { .. } => "route-is-subnet",
            Self::NextHopFamily { .. } => "next-hop-family",
            Self::NextHopUnknown { .. } => "next-hop-unknown",
            Self::NextHopIsRouter { .. } => "next-hop-is-router",
            Self::ExternalFamily { .. } => "external-family",
            Self::PeerIsSelf { .. } => "peer-is-self",
            Self::PeerUnknown { .. } => "peer-unknown",
            Self::PeerOneSided { .. } => "peer-one-sided",
            Self::SubnetUnknown { .. } => "subnet-unknown",
            Self::AddressOutside { .. } => "address-outside",
            Self::TooManyAllowed { .. } => "too-many-allowed",
        }
    }
}

/// Checks the VPCs by themselves and against each other.
pub(super) fn check(config: &SwitchConfig, limits: &VpcLimits) -> Result<(), ConfigError> {
    super::check_count("vpcs", config.vpcs.len(), limits.vpcs as usize)?;
    let mut by_vni: BTreeMap<Vni, &Vpc> = BTreeMap::new();
    for vpc in &config.vpcs {
        let place = Place::Vpc { name: vpc.name.clone() };
        if vpc.vni.get() == 0 {
            return Err(ConfigError::VniZero { place });
        }
        check_mac(&place, vpc.router_mac)?;
        if let Some(first) = by_vni.insert(vpc.vni, vpc) {
            let (first, second) = (first.name.clone(), vpc.name.clone());
            return Err(VpcError::VniTwice { vni: vpc.vni, first, second }.into());
        }
        check_subnets(vpc, limits)?;
    }
    // A list of peers once, so that many routes do not walk many routes.
    let peers: BTreeSet<(Vni, Vni)> = config.vpcs.iter().flat_map(peers_of).collect();
    for vpc in &config.vpcs {
        check_routes(vpc, limits, &by_vni, &peers)?;
    }
    Ok(())
}

fn peers_of(vpc: &Vpc) -> impl Iterator<Item = (Vni, Vni)> {
    vpc.routes.iter().filter_map(|route| match route.next_hop {
        NextHop::Peer(peer) => Some((vpc.vni, peer)),
        NextHop::Address(_) | NextHop::External | NextHop::Blackhole => None,
    })
}

fn check_subnets(vpc: &Vpc, limits: &VpcLimits) -> Result<(), VpcError> {
    let (found, limit) = (vpc.subnets.len(), usize::from(limits.subnets_per_vpc));
    if found > limit {
        return Err(VpcError::TooMany { vpc: vpc.name.clone(), what: "subnets", found, limit });
    }
    let mut names = BTreeSet::new();
    let mut ranges: Vec<(Prefix, &Name)> = Vec::new();
    for Subnet { name, prefixes } in &vpc.subnets {
        if !names.insert(name) {
            return Err(VpcError::SubnetTwice { vpc: vpc.name.clone(), subnet: name.clone() });
        }
        if prefixes.is_empty() {
            return Err(VpcError::SubnetEmpty { vpc: vpc.name.clone(), subnet: name.clone() });
        }
        let (found, limit) = (prefixes.len(), usize::from(limits.prefixes_per_subnet));
        if found > limit {
            let what = "prefixes of one subnet";
            return Err(VpcError::TooMany { vpc: vpc.name.clone(), what, found, limit });
        }
        for prefix in prefixes {
            check_prefix(vpc, name, prefix)?;
            ranges.push((prefix.prefix, name));
        }
    }
    // Whatever stands between two ranges that overlap begins inside the first of them and overlaps
    // it too, so that it is enough to look at neighbors.
    ranges.sort();
    for pair in ranges.windows(2) {
        let [(first_prefix, first), (second_prefix, second)] = *pair else { continue };
        if first_prefix.overlaps(second_prefix) {
            return Err(VpcError::SubnetOverlap {
                vpc: vpc.name.clone(),
                first: first.clone(),
                first_prefix,
                second: second.clone(),
                second_prefix,
            });
        }
    }
    Ok(())
}

fn check_prefix(vpc: &Vpc, subnet: &Name, given: &SubnetPrefix) -> Result<(), VpcError> {
    let SubnetPrefix { prefix, gateway } = *given;
    let network = prefix.network();
    let is_reserved = network.is_multicast()
        || network.is_loopback()
        || network.is_unspecified()
        || crate::vpc::is_link_local(network);
    if is_reserved || prefix.length() == 0 || prefix.length() + 2 > prefix.bits() {
        let (vpc, subnet) = (vpc.name.clone(), subnet.clone());
        return Err(VpcError::SubnetPrefix { vpc, subnet, prefix });
    }
    // The first address is the network's (of IPv6, that of any router: RFC 4291, section 2.6.1),
    // the last of IPv4 the broadcast's.
    let is_host = prefix.contains(gateway)
        && gateway != network
        && !(gateway.is_ipv4() && gateway == prefix.last());
    if !is_host {
        let (vpc, subnet) = (vpc.name.clone(), subnet.clone());
        return Err(VpcError::GatewayOutside { vpc, subnet, gateway, prefix });
    }
    Ok(())
}

fn check_routes(
    vpc: &Vpc,
    limits: &VpcLimits,
    by_vni: &BTreeMap<Vni, &Vpc>,
    peers: &BTreeSet<(Vni, Vni)>,
) -> Result<(), VpcError> {
    let (found, limit) = (vpc.routes.len(), usize::from(limits.routes_per_vpc));
    if found > limit {
        return Err(VpcError::TooMany { vpc: vpc.name.clone(), what: "routes", found, limit });
    }
    let connected: BTreeMap<Prefix, &Name> = vpc
        .subnets
        .iter()
        .flat_map(|subnet| subnet.prefixes.iter().map(|given| (given.prefix, &subnet.name)))
        .collect();
    let mut destinations = BTreeSet::new();
    for &Route { destination, next_hop } in &vpc.routes {
        let name = || vpc.name.clone();
        if !destinations.insert(destination) {
            return Err(VpcError::RouteTwice { vpc: name(), destination });
        }
        if let Some(&subnet) = connected.get(&destination) {
            let subnet = subnet.clone();
            return Err(VpcError::RouteIsSubnet { vpc: name(), destination, subnet });
        }
        match next_hop {
            NextHop::Address(next_hop) => check_next_hop(vpc, destination, next_hop)?,
            NextHop::Peer(peer) if peer == vpc.vni => {
                return Err(VpcError::PeerIsSelf { vpc: name(), destination });
            }
            NextHop::Peer(peer) => {
                let Some(other) = by_vni.get(&peer) else {
                    return Err(VpcError::PeerUnknown { vpc: name(), destination, peer });
                };
                if !peers.contains(&(peer, vpc.vni)) {
                    let peer = other.name.clone();
                    return Err(VpcError::PeerOneSided { vpc: name(), destination, peer });
                }
            }
            NextHop::External if !destination.is_ipv4() => {
                return Err(VpcError::ExternalFamily { vpc: name(), destination });
            }
            NextHop::External | NextHop::Blackhole => {}
        }
    }
    Ok(())
}

/// A next hop must be a place where a NIC can be. Whether one is there now is no fault of the
/// configuration: VMs come and go under a route.
fn check_next_hop(vpc: &Vpc, destination: Prefix, next_hop: IpAddr) -> Result<(), VpcError> {
    let name = vpc.name.clone();
    if next_hop.is_ipv4() != destination.is_ipv4() {
        return Err(VpcError::NextHopFamily { vpc: name, destination, next_hop });
    }
    let mut prefixes = vpc.subnets.iter().flat_map(|subnet| &subnet.prefixes);
    let Some(found) = prefixes.find(|given| given.prefix.contains(next_hop)) else {
        return Err(VpcError::NextHopUnknown { vpc: name, destination, next_hop });
    };
    if found.gateway == next_hop {
        return Err(VpcError::NextHopIsRouter { vpc: name, destination, next_hop });
    }
    Ok(())
}

/// Checks that nothing of a router belongs to a NIC.
pub(super) fn check_owners(config: &SwitchConfig, owners: &Owners) -> Result<(), VpcError> {
    for vpc in &config.vpcs {
        let link_local = IpAddr::V6(plinth_wire::link_local_of(vpc.router_mac));
        let by_mac = owners.macs.get(&(vpc.vni, vpc.router_mac));
        if let Some(owner) = by_mac.or_else(|| owners.addresses.get(&(vpc.vni, link_local))) {
            let (name, mac, owner) = (vpc.name.clone(), vpc.router_mac, owner.clone());
            return Err(VpcError::RouterMacTaken { vpc: name, mac, owner });
        }
        for subnet in &vpc.subnets {
            for &SubnetPrefix { gateway, .. } in &subnet.prefixes {
                let Some(owner) = owners.addresses.get(&(vpc.vni, gateway)) else { continue };
                return Err(VpcError::GatewayTaken {
                    vpc: vpc.name.clone(),
                    subnet: subnet.name.clone(),
                    gateway,
                    owner: owner.clone(),
                });
            }
        }
    }
    Ok(())
}

/// The subnets of a configuration, for NICs to be checked against.
pub(super) struct Subnets<'a>(BTreeMap<(Vni, &'a Name), &'a Subnet>);

impl<'a> Subnets<'a> {
    pub(super) fn of(config: &'a SwitchConfig) -> Self {
        let subnets = config.vpcs.iter().flat_map(|vpc| {
            vpc.subnets.iter().map(move |subnet| ((vpc.vni, &subnet.name), subnet))
        });
        Self(subnets.collect())
    }

    /// Checks that a NIC's addresses are of its subnet.
    pub(super) fn check_nic(
        &self,
        place: &Place,
        vni: Vni,
        subnet: Option<&Name>,
        addresses: &[IpAddr],
    ) -> Result<(), VpcError> {
        let Some(name) = subnet else { return Ok(()) };
        let Some(subnet) = self.0.get(&(vni, name)) else {
            let (place, subnet) = (place.clone(), name.clone());
            return Err(VpcError::SubnetUnknown { place, vni, subnet });
        };
        for &address in addresses {
            let is_inside = subnet.prefixes.iter().any(|given| given.prefix.contains(address));
            if !is_inside && !crate::vpc::is_link_local(address) {
                let (place, subnet) = (place.clone(), name.clone());
                return Err(VpcError::AddressOutside { place, address, subnet });
            }
        }
        Ok(())
    }
}

pub(super) fn check_allowed(
    place: &Place,
    allowed: &[Prefix],
    limits: &VpcLimits,
) -> Result<(), VpcError> {
    let (found, limit) = (allowed.len(), usize::from(limits.allowed_per_nic));
    if found > limit {
        return Err(VpcError::TooManyAllowed { place: place.clone(), found, limit });
    }
    Ok(())
}
