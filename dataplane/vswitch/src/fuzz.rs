// SPDX-License-Identifier: Apache-2.0
//! Entries for the fuzzer: no bytes make the machine panic, lose count, or mix VPCs.
//!
//! The switch under test has two VPCs that use the same MACs and addresses, so that a packet that
//! is good in one is as good as it can be in the other. The first has a router, and its ports are
//! filtered by rules that come and go.

mod outside;
mod seen;

pub use outside::{outside_packet, outside_stories};

use crate::{DropReason, Limits, Offload, Packet, PortIndex, Switch, Verdict};
use plinth_ids::{Epoch, GroupId, MacAddress, Moment, PortId, Vni};
use plinth_switch_api::{
    Backend, BackendState, Balancer, Direction, ForwardProtocol, GuestPort, Listener, NextHop,
    Priority, Remote, Route, Rule, RulePeer, RuleProtocol, RuleVerdict, Scheduler, SecurityGroup,
    Subnet, SubnetPrefix, SwitchConfig, Underlay, Vpc,
};
use plinth_wire::checksum::{PartialChecksum, RxChecksum};
use plinth_wire::{ArpPacket, TUNNEL_OVERHEAD};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const VTEP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
const REMOTE_VTEP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
const UPLINK_MAC: MacAddress = MacAddress([2, 0, 0, 0, 1, 1]);
const REMOTE_UPLINK_MAC: MacAddress = MacAddress([2, 0, 0, 0, 1, 2]);
const ROUTER_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 254]);
/// Of the first VPC's balancer.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const SEGMENTS: [u32; 2] = [100, 200];

/// A guest of either VPC sends frames. `data` is a list of frames, each behind eight bytes: the
/// sending port, what it says of a checksum, and the frame's length.
///
/// # Panics
/// If an invariant breaks; it is the fuzzer's finding.
pub fn guest_packet(data: &[u8]) {
    Fuzzed::new().run(data, |&[port, flags, a, b, c, d, _, _]| {
        let partial = PartialChecksum {
            start: u16::from_be_bytes([a, b]),
            offset: u16::from_be_bytes([c, d]),
        };
        let partial = (flags & 1 != 0).then_some(partial);
        let offload = Offload { partial, udp: RxChecksum::Unknown };
        (u32::from(port % 4) + 1, offload)
    });
}

/// Frames come from the wire. `data` is as for [`guest_packet`].
///
/// # Panics
/// If an invariant breaks; it is the fuzzer's finding.
pub fn uplink_packet(data: &[u8]) {
    Fuzzed::new().run(data, |&[_, flags, ..]| {
        let udp = match flags % 3 {
            0 => RxChecksum::Unknown,
            1 => RxChecksum::Right,
            _ => RxChecksum::Wrong,
        };
        (0, Offload { partial: None, udp })
    });
}

/// Another process hands connections over, which may be nonsense; then the guests go on.
///
/// # Panics
/// If an invariant breaks; it is the fuzzer's finding.
pub fn handed_connections(data: &[u8]) {
    let mut fuzzed = Fuzzed::new();
    fuzzed.has_strangers = true;
    let places = fuzzed.switch.handed_places();
    let whole = data.len() / crate::HANDED_BYTES * crate::HANDED_BYTES;
    for bytes in [data, &data[..whole]] {
        // A refusal is an answer; what came before the nonsense is taken.
        let _ = fuzzed.switch.take_over(fuzzed.now, &places, bytes);
    }
    for story in stories() {
        fuzzed.run(&story, |&[port, ..]| (u32::from(port % 4) + 1, Offload::default()));
    }
    let mut again = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        next = fuzzed.switch.hand_over(fuzzed.now, from, None, &mut again);
    }
    let told = fuzzed.switch.take_over(fuzzed.now, &places, &again);
    assert!(told.is_ok(), "what was handed over is understood: {told:?}");
}

