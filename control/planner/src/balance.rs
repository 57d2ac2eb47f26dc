// SPDX-License-Identifier: Apache-2.0
//! Load balancers: addresses that stand for NICs of a vpc.
//!
//! An address inside a vpc is on every node that has a NIC of it. An external one is on one node,
//! where its backends are: their answers leave by it. Sums over all balancers stay under what one
//! switch takes, so that no node can refuse what was accepted here.

use crate::change::{Change, Key, Record};
use crate::cluster::{Cluster, Observed};
use crate::names;
use crate::record::{BackendRecord, BalancerRecord, ListenerRecord, Nic, NodeRecord, VmRecord};
use crate::spec::port_name;
use plinth_api::{
    BackendChange, BackendName, BackendSpec, BackendView, BalancerCreate, BalancerPlace,
    BalancerSpec, BalancerView, CheckSpec, CheckSpecKind, Code, LbScheduler, ListenerSettings,
    ListenerSpec, ListenerView, Refusal, UnfitBackend,
};
use plinth_ids::{Name, NodeId, PortId, Vni};
use plinth_switch_api::{BACKEND_WEIGHT_MAX, CheckKind, HealthCheck, hash_places};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

/// What one switch takes, of all balancers together.
const BALANCERS_MAX: usize = 8192;
const LISTENERS_MAX: usize = 1 << 14;
const BACKENDS_MAX: usize = 1 << 16;
const PLACES_MAX: usize = 1 << 24;
/// Of one listener.
const BACKENDS_EACH_MAX: usize = 1024;
/// A day.
const STICKINESS_MAX: u32 = 86_400;

fn refuse<T>(
    code: Code,
    field: &str,
    text: impl Into<String>,
    remedy: impl Into<String>,
) -> Result<T, Refusal> {
    Err(Refusal::new(code, text).field(field).remedy(remedy))
}

impl Cluster {
    pub fn balancer_create(&self, request: &BalancerCreate, now: u64) -> Result<Change, Refusal> {
        names::free(&self.balancers, "lb", &request.name)?;
        let vpc = names::find(&self.vpcs, "vpc", "--vpc", &request.vpc)?;
        let mut balancer = BalancerRecord {
            name: request.name.clone(),
            vpc: vpc.vni,
            address: self.pick_balanced(vpc.vni, request)?,
            place: request.place.clone(),
            listeners: Vec::new(),
            next_listener: 1,
            created_at: now,
        };
        add_listener(&mut balancer, &request.listener)?;
        self.commit(balancer)
    }

    /// The address of a new balancer.
    fn pick_balanced(&self, vni: Vni, request: &BalancerCreate) -> Result<IpAddr, Refusal> {
        let field = "--address";
        match (&request.place, request.address) {
            (BalancerPlace::Line(line), wanted) => {
                let line = self.find_line("--line", line)?;
                let wanted = match wanted {
                    None => None,
                    Some(IpAddr::V4(address)) => Some(address),
                    Some(IpAddr::V6(address)) => {
                        let text = format!("{address} is of IPv6, and the outside is IPv4");
                        return refuse(Code::Invalid, field, text, "give one of the line's pools");
                    }
                };
                Ok(self.pick_external(line, wanted, &[])?.into())
            }
            (BalancerPlace::Subnet(name), wanted) => {
                let subnet = names::find(&self.subnets, "subnet", "--subnet", name)?;
                if subnet.vpc != vni {
                    let text = format!("subnet {name} is of another vpc than {}", request.vpc);
                    return refuse(Code::Invalid, "--subnet", text, "name one of its vpc");
                }
                let wanted = match wanted {
                    None => None,
                    Some(IpAddr::V4(address)) => Some(address),
                    Some(IpAddr::V6(address)) => return self.pick_ipv6(vni, name, address),
                };
                let found = self.pick_address(subnet, wanted, &BTreeSet::new());
                Ok(found.map_err(|refusal| refusal.field(field))?.into())
            }
        }
    }

