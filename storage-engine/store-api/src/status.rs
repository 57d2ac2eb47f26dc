// SPDX-License-Identifier: Apache-2.0
//! What the store says of itself. Times of day are seconds since 1970, sizes are bytes.

use plinth_ids::{DiskId, Epoch, Name, PoolId, SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    pub process: u32,
    pub version: String,
    /// Of the configuration in force, if any.
    pub epoch: Option<Epoch>,
    pub attachments: Vec<AttachmentStatus>,
    /// Share of time since the last question that the worker spent on requests, 0 to 1.
    pub busy: f64,
    /// Cycles of the time-stamp counter spent in rounds that moved requests.
    pub busy_cycles: u64,
    pub requests: u64,
    pub sleeps: u64,
    #[serde(default)]
    pub costs: Costs,
}

/// What the requests of all guests have cost since the start: for sums a request, and for the
/// bytes on the devices a byte of the guests.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Costs {
    /// Of the workers: requests to disks, calls of guests, sleeps.
    pub system_calls: u64,
    pub disk_bytes_read: u64,
    pub disk_bytes_written: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AttachmentStatus {
    pub volume: VolumeId,
    pub socket: PathBuf,
    /// Why the socket is not there, for people; it is tried again. `None` when it is.
    #[serde(default)]
    pub fault: Option<String>,
    /// Whether a frontend has connected and started its queues.
    pub is_up: bool,
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub errors: u64,
}

/// How full a pool or disk is, by the pool's [`crate::Ladder`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    #[default]
    Ok,
    Warn,
    Nearfull,
    /// Writes that need new units are refused until some are freed.
    Full,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PoolStatus {
    pub id: PoolId,
    /// Of the first disk.
    pub device: PathBuf,
    /// `None` in service; else why not, for people.
    pub fault: Option<String>,
    /// Bytes that data can use, and bytes taken, whole units.
    pub capacity: u64,
    pub used: u64,
    pub volumes: u64,
    pub objects: u64,
    /// Blocks that failed their checksum since start.
    pub checksum_errors: u64,
    /// Of the fullest disk that takes new data.
    #[serde(default)]
    pub level: Level,
    #[serde(default)]
    pub disks: Vec<DiskStatus>,
    /// Deleted volumes whose bytes are being overwritten.
    #[serde(default)]
    pub wipes: Vec<Wipe>,
}

/// A deleted volume on its way out, in objects.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Wipe {
    pub volume: VolumeId,
    pub done: u64,
    /// As many as there were when it began, or went on after a restart.
    pub total: u64,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskState {
    /// In service.
    #[default]
    In,
    /// In service for what is still on it, which moves to other disks.
    Draining,
    /// Taken out, because it failed I/O.
    Failed,
    /// Not there, or not the disk that the pool has under this number.
    Missing,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DiskStatus {
    pub id: DiskId,
    pub device: PathBuf,
    pub state: DiskState,
    /// Why it is failed or missing, for people.
    #[serde(default)]
    pub reason: Option<String>,
    pub capacity: u64,
    pub used: u64,
    #[serde(default)]
    pub level: Level,
    /// On it, those that must still leave it included. A draining disk with none may be removed.
    pub objects: u64,
    /// Blocks that are known to be bad.
    #[serde(default)]
    pub bad_blocks: u64,
    #[serde(default)]
    pub counters: DiskCounters,
}

/// What a disk did since it was opened.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
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

/// A disk with what is wrong on it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DiskDetail {
    pub status: DiskStatus,
    /// The first of them; `status.bad_blocks` says how many there are.
    pub bad_blocks: Vec<BadBlock>,
}

