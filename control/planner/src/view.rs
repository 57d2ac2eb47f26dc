// SPDX-License-Identifier: Apache-2.0
//! Resources as an operator sees them.

use crate::cluster::{Cluster, Observed};
use crate::record::{
    DiskRecord, ImageRecord, NodeRecord, PoolRecord, SnapshotRecord, SubnetRecord, VmRecord,
    VolumeRecord, VpcRecord,
};
use crate::route::router_mac;
use plinth_api::{
    CheckState, ClusterView, Code, DaemonState, DiskState, DiskView, ImageCopy, ImageView, Level,
    LimitView, NicView, NodeView, PoolDiskView, PoolView, Refusal, ScheduleView, SnapshotUsage,
    SnapshotView, SubnetView, VmState, VmView, VolumeView, VpcView,
};
use plinth_ids::{ImageId, Name, NodeId, PoolId, Vni};

impl Cluster {
    pub fn cluster_view(&self, observed: &Observed, version: &str) -> ClusterView {
        let running = |vm: &&VmRecord| {
            observed.vm(vm.node, vm.id).is_some_and(|status| status.state == VmState::Running)
        };
        let pools: Vec<PoolView> =
            self.pools.values().map(|pool| self.pool_view(pool, observed)).collect();
        ClusterView {
            name: self.meta.name.clone(),
            version: version.to_owned(),
            revision: self.revision,
            nodes: self.nodes.len() as u64,
            nodes_alive: self.nodes.values().filter(|node| observed.is_alive(node.id)).count()
                as u64,
            vms: self.vms.len() as u64,
            vms_running: self.vms.values().filter(running).count() as u64,
            volumes: self.volumes.len() as u64,
            capacity: pools.iter().filter_map(|pool| pool.capacity).sum(),
            used: pools.iter().filter_map(|pool| pool.used).sum(),
            warnings: self.warnings(observed, &pools),
        }
    }

    fn warnings(&self, observed: &Observed, pools: &[PoolView]) -> Vec<String> {
        let mut warnings = Vec::new();
        for node in self.nodes.values() {
            let name = &node.name;
            if !observed.is_alive(node.id) {
                warnings.push(format!("node {name} does not answer"));
                continue;
            }
            let Some(status) = observed.status(node.id) else { continue };
            for check in &status.facts.checks {
                if check.state == CheckState::Missing {
                    warnings.push(format!("node {name} cannot run VMs: {}", check.text));
                }
            }
            for daemon in &status.daemons {
                if daemon.state == DaemonState::Down {
                    warnings
                        .push(format!("{} of node {name} is down: {}", daemon.name, daemon.text));
                }
            }
        }
        for vm in self.vms.values() {
            if let Some(status) = observed.vm(vm.node, vm.id)
                && status.state == VmState::Failed
            {
                warnings.push(format!("VM {} failed: {}", vm.name, status.reason));
            }
        }
        for pool in pools {
            if let Some(fault) = &pool.fault {
                warnings.push(format!("pool {} is out of service: {fault}", pool.name));
            }
            if let (Some(capacity), Some(used)) = (pool.capacity, pool.used)
                && (used / 4 >= capacity / 5 || pool.level.is_some_and(|level| level > Level::Ok))
                && capacity > 0
            {
                warnings.push(format!("pool {} is {} % full", pool.name, used * 100 / capacity));
            }
            for disk in &pool.disks {
                warnings.extend(disk_warning(disk));
            }
        }
        warnings
    }

    pub fn node_view(&self, node: &NodeRecord, observed: &Observed) -> NodeView {
        let seen = observed.nodes.get(&node.id).cloned().unwrap_or_default();
        let allocation = self.allocation(node.id, observed);
        NodeView {
            id: node.id,
            name: node.name.clone(),
            agent: node.agent,
            underlay: node.underlay.clone(),
            is_alive: seen.is_alive,
            last_seen: seen.at,
            epoch: self.epoch(),
            status: seen.status,
            vms: allocation.vms,
            vcpus_allocated: allocation.vcpus_allocated,
            vcpus_allocatable: allocation.vcpus_allocatable,
            memory_allocated: allocation.memory_allocated,
            memory_allocatable: allocation.memory_allocatable,
            fault: seen.fault,
            store_cores: node.store_cores.clone(),
        }
    }

