// SPDX-License-Identifier: Apache-2.0
//! What is measured of the switch, between whom, and what was promised.

use super::contender::{Contender, Job};
use Contender::{
    OvsCt, OvsL3l4, OvsNormal, OvsPort, OvsSnat, OvsVxlan, OvsVxlanCt, Switchd, SwitchdPlain,
    SwitchdUndisturbed, Testpmd,
};

#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Also the name of the file with its results.
    pub name: &'static str,
    /// What ours is told to do.
    pub job: Job,
    /// Entries of our flow table: two a conversation. `None`: as many as it has by itself.
    pub table: Option<u32>,
    /// Arguments of `plinth-perf net`.
    pub load: &'static [&'static str],
    /// The first is ours; ratios are to it.
    pub contenders: &'static [Contender],
    pub bars: &'static [Bar],
}

/// A promise about our figure and that of a peer in the same turns.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    /// Our rate is at least so many times the peer's.
    Rate(Contender, f64),
    /// Our rate is at least this, packets a second.
    Pps(f64),
    /// None of our packets is lost.
    NoLoss,
    /// Our 99th percentile of latency is at most so many times the peer's.
    Tail(Contender, f64),
}

const PLAIN: &[Contender] = &[Switchd, OvsPort, OvsNormal, Testpmd];

/// In the order of the switch's table of promises.
pub(crate) const ALL: &[Case] = &[
    Case {
        name: "net-groups-1k",
        job: Job::Groups,
        table: None,
        load: &["--flows", "1000"],
        contenders: &[Switchd, OvsPort, OvsCt, Testpmd],
        bars: &[Bar::Rate(Testpmd, 1.0), Bar::Rate(OvsPort, 1.5)],
    },
    // The same with rings that cost the generator less, so that less of it is measured.
    Case {
        name: "net-groups-1k-packed",
        job: Job::Groups,
        table: None,
        load: &["--flows", "1000", "--packed", "--in-order"],
        contenders: &[Switchd, OvsPort, Testpmd],
        bars: &[Bar::Rate(Testpmd, 1.0), Bar::Rate(OvsPort, 1.5)],
    },
    Case {
        name: "net-groups-100k",
        job: Job::Groups,
        table: Some(1 << 19),
        load: &["--flows", "100000"],
        contenders: &[Switchd, OvsL3l4, Testpmd],
        bars: &[Bar::Rate(OvsL3l4, 2.0)],
    },
    Case {
        name: "net-stateful-1k",
        job: Job::Groups,
        table: None,
        load: &["--flows", "1000", "--both"],
        contenders: &[Switchd, OvsCt, Testpmd],
        bars: &[Bar::Rate(OvsCt, 4.0)],
    },
    Case {
        name: "net-stateful-100k",
        job: Job::Groups,
        table: Some(1 << 19),
        load: &["--flows", "100000", "--both"],
        contenders: &[Switchd, OvsCt],
        bars: &[Bar::Rate(OvsCt, 4.0)],
    },
    Case {
        name: "net-vxlan-1k",
        job: Job::Tunnel,
        table: None,
        load: &["--flows", "1000", "--both", "--vxlan", "100"],
        contenders: &[Switchd, OvsVxlan, OvsVxlanCt],
        bars: &[Bar::Rate(OvsVxlan, 1.3), Bar::Rate(OvsVxlanCt, 4.0)],
    },
    Case {
        name: "net-vxlan-100k",
        job: Job::Tunnel,
        table: Some(1 << 19),
        load: &["--flows", "100000", "--both", "--vxlan", "100"],
        contenders: &[Switchd, OvsVxlan],
        bars: &[Bar::Rate(OvsVxlan, 2.5)],
    },
    // Every packet begins a conversation: more of them than a run has packets.
    Case {
        name: "net-new-connections",
        job: Job::Groups,
        table: Some(1 << 22),
        load: &["--flows", "16777216", "--warm-up", "0.2"],
        contenders: &[Switchd, OvsCt],
        bars: &[Bar::Pps(1e6), Bar::Rate(OvsCt, 5.0)],
    },
    Case {
        name: "net-snat-100k",
        job: Job::Snat,
        table: Some(1 << 19),
        load: &["--flows", "100000"],
        contenders: &[Switchd, OvsSnat],
        bars: &[Bar::Rate(OvsSnat, 4.0)],
    },
    Case {
        name: "net-balance-1000-backends",
        job: Job::Balance,
        table: Some(1 << 19),
        load: &["--flows", "100000"],
        contenders: &[Switchd, SwitchdPlain],
        bars: &[Bar::Rate(SwitchdPlain, 0.8)],
    },
    Case {
        name: "net-groups-1m",
        job: Job::Groups,
        table: Some(1 << 22),
        load: &["--flows", "1000000"],
        contenders: &[Switchd, OvsCt],
        bars: &[],
    },
    Case {
        name: "net-latency-half-load",
        job: Job::Groups,
        table: None,
        load: &["--flows", "1000", "--pps", "3500000"],
        contenders: &[Switchd, OvsPort, Testpmd],
        bars: &[Bar::Tail(Testpmd, 1.3)],
    },
    Case {
        name: "net-changes-10k",
        job: Job::Changes,
        table: None,
        load: &["--flows", "1000"],
        contenders: &[Switchd, SwitchdUndisturbed],
        bars: &[Bar::Rate(SwitchdUndisturbed, 0.95)],
    },
    // Four fifths of what the case before it forwards undisturbed in the slow hours of the host.
    Case {
        name: "net-changes-10k-at-80-percent",
        job: Job::Changes,
        table: None,
        load: &["--flows", "1000", "--pps", "2400000"],
        contenders: &[Switchd, SwitchdUndisturbed],
        bars: &[Bar::NoLoss],
    },
    Case {
        name: "net-64-1-flow",
        job: Job::Plain,
        table: None,
        load: &["--flows", "1"],
        contenders: PLAIN,
        bars: &[],
    },
    Case {
        name: "net-64-1k-flows",
        job: Job::Plain,
        table: None,
        load: &["--flows", "1000"],
        contenders: PLAIN,
        bars: &[],
    },
    Case {
        name: "net-64-100k-flows",
        job: Job::Plain,
        table: Some(1 << 19),
        load: &["--flows", "100000"],
        contenders: PLAIN,
        bars: &[],
    },
    Case {
        name: "net-1464-1k-flows",
        job: Job::Plain,
        table: None,
        load: &["--flows", "1000", "--size", "1464"],
        contenders: PLAIN,
        bars: &[],
    },
    Case {
        name: "net-64-10kpps-latency",
        job: Job::Plain,
        table: None,
        load: &["--flows", "1000", "--pps", "10000"],
        contenders: PLAIN,
        bars: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_because_they_are_files() {
        let of_store = super::super::super::store::all();
        let names: BTreeSet<_> = ALL.iter().map(|case| case.name).collect();
        let store_names: BTreeSet<_> = of_store.iter().map(|case| case.name).collect();
        assert_eq!(names.union(&store_names).count(), ALL.len() + of_store.len());
    }

    #[test]
    fn ours_is_first_and_bars_are_about_who_takes_part() {
        for case in ALL {
            assert_eq!(case.contenders[0], Switchd, "{}", case.name);
            for bar in case.bars {
                let (Bar::Rate(peer, _) | Bar::Tail(peer, _)) = bar else { continue };
                assert!(case.contenders.contains(peer), "{}: {peer:?}", case.name);
            }
        }
    }
}
