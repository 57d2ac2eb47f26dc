// SPDX-License-Identifier: Apache-2.0
//! What a NIC's queues have seen.

/// Summed over the device's queues. Packets that end here were harmful to their own guest only.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NetCounters {
    /// Packets and bytes taken from the guest and given to the caller.
    pub outbound_packets: u64,
    pub outbound_bytes: u64,
    /// Packets and bytes written to the guest.
    pub inbound_packets: u64,
    pub inbound_bytes: u64,
    /// Outbound: a descriptor chain that breaks the ring's rules.
    pub drop_chain_malformed: u64,
    /// Outbound: shorter than a virtio-net and an Ethernet header.
    pub drop_too_short: u64,
    /// Outbound: longer than the largest packet.
    pub drop_too_long: u64,
    /// Outbound: offload fields that were not negotiated or point outside the packet.
    pub drop_offload_invalid: u64,
    /// Rings that were given up because their index or addresses were nonsense.
    pub queues_broken: u64,
    /// Eventfds written to wake the guest.
    pub calls: u64,
}
