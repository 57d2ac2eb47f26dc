// SPDX-License-Identifier: Apache-2.0
//! What is measured of the switch.

use super::contender::Contender;

#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Also the name of the file with its results.
    pub name: &'static str,
    pub unit: &'static str,
    /// Arguments of `plinth-perf net`.
    pub load: &'static [&'static str],
    /// The first is ours; ratios are to it.
    pub contenders: Vec<Contender>,
}

const ONE_FLOW: &[&str] = &["--flows", "1"];
const FLOWS: &[&str] = &["--flows", "1000"];
const MANY_FLOWS: &[&str] = &["--flows", "100000"];
const BOTH: &[&str] = &["--flows", "1000", "--both"];
const LARGE: &[&str] = &["--flows", "1000", "--size", "1464"];
const SLOW: &[&str] = &["--flows", "1000", "--pps", "10000"];

pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
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
        cases.push(Case { name, unit: "pps", load: arguments, contenders });
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_because_they_are_files() {
        let (cases, of_store) = (all(), super::super::store::all());
        let names: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
        let store_names: BTreeSet<_> = of_store.iter().map(|case| case.name).collect();
        assert_eq!(names.union(&store_names).count(), cases.len() + of_store.len());
        assert!(cases.iter().all(|case| !case.contenders.is_empty()));
    }
}
