// SPDX-License-Identifier: Apache-2.0
//! The disks of a pool: added, drained, removed.

use crate::change::{Change, Record};
use crate::cluster::{Cluster, Observed};
use crate::names;
use crate::pool::{check_device, check_pool_size};
use crate::record::{DiskRecord, PoolRecord, State};
use crate::size::Size;
use plinth_api::{Code, DiskAdd, DiskState, Refusal, ScrubSchedule};
use plinth_ids::{DiskId, Name};

/// The most disks of one pool.
const DISKS_MAX: usize = 64;

/// A drain must leave this share of every other disk, in percent, to what comes later.
const DRAIN_FILL_MAX: u64 = 85;

impl Cluster {
    pub fn disk_add(&self, request: &DiskAdd) -> Result<Change, Refusal> {
        let pool = self.pick_pool(Some(&request.pool)).map_err(|no| no.field("POOL"))?;
        check_device(&request.device)?;
        check_pool_size(request.size)?;
        self.device_is_free(pool.node, &request.device)?;
        if pool.disks.len() >= DISKS_MAX {
            let text = format!("pool {} has {DISKS_MAX} disks", pool.name);
            return Err(Refusal::new(Code::NoRoom, text)
                .field("POOL")
                .remedy("make another pool with `plinth pool create`"));
        }
        let mut pool = pool.clone();
        pool.disks.push(DiskRecord {
            id: DiskId(pool.next_disk),
            device: request.device.clone(),
            size: request.size,
            overwrite: request.overwrite,
            is_draining: false,
            state: State::Creating,
        });
        pool.next_disk += 1;
        Ok(Change::default().put(Record::Pool(pool)))
    }

    /// Has everything on a disk move to the others, or ends that where it stands.
    pub fn disk_drain(
        &self,
        pool: &Name,
        disk: DiskId,
        cancel: bool,
        observed: &Observed,
    ) -> Result<Change, Refusal> {
        let (pool, record) = self.usable_disk(pool, disk)?;
        if record.is_draining != cancel {
            return Ok(Change::default());
        }
        if !cancel {
            room_for_drain(pool, disk, observed)?;
        }
        Ok(changed(pool, disk, |record| record.is_draining = !cancel))
    }

    /// Forgets a disk that was drained, or that failed.
    pub fn disk_remove(
        &self,
        pool: &Name,
        disk: DiskId,
        observed: &Observed,
    ) -> Result<Change, Refusal> {
        let (pool, record) = self.usable_disk(pool, disk)?;
        let name = &pool.name;
        if pool.disks.len() == 1 {
            return Err(Refusal::new(Code::State, format!("{disk} is the only disk of {name}"))
                .field("DISK")
                .remedy(format!("add another first: plinth disk add {name} --device PATH")));
        }
        let status = observed
            .pool(pool.node, pool.id)
            .and_then(|seen| seen.disks.iter().find(|seen| seen.id == disk));
        let refuse = |text: String, remedy: String| {
            Err(Refusal::new(Code::State, text).field("DISK").remedy(remedy))
        };
        match status.map(|status| (status.state, status.objects)) {
            None => refuse(
                format!("the node has not said how {disk} of {name} is"),
                format!("see `plinth disk list {name}`"),
            ),
            Some((DiskState::Failed | DiskState::Missing, _)) => {
                Ok(changed(pool, disk, |record| record.state = State::Deleting))
            }
            Some((DiskState::Draining, 0)) if record.is_draining => {
                Ok(changed(pool, disk, |record| record.state = State::Deleting))
            }
            Some((DiskState::Draining, objects)) => refuse(
                format!("{disk} of {name} still has {objects} objects"),
                "wait until they have moved; `plinth disk show` counts them".to_owned(),
            ),
            Some((DiskState::In, _)) => refuse(
                format!("{disk} of {name} is in service"),
                format!("drain it first: plinth disk drain {name} {}", disk.0),
            ),
        }
    }

