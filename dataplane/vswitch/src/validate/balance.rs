// SPDX-License-Identifier: Apache-2.0
//! What balancers must hold: addresses that are theirs alone, ports apart, and backends that can
//! be reached under the family of the address.

use super::{check_count, is_host};
use crate::balance::hash_places;
use crate::{ConfigError, Limits};
use plinth_ids::{Name, Vni};
use plinth_switch_api::{
    BACKEND_WEIGHT_MAX, Backend, Balancer, ForwardProtocol, HealthCheck, Listener, SwitchConfig,
    Vpc,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The longest time for which a client gets the same backend: a day.
const STICKINESS_MAX: u32 = 86_400;

/// What is wrong with a balancer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BalancerError {
    #[error("balancer {balancer} is given twice: give each its own name")]
    BalancerTwice { balancer: Name },
    #[error("balancer {balancer}: vni {vni} is no vpc of this configuration: add the vpc")]
    VpcUnknown { balancer: Name, vni: Vni },
    #[error(
        "balancer {balancer}: {address} cannot be its address: use a unicast one of no machine"
    )]
    Address { balancer: Name, address: IpAddr },
    #[error("balancer {balancer}: {address} is in no subnet of the vpc: use one inside a subnet")]
    AddressOutside { balancer: Name, address: IpAddr },
    #[error(
        "balancer {balancer}: {address} is a NIC's, a gateway's or another balancer's in vni {vni}: use one that is free"
    )]
    AddressTaken { balancer: Name, vni: Vni, address: IpAddr },
    #[error("balancer {balancer}: the outside is reached by IPv4 only: use an IPv4 address")]
    ExternalFamily { balancer: Name },
    #[error(
        "balancer {balancer}: ports {first} to {last} are no range: use 1 to 65535, the first not above the last"
    )]
    Ports { balancer: Name, first: u16, last: u16 },
    #[error(
        "balancer {balancer}: ports {first} to {last} overlap another listener: choose ports apart"
    )]
    PortsOverlap { balancer: Name, first: u16, last: u16 },
    #[error("balancer {balancer}: stickiness of {found} seconds is out of range: use 1 to 86400")]
    Stickiness { balancer: Name, found: u32 },
    #[error("balancer {balancer}: ports from {first} on: {fault} in its health check")]
    Check { balancer: Name, first: u16, fault: &'static str },
    #[error(
        "balancer {balancer}: backend {backend} is of the other IP version: use one of the balancer's"
    )]
    BackendFamily { balancer: Name, backend: IpAddr },
    #[error(
        "balancer {balancer}: backend {backend}: port {port} leaves no room for the listener's range: use 1 to 65535"
    )]
    BackendPort { balancer: Name, backend: IpAddr, port: u16 },
    #[error(
        "balancer {balancer}: backend {backend}: weight {weight} is out of range: use 1 to {BACKEND_WEIGHT_MAX}"
    )]
    BackendWeight { balancer: Name, backend: IpAddr, weight: u16 },
    #[error(
        "balancer {balancer}: backend {backend} port {port} is given twice in one listener: keep one"
    )]
    BackendTwice { balancer: Name, backend: IpAddr, port: u16 },
    #[error(
        "balancer {balancer}: {found} backends of one listener are more than the limit of {limit}"
    )]
    TooManyBackends { balancer: Name, found: usize, limit: usize },
}

impl BalancerError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BalancerTwice { .. } => "balancer-twice",
            Self::VpcUnknown { .. } => "balancer-vpc-unknown",
            Self::Address { .. } => "balancer-address",
            Self::AddressOutside { .. } => "balancer-address-outside",
            Self::AddressTaken { .. } => "balancer-address-taken",
            Self::ExternalFamily { .. } => "balancer-external-family",
            Self::Ports { .. } => "balancer-ports",
            Self::PortsOverlap { .. } => "balancer-ports-overlap",
            Self::Stickiness { .. } => "balancer-stickiness",
            Self::Check { .. } => "balancer-check",
            Self::BackendFamily { .. } => "balancer-backend-family",
            Self::BackendPort { .. } => "balancer-backend-port",
            Self::BackendWeight { .. } => "balancer-backend-weight",
            Self::BackendTwice { .. } => "balancer-backend-twice",
            Self::TooManyBackends { .. } => "balancer-too-many-backends",
        }
    }
}

