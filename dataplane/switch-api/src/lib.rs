// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! What a node agent says to plinth-switchd, and what it hears back.
//!
//! The switch holds no opinion: it is given a whole [`SwitchConfig`] with a number, carries it
//! out, keeps it on disk, and answers questions. Messages are JSON, one a line, over a unix
//! socket, so that a person can speak them with `socat`. A field that is not known is an error:
//! a configuration that is half understood must not be carried out.

mod answers;
mod balance;
mod capture;
mod change;
mod external;
mod limits;
mod look;
mod replay;
mod security;
mod trace;
mod vpc;

use plinth_ids::{Epoch, GroupId, MacAddress, Name, PortId, Prefix, Vni};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

pub use answers::{
    AnswerCounts, Answers, DhcpRoute, HostName, METADATA_IPV4, METADATA_IPV6, METADATA_PORT,
    METADATA_RESPONSE_MAX, METADATA_SOCKET, MetadataAsker, SubnetDhcp, VpcDns,
};
pub use balance::{
    BACKEND_WEIGHT_DEFAULT, BACKEND_WEIGHT_MAX, BACKENDS_LISTED_MAX, Backend, BackendState,
    BackendStatus, Balancer, CHECK_INTERVAL_MS, CHECK_PATH_MAX, CHECK_PORT_FIRST,
    CHECK_TIMEOUT_MS_MIN, CheckKind, Fitness, HealthCheck, Listener, Scheduler, UNFIT_LISTED_MAX,
    UnfitBackend, hash_places,
};
pub use capture::{
    CAPTURE_PACKETS_MAX, CAPTURE_PAGE_MAX, CAPTURE_SECONDS_MAX, CAPTURE_SNAP_MAX, CaptureBegun,
    CapturePage, CaptureQuery, CaptureRow, CaptureWish,
};
pub use change::{Change, EDITS_MAX, Edit, NotThere};
pub use external::{
    AddressLimits, Binding, External, ExternalAddress, ExternalStatus, Forward, ForwardProtocol,
    Line, NatGateway, PortMapping, Serves,
};
pub use limits::{
    BITS_PER_SECOND, PACKETS_PER_SECOND, PortLimits, RateLimit, WEIGHT_DEFAULT, WEIGHT_MAX,
};
pub use look::{DropQuery, DropRow, FLOW_PAGE_MAX, FlowPage, FlowQuery, FlowRow, Look, Sight};
pub use replay::{Misfit, Replayed};
pub use security::{Direction, Priority, Rule, RulePeer, RuleProtocol, RuleVerdict, SecurityGroup};
pub use trace::{Trace, TraceFrom, TracePacket, TraceQuery, TraceStep, TraceVerdict};
pub use vpc::{NextHop, Route, Subnet, SubnetPrefix, Vpc};

/// The format version of [`SwitchConfig`] that this crate reads and writes.
pub const CONFIG_VERSION: u32 = 1;

/// The id under which a switch lists its port to the underlay.
pub const UPLINK: PortId = PortId(0);

/// Everything that one switch is to do.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchConfig {
    /// [`CONFIG_VERSION`].
    pub version: u32,
    /// A snapshot with a lower number than the one in force is refused.
    pub epoch: Epoch,
    /// Absent on a node without peers: VXLAN is then off.
    pub underlay: Option<Underlay>,
    pub ports: Vec<GuestPort>,
    pub remotes: Vec<Remote>,
    /// Of the VNIs that are routed; those of other VNIs are flat segments.
    #[serde(default)]
    pub vpcs: Vec<Vpc>,
    /// Of ports here. A group of a remote needs no entry: its rules are judged where it is.
    #[serde(default)]
    pub security_groups: Vec<SecurityGroup>,
    /// How NICs here reach what is no VPC.
    #[serde(default)]
    pub external: External,
    /// Addresses that stand for many NICs.
    #[serde(default)]
    pub balancers: Vec<Balancer>,
    /// What guests are told that ask the network itself.
    #[serde(default)]
    pub answers: Answers,
}

impl SwitchConfig {
    /// One that forwards nothing.
    pub const fn empty(epoch: Epoch) -> Self {
        Self {
            version: CONFIG_VERSION,
            epoch,
            underlay: None,
            ports: Vec::new(),
            remotes: Vec::new(),
            vpcs: Vec::new(),
            security_groups: Vec::new(),
            external: External::NONE,
            balancers: Vec::new(),
            answers: Answers::NONE,
        }
    }
}

/// The node's own end of every tunnel.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Underlay {
    /// A DPDK device: a PCI address or a vdev with its arguments, as in
    /// `net_af_packet0,iface=eth1`.
    pub device: String,
    /// The VTEP's address. No kernel interface may carry it: the switch answers ARP for it.
    pub vtep: Ipv4Addr,
    pub prefix_length: u8,
    /// Next hop for VTEPs outside the prefix.
    pub gateway: Option<Ipv4Addr>,
    pub mac: MacAddress,
    /// Of the underlay, in bytes of IP packet.
    pub mtu: u16,
}

