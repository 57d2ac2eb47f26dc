// SPDX-License-Identifier: Apache-2.0
//! What the service says to an agent.
//!
//! One request goes on one QUIC stream and its reply comes back on it. Two requests carry bytes
//! besides: after [`Command::ImageImport`] from [`ImportSource::Stream`] come that many raw
//! bytes, then the reply; after the reply to [`AgentRequest::Console`] the stream is the
//! console, raw, both ways, until either side ends it.

use super::{
    BadBlock, DaemonUpgrade, DiffRange, DropCount, Durability, FlowStatus, NodeSpec, NodeStatus,
    PoolClass, PoolDiskSpec, Refusal, ScrubKind, ScrubView, SlowRequest, SnapshotUsage, SwitchPort,
    VolumeMetrics, VolumeUsage,
};
use crate::with::Raw;
use plinth_ids::{DiskId, Epoch, Name, PoolId, SnapshotId, VmId, VolumeId};
use rkyv::with::Map;

#[allow(
    clippy::large_enum_variant,
    reason = "one request lives at a time; a box would be in the message's form for ever"
)]
#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub enum AgentRequest {
    /// Make this true. Answered with [`AgentAnswer::Applied`] when it is taken, not when it is
    /// true: that is seen in the status.
    Apply(NodeSpec),
    Status,
    Perform(Command),
    /// Answered with [`AgentAnswer::Done`], then the console's bytes.
    Console(#[rkyv(with = Raw)] VmId),
}

/// One act on a node. Every command is idempotent: done twice it is done, because the service
/// sends it again after a crash.
#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub enum Command {
    /// Makes an empty pool, and serves it. A pool of the same id that is there already is kept;
    /// anything else on the device is kept and refused unless `overwrite`.
    PoolFormat {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        name: Name,
        disks: Vec<PoolDiskSpec>,
        /// Of each disk; `None` takes a device or existing file whole.
        size: Option<u64>,
        durability: Durability,
        class: PoolClass,
        overwrite: bool,
    },
    /// Makes an empty disk for a pool that is served; the spec then names it.
    DiskAdd {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        disk: DiskId,
        device: String,
        size: Option<u64>,
        overwrite: bool,
    },
    /// Forgets a drained or failed disk. One that is not there is forgotten.
    DiskRemove {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        disk: DiskId,
    },
    /// Answered with [`AgentAnswer::BadBlocks`].
    DiskShow {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        disk: DiskId,
    },
    VolumeCreate {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        #[rkyv(with = Raw)]
        name: Name,
        size: u64,
    },
    /// A volume with the contents of another of the same pool, or of a snapshot of it, grown to
    /// `size`.
    VolumeClone {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        source: VolumeId,
        #[rkyv(with = Map<Raw>)]
        snapshot: Option<SnapshotId>,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        #[rkyv(with = Raw)]
        name: Name,
        size: u64,
    },
    VolumeGrow {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        size: u64,
    },
    /// A volume that is not there is deleted. Refused while a VM has it.
    VolumeDelete {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        /// Overwrites what only it has.
        wipe: bool,
    },
    /// Answered with [`AgentAnswer::VolumeUsage`].
    VolumeShow {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
    },
    /// Gives a clone units of its own, in the background.
    VolumeFlatten {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
    },
    /// Answered with [`AgentAnswer::Diff`], one piece from `start` on.
    VolumeDiff {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        #[rkyv(with = Map<Raw>)]
        from: Option<SnapshotId>,
        #[rkyv(with = Raw)]
        to: SnapshotId,
        start: u64,
    },
    /// Writes what differs between two snapshots to a new file on the node.
    DeltaExport {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        #[rkyv(with = Map<Raw>)]
        from: Option<SnapshotId>,
        #[rkyv(with = Raw)]
        to: SnapshotId,
        target: String,
    },
    /// Brings a volume to the snapshot that a delta ends at. Answered with
    /// [`AgentAnswer::Snapshot`].
    DeltaImport {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        #[rkyv(with = Raw)]
        snapshot: SnapshotId,
        source: String,
    },
    SnapshotCreate {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        #[rkyv(with = Raw)]
        snapshot: SnapshotId,
        #[rkyv(with = Raw)]
        name: Name,
    },
    /// A snapshot that is not there is deleted.
    SnapshotDelete {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        #[rkyv(with = Raw)]
        snapshot: SnapshotId,
    },
    /// Refused while a VM has the volume.
    SnapshotRollback {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        #[rkyv(with = Raw)]
        snapshot: SnapshotId,
    },
    ScrubStart {
        #[rkyv(with = Raw)]
        pool: PoolId,
        /// `None` is all of the pool's.
        #[rkyv(with = Map<Raw>)]
        disk: Option<DiskId>,
        kind: ScrubKind,
        rate: Option<u64>,
    },
    ScrubStop {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Map<Raw>)]
        disk: Option<DiskId>,
    },
    /// Answered with [`AgentAnswer::Scrubs`].
    ScrubStatus {
        #[rkyv(with = Raw)]
        pool: PoolId,
    },
    /// Answered with [`AgentAnswer::Metrics`].
    Metrics,
    /// Answered with [`AgentAnswer::SlowRequests`], the newest `limit`.
    SlowRequests {
        limit: u32,
    },
    /// Makes a volume with the bytes of a disk image, and a snapshot of it to clone from.
    /// Answered with [`AgentAnswer::Imported`].
    ImageImport {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        #[rkyv(with = Raw)]
        snapshot: SnapshotId,
        #[rkyv(with = Raw)]
        name: Name,
        format: DiskFormat,
        source: ImportSource,
    },
    SwitchPorts,
    /// The newest `limit` flows.
    SwitchFlows {
        limit: u32,
    },
    SwitchDrops,
    /// A question to the switch in its own words: `Look` of plinth-switch-api as JSON. Answered
    /// with [`AgentAnswer::SwitchSight`].
    SwitchLook(String),
    /// A new store process takes over from the one that runs. Answered with
    /// [`AgentAnswer::StoreUpgraded`] when it serves.
    StoreUpgrade,
    /// The same of the switch. Answered with [`AgentAnswer::SwitchUpgraded`].
    SwitchUpgrade,
}

