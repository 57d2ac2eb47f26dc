// SPDX-License-Identifier: Apache-2.0
//! Whether a configuration may be carried out. What is legal here can still fail in the world:
//! that is a fault of one pool or attachment, not of the configuration.

use crate::place::Place;
use crate::refusal::ConfigRefusal;
use plinth_span::DISKS_MAX;
use plinth_store_api::{CONFIG_VERSION, Ladder, Pool, StoreConfig, WORKERS_MAX};
use std::collections::BTreeSet;

/// The most queues of one attachment.
const QUEUES_MAX: u16 = 16;

/// Checks a configuration against itself and against the one in force.
pub(crate) fn check(
    offered: &StoreConfig,
    kept: Option<&StoreConfig>,
) -> Result<(), ConfigRefusal> {
    if offered.version != CONFIG_VERSION {
        return Err(ConfigRefusal::Version { version: offered.version });
    }
    if let Some(kept) = kept {
        if offered.epoch < kept.epoch {
            return Err(ConfigRefusal::Old { offered: offered.epoch, kept: kept.epoch });
        }
        if offered.epoch == kept.epoch && offered != kept {
            return Err(ConfigRefusal::SameEpoch { epoch: kept.epoch });
        }
    }
    check_workers(offered)?;
    check_pools(offered)?;
    check_attachments(offered)
}

/// Each worker has a CPU of its own, and nothing names one that is not there.
fn check_workers(offered: &StoreConfig) -> Result<(), ConfigRefusal> {
    let workers = offered.workers.len();
    if workers > WORKERS_MAX {
        return Err(ConfigRefusal::Workers { workers });
    }
    let mut cpus = BTreeSet::new();
    if let Some(&cpu) = offered.workers.iter().find(|cpu| !cpus.insert(**cpu)) {
        return Err(ConfigRefusal::CpuTwice { cpu });
    }
    let of_pools = offered.pools.iter().flat_map(|pool| {
        pool.disks.iter().map(|disk| disk.worker).chain(std::iter::once(pool.worker))
    });
    let of_attachments = offered.attachments.iter().map(|attachment| attachment.worker);
    let workers = workers.max(1);
    let is_there = |&worker: &u32| usize::try_from(worker).is_ok_and(|worker| worker < workers);
    match of_pools.chain(of_attachments).flatten().find(|worker| !is_there(worker)) {
        Some(worker) => Err(ConfigRefusal::WorkerUnknown { worker, workers }),
        None => Ok(()),
    }
}

fn check_pools(offered: &StoreConfig) -> Result<(), ConfigRefusal> {
    let (mut pools, mut devices) = (BTreeSet::new(), BTreeSet::new());
    for pool in &offered.pools {
        if !pools.insert(pool.id) {
            return Err(ConfigRefusal::PoolTwice { pool: pool.id });
        }
        if pool.disks.is_empty() || pool.disks.len() > DISKS_MAX {
            return Err(ConfigRefusal::Disks { pool: pool.id, disks: pool.disks.len() });
        }
        let mut numbers = BTreeSet::new();
        for disk in &pool.disks {
            let place = Place::parse(&disk.device)
                .map_err(|source| ConfigRefusal::Place { pool: pool.id, source })?;
            if matches!(place, Place::Device(_)) && !devices.insert(&disk.device) {
                return Err(ConfigRefusal::DeviceTwice { device: disk.device.clone() });
            }
            if disk.id.0 == 0 || !numbers.insert(disk.id) {
                return Err(ConfigRefusal::DiskNumber { pool: pool.id, disk: disk.id });
            }
        }
        if pool.disks.iter().all(|disk| disk.is_draining) {
            return Err(ConfigRefusal::AllDraining { pool: pool.id });
        }
        check_settings(pool)?;
    }
    Ok(())
}

fn check_settings(pool: &Pool) -> Result<(), ConfigRefusal> {
    let Ladder { warn, nearfull, full } = pool.ladder;
    if warn > nearfull || nearfull > full || full > 100 {
        return Err(ConfigRefusal::Ladder { pool: pool.id, warn, nearfull, full });
    }
    let scrub = &pool.scrub;
    if scrub.rate == 0 || scrub.light_interval == Some(0) || scrub.deep_interval == Some(0) {
        return Err(ConfigRefusal::Scrub { pool: pool.id });
    }
    Ok(())
}

