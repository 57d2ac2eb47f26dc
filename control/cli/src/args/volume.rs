// SPDX-License-Identifier: Apache-2.0
//! `plinth volume` and `plinth snapshot`.

use crate::text;
use clap::{Args, Subcommand};
use plinth_api::{DeltaExport, Request, VolumeClone, VolumeCreate, VolumeLimits};
use plinth_ids::Name;

#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Make a volume; it takes room only as it is written
    #[command(after_help = "Examples:\n  plinth volume create data-1 --size 20G\n  \
        plinth volume create copy --image debian-12")]
    Create {
        name: Name,
        /// [default: the image's size]
        #[arg(long, value_parser = text::size)]
        size: Option<u64>,
        /// [default: the only one]
        #[arg(long)]
        pool: Option<Name>,
        /// Start as a clone of this image
        #[arg(long)]
        image: Option<Name>,
    },
    /// All volumes
    List,
    /// One volume: its size, what it has written, and what deleting it would free
    Show { name: Name },
    /// Make a volume larger; a running guest sees it at once
    Grow {
        name: Name,
        #[arg(long, value_parser = text::size)]
        size: u64,
    },
    /// Make a volume with the contents of another; nothing is copied until either is written
    #[command(after_help = "Example:\n  plinth volume clone data-2 data-1 --snapshot monday")]
    Clone {
        /// Of the new volume
        name: Name,
        /// The volume to clone
        source: Name,
        /// As it was then [default: as it is]
        #[arg(long, value_name = "NAME")]
        snapshot: Option<Name>,
        /// [default: the source's]
        #[arg(long, value_parser = text::size)]
        size: Option<u64>,
    },
    /// Give a clone room of its own for all that it shares, in the background
    Flatten { name: Name },
    /// Where a snapshot differs from an earlier one, or from nothing
    Diff {
        name: Name,
        #[arg(long, value_name = "SNAPSHOT")]
        from: Option<Name>,
        #[arg(long, value_name = "SNAPSHOT")]
        to: Name,
    },
    /// Write what differs between two snapshots to a file on the volume's node
    #[command(after_help = "Example:\n  plinth volume export data-1 --from-snapshot monday \
        --to-snapshot tuesday --file /srv/data-1.delta")]
    Export {
        name: Name,
        /// [default: all that the later one has]
        #[arg(long, value_name = "SNAPSHOT")]
        from_snapshot: Option<Name>,
        #[arg(long, value_name = "SNAPSHOT")]
        to_snapshot: Name,
        /// It must not be there yet
        #[arg(long, value_name = "PATH")]
        file: String,
    },
    /// Bring a volume from one snapshot to a later one, with a file of `volume export`
    ///
    /// The volume must have the snapshot that the file starts at as its last one, and no writes
    /// since. The later snapshot is made too, under its name.
    Import {
        name: Name,
        /// On the volume's node
        #[arg(long, value_name = "PATH")]
        file: String,
    },
    /// Delete a volume and what is on it
    Delete {
        name: Name,
        /// Overwrite it before its room is used again; no store does that yet, so it is refused
        #[arg(long)]
        wipe: bool,
    },
    /// How long its requests take
    Stats {
        /// [default: every volume that is served]
        name: Option<Name>,
    },
    /// The last requests that took long, and what they waited for
    Slow {
        /// [default: every volume]
        name: Option<Name>,
        #[arg(long, default_value = "20")]
        limit: u32,
    },
    /// How much a volume may do
    #[command(subcommand)]
    Limit(LimitVerb),
    /// States of a volume that are kept
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
}

#[derive(Debug, Subcommand)]
pub enum LimitVerb {
    /// Limit a volume, also while it is in use; what is not given is not limited
    #[command(after_help = "Example:\n  plinth volume limit set data-1 --iops 500 \
        --bandwidth 100M")]
    Set(LimitArguments),
    /// Go back to what the pool's class gives
    Clear { name: Name },
    /// What a volume may do
    Show { name: Name },
}

