// SPDX-License-Identifier: Apache-2.0
//! What a node's outside must hold: addresses that are one thing's alone, NICs that are here, and
//! ports enough for all that a gateway serves.

use super::{check_count, check_rates, check_vtep, is_host};
use crate::external::{seats_of, served};
use crate::{ConfigError, Limits, Place};
use plinth_ids::{Name, Vni};
use plinth_switch_api::{
    Binding, ExternalAddress, Forward, ForwardProtocol, GuestPort, NatGateway, Serves, SwitchConfig,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// What is wrong with a line, an external address or a NAT gateway.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ExternalError {
    #[error("line {line}: a line needs an underlay: configure one, or remove the line")]
    LineWithoutUnderlay { line: Name },
    #[error("line {line} is given twice: give each its own name")]
    LineTwice { line: Name },
    #[error("line {line}: next hop {next_hop} is not another machine's: use a unicast address")]
    NextHop { line: Name, next_hop: Ipv4Addr },
    #[error("{what}: line {line} is not configured: add it or name another")]
    LineUnknown { what: String, line: Name },
    #[error("{what}: {address} cannot be an external address: use a unicast one of no machine")]
    Address { what: String, address: Ipv4Addr },
    #[error("external address {address} is given twice: bind it once, to a NIC or a gateway")]
    AddressTwice { address: Ipv4Addr },
    #[error("{what}: vni {vni} is no vpc of this configuration: add the vpc")]
    VpcUnknown { what: String, vni: Vni },
    #[error("{what}: no port here has {nic} in vni {vni}: bind it where its NIC is")]
    NicUnknown { what: String, vni: Vni, nic: Ipv4Addr },
    #[error("external address {address}: add it to allowed of the port that carries it")]
    NotAllowed { address: Ipv4Addr },
    #[error("nat gateway {gateway} is given twice: give each its own name")]
    GatewayTwice { gateway: Name },
    #[error("nat gateway {gateway}: it has no address: give it at least one")]
    NoAddress { gateway: Name },
    #[error("nat gateway {gateway}: ports_per_nic {found} is out of range: use 64 to 64512")]
    PortsPerNic { gateway: Name, found: u16 },
    #[error(
        "nat gateway {gateway}: {found} NICs are more than the {seats} that have ports: add an address or lower ports_per_nic"
    )]
    TooFewPorts { gateway: Name, found: usize, seats: u32 },
    #[error(
        "nat gateway {gateway}: another one serves the same: keep one for each vpc, subnet and NIC"
    )]
    ServesTwice { gateway: Name },
    #[error("nat gateway {gateway}: vni {vni} has no subnet {subnet}: name one of its subnets")]
    SubnetUnknown { gateway: Name, vni: Vni, subnet: Name },
    #[error("nat gateway {gateway}: forward of {address}: it is no address of this gateway")]
    ForwardAddress { gateway: Name, address: Ipv4Addr },
    #[error(
        "nat gateway {gateway}: forward of ports {first} to {last}: use 1 to 65535, the first not above the last, and as many at the NIC"
    )]
    ForwardPorts { gateway: Name, first: u16, last: u16 },
    #[error(
        "nat gateway {gateway}: forward of ports {first} to {last} overlaps another of {address}: choose ports apart"
    )]
    ForwardOverlap { gateway: Name, address: Ipv4Addr, first: u16, last: u16 },
}

