// SPDX-License-Identifier: Apache-2.0
//! Every no that a client can hear: a stable code, and a text with the remedy.

use crate::message::EngineRefusal;
use crate::place::PlaceError;
use plinth_ids::{DiskId, Epoch, PoolId, VolumeId};
use plinth_obs::Chain;
use plinth_span::LeaveError;
use plinth_store::StoreRefusal;
use plinth_store_api::{CONFIG_VERSION, Refusal, WORKERS_MAX};
use plinth_volume::VolumeRefusal;
use std::path::PathBuf;

/// Why a configuration is not carried out. Nothing of it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigRefusal {
    #[error("the configuration has version {version}; this store takes {CONFIG_VERSION}")]
    Version { version: u32 },
    #[error("a configuration of epoch {kept} is in force; {offered} is older")]
    Old { offered: Epoch, kept: Epoch },
    #[error("a configuration of epoch {epoch} with other contents is in force: raise the epoch")]
    SameEpoch { epoch: Epoch },
    #[error("{pool} stands in the configuration twice")]
    PoolTwice { pool: PoolId },
    #[error("{device:?} is the device of two pools")]
    DeviceTwice { device: PathBuf },
    #[error("{volume} of {pool} is attached twice: a volume has one guest at a time")]
    VolumeTwice { pool: PoolId, volume: VolumeId },
    #[error("{socket:?} is the socket of two attachments")]
    SocketTwice { socket: PathBuf },
    #[error("the attachment of {volume} names {pool}, which the configuration does not have")]
    PoolUnknown { pool: PoolId, volume: VolumeId },
    #[error("the attachment of {volume} has {queues} queues: give it 1 to 16")]
    Queues { volume: VolumeId, queues: u16 },
    #[error("the socket {socket:?} is not an absolute path")]
    SocketRelative { socket: PathBuf },
    #[error("the device of {pool} cannot be meant")]
    Place { pool: PoolId, source: PlaceError },
    #[error("{pool} has {disks} disks; 1 to 64 can be")]
    Disks { pool: PoolId, disks: usize },
    #[error("{disk} of {pool} stands in the configuration twice, or has the number 0")]
    DiskNumber { pool: PoolId, disk: DiskId },
    #[error("all disks of {pool} are draining: leave one in that takes the data")]
    AllDraining { pool: PoolId },
    #[error(
        "the ladder {warn}/{nearfull}/{full} of {pool} cannot be meant: percentages that do not \
         fall, up to 100"
    )]
    Ladder { pool: PoolId, warn: u8, nearfull: u8, full: u8 },
    #[error("the scrub schedule of {pool} has a 0: leave an interval out to turn it off")]
    Scrub { pool: PoolId },
    #[error("the configuration has {workers} workers; up to {WORKERS_MAX} can be")]
    Workers { workers: usize },
    #[error("CPU {cpu} is in the list of workers twice: give each worker its own")]
    CpuTwice { cpu: u32 },
    #[error(
        "worker {worker} is named, and the configuration has {workers}, counted from 0: lengthen \
         `workers`, or name another one"
    )]
    WorkerUnknown { worker: u32, workers: usize },
    #[error("{what} is not served by this version")]
    NotServed { what: &'static str },
}

impl ConfigRefusal {
    const fn code(&self) -> &'static str {
        match self {
            Self::Version { .. } => "config-version",
            Self::Old { .. } => "config-old",
            Self::SameEpoch { .. } => "config-same-epoch",
            Self::PoolTwice { .. } => "pool-twice",
            Self::DeviceTwice { .. } => "device-twice",
            Self::VolumeTwice { .. } => "volume-twice",
            Self::SocketTwice { .. } => "socket-twice",
            Self::PoolUnknown { .. } => "pool-unknown",
            Self::Queues { .. } => "queues",
            Self::SocketRelative { .. } => "socket-relative",
            Self::Place { .. } => "device-path",
            Self::Disks { .. } => "pool-disks",
            Self::DiskNumber { .. } => "disk-number",
            Self::AllDraining { .. } => "pool-draining",
            Self::Ladder { .. } => "ladder",
            Self::Scrub { .. } => "scrub-schedule",
            Self::Workers { .. } => "workers",
            Self::CpuTwice { .. } => "worker-cpu-twice",
            Self::WorkerUnknown { .. } => "worker-unknown",
            Self::NotServed { .. } => "not-served",
        }
    }
}

