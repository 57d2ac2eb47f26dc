// SPDX-License-Identifier: Apache-2.0
//! Stories of connections to a balancer's address. Every frame is sent twice, by the stages and by
//! its entry, and compared with one that was built anew, with its sums taken over all bytes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, GroupId, MacAddress, Prefix};
use plinth_switch_api::{
    Backend, BackendState, Balancer, Direction, ForwardProtocol, Line, Listener, NextHop, Priority,
    Route, Rule, RulePeer, RuleProtocol, RuleVerdict, Scheduler, SecurityGroup, Subnet,
    SubnetPrefix, SwitchConfig, Vpc,
};
use plinth_vswitch::{BalancerError, BalancerLimits, ConfigError, DropReason, Limits, PortIndex};
use plinth_wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, Ipv4Header, Ipv6Header, PROTOCOL_TCP,
    PROTOCOL_UDP, TcpHeader, checksum, pseudo_header_ipv4, pseudo_header_ipv6,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use support::frames::{self, Macs};
use support::generate::Random;
use support::*;

const UPLINK: PortIndex = PortIndex::UPLINK;
const ROUTER: MacAddress = MacAddress([2, 0xee, 0, 0, 0, 1]);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const VIP6: &str = "fd00::100";
const OUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const WEB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
const SYN: u8 = TcpHeader::SYN;
const ACK: u8 = TcpHeader::ACK;
const RST: u8 = TcpHeader::RST;

fn vip6() -> IpAddr {
    VIP6.parse().unwrap()
}

fn backend(number: u8, port: u16) -> Backend {
    Backend { address: v4(number).into(), port, weight: 10, state: BackendState::Active }
}

fn listener(scheduler: Scheduler, backends: Vec<Backend>) -> Listener {
    Listener {
        protocol: ForwardProtocol::Tcp,
        ports: (80, 89),
        scheduler,
        stickiness: None,
        check: None,
        backends,
    }
}

fn balancer(name: &str, address: IpAddr, listener: Listener) -> Balancer {
    Balancer {
        name: name.parse().unwrap(),
        vni: vni(100),
        address,
        line: None,
        listeners: vec![listener],
    }
}

/// VPC 100: NICs 1, 2, 5, 6 here and 3 and 4 elsewhere; NIC 1 is the client. VPC 200 has the same
/// addresses, and no balancer.
fn served(scheduler: Scheduler, backends: Vec<Backend>) -> SwitchConfig {
    let mut config = two_vpcs();
    config.ports.push(port(5, 100, 5));
    config.ports.push(port(6, 100, 6));
    let vpc = |segment: u32| Vpc {
        vni: vni(segment),
        name: format!("vpc-{segment}").parse().unwrap(),
        router_mac: ROUTER,
        subnets: vec![Subnet {
            name: "only".parse().unwrap(),
            prefixes: vec![
                SubnetPrefix {
                    prefix: "10.0.0.0/16".parse().unwrap(),
                    gateway: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 254)),
                },
                SubnetPrefix {
                    prefix: "fd00::/64".parse().unwrap(),
                    gateway: "fd00::ffff".parse().unwrap(),
                },
            ],
        }],
        routes: vec![Route {
            destination: "0.0.0.0/0".parse().unwrap(),
            next_hop: NextHop::External,
        }],
    };
    config.vpcs = vec![vpc(100), vpc(200)];
    config.balancers = vec![balancer("web", VIP.into(), listener(scheduler, backends))];
    config
}

struct Story {
    rig: Rig,
    config: SwitchConfig,
}

impl Story {
    fn new(config: SwitchConfig) -> Self {
        let mut story = Self { rig: Rig::new(&config), config };
        story.rig.hear_next_hops();
        story
    }

    fn of(scheduler: Scheduler, numbers: &[u8]) -> Self {
        let backends = numbers.iter().map(|&number| backend(number, 8080)).collect();
        Self::new(served(scheduler, backends))
    }

    fn apply(&mut self, change: impl FnOnce(&mut SwitchConfig)) {
        self.config.epoch = Epoch(self.config.epoch.0 + 1);
        change(&mut self.config);
        self.rig.switch.apply(self.rig.now, &self.config).unwrap();
    }

    fn state(&mut self, number: u8, state: BackendState) {
        self.apply(|config| {
            let mut all = config.balancers[0].listeners[0].backends.iter_mut();
            all.find(|given| given.address == v4(number)).unwrap().state = state;
        });
    }

    /// From a NIC to its router, twice.
    fn out(&mut self, number: u8, packet: &Ip) -> Outcome {
        let place = self.rig.index(number.into());
        self.rig.send(place, packet.frame((mac(number), ROUTER), 64))
    }

    /// From a NIC here to NIC 1, which is on its segment.
    fn answer(&mut self, number: u8, packet: &Ip) -> Outcome {
        let place = self.rig.index(number.into());
        self.rig.send(place, packet.frame((mac(number), mac(1)), 64))
    }

