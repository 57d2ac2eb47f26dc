// SPDX-License-Identifier: Apache-2.0
//! Volumes on a simulated device: what a flood does to its neighbors, with and without fairness.

use plinth_qos::{Account, Fair, cost_of};
use std::collections::VecDeque;
use std::time::Duration;

/// How a device serves what it has.
#[derive(Clone, Copy)]
enum Device {
    /// `servers` at a time, each for `base` ns; then 4 GB/s, one after the other.
    Queue { servers: usize, base: u64 },
    /// In the worker's own time, each for `base` ns and a nanosecond for 14 bytes.
    Memory { base: u64 },
}

struct Client {
    account: Account,
    length: u64,
    /// Nanoseconds between an answer and the next request.
    think: u64,
    /// When requests were made that did not start.
    waiting: VecDeque<u64>,
    /// When the next ones are made.
    thinking: Vec<u64>,
    latencies: Vec<u64>,
}

struct Started {
    client: usize,
    made: u64,
    started: u64,
    ends: u64,
}

struct World {
    fair: Fair,
    is_fair: bool,
    device: Device,
    clients: Vec<Client>,
    under_way: Vec<Started>,
    free_at: Vec<u64>,
    now: u64,
    bus_free_at: u64,
    looked_at: u64,
    was_busy: bool,
}

/// What a round takes that starts nothing.
const ROUND: u64 = 500;

impl World {
    fn new(device: Device, is_fair: bool) -> Self {
        let free_at = match device {
            Device::Queue { servers, .. } => vec![0; servers],
            Device::Memory { .. } => Vec::new(),
        };
        let (fair, clients, under_way) = (Fair::new(), Vec::new(), Vec::new());
        Self {
            fair,
            is_fair,
            device,
            clients,
            under_way,
            free_at,
            now: 0,
            bus_free_at: 0,
            looked_at: 0,
            was_busy: false,
        }
    }

    fn client(&mut self, depth: usize, length: u64, think: u64) -> usize {
        let account = self.fair.join();
        self.clients.push(Client {
            account,
            length,
            think,
            waiting: VecDeque::new(),
            thinking: vec![0; depth],
            latencies: Vec::new(),
        });
        self.clients.len() - 1
    }

    fn round(&mut self) {
        self.fair.begin_round(Duration::from_nanos(self.now));
        let made_until = self.now;
        // As the worker counts it: from the last look, if that was a moment ago.
        let looked = if self.was_busy { self.looked_at } else { self.now };
        self.looked_at = self.now;
        self.now += ROUND;
        let before = self.under_way.len();
        let light_first = |&index: &usize| {
            self.fair.has_order() && !self.fair.is_light(self.clients[index].account)
        };
        let mut order: Vec<_> = (0..self.clients.len()).collect();
        order.sort_by_key(light_first);
        for index in order {
            let client = &mut self.clients[index];
            let waiting = &mut client.waiting;
            client.thinking.retain(|&at| {
                let is_made = at <= made_until;
                if is_made {
                    waiting.push_back(at);
                }
                !is_made
            });
            let mut turn = self.fair.open_turn(client.account);
            while !client.waiting.is_empty()
                && (turn.may_start(cost_of(client.length)) || !self.is_fair)
            {
                turn.start(cost_of(client.length));
                let made = client.waiting.pop_front().expect("not empty");
                let started = looked;
                let ends = match self.device {
                    Device::Queue { base, .. } => {
                        let server = self.free_at.iter_mut().min().expect("a server");
                        *server = (*server).max(self.now) + base;
                        self.bus_free_at = self.bus_free_at.max(*server) + client.length / 4;
                        self.bus_free_at
                    }
                    Device::Memory { .. } => 0,
                };
                self.under_way.push(Started { client: index, made, started, ends });
            }
            let wants = client.waiting.len() as u64 * cost_of(client.length);
            self.fair.close_turn(client.account, turn, wants);
        }
        if let Device::Memory { base } = self.device {
            for started in &self.under_way {
                self.now += base + self.clients[started.client].length / 14;
            }
        }
        self.was_busy = self.under_way.len() > before;
        self.land();
    }

