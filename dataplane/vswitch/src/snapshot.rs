// SPDX-License-Identifier: Apache-2.0
//! A configuration, checked and compiled into the tables that packets are judged by.
//!
//! Every table is keyed by VNI first. That is the isolation of VPCs: a stage has the VNI of the
//! packet's port or tunnel in hand, and there is no lookup that could answer for another one.

use crate::balance::BalancerTables;
use crate::external::ExternalTables;
use crate::lookup::Lookup;
use crate::questions::{Answered, AnswersIndex};
use crate::security::{GroupSet, SecurityBuilder, SecurityTables};
use crate::stamps::Stamps;
use crate::validate::{check_count, is_host, is_within, validate};
use crate::vpc::{SubnetIndex, VpcTables, is_routable};
use crate::{ConfigError, Limits, PortIndex};
use plinth_ids::{Epoch, MacAddress, Name, PortId, Prefix, Vni};
use plinth_switch_api::{
    Backend, Balancer, GuestPort, Listener, PortLimits, RateLimit, Remote, SwitchConfig,
};
use plinth_wire::{EthernetHeader, TUNNEL_OVERHEAD, TunnelHeaders, link_local_of};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// What a tunnel adds to a guest's IP packet, in bytes of the underlay's IP packet: the outer
/// Ethernet header does not count, the inner one does.
pub(crate) const TUNNEL_MTU_OVERHEAD: u16 = 50;
const _: () = assert!(TUNNEL_MTU_OVERHEAD as usize == TUNNEL_OVERHEAD);

/// [`EthernetHeader::LENGTH`], in the type in which frame lengths are kept.
const ETHERNET_LENGTH: u32 = 14;
const _: () = assert!(ETHERNET_LENGTH as usize == EthernetHeader::LENGTH);

/// What became of a port when a configuration was put into force.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PortChange {
    /// Close it. Removals come before additions, which may take over the index.
    Removed { id: PortId, index: PortIndex },
    /// Open it: socket, queues.
    Added { id: PortId, index: PortIndex },
    /// Its settings are others. A driver looks at socket, MTU, MAC and queue count; the rest is
    /// the machine's.
    Changed { id: PortId, index: PortIndex },
}

/// Where frames for a MAC go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Destination {
    Local(PortIndex),
    Remote(TunnelIndex),
}

/// A remote VTEP's place in [`Snapshot::tunnels`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TunnelIndex(pub(crate) u32);

/// Who answers for an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Owner {
    pub(crate) mac: MacAddress,
    pub(crate) destination: Destination,
    /// Of the NIC, for rules that name a group as peer.
    pub(crate) groups: GroupSet,
}

/// A guest port as the stages see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Port {
    pub(crate) id: PortId,
    pub(crate) name: Name,
    pub(crate) vni: Vni,
    pub(crate) mac: MacAddress,
    pub(crate) addresses: Box<[IpAddr]>,
    /// What the guest makes of its MAC by itself; it is the guest's without being configured.
    pub(crate) link_local: Ipv6Addr,
    pub(crate) frame_length_max: u32,
    pub(crate) subnet: Option<SubnetIndex>,
    /// `None`: not filtered.
    pub(crate) groups: Option<GroupSet>,
    /// Ranges that the guest may speak from beside its addresses.
    pub(crate) allowed: Box<[Prefix]>,
    pub(crate) limits: PortLimits,
    /// Which of its guest's questions are answered beside the worker.
    pub(crate) answered: Answered,
}

impl Port {
    fn new(
        port: &GuestPort,
        subnet: Option<SubnetIndex>,
        groups: Option<GroupSet>,
        answered: Answered,
    ) -> Self {
        Self {
            id: port.id,
            name: port.name.clone(),
            vni: port.vni,
            mac: port.mac,
            addresses: port.addresses.clone().into(),
            link_local: link_local_of(port.mac),
            frame_length_max: u32::from(port.mtu) + ETHERNET_LENGTH,
            subnet,
            groups,
            allowed: port.allowed.clone().into(),
            limits: port.limits,
            answered,
        }
    }

    /// Whether security groups judge its connections.
    #[allow(dead_code, reason = "the stages that route and filter take it up")]
    pub(crate) const fn is_filtered(&self) -> bool {
        self.groups.is_some()
    }

