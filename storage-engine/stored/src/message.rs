// SPDX-License-Identifier: Apache-2.0
//! What the management threads ask of the worker.
//!
//! Each message carries the sender of its answer. The worker answers when the thing is done,
//! which may be many rounds later; it never waits for anybody.

use crate::door::{Door, Guests};
use crate::hosted::{Hosted, HostedFacts};
use crate::place::{DiskMember, DiskStore, PoolVolumes};
use crate::seat::{DiskSeat, HostId};
use crate::slow::Slow;
use crossbeam_channel::Sender;
use plinth_backends::DeviceToken;
use plinth_backends::blk::{BlkClass, BlkCounters};
use plinth_ids::{DiskId, PoolId, SnapshotId, VolumeId};
use plinth_rt::AffinityError;
use plinth_span::SpanDisk;
use plinth_span::{JoinError, LeaveError};
use plinth_store::StoreCounters;
use plinth_store_api::{Costs, VolumeLimits};
use plinth_volume::{
    SnapshotStatus, VolumeCompletion, VolumeHandle, VolumeRefusal, VolumeRequest, VolumeStatus,
};
use std::sync::Arc;

/// Why the worker said no.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineRefusal {
    #[error("pool {pool} is not in service: apply a configuration with it, and ask `pools` why")]
    PoolMissing { pool: PoolId },
    #[error("{pool} has no {disk} in service: look for it with `disks`")]
    DiskMissing { pool: PoolId, disk: DiskId },
    #[error("pool {pool} is in service already")]
    PoolExists { pool: PoolId },
    #[error(
        "the headers of all volumes of {pool} are on {disk}, which is missing: bring it back, and \
         they come into service by themselves"
    )]
    HeadersOut { pool: PoolId, disk: DiskId },
    #[error(transparent)]
    Volume(#[from] VolumeRefusal),
    #[error("{disk} is not taken into the pool")]
    Join { disk: DiskId, source: JoinError },
    #[error("{disk} does not change its standing")]
    Leave { disk: DiskId, source: LeaveError },
    #[error("{disk} is on its way out already")]
    Leaving { disk: DiskId },
    #[error("worker {worker} is not there; the log says why")]
    WorkerMissing { worker: usize },
    #[error("the store is stopping")]
    Stopping,
    #[error("the volume has {size} bytes; the socket can tell a guest of whole sectors only")]
    Size { size: u64 },
}

pub(crate) type Answer<T> = Sender<Result<T, EngineRefusal>>;

/// How a volume is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttachSpec {
    pub(crate) pool: PoolId,
    pub(crate) volume: VolumeId,
    pub(crate) queues: u16,
    pub(crate) is_read_only: bool,
    pub(crate) limits: Option<VolumeLimits>,
}

/// What a guest is served with.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) token: DeviceToken,
    pub(crate) class: Arc<BlkClass>,
}

/// A volume that a management thread reads or fills; attached, so that nobody deletes it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) handle: VolumeHandle,
    pub(crate) status: VolumeStatus,
    /// Guests are answered without being carried out: see [`crate::place::Place::Null`].
    pub(crate) is_null: bool,
}

/// A pool as the worker sees it.
#[derive(Clone, Debug)]
pub(crate) struct PoolFacts {
    pub(crate) pool: PoolId,
    pub(crate) fault: Option<String>,
    pub(crate) capacity: u64,
    pub(crate) used: u64,
    pub(crate) volumes: u64,
    pub(crate) objects: u64,
    pub(crate) checksum_errors: u64,
    pub(crate) costs: Costs,
    pub(crate) level: plinth_store::Level,
    pub(crate) disks: Vec<DiskFacts>,
    pub(crate) wipes: Vec<plinth_volume::WipeStatus>,
}

/// A disk as the worker sees it.
#[derive(Clone, Debug)]
pub(crate) struct DiskFacts {
    pub(crate) disk: SpanDisk,
    pub(crate) bad_blocks: u64,
    pub(crate) counters: StoreCounters,
}

/// An attachment as the worker sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttachmentFacts {
    pub(crate) pool: PoolId,
    pub(crate) volume: VolumeId,
    pub(crate) is_up: bool,
    pub(crate) counters: BlkCounters,
}

