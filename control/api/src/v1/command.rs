// SPDX-License-Identifier: Apache-2.0
//! What the service says to an agent.
//!
//! One request goes on one QUIC stream and its reply comes back on it. Two requests carry bytes
//! besides: after [`Command::ImageImport`] from [`ImportSource::Stream`] come that many raw
//! bytes, then the reply; after the reply to [`AgentRequest::Console`] the stream is the
//! console, raw, both ways, until either side ends it.

use super::{DropCount, Durability, FlowStatus, NodeSpec, NodeStatus, Refusal, SwitchPort};
use crate::with::Raw;
use plinth_ids::{Epoch, Name, PoolId, VmId, VolumeId};

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub enum AgentRequest {
    /// Make this true. Answered with [`AgentAnswer::Applied`] when it is taken, not when it is
    /// true: that is seen in the status.
    Apply(NodeSpec),
    Status,
    Perform(Command),
    /// Answered with [`AgentAnswer::Done`], then the console's bytes.
    Console(#[rkyv(with = Raw)] VmId),
}

/// One act on a node. Every command is idempotent: done twice it is done, because the service
/// sends it again after a crash.
#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub enum Command {
    /// Makes an empty pool, and serves it. A pool of the same id that is there already is kept;
    /// anything else on the device is kept and refused unless `overwrite`.
    PoolFormat {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        name: Name,
        device: String,
        /// `None` takes a device or existing file whole.
        size: Option<u64>,
        durability: Durability,
        overwrite: bool,
    },
    VolumeCreate {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        #[rkyv(with = Raw)]
        name: Name,
        size: u64,
    },
    /// A volume with the contents of another of the same pool, grown to `size`.
    VolumeClone {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        source: VolumeId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        #[rkyv(with = Raw)]
        name: Name,
        size: u64,
    },
    VolumeGrow {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        size: u64,
    },
    /// A volume that is not there is deleted. Refused while a VM has it.
    VolumeDelete {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
    },
    /// Makes a volume with the bytes of a disk image. Answered with [`AgentAnswer::Imported`].
    ImageImport {
        #[rkyv(with = Raw)]
        pool: PoolId,
        #[rkyv(with = Raw)]
        volume: VolumeId,
        #[rkyv(with = Raw)]
        name: Name,
        format: DiskFormat,
        source: ImportSource,
    },
    SwitchPorts,
    /// The newest `limit` flows.
    SwitchFlows {
        limit: u32,
    },
    SwitchDrops,
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
pub enum DiskFormat {
    Raw,
    Qcow2,
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
pub enum ImportSource {
    /// A file on the node.
    Path(String),
    /// This many bytes follow the request on its stream.
    Stream { length: u64 },
}

#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub struct AgentReply {
    pub result: Result<AgentAnswer, Refusal>,
}

#[allow(
    clippy::large_enum_variant,
    reason = "one answer lives at a time; a box would be in the message's form for ever"
)]
#[derive(Clone, Debug, Eq, PartialEq, rkyv::Archive, rkyv::Deserialize, rkyv::Serialize)]
pub enum AgentAnswer {
    Applied(#[rkyv(with = Raw)] Epoch),
    Status(NodeStatus),
    Done,
    /// The size of the guest's disk, in bytes.
    Imported {
        size: u64,
    },
    SwitchPorts(Vec<SwitchPort>),
    SwitchFlows(Vec<FlowStatus>),
    SwitchDrops(Vec<DropCount>),
}
