// SPDX-License-Identifier: Apache-2.0
//! The disks of pools in service: what the configuration says of them, and how they are.

use crate::format;
use crate::keeper::Keeper;
use crate::message::{DiskFacts, Message, PoolFacts};
use crate::service::level;
use plinth_ids::PoolId;
use plinth_obs::Chain;
use plinth_span::{DiskCondition, Standing};
use plinth_store_api::{DiskCounters, DiskState, DiskStatus, Pool, PoolDisk};
use tracing::field::display;

/// Whether a pool in service can stay so under what is wanted: all but its disks, and what is no
/// matter of its stores (when it is scrubbed, what it is good for), is the same, and
/// no disk has another device or worker than it had.
pub(crate) fn stays(pool: &Pool, wanted: &[Pool]) -> bool {
    let is_same = |wanted: &Pool| {
        let has_moved = |disk: &PoolDisk| {
            let other = wanted.disks.iter().find(|other| other.id == disk.id);
            let has_moved =
                |other: &PoolDisk| other.device != disk.device || other.worker != disk.worker;
            other.is_some_and(has_moved)
        };
        let Pool { disks, scrub, class, .. } = wanted.clone();
        Pool { disks, scrub, class, ..pool.clone() } == *wanted && !pool.disks.iter().any(has_moved)
    };
    wanted.iter().any(is_same)
}

impl Keeper {
    /// Brings the disks of a pool in service to what is wanted.
    pub(crate) fn mend_disks(&self, wanted: &Pool) {
        let Some(known) = self.pool_in_service(wanted.id) else { return };
        for disk in &wanted.disks {
            let fault = self.disk_fault(wanted.id, disk.id);
            let is_known = known.disks.iter().any(|known| known.id == disk.id);
            if !is_known || fault.is_some() {
                self.join(wanted, disk, fault.as_ref());
            } else if !known.disks.contains(disk) {
                self.drain(wanted.id, disk);
            }
        }
        self.keep_disks(wanted);
    }

    fn join(&self, pool: &Pool, disk: &PoolDisk, known: Option<&String>) {
        match self.try_join(pool, disk) {
            Ok(()) => {
                tracing::info!(pool = %pool.id, disk = %disk.id, device = ?disk.device, "disk in service");
                self.note_disk(pool.id, disk.id, None);
                self.drain(pool.id, disk);
            }
            Err(fault) => {
                if known != Some(&fault) {
                    tracing::error!(pool = %pool.id, disk = %disk.id, err = fault, "disk not in service");
                }
                self.note_disk(pool.id, disk.id, Some(fault));
            }
        }
    }

    fn try_join(&self, pool: &Pool, disk: &PoolDisk) -> Result<(), String> {
        let text = |error: &(dyn std::error::Error + 'static)| Chain(error).to_string();
        let rests = self.rests();
        let member = format::mount_disk(pool, disk, self.means(&rests));
        let member = member.map_err(|error| text(&error))?;
        let (pool, member) = (pool.id, Box::new(member));
        self.port()
            .ask(|answer| Message::DiskJoin { pool, member, answer })
            .map_err(|error| text(&error))
    }

    /// Tells a pool whether one of its disks is to be emptied.
    pub(crate) fn drain(&self, pool: PoolId, disk: &PoolDisk) {
        let (disk, is_draining) = (disk.id, disk.is_draining);
        let told = self.port().ask(|answer| Message::DiskDrain { pool, disk, is_draining, answer });
        match told {
            Ok(()) if is_draining => tracing::info!(%pool, %disk, "disk drains"),
            Ok(()) => {}
            Err(error) => {
                let err = display(Chain(&error));
                tracing::error!(%pool, %disk, err, "disk does not drain");
            }
        }
    }

    /// The disks of a pool, those of the configuration and those that still have its data.
    pub(crate) fn disk_statuses(&self, pool: &Pool, facts: Option<&PoolFacts>) -> Vec<DiskStatus> {
        let known = facts.map(|facts| facts.disks.as_slice()).unwrap_or_default();
        let wanted = pool.disks.iter().map(|disk| {
            let facts = known.iter().find(|facts| facts.disk.disk == disk.id);
            self.disk_status(pool, disk, facts)
        });
        let is_wanted =
            |facts: &&DiskFacts| pool.disks.iter().any(|disk| disk.id == facts.disk.disk);
        let others = known.iter().filter(|facts| !is_wanted(facts)).map(|facts| {
            let disk = PoolDisk {
                id: facts.disk.disk,
                device: "".into(),
                is_draining: false,
                worker: None,
            };
            let mut status = self.disk_status(pool, &disk, Some(facts));
            status.reason.get_or_insert_with(|| {
                "it is of the pool, but not in the configuration: put it back, or drain and remove \
                 it first"
                    .to_owned()
            });
            status
        });
        wanted.chain(others).collect()
    }

    fn disk_status(&self, pool: &Pool, disk: &PoolDisk, facts: Option<&DiskFacts>) -> DiskStatus {
        let (capacity, counters) =
            facts.map_or((None, None), |facts| (facts.disk.capacity, Some(facts.counters)));
        let fault = self.disk_fault(pool.id, disk.id);
        let condition = facts.map_or(DiskCondition::Missing, |facts| facts.disk.condition);
        let (state, reason) = match (condition, facts.map(|facts| facts.disk.standing)) {
            (DiskCondition::Working, Some(Standing::Draining)) => (DiskState::Draining, None),
            (DiskCondition::Working, _) => (DiskState::In, None),
            (DiskCondition::Missing, _) => {
                let fault = fault.or_else(|| self.pool_fault(pool.id));
                let reason = fault.unwrap_or_else(|| "it is not there".to_owned());
                (DiskState::Missing, Some(reason))
            }
            (failed @ (DiskCondition::ReadOnly(_) | DiskCondition::Unreadable), _) => {
                (DiskState::Failed, Some(failed.to_string()))
            }
        };
        DiskStatus {
            id: disk.id,
            device: disk.device.clone(),
            state,
            reason,
            capacity: capacity.map_or(0, |capacity| capacity.total),
            used: capacity.map_or(0, |capacity| capacity.used),
            level: capacity.map(|capacity| level(capacity.level)).unwrap_or_default(),
            objects: objects(facts),
            bad_blocks: facts.map_or(0, |facts| facts.bad_blocks),
            counters: counters.map(disk_counters).unwrap_or_default(),
        }
    }
}

/// The pool's objects on a disk: the disk's own map is none of them.
fn objects(facts: Option<&DiskFacts>) -> u64 {
    let Some(facts) = facts else { return 0 };
    let found = facts.disk.capacity.map_or(0, |capacity| capacity.objects);
    let is_drained = facts.disk.standing == Standing::Draining && facts.disk.groups == 0;
    if is_drained { found.saturating_sub(1) } else { found }
}

fn disk_counters(counters: plinth_store::StoreCounters) -> DiskCounters {
    DiskCounters {
        reads: counters.reads,
        writes: counters.changes,
        flushes: counters.disk_flushes,
        discards: counters.discards,
        read_bytes: counters.disk_bytes_read,
        written_bytes: counters.disk_bytes_written,
        io_errors: counters.read_errors,
        checksum_errors: counters.bad_blocks,
    }
}
