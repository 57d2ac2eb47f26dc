// SPDX-License-Identifier: Apache-2.0
//! The verifying engine: random requests, every read judged by the model, across restarts.
//!
//! When the backend goes away, what it had acknowledged is taken from the rings first; only then
//! does the model hear of the restart, and the rings are started again with the same in-flight
//! region. Requests that were out stay out until the new backend answers them. At the end
//! everything is flushed and every block that was ever written is read once more.

use super::disk::{Completion, Disk, Request, Status};
use super::model::{AckNumber, Model};
use super::options::Options;
use super::stamp::{self, BLOCK, Version};
use crate::latency::Schedule;
use crate::pattern::{Kind, Pattern};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

/// More faults than this say nothing new.
const MISMATCHES_MAX: usize = 20;
/// Between two looks at an idle ring: verification is no race, and leaves the core to others.
const NAP: Duration = Duration::from_micros(50);
/// How often a connection is tried again while the backend is away.
const RETRY: Duration = Duration::from_millis(20);
/// How often the connection is looked at while there is work.
const LOOK: Duration = Duration::from_millis(2);

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct VerifyResult {
    pub seconds: f64,
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    /// Blocks of 4 KiB that were read and judged.
    pub blocks_checked: u64,
    /// Of them, in the pass over everything at the end.
    pub blocks_checked_last: u64,
    pub restarts: u64,
    /// Unflushed versions that a restart took, as it may.
    pub rolled_back: u64,
    /// Requests that the backend failed.
    pub errors: u64,
    /// Whether the backend kept requests in flight across its death.
    pub has_inflight: bool,
    /// The longest time between two answers, in milliseconds: what a guest waited at a restart.
    #[serde(default)]
    pub longest_gap: f64,
    pub mismatches: Vec<String>,
}

impl VerifyResult {
    pub(crate) fn is_good(&self) -> bool {
        self.mismatches.is_empty() && self.errors == 0 && self.blocks_checked_last > 0
    }
}

/// A request that the backend has.
#[derive(Clone, Copy, Debug)]
enum Out {
    Read { first: u64 },
    Write { first: u64, version: Version },
    Flush { covers: AckNumber },
}

#[derive(Debug)]
struct Engine<'a> {
    disk: &'a mut Disk,
    options: &'a Options,
    /// Of this run, in every stamp: an older run's blocks are never taken for ours.
    run: u64,
    pattern: Pattern,
    model: Model,
    out: Vec<Vec<Option<Out>>>,
    free: Vec<(usize, u16)>,
    /// First blocks of requests that are out: one request on a block at a time.
    busy: BTreeSet<u64>,
    version: Version,
    writes_until_flush: u64,
    blocks_per_request: u64,
    result: VerifyResult,
    answered_at: Instant,
    /// The same, but a new connection is no answer.
    heard_at: Instant,
}

pub(crate) fn run(disk: &mut Disk, options: &Options) -> Result<VerifyResult> {
    if let Some(cpu) = options.cpu {
        plinth_rt::pin_to(cpu)?;
    }
    let slots = disk.span() / u64::from(options.block_size);
    if slots < u64::from(options.depth) * u64::from(options.queues) * 2 {
        bail!("the disk is too small for this depth: each request wants a place of its own");
    }
    let queues = usize::from(options.queues);
    let begin = Instant::now();
    let mut engine = Engine {
        run: options.seed ^ (u64::from(std::process::id()) << 32),
        pattern: Pattern::new(options.seed, options.order, slots, options.writes),
        model: Model::new(options.zeroed),
        out: vec![vec![None; usize::from(options.depth)]; queues],
        free: (0..options.depth).flat_map(|slot| (0..queues).map(move |q| (q, slot))).collect(),
        busy: BTreeSet::new(),
        version: Version(0),
        writes_until_flush: options.flush_every,
        blocks_per_request: u64::from(options.block_size) / u64::try_from(BLOCK)?,
        result: VerifyResult { has_inflight: disk.has_inflight(), ..VerifyResult::default() },
        answered_at: begin,
        heard_at: begin,
        disk,
        options,
    };
    engine.mixed()?;
    engine.drain()?;
    engine.flush()?;
    engine.read_everything()?;
    let mut result = engine.result;
    result.seconds = begin.elapsed().as_secs_f64();
    result.restarts = engine.model.restarts();
    result.rolled_back = engine.model.rolled_back();
    Ok(result)
}

