// SPDX-License-Identifier: Apache-2.0
//! Every record in memory, and what the nodes were last seen to be.

use crate::change::{Change, Key, Record, Write};
use crate::record::{
    BalancerRecord, EipRecord, GatewayRecord, GroupRecord, ImageRecord, LineRecord, Meta,
    NodeRecord, PoolRecord, SnapshotRecord, SubnetRecord, TokenRecord, VmRecord, VolumeRecord,
    VpcRecord,
};
use plinth_api::{NodeStatus, PoolStatus, VmStatus};
use plinth_ids::{Epoch, GroupId, Name, NodeId, PoolId, VmId, Vni, VolumeId};
use std::collections::BTreeMap;

/// The registry's records, by name. Reading it never fails: a reference that leads nowhere reads
/// as absent, and [`Self::check`] names it.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Of the last change applied.
    pub revision: u64,
    pub meta: Meta,
    pub tokens: BTreeMap<String, TokenRecord>,
    pub nodes: BTreeMap<Name, NodeRecord>,
    pub pools: BTreeMap<Name, PoolRecord>,
    pub images: BTreeMap<Name, ImageRecord>,
    pub volumes: BTreeMap<Name, VolumeRecord>,
    /// By volume and name.
    pub snapshots: BTreeMap<(Name, Name), SnapshotRecord>,
    pub vpcs: BTreeMap<Name, VpcRecord>,
    pub subnets: BTreeMap<Name, SubnetRecord>,
    pub groups: BTreeMap<Name, GroupRecord>,
    pub lines: BTreeMap<Name, LineRecord>,
    pub eips: BTreeMap<Name, EipRecord>,
    pub gateways: BTreeMap<Name, GatewayRecord>,
    pub balancers: BTreeMap<Name, BalancerRecord>,
    pub vms: BTreeMap<Name, VmRecord>,
}

impl Cluster {
    pub fn new(meta: Meta) -> Self {
        Self {
            revision: 0,
            meta,
            tokens: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pools: BTreeMap::new(),
            images: BTreeMap::new(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            vpcs: BTreeMap::new(),
            subnets: BTreeMap::new(),
            groups: BTreeMap::new(),
            lines: BTreeMap::new(),
            eips: BTreeMap::new(),
            gateways: BTreeMap::new(),
            balancers: BTreeMap::new(),
            vms: BTreeMap::new(),
        }
    }

    /// Takes over a change that the registry committed as `revision`.
    pub fn apply(&mut self, change: Change, revision: u64) {
        for write in change.writes {
            match write {
                Write::Put(record) => self.put(record),
                Write::Delete(key) => self.delete(&key),
            }
        }
        self.revision = revision;
    }

    fn put(&mut self, record: Record) {
        match record {
            Record::Meta(meta) => self.meta = meta,
            Record::Token(token) => {
                self.tokens.insert(token.digest.clone(), token);
            }
            Record::Node(node) => {
                self.nodes.insert(node.name.clone(), node);
            }
            Record::Pool(pool) => {
                self.pools.insert(pool.name.clone(), pool);
            }
            Record::Image(image) => {
                self.images.insert(image.name.clone(), image);
            }
            Record::Volume(volume) => {
                self.volumes.insert(volume.name.clone(), volume);
            }
            Record::Snapshot(snapshot) => {
                let key = (snapshot.volume.clone(), snapshot.name.clone());
                self.snapshots.insert(key, snapshot);
            }
            Record::Vpc(vpc) => {
                self.vpcs.insert(vpc.name.clone(), vpc);
            }
            Record::Subnet(subnet) => {
                self.subnets.insert(subnet.name.clone(), subnet);
            }
            Record::Group(group) => {
                self.groups.insert(group.name.clone(), group);
            }
            Record::Line(line) => {
                self.lines.insert(line.name.clone(), line);
            }
            Record::Eip(eip) => {
                self.eips.insert(eip.name.clone(), eip);
            }
            Record::Balancer(balancer) => {
                self.balancers.insert(balancer.name.clone(), balancer);
            }
            Record::Gateway(gateway) => {
                self.gateways.insert(gateway.name.clone(), gateway);
            }
            Record::Vm(vm) => {
                self.vms.insert(vm.name.clone(), vm);
            }
        }
    }

    fn delete(&mut self, key: &Key) {
        match key {
            Key::Meta => {}
            Key::Token(digest) => drop(self.tokens.remove(digest)),
            Key::Node(name) => drop(self.nodes.remove(name)),
            Key::Pool(name) => drop(self.pools.remove(name)),
            Key::Image(name) => drop(self.images.remove(name)),
            Key::Volume(name) => drop(self.volumes.remove(name)),
            Key::Snapshot(volume, name) => {
                self.snapshots.remove(&(volume.clone(), name.clone()));
            }
            Key::Vpc(name) => drop(self.vpcs.remove(name)),
            Key::Subnet(name) => drop(self.subnets.remove(name)),
            Key::Group(name) => drop(self.groups.remove(name)),
            Key::Line(name) => drop(self.lines.remove(name)),
            Key::Eip(name) => drop(self.eips.remove(name)),
            Key::Gateway(name) => drop(self.gateways.remove(name)),
            Key::Balancer(name) => drop(self.balancers.remove(name)),
            Key::Vm(name) => drop(self.vms.remove(name)),
        }
    }

    pub fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.nodes.values().find(|node| node.id == id)
    }

    pub fn pool(&self, id: PoolId) -> Option<&PoolRecord> {
        self.pools.values().find(|pool| pool.id == id)
    }

    pub fn volume(&self, id: VolumeId) -> Option<&VolumeRecord> {
        self.volumes.values().find(|volume| volume.id == id)
    }

    pub fn vpc(&self, vni: Vni) -> Option<&VpcRecord> {
        self.vpcs.values().find(|vpc| vpc.vni == vni)
    }

    pub fn group(&self, id: GroupId) -> Option<&GroupRecord> {
        self.groups.values().find(|group| group.id == id)
    }

    pub fn vm(&self, id: VmId) -> Option<&VmRecord> {
        self.vms.values().find(|vm| vm.id == id)
    }

    /// The VM that has this volume as a disk.
    pub fn holder(&self, volume: VolumeId) -> Option<&VmRecord> {
        self.vms.values().find(|vm| vm.disks.iter().any(|disk| disk.volume == volume))
    }

    /// The epoch of a spec made now.
    pub const fn epoch(&self) -> Epoch {
        Epoch(self.revision)
    }
}

/// What one node was last seen to be.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub is_alive: bool,
    /// When the agent last answered.
    pub at: Option<u64>,
    pub status: Option<NodeStatus>,
    /// Why it does not answer.
    pub fault: Option<String>,
}

/// What every node was last seen to be. Lost when the service stops, learnt again in a second.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub nodes: BTreeMap<NodeId, Seen>,
}

impl Observed {
    pub fn is_alive(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|seen| seen.is_alive)
    }

    pub fn status(&self, node: NodeId) -> Option<&NodeStatus> {
        self.nodes.get(&node)?.status.as_ref()
    }

    pub fn vm(&self, node: NodeId, vm: VmId) -> Option<&VmStatus> {
        self.status(node)?.vms.iter().find(|status| status.id == vm)
    }

    pub fn pool(&self, node: NodeId, pool: PoolId) -> Option<&PoolStatus> {
        self.status(node)?.pools.iter().find(|status| status.id == pool)
    }
}
