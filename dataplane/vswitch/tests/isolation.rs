// SPDX-License-Identifier: Apache-2.0
//! Nothing crosses that a slow model of rules and history does not let cross, and everything else
//! does: two VPCs with equal addresses, rules that come and go, and connections in every state.
//!
//! The model keeps one record per connection and asks the rules in the order in which they are
//! documented. It is exact, save for the moment at which an idle connection is forgotten: between
//! its time and one sweep of the table later, it takes the switch's word.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, GroupId, MacAddress, Moment, PortId};
use plinth_switch_api::{
    Direction, Priority, Rule, RulePeer, RuleProtocol, RuleVerdict, SecurityGroup, Subnet,
    SubnetPrefix, SwitchConfig, Vpc,
};
use plinth_vswitch::{DropReason, Limits, PortIndex};
use plinth_wire::{PROTOCOL_TCP, PROTOCOL_UDP, TcpHeader};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;
use support::frames::{self, Segment};
use support::generate::Random;
use support::*;

const ROUTER: MacAddress = MacAddress([2, 0xee, 0, 0, 0, 1]);
const SEGMENTS: [u32; 2] = [100, 200];
/// NICs 1 to 3 of each VPC are here, NIC 4 behind the near VTEP.
const HERE: u8 = 3;
const SERVICES: [u16; 3] = [53, 80, 443];
const CLIENTS: [u16; 3] = [1000, 1001, 1002];
const SYN: u8 = TcpHeader::SYN;
const ACK: u8 = TcpHeader::ACK;
/// The whole table is looked at once in this time.
const SWEEP: Duration = Duration::from_secs(40);

/// Two subnets, by the parity of the NIC's number.
fn address(nic: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, nic % 2, nic)
}

fn port_id(vpc: usize, nic: u8) -> u32 {
    u32::try_from(vpc * 10).unwrap() + u32::from(nic)
}

fn rule(random: &mut Random) -> Rule {
    let protocol = random.pick(&[RuleProtocol::Any, RuleProtocol::Tcp, RuleProtocol::Udp]);
    let ports = [None, Some((53, 80)), Some((80, 80)), Some((1, 1001)), Some((443, 443))];
    let prefixes = ["10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/16", "10.0.1.1/32"];
    Rule {
        direction: random.pick(&[Direction::Inbound, Direction::Outbound]),
        priority: random.pick(&[Priority::High, Priority::Mid, Priority::Low]),
        verdict: random.pick(&[RuleVerdict::Allow, RuleVerdict::Allow, RuleVerdict::Deny]),
        protocol,
        ports: if protocol == RuleProtocol::Any { None } else { random.pick(&ports) },
        icmp: None,
        peer: match random.below(4) {
            0 => RulePeer::Prefix(random.pick(&prefixes).parse().unwrap()),
            1 => RulePeer::Group(GroupId(u32::try_from(1 + random.below(3)).unwrap())),
            _ => RulePeer::Any,
        },
    }
}

fn groups(random: &mut Random) -> Vec<GroupId> {
    (1..=3).filter(|_| random.percent(45)).map(GroupId).collect()
}

fn config(random: &mut Random, epoch: u64) -> SwitchConfig {
    let mut config = two_vpcs();
    config.epoch = Epoch(epoch);
    (config.ports, config.remotes) = (Vec::new(), Vec::new());
    for (vpc, segment) in SEGMENTS.into_iter().enumerate() {
        for nic in 1..=HERE {
            let mut port = port(port_id(vpc, nic), segment, nic);
            port.addresses = vec![address(nic).into()];
            port.security_groups = random.percent(75).then(|| groups(random));
            config.ports.push(port);
        }
        let mut remote = remote(segment, HERE + 1, NEAR_VTEP);
        remote.addresses = vec![address(HERE + 1).into()];
        remote.security_groups = groups(random);
        config.remotes.push(remote);
        let prefix = |text: &str, gateway| SubnetPrefix { prefix: text.parse().unwrap(), gateway };
        let prefixes = vec![
            prefix("10.0.0.0/24", Ipv4Addr::new(10, 0, 0, 254).into()),
            prefix("10.0.1.0/24", Ipv4Addr::new(10, 0, 1, 254).into()),
        ];
        config.vpcs.push(Vpc {
            vni: vni(segment),
            name: format!("vpc-{vpc}").parse().unwrap(),
            router_mac: ROUTER,
            subnets: vec![Subnet { name: "all".parse().unwrap(), prefixes }],
            routes: Vec::new(),
        });
    }
    config.security_groups = (1..=3)
        .map(|id| SecurityGroup {
            id: GroupId(id),
            name: format!("group-{id}").parse().unwrap(),
            rules: (0..random.below(7)).map(|_| rule(random)).collect(),
        })
        .collect();
    config
}

