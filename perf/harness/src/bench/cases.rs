// SPDX-License-Identifier: Apache-2.0
//! What is measured.

use super::contender::Contender;

/// What a run does to whoever serves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// Arguments of `plinth-perf blk`.
    Blk(&'static [&'static str]),
    /// Arguments of `plinth-perf net`.
    Net(&'static [&'static str]),
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Also the name of the file with its results.
    pub name: &'static str,
    pub unit: &'static str,
    pub load: Load,
    /// The first is ours; ratios are to it.
    pub contenders: Vec<Contender>,
}

const READ_1: &[&str] = &["--depth", "1"];
const READ_32: &[&str] = &["--depth", "32"];
const READ_128: &[&str] = &["--depth", "128"];
const WRITE_1: &[&str] = &["--depth", "1", "--writes", "100"];
const WRITE_32: &[&str] = &["--depth", "32", "--writes", "100"];
const FLUSH_1: &[&str] = &["--depth", "1", "--writes", "100", "--flush-every", "1"];
const LARGE_READ: &[&str] = &["--depth", "32", "--block-size", "131072", "--order", "seq"];

const ONE_FLOW: &[&str] = &["--flows", "1"];
const FLOWS: &[&str] = &["--flows", "1000"];
const MANY_FLOWS: &[&str] = &["--flows", "100000"];
const BOTH: &[&str] = &["--flows", "1000", "--both"];
const LARGE: &[&str] = &["--flows", "1000", "--size", "1464"];
const SLOW: &[&str] = &["--flows", "1000", "--pps", "10000"];

pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let blk = [
        ("blk-read-4k-1", READ_1),
        ("blk-read-4k-32", READ_32),
        ("blk-read-4k-128", READ_128),
        ("blk-write-4k-1", WRITE_1),
        ("blk-write-4k-32", WRITE_32),
        ("blk-write-flush-4k-1", FLUSH_1),
        ("blk-read-128k-32", LARGE_READ),
    ];
    for (name, arguments) in blk {
        let contenders = vec![Contender::Stored, Contender::QemuStorageDaemon];
        cases.push(Case { name, unit: "IOPS", load: Load::Blk(arguments), contenders });
    }
    // Our own cost without a disk below: nobody to compare with.
    for (name, arguments) in [("blk-memory-read-4k-1", READ_1), ("blk-memory-read-4k-32", READ_32)]
    {
        let contenders = vec![Contender::StoredMemory];
        cases.push(Case { name, unit: "IOPS", load: Load::Blk(arguments), contenders });
    }
    let net = [
        ("net-64-1-flow", ONE_FLOW),
        ("net-64-1k-flows", FLOWS),
        ("net-64-100k-flows", MANY_FLOWS),
        ("net-64-both-1k-flows", BOTH),
        ("net-1464-1k-flows", LARGE),
        ("net-64-10kpps-latency", SLOW),
    ];
    for (name, arguments) in net {
        let contenders =
            vec![Contender::Switchd, Contender::OvsPort, Contender::OvsNormal, Contender::Testpmd];
        cases.push(Case { name, unit: "pps", load: Load::Net(arguments), contenders });
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_because_they_are_files() {
        let cases = all();
        let names: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases.len());
        assert!(cases.iter().all(|case| !case.contenders.is_empty()));
    }
}
