// SPDX-License-Identifier: Apache-2.0
//! What a configuration must hold before anything is compiled from it.
//!
//! Every check names the place and the remedy; the first fault found is the one that is said.

mod answers;
mod balance;
mod external;
mod remote;
mod security;
mod vpc;

pub use answers::AnswersError;
pub use balance::BalancerError;
pub use external::ExternalError;
pub(crate) use remote::Surroundings;
pub use security::{RulePlace, SecurityError};
pub use vpc::VpcError;

use crate::snapshot::TUNNEL_MTU_OVERHEAD;
use crate::{ConfigError, Limits, Place, Snapshot};
use plinth_ids::{MacAddress, PortId, Vni};
use plinth_switch_api::{
    BITS_PER_SECOND, CONFIG_VERSION, GuestPort, PACKETS_PER_SECOND, PortLimits, RateLimit, Remote,
    SwitchConfig, UPLINK, Underlay, WEIGHT_MAX,
};
use plinth_wire::link_local_of;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, Ipv4Addr};

/// The least IPv4 packet that every host takes (RFC 791, section 3.2).
pub(crate) const GUEST_MTU_MIN: u16 = 576;
/// The longest frame that a virtio queue carries is 64 KiB with its headers.
pub(crate) const GUEST_MTU_MAX: u16 = 65_000;
pub(crate) const UNDERLAY_MTU_MIN: u16 = GUEST_MTU_MIN + TUNNEL_MTU_OVERHEAD;
const QUEUE_PAIRS_MAX: u16 = 8;

/// Checks `config`, which is to replace `in_force`.
pub(crate) fn validate(
    config: &SwitchConfig,
    limits: &Limits,
    in_force: &Snapshot,
) -> Result<(), ConfigError> {
    if config.version != CONFIG_VERSION {
        return Err(ConfigError::Version { found: config.version });
    }
    check_epoch(config, in_force)?;
    check_count("ports", config.ports.len(), limits.ports.into())?;
    check_count("remotes", config.remotes.len(), limits.remotes as usize)?;
    if let Some(underlay) = &config.underlay {
        check_underlay(underlay)?;
    }
    check_port_names(&config.ports)?;
    vpc::check(config, &limits.vpc)?;
    let groups = security::Groups::check(config, &limits.vpc)?;
    let subnets = vpc::Subnets::of(config);
    let mut owners = Owners::default();
    for port in &config.ports {
        let place = place_of(port);
        check_port(port, config.underlay.as_ref())?;
        check_address_count(&place, port.addresses.len(), limits)?;
        subnets.check_nic(&place, port.vni, port.subnet.as_ref(), &port.addresses)?;
        vpc::check_allowed(&place, &port.allowed, &limits.vpc)?;
        if let Some(list) = &port.security_groups {
            groups.check_port(&place, list, &limits.vpc)?;
        }
        owners.add(&place, port.vni, port.mac, &port.addresses)?;
    }
    for (index, remote) in config.remotes.iter().enumerate() {
        let place = Place::Remote { index };
        check_remote(&place, remote, config.underlay.as_ref())?;
        check_address_count(&place, remote.addresses.len(), limits)?;
        subnets.check_nic(&place, remote.vni, remote.subnet.as_ref(), &remote.addresses)?;
        vpc::check_allowed(&place, &remote.allowed, &limits.vpc)?;
        security::check_list(&place, &remote.security_groups, &limits.vpc)?;
        owners.add(&place, remote.vni, remote.mac, &remote.addresses)?;
    }
    vpc::check_owners(config, &owners)?;
    answers::check(config, limits)?;
    balance::check(config, limits)?;
    external::check(config, limits)
}

fn place_of(port: &GuestPort) -> Place {
    Place::Port { id: port.id, name: port.name.clone() }
}

fn check_epoch(config: &SwitchConfig, in_force: &Snapshot) -> Result<(), ConfigError> {
    let Some(in_force_epoch) = in_force.epoch() else { return Ok(()) };
    if config.epoch < in_force_epoch {
        return Err(ConfigError::EpochBackwards { found: config.epoch, in_force: in_force_epoch });
    }
    if config.epoch == in_force_epoch && !in_force.is_of(config) {
        return Err(ConfigError::EpochReused { epoch: config.epoch });
    }
    Ok(())
}

