// SPDX-License-Identifier: Apache-2.0
//! A node with a line to the outside, and IPv4 packets to go over it.

use super::frames::{self, Macs};
use super::*;
use plinth_switch_api::{
    AddressLimits, Binding, ExternalAddress, Forward, ForwardProtocol, Line, NatGateway, NextHop,
    PortMapping, Route, Serves, Subnet, SubnetPrefix, Vpc,
};
use plinth_wire::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, TcpHeader, checksum};

pub(crate) const UPLINK: PortIndex = PortIndex::UPLINK;
pub(crate) const ROUTER: MacAddress = MacAddress([2, 0xee, 0, 0, 0, 1]);
/// Somebody far out.
pub(crate) const WEB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
pub(crate) const EIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const SHARED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
pub(crate) const CARRIED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);

pub(crate) const SYN: u8 = TcpHeader::SYN;
pub(crate) const ACK: u8 = TcpHeader::ACK;
pub(crate) const RST: u8 = TcpHeader::RST;

/// VPC 100, 10.0.0.0/24: NIC 1 has an external address, NIC 2 goes out by the gateway and has
/// ports 8000 to 8009 of it for its 80 to 89, NIC 5 carries an address. VPC 200 has NIC 1 with the
/// addresses of the other and nothing outside.
pub(crate) fn outside() -> SwitchConfig {
    let mut config = two_vpcs();
    config.remotes.clear();
    let mut carrier = port(5, 100, 5);
    carrier.allowed = vec![format!("{CARRIED}/32").parse().unwrap()];
    config.ports.push(carrier);
    let vpc = |segment: u32| Vpc {
        vni: vni(segment),
        name: format!("vpc-{segment}").parse().unwrap(),
        router_mac: ROUTER,
        subnets: vec![Subnet {
            name: "only".parse().unwrap(),
            prefixes: vec![SubnetPrefix {
                prefix: "10.0.0.0/24".parse().unwrap(),
                gateway: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 254)),
            }],
        }],
        routes: vec![Route {
            destination: "0.0.0.0/0".parse().unwrap(),
            next_hop: NextHop::External,
        }],
    };
    config.vpcs = vec![vpc(100), vpc(200)];
    let line = || "line".parse().unwrap();
    let external = &mut config.external;
    external.lines = vec![Line { name: line(), next_hop: GATEWAY }];
    let bound = |address, number, binding| ExternalAddress {
        address,
        line: line(),
        vni: vni(100),
        nic: v4(number),
        binding,
        limits: AddressLimits::default(),
    };
    external.addresses =
        vec![bound(EIP, 1, Binding::Translated), bound(CARRIED, 5, Binding::Carried)];
    external.gateways = vec![NatGateway {
        name: "out".parse().unwrap(),
        vni: vni(100),
        line: line(),
        addresses: vec![SHARED],
        ports_per_nic: 64,
        mapping: PortMapping::PerConnection,
        serves: Serves::Vpc,
        forwards: vec![Forward {
            address: SHARED,
            protocol: ForwardProtocol::Tcp,
            ports: (8000, 8009),
            nic: v4(2),
            nic_port: 80,
        }],
    }];
    config
}

pub(crate) struct Story {
    pub(crate) rig: Rig,
    pub(crate) config: SwitchConfig,
}

impl Story {
    pub(crate) fn new() -> Self {
        Self::of(outside())
    }

    pub(crate) fn of(config: SwitchConfig) -> Self {
        let mut story = Self { rig: Rig::new(&config), config };
        story.hear_next_hop();
        story
    }

    pub(crate) fn hear_next_hop(&mut self) {
        let frame = frames::arp_reply((GATEWAY_MAC, GATEWAY), (OUR_MAC, OUR_VTEP));
        assert_eq!(self.rig.once(UPLINK, frame), Outcome::Absorbed);
    }

    pub(crate) fn apply(&mut self, change: impl FnOnce(&mut SwitchConfig)) {
        self.config.epoch = Epoch(self.config.epoch.0 + 1);
        change(&mut self.config);
        self.rig.switch.apply(self.rig.now, &self.config).unwrap();
    }

    /// From a NIC to its router, twice.
    pub(crate) fn out(&mut self, number: u8, packet: &Ip) -> Outcome {
        let place = self.rig.index(number.into());
        self.rig.send(place, packet.frame((mac(number), ROUTER), 64))
    }

    /// From the line, twice.
    pub(crate) fn back(&mut self, packet: &Ip) -> Outcome {
        self.rig.send(UPLINK, packet.frame((GATEWAY_MAC, OUR_MAC), 64))
    }

    pub(crate) fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds * 2 {
            self.rig.now += Duration::from_millis(500);
            self.rig.said();
        }
    }
}

