// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]
//! Random reads, writes, zeroings, discards and flushes of odd sizes on the vhost-user socket,
//! against an array, with the daemon killed under them (`kill -9`) and started again.
//!
//! The array is all there is to the model: what was answered survives the death of the process, and
//! what was not answered is carried out by the next one. So every read has one right answer.
//!
//! `PLINTH_FSX_SECONDS=600 PLINTH_FSX_SEED=7 cargo test --release -p plinth-stored --test fsx`
//! runs as long and as one likes.

mod support;

use plinth_ids::Epoch;
use plinth_store_api::{Attachment, Durability, StoreConfig};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};
use support::guest::{DATA_MAX, Guest, Io, OK};
use support::pattern::{Random, bytes};
use support::{Daemon, Folder, MIB, VOLUME, attachment, config};

const SECTOR: usize = 512;
const BLOCK: usize = 4096;
const QUEUES: u16 = 2;
/// Four objects, so that requests cross their ends.
const SIZE: u64 = 16 * MIB;
const SECTORS: usize = 32 * 1024;

struct Model {
    bytes: Vec<u8>,
    /// What is under way: what it does to the array, and the sectors that nobody else may touch.
    open: BTreeMap<u64, (Effect, Range<usize>)>,
    busy: Vec<bool>,
    random: Random,
    done: BTreeMap<&'static str, u64>,
}

