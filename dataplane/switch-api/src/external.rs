// SPDX-License-Identifier: Apache-2.0
//! What a node has of the outside: lines, external addresses, and gateways that translate.
//!
//! Packets to the outside leave by the uplink, without a tunnel, to the next hop of a line. IPv4
//! only.

use crate::RateLimit;
use plinth_ids::{Name, Vni};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// All of a node's outside.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    #[serde(default)]
    pub lines: Vec<Line>,
    #[serde(default)]
    pub addresses: Vec<ExternalAddress>,
    #[serde(default)]
    pub gateways: Vec<NatGateway>,
}

impl External {
    /// No outside.
    pub const NONE: Self = Self { lines: Vec::new(), addresses: Vec::new(), gateways: Vec::new() };
}

/// A carrier's line: who takes packets to the outside.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    pub name: Name,
    /// On the underlay's segment; its MAC is asked for by ARP.
    pub next_hop: Ipv4Addr,
}

/// An external address that is one NIC's alone.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalAddress {
    /// Answered for by ARP on the uplink.
    pub address: Ipv4Addr,
    pub line: Name,
    /// The VPC of the NIC.
    pub vni: Vni,
    /// An address of the NIC, which is a port here.
    pub nic: Ipv4Addr,
    pub binding: Binding,
    #[serde(default)]
    pub limits: AddressLimits,
}

/// How much may go through an external address; what is over it is dropped.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AddressLimits {
    /// To the outside.
    #[serde(default)]
    pub outbound: RateLimit,
    /// From the outside.
    #[serde(default)]
    pub inbound: RateLimit,
}

/// Who knows of an external address.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Binding {
    /// The switch puts it in the place of the NIC's own, and back.
    Translated,
    /// The guest itself has it; it must be in the port's `allowed`.
    Carried,
}

/// Lets NICs of a VPC out under shared addresses, and the outside in by single ports.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NatGateway {
    pub name: Name,
    pub vni: Vni,
    pub line: Name,
    /// This gateway's alone.
    pub addresses: Vec<Ipv4Addr>,
    /// How many ports of one address each NIC has to itself, which bounds what one NIC can use
    /// up. 64 to 64512.
    pub ports_per_nic: u16,
    pub serves: Serves,
    #[serde(default)]
    pub mapping: PortMapping,
    #[serde(default)]
    pub forwards: Vec<Forward>,
}

/// How long-lived the ports are under which TCP and UDP go out (RFC 4787, REQ-1 and REQ-8).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PortMapping {
    /// Every connection has a port found for it.
    #[default]
    PerConnection,
    /// An address and port inside have one port outside, whoever is spoken to; those who were
    /// spoken to may answer.
    Independent,
    /// Likewise, and as long as there is the mapping, everybody may speak to it.
    Open,
}

/// Whom a gateway lets out. A gateway of the NIC comes before one of its subnet, and that before
/// one of the VPC.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Serves {
    Vpc,
    Subnet(Name),
    /// The NIC that has this address.
    Nic(Ipv4Addr),
}

/// Ports of an external address that lead to a NIC's.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// One of the gateway's.
    pub address: Ipv4Addr,
    pub protocol: ForwardProtocol,
    /// First and last, both among them. They are not handed out to connections from inside.
    pub ports: (u16, u16),
    /// An address of a NIC here.
    pub nic: Ipv4Addr,
    /// What the first of the ports becomes; the others follow.
    pub nic_port: u16,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ForwardProtocol {
    Tcp,
    Udp,
}

/// What went through one external address.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ExternalStatus {
    pub address: Ipv4Addr,
    /// From the outside, before anything was decided.
    pub packets_in: u64,
    pub bytes_in: u64,
    /// To the outside.
    pub packets_out: u64,
    pub bytes_out: u64,
    /// Packets over the address's limit: of those from outside, and beside those to it.
    #[serde(default)]
    pub dropped_in: u64,
    #[serde(default)]
    pub dropped_out: u64,
}
