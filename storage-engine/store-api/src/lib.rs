// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! What a node agent says to plinth-stored, and what it hears back.
//!
//! What must be served (pools, attachments) is given as a whole numbered [`StoreConfig`] that
//! the store keeps on disk; what is in a pool (volumes) is changed by commands and lives in the
//! pool itself. Messages are JSON, one a line, over a unix socket. A field that is not known is
//! an error: a configuration that is half understood must not be carried out.

mod config;
mod status;

pub use config::{
    Attachment, CONFIG_VERSION, ConfigError, Durability, Ladder, Pool, PoolAccess, PoolClass,
    PoolDisk, SCRUB_RATE_DEFAULT, ScrubSchedule, StoreConfig, VolumeLimits, WORKERS_MAX,
};
pub use status::{
    AttachmentMetrics, AttachmentStatus, BadBlock, Costs, Diff, DiffRange, DiskCounters,
    DiskDetail, DiskMetrics, DiskState, DiskStatus, FoundBy, Job, JobKind, Latency, Level, Metrics,
    Parent, PoolStatus, ScrubKind, ScrubRun, ScrubStatus, SlowRequest, SnapshotStatus, Status,
    VolumeDetail, VolumeStatus, Wait, Wipe,
};

use plinth_ids::{DiskId, Epoch, Name, PoolId, SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One request. `id` comes back with the reply.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub id: u64,
    pub verb: Verb,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Verb {
    /// Carry this out and keep it. Idempotent.
    Apply(StoreConfig),
    Status,
    /// Makes an empty disk of a new pool. Refused where a pool is already, unless `overwrite`.
    /// `size` in bytes makes or grows a sparse file; a device is taken whole with `None`.
    PoolFormat {
        id: PoolId,
        #[serde(default)]
        disk: DiskId,
        device: PathBuf,
        size: Option<u64>,
        overwrite: bool,
    },
    Pools,
    /// Idempotent for the same id, name and size. `size` in bytes, a multiple of 512.
    VolumeCreate {
        pool: PoolId,
        volume: VolumeId,
        name: Name,
        size: u64,
    },
    /// A volume with the contents of another, or of a snapshot of it; nothing is copied until
    /// either is written.
    VolumeClone {
        pool: PoolId,
        source: VolumeId,
        #[serde(default)]
        snapshot: Option<SnapshotId>,
        volume: VolumeId,
        name: Name,
        size: u64,
    },
    VolumeGrow {
        pool: PoolId,
        volume: VolumeId,
        size: u64,
    },
    /// Refused while the volume is attached or has snapshots. `wipe` writes zeros over what only
    /// it has before that is free again; [`PoolStatus::wipes`] says how far that is.
    VolumeDelete {
        pool: PoolId,
        volume: VolumeId,
        #[serde(default)]
        wipe: bool,
    },
    Volumes {
        pool: PoolId,
    },
    /// Fills an existing, unattached volume from a raw file; holes stay holes. Answers when all
    /// is durable.
    VolumeImport {
        pool: PoolId,
        volume: VolumeId,
        source: PathBuf,
    },
    /// Writes a volume to a new sparse raw file.
    VolumeExport {
        pool: PoolId,
        volume: VolumeId,
        target: PathBuf,
    },
    /// Answers [`Answer::VolumeDetail`].
    VolumeShow {
        pool: PoolId,
        volume: VolumeId,
    },
    /// Gives a clone units of its own for all that it shares, in the background.
    VolumeFlatten {
        pool: PoolId,
        volume: VolumeId,
    },
    /// Where a snapshot differs from an earlier one of the same volume, or from nothing. Answers
    /// one piece, from the offset `start` on.
    VolumeDiff {
        pool: PoolId,
        volume: VolumeId,
        #[serde(default)]
        from: Option<SnapshotId>,
        to: SnapshotId,
        #[serde(default)]
        start: u64,
    },
    /// Writes what differs between two snapshots to a new file, a delta.
    DeltaExport {
        pool: PoolId,
        volume: VolumeId,
        #[serde(default)]
        from: Option<SnapshotId>,
        to: SnapshotId,
        target: PathBuf,
    },
    /// Brings an unattached volume from the snapshot that a delta starts at to the one that it
    /// ends at. Snapshots are matched by name; the one at the end is made, as `snapshot`. Refused
    /// if the volume's last snapshot is not the delta's first, or the volume was written since.
    DeltaImport {
        pool: PoolId,
        volume: VolumeId,
        snapshot: SnapshotId,
        source: PathBuf,
    },
    /// Keeps the volume as it is, also while it is written. Idempotent for the same id and name.
    SnapshotCreate {
        pool: PoolId,
        volume: VolumeId,
        snapshot: SnapshotId,
        name: Name,
    },
    Snapshots {
        pool: PoolId,
        volume: VolumeId,
    },
    /// Answers when the snapshot cannot be seen any more; its space comes back in the background.
    SnapshotDelete {
        pool: PoolId,
        volume: VolumeId,
        snapshot: SnapshotId,
    },
    /// Makes the volume what the snapshot is. Refused while the volume is attached.
    SnapshotRollback {
        pool: PoolId,
        volume: VolumeId,
        snapshot: SnapshotId,
    },
    /// Answers [`Answer::Disks`].
    Disks {
        pool: PoolId,
    },
    /// Answers [`Answer::Disk`].
    DiskShow {
        pool: PoolId,
        disk: DiskId,
    },
    /// Makes an empty disk for a pool that has data; a configuration with the disk then brings it
    /// into service. A disk is drained by a configuration too: [`PoolDisk::is_draining`].
    PoolDiskAdd {
        pool: PoolId,
        disk: DiskId,
        device: PathBuf,
        size: Option<u64>,
        overwrite: bool,
    },
    /// Forgets a drained or failed disk for good; a configuration without it follows. Refused
    /// while anything that is needed is on it.
    PoolDiskRemove {
        pool: PoolId,
        disk: DiskId,
    },
    /// Begins a scrub of one disk or all of them. `rate` in bytes a second, the pool's if `None`.
    ScrubStart {
        pool: PoolId,
        #[serde(default)]
        disk: Option<DiskId>,
        #[serde(default)]
        kind: ScrubKind,
        #[serde(default)]
        rate: Option<u64>,
    },
    ScrubStop {
        pool: PoolId,
        #[serde(default)]
        disk: Option<DiskId>,
    },
    /// Answers [`Answer::Scrubs`].
    ScrubStatus {
        pool: PoolId,
    },
    /// Read from shared memory; nothing is stopped for it.
    Metrics,
    /// The last slow requests, newest first.
    SlowRequests {
        limit: u32,
    },
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Reply {
    pub id: u64,
    pub result: Result<Answer, Refusal>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Applied { epoch: Epoch },
    Done,
    Status(Status),
    Pools(Vec<PoolStatus>),
    Volume(VolumeStatus),
    Volumes(Vec<VolumeStatus>),
    VolumeDetail(Box<VolumeDetail>),
    Diff(Diff),
    Snapshot(SnapshotStatus),
    Snapshots(Vec<SnapshotStatus>),
    Disks(Vec<DiskStatus>),
    Disk(Box<DiskDetail>),
    Scrubs(Vec<ScrubStatus>),
    Metrics(Metrics),
    SlowRequests(Vec<SlowRequest>),
}

/// The answer is no. `code` is stable, `text` is for people and names the remedy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Refusal {
    pub code: String,
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_refused() {
        let text = r#"{"id":1,"verb":{"apply":{"version":1,"epoch":1,"pools":[],"attachments":[],"extra":1}}}"#;
        assert!(serde_json::from_str::<Request>(text).is_err());
        let text = text.replace(r#","extra":1"#, "");
        assert!(serde_json::from_str::<Request>(&text).is_ok());
    }

    #[test]
    fn a_request_is_one_line_a_person_can_write() {
        let request: Request = serde_json::from_str(r#"{"id":1,"verb":"pools"}"#).unwrap();
        assert_eq!(request, Request { id: 1, verb: Verb::Pools });
    }
}
