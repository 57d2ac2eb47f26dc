// SPDX-License-Identifier: Apache-2.0
//! Making, mounting and unmounting pools: what waits for a disk, on a thread that may wait.

use crate::message::EngineRefusal;
use crate::meter::DiskMeter;
use crate::place::{DiskMember, DiskStore, Place, PlaceError, PoolVolumes};
use crate::worker::WorkerPort;
use plinth_disks::uring::{OpenError, UringDiskError};
use plinth_ids::{DiskId, PoolId};
use plinth_metrics::{Kind, Metrics};
use plinth_obs::Chain;
use plinth_span::{MapError, Span, StartError, read_map};
use plinth_store::{
    Access, DiscardOptions, DiskError, Durability, FormatError, FormatOptions, Found, Ladder,
    MountError, Rest, Store, StoreId, StoreOptions,
};
use plinth_store_api as api;
use plinth_volume::Volumes;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Objects of deleted volumes and snapshots that a pool gives back in a second. One takes some 20
/// us of the worker, so this is 2 % of it, and 4 GiB a second when they are full.
const RECLAIM_RATE: u32 = 1000;

/// Objects that a pool wipes in a second, 4 MiB of zeros each when they are full: 128 MiB/s.
const WIPE_RATE: u32 = 32;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolFormatError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("{path:?} does not exist: give a size to make a file of it")]
    Missing { path: PathBuf },
    #[error("{path:?} is a device, which is taken whole: leave the size out")]
    DeviceSize { path: PathBuf },
    #[error("{path:?} has {length} bytes already, more than the {size} that were asked for")]
    Shrink { path: PathBuf, length: u64, size: u64 },
    #[error("the file {path:?} cannot be made or grown")]
    File { path: PathBuf, source: io::Error },
    #[error("the disk cannot be used")]
    Disk(#[from] UringDiskError),
    #[error("{pool} is on {path:?} already: say `overwrite` to lose it, or choose another device")]
    PoolThere { pool: PoolId, path: PathBuf },
    #[error("the disk cannot be read")]
    Read(#[from] DiskError),
    #[error("no random number for the pool can be had")]
    Random { source: io::Error },
    #[error("the pool cannot be made")]
    Format(#[from] FormatError),
}

impl PoolFormatError {
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Place(_) => "device-path",
            Self::Missing { .. } => "device-missing",
            Self::DeviceSize { .. } => "device-size",
            Self::Shrink { .. } => "device-shrink",
            Self::File { .. } => "device-file",
            Self::Disk(UringDiskError::Open(
                OpenError::InUse { .. } | OpenError::Lingers { .. },
            )) => "device-in-use",
            Self::Disk(_) => "device",
            Self::PoolThere { .. } => "pool-there",
            Self::Read(_) => "device",
            Self::Random { .. } => "random",
            Self::Format(_) => "format",
        }
    }
}

/// Makes an empty pool. A memory disk has none to keep: it is made empty whenever it is opened.
pub(crate) fn format_pool(
    pool: PoolId,
    device: &Path,
    size: Option<u64>,
    overwrite: bool,
) -> Result<(), PoolFormatError> {
    let place = Place::parse(device)?;
    if let Place::Device(path) = &place {
        make_room(path, size)?;
    }
    let mut disk = place.open()?;
    if let (Found::Store(id), false) = (Store::probe(&mut disk)?, overwrite) {
        return Err(PoolFormatError::PoolThere { pool: pool_of(id), path: device.into() });
    }
    let id = new_id(pool).map_err(|source| PoolFormatError::Random { source })?;
    Store::format(&mut disk, &FormatOptions { id, limits: None })?;
    Ok(())
}

/// The number of a new store: its pool's, and 96 random bits, so that two stores made for one
/// pool, one after the other or by mistake, differ.
fn new_id(pool: PoolId) -> io::Result<StoreId> {
    let mut id = StoreId::default();
    let (number, random) = id.split_at_mut(4);
    number.copy_from_slice(&pool.0.to_le_bytes());
    File::open("/dev/urandom")?.read_exact(random)?;
    Ok(id)
}

