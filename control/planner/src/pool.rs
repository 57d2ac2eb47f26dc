// SPDX-License-Identifier: Apache-2.0
//! Pools: one device or file of one node.

use crate::change::{Change, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::record::{Meta, PoolRecord, State};
use plinth_api::{Code, PoolCreate, Refusal};
use plinth_ids::{Name, NodeId, PoolId};

/// Below this a pool has no room for its own records and one object.
const POOL_SIZE_MIN: u64 = 64 << 20;

impl Cluster {
    pub fn pool_create(&self, request: PoolCreate, now: u64) -> Result<Change, Refusal> {
        names::free(&self.pools, "pool", &request.name)?;
        let node = names::find(&self.nodes, "node", "--node", &request.node)?.id;
        if !request.device.starts_with('/') {
            return Err(Refusal::new(
                Code::Invalid,
                format!("{:?} is no absolute path", request.device),
            )
            .field("--device")
            .remedy("give the path of a disk or file on the node, as in /dev/vdb"));
        }
        if let Some(size) = request.size
            && (size < POOL_SIZE_MIN || !size.is_multiple_of(4096))
        {
            return Err(Refusal::new(
                Code::Invalid,
                format!("a pool of {size} bytes is not possible"),
            )
            .field("--size")
            .remedy("give 64M or more, in whole KiB by four"));
        }
        let same = |pool: &&PoolRecord| pool.node == node && pool.device == request.device;
        if let Some(other) = self.pools.values().find(same) {
            return Err(Refusal::new(
                Code::InUse,
                format!("{} of node {} is pool {}", request.device, request.node, other.name),
            )
            .field("--device")
            .remedy("give another disk or file"));
        }
        let meta = Meta { next_pool: self.meta.next_pool + 1, ..self.meta.clone() };
        let pool = PoolRecord {
            id: PoolId(self.meta.next_pool),
            name: request.name,
            node,
            device: request.device,
            size: request.size,
            durability: request.durability,
            overwrite: request.overwrite,
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

    /// The ready pools of a node.
    pub fn pools_of(&self, node: NodeId) -> impl Iterator<Item = &PoolRecord> {
        self.pools.values().filter(move |pool| pool.node == node && pool.state == State::Ready)
    }
}
