// SPDX-License-Identifier: Apache-2.0
//! `plinth-perf bench`: ours and the peers that are installed, one after the other, in turns.
//!
//! ```text
//!   for each case:  A B A B A B …   one run each a turn, fresh processes
//!                   └─ medians, spread, ratio ─▶ results/*.json ─▶ perf/REPORT.md
//! ```
//!
//! Turns make what else the machine does fall on all alike. A run is a process of its own
//! (`plinth-perf blk` or `net` with `--json`), so that no figure depends on the one before.
//! Servers of packets are started afresh too; those of disks stay, filled: see [`store`].

mod net;
mod report;
mod shared;
mod store;

use crate::machine::{self, Circumstances};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Deserialize, Serialize, clap::Args)]
pub(crate) struct Options {
    /// Runs of each contender in each case.
    #[arg(long, default_value_t = 5)]
    pub turns: usize,
    /// Length of a run.
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// Cases whose name contains this, or one of these; given several times, any of them.
    #[arg(long)]
    pub only: Vec<String>,
    /// Not the cases whose name contains this.
    #[arg(long)]
    pub skip: Vec<String>,
    /// In the cases of the switch, only contenders whose name contains this.
    #[arg(long)]
    pub who: Option<String>,
    /// Where results are kept and found.
    #[arg(long, default_value = "perf/results")]
    pub results: PathBuf,
    /// The report to write from all results; none is written without.
    #[arg(long, default_value = "perf/REPORT.md")]
    pub report: PathBuf,
    /// Only write the report from the results that are there.
    #[arg(long)]
    pub report_only: bool,
    /// One short turn of each, to see that everything runs. No report is written.
    #[arg(long)]
    pub smoke: bool,
}

/// Figures of one contender in one case.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Series {
    pub contender: String,
    pub version: String,
    /// One figure a turn, in the case's unit.
    pub figures: Vec<f64>,
    /// Median latencies of the turns, in microseconds.
    pub p50: Vec<f64>,
    pub p99: Vec<f64>,
    /// Packets or requests that were lost or failed, over all turns.
    pub losses: u64,
    /// The command of one run.
    pub command: Vec<String>,
    /// Why there is no figure.
    #[serde(default)]
    pub absent: Option<String>,
    /// What follows has one value a turn, and none where the server does not say.
    ///
    /// Cycles of the time-stamp counter that the worker spent a request, idle rounds left out.
    #[serde(default)]
    pub cycles: Vec<f64>,
    /// System calls of the worker a request.
    #[serde(default)]
    pub system_calls: Vec<f64>,
    /// CPU time of the whole server a request in µs, spinning included.
    #[serde(default)]
    pub cpu: Vec<f64>,
    /// Bytes to the device for a byte that the client wrote.
    #[serde(default)]
    pub amplification: Vec<f64>,
    /// From the least to the most of several clients, in percent of their mean.
    #[serde(default)]
    pub unfairness: Vec<f64>,
}

/// One run's figures.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    pub figure: f64,
    pub p50: f64,
    pub p99: f64,
    pub losses: u64,
    pub command: Vec<String>,
    /// Requests of the whole run, its warm-up included.
    pub asked: u64,
    pub cycles: Option<f64>,
    pub system_calls: Option<f64>,
    pub cpu: Option<f64>,
    pub amplification: Option<f64>,
    pub unfairness: Option<f64>,
}

impl Series {
    /// Adds a turn.
    pub(crate) fn take(&mut self, run: Run) {
        self.figures.push(run.figure);
        self.p50.push(run.p50);
        self.p99.push(run.p99);
        self.losses += run.losses;
        self.command = run.command;
        self.cycles.extend(run.cycles);
        self.system_calls.extend(run.system_calls);
        self.cpu.extend(run.cpu);
        self.amplification.extend(run.amplification);
        self.unfairness.extend(run.unfairness);
    }
}

/// A promise and what was measured of it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Verdict {
    pub what: String,
    pub measured: f64,
    pub bar: String,
    pub is_met: bool,
}

/// Everything about one case, as it is kept in a file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct CaseResult {
    pub case: String,
    pub unit: String,
    pub circumstances: Circumstances,
    pub seconds: f64,
    pub series: Vec<Series>,
    #[serde(default)]
    pub verdicts: Vec<Verdict>,
    /// For readers.
    #[serde(default)]
    pub note: String,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        let is_in = |list: &[String]| list.iter().any(|part| name.contains(part.as_str()));
        (self.only.is_empty() || is_in(&self.only)) && !is_in(&self.skip)
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.report_only {
        return report::write(&options.results, &options.report);
    }
    let (turns, seconds) = if options.smoke { (1, 0.5) } else { (options.turns, options.seconds) };
    if turns == 0 {
        bail!("--turns 0 measures nothing");
    }
    std::fs::create_dir_all(&options.results).context("the folder of results")?;
    measure_store(options, turns, seconds)?;
    for case in net::ALL.iter().filter(|case| options.wants(case.name)) {
        println!("== {} (load {:.2})", case.name, machine::load());
        keep(options, &net::measure(case, options.who.as_deref(), turns, seconds))?;
    }
    if options.wants(net::idle::NAME) {
        println!("== {} (load {:.2})", net::idle::NAME, machine::load());
        keep(options, &net::idle::measure(turns, seconds))?;
    }
    if options.smoke {
        return Ok(());
    }
    report::write(&options.results, &options.report)
}

/// The cases of the store, whose servers stay up from case to case.
fn measure_store(options: &Options, turns: usize, seconds: f64) -> Result<()> {
    let cases: Vec<store::Case> =
        store::all().into_iter().filter(|case| options.wants(case.name)).collect();
    if cases.is_empty() {
        return Ok(());
    }
    let mut stage = store::stage()?;
    for case in &cases {
        println!("== {} (load {:.2})", case.name, machine::load());
        keep(options, &store::measure(&mut stage, case, turns, seconds))?;
    }
    Ok(())
}

/// Shows a result, and keeps it.
fn keep(options: &Options, result: &CaseResult) -> Result<()> {
    for line in report::lines(result) {
        println!("   {line}");
    }
    if options.smoke {
        return Ok(());
    }
    let path = options.results.join(format!("{}.json", result.case));
    let text = serde_json::to_string_pretty(result)? + "\n";
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}

/// Removed on drop.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
