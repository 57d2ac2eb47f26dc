// SPDX-License-Identifier: Apache-2.0
//! The switch against a slow model that shares no code with it, under random configurations and
//! packets, and isolation on its own: whatever is sent, nothing crosses between VPCs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{PortId, Vni};
use plinth_switch_api::SwitchConfig;
use plinth_vswitch::{BURST_MAX, DropReason, Limits, PortIndex};
use plinth_wire::ArpPacket;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use support::frames;
use support::generate::{self, Generated, Random};
use support::model::{Expected, Model};
use support::*;

/// Both, side by side.
struct Race {
    rig: Rig,
    model: Model,
    random: Random,
    tally: BTreeMap<DropReason, u64>,
    sent: u64,
}

impl Race {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let config = generate::config(&mut random, 1);
        let limits = Limits { flows: 512, flows_per_port: 96, ..limits() };
        let rig = Rig::with_limits(&config, limits);
        let model = Model { config, hops: BTreeMap::new() };
        Self { rig, model, random, tally: BTreeMap::new(), sent: 0 }
    }

    fn reconfigure(&mut self, epoch: u64) {
        let config = generate::config(&mut self.random, epoch);
        self.rig.switch.apply(self.rig.now, &config).unwrap();
        self.model.config = config;
        let next_hops = self.model.next_hops();
        self.model.hops.retain(|address, _| next_hops.contains(address));
    }

    /// Lets time pass; what the switch asks of known next hops is answered.
    fn pass(&mut self, time: Duration) {
        self.rig.now += time;
        for frame in self.rig.said() {
            let arp = *ArpPacket::parse(&frame[14..]).unwrap();
            if let Some(&mac) = self.model.hops.get(&arp.target_address()) {
                let owner = (mac, arp.target_address());
                let reply = frames::arp_reply(owner, (arp.sender_mac(), arp.sender_address()));
                assert_eq!(self.rig.once(PortIndex::UPLINK, reply), Outcome::Absorbed);
            }
        }
    }

    /// Sends `count` packets in bursts of any size.
    fn run(&mut self, count: usize) {
        let mut burst = Vec::new();
        for _ in 0..count {
            let packet = generate::packet(&mut self.random, &self.model.config);
            // ARP from the wire is heard in a burst's first pass, before any of its packets is
            // sent; alone in its burst, it is heard in order.
            let is_arp = packet.port.is_none() && packet.frame.get(12..14) == Some(&[8, 6]);
            if is_arp {
                self.flush(&mut burst);
            }
            // Some come again at once, to be met by the entry that the first one made.
            let again = if self.random.percent(30) { 1 + self.random.below(4) } else { 0 };
            burst.extend(std::iter::repeat_n(packet, 1 + again));
            if is_arp || burst.len() + 5 > BURST_MAX || self.random.percent(10) {
                self.flush(&mut burst);
            }
        }
        self.flush(&mut burst);
    }

    fn flush(&mut self, burst: &mut Vec<Generated>) {
        let incoming: Vec<Incoming> = burst.iter().map(|packet| self.incoming(packet)).collect();
        let outcomes = self.rig.burst(&incoming);
        for (packet, outcome) in burst.drain(..).zip(outcomes) {
            let expected = self.model.expect(packet.port, &packet.frame, packet.offload);
            match &expected {
                Expected::Dropped(reason) => *self.tally.entry(*reason).or_default() += 1,
                Expected::Sent { .. } => self.sent += 1,
                Expected::Absorbed => {}
            }
            let outcome = self.comparable(outcome);
            if outcome != expected {
                panic!(
                    "{packet:02x?}\nexpected {expected:02x?}\n     got {outcome:02x?}\n{:#?}",
                    self.model.config
                );
            }
        }
    }

    fn incoming(&self, packet: &Generated) -> Incoming {
        let port = packet.port.map_or(PortIndex::UPLINK, |PortId(id)| self.rig.index(id));
        Incoming { port, frame: packet.frame.clone(), offload: packet.offload }
    }

    /// The outcome in the model's words.
    fn comparable(&self, outcome: Outcome) -> Expected {
        match outcome {
            Outcome::Dropped(reason) => Expected::Dropped(reason),
            Outcome::Absorbed => Expected::Absorbed,
            Outcome::Asked => panic!("nobody in these configurations is answered"),
            Outcome::Sent { port, mut frame, partial } => {
                let ports = &self.model.config.ports;
                let to = ports.iter().find(|to| self.rig.switch.port_index(to.id) == Some(port));
                assert_eq!(to.is_none(), port == PortIndex::UPLINK);
                if to.is_none() && frame[12..14] == [8, 0] && frame[23] == 17 {
                    assert!(frame[34] >= 0xc0, "the source port is a dynamic one");
                    frame[34..36].fill(0);
                }
                Expected::Sent { to: to.map(|to| to.id), frame, partial }
            }
        }
    }
}

/// A failure prints its seed; it is kept by hand, as a plain test with its story.
fn config_of(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config_of(200))]

    #[test]
    fn the_switch_does_what_the_model_says(seed: u64, count in 1..400usize) {
        let mut race = Race::new(seed);
        race.run(count);
        // One configuration, so the counters are those of all packets.
        let counted: BTreeMap<_, _> =
            race.rig.switch.drops().into_iter().map(|drop| (drop.reason, drop.packets)).collect();
        let expected: BTreeMap<_, _> =
            race.tally.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect();
        prop_assert_eq!(counted, expected);
    }
}