/// Connections as a process hands them over, for a fuzzer to start from.
pub fn handed_examples() -> Vec<Vec<u8>> {
    let told = |story: Vec<u8>| {
        let mut fuzzed = Fuzzed::new();
        fuzzed.run(&story, |&[port, ..]| (u32::from(port % 4) + 1, Offload::default()));
        let mut bytes = Vec::new();
        fuzzed.switch.hand_over(fuzzed.now, 0, None, &mut bytes);
        bytes
    };
    let mut examples: Vec<Vec<u8>> = stories().into_iter().map(told).collect();
    // The same, said to be translated.
    let mut translated = examples.concat();
    for record in translated.chunks_exact_mut(crate::HANDED_BYTES) {
        record[132] = 1;
    }
    examples.push(translated);
    examples
}

/// What stands before each frame.
type Preamble = [u8; 8];

/// A frame as each of the two entries takes it, for a fuzzer to start from: a datagram between
/// the guests, and one in a tunnel.
pub fn examples() -> [Vec<u8>; 2] {
    let (macs, ends) = ((nic_mac(1), nic_mac(2)), (nic_v4(1), nic_v4(2)));
    let guest = example_frame(macs, ends);
    let inner = example_frame((nic_mac(3), nic_mac(1)), (nic_v4(3), nic_v4(1)));
    let length = u16::try_from(inner.len()).expect("the example is short");
    let vni = Vni::new(SEGMENTS[0]).expect("the segment is a VNI");
    let macs = (REMOTE_UPLINK_MAC, UPLINK_MAC);
    let headers = plinth_wire::TunnelHeaders::new(macs, (REMOTE_VTEP, VTEP), vni, 50_000, length);
    let outer = [bytemuck::bytes_of(&headers), &inner].concat();
    [guest, outer].map(|frame| {
        let [high, low] = u16::try_from(frame.len()).expect("the example is short").to_be_bytes();
        [&[0, 0, 0, 0, 0, 0, high, low][..], &frame].concat()
    })
}

/// Stories for a fuzzer to start from, each a list of frames of guests of the first VPC: a
/// question, its answer and an error about it; a TCP connection; a packet in two pieces; packets
/// for the router and through it.
pub fn stories() -> Vec<Vec<u8>> {
    let (there, back) = ((nic_mac(1), nic_mac(2)), (nic_mac(2), nic_mac(1)));
    let (ends, ends_back) = ((nic_v4(1), nic_v4(2)), (nic_v4(2), nic_v4(1)));
    let asked = example_frame(there, ends);
    let mut answer = example_frame(back, ends_back);
    answer[34..38].copy_from_slice(&[0, 2, 0, 1]);
    let quoted = &asked[14..14 + 28];
    let error =
        example_packet(back, ends_back, 1, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], quoted].concat());
    let tcp = |is_back: bool, flags, sequence: u32, acknowledgment| {
        let (macs, ends, ports) =
            if is_back { (back, ends_back, (80, 9)) } else { (there, ends, (9, 80)) };
        let header = plinth_wire::TcpHeader::new(ports.0, ports.1, sequence, flags);
        let header = header.acknowledging(acknowledgment, 1000);
        example_packet(macs, ends, 6, bytemuck::bytes_of(&header))
    };
    let piece = |place: [u8; 2], bytes: &[u8]| {
        let mut frame = example_packet(there, ends, 17, bytes);
        frame[20..22].copy_from_slice(&place);
        frame
    };
    let router = (nic_mac(1), ROUTER_MAC);
    let ping = [8, 0, 0, 0, 0, 1, 0, 1];
    let mut dying = example_frame(router, ends);
    dying[22] = 1;
    let served = |is_back: bool, port: u16, flags, sequence: u32, acknowledgment| {
        let (macs, ends, ports) = if is_back {
            (back, ends_back, (80, 9))
        } else {
            (router, (nic_v4(1), VIP), (9, port))
        };
        let header = plinth_wire::TcpHeader::new(ports.0, ports.1, sequence, flags);
        let header = header.acknowledging(acknowledgment, 1000);
        example_packet(macs, ends, 6, bytemuck::bytes_of(&header))
    };
    vec![
        join(&[
            (0, &served(false, 90, 2, 100, 0)),
            (1, &served(true, 90, 18, 500, 101)),
            (0, &served(false, 90, 16, 101, 501)),
            (0, &served(false, 100, 2, 100, 0)),
            (0, &served(false, 80, 2, 100, 0)),
        ]),
        join(&[(0, &asked), (1, &answer), (1, &error)]),
        join(&[
            (0, &tcp(false, 2, 100, 0)),
            (1, &tcp(true, 18, 500, 101)),
            (0, &tcp(false, 16, 101, 501)),
            (0, &tcp(false, 17, 101, 501)),
            (1, &tcp(true, 17, 501, 102)),
            (0, &tcp(false, 16, 102, 502)),
            (0, &tcp(false, 2, 900, 0)),
            (1, &tcp(true, 20, 0, 901)),
        ]),
        join(&[(0, &piece([0x20, 0], &[0, 1, 0, 2, 0, 40, 0, 0])), (0, &piece([0, 1], &[1; 32]))]),
        join(&[
            (0, &example_packet(router, (nic_v4(1), nic_v4(254)), 1, &ping)),
            (0, &example_frame(router, ends)),
            (0, &dying),
            (0, &example_frame(router, (nic_v4(1), Ipv4Addr::new(10, 9, 0, 1)))),
        ]),
    ]
}

