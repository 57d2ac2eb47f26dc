// SPDX-License-Identifier: Apache-2.0
//! A cluster of one node, as an operator has it: real plinthd, plinth-stored and plinth.

use anyhow::{Context, Result, bail, ensure};
use plinth_stage::daemon::{output, program};
use plinth_stage::{Daemon, Scratch};
use serde_json::Value;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A cluster of one node without a switch, in a folder of its own. Its VMs are processes that sleep:
/// their disks are attached, and nobody is at the sockets.
pub(crate) struct Lab {
    pub(crate) scratch: Scratch,
    plinthd: Daemon,
}

impl Lab {
    pub(crate) fn start() -> Result<Self> {
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
        // Storage needs no switch, and what a VM's disks are asked is the test's to choose.
        let idle = scratch.join("idle");
        std::fs::write(&idle, "#!/bin/sh\nexec sleep 1000\n")?;
        std::fs::set_permissions(&idle, std::fs::Permissions::from_mode(0o755))?;
        plinthd.args(["--switchd", "/bin/false", "--qemu"]).arg(&idle);
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
    pub(crate) fn plinth(&self, line: &str) -> Result<Value> {
        let mut command = Command::new(program("plinth")?);
        command.arg("--config-dir").arg(self.scratch.join("etc")).arg("--json");
        let text = output(command.args(line.split_whitespace()))?;
        serde_json::from_str(&text).with_context(|| format!("{line} printed {text}"))
    }

    /// One command that is refused; the refusal's code.
    pub(crate) fn refused(&self, line: &str) -> Result<String> {
        let mut command = Command::new(program("plinth")?);
        command.arg("--config-dir").arg(self.scratch.join("etc")).arg("--json");
        let ended = command.args(line.split_whitespace()).output()?;
        ensure!(ended.status.code() == Some(1), "{line} ended with {}", ended.status);
        let refusal: Value = serde_json::from_slice(&ended.stderr)?;
        Ok(refusal["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    pub(crate) fn until<T>(&self, what: &str, is_so: impl Fn(&Self) -> Option<T>) -> Result<T> {
        self.until_within(LIMIT, what, is_so)
    }

    pub(crate) fn until_within<T>(
        &self,
        limit: Duration,
        what: &str,
        is_so: impl Fn(&Self) -> Option<T>,
    ) -> Result<T> {
        let begin = Instant::now();
        while begin.elapsed() < limit {
            if let Some(found) = is_so(self) {
                return Ok(found);
            }
            thread::sleep(Duration::from_millis(100));
        }
        bail!("never: {what}\n{}", self.plinthd.tail())
    }

    /// Ends plinthd, and then the store, which outlives it.
    pub(crate) fn stop(mut self) -> Result<()> {
        let node = self.plinth("node show node-1")?;
        let daemons = node["status"]["daemons"].as_array().context("no daemons")?.clone();
        self.plinthd.stop()?;
        for daemon in daemons.iter().filter(|one| one["name"] == "plinth-stored") {
            let process = daemon["process"].as_u64().context("the store has no process")?;
            // What the node last said may be a process that has ended since: nothing to end then.
            let _ = output(Command::new("kill").arg(process.to_string()));
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
