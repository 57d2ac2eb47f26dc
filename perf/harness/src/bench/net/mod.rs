// SPDX-License-Identifier: Apache-2.0
//! The cases of the switch: servers of packets, each started afresh for a run.

mod cases;
mod changing;
mod contender;
pub(crate) mod idle;
mod ours;
mod ovs;
mod testpmd;

pub(crate) use cases::{ALL, Case};

use super::{CaseResult, Series, Verdict, report::median};
use crate::machine::Circumstances;
use cases::Bar;
use contender::Contender;

/// Runs the contenders of a case in turns; only those whose name contains `who` where it is given.
pub(crate) fn measure(case: &Case, who: Option<&str>, turns: usize, seconds: f64) -> CaseResult {
    let is_asked = |contender: Contender| who.is_none_or(|who| contender.name().contains(who));
    let circumstances = Circumstances::before();
    let mut series: Vec<Series> = case
        .contenders
        .iter()
        .map(|contender| Series {
            contender: contender.name().to_owned(),
            version: contender.version(),
            absent: match is_asked(*contender) {
                true => contender.unmet(),
                false => Some("it was left out (--who)".to_owned()),
            },
            ..Series::default()
        })
        .collect();
    for _ in 0..turns {
        for (contender, series) in case.contenders.iter().zip(&mut series) {
            if series.absent.is_some() {
                continue;
            }
            match contender.run(case, seconds) {
                Ok(run) => series.take(run),
                // One contender's trouble is part of the result, not the end of the others.
                Err(error) => series.absent = Some(format!("{error:#}")),
            }
        }
    }
    let verdicts = case.bars.iter().filter_map(|bar| verdict(case, &series, *bar)).collect();
    CaseResult {
        case: case.name.to_owned(),
        unit: "pps".to_owned(),
        circumstances: circumstances.after(),
        seconds,
        series,
        verdicts,
        ..CaseResult::default()
    }
}

/// `None` where one of the two has no figure.
fn verdict(case: &Case, series: &[Series], bar: Bar) -> Option<Verdict> {
    let of = |contender: Contender| {
        let at = case.contenders.iter().position(|one| *one == contender)?;
        series.get(at)
    };
    let ours = series.first()?;
    let rate = median(&ours.figures)?;
    Some(match bar {
        Bar::Rate(peer, least) => {
            let measured = rate / median(&of(peer)?.figures)?;
            let what = format!("rate / that of {}", peer.name());
            Verdict { what, measured, bar: format!("≥ {least}"), is_met: measured >= least }
        }
        Bar::NoLoss => {
            #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
            let measured = ours.losses as f64;
            let what = "packets lost in all turns".to_owned();
            Verdict { what, measured, bar: "0".to_owned(), is_met: ours.losses == 0 }
        }
        Bar::Pps(least) => Verdict {
            what: "rate".to_owned(),
            measured: rate,
            bar: format!("≥ {least}"),
            is_met: rate >= least,
        },
        Bar::Tail(peer, most) => {
            let measured = median(&ours.p99)? / median(&of(peer)?.p99)?;
            let what = format!("p99 latency / that of {}", peer.name());
            Verdict { what, measured, bar: format!("≤ {most}"), is_met: measured <= most }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_compares_ours_with_the_peer_of_its_bar() {
        let case = ALL.iter().find(|case| case.name == "net-stateful-1k").expect("a case");
        let series = |figure: f64, p99: f64| Series {
            figures: vec![figure],
            p99: vec![p99],
            ..Series::default()
        };
        let all = [series(8e6, 13.0), series(1e6, 50.0), series(9e6, 10.0)];
        let rate = |least| verdict(case, &all, Bar::Rate(Contender::OvsCt, least)).expect("both");
        assert!(rate(8.0).is_met && !rate(8.1).is_met);
        let tail = |most| verdict(case, &all, Bar::Tail(Contender::Testpmd, most)).expect("both");
        assert!(tail(1.3).is_met && !tail(1.2).is_met);
        assert!(verdict(case, &all[..2], Bar::Rate(Contender::Testpmd, 1.0)).is_none());
        assert!(verdict(case, &all, Bar::Rate(Contender::OvsSnat, 1.0)).is_none());
        let lossless = |losses| {
            let ours = Series { losses, ..series(8e6, 13.0) };
            verdict(case, &[ours], Bar::NoLoss).expect("ours").is_met
        };
        assert!(lossless(0) && !lossless(1));
    }
}
