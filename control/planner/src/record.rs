// SPDX-License-Identifier: Apache-2.0
//! The records of the registry.
//!
//! A record refers to others by id where the other may be renamed one day, and holds what is
//! wanted; what is seen lives in [`crate::Observed`] and is never stored.

use plinth_api::{
    BalancerPlace, Boot, DhcpSpec, Durability, EipBinding, EipLimits, ForwardSpec, HopSpec,
    ListenerSettings, NatMapping, NicLimits, PeerSpec, PoolAccess, PoolClass, RuleScope, Run,
    ScrubSchedule, ServesSpec, Underlay, VolumeLimits,
};
use plinth_ids::{
    DiskId, Epoch, GroupId, ImageId, MacAddress, Name, NodeId, PoolId, PortId, Prefix, SnapshotId,
    VmId, Vni, VolumeId,
};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

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
    #[serde(default = "first")]
    pub next_snapshot: u64,
    pub next_vm: u64,
    pub next_port: u32,
    pub next_vni: u32,
    #[serde(default = "first_group")]
    pub next_group: u32,
    /// vCPUs that may be given to VMs for each host thread.
    pub vcpus_per_cpu: u32,
}

/// The first number of a kind, for records that are older than the kind.
const fn first() -> u64 {
    1
}

const fn first_group() -> u32 {
    1
}

impl Meta {
    pub fn new(name: String) -> Self {
        Self {
            name,
            next_node: 1,
            next_pool: 1,
            next_image: 1,
            next_volume: 1,
            next_snapshot: first(),
            next_vm: 1,
            next_port: 1,
            next_vni: 1,
            next_group: first_group(),
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
    /// CPUs of the store's workers, as [`plinth_api::NodeSpec::store_cores`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub store_cores: Vec<u32>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(from = "OldOrNewPool")]
pub struct PoolRecord {
    pub id: PoolId,
    pub name: Name,
    pub node: NodeId,
    /// At least one.
    pub disks: Vec<DiskRecord>,
    /// The number of the next disk: a number is never given out twice in a pool.
    pub next_disk: u32,
    pub durability: Durability,
    pub class: PoolClass,
    pub scrub: ScrubSchedule,
    pub access: PoolAccess,
    pub state: State,
    pub created_at: u64,
}

/// A disk of a pool.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecord {
    pub id: DiskId,
    pub device: String,
    /// Of the file to make; a device is taken whole.
    pub size: Option<u64>,
    pub overwrite: bool,
    pub is_draining: bool,
    /// `Creating` until it is formatted, for those of a pool that is being made too.
    pub state: State,
}

/// A pool's record as any release wrote it: at first a pool had one `device`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OldOrNewPool {
    id: PoolId,
    name: Name,
    node: NodeId,
    device: Option<String>,
    size: Option<u64>,
    #[serde(default)]
    overwrite: bool,
    #[serde(default)]
    disks: Vec<DiskRecord>,
    next_disk: Option<u32>,
    durability: Durability,
    #[serde(default)]
    class: PoolClass,
    #[serde(default)]
    scrub: ScrubSchedule,
    #[serde(default)]
    access: PoolAccess,
    state: State,
    created_at: u64,
}

impl From<OldOrNewPool> for PoolRecord {
    fn from(pool: OldOrNewPool) -> Self {
        let mut disks = pool.disks;
        if let Some(device) = pool.device {
            let (size, overwrite, state) = (pool.size, pool.overwrite, pool.state);
            let id = DiskId::FIRST;
            disks.push(DiskRecord { id, device, size, overwrite, is_draining: false, state });
        }
        let after = disks.iter().map(|disk| disk.id.0).max().unwrap_or(0) + 1;
        Self {
            id: pool.id,
            name: pool.name,
            node: pool.node,
            disks,
            next_disk: pool.next_disk.unwrap_or(after),
            durability: pool.durability,
            class: pool.class,
            scrub: pool.scrub,
            access: pool.access,
            state: pool.state,
            created_at: pool.created_at,
        }
    }
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
    /// What system disks are cloned from; `None` in images of the first release.
    #[serde(default)]
    pub snapshot: Option<SnapshotId>,
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
    /// The volume that it is a clone of, if not of an image.
    #[serde(default)]
    pub source: Option<Source>,
    /// Made with this VM and deleted with it.
    pub system_of: Option<VmId>,
    /// What an operator chose; else the pool's class decides.
    #[serde(default)]
    pub limits: Option<VolumeLimits>,
    #[serde(default)]
    pub schedule: Option<Schedule>,
    /// Overwrite what it has when it is deleted.
    #[serde(default)]
    pub wipe: bool,
    pub state: State,
    pub created_at: u64,
}

#[derive(Clone, std::marker::Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub volume: VolumeId,
    pub snapshot: Option<SnapshotId>,
}