    pub fn pool_view(&self, pool: &PoolRecord, observed: &Observed) -> PoolView {
        let status = observed.pool(pool.node, pool.id);
        let volumes = self.volumes.values().filter(|volume| volume.pool == pool.id);
        PoolView {
            id: pool.id,
            name: pool.name.clone(),
            node: self.node_name(pool.node),
            disks: pool.disks.iter().map(|disk| self.disk_of(pool, disk, observed)).collect(),
            durability: pool.durability,
            class: pool.class,
            scrub: pool.scrub.clone(),
            access: pool.access,
            state: pool.state,
            level: status.map(|status| status.level),
            capacity: status.map(|status| status.capacity),
            used: status.map(|status| status.used),
            provisioned: volumes.clone().map(|volume| volume.size).sum(),
            volumes: volumes.count() as u64,
            checksum_errors: status.map(|status| status.checksum_errors),
            fault: status.and_then(|status| status.fault.clone()),
        }
    }

    /// A disk of a pool. What is bad on it is asked of its node.
    pub fn disk_of(
        &self,
        pool: &PoolRecord,
        disk: &DiskRecord,
        observed: &Observed,
    ) -> PoolDiskView {
        let status = observed.pool(pool.node, pool.id);
        PoolDiskView {
            pool: pool.name.clone(),
            node: self.node_name(pool.node),
            disk: disk.id,
            device: disk.device.clone(),
            resource: disk.state,
            is_draining: disk.is_draining,
            status: status
                .and_then(|status| status.disks.iter().find(|seen| seen.id == disk.id).cloned()),
            bad_blocks: Vec::new(),
        }
    }

    /// The disks of a pool, or of all pools.
    pub fn disk_views(&self, pool: Option<&PoolRecord>, observed: &Observed) -> Vec<PoolDiskView> {
        let pools = self.pools.values().filter(|one| pool.is_none_or(|pool| pool.id == one.id));
        pools
            .flat_map(|pool| pool.disks.iter().map(move |disk| (pool, disk)))
            .map(|(pool, disk)| self.disk_of(pool, disk, observed))
            .collect()
    }

    /// A snapshot; `usage` is what its node counts for it.
    pub fn snapshot_view(
        &self,
        snapshot: &SnapshotRecord,
        usage: Option<&SnapshotUsage>,
    ) -> SnapshotView {
        SnapshotView {
            id: snapshot.id,
            volume: snapshot.volume.clone(),
            name: snapshot.name.clone(),
            state: snapshot.state,
            size: usage.map_or(snapshot.size, |usage| usage.size),
            unique: usage.map(|usage| usage.unique),
            is_scheduled: snapshot.is_scheduled,
            created_at: usage.map_or(snapshot.created_at, |usage| usage.created_at),
        }
    }

    /// When a volume gets snapshots by itself, or a refusal that says that it does not.
    pub fn schedule_view(&self, name: &Name, now: u64) -> Result<ScheduleView, Refusal> {
        let volume = crate::names::find(&self.volumes, "volume", "VOLUME", name)?;
        let Some(schedule) = &volume.schedule else {
            let text = format!("volume {name} has no schedule");
            return Err(Refusal::new(Code::NotFound, text)
                .field("VOLUME")
                .remedy(format!("plinth snapshot schedule set {name} --every 1d --keep 7")));
        };
        let interval = schedule.interval_seconds;
        Ok(ScheduleView {
            volume: name.clone(),
            interval_seconds: interval,
            keep: schedule.keep,
            next_at: (now / interval + 1) * interval,
            snapshots: self.snapshots_of(name).filter(|one| one.is_scheduled).count() as u64,
            fault: schedule.fault.clone(),
        })
    }

    pub fn limit_view(&self, volume: &VolumeRecord) -> LimitView {
        LimitView {
            volume: volume.name.clone(),
            limits: self.limits_of(volume),
            is_chosen: volume.limits.is_some(),
        }
    }

    pub fn image_view(&self, image: &ImageRecord) -> ImageView {
        let copy = |copy: &crate::record::Copy| {
            let pool = self.pool(copy.pool)?.name.clone();
            Some(ImageCopy { pool, volume: copy.volume })
        };
        ImageView {
            id: image.id,
            name: image.name.clone(),
            state: image.state,
            size: image.size,
            copies: image.copies.iter().filter_map(copy).collect(),
            created_at: image.created_at,
        }
    }

    pub fn volume_view(&self, volume: &VolumeRecord, observed: &Observed) -> VolumeView {
        let (pool, node) = self.home(volume.pool);
        let written = node.and_then(|node| {
            let status = observed.status(node)?;
            let seen = status.volumes.iter().find(|seen| seen.id == volume.id)?;
            Some(seen.written)
        });
        VolumeView {
            id: volume.id,
            name: volume.name.clone(),
            pool,
            node: node.map_or_else(|| self.node_name(NodeId(0)), |node| self.node_name(node)),
            state: volume.state,
            size: volume.size,
            written,
            image: self.image_name(volume.image),
            vm: self.holder(volume.id).map(|vm| vm.name.clone()),
            is_system: volume.system_of.is_some(),
            limits: self.limits_of(volume),
            snapshots: self.snapshots_of(&volume.name).count() as u64,
            usage: None,
            created_at: volume.created_at,
        }
    }