#[derive(Args, Clone, Debug)]
pub struct LimitArguments {
    pub name: Name,
    /// Requests a second
    #[arg(long, default_value = "0", hide_default_value = true)]
    pub iops: u64,
    /// Requests at once after a rest [default: a second's worth]
    #[arg(long, default_value = "0", hide_default_value = true)]
    pub iops_burst: u64,
    /// Bytes a second
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = text::size)]
    pub bandwidth: u64,
    /// Bytes at once after a rest [default: a second's worth]
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = text::size)]
    pub bandwidth_burst: u64,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Keep a volume as it is now, also while it is in use
    Create { volume: Name, name: Name },
    /// The snapshots of a volume
    List { volume: Name },
    /// Delete a snapshot that no clone stands on; its room comes back in the background
    Delete { volume: Name, name: Name },
    /// Make the volume what the snapshot is; its VM must be off
    Rollback { volume: Name, name: Name },
}

/// `plinth snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotArea {
    /// When volumes get snapshots by themselves
    #[command(subcommand)]
    Schedule(ScheduleVerb),
}

#[derive(Debug, Subcommand)]
pub enum ScheduleVerb {
    /// Have a volume get snapshots by itself, and leave the newest of them
    #[command(after_help = "Example:\n  plinth snapshot schedule set data-1 --every 1d --keep 7")]
    Set {
        volume: Name,
        #[arg(long, value_parser = text::seconds, value_name = "TIME")]
        every: u32,
        /// How many of them are left; snapshots made by hand do not count
        #[arg(long, value_name = "COUNT")]
        keep: u32,
    },
    /// When the next one comes
    Show { volume: Name },
    /// End it; its snapshots stay
    Clear { volume: Name },
}

impl VolumeVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Create { name, size, pool, image } => {
                Request::VolumeCreate(VolumeCreate { name, pool, size, image })
            }
            Self::List => Request::VolumeList,
            Self::Show { name } => Request::VolumeShow(name),
            Self::Grow { name, size } => Request::VolumeGrow { name, size },
            Self::Clone { name, source, snapshot, size } => {
                Request::VolumeClone(VolumeClone { name, source, snapshot, size })
            }
            Self::Flatten { name } => Request::VolumeFlatten(name),
            Self::Diff { name, from, to } => Request::VolumeDiff { volume: name, from, to },
            Self::Export { name, from_snapshot, to_snapshot, file } => {
                Request::DeltaExport(DeltaExport {
                    volume: name,
                    from: from_snapshot,
                    to: to_snapshot,
                    target: file,
                })
            }
            Self::Import { name, file } => Request::DeltaImport { volume: name, source: file },
            Self::Delete { name, wipe } => Request::VolumeDelete { name, wipe },
            Self::Stats { name } => Request::VolumeStats(name),
            Self::Slow { name, limit } => Request::VolumeSlow { volume: name, limit },
            Self::Limit(verb) => verb.request(),
            Self::Snapshot(verb) => verb.request(),
        }
    }
}

impl LimitVerb {
    fn request(self) -> Request {
        match self {
            Self::Set(arguments) => Request::LimitSet {
                volume: arguments.name,
                limits: Some(VolumeLimits {
                    iops: arguments.iops,
                    iops_burst: arguments.iops_burst,
                    bytes_per_second: arguments.bandwidth,
                    bytes_burst: arguments.bandwidth_burst,
                }),
            },
            Self::Clear { name } => Request::LimitSet { volume: name, limits: None },
            Self::Show { name } => Request::LimitShow(name),
        }
    }
}

impl SnapshotVerb {
    fn request(self) -> Request {
        match self {
            Self::Create { volume, name } => Request::SnapshotCreate { volume, name },
            Self::List { volume } => Request::SnapshotList(volume),
            Self::Delete { volume, name } => Request::SnapshotDelete { volume, name },
            Self::Rollback { volume, name } => Request::SnapshotRollback { volume, name },
        }
    }
}

impl SnapshotArea {
    pub(super) fn request(self) -> Request {
        let Self::Schedule(verb) = self;
        match verb {
            ScheduleVerb::Set { volume, every, keep } => {
                Request::ScheduleSet { volume, interval_seconds: every.into(), keep }
            }
            ScheduleVerb::Show { volume } => Request::ScheduleShow(volume),
            ScheduleVerb::Clear { volume } => Request::ScheduleClear(volume),
        }
    }
}