impl ExternalError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::LineWithoutUnderlay { .. } => "line-without-underlay",
            Self::LineTwice { .. } => "line-twice",
            Self::NextHop { .. } => "line-next-hop",
            Self::LineUnknown { .. } => "line-unknown",
            Self::Address { .. } => "external-address",
            Self::AddressTwice { .. } => "external-address-twice",
            Self::VpcUnknown { .. } => "external-vpc-unknown",
            Self::NicUnknown { .. } => "external-nic-unknown",
            Self::NotAllowed { .. } => "external-not-allowed",
            Self::GatewayTwice { .. } => "nat-gateway-twice",
            Self::NoAddress { .. } => "nat-no-address",
            Self::PortsPerNic { .. } => "nat-ports-per-nic",
            Self::TooFewPorts { .. } => "nat-too-few-ports",
            Self::ServesTwice { .. } => "nat-serves-twice",
            Self::SubnetUnknown { .. } => "nat-subnet-unknown",
            Self::ForwardAddress { .. } => "nat-forward-address",
            Self::ForwardPorts { .. } => "nat-forward-ports",
            Self::ForwardOverlap { .. } => "nat-forward-overlap",
        }
    }
}

pub(super) fn check(config: &SwitchConfig, limits: &Limits) -> Result<(), ConfigError> {
    let external = &config.external;
    let shared = external.gateways.iter().map(|gateway| gateway.addresses.len());
    let balanced = config.balancers.iter().filter(|balancer| balancer.line.is_some()).count();
    let count = external.addresses.len() + shared.sum::<usize>() + balanced;
    check_count("external addresses", count, limits.external_addresses.into())?;
    let mut checker = Checker::new(config);
    checker.lines()?;
    for given in &external.addresses {
        checker.address(given)?;
        let place = || Place::External { address: given.address };
        check_rates(&place, [&given.limits.outbound, &given.limits.inbound])?;
    }
    for gateway in &external.gateways {
        checker.gateway(gateway)?;
    }
    for balancer in &config.balancers {
        if let (Some(line), IpAddr::V4(address)) = (&balancer.line, balancer.address) {
            checker.take(&format!("balancer {}", balancer.name), address, line)?;
        }
    }
    Ok(())
}

struct Checker<'a> {
    config: &'a SwitchConfig,
    lines: BTreeSet<&'a Name>,
    taken: BTreeSet<Ipv4Addr>,
    gateways: BTreeSet<&'a Name>,
    served: Vec<(Vni, &'a Serves)>,
    nics: BTreeMap<(Vni, IpAddr), &'a GuestPort>,
}

impl<'a> Checker<'a> {
    fn new(config: &'a SwitchConfig) -> Self {
        let nics = config.ports.iter().flat_map(|port| {
            port.addresses.iter().map(move |&address| ((port.vni, address), port))
        });
        Self {
            config,
            lines: BTreeSet::new(),
            taken: BTreeSet::new(),
            gateways: BTreeSet::new(),
            served: Vec::new(),
            nics: nics.collect(),
        }
    }

    fn lines(&mut self) -> Result<(), ExternalError> {
        for line in &self.config.external.lines {
            let (name, next_hop) = (line.name.clone(), line.next_hop);
            let Some(underlay) = &self.config.underlay else {
                return Err(ExternalError::LineWithoutUnderlay { line: name });
            };
            if check_vtep(&Place::Underlay, next_hop).is_err() || next_hop == underlay.vtep {
                return Err(ExternalError::NextHop { line: name, next_hop });
            }
            if !self.lines.insert(&line.name) {
                return Err(ExternalError::LineTwice { line: name });
            }
        }
        Ok(())
    }

    /// Takes an address for one thing.
    fn take(&mut self, what: &str, address: Ipv4Addr, line: &Name) -> Result<(), ExternalError> {
        let external = &self.config.external;
        let is_machines = external.lines.iter().any(|line| line.next_hop == address)
            || self.config.underlay.as_ref().is_some_and(|underlay| underlay.vtep == address);
        let is_usable = crate::vpc::is_routable(address.into()) && is_host(address.into());
        if is_machines || !is_usable {
            return Err(ExternalError::Address { what: what.to_owned(), address });
        }
        if !self.lines.contains(line) {
            let (what, line) = (what.to_owned(), line.clone());
            return Err(ExternalError::LineUnknown { what, line });
        }
        if !self.taken.insert(address) {
            return Err(ExternalError::AddressTwice { address });
        }
        Ok(())
    }

