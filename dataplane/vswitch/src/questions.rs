// SPDX-License-Identifier: Apache-2.0
//! Questions of guests that are answered beside the worker: DHCP, router solicitations, DNS and
//! what guests ask for their metadata.
//!
//! The machine says which packets are questions, after the guards have judged who sends them, and
//! how many of a port may be handed on; whoever answers is the driver's. An answer comes back with
//! the [`Origin`] of its question, so that a port that has taken another one's place in the
//! meantime is told nothing.

use crate::snapshot::Port;
use crate::stages::parse::Parsed;
use crate::switch::Switch;
use crate::{DropReason, Packet, PortIndex, Verdict};
use plinth_bucket::{Bucket, Late, Rate};
use plinth_ids::{MacAddress, Moment, Name, PortId, Vni};
use plinth_switch_api::{
    CHECK_PORT_FIRST, GuestPort, METADATA_IPV4, METADATA_IPV6, METADATA_PORT, SwitchConfig,
};
use plinth_wire::{
    DHCP_SERVER_PORT, DHCPV6_SERVER_PORT, ND_ROUTER_SOLICITATION, PROTOCOL_ICMPV6, PROTOCOL_TCP,
    PROTOCOL_UDP,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU64;

const DNS_PORT: u16 = 53;

/// Questions of one guest that may come at once: a quarter of what a driver can keep waiting, so
/// that one guest leaves room for others.
const QUESTIONS_AT_ONCE: u64 = 64;

/// Which questions of a port are answered.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Answered {
    /// DHCPv4, DHCPv6 and router solicitations.
    dhcp: bool,
    dns: bool,
    metadata: bool,
    /// Answers to checks of it.
    checks: bool,
}

impl Answered {
    /// Whether a guest's router stands for `address` because metadata is there.
    pub(crate) fn is_metadata(self, address: IpAddr) -> bool {
        self.metadata && (address == METADATA_IPV4 || address == METADATA_IPV6)
    }
}

/// Who is answered, by what is looked for.
pub(crate) struct AnswersIndex<'a> {
    checked: BTreeSet<(Vni, IpAddr)>,
    subnets: BTreeSet<(Vni, &'a Name)>,
    zones: BTreeSet<Vni>,
    metadata: BTreeSet<Vni>,
}

impl<'a> AnswersIndex<'a> {
    pub(crate) fn new(config: &'a SwitchConfig) -> Self {
        let answers = &config.answers;
        let checked = config.balancers.iter().flat_map(|balancer| {
            let listeners = balancer.listeners.iter().filter(|listener| listener.check.is_some());
            let backends = listeners.flat_map(|listener| &listener.backends);
            backends.map(|backend| (balancer.vni, backend.address))
        });
        Self {
            checked: checked.collect(),
            subnets: answers.dhcp.iter().map(|dhcp| (dhcp.vni, &dhcp.subnet)).collect(),
            zones: answers.dns.iter().map(|dns| dns.vni).collect(),
            metadata: answers.metadata.iter().copied().collect(),
        }
    }

    pub(crate) fn of(&self, port: &GuestPort) -> Answered {
        let has_dhcp = |subnet| self.subnets.contains(&(port.vni, subnet));
        Answered {
            dhcp: port.subnet.as_ref().is_some_and(has_dhcp),
            dns: self.zones.contains(&port.vni),
            metadata: port.subnet.is_some() && self.metadata.contains(&port.vni),
            checks: port.addresses.iter().any(|at| self.checked.contains(&(port.vni, *at))),
        }
    }
}

/// Whether a packet to a group is a question. A piece of one is none: questions are short.
pub(crate) fn is_to_group(port: &Port, parsed: &Parsed) -> bool {
    let key = &parsed.key;
    if !port.answered.dhcp || key.is_fragment() {
        return false;
    }
    let [kind, _] = key.destination_port().to_be_bytes();
    let is_solicitation =
        !key.is_ipv4() && key.protocol() == PROTOCOL_ICMPV6 && kind == ND_ROUTER_SOLICITATION;
    is_solicitation || is_dhcp(parsed)
}

/// Whether a packet to the router itself is a question: a lease that is renewed, or a name.
pub(crate) fn is_to_router(port: &Port, parsed: &Parsed) -> bool {
    let key = &parsed.key;
    if key.is_fragment() {
        return false;
    }
    let is_of_dns = matches!(key.protocol(), PROTOCOL_UDP | PROTOCOL_TCP);
    let is_dns = is_of_dns && key.destination_port() == DNS_PORT;
    port.answered.dns && is_dns
        || port.answered.dhcp && is_dhcp(parsed)
        || port.answered.checks && is_of_check(parsed)
}