    /// Whether the guest may call itself so.
    pub(crate) fn has_address(&self, address: IpAddr) -> bool {
        address == IpAddr::V6(self.link_local)
            || self.addresses.contains(&address)
            || self.is_allowed(address)
    }

    /// Whether the guest may speak from `address` for somebody else. A range never makes
    /// something a source that is no host's.
    fn is_allowed(&self, address: IpAddr) -> bool {
        self.allowed.iter().any(|prefix| prefix.contains(address))
            && is_host(address)
            && is_routable(address)
    }
}

/// The way to one remote VTEP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Tunnel {
    pub(crate) vtep: Ipv4Addr,
    /// For an inner frame of no bytes; what differs between frames is written over it.
    pub(crate) headers: TunnelHeaders,
    /// Place in [`UplinkTables::next_hops`].
    pub(crate) next_hop: u16,
}

fn headers_to(mac: MacAddress, own: Ipv4Addr, vtep: Ipv4Addr) -> TunnelHeaders {
    let vni = Vni::new(0).expect("0 fits 24 bits");
    TunnelHeaders::new((mac, MacAddress::default()), (own, vtep), vni, 0, 0)
}

/// The switch's own end of the tunnels.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct UplinkTables {
    pub(crate) vtep: Ipv4Addr,
    pub(crate) mac: MacAddress,
    /// Of the outer frame.
    pub(crate) frame_length_max: u32,
    /// Whom to ask for a MAC, in order: VTEPs inside the prefix, and the gateway if one is
    /// outside.
    pub(crate) next_hops: Box<[Ipv4Addr]>,
}

/// Who may send for a VNI, and the way back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SenderVtep {
    pub(crate) tunnel: TunnelIndex,
    /// NICs of the VNI that are behind it.
    pub(crate) nics: u32,
}

/// One configuration, immutable. Compiled on any thread, shared with workers. One that differs in
/// a few remotes shares nearly everything with the one before it.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(crate) epoch: Option<Epoch>,
    /// The configuration without its remotes; its epoch is that of the last one compiled.
    pub(crate) settings: Option<Arc<SwitchConfig>>,
    pub(crate) remotes: Lookup<(Vni, MacAddress), Arc<Remote>>,
    pub(crate) changes: Vec<PortChange>,
    /// Whether guests who ask are told what the snapshot told that it was made of.
    pub(crate) tells_as_before: bool,
    /// NICs with a host name.
    pub(crate) named: Lookup<(Vni, MacAddress), ()>,
    /// Which flows it may concern.
    pub(crate) stamps: Arc<Stamps>,
    /// By [`PortIndex`]; the uplink's place is empty.
    slots: Arc<[Option<Port>]>,
    indexes: Arc<BTreeMap<PortId, PortIndex>>,
    pub(crate) uplink: Option<UplinkTables>,
    /// In order of VTEP.
    pub(crate) tunnels: Arc<[Tunnel]>,
    /// Whether any port has a rate that it is held to.
    pub(crate) has_limits: bool,
    /// VNIs with a port here.
    vnis: Lookup<Vni, ()>,
    /// Which VTEPs may send for a VNI, and the way back to them.
    pub(crate) vteps: Lookup<(Vni, Ipv4Addr), SenderVtep>,
    pub(crate) macs: Lookup<(Vni, MacAddress), Destination>,
    pub(crate) addresses: Lookup<(Vni, IpAddr), Owner>,
    pub(crate) vpcs: Lookup<Vni, VpcTables>,
    pub(crate) security: Arc<SecurityTables>,
    pub(crate) external: Arc<ExternalTables>,
    pub(crate) balancers: Arc<BalancerTables>,
}

/// The configuration without its remotes.
fn settings_of(config: &SwitchConfig) -> SwitchConfig {
    SwitchConfig {
        version: config.version,
        epoch: config.epoch,
        underlay: config.underlay.clone(),
        ports: config.ports.clone(),
        remotes: Vec::new(),
        vpcs: config.vpcs.clone(),
        security_groups: config.security_groups.clone(),
        external: config.external.clone(),
        balancers: config.balancers.clone(),
        answers: config.answers.clone(),
    }
}

