// SPDX-License-Identifier: Apache-2.0
//! A private Open vSwitch with DPDK.

use anyhow::{Context, Result};
use plinth_stage::Scratch;
use plinth_stage::daemon::output;
use std::path::PathBuf;
use std::process::Command;

const SCRIPT: &str = "perf/baselines/ovs";

/// What its packet memory takes, in pages of 2 MiB.
const HUGEPAGES: u64 = 900;

/// Ended with its database on drop.
#[derive(Debug)]
pub(super) struct Ovs {
    folder: PathBuf,
}

impl Ovs {
    pub(super) fn start(scratch: &Scratch, scenario: &str) -> Result<Self> {
        let ovs = Self { folder: scratch.path().to_owned() };
        ovs.call("up", None)?;
        ovs.call("scenario", Some(scenario))?;
        Ok(ovs)
    }

    /// Busy cycles of its worker a packet since the start; `None` before the first packet.
    pub(super) fn cycles_a_packet(&self) -> Result<Option<f64>> {
        let text = self.call("cycles", None)?;
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).with_context(|| format!("{SCRIPT} cycles printed {text:?}"))
    }

    fn call(&self, verb: &str, argument: Option<&str>) -> Result<String> {
        let mut command = Command::new("timeout");
        command.arg("60").arg(SCRIPT).arg(verb).arg(&self.folder).args(argument);
        output(&mut command)
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        let _ = self.call("down", None);
    }
}

/// Why it cannot start, where too few hugepages are free.
pub(super) fn lacks_hugepages() -> Option<String> {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let free: u64 = text.trim().parse().unwrap_or(0);
    (free < HUGEPAGES)
        .then(|| format!("it needs {HUGEPAGES} free hugepages of 2 MiB (sysctl vm.nr_hugepages)"))
}