    /// When the pool's disks are scrubbed.
    pub fn scrub_schedule(&self, pool: &Name, schedule: ScrubSchedule) -> Result<Change, Refusal> {
        let pool = self.pick_pool(Some(pool)).map_err(|no| no.field("POOL"))?;
        for (field, seconds) in
            [("--light", schedule.light_seconds), ("--deep", schedule.deep_seconds)]
        {
            if seconds.is_some_and(|seconds| seconds < 60) {
                let text = "scrubs are a minute apart at least";
                return Err(Refusal::new(Code::Invalid, text)
                    .field(field)
                    .remedy("give for example 1d, or off"));
            }
        }
        check_scrub_rate(Some(schedule.rate))?;
        Ok(Change::default().put(Record::Pool(PoolRecord { scrub: schedule, ..pool.clone() })))
    }

    /// The pool and its disk that an operator means, if it is made and stays.
    pub fn usable_disk(
        &self,
        pool: &Name,
        disk: DiskId,
    ) -> Result<(&PoolRecord, &DiskRecord), Refusal> {
        let pool = names::find(&self.pools, "pool", "POOL", pool)?;
        let found = pool.disks.iter().find(|record| record.id == disk).ok_or_else(|| {
            Refusal::new(Code::NotFound, format!("pool {} has no {disk}", pool.name))
                .field("DISK")
                .remedy(format!("`plinth disk list {}` shows what it has", pool.name))
        })?;
        if found.state != State::Ready {
            let word = if found.state == State::Creating { "made" } else { "removed" };
            let text = format!("{disk} of pool {} is being {word}", pool.name);
            return Err(Refusal::new(Code::State, text)
                .field("DISK")
                .remedy("wait until its node has done that"));
        }
        Ok((pool, found))
    }

    /// What a node's answer to an act on a disk changes.
    pub(crate) fn settle_disk(&self, pool: &Name, disk: DiskId, is_there: bool) -> Change {
        let Some(pool) = self.pools.get(pool) else { return Change::default() };
        if !pool.disks.iter().any(|record| record.id == disk && record.state != State::Ready) {
            return Change::default();
        }
        if is_there {
            return changed(pool, disk, |record| record.state = State::Ready);
        }
        let mut pool = pool.clone();
        pool.disks.retain(|record| record.id != disk);
        Change::default().put(Record::Pool(pool))
    }
}

/// Scrubs below this would never end, above it would be no background job.
pub fn check_scrub_rate(rate: Option<u64>) -> Result<(), Refusal> {
    match rate {
        Some(rate) if !(64 << 10..=16 << 30).contains(&rate) => Err(Refusal::new(
            Code::Invalid,
            format!("{rate} bytes a second is no rate for a scrub"),
        )
        .field("--rate")
        .remedy("give 64K to 16G, as in 16M")),
        _ => Ok(()),
    }
}

/// A pool with one disk changed.
fn changed(pool: &PoolRecord, disk: DiskId, change: impl FnOnce(&mut DiskRecord)) -> Change {
    let mut pool = pool.clone();
    if let Some(record) = pool.disks.iter_mut().find(|record| record.id == disk) {
        change(record);
    }
    Change::default().put(Record::Pool(pool))
}

/// Whether the other disks have room for what is on this one, as far as the node has said.
fn room_for_drain(pool: &PoolRecord, disk: DiskId, observed: &Observed) -> Result<(), Refusal> {
    let name = &pool.name;
    let takes = |record: &&DiskRecord| {
        record.id != disk && record.state == State::Ready && !record.is_draining
    };
    let add = format!("add a disk first: plinth disk add {name} --device PATH");
    if !pool.disks.iter().any(|record| takes(&record)) {
        let text = format!("no other disk of pool {name} can take what is on {disk}");
        return Err(Refusal::new(Code::NoRoom, text).field("DISK").remedy(add));
    }
    let Some(status) = observed.pool(pool.node, pool.id) else { return Ok(()) };
    let seen = |id: DiskId| status.disks.iter().find(|seen| seen.id == id);
    let used = seen(disk).map_or(0, |seen| seen.used);
    let free: u64 = pool
        .disks
        .iter()
        .filter(takes)
        .filter_map(|record| seen(record.id))
        .filter(|seen| seen.state == DiskState::In)
        .map(|seen| (seen.capacity / 100 * DRAIN_FILL_MAX).saturating_sub(seen.used))
        .sum();
    if used > free {
        let text = format!(
            "{disk} of pool {name} has {}, and the others take {} before they are nearfull",
            Size(used),
            Size(free)
        );
        return Err(Refusal::new(Code::NoRoom, text).field("DISK").remedy(add));
    }
    Ok(())
}
