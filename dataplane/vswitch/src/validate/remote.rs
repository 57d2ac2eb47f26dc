// SPDX-License-Identifier: Apache-2.0
//! What one remote must hold beside all that is in force: the same as the whole configuration's
//! check asks of it, found by look-ups instead of a walk over every NIC.

use super::vpc::{Subnets, check_allowed};
use super::{check_address_count, check_count, check_mac, check_remote, is_host, security};
use crate::snapshot::{Destination, Snapshot};
use crate::{BalancerError, ConfigError, Limits, Place, VpcError};
use plinth_ids::Vni;
use plinth_switch_api::{Balancer, NextHop, Remote, SwitchConfig, Vpc};
use plinth_wire::link_local_of;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What remotes are judged against and do not change: made once for many edits.
pub(crate) struct Surroundings<'a> {
    config: &'a SwitchConfig,
    subnets: Subnets<'a>,
    vpcs: BTreeMap<Vni, &'a Vpc>,
    balancers: BTreeMap<(Vni, IpAddr), &'a Balancer>,
    backends: BTreeSet<(Vni, IpAddr)>,
    next_hops: BTreeSet<(Vni, IpAddr)>,
}

impl<'a> Surroundings<'a> {
    /// `config` has been checked; its remotes are not looked at.
    pub(crate) fn of(config: &'a SwitchConfig) -> Self {
        let inner = config.balancers.iter().filter(|given| given.line.is_none());
        let backends = config.balancers.iter().flat_map(|balancer| {
            let backends = balancer.listeners.iter().flat_map(|listener| &listener.backends);
            backends.map(|backend| (balancer.vni, backend.address))
        });
        let next_hops = config.vpcs.iter().flat_map(|vpc| {
            let hops = vpc.routes.iter().filter_map(|route| match route.next_hop {
                NextHop::Address(address) => Some(address),
                NextHop::Peer(_) | NextHop::External | NextHop::Blackhole => None,
            });
            hops.map(|hop| (vpc.vni, hop))
        });
        Self {
            config,
            subnets: Subnets::of(config),
            vpcs: config.vpcs.iter().map(|vpc| (vpc.vni, vpc)).collect(),
            balancers: inner.map(|given| ((given.vni, given.address), given)).collect(),
            backends: backends.collect(),
            next_hops: next_hops.collect(),
        }
    }

    /// Whether connections of a balancer go to it.
    pub(crate) fn is_backend(&self, remote: &Remote) -> bool {
        is_among(remote, &self.backends)
    }

    /// Whether a route leads to it what is for others.
    pub(crate) fn is_next_hop(&self, remote: &Remote) -> bool {
        is_among(remote, &self.next_hops)
    }

    /// Checks `remote`, which is to replace the one of its VNI and MAC in `draft`, or to be added.
    pub(crate) fn check(
        &self,
        draft: &Snapshot,
        remote: &Remote,
        limits: &Limits,
    ) -> Result<(), ConfigError> {
        let (vni, mac) = (remote.vni, remote.mac);
        let place = Place::RemoteNic { vni, mac };
        if draft.remotes.get(&(vni, mac)).is_none() {
            check_count("remotes", draft.remotes.len() + 1, limits.remotes as usize)?;
        }
        check_remote(&place, remote, self.config.underlay.as_ref())?;
        check_address_count(&place, remote.addresses.len(), limits)?;
        self.subnets.check_nic(&place, vni, remote.subnet.as_ref(), &remote.addresses)?;
        check_allowed(&place, &remote.allowed, &limits.vpc)?;
        security::check_list(&place, &remote.security_groups, &limits.vpc)?;
        check_owner(draft, &place, remote)?;
        self.check_router(&place, remote)?;
        let taken = remote.addresses.iter().find_map(|&at| self.balancers.get(&(vni, at)));
        match taken {
            None => Ok(()),
            Some(balancer) => {
                let (name, address) = (balancer.name.clone(), balancer.address);
                Err(BalancerError::AddressTaken { balancer: name, vni, address }.into())
            }
        }
    }

    /// Nothing of a router may be the NIC's.
    fn check_router(&self, place: &Place, remote: &Remote) -> Result<(), VpcError> {
        let Some(vpc) = self.vpcs.get(&remote.vni) else { return Ok(()) };
        let own = IpAddr::V6(link_local_of(remote.mac));
        let has = |address| address == own || remote.addresses.contains(&address);
        let link_local = IpAddr::V6(link_local_of(vpc.router_mac));
        if remote.mac == vpc.router_mac || has(link_local) {
            let (name, mac, owner) = (vpc.name.clone(), vpc.router_mac, place.clone());
            return Err(VpcError::RouterMacTaken { vpc: name, mac, owner });
        }
        for subnet in &vpc.subnets {
            let mut gateways = subnet.prefixes.iter().map(|given| given.gateway);
            if let Some(gateway) = gateways.find(|&gateway| has(gateway)) {
                let (name, subnet) = (vpc.name.clone(), subnet.name.clone());
                let owner = place.clone();
                return Err(VpcError::GatewayTaken { vpc: name, subnet, gateway, owner });
            }
        }
        Ok(())
    }
}

fn is_among(remote: &Remote, all: &BTreeSet<(Vni, IpAddr)>) -> bool {
    let link_local = IpAddr::V6(link_local_of(remote.mac));
    let mut addresses = remote.addresses.iter().chain([&link_local]);
    addresses.any(|&address| all.contains(&(remote.vni, address)))
}

/// Its MAC and addresses must be nobody else's in the VPC.
fn check_owner(draft: &Snapshot, place: &Place, remote: &Remote) -> Result<(), ConfigError> {
    let Remote { vni, mac, ref addresses, .. } = *remote;
    if vni.get() == 0 {
        return Err(ConfigError::VniZero { place: place.clone() });
    }
    check_mac(place, mac)?;
    if let Some(Destination::Local(index)) = draft.destination(vni, mac) {
        let first = port_place(draft, index);
        return Err(ConfigError::MacTwice { vni, mac, first, second: place.clone() });
    }
    let twice = |address, first| {
        Err(ConfigError::AddressTwice { vni, address, first, second: place.clone() })
    };
    for (before, &address) in addresses.iter().enumerate() {
        if !is_host(address) || address.is_loopback() {
            return Err(ConfigError::Address { place: place.clone(), address });
        }
        if addresses[..before].contains(&address) {
            return twice(address, place.clone());
        }
    }
    for &address in addresses.iter().chain([&IpAddr::V6(link_local_of(mac))]) {
        match draft.owner(vni, address) {
            Some(owner) if owner.mac != mac => {
                let first = match owner.destination {
                    Destination::Local(index) => port_place(draft, index),
                    Destination::Remote(_) => Place::RemoteNic { vni, mac: owner.mac },
                };
                return twice(address, first);
            }
            _ => {}
        }
    }
    Ok(())
}

fn port_place(draft: &Snapshot, index: crate::PortIndex) -> Place {
    let port = draft.port(index).expect("a destination is a port of the same tables");
    Place::Port { id: port.id, name: port.name.clone() }
}