#[derive(Debug)]
pub(crate) enum Message {
    /// The pool was mounted on the asker's thread, because that waits for the disk.
    PoolOpen {
        pool: PoolId,
        volumes: Box<PoolVolumes>,
        answer: Answer<()>,
    },
    /// Its attachments must be gone. Gives the volumes back when nothing of them is under way, for
    /// the asker to unmount, which waits for the disk.
    PoolClose {
        pool: PoolId,
        answer: Answer<Box<PoolVolumes>>,
    },
    /// A disk was mounted on the asker's thread and shall be of the pool.
    DiskJoin {
        pool: PoolId,
        member: Box<DiskMember>,
        answer: Answer<()>,
    },
    /// What is on the disk shall move to others, or not any more.
    DiskDrain {
        pool: PoolId,
        disk: DiskId,
        is_draining: bool,
        answer: Answer<()>,
    },
    /// Answered when the disk has left; `None` when it was not there. The asker unmounts it.
    DiskLeave {
        pool: PoolId,
        disk: DiskId,
        answer: Answer<Option<Box<DiskSeat>>>,
    },
    /// A disk of a pool that another worker keeps is this worker's.
    HostBegin {
        hosted: Box<Hosted>,
    },
    /// Answered when nothing of the disk is under way; its pool has let go of it. The asker
    /// unmounts it.
    HostEnd {
        host: HostId,
        answer: Answer<Box<DiskStore>>,
    },
    HostScrub {
        pool: PoolId,
        disk: Option<DiskId>,
        order: crate::scrub::Order,
        answer: Answer<()>,
    },
    HostScrubs {
        pool: PoolId,
        answer: Answer<Vec<crate::scrub::ScrubFacts>>,
    },
    Hosted {
        answer: Sender<Vec<HostedFacts>>,
    },
    /// Attachments of this worker may be of a pool that another one keeps.
    DoorOpen {
        door: Box<Door>,
    },
    /// No attachment of the pool is left.
    DoorClose {
        pool: PoolId,
    },
    /// The other end of a door, for the worker that keeps the pool.
    GuestsCome {
        pool: PoolId,
        guests: Box<Guests>,
    },
    /// Every disk of this worker writes a checkpoint, under whatever else it does.
    Checkpoint,
    /// Runs on this CPU from here on.
    Pin {
        cpu: u32,
        answer: Sender<Result<(), AffinityError>>,
    },
    /// Of one disk or all of them.
    Scrub {
        pool: PoolId,
        disk: Option<DiskId>,
        order: crate::scrub::Order,
        answer: Answer<()>,
    },
    Scrubs {
        pool: PoolId,
        answer: Answer<Vec<crate::scrub::ScrubFacts>>,
    },
    Attach {
        spec: AttachSpec,
        answer: Answer<Attached>,
    },
    /// The same for a pool behind a door; `held` is of the worker that keeps it.
    AttachFar {
        spec: AttachSpec,
        held: Box<Held>,
        answer: Answer<Attached>,
    },
    /// After the device's thread has stopped. Answered when its last request has ended.
    Detach {
        token: DeviceToken,
        answer: Answer<()>,
    },
    /// Other limits for what is served; nothing else of it changes.
    Limit {
        token: DeviceToken,
        limits: Option<VolumeLimits>,
    },
    Hold {
        pool: PoolId,
        volume: VolumeId,
        answer: Answer<Held>,
    },
    /// The status' size is the snapshot's.
    HoldSnapshot {
        pool: PoolId,
        volume: VolumeId,
        snapshot: SnapshotId,
        answer: Answer<Held>,
    },
    Release {
        pool: PoolId,
        handle: VolumeHandle,
    },
    /// The completion goes to `done` as it is, with the tag that the request came with.
    Submit {
        pool: PoolId,
        tag: u64,
        request: VolumeRequest,
        done: Sender<VolumeCompletion>,
    },
    Pools {
        answer: Sender<Vec<PoolFacts>>,
    },
    Volumes {
        pool: PoolId,
        answer: Answer<Vec<VolumeStatus>>,
    },
    /// The newest slow requests.
    Slow {
        limit: usize,
        answer: Sender<Vec<Slow>>,
    },
    Snapshots {
        pool: PoolId,
        volume: VolumeId,
        answer: Answer<Vec<SnapshotStatus>>,
    },
    Attachments {
        answer: Sender<Vec<AttachmentFacts>>,
    },
}

impl Message {
    /// The pool whose worker is meant, where a message is for the worker of a pool.
    pub(crate) const fn pool(&self) -> Option<PoolId> {
        match self {
            Self::PoolOpen { pool, .. }
            | Self::PoolClose { pool, .. }
            | Self::DiskJoin { pool, .. }
            | Self::DiskDrain { pool, .. }
            | Self::DiskLeave { pool, .. }
            | Self::GuestsCome { pool, .. }
            | Self::Scrub { pool, .. }
            | Self::Scrubs { pool, .. }
            | Self::Hold { pool, .. }
            | Self::HoldSnapshot { pool, .. }
            | Self::Release { pool, .. }
            | Self::Submit { pool, .. }
            | Self::Volumes { pool, .. }
            | Self::Snapshots { pool, .. } => Some(*pool),
            Self::Attach { spec, .. } => Some(spec.pool),
            _ => None,
        }
    }

    /// The attachment whose worker is meant.
    pub(crate) const fn token(&self) -> Option<DeviceToken> {
        match self {
            Self::Detach { token, .. } | Self::Limit { token, .. } => Some(*token),
            _ => None,
        }
    }
}
