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

mod cases;
mod contender;
mod report;

use crate::machine::{self, Circumstances};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, Deserialize, Serialize, clap::Args)]
pub(crate) struct Options {
    /// Runs of each contender in each case.
    #[arg(long, default_value_t = 5)]
    pub turns: usize,
    /// Length of a run.
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// Cases whose name contains this.
    #[arg(long)]
    pub only: Option<String>,
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
}

/// Everything about one case, as it is kept in a file.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct CaseResult {
    pub case: String,
    pub unit: String,
    pub circumstances: Circumstances,
    pub seconds: f64,
    pub series: Vec<Series>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.report_only {
        return report::write(&options.results, &options.report);
    }
    let (turns, seconds) = if options.smoke { (1, 0.5) } else { (options.turns, options.seconds) };
    if turns == 0 {
        bail!("--turns 0 measures nothing");
    }
    let only = options.only.as_deref();
    let cases: Vec<cases::Case> = cases::all()
        .into_iter()
        .filter(|case| only.is_none_or(|only| case.name.contains(only)))
        .collect();
    std::fs::create_dir_all(&options.results).context("the folder of results")?;
    for case in &cases {
        println!("== {} (load {:.2})", case.name, machine::load());
        let result = measure(case, turns, seconds)?;
        for line in report::lines(&result) {
            println!("   {line}");
        }
        if !options.smoke {
            let path = options.results.join(format!("{}.json", case.name));
            let text = serde_json::to_string_pretty(&result)? + "\n";
            std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
    }
    if options.smoke {
        return Ok(());
    }
    report::write(&options.results, &options.report)
}

fn measure(case: &cases::Case, turns: usize, seconds: f64) -> Result<CaseResult> {
    let circumstances = Circumstances::before();
    let mut series: Vec<Series> = case
        .contenders
        .iter()
        .map(|contender| Series {
            contender: contender.name().to_owned(),
            version: contender.version(),
            absent: contender.unmet(),
            ..Series::default()
        })
        .collect();
    for _ in 0..turns {
        for (contender, series) in case.contenders.iter().zip(&mut series) {
            if series.absent.is_some() {
                continue;
            }
            match contender.run(case, seconds) {
                Ok(run) => {
                    series.figures.push(run.figure);
                    series.p50.push(run.p50);
                    series.p99.push(run.p99);
                    series.losses += run.losses;
                    series.command = run.command;
                }
                // One contender's trouble is part of the result, not the end of the others.
                Err(error) => series.absent = Some(format!("{error:#}")),
            }
        }
    }
    Ok(CaseResult {
        case: case.name.to_owned(),
        unit: case.unit.to_owned(),
        circumstances: circumstances.after(),
        seconds,
        series,
    })
}