#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    PartialEq,
    rkyv::Archive,
    rkyv::Deserialize,
    rkyv::Serialize,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    Raw,
    Qcow2,
}

#[derive(
    Clone,
    Debug,
    Eq,
    PartialEq,
    rkyv::Archive,
    rkyv::Deserialize,
    rkyv::Serialize,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ImportSource {
    /// A file on the node.
    Path(String),
    /// This many bytes follow the request on its stream.
    Stream { length: u64 },
}

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct AgentReply {
    pub result: Result<AgentAnswer, Refusal>,
}

#[allow(
    clippy::large_enum_variant,
    reason = "one answer lives at a time; a box would be in the message's form for ever"
)]
#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub enum AgentAnswer {
    Applied(#[rkyv(with = Raw)] Epoch),
    Status(NodeStatus),
    Done,
    /// `size` of the guest's disk, in bytes. A store of an older release makes no snapshot.
    Imported {
        size: u64,
        has_snapshot: bool,
    },
    BadBlocks(Vec<BadBlock>),
    VolumeUsage(VolumeUsage),
    /// `next` is where to go on, if this is not all.
    Diff {
        ranges: Vec<DiffRange>,
        next: Option<u64>,
    },
    Snapshot(SnapshotUsage),
    Scrubs(Vec<ScrubView>),
    Metrics(Vec<VolumeMetrics>),
    SlowRequests(Vec<SlowRequest>),
    SwitchPorts(Vec<SwitchPort>),
    SwitchFlows(Vec<FlowStatus>),
    SwitchDrops(Vec<DropCount>),
    /// `Sight` of plinth-switch-api as JSON.
    SwitchSight(String),
    StoreUpgraded(DaemonUpgrade),
    SwitchUpgraded(DaemonUpgrade),
}
