// SPDX-License-Identifier: Apache-2.0
//! What is measured of the store and is no rate between contenders.

use super::super::shared::{disk_folder, memory_folder};
use super::super::{Run, Series, Verdict};
use super::server::{SPAN, Who, client, fill, status};
use super::starts;
use anyhow::{Context, Result};
use plinth_ids::{PoolId, SnapshotId, VolumeId};
use plinth_stage::{Scratch, Store};
use plinth_store_api::{Durability, ScrubKind, Verb, VolumeLimits};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

pub(super) const TIB: u64 = 1 << 40;
const OBJECTS: u64 = 1 << 20;
/// Memory for a million objects of 4 KiB, their maps, and the store beside them.
const MOUNT_MEMORY: u64 = 12 << 30;
/// What a snapshot's first overwrites are counted over.
const SAMPLE: &str = "4096";

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Measure {
    /// Mount after `kill -9` of a store with a million objects, and the memory it then takes.
    Mount,
    /// Limits of 100 to 100 000 requests/s against what comes.
    Limits,
    /// Writes before a snapshot and the first ones after it.
    Snapshot,
    /// A client of four requests beside one that has as many, and beside a flood.
    Flood,
    /// Reads at a fixed rate, with and without a deep scrub at its default rate.
    Scrub,
    /// How long a guest waits at a hot restart of a store of 10 GiB.
    RestartGap,
    /// The same at `kill -9`.
    CrashGap,
    /// How much longer a start takes for a TiB more.
    StartPerTib,
}

pub(super) type Outcome = Result<(Vec<Series>, Vec<Verdict>)>;

impl Measure {
    pub(super) const ALL: [Self; 8] = [
        Self::Limits,
        Self::Flood,
        Self::Snapshot,
        Self::Scrub,
        Self::RestartGap,
        Self::CrashGap,
        Self::StartPerTib,
        Self::Mount,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Mount => "store-mount-1m-objects",
            Self::Limits => "store-limits",
            Self::Flood => "store-fair-p99",
            Self::Snapshot => "store-snapshot-first-overwrite",
            Self::Scrub => "store-scrub-p99",
            Self::RestartGap => "store-restart-gap",
            Self::CrashGap => "store-crash-gap",
            Self::StartPerTib => "store-start-per-tib",
        }
    }

    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::Mount => "seconds, then MiB",
            Self::RestartGap | Self::CrashGap => "ms",
            Self::StartPerTib => "seconds",
            Self::Limits | Self::Flood | Self::Snapshot | Self::Scrub => "IOPS",
        }
    }

    pub(super) const fn note(self) -> &'static str {
        match self {
            Self::Mount => {
                "A volume of 4 TiB with 4 KiB in each of its 1 048 576 objects, on a sparse file in \
                 memory (tmpfs); the last writes are in the journal when the process is killed. The time is from \
                 the start of the process to a served volume."
            }
            Self::Limits => {
                "Memory disk, depth 32: the rate is the limit's, so the bar is on its error."
            }
            Self::Flood => {
                "Two volumes on one memory disk and worker, one thread of the client: 4 requests \
                 under way on one, and on the other 4 (its fair share) or 128 (a flood). The rate \
                 is of both, latencies are of the first alone."
            }
            Self::Snapshot => {
                "File, durability `device`, depth 1: each write after the snapshot is the first to \
                 its unit with a probability of 94 % or more."
            }
            Self::Scrub => "File, 2000 reads/s: latency from when a read was due.",
            Self::RestartGap => {
                "A filled volume of 10 GiB on a file in memory (tmpfs); a client that writes and \
                 reads 10 000 times a second and checks every byte. The figure is the longest \
                 time between two of its answers while a successor takes over."
            }
            Self::CrashGap => {
                "As store-restart-gap, but the process is killed with `kill -9` and started again \
                 at once; the client connects again every 20 ms. What an init waits before it \
                 starts a process again comes on top."
            }
            Self::StartPerTib => {
                "From the start of a process to a served volume after `kill -9`, over disks of \
                 0.25 and 1 TiB (sparse, in memory) with as many objects as a full one has: 4 MiB \
                 of a disk each, of which 4 KiB are written. A start reads indexes and bitmaps \
                 and no data, so the time grows with what these two differ by."
            }
        }
    }

    pub(super) fn run(self, turns: usize, seconds: f64) -> Outcome {
        match self {
            Self::Mount => mount(),
            Self::Limits => limits(turns, seconds),
            Self::Flood => flood(turns, seconds),
            Self::Snapshot => snapshot(turns),
            Self::Scrub => scrub(turns, seconds),
            Self::RestartGap => starts::gap(starts::Death::HandOver, turns, seconds),
            Self::CrashGap => starts::gap(starts::Death::Kill, turns, seconds),
            Self::StartPerTib => starts::per_tib(turns),
        }
    }
}

pub(super) fn ours(contender: &str) -> Series {
    Series { contender: contender.to_owned(), version: Who::Memory.version(), ..Series::default() }
}

pub(super) fn verdict(what: &str, measured: f64, limit: f64) -> Verdict {
    let (what, bar) = (what.to_owned(), format!("≤ {limit}"));
    Verdict { what, measured, bar, is_met: measured <= limit }
}

pub(super) fn median(figures: &[f64]) -> Result<f64> {
    super::super::report::median(figures).context("no turn was run")
}

/// A store on a memory disk or a file, with one filled volume.
fn store(scratch: &Scratch, device: PathBuf) -> Result<(Store, PathBuf)> {
    let mut store = Store::start_with(scratch, "s", &["--cpu", "1"])?;
    store.make_pool_as(1, &device, 3 * SPAN, Durability::Device)?;
    let socket = store.make_volume(1, 1, SPAN, 1)?;
    fill(&socket, SPAN)?;
    Ok((store, socket))
}

