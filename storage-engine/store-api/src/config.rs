// SPDX-License-Identifier: Apache-2.0
//! What one store process is to serve.

use plinth_ids::{DiskId, Epoch, PoolId, VolumeId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The format version of [`StoreConfig`] that this crate writes. Version 1, in which a pool had
/// one `device`, is read and becomes this version on the way in.
pub const CONFIG_VERSION: u32 = 2;

/// The most workers of a store process.
pub const WORKERS_MAX: usize = 64;

/// Bytes a second that a scrub reads where nobody chose.
pub const SCRUB_RATE_DEFAULT: u64 = 16 << 20;

const DAY: u64 = 24 * 60 * 60;

/// Everything that one store process is to serve.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "OfferedConfig")]
pub struct StoreConfig {
    /// [`CONFIG_VERSION`].
    pub version: u32,
    /// A snapshot with a lower number than the one in force is refused.
    pub epoch: Epoch,
    /// The CPUs of the workers, one worker each, at most [`WORKERS_MAX`]. Empty: one worker, where
    /// the program's arguments put it. Pools, disks and attachments name workers by their place in
    /// this list; see [`StoreConfig::placed`] for those that name none.
    pub workers: Vec<u32>,
    pub pools: Vec<Pool>,
    pub attachments: Vec<Attachment>,
}

impl StoreConfig {
    /// The same with a worker for everything that names none, by rules that look at nothing else,
    /// so that what comes or goes moves nothing:
    ///
    /// * pool `p` has worker `(p - 1) % workers`, which keeps its volumes and where their data is;
    /// * disk `d` has worker `(its pool's + d - 1) % workers`, so that a pool's disks are spread
    ///   and the only disk of a pool is with the pool;
    /// * an attachment has its pool's.
    #[must_use]
    pub fn placed(&self) -> Self {
        let workers = u32::try_from(self.workers.len()).unwrap_or(u32::MAX).max(1);
        let after = |number: u32, first: u32| {
            let at = u64::from(first) + u64::from(number.saturating_sub(1));
            u32::try_from(at % u64::from(workers)).unwrap_or(0)
        };
        let mut placed = self.clone();
        for pool in &mut placed.pools {
            let home = *pool.worker.get_or_insert(after(pool.id.0, 0));
            for disk in &mut pool.disks {
                disk.worker.get_or_insert(after(disk.id.0, home));
            }
        }
        for attachment in &mut placed.attachments {
            let pool = placed.pools.iter().find(|pool| pool.id == attachment.pool);
            attachment.worker = attachment.worker.or(pool.and_then(|pool| pool.worker));
        }
        placed
    }
}

/// A pool on disks formatted earlier by [`crate::Verb::PoolFormat`] or
/// [`crate::Verb::PoolDiskAdd`].
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Pool {
    pub id: PoolId,
    pub disks: Vec<PoolDisk>,
    pub durability: Durability,
    pub class: PoolClass,
    pub scrub: ScrubSchedule,
    pub ladder: Ladder,
    /// Whether the disks are told what is free, where they want to know: a file then gives its
    /// space back, an SSD writes faster.
    pub discards: bool,
    pub access: PoolAccess,
    /// The worker that keeps its volumes. `None`: see [`StoreConfig::placed`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
}

/// What a pool is mounted for. Another one closes the pool and opens it anew.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolAccess {
    /// A disk that has lost what was durable is refused.
    #[default]
    Whole,
    /// What is left is read, every change is refused, and nothing is written to the disks.
    Rescue,
}

impl Pool {
    /// A pool of one disk, with defaults for the rest.
    pub fn of_one(id: PoolId, device: impl Into<PathBuf>, durability: Durability) -> Self {
        Self {
            id,
            disks: vec![PoolDisk::first(device)],
            durability,
            class: PoolClass::default(),
            scrub: ScrubSchedule::default(),
            ladder: Ladder::default(),
            discards: true,
            access: PoolAccess::Whole,
            worker: None,
        }
    }
}

/// A disk of a pool.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PoolDisk {
    /// Unique in its pool, and never used there again for another disk.
    pub id: DiskId,
    /// An absolute path, or `memory:SIZE`.
    pub device: PathBuf,
    /// What is on it moves to the pool's other disks, and nothing new comes to it. Taking this
    /// back ends the move where it stands.
    #[serde(default)]
    pub is_draining: bool,
    /// The worker that owns it. `None`: see [`StoreConfig::placed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
}

impl PoolDisk {
    /// The disk that a pool is made with.
    pub fn first(device: impl Into<PathBuf>) -> Self {
        Self { id: DiskId::FIRST, device: device.into(), is_draining: false, worker: None }
    }
}

/// What the disks of a pool are good for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolClass {
    /// Volumes have no limits unless they are given some.
    #[default]
    Ordinary,
    /// SSD or NVMe. Volumes have [`VolumeLimits::performance_default`] unless they are given
    /// others; whoever makes the configuration fills that in.
    Performance,
}

/// When a write that asks for durability is acknowledged. A guest's FLUSH always flushes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// After the device's cache was flushed.
    #[default]
    Flush,
    /// When the device has taken it: its cache survives power loss.
    Device,
}