    /// The backend to which a client's new connection goes from a port.
    fn backend_of(&mut self, port: u16) -> u8 {
        let syn = Ip::tcp((v4(1).into(), VIP.into()), (port, 80), SYN, (1, 0));
        let place = self.rig.index(1);
        let frame = syn.frame((mac(1), ROUTER), 64);
        let (to, frame) = self.rig.once(place, frame).sent();
        let frame = if to == UPLINK { frame[50..].to_vec() } else { frame };
        assert_eq!(frame[30..33], [10, 0, 0], "a backend of the VPC");
        frame[33]
    }

    /// Puts a backend in a state: one that was listed and is to be down is taken out.
    fn set(&mut self, number: u8, state: BackendState) {
        self.apply(|config| {
            let all = &mut config.balancers[0].listeners[0].backends;
            all.retain(|given| given.address != v4(number) || state != BackendState::Down);
            match all.iter_mut().find(|given| given.address == v4(number)) {
                Some(given) => given.state = state,
                None => all.push(Backend { state, ..backend(number, 8080) }),
            }
        });
    }

    /// A backend, here or NIC 3 elsewhere, accepts the client's connection from a port.
    fn accept(&mut self, number: u8, port: u16) {
        let ends = (v4(number).into(), v4(1).into());
        let answer = Ip::tcp(ends, (8080, port), SYN | ACK, (500, 2));
        let place = self.rig.index(1);
        let (to, frame) = if number == 3 {
            let inner = answer.frame((ROUTER, mac(1)), 63);
            let macs = (NEAR_MAC, OUR_MAC);
            let outer = frames::vxlan(macs, (NEAR_VTEP, OUR_VTEP), vni(100), &inner);
            self.rig.once(UPLINK, outer).sent()
        } else {
            self.answer(number, &answer).sent()
        };
        assert_eq!((to, &frame[26..30]), (place, &VIP.octets()[..]));
    }

    fn connections(&self) -> BTreeMap<IpAddr, u32> {
        let (snapshot, counts) = (self.rig.switch.snapshot(), self.rig.switch.backend_counts());
        let balancers = snapshot.settings().unwrap().balancers.iter();
        let all = balancers.flat_map(|balancer| snapshot.backends(&balancer.name, counts));
        all.map(|status| (status.backend, status.connections)).collect()
    }

    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds * 2 {
            self.rig.now += Duration::from_millis(500);
            self.rig.said();
        }
    }
}

/// A packet of which every sum is taken anew.
#[derive(Clone, Debug)]
struct Ip {
    ends: (IpAddr, IpAddr),
    protocol: u8,
    upper: Vec<u8>,
}

impl Ip {
    fn new(protocol: u8, ends: (IpAddr, IpAddr), upper: Vec<u8>) -> Self {
        Self { ends, protocol, upper }.summed()
    }

    fn udp(ends: (IpAddr, IpAddr), ports: (u16, u16), payload: &[u8]) -> Self {
        Self::new(PROTOCOL_UDP, ends, frames::datagram(ports, payload))
    }

    fn tcp(ends: (IpAddr, IpAddr), ports: (u16, u16), flags: u8, numbers: (u32, u32)) -> Self {
        let header =
            TcpHeader::new(ports.0, ports.1, numbers.0, flags).acknowledging(numbers.1, 1000);
        Self::new(PROTOCOL_TCP, ends, bytemuck::bytes_of(&header).to_vec())
    }

    /// The same with other ends and ports.
    fn to(&self, ends: (IpAddr, IpAddr), ports: (u16, u16)) -> Self {
        let mut other = Self { ends, ..self.clone() };
        other.upper[..2].copy_from_slice(&ports.0.to_be_bytes());
        other.upper[2..4].copy_from_slice(&ports.1.to_be_bytes());
        other.summed()
    }

    fn summed(mut self) -> Self {
        let place = if self.protocol == PROTOCOL_TCP { 16 } else { 6 };
        self.upper[place..place + 2].fill(0);
        let length = u32::try_from(self.upper.len()).unwrap();
        let pseudo = match self.ends {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                pseudo_header_ipv4(from, to, self.protocol, length)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                pseudo_header_ipv6(from, to, self.protocol, length)
            }
            ends => panic!("{ends:?} are of two versions"),
        };
        let sum = pseudo.with(&self.upper).checksum();
        let sum = if sum == 0 && self.protocol == PROTOCOL_UDP { 0xffff } else { sum };
        self.upper[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        self
    }

    fn frame(&self, (source, destination): Macs, time_to_live: u8) -> Vec<u8> {
        let length = u16::try_from(self.upper.len()).unwrap();
        let (ethertype, header) = match self.ends {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = Ipv4Header::new(from, to, self.protocol, length + 20);
                let mut header = bytemuck::bytes_of(&header).to_vec();
                header[8] = time_to_live;
                header[10..12].fill(0);
                let sum = checksum::checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                (ETHERTYPE_IPV4, header)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let header = Ipv6Header::new(from, to, self.protocol, time_to_live, length);
                (ETHERTYPE_IPV6, bytemuck::bytes_of(&header).to_vec())
            }
            ends => panic!("{ends:?} are of two versions"),
        };
        let ethernet = EthernetHeader::new(destination, source, ethertype);
        [bytemuck::bytes_of(&ethernet), &header, &self.upper].concat()
    }
}