impl Snapshot {
    /// Checks `config` and compiles it, upon `previous`, which is in force: ports that stay keep
    /// their index.
    ///
    /// # Errors
    /// The first fault found, by place and remedy.
    pub fn compile(
        config: &SwitchConfig,
        limits: &Limits,
        previous: &Self,
    ) -> Result<Self, ConfigError> {
        Self::compile_with(config, limits, previous, |_, _, _| false)
    }

    /// Like [`Self::compile`], but that backends of which `is_unfit` says so get no new
    /// connections.
    ///
    /// # Errors
    /// The first fault found, by place and remedy.
    pub fn compile_with(
        config: &SwitchConfig,
        limits: &Limits,
        previous: &Self,
        is_unfit: impl Fn(&Balancer, &Listener, &Backend) -> bool,
    ) -> Result<Self, ConfigError> {
        validate(config, limits, previous)?;
        let mut stamps = previous.stamps.next();
        stamps.stamp_everything();
        let mut snapshot = Self {
            epoch: Some(config.epoch),
            stamps: Arc::new(stamps),
            settings: Some(Arc::new(settings_of(config))),
            ..Self::default()
        };
        snapshot.vpcs = config.vpcs.iter().map(|vpc| (vpc.vni, VpcTables::new(vpc))).collect();
        let mut security = SecurityBuilder::new(&config.security_groups);
        snapshot.place_ports(config, previous, &mut security);
        snapshot.lay_tunnels(config, limits)?;
        snapshot.fill_tables(config, &mut security);
        snapshot.security = Arc::new(security.finish());
        snapshot.has_limits = config.ports.iter().any(|port| {
            let PortLimits { outbound, inbound, .. } = port.limits;
            [outbound, inbound].iter().any(|limit| *limit != RateLimit::NONE)
        });
        snapshot.open_lines(config, previous);
        let owner = |vni, address| snapshot.owner(vni, address);
        let balancers = BalancerTables::new(config, &previous.balancers, owner, is_unfit);
        snapshot.balancers = Arc::new(balancers);
        Ok(snapshot)
    }