/// Whether a packet answers a check: a segment to one of the router's ports, or an echo reply.
fn is_of_check(parsed: &Parsed) -> bool {
    let key = &parsed.key;
    if key.is_icmp() {
        let reply = if key.is_ipv4() { 0 } else { u16::from_be_bytes([129, 0]) };
        return key.destination_port() == reply && key.source_port() >= CHECK_PORT_FIRST;
    }
    key.protocol() == PROTOCOL_TCP && key.destination_port() >= CHECK_PORT_FIRST
}

/// Whether a packet to where metadata is is a question. Nothing else is served there.
pub(crate) fn is_of_metadata(parsed: &Parsed) -> bool {
    let key = &parsed.key;
    !key.is_fragment() && key.protocol() == PROTOCOL_TCP && key.destination_port() == METADATA_PORT
}

fn is_dhcp(parsed: &Parsed) -> bool {
    let key = &parsed.key;
    let server = if key.is_ipv4() { DHCP_SERVER_PORT } else { DHCPV6_SERVER_PORT };
    key.protocol() == PROTOCOL_UDP && key.destination_port() == server
}

/// How often each port may ask.
#[derive(Debug)]
pub(crate) struct QuestionBudget {
    rate: Option<Rate>,
    /// By [`PortIndex`].
    buckets: Box<[Bucket]>,
}

impl QuestionBudget {
    /// For `places` ports.
    pub(crate) fn new(per_second: u32, places: usize) -> Self {
        let per_second = NonZeroU64::new(per_second.into());
        let rate = per_second.map(|per_second| Rate { per_second, burst: QUESTIONS_AT_ONCE });
        let filler = Rate { per_second: NonZeroU64::MIN, burst: 0 };
        let bucket = Bucket::new(rate.unwrap_or(filler), Moment::ZERO);
        Self { rate, buckets: vec![bucket; places].into() }
    }

    /// Another port has this place now, and owes nothing for the one before.
    pub(crate) fn renew(&mut self, now: Moment, place: PortIndex) {
        if let Some(rate) = self.rate {
            self.buckets[place.get()] = Bucket::new(rate, now);
        }
    }

    pub(crate) fn spend(&mut self, now: Moment, place: PortIndex) -> Result<(), DropReason> {
        let bucket = &mut self.buckets[place.get()];
        bucket.refill(now, Late::Nothing);
        if self.rate.is_none() || !bucket.has(1) {
            return Err(DropReason::QuestionRateExceeded);
        }
        bucket.spend(1);
        Ok(())
    }
}

/// The port that a question came from, and that is given the answer if it is still there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Origin {
    pub port: PortId,
    pub vni: Vni,
    pub mac: MacAddress,
    /// Absent of what is said without a question.
    incarnation: Option<u32>,
}

impl Origin {
    /// Of what a port is told of the switch's own accord.
    pub const fn unasked(port: PortId, vni: Vni, mac: MacAddress) -> Self {
        Self { port, vni, mac, incarnation: None }
    }

    /// Whether nobody asked.
    pub const fn is_unasked(&self) -> bool {
        self.incarnation.is_none()
    }
}

impl Switch {
    /// Where the answer to a packet with [`Verdict::Ask`] is to go.
    pub fn origin(&self, packet: &Packet) -> Option<Origin> {
        let index = packet.port();
        let port = self.snapshot.port(index)?;
        let incarnation = Some(self.incarnations[index.get()]);
        Some(Origin { port: port.id, vni: port.vni, mac: port.mac, incarnation })
    }

    /// Counts an answer of `length` bytes as sent, and says where it is to be delivered. `None`
    /// when whoever asked is not there any more, is another one, or could not take it.
    pub fn say(&mut self, origin: &Origin, length: u32) -> Option<PortIndex> {
        let index = self.snapshot.port_index(origin.port)?;
        let port = self.snapshot.port(index)?;
        let is_same = origin.incarnation.is_none_or(|it| it == self.incarnations[index.get()]);
        let is_right = is_same && port.vni == origin.vni && port.mac == origin.mac;
        if !is_right || length > port.frame_length_max {
            return None;
        }
        self.counters[index.get()].count_sent(length);
        Some(index)
    }

    /// Takes back what [`Self::say`] counted: the port did not take it.
    ///
    /// # Panics
    /// If the reason is not one of delivery: the driver's books are wrong.
    pub fn unsaid(&mut self, port: PortIndex, length: u32, reason: DropReason) {
        assert!(reason.is_of_delivery(), "{reason:?} is decided by the machine, not by a driver");
        self.counters[port.get()].count_undelivered(length, reason);
    }

    /// Takes back a [`Verdict::Ask`]: too many questions wait already.
    ///
    /// # Panics
    /// If the packet was no question: the driver's books are wrong.
    pub fn unasked(&mut self, packet: &Packet) {
        assert_eq!(packet.verdict(), Verdict::Ask, "only a question can fail to be asked");
        self.counters[packet.port().get()].count_unasked(DropReason::QuestionRateExceeded);
    }
}