/// A block of 4 KiB that cannot be read as it was written.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct BadBlock {
    /// The object that has it, in the store's words.
    pub object: String,
    /// The volume of that object and where in the volume the block is, if it is data of one.
    #[serde(default)]
    pub volume: Option<VolumeId>,
    #[serde(default)]
    pub volume_offset: Option<u64>,
    /// Of the object, in blocks of 4 KiB.
    pub block: u32,
    /// On the device.
    pub offset: u64,
    pub found_by: FoundBy,
    pub found_at: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundBy {
    Read,
    LightScrub,
    DeepScrub,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct VolumeStatus {
    pub volume: VolumeId,
    pub name: Name,
    pub size: u64,
    /// Bytes of the units that the volume's objects have, shared ones included.
    pub written: u64,
    pub objects: u64,
    pub created_at: u64,
    pub updated_at: u64,
    pub attached: Option<PathBuf>,
}

/// A volume with all that is known of its space.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct VolumeDetail {
    /// `size` is what is provisioned.
    pub status: VolumeStatus,
    /// Bytes of the units that only the volume's head has: what deleting the volume without its
    /// snapshots would free.
    pub unique: u64,
    /// Bytes of the units that only snapshots of this volume have.
    pub snapshots_unique: u64,
    /// Oldest first.
    pub snapshots: Vec<SnapshotStatus>,
    /// What it was cloned from and still shares units with.
    #[serde(default)]
    pub parent: Option<Parent>,
    /// What is being done to it in the background.
    #[serde(default)]
    pub job: Option<Job>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Parent {
    pub volume: VolumeId,
    #[serde(default)]
    pub snapshot: Option<SnapshotId>,
}

/// A long affair, and how far it is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Job {
    pub kind: JobKind,
    /// Objects.
    pub done: u64,
    pub total: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    Clone,
    Flatten,
    Rollback,
    Delete,
    SnapshotDelete,
    Wipe,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SnapshotStatus {
    pub snapshot: SnapshotId,
    pub name: Name,
    /// Of the volume when the snapshot was taken.
    pub size: u64,
    /// Bytes of the units that only this snapshot has: what deleting it frees.
    pub unique: u64,
    pub created_at: u64,
    /// Deleted, and its space comes back in the background.
    #[serde(default)]
    pub is_leaving: bool,
}

/// What differs between two snapshots, from `start` on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Diff {
    /// In order, and apart from each other.
    pub ranges: Vec<DiffRange>,
    /// Where to go on, if this is not all.
    #[serde(default)]
    pub next: Option<u64>,
}

/// A range of a volume, in bytes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DiffRange {
    pub offset: u64,
    pub length: u64,
    /// It reads as zeros in the later snapshot.
    pub is_zero: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScrubKind {
    /// Metadata: maps, bitmap and counts are read and compared.
    #[default]
    Light,
    /// All data too.
    Deep,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ScrubStatus {
    pub disk: DiskId,
    /// The one under way, if any.
    #[serde(default)]
    pub run: Option<ScrubRun>,
    /// When the last whole one of each kind ended.
    #[serde(default)]
    pub last_light: Option<u64>,
    #[serde(default)]
    pub last_deep: Option<u64>,
    /// When the schedule begins the next one.
    #[serde(default)]
    pub next_light: Option<u64>,
    #[serde(default)]
    pub next_deep: Option<u64>,
    /// What the last whole one found.
    #[serde(default)]
    pub last_found: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ScrubRun {
    pub kind: ScrubKind,
    pub started_at: u64,
    pub objects_done: u64,
    pub objects_total: u64,
    pub bytes: u64,
    pub found: u64,
    /// Bytes a second.
    pub rate: u64,
}

/// Latencies and counters of all that is served.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Metrics {
    pub attachments: Vec<AttachmentMetrics>,
    pub disks: Vec<DiskMetrics>,
}

/// From the guest's queue to the answer in it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AttachmentMetrics {
    pub pool: PoolId,
    pub volume: VolumeId,
    pub read: Latency,
    pub write: Latency,
    pub flush: Latency,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub errors: u64,
    /// Requests that waited for the volume's limits.
    #[serde(default)]
    pub throttled: u64,
}

/// From the request to the disk to its completion.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DiskMetrics {
    pub pool: PoolId,
    pub disk: DiskId,
    pub read: Latency,
    pub write: Latency,
    pub flush: Latency,
    pub counters: DiskCounters,
}

/// The summary of a histogram, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Latency {
    pub count: u64,
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// A request that took long.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SlowRequest {
    /// When it came, in milliseconds since 1970.
    pub at_ms: u64,
    pub pool: PoolId,
    pub volume: VolumeId,
    /// `read`, `write`, `flush`, `discard` or `write-zeroes`.
    pub kind: String,
    pub offset: u64,
    pub length: u64,
    pub total_ns: u64,
    /// What it waited for, in order.
    pub waits: Vec<Wait>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Wait {
    /// Such as `limits`, `store`, `journal`, `disk`.
    pub stage: String,
    pub ns: u64,
}