pub(super) fn check(config: &SwitchConfig, limits: &Limits) -> Result<(), ConfigError> {
    if config.balancers.is_empty() {
        return Ok(());
    }
    let limits = &limits.balancers;
    let listeners = || config.balancers.iter().flat_map(|balancer| &balancer.listeners);
    let backends = listeners().map(|listener| listener.backends.len()).sum();
    check_count("balancers", config.balancers.len(), limits.balancers as usize)?;
    check_count("listeners of balancers", listeners().count(), limits.listeners as usize)?;
    check_count("backends of balancers", backends, limits.backends as usize)?;
    let places = hash_places(config);
    check_count("places in tables of balancers", places, limits.hash_places as usize)?;
    let vpcs: BTreeMap<Vni, &Vpc> = config.vpcs.iter().map(|vpc| (vpc.vni, vpc)).collect();
    let mut names = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    for balancer in &config.balancers {
        let name = || balancer.name.clone();
        if !names.insert(&balancer.name) {
            return Err(BalancerError::BalancerTwice { balancer: name() }.into());
        }
        let vpc = vpcs.get(&balancer.vni);
        let unknown = BalancerError::VpcUnknown { balancer: name(), vni: balancer.vni };
        check_address(balancer, vpc.ok_or(unknown)?)?;
        if balancer.line.is_none() && !addresses.insert((balancer.vni, balancer.address)) {
            return Err(taken(balancer).into());
        }
        check_listeners(balancer, usize::from(limits.backends_per_listener))?;
    }
    let ports = config.ports.iter().map(|port| (port.vni, &port.addresses));
    let remotes = config.remotes.iter().map(|remote| (remote.vni, &remote.addresses));
    for (vni, list) in ports.chain(remotes) {
        if let Some(address) = list.iter().find(|&&address| addresses.contains(&(vni, address))) {
            let found = |given: &&Balancer| given.vni == vni && given.address == *address;
            let balancer = config.balancers.iter().find(found);
            return Err(taken(balancer.expect("it is a balancer's address")).into());
        }
    }
    Ok(())
}

fn taken(balancer: &Balancer) -> BalancerError {
    let Balancer { ref name, vni, address, .. } = *balancer;
    BalancerError::AddressTaken { balancer: name.clone(), vni, address }
}

fn check_address(given: &Balancer, vpc: &Vpc) -> Result<(), BalancerError> {
    let (name, address) = (given.name.clone(), given.address);
    if given.line.is_some() {
        // Whose it is besides is asked with the other external addresses.
        return match address {
            IpAddr::V4(_) => Ok(()),
            IpAddr::V6(_) => Err(BalancerError::ExternalFamily { balancer: name }),
        };
    }
    if !is_host(address) || !crate::vpc::is_routable(address) {
        return Err(BalancerError::Address { balancer: name, address });
    }
    let mut prefixes = vpc.subnets.iter().flat_map(|subnet| &subnet.prefixes);
    let Some(subnet) = prefixes.find(|given| given.prefix.contains(address)) else {
        return Err(BalancerError::AddressOutside { balancer: name, address });
    };
    if subnet.gateway == address { Err(taken(given)) } else { Ok(()) }
}

fn check_listeners(balancer: &Balancer, limit: usize) -> Result<(), BalancerError> {
    let mut ranges: Vec<(ForwardProtocol, u16, u16)> = Vec::new();
    for listener in &balancer.listeners {
        let name = || balancer.name.clone();
        let (first, last) = listener.ports;
        if first == 0 || last < first {
            return Err(BalancerError::Ports { balancer: name(), first, last });
        }
        ranges.push((listener.protocol, first, last));
        if let Some(found) = listener.stickiness
            && !(1..=STICKINESS_MAX).contains(&found)
        {
            return Err(BalancerError::Stickiness { balancer: name(), found });
        }
        if let Some(fault) = listener.check.as_ref().and_then(HealthCheck::fault) {
            return Err(BalancerError::Check { balancer: name(), first, fault });
        }
        let found = listener.backends.len();
        if found > limit {
            return Err(BalancerError::TooManyBackends { balancer: name(), found, limit });
        }
        check_backends(balancer, listener)?;
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let [(protocol, _, end), (other, first, last)] = *pair else { continue };
        if protocol == other && first <= end {
            return Err(BalancerError::PortsOverlap {
                balancer: balancer.name.clone(),
                first,
                last,
            });
        }
    }
    Ok(())
}

fn check_backends(balancer: &Balancer, listener: &Listener) -> Result<(), BalancerError> {
    let mut seen = BTreeSet::new();
    let (first, last) = listener.ports;
    for &Backend { address: backend, port, weight, .. } in &listener.backends {
        let balancer_name = || balancer.name.clone();
        if backend.is_ipv4() != balancer.address.is_ipv4() {
            return Err(BalancerError::BackendFamily { balancer: balancer_name(), backend });
        }
        if port == 0 || port.checked_add(last - first).is_none() {
            return Err(BalancerError::BackendPort { balancer: balancer_name(), backend, port });
        }
        if !(1..=BACKEND_WEIGHT_MAX).contains(&weight) {
            return Err(BalancerError::BackendWeight {
                balancer: balancer_name(),
                backend,
                weight,
            });
        }
        if !seen.insert((backend, port)) {
            return Err(BalancerError::BackendTwice { balancer: balancer_name(), backend, port });
        }
    }
    Ok(())
}