impl From<ConfigRefusal> for Refusal {
    fn from(refusal: ConfigRefusal) -> Self {
        refused(refusal.code(), &refusal)
    }
}

impl From<EngineRefusal> for Refusal {
    fn from(refusal: EngineRefusal) -> Self {
        let code = match &refusal {
            EngineRefusal::PoolMissing { .. } => "pool-missing",
            EngineRefusal::DiskMissing { .. } => "disk-missing",
            EngineRefusal::PoolExists { .. } => "pool-exists",
            EngineRefusal::Join { .. } => "disk-join",
            EngineRefusal::HeadersOut { .. } => "disk-out",
            EngineRefusal::Leave { source: LeaveError::Unknown, .. } => "disk-missing",
            EngineRefusal::Leave { .. } => "disk-needed",
            EngineRefusal::Leaving { .. } => "disk-leaving",
            EngineRefusal::Stopping => "stopping",
            EngineRefusal::WorkerMissing { .. } => "worker-missing",
            EngineRefusal::Size { .. } => "volume-size",
            EngineRefusal::Volume(refusal) => volume_code(refusal),
        };
        refused(code, &refusal)
    }
}

/// The code of a volume's refusal.
pub(crate) const fn volume_code(refusal: &VolumeRefusal) -> &'static str {
    match refusal {
        VolumeRefusal::NotFound => "volume-missing",
        VolumeRefusal::Exists => "volume-exists",
        VolumeRefusal::NameTaken => "name-taken",
        VolumeRefusal::BadSize => "volume-size",
        VolumeRefusal::Shrink => "volume-shrink",
        VolumeRefusal::BadRange => "range",
        VolumeRefusal::ShortBuffer | VolumeRefusal::BadHandle => "internal",
        VolumeRefusal::Attached => "volume-attached",
        VolumeRefusal::Busy => "volume-busy",
        VolumeRefusal::NotReady => "pool-starting",
        VolumeRefusal::HeadersOut => "disk-out",
        VolumeRefusal::BadHeader => "volume-header",
        VolumeRefusal::TooMany => "volumes-full",
        VolumeRefusal::SnapshotMissing => "snapshot-missing",
        VolumeRefusal::SnapshotExists => "snapshot-exists",
        VolumeRefusal::SnapshotNameTaken => "snapshot-name-taken",
        VolumeRefusal::HasSnapshots { .. } => "volume-has-snapshots",
        VolumeRefusal::HasClones { .. } => "snapshot-has-clones",
        VolumeRefusal::SnapshotInUse => "snapshot-in-use",
        VolumeRefusal::TooManySnapshots => "snapshots-full",
        VolumeRefusal::TooDeep { .. } => "clone-too-deep",
        VolumeRefusal::NoClone => "volume-no-clone",
        VolumeRefusal::Snapshot => "snapshot-read-only",
        VolumeRefusal::Store(StoreRefusal::NoSpace | StoreRefusal::NoObjectSlot) => "no-space",
        VolumeRefusal::Store(StoreRefusal::ReadOnly) => "pool-read-only",
        VolumeRefusal::Store(StoreRefusal::DiskOut { .. }) => "disk-out",
        VolumeRefusal::Store(_) => "store",
    }
}

/// A verb, or a part of one, that nobody carries out.
pub(crate) fn not_served(what: &'static str) -> Refusal {
    ConfigRefusal::NotServed { what }.into()
}

/// A refusal with a code and the whole chain of an error.
pub(crate) fn refused(code: &str, error: &(dyn std::error::Error + 'static)) -> Refusal {
    Refusal { code: code.to_owned(), text: Chain(error).to_string() }
}
