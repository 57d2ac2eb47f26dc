// SPDX-License-Identifier: Apache-2.0
//! The bounds of one switch, fixed at start: its memory is taken from them and never grows.

use std::time::Duration;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Guest ports.
    pub ports: u16,
    /// Addresses of one NIC.
    pub addresses_per_nic: u16,
    /// NICs behind other VTEPs.
    pub remotes: u32,
    /// Next hops on the underlay: VTEPs inside the prefix, and the gateway.
    pub next_hops: u16,
    /// Flow entries, rounded up to a power of two of at least 64. A connection has two. Each
    /// takes 168 bytes, with its share of the connections; one that is translated 64 more.
    pub flows: u32,
    /// Flow entries of one port, so that one guest cannot use up the table.
    pub flows_per_port: u32,
    /// An entry without a connection that was not used for so long may go.
    pub flow_idle: Duration,
    /// Packets in pieces that are remembered while their pieces come, rounded up to a power of
    /// two. Each takes 64 bytes.
    pub fragments: u32,
    /// ICMP errors a second that the switch sends of its own accord, over all ports.
    pub icmp_errors_per_second: u32,
    /// Questions a second of one guest that are handed on to be answered beside the worker.
    pub questions_per_second: u32,
    /// External addresses, bound ones and those of NAT gateways.
    pub external_addresses: u16,
    pub timeouts: Timeouts,
    pub vpc: VpcLimits,
    pub balancers: BalancerLimits,
}

/// Of what tenants configure. Memory is taken by what is there, and not by these.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VpcLimits {
    pub vpcs: u32,
    pub subnets_per_vpc: u16,
    pub prefixes_per_subnet: u16,
    /// Beside the subnets.
    pub routes_per_vpc: u16,
    pub allowed_per_nic: u16,
    pub security_groups: u32,
    /// Of all groups together.
    pub rules: u32,
    pub rules_per_group: u16,
    pub groups_per_nic: u16,
}

impl VpcLimits {
    pub const DEFAULT: Self = Self {
        vpcs: 4096,
        subnets_per_vpc: 256,
        prefixes_per_subnet: 8,
        routes_per_vpc: 1000,
        allowed_per_nic: 64,
        security_groups: 10_000,
        rules: 100_000,
        rules_per_group: 1000,
        groups_per_nic: 16,
    };
}

/// Of load balancers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BalancerLimits {
    /// Addresses.
    pub balancers: u32,
    /// Of all balancers together; each takes 4 bytes for whose turn it is.
    pub listeners: u32,
    /// Of all listeners together; each takes 4 bytes for the number of its connections.
    pub backends: u32,
    pub backends_per_listener: u16,
    /// Of all tables by hash together; each takes 2 bytes.
    pub hash_places: u32,
    /// Clients that are to get their backend again, rounded up to a power of two. Each takes 64
    /// bytes.
    pub clients: u32,
}

impl BalancerLimits {
    pub const DEFAULT: Self = Self {
        balancers: 8192,
        listeners: 1 << 14,
        backends: 1 << 16,
        backends_per_listener: 1024,
        hash_places: 1 << 24,
        clients: 1 << 14,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ports: 1024,
            addresses_per_nic: 64,
            remotes: 100_000,
            next_hops: 4096,
            flows: 1 << 17,
            flows_per_port: 1 << 16,
            flow_idle: Duration::from_secs(30),
            vpc: VpcLimits::DEFAULT,
            balancers: BalancerLimits::DEFAULT,
            fragments: 1 << 12,
            icmp_errors_per_second: 1000,
            questions_per_second: 1000,
            external_addresses: 4096,
            timeouts: Timeouts::DEFAULT,
        }
    }
}

/// How long a connection is kept without a packet, by what it is at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// TCP before both sides have answered.
    pub tcp_opening: Duration,
    pub tcp_established: Duration,
    /// After one side's FIN: the other may still have much to send, and think about it.
    pub tcp_half_closed: Duration,
    /// After both sides' FIN.
    pub tcp_closed: Duration,
    /// After a RST.
    pub tcp_reset: Duration,
    /// UDP and protocols that are not looked into, before an answer.
    pub datagrams_one_way: Duration,
    /// And after one.
    pub datagrams: Duration,
    pub icmp: Duration,
}

impl Timeouts {
    pub const DEFAULT: Self = Self {
        tcp_opening: Duration::from_secs(20),
        tcp_established: Duration::from_secs(3600),
        tcp_half_closed: Duration::from_secs(120),
        tcp_closed: Duration::from_secs(30),
        tcp_reset: Duration::from_secs(10),
        datagrams_one_way: Duration::from_secs(30),
        datagrams: Duration::from_secs(180),
        icmp: Duration::from_secs(30),
    };
}
