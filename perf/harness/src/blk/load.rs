// SPDX-License-Identifier: Apache-2.0
//! The measuring engine: keeps the queues full, or to a rate, and times what comes back.

use super::disk::{Disk, Request, Status};
use super::options::Options;
use crate::latency::{Latencies, Percentiles, Schedule};
use crate::pattern::{Kind, Pattern};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Rounds without a completion after which the connection is looked at: a system call.
const IDLE_ROUNDS: u32 = 100_000;

/// Completions that share one look at the clock. Taking one is some 30 ns, so a latency is at most
/// a quarter of a microsecond too short.
const LOOK_EVERY: u64 = 8;

/// A run with more of these is not a speed; each is a request that failed.
const ERRORS_MAX: u64 = 1000;

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct LoadResult {
    pub seconds: f64,
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub errors: u64,
    pub iops: f64,
    pub mib_per_second: f64,
    /// Of reads and writes, in microseconds.
    pub latency: Percentiles,
    pub flush_latency: Percentiles,
    /// Requests of each tenth of the run.
    pub samples: Vec<u64>,
    /// Reads and writes of each queue of each socket, in their order.
    #[serde(default)]
    pub shares: Vec<u64>,
    /// Everything that was asked from the first request on, warm-up and flushes included.
    #[serde(default)]
    pub asked: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    since: Duration,
    request: Option<Request>,
    /// Whether the flush behind a write is under way.
    is_flushing: bool,
}

#[derive(Debug)]
struct Engine<'a> {
    disks: &'a mut [Disk],
    /// The disk and queue of each lane: the lanes are served alike.
    lanes: Vec<(usize, usize)>,
    options: &'a Options,
    pattern: Pattern,
    schedule: Option<Schedule>,
    slots: Vec<Vec<Slot>>,
    free: Vec<(usize, u16)>,
    writes_until_flush: u64,
    latencies: Latencies,
    flush_latencies: Latencies,
    result: LoadResult,
    begin: Instant,
    warm_up: Duration,
    length: Duration,
}

pub(crate) fn run(disks: &mut [Disk], options: &Options) -> Result<LoadResult> {
    if let Some(cpu) = options.cpu {
        plinth_rt::pin_to(cpu)?;
    }
    let block = u64::from(options.block_size);
    let span = disks.iter().map(Disk::span).min().unwrap_or(0);
    // The last place needs room for a request only.
    let slots = (span + options.stride() - block) / options.stride();
    if span < block {
        bail!("the disk is smaller than one request of {block} bytes");
    }
    let wants_flush = options.flush_every > 0 || options.durable;
    if wants_flush && !disks.iter().all(Disk::has_flush) {
        bail!("--flush-every, --durable: the backend does not offer flush");
    }
    let idle = Slot { since: Duration::ZERO, request: None, is_flushing: false };
    let queues = usize::from(options.queues);
    let lanes: Vec<_> =
        (0..disks.len()).flat_map(|disk| (0..queues).map(move |queue| (disk, queue))).collect();
    let count = lanes.len();
    let mut engine = Engine {
        disks,
        lanes,
        options,
        pattern: Pattern::new(options.seed, options.order, slots, options.writes),
        schedule: Schedule::new(options.rate),
        slots: vec![vec![idle; usize::from(options.depth)]; count],
        free: (0..options.depth)
            .flat_map(|slot| (0..count).map(move |lane| (lane, slot)))
            .filter(|&(lane, slot)| lane >= queues || slot < options.meek_depth.unwrap_or(u16::MAX))
            .collect(),
        writes_until_flush: options.flush_every,
        latencies: Latencies::new(),
        flush_latencies: Latencies::new(),
        result: LoadResult {
            samples: vec![0; 10],
            shares: vec![0; count],
            ..LoadResult::default()
        },
        begin: Instant::now(),
        warm_up: Duration::from_secs_f64(options.warm_up),
        length: Duration::from_secs_f64(options.seconds),
    };
    engine.go()
}

/// Whether latencies of this disk's requests count.
const fn is_timed(options: &Options, disk: usize) -> bool {
    options.meek_depth.is_none() || disk == 0
}