/// A connection's first packet, or any packet: who to whom, of which ports.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Tuple {
    vpc: usize,
    protocol: u8,
    from: (u8, u16),
    to: (u8, u16),
}

impl Tuple {
    const fn reversed(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Began,
    Answered,
    Established,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    stage: Stage,
    used: Moment,
    epoch: u64,
}

/// What a packet is besides its tuple.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Datagram,
    /// With these flags.
    Segment(u8),
    FirstPiece(u16),
    LaterPiece(u16),
    /// From `from`, that the packet of the reversed tuple did not arrive.
    Error,
}

/// VPC, both NICs, number.
type PieceOf = (usize, u8, u8, u16);
/// Its ports, and when it came.
type FirstPiece = ((u16, u16), Moment);

#[derive(Clone)]
struct Model {
    config: Rc<SwitchConfig>,
    connections: BTreeMap<Tuple, Known>,
    pieces: BTreeMap<PieceOf, FirstPiece>,
}

/// What the model says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Says {
    Passes,
    Drops(DropReason),
}

impl Model {
    fn groups_at(&self, vpc: usize, nic: u8) -> Option<Vec<GroupId>> {
        let port = self.config.ports.iter().find(|port| port.id == PortId(port_id(vpc, nic)));
        port.and_then(|port| port.security_groups.clone())
    }

    fn groups_of_peer(&self, vpc: usize, nic: u8) -> Vec<GroupId> {
        if nic <= HERE {
            return self.groups_at(vpc, nic).unwrap_or_default();
        }
        self.config.remotes[vpc].security_groups.clone()
    }

    fn is_filtered(&self, tuple: Tuple) -> bool {
        [tuple.from.0, tuple.to.0].iter().any(|&nic| self.groups_at(tuple.vpc, nic).is_some())
    }

    /// The documented order, word by word: all rules of all groups in one list, the first that
    /// matches decides.
    fn allows(&self, tuple: Tuple, nic: u8, peer: u8, direction: Direction) -> bool {
        let Some(groups) = self.groups_at(tuple.vpc, nic) else { return true };
        let chosen = self.config.security_groups.iter().filter(|group| groups.contains(&group.id));
        let mut rules: Vec<&Rule> = chosen.flat_map(|group| &group.rules).collect();
        rules.sort_by_key(|rule| {
            let host_bits = match rule.peer {
                RulePeer::Any => 33,
                RulePeer::Prefix(prefix) => 32 - prefix.length(),
                RulePeer::Group(_) => 0,
            };
            let width = rule.ports.map_or(65_536, |(first, last)| u32::from(last - first) + 1);
            let host_bits = host_bits.min(32);
            (rule.priority, host_bits, width, rule.protocol == RuleProtocol::Any, rule.verdict)
        });
        let matches = |rule: &&&Rule| {
            rule.direction == direction
                && rule.protocol.number().is_none_or(|number| number == tuple.protocol)
                && rule.ports.is_none_or(|(first, last)| (first..=last).contains(&tuple.to.1))
                && match rule.peer {
                    RulePeer::Any => true,
                    RulePeer::Prefix(prefix) => prefix.contains(address(peer).into()),
                    RulePeer::Group(group) => self.groups_of_peer(tuple.vpc, peer).contains(&group),
                }
        };
        rules.iter().find(matches).is_some_and(|rule| rule.verdict == RuleVerdict::Allow)
    }

    fn permits(&self, tuple: Tuple) -> bool {
        let (from, to) = (tuple.from.0, tuple.to.0);
        (from > HERE || self.allows(tuple, from, to, Direction::Outbound))
            && (to > HERE || self.allows(tuple, to, from, Direction::Inbound))
    }

    fn timeout(tuple: Tuple, known: &Known) -> Duration {
        Duration::from_secs(match (tuple.protocol, known.stage) {
            (PROTOCOL_UDP, Stage::Began) => 30,
            (PROTOCOL_UDP, _) => 180,
            (_, Stage::Established) => 3600,
            _ => 20,
        })
    }

    /// The connection of a packet, its forward tuple, and whether it may be forgotten by now.
    fn find(&self, tuple: Tuple, now: Moment) -> Option<(Tuple, Known, bool)> {
        [tuple, tuple.reversed()].into_iter().find_map(|forward| {
            let known = *self.connections.get(&forward)?;
            let idle = now - known.used;
            let timeout = Self::timeout(forward, &known);
            (idle < timeout + SWEEP).then_some((forward, known, idle >= timeout))
        })
    }

