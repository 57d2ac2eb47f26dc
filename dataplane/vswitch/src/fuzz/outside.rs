// SPDX-License-Identifier: Apache-2.0
//! Entry for the fuzzer: guests and strangers on both sides of external addresses and a NAT
//! gateway, under configurations that the bytes choose.
//!
//! What leaves has an external address that is its NIC's to use, a port of the NIC's block or of
//! a forward to it, and sums as right as they were; nothing of the VPC without an outside leaves.
//! What was sent is answered at once by the harness, and the answer must come to who asked, as
//! from whom he asked. What comes in is for the NIC that has the address, that a forward names,
//! or that has spoken to the sender from there.

use super::seen::{ICMP, Seen, TCP, UDP};
use super::{GuestPort, ROUTER_MAC, UPLINK_MAC, VTEP, example_packet, nic_mac, nic_v4, vpc};
use crate::vpc::is_routable;
use crate::{DropReason, Limits, Offload, Packet, PortIndex, Switch, Verdict};
use plinth_ids::{Epoch, MacAddress, Moment, Name, PortId, Prefix, Vni};
use plinth_switch_api::{
    AddressLimits, Binding, ExternalAddress, Forward, ForwardProtocol, Line, NatGateway, NextHop,
    PortLimits, PortMapping, Route, Serves, SwitchConfig, Underlay,
};
use plinth_wire::{ArpPacket, TcpHeader, UdpHeader};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

const LINE_MAC: MacAddress = MacAddress([2, 0, 0, 0, 1, 9]);
const LINE: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 9);
const WEB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
const EIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const SHARED: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 9), Ipv4Addr::new(198, 51, 100, 10)];
const CARRIED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
/// Of the VPC that has an outside, and of one whose NICs have the same addresses and none.
const SEGMENTS: [u32; 2] = [100, 200];
/// Ports 1 to 3 are NICs 1, 2 and 5 of the first VPC; port 4 is NIC 1 of the second.
const NICS: [u8; 4] = [1, 2, 5, 1];
/// In the upper half of a preamble's second byte: another configuration comes first.
const NEW_CONFIGURATION: u8 = 5;
/// As a whole byte.
const FRESH: u8 = NEW_CONFIGURATION << 4;
/// In the lower half: the header's sum is left as it is.
const SUM_AS_IT_IS: u8 = 8;
/// Gateway, address translated and address carried are all there.
const ALL: [u8; 4] = [0b1101, 0, 0x1f, 0x40];

/// Frames of guests and of the wire. `data` is a list of frames, each behind eight bytes: who
/// sends it, what is done before, four bytes of configuration, and the frame's length.
///
/// # Panics
/// If an invariant breaks; it is the fuzzer's finding.
pub fn outside_packet(mut data: &[u8]) {
    let mut outside = Outside::new();
    while let Some((&[from, flags, a, b, c, d, high, low], rest)) = data.split_first_chunk::<8>() {
        let length = u16::from_be_bytes([high & 0x07, low]);
        let (frame, rest) = rest.split_at(rest.len().min(length.into()));
        data = rest;
        if flags >> 4 == NEW_CONFIGURATION {
            outside.configure([a, b, c, d]);
        }
        let mut frame = frame.to_vec();
        if flags & SUM_AS_IT_IS == 0
            && let Some(seen) = Seen::of(&frame)
        {
            seen.mend(&mut frame);
        }
        match from % 5 {
            0 => outside.wire_brings(&frame),
            port => outside.guest_sends(port, &frame),
        }
        outside.now += Duration::from_millis(u64::from(flags & 7) * 700);
        while outside.switch.tick(outside.now).is_some() {}
    }
}

