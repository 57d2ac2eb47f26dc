// SPDX-License-Identifier: Apache-2.0
//! Layer-4 load balancers: an address that stands for many NICs of a VPC.

use plinth_ids::{Name, Vni};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

use crate::ForwardProtocol;

/// An address whose new connections are spread over backends.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Balancer {
    pub name: Name,
    /// The VPC of the backends, and without a line also that of the clients.
    pub vni: Vni,
    /// Nobody else's: in a subnet of the VPC, or with a line an external address (IPv4).
    pub address: IpAddr,
    /// Where the address is answered for outside; `None`: it is the VPC's alone.
    #[serde(default)]
    pub line: Option<Name>,
    pub listeners: Vec<Listener>,
}

/// Ports of a balancer's address, and who serves them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    pub protocol: ForwardProtocol,
    /// First and last, both among them.
    pub ports: (u16, u16),
    #[serde(default)]
    pub scheduler: Scheduler,
    /// For so many seconds after its last new connection, a client gets the same backend again.
    #[serde(default)]
    pub stickiness: Option<u32>,
    pub backends: Vec<Backend>,
}

/// How a new connection gets its backend.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Scheduler {
    /// By turns, as often as its weight says.
    RoundRobin,
    /// The one with the fewest connections of this node for its weight.
    LeastConnections,
    /// By the client's address, the same one on every node (Maglev).
    #[default]
    SourceHash,
}

/// Who serves.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Of a NIC of the VPC, of the family of the balancer's address. While nobody has it, the
    /// backend gets nothing.
    pub address: IpAddr,
    /// What the first of the listener's ports becomes; the others follow.
    pub port: u16,
    /// 1 to [`BACKEND_WEIGHT_MAX`].
    #[serde(default = "default_weight")]
    pub weight: u16,
    #[serde(default)]
    pub state: BackendState,
}

/// What a backend gets.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BackendState {
    /// New connections and packets of those that it has.
    #[default]
    Active,
    /// It keeps the connections that it has.
    Draining,
    /// Nothing: its connections end.
    Down,
}

pub const BACKEND_WEIGHT_DEFAULT: u16 = 10;
pub const BACKEND_WEIGHT_MAX: u16 = 100;

/// Sizes of tables by hash: primes, so that any step goes through all of a table.
const HASH_SIZES: [u32; 5] = [251, 1009, 4093, 16_381, 65_537];
/// Places a backend: with fewer, a change disturbs more than 1 % beside its share.
const HASH_PLACES: usize = 500;

/// How many places the table of a listener with so many backends has.
pub fn hash_places(backends: usize) -> u32 {
    let wanted = backends.saturating_mul(HASH_PLACES);
    let found = HASH_SIZES.into_iter().find(|&size| size as usize >= wanted);
    found.unwrap_or(HASH_SIZES[HASH_SIZES.len() - 1])
}

const fn default_weight() -> u16 {
    BACKEND_WEIGHT_DEFAULT
}

/// One backend of one listener.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BackendStatus {
    pub balancer: Name,
    pub protocol: ForwardProtocol,
    /// The listener's first.
    pub port: u16,
    pub backend: IpAddr,
    pub backend_port: u16,
    pub state: BackendState,
    /// Connections that this node has given it and that have not ended.
    pub connections: u32,
}