#[test]
fn a_connection_goes_to_a_backend_here_with_its_source_and_its_answers_come_from_the_vip() {
    let mut story = Story::of(Scheduler::SourceHash, &[2]);
    let (client, vip, served) = (v4(1).into(), VIP.into(), v4(2).into());
    let place = (story.rig.index(1), story.rig.index(2));
    let syn = Ip::tcp((client, vip), (4000, 83), SYN, (100, 0));
    let expected = syn.to((client, served), (4000, 8083)).frame((ROUTER, mac(2)), 63);
    assert_eq!(story.out(1, &syn).sent(), (place.1, expected));
    let answer = Ip::tcp((served, client), (8083, 4000), SYN | ACK, (500, 101));
    let expected = answer.to((vip, client), (83, 4000)).frame((mac(2), mac(1)), 64);
    assert_eq!(story.answer(2, &answer).sent(), (place.0, expected));
    let data = Ip::tcp((client, vip), (4000, 83), ACK, (101, 501));
    let expected = data.to((client, served), (4000, 8083)).frame((ROUTER, mac(2)), 63);
    assert_eq!(story.out(1, &data).sent(), (place.1, expected));
    assert_eq!(story.connections(), [(served, 1)].into());
    story.rig.check_books(6);
}

#[test]
fn a_backend_elsewhere_gets_its_packets_through_its_tunnel_and_answers_by_it() {
    let mut story = Story::of(Scheduler::RoundRobin, &[3]);
    let (client, vip, served) = (v4(1).into(), VIP.into(), v4(3).into());
    let syn = Ip::tcp((client, vip), (4000, 80), SYN, (100, 0));
    let (to, frame) = story.out(1, &syn).sent();
    let inner = frames::unwrap(&frame, (OUR_MAC, NEAR_MAC), (OUR_VTEP, NEAR_VTEP), vni(100));
    let expected = syn.to((client, served), (4000, 8080)).frame((ROUTER, mac(3)), 63);
    assert_eq!((to, inner), (UPLINK, expected));
    let answer = Ip::tcp((served, client), (8080, 4000), SYN | ACK, (500, 101));
    let wire =
        |inner: &[u8]| frames::vxlan((NEAR_MAC, OUR_MAC), (NEAR_VTEP, OUR_VTEP), vni(100), inner);
    let frame = wire(&answer.frame((ROUTER, mac(1)), 63));
    let place = story.rig.index(1);
    let expected = answer.to((vip, client), (80, 4000)).frame((ROUTER, mac(1)), 63);
    assert_eq!(story.rig.send(UPLINK, frame).sent(), (place, expected));
    // Another node translates for its own clients; nobody is balanced twice.
    let foreign = Ip::tcp((v4(4).into(), vip), (1, 80), SYN, (1, 0)).frame((mac(3), ROUTER), 64);
    let reason = Outcome::Dropped(DropReason::DestinationUnknown);
    assert_eq!(story.rig.send(UPLINK, wire(&foreign)), reason);
}

#[test]
fn datagrams_of_both_versions_are_balanced() {
    let mut config = served(Scheduler::SourceHash, Vec::new());
    config.balancers[0].listeners[0].protocol = ForwardProtocol::Udp;
    config.balancers[0].listeners[0].backends = vec![backend(2, 53)];
    config.balancers[0].listeners[0].ports = (53, 53);
    let mut other = config.balancers[0].clone();
    (other.name, other.address) = ("six".parse().unwrap(), vip6());
    other.listeners[0].backends[0].address = v6(2).into();
    config.balancers.push(other);
    let mut story = Story::new(config);
    let ends: [(IpAddr, IpAddr, IpAddr); 2] =
        [(v4(1).into(), VIP.into(), v4(2).into()), (v6(1).into(), vip6(), v6(2).into())];
    let place = (story.rig.index(1), story.rig.index(2));
    for (client, vip, served) in ends {
        for payload in [&b""[..], b"x", &[0xff; 999]] {
            let asked = Ip::udp((client, vip), (4000, 53), payload);
            let expected = asked.to((client, served), (4000, 53)).frame((ROUTER, mac(2)), 63);
            assert_eq!(story.out(1, &asked).sent(), (place.1, expected));
            let answer = Ip::udp((served, client), (53, 4000), payload);
            let expected = answer.to((vip, client), (53, 4000)).frame((mac(2), mac(1)), 64);
            assert_eq!(story.answer(2, &answer).sent(), (place.0, expected));
        }
    }
}

