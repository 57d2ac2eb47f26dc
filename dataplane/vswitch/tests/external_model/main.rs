// SPDX-License-Identifier: Apache-2.0
//! The outside against a slow model: random packets of guests and of strangers, TCP in every
//! state, guests that meet by their outsides, errors about flows that are and that never were,
//! pieces without a first one, and configurations that come and go. The model is a list of flows
//! and a configuration; every byte that comes out is built anew and compared, and what the model
//! does not let pass must not pass.
//!
//! `VSWITCH_MODEL_SEED` and `VSWITCH_MODEL_PACKETS` repeat a run and make it longer.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod hairpin;
#[path = "../support/mod.rs"]
mod support;
mod tcp;

use hairpin::Turn;
use plinth_ids::{Moment, PortId, Vni};
use plinth_switch_api::{
    AddressLimits, Binding, ExternalAddress, Forward, ForwardProtocol, PortMapping, SwitchConfig,
};
use plinth_vswitch::Limits;
use plinth_wire::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;
use support::follow::Follow;
use support::generate::Random;
use support::outside::*;
use support::*;

/// A conversation, as it is inside and on the line. Of pings, the ports are identifiers.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Flow {
    protocol: u8,
    /// The NIC's number, and the address that its guest uses.
    nic: u8,
    inside: (Ipv4Addr, u16),
    outside: (Ipv4Addr, u16),
    remote: (Ipv4Addr, u16),
    /// Begun from the line.
    is_inward: bool,
}

const NICS: [u8; 3] = [1, 2, 5];
const PORTS: [u16; 4] = [80, 83, 1000, 5000];
const REMOTES: [Ipv4Addr; 2] = [WEB, Ipv4Addr::new(203, 0, 113, 7)];
const REMOTE_PORTS: [u16; 2] = [53, 4000];
const OURS: [Ipv4Addr; 4] = [EIP, SHARED, CARRIED, Ipv4Addr::new(198, 51, 100, 30)];

/// An address and a port.
type End = (Ipv4Addr, u16);

struct Race {
    story: Story,
    flows: Vec<Flow>,
    /// Of TCP, what its ends have said.
    streams: BTreeMap<Flow, Follow>,
    /// Between two NICs, by their outsides.
    turns: Vec<Turn>,
    turn_streams: BTreeMap<Turn, Follow>,
    is_grace: bool,
    /// Of a gateway whose ports are mapped: the end outside of an end inside.
    ends: BTreeMap<(u8, u8, End), End>,
    mapping: PortMapping,
    random: Random,
    passed: u64,
    refused: u64,
    /// Of those that were refused: segments that their connections did not have to expect.
    cut: u64,
    /// Of those that passed: from a guest to a guest.
    met: u64,
}

impl Race {
    fn new(seed: u64, mapping: PortMapping) -> Self {
        let mut config = outside();
        config.external.gateways[0].mapping = mapping;
        let limits = Limits { flows: 1 << 14, flows_per_port: 1 << 14, ..limits() };
        let mut story = Story { rig: Rig::with_limits(&config, limits), config };
        story.hear_next_hop();
        Self {
            story,
            flows: Vec::new(),
            streams: BTreeMap::new(),
            turns: Vec::new(),
            turn_streams: BTreeMap::new(),
            is_grace: false,
            ends: BTreeMap::new(),
            mapping,
            random: Random(seed),
            passed: 0,
            refused: 0,
            cut: 0,
            met: 0,
        }
    }

    fn config(&self) -> &SwitchConfig {
        &self.story.config
    }

    /// The NIC that has an external address to itself.
    fn bound(&self, address: Ipv4Addr) -> Option<(u8, Binding)> {
        let given = self.config().external.addresses.iter().find(|one| one.address == address)?;
        Some((given.nic.octets()[3], given.binding))
    }

