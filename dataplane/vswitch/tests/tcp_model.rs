// SPDX-License-Identifier: Apache-2.0
//! TCP between two guests whose ports are filtered, against a slow model of what its ends may
//! send: segments as a stack sends them, at the edges of the windows, one beyond, and anywhere;
//! flags that fit and that do not; numbers that wrap round; connections met amid in a grace.
//!
//! `VSWITCH_MODEL_SEED` and `VSWITCH_MODEL_PACKETS` repeat a run and make it longer.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{Epoch, GroupId, Moment};
use plinth_switch_api::{Direction, RuleProtocol, SecurityGroup, SwitchConfig};
use plinth_vswitch::{DropReason, Limits};
use plinth_wire::PROTOCOL_TCP;
use std::collections::BTreeMap;
use std::time::Duration;
use support::follow::{self, Follow, Heard, Says};
use support::generate::Random;
use support::*;

const CLIENT: u8 = 1;
const SERVER: u8 = 2;
const SERVICE: u16 = 80;
const CLIENTS: u16 = 8;

/// NIC 1 may open anything, NIC 2 lets in what is for port 80, and opens nothing.
fn filtered() -> SwitchConfig {
    let mut config = two_vpcs();
    let rule = |direction, ports| allow(direction, RuleProtocol::Tcp, ports);
    let groups = [rule(Direction::Outbound, None), rule(Direction::Inbound, Some((80, 80)))];
    config.security_groups = (1..)
        .zip(groups)
        .map(|(id, rule)| SecurityGroup {
            id: GroupId(id),
            name: format!("group-{id}").parse().unwrap(),
            rules: vec![rule],
        })
        .collect();
    for (port, id) in config.ports.iter_mut().zip([1, 2]) {
        port.security_groups = Some(vec![GroupId(id)]);
    }
    config
}

struct Race {
    rig: Rig,
    random: Random,
    /// By the client's port.
    followed: BTreeMap<u16, Follow>,
    is_grace: bool,
    tally: BTreeMap<&'static str, u64>,
}

impl Race {
    fn new(seed: u64) -> Self {
        let limits = Limits { flows: 1024, flows_per_port: 1024, ..limits() };
        let rig = Rig::with_limits(&filtered(), limits);
        let followed = BTreeMap::new();
        Self { rig, random: Random(seed), followed, is_grace: false, tally: BTreeMap::new() }
    }

    fn expect(&mut self, port: u16, from: usize, heard: &Heard) -> Result<bool, DropReason> {
        let says = self.followed.get_mut(&port).map(|known| known.follow(from, heard));
        match says {
            Some(Says::Passes) => return Ok(true),
            Some(Says::Either) => return Ok(false),
            Some(Says::Drops(reason)) => return Err(reason),
            Some(Says::Begins) => {
                self.followed.remove(&port);
            }
            None => {}
        }
        let begun = Follow::begin(heard, self.is_grace)?;
        // The server's own SYN is allowed by no rule; met amid, it is the answer.
        if from == 1 && heard.flags & 2 != 0 {
            return Err(DropReason::SecurityGroupDenied);
        }
        self.followed.insert(port, begun);
        Ok(true)
    }

    fn step(&mut self) {
        let port = 1000 + u16::try_from(self.random.below(CLIENTS.into())).unwrap();
        let from = self.random.below(2);
        let heard = Follow::guess(self.followed.get(&port), from, &mut self.random);
        let (numbers, ports) = match from {
            0 => ((CLIENT, SERVER), (port, SERVICE)),
            _ => ((SERVER, CLIENT), (SERVICE, port)),
        };
        let macs = (mac(numbers.0), mac(numbers.1));
        let upper = follow::segment(ports, &heard);
        let frame = frames::ipv4(macs, (v4(numbers.0), v4(numbers.1)), PROTOCOL_TCP, &upper);
        let before = self.followed.get(&port).copied();
        let expected = self.expect(port, from, &heard);
        let place = self.rig.index(numbers.0.into());
        let outcome = self.rig.once(place, frame.clone());
        let to = self.rig.index(numbers.1.into());
        let arrived = || Outcome::Sent { port: to, frame: frame.clone(), partial: None };
        let is_right = match expected {
            Ok(true) => outcome == arrived(),
            Ok(false) => outcome == arrived() || matches!(outcome, Outcome::Dropped(_)),
            Err(reason) => outcome == Outcome::Dropped(reason),
        };
        assert!(
            is_right,
            "{heard:?} of side {from} of {port}, which was {before:?}\n\
             the model says {expected:?}, the switch {outcome:?}"
        );
        let name = expected.map_or_else(DropReason::name, |_| "passed");
        *self.tally.entry(name).or_default() += 1;
    }

    /// Some seconds are a grace; connections are not forgotten that soon, or all are.
    fn change(&mut self) {
        match self.random.below(8) {
            0 => {
                self.is_grace = !self.is_grace;
                let until = if self.is_grace { Duration::MAX } else { Moment::ZERO };
                self.rig.switch.begin_grace(until);
            }
            1 => {
                let until = self.rig.now + Duration::from_secs(2 * 3600);
                while self.rig.now < until {
                    self.rig.now += Duration::from_secs(1);
                    self.rig.said();
                }
                assert_eq!(self.rig.switch.connection_count(), 0);
                self.followed.clear();
            }
            _ => {
                // A configuration that changes nothing has every connection asked about.
                let mut config = filtered();
                config.epoch = Epoch(self.rig.switch.epoch().unwrap().0 + 1);
                self.rig.switch.apply(self.rig.now, &config).unwrap();
            }
        }
    }
}

#[test]
fn a_filtered_connection_may_send_what_its_ends_can_have_sent() {
    let from_environment = |name: &str, default: u64| {
        let found = std::env::vars().find(|(key, _)| key == name);
        found.map_or(default, |(_, text)| text.parse().unwrap())
    };
    let seed = from_environment("VSWITCH_MODEL_SEED", 20_261_123);
    let packets = from_environment("VSWITCH_MODEL_PACKETS", 1_000_000);
    println!("VSWITCH_MODEL_SEED={seed} VSWITCH_MODEL_PACKETS={packets}");
    let mut race = Race::new(seed);
    for number in 0..packets {
        if number % 4000 == 3999 {
            race.change();
        }
        race.step();
    }
    println!("{packets} packets: {:?}", race.tally);
    let least = [
        ("passed", 3),
        ("tcp-out-of-window", 20),
        ("tcp-no-connection", 200),
        ("tcp-flags-invalid", 100),
        ("security-group-denied", 1000),
    ];
    for (name, share) in least {
        let count = race.tally.get(name).copied().unwrap_or_default();
        assert!(count > packets / share, "{name}: {:?}", race.tally);
    }
}
