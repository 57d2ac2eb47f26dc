// SPDX-License-Identifier: Apache-2.0
//! Four tenants with routers, of both families: two of them with equal addresses, some of them
//! peers, with guests here and behind a tunnel, VMs that route for others, ranges that a NIC may
//! speak from, and rules that name prefixes and groups. Whatever a guest sends, by whichever MAC,
//! goes where the model says or nowhere, byte for byte, and whatever is changed is so from the next
//! packet on.
//!
//! `VSWITCH_MODEL_SEED` and `VSWITCH_MODEL_PACKETS` repeat a run and make it longer.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod model;
mod spoof;
#[path = "../support/mod.rs"]
mod support;
mod world;

use model::{Model, Place};
use plinth_ids::{Epoch, MacAddress};
use plinth_switch_api::{Change, Edit};
use plinth_vswitch::{DropReason, Limits, PortIndex};
use plinth_wire::PROTOCOL_UDP;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use support::generate::Random;
use support::*;
use world::*;

/// A datagram, and who sends it by which MACs.
#[derive(Clone, Copy, Debug)]
struct Said {
    from: Place,
    macs: (MacAddress, MacAddress),
    ends: (IpAddr, IpAddr),
    ports: (u16, u16),
}

impl Said {
    fn frame(&self) -> Vec<u8> {
        let datagram = frames::datagram(self.ports, b"said");
        match self.ends {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frames::ipv4(self.macs, (from, to), PROTOCOL_UDP, &datagram)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frames::ipv6(self.macs, (from, to), PROTOCOL_UDP, &datagram)
            }
            _ => unreachable!("ends are of one family"),
        }
    }
}

struct Race {
    rig: Rig,
    limits: Limits,
    model: Model,
    random: Random,
    epoch: u64,
    tally: BTreeMap<&'static str, u64>,
}