/// The pool that a store was made for.
fn pool_of(id: StoreId) -> PoolId {
    let [a, b, c, d, ..] = id;
    PoolId(u32::from_le_bytes([a, b, c, d]))
}

/// Makes or grows the file of a pool.
fn make_room(path: &Path, size: Option<u64>) -> Result<(), PoolFormatError> {
    let fault = |source| PoolFormatError::File { path: path.into(), source };
    let found = match fs::metadata(path) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(fault(error)),
    };
    match (found, size) {
        (None, None) => Err(PoolFormatError::Missing { path: path.into() }),
        (None, Some(size)) => {
            let file = File::options().write(true).create_new(true).mode(0o600).open(path);
            file.and_then(|file| file.set_len(size)).map_err(fault)
        }
        (Some(_), None) => Ok(()),
        (Some(found), Some(_)) if !found.is_file() => {
            Err(PoolFormatError::DeviceSize { path: path.into() })
        }
        (Some(found), Some(size)) if found.len() > size => {
            Err(PoolFormatError::Shrink { path: path.into(), length: found.len(), size })
        }
        (Some(_), Some(size)) => File::options()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(size))
            .map_err(fault),
    }
}

/// Why a pool of the configuration is not in service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolMountError {
    #[error("the configuration gives the pool no disk")]
    NoDisk,
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("the pool's device cannot be used")]
    Disk(#[from] UringDiskError),
    #[error("the pool cannot be mounted")]
    Mount(#[from] MountError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("the pool cannot be brought together")]
    Start(#[from] StartError),
    #[error("{found} is on the device: correct the configuration")]
    OtherPool { found: PoolId },
    #[error("the device cannot be read")]
    Read(#[from] DiskError),
    #[error("the memory disk cannot be formatted")]
    Format(#[from] FormatError),
    #[error("no random number for the pool can be had")]
    Random { source: io::Error },
    #[error("the disk has no worker")]
    Worker(#[from] EngineRefusal),
    #[error(
        "a null pool answers guests without doing what they ask, and loses all they write: if that \
         is wanted for measuring, start plinth-stored with --measuring"
    )]
    Null,
}

/// Whether pools may be served that lie to their guests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    Service,
    Measuring,
}

/// What a mount needs beside the pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means<'a> {
    pub(crate) purpose: Purpose,
    pub(crate) metrics: &'a Metrics,
    /// How the process before this one left its disks.
    pub(crate) rests: &'a [Rest],
    pub(crate) port: &'a WorkerPort,
}

/// A pool that was mounted.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) volumes: PoolVolumes,
    /// Disks that are not part of it, and why.
    pub(crate) faults: BTreeMap<DiskId, String>,
}

/// Opens a pool's disks and reads what it needs of each: superblock, checkpoint, journal, map. A
/// pool of several disks begins with those that are there.
pub(crate) fn mount(pool: &api::Pool, means: Means<'_>) -> Result<Mounted, PoolMountError> {
    let (mut members, mut missing) = (Vec::new(), Vec::new());
    let mut faults = BTreeMap::new();
    let mut first = None;
    for disk in &pool.disks {
        match mount_disk(pool, disk, means) {
            Ok(member) => members.push(member),
            Err(error) => {
                missing.push(disk.id);
                faults.insert(disk.id, Chain(&error).to_string());
                first.get_or_insert(error);
            }
        }
    }
    if members.is_empty() {
        return Err(first.unwrap_or(PoolMountError::NoDisk));
    }
    match Span::start(pool.id, members, &missing) {
        Ok((span, refused)) => {
            for refused in refused {
                faults.insert(refused.member.disk, refused.error.to_string());
                let _ = means.port.unmount(refused.member.store);
            }
            let mut volumes = Volumes::start(span, pool.id);
            volumes.set_reclaim_rate(Some(RECLAIM_RATE));
            volumes.set_wipe_rate(Some(WIPE_RATE));
            Ok(Mounted { volumes, faults })
        }
        Err((error, members)) => {
            for member in members {
                let _ = means.port.unmount(member.store);
            }
            Err(error.into())
        }
    }
}