    /// As whom a guest's packet leaves, and between which ports; `None`: it may not.
    fn leaves_as(&self, nic: u8, source: Ipv4Addr) -> Option<(Ipv4Addr, Option<(u16, u16)>)> {
        if source == CARRIED {
            let may = self.bound(CARRIED) == Some((nic, Binding::Carried));
            return may.then_some((CARRIED, None));
        }
        let external = &self.config().external;
        let own = external.addresses.iter().find(|one| one.nic.octets()[3] == nic);
        if let Some(own) = own.filter(|own| own.binding == Binding::Translated) {
            return Some((own.address, None));
        }
        external.gateways.first()?;
        let seats = self.story.rig.switch.snapshot().handed_seats();
        let seat = seats.iter().find(|seat| seat.port == PortId(nic.into()))?.seat;
        let ports = external.gateways[0].ports_per_nic;
        let first = 1024 + u16::try_from(seat).unwrap() * ports;
        Some((SHARED, Some((first, first + ports - 1))))
    }

    /// Where a packet of the line goes that is of no flow, with its address and port there.
    fn leads_to(&self, flow: (u8, Ipv4Addr, u16)) -> Option<(u8, Ipv4Addr, u16)> {
        let (protocol, address, port) = flow;
        if let Some((nic, binding)) = self.bound(address) {
            let inside = if binding == Binding::Carried { address } else { v4(nic) };
            return Some((nic, inside, port));
        }
        let forwards = self.config().external.gateways.iter().flat_map(|one| &one.forwards);
        let mut fitting = forwards.filter(|one| {
            let forwarded = match one.protocol {
                ForwardProtocol::Tcp => PROTOCOL_TCP,
                ForwardProtocol::Udp => PROTOCOL_UDP,
            };
            let is_in = (one.ports.0..=one.ports.1).contains(&port);
            one.address == address && forwarded == protocol && is_in
        });
        let Some(forward) = fitting.next() else {
            let mapped = self.maps_to(protocol, (address, port));
            return mapped.filter(|_| self.mapping == PortMapping::Open);
        };
        let nic = forward.nic.octets()[3];
        Some((nic, forward.nic, forward.nic_port + (port - forward.ports.0)))
    }

    /// The end inside for which a port of the gateway stands.
    fn maps_to(&self, protocol: u8, end: End) -> Option<(u8, Ipv4Addr, u16)> {
        let mut all =
            self.ends.iter().filter(|(inside, outside)| inside.0 == protocol && **outside == end);
        let (&(_, nic, inside), _) = all.next()?;
        assert!(all.next().is_none(), "{end:?} stands for two");
        let (address, block) = self.leaves_as(nic, inside.0)?;
        let (first, last) = block?;
        let is_its = address == end.0 && (first..=last).contains(&end.1);
        is_its.then_some((nic, inside.0, inside.1))
    }

    /// An end inside stands for itself outside under one port, if the gateway maps ports.
    fn map(&mut self, (protocol, nic, inside): (u8, u8, End), outside: End, has_block: bool) {
        let is_mapped = self.mapping != PortMapping::PerConnection && protocol != PROTOCOL_ICMP;
        if !is_mapped || !has_block {
            return;
        }
        let key = (protocol, nic, inside);
        // A port that is not the NIC's any more stands for nothing.
        let before = self.ends.get(&key).copied();
        let before = before.filter(|&end| self.maps_to(protocol, end).is_some());
        assert!(before.is_none_or(|end| end == outside), "{inside:?} had {before:?} before");
        self.ends.insert(key, outside);
        assert!(self.maps_to(protocol, outside).is_some());
    }

    /// Takes a packet for a carried address, if somebody carries it: the guest is not filtered, so
    /// what is whole arrives as it is, whatever was before.
    fn arrives(&mut self, address: Ipv4Addr, coming: &Ip, outcome: &Outcome) -> bool {
        if address != CARRIED || self.bound(CARRIED).is_none() {
            return false;
        }
        let place = self.story.rig.index(5);
        assert_eq!(outcome.clone().sent(), coming.arrived(place, 5));
        self.passed += 1;
        true
    }

