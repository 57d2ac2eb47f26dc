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
    /// The packet is longer than its way carries and is to be cut into TCP segments.
    pub segments: Option<SegmentRequest>,
}

/// TCP segmentation, as virtio's `gso_*` fields say it. Comes with a checksum request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SegmentRequest {
    /// Bytes of payload in each segment, not zero.
    pub size: u16,
    pub is_ipv6: bool,
    /// `VIRTIO_NET_HDR_GSO_ECN`.
    pub has_ecn: bool,
    /// Bytes of headers, from the Ethernet header on. From a guest it is a hint that nobody may
    /// believe; towards a guest it is true.
    pub headers: u16,
}

/// Offsets are from the first byte of the Ethernet header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChecksumRequest {
    pub start: u16,
    pub offset: u16,
}