    /// Forgets what the switch has forgotten.
    fn forget(&mut self, tuple: Tuple) {
        self.connections.remove(&tuple);
        self.connections.remove(&tuple.reversed());
    }

    fn judge(&mut self, tuple: Tuple, kind: Kind, now: Moment) -> Says {
        if !self.is_filtered(tuple) {
            let is_known =
                kind != Kind::Error && !matches!(kind, Kind::FirstPiece(_) | Kind::LaterPiece(_));
            if is_known {
                self.forget(tuple);
            }
            return Says::Passes;
        }
        match kind {
            Kind::Datagram => self.datagram(tuple, now, true),
            Kind::Segment(flags) => self.segment(tuple, flags, now),
            Kind::Error => self.error(tuple, now),
            Kind::FirstPiece(number) => {
                let says = self.datagram(tuple, now, true);
                if says == Says::Passes {
                    let ports = (tuple.from.1, tuple.to.1);
                    let key = (tuple.vpc, tuple.from.0, tuple.to.0, number);
                    self.pieces.insert(key, (ports, now));
                }
                says
            }
            Kind::LaterPiece(number) => {
                let key = (tuple.vpc, tuple.from.0, tuple.to.0, number);
                let found = self.pieces.get(&key).copied();
                let Some(((from, to), _)) =
                    found.filter(|(_, made)| now - *made < Duration::from_secs(30))
                else {
                    return Says::Drops(DropReason::FragmentUnmatched);
                };
                let (from, to) = ((tuple.from.0, from), (tuple.to.0, to));
                self.datagram(Tuple { from, to, ..tuple }, now, false)
            }
        }
    }

    /// Asks the rules again about a connection that was allowed by others.
    fn is_still_allowed(&mut self, forward: Tuple, known: &mut Known) -> bool {
        if known.epoch != self.config.epoch.0 && !self.permits(forward) {
            self.forget(forward);
            return false;
        }
        known.epoch = self.config.epoch.0;
        true
    }

    fn datagram(&mut self, tuple: Tuple, now: Moment, may_begin: bool) -> Says {
        if let Some((forward, mut known, _)) = self.find(tuple, now) {
            if !self.is_still_allowed(forward, &mut known) {
                return Says::Drops(DropReason::SecurityGroupDenied);
            }
            if forward != tuple {
                known.stage = Stage::Established;
            }
            self.connections.insert(forward, Known { used: now, ..known });
            return Says::Passes;
        }
        if !may_begin {
            return Says::Drops(DropReason::FragmentUnmatched);
        }
        self.begin(tuple, now)
    }

    fn begin(&mut self, tuple: Tuple, now: Moment) -> Says {
        self.forget(tuple);
        if !self.permits(tuple) {
            return Says::Drops(DropReason::SecurityGroupDenied);
        }
        let known = Known { stage: Stage::Began, used: now, epoch: self.config.epoch.0 };
        self.connections.insert(tuple, known);
        Says::Passes
    }

    fn segment(&mut self, tuple: Tuple, flags: u8, now: Moment) -> Says {
        let Some((forward, mut known, _)) = self.find(tuple, now) else {
            return if flags == SYN {
                self.begin(tuple, now)
            } else {
                Says::Drops(DropReason::TcpNoConnection)
            };
        };
        if !self.is_still_allowed(forward, &mut known) {
            return Says::Drops(DropReason::SecurityGroupDenied);
        }
        let is_forward = forward == tuple;
        let used = Known { used: now, ..known };
        let (known, says) = match (is_forward, flags, known.stage) {
            // Nobody has answered what this acknowledges. Its flow was in use all the same, unless
            // the stages had to look.
            (true, ACK, Stage::Began) => (known, Says::Drops(DropReason::TcpOutOfWindow)),
            (true, ACK, Stage::Answered) => {
                (Known { stage: Stage::Established, ..used }, Says::Passes)
            }
            (false, flags, Stage::Began) if flags == SYN | ACK => {
                (Known { stage: Stage::Answered, ..used }, Says::Passes)
            }
            _ => (used, Says::Passes),
        };
        self.connections.insert(forward, known);
        says
    }

    fn error(&mut self, tuple: Tuple, now: Moment) -> Says {
        let Some((forward, mut known, _)) = self.find(tuple, now) else {
            return Says::Drops(DropReason::IcmpUnrelated);
        };
        if !self.is_still_allowed(forward, &mut known) {
            return Says::Drops(DropReason::SecurityGroupDenied);
        }
        self.connections.insert(forward, known);
        Says::Passes
    }
}

