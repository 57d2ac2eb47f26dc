// SPDX-License-Identifier: Apache-2.0
//! Version 1 of the messages. Frozen once released: a released type gets no new field, variant
//! or meaning; `tests/golden.rs` holds the bytes.
//!
//! Sizes are bytes, times are seconds since 1970, durations say their unit in the name.

mod answers;
mod balance;
mod command;
mod external;
mod join;
mod network;
mod operator;
mod refusal;
mod spec;
mod status;
mod storage;
mod view;

pub use answers::{DhcpRouteSpec, DhcpSpec, DnsSpec, HostSpec};
pub use balance::{
    BackendChange, BackendName, BackendSeen, BackendSpec, BackendView, BalancerCreate,
    BalancerPlace, BalancerSpec, BalancerView, CheckSpec, CheckSpecKind, LbScheduler, LbState,
    ListenerSettings, ListenerSpec, ListenerView,
};
pub use command::{AgentAnswer, AgentReply, AgentRequest, Command, DiskFormat, ImportSource};
pub use external::{
    EipBinding, EipBound, EipCounters, EipLimits, EipSpec, EipView, ExternalSpec, ForwardProtocol,
    ForwardSpec, ForwardView, LineSpec, LineView, NatAddressView, NatCreate, NatForward,
    NatMapping, NatServes, NatSpec, NatView, ServesSpec,
};
pub use join::{Join, JoinReply, Joined};
pub use network::{
    EniView, GatewaySpec, GroupSpec, GroupView, HopSpec, NicState, PeerSpec, RouteHop, RouteSpec,
    RouteView, RuleDirection, RulePeer, RulePriority, RuleProtocol, RuleScope, RuleSpec,
    RuleVerdict, RuleView, SubnetSpec, VpcSpec,
};
pub use operator::{
    Answer, DeltaExport, DiskAdd, DiskRequest, ImageImport, NicRequest, PoolCreate, Reply, Request,
    SwitchTable, VmCreate, VolumeClone, VolumeCreate,
};
pub use refusal::{Code, Refusal};
pub use spec::{
    Address, Boot, DiskSpec, Durability, NicLimits, NicRate, NicSpec, NodeSpec, PoolSpec, Remote,
    Run, STORE_CORES_MAX, Underlay, VmSpec,
};
pub use status::{
    Check, CheckState, DaemonState, DaemonStatus, DaemonUpgrade, DropCount, Facts, FlowStatus,
    Load, NodeStatus, PoolStatus, SwitchPort, UnfitBackend, VmState, VmStatus, VolumeStatus,
};
pub use storage::{
    BadBlock, DiffRange, DiskCounters, DiskState, DiskStatus, FoundBy, Job, JobKind, Latency,
    Level, LimitView, PoolAccess, PoolClass, PoolDiskSpec, PoolDiskView, ScheduleView, ScrubKind,
    ScrubRun, ScrubSchedule, ScrubView, SlowRequest, SlowRequestView, SnapshotUsage, SnapshotView,
    VolumeLimits, VolumeMetrics, VolumeStatsView, VolumeUsage, Wait,
};
pub use view::{
    ClusterView, DiskView, ImageCopy, ImageView, NicView, NodeView, PoolView, ResourceState,
    SubnetView, VmView, VolumeView, VpcView,
};
