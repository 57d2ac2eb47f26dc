// SPDX-License-Identifier: Apache-2.0
//! The loop that sends, receives and counts.

use super::frame::{self, Template};
use super::options::Options;
use super::tunnel::Tunnel;
use crate::latency::{Latencies, Percentiles, Schedule};
use anyhow::{Context, Result};
use plinth_dpdk::{Eal, EalConfig, EthDev, EthOptions, EthQueue, Mbuf, Mempool};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

const BURST: usize = 32;
/// After the last packet was sent, this long for what is on its way.
const DRAIN: Duration = Duration::from_millis(200);
/// How long the first packet may take: a switch needs a moment to see its ports come up.
const FIRST: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct NetResult {
    pub seconds: f64,
    /// Packets that the rings took. What they did not take was never sent.
    pub sent: u64,
    pub received: u64,
    pub lost: u64,
    /// Times that a ring was full.
    pub refused: u64,
    /// Packets that we did not send, or of another run.
    pub foreign: u64,
    pub received_pps: f64,
    pub received_gbps: f64,
    /// In microseconds. Under full load this is the length of the queues.
    pub latency: Percentiles,
    /// Packets received in each tenth of the run.
    pub samples: Vec<u64>,
}

#[derive(Debug)]
struct Direction {
    template: Template,
    flows: u32,
    next_flow: u32,
    number: u64,
    schedule: Option<Schedule>,
}

#[derive(Debug)]
struct Engine<'a> {
    options: &'a Options,
    pool: Mempool,
    ports: [EthQueue; 2],
    directions: Vec<Direction>,
    tunnel: Option<Tunnel>,
    run: u64,
    begin: Instant,
    count_from: Duration,
    count_until: Duration,
    sent: u64,
    received: u64,
    refused: u64,
    foreign: u64,
    oversized: u64,
    latencies: Latencies,
    samples: Vec<u64>,
    out: Vec<Mbuf>,
    incoming: Vec<Mbuf>,
}

pub(crate) fn run(options: &Options) -> Result<(String, NetResult)> {
    let config = EalConfig {
        memory_mb: options.memory,
        use_hugepages: !options.ordinary_pages,
        single_file: true,
    };
    let eal = Eal::init(&config)?;
    let pool = Mempool::new(eal, 16_383, 2048)?;
    let open = |index: usize| -> Result<(EthDev, EthQueue)> {
        let name = options.device(index).parse()?;
        let size = options.queue_size;
        let options = EthOptions {
            receive_descriptors: size,
            send_descriptors: size,
            mtu: None,
            is_promiscuous: true,
        };
        EthDev::open(eal, &name, &pool, &options).context("a port of the generator")
    };
    let (device_a, queue_a) = open(0)?;
    let (device_b, queue_b) = open(1)?;
    // Threads of DPDK are there by now, and this one alone is to spin.
    if let Some(cpu) = options.cpu {
        plinth_rt::pin_to(cpu)?;
    }
    let _registration = eal.register_thread()?;
    let mut engine = Engine::new(options, pool, [queue_a, queue_b]);
    engine.wait_for_first()?;
    let result = engine.go();
    // The queues go before the devices that they are of.
    drop(engine);
    drop((device_a, device_b));
    Ok((eal.memory().to_string(), result))
}

impl<'a> Engine<'a> {
    fn new(options: &'a Options, pool: Mempool, ports: [EthQueue; 2]) -> Self {
        let a = (options.mac_a, options.ip_a);
        let b = (options.mac_b, options.ip_b);
        let run = u64::from(std::process::id()) << 32 | 0x5eed;
        let direction = |template| Direction {
            template,
            flows: options.flows,
            next_flow: 0,
            number: 0,
            schedule: Schedule::new(options.pps),
        };
        let tunnel = Tunnel::new(options);
        let mut directions = vec![direction(Template::new(options.size, a, b, run))];
        if options.both {
            let template = Template::new(options.size, b, a, run).answering();
            directions.push(direction(match &tunnel {
                Some(tunnel) => template.inside(tunnel),
                None => template,
            }));
        }
        let count_from = Duration::from_secs_f64(options.warm_up);
        Self {
            options,
            pool,
            ports,
            directions,
            tunnel,
            run,
            begin: Instant::now(),
            count_from,
            count_until: count_from + Duration::from_secs_f64(options.seconds),
            sent: 0,
            received: 0,
            refused: 0,
            foreign: 0,
            oversized: 0,
            latencies: Latencies::new(),
            samples: vec![0; 10],
            out: Vec::with_capacity(BURST),
            incoming: Vec::with_capacity(BURST),
        }
    }

