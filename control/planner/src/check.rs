// SPDX-License-Identifier: Apache-2.0
//! What always holds of the records.

use crate::cluster::Cluster;
use crate::record::State;
use plinth_api::{BalancerPlace, HopSpec, PeerSpec};
use std::collections::BTreeSet;
use std::net::IpAddr;

impl Cluster {
    /// Every invariant, a sentence each. Empty when all hold.
    pub fn check(&self) -> Vec<String> {
        let mut faults = Vec::new();
        self.check_networks(&mut faults);
        self.check_nics(&mut faults);
        self.check_groups(&mut faults);
        self.check_disks(&mut faults);
        self.check_references(&mut faults);
        self.check_external(&mut faults);
        self.check_balancers(&mut faults);
        faults
    }

    fn check_networks(&self, faults: &mut Vec<String>) {
        let mut vnis = BTreeSet::new();
        for vpc in self.vpcs.values() {
            if !vnis.insert(vpc.vni) {
                faults.push(format!("VNI {} belongs to two VPCs", vpc.vni));
            }
        }
        for one in self.subnets.values() {
            for other in self.subnets.values() {
                let overlap = one.range().contains(other.network);
                if one.name != other.name && one.vpc == other.vpc && overlap {
                    faults.push(format!("subnets {} and {} overlap", one.name, other.name));
                }
            }
        }
    }

    fn check_nics(&self, faults: &mut Vec<String>) {
        let (mut addresses, mut macs, mut ports) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (vm, nic) in self.vms.values().flat_map(|vm| vm.nics.iter().map(move |nic| (vm, nic))) {
            if !addresses.insert((nic.vpc, nic.address)) {
                faults.push(format!("{} of VNI {} has two NICs", nic.address, nic.vpc));
            }
            if !macs.insert(nic.mac) {
                faults.push(format!("{} belongs to two NICs", nic.mac));
            }
            if !ports.insert(nic.port) || nic.port.0 >= self.meta.next_port {
                faults.push(format!("{} is given out twice or not at all", nic.port));
            }
            match self.subnets.get(&nic.subnet) {
                None => faults.push(format!("a NIC of VM {} has no subnet", vm.name)),
                Some(subnet) => {
                    if subnet.vpc != nic.vpc || !subnet.range().contains(nic.address) {
                        faults.push(format!("{} is outside its subnet", nic.address));
                    }
                    if subnet.gateway == nic.address {
                        faults.push(format!("{} is also the gateway", nic.address));
                    }
                }
            }
        }
    }

    fn check_groups(&self, faults: &mut Vec<String>) {
        let mut ids = BTreeSet::new();
        for group in self.groups.values() {
            if !ids.insert(group.id) || group.id.0 >= self.meta.next_group {
                faults.push(format!("{} is given out twice or not at all", group.id));
            }
            if self.vpc(group.vpc).is_none() {
                faults.push(format!("security group {} has no vpc", group.name));
            }
            let peers = group.rules.iter().filter_map(|rule| match rule.peer {
                PeerSpec::Group(peer) => Some(peer),
                PeerSpec::Any | PeerSpec::Prefix(_) => None,
            });
            for peer in peers {
                if self.group(peer).is_none_or(|peer| peer.vpc != group.vpc) {
                    faults
                        .push(format!("a rule of group {} names no group of its vpc", group.name));
                }
            }
        }
        for vpc in self.vpcs.values() {
            if vpc.default_group.is_some_and(|id| self.group(id).is_none()) {
                faults.push(format!("vpc {} has lost its default group", vpc.name));
            }
            for route in &vpc.routes {
                let is_there = match route.next_hop {
                    HopSpec::Address(hop) => self
                        .subnets
                        .values()
                        .any(|subnet| subnet.vpc == vpc.vni && subnet.has_address(hop)),
                    HopSpec::Peer(peer) => peer != vpc.vni && self.vpc(peer).is_some(),
                    HopSpec::Blackhole | HopSpec::External => true,
                };
                if !is_there {
                    faults.push(format!("the route to {} leads nowhere", route.destination));
                }
            }
        }
        for (vm, nic) in self.vms.values().flat_map(|vm| vm.nics.iter().map(move |nic| (vm, nic))) {
            for id in nic.groups.iter().flatten() {
                if self.group(*id).is_none_or(|group| group.vpc != nic.vpc) {
                    faults.push(format!("a NIC of VM {} is in no group of its vpc", vm.name));
                }
            }
        }
    }

