// SPDX-License-Identifier: Apache-2.0
//! Disks of pools, snapshots and limits of volumes, and what can be measured of them: what an
//! agent says of them and what an operator sees.

#![allow(
    missing_debug_implementations,
    reason = "the macros below make rkyv's archived types look like ours to the lint"
)]

use super::ResourceState;
use crate::with::Raw;
use plinth_ids::{DiskId, Name, PoolId, SnapshotId, VolumeId};
use rkyv::with::Map;

/// Declares types that are messages, records and JSON alike.
macro_rules! message {
    ($($(#[$meta:meta])* pub $kind:tt $name:ident { $($body:tt)* })*) => {$(
        $(#[$meta])*
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
        pub $kind $name { $($body)* }
    )*};
}

message! {
    /// What the disks of a pool are good for.
    #[derive(Copy, Default)]
    pub enum PoolClass {
        /// Volumes have no limits unless they are given some.
        #[default]
        Ordinary,
        /// SSD or NVMe: volumes have limits by their size unless they are given others.
        Performance,
    }

    /// What a pool is mounted for.
    #[derive(Copy, Default)]
    pub enum PoolAccess {
        /// A disk that has lost what was durable is refused.
        #[default]
        Whole,
        /// What is left is read, every change is refused, and nothing is written to the disks.
        Rescue,
    }

    /// How full a pool or disk is.
    #[derive(Copy, Default, Ord, PartialOrd)]
    pub enum Level {
        #[default]
        Ok,
        Warn,
        Nearfull,
        /// Writes that need new units are refused until some are freed.
        Full,
    }

    #[derive(Copy, Default)]
    pub enum DiskState {
        #[default]
        In,
        /// In service for what is still on it, which moves to other disks.
        Draining,
        /// Taken out, because it failed I/O.
        Failed,
        /// Not there, or not the disk that the pool has under this number.
        Missing,
    }

    #[derive(Copy)]
    pub enum FoundBy {
        Read,
        LightScrub,
        DeepScrub,
    }

    #[derive(Copy, Default)]
    pub enum ScrubKind {
        /// Metadata.
        #[default]
        Light,
        /// All data too.
        Deep,
    }

    #[derive(Copy)]
    pub enum JobKind {
        Clone,
        Flatten,
        Rollback,
        Delete,
        SnapshotDelete,
        Wipe,
    }
}

/// Declares types whose fields keep their names in JSON.
macro_rules! record {
    ($($(#[$meta:meta])* pub struct $name:ident { $($body:tt)* })*) => {$(
        $(#[$meta])*
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
        pub struct $name { $($body)* }
    )*};
}

record! {
    /// How much a volume may do. 0 is not limited; a burst of 0 is a second's worth.
    #[derive(Copy)]
    pub struct VolumeLimits {
        pub iops: u64,
        pub iops_burst: u64,
        pub bytes_per_second: u64,
        pub bytes_burst: u64,
    }

    /// When a pool's disks are scrubbed. `None`: never by itself.
    pub struct ScrubSchedule {
        pub light_seconds: Option<u64>,
        pub deep_seconds: Option<u64>,
        /// Bytes a second of one disk, at most.
        pub rate: u64,
    }

    /// A disk that a pool stands on.
    pub struct PoolDiskSpec {
        #[rkyv(with = Raw)]
        pub id: DiskId,
        /// Path of a block device or file on the node.
        pub device: String,
        pub is_draining: bool,
    }

    /// A disk as its node sees it.
    pub struct DiskStatus {
        #[rkyv(with = Raw)]
        pub id: DiskId,
        pub device: String,
        pub state: DiskState,
        /// Why it is failed or missing.
        pub reason: Option<String>,
        pub capacity: u64,
        pub used: u64,
        pub level: Level,
        /// On it, those that are to leave it included.
        pub objects: u64,
        pub bad_blocks: u64,
        pub counters: DiskCounters,
    }

    /// What a disk did since it was opened.
    #[derive(Copy, Default)]
    pub struct DiskCounters {
        pub reads: u64,
        pub writes: u64,
        pub flushes: u64,
        pub discards: u64,
        pub read_bytes: u64,
        pub written_bytes: u64,
        pub io_errors: u64,
        pub checksum_errors: u64,
    }

    /// A block of 4 KiB that cannot be read as it was written.
    pub struct BadBlock {
        pub object: String,
        /// The volume that has it.
        #[rkyv(with = Map<Raw>)]
        pub volume: Option<VolumeId>,
        pub volume_offset: Option<u64>,
        /// Of the object, in blocks of 4 KiB.
        pub block: u32,
        /// On the device.
        pub offset: u64,
        pub found_by: FoundBy,
        pub found_at: u64,
    }

    /// A disk as an operator sees it.
    pub struct PoolDiskView {
        #[rkyv(with = Raw)]
        pub pool: Name,
        #[rkyv(with = Raw)]
        pub node: Name,
        #[rkyv(with = Raw)]
        pub disk: DiskId,
        pub device: String,
        pub resource: ResourceState,
        pub is_draining: bool,
        /// As its node sees it; `None` while the node has not said.
        pub status: Option<DiskStatus>,
        /// With `disk show`: the first of them.
        pub bad_blocks: Vec<BadBlock>,
    }

    /// A volume's space, as its node counts it. Bytes of whole units.
    pub struct VolumeUsage {
        pub size: u64,
        pub written: u64,
        /// Of the volume alone.
        pub unique: u64,
        /// Of its snapshots alone.
        pub snapshots_unique: u64,
        pub snapshots: Vec<SnapshotUsage>,
        /// The volume that it was cloned from and still shares units with.
        #[rkyv(with = Map<Raw>)]
        pub parent: Option<VolumeId>,
        pub job: Option<Job>,
    }

    /// A snapshot, as its node counts it.
    pub struct SnapshotUsage {
        #[rkyv(with = Raw)]
        pub id: SnapshotId,
        #[rkyv(with = Raw)]
        pub name: Name,
        /// Of the volume when it was taken.
        pub size: u64,
        /// What deleting it frees.
        pub unique: u64,
        pub created_at: u64,
    }

    /// What is being done to a volume in the background, in objects.
    pub struct Job {
        pub kind: JobKind,
        pub done: u64,
        pub total: u64,
    }

    /// A snapshot as an operator sees it.
    pub struct SnapshotView {
        #[rkyv(with = Raw)]
        pub id: SnapshotId,
        #[rkyv(with = Raw)]
        pub volume: Name,
        #[rkyv(with = Raw)]
        pub name: Name,
        pub state: ResourceState,
        pub size: u64,
        /// What deleting it frees; `None` while the node has not said.
        pub unique: Option<u64>,
        /// Made by the volume's schedule, which also deletes it.
        pub is_scheduled: bool,
        pub created_at: u64,
    }

    /// When a volume gets snapshots by itself.
    pub struct ScheduleView {
        #[rkyv(with = Raw)]
        pub volume: Name,
        pub interval_seconds: u64,
        /// How many of its own snapshots it leaves.
        pub keep: u32,
        pub next_at: u64,
        /// Its snapshots.
        pub snapshots: u64,
        /// Why the last one was not taken.
        pub fault: Option<String>,
    }

    pub struct LimitView {
        #[rkyv(with = Raw)]
        pub volume: Name,
        /// In force.
        pub limits: Option<VolumeLimits>,
        /// Whether an operator chose them; else they are the pool's class's.
        pub is_chosen: bool,
    }

    /// A range of a volume that differs between two snapshots.
    #[derive(Copy)]
    pub struct DiffRange {
        pub offset: u64,
        pub length: u64,
        /// It reads as zeros in the later one.
        pub is_zero: bool,
    }

    /// A scrub of one disk.
    pub struct ScrubView {
        #[rkyv(with = Raw)]
        pub disk: DiskId,
        pub run: Option<ScrubRun>,
        pub last_light: Option<u64>,
        pub last_deep: Option<u64>,
        pub next_light: Option<u64>,
        pub next_deep: Option<u64>,
        /// What the last whole one found.
        pub last_found: u64,
    }

    /// The scrub that is under way.
    pub struct ScrubRun {
        pub kind: ScrubKind,
        pub started_at: u64,
        pub objects_done: u64,
        pub objects_total: u64,
        pub bytes: u64,
        pub found: u64,
        pub rate: u64,
    }

    /// The summary of a histogram, in nanoseconds.
    #[derive(Copy, Default)]
    pub struct Latency {
        pub count: u64,
        pub p50: u64,
        pub p99: u64,
        pub p999: u64,
        pub max: u64,
    }

    /// The latencies of a volume that is served, as its node measures them.
    pub struct VolumeMetrics {
        #[rkyv(with = Raw)]
        pub pool: PoolId,
        #[rkyv(with = Raw)]
        pub volume: VolumeId,
        pub read: Latency,
        pub write: Latency,
        pub flush: Latency,
        pub read_bytes: u64,
        pub written_bytes: u64,
        pub errors: u64,
        /// Requests that waited for the volume's limits.
        pub throttled: u64,
    }

    /// The same under the volume's name.
    pub struct VolumeStatsView {
        #[rkyv(with = Raw)]
        pub volume: Name,
        pub metrics: VolumeMetrics,
    }

    /// A request that took long, as its node kept it.
    pub struct SlowRequest {
        pub at_ms: u64,
        #[rkyv(with = Raw)]
        pub pool: PoolId,
        #[rkyv(with = Raw)]
        pub volume: VolumeId,
        pub kind: String,
        pub offset: u64,
        pub length: u64,
        pub total_ns: u64,
        pub waits: Vec<Wait>,
    }

    /// What a request waited for, and how long.
    pub struct Wait {
        pub stage: String,
        pub ns: u64,
    }

    /// The same under the volume's name.
    pub struct SlowRequestView {
        #[rkyv(with = Raw)]
        pub volume: Name,
        pub request: SlowRequest,
    }
}

impl Default for ScrubSchedule {
    /// Light once a day, deep once a week.
    fn default() -> Self {
        let day = 24 * 60 * 60;
        Self { light_seconds: Some(day), deep_seconds: Some(7 * day), rate: 16 << 20 }
    }
}