    fn pick_ipv6(&self, vni: Vni, subnet: &Name, address: Ipv6Addr) -> Result<IpAddr, Refusal> {
        let field = "--address";
        let prefixes = self.subnets[subnet].prefixes();
        let address = IpAddr::V6(address);
        let Some(range) = prefixes.iter().find(|given| given.prefix.contains(address)) else {
            let text = format!("{address} is not in subnet {subnet}");
            return refuse(Code::Invalid, field, text, "`plinth subnet list` shows its ranges");
        };
        let is_taken = self.balancers.values().any(|one| one.vpc == vni && one.address == address);
        if is_taken || range.gateway == address || range.prefix.network() == address {
            let text = format!("{address} of subnet {subnet} is taken");
            return refuse(Code::Exists, field, text, "choose another");
        }
        // NICs that are yet to come make theirs of their MACs.
        if matches!(address, IpAddr::V6(ip) if ip.octets()[11..13] == [0xff, 0xfe]) {
            let text = format!("{address} is one that a NIC could have");
            return refuse(Code::Invalid, field, text, "choose one without ff:fe in its middle");
        }
        Ok(address)
    }

    /// Takes over a balancer if a switch could take it beside all others.
    fn commit(&self, balancer: BalancerRecord) -> Result<Change, Refusal> {
        let others = self.balancers.values().filter(|other| other.name != balancer.name);
        let all: Vec<&BalancerRecord> = others.chain([&balancer]).collect();
        let listeners = || all.iter().flat_map(|one| &one.listeners);
        let is_hashed = |one: &&ListenerRecord| one.settings.scheduler == LbScheduler::SourceHash;
        let places = listeners().filter(is_hashed).map(|one| hash_places(one.backends.len()));
        let sums = [
            ("load balancers", all.len(), BALANCERS_MAX),
            ("listeners", listeners().count(), LISTENERS_MAX),
            ("backends", listeners().map(|one| one.backends.len()).sum(), BACKENDS_MAX),
            ("places in tables by hash", places.map(|size| size as usize).sum(), PLACES_MAX),
        ];
        if let Some((what, found, limit)) = sums.iter().find(|(_, found, limit)| found > limit) {
            let text = format!("{found} {what} are more than the {limit} that a switch takes");
            return refuse(Code::NoRoom, "NAME", text, "delete what is not needed any more");
        }
        Ok(Change::default().put(Record::Balancer(balancer)))
    }

    fn find_balancer(&self, field: &'static str, name: &Name) -> Result<&BalancerRecord, Refusal> {
        names::find(&self.balancers, "lb", field, name)
    }

    pub fn balancer_delete(&self, name: &Name) -> Result<Change, Refusal> {
        self.find_balancer("NAME", name)?;
        Ok(Change::default().delete(Key::Balancer(name.clone())))
    }

    pub fn listener_add(&self, name: &Name, given: &ListenerSettings) -> Result<Change, Refusal> {
        let mut balancer = self.find_balancer("LB", name)?.clone();
        add_listener(&mut balancer, given)?;
        self.commit(balancer)
    }

    pub fn listener_remove(&self, name: &Name, number: u32) -> Result<Change, Refusal> {
        let mut balancer = self.find_balancer("LB", name)?.clone();
        let count = balancer.listeners.len();
        balancer.listeners.retain(|one| one.number != number);
        if balancer.listeners.len() == count {
            let text = format!("load balancer {name} has no listener {number}");
            return refuse(Code::NotFound, "NUMBER", text, format!("see `plinth lb show {name}`"));
        }
        self.commit(balancer)
    }

    pub fn backend_change(
        &self,
        named: &BackendName,
        change: BackendChange,
    ) -> Result<Change, Refusal> {
        let mut balancer = self.find_balancer("LB", &named.balancer)?.clone();
        let (vm, _, nic) = self.find_nic(&named.nic)?;
        if let BackendChange::Add { .. } = change {
            self.check_backend(&balancer, vm, nic, &named.nic)?;
        }
        let listener = pick_listener(&mut balancer, named.listener)?;
        match change {
            BackendChange::Add { weight } => {
                check_weight(weight, "--weight")?;
                add_backend(listener, nic.port, named, weight)?;
            }
            BackendChange::Remove => {
                let index = pick_backend(listener, nic.port, named)?;
                listener.backends.remove(index);
            }
            BackendChange::Drain { is_draining } => {
                let index = pick_backend(listener, nic.port, named)?;
                listener.backends[index].is_draining = is_draining;
            }
            BackendChange::Weight(weight) => {
                check_weight(weight, "WEIGHT")?;
                let index = pick_backend(listener, nic.port, named)?;
                listener.backends[index].weight = weight;
            }
        }
        self.commit(balancer)
    }

