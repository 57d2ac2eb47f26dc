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
    /// `None`: every backend is taken for fit.
    #[serde(default)]
    pub check: Option<HealthCheck>,
    pub backends: Vec<Backend>,
}

/// How a node finds out whether the backends that are on it are fit to serve. One that is not gets
/// no new connections and keeps those that it has.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    pub kind: CheckKind,
    /// `None`: the backend's first.
    #[serde(default)]
    pub port: Option<u16>,
    /// From one check to the next.
    pub interval_ms: u32,
    /// At most the interval.
    pub timeout_ms: u32,
    /// So many successes in a row make an unfit backend fit.
    pub rise: u8,
    /// So many failures in a row make a backend unfit.
    pub fall: u8,
}

/// What is asked of a backend.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum CheckKind {
    /// That it takes a connection.
    Tcp,
    /// That it answers GET with a status of 2xx or 3xx.
    Http { path: String },
    /// That it answers an echo request.
    Icmp,
}

/// What is thought of a backend.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fitness {
    /// It was not judged yet, and gets connections.
    Unknown,
    Fit,
    /// It gets no new connections.
    Unfit,
}

/// Ports of routers from which backends are checked begin here; it is also the first identifier of
/// echo requests.
pub const CHECK_PORT_FIRST: u16 = 61_000;

/// Bounds of a [`HealthCheck`].
pub const CHECK_INTERVAL_MS: (u32, u32) = (200, 3_600_000);
pub const CHECK_TIMEOUT_MS_MIN: u32 = 10;
pub const CHECK_PATH_MAX: usize = 255;

impl HealthCheck {
    /// What is wrong with it, in words, if anything is.
    pub fn fault(&self) -> Option<&'static str> {
        let (least, most) = CHECK_INTERVAL_MS;
        if !(least..=most).contains(&self.interval_ms) {
            return Some("an interval of 200 ms to one hour is needed");
        }
        if !(CHECK_TIMEOUT_MS_MIN..=self.interval_ms).contains(&self.timeout_ms) {
            return Some("a timeout of 10 ms to the interval is needed");
        }
        if self.rise == 0 || self.fall == 0 {
            return Some("rise and fall are 1 to 255");
        }
        if self.port == Some(0) {
            return Some("0 is no port");
        }
        match &self.kind {
            CheckKind::Http { path }
                if !path.starts_with('/')
                    || path.len() > CHECK_PATH_MAX
                    || !path.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                Some("a path begins with / and has 255 printed characters at most")
            }
            _ => None,
        }
    }
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

/// A backend that its node has checked and found unfit.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct UnfitBackend {
    pub balancer: Name,
    pub protocol: ForwardProtocol,
    /// The listener's first.
    pub port: u16,
    pub backend: IpAddr,
    pub backend_port: u16,
}

/// The most unfit backends that one answer lists.
pub const UNFIT_LISTED_MAX: usize = 8192;

/// The most backends of a balancer that one answer lists.
pub const BACKENDS_LISTED_MAX: usize = 8192;