/// When a volume gets snapshots by itself. Time is cut into slots of `interval_seconds` since
/// 1970, and a slot has one snapshot at most.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    pub interval_seconds: u64,
    /// How many of its own snapshots are left.
    pub keep: u32,
    /// The last slot that needs no snapshot any more.
    pub last_slot: u64,
    /// Why the last snapshot was not taken.
    pub fault: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRecord {
    pub id: SnapshotId,
    /// By name: a volume with snapshots is not deleted, and names do not change.
    pub volume: Name,
    pub name: Name,
    /// Of the volume when it was taken.
    pub size: u64,
    /// Made by the schedule, which deletes no others.
    pub is_scheduled: bool,
    pub state: State,
    pub created_at: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VpcRecord {
    pub name: Name,
    pub vni: Vni,
    /// Of NICs that name no group. `None` in records from before there were groups: such NICs are
    /// not filtered.
    #[serde(default)]
    pub default_group: Option<GroupId>,
    /// Beside the subnets; a destination once.
    #[serde(default)]
    pub routes: Vec<RouteRecord>,
    /// Who is asked about names that are no VM's.
    #[serde(default)]
    pub upstreams: Vec<SocketAddr>,
    /// Its guests are told no metadata.
    #[serde(default)]
    pub is_metadata_off: bool,
    pub created_at: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RouteRecord {
    pub destination: Prefix,
    pub next_hop: HopSpec,
    pub created_at: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRecord {
    pub id: GroupId,
    pub name: Name,
    pub vpc: Vni,
    pub rules: Vec<RuleRecord>,
    /// The number of the next rule: a number is never given out twice in a group.
    pub next_rule: u32,
    pub created_at: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RuleRecord {
    pub number: u32,
    pub scope: RuleScope,
    pub peer: PeerSpec,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetRecord {
    pub name: Name,
    pub vpc: Vni,
    pub network: Ipv4Addr,
    pub prefix_length: u8,
    pub gateway: Ipv4Addr,
    /// A /64: a NIC's address in it is made of its MAC, and the router's is its first.
    #[serde(default)]
    pub ipv6: Option<Prefix>,
    /// What guests are told; `None`: nothing. Guests of subnets from before this was there are
    /// told too.
    #[serde(default = "told")]
    pub dhcp: Option<DhcpSpec>,
    pub created_at: u64,
}

#[allow(clippy::unnecessary_wraps, reason = "the default of a field that is an option")]
fn told() -> Option<DhcpSpec> {
    Some(DhcpSpec::default())
}

/// A carrier's line: who takes packets to the outside, and the addresses that lead in by it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LineRecord {
    pub name: Name,
    pub next_hop: Ipv4Addr,
    /// Of IPv4; no two of any lines overlap.
    pub pools: Vec<Prefix>,
    pub created_at: u64,
}

/// An external address that is one NIC's alone.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EipRecord {
    pub name: Name,
    pub address: Ipv4Addr,
    pub line: Name,
    pub bound: Option<EipBindingRecord>,
    #[serde(default)]
    pub limits: EipLimits,
    pub created_at: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EipBindingRecord {
    pub port: PortId,
    pub binding: EipBinding,
}

/// A NAT gateway: shared addresses under which NICs go out, and ports that lead in.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayRecord {
    pub name: Name,
    pub vpc: Vni,
    pub line: Name,
    pub addresses: Vec<GatewayAddress>,
    pub ports_per_nic: u16,
    pub serves: ServesSpec,
    #[serde(default)]
    pub mapping: NatMapping,
    pub forwards: Vec<ForwardRecord>,
    /// The number of the next forward: a number is never given out twice in a gateway.
    pub next_forward: u32,
    pub created_at: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayAddress {
    pub address: Ipv4Addr,
    /// Where it is; an address is on one node at a time.
    pub node: Option<NodeId>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardRecord {
    pub number: u32,
    pub forward: ForwardSpec,
}

/// A load balancer: an address that stands for NICs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BalancerRecord {
    pub name: Name,
    pub vpc: Vni,
    pub address: IpAddr,
    pub place: BalancerPlace,
    pub listeners: Vec<ListenerRecord>,
    /// The number of the next listener: a number is never given out twice in a balancer.
    pub next_listener: u32,
    pub created_at: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerRecord {
    pub number: u32,
    pub settings: ListenerSettings,
    pub backends: Vec<BackendRecord>,
}

impl ListenerRecord {
    /// Whether the nodes of its backends check them.
    pub const fn is_checked(&self) -> bool {
        self.settings.check.is_some()
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BackendRecord {
    pub port: PortId,
    /// What the first of the listener's ports becomes.
    pub nic_port: u16,
    pub weight: u16,
    pub is_draining: bool,
    /// As its node last said, or because that does not answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_unfit: bool,
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
    /// The last part of its name, as the 1 of `web-1-1`. `None`: its place in the list, which
    /// never changed.
    #[serde(default)]
    pub number: Option<u8>,
    /// It is in no spec any more, and is forgotten once its VM's process has let go of it.
    #[serde(default)]
    pub is_leaving: bool,
    pub port: PortId,
    pub vpc: Vni,
    pub subnet: Name,
    pub mac: MacAddress,
    pub address: Ipv4Addr,
    /// `None`: not filtered.
    #[serde(default)]
    pub groups: Option<Vec<GroupId>>,
    /// Ranges that the guest may speak from beside its addresses.
    #[serde(default)]
    pub allowed: Vec<Prefix>,
    #[serde(default)]
    pub limits: NicLimits,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub volume: VolumeId,
    pub is_read_only: bool,
}
