// SPDX-License-Identifier: Apache-2.0
//! The verbs, on the threads of management connections.

use crate::config;
use crate::delta::{self, DeltaError};
use crate::format;
use crate::keeper::Keeper;
use crate::message::{EngineRefusal, Message};
use crate::refusal::{not_served, refused, volume_code};
use crate::show;
use crate::snapshots;
use crate::transfer::{self, TransferError};
use crate::worker::WorkerPort;
use plinth_ids::{DiskId, PoolId, VolumeId};
use plinth_manage::{Kept, LineFault, Service};
use plinth_metrics::Metrics;
use plinth_rt::StatsSnapshot;
use plinth_store_api::{
    Answer, AttachmentStatus, Costs, DiskDetail, DiskStatus, Level, PoolStatus, Refusal, Reply,
    Request, Status, StoreConfig, Verb, VolumeStatus,
};
use plinth_volume::{VolumeRequest, VolumeSpec};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug)]
pub(crate) struct Stored {
    keeper: Arc<Keeper>,
    port: WorkerPort,
    kept: Kept<StoreConfig>,
    /// Held while a configuration is judged and kept, so that two cannot overtake each other.
    applying: Mutex<()>,
    /// What the workers had done when somebody last asked for their status.
    asked: Mutex<Vec<StatsSnapshot>>,
    metrics: Arc<Metrics>,
}

type Outcome = Result<Answer, Refusal>;

impl Stored {
    pub(crate) fn new(
        keeper: Arc<Keeper>,
        port: WorkerPort,
        kept: Kept<StoreConfig>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let asked = Mutex::default();
        Self { keeper, port, kept, applying: Mutex::default(), asked, metrics }
    }

    fn carry_out(&self, verb: Verb) -> Outcome {
        match verb {
            Verb::Apply(config) => self.apply(config),
            Verb::Status => self.status(),
            Verb::PoolFormat { id, device, size, overwrite, .. } => {
                format::format_pool(id, &device, size, overwrite)
                    .map(|()| Answer::Done)
                    .map_err(|error| refused(error.code(), &error))
            }
            Verb::Pools => self.pools(),
            Verb::VolumeCreate { pool, volume, name, size } => {
                let spec = VolumeSpec { volume, name, size, created_at: seconds_now() };
                self.change(pool, VolumeRequest::Create { spec })?;
                self.volume(pool, volume)
            }
            Verb::VolumeClone { pool, source, snapshot, volume, name, size } => {
                let spec = VolumeSpec { volume, name, size, created_at: seconds_now() };
                self.change(pool, VolumeRequest::Clone { source, snapshot, spec })?;
                self.volume(pool, volume)
            }
            Verb::VolumeGrow { pool, volume, size } => {
                self.change(pool, VolumeRequest::Grow { volume, size, now: seconds_now() })?;
                self.keeper.grown((pool, volume), size);
                self.volume(pool, volume)
            }
            Verb::VolumeDelete { pool, volume, wipe } => {
                self.change(pool, VolumeRequest::Delete { volume, wipe })?;
                Ok(Answer::Done)
            }
            Verb::Volumes { pool } => self.volumes(pool).map(Answer::Volumes),
            Verb::VolumeImport { pool, volume, source } => {
                let outcome = transfer::import(&self.port, pool, volume, &source);
                self.transferred(pool, volume, outcome)
            }
            Verb::VolumeExport { pool, volume, target } => {
                let outcome = transfer::export(&self.port, pool, volume, &target);
                self.transferred(pool, volume, outcome)
            }
            Verb::VolumeShow { pool, volume } => {
                snapshots::show(&self.port, pool, volume, self.volumes(pool)?)
            }
            verb @ (Verb::VolumeFlatten { .. }
            | Verb::VolumeDiff { .. }
            | Verb::DeltaExport { .. }
            | Verb::DeltaImport { .. }
            | Verb::SnapshotCreate { .. }
            | Verb::Snapshots { .. }
            | Verb::SnapshotDelete { .. }
            | Verb::SnapshotRollback { .. }) => self.carry_out_kept(verb),
            Verb::Disks { pool } => self.disks(pool).map(Answer::Disks),
            Verb::DiskShow { pool, disk } => self.disk_show(pool, disk),
            Verb::PoolDiskAdd { pool, device, size, overwrite, .. } => {
                format::format_pool(pool, &device, size, overwrite)
                    .map(|()| Answer::Done)
                    .map_err(|error| refused(error.code(), &error))
            }
            Verb::PoolDiskRemove { pool, disk } => self.remove_disk(pool, disk),
            Verb::ScrubStart { pool, disk, kind, rate } => {
                self.keeper.scrub_start(pool, disk, kind, rate)?;
                Ok(Answer::Done)
            }
            Verb::ScrubStop { pool, disk } => {
                self.keeper.scrub_stop(pool, disk)?;
                Ok(Answer::Done)
            }
            Verb::ScrubStatus { pool } => Ok(Answer::Scrubs(self.keeper.scrub_statuses(pool)?)),
            Verb::Metrics => self.metrics(),
            Verb::SlowRequests { limit } => self.slow_requests(limit),
        }
    }