    /// Gives every port its slot: the one it had, or the lowest that is free.
    fn place_ports<'a>(
        &mut self,
        config: &'a SwitchConfig,
        previous: &'a Self,
        security: &mut SecurityBuilder,
    ) {
        let by_id = |config: &'a SwitchConfig| -> BTreeMap<PortId, &'a GuestPort> {
            config.ports.iter().map(|port| (port.id, port)).collect()
        };
        let wanted = by_id(config);
        let before = previous.settings.as_deref().map(by_id).unwrap_or_default();
        let answers = AnswersIndex::new(config);
        let mut slots = previous.slots.to_vec();
        let mut indexes = BTreeMap::new();
        for (slot, index) in slots.iter_mut().zip(0..) {
            let Some(id) = slot.as_ref().map(|port| port.id) else { continue };
            if !wanted.contains_key(&id) {
                *slot = None;
                self.changes.push(PortChange::Removed { id, index: PortIndex(index) });
            }
        }
        if slots.is_empty() {
            slots.push(None);
        }
        let mut free = 1;
        for (id, port) in wanted {
            let index = match previous.indexes.get(&id) {
                Some(&index) => {
                    if before.get(&id) != Some(&port) {
                        self.changes.push(PortChange::Changed { id, index });
                    }
                    index
                }
                None => {
                    while slots.get(free).is_some_and(Option::is_some) {
                        free += 1;
                    }
                    let free = u16::try_from(free).expect("ports are limited to 65535");
                    self.changes.push(PortChange::Added { id, index: PortIndex(free) });
                    PortIndex(free)
                }
            };
            if slots.len() <= index.get() {
                slots.resize(index.get() + 1, None);
            }
            let vpc = self.vpcs.get(&port.vni);
            let subnet = port.subnet.as_ref().and_then(|name| vpc?.subnet_named(name));
            let groups = port.security_groups.as_ref().map(|list| security.intern(list));
            let answered = answers.of(port);
            slots[index.get()] = Some(Port::new(port, subnet, groups, answered));
            indexes.insert(id, index);
        }
        (self.slots, self.indexes) = (slots.into(), Arc::new(indexes));
    }

    /// Finds the next hop of every remote VTEP.
    fn lay_tunnels(&mut self, config: &SwitchConfig, limits: &Limits) -> Result<(), ConfigError> {
        let Some(underlay) = &config.underlay else { return Ok(()) };
        let vteps: BTreeSet<Ipv4Addr> = config.remotes.iter().map(|remote| remote.vtep).collect();
        let hop_of = |vtep: Ipv4Addr| {
            if is_within(vtep, underlay) {
                vtep
            } else {
                underlay.gateway.expect("validate refuses a remote without a route")
            }
        };
        let lines = config.external.lines.iter().map(|line| line.next_hop);
        let hops: BTreeSet<Ipv4Addr> =
            vteps.iter().map(|&vtep| hop_of(vtep)).chain(lines).collect();
        check_count("next hops", hops.len(), limits.next_hops.into())?;
        let next_hops: Box<[Ipv4Addr]> = hops.into_iter().collect();
        self.tunnels = vteps
            .iter()
            .map(|&vtep| {
                let place = next_hops
                    .binary_search(&hop_of(vtep))
                    .expect("the next hop of every VTEP was collected");
                let next_hop = u16::try_from(place).expect("next hops are limited to 65535");
                Tunnel { vtep, headers: headers_to(underlay.mac, underlay.vtep, vtep), next_hop }
            })
            .collect();
        self.uplink = Some(UplinkTables {
            vtep: underlay.vtep,
            mac: underlay.mac,
            frame_length_max: u32::from(underlay.mtu) + ETHERNET_LENGTH,
            next_hops,
        });
        Ok(())
    }

    /// Finds the next hop of every line to the outside.
    fn open_lines(&mut self, config: &SwitchConfig, previous: &Self) {
        let next_hops = self.uplink.as_ref().map(|uplink| &uplink.next_hops[..]);
        let next_hops = next_hops.unwrap_or_default();
        let places: BTreeMap<&Name, u16> = config
            .external
            .lines
            .iter()
            .filter_map(|line| {
                let place = next_hops.binary_search(&line.next_hop).ok()?;
                Some((&line.name, u16::try_from(place).ok()?))
            })
            .collect();
        let place_of = |line: &Name| *places.get(line).expect("validate knows every line");
        let external = ExternalTables::new(config, &previous.external, place_of);
        self.external = Arc::new(external);
    }

    /// The external address at a place of its tables.
    pub(crate) fn external_address(&self, place: u16) -> Option<Ipv4Addr> {
        self.external.address_at(place)
    }

    /// As it is shown.
    pub(crate) fn external_name(&self, place: u16) -> Option<String> {
        Some(format!("external {}", self.external_address(place)?))
    }

    fn fill_tables(&mut self, config: &SwitchConfig, security: &mut SecurityBuilder) {
        let mut macs = Vec::new();
        let mut addresses = Vec::new();
        let mut add = |vni, mac, list: &[IpAddr], destination, groups| {
            macs.push(((vni, mac), destination));
            let owner = Owner { mac, destination, groups };
            addresses.push(((vni, IpAddr::V6(link_local_of(mac))), owner));
            addresses.extend(list.iter().map(|&address| ((vni, address), owner)));
        };
        for port in &config.ports {
            let index = self.indexes[&port.id];
            let groups = security.intern(port.security_groups.as_deref().unwrap_or_default());
            add(port.vni, port.mac, &port.addresses, Destination::Local(index), groups);
        }
        let mut vteps: BTreeMap<(Vni, Ipv4Addr), SenderVtep> = BTreeMap::new();
        for remote in &config.remotes {
            let tunnel = self.tunnel_to(remote.vtep).expect("every remote has its tunnel");
            let groups = security.intern(&remote.security_groups);
            let destination = Destination::Remote(tunnel);
            add(remote.vni, remote.mac, &remote.addresses, destination, groups);
            let sender = vteps.entry((remote.vni, remote.vtep));
            sender.or_insert(SenderVtep { tunnel, nics: 0 }).nics += 1;
        }
        let names = config.answers.names.iter();
        self.named = names.map(|host| ((host.vni, host.mac), ())).collect();
        self.vnis = config.ports.iter().map(|port| (port.vni, ())).collect();
        self.macs = macs.into_iter().collect();
        self.addresses = addresses.into_iter().collect();
        self.vteps = vteps.into_iter().collect();
        let remotes = config.remotes.iter();
        self.remotes =
            remotes.map(|remote| ((remote.vni, remote.mac), Arc::new(remote.clone()))).collect();
    }

    /// What the driver is to do about its ports, in this order.
    pub fn changes(&self) -> &[PortChange] {
        &self.changes
    }

    /// Whether what is answered beside the switch is as the snapshot had it that it was made of:
    /// names and addresses, leases, and which backends are checked.
    pub const fn tells_as_before(&self) -> bool {
        self.tells_as_before
    }

    /// The configuration without its remotes; `None` before the first. Its number is
    /// [`Self::epoch`].
    pub fn settings(&self) -> Option<&SwitchConfig> {
        self.settings.as_deref()
    }

    /// The whole configuration, its remotes in order of VNI and MAC; `None` before the first.
    pub fn config(&self) -> Option<SwitchConfig> {
        let mut config = SwitchConfig { epoch: self.epoch?, ..self.settings.as_deref()?.clone() };
        config.remotes = self.remotes.values().map(|remote| Remote::clone(remote)).collect();
        Some(config)
    }

    /// Whether it is this configuration; the order of remotes does not matter.
    pub fn is_of(&self, config: &SwitchConfig) -> bool {
        let Some(settings) = self.settings.as_deref() else { return false };
        let SwitchConfig { version, underlay, ports, vpcs, security_groups, .. } = config;
        let SwitchConfig { external, balancers, answers, remotes, epoch, .. } = config;
        self.epoch == Some(*epoch)
            && self.remotes.len() == remotes.len()
            && (*version, underlay, ports)
                == (settings.version, &settings.underlay, &settings.ports)
            && (vpcs, security_groups) == (&settings.vpcs, &settings.security_groups)
            && (external, balancers) == (&settings.external, &settings.balancers)
            && *answers == settings.answers
            && remotes.iter().all(|remote| {
                let found = self.remotes.get(&(remote.vni, remote.mac));
                found.is_some_and(|found| **found == *remote)
            })
    }

    pub const fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    pub(crate) fn tunnel_to(&self, vtep: Ipv4Addr) -> Option<TunnelIndex> {
        let place = self.tunnels.binary_search_by_key(&vtep, |tunnel| tunnel.vtep).ok()?;
        Some(TunnelIndex(u32::try_from(place).expect("remotes are counted in 32 bits")))
    }

    /// The place of a configured port.
    pub fn port_index(&self, id: PortId) -> Option<PortIndex> {
        self.indexes.get(&id).copied()
    }

    /// `None` for the uplink and for a place without a port.
    pub(crate) fn port(&self, index: PortIndex) -> Option<&Port> {
        self.slots.get(index.get())?.as_ref()
    }

    /// Guest ports with their places, in order of place.
    pub(crate) fn ports(&self) -> impl Iterator<Item = (PortIndex, &Port)> {
        let indexed = self.slots.iter().zip(0..);
        indexed.filter_map(|(slot, index)| Some((PortIndex(index), slot.as_ref()?)))
    }

    pub(crate) fn tunnel(&self, index: TunnelIndex) -> &Tunnel {
        &self.tunnels[index.0 as usize]
    }

    /// Whether a port here belongs to `vni`.
    pub(crate) fn has_vni(&self, vni: Vni) -> bool {
        self.vnis.get(&vni).is_some()
    }

    /// The way back to `vtep`, if it may send for `vni`.
    pub(crate) fn remote_vtep(&self, vni: Vni, vtep: Ipv4Addr) -> Option<TunnelIndex> {
        self.vteps.get(&(vni, vtep)).map(|sender| sender.tunnel)
    }

    pub(crate) fn destination(&self, vni: Vni, mac: MacAddress) -> Option<Destination> {
        self.macs.get(&(vni, mac)).copied()
    }

    pub(crate) fn owner(&self, vni: Vni, address: IpAddr) -> Option<Owner> {
        self.addresses.get(&(vni, address)).copied()
    }

    /// A snapshot with one tunnel and nothing else, for tests of a single stage.
    #[cfg(test)]
    pub(crate) fn with_tunnel(vtep: Ipv4Addr) -> Self {
        let headers = headers_to(MacAddress([2; 6]), Ipv4Addr::new(172, 16, 0, 1), vtep);
        Self { tunnels: [Tunnel { vtep, headers, next_hop: 0 }].into(), ..Self::default() }
    }
}
