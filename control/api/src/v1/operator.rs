// SPDX-License-Identifier: Apache-2.0
//! What an operator asks of the service.
//!
//! One request goes on one QUIC stream and its reply comes back on it. After
//! [`Request::ImageImport`] from [`ImportSource::Stream`] come that many raw bytes, then the
//! reply; after the reply to [`Request::VmConsole`] the stream is the console, raw, both ways.

use super::{
    BackendChange, BackendName, BalancerCreate, BalancerView, ClusterView, DaemonUpgrade, DhcpSpec,
    DiffRange, DiskFormat, DropCount, Durability, EipBinding, EipLimits, EipView, EniView,
    FlowStatus, GroupView, ImageView, ImportSource, LimitView, LineView, ListenerSettings,
    NatCreate, NatForward, NatView, NicLimits, NodeView, PoolAccess, PoolClass, PoolDiskView,
    PoolView, Refusal, RouteHop, RouteView, RulePeer, RuleScope, ScheduleView, ScrubKind,
    ScrubSchedule, ScrubView, SlowRequestView, SnapshotView, SubnetView, SwitchPort, VmView,
    VolumeLimits, VolumeStatsView, VolumeView, VpcView,
};
use crate::with::Raw;
use plinth_ids::{DiskId, Name, Prefix, Vni};
use rkyv::with::Map;
use std::net::{Ipv4Addr, SocketAddr};

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub enum Request {
    ClusterStatus,
    /// A one-time token for one node to join with.
    TokenCreate {
        lifetime_seconds: u32,
    },
    NodeList,
    NodeShow(#[rkyv(with = Raw)] Name),
    PoolCreate(PoolCreate),
    PoolList,
    PoolShow(#[rkyv(with = Raw)] Name),
    ImageImport(ImageImport),
    ImageList,
    ImageDelete(#[rkyv(with = Raw)] Name),
    VolumeCreate(VolumeCreate),
    VolumeList,
    VolumeShow(#[rkyv(with = Raw)] Name),
    VolumeGrow {
        #[rkyv(with = Raw)]
        name: Name,
        size: u64,
    },
    VolumeDelete {
        #[rkyv(with = Raw)]
        name: Name,
        wipe: bool,
    },
    VolumeClone(VolumeClone),
    VolumeFlatten(#[rkyv(with = Raw)] Name),
    /// Where a snapshot differs from an earlier one, or from nothing.
    VolumeDiff {
        #[rkyv(with = Raw)]
        volume: Name,
        #[rkyv(with = Map<Raw>)]
        from: Option<Name>,
        #[rkyv(with = Raw)]
        to: Name,
    },
    DeltaExport(DeltaExport),
    DeltaImport {
        #[rkyv(with = Raw)]
        volume: Name,
        /// A file on the volume's node.
        source: String,
    },
    /// Of one volume, or of all.
    VolumeStats(#[rkyv(with = Map<Raw>)] Option<Name>),
    VolumeSlow {
        #[rkyv(with = Map<Raw>)]
        volume: Option<Name>,
        limit: u32,
    },
    LimitSet {
        #[rkyv(with = Raw)]
        volume: Name,
        /// `None` goes back to what the pool's class gives.
        limits: Option<VolumeLimits>,
    },
    LimitShow(#[rkyv(with = Raw)] Name),
    SnapshotCreate {
        #[rkyv(with = Raw)]
        volume: Name,
        #[rkyv(with = Raw)]
        name: Name,
    },
    SnapshotList(#[rkyv(with = Raw)] Name),
    SnapshotDelete {
        #[rkyv(with = Raw)]
        volume: Name,
        #[rkyv(with = Raw)]
        name: Name,
    },
    SnapshotRollback {
        #[rkyv(with = Raw)]
        volume: Name,
        #[rkyv(with = Raw)]
        name: Name,
    },
    ScheduleSet {
        #[rkyv(with = Raw)]
        volume: Name,
        interval_seconds: u64,
        keep: u32,
    },
    ScheduleShow(#[rkyv(with = Raw)] Name),
    ScheduleClear(#[rkyv(with = Raw)] Name),
    /// Of one pool, or of all.
    DiskList(#[rkyv(with = Map<Raw>)] Option<Name>),
    DiskShow {
        #[rkyv(with = Raw)]
        pool: Name,
        #[rkyv(with = Raw)]
        disk: DiskId,
    },
    DiskAdd(DiskAdd),
    DiskDrain {
        #[rkyv(with = Raw)]
        pool: Name,
        #[rkyv(with = Raw)]
        disk: DiskId,
        /// Ends a drain where it stands.
        cancel: bool,
    },
    DiskRemove {
        #[rkyv(with = Raw)]
        pool: Name,
        #[rkyv(with = Raw)]
        disk: DiskId,
    },
    ScrubStart {
        #[rkyv(with = Raw)]
        pool: Name,
        #[rkyv(with = Map<Raw>)]
        disk: Option<DiskId>,
        kind: ScrubKind,
        rate: Option<u64>,
    },
    ScrubStop {
        #[rkyv(with = Raw)]
        pool: Name,
        #[rkyv(with = Map<Raw>)]
        disk: Option<DiskId>,
    },
    ScrubStatus(#[rkyv(with = Raw)] Name),
    ScrubSchedule {
        #[rkyv(with = Raw)]
        pool: Name,
        schedule: ScrubSchedule,
    },
    /// Answered with [`Answer::Pool`].
    PoolAccess {
        #[rkyv(with = Raw)]
        pool: Name,
        access: PoolAccess,
    },
    VpcCreate {
        #[rkyv(with = Raw)]
        name: Name,
        /// `None` takes the next free one.
        #[rkyv(with = Map<Raw>)]
        vni: Option<Vni>,
    },
    VpcList,
    VpcDelete(#[rkyv(with = Raw)] Name),
    /// Who is asked about names that are no VM's of the VPC, instead of those before.
    VpcDns {
        #[rkyv(with = Raw)]
        name: Name,
        upstreams: Vec<SocketAddr>,
    },
    SubnetCreate {
        #[rkyv(with = Raw)]
        name: Name,
        #[rkyv(with = Raw)]
        vpc: Name,
        network: Ipv4Addr,
        prefix_length: u8,
        /// `None` takes the first address.
        gateway: Option<Ipv4Addr>,
        /// A /64 beside it: every NIC has the address in it that its MAC makes.
        #[rkyv(with = Map<Raw>)]
        ipv6: Option<Prefix>,
    },
    SubnetList,
    SubnetDelete(#[rkyv(with = Raw)] Name),
    /// What guests are told, instead of what they were told before; `None`: nothing.
    SubnetDhcp {
        #[rkyv(with = Raw)]
        name: Name,
        dhcp: Option<DhcpSpec>,
    },
    RouteAdd {
        #[rkyv(with = Raw)]
        vpc: Name,
        #[rkyv(with = Raw)]
        destination: Prefix,
        next_hop: RouteHop,
    },
    RouteRemove {
        #[rkyv(with = Raw)]
        vpc: Name,
        #[rkyv(with = Raw)]
        destination: Prefix,
    },
    /// Of one VPC, or of all.
    RouteList(#[rkyv(with = Map<Raw>)] Option<Name>),
    GroupCreate {
        #[rkyv(with = Raw)]
        name: Name,
        #[rkyv(with = Raw)]
        vpc: Name,
    },
    /// Of one VPC, or of all.
    GroupList(#[rkyv(with = Map<Raw>)] Option<Name>),
    GroupShow(#[rkyv(with = Raw)] Name),
    GroupDelete(#[rkyv(with = Raw)] Name),
    RuleAdd {
        #[rkyv(with = Raw)]
        group: Name,
        scope: RuleScope,
        peer: RulePeer,
    },
    RuleRemove {
        #[rkyv(with = Raw)]
        group: Name,
        number: u32,
    },
    /// Of one VM, or of all.
    NicList(#[rkyv(with = Map<Raw>)] Option<Name>),
    NicShow(#[rkyv(with = Raw)] Name),
    /// Gives a VM one more NIC, also while it runs.
    NicAttach {
        #[rkyv(with = Raw)]
        vm: Name,
        nic: NicRequest,
    },
    /// Takes a NIC from its VM, also while that runs.
    NicDetach(#[rkyv(with = Raw)] Name),
    /// Puts a NIC into a group, or takes it out.
    NicGroup {
        #[rkyv(with = Raw)]
        nic: Name,
        #[rkyv(with = Raw)]
        group: Name,
        is_member: bool,
    },
    /// Lets a NIC speak from a range that is not its own, or no longer.
    NicAllow {
        #[rkyv(with = Raw)]
        nic: Name,
        #[rkyv(with = Raw)]
        range: Prefix,
        is_allowed: bool,
    },
    /// Holds a NIC to these limits instead of those it had.
    NicLimit {
        #[rkyv(with = Raw)]
        nic: Name,
        limits: NicLimits,
    },
    LineCreate {
        #[rkyv(with = Raw)]
        name: Name,
        next_hop: Ipv4Addr,
        #[rkyv(with = Map<Raw>)]
        pools: Vec<Prefix>,
    },
    LineList,
    LineDelete(#[rkyv(with = Raw)] Name),
    /// Gives a line more addresses, or takes some away.
    LinePool {
        #[rkyv(with = Raw)]
        line: Name,
        #[rkyv(with = Raw)]
        pool: Prefix,
        is_member: bool,
    },
    EipCreate {
        #[rkyv(with = Raw)]
        name: Name,
        #[rkyv(with = Raw)]
        line: Name,
        /// `None` takes the next free one.
        address: Option<Ipv4Addr>,
    },
    EipList,
    EipShow(#[rkyv(with = Raw)] Name),
    EipDelete(#[rkyv(with = Raw)] Name),
    EipBind {
        #[rkyv(with = Raw)]
        name: Name,
        #[rkyv(with = Raw)]
        nic: Name,
        binding: EipBinding,
    },
    EipUnbind(#[rkyv(with = Raw)] Name),
    /// Holds an external address to these limits instead of those it had.
    EipLimit {
        #[rkyv(with = Raw)]
        name: Name,
        limits: EipLimits,
    },
    NatCreate(NatCreate),
    NatList,
    NatShow(#[rkyv(with = Raw)] Name),
    NatDelete(#[rkyv(with = Raw)] Name),
    /// Gives a gateway an address more (`None`: the next free one of its line).
    NatAddressAdd {
        #[rkyv(with = Raw)]
        gateway: Name,
        address: Option<Ipv4Addr>,
    },
    NatAddressRemove {
        #[rkyv(with = Raw)]
        gateway: Name,
        address: Ipv4Addr,
    },
    NatForwardAdd {
        #[rkyv(with = Raw)]
        gateway: Name,
        forward: NatForward,
    },
    NatForwardRemove {
        #[rkyv(with = Raw)]
        gateway: Name,
        number: u32,
    },
    VmCreate(VmCreate),
    VmStart {
        #[rkyv(with = Raw)]
        name: Name,
        /// Answer when it runs, or refuse after this long. Zero answers at once.
        wait_ms: u32,
    },
    VmStop {
        #[rkyv(with = Raw)]
        name: Name,
        /// How long the guest may take to switch itself off. Zero cuts it off.
        grace_seconds: u32,
        /// As in [`Self::VmStart`].
        wait_ms: u32,
    },
    /// Deletes the VM and its system disk; data volumes stay.
    VmDelete {
        #[rkyv(with = Raw)]
        name: Name,
        /// Cuts off a running VM instead of refusing.
        force: bool,
        /// As in [`Self::VmStart`].
        wait_ms: u32,
    },
    VmList,
    VmShow(#[rkyv(with = Raw)] Name),
    VmConsole(#[rkyv(with = Raw)] Name),
    Switch {
        #[rkyv(with = Raw)]
        node: Name,
        table: SwitchTable,
    },
    /// `question` is `Look` of plinth-switch-api as JSON. Answered with [`Answer::SwitchSight`].
    SwitchLook {
        #[rkyv(with = Raw)]
        node: Name,
        question: String,
    },
    /// Replaces a node's store process under running guests.
    NodeUpgradeStore(#[rkyv(with = Raw)] Name),
    NodeUpgradeSwitch(#[rkyv(with = Raw)] Name),
    /// The CPUs of a node's store, one worker each. Answered with [`Answer::Node`].
    NodeStoreCores {
        #[rkyv(with = Raw)]
        node: Name,
        /// None: one worker, which runs where the system puts it.
        cores: Vec<u32>,
    },
    BalancerCreate(BalancerCreate),
    BalancerList,
    BalancerShow(#[rkyv(with = Raw)] Name),
    BalancerDelete(#[rkyv(with = Raw)] Name),
    ListenerAdd {
        #[rkyv(with = Raw)]
        balancer: Name,
        listener: ListenerSettings,
    },
    ListenerRemove {
        #[rkyv(with = Raw)]
        balancer: Name,
        number: u32,
    },
    BackendChange {
        backend: BackendName,
        change: BackendChange,
    },
    /// Whether the VPC's guests are told their metadata.
    VpcMetadata {
        #[rkyv(with = Raw)]
        name: Name,
        is_told: bool,
    },
}

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct PoolCreate {
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub node: Name,
    /// Paths of block devices or files on the node.
    pub devices: Vec<String>,
    /// Makes or grows files of this size; `None` takes the devices whole.
    pub size: Option<u64>,
    pub durability: Durability,
    pub class: PoolClass,
    /// Takes a device that has something on it.
    pub overwrite: bool,
}

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct ImageImport {
    #[rkyv(with = Raw)]
    pub name: Name,
    /// Where copies are to be; none means every pool.
    #[rkyv(with = Map<Raw>)]
    pub pools: Vec<Name>,
    pub format: DiskFormat,
    pub source: ImportSource,
}

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct VolumeCreate {
    #[rkyv(with = Raw)]
    pub name: Name,
    /// `None` where there is one pool only.
    #[rkyv(with = Map<Raw>)]
    pub pool: Option<Name>,
    /// `None` takes the image's size.
    pub size: Option<u64>,
    /// Clones an image.
    #[rkyv(with = Map<Raw>)]
    pub image: Option<Name>,
}

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct VolumeClone {
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub source: Name,
    /// `None` clones the source as it is.
    #[rkyv(with = Map<Raw>)]
    pub snapshot: Option<Name>,
    /// `None` takes the source's size.
    pub size: Option<u64>,
}

/// What differs between two snapshots goes to a file on the volume's node.
#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct DeltaExport {
    #[rkyv(with = Raw)]
    pub volume: Name,
    /// `None` exports all that the snapshot has.
    #[rkyv(with = Map<Raw>)]
    pub from: Option<Name>,
    #[rkyv(with = Raw)]
    pub to: Name,
    pub target: String,
}

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct DiskAdd {
    #[rkyv(with = Raw)]
    pub pool: Name,
    pub device: String,
    /// Makes or grows a file of this size; `None` takes the device whole.
    pub size: Option<u64>,
    pub overwrite: bool,
}

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct VmCreate {
    #[rkyv(with = Raw)]
    pub name: Name,
    pub vcpus: u32,
    pub memory: u64,
    /// The system disk is a clone of it.
    #[rkyv(with = Map<Raw>)]
    pub image: Option<Name>,
    /// Of the system disk; `None` takes the image's size.
    pub system_size: Option<u64>,
    /// A kernel on the node to boot instead of the first disk.
    pub kernel: Option<String>,
    pub initrd: Option<String>,
    pub append: Option<String>,
    pub nics: Vec<NicRequest>,
    /// Existing volumes, after the system disk.
    pub volumes: Vec<DiskRequest>,
    /// `None` lets the planner choose.
    #[rkyv(with = Map<Raw>)]
    pub node: Option<Name>,
    pub start: bool,
    /// As in [`Request::VmStart`]; used when `start`.
    pub wait_ms: u32,
}

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct NicRequest {
    #[rkyv(with = Raw)]
    pub subnet: Name,
    /// `None` takes the next free one.
    pub address: Option<Ipv4Addr>,
    /// None means the VPC's default group.
    #[rkyv(with = Map<Raw>)]
    pub groups: Vec<Name>,
}

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct DiskRequest {
    #[rkyv(with = Raw)]
    pub volume: Name,
    pub is_read_only: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub enum SwitchTable {
    Ports,
    /// The newest `limit` flows.
    Flows {
        limit: u32,
    },
    Drops,
}

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct Reply {
    pub result: Result<Answer, Refusal>,
}

#[allow(
    clippy::large_enum_variant,
    reason = "one answer lives at a time; a box would be in the message's form for ever"
)]
#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub enum Answer {
    /// It is done, and there is nothing to show.
    Done,
    Cluster(ClusterView),
    Token(String),
    Nodes(Vec<NodeView>),
    Pools(Vec<PoolView>),
    Images(Vec<ImageView>),
    Volumes(Vec<VolumeView>),
    Vpcs(Vec<VpcView>),
    Subnets(Vec<SubnetView>),
    Vms(Vec<VmView>),
    Node(NodeView),
    Pool(PoolView),
    Image(ImageView),
    Volume(VolumeView),
    Vpc(VpcView),
    Subnet(SubnetView),
    Vm(VmView),
    Snapshot(SnapshotView),
    Snapshots(Vec<SnapshotView>),
    Schedule(ScheduleView),
    Limits(LimitView),
    Diff(Vec<DiffRange>),
    VolumeStats(Vec<VolumeStatsView>),
    SlowRequests(Vec<SlowRequestView>),
    Disk(PoolDiskView),
    Disks(Vec<PoolDiskView>),
    Scrubs(Vec<ScrubView>),
    Routes(Vec<RouteView>),
    Route(RouteView),
    Groups(Vec<GroupView>),
    Group(GroupView),
    Nics(Vec<EniView>),
    Nic(EniView),
    Lines(Vec<LineView>),
    Line(LineView),
    Eips(Vec<EipView>),
    Eip(EipView),
    NatGateways(Vec<NatView>),
    NatGateway(NatView),
    SwitchPorts(Vec<SwitchPort>),
    SwitchFlows(Vec<FlowStatus>),
    SwitchDrops(Vec<DropCount>),
    /// `Sight` of plinth-switch-api as JSON.
    SwitchSight(String),
    StoreUpgraded(DaemonUpgrade),
    SwitchUpgraded(DaemonUpgrade),
    Balancers(Vec<BalancerView>),
    Balancer(BalancerView),
}
