// SPDX-License-Identifier: Apache-2.0
//! fio with io_uring on a file: what the device and the kernel give to one thread.

use super::super::Run;
use anyhow::{Context, Result, bail};
use plinth_stage::daemon::output;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

#[derive(Debug, Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Debug, Deserialize)]
struct Job {
    read: Side,
    write: Side,
    /// Of the job's time, in percent.
    usr_cpu: f64,
    sys_cpu: f64,
}

#[derive(Debug, Deserialize)]
struct Side {
    iops: f64,
    clat_ns: Latency,
}

#[derive(Debug, Deserialize)]
struct Latency {
    #[serde(default)]
    percentile: BTreeMap<String, f64>,
}

/// The same pattern as `plinth-perf blk` with these arguments.
fn pattern(arguments: &[&str]) -> Result<Vec<String>> {
    let (mut depth, mut block, mut kind, mut order) = ("1", "4096", "read", "rand");
    let mut extra = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().copied().context("an option without its value");
        match *argument {
            "--depth" => depth = value()?,
            "--block-size" => block = value()?,
            "--order" => order = value()?,
            "--writes" if value()? == "100" => kind = "write",
            "--durable" => extra.push("--fdatasync=1".to_owned()),
            other => bail!("fio has no word for {other}"),
        }
    }
    let prefix = if order == "rand" { "rand" } else { "" };
    let mut words =
        vec![format!("--rw={prefix}{kind}"), format!("--bs={block}"), format!("--iodepth={depth}")];
    words.append(&mut extra);
    Ok(words)
}

fn command(file: &Path, size: u64) -> Command {
    let mut command = Command::new("timeout");
    command.args(["180", "fio", "--name=peer", "--ioengine=io_uring", "--direct=1"]);
    command.arg(format!("--filename={}", file.display())).arg(format!("--size={size}"));
    command.args(["--cpus_allowed=1", "--output-format=json"]);
    command
}

/// Writes every byte of the file once.
pub(super) fn fill(file: &Path, size: u64) -> Result<()> {
    let mut fio = command(file, size);
    fio.args(["--rw=write", "--bs=131072", "--iodepth=16", "--end_fsync=1"]);
    output(&mut fio).context("filling fio's file").map(drop)
}

pub(super) fn run(file: &Path, size: u64, arguments: &[&str], seconds: f64) -> Result<Run> {
    let mut fio = command(file, size);
    fio.args(pattern(arguments)?).args(["--time_based", "--ramp_time=300ms", "--norandommap"]);
    fio.args(["--randrepeat=0"]).arg(format!("--runtime={}ms", (seconds * 1000.0).round()));
    let text = output(&mut fio)?;
    // Warnings may stand before the braces.
    let begin = text.find('{').context("fio said nothing")?;
    let output: Output = serde_json::from_str(&text[begin..]).context("what fio said")?;
    let job = output.jobs.first().context("fio had no job")?;
    let side = if job.read.iops > 0.0 { &job.read } else { &job.write };
    let at = |percent: &str| side.clat_ns.percentile.get(percent).copied().unwrap_or(0.0) / 1000.0;
    let words = fio.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    Ok(Run {
        figure: side.iops,
        p50: at("50.000000"),
        p99: at("99.000000"),
        command: words,
        cpu: Some((job.usr_cpu + job.sys_cpu) / 100.0 * 1e6 / side.iops.max(1.0)),
        ..Run::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_arguments_are_said_in_fios_words() {
        let words = pattern(&["--depth", "32", "--writes", "100", "--durable"]).unwrap();
        assert_eq!(words, ["--rw=randwrite", "--bs=4096", "--iodepth=32", "--fdatasync=1"]);
        let words = pattern(&["--block-size", "131072", "--order", "seq"]).unwrap();
        assert_eq!(words, ["--rw=read", "--bs=131072", "--iodepth=1"]);
        assert!(pattern(&["--writes", "50"]).is_err(), "a mix is not what fio was asked for");
    }
}
