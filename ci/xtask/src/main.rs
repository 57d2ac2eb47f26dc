// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask <verb>`: every verb of the project behind one door.
//!
//! CI, the Makefile and people call the same verbs, so that what passes on a desk passes there.
//! A verb lives in the module of its name; this file only reads the command line.

mod bench;
mod layers;
mod shell;
mod suite;
mod tidy;
mod traces;
mod up;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Checks, tests, the demonstration and the benchmarks.")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Format, clippy, layers and tidy: everything that needs no test to run.
    Check,
    /// Holds the crates to the table of kinds and areas.
    Layers,
    /// Holds the files to the house rules that a program can see.
    Tidy,
    /// Builds everything once and runs every test that this machine can run.
    Test(suite::Options),
    /// `check`, then `test`: what CI runs.
    Ci(suite::Options),
    /// Runs the fuzz targets, and nothing else.
    Fuzz(suite::FuzzOptions),
    /// Measures ours and the peers that are installed, and writes perf/REPORT.md.
    Bench(bench::Options),
    /// Starts a node, or two, and shows what they can do.
    Up(up::UpOptions),
    /// Ends everything that `up` started; what is on the disks stays.
    Down,
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Check => check(),
        Verb::Layers => layers::run(),
        Verb::Tidy => tidy::run(),
        Verb::Test(options) => suite::run(&options),
        Verb::Ci(options) => check().and_then(|()| suite::run(&options)),
        Verb::Fuzz(options) => suite::fuzz(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Up(options) => up::up(&options),
        Verb::Down => up::down(),
    }
}

/// The quick checks come first: a wrong layer should not cost a clippy run.
fn check() -> Result<()> {
    tidy::run()?;
    layers::run()?;
    shell::step("format", "cargo", &["fmt", "--all", "--check"])?;
    let clippy =
        ["clippy", "--release", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    shell::step("clippy", "cargo", &clippy)
}