impl Engine<'_> {
    fn go(&mut self) -> Result<LoadResult> {
        let end = self.warm_up + self.length;
        let slots = self.free.len();
        let mut idle_rounds = 0;
        loop {
            let now = self.begin.elapsed();
            let is_over = now >= end || self.counted() >= self.options.count.unwrap_or(u64::MAX);
            if is_over && self.free.len() == slots {
                break;
            }
            if !is_over {
                self.submit(now);
            }
            if self.collect()? == 0 {
                idle_rounds += 1;
                std::hint::spin_loop();
            } else {
                idle_rounds = 0;
            }
            if idle_rounds == IDLE_ROUNDS {
                idle_rounds = 0;
                self.check(end)?;
            }
        }
        Ok(self.finish())
    }

    fn check(&self, end: Duration) -> Result<()> {
        if self.disks.iter().any(Disk::is_lost) {
            bail!("the backend closed the connection; --verify goes on after a restart");
        }
        let patience = Duration::from_secs_f64(self.options.patience);
        if self.begin.elapsed() > end + patience {
            bail!("requests were not answered within {patience:?} after the end of the run");
        }
        Ok(())
    }

    const fn counted(&self) -> u64 {
        self.result.reads + self.result.writes
    }

    /// Fills free slots, as far as the rate allows.
    fn submit(&mut self, now: Duration) {
        let mut is_new = false;
        while let Some((lane, slot)) = self.free.last().copied() {
            let since = match &mut self.schedule {
                Some(schedule) if schedule.due() > now => break,
                Some(schedule) => {
                    let due = schedule.due();
                    schedule.sent();
                    due
                }
                None => now,
            };
            self.free.pop();
            let request = self.next_request();
            let under_way = Slot { since, request: Some(request), is_flushing: false };
            self.start(lane, slot, under_way, request);
            is_new = true;
        }
        if is_new {
            self.publish();
        }
    }

    fn start(&mut self, lane: usize, at: u16, slot: Slot, request: Request) {
        let (disk, queue) = self.lanes[lane];
        self.disks[disk].submit(queue, at, request);
        self.slots[lane][usize::from(at)] = slot;
        self.result.asked += 1;
    }

    fn publish(&mut self) {
        self.disks.iter_mut().for_each(Disk::publish);
    }

    fn next_request(&mut self) -> Request {
        if self.options.flush_every > 0 && self.writes_until_flush == 0 {
            self.writes_until_flush = self.options.flush_every;
            return Request::Flush;
        }
        let (kind, slot) = self.pattern.take();
        let offset = slot * self.options.stride();
        match kind {
            Kind::Read => Request::Read { offset },
            Kind::Write => {
                self.writes_until_flush = self.writes_until_flush.saturating_sub(1);
                Request::Write { offset }
            }
        }
    }

    /// Takes what came back; how many that were.
    fn collect(&mut self) -> Result<u64> {
        let mut count = 0_u64;
        let mut now = Duration::ZERO;
        let mut is_new = false;
        for lane in 0..self.lanes.len() {
            let (disk, queue) = self.lanes[lane];
            while let Some(completion) = self.disks[disk].take(queue)? {
                // One look at the clock for a few: it costs as much as a request.
                if count.is_multiple_of(LOOK_EVERY) {
                    now = self.begin.elapsed();
                }
                count += 1;
                let slot = &mut self.slots[lane][usize::from(completion.slot)];
                let (since, request) = (slot.since, slot.request.take());
                let is_written = matches!(request, Some(Request::Write { .. }))
                    && !slot.is_flushing
                    && completion.status == Status::Done;
                if self.options.durable && is_written {
                    // What was written is counted when its flush comes back.
                    let slot = Slot { since, request, is_flushing: true };
                    self.start(lane, completion.slot, slot, Request::Flush);
                    is_new = true;
                    continue;
                }
                self.free.push((lane, completion.slot));
                self.count(lane, now, since, request, completion.status);
            }
        }
        if is_new {
            self.publish();
        }
        if self.result.errors > ERRORS_MAX {
            bail!("more than {ERRORS_MAX} requests failed; see the backend's log");
        }
        Ok(count)
    }

    fn count(
        &mut self,
        lane: usize,
        now: Duration,
        since: Duration,
        request: Option<Request>,
        status: Status,
    ) {
        // By when they end, as a rate limit counts: those that began before the run are as many as
        // those that end after it.
        let is_counted = now >= self.warm_up && now <= self.warm_up + self.length;
        if status != Status::Done {
            self.result.errors += 1;
            return;
        }
        if !is_counted {
            return;
        }
        let latency = now.saturating_sub(since);
        match request {
            Some(Request::Flush) => {
                self.result.flushes += 1;
                self.flush_latencies.record(latency);
                return;
            }
            Some(Request::Write { .. }) => self.result.writes += 1,
            Some(Request::Read { .. }) | None => self.result.reads += 1,
        }
        if is_timed(self.options, self.lanes[lane].0) {
            self.latencies.record(latency);
        }
        self.result.shares[lane] += 1;
        let at = (now - self.warm_up).as_nanos() * 10 / self.length.as_nanos().max(1);
        let at = usize::try_from(at).unwrap_or(9).min(9);
        self.result.samples[at] += 1;
    }

    fn finish(&mut self) -> LoadResult {
        let elapsed = self.begin.elapsed().saturating_sub(self.warm_up);
        let seconds = elapsed.min(self.length).as_secs_f64();
        let mut result = std::mem::take(&mut self.result);
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
        let requests = (result.reads + result.writes) as f64;
        result.seconds = seconds;
        result.iops = requests / seconds;
        result.mib_per_second = result.iops * f64::from(self.options.block_size) / 1_048_576.0;
        result.latency = self.latencies.percentiles();
        result.flush_latency = self.flush_latencies.percentiles();
        result
    }
}
