// SPDX-License-Identifier: Apache-2.0
//! What the answers to guests must hold: VPCs and subnets that are there, names and addresses that
//! fit the messages in which they are told.

use super::{check_count, is_host};
use crate::{ConfigError, Limits};
use plinth_ids::{MacAddress, Name, Vni};
use plinth_switch_api::{SubnetDhcp, SwitchConfig, VpcDns};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Leaves room for a host's own label in a name of 253 bytes (RFC 1035, section 2.3.4).
const DOMAIN_MAX: usize = 189;
/// More would go unread: resolvers ask three.
const SERVERS_MAX: usize = 8;
/// As many as fit one option of DHCP.
const ROUTES_MAX: usize = 24;
const LEASE_MIN: u32 = 60;

/// What is wrong with what guests are to be told.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AnswersError {
    #[error("{what}: vni {vni} is no vpc of this configuration: add the vpc")]
    VpcUnknown { what: &'static str, vni: Vni },
    #[error("dns of vni {vni} is given twice: give each vpc its own")]
    DnsTwice { vni: Vni },
    #[error("{what}: {domain:?} is no domain: use labels of a-z, 0-9 and - with dots between")]
    Domain { what: &'static str, domain: String },
    #[error("dns of vni {vni}: {upstream} cannot be asked: use a unicast address and a port")]
    Upstream { vni: Vni, upstream: SocketAddr },
    #[error("dhcp: vni {vni} has no subnet {subnet}: name one of its subnets")]
    SubnetUnknown { vni: Vni, subnet: Name },
    #[error("dhcp of vni {vni}, subnet {subnet}, is given twice: give each subnet its own")]
    DhcpTwice { vni: Vni, subnet: Name },
    #[error("dhcp of subnet {subnet}: a lease of {found} s is too short: use {LEASE_MIN} or more")]
    Lease { subnet: Name, found: u32 },
    #[error("dhcp of subnet {subnet}: {address} is no server's: use a unicast address")]
    Server { subnet: Name, address: IpAddr },
    #[error("dhcp of subnet {subnet}: {gateway} is no address of it: routes lead to a NIC of it")]
    RouteGateway { subnet: Name, gateway: Ipv4Addr },
    #[error("metadata of vni {vni} is given twice: name each vpc once")]
    MetadataTwice { vni: Vni },
    #[error("{mac} in vni {vni} has two names: give each NIC one")]
    NameTwice { vni: Vni, mac: MacAddress },
}

impl AnswersError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::VpcUnknown { .. } => "answers-vpc-unknown",
            Self::DnsTwice { .. } => "dns-twice",
            Self::Domain { .. } => "domain",
            Self::Upstream { .. } => "dns-upstream",
            Self::SubnetUnknown { .. } => "dhcp-subnet-unknown",
            Self::DhcpTwice { .. } => "dhcp-twice",
            Self::Lease { .. } => "dhcp-lease",
            Self::Server { .. } => "dhcp-server",
            Self::RouteGateway { .. } => "dhcp-route-gateway",
            Self::MetadataTwice { .. } => "metadata-twice",
            Self::NameTwice { .. } => "host-name-twice",
        }
    }
}

pub(super) fn check(config: &SwitchConfig, limits: &Limits) -> Result<(), ConfigError> {
    let vpcs: BTreeMap<Vni, _> = config.vpcs.iter().map(|vpc| (vpc.vni, vpc)).collect();
    let answers = &config.answers;
    let mut zones = BTreeSet::new();
    for dns in &answers.dns {
        if !vpcs.contains_key(&dns.vni) {
            return Err(AnswersError::VpcUnknown { what: "dns", vni: dns.vni }.into());
        }
        if !zones.insert(dns.vni) {
            return Err(AnswersError::DnsTwice { vni: dns.vni }.into());
        }
        check_dns(dns)?;
    }
    let mut told = BTreeSet::new();
    for &vni in &answers.metadata {
        if !vpcs.contains_key(&vni) {
            return Err(AnswersError::VpcUnknown { what: "metadata", vni }.into());
        }
        if !told.insert(vni) {
            return Err(AnswersError::MetadataTwice { vni }.into());
        }
    }
    let mut subnets = BTreeSet::new();
    for dhcp in &answers.dhcp {
        let (vni, subnet) = (dhcp.vni, &dhcp.subnet);
        let vpc = vpcs.get(&vni).ok_or(AnswersError::VpcUnknown { what: "dhcp", vni })?;
        let known = vpc.subnets.iter().find(|known| known.name == *subnet);
        let unknown = || AnswersError::SubnetUnknown { vni, subnet: subnet.clone() };
        let known = known.ok_or_else(unknown)?;
        if !subnets.insert((vni, subnet)) {
            return Err(AnswersError::DhcpTwice { vni, subnet: subnet.clone() }.into());
        }
        let is_of_subnet = |address: Ipv4Addr| {
            known.prefixes.iter().any(|range| range.prefix.contains(address.into()))
        };
        check_dhcp(dhcp, is_of_subnet)?;
    }
    let nics = usize::from(limits.ports) + limits.remotes as usize;
    check_count("host names", answers.names.len(), nics)?;
    let mut named = BTreeSet::new();
    for host in &answers.names {
        let (vni, mac) = (host.vni, host.mac);
        if !named.insert((vni, mac)) {
            return Err(AnswersError::NameTwice { vni, mac }.into());
        }
    }
    Ok(())
}

fn check_dns(dns: &VpcDns) -> Result<(), ConfigError> {
    check_domain("dns", &dns.zone)?;
    check_count("dns upstreams", dns.upstreams.len(), SERVERS_MAX)?;
    for &upstream in &dns.upstreams {
        if !is_host(upstream.ip()) || upstream.port() == 0 {
            return Err(AnswersError::Upstream { vni: dns.vni, upstream }.into());
        }
    }
    Ok(())
}

fn check_dhcp(
    dhcp: &SubnetDhcp,
    is_of_subnet: impl Fn(Ipv4Addr) -> bool,
) -> Result<(), ConfigError> {
    let subnet = || dhcp.subnet.clone();
    if dhcp.lease_seconds < LEASE_MIN {
        let found = dhcp.lease_seconds;
        return Err(AnswersError::Lease { subnet: subnet(), found }.into());
    }
    if let Some(domain) = &dhcp.domain {
        check_domain("dhcp", domain)?;
    }
    check_count("dns servers of a subnet", dhcp.dns.len(), SERVERS_MAX)?;
    check_count("time servers of a subnet", dhcp.ntp.len(), SERVERS_MAX)?;
    check_count("dhcp routes of a subnet", dhcp.routes.len(), ROUTES_MAX)?;
    let time = dhcp.ntp.iter().map(|&address| IpAddr::V4(address));
    if let Some(address) = dhcp.dns.iter().copied().chain(time).find(|&one| !is_host(one)) {
        return Err(AnswersError::Server { subnet: subnet(), address }.into());
    }
    let strays = dhcp.routes.iter().map(|route| route.gateway);
    if let Some(gateway) = strays.into_iter().find(|&gateway| !is_of_subnet(gateway)) {
        return Err(AnswersError::RouteGateway { subnet: subnet(), gateway }.into());
    }
    Ok(())
}

/// Labels as a [`Name`] is one, with dots between.
fn check_domain(what: &'static str, domain: &str) -> Result<(), AnswersError> {
    let is_right =
        domain.len() <= DOMAIN_MAX && domain.split('.').all(|label| label.parse::<Name>().is_ok());
    if is_right { Ok(()) } else { Err(AnswersError::Domain { what, domain: domain.to_owned() }) }
}