/// Stories for a fuzzer to start from: every way out and in, a hairpin, pieces, errors, and
/// configurations that come and go.
pub fn outside_stories() -> Vec<Vec<u8>> {
    let out = |nic: u8, to| ((nic_mac(nic), ROUTER_MAC), (nic_v4(nic), to));
    let udp = |(macs, ends), ports: (u16, u16)| {
        let header = UdpHeader::new(ports.0, ports.1, 12);
        example_packet(macs, ends, UDP, &[bytemuck::bytes_of(&header), b"data"].concat())
    };
    let ping = |(macs, ends)| example_packet(macs, ends, ICMP, &[8, 0, 0xe6, 0xfb, 7, 0, 0, 1]);
    let tcp = |(macs, ends), flags, numbers: (u32, u32)| {
        let header = TcpHeader::new(1000, 80, numbers.0, flags).acknowledging(numbers.1, 1000);
        example_packet(macs, ends, TCP, bytemuck::bytes_of(&header))
    };
    let come = |to| ((LINE_MAC, UPLINK_MAC), (WEB, to));
    let carried = ((nic_mac(5), ROUTER_MAC), (CARRIED, WEB));
    let piece = |place: [u8; 2], bytes: &[u8]| {
        let (macs, ends) = out(2, WEB);
        let mut frame = example_packet(macs, ends, UDP, bytes);
        frame[20..22].copy_from_slice(&place);
        frame
    };
    let asked = udp(come(EIP), (53, 1000));
    let error = {
        let (macs, ends) = out(1, WEB);
        let inside = udp((macs, (WEB, nic_v4(1))), (53, 1000));
        let content = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &inside[14..14 + 28]].concat();
        example_packet(macs, ends, ICMP, &content)
    };
    vec![
        tell(&[
            (1, 0, ALL, &udp(out(1, WEB), (1000, 53))),
            (2, 0, ALL, &udp(out(2, WEB), (1000, 53))),
            (3, 0, ALL, &udp(carried, (1000, 53))),
            (2, 0, ALL, &ping(out(2, WEB))),
            (4, 0, ALL, &udp(out(1, WEB), (1000, 53))),
        ]),
        tell(&[
            (0, 0, ALL, &asked),
            (1, 0, ALL, &error),
            (0, 0, ALL, &udp(come(SHARED[0]), (53, 8001))),
            (0, 0, ALL, &ping(come(EIP))),
            (0, 0, ALL, &udp(come(CARRIED), (53, 8001))),
        ]),
        tell(&[
            (2, 0, ALL, &tcp(out(2, WEB), 2, (100, 0))),
            (2, 0, ALL, &tcp(out(2, WEB), 16, (101, 78))),
            (2, 0, ALL, &tcp(out(2, WEB), 4, (101, 0))),
            (1, 0, ALL, &tcp(out(1, EIP), 2, (100, 0))),
            (2, 0, ALL, &tcp(out(2, EIP), 2, (100, 0))),
        ]),
        tell(&[
            (2, 0, ALL, &piece([0x20, 0], &[3, 232, 0, 53, 0, 40, 0, 0])),
            (2, 0, ALL, &piece([0, 1], &[1; 32])),
            (2, 0, ALL, &udp(out(2, EIP), (1000, 53))),
            (1, 0, ALL, &udp(out(1, SHARED[0]), (1000, 8003))),
            (2, 0, ALL, &udp(out(2, SHARED[0]), (1000, 8003))),
        ]),
        // Of 14 among 64 ports, two would have one, if nobody asked whether it is free.
        tell(&(0..14).map(|nth| (2, 0, ALL, udp(out(2, WEB), (nth, 53)))).collect::<Vec<_>>()),
        tell(&[
            (2, FRESH, [0b1000_1101, 0, 0x1f, 0x40], &udp(out(2, WEB), (1000, 53))),
            (2, 0, ALL, &udp(out(2, LINE), (1000, 53))),
            (3, 0, ALL, &udp(out(5, SHARED[0]), (1000, 1096))),
            (0, 0, ALL, &udp(come(SHARED[0]), (99, 1096))),
            (0, FRESH, [0b100_1101, 0, 0x1f, 0x40], &udp(come(SHARED[0]), (77, 1096))),
        ]),
        tell(&[
            (1, 0, ALL, &udp(out(1, WEB), (1000, 53))),
            (1, FRESH, [0b1110, 9, 0x1f, 0x40], &udp(out(1, WEB), (1000, 53))),
            (2, 0, ALL, &udp(out(2, WEB), (1000, 53))),
            (2, FRESH, [0b11_1000, 0, 4, 0], &udp(out(2, WEB), (1000, 53))),
            (1, FRESH, [0, 0, 0, 0], &udp(out(1, WEB), (1000, 53))),
        ]),
    ]
}