    fn nic(&self, what: &str, vni: Vni, nic: Ipv4Addr) -> Result<&'a GuestPort, ExternalError> {
        if !self.config.vpcs.iter().any(|vpc| vpc.vni == vni) {
            return Err(ExternalError::VpcUnknown { what: what.to_owned(), vni });
        }
        let found = self.nics.get(&(vni, IpAddr::V4(nic))).copied();
        found.ok_or_else(|| ExternalError::NicUnknown { what: what.to_owned(), vni, nic })
    }

    fn address(&mut self, given: &ExternalAddress) -> Result<(), ExternalError> {
        let what = format!("external address {}", given.address);
        self.take(&what, given.address, &given.line)?;
        let port = self.nic(&what, given.vni, given.nic)?;
        let address = given.address;
        let is_allowed = port.allowed.iter().any(|range| range.contains(address.into()));
        if given.binding == Binding::Carried && !is_allowed {
            return Err(ExternalError::NotAllowed { address });
        }
        Ok(())
    }

    fn gateway(&mut self, given: &'a NatGateway) -> Result<(), ExternalError> {
        let gateway = || given.name.clone();
        let what = format!("nat gateway {}", given.name);
        if !self.gateways.insert(&given.name) {
            return Err(ExternalError::GatewayTwice { gateway: gateway() });
        }
        if given.addresses.is_empty() {
            return Err(ExternalError::NoAddress { gateway: gateway() });
        }
        for &address in &given.addresses {
            self.take(&what, address, &given.line)?;
        }
        if !(64..=64_512).contains(&given.ports_per_nic) {
            let found = given.ports_per_nic;
            return Err(ExternalError::PortsPerNic { gateway: gateway(), found });
        }
        let Some(vpc) = self.config.vpcs.iter().find(|vpc| vpc.vni == given.vni) else {
            return Err(ExternalError::VpcUnknown { what, vni: given.vni });
        };
        match &given.serves {
            Serves::Vpc => {}
            Serves::Nic(nic) => {
                self.nic(&what, given.vni, *nic)?;
            }
            Serves::Subnet(subnet) => {
                if !vpc.subnets.iter().any(|found| found.name == *subnet) {
                    let (vni, subnet) = (given.vni, subnet.clone());
                    return Err(ExternalError::SubnetUnknown { gateway: gateway(), vni, subnet });
                }
            }
        }
        if self.served.contains(&(given.vni, &given.serves)) {
            return Err(ExternalError::ServesTwice { gateway: gateway() });
        }
        self.served.push((given.vni, &given.serves));
        let (found, seats) = (served(self.config, given).count(), seats_of(given));
        if found > seats as usize {
            return Err(ExternalError::TooFewPorts { gateway: gateway(), found, seats });
        }
        self.forwards(given, &what)
    }

    fn forwards(&self, given: &NatGateway, what: &str) -> Result<(), ExternalError> {
        let mut ranges: Vec<(Ipv4Addr, ForwardProtocol, (u16, u16))> = Vec::new();
        for &Forward { address, protocol, ports: (first, last), nic, nic_port } in &given.forwards {
            let gateway = given.name.clone();
            if !given.addresses.contains(&address) {
                return Err(ExternalError::ForwardAddress { gateway, address });
            }
            let is_range = first > 0
                && first <= last
                && nic_port > 0
                && nic_port.checked_add(last - first).is_some();
            if !is_range {
                return Err(ExternalError::ForwardPorts { gateway, first, last });
            }
            self.nic(what, given.vni, nic)?;
            ranges.push((address, protocol, (first, last)));
        }
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            let [(address, protocol, (_, end)), (second, other, (first, last))] = *pair else {
                continue;
            };
            if address == second && protocol == other && first <= end {
                let gateway = given.name.clone();
                return Err(ExternalError::ForwardOverlap { gateway, address, first, last });
            }
        }
        Ok(())
    }
}