    /// Whether the node answers for an address; what is for others is nobody's packet here.
    fn is_ours(&self, address: Ipv4Addr) -> bool {
        let shared = self.config().external.gateways.iter().flat_map(|one| &one.addresses);
        self.bound(address).is_some() || shared.into_iter().any(|one| *one == address)
    }

    /// Whether a flow that was begun under some configuration may go on under this one.
    fn holds(&self, flow: &Flow) -> bool {
        if flow.is_inward {
            let led = self.leads_to((flow.protocol, flow.outside.0, flow.outside.1));
            return led == Some((flow.nic, flow.inside.0, flow.inside.1));
        }
        match self.leaves_as(flow.nic, flow.inside.0) {
            Some((address, block)) => {
                let is_in = |(first, last)| (first..=last).contains(&flow.outside.1);
                address == flow.outside.0 && block.is_none_or(is_in)
            }
            None => false,
        }
    }

    /// The flow of a packet, if it may go on; one that may not ends with this packet.
    fn standing(&mut self, is_its: impl Fn(&Flow) -> bool) -> Option<Flow> {
        let place = self.flows.iter().position(is_its)?;
        let flow = self.flows[place];
        if self.holds(&flow) {
            return Some(flow);
        }
        self.flows.swap_remove(place);
        None
    }

    fn packet(flow: (u8, (Ipv4Addr, u16), (Ipv4Addr, u16)), is_answer: bool) -> Ip {
        let (protocol, from, to) = flow;
        if protocol == PROTOCOL_ICMP {
            let kind = if is_answer { 0 } else { 8 };
            return Ip::icmp((from.0, to.0), kind, from.1, b"payload");
        }
        if protocol == PROTOCOL_TCP {
            return Ip::tcp((from.0, to.0), (from.1, to.1), ACK, (7, 9));
        }
        Ip::udp((from.0, to.0), (from.1, to.1), b"payload")
    }

    fn refuse(&mut self, outcome: &Outcome, what: &str) {
        assert!(matches!(outcome, Outcome::Dropped(_)), "{what} came through: {outcome:?}");
        self.refused += 1;
    }

    /// A flow begins. Another one whose packets look the same, on the line or inside, ends.
    fn begin(&mut self, flow: Flow) {
        self.flows.retain(|other| {
            let is_ping = flow.protocol == PROTOCOL_ICMP;
            let is_remote =
                other.remote.0 == flow.remote.0 && (is_ping || other.remote.1 == flow.remote.1);
            // Questions and answers of pings are never mistaken for each other.
            let is_alike = is_remote
                && other.protocol == flow.protocol
                && !(is_ping && other.is_inward != flow.is_inward);
            let is_same = (other.nic, other.inside) == (flow.nic, flow.inside)
                || other.outside == flow.outside;
            !(is_alike && is_same)
        });
        self.flows.push(flow);
    }

    /// Whether answers from somebody to a mapped end are still those to whoever had its port before.
    fn is_line_taken(&self, inside: (u8, u8, End), remote: End) -> bool {
        let end = self.ends.get(&inside).copied();
        let Some(end) = end.filter(|&end| self.maps_to(inside.0, end).is_some()) else {
            return false;
        };
        let is_one =
            |flow: &Flow| (flow.protocol, flow.outside, flow.remote) == (inside.0, end, remote);
        self.flows.iter().any(is_one)
    }