/// A guest's NIC: a vhost-user socket that the switch serves and QEMU connects to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GuestPort {
    /// 1 or more: [`UPLINK`] is the switch's own.
    pub id: PortId,
    pub name: Name,
    pub vni: Vni,
    pub mac: MacAddress,
    /// The addresses that the guest may use; ARP for them is answered by the switch.
    pub addresses: Vec<IpAddr>,
    /// Path of the vhost-user socket, made by the switch.
    pub socket: PathBuf,
    /// Largest IP packet of the guest, in bytes.
    pub mtu: u16,
    /// 1 to 8.
    pub queue_pairs: u16,
    /// Of the VPC of `vni`; its gateway is the guest's router.
    #[serde(default)]
    pub subnet: Option<Name>,
    /// `None`: not filtered. None in the list: everything is denied.
    #[serde(default)]
    pub security_groups: Option<Vec<GroupId>>,
    /// Ranges from which the guest may send beside its addresses, as a router or a VPN does.
    #[serde(default)]
    pub allowed: Vec<Prefix>,
    #[serde(default)]
    pub limits: PortLimits,
}

/// A NIC behind another node's VTEP.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    pub vni: Vni,
    pub mac: MacAddress,
    pub addresses: Vec<IpAddr>,
    pub vtep: Ipv4Addr,
    #[serde(default)]
    pub subnet: Option<Name>,
    /// For rules here that name a group as peer.
    #[serde(default)]
    pub security_groups: Vec<GroupId>,
    #[serde(default)]
    pub allowed: Vec<Prefix>,
}

/// One request. `id` comes back with the reply.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub id: u64,
    pub verb: Verb,
}

#[expect(clippy::large_enum_variant, reason = "one request at a time, read and carried out")]
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Verb {
    /// Carry this out and keep it. Idempotent.
    Apply(SwitchConfig),
    /// Carry out what differs from the configuration in force, and keep it.
    Change(Change),
    Status,
    Ports,
    /// The newest `limit` flow entries.
    Flows {
        limit: u32,
    },
    Drops,
    /// Backends on this node that have failed their checks, [`UNFIT_LISTED_MAX`] at most.
    Unfit,
    /// What a person asks when something does not work.
    Look(Look),
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Reply {
    pub id: u64,
    pub result: Result<Answer, Refusal>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Applied { epoch: Epoch },
    Status(Status),
    Ports(Vec<PortStatus>),
    Flows(Vec<FlowStatus>),
    Drops(Vec<DropCount>),
    Unfit(Vec<UnfitBackend>),
    Sight(Sight),
}

/// The answer is no. `code` is stable, `text` is for people and names the remedy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Refusal {
    pub code: String,
    pub text: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    pub process: u32,
    pub version: String,
    /// Of the configuration in force, if any.
    pub epoch: Option<Epoch>,
    /// "2 MiB hugepages" or "ordinary pages".
    pub memory: String,
    pub workers: Vec<WorkerStatus>,
    #[serde(default)]
    pub answers: AnswerCounts,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct WorkerStatus {
    pub cpu: Option<u32>,
    /// Share of time since the last question that was spent on packets, 0 to 1.
    pub busy: f64,
    pub packets: u64,
    /// Cycles of the time-stamp counter spent in rounds that moved packets.
    pub busy_cycles: u64,
    pub sleeps: u64,
    /// Of packets from guests: where the cycles went, in the order of a packet's way.
    #[serde(default)]
    pub stages: Vec<StageStatus>,
}

/// One stage of a worker's way of a packet.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StageStatus {
    /// As in docs/dataplane-io.md.
    pub name: String,
    /// Cycles of the time-stamp counter since the start.
    pub cycles: u64,
    /// Packets in them.
    pub packets: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PortStatus {
    pub id: PortId,
    pub name: String,
    /// `None` for the uplink.
    pub vni: Option<Vni>,
    pub mac: MacAddress,
    pub addresses: Vec<IpAddr>,
    /// Whether a frontend has connected and started its queues.
    pub is_up: bool,
    /// From the guest (or from the wire into the switch).
    pub packets_received: u64,
    pub bytes_received: u64,
    /// To the guest (or to the wire).
    pub packets_sent: u64,
    pub bytes_sent: u64,
    pub drops: Vec<DropCount>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FlowStatus {
    pub port: PortId,
    pub vni: Vni,
    /// As `udp 10.0.0.1:53 -> 10.0.0.2:4000`, or the Ethernet addresses for other traffic.
    pub key: String,
    /// As `port-3` or `vtep 172.16.0.2`, or a drop reason.
    pub action: String,
    pub packets: u64,
    pub bytes: u64,
    pub idle_ms: u64,
    /// Since its first packet.
    #[serde(default)]
    pub age_ms: u64,
    /// Of its connection, as in `established`; absent where none is followed.
    #[serde(default)]
    pub state: Option<String>,
    /// `forward` as the packet that began the connection, or `back`.
    #[serde(default)]
    pub direction: Option<String>,
}

/// `reason` is the drop reason's one name, as in docs and counters.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DropCount {
    pub reason: String,
    pub packets: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_refused() {
        let text = r#"{"id":1,"verb":{"apply":{"version":1,"epoch":1,"underlay":null,"ports":[],"remotes":[],"extra":1}}}"#;
        assert!(serde_json::from_str::<Request>(text).is_err());
        let text = text.replace(r#","extra":1"#, "");
        assert!(serde_json::from_str::<Request>(&text).is_ok());
    }

    #[test]
    fn a_request_is_one_line_a_person_can_write() {
        let request: Request = serde_json::from_str(r#"{"id":1,"verb":"drops"}"#).unwrap();
        assert_eq!(request, Request { id: 1, verb: Verb::Drops });
    }
}
