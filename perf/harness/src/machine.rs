// SPDX-License-Identifier: Apache-2.0
//! On what a measurement was made: a number without it is worth nothing.

use serde::{Deserialize, Serialize};
use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_mib: u64,
    pub kernel: String,
    pub hugepages: String,
}

/// What belongs to one run besides its numbers.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Circumstances {
    pub machine: Machine,
    /// With `+` when the tree had changes.
    pub commit: String,
    pub command: Vec<String>,
    /// Seconds since 1970.
    pub at: u64,
    /// Load average of one minute.
    pub load_before: f64,
    pub load_after: f64,
}

impl Circumstances {
    /// Notes everything but the load afterwards.
    pub(crate) fn before() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            machine: machine(),
            commit: commit(),
            command: std::env::args().collect(),
            at: now.as_secs(),
            load_before: load(),
            load_after: 0.0,
        }
    }

    #[must_use]
    pub(crate) fn after(mut self) -> Self {
        self.load_after = load();
        self
    }
}

fn machine() -> Machine {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| value(&meminfo, name).unwrap_or_default().to_owned();
    let kilobytes = field("MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Machine {
        cpu: value(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        memory_mib: kilobytes / 1024_u64,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
        hugepages: format!("{} of {}", field("HugePages_Total"), field("Hugepagesize")),
    }
}

/// The value of `name: value` in a file of /proc.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let is_clean =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| text.is_empty());
    if is_clean { head } else { head + "+" }
}

pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_and_memory() {
        let circumstances = Circumstances::before().after();
        assert!(circumstances.machine.memory_mib > 0);
        assert!(circumstances.machine.cores > 0);
        assert_ne!(circumstances.machine.kernel, "unknown");
    }

    #[test]
    fn values_are_found_by_their_whole_name() {
        let text = "MemTotalX: 1\nMemTotal:       24 kB\n";
        assert_eq!(value(text, "MemTotal"), Some("24 kB"));
    }
}
