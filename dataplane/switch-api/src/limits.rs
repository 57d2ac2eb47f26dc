// SPDX-License-Identifier: Apache-2.0
//! How much of the node a port may have.

use serde::{Deserialize, Serialize};

/// A rate and how much of it may be saved up; `None`: not limited.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Of frames with their Ethernet header, as the guest hands them over or gets them.
    #[serde(default)]
    pub bits_per_second: Option<u64>,
    /// In bits; `None`: what comes in 50 ms, at least 64 KiB. Less than 10 ms are taken as that.
    #[serde(default)]
    pub bits_burst: Option<u64>,
    #[serde(default)]
    pub packets_per_second: Option<u64>,
    /// In packets; `None`: what comes in 50 ms, at least 32.
    #[serde(default)]
    pub packets_burst: Option<u64>,
}

impl RateLimit {
    pub const NONE: Self = Self {
        bits_per_second: None,
        bits_burst: None,
        packets_per_second: None,
        packets_burst: None,
    };
}

/// Limits of one NIC, and its weight beside others when the worker has not time for all.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PortLimits {
    /// From the guest. What is over it waits in the guest's queue.
    #[serde(default)]
    pub outbound: RateLimit,
    /// To the guest. What is over it is dropped.
    #[serde(default)]
    pub inbound: RateLimit,
    /// 1 to [`WEIGHT_MAX`]; `None`: [`WEIGHT_DEFAULT`].
    #[serde(default)]
    pub weight: Option<u16>,
}

impl PortLimits {
    pub const NONE: Self =
        Self { outbound: RateLimit::NONE, inbound: RateLimit::NONE, weight: None };
}

pub const WEIGHT_DEFAULT: u16 = 100;
pub const WEIGHT_MAX: u16 = 1000;

/// Bits a second that a limit is at least and at most: below, a packet would wait for seconds.
pub const BITS_PER_SECOND: (u64, u64) = (8_000, 1_000_000_000_000);
/// The same for packets a second.
pub const PACKETS_PER_SECOND: (u64, u64) = (1, 1_000_000_000);