fn tell<F: AsRef<[u8]>>(frames: &[(u8, u8, [u8; 4], F)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (port, flags, [a, b, c, d], frame) in frames {
        let frame = frame.as_ref();
        let [high, low] = u16::try_from(frame.len()).expect("the example is short").to_be_bytes();
        data.extend([*port, *flags, *a, *b, *c, *d, high, low]);
        data.extend_from_slice(frame);
    }
    data
}

fn name(text: &str) -> Name {
    text.parse().expect("it is a name")
}

/// What the bytes choose: who has the address, whether one is carried, whether there is a gateway
/// and of whom, how many ports a NIC has, and where forwards begin.
fn config(epoch: u64, [a, b, c, d]: [u8; 4]) -> SwitchConfig {
    let vni = |segment| Vni::new(segment).expect("the segments are VNIs");
    let port = |(id, segment, number): (u32, u32, u8)| GuestPort {
        id: PortId(id),
        name: name(&format!("nic-{id}")),
        vni: vni(segment),
        mac: nic_mac(number),
        addresses: vec![nic_v4(number).into()],
        socket: format!("/run/{id}").into(),
        mtu: 1450,
        queue_pairs: 1,
        subnet: None,
        security_groups: None,
        allowed: if number == 5 { vec![prefix("198.51.100.20/32")] } else { Vec::new() },
        limits: PortLimits::NONE,
    };
    let ports = (1..).zip(NICS).map(|(id, nic)| (id, SEGMENTS[usize::from(id == 4)], nic));
    let mut config = SwitchConfig {
        underlay: Some(Underlay {
            device: "fuzz".to_owned(),
            vtep: VTEP,
            prefix_length: 24,
            gateway: None,
            mac: UPLINK_MAC,
            mtu: 1500,
        }),
        ports: ports.map(port).collect(),
        vpcs: SEGMENTS.map(|segment| vpc(vni(segment))).to_vec(),
        ..SwitchConfig::empty(Epoch(epoch))
    };
    for vpc in &mut config.vpcs {
        vpc.routes = vec![Route { destination: prefix("0.0.0.0/0"), next_hop: NextHop::External }];
    }
    let inside = vni(SEGMENTS[0]);
    let bound = |address, nic, binding| ExternalAddress {
        address,
        line: name("line"),
        vni: inside,
        nic: nic_v4(nic),
        binding,
        limits: AddressLimits::default(),
    };
    config.external.lines = vec![Line { name: name("line"), next_hop: LINE }];
    let nic = [None, Some(1), Some(2), None][usize::from(a & 3)];
    let translated = nic.map(|nic| bound(EIP, nic, Binding::Translated));
    let carried = (a & 4 != 0).then(|| bound(CARRIED, 5, Binding::Carried));
    config.external.addresses = translated.into_iter().chain(carried).collect();
    let first = u16::from_be_bytes([c, d]);
    let forward = |protocol| Forward {
        address: SHARED[0],
        protocol,
        ports: (first, first.saturating_add(9)),
        nic: nic_v4(2),
        nic_port: 80,
    };
    let gateway = NatGateway {
        name: name("out"),
        vni: inside,
        line: name("line"),
        addresses: SHARED[..if a & 16 != 0 { 2 } else { 1 }].to_vec(),
        ports_per_nic: 64 + u16::from(b) * 200,
        mapping: [PortMapping::PerConnection, PortMapping::Independent, PortMapping::Open]
            [usize::from(a >> 6) % 3],
        serves: if a & 32 != 0 { Serves::Nic(nic_v4(2)) } else { Serves::Vpc },
        forwards: [ForwardProtocol::Tcp, ForwardProtocol::Udp].map(forward).to_vec(),
    };
    config.external.gateways = (a & 8 != 0).then_some(gateway).into_iter().collect();
    config
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("it is a prefix")
}

/// What is seen outside of a conversation: protocol, external end, remote end.
type Spoken = (u8, (Ipv4Addr, u16), (Ipv4Addr, u16));

/// Whose it is: port, address and port inside; by which configuration and when it was last heard.
type Speaker = (u8, (Ipv4Addr, u16), (Epoch, Moment));

struct Outside {
    switch: Switch,
    config: SwitchConfig,
    now: Moment,
    packets: [Packet; 2],
    spoken: BTreeMap<Spoken, Speaker>,
}

impl Outside {
    fn new() -> Self {
        let limits = Limits {
            ports: 4,
            flows: 64,
            flows_per_port: 32,
            next_hops: 2,
            fragments: 8,
            icmp_errors_per_second: u32::MAX,
            external_addresses: 8,
            ..Limits::default()
        };
        let mut outside = Self {
            switch: Switch::new(limits, 1),
            config: SwitchConfig::empty(Epoch(1)),
            now: Duration::from_secs(1),
            packets: [const { Packet::empty() }; 2],
            spoken: BTreeMap::new(),
        };
        outside.configure(ALL);
        let known = ArpPacket::reply((LINE_MAC, LINE), (UPLINK_MAC, VTEP)).frame(UPLINK_MAC);
        outside.send(PortIndex::UPLINK, &known);
        outside
    }

    /// A configuration that is refused changes nothing.
    fn configure(&mut self, chosen: [u8; 4]) {
        let config = config(self.config.epoch.0 + 1, chosen);
        if self.switch.apply(self.now, &config).is_ok() {
            self.config = config;
        }
    }

    /// Sends the frame twice, once to be judged and once to find what was kept: both have one
    /// fate, and both go out the same. Says where it goes, and as what.
    fn send(&mut self, port: PortIndex, frame: &[u8]) -> Option<(PortIndex, Vec<u8>)> {
        let length = u32::try_from(frame.len()).expect("frames are short");
        for packet in &mut self.packets {
            let copy = packet.load(port, length, Offload::default());
            let copied = copy.len();
            copy.copy_from_slice(&frame[..copied]);
        }
        self.switch.process(self.now, &mut self.packets);
        let [first, second] = &self.packets;
        let is_one = first.verdict() == second.verdict() && first.head() == second.head();
        let is_tcp = Seen::of(frame).is_some_and(|seen| seen.protocol == TCP);
        // A TCP packet may end its connection, and then its like is a stranger.
        assert!(is_one || is_tcp, "two equal packets have one fate: {first:?} {second:?}");
        let Verdict::Send(to) = first.verdict() else { return None };
        let tail = first.tail();
        Some((to, [first.head(), &frame[tail]].concat()))
    }

    fn port(&self, id: u8) -> PortIndex {
        self.switch.port_index(PortId(id.into())).expect("ports 1 to 4 are configured")
    }

    fn id(&self, index: PortIndex) -> u8 {
        let port = self.switch.snapshot.port(index).expect("a packet goes to a port that is there");
        u8::try_from(port.id.0).expect("there are four")
    }

    fn guest_sends(&mut self, id: u8, frame: &[u8]) {
        let port = self.port(id);
        let Some((to, out)) = self.send(port, frame) else { return };
        if to == port {
            return;
        }
        let (before, after) = (Seen::of(frame), Seen::of(&out));
        if to != PortIndex::UPLINK {
            assert!(id != 4 && self.id(to) != 4, "VPCs stay apart");
            let Some(before) = before else { return };
            let is_routed = frame[..6] == ROUTER_MAC.0;
            if is_routed && self.is_ours(before.destination) {
                let after = after.expect("IPv4 stays IPv4");
                self.check_left(id, &after, &out);
                check_sums((&before, frame), (&after, &out));
                self.answer(id, to, (&before, frame), &after);
            }
            return;
        }
        assert!(id != 4, "a VPC without an outside stays inside");
        let (Some(before), Some(after)) = (before, after) else {
            panic!("only IPv4 goes outside: {out:02x?}");
        };
        assert_eq!(out[..12], [LINE_MAC.0, UPLINK_MAC.0].concat(), "it goes to the line");
        self.check_left(id, &after, &out);
        check_sums((&before, frame), (&after, &out));
        let (from, to_port) = after.ports.unwrap_or_default();
        let to_port = if after.protocol == ICMP { 0 } else { to_port };
        let spoken = (after.protocol, (after.source, from), (after.destination, to_port));
        if !after.is_later {
            let inside = (before.source, before.ports.map_or(0, |(port, _)| port));
            let speaker = (id, inside, (self.config.epoch, self.now));
            if let Some((other, end, (epoch, heard))) = self.spoken.insert(spoken, speaker)
                && after.protocol == UDP
                && epoch == self.config.epoch
                && self.now - heard < Duration::from_secs(30)
            {
                assert_eq!(
                    (other, end),
                    (id, inside),
                    "two conversations look the same: {after:?}"
                );
            }
        }
        self.answer(id, to, (&before, frame), &after);
    }

    /// Whether an address is external and of this node.
    fn is_ours(&self, address: Ipv4Addr) -> bool {
        let external = &self.config.external;
        external.addresses.iter().any(|bound| bound.address == address)
            || external.gateways.iter().any(|gateway| gateway.addresses.contains(&address))
    }

    /// A packet left under an address and a port that are its NIC's to use.
    fn check_left(&self, id: u8, after: &Seen, out: &[u8]) {
        let nic = NICS[usize::from(id) - 1];
        let external = &self.config.external;
        if let Some(bound) = external.addresses.iter().find(|one| one.address == after.source) {
            assert_eq!(bound.nic, nic_v4(nic), "the address is another NIC's: {after:?}");
        } else {
            let gateway = external.gateways.first().expect("there is an address to leave under");
            assert!(gateway.addresses.contains(&after.source), "an inside address left: {after:?}");
            if let Some((port, _)) = after.ports {
                let is_its = self.has_port(gateway, id, after.source, port)
                    || is_forwarded(gateway, nic, (after.source, port));
                assert!(is_its, "NIC {nic} left by a port of somebody else's: {after:?}");
            }
        }
        if let Some(quoted) = after.quoted(out).filter(|_| after.source != CARRIED) {
            assert_eq!(quoted.destination, after.source, "an inside address left in an error");
        }
    }

    /// Whether a port is of the block that the gateway has given to a NIC.
    fn has_port(&self, gateway: &NatGateway, id: u8, address: Ipv4Addr, port: u16) -> bool {
        let seats = self.switch.snapshot.handed_seats();
        let Some(seat) = seats.iter().find(|seat| seat.port == PortId(id.into())) else {
            return false;
        };
        let size = u32::from(gateway.ports_per_nic);
        let blocks = 64_512 / size;
        let first = 1024 + seat.seat % blocks * size;
        let place = usize::try_from(seat.seat / blocks).expect("a seat fits");
        gateway.addresses.get(place) == Some(&address)
            && (first..first + size).contains(&port.into())
    }

    /// Answers what was sent to `to`: it comes to who asked, from whom he asked.
    fn answer(&mut self, id: u8, to: PortIndex, (before, frame): (&Seen, &[u8]), after: &Seen) {
        let (Some(asked), Some((from, target))) = (before.ports, after.ports) else { return };
        if before.is_piece || !is_routable(after.destination.into()) {
            return;
        }
        let content = match (after.protocol, before.tcp(frame)) {
            (UDP, _) => bytemuck::bytes_of(&UdpHeader::new(target, from, 8)).to_vec(),
            (TCP, Some((2, sequence))) => {
                let header = TcpHeader::new(target, from, 77, 18);
                let header = header.acknowledging(sequence.wrapping_add(1), 1000);
                bytemuck::bytes_of(&header).to_vec()
            }
            (ICMP, _) if before.message == Some([8, 0]) => {
                let [high, low] = from.to_be_bytes();
                vec![0, 0, 0, 0, high, low, 0, 1]
            }
            _ => return,
        };
        let macs = match to {
            PortIndex::UPLINK => (LINE_MAC, UPLINK_MAC),
            to => (nic_mac(NICS[usize::from(self.id(to)) - 1]), ROUTER_MAC),
        };
        let ends = (after.destination, after.source);
        let reply = example_packet(macs, ends, after.protocol, &content);
        let Some((back, heard)) = self.send(to, &reply) else {
            let reason = self.packets[0].verdict();
            // What TCP knows of an older connection may refuse the answer to another; a guest may
            // not speak as a DHCP server, whoever asks it to.
            let is_guarded = reason == Verdict::Drop(DropReason::DhcpServerForbidden);
            assert!(
                after.protocol == TCP || is_guarded,
                "an answer was lost: {reason:?} {after:?}"
            );
            return;
        };
        assert_eq!(back, self.port(id), "the answer comes to who asked");
        let heard = Seen::of(&heard).expect("IPv4 stays IPv4");
        assert_eq!((heard.source, heard.destination), (before.destination, before.source));
        assert_eq!(heard.ports, Some((asked.1, asked.0)), "the answer comes from whom he asked");
    }

    fn wire_brings(&mut self, frame: &[u8]) {
        let Some((to, out)) = self.send(PortIndex::UPLINK, frame) else { return };
        if to == PortIndex::UPLINK {
            return;
        }
        let id = self.id(to);
        assert!(id != 4, "a VPC without an outside hears nothing");
        let (before, after) = (Seen::of(frame), Seen::of(&out));
        let (Some(before), Some(after)) = (before, after) else {
            panic!("only IPv4 comes in: {out:02x?}");
        };
        check_sums((&before, frame), (&after, &out));
        let nic = NICS[usize::from(id) - 1];
        assert_eq!(out[..12], [nic_mac(nic).0, ROUTER_MAC.0].concat(), "it comes from the router");
        let external = &self.config.external;
        if let Some(bound) = external.addresses.iter().find(|one| one.address == before.destination)
        {
            let is_carried = bound.binding == Binding::Carried;
            let address = if is_carried { bound.address } else { bound.nic };
            assert_eq!((after.destination, nic_v4(nic)), (address, bound.nic));
            return;
        }
        assert_eq!(after.destination, nic_v4(nic), "it is for the NIC's address");
        if before.is_later {
            return;
        }
        let gateway = external.gateways.first().expect("there is an address to come in by");
        let (protocol, ours, remote) = match before.quoted(frame) {
            Some(quoted) => {
                let (from, to) = quoted.ports.unwrap_or_default();
                (quoted.protocol, (quoted.source, from), (quoted.destination, to))
            }
            None => {
                let (from, to) = before.ports.unwrap_or_default();
                (before.protocol, (before.destination, to), (before.source, from))
            }
        };
        let remote = (remote.0, if protocol == ICMP { 0 } else { remote.1 });
        let speaker = self.spoken.get(&(protocol, ours, remote));
        let is_open = gateway.mapping == PortMapping::Open && protocol != ICMP;
        let all = self.spoken.iter().filter(|((of, end, _), _)| (*of, *end) == (protocol, ours));
        let mut open = all.filter(|_| is_open);
        let may = is_forwarded(gateway, nic, ours)
            || speaker.is_some_and(|one| one.0 == id)
            || open.any(|(_, one)| one.0 == id);
        assert!(may, "a stranger came in to NIC {nic}: {before:?}");
    }
}

/// Whether a port of a gateway leads to a NIC.
fn is_forwarded(gateway: &NatGateway, nic: u8, (address, port): (Ipv4Addr, u16)) -> bool {
    gateway.forwards.iter().any(|forward| {
        let is_port = (forward.ports.0..=forward.ports.1).contains(&port);
        is_port && (forward.address, forward.nic) == (address, nic_v4(nic))
    })
}

/// A translated packet's sums are as right, or as wrong, as they were.
fn check_sums((before, frame): (&Seen, &[u8]), (after, out): (&Seen, &[u8])) {
    let (header, upper) = before.sums(frame);
    assert_eq!(after.sums(out), (header, upper), "sums change as what they cover: {after:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stories do what they are to do, so the fuzzer starts where it is interesting.
    #[test]
    fn stories_of_the_outside_are_told_to_their_end() {
        let told = outside_stories().into_iter().map(|story| {
            outside_packet(&story);
            let mut outside = Outside::new();
            let mut data = &story[..];
            while let Some((&[from, flags, a, b, c, d, high, low], rest)) =
                data.split_first_chunk::<8>()
            {
                let (frame, rest) = rest.split_at(u16::from_be_bytes([high, low]).into());
                if flags >> 4 == NEW_CONFIGURATION {
                    outside.configure([a, b, c, d]);
                }
                match from {
                    0 => outside.wire_brings(frame),
                    port => outside.guest_sends(port, frame),
                }
                data = rest;
            }
            outside.switch.counters.iter().map(|counters| counters.forwarded).sum::<u64>()
        });
        let told: Vec<u64> = told.collect();
        assert_eq!(told, [16, 10, 12, 12, 56, 14, 16]);
    }

    /// Mutations of the stories, a short run of what ci/fuzz does for long.
    #[test]
    fn mutated_stories_of_the_outside_break_nothing() {
        let mut state = 7u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(state >> 33).expect("31 bits fit")
        };
        let stories = outside_stories();
        for _ in 0..20_000 {
            let first = &stories[random() % stories.len()];
            let mut data = [&first[..], &stories[random() % stories.len()]].concat();
            for _ in 0..random() % 8 {
                let at = random() % data.len();
                let any = random().to_le_bytes()[0];
                data[at] = [0, 1, 0x50, 6, 17, 0x10, 3, any][random() % 8];
            }
            outside_packet(&data);
        }
    }
}