    fn check_external(&self, faults: &mut Vec<String>) {
        let mut addresses = BTreeSet::new();
        let eips = self.eips.values().map(|eip| (eip.address, &eip.line));
        let gateways = self.gateways.values().flat_map(|gateway| {
            gateway.addresses.iter().map(move |one| (one.address, &gateway.line))
        });
        let balancers = self.balancers.values().filter_map(|one| match (&one.place, one.address) {
            (BalancerPlace::Line(line), IpAddr::V4(address)) => Some((address, line)),
            _ => None,
        });
        for (address, line) in eips.chain(gateways).chain(balancers) {
            if !addresses.insert(address) {
                faults.push(format!("external address {address} is given out twice"));
            }
            let is_of = |line: &crate::record::LineRecord| {
                line.pools.iter().any(|pool| pool.contains(address.into()))
            };
            if !self.lines.get(line).is_some_and(is_of) {
                faults.push(format!("external address {address} is of no pool of its line"));
            }
        }
        let is_there = |port| self.nics().any(|(_, _, nic)| nic.port == port);
        for eip in self.eips.values() {
            if eip.bound.as_ref().is_some_and(|bound| !is_there(bound.port)) {
                faults.push(format!("external address {} is bound to no NIC", eip.name));
            }
        }
        for gateway in self.gateways.values() {
            if self.vpc(gateway.vpc).is_none() {
                faults.push(format!("NAT gateway {} has no vpc", gateway.name));
            }
            for one in &gateway.forwards {
                let vm = self.nics().find(|(_, _, nic)| nic.port == one.forward.port);
                let node = vm.map(|(vm, _, _)| vm.node);
                let seat = gateway.addresses.iter().find(|a| a.address == one.forward.address);
                if node.is_none() || seat.and_then(|seat| seat.node) != node {
                    faults.push(format!("a forward of {} is not where its NIC is", gateway.name));
                }
            }
        }
    }

    fn check_disks(&self, faults: &mut Vec<String>) {
        let mut attached = BTreeSet::new();
        for vm in self.vms.values() {
            for disk in &vm.disks {
                if !attached.insert(disk.volume) {
                    faults.push(format!("{} is attached twice", disk.volume));
                }
                match self.volume(disk.volume).and_then(|volume| self.pool(volume.pool)) {
                    None => faults.push(format!("a disk of VM {} has no volume", vm.name)),
                    Some(pool) if pool.node != vm.node => {
                        faults.push(format!("a disk of VM {} is on another node", vm.name));
                    }
                    Some(_) => {}
                }
            }
        }
        let mut ids = BTreeSet::new();
        let copies = self.images.values().flat_map(|image| &image.copies);
        let volumes = self.volumes.values().map(|volume| volume.id);
        for id in volumes.chain(copies.map(|copy| copy.volume)) {
            if !ids.insert(id) || id.0 >= self.meta.next_volume {
                faults.push(format!("{id} is given out twice or not at all"));
            }
        }
    }

    fn check_references(&self, faults: &mut Vec<String>) {
        for pool in self.pools.values() {
            if self.node(pool.node).is_none() {
                faults.push(format!("pool {} has no node", pool.name));
            }
            let ids: BTreeSet<_> = pool.disks.iter().map(|disk| disk.id).collect();
            if ids.is_empty() || ids.len() != pool.disks.len() {
                faults.push(format!("pool {} has no disk, or one twice", pool.name));
            }
            if ids.last().is_some_and(|last| last.0 >= pool.next_disk) {
                faults.push(format!("a disk of pool {} is given out twice", pool.name));
            }
        }
        for volume in self.volumes.values() {
            if self.pool(volume.pool).is_none() {
                faults.push(format!("volume {} has no pool", volume.name));
            }
            let orphan = volume.system_of.is_some_and(|vm| self.vm(vm).is_none());
            if orphan && volume.state == State::Ready {
                faults.push(format!("system volume {} has no VM and is kept", volume.name));
            }
        }
        let mut snapshots = BTreeSet::new();
        let copies = self.images.values().flat_map(|image| &image.copies);
        let ids = self.snapshots.values().map(|snapshot| snapshot.id);
        for id in ids.chain(copies.filter_map(|copy| copy.snapshot)) {
            if !snapshots.insert(id) || id.0 >= self.meta.next_snapshot {
                faults.push(format!("{id} is given out twice or not at all"));
            }
        }
        for snapshot in self.snapshots.values() {
            if !self.volumes.contains_key(&snapshot.volume) {
                faults.push(format!("snapshot {} has no volume", snapshot.name));
            }
        }
        for vm in self.vms.values() {
            if self.node(vm.node).is_none() {
                faults.push(format!("VM {} has no node", vm.name));
            }
        }
        for subnet in self.subnets.values() {
            if self.vpc(subnet.vpc).is_none() {
                faults.push(format!("subnet {} has no vpc", subnet.name));
            }
        }
    }
}