/// Frames behind their preambles.
fn join(frames: &[(u8, &Vec<u8>)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (port, frame) in frames {
        let [high, low] = u16::try_from(frame.len()).expect("the example is short").to_be_bytes();
        data.extend([*port, 0, 0, 0, 0, 0, high, low]);
        data.extend_from_slice(frame);
    }
    data
}

fn example_packet(
    macs: (MacAddress, MacAddress),
    ends: (Ipv4Addr, Ipv4Addr),
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let ethernet = plinth_wire::EthernetHeader::new(macs.1, macs.0, plinth_wire::ETHERTYPE_IPV4);
    let length = u16::try_from(20 + payload.len()).expect("the example is short");
    let ip = plinth_wire::Ipv4Header::new(ends.0, ends.1, protocol, length);
    [bytemuck::bytes_of(&ethernet), bytemuck::bytes_of(&ip), payload].concat()
}

fn example_frame(macs: (MacAddress, MacAddress), ends: (Ipv4Addr, Ipv4Addr)) -> Vec<u8> {
    let ethernet = plinth_wire::EthernetHeader::new(macs.1, macs.0, plinth_wire::ETHERTYPE_IPV4);
    let ip = plinth_wire::Ipv4Header::new(ends.0, ends.1, plinth_wire::PROTOCOL_UDP, 32);
    let udp = plinth_wire::UdpHeader::new(1, 2, 12);
    let parts: [&[u8]; 4] =
        [bytemuck::bytes_of(&ethernet), bytemuck::bytes_of(&ip), bytemuck::bytes_of(&udp), b"data"];
    parts.concat()
}

fn nic_mac(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number])
}

fn nic_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

