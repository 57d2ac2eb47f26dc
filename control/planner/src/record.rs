// SPDX-License-Identifier: Apache-2.0
//! The records of the registry.
//!
//! A record refers to others by id where the other may be renamed one day, and holds what is
//! wanted; what is seen lives in [`crate::Observed`] and is never stored.

use plinth_api::{Boot, Durability, Run, Underlay};
use plinth_ids::{Epoch, ImageId, MacAddress, Name, NodeId, PoolId, PortId, VmId, Vni, VolumeId};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};

pub use plinth_api::ResourceState as State;

/// The cluster itself: settings, and the next free number of each kind. A number is never given
/// out twice.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    pub name: String,
    pub next_node: u32,
    pub next_pool: u32,
    pub next_image: u64,
    pub next_volume: u64,
    pub next_vm: u64,
    pub next_port: u32,
    pub next_vni: u32,
    /// vCPUs that may be given to VMs for each host thread.
    pub vcpus_per_cpu: u32,
}

impl Meta {
    pub fn new(name: String) -> Self {
        Self {
            name,
            next_node: 1,
            next_pool: 1,
            next_image: 1,
            next_volume: 1,
            next_vm: 1,
            next_port: 1,
            next_vni: 1,
            vcpus_per_cpu: 4,
        }
    }
}

/// A token's digest and when it ends. It is deleted when it is used.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// SHA-256 of the secret, in hexadecimal.
    pub digest: String,
    pub expires_at: u64,
    /// The node that used it. A used token is kept until it expires, so that the second use is
    /// told apart from a token that never was.
    pub used_by: Option<Name>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRecord {
    pub id: NodeId,
    pub name: Name,
    /// Where the agent listens.
    pub agent: SocketAddr,
    pub underlay: Option<Underlay>,
    pub created_at: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRecord {
    pub id: PoolId,
    pub name: Name,
    pub node: NodeId,
    pub device: String,
    pub size: Option<u64>,
    pub durability: Durability,
    pub overwrite: bool,
    pub state: State,
    pub created_at: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecord {
    pub id: ImageId,
    pub name: Name,
    pub state: State,
    /// Known when the import is done.
    pub size: Option<u64>,
    pub copies: Vec<Copy>,
    pub created_at: u64,
}

/// An image's sealed volume in one pool. It has no volume record: nothing may attach it.
#[derive(Clone, std::marker::Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    pub pool: PoolId,
    pub volume: VolumeId,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    pub id: VolumeId,
    pub name: Name,
    pub pool: PoolId,
    /// What is wanted.
    pub size: u64,
    /// What the node has made of it; what a refused growth falls back to.
    pub served_size: u64,
    /// The image that it is a clone of.
    pub image: Option<ImageId>,
    /// Made with this VM and deleted with it.
    pub system_of: Option<VmId>,
    pub state: State,
    pub created_at: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VpcRecord {
    pub name: Name,
    pub vni: Vni,
    pub created_at: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetRecord {
    pub name: Name,
    pub vpc: Vni,
    pub network: Ipv4Addr,
    pub prefix_length: u8,
    pub gateway: Ipv4Addr,
    pub created_at: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VmRecord {
    pub id: VmId,
    pub name: Name,
    pub node: NodeId,
    pub vcpus: u32,
    pub memory: u64,
    pub boot: Boot,
    pub image: Option<ImageId>,
    pub nics: Vec<Nic>,
    pub disks: Vec<Disk>,
    pub run: Run,
    pub start_number: u64,
    pub state: State,
    /// The registry's revision before the record was written last. A spec with a higher epoch
    /// has it.
    pub changed_after: Epoch,
    pub created_at: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    pub port: PortId,
    pub vpc: Vni,
    pub subnet: Name,
    pub mac: MacAddress,
    pub address: Ipv4Addr,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub volume: VolumeId,
    pub is_read_only: bool,
}
