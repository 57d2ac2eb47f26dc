// SPDX-License-Identifier: Apache-2.0
//! What the tests of the machine stand on: configurations, frames, and a driver that carries out
//! verdicts in memory.
#![allow(dead_code, reason = "every test binary uses its own part of this module")]

pub(crate) mod follow;
pub(crate) mod frames;
pub(crate) mod generate;
pub(crate) mod look;
pub(crate) mod model;
pub(crate) mod outside;

use plinth_ids::{Epoch, MacAddress, Moment, PortId, Vni};
use plinth_switch_api::{
    Direction, GuestPort, Priority, Remote, Rule, RulePeer, RuleProtocol, RuleVerdict,
    SwitchConfig, Underlay,
};
use plinth_vswitch::{
    DropReason, HEADERS_MAX, Limits, Offload, Packet, PortIndex, Switch, Verdict,
};
use plinth_wire::checksum::{PartialChecksum, RxChecksum};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

pub(crate) const SEED: u64 = 0x5eed;

/// Limits with a small flow table, so that tests start fast.
pub(crate) fn limits() -> Limits {
    Limits { flows: 1024, flows_per_port: 512, ports: 16, next_hops: 16, ..Limits::default() }
}

pub(crate) fn vni(raw: u32) -> Vni {
    Vni::new(raw).unwrap()
}

/// The MAC of the test NIC with this number.
pub(crate) fn mac(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number])
}

/// The IPv4 and IPv6 address of the test NIC with this number.
pub(crate) fn addresses(number: u8) -> Vec<IpAddr> {
    vec![v4(number).into(), v6(number).into()]
}

pub(crate) fn v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

pub(crate) fn v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into())
}

pub(crate) fn port(id: u32, segment: u32, number: u8) -> GuestPort {
    GuestPort {
        id: PortId(id),
        name: format!("nic-{id}").parse().unwrap(),
        vni: vni(segment),
        mac: mac(number),
        addresses: addresses(number),
        socket: format!("/run/plinth/net/{id}.sock").into(),
        mtu: 1450,
        queue_pairs: 1,
        subnet: None,
        security_groups: None,
        allowed: Vec::new(),
        limits: plinth_switch_api::PortLimits::NONE,
    }
}

/// A rule that allows this, whoever the peer is.
pub(crate) fn allow(
    direction: Direction,
    protocol: RuleProtocol,
    ports: Option<(u16, u16)>,
) -> Rule {
    Rule {
        direction,
        priority: Priority::Mid,
        verdict: RuleVerdict::Allow,
        protocol,
        ports,
        icmp: None,
        peer: RulePeer::Any,
    }
}

pub(crate) fn remote(segment: u32, number: u8, vtep: Ipv4Addr) -> Remote {
    Remote {
        vni: vni(segment),
        mac: mac(number),
        addresses: addresses(number),
        vtep,
        subnet: None,
        security_groups: Vec::new(),
        allowed: Vec::new(),
    }
}

pub(crate) const OUR_VTEP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
pub(crate) const NEAR_VTEP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
/// Behind the gateway.
pub(crate) const FAR_VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 254);
pub(crate) const OUR_MAC: MacAddress = MacAddress([2, 0xaa, 0, 0, 0, 1]);
pub(crate) const NEAR_MAC: MacAddress = MacAddress([2, 0xaa, 0, 0, 0, 2]);
pub(crate) const GATEWAY_MAC: MacAddress = MacAddress([2, 0xaa, 0, 0, 0, 254]);

/// Two VPCs that use the same MACs and addresses.
///
/// VPC 100: ports 1 and 2 (NICs 1 and 2), NIC 3 behind the near VTEP, NIC 4 behind the far one.
/// VPC 200: ports 3 and 4 (NICs 1 and 2), NIC 3 behind the near VTEP.
pub(crate) fn two_vpcs() -> SwitchConfig {
    SwitchConfig {
        underlay: Some(Underlay {
            device: "net_af_packet0,iface=uplink".to_owned(),
            vtep: OUR_VTEP,
            prefix_length: 24,
            gateway: Some(GATEWAY),
            mac: OUR_MAC,
            mtu: 1500,
        }),
        ports: vec![port(1, 100, 1), port(2, 100, 2), port(3, 200, 1), port(4, 200, 2)],
        remotes: vec![
            remote(100, 3, NEAR_VTEP),
            remote(100, 4, FAR_VTEP),
            remote(200, 3, NEAR_VTEP),
        ],
        ..SwitchConfig::empty(Epoch(1))
    }
}

/// What became of a frame, with the bytes as a driver would have sent them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    Sent { port: PortIndex, frame: Vec<u8>, partial: Option<PartialChecksum> },
    Absorbed,
    Asked,
    Dropped(DropReason),
}

impl Outcome {
    /// The frame and where it went, with no checksum left to be done.
    #[track_caller]
    pub(crate) fn sent(self) -> (PortIndex, Vec<u8>) {
        match self {
            Self::Sent { port, frame, partial: None } => (port, frame),
            other => panic!("{other:?} is not a finished frame"),
        }
    }
}

/// A frame on its way in.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    pub(crate) port: PortIndex,
    pub(crate) frame: Vec<u8>,
    pub(crate) offload: Offload,
}