/// The long run: a million packets and more, over hundreds of configurations of one switch.
/// `VSWITCH_MODEL_SEED` and `VSWITCH_MODEL_PACKETS` choose another history or a longer one.
#[test]
fn a_million_packets_do_what_the_model_says() {
    let from_environment = |name: &str, default: u64| {
        option_env_at_run_time(name).map_or(default, |text| text.parse().unwrap())
    };
    let seed = from_environment("VSWITCH_MODEL_SEED", 20_261_122);
    let packets = from_environment("VSWITCH_MODEL_PACKETS", 1_200_000);
    println!("VSWITCH_MODEL_SEED={seed} VSWITCH_MODEL_PACKETS={packets}");
    let mut race = Race::new(seed);
    for round in 0..packets / 4000 {
        if round > 0 {
            race.reconfigure(round + 1);
        }
        for _ in 0..10 {
            race.run(400);
            let pause = Duration::from_millis(race.random.next() % 4000);
            race.pass(pause);
        }
    }
    let counters = race.rig.switch.flow_counters();
    println!("{packets} packets: {} sent", race.sent);
    println!("{counters:?}, drops {:?}", race.tally);
    assert!(race.sent > packets / 10, "only {} packets got through", race.sent);
    assert!(counters.hits > packets / 8, "the fast path was hardly taken: {counters:?}");
    assert!(counters.refused_share_used > 0 && counters.refused_table_full > 0, "{counters:?}");
    let never: Vec<_> = DropReason::ALL
        .iter()
        .filter(|reason| !reason.is_of_delivery() && !race.tally.contains_key(reason))
        .collect();
    // The model knows no routers, no security groups and no outside; their stories are told
    // elsewhere.
    let elsewhere = [
        DropReason::UnderlayMtuExceeded,
        DropReason::QuestionRateExceeded,
        DropReason::RouteUnknown,
        DropReason::RouteBlackhole,
        DropReason::RouteNextHopUnknown,
        DropReason::SecurityGroupDenied,
        DropReason::ConnectionTableFull,
        DropReason::IcmpUnrelated,
        DropReason::FragmentUnmatched,
        DropReason::TcpFlagsInvalid,
        DropReason::TcpOutOfWindow,
        DropReason::TcpNoConnection,
        DropReason::ExternalAddressMissing,
        DropReason::NatPortsExhausted,
        DropReason::NatNoConnection,
        DropReason::ExternalRateExceeded,
        DropReason::BalancerNoListener,
        DropReason::BalancerNoBackend,
        DropReason::BalancerBackendBusy,
        DropReason::RouterUnserved,
        DropReason::TimeToLiveExceeded,
    ];
    assert_eq!(never, elsewhere.iter().collect::<Vec<_>>());
}

fn option_env_at_run_time(name: &str) -> Option<String> {
    std::env::vars().find(|(key, _)| key == name).map(|(_, value)| value)
}

/// The VPC that a frame on the uplink is of.
fn vni_of(frame: &[u8]) -> Option<Vni> {
    let header = usize::from(frame.get(14)? % 16) * 4;
    let is_tunnel = frame[12..14] == [8, 0] && frame[23] == 17;
    let raw = frame.get(14 + header + 8 + 4..)?.first_chunk::<3>()?;
    let [a, b, c] = *raw;
    if is_tunnel { Vni::new(u32::from_be_bytes([0, a, b, c])) } else { None }
}

fn vni_of_port(config: &SwitchConfig, rig: &Rig, port: PortIndex) -> Option<Vni> {
    let found = config.ports.iter().find(|known| rig.switch.port_index(known.id) == Some(port));
    found.map(|found| found.vni)
}

proptest! {
    #![proptest_config(config_of(100))]

    /// Said without the model: a packet of one VPC comes to a port of that VPC, or to the uplink
    /// with that VPC's VNI, or nowhere. And what nobody may hear of, an ARP question, comes to
    /// nobody but the one who asked.
    #[test]
    fn nothing_crosses_between_vpcs(seed: u64) {
        let mut race = Race::new(seed);
        let mut checked = 0;
        for _ in 0..2000 {
            let config = race.model.config.clone();
            let packet = generate::packet(&mut race.random, &config);
            let incoming = race.incoming(&packet);
            let outcome = race.rig.burst(std::slice::from_ref(&incoming)).remove(0);
            let Outcome::Sent { port, frame, .. } = outcome
            else {
                continue;
            };
            let from = match packet.port {
                Some(_) => vni_of_port(&config, &race.rig, incoming.port),
                None => vni_of(&packet.frame),
            };
            let to = match port {
                PortIndex::UPLINK => vni_of(&frame),
                port => vni_of_port(&config, &race.rig, port),
            };
            prop_assert_eq!(from, to, "{:02x?} became {:02x?}", packet, frame);
            let is_arp = packet.frame[12..14] == [8, 6];
            prop_assert!(!is_arp || port == incoming.port);
            checked += 1;
        }
        prop_assert!(checked > 0 || race.model.config.underlay.is_none());
    }
}