/// When a pool's disks are scrubbed, and how fast.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScrubSchedule {
    /// Seconds between two light scrubs, which check metadata. `None`: never by itself.
    pub light_interval: Option<u64>,
    /// Seconds between two deep scrubs, which read and check all data. `None`: never by itself.
    pub deep_interval: Option<u64>,
    /// Bytes a second that a scrub reads from one disk, at most.
    pub rate: u64,
}

impl Default for ScrubSchedule {
    /// Light once a day, deep once a week.
    fn default() -> Self {
        Self { light_interval: Some(DAY), deep_interval: Some(7 * DAY), rate: SCRUB_RATE_DEFAULT }
    }
}

/// From which share of its units on, in percent, a disk is at a level. They do not fall:
/// `warn <= nearfull <= full <= 100`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Ladder {
    pub warn: u8,
    pub nearfull: u8,
    /// Writes that need new units are refused.
    pub full: u8,
}

impl Default for Ladder {
    fn default() -> Self {
        Self { warn: 80, nearfull: 85, full: 95 }
    }
}

/// A volume that is served on a vhost-user-blk socket.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    pub pool: PoolId,
    pub volume: VolumeId,
    /// Path of the vhost-user socket, made by the store.
    pub socket: PathBuf,
    /// 1 to 16.
    pub queues: u16,
    pub is_read_only: bool,
    /// A change of these alone is carried out without detaching. `None`: not limited.
    #[serde(default)]
    pub limits: Option<VolumeLimits>,
    /// The worker that has its queues. `None`: see [`StoreConfig::placed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
}

/// How much a volume may do, as token buckets: one of requests, one of bytes. A request goes when
/// both have room.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeLimits {
    /// Requests a second. 0: not limited.
    pub iops: u64,
    /// Requests that a rested volume may have at once. 0: as many as `iops`, a second's worth.
    #[serde(default)]
    pub iops_burst: u64,
    /// 0: not limited.
    pub bytes_per_second: u64,
    /// Bytes that a rested volume may have at once. 0: as many as `bytes_per_second`.
    #[serde(default)]
    pub bytes_burst: u64,
}

impl VolumeLimits {
    /// What a volume of `size` bytes has in a performance pool: 1800 requests/s and 50 more for
    /// each GB, at most 1 200 000; 120 MB/s and 0.5 more for each GB, at most 4800. GB and MB are
    /// 10^9 and 10^6 bytes, and a part of a GB counts as a part. The burst is a second's worth.
    pub const fn performance_default(size: u64) -> Self {
        // Each unit of these is so many bytes of volume: no product that could overflow.
        let iops = 1_800 + size / (1_000_000_000 / 50);
        let bytes_per_second = 120_000_000 + size / 2_000;
        Self {
            iops: if iops < 1_200_000 { iops } else { 1_200_000 },
            iops_burst: 0,
            bytes_per_second: if bytes_per_second < 4_800_000_000 {
                bytes_per_second
            } else {
                4_800_000_000
            },
            bytes_burst: 0,
        }
    }
}

/// [`StoreConfig`] as any version writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfferedConfig {
    version: u32,
    epoch: Epoch,
    #[serde(default)]
    workers: Vec<u32>,
    pools: Vec<OfferedPool>,
    attachments: Vec<Attachment>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfferedPool {
    id: PoolId,
    /// Version 1 only.
    device: Option<PathBuf>,
    disks: Option<Vec<PoolDisk>>,
    durability: Durability,
    #[serde(default)]
    class: PoolClass,
    #[serde(default)]
    scrub: ScrubSchedule,
    #[serde(default)]
    ladder: Ladder,
    #[serde(default = "yes")]
    discards: bool,
    #[serde(default)]
    access: PoolAccess,
    #[serde(default)]
    worker: Option<u32>,
}

const fn yes() -> bool {
    true
}

/// Why a configuration is not one of its version.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    #[error("{pool} has no `device`, which version 1 asks for")]
    NoDevice { pool: PoolId },
    #[error("{pool} has `disks`, which version 1 does not know: say version 2")]
    DisksTooEarly { pool: PoolId },
    #[error("{pool} has no `disks`: version {version} lists them")]
    NoDisks { pool: PoolId, version: u32 },
    #[error("{pool} has a `device`, which is of version 1: version {version} lists `disks`")]
    DeviceTooLate { pool: PoolId, version: u32 },
}

impl TryFrom<OfferedConfig> for StoreConfig {
    type Error = ConfigError;

    fn try_from(offered: OfferedConfig) -> Result<Self, ConfigError> {
        let version = offered.version;
        let pools = offered.pools.into_iter().map(|pool| take(pool, version));
        Ok(Self {
            // A version from the future is kept, for the store to refuse by its number.
            version: if version == 1 { CONFIG_VERSION } else { version },
            epoch: offered.epoch,
            workers: offered.workers,
            pools: pools.collect::<Result<_, _>>()?,
            attachments: offered.attachments,
        })
    }
}