fn config(epoch: u64) -> SwitchConfig {
    let addresses = |number: u8| {
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into());
        vec![nic_v4(number).into(), v6.into()]
    };
    let vni = |segment| Vni::new(segment).expect("the segments are VNIs");
    let port = |id, segment, number| GuestPort {
        id: PortId(id),
        name: format!("nic-{id}").parse().expect("it is a name"),
        vni: vni(segment),
        mac: nic_mac(number),
        addresses: addresses(number),
        socket: format!("/run/{id}").into(),
        mtu: 1450,
        queue_pairs: 1,
        subnet: None,
        security_groups: (segment == SEGMENTS[0]).then(|| vec![GroupId(1)]),
        allowed: Vec::new(),
        limits: plinth_switch_api::PortLimits::NONE,
    };
    let [one, two] = SEGMENTS;
    let remote = |segment| Remote {
        vni: vni(segment),
        mac: nic_mac(3),
        addresses: addresses(3),
        vtep: REMOTE_VTEP,
        subnet: None,
        security_groups: Vec::new(),
        allowed: Vec::new(),
    };
    SwitchConfig {
        underlay: Some(Underlay {
            device: "fuzz".to_owned(),
            vtep: VTEP,
            prefix_length: 24,
            gateway: None,
            mac: UPLINK_MAC,
            mtu: 1500,
        }),
        ports: vec![port(1, one, 1), port(2, one, 2), port(3, two, 1), port(4, two, 2)],
        remotes: vec![remote(one), remote(two)],
        vpcs: vec![vpc(vni(one))],
        security_groups: vec![group(epoch)],
        balancers: vec![balancer(vni(one), epoch)],
        ..SwitchConfig::empty(Epoch(epoch))
    }
}

fn vpc(vni: Vni) -> Vpc {
    let prefix = |text: &str| text.parse().expect("it is a prefix");
    let name = |text: &str| text.parse().expect("it is a name");
    let subnet = |text: &str, gateway: IpAddr| SubnetPrefix { prefix: prefix(text), gateway };
    Vpc {
        vni,
        name: name("vpc"),
        router_mac: ROUTER_MAC,
        subnets: vec![Subnet {
            name: name("subnet"),
            prefixes: vec![
                subnet("10.0.0.0/24", nic_v4(254).into()),
                subnet("fd00::/64", Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 254).into()),
            ],
        }],
        routes: vec![
            Route {
                destination: prefix("10.9.0.0/16"),
                next_hop: NextHop::Address(nic_v4(2).into()),
            },
            Route { destination: prefix("10.9.1.0/24"), next_hop: NextHop::Blackhole },
        ],
    }
}

/// Backends here and elsewhere, one of which drains and is down by turns.
fn balancer(vni: Vni, epoch: u64) -> Balancer {
    let states = [BackendState::Down, BackendState::Active, BackendState::Draining];
    let state = states[usize::try_from(epoch % 3).unwrap_or(0)];
    let backend = |number, state| Backend {
        address: nic_v4(number).into(),
        port: 80,
        weight: u16::from(number),
        state,
    };
    let schedulers = [Scheduler::SourceHash, Scheduler::RoundRobin, Scheduler::LeastConnections];
    let protocols = [ForwardProtocol::Tcp, ForwardProtocol::Udp];
    let kinds = schedulers.iter().zip([80, 90, 100]);
    let listeners = kinds.flat_map(|(&scheduler, first)| {
        protocols.map(|protocol| Listener {
            protocol,
            ports: (first, first + 9),
            scheduler,
            stickiness: (first == 90).then_some(1),
            check: None,
            backends: vec![backend(2, state), backend(3, BackendState::Active)],
        })
    });
    Balancer {
        name: "vip".parse().expect("it is a name"),
        vni,
        address: VIP.into(),
        line: None,
        listeners: listeners.collect(),
    }
}

/// Everything is allowed, or every other time everything but UDP.
fn group(epoch: u64) -> SecurityGroup {
    let rule = |direction| Rule {
        direction,
        priority: Priority::Mid,
        verdict: RuleVerdict::Allow,
        protocol: if epoch % 2 == 1 { RuleProtocol::Any } else { RuleProtocol::Tcp },
        ports: None,
        icmp: None,
        peer: RulePeer::Any,
    };
    SecurityGroup {
        id: GroupId(1),
        name: "all".parse().expect("it is a name"),
        rules: vec![rule(Direction::Inbound), rule(Direction::Outbound)],
    }
}

/// In the upper half of a preamble's second byte: the rules change before the frame comes.
const NEW_CONFIGURATION: u8 = 5;