    pub fn vpc_view(&self, vpc: &VpcRecord) -> VpcView {
        let nics = self.vms.values().flat_map(|vm| &vm.nics).filter(|nic| nic.vpc == vpc.vni);
        VpcView {
            name: vpc.name.clone(),
            vni: vpc.vni,
            subnets: self.subnets.values().filter(|subnet| subnet.vpc == vpc.vni).count() as u64,
            routes: vpc.routes.len() as u64,
            nics: nics.count() as u64,
            router_mac: router_mac(vpc.vni),
            dns: vpc.dns_spec(),
            has_metadata: !vpc.is_metadata_off,
            created_at: vpc.created_at,
        }
    }

    pub fn subnet_view(&self, subnet: &SubnetRecord) -> SubnetView {
        let used = self.addresses_used(&subnet.name).len() as u64;
        SubnetView {
            name: subnet.name.clone(),
            vpc: self.vpc_name(subnet.vpc),
            network: subnet.network,
            prefix_length: subnet.prefix_length,
            gateway: subnet.gateway,
            ipv6: subnet.ipv6,
            addresses_used: used,
            // The gateway's address is neither used by a NIC nor free.
            addresses_free: (subnet.range().host_count() - 1).saturating_sub(used),
            dhcp: subnet.dhcp.clone(),
            created_at: subnet.created_at,
        }
    }

    pub fn vm_view(&self, vm: &VmRecord, observed: &Observed) -> VmView {
        let status = observed.vm(vm.node, vm.id);
        VmView {
            id: vm.id,
            name: vm.name.clone(),
            node: self.node_name(vm.node),
            resource: vm.state,
            run: vm.run,
            state: status.map(|status| status.state),
            since: status.map(|status| status.since),
            reason: status.map(|status| status.reason.clone()).filter(|text| !text.is_empty()),
            process: status.and_then(|status| status.process),
            restarts: status.map_or(0, |status| status.restarts),
            accelerator: status
                .map(|status| status.accelerator.clone())
                .filter(|text| !text.is_empty()),
            vcpus: vm.vcpus,
            memory: vm.memory,
            image: self.image_name(vm.image),
            nics: vm
                .nics
                .iter()
                .map(|nic| NicView {
                    port: nic.port,
                    vpc: self.vpc_name(nic.vpc),
                    subnet: nic.subnet.clone(),
                    mac: nic.mac,
                    addresses: self.nic_addresses(nic),
                })
                .collect(),
            disks: vm.disks.iter().filter_map(|disk| self.disk_view(disk)).collect(),
            created_at: vm.created_at,
        }
    }

    fn disk_view(&self, disk: &crate::record::Disk) -> Option<DiskView> {
        let volume = self.volume(disk.volume)?;
        Some(DiskView {
            volume: volume.name.clone(),
            size: volume.size,
            is_system: volume.system_of.is_some(),
            is_read_only: disk.is_read_only,
        })
    }

    /// A node's name; one that is not there reads as its number.
    pub fn node_name(&self, id: NodeId) -> Name {
        self.node(id).map_or_else(|| numbered(&id.to_string()), |node| node.name.clone())
    }

    pub(crate) fn vpc_name(&self, vni: Vni) -> Name {
        self.vpc(vni).map_or_else(|| numbered(&format!("vni-{vni}")), |vpc| vpc.name.clone())
    }

    fn home(&self, id: PoolId) -> (Name, Option<NodeId>) {
        match self.pool(id) {
            Some(pool) => (pool.name.clone(), Some(pool.node)),
            None => (numbered(&id.to_string()), None),
        }
    }

    /// `None` also for an image that is deleted.
    fn image_name(&self, id: Option<ImageId>) -> Option<Name> {
        let id = id?;
        self.images.values().find(|image| image.id == id).map(|image| image.name.clone())
    }
}

/// What an operator must do something about.
fn disk_warning(disk: &PoolDiskView) -> Option<String> {
    let status = disk.status.as_ref()?;
    let (pool, id) = (&disk.pool, disk.disk);
    let why = status.reason.as_deref().unwrap_or("its node does not say why");
    match status.state {
        DiskState::Failed => Some(format!("{id} of pool {pool} failed: {why}")),
        DiskState::Missing => Some(format!("{id} of pool {pool} is missing: {why}")),
        DiskState::In | DiskState::Draining if status.bad_blocks > 0 => Some(format!(
            "{id} of pool {pool} has {} bad blocks: `plinth disk show {pool} {}` names them",
            status.bad_blocks, id.0
        )),
        DiskState::In | DiskState::Draining => None,
    }
}

fn numbered(text: &str) -> Name {
    text.parse().expect("a kind, a dash and a number are a name")
}