fn take(mut pool: OfferedPool, version: u32) -> Result<Pool, ConfigError> {
    let id = pool.id;
    let disks = match (version, pool.device.take(), pool.disks.take()) {
        (1, _, Some(_)) => return Err(ConfigError::DisksTooEarly { pool: id }),
        (1, None, None) => return Err(ConfigError::NoDevice { pool: id }),
        (1, Some(device), None) => vec![PoolDisk::first(device)],
        (_, Some(_), _) => return Err(ConfigError::DeviceTooLate { pool: id, version }),
        (_, None, None) => return Err(ConfigError::NoDisks { pool: id, version }),
        (_, None, Some(disks)) => disks,
    };
    let (durability, class) = (pool.durability, pool.class);
    let OfferedPool { scrub, ladder, discards, access, worker, .. } = pool;
    Ok(Pool { id, disks, durability, class, scrub, ladder, discards, access, worker })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(version: u32, pool: &str) -> Result<StoreConfig, String> {
        let text = format!(
            r#"{{"version":{version},"epoch":4,"pools":[{{"id":1,{pool}"durability":"device"}}],"attachments":[{{"pool":1,"volume":2,"socket":"/s","queues":1,"is_read_only":false}}]}}"#
        );
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_of_version_1_becomes_one_of_version_2() {
        let old = config(1, r#""device":"/d","#).unwrap();
        assert_eq!(old.version, CONFIG_VERSION);
        let pool = Pool::of_one(PoolId(1), "/d", Durability::Device);
        assert_eq!(old.pools, [pool]);
        assert_eq!((old.attachments[0].limits, old.workers.len()), (None, 0));
        let new = config(2, r#""disks":[{"id":1,"device":"/d"}],"#).unwrap();
        assert_eq!(old, new);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut config = config(1, r#""device":"/d","#).unwrap();
        config.workers = vec![0, 1];
        config.pools[0].disks[0].is_draining = true;
        config.pools[0].scrub.deep_interval = None;
        config.pools[0].discards = false;
        config.pools[0].access = PoolAccess::Rescue;
        config.pools[0].worker = Some(1);
        config.pools[0].disks[0].worker = Some(0);
        config.attachments[0].worker = Some(1);
        config.attachments[0].limits = Some(VolumeLimits::performance_default(1 << 40));
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<StoreConfig>(&text).unwrap(), config);
    }

    #[test]
    fn what_names_no_worker_gets_one_that_hangs_on_numbers_alone() {
        let mut config = config(2, r#""disks":[{"id":1,"device":"/d"}],"#).unwrap();
        let disk = |id, worker| PoolDisk { id: DiskId(id), worker, ..PoolDisk::first("/e") };
        config.pools[0].disks.extend([disk(2, None), disk(3, None), disk(4, Some(0))]);
        config.pools.push(Pool::of_one(PoolId(2), "/f", Durability::Flush));
        let workers = |config: &StoreConfig| {
            let placed = config.placed();
            let disks = |pool: &Pool| pool.disks.iter().map(|disk| disk.worker.unwrap()).collect();
            let pools: Vec<(u32, Vec<u32>)> =
                placed.pools.iter().map(|pool| (pool.worker.unwrap(), disks(pool))).collect();
            (pools, placed.attachments[0].worker)
        };
        assert_eq!(workers(&config), (vec![(0, vec![0, 0, 0, 0]), (0, vec![0])], Some(0)));
        config.workers = vec![4, 5];
        assert_eq!(workers(&config), (vec![(0, vec![0, 1, 0, 0]), (1, vec![1])], Some(0)));
        config.pools[0].worker = Some(1);
        assert_eq!(workers(&config), (vec![(1, vec![1, 0, 1, 0]), (1, vec![1])], Some(1)));
    }

    #[test]
    fn a_mixture_of_versions_is_refused_by_name() {
        for (version, pool, why) in [
            (1, "", "pool-1 has no `device`"),
            (1, r#""disks":[],"#, "pool-1 has `disks`"),
            (2, "", "pool-1 has no `disks`"),
            (2, r#""device":"/d","#, "pool-1 has a `device`"),
            (2, r#""extra":1,"#, "unknown field `extra`"),
        ] {
            let error = config(version, pool).unwrap_err();
            assert!(error.contains(why), "{version} {pool}: {error}");
        }
    }

    #[test]
    fn a_version_of_the_future_keeps_its_number() {
        let future = config(3, r#""disks":[],"#).unwrap();
        assert_eq!(future.version, 3);
    }

    #[test]
    fn a_performance_volume_has_what_its_size_gives() {
        const GB: u64 = 1_000_000_000;
        let rates = |size| {
            let limits = VolumeLimits::performance_default(size);
            (limits.iops, limits.bytes_per_second)
        };
        assert_eq!(rates(0), (1_800, 120_000_000));
        assert_eq!(rates(100 * GB), (6_800, 170_000_000));
        assert_eq!(rates(GB / 2), (1_825, 120_250_000));
        assert_eq!(rates(9_360 * GB), (469_800, 4_800_000_000));
        assert_eq!(rates(23_964 * GB), (1_200_000, 4_800_000_000));
        assert_eq!(rates(u64::MAX), (1_200_000, 4_800_000_000));
    }
}
