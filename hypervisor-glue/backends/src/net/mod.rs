// SPDX-License-Identifier: Apache-2.0
//! virtio-net: packets out of a guest and into it.
//!
//! Queue pair `n` is ring `2n` (inbound, the driver's receive queue) and ring `2n + 1`
//! (outbound, the driver's transmit queue).

mod burst;
mod class;
mod counters;
mod device;
mod header;

pub use burst::{OutboundBurst, OutboundPacket, Payload};
pub use class::{NetClass, NetOptions};
pub use counters::NetCounters;
pub use device::{DeliverRefusal, Inbound, NetDevice, PACKET_MAX};

/// Packets handled together.
pub const BURST: usize = 32;

/// How many bytes of a packet are copied into private memory, at most.
pub const HEAD_MAX: usize = 256;

/// Work on a packet that its receiver has left to do or may skip.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offload {
    /// Complete the checksum: sum from `start` to the end of the packet, into the two bytes at
    /// `start + offset`, where the pseudo-header's sum stands already.
    pub checksum: Option<ChecksumRequest>,
    /// The checksums were verified by whoever sent this; the receiver need not.
    pub is_verified: bool,
}

/// Offsets are from the first byte of the Ethernet header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChecksumRequest {
    pub start: u16,
    pub offset: u16,
}
