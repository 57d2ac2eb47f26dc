// SPDX-License-Identifier: Apache-2.0
//! How a node without a certificate gets one.
//!
//! These two messages are the only ones on the join port. The node knows the service by the CA
//! fingerprint in its token; the service knows the node by the token's secret, which is good
//! once.

use super::{Refusal, Underlay};
use crate::with::Raw;
use plinth_ids::{Name, NodeId};
use std::net::SocketAddr;

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct Join {
    #[rkyv(with = Raw)]
    pub name: Name,
    /// The token's secret.
    pub secret: [u8; 32],
    /// The node's public key: an uncompressed point on P-256 (65 bytes, SEC 1).
    pub public_key: Vec<u8>,
    /// Where the node's agent listens.
    pub agent: SocketAddr,
    pub underlay: Option<Underlay>,
}

/// The answer to a [`Join`].
#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct JoinReply {
    pub result: Result<Joined, Refusal>,
}

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct Joined {
    #[rkyv(with = Raw)]
    pub node: NodeId,
    /// The node's certificate, PEM.
    pub certificate: String,
    /// The cluster CA's certificate, PEM.
    pub ca: String,
}