/// An IPv4 packet, of which every sum is taken anew.
#[derive(Clone, Debug)]
pub(crate) struct Ip {
    pub(crate) ends: (Ipv4Addr, Ipv4Addr),
    pub(crate) protocol: u8,
    pub(crate) upper: Vec<u8>,
    /// Number, start in bytes, whether more follow.
    pub(crate) piece: (u16, u16, bool),
}

impl Ip {
    pub(crate) fn new(protocol: u8, ends: (Ipv4Addr, Ipv4Addr), upper: Vec<u8>) -> Self {
        Self { ends, protocol, upper, piece: (0, 0, false) }.summed()
    }

    pub(crate) fn udp(ends: (Ipv4Addr, Ipv4Addr), ports: (u16, u16), payload: &[u8]) -> Self {
        Self::new(PROTOCOL_UDP, ends, frames::datagram(ports, payload))
    }

    pub(crate) fn tcp(
        ends: (Ipv4Addr, Ipv4Addr),
        ports: (u16, u16),
        flags: u8,
        numbers: (u32, u32),
    ) -> Self {
        let header =
            TcpHeader::new(ports.0, ports.1, numbers.0, flags).acknowledging(numbers.1, 1000);
        Self::new(PROTOCOL_TCP, ends, bytemuck::bytes_of(&header).to_vec())
    }

    pub(crate) fn icmp(
        ends: (Ipv4Addr, Ipv4Addr),
        kind: u8,
        identifier: u16,
        payload: &[u8],
    ) -> Self {
        let mut upper = vec![kind, 0, 0, 0];
        upper.extend_from_slice(&identifier.to_be_bytes());
        upper.extend_from_slice(&[0, 1]);
        upper.extend_from_slice(payload);
        Self::new(PROTOCOL_ICMP, ends, upper)
    }

    /// "Port unreachable" about a packet, of which so many bytes are quoted.
    pub(crate) fn error(ends: (Ipv4Addr, Ipv4Addr), about: &Self, quoted: usize) -> Self {
        let about = about.packet(64);
        let mut upper = vec![3, 3, 0, 0, 0, 0, 0, 0];
        upper.extend_from_slice(&about[..about.len().min(quoted)]);
        Self::new(PROTOCOL_ICMP, ends, upper)
    }

    pub(crate) fn to(&self, ends: (Ipv4Addr, Ipv4Addr)) -> Self {
        Self { ends, ..self.clone() }.summed()
    }

    pub(crate) fn summed(mut self) -> Self {
        let place = match self.protocol {
            PROTOCOL_TCP => 16,
            PROTOCOL_UDP => 6,
            _ => 2,
        };
        self.upper[place..place + 2].fill(0);
        let mut covered = self.upper.clone();
        if self.protocol != PROTOCOL_ICMP {
            covered = [self.ends.0.octets(), self.ends.1.octets()].concat();
            covered.extend_from_slice(&[0, self.protocol]);
            covered.extend_from_slice(&u16::try_from(self.upper.len()).unwrap().to_be_bytes());
            covered.extend_from_slice(&self.upper);
        }
        let sum = match checksum::checksum(&covered) {
            0 if self.protocol == PROTOCOL_UDP => 0xffff,
            sum => sum,
        };
        self.upper[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        self
    }

    pub(crate) fn packet(&self, time_to_live: u8) -> Vec<u8> {
        let (number, start, has_more) = self.piece;
        let length = u16::try_from(20 + self.upper.len()).unwrap();
        let place = (start / 8) | if has_more { 0x2000 } else { 0 };
        let mut header = vec![0x45, 0];
        header.extend_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&number.to_be_bytes());
        header.extend_from_slice(&place.to_be_bytes());
        header.extend_from_slice(&[time_to_live, self.protocol, 0, 0]);
        header.extend_from_slice(&self.ends.0.octets());
        header.extend_from_slice(&self.ends.1.octets());
        let sum = checksum::checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [header, self.upper.clone()].concat()
    }

    pub(crate) fn frame(&self, macs: Macs, time_to_live: u8) -> Vec<u8> {
        frames::ethernet(macs, 0x0800, &self.packet(time_to_live))
    }

    pub(crate) fn with_ports(&self, source: u16, destination: u16) -> Self {
        let mut other = self.clone();
        other.upper[..2].copy_from_slice(&source.to_be_bytes());
        other.upper[2..4].copy_from_slice(&destination.to_be_bytes());
        other.summed()
    }

    /// As it is on the line.
    pub(crate) fn left(&self) -> (PortIndex, Vec<u8>) {
        (UPLINK, self.frame((OUR_MAC, GATEWAY_MAC), 63))
    }

    /// As NIC `number` gets it at `place`.
    pub(crate) fn arrived(&self, place: PortIndex, number: u8) -> (PortIndex, Vec<u8>) {
        (place, self.frame((ROUTER, mac(number)), 63))
    }
}

/// The source port, or identifier, of what was sent.
pub(crate) fn source_port(frame: &[u8]) -> u16 {
    let at = if frame[23] == PROTOCOL_ICMP { 38 } else { 34 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}