    /// What is about snapshots and clones.
    fn carry_out_kept(&self, verb: Verb) -> Outcome {
        match verb {
            Verb::VolumeFlatten { pool, volume } => {
                self.change(pool, VolumeRequest::Flatten { volume })?;
                self.volume(pool, volume)
            }
            Verb::VolumeDiff { pool, volume, from, to, start } => {
                snapshots::diff(&self.port, pool, volume, (from, to), start)
            }
            Verb::DeltaExport { pool, volume, from, to, target } => {
                let outcome = delta::export(&self.port, pool, volume, (from, to), &target);
                outcome.map_err(|error| refused(delta_code(&error), &error))?;
                Ok(Answer::Done)
            }
            Verb::DeltaImport { pool, volume, snapshot, source } => {
                let which = (volume, snapshot);
                let outcome = delta::import(&self.port, pool, which, &source, seconds_now());
                outcome.map_err(|error| refused(delta_code(&error), &error))?;
                self.volume(pool, volume)
            }
            Verb::SnapshotCreate { pool, volume, snapshot, name } => {
                snapshots::create(&self.port, pool, (volume, snapshot), name, seconds_now())
            }
            Verb::Snapshots { pool, volume } => {
                snapshots::list(&self.port, pool, volume).map(Answer::Snapshots)
            }
            Verb::SnapshotDelete { pool, volume, snapshot } => {
                snapshots::delete(&self.port, pool, volume, snapshot)
            }
            Verb::SnapshotRollback { pool, volume, snapshot } => {
                snapshots::roll_back(&self.port, pool, (volume, snapshot), seconds_now())?;
                self.volume(pool, volume)
            }
            _ => Err(not_served("this verb")),
        }
    }

    /// Judges, keeps, then carries out: a configuration that was answered is on disk.
    fn apply(&self, config: StoreConfig) -> Outcome {
        let _applying = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        config::check(&config, self.keeper.wanted().as_ref())?;
        self.kept.save(&config).map_err(|error| refused("not-kept", &error))?;
        let epoch = config.epoch;
        self.keeper.want(config);
        self.keeper.carry_out();
        Ok(Answer::Applied { epoch })
    }

    /// From the file, as any other process reads it: the worker is not asked.
    fn metrics(&self) -> Outcome {
        let picture = plinth_metrics::read(self.metrics.file());
        let picture = picture.map_err(|error| refused("metrics-unreadable", &error))?;
        Ok(Answer::Metrics(show::metrics(&picture)))
    }

    fn slow_requests(&self, limit: u32) -> Outcome {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let slow = self.port.slow_requests(limit)?;
        let rate = self.metrics.measure_rate();
        Ok(Answer::SlowRequests(show::slow_requests(&slow, rate, plinth_rt::cycles())))
    }

    fn change(&self, pool: PoolId, request: VolumeRequest) -> Result<(), Refusal> {
        Ok(self.port.carry_out(pool, request)?)
    }

    fn transferred(
        &self,
        pool: PoolId,
        volume: VolumeId,
        outcome: Result<(), TransferError>,
    ) -> Outcome {
        outcome.map_err(|error| refused(transfer_code(&error), &error))?;
        self.volume(pool, volume)
    }