pub(crate) fn check_count(
    what: &'static str,
    found: usize,
    limit: usize,
) -> Result<(), ConfigError> {
    if found > limit { Err(ConfigError::TooMany { what, found, limit }) } else { Ok(()) }
}

fn check_address_count(place: &Place, found: usize, limits: &Limits) -> Result<(), ConfigError> {
    let limit = usize::from(limits.addresses_per_nic);
    if found > limit {
        return Err(ConfigError::TooManyAddresses { place: place.clone(), found, limit });
    }
    Ok(())
}

/// Ids and sockets are one port's alone.
fn check_port_names(ports: &[GuestPort]) -> Result<(), ConfigError> {
    let mut ids: BTreeMap<PortId, &GuestPort> = BTreeMap::new();
    let mut sockets = BTreeMap::new();
    for port in ports {
        if port.id == UPLINK {
            return Err(ConfigError::PortIdReserved { name: port.name.clone() });
        }
        if let Some(first) = ids.insert(port.id, port) {
            let (first, second) = (first.name.clone(), port.name.clone());
            return Err(ConfigError::PortIdTwice { id: port.id, first, second });
        }
        if let Some(first) = sockets.insert(&port.socket, port.id) {
            let path = port.socket.clone();
            return Err(ConfigError::SocketTwice { path, first, second: port.id });
        }
    }
    Ok(())
}

fn check_port(port: &GuestPort, underlay: Option<&Underlay>) -> Result<(), ConfigError> {
    let mtu = port.mtu;
    check_mtu(&place_of(port), mtu, GUEST_MTU_MIN, GUEST_MTU_MAX)?;
    if let Some(underlay) = underlay
        && u32::from(mtu) + u32::from(TUNNEL_MTU_OVERHEAD) > u32::from(underlay.mtu)
    {
        let (place, underlay) = (place_of(port), underlay.mtu);
        return Err(ConfigError::MtuExceedsUnderlay { place, mtu, underlay });
    }
    if !(1..=QUEUE_PAIRS_MAX).contains(&port.queue_pairs) {
        return Err(ConfigError::QueuePairs { place: place_of(port), found: port.queue_pairs });
    }
    check_limits(port)
}

fn check_limits(port: &GuestPort) -> Result<(), ConfigError> {
    let PortLimits { outbound, inbound, weight } = &port.limits;
    let place = || place_of(port);
    check_rates(&place, [outbound, inbound])?;
    check_range(&place, "weight", weight.map(u64::from), (1, WEIGHT_MAX.into()))
}

pub(super) fn check_rates(
    place: &dyn Fn() -> Place,
    limits: [&RateLimit; 2],
) -> Result<(), ConfigError> {
    for limit in limits {
        check_range(place, "bits_per_second", limit.bits_per_second, BITS_PER_SECOND)?;
        check_range(place, "packets_per_second", limit.packets_per_second, PACKETS_PER_SECOND)?;
        check_range(place, "bits_burst", limit.bits_burst, (1, BITS_PER_SECOND.1))?;
        check_range(place, "packets_burst", limit.packets_burst, (1, PACKETS_PER_SECOND.1))?;
    }
    Ok(())
}

fn check_range(
    place: &dyn Fn() -> Place,
    what: &'static str,
    value: Option<u64>,
    (least, most): (u64, u64),
) -> Result<(), ConfigError> {
    match value {
        Some(found) if !(least..=most).contains(&found) => {
            Err(ConfigError::Limit { place: place(), what, found, least, most })
        }
        _ => Ok(()),
    }
}

fn check_mtu(place: &Place, mtu: u16, least: u16, most: u16) -> Result<(), ConfigError> {
    if (least..=most).contains(&mtu) {
        return Ok(());
    }
    Err(ConfigError::Mtu { place: place.clone(), mtu, least, most })
}

