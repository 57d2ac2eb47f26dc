// SPDX-License-Identifier: Apache-2.0
//! A capture of packets: begun by one question, read by more, ended by one or by its bounds.

use plinth_ids::{PortId, Prefix};
use serde::{Deserialize, Serialize};

/// The most packets that one [`CapturePage`] brings.
pub const CAPTURE_PAGE_MAX: usize = 512;

/// The most packets that a capture may ask for.
pub const CAPTURE_PACKETS_MAX: u64 = 10_000_000;

/// The longest that a capture may take.
pub const CAPTURE_SECONDS_MAX: u32 = 3600;

/// The most bytes of each packet: what the switch has at hand of it.
pub const CAPTURE_SNAP_MAX: u32 = 256;

/// Which packets are wanted, and how much of them. What is `None` is not asked about.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureQuery {
    /// A port's name or number: packets that come in or go out there.
    #[serde(default)]
    pub port: Option<String>,
    #[serde(default)]
    pub filter: CaptureWish,
    pub packets: u64,
    /// Of what is copied of all packets.
    pub bytes: u64,
    pub seconds: u32,
    /// Bytes of each packet, 1 to [`CAPTURE_SNAP_MAX`].
    pub snap: u32,
}

/// Packets by what they are.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureWish {
    /// Packets that come in; with `outbound` or without both, either way.
    #[serde(default)]
    pub inbound: bool,
    #[serde(default)]
    pub outbound: bool,
    /// At either end, outside or inside of a tunnel.
    #[serde(default)]
    pub address: Option<Prefix>,
    #[serde(default)]
    pub protocol: Option<u8>,
    /// A port number of TCP or UDP, at either end.
    #[serde(default)]
    pub number: Option<u16>,
    /// In a tunnel's header.
    #[serde(default)]
    pub vni: Option<u32>,
    /// Only packets that the switch drops.
    #[serde(default)]
    pub dropped: bool,
}

/// A capture that was begun.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CaptureBegun {
    /// To be given with the next questions.
    pub capture: u64,
    /// Nanoseconds since 1970.
    pub began: u64,
}

/// What came since the page before.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CapturePage {
    pub packets: Vec<CaptureRow>,
    /// Packets that were wanted and found no buffer, since the capture began.
    pub missed: u64,
    /// Nothing more comes: a bound was reached, or the capture was ended.
    pub is_over: bool,
}

/// One packet.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CaptureRow {
    /// Nanoseconds since the capture began.
    pub at: u64,
    /// [`UPLINK`](crate::UPLINK) for the uplink.
    pub port: PortId,
    pub name: String,
    /// Whether it came in there, or went out.
    pub came_in: bool,
    /// Why it was dropped, if it was.
    pub drop: Option<String>,
    /// Of the whole packet.
    pub length: u32,
    /// What was copied of it, in hexadecimal digits.
    pub head: String,
}