    /// A flow of a guest has left as it says, which it must have had the right to.
    fn begin_outward(&mut self, flow: Flow, block: Option<(u16, u16)>) {
        let Flow { protocol, nic, inside, outside, remote, .. } = flow;
        let (address, port) = outside;
        let own = block.map_or(port == inside.1, |(first, last)| (first..=last).contains(&port));
        assert!(own, "NIC {nic} left by port {port} of {address}, which is not its own");
        let twin = self.flows.iter().find(|other| {
            other.protocol == protocol
                && other.outside == outside
                && other.remote.0 == remote.0
                && (other.remote.1 == remote.1 || protocol == PROTOCOL_ICMP)
                && self.holds(other)
        });
        assert!(twin.is_none(), "{flow:?} is on the line as {twin:?} is");
        self.map((protocol, nic, inside), outside, block.is_some());
        if inside.0 != CARRIED {
            self.begin(flow);
        }
    }

    /// A guest speaks to somebody outside.
    fn speak(&mut self) {
        let nic = self.random.pick(&NICS);
        let protocol = self.random.pick(&[PROTOCOL_UDP, PROTOCOL_UDP, PROTOCOL_ICMP]);
        let source = if self.random.below(4) == 0 { CARRIED } else { v4(nic) };
        let inside = (source, self.random.pick(&PORTS));
        let remote = (self.random.pick(&REMOTES), self.random.pick(&REMOTE_PORTS));
        let known = self.standing(|flow| {
            let is_remote = flow.remote.0 == remote.0
                && (flow.remote.1 == remote.1 || protocol == PROTOCOL_ICMP);
            (flow.protocol, flow.nic, flow.inside) == (protocol, nic, inside)
                && is_remote
                && (protocol == PROTOCOL_UDP || !flow.is_inward)
        });
        let going = Self::packet((protocol, inside, remote), false);
        let outcome = self.story.out(nic, &going);
        let may = source != CARRIED || nic == 5;
        let Some((address, block)) = self.leaves_as(nic, source).filter(|_| may) else {
            return self.refuse(&outcome, "a packet of nobody outside");
        };
        if known.is_none() && self.is_line_taken((protocol, nic, inside), remote) {
            return self.refuse(&outcome, "a packet whose answers are another's");
        }
        let (_, frame) = outcome.sent();
        let port = match known {
            Some(flow) => flow.outside.1,
            None => source_port(&frame),
        };
        let outside = (known.map_or(address, |flow| flow.outside.0), port);
        if known.is_none() {
            let flow = Flow { protocol, nic, inside, outside, remote, is_inward: false };
            self.begin_outward(flow, block);
        }
        let expected = Self::packet((protocol, outside, remote), false);
        assert_eq!((UPLINK, frame), expected.left());
        self.passed += 1;
    }

    /// Somebody outside speaks to one of our addresses: an answer, or what nobody asked for.
    fn hear(&mut self) {
        let flow = match self.flows.len() {
            0 => None,
            count => Some(self.flows[self.random.below(count)]),
        };
        let flow = flow.filter(|flow| flow.protocol != PROTOCOL_TCP);
        let (protocol, outside, remote, is_answer) = match self.random.below(4) {
            1 if !self.ends.is_empty() => {
                let nth = self.random.below(self.ends.len());
                let end = self.ends.values().nth(nth).copied().unwrap();
                let remote = (self.random.pick(&REMOTES), self.random.pick(&REMOTE_PORTS));
                (PROTOCOL_UDP, end, remote, false)
            }
            0 if let Some(flow) = flow => {
                (flow.protocol, flow.outside, flow.remote, !flow.is_inward)
            }
            _ => {
                let any = u16::try_from(1024 + self.random.below(300)).unwrap();
                let port = self.random.pick(&[80, 8000, 8003, 8009, 8010, 1024, 1100, 1152]);
                let end = (self.random.pick(&OURS), port);
                let end = self.random.pick(&[(SHARED, any), end]);
                let remote = (self.random.pick(&REMOTES), self.random.pick(&REMOTE_PORTS));
                (PROTOCOL_UDP, end, remote, false)
            }
        };
        let coming = if protocol == PROTOCOL_ICMP {
            Self::packet((protocol, (remote.0, outside.1), outside), is_answer)
        } else {
            Self::packet((protocol, remote, outside), is_answer)
        };
        let is_ours = self.is_ours(outside.0);
        let known = self.standing(|flow| {
            let is_remote = flow.remote.0 == remote.0
                && (flow.remote.1 == remote.1 || protocol == PROTOCOL_ICMP);
            is_ours && flow.protocol == protocol && flow.outside == outside && is_remote
        });
        let outcome = self.story.back(&coming);
        if self.arrives(outside.0, &coming, &outcome) {
            return;
        }
        let led = self.leads_to((protocol, outside.0, outside.1));
        let is_new = known.is_none() && !(protocol == PROTOCOL_ICMP && is_answer);
        let to = known.map(|flow| (flow.nic, flow.inside.0, flow.inside.1));
        let Some((nic, address, port)) = to.or(led.filter(|_| is_new)) else {
            return self.refuse(&outcome, "a stranger's packet");
        };
        if known.is_none() {
            let inside = (address, port);
            self.begin(Flow { protocol, nic, inside, outside, remote, is_inward: true });
        }
        let from = if protocol == PROTOCOL_ICMP { (remote.0, port) } else { remote };
        let place = self.story.rig.index(nic.into());
        let expected = Self::packet((protocol, from, (address, port)), is_answer);
        assert_eq!(outcome.sent(), expected.arrived(place, nic));
        self.passed += 1;
    }

