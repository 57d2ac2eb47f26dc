// SPDX-License-Identifier: Apache-2.0
//! `plinth disk` and `plinth scrub`.

use crate::text;
use clap::Subcommand;
use plinth_api::{DiskAdd, Request, ScrubKind, ScrubSchedule};
use plinth_ids::{DiskId, Name};

#[derive(Debug, Subcommand)]
pub enum DiskVerb {
    /// The disks of a pool
    List {
        /// [default: every pool]
        pool: Option<Name>,
    },
    /// One disk: what it did, and the blocks that are bad
    Show {
        pool: Name,
        /// Its number in the pool, as in 2 or disk-2
        #[arg(value_parser = text::disk)]
        disk: DiskId,
    },
    /// Give a pool one more disk, while it is in use
    #[command(after_help = "Example:\n  plinth disk add fast --device /dev/nvme2n1")]
    Add {
        pool: Name,
        /// A disk of the pool's node, or a file that is made where there is none
        #[arg(long, value_name = "PATH")]
        device: String,
        /// Of the file; a disk is taken whole
        #[arg(long, value_parser = text::size)]
        size: Option<u64>,
        /// Take a disk that has something on it; all of it is lost
        #[arg(long)]
        overwrite: bool,
    },
    /// Move what is on a disk to the pool's others, while it is in use
    Drain {
        pool: Name,
        #[arg(value_parser = text::disk)]
        disk: DiskId,
        /// End that where it stands
        #[arg(long)]
        cancel: bool,
    },
    /// Forget a disk that is drained or failed
    Remove {
        pool: Name,
        #[arg(value_parser = text::disk)]
        disk: DiskId,
    },
}

#[derive(Debug, Subcommand)]
pub enum ScrubVerb {
    /// Check the disks of a pool now
    Start {
        pool: Name,
        /// [default: all of the pool's]
        #[arg(long, value_parser = text::disk)]
        disk: Option<DiskId>,
        /// Read and check all data, not metadata only
        #[arg(long)]
        deep: bool,
        /// Bytes a second of each disk [default: the pool's]
        #[arg(long, value_parser = text::size)]
        rate: Option<u64>,
    },
    /// End the scrubs that are under way
    Stop {
        pool: Name,
        /// [default: all of the pool's]
        #[arg(long, value_parser = text::disk)]
        disk: Option<DiskId>,
    },
    /// How far scrubs are, and when the last ones were
    Status { pool: Name },
    /// When a pool is scrubbed by itself
    #[command(after_help = "Example:\n  plinth scrub schedule fast --light 1d --deep off")]
    Schedule {
        pool: Name,
        /// Between two checks of metadata, or off
        #[arg(long, value_parser = text::interval, value_name = "TIME", default_value = "1d")]
        light: Interval,
        /// Between two checks of all data, or off
        #[arg(long, value_parser = text::interval, value_name = "TIME", default_value = "7d")]
        deep: Interval,
        /// Bytes a second of each disk
        #[arg(long, value_parser = text::size, default_value = "16M")]
        rate: u64,
    },
}

/// A time, or never.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Interval(pub Option<u64>);

impl DiskVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::List { pool } => Request::DiskList(pool),
            Self::Show { pool, disk } => Request::DiskShow { pool, disk },
            Self::Add { pool, device, size, overwrite } => {
                Request::DiskAdd(DiskAdd { pool, device, size, overwrite })
            }
            Self::Drain { pool, disk, cancel } => Request::DiskDrain { pool, disk, cancel },
            Self::Remove { pool, disk } => Request::DiskRemove { pool, disk },
        }
    }
}

impl ScrubVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Start { pool, disk, deep, rate } => {
                let kind = if deep { ScrubKind::Deep } else { ScrubKind::Light };
                Request::ScrubStart { pool, disk, kind, rate }
            }
            Self::Stop { pool, disk } => Request::ScrubStop { pool, disk },
            Self::Status { pool } => Request::ScrubStatus(pool),
            Self::Schedule { pool, light, deep, rate } => Request::ScrubSchedule {
                pool,
                schedule: ScrubSchedule { light_seconds: light.0, deep_seconds: deep.0, rate },
            },
        }
    }
}
