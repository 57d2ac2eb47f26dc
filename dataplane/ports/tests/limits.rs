// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! What a port is limited to is what passes, and nobody's flood takes another's turn.

#[allow(dead_code, reason = "other tests of the path use the rest")]
mod support;

use crossbeam_channel::bounded;
use plinth_ids::{Epoch, Moment};
use plinth_ports::{
    Answer, DataPath, Frame, MemoryLink, Message, Port, PortSet, Question, memory_port,
};
use plinth_rt::{InboxSender, Poller, inbox};
use plinth_switch_api::{GuestPort as PortConfig, PortLimits, PortStatus, RateLimit, SwitchConfig};
use plinth_vswitch::{Limits, Snapshot};
use std::sync::Arc;
use std::time::Duration;
use support::{port, udp};

struct Bench {
    path: DataPath,
    sender: InboxSender<Message>,
    snapshot: Arc<Snapshot>,
    limits: Limits,
    now: Moment,
    epoch: u64,
}

impl Bench {
    fn new() -> Self {
        let limits = Limits { ports: 8, flows: 64, ..Limits::default() };
        let (sender, inbox) = inbox(64).unwrap();
        let (_, receiver) = bounded(64);
        let path = DataPath::new(inbox, receiver, limits, 7, None);
        Self { path, sender, snapshot: Arc::default(), limits, now: Moment::from_secs(1), epoch: 0 }
    }

    fn install(&mut self, ports: Vec<PortConfig>) -> Vec<MemoryLink> {
        let mut set = PortSet::default();
        let mut links = Vec::new();
        for config in &ports {
            let (port, link) = memory_port(4096);
            links.push(link);
            set.others.push((config.id, Port::Memory(port)));
        }
        self.epoch += 1;
        let config = SwitchConfig { ports, ..SwitchConfig::empty(Epoch(self.epoch)) };
        self.snapshot = Arc::new(Snapshot::compile(&config, &self.limits, &self.snapshot).unwrap());
        let (answer, _told) = bounded(1);
        let snapshot = Arc::clone(&self.snapshot);
        self.sender.try_send(Message::Install { snapshot, ports: set, answer }).unwrap();
        self.path.poll(self.now);
        links
    }

    fn path_ports(&mut self) -> Vec<PortStatus> {
        let (answer, told) = bounded(1);
        self.sender.try_send(Message::Ask { question: Question::Ports, answer }).unwrap();
        self.path.poll(self.now);
        match told.try_recv() {
            Ok(Answer::Ports(ports)) => ports,
            other => panic!("asked for ports and told {other:?}"),
        }
    }

    /// Lets time pass in steps of one round each, while `from` always has frames of this payload
    /// to send. Gives packets and bytes that `to` got.
    fn run(
        &mut self,
        (from, to): (&MemoryLink, &MemoryLink),
        payload: usize,
        (time, step): (Duration, Duration),
    ) -> (u64, u64) {
        let frame = udp(1, 2, payload, false);
        let end = self.now + time;
        let (mut packets, mut bytes) = (0, 0);
        while self.now < end {
            self.now += step;
            while from.waiting() < 32 {
                from.send(frame.clone());
            }
            self.path.poll(self.now);
            for frame in to.take() {
                packets += 1;
                bytes += frame.bytes.len() as u64;
            }
        }
        (packets, bytes)
    }
}

fn limited(outbound: RateLimit, inbound: RateLimit) -> Vec<PortConfig> {
    let limits = |outbound, inbound| PortLimits { outbound, inbound, weight: None };
    vec![
        PortConfig { limits: limits(outbound, RateLimit::NONE), ..port(1, 5) },
        PortConfig { limits: limits(RateLimit::NONE, inbound), ..port(2, 5) },
    ]
}

const fn bits(per_second: u64) -> RateLimit {
    RateLimit { bits_per_second: Some(per_second), ..RateLimit::NONE }
}

