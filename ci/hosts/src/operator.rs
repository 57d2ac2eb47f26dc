// SPDX-License-Identifier: Apache-2.0
//! An operator at the command line of a real control service with a real store.

use anyhow::{Context, Result, bail, ensure};
use plinth_stage::daemon::{output, program};
use plinth_stage::runner::Length;
use plinth_stage::{Daemon, Scratch};
use serde_json::Value;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// A cluster of one node without a switch, in a folder of its own.
struct Lab {
    scratch: Scratch,
    plinthd: Daemon,
}

impl Lab {
    fn start() -> Result<Self> {
        let scratch = Scratch::new()?;
        let address = |socket: &UdpSocket| Ok(socket.local_addr()?.to_string());
        let sockets = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0"));
        let sockets: Vec<UdpSocket> = sockets.collect::<Result<_, _>>()?;
        let addresses: Vec<String> = sockets.iter().map(address).collect::<Result<_>>()?;
        drop(sockets);
        let (state, etc) = (scratch.join("state"), scratch.join("etc"));
        let mut init = Command::new(program("plinth")?);
        init.arg("--config-dir").arg(&etc).args(["cluster", "init"]);
        init.arg("--state-dir").arg(&state);
        for (option, address) in ["--listen", "--join", "--agent"].iter().zip(&addresses) {
            init.args([*option, address]);
        }
        output(&mut init)?;
        let mut plinthd = Command::new(program("plinthd")?);
        plinthd.arg("--state-dir").arg(&state).arg("--run-dir").arg(scratch.join("run"));
        // Storage needs no switch.
        plinthd.args(["--switchd", "/bin/false"]);
        let plinthd = Daemon::start("plinthd", plinthd, &scratch.join("plinthd.log"))?;
        let lab = Self { scratch, plinthd };
        lab.until("the store is up", |lab| {
            let node = lab.plinth("node show node-1").ok()?;
            let daemons = node["status"]["daemons"].as_array()?.clone();
            let stored = daemons.into_iter().find(|one| one["name"] == "plinth-stored")?;
            (stored["state"] == "up").then_some(())
        })?;
        Ok(lab)
    }

    /// One command; its JSON.
    fn plinth(&self, line: &str) -> Result<Value> {
        let mut command = Command::new(program("plinth")?);
        command.arg("--config-dir").arg(self.scratch.join("etc")).arg("--json");
        let text = output(command.args(line.split_whitespace()))?;
        serde_json::from_str(&text).with_context(|| format!("{line} printed {text}"))
    }

    /// One command that is refused; the refusal's code.
    fn refused(&self, line: &str) -> Result<String> {
        let mut command = Command::new(program("plinth")?);
        command.arg("--config-dir").arg(self.scratch.join("etc")).arg("--json");
        let ended = command.args(line.split_whitespace()).output()?;
        ensure!(ended.status.code() == Some(1), "{line} ended with {}", ended.status);
        let refusal: Value = serde_json::from_slice(&ended.stderr)?;
        Ok(refusal["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    fn until<T>(&self, what: &str, is_so: impl Fn(&Self) -> Option<T>) -> Result<T> {
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            if let Some(found) = is_so(self) {
                return Ok(found);
            }
            thread::sleep(Duration::from_millis(100));
        }
        bail!("never: {what}\n{}", self.plinthd.tail())
    }

    /// Ends plinthd, and then the store, which outlives it.
    fn stop(mut self) -> Result<()> {
        let node = self.plinth("node show node-1")?;
        let daemons = node["status"]["daemons"].as_array().context("no daemons")?.clone();
        self.plinthd.stop()?;
        for daemon in daemons.iter().filter(|one| one["name"] == "plinth-stored") {
            let process = daemon["process"].as_u64().context("the store has no process")?;
            output(Command::new("kill").arg(process.to_string()))?;
            let begin = Instant::now();
            let folder = format!("/proc/{process}/exe");
            while std::fs::read_link(&folder).is_ok() {
                ensure!(begin.elapsed() < LIMIT, "the store does not end");
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

/// A disk is added to a pool with volumes in it, the first one drained and removed.
pub(crate) fn disks(_: Length) -> Result<()> {
    let lab = Lab::start()?;
    let (first, second) = (lab.scratch.join("first"), lab.scratch.join("second"));
    let create = "pool create trial --class performance --size 256M";
    lab.plinth(&format!("{create} --device {}", first.display()))?;
    let image = lab.scratch.join("image");
    std::fs::write(&image, vec![0x5a; 8 << 20])?;
    lab.plinth(&format!("image import small {}", image.display()))?;
    for number in 0..8 {
        lab.plinth(&format!("volume create data-{number} --image small"))?;
    }
    let limits = lab.plinth("volume limit show data-0")?;
    ensure!(limits["limits"]["iops"] == 1800, "a performance volume has {limits}");
    let limits = lab.plinth("volume limit set data-0 --iops 500 --bandwidth 10M")?;
    ensure!(limits["limits"]["bytes_per_second"] == 10 << 20, "{limits}");
    ensure!(lab.refused("disk drain trial 1")? == "no-room", "the only disk was drained");
    let add = format!("disk add trial --size 256M --device {}", second.display());
    let disk = lab.plinth(&add)?;
    ensure!(disk["disk"] == 2, "{disk}");
    ensure!(lab.refused(&add)? == "in-use", "a device was added twice");
    lab.until("both disks are in", |lab| {
        let disks = lab.plinth("disk list trial").ok()?;
        disks.as_array()?.iter().all(|disk| disk["status"]["state"] == "in").then_some(())
    })?;
    ensure!(lab.refused("disk remove trial 1")? == "state", "a disk in service was removed");
    lab.plinth("disk drain trial 1")?;
    lab.until("the first disk is empty", |lab| {
        let disks = lab.plinth("disk list trial").ok()?;
        let first = disks.as_array()?.iter().find(|disk| disk["disk"] == 1)?.clone();
        let is_empty = first["status"]["state"] == "draining" && first["status"]["objects"] == 0;
        is_empty.then_some(())
    })?;
    lab.until("the first disk is removed", |lab| lab.plinth("disk remove trial 1").ok())?;
    let disks = lab.plinth("disk list trial")?;
    ensure!(disks.as_array().is_some_and(|disks| disks.len() == 1), "{disks}");
    // What was on it is there, and can still be cloned and deleted.
    lab.until("the pool is in service", |lab| lab.plinth("volume create late --image small").ok())?;
    for volume in lab.plinth("volume list")?.as_array().context("no list")? {
        let name = volume["name"].as_str().context("no name")?.to_owned();
        lab.plinth(&format!("volume delete {name}"))?;
    }
    lab.stop()
}