    /// Whether a NIC can serve a balancer at all.
    fn check_backend(
        &self,
        balancer: &BalancerRecord,
        vm: &VmRecord,
        nic: &Nic,
        name: &Name,
    ) -> Result<(), Refusal> {
        let lb = &balancer.name;
        if nic.vpc != balancer.vpc {
            let text = format!("NIC {name} is of another vpc than load balancer {lb}");
            return refuse(Code::Invalid, "NIC", text, "name one of its vpc");
        }
        if self.backend_address(balancer, nic).is_none() {
            let text = format!("NIC {name} has no address of the IP version of {lb}");
            return refuse(Code::Invalid, "NIC", text, "name one that has");
        }
        if matches!(balancer.place, BalancerPlace::Subnet(_)) {
            return Ok(());
        }
        if self.node(vm.node).is_none_or(|node| node.underlay.is_none()) {
            let text = format!("the node of NIC {name} has no underlay to the outside");
            return refuse(Code::State, "NIC", text, "name one of a node that joined with --vtep");
        }
        match self.seat_of(balancer) {
            Some(seat) if seat != vm.node => {
                let node = self.node_name(seat);
                let text = format!("the external address of {lb} is on node {node}");
                let remedy = "name a NIC there: their answers leave by that node".to_owned();
                refuse(Code::Invalid, "NIC", text, remedy)
            }
            _ => Ok(()),
        }
    }

    fn backend_address(&self, balancer: &BalancerRecord, nic: &Nic) -> Option<IpAddr> {
        let is_alike = |address: &IpAddr| address.is_ipv4() == balancer.address.is_ipv4();
        self.nic_addresses(nic).into_iter().find(is_alike)
    }

    /// Where an external address is: with the first of its backends.
    fn seat_of(&self, balancer: &BalancerRecord) -> Option<NodeId> {
        let first = balancer.listeners.iter().flat_map(|one| &one.backends).next()?;
        self.nics().find(|(_, _, nic)| nic.port == first.port).map(|(vm, _, _)| vm.node)
    }

    /// Takes backends away whose NICs go.
    pub(crate) fn forget_backends(
        &self,
        is_gone: impl Fn(PortId) -> bool,
        mut change: Change,
    ) -> Change {
        for balancer in self.balancers.values() {
            let mut rest = balancer.clone();
            for listener in &mut rest.listeners {
                listener.backends.retain(|backend| !is_gone(backend.port));
            }
            if rest != *balancer {
                change = change.put(Record::Balancer(rest));
            }
        }
        change
    }

    /// The balancers of a node that has NICs in `own`, with their lines among the usable ones.
    pub(crate) fn balancer_specs(
        &self,
        node: &NodeRecord,
        own: &BTreeSet<Vni>,
    ) -> Vec<BalancerSpec> {
        let mut nics: BTreeMap<PortId, (NodeId, &Nic)> = BTreeMap::new();
        if !self.balancers.is_empty() {
            let there = self.nics().filter(|(_, _, nic)| !nic.is_leaving);
            nics.extend(there.map(|(vm, _, nic)| (nic.port, (vm.node, nic))));
        }
        let spec = |balancer: &BalancerRecord| {
            let line = match &balancer.place {
                BalancerPlace::Subnet(_) => None,
                BalancerPlace::Line(line) => {
                    self.usable_line(node, line, balancer.address)?;
                    (self.seat_of(balancer) == Some(node.id)).then_some(())?;
                    Some(line.clone())
                }
            };
            let backend = |backend: &BackendRecord| {
                let &(at, nic) = nics.get(&backend.port)?;
                (line.is_none() || at == node.id).then_some(())?;
                Some(BackendSpec {
                    address: self.backend_address(balancer, nic)?,
                    port: backend.nic_port,
                    weight: backend.weight,
                    // Its own node judges it by itself, and checks only what is active there.
                    is_draining: backend.is_draining || (backend.is_unfit && at != node.id),
                })
            };
            let listeners = balancer.listeners.iter().map(|listener| ListenerSpec {
                settings: listener.settings.clone(),
                backends: listener.backends.iter().filter_map(backend).collect(),
            });
            Some(BalancerSpec {
                name: balancer.name.clone(),
                vni: balancer.vpc,
                address: balancer.address,
                listeners: listeners.collect(),
                line: line.clone(),
            })
        };
        let of_node = self.balancers.values().filter(|balancer| own.contains(&balancer.vpc));
        of_node.filter_map(spec).collect()
    }

