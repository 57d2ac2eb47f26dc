// SPDX-License-Identifier: Apache-2.0
//! Lines to the outside with their pools of addresses, and external addresses of NICs.

use crate::change::{Change, Key, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::nic::{ALLOWED_MAX, check_rate};
use crate::record::{EipBindingRecord, EipRecord, LineRecord, Nic, NodeRecord, VmRecord};
use crate::spec::port_name;
use plinth_api::{
    BalancerPlace, BalancerSpec, Code, EipBinding, EipBound, EipLimits, EipSpec, EipView,
    ExternalSpec, LineSpec, LineView, Refusal, VmSpec,
};
use plinth_ids::{Name, PortId, Prefix};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Pools of one line.
const POOLS_MAX: usize = 64;

/// Ranges that are no machine's on the internet: "this network", loopback, link-local, multicast
/// and what is reserved (RFC 6890). The switch refuses addresses of most of them.
const NOBODYS: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

impl Cluster {
    pub fn line_create(
        &self,
        name: Name,
        next_hop: Ipv4Addr,
        pools: &[Prefix],
        now: u64,
    ) -> Result<Change, Refusal> {
        names::free(&self.lines, "line", &name)?;
        if is_nobodys(Prefix::host(next_hop.into())) {
            let text = format!("{next_hop} is no address of a machine");
            return Err(Refusal::new(Code::Invalid, text)
                .field("--next-hop")
                .remedy("give the carrier's router on the underlay's segment"));
        }
        let is_own = |node: &&NodeRecord| {
            node.underlay.as_ref().is_some_and(|underlay| underlay.vtep == next_hop)
        };
        if let Some(node) = self.nodes.values().find(is_own) {
            let text = format!("{next_hop} is the VTEP of node {}", node.name);
            return Err(Refusal::new(Code::Exists, text)
                .field("--next-hop")
                .remedy("give the carrier's router on the underlay's segment"));
        }
        if let Some(user) = self.external_user(next_hop) {
            let text = format!("{next_hop} is the address of {user}");
            return Err(Refusal::new(Code::Exists, text)
                .field("--next-hop")
                .remedy("delete that first, or give another next hop"));
        }
        let mut line = LineRecord { name, next_hop, pools: Vec::new(), created_at: now };
        for &pool in pools {
            self.add_pool(&mut line, pool)?;
        }
        Ok(Change::default().put(Record::Line(line)))
    }

    /// Gives a line more addresses, or takes some that nobody has.
    pub fn line_pool(&self, name: &Name, pool: Prefix, is_member: bool) -> Result<Change, Refusal> {
        let mut line = self.find_line("LINE", name)?.clone();
        if is_member {
            self.add_pool(&mut line, pool)?;
            return Ok(Change::default().put(Record::Line(line)));
        }
        let count = line.pools.len();
        line.pools.retain(|one| *one != pool);
        if line.pools.len() == count {
            return Err(Refusal::new(Code::NotFound, format!("line {name} has no pool {pool}"))
                .field("RANGE")
                .remedy("`plinth line list` shows its pools"));
        }
        let taken = self.external_users();
        if let Some((address, user)) =
            taken.iter().find(|(address, _)| pool.contains(IpAddr::V4(**address)))
        {
            let text = format!("{address} of {pool} is that of {user}");
            return Err(Refusal::new(Code::InUse, text).field("RANGE").remedy("delete that first"));
        }
        Ok(Change::default().put(Record::Line(line)))
    }

    fn add_pool(&self, line: &mut LineRecord, pool: Prefix) -> Result<(), Refusal> {
        let refuse = |code, text: String, remedy: &str| {
            Err(Refusal::new(code, text).field("--pool").remedy(remedy))
        };
        if is_nobodys(pool) {
            let text = format!("{pool} has addresses that no machine may have");
            return refuse(
                Code::Invalid,
                text,
                "give a range of IPv4 that the carrier routes here",
            );
        }
        let others = self.lines.values().filter(|other| other.name != line.name);
        for other in others.chain([&*line]) {
            if let Some(clash) = other.pools.iter().find(|one| one.overlaps(pool)) {
                let text = format!("{pool} overlaps {clash} of line {}", other.name);
                return refuse(Code::Exists, text, "an address belongs to one line, once");
            }
        }
        if line.pools.len() >= POOLS_MAX {
            let text = format!("a line has {POOLS_MAX} pools at most");
            return refuse(Code::NoRoom, text, "join some into a larger one");
        }
        line.pools.push(pool);
        Ok(())
    }

    pub fn line_delete(&self, name: &Name) -> Result<Change, Refusal> {
        let line = self.find_line("NAME", name)?;
        let in_use = |text: String, remedy: String| {
            Err(Refusal::new(Code::InUse, text).field("NAME").remedy(remedy))
        };
        if let Some(eip) = self.eips.values().find(|eip| eip.line == line.name) {
            let text = format!("external address {} is of line {name}", eip.name);
            return in_use(text, format!("delete it first: plinth eip delete {}", eip.name));
        }
        if let Some(gateway) = self.gateways.values().find(|gateway| gateway.line == line.name) {
            let text = format!("NAT gateway {} is of line {name}", gateway.name);
            let remedy = format!("delete it first: plinth nat-gateway delete {}", gateway.name);
            return in_use(text, remedy);
        }
        let is_its = |one: &&crate::record::BalancerRecord| matches!(&one.place, BalancerPlace::Line(of) if of == name);
        if let Some(balancer) = self.balancers.values().find(is_its) {
            let text = format!("load balancer {} is of line {name}", balancer.name);
            return in_use(text, format!("delete it first: plinth lb delete {}", balancer.name));
        }
        Ok(Change::default().delete(Key::Line(name.clone())))
    }

    pub(crate) fn find_line(
        &self,
        field: &'static str,
        name: &Name,
    ) -> Result<&LineRecord, Refusal> {
        names::find(&self.lines, "line", field, name)
    }

    /// Every external address that is given out, and to whom.
    pub(crate) fn external_users(&self) -> BTreeMap<Ipv4Addr, String> {
        let eips =
            self.eips.values().map(|eip| (eip.address, format!("external address {}", eip.name)));
        let gateways = self.gateways.values().flat_map(|gateway| {
            let name = format!("NAT gateway {}", gateway.name);
            gateway.addresses.iter().map(move |one| (one.address, name.clone()))
        });
        let balancers = self.balancers.values().filter_map(|one| match (&one.place, one.address) {
            (BalancerPlace::Line(_), IpAddr::V4(address)) => {
                Some((address, format!("load balancer {}", one.name)))
            }
            _ => None,
        });
        eips.chain(gateways).chain(balancers).collect()
    }

    fn external_user(&self, address: Ipv4Addr) -> Option<String> {
        self.external_users().remove(&address)
    }

    /// Addresses that are machines': they are never given out.
    fn machines(&self) -> BTreeSet<Ipv4Addr> {
        let underlays = self.nodes.values().filter_map(|node| node.underlay.as_ref());
        let own =
            underlays.flat_map(|underlay| std::iter::once(underlay.vtep).chain(underlay.gateway));
        own.chain(self.lines.values().map(|line| line.next_hop)).collect()
    }

    /// An address of a line's pools: that one, or the lowest that is free. `besides` are taken
    /// by the same request.
    pub(crate) fn pick_external(
        &self,
        line: &LineRecord,
        wanted: Option<Ipv4Addr>,
        besides: &[Ipv4Addr],
    ) -> Result<Ipv4Addr, Refusal> {
        let users = self.external_users();
        let machines = self.machines();
        if let Some(address) = wanted {
            let refuse = |code, text: String, remedy: String| {
                Err(Refusal::new(code, text).field("--address").remedy(remedy))
            };
            if !line.pools.iter().any(|pool| pool.contains(address.into())) {
                let text = format!("{address} is in no pool of line {}", line.name);
                let remedy = format!("add it first: plinth line pool add {} {address}", line.name);
                return refuse(Code::Invalid, text, remedy);
            }
            if machines.contains(&address) {
                let text = format!("{address} is a machine's on the underlay");
                return refuse(Code::Exists, text, "leave it out to take a free one".to_owned());
            }
            let user = users.get(&address).cloned();
            let again = besides.contains(&address).then(|| "this one already".to_owned());
            if let Some(user) = user.or(again) {
                let text = format!("{address} is that of {user}");
                return refuse(Code::Exists, text, "leave it out to take a free one".to_owned());
            }
            return Ok(address);
        }
        // One more than are taken finds a free one, unless the pool is at its end.
        let mut all = line.pools.iter().flat_map(|pool| addresses(*pool));
        all.find(|address| {
            !users.contains_key(address)
                && !machines.contains(address)
                && !besides.contains(address)
        })
        .ok_or_else(|| {
            Refusal::new(Code::NoRoom, format!("line {} has no address left", line.name))
                .field("--line")
                .remedy(format!("give it more: plinth line pool add {} ADDRESS/LENGTH", line.name))
        })
    }

    pub fn line_view(&self, line: &LineRecord) -> LineView {
        let is_in =
            |address: &Ipv4Addr| line.pools.iter().any(|pool| pool.contains((*address).into()));
        let used = self.external_users().keys().filter(|address| is_in(address)).count() as u64;
        let kept = self.machines().iter().filter(|address| is_in(address)).count() as u64;
        let all: u64 = line.pools.iter().map(|pool| 1_u64 << (32 - pool.length())).sum();
        LineView {
            name: line.name.clone(),
            next_hop: line.next_hop,
            pools: line.pools.clone(),
            addresses_used: used,
            addresses_free: all.saturating_sub(used + kept),
            created_at: line.created_at,
        }
    }

    pub fn eip_create(
        &self,
        name: Name,
        line: &Name,
        address: Option<Ipv4Addr>,
        now: u64,
    ) -> Result<Change, Refusal> {
        names::free(&self.eips, "eip", &name)?;
        let line = self.find_line("--line", line)?;
        let address = self.pick_external(line, address, &[])?;
        let (line, limits) = (line.name.clone(), EipLimits::default());
        let eip = EipRecord { name, address, line, bound: None, limits, created_at: now };
        Ok(Change::default().put(Record::Eip(eip)))
    }

    pub fn eip_delete(&self, name: &Name) -> Result<Change, Refusal> {
        let eip = self.find_eip(name)?;
        if let Some((vm, index, _)) = self.bound_to(eip) {
            let nic = port_name(vm, index);
            let text = format!("external address {name} is bound to NIC {nic}");
            return Err(Refusal::new(Code::InUse, text)
                .field("NAME")
                .remedy(format!("unbind it first: plinth eip unbind {name}")));
        }
        Ok(Change::default().delete(Key::Eip(name.clone())))
    }

    fn find_eip(&self, name: &Name) -> Result<&EipRecord, Refusal> {
        names::find(&self.eips, "eip", "NAME", name)
    }

    /// The NIC that has an external address.
    pub(crate) fn bound_to(&self, eip: &EipRecord) -> Option<(&VmRecord, usize, &Nic)> {
        let port = eip.bound.as_ref()?.port;
        self.nics().find(|(_, _, nic)| nic.port == port)
    }

    pub fn eip_bind(
        &self,
        name: &Name,
        nic_name: &Name,
        binding: EipBinding,
    ) -> Result<Change, Refusal> {
        let eip = self.find_eip(name)?;
        let (vm, _, nic) = self.find_nic(nic_name)?;
        let refuse = |code, text: String, remedy: String| {
            Err(Refusal::new(code, text).field("NIC").remedy(remedy))
        };
        if let Some((vm, index, _)) = self.bound_to(eip) {
            let other = port_name(vm, index);
            let text = format!("external address {name} is bound to NIC {other}");
            let remedy = format!("unbind it first: plinth eip unbind {name}");
            return refuse(Code::InUse, text, remedy);
        }
        if self.node(vm.node).is_none_or(|node| node.underlay.is_none()) {
            let text = format!("the node of NIC {nic_name} has no underlay to the outside");
            let remedy = "bind it to a NIC of a node that joined with --vtep".to_owned();
            return refuse(Code::State, text, remedy);
        }
        let others: Vec<&EipRecord> = self.eips_of(nic.port).collect();
        let is_same = |other: &&&EipRecord| {
            other.bound.as_ref().is_some_and(|bound| bound.binding == binding)
        };
        match binding {
            EipBinding::Translated => {
                // Which one it would go out as is nobody's to guess.
                if let Some(other) = others.iter().find(is_same) {
                    let text = format!("NIC {nic_name} goes out as {} already", other.name);
                    let remedy = format!("unbind it first: plinth eip unbind {}", other.name);
                    return refuse(Code::Exists, text, remedy);
                }
            }
            EipBinding::Carried => {
                if nic.allowed.len() + others.iter().filter(is_same).count() >= ALLOWED_MAX {
                    let text =
                        format!("NIC {nic_name} speaks from {ALLOWED_MAX} ranges, the limit");
                    return refuse(
                        Code::NoRoom,
                        text,
                        "take one back with nic disallow".to_owned(),
                    );
                }
            }
        }
        let bound = Some(EipBindingRecord { port: nic.port, binding });
        Ok(Change::default().put(Record::Eip(EipRecord { bound, ..eip.clone() })))
    }

    pub fn eip_unbind(&self, name: &Name) -> Result<Change, Refusal> {
        let eip = self.find_eip(name)?;
        if eip.bound.is_none() {
            let text = format!("external address {name} is not bound");
            return Err(Refusal::new(Code::State, text)
                .field("NAME")
                .remedy("nothing is left to do"));
        }
        Ok(Change::default().put(Record::Eip(EipRecord { bound: None, ..eip.clone() })))
    }

    /// Holds an external address to limits, or to none.
    pub fn eip_limit(&self, name: &Name, limits: EipLimits) -> Result<Change, Refusal> {
        let eip = self.find_eip(name)?;
        check_rate("--out", &limits.outbound)?;
        check_rate("--in", &limits.inbound)?;
        Ok(Change::default().put(Record::Eip(EipRecord { limits, ..eip.clone() })))
    }

    pub(crate) fn eips_of(&self, port: PortId) -> impl Iterator<Item = &EipRecord> {
        let is_its =
            move |eip: &&EipRecord| eip.bound.as_ref().is_some_and(|bound| bound.port == port);
        self.eips.values().filter(is_its)
    }

    /// External addresses that a NIC's guest itself carries.
    pub(crate) fn carried_by(&self, port: PortId) -> impl Iterator<Item = Prefix> {
        let is_carried = |eip: &&EipRecord| {
            eip.bound.as_ref().is_some_and(|bound| bound.binding == EipBinding::Carried)
        };
        self.eips_of(port).filter(is_carried).map(|eip| Prefix::host(eip.address.into()))
    }

    /// What has to go with the NICs of VMs that are gone.
    pub(crate) fn unbind_nics(&self, vms: &[&VmRecord], change: Change) -> Change {
        let ports = vms.iter().flat_map(|vm| &vm.nics).map(|nic| nic.port).collect();
        self.unbind_ports(&ports, change)
    }

    /// What has to go with NICs that are gone.
    pub(crate) fn unbind_ports(&self, ports: &BTreeSet<PortId>, mut change: Change) -> Change {
        let is_its = |port: PortId| ports.contains(&port);
        for eip in self.eips.values() {
            if eip.bound.as_ref().is_some_and(|bound| is_its(bound.port)) {
                change = change.put(Record::Eip(EipRecord { bound: None, ..eip.clone() }));
            }
        }
        for gateway in self.gateways.values() {
            if gateway.forwards.iter().any(|one| is_its(one.forward.port)) {
                let mut gateway = gateway.clone();
                gateway.forwards.retain(|one| !is_its(one.forward.port));
                change = change.put(Record::Gateway(gateway));
            }
        }
        self.forget_backends(is_its, change)
    }

    /// Without its counters, which its node has.
    pub fn eip_view(&self, eip: &EipRecord) -> EipView {
        let bound = self.bound_to(eip).zip(eip.bound.as_ref());
        EipView {
            name: eip.name.clone(),
            address: eip.address,
            line: eip.line.clone(),
            bound: bound.map(|((vm, index, _), bound)| EipBound {
                nic: port_name(vm, index),
                node: self.node_name(vm.node),
                binding: bound.binding,
            }),
            limits: eip.limits,
            counters: None,
            created_at: eip.created_at,
        }
    }

    /// The outside of one node, which has these VMs.
    pub(crate) fn external_spec(
        &self,
        node: &NodeRecord,
        vms: &[VmSpec],
        balancers: &[BalancerSpec],
    ) -> ExternalSpec {
        let Some(underlay) = &node.underlay else { return ExternalSpec::default() };
        let ports: BTreeSet<PortId> =
            vms.iter().flat_map(|vm| &vm.nics).map(|nic| nic.port).collect();
        // A node may have joined with an address that was given out before.
        let usable: BTreeSet<&Name> = self
            .lines
            .values()
            .filter(|line| line.next_hop != underlay.vtep)
            .map(|line| &line.name)
            .collect();
        let eips: Vec<EipSpec> = self
            .eips
            .values()
            .filter(|eip| usable.contains(&eip.line) && eip.address != underlay.vtep)
            .filter_map(|eip| {
                let bound = eip.bound.as_ref().filter(|bound| ports.contains(&bound.port))?;
                Some(EipSpec {
                    address: eip.address,
                    line: eip.line.clone(),
                    port: bound.port,
                    binding: bound.binding,
                    limits: eip.limits,
                })
            })
            .collect();
        let gateways = self.nat_specs(node, vms, |line| usable.contains(line));
        let used: BTreeSet<&Name> = eips
            .iter()
            .map(|eip| &eip.line)
            .chain(gateways.iter().map(|one| &one.line))
            .chain(balancers.iter().filter_map(|one| one.line.as_ref()))
            .collect();
        let lines = self.lines.values().filter(|line| used.contains(&line.name));
        let lines = lines
            .map(|line| LineSpec { name: line.name.clone(), next_hop: line.next_hop })
            .collect();
        ExternalSpec { lines, eips, gateways }
    }
}

/// Whether some address of a range may be no machine's, or it is not of IPv4.
fn is_nobodys(range: Prefix) -> bool {
    !range.is_ipv4()
        || NOBODYS.iter().any(|(network, length)| {
            Prefix::new((*network).into(), *length).is_ok_and(|nobodys| nobodys.overlaps(range))
        })
}

fn addresses(range: Prefix) -> impl Iterator<Item = Ipv4Addr> {
    let ends = match (range.network(), range.last()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Some((first.to_bits(), last.to_bits())),
        _ => None,
    };
    ends.into_iter().flat_map(|(first, last)| (first..=last).map(Ipv4Addr::from_bits))
}