fn check_attachments(offered: &StoreConfig) -> Result<(), ConfigRefusal> {
    let (mut volumes, mut sockets) = (BTreeSet::new(), BTreeSet::new());
    for attachment in &offered.attachments {
        let (pool, volume) = (attachment.pool, attachment.volume);
        if !offered.pools.iter().any(|known| known.id == pool) {
            return Err(ConfigRefusal::PoolUnknown { pool, volume });
        }
        if !volumes.insert((pool, volume)) {
            return Err(ConfigRefusal::VolumeTwice { pool, volume });
        }
        if !sockets.insert(&attachment.socket) {
            return Err(ConfigRefusal::SocketTwice { socket: attachment.socket.clone() });
        }
        if !attachment.socket.is_absolute() {
            return Err(ConfigRefusal::SocketRelative { socket: attachment.socket.clone() });
        }
        if attachment.queues == 0 || attachment.queues > QUEUES_MAX {
            return Err(ConfigRefusal::Queues { volume, queues: attachment.queues });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_ids::{DiskId, Epoch, PoolId, VolumeId};
    use plinth_store_api::{Attachment, Durability, PoolDisk};

    fn legal() -> StoreConfig {
        let pool = |number: u32| {
            Pool::of_one(PoolId(number), format!("/pools/{number}"), Durability::Flush)
        };
        let attachment = |number: u64| Attachment {
            pool: PoolId(1),
            volume: VolumeId(number),
            socket: format!("/sockets/{number}").into(),
            queues: 1,
            is_read_only: false,
            limits: None,
            worker: None,
        };
        StoreConfig {
            version: CONFIG_VERSION,
            epoch: Epoch(5),
            workers: Vec::new(),
            pools: vec![pool(1), pool(2)],
            attachments: vec![attachment(1), attachment(2)],
        }
    }

    #[test]
    fn several_workers_are_taken_with_what_they_have() {
        let mut config = StoreConfig { workers: vec![4, 2], ..legal() };
        config.pools[0].worker = Some(1);
        config.pools[1].disks[0].worker = Some(0);
        config.attachments[1].worker = Some(1);
        assert!(check(&config, None).is_ok());
    }

    #[test]
    fn what_is_legal_is_taken_again_and_again() {
        assert!(check(&legal(), None).is_ok());
        assert!(check(&legal(), Some(&legal())).is_ok());
    }

    /// The fault of a legal configuration with one thing changed.
    fn fault(change: impl FnOnce(&mut StoreConfig)) -> ConfigRefusal {
        let mut config = legal();
        change(&mut config);
        check(&config, Some(&legal())).unwrap_err()
    }

    #[test]
    fn each_fault_has_its_own_refusal() {
        use ConfigRefusal as R;
        assert!(matches!(fault(|c| c.version = 9), R::Version { version: 9 }));
        assert!(matches!(fault(|c| c.epoch = Epoch(4)), R::Old { .. }));
        assert!(matches!(fault(|c| c.attachments.clear()), R::SameEpoch { .. }));
        let fault = |change: fn(&mut StoreConfig)| {
            fault(|config| {
                config.epoch = Epoch(6);
                change(config);
            })
        };
        assert!(matches!(fault(|c| c.pools[1].id = PoolId(1)), R::PoolTwice { .. }));
        assert!(matches!(
            fault(|c| c.pools[1].disks[0].device = "/pools/1".into()),
            R::DeviceTwice { .. }
        ));
        assert!(matches!(fault(|c| c.pools[1].disks[0].device = "pool".into()), R::Place { .. }));
        assert!(matches!(fault(|c| c.pools[0].disks.clear()), R::Disks { disks: 0, .. }));
        assert!(matches!(
            fault(|c| c.pools[0].disks.push(PoolDisk::first("/second"))),
            R::DiskNumber { disk: DiskId(1), .. }
        ));
        assert!(matches!(
            fault(|c| c.pools[0].disks[0].id = DiskId(0)),
            R::DiskNumber { disk: DiskId(0), .. }
        ));
        assert!(matches!(fault(|c| c.pools[0].ladder.warn = 86), R::Ladder { .. }));
        assert!(matches!(fault(|c| c.pools[0].ladder.full = 101), R::Ladder { .. }));
        assert!(matches!(fault(|c| c.pools[0].scrub.rate = 0), R::Scrub { .. }));
        assert!(matches!(fault(|c| c.pools[0].scrub.light_interval = Some(0)), R::Scrub { .. }));
        assert!(matches!(fault(|c| c.workers = vec![3, 1, 3]), R::CpuTwice { cpu: 3 }));
        assert!(matches!(fault(|c| c.workers = (0..65).collect()), R::Workers { workers: 65 }));
        let unknown = |fault| matches!(fault, R::WorkerUnknown { worker: 1, workers: 1 });
        assert!(unknown(fault(|c| c.pools[1].worker = Some(1))));
        assert!(unknown(fault(|c| c.pools[1].disks[0].worker = Some(1))));
        assert!(unknown(fault(|c| c.attachments[0].worker = Some(1))));
        assert!(matches!(fault(|c| c.pools[0].disks[0].is_draining = true), R::AllDraining { .. }));
        assert!(matches!(fault(|c| c.attachments[1].volume = VolumeId(1)), R::VolumeTwice { .. }));
        assert!(matches!(
            fault(|c| c.attachments[1].socket = "/sockets/1".into()),
            R::SocketTwice { .. }
        ));
        assert!(matches!(
            fault(|c| c.attachments[1].socket = "s".into()),
            R::SocketRelative { .. }
        ));
        assert!(matches!(fault(|c| c.attachments[1].pool = PoolId(9)), R::PoolUnknown { .. }));
        assert!(matches!(fault(|c| c.attachments[1].queues = 17), R::Queues { queues: 17, .. }));
        assert!(matches!(fault(|c| c.attachments[1].queues = 0), R::Queues { queues: 0, .. }));
    }
}