    /// Sends a packet now and then in every direction until one has come through each.
    fn wait_for_first(&mut self) -> Result<()> {
        for from in 0..self.directions.len() {
            let until = Instant::now() + FIRST;
            while self.received == 0 {
                anyhow::ensure!(
                    Instant::now() < until,
                    "no packet came from port {} to the other within {FIRST:?}; does the switch \
                     forward between the two, and do the addresses fit (--mac-a, --ip-a, …)?",
                    ["a", "b"][from]
                );
                // Counted from its send time, which lies before the run's begin.
                self.emit(from, 1, Duration::ZERO);
                std::thread::sleep(Duration::from_millis(20));
                self.receive(0, true);
                self.receive(1, true);
            }
            self.received = 0;
        }
        self.sent = 0;
        self.refused = 0;
        // An answer to the last try may still come; it must not be taken for the run's.
        std::thread::sleep(Duration::from_millis(50));
        self.receive(0, true);
        self.receive(1, true);
        self.run += 1;
        for direction in &mut self.directions {
            direction.template.set_run(self.run);
        }
        (self.received, self.foreign) = (0, 0);
        Ok(())
    }

    fn go(&mut self) -> NetResult {
        self.begin = Instant::now();
        loop {
            let now = self.begin.elapsed();
            if now >= self.count_until + DRAIN {
                break;
            }
            if now < self.count_until {
                for from in 0..self.directions.len() {
                    self.send(from, now);
                }
            }
            self.receive(1, false);
            if self.directions.len() > 1 {
                self.receive(0, false);
            }
        }
        self.finish()
    }

    fn send(&mut self, from: usize, now: Duration) {
        let direction = &mut self.directions[from];
        let Some(schedule) = &mut direction.schedule else {
            self.emit(from, BURST, now);
            return;
        };
        let mut due_at = None;
        let mut count = 0;
        while count < BURST && schedule.due() <= now {
            due_at = due_at.or(Some(schedule.due()));
            schedule.sent();
            count += 1;
        }
        if let Some(due_at) = due_at {
            self.emit(from, count, due_at);
        }
    }

    /// Makes `count` packets and offers them once: a full ring is a limit, not a loss.
    fn emit(&mut self, from: usize, count: usize, at: Duration) {
        debug_assert!(self.out.is_empty(), "what was not taken last time was given back");
        if !self.pool.take_burst(count, &mut self.out) {
            self.refused += 1;
            return;
        }
        let direction = &mut self.directions[from];
        let sent_at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let (flow, number) = (direction.next_flow, direction.number);
        for (step, mbuf) in (0u32..).zip(&mut self.out) {
            let length = direction.template.len();
            let room = mbuf.append(length).expect("a fresh buffer has room for any frame of ours");
            let flow = (flow + step) % direction.flows;
            direction.template.emit(flow, sent_at, number + u64::from(step), room);
        }
        let taken = self.ports[from].send(&mut self.out);
        // Flow and number go on from what was really sent.
        let step = u32::try_from(taken).unwrap_or(0);
        direction.next_flow = (flow + step) % direction.flows;
        direction.number += u64::from(step);
        if at >= self.count_from {
            self.sent += u64::from(step);
            self.refused += u64::from(taken < count);
        }
        self.out.clear();
    }

    fn receive(&mut self, to: usize, is_first: bool) {
        if self.ports[to].receive(&mut self.incoming, &mut self.oversized) == 0 {
            return;
        }
        let now = self.begin.elapsed();
        let mut answer = None;
        let tunnel = self.tunnel.filter(|_| to == 1);
        for mbuf in &self.incoming {
            let data = mbuf.data();
            let inner = tunnel.as_ref().map_or(Some(data), |tunnel| tunnel.open(data));
            match inner.and_then(frame::stamp) {
                Some(stamp) if stamp.run == self.run => {
                    let sent_at = Duration::from_nanos(stamp.sent_at);
                    if is_first {
                        self.received += 1;
                    } else if sent_at >= self.count_from {
                        self.received += 1;
                        self.latencies.record(now.saturating_sub(sent_at));
                        let counted = (now - self.count_from).as_nanos() * 10;
                        let at = counted / (self.count_until - self.count_from).as_nanos();
                        self.samples[usize::try_from(at).unwrap_or(9).min(9)] += 1;
                    }
                }
                // Stamped by a program like this one, but not in this run.
                Some(_) => self.foreign += 1,
                // ARP, ND and the like, which switches send by themselves.
                None => answer = answer.or_else(|| tunnel.as_ref()?.answer(data)),
            }
        }
        self.incoming.clear();
        if let Some(answer) = answer {
            self.send_answer(to, &answer);
        }
    }

    /// A full ring or pool loses it: who asked asks again.
    fn send_answer(&mut self, from: usize, answer: &[u8]) {
        if !self.pool.take_burst(1, &mut self.out) {
            return;
        }
        if let Some(room) = self.out[0].append(answer.len()) {
            room.copy_from_slice(answer);
            self.ports[from].send(&mut self.out);
        }
        self.out.clear();
    }

    fn finish(&mut self) -> NetResult {
        let seconds = (self.count_until - self.count_from).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
        let pps = self.received as f64 / seconds;
        #[expect(clippy::cast_precision_loss, reason = "a frame has at most 1514 bytes")]
        let bits = self.options.size as f64 * 8.0;
        NetResult {
            seconds,
            sent: self.sent,
            received: self.received,
            lost: self.sent.saturating_sub(self.received),
            refused: self.refused,
            foreign: self.foreign,
            received_pps: pps,
            received_gbps: pps * bits / 1e9,
            latency: self.latencies.percentiles(),
            samples: std::mem::take(&mut self.samples),
        }
    }
}
