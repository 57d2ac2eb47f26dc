// SPDX-License-Identifier: Apache-2.0
//! Scrubs of disks: begun by an operator or by the pool's schedule, and what they found.
//!
//! The worker's half tells the stores; the other half, on management threads, knows the time of
//! day. The schedule counts from the start of the process, or from the last whole scrub in it.

use crate::keeper::Keeper;
use crate::message::EngineRefusal;
use crate::place::DiskStore;
use crate::pool::Pool;
use crate::seat::DiskSeat;
use plinth_ids::{DiskId, Moment, PoolId};
use plinth_store::{BadBlock, ScrubKind, ScrubProgress};
use plinth_store_api as api;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What is to become of a disk's scrub.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Order {
    /// `rate` in bytes a second.
    Start {
        kind: ScrubKind,
        rate: u64,
    },
    Stop,
}

/// The scrubs of a disk, as the worker sees them.
#[derive(Clone, Debug)]
pub(crate) struct ScrubFacts {
    disk: DiskId,
    /// By the worker's clock, as all times of the store are.
    now: Moment,
    run: Option<ScrubProgress>,
    last_light: Option<ScrubProgress>,
    last_deep: Option<ScrubProgress>,
    bad_blocks: Vec<BadBlock>,
}

impl Pool {
    pub(crate) fn scrub(
        &mut self,
        disk: Option<DiskId>,
        order: Order,
    ) -> Result<(), EngineRefusal> {
        let pool = self.id;
        let mut is_there = disk.is_none();
        for (known, seat) in self.volumes.store_mut().stores_mut() {
            if disk.is_some_and(|disk| disk != known) {
                continue;
            }
            is_there = true;
            // A disk of another worker is told by whoever asked this.
            if let Some(store) = seat.here_mut() {
                order.give(store);
            }
        }
        match disk {
            Some(disk) if !is_there => Err(EngineRefusal::DiskMissing { pool, disk }),
            _ => Ok(()),
        }
    }

    /// Whether the worker must look by the clock for a scrub.
    pub(crate) fn is_scrubbing(&self) -> bool {
        let stores = self.volumes.store().stores();
        stores.filter_map(|(_, seat)| seat.here()).any(|store| store.scrub_progress().is_some())
    }

    /// Those of the disks that are this worker's.
    pub(crate) fn scrubs(&self, now: Moment) -> Vec<ScrubFacts> {
        let stores = self.volumes.store().stores();
        let of = |(disk, seat): (DiskId, &DiskSeat)| {
            seat.here().map(|store| ScrubFacts::of(disk, store, now))
        };
        stores.filter_map(of).collect()
    }
}

impl Order {
    pub(crate) fn give(self, store: &mut DiskStore) {
        match self {
            Self::Start { kind, rate } => store.scrub_start(kind, rate),
            Self::Stop => _ = store.scrub_stop(),
        }
    }
}

impl ScrubFacts {
    pub(crate) fn of(disk: DiskId, store: &DiskStore, now: Moment) -> Self {
        Self {
            disk,
            now,
            run: store.scrub_progress(),
            last_light: store.scrub_result(ScrubKind::Light),
            last_deep: store.scrub_result(ScrubKind::Deep),
            bad_blocks: store.bad_blocks().copied().collect(),
        }
    }

    pub(crate) const fn disk(&self) -> DiskId {
        self.disk
    }

    /// A time of the worker's clock in seconds since 1970.
    fn date(&self, at: Moment) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(self.now.saturating_sub(at)).as_secs()
    }

    fn status(&self, schedule: &api::ScrubSchedule, started: Moment) -> api::ScrubStatus {
        let ended = |last: &Option<ScrubProgress>| last.and_then(|last| last.ended_at);
        let (light, deep) = (ended(&self.last_light), ended(&self.last_deep));
        let next = |last: Option<Moment>, interval: Option<u64>| {
            let due = last.unwrap_or(started) + Duration::from_secs(interval?);
            Some(self.date(self.now) + due.saturating_sub(self.now).as_secs())
        };
        let newest = [self.last_light, self.last_deep].into_iter().flatten();
        let newest = newest.max_by_key(|last| last.ended_at);
        api::ScrubStatus {
            disk: self.disk,
            run: self.run.map(|run| api::ScrubRun {
                kind: kind_of(run.kind),
                started_at: self.date(run.started_at),
                objects_done: run.objects_done,
                objects_total: run.objects_total,
                bytes: run.bytes,
                found: run.found,
                rate: run.rate,
            }),
            last_light: light.map(|at| self.date(at)),
            last_deep: deep.map(|at| self.date(at)),
            next_light: next(light, schedule.light_interval),
            next_deep: next(deep, schedule.deep_interval),
            last_found: newest.map_or(0, |last| last.found),
        }
    }

    /// The scrub that is due, if none is under way. A deep one does what a light one does.
    fn due(&self, schedule: &api::ScrubSchedule) -> Option<ScrubKind> {
        let since = |last: &Option<ScrubProgress>| {
            let ended = last.and_then(|last| last.ended_at).unwrap_or_default();
            self.now.saturating_sub(ended).as_secs()
        };
        let is_due =
            |last, interval: Option<u64>| interval.is_some_and(|interval| since(last) >= interval);
        match () {
            () if self.run.is_some() => None,
            () if is_due(&self.last_deep, schedule.deep_interval) => Some(ScrubKind::Deep),
            () if is_due(&self.last_light, schedule.light_interval) => Some(ScrubKind::Light),
            () => None,
        }
    }
}