    /// A line that a node can use for an address: it may have joined with what was given out.
    fn usable_line(&self, node: &NodeRecord, line: &Name, address: IpAddr) -> Option<()> {
        let vtep = node.underlay.as_ref()?.vtep;
        (self.lines.get(line)?.next_hop != vtep && address != IpAddr::V4(vtep)).then_some(())
    }

    /// What a node says of the backends that are on it, in the records, so that all others hear of
    /// it. Who has lost its node is unfit, too, while the listener has another one left: a
    /// control plane that fails must not end what still works.
    pub fn judge_backends(&self, node: NodeId, observed: &Observed, now: u64) -> Change {
        let mut change = Change::default();
        let Some(news) = News::of(node, observed, now) else { return change };
        // On most days nothing has failed, and nobody's NICs are looked at.
        let concerned = |one: &&BalancerRecord| {
            one.listeners.iter().any(ListenerRecord::is_checked)
                && (news.concerns(&one.name)
                    || one
                        .listeners
                        .iter()
                        .any(|listener| listener.backends.iter().any(|b| b.is_unfit)))
        };
        let mut nics: Option<BTreeMap<PortId, (NodeId, &Nic)>> = None;
        for balancer in self.balancers.values().filter(concerned) {
            let nics = nics.get_or_insert_with(|| {
                self.nics().map(|(vm, _, nic)| (nic.port, (vm.node, nic))).collect()
            });
            let mut judged = balancer.clone();
            for listener in judged.listeners.iter_mut().filter(|one| one.is_checked()) {
                let serves = |one: &BackendRecord| {
                    let at = nics.get(&one.port).map(|(at, _)| *at);
                    !one.is_unfit && !one.is_draining && at.is_some_and(|at| observed.is_alive(at))
                };
                let has_another = listener.backends.iter().any(serves);
                let settings = &listener.settings;
                for backend in &mut listener.backends {
                    let Some((_, nic)) = nics.get(&backend.port).filter(|(at, _)| *at == node)
                    else {
                        continue;
                    };
                    let is_it = |unfit: &&UnfitBackend| {
                        unfit.balancer == balancer.name
                            && unfit.protocol == settings.protocol
                            && unfit.port == settings.ports.0
                            && unfit.nic_port == backend.nic_port
                            && Some(unfit.address) == self.backend_address(balancer, nic)
                    };
                    backend.is_unfit = match news {
                        News::Told(unfit) => unfit.iter().any(|one| is_it(&one)),
                        News::Lost => backend.is_unfit || has_another,
                    };
                }
            }
            if judged != *balancer {
                change = change.put(Record::Balancer(judged));
            }
        }
        change
    }

    pub fn balancer_view(&self, balancer: &BalancerRecord) -> BalancerView {
        let backend = |backend: &BackendRecord| {
            let (vm, index, nic) = self.nics().find(|(_, _, nic)| nic.port == backend.port)?;
            Some(BackendView {
                nic: port_name(vm, index),
                node: self.node_name(vm.node),
                address: self.backend_address(balancer, nic)?,
                port: backend.nic_port,
                weight: backend.weight,
                is_draining: backend.is_draining,
                is_unfit: backend.is_unfit,
                seen: Vec::new(),
            })
        };
        let listeners = balancer.listeners.iter().map(|listener| ListenerView {
            number: listener.number,
            settings: listener.settings.clone(),
            backends: listener.backends.iter().filter_map(backend).collect(),
        });
        let is_external = matches!(balancer.place, BalancerPlace::Line(_));
        let seat = self.seat_of(balancer).filter(|_| is_external);
        BalancerView {
            name: balancer.name.clone(),
            vpc: self.vpc_name(balancer.vpc),
            address: balancer.address,
            place: balancer.place.clone(),
            node: seat.map(|node| self.node_name(node)),
            listeners: listeners.collect(),
            created_at: balancer.created_at,
        }
    }