/// The two pieces of a packet, the first with so many bytes behind its IP header.
fn pieces(packet: &Ip, macs: Macs, time_to_live: u8, first: usize) -> [Vec<u8>; 2] {
    let part = |upper: &[u8], place: u16| {
        let part = Ip { upper: upper.to_vec(), ..packet.clone() };
        let mut frame = part.frame(macs, time_to_live);
        frame[18..20].copy_from_slice(&[0, 77]);
        frame[20..22].copy_from_slice(&place.to_be_bytes());
        frame[24..26].fill(0);
        let sum = checksum::checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    let (start, rest) = packet.upper.split_at(first);
    [part(start, 0x2000), part(rest, u16::try_from(first / 8).unwrap())]
}

#[test]
fn pieces_go_to_the_backend_of_their_connection_and_come_from_the_vip() {
    let mut config = served(Scheduler::SourceHash, vec![backend(2, 53)]);
    config.balancers[0].listeners[0].protocol = ForwardProtocol::Udp;
    let mut story = Story::new(config);
    let (client, vip, at) = (v4(1).into(), VIP.into(), v4(2).into());
    let place = (story.rig.index(1), story.rig.index(2));
    let asked = Ip::udp((client, vip), (4000, 80), &[7; 64]);
    let gone = asked.to((client, at), (4000, 53));
    let sent = pieces(&asked, (mac(1), ROUTER), 64, 32);
    let expected = pieces(&gone, (ROUTER, mac(2)), 63, 32);
    for (frame, expected) in sent.into_iter().zip(expected) {
        assert_eq!(story.rig.send(place.0, frame).sent(), (place.1, expected));
    }
    let answer = Ip::udp((at, client), (53, 4000), &[9; 64]);
    let come = answer.to((vip, client), (80, 4000));
    let sent = pieces(&answer, (mac(2), mac(1)), 64, 32);
    let expected = pieces(&come, (mac(2), mac(1)), 64, 32);
    for (frame, expected) in sent.into_iter().zip(expected) {
        assert_eq!(story.rig.send(place.1, frame).sent(), (place.0, expected));
    }
    // A later piece alone is nobody's.
    let other = Ip::udp((at, v4(5).into()), (53, 4000), &[9; 64]);
    let [_, later] = pieces(&other, (mac(2), mac(5)), 64, 32);
    assert_eq!(story.rig.send(place.1, later), Outcome::Dropped(DropReason::FragmentUnmatched));
}

#[test]
fn turns_give_each_backend_its_weight_in_every_round() {
    let mut config = served(Scheduler::RoundRobin, vec![backend(2, 80), backend(3, 80)]);
    config.balancers[0].listeners[0].backends[0].weight = 30;
    config.balancers[0].listeners[0].backends[1].weight = 20;
    let mut story = Story::new(config);
    for round in 0..5 {
        let given: Vec<u8> = (0..5).map(|nth| story.backend_of(1000 + round * 5 + nth)).collect();
        assert_eq!(given.iter().filter(|&&number| number == 2).count(), 3, "{given:?}");
        assert!(given.windows(3).all(|three| three != [2, 2, 2]), "turns are apart: {given:?}");
    }
}

#[test]
fn the_fewest_connections_are_counted_with_weights_and_until_they_end() {
    let mut config = served(Scheduler::LeastConnections, vec![backend(2, 80), backend(3, 80)]);
    config.balancers[0].listeners[0].backends[1].weight = 20;
    let mut story = Story::new(config);
    for port in 0..30 {
        story.backend_of(1000 + port);
    }
    assert_eq!(story.connections(), [(v4(2).into(), 10), (v4(3).into(), 20)].into());
    // None was answered: all go after 20 s and a round of the sweep.
    story.wait(60);
    assert_eq!(story.connections(), [(v4(2).into(), 0), (v4(3).into(), 0)].into());
}

#[test]
fn a_hash_gives_a_client_one_backend_whatever_its_ports() {
    let mut story = Story::of(Scheduler::SourceHash, &[2, 3, 4, 5]);
    let given: BTreeSet<u8> = (0..50).map(|port| story.backend_of(1000 + port)).collect();
    assert_eq!(given.len(), 1);
}

#[test]
fn a_sticky_client_gets_its_backend_again_until_its_time_is_over_or_the_backend_drains() {
    let mut config =
        served(Scheduler::RoundRobin, [2, 5, 6].map(|number| backend(number, 80)).to_vec());
    config.balancers[0].listeners[0].stickiness = Some(10);
    let mut story = Story::new(config);
    let first = story.backend_of(1000);
    for nth in 1..8 {
        story.wait(8);
        assert_eq!(story.backend_of(1000 + nth), first, "after {nth} times 8 s");
    }
    let later = (0..6).map(|nth| {
        story.wait(11);
        story.backend_of(2010 + nth)
    });
    assert!(later.collect::<BTreeSet<u8>>().len() > 1, "it is balanced like a stranger");
    let next = story.backend_of(2001);
    story.state(next, BackendState::Draining);
    assert_ne!(story.backend_of(2002), next);
}

#[test]
fn a_connection_that_begins_anew_is_balanced_anew_and_counted() {
    let mut story = Story::of(Scheduler::LeastConnections, &[2]);
    assert_eq!(story.backend_of(1000), 2);
    let reset = Ip::tcp((v4(2).into(), v4(1).into()), (8080, 1000), RST | ACK, (0, 2));
    story.answer(2, &reset).sent();
    story.backend_of(1000);
    assert_eq!(story.connections()[&v4(2).into()], 1, "of its second life");
    story.answer(2, &reset).sent();
    story.set(2, BackendState::Draining);
    story.set(5, BackendState::Active);
    assert_eq!(story.backend_of(1000), 5, "what drains gets nothing new");
}

#[test]
fn a_draining_backend_keeps_its_connections_and_one_that_is_down_loses_them() {
    for (state, survives) in [(BackendState::Draining, true), (BackendState::Down, false)] {
        let mut story = Story::of(Scheduler::SourceHash, &[2, 5, 6]);
        let served = story.backend_of(1000);
        let (client, vip, at) = (v4(1).into(), VIP.into(), v4(served).into());
        let answer = Ip::tcp((at, client), (8080, 1000), SYN | ACK, (500, 2));
        story.answer(served, &answer).sent();
        story.state(served, state);
        let data = Ip::tcp((client, vip), (1000, 80), ACK, (2, 501));
        let outcome = story.out(1, &data);
        if survives {
            let place = story.rig.index(served.into());
            let expected = data.to((client, at), (1000, 8080)).frame((ROUTER, mac(served)), 63);
            assert_eq!(outcome.sent(), (place, expected));
            assert_eq!(story.connections()[&at], 1);
            let answer = Ip::tcp((at, client), (8080, 1000), ACK, (501, 2));
            let (_, frame) = story.answer(served, &answer).sent();
            assert_eq!(
                frame,
                answer.to((vip, client), (80, 1000)).frame((mac(served), mac(1)), 64)
            );
        } else {
            assert_eq!(outcome, Outcome::Dropped(DropReason::TcpNoConnection));
            assert_eq!(story.connections()[&at], 0);
        }
        assert_ne!(story.backend_of(1001), served, "nobody new goes there");
    }
}

#[test]
fn a_backend_that_comes_or_goes_leaves_the_connections_of_the_others() {
    let mut story = Story::of(Scheduler::SourceHash, &[2, 5]);
    let served = story.backend_of(1000);
    let (client, vip, at) = (v4(1).into(), VIP.into(), v4(served).into());
    story.answer(served, &Ip::tcp((at, client), (8080, 1000), SYN | ACK, (500, 2))).sent();
    for numbers in [vec![2, 3, 4, 5, 6], vec![served, 6], vec![served]] {
        story.apply(|config| {
            config.balancers[0].listeners[0].backends =
                numbers.iter().map(|&number| backend(number, 8080)).collect();
        });
        let data = Ip::tcp((client, vip), (1000, 80), ACK, (2, 501));
        assert_eq!(story.out(1, &data).sent().0, story.rig.index(served.into()));
    }
    story.apply(|config| config.balancers.clear());
    let data = Ip::tcp((client, vip), (1000, 80), ACK, (2, 501));
    assert_eq!(story.out(1, &data), Outcome::Dropped(DropReason::DestinationUnknown));
    assert_eq!(story.connections(), BTreeMap::new());
}

#[test]
fn what_nobody_serves_has_its_reason() {
    let mut story = Story::of(Scheduler::SourceHash, &[2]);
    let (client, vip) = (v4(1).into(), VIP.into());
    let at = |port| Ip::tcp((client, vip), (4000, port), SYN, (100, 0));
    assert_eq!(story.out(1, &at(79)), Outcome::Dropped(DropReason::BalancerNoListener));
    assert_eq!(story.out(1, &at(90)), Outcome::Dropped(DropReason::BalancerNoListener));
    let udp = Ip::udp((client, vip), (4000, 80), b"x");
    assert_eq!(story.out(1, &udp), Outcome::Dropped(DropReason::BalancerNoListener));
    // A backend that asks for its own service is not sent to itself.
    let own = Ip::tcp((v4(2).into(), vip), (4000, 80), SYN, (100, 0));
    assert_eq!(story.out(2, &own), Outcome::Dropped(DropReason::DestinationIsSource));
    story.state(2, BackendState::Draining);
    assert_eq!(story.out(1, &at(80)), Outcome::Dropped(DropReason::BalancerNoBackend));
    // An address that no NIC has gets nothing.
    story.apply(|config| {
        config.balancers[0].listeners[0].backends = vec![backend(77, 80)];
    });
    assert_eq!(story.out(1, &at(80)), Outcome::Dropped(DropReason::BalancerNoBackend));
}

#[test]
fn a_backend_that_has_a_connection_from_the_clients_port_is_passed_over() {
    let mut story = Story::of(Scheduler::SourceHash, &[2, 5]);
    story.apply(|config| {
        let all = allow(Direction::Outbound, RuleProtocol::Any, None);
        config.security_groups =
            vec![SecurityGroup { id: GroupId(1), name: "out".parse().unwrap(), rules: vec![all] }];
        config.ports[0].security_groups = Some(vec![GroupId(1)]);
    });
    let chosen = story.backend_of(1000);
    let (client, at) = (v4(1).into(), v4(chosen).into());
    // The client itself has a connection with it, from another port.
    let own = Ip::tcp((client, at), (1001, 8080), SYN, (1, 0));
    let place = story.rig.index(1);
    story.rig.once(place, own.frame((mac(1), mac(chosen)), 64)).sent();
    let answer = Ip::tcp((at, client), (8080, 1001), SYN | ACK, (500, 2));
    assert_eq!(story.answer(chosen, &answer).sent().1, answer.frame((mac(chosen), mac(1)), 64));
    let own = Ip::tcp((client, at), (1001, 8080), ACK, (2, 501));
    story.rig.once(place, own.frame((mac(1), mac(chosen)), 64)).sent();
    let other = story.backend_of(1001);
    assert_ne!(other, chosen);
    // With nobody else to go to, it is refused, and what was there goes on.
    story.state(other, BackendState::Draining);
    let again = Ip::tcp((client, VIP.into()), (1001, 80), SYN, (1, 0));
    story.apply(|config| {
        config.balancers[0].listeners[0].backends.retain(|given| given.address == at);
    });
    assert_eq!(story.out(1, &again), Outcome::Dropped(DropReason::BalancerBackendBusy));
    let data = Ip::tcp((at, client), (8080, 1001), ACK, (501, 2));
    assert_eq!(story.answer(chosen, &data).sent().1, data.frame((mac(chosen), mac(1)), 64));
}

#[test]
fn security_groups_see_the_vip_on_the_clients_side_and_the_client_on_the_backends() {
    let mut config = served(Scheduler::SourceHash, vec![backend(2, 8080)]);
    let rule = |direction, peer: &str, port| Rule {
        direction,
        priority: Priority::Mid,
        verdict: RuleVerdict::Allow,
        protocol: RuleProtocol::Tcp,
        ports: Some((port, port)),
        icmp: None,
        peer: RulePeer::Prefix(peer.parse::<Prefix>().unwrap()),
    };
    let group = |id, name: &str, rule| SecurityGroup {
        id: GroupId(id),
        name: name.parse().unwrap(),
        rules: vec![rule],
    };
    config.security_groups = vec![
        group(1, "client", rule(Direction::Outbound, "10.0.0.100/32", 80)),
        group(2, "server", rule(Direction::Inbound, "10.0.0.1/32", 8080)),
    ];
    config.ports[0].security_groups = Some(vec![GroupId(1)]);
    config.ports[1].security_groups = Some(vec![GroupId(2)]);
    let mut story = Story::new(config);
    assert_eq!(story.backend_of(1000), 2);
    let denied = Outcome::Dropped(DropReason::SecurityGroupDenied);
    let other = Ip::tcp((v4(5).into(), VIP.into()), (1000, 80), SYN, (1, 0));
    assert_eq!(story.out(5, &other), denied, "not this client");
    let other = Ip::tcp((v4(1).into(), VIP.into()), (1001, 81), SYN, (1, 0));
    assert_eq!(story.out(1, &other), denied, "not this port");
    let direct = Ip::tcp((v4(1).into(), v4(2).into()), (1001, 8080), SYN, (1, 0));
    assert_eq!(story.out(1, &direct), denied, "not past the balancer");
}

#[test]
fn the_outside_reaches_backends_by_an_external_address() {
    let mut config = served(Scheduler::RoundRobin, vec![backend(2, 8080), backend(3, 8080)]);
    let line = || "line".parse().unwrap();
    config.external.lines = vec![Line { name: line(), next_hop: GATEWAY }];
    config.balancers[0].address = OUTER.into();
    config.balancers[0].line = Some(line());
    let mut story = Story::new(config);
    let (client, vip, at) = (WEB.into(), OUTER.into(), v4(2).into());
    for port in 0..4 {
        // Only the backend of this node is reached from outside.
        let syn = Ip::tcp((client, vip), (4000 + port, 80), SYN, (100, 0));
        let frame = syn.frame((GATEWAY_MAC, OUR_MAC), 64);
        let expected = syn.to((client, at), (4000 + port, 8080)).frame((ROUTER, mac(2)), 63);
        let place = story.rig.index(2);
        assert_eq!(story.rig.send(UPLINK, frame).sent(), (place, expected));
        let answer = Ip::tcp((at, client), (8080, 4000 + port), SYN | ACK, (500, 101));
        let expected =
            answer.to((vip, client), (80, 4000 + port)).frame((OUR_MAC, GATEWAY_MAC), 63);
        assert_eq!(story.out(2, &answer).sent(), (UPLINK, expected));
    }
    assert_eq!(story.connections()[&at], 4);
    let asked = frames::arp_request((GATEWAY_MAC, GATEWAY), OUTER);
    assert!(matches!(story.rig.once(UPLINK, asked), Outcome::Sent { port: UPLINK, .. }));
    let inner = Ip::tcp((v4(1).into(), VIP.into()), (1, 80), SYN, (1, 0));
    assert_eq!(story.out(1, &inner), Outcome::Dropped(DropReason::DestinationUnknown));
}

#[test]
fn the_router_answers_for_the_vip_and_is_pinged_at_it() {
    let mut story = Story::of(Scheduler::SourceHash, &[2]);
    let place = story.rig.index(1);
    let asked = frames::arp_request((mac(1), v4(1)), VIP);
    let expected = frames::arp_reply((ROUTER, VIP), (mac(1), v4(1)));
    assert_eq!(story.rig.once(place, asked).sent(), (place, expected));
    let ping = frames::ping((mac(1), ROUTER), (v4(1), VIP), b"hello");
    let (to, frame) = story.rig.send(place, ping).sent();
    assert_eq!((to, frame[34]), (place, 0), "an echo reply");
    // Not in the other VPC.
    let place = story.rig.index(3);
    let asked = frames::arp_request((mac(1), v4(1)), VIP);
    let reason = Outcome::Dropped(DropReason::ArpTargetUnknown);
    assert_eq!(story.rig.once(place, asked), reason);
    let syn = Ip::tcp((v4(1).into(), VIP.into()), (1, 80), SYN, (1, 0));
    let frame = syn.frame((mac(1), ROUTER), 64);
    let reason = Outcome::Dropped(DropReason::DestinationUnknown);
    assert_eq!(story.rig.send(place, frame), reason);
}

#[test]
fn a_backends_error_comes_from_the_vip_and_quotes_what_the_client_sent() {
    let mut config = served(Scheduler::SourceHash, vec![backend(2, 53)]);
    config.balancers[0].listeners[0].protocol = ForwardProtocol::Udp;
    let mut story = Story::new(config);
    let (client, vip): (IpAddr, IpAddr) = (v4(1).into(), VIP.into());
    let asked = Ip::udp((client, vip), (4000, 80), b"question");
    let (_, arrived) = story.out(1, &asked).sent();
    let error = frames::unreachable((mac(2), mac(1)), (v4(2), v4(1)), &arrived);
    let place = story.rig.index(2);
    let (to, frame) = story.rig.send(place, error).sent();
    assert_eq!(to, story.rig.index(1));
    let mut hopped = asked.frame((mac(1), ROUTER), 64);
    hopped[22] = 63;
    hopped[24..26].fill(0);
    let sum = checksum::checksum(&hopped[14..34]);
    hopped[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(frame, frames::unreachable((mac(2), mac(1)), (VIP, v4(1)), &hopped));
}

/// A slow model: who has which connection, and what every state allows.
#[test]
fn under_random_changes_every_connection_keeps_its_backend_for_as_long_as_it_may() {
    let states = [BackendState::Active, BackendState::Draining, BackendState::Down];
    let schedulers = [Scheduler::SourceHash, Scheduler::RoundRobin, Scheduler::LeastConnections];
    let mut ended = 0;
    let mut kept = 0;
    for seed in 0..60_u64 {
        let mut random = Random(seed);
        let scheduler = schedulers[usize::try_from(seed % 3).unwrap()];
        let mut story = Story::of(scheduler, &[2, 3, 5, 6]);
        if seed % 2 == 1 {
            story.apply(|config| config.balancers[0].listeners[0].stickiness = Some(60));
        }
        // By the client's port, whose connection is answered and established.
        let mut held: BTreeMap<u16, u8> = BTreeMap::new();
        for step in 0..150_u16 {
            let listed = story.config.balancers[0].listeners[0].backends.clone();
            let state = |number: u8| {
                let found = listed.iter().find(|given| given.address == v4(number));
                found.map(|given| given.state)
            };
            if random.percent(20) {
                let number = random.pick(&[2_u8, 3, 5, 6]);
                let new = random.pick(&states);
                story.set(number, new);
                continue;
            }
            let has_active = listed.iter().any(|given| given.state == BackendState::Active);
            if random.percent(40) && has_active {
                let port = 1000 + step;
                let number = story.backend_of(port);
                assert_eq!(state(number), Some(BackendState::Active), "seed {seed}");
                story.accept(number, port);
                held.insert(port, number);
                continue;
            }
            let Some((&port, &number)) = held.iter().nth(usize::from(step) % held.len().max(1))
            else {
                continue;
            };
            let data = Ip::tcp((v4(1).into(), VIP.into()), (port, 80), ACK, (2, 501));
            let may = matches!(state(number), Some(BackendState::Active | BackendState::Draining));
            let outcome = story.out(1, &data);
            if may {
                let (_, frame) = outcome.sent();
                let frame = if number == 3 { &frame[50..] } else { &frame[..] };
                assert_eq!(frame[30..34], v4(number).octets(), "seed {seed}, step {step}");
                kept += 1;
            } else {
                let lost = match has_active {
                    true => DropReason::TcpNoConnection,
                    false => DropReason::BalancerNoBackend,
                };
                assert_eq!(outcome, Outcome::Dropped(lost), "seed {seed}, step {step}");
                held.remove(&port);
                ended += 1;
            }
        }
        let counted: u32 = story.connections().values().sum();
        assert!(counted as usize <= held.len(), "seed {seed}: ends are counted");
        let listed = &story.config.balancers[0].listeners[0].backends;
        for (address, count) in story.connections() {
            let theirs = held.values().filter(|&&number| address == v4(number)).count();
            let is_sure = listed.iter().all(|given| given.state != BackendState::Down);
            assert!(!is_sure || count as usize <= theirs, "seed {seed}: {address} has {count}");
        }
    }
    assert!(kept > 500 && ended > 50, "{kept} kept and {ended} ended: too few");
}

#[test]
fn what_balancers_must_hold_is_said_by_name() {
    let good = served(Scheduler::SourceHash, vec![backend(2, 80)]);
    let mut seen = BTreeSet::new();
    let mut check = |code: &str, change: &dyn Fn(&mut SwitchConfig)| {
        let mut config = good.clone();
        change(&mut config);
        let mut switch = plinth_vswitch::Switch::new(limits(), SEED);
        let error = switch.apply(Duration::ZERO, &config).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains("web") || code == "too-many", "{error}");
        seen.insert(code.to_owned());
    };
    check("balancer-twice", &|config| {
        let again = config.balancers[0].clone();
        config.balancers.push(again);
    });
    check("balancer-vpc-unknown", &|config| config.balancers[0].vni = vni(7));
    check("balancer-address", &|config| {
        config.balancers[0].address = Ipv4Addr::new(224, 0, 0, 1).into();
    });
    check("balancer-address-outside", &|config| {
        config.balancers[0].address = Ipv4Addr::new(11, 0, 0, 1).into();
    });
    check("balancer-address-taken", &|config| config.balancers[0].address = v4(2).into());
    check("balancer-address-taken", &|config| config.balancers[0].address = v4(3).into());
    check("balancer-address-taken", &|config| config.balancers[0].address = v4(254).into());
    check("balancer-external-family", &|config| {
        config.balancers[0].address = vip6();
        config.balancers[0].line = Some("line".parse().unwrap());
    });
    check("line-unknown", &|config| {
        config.balancers[0].address = OUTER.into();
        config.balancers[0].line = Some("line".parse().unwrap());
    });
    let listener = |change: fn(&mut Listener)| {
        move |config: &mut SwitchConfig| change(&mut config.balancers[0].listeners[0])
    };
    check("balancer-ports", &listener(|given| given.ports = (0, 5)));
    check("balancer-ports", &listener(|given| given.ports = (6, 5)));
    check("balancer-ports-overlap", &|config| {
        let mut other = config.balancers[0].listeners[0].clone();
        other.ports = (89, 100);
        config.balancers[0].listeners.push(other);
    });
    check("balancer-stickiness", &listener(|given| given.stickiness = Some(0)));
    check("balancer-backend-family", &listener(|given| given.backends[0].address = v6(2).into()));
    check("balancer-backend-port", &listener(|given| given.backends[0].port = 0));
    check("balancer-backend-port", &listener(|given| given.backends[0].port = 65_530));
    check("balancer-backend-weight", &listener(|given| given.backends[0].weight = 0));
    check("balancer-backend-weight", &listener(|given| given.backends[0].weight = 101));
    check("balancer-backend-twice", &listener(|given| given.backends.push(given.backends[0])));
    check(
        "balancer-too-many-backends",
        &listener(|given| {
            given.backends = (1..=1025).map(|port| backend(2, port)).collect();
        }),
    );
    assert_eq!(seen.len(), 15);
}

#[test]
fn tables_have_a_bound() {
    let config = served(Scheduler::SourceHash, vec![backend(2, 80)]);
    let bounds = [
        BalancerLimits { balancers: 0, ..BalancerLimits::DEFAULT },
        BalancerLimits { listeners: 0, ..BalancerLimits::DEFAULT },
        BalancerLimits { backends: 0, ..BalancerLimits::DEFAULT },
        BalancerLimits { hash_places: 250, ..BalancerLimits::DEFAULT },
    ];
    for balancers in bounds {
        let limits = Limits { balancers, ..limits() };
        let error = plinth_vswitch::Switch::new(limits, SEED).apply(Duration::ZERO, &config);
        assert!(matches!(error, Err(ConfigError::TooMany { found: 1 | 1009, .. })), "{error:?}");
    }
    let error: ConfigError =
        BalancerError::BalancerTwice { balancer: "web".parse().unwrap() }.into();
    assert_eq!(error.code(), "balancer-twice");
}