    /// A router outside says that a packet of ours did not arrive; it may be lying.
    fn complain(&mut self) {
        let router = Ipv4Addr::new(203, 0, 113, 254);
        let is_true = self.random.below(2) == 0 && !self.flows.is_empty();
        let mut flow = Flow {
            protocol: PROTOCOL_UDP,
            nic: 2,
            inside: (v4(2), 0),
            outside: (self.random.pick(&OURS), self.random.pick(&[1, 1100, 8001])),
            remote: (REMOTES[0], 9),
            is_inward: false,
        };
        if is_true {
            flow = self.flows[self.random.below(self.flows.len())];
        }
        // An answer to a ping that came in is quoted as such: left out here.
        if flow.protocol == PROTOCOL_ICMP && flow.is_inward {
            return;
        }
        let quoted = self.random.pick(&[28, 60]);
        let sent = Self::packet((flow.protocol, flow.outside, flow.remote), false);
        let error = Ip::error((router, flow.outside.0), &sent, quoted);
        let is_heard = is_true && self.is_ours(flow.outside.0);
        let known = self.standing(|other| is_heard && *other == flow);
        let outcome = self.story.back(&error);
        if self.arrives(flow.outside.0, &error, &outcome) {
            return;
        }
        let Some(flow) = known else { return self.refuse(&outcome, "an error about nothing") };
        let place = self.story.rig.index(flow.nic.into());
        let sent = Self::packet((flow.protocol, flow.inside, flow.remote), false);
        let expected = Ip::error((router, flow.inside.0), &sent, quoted);
        assert_eq!(outcome.sent(), expected.arrived(place, flow.nic));
        self.passed += 1;
    }

    /// Pieces that follow nothing, guests of a VPC without an outside, and spoofed sources.
    fn attack(&mut self) {
        let number = u16::try_from(self.random.below(1 << 16)).unwrap();
        let start = self.random.pick(&[8, 64, 1400]);
        let address = self.random.pick(&OURS);
        let mut piece = Ip::udp((WEB, address), (53, 1100), &[7; 64]);
        piece.piece = (number, start, self.random.below(2) == 0);
        let outcome = self.story.back(&piece);
        self.refuse(&outcome, "a piece of nothing");
        // Ports 3 and 4 are NICs 1 and 2 of VPC 200.
        let (port, number) = self.random.pick(&[(3, 1), (4, 2)]);
        let to = self.random.pick(&[WEB, EIP, SHARED, CARRIED]);
        let foreign = Ip::udp((v4(number), to), (1000, 8000), b"payload");
        let place = self.story.rig.index(port);
        let outcome = self.story.rig.send(place, foreign.frame((mac(number), ROUTER), 64));
        self.refuse(&outcome, "a packet of a VPC without an outside");
        let spoofed = Ip::udp((self.random.pick(&[EIP, SHARED, v4(2)]), WEB), (1000, 53), b"x");
        let outcome = self.story.out(1, &spoofed);
        self.refuse(&outcome, "a source that is not the NIC's");
    }

