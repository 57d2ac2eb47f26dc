// SPDX-License-Identifier: Apache-2.0
//! Resources as they are shown: spec and status in one, references by name.

use super::{
    DhcpSpec, DnsSpec, Durability, Level, NodeStatus, PoolAccess, PoolClass, PoolDiskView, Run,
    ScrubSchedule, Underlay, VmState, VolumeLimits, VolumeUsage,
};
use crate::with::Raw;
use plinth_ids::{
    Epoch, ImageId, MacAddress, Name, NodeId, PoolId, PortId, Prefix, VmId, Vni, VolumeId,
};
use rkyv::with::Map;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// How far a resource has come.
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
pub enum ResourceState {
    /// Its node is yet to make it.
    Creating,
    Ready,
    /// Its node is yet to grow it.
    Growing,
    /// Its node is yet to remove it.
    Deleting,
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
pub struct ClusterView {
    pub name: String,
    /// The service's release.
    pub version: String,
    /// The registry's revision.
    pub revision: u64,
    pub nodes: u64,
    pub nodes_alive: u64,
    pub vms: u64,
    pub vms_running: u64,
    pub volumes: u64,
    pub capacity: u64,
    pub used: u64,
    /// What needs an operator, one line each; empty when all is well.
    pub warnings: Vec<String>,
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
pub struct NodeView {
    #[rkyv(with = Raw)]
    pub id: NodeId,
    #[rkyv(with = Raw)]
    pub name: Name,
    pub agent: SocketAddr,
    pub underlay: Option<Underlay>,
    pub is_alive: bool,
    /// When the agent last answered; `None` if it has not since the service started.
    pub last_seen: Option<u64>,
    /// Of the spec that the node is to have.
    #[rkyv(with = Raw)]
    pub epoch: Epoch,
    /// As the agent last said.
    pub status: Option<NodeStatus>,
    pub vms: u64,
    /// Given to VMs.
    pub vcpus_allocated: u64,
    /// What may be given: host threads times the overcommit ratio.
    pub vcpus_allocatable: u64,
    pub memory_allocated: u64,
    pub memory_allocatable: u64,
    /// Why the agent does not answer.
    pub fault: Option<String>,
    /// CPUs of the store's workers. None: one worker, which runs where the system puts it.
    pub store_cores: Vec<u32>,
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
pub struct PoolView {
    #[rkyv(with = Raw)]
    pub id: PoolId,
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub node: Name,
    pub disks: Vec<PoolDiskView>,
    pub durability: Durability,
    pub class: PoolClass,
    pub scrub: ScrubSchedule,
    pub access: PoolAccess,
    pub state: ResourceState,
    /// `None` while the node has not said.
    pub level: Option<Level>,
    /// `None` while the node has not said.
    pub capacity: Option<u64>,
    pub used: Option<u64>,
    /// What volumes could grow to hold.
    pub provisioned: u64,
    pub volumes: u64,
    pub checksum_errors: Option<u64>,
    pub fault: Option<String>,
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
pub struct ImageView {
    #[rkyv(with = Raw)]
    pub id: ImageId,
    #[rkyv(with = Raw)]
    pub name: Name,
    pub state: ResourceState,
    /// Of the guest's disk.
    pub size: Option<u64>,
    pub copies: Vec<ImageCopy>,
    pub created_at: u64,
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
pub struct ImageCopy {
    #[rkyv(with = Raw)]
    pub pool: Name,
    #[rkyv(with = Raw)]
    pub volume: VolumeId,
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
pub struct VolumeView {
    #[rkyv(with = Raw)]
    pub id: VolumeId,
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub pool: Name,
    #[rkyv(with = Raw)]
    pub node: Name,
    pub state: ResourceState,
    pub size: u64,
    /// `None` while the node has not said.
    pub written: Option<u64>,
    /// The image that it was cloned from.
    #[rkyv(with = Map<Raw>)]
    pub image: Option<Name>,
    /// The VM that has it.
    #[rkyv(with = Map<Raw>)]
    pub vm: Option<Name>,
    /// Deleted together with its VM.
    pub is_system: bool,
    /// In force.
    pub limits: Option<VolumeLimits>,
    pub snapshots: u64,
    /// With `volume show`, if the node answers.
    pub usage: Option<VolumeUsage>,
    pub created_at: u64,
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
pub struct VpcView {
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub vni: Vni,
    pub subnets: u64,
    pub routes: u64,
    pub nics: u64,
    /// Of the gateway of every subnet.
    #[rkyv(with = Raw)]
    pub router_mac: MacAddress,
    pub dns: DnsSpec,
    /// Whether its guests are told their metadata.
    pub has_metadata: bool,
    pub created_at: u64,
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
pub struct SubnetView {
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub vpc: Name,
    pub network: Ipv4Addr,
    pub prefix_length: u8,
    pub gateway: Ipv4Addr,
    #[rkyv(with = Map<Raw>)]
    pub ipv6: Option<Prefix>,
    pub addresses_used: u64,
    pub addresses_free: u64,
    /// `None`: guests are told nothing.
    pub dhcp: Option<DhcpSpec>,
    pub created_at: u64,
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
pub struct VmView {
    #[rkyv(with = Raw)]
    pub id: VmId,
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub node: Name,
    /// `Deleting` until its node has let go of it.
    pub resource: ResourceState,
    /// What is wanted.
    pub run: Run,
    /// What is seen; `None` while the node has not said.
    pub state: Option<VmState>,
    pub since: Option<u64>,
    pub reason: Option<String>,
    pub process: Option<u32>,
    pub restarts: u32,
    pub accelerator: Option<String>,
    pub vcpus: u32,
    pub memory: u64,
    #[rkyv(with = Map<Raw>)]
    pub image: Option<Name>,
    pub nics: Vec<NicView>,
    pub disks: Vec<DiskView>,
    pub created_at: u64,
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
pub struct NicView {
    #[rkyv(with = Raw)]
    pub port: PortId,
    #[rkyv(with = Raw)]
    pub vpc: Name,
    #[rkyv(with = Raw)]
    pub subnet: Name,
    #[rkyv(with = Raw)]
    pub mac: MacAddress,
    pub addresses: Vec<IpAddr>,
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
pub struct DiskView {
    #[rkyv(with = Raw)]
    pub volume: Name,
    pub size: u64,
    pub is_system: bool,
    pub is_read_only: bool,
}
