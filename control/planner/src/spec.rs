// SPDX-License-Identifier: Apache-2.0
//! The spec of one node, made whole from the records.

use crate::cluster::Cluster;
use crate::record::{DiskRecord, Nic, NodeRecord, PoolRecord, State, SubnetRecord, VmRecord};
use plinth_api::{Address, DiskSpec, NicSpec, NodeSpec, PoolDiskSpec, PoolSpec, Remote, VmSpec};
use plinth_ids::{Name, NodeId, Prefix, Vni};
use std::collections::BTreeSet;

/// Outer Ethernet, IPv4, UDP and VXLAN around a guest's frame (RFC 7348, section 5), without the
/// inner Ethernet header that stands in for the outer one.
const VXLAN_OVERHEAD: u16 = 50;

/// A guest's MTU where its node has no underlay: what it would be over one of 1500.
const GUEST_MTU: u16 = 1500 - VXLAN_OVERHEAD;

impl Cluster {
    /// What this node is to be now. `None` for a node that is not in the cluster.
    pub fn node_spec(&self, id: NodeId) -> Option<NodeSpec> {
        let node = self.node(id)?;
        let pools = self
            .pools_of(id)
            .map(|pool| PoolSpec {
                id: pool.id,
                name: pool.name.clone(),
                disks: disk_specs(pool),
                durability: pool.durability,
                class: pool.class,
                scrub: pool.scrub.clone(),
                access: pool.access,
            })
            .collect();
        let vms: Vec<VmSpec> = self
            .vms
            .values()
            .filter(|vm| vm.node == id && vm.state == State::Ready)
            .map(|vm| self.vm_spec(node, vm))
            .collect();
        let own: BTreeSet<Vni> = vms.iter().flat_map(|vm| &vm.nics).map(|nic| nic.vni).collect();
        let vpcs = self.with_peers(&own);
        let balancers = self.balancer_specs(node, &own);
        Some(NodeSpec {
            epoch: self.epoch(),
            node: id,
            name: node.name.clone(),
            underlay: node.underlay.clone(),
            pools,
            remotes: self.remotes(id, &vpcs),
            groups: self.group_specs(&vms),
            vpcs: self.vpc_specs(&vpcs),
            external: self.external_spec(node, &vms, &balancers),
            balancers,
            vms,
            store_cores: node.store_cores.clone(),
        })
    }

    fn vm_spec(&self, node: &NodeRecord, vm: &VmRecord) -> VmSpec {
        let disk = |disk: &crate::record::Disk| {
            let volume = self.volume(disk.volume)?;
            Some(DiskSpec {
                pool: volume.pool,
                volume: volume.id,
                name: volume.name.clone(),
                is_read_only: disk.is_read_only,
                limits: self.limits_of(volume),
            })
        };
        VmSpec {
            id: vm.id,
            name: vm.name.clone(),
            vcpus: vm.vcpus,
            memory: vm.memory,
            boot: vm.boot.clone(),
            disks: vm.disks.iter().filter_map(disk).collect(),
            nics: vm
                .nics
                .iter()
                .enumerate()
                .filter(|(_, nic)| !nic.is_leaving)
                .map(|(index, nic)| self.nic_spec(node, vm, index, nic))
                .collect(),
            run: vm.run,
            start_number: vm.start_number,
        }
    }

    fn nic_spec(&self, node: &NodeRecord, vm: &VmRecord, index: usize, nic: &Nic) -> NicSpec {
        let subnet = self.subnets.get(&nic.subnet);
        let underlay_mtu = node.underlay.as_ref().map(|underlay| underlay.mtu);
        NicSpec {
            port: nic.port,
            name: port_name(vm, index),
            vni: nic.vpc,
            mac: nic.mac,
            addresses: addresses(nic, subnet),
            gateway: subnet.map(|subnet| subnet.gateway.into()),
            mtu: underlay_mtu.map_or(GUEST_MTU, |mtu| mtu.saturating_sub(VXLAN_OVERHEAD)),
            subnet: nic.subnet.clone(),
            groups: nic.groups.clone(),
            allowed: self.allowed(nic),
            limits: nic.limits,
        }
    }

    /// What a NIC may speak from: what an operator allowed, and external addresses of its own.
    fn allowed(&self, nic: &Nic) -> Vec<Prefix> {
        let carried = self.carried_by(nic.port).filter(|range| !nic.allowed.contains(range));
        nic.allowed.iter().copied().chain(carried).collect()
    }

    /// The NICs of other nodes in these VPCs.
    fn remotes(&self, id: NodeId, vpcs: &BTreeSet<Vni>) -> Vec<Remote> {
        let mut remotes = Vec::new();
        // Without tunnels nothing is reached: of a peer's NICs elsewhere it need not hear.
        if self.node(id).is_none_or(|node| node.underlay.is_none()) {
            return remotes;
        }
        let elsewhere = |vm: &&VmRecord| vm.node != id && vm.state == State::Ready;
        for vm in self.vms.values().filter(elsewhere) {
            let Some(underlay) = self.node(vm.node).and_then(|node| node.underlay.as_ref()) else {
                continue;
            };
            let is_there = |nic: &&Nic| vpcs.contains(&nic.vpc) && !nic.is_leaving;
            for nic in vm.nics.iter().filter(is_there) {
                remotes.push(Remote {
                    vni: nic.vpc,
                    mac: nic.mac,
                    addresses: self.nic_addresses(nic),
                    vtep: underlay.vtep,
                    subnet: nic.subnet.clone(),
                    groups: nic.groups.clone().unwrap_or_default(),
                    allowed: nic.allowed.clone(),
                });
            }
        }
        remotes
    }
}

/// The disks that are formatted, those that are about to be forgotten included.
fn disk_specs(pool: &PoolRecord) -> Vec<PoolDiskSpec> {
    let is_there = |disk: &&DiskRecord| disk.state != State::Creating;
    pool.disks.iter().filter(is_there).map(disk_spec).collect()
}

pub(crate) fn disk_spec(disk: &DiskRecord) -> PoolDiskSpec {
    PoolDiskSpec { id: disk.id, device: disk.device.clone(), is_draining: disk.is_draining }
}

/// What a NIC carries, with the lengths of its subnet's ranges.
fn addresses(nic: &Nic, subnet: Option<&SubnetRecord>) -> Vec<Address> {
    let prefix_length = subnet.map_or(32, |subnet| subnet.prefix_length);
    let ipv4 = Address { ip: nic.address.into(), prefix_length };
    let ipv6 = subnet.and_then(|subnet| subnet.ipv6_of(nic.mac));
    let ipv6 = ipv6.map(|address| Address { ip: address.into(), prefix_length: 64 });
    std::iter::once(ipv4).chain(ipv6).collect()
}

/// The number of a NIC in its VM, by which it is named.
pub(crate) fn nic_number(vm: &VmRecord, index: usize) -> usize {
    vm.nics.get(index).and_then(|nic| nic.number).map_or(index, usize::from)
}

/// `VM-NUMBER`. The number is the last part, so no two VMs have ports of one name.
pub(crate) fn port_name(vm: &VmRecord, index: usize) -> Name {
    format!("{}-{}", vm.name, nic_number(vm, index))
        .parse()
        .expect("the VM's name was checked to leave room for the index")
}
