// SPDX-License-Identifier: Apache-2.0
//! What one node is to be: the service pushes it whole, the agent makes it true.

use super::{
    BalancerSpec, ExternalSpec, GroupSpec, PoolAccess, PoolClass, PoolDiskSpec, ScrubSchedule,
    VolumeLimits, VpcSpec,
};
use crate::with::Raw;
use plinth_ids::{
    Epoch, GroupId, MacAddress, Name, NodeId, PoolId, PortId, Prefix, VmId, Vni, VolumeId,
};
use rkyv::with::Map;
use std::net::{IpAddr, Ipv4Addr};

/// Everything that one node is to have and run. What is not in it is to be gone, except what is
/// in a pool: volumes are made and deleted by commands only.
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
pub struct NodeSpec {
    /// Rises with every change. The agent refuses a lower one than it has.
    #[rkyv(with = Raw)]
    pub epoch: Epoch,
    #[rkyv(with = Raw)]
    pub node: NodeId,
    #[rkyv(with = Raw)]
    pub name: Name,
    pub underlay: Option<Underlay>,
    pub pools: Vec<PoolSpec>,
    pub vms: Vec<VmSpec>,
    /// The NICs of other nodes in every VPC that this node has a NIC in.
    pub remotes: Vec<Remote>,
    /// The VPCs of the NICs here, and their peers.
    pub vpcs: Vec<VpcSpec>,
    /// That a NIC here is in.
    pub groups: Vec<GroupSpec>,
    /// How NICs here reach what is no VPC.
    #[serde(default)]
    pub external: ExternalSpec,
    /// Of the VPCs that this node has NICs in, and external ones whose backends are here.
    #[serde(default)]
    pub balancers: Vec<BalancerSpec>,
    /// CPUs of the store's workers, one worker each, at most [`STORE_CORES_MAX`]. None: one
    /// worker, which runs where the system puts it.
    #[serde(default)]
    pub store_cores: Vec<u32>,
}

/// The most workers that a node's store may have.
pub const STORE_CORES_MAX: usize = 64;

/// The node's own end of every tunnel.
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
pub struct Underlay {
    /// A DPDK device, as in `net_af_packet0,iface=eth1` or a PCI address.
    pub device: String,
    /// The VTEP's address; no kernel interface carries it.
    pub vtep: Ipv4Addr,
    pub prefix_length: u8,
    pub gateway: Option<Ipv4Addr>,
    #[rkyv(with = Raw)]
    pub mac: MacAddress,
    /// Of the underlay, in bytes of IP packet.
    pub mtu: u16,
}

/// A pool that is formatted and to be served.
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
pub struct PoolSpec {
    #[rkyv(with = Raw)]
    pub id: PoolId,
    #[rkyv(with = Raw)]
    pub name: Name,
    pub disks: Vec<PoolDiskSpec>,
    pub durability: Durability,
    pub class: PoolClass,
    pub scrub: ScrubSchedule,
    pub access: PoolAccess,
}

/// When a write that asks for durability is acknowledged. A guest's flush always flushes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    PartialEq,
    rkyv::Archive,
    rkyv::Deserialize,
    rkyv::Serialize,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// After the device's cache was flushed.
    #[default]
    Flush,
    /// When the device has taken it: its cache survives power loss.
    Device,
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
pub struct VmSpec {
    #[rkyv(with = Raw)]
    pub id: VmId,
    #[rkyv(with = Raw)]
    pub name: Name,
    pub vcpus: u32,
    /// Bytes, whole MiB.
    pub memory: u64,
    pub boot: Boot,
    /// In the order in which the guest sees them; with [`Boot::Disk`] the first is booted.
    pub disks: Vec<DiskSpec>,
    pub nics: Vec<NicSpec>,
    pub run: Run,
    /// Rises with every start that an operator asks for. A guest that switched itself off is
    /// started again only when this rises.
    pub start_number: u64,
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
pub enum Boot {
    /// From the first disk.
    Disk,
    /// From files on the node.
    Kernel { kernel: String, initrd: Option<String>, append: String },
}

/// Whether a VM is to run.
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
pub enum Run {
    Running,
    /// The guest is asked to switch itself off, and is cut off when it has not after
    /// `grace_seconds`. Zero cuts it off at once.
    Stopped {
        grace_seconds: u32,
    },
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
pub struct DiskSpec {
    #[rkyv(with = Raw)]
    pub pool: PoolId,
    #[rkyv(with = Raw)]
    pub volume: VolumeId,
    #[rkyv(with = Raw)]
    pub name: Name,
    pub is_read_only: bool,
    /// In force; a change reaches a running VM.
    #[serde(default)]
    pub limits: Option<VolumeLimits>,
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
pub struct NicSpec {
    #[rkyv(with = Raw)]
    pub port: PortId,
    /// The port's name on the switch.
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub vni: Vni,
    #[rkyv(with = Raw)]
    pub mac: MacAddress,
    pub addresses: Vec<Address>,
    /// The subnet's gateway of IPv4.
    pub gateway: Option<IpAddr>,
    /// Largest IP packet of the guest, in bytes.
    pub mtu: u16,
    #[rkyv(with = Raw)]
    pub subnet: Name,
    /// `None`: not filtered.
    #[rkyv(with = Map<Groups>)]
    pub groups: Option<Vec<GroupId>>,
    /// Ranges that the guest may speak from beside its addresses.
    #[rkyv(with = Map<Raw>)]
    pub allowed: Vec<Prefix>,
    /// In force; a change reaches a running VM.
    #[serde(default)]
    pub limits: NicLimits,
}

/// How much one direction of a NIC may carry. 0 is not limited; a burst of 0 is 50 ms' worth.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    PartialEq,
    rkyv::Archive,
    rkyv::Deserialize,
    rkyv::Serialize,
    serde::Deserialize,
    serde::Serialize,
)]
pub struct NicRate {
    pub bits_per_second: u64,
    pub bits_burst: u64,
    pub packets_per_second: u64,
    pub packets_burst: u64,
}

/// How much a NIC may carry, and its weight beside others on a worker that has not time for all;
/// 0 is the usual one, 100.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    PartialEq,
    rkyv::Archive,
    rkyv::Deserialize,
    rkyv::Serialize,
    serde::Deserialize,
    serde::Serialize,
)]
pub struct NicLimits {
    /// From the guest.
    pub outbound: NicRate,
    /// To the guest.
    pub inbound: NicRate,
    pub weight: u16,
}

/// A list of groups inside an option.
type Groups = Map<Raw>;

/// An address and the length of its subnet's prefix.
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
pub struct Address {
    pub ip: IpAddr,
    pub prefix_length: u8,
}

/// A NIC behind another node's VTEP.
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
pub struct Remote {
    #[rkyv(with = Raw)]
    pub vni: Vni,
    #[rkyv(with = Raw)]
    pub mac: MacAddress,
    pub addresses: Vec<IpAddr>,
    pub vtep: Ipv4Addr,
    #[rkyv(with = Raw)]
    pub subnet: Name,
    #[rkyv(with = Map<Raw>)]
    pub groups: Vec<GroupId>,
    #[rkyv(with = Map<Raw>)]
    pub allowed: Vec<Prefix>,
}
