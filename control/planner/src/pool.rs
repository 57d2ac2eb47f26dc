// SPDX-License-Identifier: Apache-2.0
//! Pools: disks or files of one node.

use crate::change::{Change, Record};
use crate::cluster::{Cluster, Observed};
use crate::names;
use crate::record::{DiskRecord, Meta, PoolRecord, State};
use crate::size::Size;
use plinth_api::{Code, Level, PoolAccess, PoolCreate, Refusal, ScrubSchedule};
use plinth_ids::{DiskId, Name, NodeId, PoolId};

/// Below this a pool has no room for its own records and one object.
const POOL_SIZE_MIN: u64 = 64 << 20;

impl Cluster {
    pub fn pool_create(&self, request: PoolCreate, now: u64) -> Result<Change, Refusal> {
        names::free(&self.pools, "pool", &request.name)?;
        let node = names::find(&self.nodes, "node", "--node", &request.node)?.id;
        check_pool_size(request.size)?;
        if request.devices.is_empty() {
            return Err(Refusal::new(Code::Invalid, "a pool stands on a disk at least")
                .field("--device")
                .remedy("give the path of a disk or file on the node, as in /dev/vdb"));
        }
        let mut disks: Vec<DiskRecord> = Vec::new();
        for (device, id) in request.devices.into_iter().zip(DiskId::FIRST.0..) {
            check_device(&device)?;
            self.device_is_free(node, &device)?;
            if disks.iter().any(|disk| disk.device == device) {
                return Err(Refusal::new(Code::Invalid, format!("{device} is named twice"))
                    .field("--device"));
            }
            let (size, overwrite, state) = (request.size, request.overwrite, State::Creating);
            let id = DiskId(id);
            disks.push(DiskRecord { id, device, size, overwrite, is_draining: false, state });
        }
        let next_disk = disks.last().map_or(DiskId::FIRST.0, |disk| disk.id.0 + 1);
        let meta = Meta { next_pool: self.meta.next_pool + 1, ..self.meta.clone() };
        let pool = PoolRecord {
            id: PoolId(self.meta.next_pool),
            name: request.name,
            node,
            disks,
            next_disk,
            durability: request.durability,
            class: request.class,
            scrub: ScrubSchedule::default(),
            access: PoolAccess::default(),
            state: State::Creating,
            created_at: now,
        };
        Ok(Change::default().put(Record::Meta(meta)).put(Record::Pool(pool)))
    }

    /// The pool of that name, or the only one where none is named.
    pub fn pick_pool(&self, name: Option<&Name>) -> Result<&PoolRecord, Refusal> {
        let pool = match name {
            Some(name) => names::find(&self.pools, "pool", "--pool", name)?,
            None => {
                let mut pools = self.pools.values();
                let none = || {
                    Refusal::new(Code::NotFound, "there is no pool")
                        .field("--pool")
                        .remedy("make one with `plinth pool create`")
                };
                let pool = pools.next().ok_or_else(none)?;
                if pools.next().is_some() {
                    let text = format!("there are {} pools", self.pools.len());
                    return Err(Refusal::new(Code::Invalid, text)
                        .field("--pool")
                        .remedy("say which"));
                }
                pool
            }
        };
        if pool.state == State::Creating {
            return Err(Refusal::new(Code::State, format!("pool {} is not made yet", pool.name))
                .field("--pool")
                .remedy("`plinth pool show` says what it waits for"));
        }
        Ok(pool)
    }

    /// Opens a pool for rescue, or as a whole again: its node closes it and mounts it anew.
    pub fn pool_access(&self, pool: &Name, access: PoolAccess) -> Result<Change, Refusal> {
        let pool = self.pick_pool(Some(pool)).map_err(|no| no.field("POOL"))?;
        Ok(Change::default().put(Record::Pool(PoolRecord { access, ..pool.clone() })))
    }

    /// Refuses what would need room in a pool that is at `limit` or fuller, as its node sees it,
    /// or that takes no changes at all.
    pub(crate) fn has_room(
        &self,
        pool: &PoolRecord,
        observed: &Observed,
        limit: Level,
        field: &'static str,
    ) -> Result<(), Refusal> {
        if pool.access == PoolAccess::Rescue {
            let text = format!("pool {} is open for rescue and takes no changes", pool.name);
            return Err(Refusal::new(Code::State, text)
                .field(field)
                .remedy(format!("`plinth pool rescue {} off` mounts it as a whole", pool.name)));
        }
        let Some(status) = observed.pool(pool.node, pool.id) else { return Ok(()) };
        if status.level < limit {
            return Ok(());
        }
        let word = if status.level == Level::Full { "full" } else { "nearly full" };
        let (name, used, capacity) = (&pool.name, Size(status.used), Size(status.capacity));
        let text = format!("pool {name} is {word}: {used} of {capacity} are used");
        Err(Refusal::new(Code::NoRoom, text).field(field).remedy(format!(
            "delete snapshots or volumes, or add a disk: plinth disk add {name} --device PATH"
        )))
    }

    /// Refuses a device that a pool of the node stands on.
    pub(crate) fn device_is_free(&self, node: NodeId, device: &str) -> Result<(), Refusal> {
        let has = |pool: &&PoolRecord| {
            pool.node == node && pool.disks.iter().any(|disk| disk.device == device)
        };
        match self.pools.values().find(has) {
            None => Ok(()),
            Some(other) => {
                let node = self.node_name(node);
                let text = format!("{device} of node {node} is pool {}", other.name);
                Err(Refusal::new(Code::InUse, text)
                    .field("--device")
                    .remedy("give another disk or file"))
            }
        }
    }

    /// The ready pools of a node.
    pub fn pools_of(&self, node: NodeId) -> impl Iterator<Item = &PoolRecord> {
        self.pools.values().filter(move |pool| pool.node == node && pool.state == State::Ready)
    }
}

pub(crate) fn check_device(device: &str) -> Result<(), Refusal> {
    if device.starts_with('/') {
        return Ok(());
    }
    Err(Refusal::new(Code::Invalid, format!("{device:?} is no absolute path"))
        .field("--device")
        .remedy("give the path of a disk or file on the node, as in /dev/vdb"))
}

pub(crate) fn check_pool_size(size: Option<u64>) -> Result<(), Refusal> {
    match size {
        Some(size) if size < POOL_SIZE_MIN || !size.is_multiple_of(4096) => {
            Err(Refusal::new(Code::Invalid, format!("a pool of {size} bytes is not possible"))
                .field("--size")
                .remedy("give 64M or more, in whole KiB by four"))
        }
        _ => Ok(()),
    }
}
