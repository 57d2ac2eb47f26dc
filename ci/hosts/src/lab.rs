// SPDX-License-Identifier: Apache-2.0
//! A cluster of one node, as an operator has it: real plinthd, plinth-stored and plinth.

use anyhow::{Context, Result, bail, ensure};
use plinth_stage::daemon::{output, program};
use plinth_stage::{Daemon, Scratch};
use serde_json::Value;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A cluster of one node, in a folder of its own. Its VMs are processes that sleep: their disks and
/// NICs are attached, and nobody is at the sockets.
pub(crate) struct Lab {
    pub(crate) scratch: Scratch,
    plinthd: Daemon,
}

const STORE: &str = "plinth-stored";
const SWITCH: &str = "plinth-switchd";

impl Lab {
    /// One without a switch.
    pub(crate) fn start() -> Result<Self> {
        let lab = Self::begin(Path::new("/bin/false"))?;
        lab.until("the store is up", |lab| lab.is_up(STORE))?;
        Ok(lab)
    }

    pub(crate) fn with_switch() -> Result<Self> {
        let lab = Self::begin(&program(SWITCH)?)?;
        for daemon in [STORE, SWITCH] {
            lab.until("store and switch are up", |lab| lab.is_up(daemon))?;
        }
        Ok(lab)
    }

    fn begin(switchd: &Path) -> Result<Self> {
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
        // What a VM's disks and NICs are asked is the test's to choose.
        let idle = scratch.join("idle");
        std::fs::write(&idle, "#!/bin/sh\nexec sleep 1000\n")?;
        std::fs::set_permissions(&idle, std::fs::Permissions::from_mode(0o755))?;
        plinthd.arg("--switchd").arg(switchd).arg("--qemu").arg(&idle);
        let plinthd = Daemon::start("plinthd", plinthd, &scratch.join("plinthd.log"))?;
        Ok(Self { scratch, plinthd })
    }

    /// What the node last said of a daemon.
    fn daemon(&self, name: &str) -> Result<Value> {
        let node = self.plinth("node show node-1")?;
        let daemons = node["status"]["daemons"].as_array().context("no daemons")?;
        daemons.iter().find(|one| one["name"] == name).cloned().with_context(|| name.to_owned())
    }

    fn is_up(&self, daemon: &str) -> Option<()> {
        (self.daemon(daemon).ok()?["state"] == "up").then_some(())
    }

    /// The process of a daemon, as the node last said it.
    pub(crate) fn process(&self, daemon: &str) -> Result<u64> {
        let process = self.daemon(daemon)?["process"].as_u64();
        process.with_context(|| format!("{daemon} has no process"))
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

    /// Ends plinthd, and then store and switch, which outlive it.
    pub(crate) fn stop(mut self) -> Result<()> {
        let node = self.plinth("node show node-1")?;
        let daemons = node["status"]["daemons"].as_array().context("no daemons")?.clone();
        self.plinthd.stop()?;
        // A switch that was never started has no process.
        for process in daemons.iter().filter_map(|one| one["process"].as_u64()) {
            // What the node last said may be a process that has ended since: nothing to end then.
            let _ = output(Command::new("kill").arg(process.to_string()));
            let begin = Instant::now();
            let folder = format!("/proc/{process}/exe");
            while std::fs::read_link(&folder).is_ok() {
                ensure!(begin.elapsed() < LIMIT, "process {process} does not end");
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}