enum Effect {
    Read,
    Write(Vec<u8>),
    /// Bytes that become zero.
    Zero(Range<usize>),
    Flush,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            bytes: vec![0; SECTORS * SECTOR],
            open: BTreeMap::new(),
            busy: vec![false; SECTORS],
            random: Random(seed),
            done: BTreeMap::new(),
        }
    }

    /// A range of sectors that favors small sizes and the ends of blocks, units and objects.
    fn range(&mut self) -> Range<usize> {
        let below = |random: &mut Random, limit: usize| {
            usize::try_from(random.below(limit as u64)).expect("it is below a usize")
        };
        let length = match self.random.below(8) {
            0 | 1 => 1,
            2..5 => 1 + below(&mut self.random, 16),
            5 | 6 => 1 + below(&mut self.random, 80),
            _ => 1 + below(&mut self.random, DATA_MAX / SECTOR),
        };
        let start = match self.random.below(4) {
            0 => {
                let edge = [8, 64, 8192][below(&mut self.random, 3)];
                let at = (1 + below(&mut self.random, SECTORS / edge - 1)) * edge;
                at.saturating_sub(below(&mut self.random, length + 1))
            }
            // A part of the disk where everything meets.
            1 => below(&mut self.random, 256),
            _ => below(&mut self.random, SECTORS),
        };
        let start = start.min(SECTORS - length);
        start..start + length
    }

    fn submit(&mut self, guest: &mut Guest) {
        let queue = usize::try_from(self.random.below(u64::from(QUEUES))).unwrap();
        if !guest.has_room(queue) {
            return;
        }
        let range = self.range();
        let sector = range.start as u64;
        let sectors = u32::try_from(range.len()).unwrap();
        let (from, to) = (range.start * SECTOR, range.end * SECTOR);
        let (io, effect, range) = match self.random.below(20) {
            0 => (Io::Flush, Effect::Flush, 0..0),
            1 | 2 => {
                // Whole blocks read as zeros afterwards, the rest is as it was.
                let (first, last) = (from.next_multiple_of(BLOCK), to / BLOCK * BLOCK);
                (Io::Discard { sector, sectors }, Effect::Zero(first..last.max(first)), range)
            }
            3 | 4 => {
                let may_unmap = self.random.below(2) == 0;
                (Io::WriteZeroes { sector, sectors, may_unmap }, Effect::Zero(from..to), range)
            }
            5..13 => {
                let data = bytes(self.random.next(), to - from);
                (Io::Write { sector, data: data.clone() }, Effect::Write(data), range)
            }
            _ => (Io::Read { sector, length: to - from }, Effect::Read, range),
        };
        // A disk promises nothing about requests that overlap while both are under way.
        if self.busy[range.clone()].contains(&true) {
            return;
        }
        self.busy[range.clone()].fill(true);
        let id = guest.submit(queue, &io);
        self.open.insert(id, (effect, range));
    }

    /// Takes what was answered into the array, or compares it.
    fn collect(&mut self, guest: &mut Guest) {
        for answered in guest.poll() {
            let (effect, range) = self.open.remove(&answered.id).unwrap();
            assert_eq!(answered.status, OK, "a request of sectors {range:?}");
            self.busy[range.clone()].fill(false);
            let (from, to) = (range.start * SECTOR, range.end * SECTOR);
            let name = match effect {
                Effect::Read => {
                    self.compare(from, &answered.data);
                    "read"
                }
                Effect::Write(data) => {
                    self.bytes[from..to].copy_from_slice(&data);
                    "write"
                }
                Effect::Zero(zeros) => {
                    self.bytes[zeros].fill(0);
                    "zero"
                }
                Effect::Flush => "flush",
            };
            *self.done.entry(name).or_default() += 1;
        }
    }

    fn answered(&self) -> u64 {
        self.done.values().sum()
    }

    /// Every kind of request was answered.
    fn assert_all_done(&self) {
        println!("{:?}", self.done);
        let count = |name| self.done.get(name).copied().unwrap_or(0);
        assert!(["read", "write", "zero", "flush"].iter().all(|name| count(name) > 0));
    }

    fn compare(&self, from: usize, found: &[u8]) {
        let expected = &self.bytes[from..from + found.len()];
        if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
            let sector = (from + at) / SECTOR;
            let is_zero = found[at / SECTOR * SECTOR..][..SECTOR].iter().all(|byte| *byte == 0);
            let what = if is_zero { "zeros" } else { "other bytes" };
            panic!("sector {sector} (byte {}) has {what}", from + at);
        }
    }

    /// Waits for all that is under way, then reads everything.
    fn verify(&mut self, guest: &mut Guest) {
        let started = Instant::now();
        while !self.open.is_empty() {
            self.collect(guest);
            assert!(started.elapsed() < support::PATIENCE, "{} unanswered", self.open.len());
        }
        for start in (0..SECTORS).step_by(DATA_MAX / SECTOR) {
            let found = guest.read(start as u64, DATA_MAX);
            self.compare(start * SECTOR, &found);
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// One history; says how many kills it had. `worker` is that of the queues where there are two
/// workers, each with a disk.
fn history(seed: u64, durability: Durability, worker: Option<u32>, length: Duration) -> u32 {
    let folder = Folder::new();
    let (device, socket) = (folder.path("pool"), folder.path("blk.sock"));
    let mut daemon = Daemon::start(&folder);
    daemon.format(&device, 64 * MIB);
    let mut config = config(1, &device, &[]);
    config.pools[0].durability = durability;
    if worker.is_some() {
        support::spread(&daemon, &mut config, &folder.path("second"), 64 * MIB);
    }
    daemon.apply(config.clone());
    daemon.create(VOLUME, SIZE).unwrap();
    let attachment = Attachment { worker, ..attachment(VOLUME, &socket, QUEUES) };
    daemon.apply(StoreConfig { epoch: Epoch(2), attachments: vec![attachment], ..config });
    let mut guest = Guest::boot(&socket, QUEUES);
    let (mut model, mut kills) = (Model::new(seed), 0);
    let started = Instant::now();
    while started.elapsed() < length {
        let wanted = model.answered() + 100 + model.random.below(1500);
        while model.answered() < wanted {
            model.submit(&mut guest);
            model.collect(&mut guest);
        }
        // With requests under way, whatever they are at.
        daemon.kill();
        kills += 1;
        // What it answered before it died is in the rings.
        model.collect(&mut guest);
        guest.disconnect();
        daemon = Daemon::start(&folder);
        guest.connect(&socket);
        model.verify(&mut guest);
    }
    println!("seed {seed}, {durability:?}, queues at {worker:?}: {kills} kills");
    model.assert_all_done();
    kills
}

#[test]
fn random_operations_on_a_memory_disk_agree_with_an_array() {
    let folder = Folder::new();
    let (device, socket) = (Path::new("memory:64MiB"), folder.path("blk.sock"));
    let daemon = Daemon::start(&folder);
    daemon.apply(config(1, device, &[]));
    daemon.create(VOLUME, SIZE).unwrap();
    daemon.apply(config(2, device, &[attachment(VOLUME, &socket, QUEUES)]));
    let mut guest = Guest::boot(&socket, QUEUES);
    let mut model = Model::new(number("PLINTH_FSX_SEED", 1) + 2);
    for round in 1..=10 {
        while model.answered() < round * 2000 {
            model.submit(&mut guest);
            model.collect(&mut guest);
        }
        model.verify(&mut guest);
    }
    model.assert_all_done();
}

#[test]
fn random_operations_of_odd_sizes_agree_with_an_array_across_kills() {
    let seconds = number("PLINTH_FSX_SECONDS", 10);
    let seed = number("PLINTH_FSX_SEED", 1);
    println!("PLINTH_FSX_SECONDS={seconds} PLINTH_FSX_SEED={seed}");
    for (seed, durability) in [(seed, Durability::Flush), (seed + 1, Durability::Device)] {
        assert!(history(seed, durability, None, Duration::from_secs(seconds) / 2) > 0);
    }
}

#[test]
fn it_is_the_same_with_disks_and_queues_on_two_workers() {
    let (seconds, seed) = (number("PLINTH_FSX_SECONDS", 10), number("PLINTH_FSX_SEED", 1));
    // The pool is kept by worker 0, so the second has every request pass two rings or one.
    for (seed, worker) in [(seed, 0), (seed + 1, 1)] {
        let length = Duration::from_secs(seconds) / 2;
        assert!(history(seed, Durability::Flush, Some(worker), length) > 0);
    }
}
