// SPDX-License-Identifier: Apache-2.0
//! `plinth pool` and `plinth image`.

use super::Deed;
use crate::text;
use clap::{Args, Subcommand, ValueEnum};
use plinth_api::{DiskFormat, Durability, PoolAccess, PoolClass, PoolCreate, Request};
use plinth_ids::Name;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum PoolVerb {
    /// Make a pool on a disk or file of a node
    #[command(after_help = "Examples:\n  plinth pool create fast --device /dev/nvme1n1\n  \
        plinth pool create trial --device /var/lib/plinth/trial.pool --size 8G")]
    Create {
        name: Name,
        /// The node that has the disk [default: the only one]
        #[arg(long)]
        node: Option<Name>,
        /// A disk, or a file that is made where there is none; may be given several times
        #[arg(long = "device", visible_alias = "disk", value_name = "PATH", required = true)]
        devices: Vec<String>,
        /// Of each file; a disk is taken whole
        #[arg(long, value_parser = text::size)]
        size: Option<u64>,
        /// When a write that asks for durability is acknowledged
        #[arg(long, value_enum, default_value = "flush")]
        durability: DurabilityArgument,
        /// What its disks are good for
        #[arg(long, value_enum, default_value = "ordinary")]
        class: ClassArgument,
        /// Take a disk that has something on it; all of it is lost
        #[arg(long)]
        overwrite: bool,
    },
    /// All pools
    List,
    /// One pool
    Show { name: Name },
    /// Read what is left of a pool whose disks are refused as damaged
    #[command(
        after_help = "While it is on, every change is refused and nothing is written to the \
        disks.\nExample:\n  plinth pool rescue trial on"
    )]
    Rescue {
        name: Name,
        #[arg(value_enum)]
        state: Switch,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DurabilityArgument {
    /// After the disk's cache was flushed
    Flush,
    /// When the disk has taken it: its cache survives power loss
    Device,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ClassArgument {
    /// Volumes have no limits unless they are given some
    Ordinary,
    /// SSD or NVMe: volumes have limits by their size
    Performance,
}

impl PoolVerb {
    pub(super) fn deed(self) -> Deed {
        match self {
            Self::Create { name, node, devices, size, durability, class, overwrite } => {
                let durability = match durability {
                    DurabilityArgument::Flush => Durability::Flush,
                    DurabilityArgument::Device => Durability::Device,
                };
                let class = match class {
                    ClassArgument::Ordinary => PoolClass::Ordinary,
                    ClassArgument::Performance => PoolClass::Performance,
                };
                // The node is filled in when it is known.
                let placeholder = node.clone().unwrap_or_else(|| name.clone());
                let request = PoolCreate {
                    name,
                    node: placeholder,
                    devices,
                    size,
                    durability,
                    class,
                    overwrite,
                };
                Deed::PoolCreate(request, node)
            }
            Self::List => Deed::Call(Request::PoolList),
            Self::Show { name } => Deed::Call(Request::PoolShow(name)),
            Self::Rescue { name, state } => {
                let access =
                    if state == Switch::On { PoolAccess::Rescue } else { PoolAccess::Whole };
                Deed::Call(Request::PoolAccess { pool: name, access })
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Import a disk image, raw or qcow2
    #[command(after_help = "Examples:\n  plinth image import debian-12 debian-12.qcow2\n  \
        plinth image import small /srv/small.img --on-node --pool trial")]
    Import(ImportArguments),
    /// All images
    List,
    /// Delete an image that no clone stands on
    Delete { name: Name },
}

#[derive(Args, Clone, Debug)]
pub struct ImportArguments {
    pub name: Name,
    /// On this machine, or with --on-node on every node that has one of the pools
    pub file: PathBuf,
    /// The file is on the nodes already, at this absolute path
    #[arg(long)]
    pub on_node: bool,
    /// Where to put a copy; may be given several times [default: every pool]
    #[arg(long)]
    pub pool: Vec<Name>,
    /// Of the file [default: what its first bytes say]
    #[arg(long, value_enum)]
    pub format: Option<FormatArgument>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FormatArgument {
    Raw,
    Qcow2,
}

impl From<FormatArgument> for DiskFormat {
    fn from(format: FormatArgument) -> Self {
        match format {
            FormatArgument::Raw => Self::Raw,
            FormatArgument::Qcow2 => Self::Qcow2,
        }
    }
}

impl ImageVerb {
    pub(super) fn deed(self) -> Deed {
        match self {
            Self::Import(arguments) => Deed::Import(arguments),
            Self::List => Deed::Call(Request::ImageList),
            Self::Delete { name } => Deed::Call(Request::ImageDelete(name)),
        }
    }
}
