// SPDX-License-Identifier: Apache-2.0
//! The rounds that make the node what its spec says, and what can be seen of it.

use crate::agent::{Inner, ground, lock};
use crate::runner::Runner;
use crate::{storage, translate};
use plinth_api::{
    Code, DaemonState, DaemonStatus, Level, NodeSpec, NodeStatus, PoolStatus, Refusal, Run, VmSpec,
    VolumeStatus,
};
use plinth_ids::{Epoch, VmId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Between two rounds when nobody rings.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two rounds while something is under way.
const HURRY: Duration = Duration::from_millis(100);

impl Inner {
    pub(crate) fn take(&self, spec: NodeSpec) -> Result<Epoch, Refusal> {
        let epoch = spec.epoch;
        let mut current = lock(&self.spec);
        if let Some(current) = current.as_ref()
            && spec.epoch < current.epoch
            && spec.node == current.node
        {
            return Err(Refusal::new(
                Code::State,
                format!("epoch {epoch} is older than {}, which is in force", current.epoch),
            ));
        }
        if current.as_ref() != Some(&spec) {
            self.kept.save(&spec).map_err(|error| {
                Refusal::new(Code::Failed, format!("the spec cannot be kept: {error}"))
                    .remedy("make room in --state-dir")
            })?;
            lock(&self.fresh_pools)
                .retain(|fresh| !spec.pools.iter().any(|pool| pool.id == fresh.id));
            *current = Some(spec);
        }
        drop(current);
        self.bell.ring();
        Ok(epoch)
    }

    /// Rounds until the agent stops.
    pub(crate) fn reconcile(self: &Arc<Self>) {
        while !self.is_stopping() {
            let is_calm = self.round();
            self.bell.wait(if is_calm { PAUSE } else { HURRY });
        }
    }

    /// One round. Whether all is as it should be.
    fn round(&self) -> bool {
        let Some(spec) = lock(&self.spec).clone() else { return true };
        self.begin_new_vms(&spec);
        // First what must not start any more: a port is taken away only from a VM that was told.
        self.hold_back(&spec);
        let held: BTreeMap<VmId, VmSpec> = lock(&self.runners)
            .iter()
            .filter_map(|(id, runner)| Some((*id, runner.held()?)))
            .collect();
        let needs = translate::needs(&spec.vms, &held);
        let places = &self.config.places;
        let fresh = lock(&self.fresh_pools).clone();
        let switch = self.switch.want(translate::switch_config(&spec, &needs, places));
        let store = self.store.want(translate::store_config(&spec, &fresh, &needs, places));
        let obstacle = self.obstacle(switch, store);
        let accelerator = *lock(&self.accelerator);
        {
            let runners = lock(&self.runners);
            for vm in spec.vms.iter().filter(|vm| vm.run == Run::Running) {
                if let Some(runner) = runners.get(&vm.id) {
                    runner.want(vm.clone(), accelerator, obstacle.clone());
                }
            }
        }
        self.forget_old_vms(&spec);
        obstacle.is_none()
    }

    fn begin_new_vms(&self, spec: &NodeSpec) {
        let mut runners = lock(&self.runners);
        for vm in &spec.vms {
            if runners.contains_key(&vm.id) {
                continue;
            }
            let bell = Arc::clone(&self.bell);
            match Runner::start(ground(&self.config), vm.clone(), None, bell) {
                Ok(runner) => drop(runners.insert(vm.id, runner)),
                Err(err) => tracing::error!(err = &err as &dyn std::error::Error, "VM thread"),
            }
        }
    }

    /// Tells every VM that is to be off or gone.
    fn hold_back(&self, spec: &NodeSpec) {
        let wanted: BTreeMap<VmId, &VmSpec> = spec.vms.iter().map(|vm| (vm.id, vm)).collect();
        for (id, runner) in lock(&self.runners).iter() {
            match wanted.get(id) {
                Some(vm) if vm.run == Run::Running => {}
                Some(vm) => {
                    runner.want((*vm).clone(), None, Some("it is to be off".to_owned()));
                }
                None => runner.cut_off(),
            }
        }
    }

    /// Why no VM may be started yet.
    fn obstacle(&self, switch: u64, store: u64) -> Option<String> {
        let waits = |status: DaemonStatus| {
            let why =
                if status.text.is_empty() { String::new() } else { format!(": {}", status.text) };
            Some(format!("waits for {}{why}", status.name))
        };
        if !self.switch.is_done(switch) {
            return waits(self.switch.status());
        }
        if !self.store.is_done(store) {
            return waits(self.store.status());
        }
        None
    }

    /// VMs that are not in the spec and have no process leave nothing behind.
    fn forget_old_vms(&self, spec: &NodeSpec) {
        let mut runners = lock(&self.runners);
        let gone: Vec<VmId> = runners
            .iter()
            .filter(|(id, runner)| !spec.vms.iter().any(|vm| vm.id == **id) && runner.is_gone())
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            drop(runners.remove(&id));
            let places = &self.config.places;
            let removed = std::fs::remove_file(places.vm_record(id));
            if let Err(err) = removed {
                tracing::warn!(err = &err as &dyn std::error::Error, vm = %id, "record stays");
            }
            // Only logs and dead sockets are in it; a VM that never ran has none.
            if let Ok(folder) = places.vm(id) {
                let _ = std::fs::remove_dir_all(folder.path());
            }
        }
    }

    pub(crate) fn look(&self) -> NodeStatus {
        let spec = lock(&self.spec).clone();
        let inventory = self.store.extra();
        let is_up = self.store.status().state == DaemonState::Up;
        let mut pools: Vec<PoolStatus> = Vec::new();
        for pool in &inventory.pools {
            pools.push(PoolStatus {
                id: pool.id,
                fault: pool
                    .fault
                    .clone()
                    .or_else(|| (!is_up).then(|| "plinth-stored does not answer".to_owned())),
                capacity: pool.capacity,
                used: pool.used,
                checksum_errors: pool.checksum_errors,
                level: storage::level(pool.level),
                disks: pool.disks.iter().map(storage::disk).collect(),
            });
        }
        for pool in spec.iter().flat_map(|spec| &spec.pools) {
            if !pools.iter().any(|known| known.id == pool.id) {
                pools.push(PoolStatus {
                    id: pool.id,
                    fault: Some("plinth-stored does not serve it yet".to_owned()),
                    capacity: 0,
                    used: 0,
                    checksum_errors: 0,
                    level: Level::Ok,
                    disks: Vec::new(),
                });
            }
        }
        let volumes = inventory.volumes.iter().map(|(pool, volume)| VolumeStatus {
            pool: *pool,
            id: volume.volume,
            size: volume.size,
            written: volume.written,
        });
        NodeStatus {
            epoch: spec.map(|spec| spec.epoch),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            facts: lock(&self.facts).clone(),
            daemons: vec![self.switch.status(), self.store.status()],
            vms: lock(&self.runners).values().map(Runner::status).collect(),
            pools,
            volumes: volumes.collect(),
            unfit: self.switch.extra(),
            load: lock(&self.load).load(&self.config.surroundings),
        }
    }
}