    fn reconfigure(&mut self) {
        let bound = |address, nic, binding| ExternalAddress {
            address,
            line: "line".parse().unwrap(),
            vni: Vni::new(100).unwrap(),
            nic: v4(nic),
            binding,
            limits: AddressLimits::default(),
        };
        let mut addresses = Vec::new();
        if self.random.below(4) > 0 {
            addresses.push(bound(EIP, self.random.pick(&[1, 2]), Binding::Translated));
        }
        if self.random.below(4) > 0 {
            addresses.push(bound(CARRIED, 5, Binding::Carried));
        }
        let (has_gateway, first) = (self.random.below(4) > 0, self.random.pick(&[8000, 8003]));
        let mut gateways = outside().external.gateways;
        gateways[0].forwards[0].ports = (first, 8009);
        let streams = Forward {
            protocol: ForwardProtocol::Tcp,
            ports: (8000, self.random.pick(&[8003, 8009])),
            nic: v4(self.random.pick(&[2, 5])),
            nic_port: self.random.pick(&[80, 1000]),
            ..gateways[0].forwards[0].clone()
        };
        gateways[0].forwards[0].protocol = ForwardProtocol::Udp;
        gateways[0].forwards.push(streams);
        gateways[0].mapping = self.mapping;
        gateways[0].ports_per_nic = self.random.pick(&[64, 64, 96]);
        gateways.truncate(has_gateway.into());
        self.story.apply(|config| {
            config.external.addresses = addresses;
            config.external.gateways = gateways;
        });
        self.is_grace = self.random.percent(20);
        let until = if self.is_grace { Duration::MAX } else { Moment::ZERO };
        self.story.rig.switch.begin_grace(until);
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    let found = std::env::vars().find(|(key, _)| key == name);
    found.map_or(default, |(_, text)| text.parse().unwrap())
}

fn race(mapping: PortMapping) {
    let seed = from_environment("VSWITCH_MODEL_SEED", 20_261_123);
    let packets = from_environment("VSWITCH_MODEL_PACKETS", 500_000);
    println!("VSWITCH_MODEL_SEED={seed} VSWITCH_MODEL_PACKETS={packets}");
    let mut race = Race::new(seed, mapping);
    for number in 0..packets {
        if number % 100 == 99 {
            race.reconfigure();
        }
        match race.random.below(16) {
            0..=2 => race.speak(),
            3..=4 => race.speak_tcp(),
            5..=7 => race.hear(),
            8..=9 => race.hear_tcp(),
            10..=12 => race.turn(),
            13 => race.complain(),
            _ => race.attack(),
        }
    }
    println!("{packets} packets: {} passed, {} were refused", race.passed, race.refused);
    println!("{} ended in the middle of TCP, {} met by their outsides", race.cut, race.met);
    assert!(race.cut > packets / 100 && race.met > packets / 100, "one of them is not tried");
    assert!(race.passed > packets / 5 && race.refused > packets / 5, "one of them is not tried");
}

#[test]
fn nothing_passes_between_a_vpc_and_the_outside_but_what_the_model_lets_pass() {
    race(PortMapping::PerConnection);
}

#[test]
fn nor_where_ports_stand_for_ends_inside() {
    race(PortMapping::Independent);
}

#[test]
fn nor_where_these_are_open_to_all() {
    race(PortMapping::Open);
}