    fn volumes(&self, pool: PoolId) -> Result<Vec<VolumeStatus>, Refusal> {
        let volumes = self.port.ask(|answer| Message::Volumes { pool, answer })?;
        let status = |known: plinth_volume::VolumeStatus| VolumeStatus {
            attached: self.keeper.socket_of((pool, known.volume)),
            volume: known.volume,
            name: known.name,
            size: known.size,
            written: known.written,
            objects: known.objects,
            created_at: known.created_at,
            updated_at: known.updated_at,
        };
        Ok(volumes.into_iter().map(status).collect())
    }

    fn volume(&self, pool: PoolId, volume: VolumeId) -> Outcome {
        let found = self.volumes(pool)?.into_iter().find(|known| known.volume == volume);
        // Deleted by somebody else in the meantime.
        found.map(Answer::Volume).ok_or_else(|| {
            let missing = plinth_volume::VolumeRefusal::NotFound;
            refused(volume_code(&missing), &missing)
        })
    }

    fn pools(&self) -> Outcome {
        let facts = self.port.pool_facts()?;
        let wanted = self.keeper.wanted().map(|config| config.pools).unwrap_or_default();
        let status = |pool: plinth_store_api::Pool| {
            let known = facts.iter().find(|facts| facts.pool == pool.id);
            let not_open = || {
                let fault = self.keeper.pool_fault(pool.id);
                Some(fault.unwrap_or_else(|| "the pool is being opened".to_owned()))
            };
            PoolStatus {
                id: pool.id,
                device: pool.disks.first().map(|disk| disk.device.clone()).unwrap_or_default(),
                fault: known.map_or_else(not_open, |facts| facts.fault.clone()),
                capacity: known.map_or(0, |facts| facts.capacity),
                used: known.map_or(0, |facts| facts.used),
                volumes: known.map_or(0, |facts| facts.volumes),
                objects: known.map_or(0, |facts| facts.objects),
                checksum_errors: known.map_or(0, |facts| facts.checksum_errors),
                level: known.map_or(Level::Ok, |facts| level(facts.level)),
                disks: self.keeper.disk_statuses(&pool, known),
                wipes: known.map_or_else(Vec::new, |facts| facts.wipes.iter().map(wipe).collect()),
            }
        };
        Ok(Answer::Pools(wanted.into_iter().map(status).collect()))
    }

    fn disks(&self, pool: PoolId) -> Result<Vec<DiskStatus>, Refusal> {
        let facts = self.port.pool_facts()?;
        let wanted = self.keeper.wanted().map(|config| config.pools).unwrap_or_default();
        let wanted = wanted.into_iter().find(|known| known.id == pool);
        let wanted = wanted.ok_or(EngineRefusal::PoolMissing { pool })?;
        let known = facts.iter().find(|facts| facts.pool == pool);
        Ok(self.keeper.disk_statuses(&wanted, known))
    }

    fn disk_show(&self, pool: PoolId, disk: DiskId) -> Outcome {
        let statuses = self.disks(pool)?;
        let status = statuses.into_iter().find(|status| status.id == disk);
        let status = status.ok_or(EngineRefusal::DiskMissing { pool, disk })?;
        let bad_blocks = self.keeper.bad_blocks(pool, disk)?;
        Ok(Answer::Disk(Box::new(DiskDetail { status, bad_blocks })))
    }

    fn remove_disk(&self, pool: PoolId, disk: DiskId) -> Outcome {
        let left = self.port.ask(|answer| Message::DiskLeave { pool, disk, answer })?;
        if let Some(seat) = left {
            let _ = self.port.unmount(*seat);
        }
        self.keeper.forget_disk(pool, disk);
        Ok(Answer::Done)
    }

