// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask test`: one build, then every test that this machine can run.
//!
//! ```text
//!   build all ─▶ cargo's test programs ─▶ doc tests ─▶ fuzz smoke ─▶ hosts ─▶ guest ─▶ traces
//! ```
//!
//! The order is by value for the time: what is quick and says most comes first. The whole has
//! a budget; a stage gets what is left of it and names what it had to leave out. Nothing is
//! skipped in silence: a skipped test is counted and its reason printed. The last line is
//! `N passed, N failed, N skipped`.

mod cargo_tests;
mod tally;

use crate::shell;
use crate::traces::{MARK, Traces};
use anyhow::{Result, bail};
use std::process::Command;
use std::time::{Duration, Instant};
use tally::Tally;

/// A stage that has less than this left is skipped instead of cut short.
const STAGE_LEAST: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Time for everything after the build; what does not fit is skipped and named.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// Run only test programs, targets and tests whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Run each randomised and guest test at its full length.
    #[arg(long)]
    long: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FuzzOptions {
    /// 30 s a target instead of 2 s.
    #[arg(long)]
    long: bool,
    /// Time for each target, in seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// One target by its name; all without.
    #[arg(long)]
    target: Option<String>,
    /// The seed of an earlier run, to repeat it.
    #[arg(long)]
    seed: Option<u64>,
}

/// A program of ours that runs tests and reports like the test harness.
struct Stage {
    name: &'static str,
    program: &'static str,
}

/// After cargo's own tests, in this order.
const STAGES: &[Stage] = &[
    Stage { name: "fuzz", program: "plinth-fuzz" },
    Stage { name: "hosts", program: "plinth-hosts" },
    Stage { name: "guest", program: "plinth-guest" },
];

pub(crate) fn run(options: &Options) -> Result<()> {
    let traces = Traces::before();
    cargo_tests::build_programs()?;
    let executables = cargo_tests::build()?;
    let until = Instant::now() + Duration::from_secs(options.minutes * 60);
    let mut tally = Tally::default();
    let only = options.only.as_deref();
    cargo_tests::run(&executables, only, &traces, &mut tally)?;
    cargo_tests::doc(only, &traces, &mut tally)?;
    for stage in STAGES {
        run_stage(stage, options, until, &traces, &mut tally)?;
    }
    leave_no_trace(&traces, &mut tally);
    finish(&tally)
}

pub(crate) fn fuzz(options: &FuzzOptions) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["run", "--quiet", "--release", "--package", "plinth-fuzz", "--"]);
    let seconds = options.seconds.unwrap_or(if options.long { 30 } else { 2 });
    command.args(["--seconds", &seconds.to_string()]).current_dir(shell::root());
    if let Some(target) = &options.target {
        command.args(["--target", target]);
    }
    if let Some(seed) = options.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    let status = command.status()?;
    if !status.success() {
        bail!("fuzzing found something (above), or could not run");
    }
    Ok(())
}

fn run_stage(
    stage: &Stage,
    options: &Options,
    until: Instant,
    traces: &Traces,
    tally: &mut Tally,
) -> Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    println!("== {}: {:.0} s left of the budget", stage.name, left.as_secs_f64());
    if left < STAGE_LEAST && !options.long {
        tally.skip(stage.name, "the time budget is spent; give more with --minutes");
        return Ok(());
    }
    let mut command = Command::new(shell::programs().join(stage.program));
    command.current_dir(shell::root()).env(MARK, traces.run());
    if let Some(only) = &options.only {
        command.args(["--only", only]);
    }
    if options.long {
        command.arg("--long");
    }
    command.args(["--budget-seconds", &left.as_secs().to_string()]);
    // The stage keeps to its budget by itself; the bound is for the case that it does not.
    let outcome = shell::bounded(command, left + Duration::from_secs(120), true)?;
    tally.add(stage.name, &outcome);
    Ok(())
}

fn leave_no_trace(traces: &Traces, tally: &mut Tally) {
    let left = traces.left();
    if left.is_empty() {
        tally.pass(1);
    }
    for what in left {
        tally.fail("nothing is left behind", &what);
    }
}

fn finish(tally: &Tally) -> Result<()> {
    tally.explain();
    println!("{}", tally.last_line());
    if tally.failed() > 0 {
        bail!("{} tests failed", tally.failed());
    }
    Ok(())
}
