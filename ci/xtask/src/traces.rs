// SPDX-License-Identifier: Apache-2.0
//! What a test run may have left on the machine.
//!
//! Every child of a run carries [`MARK`] with the run's name in its environment, so the
//! processes of other runs on the same machine are never blamed. Mounts, namespaces and
//! hugepages have no owner; they are compared with what was there before, and only names that
//! tests of this project give are looked at.

use std::collections::BTreeSet;
use std::fs;

/// The environment variable that marks every process of one run.
pub(crate) const MARK: &str = "PLINTH_TEST_RUN";

/// Namespaces of tests start with this.
const NAMESPACE: &str = "plt";

#[derive(Debug)]
pub(crate) struct Traces {
    run: String,
    mounts: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    hugepages: u64,
}

impl Traces {
    /// Notes what is there before the first test.
    pub(crate) fn before() -> Self {
        Self {
            run: format!("run-{}", std::process::id()),
            mounts: mounts(),
            namespaces: namespaces(),
            hugepages: hugepages(),
        }
    }

    /// The value of [`MARK`] in this run.
    pub(crate) fn run(&self) -> &str {
        &self.run
    }

    /// One sentence for each thing that is there and was not.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mark = format!("{MARK}={}", self.run);
        for (process, words) in marked(&mark) {
            found.push(format!("process {process} ({words}) is still running"));
        }
        let mounts = mounts();
        found
            .extend(mounts.difference(&self.mounts).map(|path| format!("{path} is still mounted")));
        let namespaces = namespaces();
        let new = namespaces.difference(&self.namespaces);
        found.extend(new.map(|name| format!("network namespace {name} is still there")));
        let pages = hugepages();
        if pages > self.hugepages {
            found.push(format!("{} more hugepages are reserved", pages - self.hugepages));
        }
        found
    }
}

/// Living processes whose environment has `mark`, without ourselves.
fn marked(mark: &str) -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id();
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|process| *process != own)
        .filter_map(|process: u32| {
            // A process that ends between the listing and this read has left nothing.
            let environment = fs::read(format!("/proc/{process}/environ")).ok()?;
            let is_ours = environment.split(|byte| *byte == 0).any(|word| word == mark.as_bytes());
            let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            is_ours.then(|| (process, words.trim().to_owned()))
        })
        .collect()
}

fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(1));
    points
        .filter(|path| {
            let name = path.rsplit('/').next().unwrap_or_default();
            path.contains("plinth") || name.starts_with(NAMESPACE)
        })
        .map(str::to_owned)
        .collect()
}

fn namespaces() -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return BTreeSet::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(NAMESPACE)).collect()
}

fn hugepages() -> u64 {
    let text = fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_of_the_run_is_found_and_others_are_not() {
        let mut traces = Traces::before();
        traces.run = format!("made-up-{}", std::process::id());
        assert_eq!(traces.left(), Vec::<String>::new());
        let mut child = Command::new("sleep").arg("30").env(MARK, traces.run()).spawn().unwrap();
        let left = traces.left();
        child.kill().unwrap();
        child.wait().unwrap();
        let own = format!("process {} ", child.id());
        assert!(left.iter().any(|text| text.starts_with(&own)), "{left:?}");
        assert_eq!(traces.left(), Vec::<String>::new());
    }
}
