// SPDX-License-Identifier: Apache-2.0
//! Why a configuration is refused.

use crate::snapshot::TUNNEL_MTU_OVERHEAD;
use crate::{AnswersError, BalancerError, ExternalError, SecurityError, VpcError};
use plinth_ids::{Epoch, MacAddress, Name, PortId, Vni};
use plinth_switch_api::CONFIG_VERSION;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// The part of a configuration that an error is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    Underlay,
    Port {
        id: PortId,
        name: Name,
    },
    /// Counted from zero, as in the JSON text.
    Remote {
        index: usize,
    },
    /// Of a change, which knows no places.
    RemoteNic {
        vni: Vni,
        mac: MacAddress,
    },
    Vpc {
        name: Name,
    },
    External {
        address: Ipv4Addr,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Underlay => f.write_str("underlay"),
            Self::Port { id, name } => write!(f, "{id} ({name})"),
            Self::Remote { index } => write!(f, "remotes[{index}]"),
            Self::RemoteNic { vni, mac } => write!(f, "remote {mac} of vni {vni}"),
            Self::Vpc { name } => write!(f, "vpc {name}"),
            Self::External { address } => write!(f, "external address {address}"),
        }
    }
}

/// Names the field and the remedy. On any of these the configuration before stays in force.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    #[error("version {found} is not known: this switch reads version {CONFIG_VERSION}")]
    Version { found: u32 },
    #[error("epoch {found} is older than epoch {in_force} in force: send the newest snapshot")]
    EpochBackwards { found: Epoch, in_force: Epoch },
    #[error("epoch {epoch} is in force with other contents: give every change a new epoch")]
    EpochReused { epoch: Epoch },
    #[error("{found} {what} are more than the limit of {limit}: remove some or raise the limit")]
    TooMany { what: &'static str, found: usize, limit: usize },
    #[error("{place}: {found} addresses are more than the limit of {limit}")]
    TooManyAddresses { place: Place, found: usize, limit: usize },
    #[error("port {name}: id {} is the uplink's: number guest ports from 1", PortId(0).0)]
    PortIdReserved { name: Name },
    #[error("{id} is configured twice, as {first} and as {second}: give each port its own id")]
    PortIdTwice { id: PortId, first: Name, second: Name },
    #[error("socket {} is given to {first} and to {second}: give each port its own", path.display())]
    SocketTwice { path: PathBuf, first: PortId, second: PortId },
    #[error("{place}: vni 0 is no VPC: use 1 to {}", Vni::MAX)]
    VniZero { place: Place },
    #[error("{place}: mac {mac} is not one interface's: it must be unicast and not zero")]
    Mac { place: Place, mac: MacAddress },
    #[error("{second}: mac {mac} belongs to {first} in vni {vni} already")]
    MacTwice { vni: Vni, mac: MacAddress, first: Place, second: Place },
    #[error("{place}: address {address} cannot be a guest's: use a unicast address")]
    Address { place: Place, address: IpAddr },
    #[error("{second}: address {address} belongs to {first} in vni {vni} already")]
    AddressTwice { vni: Vni, address: IpAddr, first: Place, second: Place },
    #[error("{place}: mtu {mtu} is out of range: use {least} to {most}")]
    Mtu { place: Place, mtu: u16, least: u16, most: u16 },
    #[error(
        "{place}: mtu {mtu} does not fit the tunnel: use {} or less, or raise the underlay's mtu \
         from {underlay} to {} or more",
        underlay - TUNNEL_MTU_OVERHEAD, u32::from(*mtu) + u32::from(TUNNEL_MTU_OVERHEAD)
    )]
    MtuExceedsUnderlay { place: Place, mtu: u16, underlay: u16 },
    #[error("{place}: queue_pairs {found} is out of range: use 1 to 8")]
    QueuePairs { place: Place, found: u16 },
    #[error("{place}: {what} {found} is out of range: use {least} to {most}, or none")]
    Limit { place: Place, what: &'static str, found: u64, least: u64, most: u64 },
    #[error("underlay: prefix_length {found} is out of range: use 1 to 32")]
    PrefixLength { found: u8 },
    #[error("{place}: vtep {vtep} is not one machine's address: use a unicast address")]
    Vtep { place: Place, vtep: Ipv4Addr },
    #[error("underlay: gateway {gateway} is not another address inside the prefix of vtep {vtep}")]
    Gateway { gateway: Ipv4Addr, vtep: Ipv4Addr },
    #[error("{place}: a remote needs an underlay: configure one, or remove the remote")]
    RemoteWithoutUnderlay { place: Place },
    #[error("{place}: vtep {vtep} is this switch's own: remotes are behind other switches")]
    RemoteIsLocal { place: Place, vtep: Ipv4Addr },
    #[error("{place}: vtep {vtep} is outside the underlay's prefix: configure a gateway")]
    NoRoute { place: Place, vtep: Ipv4Addr },
    #[error(transparent)]
    Vpc(#[from] VpcError),
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error(transparent)]
    External(#[from] ExternalError),
    #[error(transparent)]
    Balancer(#[from] BalancerError),
    #[error(transparent)]
    Answers(#[from] AnswersError),
}

impl ConfigError {
    /// The stable code of this refusal, for the reply's `code`: the variant's name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Version { .. } => "version",
            Self::EpochBackwards { .. } => "epoch-backwards",
            Self::EpochReused { .. } => "epoch-reused",
            Self::TooMany { .. } => "too-many",
            Self::TooManyAddresses { .. } => "too-many-addresses",
            Self::PortIdReserved { .. } => "port-id-reserved",
            Self::PortIdTwice { .. } => "port-id-twice",
            Self::SocketTwice { .. } => "socket-twice",
            Self::VniZero { .. } => "vni-zero",
            Self::Mac { .. } => "mac",
            Self::MacTwice { .. } => "mac-twice",
            Self::Address { .. } => "address",
            Self::AddressTwice { .. } => "address-twice",
            Self::Mtu { .. } => "mtu",
            Self::MtuExceedsUnderlay { .. } => "mtu-exceeds-underlay",
            Self::QueuePairs { .. } => "queue-pairs",
            Self::Limit { .. } => "limit",
            Self::PrefixLength { .. } => "prefix-length",
            Self::Vtep { .. } => "vtep",
            Self::Gateway { .. } => "gateway",
            Self::RemoteWithoutUnderlay { .. } => "remote-without-underlay",
            Self::RemoteIsLocal { .. } => "remote-is-local",
            Self::NoRoute { .. } => "no-route",
            Self::Vpc(error) => error.code(),
            Self::Security(error) => error.code(),
            Self::External(error) => error.code(),
            Self::Balancer(error) => error.code(),
            Self::Answers(error) => error.code(),
        }
    }
}