impl Incoming {
    pub(crate) fn new(port: PortIndex, frame: Vec<u8>) -> Self {
        Self { port, frame, offload: Offload::default() }
    }
}

/// A switch with a driver in memory and a clock that the test moves.
pub(crate) struct Rig {
    pub(crate) switch: Switch,
    pub(crate) now: Moment,
    packets: Vec<Packet>,
}

impl Rig {
    pub(crate) fn new(config: &SwitchConfig) -> Self {
        Self::with_limits(config, limits())
    }

    pub(crate) fn with_limits(config: &SwitchConfig, limits: Limits) -> Self {
        let mut switch = Switch::new(limits, SEED);
        switch.apply(Duration::ZERO, config).unwrap();
        Self { switch, now: Duration::from_secs(1), packets: Vec::new() }
    }

    /// With both next hops of [`two_vpcs`] known.
    pub(crate) fn resolved(config: &SwitchConfig) -> Self {
        let mut rig = Self::new(config);
        rig.hear_next_hops();
        rig
    }

    pub(crate) fn hear_next_hops(&mut self) {
        for (mac, address) in [(NEAR_MAC, NEAR_VTEP), (GATEWAY_MAC, GATEWAY)] {
            let frame = frames::arp_reply((mac, address), (OUR_MAC, OUR_VTEP));
            assert_eq!(self.once(PortIndex::UPLINK, frame), Outcome::Absorbed);
        }
    }

    pub(crate) fn index(&self, id: u32) -> PortIndex {
        self.switch.port_index(PortId(id)).unwrap()
    }

    /// Sends a frame once.
    pub(crate) fn once(&mut self, port: PortIndex, frame: Vec<u8>) -> Outcome {
        self.burst(&[Incoming::new(port, frame)]).remove(0)
    }

    /// Sends a frame twice, by the slow path and by the fast path, which must agree.
    pub(crate) fn send(&mut self, port: PortIndex, frame: Vec<u8>) -> Outcome {
        self.offer(&Incoming::new(port, frame))
    }

    pub(crate) fn offer(&mut self, incoming: &Incoming) -> Outcome {
        let slow = self.burst(std::slice::from_ref(incoming)).remove(0);
        let fast = self.burst(std::slice::from_ref(incoming)).remove(0);
        assert_eq!(slow, fast, "the entry does what the stages decided");
        slow
    }

    /// What a driver does with a burst.
    pub(crate) fn burst(&mut self, incoming: &[Incoming]) -> Vec<Outcome> {
        self.packets.resize(incoming.len(), Packet::empty());
        for (packet, Incoming { port, frame, offload }) in self.packets.iter_mut().zip(incoming) {
            let copy = packet.load(*port, u32::try_from(frame.len()).unwrap(), *offload);
            assert_eq!(copy.len(), frame.len().min(HEADERS_MAX));
            let length = copy.len();
            copy.copy_from_slice(&frame[..length]);
        }
        self.switch.process(self.now, &mut self.packets);
        let pairs = self.packets.iter().zip(incoming);
        pairs.map(|(packet, incoming)| outcome(packet, &incoming.frame)).collect()
    }

    /// Everything that the switch says of its own accord now.
    pub(crate) fn said(&mut self) -> Vec<Vec<u8>> {
        let now = self.now;
        std::iter::from_fn(|| self.switch.tick(now)).map(|frame| frame.bytes().to_vec()).collect()
    }

    /// Every packet that came in had one end, and every one that was sent arrived or was refused.
    pub(crate) fn check_books(&self, ports: usize) {
        let all = (0..=ports).map(|place| self.counters_at(place));
        let (mut outward, mut arrived) = (0, 0);
        for counters in all {
            let ends = counters.forwarded + counters.answered + counters.absorbed;
            assert_eq!(counters.received, ends + counters.drops_decided());
            outward += counters.forwarded + counters.answered;
            arrived += counters.sent + counters.drops_of_delivery();
        }
        assert_eq!(outward, arrived, "what left one port came to another");
    }

    fn counters_at(&self, place: usize) -> &plinth_vswitch::PortCounters {
        let indexes = (1..=16).filter_map(|id| self.switch.port_index(PortId(id)));
        let index = indexes.chain([PortIndex::UPLINK]).find(|index| index.get() == place);
        self.switch.counters(index.expect("the configuration has this many ports"))
    }
}

/// Builds the outgoing frame as a driver does: the packet's head, then the frame's tail.
fn outcome(packet: &Packet, frame: &[u8]) -> Outcome {
    match packet.verdict() {
        Verdict::Send(port) => {
            let mut sent = packet.head().to_vec();
            sent.extend_from_slice(&frame[packet.tail()]);
            assert_eq!(sent.len(), packet.output_length() as usize);
            Outcome::Sent { port, frame: sent, partial: packet.partial_checksum() }
        }
        Verdict::Absorbed => Outcome::Absorbed,
        Verdict::Ask => {
            assert_eq!(packet.head(), &frame[..packet.head().len()], "it is handed on as it came");
            Outcome::Asked
        }
        Verdict::Drop(reason) => Outcome::Dropped(reason),
    }
}

/// An offload request for a checksum left to the switch.
pub(crate) fn partial(start: u16, offset: u16) -> Offload {
    Offload { partial: Some(PartialChecksum { start, offset }), udp: RxChecksum::Unknown }
}
