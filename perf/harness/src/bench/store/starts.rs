// SPDX-License-Identifier: Apache-2.0
//! What starts cost: the gap that a guest sees, and how a start grows with the disk.

use super::super::Run;
use super::super::shared::{memory_folder, perf, read};
use super::measures::{Outcome, TIB, median, ours, verdict};
use super::server::{client, fill};
use crate::blk;
use anyhow::{Context, Result, ensure};
use plinth_stage::daemon::output;
use plinth_stage::{Scratch, Store};
use plinth_store_api::Durability;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
/// What the issue promises gaps for.
const GAP_STORE: u64 = 10 * GIB;
/// The store, its maps and the client beside it.
const GAP_MEMORY: u64 = 13 * GIB;
/// A quarter of a million objects of 4 KiB and their maps, twice.
const TIB_MEMORY: u64 = 6 * GIB;
/// Bytes of a volume that one object holds.
const OBJECT: u64 = 4 << 20;
/// How long the client runs before and after the process is replaced, at least.
const AROUND: Duration = Duration::from_secs(1);

/// How a process ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Death {
    /// A successor takes its guests.
    HandOver,
    /// `kill -9`, and a start.
    Kill,
}

/// The longest time between two answers of a verifying client while the process is replaced.
pub(super) fn gap(death: Death, turns: usize, seconds: f64) -> Outcome {
    let scratch = Scratch::new()?;
    let folder = memory_folder(GAP_MEMORY)?;
    let mut store = Store::start_with(&scratch, "s", &["--cpu", "1"])?;
    let device = folder.path().join("pool");
    store.make_pool_as(1, &device, GAP_STORE + 2 * GIB, Durability::Device)?;
    let socket = store.make_volume(1, 1, GAP_STORE, 1)?;
    fill(&socket, GAP_STORE)?;
    let (what, limit) = match death {
        Death::HandOver => ("longest gap at a hot restart, ms", 50.0),
        Death::Kill => ("longest gap at kill -9, ms", 1000.0),
    };
    let (mut gaps, mut errors) = (ours(what), 0);
    for _ in 0..turns {
        let result = verified(&socket, seconds.max(2.5 * AROUND.as_secs_f64()), || {
            thread::sleep(AROUND);
            match death {
                Death::HandOver => store.take_over(),
                Death::Kill => store.kill().and_then(|()| store.start_again()),
            }
        })?;
        let wanted = u64::from(death == Death::Kill);
        let (seen, checked) = (result.restarts, result.blocks_checked);
        ensure!(seen == wanted, "the client lost its connection {seen} times, not {wanted}");
        ensure!(checked > 0, "no block was read");
        errors += result.errors;
        gaps.take(Run { figure: result.longest_gap, losses: result.errors, ..Run::default() });
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of errors")]
    let failed = verdict("requests that failed", errors as f64, 0.0);
    let longest = gaps.figures.iter().copied().fold(0.0, f64::max);
    Ok((vec![gaps], vec![verdict(what, longest, limit), failed]))
}

/// Runs a client that checks every byte, and something beside it.
fn verified(
    socket: &Path,
    seconds: f64,
    beside: impl FnOnce() -> Result<()>,
) -> Result<blk::VerifyResult> {
    let scratch = Scratch::new()?;
    let mut command = perf(&scratch, "blk", seconds)?;
    command.arg("--verify").arg("--socket").arg(socket);
    command.args(["--depth", "16", "--writes", "50", "--flush-every", "64", "--rate", "10000"]);
    thread::scope(|scope| {
        let client = scope.spawn(|| output(&mut command).map(drop));
        let replaced = beside();
        let served = client.join().ok().context("the client's thread")?;
        // What ended the process says more than what its client then saw.
        replaced?;
        served
    })?;
    let report: blk::Report = read(&scratch)?;
    report.verify.context("a verifying run has a result")
}

/// A store on a sparse file of so many bytes, with a volume of so many objects that each hold
/// 4 KiB.
pub(super) fn populated(
    scratch: &Scratch,
    device: &Path,
    size: u64,
    objects: u64,
) -> Result<(Store, PathBuf)> {
    let tag = format!("s{objects}");
    let mut store = Store::start_with(scratch, &tag, &["--cpu", "1"])?;
    store.make_pool_as(1, device, size, Durability::Device)?;
    let socket = store.make_volume(1, 1, objects * OBJECT, 1)?;
    let (stride, count) = (OBJECT.to_string(), objects.to_string());
    let pattern = ["--writes", "100", "--order", "seq", "--depth", "64", "--warm-up", "0"];
    let places = ["--stride", &stride, "--count", &count];
    client(std::slice::from_ref(&socket), &[&pattern[..], &places[..]].concat(), 600.0)?;
    let made = store.pools()?.iter().map(|pool| pool.objects).sum::<u64>();
    ensure!(made >= objects, "only {made} of {objects} objects were made in the time there is");
    Ok((store, socket))
}

/// Seconds from the start of a process to a served volume, after a second of writes and `kill -9`.
pub(super) fn start_after_kill(store: &mut Store, socket: &PathBuf) -> Result<f64> {
    let sockets = std::slice::from_ref(socket);
    client(sockets, &["--writes", "100", "--depth", "32", "--warm-up", "0"], 1.0)?;
    store.kill()?;
    let begin = Instant::now();
    store.start_again()?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Starts over two sizes of disks, and what a TiB more costs.
pub(super) fn per_tib(turns: usize) -> Outcome {
    let scratch = Scratch::new()?;
    let folder = memory_folder(TIB_MEMORY)?;
    let small = starts(&scratch, &folder.path().join("small"), TIB / 4, turns)?;
    let large = starts(&scratch, &folder.path().join("large"), TIB, turns)?;
    let (first, second) = (median(&small)?, median(&large)?);
    let (slope, rest) = line((0.25, first), (1.0, second));
    let series = |name: &str, figures| {
        let mut series = ours(name);
        series.figures = figures;
        series
    };
    Ok((
        vec![
            series("start over 0.25 TiB", small),
            series("start over 1 TiB", large),
            series("for each TiB (the line through both)", vec![slope]),
            series("for nothing (the same line)", vec![rest]),
        ],
        Vec::new(),
    ))
}

fn starts(scratch: &Scratch, device: &Path, size: u64, turns: usize) -> Result<Vec<f64>> {
    let (mut store, socket) = populated(scratch, device, size, size / OBJECT)?;
    let starts = (0..turns).map(|_| start_after_kill(&mut store, &socket)).collect();
    drop(store);
    std::fs::remove_file(device).context("the disk's file")?;
    starts
}

/// The line through two points: its slope, and where it begins.
fn line(first: (f64, f64), second: (f64, f64)) -> (f64, f64) {
    let slope = (second.1 - first.1) / (second.0 - first.0);
    (slope, first.1 - slope * first.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_a_fixed_part_and_one_for_each_tib() {
        let (slope, rest) = line((0.25, 0.3), (1.0, 0.6));
        assert!((slope - 0.4).abs() < 1e-9 && (rest - 0.2).abs() < 1e-9, "{slope} {rest}");
        let at = |tib: f64| rest + slope * tib;
        assert!((at(1.0) - 0.6).abs() < 1e-9);
    }
}