    fn status(&self) -> Outcome {
        let facts = self.port.look(|answer| Message::Attachments { answer })?;
        let wanted = self.keeper.wanted();
        let epoch = wanted.as_ref().map(|config| config.epoch);
        let attachments = wanted.map(|config| config.attachments).unwrap_or_default();
        let status = |wanted: plinth_store_api::Attachment| {
            let key = (wanted.pool, wanted.volume);
            let known = facts.iter().find(|facts| (facts.pool, facts.volume) == key);
            let counters = known.map(|facts| facts.counters).unwrap_or_default();
            AttachmentStatus {
                volume: wanted.volume,
                socket: wanted.socket,
                fault: if known.is_some() { None } else { self.keeper.attachment_fault(key) },
                is_up: known.is_some_and(|facts| facts.is_up),
                reads: counters.reads,
                writes: counters.writes,
                flushes: counters.flushes,
                bytes_read: counters.read_bytes,
                bytes_written: counters.written_bytes,
                errors: counters.refused + counters.failed + counters.queues_broken,
            }
        };
        let done = self.done();
        let mut costs = Costs::default();
        for of_pool in self.port.pool_facts()?.iter().map(|p| p.costs) {
            costs.system_calls += of_pool.system_calls;
            costs.disk_bytes_read += of_pool.disk_bytes_read;
            costs.disk_bytes_written += of_pool.disk_bytes_written;
        }
        costs.system_calls +=
            done.sleeps + facts.iter().map(|facts| facts.counters.calls).sum::<u64>();
        Ok(Answer::Status(Status {
            process: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch,
            attachments: attachments.into_iter().map(status).collect(),
            busy: done.busy,
            busy_cycles: done.busy_cycles,
            requests: facts.iter().map(|facts| requests(&facts.counters)).sum(),
            sleeps: done.sleeps,
            costs,
        }))
    }
}

/// What the workers have done, all together.
struct Done {
    /// Of the time since the last question, on average over the workers.
    busy: f64,
    busy_cycles: u64,
    sleeps: u64,
}

impl Stored {
    fn done(&self) -> Done {
        let stats = self.port.stats();
        let now: Vec<_> = stats.iter().map(|stats| stats.snapshot()).collect();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *asked, now.clone());
        drop(asked);
        let starts = stats.iter().map(|stats| stats.at_start());
        // A worker that is new since the last question counts from its start.
        let before = before.iter().copied().chain(starts.skip(before.len()));
        let shares = now.iter().zip(before).map(|(now, before)| now.busy_share_since(&before));
        Done {
            busy: shares.sum::<f64>() / now.len().max(1) as f64,
            busy_cycles: now.iter().map(|now| now.busy_cycles).sum(),
            sleeps: now.iter().map(|now| now.sleeps).sum(),
        }
    }
}

/// All requests of an attachment that were answered or are being answered.
fn requests(counters: &plinth_backends::blk::BlkCounters) -> u64 {
    counters.reads + counters.writes + counters.flushes + counters.discards + counters.zeroings
}

fn transfer_code(error: &TransferError) -> &'static str {
    match error {
        TransferError::Engine(EngineRefusal::Volume(refusal)) => volume_code(refusal),
        TransferError::Engine(_) => "pool-missing",
        TransferError::Source { .. } => "source",
        TransferError::Relative { .. } => "path-relative",
        TransferError::TooLarge { .. } => "source-too-large",
        TransferError::Exists { .. } => "target-exists",
        TransferError::Target { .. } => "target",
    }
}

fn delta_code(error: &DeltaError) -> &'static str {
    match error {
        DeltaError::Transfer(error) => transfer_code(error),
        DeltaError::Fault { .. } | DeltaError::Name { .. } => "delta-bad",
        DeltaError::Base { .. } => "delta-base",
        DeltaError::NotEmpty => "volume-not-empty",
        DeltaError::Written { .. } => "volume-written",
    }
}

fn seconds_now() -> u64 {
    // A clock before 1970 is no reason to refuse a volume.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Service for Stored {
    type Request = Request;
    type Reply = Reply;

    fn handle(&self, request: Request) -> Reply {
        Reply { id: request.id, result: self.carry_out(request.verb) }
    }

    fn refuse(&self, fault: LineFault) -> Reply {
        Reply { id: 0, result: Err(refused(fault.code(), &fault)) }
    }
}

/// The store's word for how full a disk is, in the words of management.
pub(crate) const fn level(level: plinth_store::Level) -> Level {
    match level {
        plinth_store::Level::Ok => Level::Ok,
        plinth_store::Level::Warn => Level::Warn,
        plinth_store::Level::Nearfull => Level::Nearfull,
        plinth_store::Level::Full => Level::Full,
    }
}

const fn wipe(wipe: &plinth_volume::WipeStatus) -> plinth_store_api::Wipe {
    let plinth_volume::WipeStatus { volume, done, total } = *wipe;
    plinth_store_api::Wipe { volume, done, total }
}