    /// The nodes that have a balancer, with their names.
    pub fn nodes_with(&self, balancer: &BalancerRecord) -> BTreeMap<NodeId, Name> {
        let nodes: BTreeSet<NodeId> = match balancer.place {
            BalancerPlace::Line(_) => self.seat_of(balancer).into_iter().collect(),
            BalancerPlace::Subnet(_) => {
                let nics = self.nics().filter(|(_, _, nic)| nic.vpc == balancer.vpc);
                nics.map(|(vm, _, _)| vm.node).collect()
            }
        };
        nodes.into_iter().map(|node| (node, self.node_name(node))).collect()
    }

    pub(crate) fn check_balancers(&self, faults: &mut Vec<String>) {
        let mut addresses = BTreeSet::new();
        for balancer in self.balancers.values() {
            let name = &balancer.name;
            let is_there = match &balancer.place {
                BalancerPlace::Line(line) => self.lines.contains_key(line),
                BalancerPlace::Subnet(subnet) => self.subnets.get(subnet).is_some_and(|subnet| {
                    subnet.vpc == balancer.vpc && subnet.has_address(balancer.address)
                }),
            };
            if !is_there || self.vpc(balancer.vpc).is_none() {
                faults.push(format!("load balancer {name} is nowhere"));
            }
            let mut nics = self.nics().filter(|(_, _, nic)| nic.vpc == balancer.vpc);
            let is_nics =
                nics.any(|(_, _, nic)| self.nic_addresses(nic).contains(&balancer.address));
            if is_nics || !addresses.insert((balancer.vpc, balancer.address)) {
                faults.push(format!("the address of load balancer {name} is another's"));
            }
            for backend in balancer.listeners.iter().flat_map(|one| &one.backends) {
                let found = self.nics().find(|(_, _, nic)| nic.port == backend.port);
                if found.is_none_or(|(_, _, nic)| nic.vpc != balancer.vpc) {
                    faults.push(format!("a backend of load balancer {name} is no NIC of its vpc"));
                }
            }
        }
    }
}

/// What is new of the backends on a node.
enum News<'a> {
    /// These have failed, and no others.
    Told(&'a [UnfitBackend]),
    /// It has been silent for [`LOST_SECONDS`].
    Lost,
}

/// So long a node is silent before its backends count as unfit: longer than its agent takes to be
/// replaced, with its switch forwarding all the while.
const LOST_SECONDS: u64 = 30;

impl<'a> News<'a> {
    /// `None` of a node that says nothing of them, and of one that this service never saw.
    fn of(node: NodeId, observed: &'a Observed, now: u64) -> Option<Self> {
        let seen = observed.nodes.get(&node)?;
        let silent = now.saturating_sub(seen.at?);
        if !seen.is_alive && silent >= LOST_SECONDS {
            return Some(Self::Lost);
        }
        seen.status.as_ref()?.unfit.as_deref().filter(|_| seen.is_alive).map(Self::Told)
    }

    /// Whether any backend of this balancer may have become unfit.
    fn concerns(&self, balancer: &Name) -> bool {
        match self {
            Self::Told(unfit) => unfit.iter().any(|one| one.balancer == *balancer),
            Self::Lost => true,
        }
    }
}

fn add_listener(balancer: &mut BalancerRecord, given: &ListenerSettings) -> Result<(), Refusal> {
    let (first, last) = given.ports;
    if first == 0 || last < first {
        let text = format!("ports {first}-{last} are no range");
        return refuse(Code::Invalid, "--port", text, "give 1 to 65535, the lower one first");
    }
    if let Some(seconds) = given.stickiness
        && !(1..=STICKINESS_MAX).contains(&seconds)
    {
        let text = format!("a stickiness of {seconds} seconds is out of range");
        let remedy = format!("give 1 to {STICKINESS_MAX}, or leave it out");
        return refuse(Code::Invalid, "--stickiness", text, remedy);
    }
    if let Some(fault) = given.check.as_ref().and_then(|check| switch_check(check).fault()) {
        let remedy = "see `plinth lb listener add --help`";
        return refuse(Code::Invalid, "--check", fault, remedy);
    }
    let overlaps = |one: &&ListenerRecord| {
        let ports = one.settings.ports;
        one.settings.protocol == given.protocol && ports.0 <= last && first <= ports.1
    };
    if let Some(other) = balancer.listeners.iter().find(overlaps) {
        let text = format!("ports {first}-{last} overlap listener {}", other.number);
        return refuse(Code::Exists, "--port", text, "choose ports apart from it");
    }
    let (number, settings) = (balancer.next_listener, given.clone());
    balancer.listeners.push(ListenerRecord { number, settings, backends: Vec::new() });
    balancer.next_listener += 1;
    Ok(())
}

