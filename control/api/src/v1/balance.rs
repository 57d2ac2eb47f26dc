// SPDX-License-Identifier: Apache-2.0
//! Load balancers, as a node is told of them, asked for and shown.

use super::ForwardProtocol;
use crate::with::Raw;
use plinth_ids::{Name, Vni};
use rkyv::with::Map;
use std::net::IpAddr;

/// An address whose connections a node spreads over backends.
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
pub struct BalancerSpec {
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub vni: Vni,
    pub address: IpAddr,
    /// `None`: the address is the VPC's alone.
    #[rkyv(with = Map<Raw>)]
    pub line: Option<Name>,
    pub listeners: Vec<ListenerSpec>,
}

/// Ports of a balancer's address, and who serves them.
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
pub struct ListenerSpec {
    pub settings: ListenerSettings,
    pub backends: Vec<BackendSpec>,
}

/// What an operator says of a listener, whoever its backends are.
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
pub struct ListenerSettings {
    pub protocol: ForwardProtocol,
    /// First and last.
    pub ports: (u16, u16),
    pub scheduler: LbScheduler,
    /// For so many seconds a client gets the same backend again.
    pub stickiness: Option<u32>,
    /// `None`: every backend is taken for fit.
    #[serde(default)]
    pub check: Option<CheckSpec>,
}

/// How the node of a backend finds out whether it is fit to serve.
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
pub struct CheckSpec {
    pub kind: CheckSpecKind,
    /// `None`: the backend's first.
    pub port: Option<u16>,
    pub interval_ms: u32,
    pub timeout_ms: u32,
    /// Successes in a row that make an unfit backend fit.
    pub rise: u8,
    /// Failures in a row that make a backend unfit.
    pub fall: u8,
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
pub enum CheckSpecKind {
    Tcp,
    /// A GET of this path.
    Http(String),
    Icmp,
}

/// How a new connection gets its backend.
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
pub enum LbScheduler {
    RoundRobin,
    LeastConnections,
    SourceHash,
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
pub struct BackendSpec {
    /// Of a NIC of the VPC.
    pub address: IpAddr,
    /// What the first of the listener's ports becomes; the others follow.
    pub port: u16,
    pub weight: u16,
    /// It keeps the connections that it has, and gets no more: an operator drains it, or its own
    /// node, which is another one, found it unfit.
    pub is_draining: bool,
}

/// A balancer that is to be made, with its first listener.
#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct BalancerCreate {
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub vpc: Name,
    pub place: BalancerPlace,
    /// `None` takes the next free one of IPv4.
    pub address: Option<IpAddr>,
    pub listener: ListenerSettings,
}

/// Whose a balancer's address is, by name.
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
pub enum BalancerPlace {
    Subnet(#[rkyv(with = Raw)] Name),
    Line(#[rkyv(with = Raw)] Name),
}

/// A backend of a listener, by its NIC.
#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct BackendName {
    #[rkyv(with = Raw)]
    pub balancer: Name,
    /// `None` where the balancer has one only.
    pub listener: Option<u32>,
    #[rkyv(with = Raw)]
    pub nic: Name,
    /// `None`: to add one, the listener's first; else the NIC's only one there.
    pub port: Option<u16>,
}

/// What is to become of a backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub enum BackendChange {
    Add { weight: u16 },
    Remove,
    Drain { is_draining: bool },
    Weight(u16),
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
pub struct BalancerView {
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub vpc: Name,
    pub address: IpAddr,
    pub place: BalancerPlace,
    /// Where an external address is: with its backends.
    #[rkyv(with = Map<Raw>)]
    pub node: Option<Name>,
    pub listeners: Vec<ListenerView>,
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
pub struct ListenerView {
    /// In its balancer; a number is never given out twice.
    pub number: u32,
    pub settings: ListenerSettings,
    pub backends: Vec<BackendView>,
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
pub struct BackendView {
    #[rkyv(with = Raw)]
    pub nic: Name,
    /// Where its NIC is.
    #[rkyv(with = Raw)]
    pub node: Name,
    pub address: IpAddr,
    pub port: u16,
    pub weight: u16,
    pub is_draining: bool,
    /// It has failed its checks, or its node does not answer: it gets no new connections.
    pub is_unfit: bool,
    /// What each node that answered has with it.
    pub seen: Vec<BackendSeen>,
}

/// What one node's switch says of a backend.
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
pub struct BackendSeen {
    #[rkyv(with = Raw)]
    pub node: Name,
    pub state: LbState,
    /// That this node's clients have with it.
    pub connections: u32,
}

/// What a backend gets from a node.
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
pub enum LbState {
    /// New connections and packets of those that it has.
    Active,
    /// It keeps the connections that it has.
    Draining,
    /// Nothing.
    Down,
}
