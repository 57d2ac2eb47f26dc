// SPDX-License-Identifier: Apache-2.0
//! VPCs, routes and security groups: as a node is told of them, asked for and shown.

use super::{DhcpSpec, DnsSpec, HostSpec, NicLimits};
use crate::with::Raw;
use plinth_ids::{GroupId, MacAddress, Name, PortId, Prefix, Vni};
use rkyv::with::Map;
use std::net::IpAddr;

/// A VPC that a node has a NIC in, or a peer of one.
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
pub struct VpcSpec {
    #[rkyv(with = Raw)]
    pub vni: Vni,
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub router_mac: MacAddress,
    pub subnets: Vec<SubnetSpec>,
    pub routes: Vec<RouteSpec>,
    pub dns: Option<DnsSpec>,
    /// Whether its guests are told their metadata; so they are by what was kept before it was said.
    #[serde(default = "told")]
    pub has_metadata: bool,
    /// What VMs are called in it, on whatever node.
    pub hosts: Vec<HostSpec>,
}

const fn told() -> bool {
    true
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
pub struct SubnetSpec {
    #[rkyv(with = Raw)]
    pub name: Name,
    pub prefixes: Vec<GatewaySpec>,
    /// `None`: guests are told nothing.
    pub dhcp: Option<DhcpSpec>,
}

/// A range of a subnet and the router's address in it.
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
pub struct GatewaySpec {
    #[rkyv(with = Raw)]
    pub prefix: Prefix,
    pub gateway: IpAddr,
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
pub struct RouteSpec {
    #[rkyv(with = Raw)]
    pub destination: Prefix,
    pub next_hop: HopSpec,
}

/// Where a route leads.
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
pub enum HopSpec {
    /// A NIC of the VPC.
    Address(IpAddr),
    Peer(#[rkyv(with = Raw)] Vni),
    Blackhole,
    /// What is no VPC.
    External,
}

/// A security group that a NIC of the node is in.
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
pub struct GroupSpec {
    #[rkyv(with = Raw)]
    pub id: GroupId,
    #[rkyv(with = Raw)]
    pub name: Name,
    pub rules: Vec<RuleSpec>,
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
pub struct RuleSpec {
    pub scope: RuleScope,
    pub peer: PeerSpec,
}

/// What a rule says, but for whom it is about.
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
pub struct RuleScope {
    pub direction: RuleDirection,
    pub priority: RulePriority,
    pub verdict: RuleVerdict,
    pub protocol: RuleProtocol,
    /// First and last, of the destination; `None`: all.
    #[serde(default)]
    pub ports: Option<(u16, u16)>,
    /// Type, and code unless all; `None`: all.
    #[serde(default)]
    pub icmp: Option<(u8, Option<u8>)>,
}

/// Seen from the guest.
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
pub enum RuleDirection {
    Inbound,
    Outbound,
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
pub enum RulePriority {
    High,
    Mid,
    Low,
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
pub enum RuleVerdict {
    Allow,
    Deny,
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
pub enum RuleProtocol {
    Any,
    Tcp,
    Udp,
    Icmp,
    Icmpv6,
    Number(u8),
}

/// Who is at the other end, by id.
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
pub enum PeerSpec {
    Any,
    Prefix(#[rkyv(with = Raw)] Prefix),
    Group(#[rkyv(with = Raw)] GroupId),
}

/// Who is at the other end, by name.
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
pub enum RulePeer {
    Any,
    Prefix(#[rkyv(with = Raw)] Prefix),
    Group(#[rkyv(with = Raw)] Name),
}

/// Where a route is to lead, by name.
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
pub enum RouteHop {
    Address(IpAddr),
    Peer(#[rkyv(with = Raw)] Name),
    Blackhole,
    /// What is no VPC, under an external address.
    External,
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
pub struct RouteView {
    #[rkyv(with = Raw)]
    pub vpc: Name,
    #[rkyv(with = Raw)]
    pub destination: Prefix,
    pub next_hop: RouteHop,
    /// Why packets do not take it now.
    pub pending: Option<String>,
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
pub struct GroupView {
    #[rkyv(with = Raw)]
    pub id: GroupId,
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub vpc: Name,
    /// NICs that name no group are in it.
    pub is_default: bool,
    pub rules: Vec<RuleView>,
    /// That are in it.
    #[rkyv(with = Map<Raw>)]
    pub nics: Vec<Name>,
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
pub struct RuleView {
    /// In its group; a number is never given out twice.
    pub number: u32,
    pub scope: RuleScope,
    pub peer: RulePeer,
}

/// A NIC by itself; a VM's details have the short form.
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
pub struct EniView {
    /// The VM's name and the NIC's number in it, as in `web-1-0`.
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub vm: Name,
    #[rkyv(with = Raw)]
    pub port: PortId,
    #[rkyv(with = Raw)]
    pub vpc: Name,
    #[rkyv(with = Raw)]
    pub subnet: Name,
    #[rkyv(with = Raw)]
    pub mac: MacAddress,
    pub addresses: Vec<IpAddr>,
    /// `None`: it is not filtered, as NICs of VPCs from before there were groups.
    #[rkyv(with = Map<Names>)]
    pub groups: Option<Vec<Name>>,
    /// Ranges that it may speak from beside its addresses.
    #[rkyv(with = Map<Raw>)]
    pub allowed: Vec<Prefix>,
    pub limits: NicLimits,
    pub state: NicState,
}

/// Where a NIC is on its way.
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
pub enum NicState {
    /// The VM's process has it.
    Attached,
    /// The VM runs, or is to run, and has it not yet: `plinth vm show` says why.
    Waiting,
    /// It was detached, and the guest has not let go of it yet.
    Leaving,
    /// The VM is off.
    Off,
}

/// A list of names inside an option.
type Names = Map<Raw>;