const fn packets(per_second: u64) -> RateLimit {
    RateLimit { packets_per_second: Some(per_second), ..RateLimit::NONE }
}

#[allow(clippy::cast_precision_loss, reason = "counts of a test are small")]
fn assert_within_3_percent(found: u64, wanted: u64, what: &str) {
    let error = (found as f64 - wanted as f64).abs() / wanted as f64;
    assert!(error < 0.03, "{what}: {found} is not {wanted}");
}

/// Rate, step of the worker's rounds, time of the run: enough packets for three percent.
const RUNS: [(u64, u64, u64); 5] = [
    (64_000, 1_000_000, 20_000),
    (1_000_000, 200_000, 4000),
    (100_000_000, 20_000, 1000),
    (1_000_000_000, 10_000, 200),
    (10_000_000_000, 2000, 50),
];

#[test]
fn bits_and_packets_of_each_direction_are_within_three_percent_of_their_limit() {
    for (rate, step, time) in RUNS {
        for (payload, is_outbound) in [(18, true), (1400, true), (18, false), (1400, false)] {
            let frame = 42 + payload as u64;
            // Small packets at a high rate are more than the steps of this test can bring.
            let most = 32 * 1_000_000_000 / step;
            let (by_bits, per_second) = (bits(rate), rate / 8 / frame);
            for limit in [by_bits, packets(per_second.max(1))] {
                if per_second > most / 2 || per_second * time / 1000 < 100 {
                    continue;
                }
                let mut bench = Bench::new();
                let (outbound, inbound) =
                    if is_outbound { (limit, RateLimit::NONE) } else { (RateLimit::NONE, limit) };
                let links = bench.install(limited(outbound, inbound));
                let step = Duration::from_nanos(step);
                // The burst is used up first.
                bench.run((&links[0], &links[1]), payload, (Duration::from_millis(time), step));
                let time = Duration::from_millis(time);
                let (packets, bytes) = bench.run((&links[0], &links[1]), payload, (time, step));
                let what = format!("{limit:?} payload {payload} outbound {is_outbound}");
                let of = |per_second: u64| {
                    u64::try_from(u128::from(per_second) * time.as_nanos() / 1_000_000_000).unwrap()
                };
                match limit.bits_per_second {
                    Some(_) => assert_within_3_percent(bytes, of(rate / 8), &what),
                    None => assert_within_3_percent(packets, of(per_second.max(1)), &what),
                }
            }
        }
    }
}

#[test]
fn what_a_guest_sends_too_much_waits_and_what_it_gets_too_much_is_dropped_and_counted() {
    let step = (Duration::from_secs(1), Duration::from_micros(100));
    let mut bench = Bench::new();
    let links = bench.install(limited(packets(1000), RateLimit::NONE));
    let (held, _) = bench.run((&links[0], &links[1]), 100, step);
    let status = bench.path_ports();
    assert!(held < 1100 && status.iter().all(|port| port.drops.is_empty()), "{status:?}");
    assert_eq!(status[0].packets_received, held, "what waits was not received");
    let mut bench = Bench::new();
    let links = bench.install(limited(RateLimit::NONE, packets(1000)));
    let (passed, _) = bench.run((&links[0], &links[1]), 100, step);
    let status = bench.path_ports();
    let dropped = &status[1].drops[0];
    assert_eq!(dropped.reason, "inbound-rate-exceeded");
    assert_eq!(status[0].packets_received, passed + dropped.packets);
    assert_eq!(status[1].packets_sent, passed);
    assert!(dropped.packets > 100_000 && status[0].drops.is_empty());
}