const fn kind_of(kind: ScrubKind) -> api::ScrubKind {
    match kind {
        ScrubKind::Light => api::ScrubKind::Light,
        ScrubKind::Deep => api::ScrubKind::Deep,
    }
}

impl Keeper {
    fn schedule(&self, pool: PoolId) -> api::ScrubSchedule {
        let pools = self.wanted().map(|config| config.pools).unwrap_or_default();
        let found = pools.into_iter().find(|known| known.id == pool);
        found.map(|known| known.scrub).unwrap_or_default()
    }

    fn scrub_facts(&self, pool: PoolId) -> Result<Vec<ScrubFacts>, EngineRefusal> {
        self.port().scrubs(pool)
    }

    /// Begins a scrub, at the pool's rate where none is said.
    pub(crate) fn scrub_start(
        &self,
        pool: PoolId,
        disk: Option<DiskId>,
        kind: api::ScrubKind,
        rate: Option<u64>,
    ) -> Result<(), EngineRefusal> {
        let kind = match kind {
            api::ScrubKind::Light => ScrubKind::Light,
            api::ScrubKind::Deep => ScrubKind::Deep,
        };
        let rate = rate.unwrap_or_else(|| self.schedule(pool).rate);
        let order = Order::Start { kind, rate };
        self.port().scrub(pool, disk, order)
    }

    pub(crate) fn scrub_stop(
        &self,
        pool: PoolId,
        disk: Option<DiskId>,
    ) -> Result<(), EngineRefusal> {
        self.port().scrub(pool, disk, Order::Stop)
    }

    pub(crate) fn scrub_statuses(
        &self,
        pool: PoolId,
    ) -> Result<Vec<api::ScrubStatus>, EngineRefusal> {
        let schedule = self.schedule(pool);
        let facts = self.scrub_facts(pool)?;
        Ok(facts.iter().map(|facts| facts.status(&schedule, Moment::default())).collect())
    }

    /// The bad blocks of a disk, none of one that is not in service.
    pub(crate) fn bad_blocks(
        &self,
        pool: PoolId,
        disk: DiskId,
    ) -> Result<Vec<api::BadBlock>, EngineRefusal> {
        let facts = self.scrub_facts(pool)?;
        let Some(facts) = facts.into_iter().find(|facts| facts.disk == disk) else {
            return Ok(Vec::new());
        };
        let named = |bad: &BadBlock| {
            let place = plinth_volume::data_place(&bad.key);
            api::BadBlock {
                object: bad.key.to_string(),
                volume: place.map(|(volume, _)| volume),
                volume_offset: place.map(|(_, begin)| begin + u64::from(bad.block) * 4096),
                block: bad.block,
                offset: bad.offset,
                found_by: match bad.found_by {
                    plinth_store::FoundBy::Read => api::FoundBy::Read,
                    plinth_store::FoundBy::LightScrub => api::FoundBy::LightScrub,
                    plinth_store::FoundBy::DeepScrub => api::FoundBy::DeepScrub,
                },
                found_at: facts.date(bad.found_at),
            }
        };
        Ok(facts.bad_blocks.iter().map(named).collect())
    }

    /// Begins the scrubs that are due.
    pub(crate) fn scrub_by_schedule(&self, pools: &[api::Pool]) {
        for pool in pools {
            // A pool that is not in service has no disk to scrub.
            let Ok(facts) = self.scrub_facts(pool.id) else { continue };
            for disk in &facts {
                let Some(kind) = disk.due(&pool.scrub) else { continue };
                let order = Order::Start { kind, rate: pool.scrub.rate };
                let (pool, disk) = (pool.id, disk.disk);
                match self.port().scrub(pool, Some(disk), order) {
                    Ok(()) => tracing::info!(%pool, %disk, ?kind, "scheduled scrub begins"),
                    Err(error) => tracing::warn!(%pool, %disk, %error, "scrub does not begin"),
                }
            }
        }
    }
}