/// A frame of NIC `tuple.from` for NIC `tuple.to`, by the router if `is_routed`.
fn frame(tuple: Tuple, kind: Kind, is_routed: bool) -> Vec<u8> {
    let destination = if is_routed { ROUTER } else { mac(tuple.to.0) };
    let macs = (mac(tuple.from.0), destination);
    let ends = (address(tuple.from.0), address(tuple.to.0));
    let ports = (tuple.from.1, tuple.to.1);
    let piece = |number: u16, place: [u8; 2], bytes: &[u8]| {
        let mut frame = frames::ipv4(macs, ends, PROTOCOL_UDP, bytes);
        frame[18..20].copy_from_slice(&number.to_be_bytes());
        frame[20..22].copy_from_slice(&place);
        with_sum(frame)
    };
    match kind {
        Kind::Datagram => frames::udp(macs, ends, ports, b"datagram"),
        Kind::Segment(flags) => {
            let is_back = flags & SYN != 0 && flags & ACK != 0 || SERVICES.contains(&tuple.from.1);
            let (sequence, acknowledgment) = if is_back { (500, 101) } else { (100, 501) };
            let sequence = sequence + u32::from(flags & SYN == 0);
            let segment = Segment { flags, sequence, acknowledgment, window: 1000, length: 0 };
            frames::tcp(macs, ends, ports, segment)
        }
        Kind::FirstPiece(number) => piece(number, [0x20, 0], &frames::datagram(ports, &[1; 24])),
        Kind::LaterPiece(number) => piece(number, [0, 4], &[2; 24]),
        Kind::Error => {
            let about = frames::udp(macs, (ends.1, ends.0), (ports.1, ports.0), b"lost");
            let mut about = about;
            about[23] = tuple.protocol;
            frames::unreachable(macs, ends, &about)
        }
    }
}

fn with_sum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let sum = plinth_wire::checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