#[test]
fn an_idle_port_has_its_burst_at_once_and_no_more() {
    let limit = RateLimit { packets_burst: Some(500), ..packets(1000) };
    for limits in [limited(limit, RateLimit::NONE), limited(RateLimit::NONE, limit)] {
        let mut bench = Bench::new();
        let links = bench.install(limits);
        let short = (Duration::from_micros(200), Duration::from_micros(1));
        let (passed, _) = bench.run((&links[0], &links[1]), 18, short);
        assert_eq!(passed, 500);
        bench.now += Duration::from_secs(60);
        let (passed, _) = bench.run((&links[0], &links[1]), 18, short);
        assert_eq!(passed, 500);
    }
}

#[test]
fn a_limit_changes_live_and_is_taken_away() {
    let mut bench = Bench::new();
    let span = (Duration::from_secs(1), Duration::from_micros(100));
    for (rate, wanted) in [(1000, 1000), (20_000, 20_000), (500, 500)] {
        let links = bench.install(limited(packets(rate), RateLimit::NONE));
        bench.run((&links[0], &links[1]), 18, span);
        let (passed, _) = bench.run((&links[0], &links[1]), 18, span);
        assert_within_3_percent(passed, wanted, "after a change");
    }
    // A burst of the new limit is not a present for who changes it.
    let links = bench.install(limited(RateLimit::NONE, RateLimit::NONE));
    let (passed, _) = bench.run((&links[0], &links[1]), 18, span);
    assert_eq!(passed, 32 * 10_000, "without a limit every round moves a burst");
}

#[test]
fn a_worker_that_sleeps_wakes_for_what_is_held() {
    let mut bench = Bench::new();
    let links = bench.install(limited(packets(10), RateLimit::NONE));
    (0..100).for_each(|_| links[0].send(udp(1, 2, 18, false)));
    while bench.path.poll(bench.now) > 0 {}
    assert_eq!(links[1].take().len(), 32, "the burst");
    let due = bench.path.deadline().expect("somebody waits");
    let wait = due.saturating_sub(bench.now);
    assert!(wait > Duration::ZERO && wait <= Duration::from_millis(100), "{wait:?}");
    bench.now = due;
    bench.path.poll(bench.now);
    assert_eq!(links[1].take().len(), 1);
}

#[test]
fn a_flood_leaves_a_modest_port_its_turn_in_every_round() {
    let mut bench = Bench::new();
    let ports = vec![port(1, 5), port(2, 5), port(3, 5)];
    let links = bench.install(ports);
    let (mut prompt, mut all) = (0, 0);
    for _ in 0..2000 {
        while links[0].waiting() < 32 {
            links[0].send(udp(1, 2, 1400, false));
        }
        links[2].send(udp(3, 2, 18, false));
        bench.now += Duration::from_micros(10);
        bench.path.poll(bench.now);
        let is_modest = |frame: &Frame| frame.bytes.len() == 60;
        let count = links[1].take().iter().filter(|frame| is_modest(frame)).count();
        prompt += u32::from(count == 1);
        all += count;
    }
    // Where the kernel takes the CPU away in the middle of a burst, its port pays for a while.
    assert!(prompt > 1800 && all > 1990, "{prompt} of 2000 at once, {all} at all");
}

#[test]
fn two_floods_share_the_worker_by_weight() {
    let mut bench = Bench::new();
    let mut ports = vec![port(1, 5), port(2, 5), port(3, 5)];
    ports[0].limits.weight = Some(1);
    ports[2].limits.weight = Some(4);
    let links = bench.install(ports);
    let mut got = [0u32; 2];
    for _ in 0..8000 {
        for (link, from) in [(&links[0], 1), (&links[2], 3)] {
            while link.waiting() < 32 {
                link.send(udp(from, 2, 18, false));
            }
        }
        bench.now += Duration::from_micros(10);
        assert!(bench.path.poll(bench.now) > 0, "no round is lost to fairness");
        for frame in links[1].take() {
            got[usize::from(frame.bytes[11] == 3)] += 1;
        }
    }
    let ratio = f64::from(got[1]) / f64::from(got[0]);
    // Cycles are measured, on a machine that others use.
    assert!((2.5..6.5).contains(&ratio), "{got:?}");
}