struct Fuzzed {
    /// Connections came whose windows may be anything: the second of two packets may be outside.
    has_strangers: bool,
    switch: Switch,
    epoch: u64,
    packets: [Packet; 2],
    now: Moment,
}

impl Fuzzed {
    fn new() -> Self {
        let limits = Limits {
            ports: 4,
            flows: 64,
            flows_per_port: 32,
            next_hops: 2,
            fragments: 8,
            // Two equal packets have one fate: nobody may run out of answers in between.
            icmp_errors_per_second: u32::MAX,
            questions_per_second: 1000,
            ..Limits::default()
        };
        let mut switch = Switch::new(limits, 1);
        switch.apply(Moment::ZERO, &config(1)).expect("the configuration is legal");
        let mut fuzzed = Self {
            has_strangers: false,
            switch,
            epoch: 1,
            packets: [const { Packet::empty() }; 2],
            now: Duration::from_secs(1),
        };
        let known = ArpPacket::reply((REMOTE_UPLINK_MAC, REMOTE_VTEP), (UPLINK_MAC, VTEP));
        fuzzed.burst(PortIndex::UPLINK, Offload::default(), &known.frame(UPLINK_MAC));
        fuzzed
    }

    /// Takes frame after frame off `data`.
    fn run(&mut self, mut data: &[u8], ingress: impl Fn(&Preamble) -> (u32, Offload)) {
        while let Some((preamble, rest)) = data.split_first_chunk::<8>() {
            let length = u16::from_be_bytes([preamble[6] & 0x07, preamble[7]]);
            let (frame, rest) = rest.split_at(rest.len().min(length.into()));
            data = rest;
            let (id, offload) = ingress(preamble);
            let port = match id {
                0 => PortIndex::UPLINK,
                id => self.switch.port_index(PortId(id)).expect("ports 1 to 4 are configured"),
            };
            if preamble[1] >> 4 == NEW_CONFIGURATION {
                self.epoch += 1;
                let config = config(self.epoch);
                self.switch.apply(self.now, &config).expect("the configuration is legal");
            }
            self.burst(port, offload, frame);
            self.now += Duration::from_millis(u64::from(preamble[1]) * 100);
            while self.switch.tick(self.now).is_some() {}
        }
        self.check_books();
    }

    /// Sends the frame twice in one burst: both are judged, the second perhaps by an entry.
    fn burst(&mut self, port: PortIndex, offload: Offload, frame: &[u8]) {
        let length = u32::try_from(frame.len()).expect("frames are short");
        for packet in &mut self.packets {
            let copy = packet.load(port, length, offload);
            let copied = copy.len();
            copy.copy_from_slice(&frame[..copied]);
        }
        self.switch.process(self.now, &mut self.packets);
        let [first, second] = &self.packets;
        // Of a connection that the rules have ended, the next packet is a stranger.
        let is_ended = first.verdict() == Verdict::Drop(DropReason::SecurityGroupDenied)
            && matches!(second.verdict(), Verdict::Drop(_));
        let is_one = first.verdict() == second.verdict() && first.head() == second.head();
        assert!(
            is_one || is_ended || self.has_strangers,
            "two equal packets have one fate: {first:?} {second:?}"
        );
        for packet in &self.packets {
            self.check(packet, frame);
        }
    }

    fn check(&self, packet: &Packet, frame: &[u8]) {
        let Verdict::Send(to) = packet.verdict() else { return };
        let tail = packet.tail();
        assert!(tail.start <= tail.end && tail.end <= frame.len(), "the tail is of the frame");
        let length = packet.output_length() as usize;
        assert_eq!(length, packet.head().len() + tail.len());
        if let Some(partial) = packet.partial_checksum() {
            let field = usize::from(partial.start) + usize::from(partial.offset);
            assert!(field + 2 <= length, "a checksum field is inside its frame");
        }
        let from = packet.port();
        match (from, to) {
            (PortIndex::UPLINK, PortIndex::UPLINK) => {}
            (PortIndex::UPLINK, to) => assert_eq!(self.segment(to), tunnel_segment(frame)),
            (from, PortIndex::UPLINK) => {
                assert!(packet.head().len() >= TUNNEL_OVERHEAD);
                assert_eq!(self.segment(from), tunnel_segment(packet.head()));
            }
            (from, to) => assert_eq!(self.segment(from), self.segment(to)),
        }
    }

