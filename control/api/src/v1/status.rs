// SPDX-License-Identifier: Apache-2.0
//! What an agent sees on its node.

use super::{DiskStatus, ForwardProtocol, Level};
use crate::with::Raw;
use plinth_ids::{Epoch, MacAddress, Name, PoolId, PortId, VmId, Vni, VolumeId};
use rkyv::with::Map;
use std::net::IpAddr;

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
pub struct NodeStatus {
    /// Of the spec that the agent works on; `None` until one has come.
    #[rkyv(with = Map<Raw>)]
    pub epoch: Option<Epoch>,
    /// The agent's release.
    pub version: String,
    pub facts: Facts,
    pub daemons: Vec<DaemonStatus>,
    pub vms: Vec<VmStatus>,
    pub pools: Vec<PoolStatus>,
    pub volumes: Vec<VolumeStatus>,
    /// Backends of load balancers that are on this node and have failed their checks; `None` while
    /// that is not known.
    pub unfit: Option<Vec<UnfitBackend>>,
    pub load: Load,
}

/// A backend of a load balancer that has failed its checks.
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
pub struct UnfitBackend {
    #[rkyv(with = Raw)]
    pub balancer: Name,
    pub protocol: ForwardProtocol,
    /// The listener's first.
    pub port: u16,
    pub address: IpAddr,
    /// What the listener's first port becomes.
    pub nic_port: u16,
}

/// What the node is and can do, as its preflight found it.
#[derive(
    Clone,
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
pub struct Facts {
    /// Host threads.
    pub cpus: u32,
    pub cpu_model: String,
    /// Bytes of the node's memory.
    pub memory: u64,
    pub kernel: String,
    /// `kvm` or `tcg`, as a real try found it.
    pub accelerator: String,
    pub checks: Vec<Check>,
}

/// One line of the preflight.
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
pub struct Check {
    /// As in `hugepages`.
    pub name: String,
    pub state: CheckState,
    /// What was found, for people.
    pub text: String,
    /// How to mend it, where it is not good.
    pub remedy: Option<String>,
}

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
pub enum CheckState {
    Good,
    /// The node works without it, less well.
    Warning,
    /// The node cannot run VMs.
    Missing,
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
pub struct DaemonStatus {
    /// As in `plinth-switchd`.
    pub name: String,
    pub state: DaemonState,
    pub process: Option<u32>,
    pub version: Option<String>,
    /// Of the configuration that the daemon has in force.
    #[rkyv(with = Map<Raw>)]
    pub epoch: Option<Epoch>,
    /// How often the agent started it.
    pub starts: u64,
    /// Why it is not up, or what it says of itself, for people.
    pub text: String,
}

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
pub enum DaemonState {
    Up,
    Starting,
    Down,
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
pub struct VmStatus {
    #[rkyv(with = Raw)]
    pub id: VmId,
    pub state: VmState,
    /// Of QEMU.
    pub process: Option<u32>,
    /// When the state was entered.
    pub since: u64,
    /// Why it is in this state, for people; empty when it is as wanted.
    pub reason: String,
    /// How often it was started again because its process died.
    pub restarts: u32,
    /// The start number that the last start was for.
    pub start_number: u64,
    /// `kvm` or `tcg`, of the last start.
    pub accelerator: String,
    /// NICs that its process has.
    #[rkyv(with = Map<Raw>)]
    #[serde(default)]
    pub nics: Vec<PortId>,
    /// NICs that it is to have and has not yet: its node was told of them.
    #[rkyv(with = Map<Raw>)]
    #[serde(default)]
    pub nics_due: Vec<PortId>,
}

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
pub enum VmState {
    /// Sockets and process are being made.
    Starting,
    Running,
    /// The guest was asked to switch itself off.
    Stopping,
    /// No process, and none is due.
    Stopped,
    /// No process; the agent tries again, or gave up: see the reason.
    Failed,
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
pub struct PoolStatus {
    #[rkyv(with = Raw)]
    pub id: PoolId,
    /// `None` in service.
    pub fault: Option<String>,
    pub capacity: u64,
    pub used: u64,
    pub checksum_errors: u64,
    pub level: Level,
    pub disks: Vec<DiskStatus>,
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
pub struct VolumeStatus {
    #[rkyv(with = Raw)]
    pub pool: PoolId,
    #[rkyv(with = Raw)]
    pub id: VolumeId,
    pub size: u64,
    /// Bytes of the units that the volume's objects have.
    pub written: u64,
}

#[derive(
    Clone,
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
pub struct Load {
    /// Thousandths of all host threads that were busy over the last interval.
    pub cpu_permille: u32,
    /// Bytes that could be had without swapping.
    pub memory_available: u64,
}

/// One port of the node's switch.
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
pub struct SwitchPort {
    #[rkyv(with = Raw)]
    pub id: PortId,
    pub name: String,
    /// `None` for the uplink.
    #[rkyv(with = Map<Raw>)]
    pub vni: Option<Vni>,
    #[rkyv(with = Raw)]
    pub mac: MacAddress,
    pub addresses: Vec<IpAddr>,
    pub is_up: bool,
    pub packets_received: u64,
    pub bytes_received: u64,
    pub packets_sent: u64,
    pub bytes_sent: u64,
    pub drops: Vec<DropCount>,
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
pub struct FlowStatus {
    #[rkyv(with = Raw)]
    pub port: PortId,
    #[rkyv(with = Raw)]
    pub vni: Vni,
    pub key: String,
    pub action: String,
    pub packets: u64,
    pub bytes: u64,
    pub idle_ms: u64,
}

/// Packets that ended for one reason.
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
pub struct DropCount {
    pub reason: String,
    pub packets: u64,
}

/// A process of a node, its store or its switch, was replaced by a new one, under running guests.
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
pub struct DaemonUpgrade {
    pub process_before: u32,
    pub process: u32,
    pub version_before: String,
    pub version: String,
    /// From the start of the new process until it answered. Guests waited for a part of it.
    pub took_ms: u32,
}