struct World {
    rig: Rig,
    model: Model,
    random: Random,
    passed: u32,
    tally: BTreeMap<DropReason, u32>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let config = config(&mut random, 1);
        let limits = Limits { flows: 1 << 14, flows_per_port: 1 << 14, ports: 32, ..limits() };
        let mut rig = Rig::with_limits(&config, limits);
        rig.hear_next_hops();
        let config = Rc::new(config);
        let model = Model { config, connections: BTreeMap::new(), pieces: BTreeMap::new() };
        Self { rig, model, random, passed: 0, tally: BTreeMap::new() }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.rig.now + time;
        while self.rig.now < until {
            self.rig.now = until.min(self.rig.now + Duration::from_millis(500));
            if !self.rig.said().is_empty() {
                self.rig.hear_next_hops();
            }
        }
    }

    fn any_packet(&mut self) -> (Tuple, Kind, bool) {
        let random = &mut self.random;
        let nic = |random: &mut Random| u8::try_from(1 + random.below(4)).unwrap();
        let (mut from, mut to) = (nic(random), nic(random));
        // A remote does not send to another one through us.
        while from == to {
            (from, to) = (nic(random), nic(random));
        }
        let (client, service) = (random.pick(&CLIENTS), random.pick(&SERVICES));
        let is_tcp = random.percent(45);
        let is_back = random.percent(50);
        let ports = if is_back { (service, client) } else { (client, service) };
        let kind = match random.below(10) {
            0 => Kind::Error,
            _ if is_tcp && is_back => Kind::Segment(random.pick(&[SYN | ACK, ACK])),
            _ if is_tcp => Kind::Segment(random.pick(&[SYN, ACK])),
            1 => Kind::FirstPiece(u16::try_from(random.below(4)).unwrap()),
            2 => Kind::LaterPiece(u16::try_from(random.below(4)).unwrap()),
            _ => Kind::Datagram,
        };
        let protocol = if is_tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        let vpc = random.below(2);
        let tuple = Tuple { vpc, protocol, from: (from, ports.0), to: (to, ports.1) };
        (tuple, kind, random.percent(50))
    }

    fn step(&mut self) {
        let (tuple, kind, is_routed) = self.any_packet();
        let frame = frame(tuple, kind, is_routed && tuple.from.0 <= HERE);
        let segment = vni(SEGMENTS[tuple.vpc]);
        let made = self.rig.switch.flow_counters().made;
        let outcome = if tuple.from.0 > HERE {
            let ends = (NEAR_VTEP, OUR_VTEP);
            let outer = frames::vxlan((NEAR_MAC, OUR_MAC), ends, segment, &frame);
            self.rig.once(PortIndex::UPLINK, outer)
        } else {
            let port = self.rig.index(port_id(tuple.vpc, tuple.from.0));
            self.rig.once(port, frame.clone())
        };
        let is_new = self.rig.switch.flow_counters().made > made;
        let says = self.model_says(tuple, kind, (&outcome, is_new));
        match (&outcome, says) {
            (Outcome::Sent { port, frame: sent, .. }, Says::Passes) => {
                self.passed += 1;
                self.check_arrival(tuple, (*port, sent), &frame, is_routed);
            }
            (Outcome::Dropped(found), Says::Drops(reason)) if *found == reason => {
                *self.tally.entry(reason).or_default() += 1;
            }
            _ => panic!("{tuple:?} {kind:?}: {outcome:?}, the model says {says:?}"),
        }
    }

    /// The tuple by which a packet's connection is found.
    fn carrier(&self, tuple: Tuple, kind: Kind) -> Tuple {
        let Kind::LaterPiece(number) = kind else { return tuple };
        let key = (tuple.vpc, tuple.from.0, tuple.to.0, number);
        let Some(((from, to), _)) = self.model.pieces.get(&key) else { return tuple };
        Tuple { from: (tuple.from.0, *from), to: (tuple.to.0, *to), ..tuple }
    }

    /// Where only the time of a sweep tells whether a connection was forgotten, both are right,
    /// and what the switch did tells which it was.
    fn model_says(
        &mut self,
        tuple: Tuple,
        kind: Kind,
        (outcome, is_new): (&Outcome, bool),
    ) -> Says {
        let now = self.rig.now;
        let carrier = self.carrier(tuple, kind);
        let is_in_doubt = self.model.find(carrier, now).is_some_and(|(.., doubt)| doubt);
        let mut forgotten = self.model.clone();
        let says = self.model.judge(tuple, kind, now);
        if !is_in_doubt || !self.model.is_filtered(tuple) {
            return says;
        }
        forgotten.forget(carrier);
        let otherwise = forgotten.judge(tuple, kind, now);
        let is_right = match outcome {
            Outcome::Sent { .. } => says == Says::Passes,
            Outcome::Dropped(reason) => says == Says::Drops(*reason),
            Outcome::Absorbed | Outcome::Asked => false,
        };
        if is_right && !is_new {
            return says;
        }
        self.model = forgotten;
        otherwise
    }

    fn check_arrival(
        &self,
        tuple: Tuple,
        (port, sent): (PortIndex, &[u8]),
        frame: &[u8],
        is_routed: bool,
    ) {
        let segment = vni(SEGMENTS[tuple.vpc]);
        let arrived = if tuple.to.0 > HERE {
            assert_eq!(port, PortIndex::UPLINK);
            frames::unwrap(sent, (OUR_MAC, NEAR_MAC), (OUR_VTEP, NEAR_VTEP), segment)
        } else {
            assert_eq!(port, self.rig.index(port_id(tuple.vpc, tuple.to.0)), "{tuple:?}");
            sent.to_vec()
        };
        let mut expected = frame.to_vec();
        if is_routed && tuple.from.0 <= HERE {
            expected[..6].copy_from_slice(&mac(tuple.to.0).0);
            expected[6..12].copy_from_slice(&ROUTER.0);
            expected[22] -= 1;
            expected = with_sum(expected);
        }
        assert_eq!(arrived, expected);
    }
}

#[test]
fn nothing_crosses_that_the_model_does_not_let_cross() {
    let packets = 400_000;
    let (mut passed, mut tally) = (0, BTreeMap::new());
    for seed in 0..40 {
        let mut world = World::new(0x1507 + seed);
        for number in 0..packets / 40 {
            world.step();
            if number % 70 == 0 {
                let epoch = world.model.config.epoch.0 + 1;
                let config = config(&mut world.random, epoch);
                world.rig.switch.apply(world.rig.now, &config).unwrap();
                world.model.config = Rc::new(config);
            }
            if number % 10 == 0 {
                let pause = world.random.pick(&[10, 200, 1000]);
                world.pass(Duration::from_millis(pause));
            }
        }
        passed += world.passed;
        for (reason, count) in world.tally {
            *tally.entry(reason).or_insert(0) += count;
        }
    }
    println!("{packets} packets: {passed} passed, {tally:?}");
    assert!(passed > packets / 5, "{passed} passed, {tally:?}");
    for reason in [
        DropReason::SecurityGroupDenied,
        DropReason::TcpNoConnection,
        DropReason::TcpOutOfWindow,
        DropReason::FragmentUnmatched,
        DropReason::IcmpUnrelated,
    ] {
        assert!(tally.get(&reason).is_some_and(|&count| count > 100), "{reason:?}: {tally:?}");
    }
}