/// Opens one disk of a pool.
pub(crate) fn mount_disk(
    pool: &api::Pool,
    disk: &api::PoolDisk,
    means: Means<'_>,
) -> Result<DiskMember, PoolMountError> {
    let Means { purpose, metrics, rests, port } = means;
    let worker = place_of(disk.worker);
    let place = Place::parse(&disk.device)?;
    if matches!(place, Place::Null { .. }) && purpose != Purpose::Measuring {
        return Err(PoolMountError::Null);
    }
    let number = disk.id;
    let mut disk = place.open()?;
    if matches!(place, Place::Memory { .. } | Place::Null { .. }) {
        let id = new_id(pool.id).map_err(|source| PoolMountError::Random { source })?;
        Store::format(&mut disk, &FormatOptions { id, limits: None })?;
    }
    // A disk without a superblock is left to the mount, which says what is wrong with each copy.
    let mut serial = StoreId::default();
    if let Found::Store(id) = Store::probe(&mut disk)? {
        if pool_of(id) != pool.id {
            return Err(PoolMountError::OtherPool { found: pool_of(id) });
        }
        serial = id;
    }
    if let Some(slot) = metrics.claim(Kind::Disk, pool.id.0, u64::from(number.0)) {
        disk.count(DiskMeter::new(slot));
    }
    let durability = match pool.durability {
        api::Durability::Flush => Durability::Flush,
        api::Durability::Device => Durability::Device,
    };
    let api::Ladder { warn, nearfull, full } = pool.ladder;
    let ladder = Ladder { warn, nearfull, full };
    let discard = if pool.discards { DiscardOptions::default() } else { DiscardOptions::OFF };
    let access = match pool.access {
        api::PoolAccess::Whole => Access::Whole,
        api::PoolAccess::Rescue => Access::Rescue,
    };
    let rest = rests.iter().find(|rest| rest.store == serial).copied();
    let options =
        StoreOptions { durability, ladder, discard, access, rest, ..StoreOptions::default() };
    let mut store = Store::mount(disk, options)?;
    if let Some(lost) = store.rescued_from() {
        let lost = Chain(&lost).to_string();
        tracing::warn!(pool = %pool.id, disk = %number, lost, "what is left is served for rescue");
    }
    let map = read_map(&mut store)?.map(|(_, map)| map);
    // In service it may take its time: guests wait, and are answered when it is back.
    store.disk_mut().be_patient(false);
    let store = port.seat(pool.id, number, worker, store)?;
    Ok(DiskMember { disk: number, serial, store, map })
}

/// A worker's place in the list. A configuration that was placed names one everywhere.
pub(crate) fn place_of(worker: Option<u32>) -> usize {
    worker.and_then(|worker| usize::try_from(worker).ok()).unwrap_or(0)
}

/// Whether the pool's contents end with this process.
pub(crate) fn is_volatile(pool: &api::Pool) -> bool {
    let is_volatile =
        |disk: &api::PoolDisk| matches!(Place::parse(&disk.device), Ok(Place::Memory { .. }));
    pool.disks.iter().any(is_volatile)
}

/// Writes a checkpoint on every disk and lets go of it. Gives what is known of them afterwards.
pub(crate) fn unmount(volumes: PoolVolumes, port: &WorkerPort) -> Vec<Rest> {
    let stores = volumes.stop().into_stores();
    stores.into_iter().filter_map(|(_, seat)| port.unmount(seat)).collect()
}

/// Writes a checkpoint and lets go of the disk. One that hangs is given up; its store is mended by
/// its next mount.
pub(crate) fn unmount_store(mut store: DiskStore) -> Option<Rest> {
    store.disk_mut().be_patient(true);
    store.put_away().1
}
