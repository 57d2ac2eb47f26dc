// SPDX-License-Identifier: Apache-2.0
//! A packet's imagined way through the switch.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};

/// Whose packet it is, and what it says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TraceQuery {
    pub from: TraceFrom,
    pub packet: TracePacket,
}

/// Where the packet comes from.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceFrom {
    /// A port's name or number.
    Port(String),
    /// Another node's VTEP, in a VPC's name or VNI.
    Tunnel { vpc: String, vtep: Ipv4Addr },
    /// Beyond the underlay, to an external address.
    Outside,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TracePacket {
    /// One that nobody has sent.
    Imagined {
        /// Of a port, its own if none is given.
        source: Option<IpAddr>,
        destination: IpAddr,
        protocol: u8,
        source_port: u16,
        destination_port: u16,
        tcp_flags: u8,
        time_to_live: u8,
        /// Bytes behind the last header.
        payload: u16,
    },
    /// One that a capture has shown: its first bytes in hexadecimal digits, and its whole length.
    /// It may be in the middle of a connection.
    Seen { head: String, length: u32 },
}

/// What every stage says, in order. Of the packet, this is all that happens.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Trace {
    pub steps: Vec<TraceStep>,
    pub verdict: TraceVerdict,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TraceStep {
    /// As `rules in`.
    pub stage: String,
    pub text: String,
    /// The reason of the drop, if the way ends here.
    pub refused: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceVerdict {
    /// To this port's name, or `uplink`.
    Sent(String),
    /// By the switch itself, to whoever asked.
    Answered,
    /// By the answerer: DHCP, DNS, metadata.
    Asked,
    Absorbed,
    Dropped(String),
}
