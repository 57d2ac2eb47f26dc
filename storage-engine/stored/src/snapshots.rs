// SPDX-License-Identifier: Apache-2.0
//! The verbs of snapshots: taking and deleting them, going back to one, what differs between two
//! of them, and what a volume with its snapshots holds.

use crate::message::{EngineRefusal, Message};
use crate::refusal::{refused, volume_code};
use crate::worker::WorkerPort;
use plinth_ids::{Name, PoolId, SnapshotId, VolumeId};
use plinth_store_api::{
    Answer, Diff, DiffRange, Job, JobKind, Parent, Refusal, SnapshotStatus, VolumeDetail,
    VolumeStatus,
};
use plinth_volume::{
    Changes, ChoreKind, SnapshotSpec, VolumeAnswer, VolumeRefusal, VolumeRequest, VolumeUsage,
};
use std::fs::File;
use std::io::{self, Read};

type Outcome = Result<Answer, Refusal>;

fn missing() -> Refusal {
    let missing = VolumeRefusal::NotFound;
    refused(volume_code(&missing), &missing)
}

/// What a snapshot is known by in any pool.
pub(crate) fn new_identity() -> io::Result<[u8; 16]> {
    let mut identity = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut identity)?;
    Ok(identity)
}

pub(crate) fn create(
    port: &WorkerPort,
    pool: PoolId,
    (volume, snapshot): (VolumeId, SnapshotId),
    name: Name,
    created_at: u64,
) -> Outcome {
    let identity = new_identity().map_err(|error| refused("random", &error))?;
    let spec = SnapshotSpec { volume, snapshot, name, identity, created_at };
    port.carry_out(pool, VolumeRequest::SnapshotCreate { spec })?;
    one(port, pool, volume, snapshot)
}

pub(crate) fn delete(
    port: &WorkerPort,
    pool: PoolId,
    volume: VolumeId,
    snapshot: SnapshotId,
) -> Outcome {
    port.carry_out(pool, VolumeRequest::SnapshotDelete { volume, snapshot })?;
    Ok(Answer::Done)
}

pub(crate) fn roll_back(
    port: &WorkerPort,
    pool: PoolId,
    (volume, snapshot): (VolumeId, SnapshotId),
    now: u64,
) -> Result<(), Refusal> {
    Ok(port.carry_out(pool, VolumeRequest::Rollback { volume, snapshot, now })?)
}

/// One snapshot, without what deleting it would free: that is counted for lists.
pub(crate) fn one(
    port: &WorkerPort,
    pool: PoolId,
    volume: VolumeId,
    snapshot: SnapshotId,
) -> Outcome {
    let all = list(port, pool, volume)?;
    let found = all.into_iter().find(|found| found.snapshot == snapshot);
    found.map(Answer::Snapshot).ok_or_else(|| {
        let missing = VolumeRefusal::SnapshotMissing;
        refused(volume_code(&missing), &missing)
    })
}

pub(crate) fn list(
    port: &WorkerPort,
    pool: PoolId,
    volume: VolumeId,
) -> Result<Vec<SnapshotStatus>, Refusal> {
    Ok(with_usage(port, pool, volume)?.0)
}

fn with_usage(
    port: &WorkerPort,
    pool: PoolId,
    volume: VolumeId,
) -> Result<(Vec<SnapshotStatus>, VolumeUsage), Refusal> {
    let usage = usage(port, pool, volume)?;
    let known = port.ask(|answer| Message::Snapshots { pool, volume, answer })?;
    let status = |known: plinth_volume::SnapshotStatus| SnapshotStatus {
        snapshot: known.snapshot,
        name: known.name,
        size: known.size,
        unique: usage.snapshots.iter().find(|(id, _)| *id == known.snapshot).map_or(0, |own| own.1),
        created_at: known.created_at,
        is_leaving: known.is_leaving,
    };
    Ok((known.into_iter().map(status).collect(), usage))
}

fn usage(port: &WorkerPort, pool: PoolId, volume: VolumeId) -> Result<VolumeUsage, Refusal> {
    match port.question(pool, VolumeRequest::Usage { volume })? {
        VolumeAnswer::Usage(usage) => Ok(usage),
        VolumeAnswer::Changes(_) => Err(Refusal::from(EngineRefusal::Stopping)),
    }
}

/// Everything about one volume; `statuses` are those of the pool.
pub(crate) fn show(
    port: &WorkerPort,
    pool: PoolId,
    volume: VolumeId,
    statuses: Vec<VolumeStatus>,
) -> Outcome {
    let status = statuses.into_iter().find(|known| known.volume == volume).ok_or_else(missing)?;
    let known = port.ask(|answer| Message::Volumes { pool, answer })?;
    let known = known.into_iter().find(|known| known.volume == volume).ok_or_else(missing)?;
    // While it is rolled back nothing can be counted.
    let is_busy = known.chore.is_some_and(|chore| chore.kind == ChoreKind::Rollback);
    let (snapshots, usage) = if is_busy { <_>::default() } else { with_usage(port, pool, volume)? };
    let job = known.chore.and_then(|chore| {
        let kind = match chore.kind {
            ChoreKind::Reclaim => JobKind::Delete,
            ChoreKind::Trim => JobKind::SnapshotDelete,
            ChoreKind::Rollback => JobKind::Rollback,
            ChoreKind::Flatten => JobKind::Flatten,
            ChoreKind::Count => return None,
        };
        // How many objects there will be is not known before they are all listed.
        Some(Job { kind, done: chore.done, total: known.objects.max(chore.done) })
    });
    Ok(Answer::VolumeDetail(Box::new(VolumeDetail {
        status,
        unique: usage.unique,
        snapshots_unique: usage.snapshots_unique,
        snapshots,
        parent: known.parent.map(|(volume, snapshot)| Parent { volume, snapshot }),
        job,
    })))
}

/// One piece of what differs; `to` `None` is the volume as it is.
pub(crate) fn changes(
    port: &WorkerPort,
    pool: PoolId,
    volume: VolumeId,
    (from, to): (Option<SnapshotId>, Option<SnapshotId>),
    start: u64,
) -> Result<Changes, EngineRefusal> {
    match port.question(pool, VolumeRequest::Changes { volume, from, to, start })? {
        VolumeAnswer::Changes(changes) => Ok(changes),
        VolumeAnswer::Usage(_) => Err(EngineRefusal::Stopping),
    }
}

pub(crate) fn diff(
    port: &WorkerPort,
    pool: PoolId,
    volume: VolumeId,
    (from, to): (Option<SnapshotId>, SnapshotId),
    start: u64,
) -> Outcome {
    let Changes { ranges, next } = changes(port, pool, volume, (from, Some(to)), start)?;
    let range = |range: plinth_volume::ChangedRange| DiffRange {
        offset: range.offset,
        length: range.length,
        is_zero: range.is_zero,
    };
    Ok(Answer::Diff(Diff { ranges: ranges.into_iter().map(range).collect(), next }))
}
