// SPDX-License-Identifier: Apache-2.0
//! The store under plinth-perf's verifier, killed again and again.

use anyhow::{Context, Result, bail, ensure};
use plinth_stage::daemon::program;
use plinth_stage::runner::Length;
use plinth_stage::{Daemon, Scratch, Store};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const MIB: u64 = 1 << 20;

/// A verifier that runs for `length` on a disk that was never written before.
pub(crate) fn verifier(scratch: &Scratch, socket: &Path, length: Duration) -> Result<Daemon> {
    let mut command = Command::new(program("plinth-perf")?);
    command.arg("blk").arg("--socket").arg(socket);
    command.args(["--verify", "--zeroed", "--writes", "60", "--flush-every", "64"]);
    command.args(["--depth", "16", "--queues", "2", "--block-size", "8192"]);
    command.args(["--seconds", &length.as_secs_f64().to_string()]);
    Daemon::start("plinth-perf", command, &scratch.join("verify.log"))
}

pub(crate) fn killed_store(length: Length) -> Result<()> {
    let run = length.pick(Duration::from_secs(15), Duration::from_secs(300));
    let scratch = Scratch::new()?;
    let mut store = Store::start(&scratch, "b")?;
    store.make_pool(1, 512 * MIB)?;
    let mut kills = 0;
    // A life on a disk that others keep busy may last for a whole round, hence more rounds.
    for volume in 1..=4 {
        kills += killed_round(&scratch, &mut store, volume, run)?;
        if kills >= 3 {
            return Ok(());
        }
    }
    bail!("only {kills} kills")
}

/// One verifier's run on a volume of its own. How often the store was killed under it.
fn killed_round(scratch: &Scratch, store: &mut Store, volume: u64, run: Duration) -> Result<u64> {
    let socket = store.make_volume(1, volume, 128 * MIB, 2)?;
    let begin = Instant::now();
    let mut verify = verifier(scratch, &socket, run)?;
    let mut kills = 0_u64;
    // Each life a little longer than the last, so that the kill meets every phase.
    while begin.elapsed() + Duration::from_secs(2) < run {
        thread::sleep(Duration::from_millis(300 + 170 * (kills % 10)));
        verify.check()?;
        store.kill()?;
        store.start_again()?;
        kills += 1;
    }
    let status = verify.wait(Duration::from_secs(60))?;
    let log = verify.log();
    ensure!(status.success(), "plinth-perf ended with {status}:\n{log}");
    let summary = log.lines().rfind(|line| line.contains(" mismatches, "));
    let summary = summary.with_context(|| format!("plinth-perf says no result:\n{log}"))?;
    println!("   {kills} kills: {summary}");
    ensure!(summary.starts_with("0 mismatches, 0 errors"), "{log}");
    ensure!(summary.contains(&format!(" {kills} restarts")), "{kills} kills, but {summary}");
    Ok(kills)
}