fn limits(turns: usize, seconds: f64) -> Outcome {
    let scratch = Scratch::new()?;
    let (mut store, socket) = store(&scratch, "memory:3GiB".into())?;
    let (mut all, mut verdicts) = (Vec::new(), Vec::new());
    for iops in [100_u64, 1_000, 10_000, 100_000] {
        let burst = iops / 100;
        let limits =
            VolumeLimits { iops, iops_burst: burst.max(1), bytes_per_second: 0, bytes_burst: 0 };
        let attachment = store.config.attachments.first_mut().context("it was attached")?;
        attachment.limits = Some(limits);
        store.apply()?;
        let mut series = ours(&format!("limit of {iops}/s, changed live"));
        for _ in 0..turns {
            let sockets = std::slice::from_ref(&socket);
            series.take(client(sockets, &["--depth", "32"], seconds.max(2.0))?);
        }
        #[expect(clippy::cast_precision_loss, reason = "limits are far below 2^53")]
        let wanted = iops as f64;
        let error = (median(&series.figures)? - wanted).abs() / wanted * 100.0;
        verdicts.push(verdict(&format!("error at {iops} requests/s, %"), error, 5.0));
        all.push(series);
    }
    Ok((all, verdicts))
}

fn flood(turns: usize, seconds: f64) -> Outcome {
    let scratch = Scratch::new()?;
    let (mut store, meek) = store(&scratch, "memory:3GiB".into())?;
    let other = store.make_volume(1, 2, SPAN, 1)?;
    fill(&other, SPAN)?;
    let sockets = [meek, other];
    let run = |depth| client(&sockets, &["--meek-depth", "4", "--depth", depth], seconds.max(2.0));
    let (mut fair, mut flooded) = (ours("beside an equal"), ours("beside a flood of 128"));
    for _ in 0..turns {
        fair.take(run("4")?);
        flooded.take(run("128")?);
    }
    let ratio = median(&flooded.p99)? / median(&fair.p99)?;
    Ok((vec![flooded, fair], vec![verdict("p99 beside a flood / beside an equal", ratio, 2.0)]))
}

fn snapshot(turns: usize) -> Outcome {
    let scratch = Scratch::new()?;
    let folder = disk_folder()?;
    let (store, socket) = store(&scratch, folder.path().join("pool"))?;
    let sockets = std::slice::from_ref(&socket);
    let write = |seed: usize| -> Result<Run> {
        let seed = seed.to_string();
        let arguments = ["--writes", "100", "--count", SAMPLE, "--seed", &seed, "--warm-up", "0"];
        client(sockets, &arguments, 30.0)
    };
    let (mut plain, mut first) = (ours("overwrites"), ours("first overwrites after a snapshot"));
    let mut taken = ours("taking the snapshot (figure: ms)");
    for turn in 1..=turns {
        plain.take(write(turn)?);
        let id = SnapshotId(turn as u64);
        let name = format!("s{turn}").parse().context("a snapshot's name")?;
        let begin = Instant::now();
        let (pool, volume) = (PoolId(1), VolumeId(1));
        store.call(Verb::SnapshotCreate { pool, volume, snapshot: id, name })?;
        let figure = begin.elapsed().as_secs_f64() * 1000.0;
        taken.take(Run { figure, ..Run::default() });
        first.take(write(turn)?);
        store.call(Verb::SnapshotDelete { pool, volume, snapshot: id })?;
    }
    Ok((vec![plain, first, taken], Vec::new()))
}

fn scrub(turns: usize, seconds: f64) -> Outcome {
    let scratch = Scratch::new()?;
    let folder = disk_folder()?;
    let (store, socket) = store(&scratch, folder.path().join("pool"))?;
    let sockets = std::slice::from_ref(&socket);
    let read = || client(sockets, &["--depth", "16", "--rate", "2000"], seconds);
    let (mut without, mut with) = (ours("reads"), ours("reads during a deep scrub"));
    let pool = PoolId(1);
    for _ in 0..turns {
        without.take(read()?);
        store.call(Verb::ScrubStart { pool, disk: None, kind: ScrubKind::Deep, rate: None })?;
        with.take(read()?);
        store.call(Verb::ScrubStop { pool, disk: None })?;
    }
    let rise = (median(&with.p99)? / median(&without.p99)? - 1.0) * 100.0;
    Ok((vec![with, without], vec![verdict("rise of p99 by the scrub, %", rise, 10.0)]))
}

/// The pool's file is in memory. On a disk it has two million extents, and its file system takes
/// an hour to delete it where it discards each of them; for so long the kernel gives nothing back
/// that dead processes had in rings, locks on disks included.
fn mount() -> Outcome {
    let scratch = Scratch::new()?;
    let folder = memory_folder(MOUNT_MEMORY)?;
    // One object for each MiB of the disk is what a store makes room for.
    let device = folder.path().join("pool");
    let (mut store, socket) = starts::populated(&scratch, &device, TIB, OBJECTS)?;
    let mut seconds = ours("mount after kill -9");
    for _ in 0..3 {
        seconds.figures.push(starts::start_after_kill(&mut store, &socket)?);
    }
    let process = status(&store)?.process;
    let mut memory = ours("resident memory after it, for 4 TiB provisioned (MiB)");
    memory.figures.push(resident_mib(process)?);
    let verdicts = vec![
        verdict("mount after an unclean stop, s", median(&seconds.figures)?, 2.0),
        verdict("resident MiB a TiB provisioned", median(&memory.figures)? / 4.0, 64.0),
    ];
    Ok((vec![seconds, memory], verdicts))
}

fn resident_mib(process: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes: f64 = kilobytes.context("a resident size")?.trim().parse()?;
    Ok(kilobytes / 1024.0)
}
