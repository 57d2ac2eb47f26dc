// SPDX-License-Identifier: Apache-2.0
//! The outside: lines, external addresses and NAT gateways, as a node is told of them, asked for
//! and shown.

use super::NicRate;
use crate::with::Raw;
use plinth_ids::{Name, PortId, Prefix, Vni};
use rkyv::with::Map;
use std::net::Ipv4Addr;

/// What a node has of the outside.
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
pub struct ExternalSpec {
    pub lines: Vec<LineSpec>,
    pub eips: Vec<EipSpec>,
    pub gateways: Vec<NatSpec>,
}

/// Who takes packets to the outside.
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
pub struct LineSpec {
    #[rkyv(with = Raw)]
    pub name: Name,
    pub next_hop: Ipv4Addr,
}

/// An external address of a NIC here.
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
pub struct EipSpec {
    pub address: Ipv4Addr,
    #[rkyv(with = Raw)]
    pub line: Name,
    #[rkyv(with = Raw)]
    pub port: PortId,
    pub binding: EipBinding,
    pub limits: EipLimits,
}

/// Who knows of an external address.
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
pub enum EipBinding {
    /// The switch puts it in the place of the NIC's own, and back.
    Translated,
    /// The guest itself has it.
    Carried,
}

/// How much may go through an external address each way.
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
pub struct EipLimits {
    /// To the outside.
    pub outbound: NicRate,
    /// From the outside.
    pub inbound: NicRate,
}

/// A gateway's part on this node: the addresses that are here, for the NICs that are.
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
pub struct NatSpec {
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub vni: Vni,
    #[rkyv(with = Raw)]
    pub line: Name,
    pub addresses: Vec<Ipv4Addr>,
    pub ports_per_nic: u16,
    pub serves: ServesSpec,
    pub mapping: NatMapping,
    pub forwards: Vec<ForwardSpec>,
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
pub enum ServesSpec {
    Vpc,
    Subnet(#[rkyv(with = Raw)] Name),
    Nic(#[rkyv(with = Raw)] PortId),
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
pub struct ForwardSpec {
    pub address: Ipv4Addr,
    pub protocol: ForwardProtocol,
    /// First and last.
    pub ports: (u16, u16),
    #[rkyv(with = Raw)]
    pub port: PortId,
    /// What the first of the ports becomes; the others follow.
    pub nic_port: u16,
}

#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    Ord,
    PartialEq,
    PartialOrd,
    rkyv::Archive,
    rkyv::Deserialize,
    rkyv::Serialize,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardProtocol {
    Tcp,
    Udp,
}

/// A gateway that is to be made.
#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct NatCreate {
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub vpc: Name,
    #[rkyv(with = Raw)]
    pub line: Name,
    /// Of the line's pools, beside `count` that are free.
    pub addresses: Vec<Ipv4Addr>,
    pub count: u16,
    pub ports_per_nic: u16,
    pub serves: NatServes,
    pub mapping: NatMapping,
}

/// How the ports of a gateway stand for those inside.
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
pub enum NatMapping {
    /// Every connection has a port found for it.
    #[default]
    PerConnection,
    /// One for an address and port inside, whoever is spoken to; who was may answer.
    Independent,
    /// Likewise, and everybody may speak to it.
    Open,
}

/// Whom a gateway lets out, by name.
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
pub enum NatServes {
    Vpc,
    Subnet(#[rkyv(with = Raw)] Name),
    Nic(#[rkyv(with = Raw)] Name),
}

/// Ports of an external address that are to lead to a NIC's.
#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct NatForward {
    /// `None` takes one that is on the NIC's node.
    pub address: Option<Ipv4Addr>,
    pub protocol: ForwardProtocol,
    /// First and last.
    pub ports: (u16, u16),
    #[rkyv(with = Raw)]
    pub nic: Name,
    /// `None`: the same ports.
    pub nic_port: Option<u16>,
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
pub struct LineView {
    #[rkyv(with = Raw)]
    pub name: Name,
    pub next_hop: Ipv4Addr,
    #[rkyv(with = Map<Raw>)]
    pub pools: Vec<Prefix>,
    pub addresses_used: u64,
    pub addresses_free: u64,
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
pub struct EipView {
    #[rkyv(with = Raw)]
    pub name: Name,
    pub address: Ipv4Addr,
    #[rkyv(with = Raw)]
    pub line: Name,
    /// That it is bound to.
    pub bound: Option<EipBound>,
    pub limits: EipLimits,
    /// `None` where no node has it now, or the node did not say.
    pub counters: Option<EipCounters>,
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
pub struct EipBound {
    #[rkyv(with = Raw)]
    pub nic: Name,
    #[rkyv(with = Raw)]
    pub node: Name,
    pub binding: EipBinding,
}

/// What went through an external address since it came to its node.
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
pub struct EipCounters {
    /// From the outside, before anything was decided.
    pub packets_in: u64,
    pub bytes_in: u64,
    /// To the outside.
    pub packets_out: u64,
    pub bytes_out: u64,
    /// Of those, over the address's limit.
    pub dropped_in: u64,
    pub dropped_out: u64,
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
pub struct NatView {
    #[rkyv(with = Raw)]
    pub name: Name,
    #[rkyv(with = Raw)]
    pub vpc: Name,
    #[rkyv(with = Raw)]
    pub line: Name,
    pub addresses: Vec<NatAddressView>,
    pub ports_per_nic: u16,
    pub serves: NatServes,
    pub mapping: NatMapping,
    pub forwards: Vec<ForwardView>,
    /// Nodes whose NICs it would serve and has no address for.
    #[rkyv(with = Map<Raw>)]
    pub lacking: Vec<Name>,
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
pub struct NatAddressView {
    pub address: Ipv4Addr,
    /// Where it is; `None` until a node needs it.
    #[rkyv(with = Map<Raw>)]
    pub node: Option<Name>,
    pub counters: Option<EipCounters>,
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
pub struct ForwardView {
    /// In its gateway; a number is never given out twice.
    pub number: u32,
    pub address: Ipv4Addr,
    pub protocol: ForwardProtocol,
    pub ports: (u16, u16),
    #[rkyv(with = Raw)]
    pub nic: Name,
    pub nic_port: u16,
}