impl Race {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let config = config(&mut random, 1);
        let limits = Limits { flows: 1 << 15, flows_per_port: 1 << 15, ports: 32, ..limits() };
        let mut rig = Rig::with_limits(&config, limits);
        rig.hear_next_hops();
        let model = Model { config, connections: Vec::new() };
        Self { rig, limits, model, random, epoch: 1, tally: BTreeMap::new() }
    }

    fn any_end(&mut self, is_v6: bool) -> (IpAddr, IpAddr) {
        let random = &mut self.random;
        let address = |random: &mut Random| match random.below(12) {
            0 => elsewhere(is_v6, random.below(3)),
            1 if random.percent(50) => beyond(random.below(TENANTS), is_v6),
            1 => gateway(random.below(TENANTS), 1 + random.below(2), is_v6),
            _ => address(random.below(TENANTS), 1 + random.below(NICS), is_v6),
        };
        (address(random), address(random))
    }

    fn any(&mut self) -> Said {
        let is_v6 = self.random.percent(50);
        let (mut source, to) = self.any_end(is_v6);
        let random = &mut self.random;
        let (tenant, nic) = (random.below(TENANTS), 1 + random.below(NICS));
        let is_own = random.percent(90) || nic < NICS && random.percent(50);
        if is_own && !(nic == ROUTING && random.percent(30)) {
            source = address(tenant, nic, is_v6);
        }
        let own = if random.percent(98) { mac_of(nic) } else { mac_of(1 + random.below(NICS)) };
        let by = match random.below(20) {
            0..12 => router_of(tenant),
            12 => router_of(random.below(TENANTS)),
            13 => MacAddress([2, 0, 0, 0, 0, 99]),
            _ => mac_of(1 + random.below(NICS)),
        };
        let from = if nic == NICS { Place::Tunnel(tenant) } else { Place::Nic(tenant, nic) };
        let ports = [53, 80, 1000];
        let ports = (random.pick(&ports), random.pick(&ports));
        Said { from, macs: (own, by), ends: (source, to), ports }
    }

    fn step(&mut self, said: &Said) {
        let frame = said.frame();
        let outcome = match said.from {
            Place::Nic(tenant, nic) => {
                let port = self.rig.index(port_id(tenant, nic));
                self.rig.once(port, frame.clone())
            }
            Place::Tunnel(tenant) => {
                let ends = (NEAR_VTEP, OUR_VTEP);
                let macs = (NEAR_MAC, OUR_MAC);
                let outer = frames::vxlan(macs, ends, vni(segment(tenant)), &frame);
                self.rig.once(PortIndex::UPLINK, outer)
            }
        };
        let expected = self.model.judge(said.from, said.macs, said.ends, said.ports);
        let name = match expected {
            Err(reason) => {
                assert_eq!(outcome, Outcome::Dropped(reason), "{said:?}");
                reason.name()
            }
            Ok(way) => {
                let Outcome::Sent { port, frame: sent, partial: None } = outcome else {
                    panic!("{said:?} is to go {way:?}, and the switch says {outcome:?}");
                };
                let arrived = match way.to {
                    Place::Nic(tenant, nic) => {
                        assert_eq!(port, self.rig.index(port_id(tenant, nic)), "{said:?}");
                        sent
                    }
                    Place::Tunnel(tenant) => {
                        assert_eq!(port, PortIndex::UPLINK, "{said:?}");
                        let vteps = (OUR_VTEP, NEAR_VTEP);
                        frames::unwrap(&sent, (OUR_MAC, NEAR_MAC), vteps, vni(segment(tenant)))
                    }
                };
                assert_eq!(arrived, way.arrives(frame), "{said:?}");
                way.name(said.from)
            }
        };
        *self.tally.entry(name).or_default() += 1;
    }

    /// NICs behind the tunnel go, come and get other groups: a change, not a configuration.
    fn change(&mut self) {
        let from = Epoch(self.epoch);
        self.epoch += 1;
        let to = Epoch(self.epoch);
        let edits: Vec<Edit> = (0..=self.random.below(2))
            .map(|_| {
                let tenant = self.random.below(TENANTS);
                let mut remote = remote_of(&mut self.random, tenant);
                let known = self.model.config.remotes.iter().find(|known| known.vni == remote.vni);
                let edit = match known {
                    Some(_) if self.random.percent(30) => {
                        Edit::RemoveRemote { vni: remote.vni, mac: remote.mac }
                    }
                    Some(known) if self.random.percent(30) => Edit::SetRemote(known.clone()),
                    Some(_) | None => {
                        remote.security_groups = groups(&mut self.random);
                        Edit::SetRemote(remote)
                    }
                };
                self.model.config.edit(&edit).unwrap();
                edit
            })
            .collect();
        self.model.config.epoch = to;
        let change = Change { from, to, edits };
        let limits = self.limits;
        let changed = self.rig.switch.snapshot().change(&change, &limits, |_, _, _| false);
        self.rig.switch.install(self.rig.now, Arc::new(changed.unwrap()));
    }

    fn run(&mut self, packets: u64) {
        let mut said = self.any();
        for number in 0..packets {
            if number % 200 == 199 {
                self.epoch += 1;
                let config = config(&mut self.random, self.epoch);
                self.rig.switch.apply(self.rig.now, &config).unwrap();
                self.model.config = config;
            } else if number % 10 == 9 {
                self.change();
            }
            said = match self.random.below(8) {
                // The same once more, or by another MAC.
                0 => said,
                1 => Said { macs: (said.macs.0, self.any().macs.1), ..said },
                // Its answer.
                2..4 => match self.model.answerer(said.ends.1) {
                    Some((from, mac)) => Said {
                        from,
                        macs: (mac, self.any().macs.1),
                        ends: (said.ends.1, said.ends.0),
                        ports: (said.ports.1, said.ports.0),
                    },
                    None => self.any(),
                },
                _ => self.any(),
            };
            self.step(&said);
        }
    }
}

#[test]
fn tenants_hear_each_other_as_their_routes_and_rules_say() {
    let from_environment = |name: &str, default: u64| {
        let found = std::env::vars().find(|(key, _)| key == name);
        found.map_or(default, |(_, text)| text.parse().unwrap())
    };
    let seed = from_environment("VSWITCH_MODEL_SEED", 20_261_123);
    let packets = from_environment("VSWITCH_MODEL_PACKETS", 1_000_000);
    println!("VSWITCH_MODEL_SEED={seed} VSWITCH_MODEL_PACKETS={packets}");
    let mut race = Race::new(seed);
    race.run(packets);
    println!("{packets} packets: {:?}", race.tally);
    let counters = race.rig.switch.flow_counters();
    assert!(counters.hits > packets / 50, "decisions outlive changes: {counters:?}");
    for name in [
        "to a neighbor",
        "to a peer",
        "to a peer's tunnel",
        "by a routing VM",
        "out by a tunnel",
        "in by a tunnel",
        DropReason::SecurityGroupDenied.name(),
        DropReason::RouteUnknown.name(),
        DropReason::RouteBlackhole.name(),
        DropReason::DestinationUnknown.name(),
        DropReason::SourceAddressSpoofed.name(),
        DropReason::SourceMacSpoofed.name(),
        DropReason::RouterUnserved.name(),
        DropReason::VtepUnknown.name(),
    ] {
        let count = race.tally.get(name).copied().unwrap_or_default();
        assert!(count > packets / 500, "{name}: {:?}", race.tally);
    }
}