    fn land(&mut self) {
        let now = self.now;
        for Started { client, made, started, .. } in
            self.under_way.extract_if(.., |started| started.ends <= now)
        {
            let client = &mut self.clients[client];
            self.fair.end(client.account, cost_of(client.length), now - started);
            client.latencies.push(now - made);
            client.thinking.push(now + client.think);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + u64::try_from(time.as_nanos()).expect("a short run");
        while self.now < end {
            self.round();
        }
    }

    /// Forgets what was measured.
    fn settle(&mut self) {
        for client in &mut self.clients {
            client.latencies.clear();
        }
    }

    fn p99(&mut self, client: usize) -> u64 {
        let latencies = &mut self.clients[client].latencies;
        assert!(latencies.len() > 100, "{} answers are no sample", latencies.len());
        latencies.sort_unstable();
        latencies[latencies.len() * 99 / 100]
    }

    fn requests(&self, client: usize) -> u64 {
        self.clients[client].latencies.len() as u64
    }
}

const SOLID: Device = Device::Queue { servers: 8, base: 60_000 };
const MEMORY: Device = Device::Memory { base: 1_000 };
const TIME: Duration = Duration::from_secs(2);

/// The p99 of a client alone, and beside a flood.
fn beside_flood(
    device: Device,
    is_fair: bool,
    victim: (usize, u64),
    flood: (usize, u64),
) -> [u64; 2] {
    let mut alone = World::new(device, is_fair);
    let client = alone.client(victim.0, victim.1, 20_000);
    alone.run(TIME / 4);
    let mut beside = World::new(device, is_fair);
    // The flood was there first.
    beside.client(flood.0, flood.1, 0);
    beside.run(TIME / 10);
    let other = beside.client(victim.0, victim.1, 20_000);
    beside.run(TIME);
    [alone.p99(client), beside.p99(other)]
}

#[test]
fn a_flood_does_not_double_the_p99_of_who_asks_for_little() {
    for device in [SOLID, MEMORY] {
        for flood in [(256, 4096), (64, 131_072)] {
            for victim in [(1, 4096), (4, 4096)] {
                let [alone, beside] = beside_flood(device, true, victim, flood);
                assert!(beside <= alone * 2, "{victim:?} {flood:?}: {alone} ns, then {beside} ns");
            }
        }
    }
}

#[test]
fn without_fairness_it_does_so_that_the_test_above_tests_something() {
    for device in [SOLID, MEMORY] {
        let [alone, beside] = beside_flood(device, false, (1, 4096), (256, 4096));
        assert!(beside > alone * 4, "{alone} ns, then {beside} ns");
    }
}

#[test]
fn a_flood_beside_little_still_gets_most_of_the_device() {
    let mut alone = World::new(SOLID, true);
    let flood = alone.client(256, 4096, 0);
    alone.run(TIME);
    let mut beside = World::new(SOLID, true);
    let held = beside.client(256, 4096, 0);
    beside.client(1, 4096, 200_000);
    beside.run(TIME);
    let (all, left) = (alone.requests(flood), beside.requests(held));
    assert!(left * 2 >= all, "{left} of {all}");
}

#[test]
fn one_alone_is_not_bounded_and_is_not_again_when_the_other_has_gone() {
    let mut world = World::new(SOLID, true);
    let flood = world.client(256, 4096, 0);
    world.run(TIME / 10);
    assert_eq!(world.fair.window(), None);
    assert_eq!(world.under_way.len(), 256);
    let little = world.client(1, 4096, 0);
    world.run(TIME / 10);
    assert!(world.fair.window().is_some() && world.under_way.len() < 256);
    world.clients[little].think = u64::from(u32::MAX);
    world.run(TIME / 2);
    assert_eq!(world.fair.window(), None);
    assert_eq!(world.under_way.iter().filter(|started| started.client == flood).count(), 256);
}

#[test]
fn floods_share_by_cost_whatever_the_size_of_their_requests() {
    for device in [SOLID, MEMORY] {
        let mut world = World::new(device, true);
        let small = world.client(256, 4096, 0);
        let large = world.client(64, 1 << 20, 0);
        world.run(TIME / 4);
        world.settle();
        world.run(2 * TIME);
        let cost = |client: usize, length| world.requests(client) * cost_of(length);
        let (a, b) = (cost(small, 4096), cost(large, 1 << 20));
        assert!(a * 10 >= b * 7 && b * 10 >= a * 7, "{a} and {b}");
    }
}

#[test]
fn sixteen_alike_are_served_alike() {
    for depth in [1, 64] {
        let mut world = World::new(MEMORY, true);
        let clients: Vec<_> = (0..16).map(|_| world.client(depth, 4096, 0)).collect();
        world.run(TIME / 10);
        world.settle();
        world.run(TIME / 2);
        let requests: Vec<_> = clients.iter().map(|&client| world.requests(client)).collect();
        let (least, most) =
            (requests.iter().min().expect("a server"), requests.iter().max().unwrap());
        assert!(least * 10 >= most * 9, "depth {depth}: {requests:?}");
    }
}

#[test]
fn whoever_waits_is_served_in_the_end_whatever_goes_on() {
    let mut world = World::new(MEMORY, true);
    let flood = world.client(64, 4 << 20, 0);
    let other = world.client(32, 512, 0);
    for _ in 0..12 {
        world.client(1, 4096, 0);
    }
    world.run(TIME);
    assert!(world.requests(flood) > 50, "{}", world.requests(flood));
    assert!(world.requests(other) > 1_000, "{}", world.requests(other));
}

#[test]
fn an_account_is_used_again_only_when_its_last_piece_has_ended() {
    let mut fair = Fair::new();
    let first = fair.join();
    let mut turn = fair.open_turn(first);
    turn.start(cost_of(0));
    fair.close_turn(first, turn, 0);
    fair.leave(first);
    assert_ne!(fair.join(), first);
    fair.end(first, cost_of(0), 1);
    assert_eq!(fair.join(), first);
}
