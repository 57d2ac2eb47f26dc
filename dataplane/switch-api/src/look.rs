// SPDX-License-Identifier: Apache-2.0
//! Questions of a person who wants to know what the switch does with packets, and the answers.
//!
//! They are carried through the control plane as text, so that a node's switch and the operator's
//! program are the only two that need to understand them.

use crate::{
    BackendStatus, CaptureBegun, CapturePage, CaptureQuery, ExternalStatus, Status, Trace,
    TraceQuery,
};
use plinth_ids::{Name, PortId, Prefix, Vni};
use serde::{Deserialize, Serialize};

/// A question that changes nothing about forwarding.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Look {
    /// How busy the worker is, and where its cycles go.
    Status,
    /// Packets that ended, by port and reason.
    Drops(DropQuery),
    /// A page of the flow table.
    Flows(FlowQuery),
    /// What went through external addresses.
    External,
    /// The backends of the balancer of this name, with the connections that this node has given
    /// them.
    Backends(Name),
    /// Begin to copy packets' heads.
    CaptureBegin(CaptureQuery),
    /// What came since, of the capture of this number.
    CaptureRead(u64),
    /// No more of it. What is in buffers still comes.
    CaptureEnd(u64),
    /// What would become of a packet.
    Trace(TraceQuery),
}

/// The answer to the [`Look`] of the same name; `Capture` to reading and to the end of one.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sight {
    Status(Status),
    Drops(Vec<DropRow>),
    Flows(FlowPage),
    External(Vec<ExternalStatus>),
    /// In the configuration's order, at most [`crate::BACKENDS_LISTED_MAX`]; none of a balancer that
    /// is not here.
    Backends(Vec<BackendStatus>),
    CaptureBegun(CaptureBegun),
    Capture(CapturePage),
    Trace(Trace),
}

/// Which drops are wanted; what is `None` is not asked about.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DropQuery {
    /// A port's name or number.
    #[serde(default)]
    pub port: Option<String>,
    /// A VPC's name or VNI.
    #[serde(default)]
    pub vpc: Option<String>,
    #[serde(default)]
    pub reason: Option<String>,
}

/// Packets that ended at one port for one reason since the port was made.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DropRow {
    pub port: PortId,
    pub name: String,
    /// `None` for the uplink.
    pub vni: Option<Vni>,
    /// Its name, if it is routed.
    pub vpc: Option<String>,
    pub reason: String,
    pub packets: u64,
}

/// Which flows are wanted, and how many at once.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FlowQuery {
    /// A port's name or number: flows whose packets come in there.
    #[serde(default)]
    pub port: Option<String>,
    /// A VPC's name or VNI.
    #[serde(default)]
    pub vpc: Option<String>,
    /// At either end.
    #[serde(default)]
    pub address: Option<Prefix>,
    #[serde(default)]
    pub protocol: Option<u8>,
    /// A port number of TCP or UDP, at either end.
    #[serde(default)]
    pub number: Option<u16>,
    /// Of the connection, as `established`.
    #[serde(default)]
    pub state: Option<String>,
    /// Rows of a page: 1 to [`FLOW_PAGE_MAX`].
    pub limit: u32,
    /// Where the page before ended.
    #[serde(default)]
    pub cursor: Option<u32>,
}

/// The most rows of one page.
pub const FLOW_PAGE_MAX: u32 = 4096;

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FlowPage {
    pub flows: Vec<FlowRow>,
    /// Where to go on; `None` when the table's end was reached.
    pub next: Option<u32>,
}

/// A flow, with the answers to it if the switch follows the connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FlowRow {
    /// Where its packets come in.
    pub port: PortId,
    pub name: String,
    pub vni: Vni,
    /// As `udp 10.0.0.1:53 -> 10.0.0.2:4000`.
    pub key: String,
    /// As `port-3` or `vtep 172.16.0.2`, a drop reason, or `in-doubt`: the configuration changed
    /// and the next packet is judged again.
    pub action: String,
    pub packets: u64,
    pub bytes: u64,
    /// Of the answers; `None` where no connection is followed.
    pub packets_back: Option<u64>,
    pub bytes_back: Option<u64>,
    pub idle_ms: u64,
    pub age_ms: u64,
    /// Of the connection; `None` where none is followed.
    pub state: Option<String>,
}