impl Engine<'_> {
    fn mixed(&mut self) -> Result<()> {
        let begin = Instant::now();
        let length = Duration::from_secs_f64(self.options.seconds);
        let mut schedule = Schedule::new(self.options.rate);
        while begin.elapsed() < length
            && self.result.reads + self.result.writes < self.options.count.unwrap_or(u64::MAX)
            && self.result.mismatches.len() < MISMATCHES_MAX
        {
            let mut is_new = false;
            while let Some((queue, slot)) = self.free.last().copied() {
                if schedule.as_ref().is_some_and(|schedule| schedule.due() > begin.elapsed()) {
                    break;
                }
                let Some((request, out)) = self.next_request() else { break };
                self.free.pop();
                self.submit(queue, slot, request, out);
                if let Some(schedule) = &mut schedule {
                    schedule.sent();
                }
                is_new = true;
            }
            if is_new {
                self.disk.publish();
            }
            self.round()?;
        }
        Ok(())
    }

    /// Waits until the backend has nothing of ours any more.
    fn drain(&mut self) -> Result<()> {
        while self.out.iter().flatten().any(Option::is_some) {
            self.round()?;
        }
        Ok(())
    }

    /// One look at the rings, and at the connection when they are quiet.
    fn round(&mut self) -> Result<()> {
        if self.collect()? > 0 {
            return Ok(());
        }
        let quiet = self.answered_at.elapsed();
        if quiet < LOOK {
            thread::sleep(NAP);
            return Ok(());
        }
        if self.disk.is_lost() {
            return self.survive();
        }
        let is_waiting = self.out.iter().flatten().any(Option::is_some);
        if is_waiting && quiet > Duration::from_secs_f64(self.options.patience) {
            bail!("no answer for {quiet:?} to {:?}", self.out.iter().flatten().flatten().next());
        }
        thread::sleep(NAP);
        Ok(())
    }

    /// The backend is gone: take its last answers, tell the model, wait for the next one.
    fn survive(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs_f64(self.options.patience);
        loop {
            // Also after each try: a backend may answer requests and die before we see it live.
            self.collect()?;
            self.model.died();
            match self.disk.try_open() {
                Ok(()) => break,
                Err(error) if Instant::now() >= until => {
                    return Err(error).context("the backend did not come back in time");
                }
                Err(_) => thread::sleep(RETRY),
            }
        }
        self.model.came_back();
        self.answered_at = Instant::now();
        Ok(())
    }

    fn next_request(&mut self) -> Option<(Request, Out)> {
        if self.options.flush_every > 0 && self.writes_until_flush == 0 && self.disk.has_flush() {
            self.writes_until_flush = self.options.flush_every;
            return Some((Request::Flush, Out::Flush { covers: self.model.flush_begins() }));
        }
        // A busy place is passed over; the span is at least twice what can be out.
        let (kind, slot) = self.pattern.take();
        let first = slot * self.blocks_per_request;
        if !self.busy.insert(first) {
            return None;
        }
        let offset = slot * u64::from(self.options.block_size);
        Some(match kind {
            Kind::Read => (Request::Read { offset }, Out::Read { first }),
            Kind::Write => {
                self.writes_until_flush = self.writes_until_flush.saturating_sub(1);
                self.version.0 += 1;
                (Request::Write { offset }, Out::Write { first, version: self.version })
            }
        })
    }

    fn submit(&mut self, queue: usize, slot: u16, request: Request, out: Out) {
        if let Out::Write { first, version } = out {
            let mut bytes = [0; BLOCK];
            for (block, at) in self.blocks(first) {
                stamp::emit(self.run, block, version, &mut bytes);
                self.disk.fill(queue, slot, at, &bytes);
            }
        }
        self.disk.submit(queue, slot, request);
        self.out[queue][usize::from(slot)] = Some(out);
    }

    /// The blocks of a request and where each lies in its data.
    fn blocks(&self, first: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        (0..self.blocks_per_request).map(move |step| (first + step, step * 4096))
    }

    fn collect(&mut self) -> Result<u64> {
        let mut count = 0;
        for queue in 0..self.out.len() {
            while let Some(completion) = self.disk.take(queue)? {
                count += 1;
                let slot = &mut self.out[queue][usize::from(completion.slot)];
                let out = slot.take().context("an answer to a request that was not sent")?;
                self.judge(completion, out);
                self.free.push((queue, completion.slot));
            }
        }
        if count > 0 {
            self.heard();
        }
        Ok(count)
    }

    fn heard(&mut self) {
        let now = Instant::now();
        let gap = now.duration_since(self.heard_at).as_secs_f64() * 1000.0;
        self.result.longest_gap = self.result.longest_gap.max(gap);
        (self.answered_at, self.heard_at) = (now, now);
    }

    fn judge(&mut self, completion: Completion, out: Out) {
        let is_done = completion.status == Status::Done;
        self.result.errors += u64::from(!is_done);
        match out {
            Out::Flush { covers } => {
                self.result.flushes += 1;
                if is_done {
                    self.model.flushed(covers);
                }
            }
            Out::Write { first, version } => {
                self.result.writes += 1;
                self.busy.remove(&first);
                for (block, _) in self.blocks(first) {
                    if is_done {
                        self.model.written(block, version);
                    } else {
                        self.model.failed(block, version);
                    }
                }
            }
            Out::Read { first } => {
                self.result.reads += 1;
                self.busy.remove(&first);
                if is_done {
                    self.judge_read(completion, first);
                }
            }
        }
    }

    fn judge_read(&mut self, completion: Completion, first: u64) {
        let mut bytes = [0; BLOCK];
        for (block, at) in self.blocks(first) {
            self.disk.read(completion.queue, completion.slot, at, &mut bytes);
            let found = stamp::parse(self.run, block, &bytes);
            self.result.blocks_checked += 1;
            if let Err(mismatch) = self.model.read(block, found) {
                let place = block * 4096;
                let text = format!("at byte {place}: {mismatch}");
                if self.result.mismatches.len() < MISMATCHES_MAX {
                    self.result.mismatches.push(text);
                }
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        if !self.disk.has_flush() {
            return Ok(());
        }
        let (queue, slot) = self.free.pop().context("a slot is free after the drain")?;
        let out = Out::Flush { covers: self.model.flush_begins() };
        self.submit(queue, slot, Request::Flush, out);
        self.disk.publish();
        self.drain()
    }

    fn read_everything(&mut self) -> Result<()> {
        let before = self.result.blocks_checked;
        let per_request = self.blocks_per_request;
        let firsts: BTreeSet<u64> =
            self.model.written_blocks().map(|block| block - block % per_request).collect();
        for first in firsts {
            while self.free.is_empty() {
                self.round()?;
            }
            let (queue, slot) = self.free.pop().context("a slot came back")?;
            let offset = first * 4096;
            self.submit(queue, slot, Request::Read { offset }, Out::Read { first });
            self.disk.publish();
        }
        self.drain()?;
        self.result.blocks_checked_last = self.result.blocks_checked - before;
        Ok(())
    }
}