    fn segment(&self, index: PortIndex) -> Option<u32> {
        self.switch.snapshot.port(index).map(|port| port.vni.get())
    }

    /// Every packet that came in had one end.
    fn check_books(&self) {
        let (mut outward, mut arrived) = (0, 0);
        for counters in &self.switch.counters {
            let ends = counters.forwarded + counters.answered + counters.absorbed;
            assert_eq!(counters.received, ends + counters.drops_decided());
            outward += counters.forwarded + counters.answered;
            arrived += counters.sent;
        }
        // What the switch says of its own accord is sent without having come in.
        assert!(outward <= arrived);
    }
}

/// The VNI of an outer frame whose IPv4 header may have options.
fn tunnel_segment(frame: &[u8]) -> Option<u32> {
    let options = usize::from(frame.get(14)? & 0x0f) * 4;
    let vni: [u8; 3] = frame.get(14 + options + 12..)?.first_chunk().copied()?;
    let [a, b, c] = vni;
    Some(u32::from_be_bytes([0, a, b, c]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples get through, so the fuzzer starts where it is interesting.
    #[test]
    fn the_examples_are_forwarded() {
        let [guest, wire] = examples();
        for (port, example) in [(1, &guest), (0, &wire)] {
            let mut fuzzed = Fuzzed::new();
            fuzzed.run(example, |_| (port, Offload::default()));
            let forwarded: u64 =
                fuzzed.switch.counters.iter().map(|counters| counters.forwarded).sum();
            assert_eq!(forwarded, 2);
        }
        guest_packet(&guest);
        uplink_packet(&wire);
    }

    /// The stories end well, so the fuzzer starts where it is interesting.
    #[test]
    fn the_stories_are_told_to_their_end() {
        let sent: Vec<(u64, u32)> = stories()
            .iter()
            .map(|story| {
                let mut fuzzed = Fuzzed::new();
                fuzzed.run(story, |&[port, ..]| (u32::from(port % 4) + 1, Offload::default()));
                let counters = fuzzed.switch.counters.iter();
                let sent = counters.map(|counters| counters.forwarded + counters.answered).sum();
                (sent, fuzzed.switch.connection_count())
            })
            .collect();
        assert_eq!(sent, [(10, 2), (6, 1), (16, 1), (4, 1), (8, 2)]);
    }

    /// Mutations of the examples, a short run of what ci/fuzz does for long.
    #[test]
    fn mutated_examples_break_nothing() {
        let mut state = 7u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(state >> 33).expect("31 bits fit")
        };
        for _ in 0..20_000 {
            for (example, entry) in examples().iter().zip([guest_packet, uplink_packet]) {
                let mut data = example.repeat(1 + random() % 3);
                for _ in 0..random() % 6 {
                    let at = random() % data.len();
                    let any = random().to_le_bytes()[0];
                    data[at] = [0, 1, 0xff, 6, 17, 58, any][random() % 7];
                }
                data.truncate(data.len() - random() % 10 * (random() % 2));
                entry(&data);
                plinth_wire::fuzz::headers(&data[8..]);
            }
            for story in stories() {
                let mut data = story;
                for _ in 0..random() % 6 {
                    let at = random() % data.len();
                    let any = random().to_le_bytes()[0];
                    data[at] = [0, 1, 0x50, 6, 17, 0x10, any][random() % 7];
                }
                guest_packet(&data);
            }
        }
    }
}