fn check_mac(place: &Place, mac: MacAddress) -> Result<(), ConfigError> {
    if mac.is_multicast() || mac == MacAddress([0; 6]) {
        return Err(ConfigError::Mac { place: place.clone(), mac });
    }
    Ok(())
}

fn check_underlay(underlay: &Underlay) -> Result<(), ConfigError> {
    let place = Place::Underlay;
    check_mac(&place, underlay.mac)?;
    check_vtep(&place, underlay.vtep)?;
    check_mtu(&place, underlay.mtu, UNDERLAY_MTU_MIN, u16::MAX)?;
    if !(1..=32).contains(&underlay.prefix_length) {
        return Err(ConfigError::PrefixLength { found: underlay.prefix_length });
    }
    if let Some(gateway) = underlay.gateway {
        let vtep = underlay.vtep;
        let is_usable =
            gateway != vtep && is_within(gateway, underlay) && check_vtep(&place, gateway).is_ok();
        if !is_usable {
            return Err(ConfigError::Gateway { gateway, vtep });
        }
    }
    Ok(())
}

fn check_vtep(place: &Place, vtep: Ipv4Addr) -> Result<(), ConfigError> {
    if is_host(vtep.into()) && !vtep.is_loopback() {
        return Ok(());
    }
    Err(ConfigError::Vtep { place: place.clone(), vtep })
}

fn check_remote(
    place: &Place,
    remote: &Remote,
    underlay: Option<&Underlay>,
) -> Result<(), ConfigError> {
    let (place, vtep) = (place.clone(), remote.vtep);
    let Some(underlay) = underlay else {
        return Err(ConfigError::RemoteWithoutUnderlay { place });
    };
    check_vtep(&place, vtep)?;
    if vtep == underlay.vtep {
        return Err(ConfigError::RemoteIsLocal { place, vtep });
    }
    if underlay.gateway.is_none() && !is_within(vtep, underlay) {
        return Err(ConfigError::NoRoute { place, vtep });
    }
    Ok(())
}

/// Whether `address` is reached without the gateway.
pub(crate) fn is_within(address: Ipv4Addr, underlay: &Underlay) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(underlay.prefix_length)).unwrap_or(0);
    (address.to_bits() ^ underlay.vtep.to_bits()) & mask == 0
}

/// Whether one interface can have this address.
pub(crate) fn is_host(address: IpAddr) -> bool {
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
}

/// Who has which MAC and which address, VPC by VPC.
#[derive(Default)]
struct Owners {
    macs: BTreeMap<(Vni, MacAddress), Place>,
    addresses: BTreeMap<(Vni, IpAddr), Place>,
}

impl Owners {
    fn add(
        &mut self,
        place: &Place,
        vni: Vni,
        mac: MacAddress,
        addresses: &[IpAddr],
    ) -> Result<(), ConfigError> {
        if vni.get() == 0 {
            return Err(ConfigError::VniZero { place: place.clone() });
        }
        check_mac(place, mac)?;
        if let Some(first) = self.macs.insert((vni, mac), place.clone()) {
            return Err(ConfigError::MacTwice { vni, mac, first, second: place.clone() });
        }
        for &address in addresses {
            if !is_host(address) || address.is_loopback() {
                return Err(ConfigError::Address { place: place.clone(), address });
            }
            self.add_address(place, vni, address)?;
        }
        // Every NIC has this address without being told, so another may not have it.
        let link_local = IpAddr::V6(link_local_of(mac));
        if addresses.contains(&link_local) {
            return Ok(());
        }
        self.add_address(place, vni, link_local)
    }

    fn add_address(&mut self, place: &Place, vni: Vni, address: IpAddr) -> Result<(), ConfigError> {
        match self.addresses.entry((vni, address)) {
            Entry::Vacant(vacant) => {
                vacant.insert(place.clone());
                Ok(())
            }
            Entry::Occupied(first) => Err(ConfigError::AddressTwice {
                vni,
                address,
                first: first.get().clone(),
                second: place.clone(),
            }),
        }
    }
}
