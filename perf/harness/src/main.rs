// SPDX-License-Identifier: Apache-2.0
//! `plinth-perf`: measures and verifies vhost-user backends, ours or a peer's.

mod bench;
mod blk;
mod latency;
mod machine;
mod net;
mod pattern;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "plinth-perf", about = "Measures and verifies vhost-user backends.")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// A vhost-user-blk client: speed, or with --verify every byte.
    Blk(blk::Options),
    /// Packets through two vhost-user-net ports: rate, loss, latency.
    Net(net::Options),
    /// Ours and the peers that are installed, in turns; writes the report.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("plinth-perf: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether what was asked for was served rightly.
fn run(verb: Verb) -> Result<bool> {
    match verb {
        Verb::Blk(options) => {
            let report = blk::run(&options)?;
            print_blk(&report);
            write_json(&report, options.json.as_deref())?;
            Ok(report.is_good())
        }
        Verb::Net(options) => {
            let report = net::run(&options)?;
            print_net(&report);
            write_json(&report, options.json.as_deref())?;
            Ok(report.is_good())
        }
        Verb::Bench(options) => bench::run(&options).map(|()| true),
    }
}

fn write_json(report: &impl Serialize, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(report)?;
    fs::write(path, text + "\n").with_context(|| path.display().to_string())
}

fn print_blk(report: &blk::Report) {
    let circumstances = &report.circumstances;
    let (before, after) = (circumstances.load_before, circumstances.load_after);
    if let Some(load) = &report.load {
        println!(
            "{:.0} IOPS, {:.1} MiB/s over {:.1} s; {} reads, {} writes, {} flushes, {} errors",
            load.iops,
            load.mib_per_second,
            load.seconds,
            load.reads,
            load.writes,
            load.flushes,
            load.errors
        );
        let latency = &load.latency;
        println!(
            "latency µs: p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
            latency.p50, latency.p90, latency.p99, latency.p999, latency.max
        );
    }
    if let Some(verify) = &report.verify {
        println!(
            "{} mismatches, {} errors; {} blocks checked, {} of them at the end; {} reads, {} \
             writes, {} flushes, {} restarts, {} unflushed versions rolled back, longest wait for \
             an answer {:.1} ms, {:.1} s",
            verify.mismatches.len(),
            verify.errors,
            verify.blocks_checked,
            verify.blocks_checked_last,
            verify.reads,
            verify.writes,
            verify.flushes,
            verify.restarts,
            verify.rolled_back,
            verify.longest_gap,
            verify.seconds
        );
        verify.mismatches.iter().for_each(|mismatch| println!("MISMATCH {mismatch}"));
    }
    println!("load average {before:.2} before, {after:.2} after");
}

fn print_net(report: &net::Report) {
    let net::Report { result, circumstances, memory, .. } = report;
    println!(
        "{:.3} Mpps, {:.2} Gbit/s received over {:.1} s on {memory}; {} sent, {} received, {} \
         lost, {} foreign, ring full {} times",
        result.received_pps / 1e6,
        result.received_gbps,
        result.seconds,
        result.sent,
        result.received,
        result.lost,
        result.foreign,
        result.refused
    );
    let latency = &result.latency;
    println!(
        "latency µs: p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
        latency.p50, latency.p90, latency.p99, latency.p999, latency.max
    );
    let (before, after) = (circumstances.load_before, circumstances.load_after);
    println!("load average {before:.2} before, {after:.2} after");
}
