// SPDX-License-Identifier: Apache-2.0
//! NAT gateways: which NICs go out under which shared addresses, and which ports lead in.
//!
//! An address is on one node at a time, and translates for the NICs that are there. So a gateway
//! needs an address for each node that has NICs which it serves; it is seated there when the
//! first such NIC comes, and stays until the node has none and another one wants it.

use crate::change::{Change, Key, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::record::{
    ForwardRecord, GatewayAddress, GatewayRecord, LineRecord, Nic, NodeRecord, VmRecord,
};
use crate::spec::port_name;
use plinth_api::{
    Code, ForwardSpec, ForwardView, NatAddressView, NatCreate, NatForward, NatServes, NatSpec,
    NatView, Refusal, ServesSpec, VmSpec,
};
use plinth_ids::{Name, NodeId};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// What the switch takes: ports 1024 to 65535 are handed out, in blocks.
const PORTS: u32 = 64_512;
const PORTS_PER_NIC: (u16, u16) = (64, 64_512);
/// Of one gateway.
const ADDRESSES_MAX: usize = 256;
const FORWARDS_MAX: usize = 1000;

impl GatewayRecord {
    fn is_serving(&self, nic: &Nic) -> bool {
        nic.vpc == self.vpc
            && match &self.serves {
                ServesSpec::Vpc => true,
                ServesSpec::Subnet(subnet) => nic.subnet == *subnet,
                ServesSpec::Nic(port) => nic.port == *port,
            }
    }

    /// NICs that the addresses of a node have ports for.
    fn room(&self, node: NodeId) -> usize {
        let here = self.addresses.iter().filter(|one| one.node == Some(node)).count();
        here * (PORTS / u32::from(self.ports_per_nic).max(1)) as usize
    }
}

impl Cluster {
    pub fn nat_create(&self, request: &NatCreate, now: u64) -> Result<Change, Refusal> {
        names::free(&self.gateways, "nat-gateway", &request.name)?;
        let vpc = names::find(&self.vpcs, "vpc", "--vpc", &request.vpc)?;
        let line = self.find_line("--line", &request.line)?;
        let (least, most) = PORTS_PER_NIC;
        if !(least..=most).contains(&request.ports_per_nic) {
            let text = format!("{} ports for a NIC are out of range", request.ports_per_nic);
            return Err(Refusal::new(Code::Invalid, text)
                .field("--ports-per-nic")
                .remedy(format!("give {least} to {most}")));
        }
        let serves = self.plan_serves(vpc.vni, &request.vpc, &request.serves)?;
        let same = |other: &&GatewayRecord| other.vpc == vpc.vni && other.serves == serves;
        if let Some(other) = self.gateways.values().find(same) {
            let text = format!("NAT gateway {} serves the same", other.name);
            return Err(Refusal::new(Code::Exists, text)
                .field("--vpc")
                .remedy("give that one another address, or serve a subnet or a NIC"));
        }
        let mut gateway = GatewayRecord {
            name: request.name.clone(),
            vpc: vpc.vni,
            line: line.name.clone(),
            addresses: self.plan_addresses(line, &request.addresses, request.count)?,
            ports_per_nic: request.ports_per_nic,
            serves,
            mapping: request.mapping,
            forwards: Vec::new(),
            next_forward: 1,
            created_at: now,
        };
        for node in self.nodes_of(&gateway) {
            self.seat(&mut gateway, node, 0)?;
        }
        Ok(Change::default().put(Record::Gateway(gateway)))
    }

    fn plan_serves(
        &self,
        vni: plinth_ids::Vni,
        vpc: &Name,
        serves: &NatServes,
    ) -> Result<ServesSpec, Refusal> {
        let refuse = |field: &str, text: String| {
            let remedy = format!("name one of vpc {vpc}");
            Err(Refusal::new(Code::Invalid, text).field(field).remedy(remedy))
        };
        match serves {
            NatServes::Vpc => Ok(ServesSpec::Vpc),
            NatServes::Subnet(name) => {
                let subnet = names::find(&self.subnets, "subnet", "--subnet", name)?;
                if subnet.vpc != vni {
                    return refuse("--subnet", format!("subnet {name} is of another vpc"));
                }
                Ok(ServesSpec::Subnet(name.clone()))
            }
            NatServes::Nic(name) => {
                let (_, _, nic) = self.find_nic(name)?;
                if nic.vpc != vni {
                    return refuse("--nic", format!("NIC {name} is of another vpc"));
                }
                Ok(ServesSpec::Nic(nic.port))
            }
        }
    }

    fn plan_addresses(
        &self,
        line: &LineRecord,
        named: &[Ipv4Addr],
        count: u16,
    ) -> Result<Vec<GatewayAddress>, Refusal> {
        let mut taken = Vec::new();
        // What was asked for comes first: a free choice must not take it away.
        let wanted = named.iter().map(|address| Some(*address));
        for wanted in wanted.chain(std::iter::repeat_n(None, count.into())) {
            if taken.len() >= ADDRESSES_MAX {
                let text = format!("a NAT gateway has {ADDRESSES_MAX} addresses at most");
                return Err(Refusal::new(Code::NoRoom, text)
                    .field("--count")
                    .remedy("make another gateway for a part of the vpc"));
            }
            taken.push(self.pick_external(line, wanted, &taken)?);
        }
        if taken.is_empty() {
            let text = "a NAT gateway needs an address";
            return Err(Refusal::new(Code::Invalid, text)
                .field("--count")
                .remedy("give --count 1 or more, or --address"));
        }
        Ok(taken.into_iter().map(|address| GatewayAddress { address, node: None }).collect())
    }

    /// The NICs that a gateway serves, with their VMs.
    fn served<'a>(
        &'a self,
        gateway: &'a GatewayRecord,
    ) -> impl Iterator<Item = (&'a VmRecord, &'a Nic)> {
        let all = self.nics().map(|(vm, _, nic)| (vm, nic));
        all.filter(|(_, nic)| gateway.is_serving(nic))
    }

    /// Nodes with NICs that a gateway serves, if the nodes have a way out.
    fn nodes_of(&self, gateway: &GatewayRecord) -> BTreeSet<NodeId> {
        let nodes = self.served(gateway).map(|(vm, _)| vm.node);
        nodes.filter(|node| self.has_underlay(*node)).collect()
    }

    fn has_underlay(&self, node: NodeId) -> bool {
        self.node(node).is_some_and(|node| node.underlay.is_some())
    }

    /// Whether nobody needs an address where it is.
    fn is_spare(&self, gateway: &GatewayRecord, one: &GatewayAddress) -> bool {
        let Some(node) = one.node else { return true };
        let leads_in =
            gateway.forwards.iter().any(|forward| forward.forward.address == one.address);
        !leads_in && !self.served(gateway).any(|(vm, _)| vm.node == node)
    }

    /// Gives a node addresses for the NICs that the gateway serves there, and for `more`. A node
    /// that has none yet gets enough or goes without: a switch takes no gateway of which some
    /// NICs would have ports and others none.
    fn seat(&self, gateway: &mut GatewayRecord, node: NodeId, more: usize) -> Result<(), Refusal> {
        let wanted = self.served(gateway).filter(|(vm, _)| vm.node == node).count() + more;
        let (before, had_room) = (gateway.addresses.clone(), gateway.room(node) > 0);
        while gateway.room(node) < wanted {
            let spare =
                |one: &GatewayAddress| one.node != Some(node) && self.is_spare(gateway, one);
            let Some(index) = gateway.addresses.iter().position(spare) else { break };
            gateway.addresses[index].node = Some(node);
        }
        let room = gateway.room(node);
        if room >= wanted {
            return Ok(());
        }
        gateway.addresses = before;
        if !had_room {
            return Ok(());
        }
        let (name, node) = (&gateway.name, self.node_name(node));
        let text = format!("NAT gateway {name} has ports for {room} NICs on node {node}");
        Err(Refusal::new(Code::NoRoom, text)
            .field("--nic")
            .remedy(format!("add an address: plinth nat-gateway address add {name}")))
    }

    /// The gateways that are to serve a VM which is being made.
    pub(crate) fn seat_vm(&self, vm: &VmRecord, mut change: Change) -> Result<Change, Refusal> {
        for gateway in self.gateways.values() {
            let more = vm.nics.iter().filter(|nic| gateway.is_serving(nic)).count();
            if more == 0 || !self.has_underlay(vm.node) {
                continue;
            }
            let mut seated = gateway.clone();
            self.seat(&mut seated, vm.node, more)?;
            if seated != *gateway {
                change = change.put(Record::Gateway(seated));
            }
        }
        Ok(change)
    }

    fn find_gateway(&self, field: &'static str, name: &Name) -> Result<&GatewayRecord, Refusal> {
        names::find(&self.gateways, "nat-gateway", field, name)
    }

    pub fn nat_delete(&self, name: &Name) -> Result<Change, Refusal> {
        self.find_gateway("NAME", name)?;
        Ok(Change::default().delete(Key::Gateway(name.clone())))
    }

    pub fn nat_address_add(
        &self,
        name: &Name,
        address: Option<Ipv4Addr>,
    ) -> Result<Change, Refusal> {
        let mut gateway = self.find_gateway("GATEWAY", name)?.clone();
        if gateway.addresses.len() >= ADDRESSES_MAX {
            let text = format!("a NAT gateway has {ADDRESSES_MAX} addresses at most");
            return Err(Refusal::new(Code::NoRoom, text)
                .field("GATEWAY")
                .remedy("make another gateway for a part of the vpc"));
        }
        let line = self.find_line("GATEWAY", &gateway.line)?;
        let address = self.pick_external(line, address, &[])?;
        gateway.addresses.push(GatewayAddress { address, node: None });
        for node in self.lacking(&gateway) {
            self.seat(&mut gateway, node, 0)?;
        }
        Ok(Change::default().put(Record::Gateway(gateway)))
    }

    pub fn nat_address_remove(&self, name: &Name, address: Ipv4Addr) -> Result<Change, Refusal> {
        let mut gateway = self.find_gateway("GATEWAY", name)?.clone();
        let refuse = |code, text: String, remedy: String| {
            Err(Refusal::new(code, text).field("ADDRESS").remedy(remedy))
        };
        let Some(index) = gateway.addresses.iter().position(|one| one.address == address) else {
            let text = format!("NAT gateway {name} has no address {address}");
            return refuse(Code::NotFound, text, format!("see `plinth nat-gateway show {name}`"));
        };
        if gateway.forwards.iter().any(|one| one.forward.address == address) {
            let text = format!("ports of {address} lead to a NIC");
            let remedy = format!("remove its forwards first: plinth nat-gateway show {name}");
            return refuse(Code::InUse, text, remedy);
        }
        if gateway.addresses.len() == 1 {
            let text = format!("{address} is the last one of NAT gateway {name}");
            return refuse(Code::InUse, text, "delete the gateway, or add another".to_owned());
        }
        let node = gateway.addresses.remove(index).node;
        if let Some(node) = node {
            self.seat(&mut gateway, node, 0)?;
        }
        Ok(Change::default().put(Record::Gateway(gateway)))
    }

    pub fn nat_forward_add(&self, name: &Name, request: &NatForward) -> Result<Change, Refusal> {
        let mut gateway = self.find_gateway("GATEWAY", name)?.clone();
        let (vm, _, nic) = self.find_nic(&request.nic)?;
        let refuse = |code, field: &str, text: String, remedy: String| {
            Err(Refusal::new(code, text).field(field).remedy(remedy))
        };
        if nic.vpc != gateway.vpc {
            let text = format!("NIC {} is of another vpc than {name}", request.nic);
            return refuse(Code::Invalid, "--nic", text, "name one of its vpc".to_owned());
        }
        let (first, last) = request.ports;
        let nic_port = request.nic_port.unwrap_or(first);
        let fits = first > 0 && first <= last && nic_port > 0;
        if !fits || nic_port.checked_add(last - first).is_none() {
            let text = format!("ports {first}-{last} cannot lead to {nic_port} and up");
            let remedy = "give 1 to 65535, the lower one first".to_owned();
            return refuse(Code::Invalid, "--port", text, remedy);
        }
        if gateway.forwards.len() >= FORWARDS_MAX {
            let text = format!("a NAT gateway has {FORWARDS_MAX} forwards at most");
            let remedy = "join ports into ranges, or make another gateway".to_owned();
            return refuse(Code::NoRoom, "GATEWAY", text, remedy);
        }
        let address = self.forward_address(&mut gateway, request, vm.node)?;
        // The NICs there go out by it as well.
        self.seat(&mut gateway, vm.node, 0)?;
        let clash = gateway.forwards.iter().find(|one| {
            let ForwardSpec { address: other, protocol, ports, .. } = one.forward;
            other == address && protocol == request.protocol && ports.0 <= last && first <= ports.1
        });
        if let Some(clash) = clash {
            let text =
                format!("ports {first}-{last} overlap forward {} of {address}", clash.number);
            let remedy = "choose ports apart, or another address".to_owned();
            return refuse(Code::Exists, "--port", text, remedy);
        }
        let forward = ForwardSpec {
            address,
            protocol: request.protocol,
            ports: request.ports,
            port: nic.port,
            nic_port,
        };
        gateway.forwards.push(ForwardRecord { number: gateway.next_forward, forward });
        gateway.next_forward += 1;
        Ok(Change::default().put(Record::Gateway(gateway)))
    }

    /// The address of a forward: it is on the node of the forward's NIC.
    fn forward_address(
        &self,
        gateway: &mut GatewayRecord,
        request: &NatForward,
        node: NodeId,
    ) -> Result<Ipv4Addr, Refusal> {
        let name = gateway.name.clone();
        let refuse = |code, text: String, remedy: String| {
            Err(Refusal::new(code, text).field("--address").remedy(remedy))
        };
        let show = format!("`plinth nat-gateway show {name}` shows where each is");
        if let Some(address) = request.address {
            let Some(index) = gateway.addresses.iter().position(|one| one.address == address)
            else {
                let text = format!("{address} is no address of NAT gateway {name}");
                return refuse(Code::NotFound, text, show);
            };
            if gateway.addresses[index].node != Some(node) {
                if !self.is_spare(gateway, &gateway.addresses[index]) {
                    let text = format!("{address} is not on the node of NIC {}", request.nic);
                    return refuse(Code::Invalid, text, show);
                }
                gateway.addresses[index].node = Some(node);
            }
            return Ok(address);
        }
        let here = gateway.addresses.iter().position(|one| one.node == Some(node));
        let index =
            here.or_else(|| gateway.addresses.iter().position(|one| self.is_spare(gateway, one)));
        let Some(index) = index else {
            let text = format!("NAT gateway {name} has no address for that NIC's node");
            return refuse(
                Code::NoRoom,
                text,
                format!("add one: plinth nat-gateway address add {name}"),
            );
        };
        gateway.addresses[index].node = Some(node);
        Ok(gateway.addresses[index].address)
    }

    pub fn nat_forward_remove(&self, name: &Name, number: u32) -> Result<Change, Refusal> {
        let mut gateway = self.find_gateway("GATEWAY", name)?.clone();
        let count = gateway.forwards.len();
        gateway.forwards.retain(|one| one.number != number);
        if gateway.forwards.len() == count {
            let text = format!("NAT gateway {name} has no forward {number}");
            return Err(Refusal::new(Code::NotFound, text)
                .field("NUMBER")
                .remedy(format!("`plinth nat-gateway show {name}` lists them")));
        }
        Ok(Change::default().put(Record::Gateway(gateway)))
    }

    /// Nodes with NICs that would be served, and no address for them.
    fn lacking(&self, gateway: &GatewayRecord) -> BTreeSet<NodeId> {
        self.nodes_of(gateway).into_iter().filter(|node| gateway.room(*node) == 0).collect()
    }

    pub fn nat_view(&self, gateway: &GatewayRecord) -> NatView {
        let nic_name = |port: plinth_ids::PortId| {
            let found = self.nics().find(|(_, _, nic)| nic.port == port);
            found.map_or_else(
                || port.to_string().parse().expect("a word and a number are a name"),
                |(vm, index, _)| port_name(vm, index),
            )
        };
        let addresses = gateway.addresses.iter().map(|one| NatAddressView {
            address: one.address,
            node: one.node.map(|node| self.node_name(node)),
            counters: None,
        });
        let forwards = gateway.forwards.iter().map(|one| ForwardView {
            number: one.number,
            address: one.forward.address,
            protocol: one.forward.protocol,
            ports: one.forward.ports,
            nic: nic_name(one.forward.port),
            nic_port: one.forward.nic_port,
        });
        NatView {
            name: gateway.name.clone(),
            vpc: self.vpc_name(gateway.vpc),
            line: gateway.line.clone(),
            addresses: addresses.collect(),
            ports_per_nic: gateway.ports_per_nic,
            serves: match &gateway.serves {
                ServesSpec::Vpc => NatServes::Vpc,
                ServesSpec::Subnet(subnet) => NatServes::Subnet(subnet.clone()),
                ServesSpec::Nic(port) => NatServes::Nic(nic_name(*port)),
            },
            mapping: gateway.mapping,
            forwards: forwards.collect(),
            lacking: self.lacking(gateway).into_iter().map(|node| self.node_name(node)).collect(),
            created_at: gateway.created_at,
        }
    }

    /// The parts of gateways that are on a node, with their lines among the usable ones.
    pub(crate) fn nat_specs(
        &self,
        node: &NodeRecord,
        vms: &[VmSpec],
        is_usable: impl Fn(&Name) -> bool,
    ) -> Vec<NatSpec> {
        let vtep = node.underlay.as_ref().map(|underlay| underlay.vtep);
        let nics = || vms.iter().flat_map(|vm| &vm.nics);
        let part = |gateway: &GatewayRecord| {
            let here = gateway.addresses.iter().filter(|one| one.node == Some(node.id));
            let addresses: Vec<Ipv4Addr> =
                here.map(|one| one.address).filter(|address| Some(*address) != vtep).collect();
            let has_nic = nics().any(|nic| nic.vni == gateway.vpc);
            if addresses.is_empty() || !has_nic || !is_usable(&gateway.line) {
                return None;
            }
            let forwards = gateway.forwards.iter().map(|one| one.forward).filter(|forward| {
                addresses.contains(&forward.address) && nics().any(|nic| nic.port == forward.port)
            });
            Some(NatSpec {
                name: gateway.name.clone(),
                vni: gateway.vpc,
                line: gateway.line.clone(),
                forwards: forwards.collect(),
                addresses,
                ports_per_nic: gateway.ports_per_nic,
                serves: gateway.serves.clone(),
                mapping: gateway.mapping,
            })
        };
        self.gateways.values().filter_map(part).collect()
    }
}