/// As a switch has it, which knows what it can be.
fn switch_check(given: &CheckSpec) -> HealthCheck {
    HealthCheck {
        kind: match &given.kind {
            CheckSpecKind::Tcp => CheckKind::Tcp,
            CheckSpecKind::Http(path) => CheckKind::Http { path: path.clone() },
            CheckSpecKind::Icmp => CheckKind::Icmp,
        },
        port: given.port,
        interval_ms: given.interval_ms,
        timeout_ms: given.timeout_ms,
        rise: given.rise,
        fall: given.fall,
    }
}

fn pick_listener(
    balancer: &mut BalancerRecord,
    number: Option<u32>,
) -> Result<&mut ListenerRecord, Refusal> {
    let name = balancer.name.clone();
    let show = format!("`plinth lb show {name}` lists them");
    if number.is_none() && balancer.listeners.len() != 1 {
        let text = format!("load balancer {name} has {} listeners", balancer.listeners.len());
        return refuse(Code::Invalid, "--listener", text, format!("name one: {show}"));
    }
    let is_it = |one: &&mut ListenerRecord| number.is_none_or(|number| one.number == number);
    let Some(found) = balancer.listeners.iter_mut().find(is_it) else {
        let number = number.unwrap_or_default();
        let text = format!("load balancer {name} has no listener {number}");
        return refuse(Code::NotFound, "--listener", text, show);
    };
    Ok(found)
}

fn pick_backend(
    listener: &ListenerRecord,
    port: PortId,
    named: &BackendName,
) -> Result<usize, Refusal> {
    let is_it = |one: &BackendRecord| {
        one.port == port && named.port.is_none_or(|wanted| one.nic_port == wanted)
    };
    let mut found =
        listener.backends.iter().enumerate().filter(|(_, one)| is_it(one)).map(|(at, _)| at);
    let (nic, lb) = (&named.nic, &named.balancer);
    match (found.next(), found.next()) {
        (Some(index), None) => Ok(index),
        (Some(_), Some(_)) => {
            let text =
                format!("NIC {nic} is more than one backend of listener {}", listener.number);
            refuse(Code::Invalid, "--to", text, "name the port of one")
        }
        (None, _) => {
            let text = format!("NIC {nic} is no such backend of listener {}", listener.number);
            refuse(Code::NotFound, "NIC", text, format!("see `plinth lb show {lb}`"))
        }
    }
}

fn add_backend(
    listener: &mut ListenerRecord,
    port: PortId,
    named: &BackendName,
    weight: u16,
) -> Result<(), Refusal> {
    let (first, last) = listener.settings.ports;
    let nic_port = named.port.unwrap_or(first);
    if nic_port == 0 || nic_port.checked_add(last - first).is_none() {
        let text = format!("ports {first}-{last} cannot lead to {nic_port} and up");
        return refuse(Code::Invalid, "--to", text, "give 1 to 65535, with room for all of them");
    }
    if listener.backends.len() >= BACKENDS_EACH_MAX {
        let text = format!("a listener has {BACKENDS_EACH_MAX} backends at most");
        return refuse(Code::NoRoom, "NIC", text, "make another load balancer");
    }
    if listener.backends.iter().any(|one| one.port == port && one.nic_port == nic_port) {
        let text = format!("NIC {} with port {nic_port} is a backend already", named.nic);
        return refuse(Code::Exists, "NIC", text, "nothing is left to do");
    }
    listener.backends.push(BackendRecord {
        port,
        nic_port,
        weight,
        is_draining: false,
        is_unfit: false,
    });
    Ok(())
}

fn check_weight(weight: u16, field: &str) -> Result<(), Refusal> {
    if (1..=BACKEND_WEIGHT_MAX).contains(&weight) {
        return Ok(());
    }
    let text = format!("a weight of {weight} is out of range");
    refuse(Code::Invalid, field, text, format!("give 1 to {BACKEND_WEIGHT_MAX}"))
}
