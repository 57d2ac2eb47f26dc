// SPDX-License-Identifier: Apache-2.0
//! The cases of the store: servers that stay up, clients that take turns.
//!
//! ```text
//!   Stage ── servers of a group, filled once, asleep while others are measured
//!     └─ for each case:  A B C A B C …   one client a turn
//!                        └─ figures, cycles, system calls, CPU time, device bytes a request
//! ```
//!
//! A server sleeps when nobody asks it anything, so that it does not disturb the turn of another.
//! What is no rate (a mount, memory, limits) is a [`measures::Measure`].

mod cases;
mod fio;
mod measures;
mod qemu;
mod server;
mod starts;

use super::{CaseResult, Series, Verdict};
use crate::machine::Circumstances;
use anyhow::Result;
pub(crate) use cases::all;
use server::{Stage, Who};

/// What one case does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Job {
    /// Arguments of `plinth-perf blk`, for each contender.
    Load(&'static [&'static str]),
    Measure(measures::Measure),
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Also the name of the file with its results.
    pub name: &'static str,
    pub unit: &'static str,
    pub job: Job,
    /// The first is ours; ratios are to it.
    pub contenders: Vec<Who>,
    pub bars: Vec<Bar>,
    /// What a reader must know to read the figures.
    pub note: &'static str,
}

/// What issue and mission promise.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    /// Of the figure.
    AtLeast(f64),
    /// Of the figure, to that of this contender.
    Ratio(usize, f64),
    /// Of the median latency, in µs.
    P50AtMost(f64),
    /// Of CPU time a request, to that of this contender.
    CpuRatioAtMost(usize, f64),
    /// Of bytes to the device for a byte of the client.
    AmplificationAtMost(f64),
    /// Of the spread between clients, in percent.
    UnfairnessAtMost(f64),
}

/// Runs one case. Servers that it does not need are ended first.
pub(crate) fn measure(stage: &mut Stage, case: &Case, turns: usize, seconds: f64) -> CaseResult {
    let circumstances = Circumstances::before();
    let mut result = CaseResult {
        case: case.name.to_owned(),
        unit: case.unit.to_owned(),
        seconds,
        note: case.note.to_owned(),
        ..CaseResult::default()
    };
    match case.job {
        Job::Load(arguments) => {
            stage.keep_only(&case.contenders);
            result.series = loads(stage, case, arguments, turns, seconds);
            result.verdicts =
                case.bars.iter().filter_map(|bar| judge(*bar, &result.series)).collect();
        }
        Job::Measure(measure) => {
            stage.keep_only(&[]);
            match measure.run(turns, seconds) {
                Ok((series, verdicts)) => (result.series, result.verdicts) = (series, verdicts),
                Err(error) => {
                    let contender = Who::Memory.name().to_owned();
                    let absent = Some(format!("{error:#}"));
                    result.series = vec![Series { contender, absent, ..Series::default() }];
                }
            }
        }
    }
    result.circumstances = circumstances.after();
    result
}

fn loads(
    stage: &mut Stage,
    case: &Case,
    arguments: &[&str],
    turns: usize,
    seconds: f64,
) -> Vec<Series> {
    let mut series: Vec<Series> = case
        .contenders
        .iter()
        .map(|who| Series {
            contender: who.name().to_owned(),
            version: who.version(),
            absent: who.unmet(),
            ..Series::default()
        })
        .collect();
    for _ in 0..turns {
        for (who, series) in case.contenders.iter().zip(&mut series) {
            if series.absent.is_none() {
                // One contender's trouble is part of the result, not the end of the others.
                match stage.run(*who, arguments, seconds) {
                    Ok(run) => series.take(run),
                    Err(error) => series.absent = Some(format!("{error:#}")),
                }
            }
        }
    }
    series
}

fn judge(bar: Bar, series: &[Series]) -> Option<Verdict> {
    let ours = series.first()?;
    let of = |pick: fn(&Series) -> &Vec<f64>, at: usize| {
        super::report::median(pick(series.get(at)?)).filter(|figure| *figure > 0.0)
    };
    let figures: fn(&Series) -> &Vec<f64> = |series| &series.figures;
    let cpu: fn(&Series) -> &Vec<f64> = |series| &series.cpu;
    let name = |at: usize| series.get(at).map_or("", |series| series.contender.as_str());
    let at_least = |what: String, measured: f64, limit: f64| Verdict {
        what,
        measured,
        bar: format!("≥ {limit}"),
        is_met: measured >= limit,
    };
    let at_most = |what: String, measured: f64, limit: f64| Verdict {
        what,
        measured,
        bar: format!("≤ {limit}"),
        is_met: measured <= limit,
    };
    Some(match bar {
        Bar::AtLeast(limit) => at_least("rate".to_owned(), of(figures, 0)?, limit),
        Bar::Ratio(other, limit) => {
            let ratio = of(figures, 0)? / of(figures, other)?;
            at_least(format!("rate / that of {}", name(other)), ratio, limit)
        }
        Bar::P50AtMost(limit) => {
            at_most("median latency, µs".to_owned(), super::report::median(&ours.p50)?, limit)
        }
        Bar::CpuRatioAtMost(other, limit) => {
            let ratio = of(cpu, 0)? / of(cpu, other)?;
            at_most(format!("CPU a request / that of {}", name(other)), ratio, limit)
        }
        Bar::AmplificationAtMost(limit) => {
            let measured = super::report::median(&ours.amplification)?;
            at_most("bytes to the device / bytes from the client".to_owned(), measured, limit)
        }
        Bar::UnfairnessAtMost(limit) => {
            let measured = super::report::median(&ours.unfairness)?;
            at_most("most - least of the clients, % of their mean".to_owned(), measured, limit)
        }
    })
}

/// For the servers' folder.
pub(crate) fn stage() -> Result<Stage> {
    Stage::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(figures: &[f64], cpu: &[f64]) -> Series {
        Series { figures: figures.to_vec(), cpu: cpu.to_vec(), ..Series::default() }
    }

    #[test]
    fn a_bar_is_judged_by_medians_and_only_where_both_sides_have_figures() {
        let both = [series(&[90.0, 95.0, 300.0], &[1.0]), series(&[100.0], &[4.0])];
        let verdict = judge(Bar::Ratio(1, 0.95), &both).unwrap();
        assert!(verdict.is_met && (verdict.measured - 0.95).abs() < 1e-9, "{verdict:?}");
        assert!(!judge(Bar::Ratio(1, 0.96), &both).unwrap().is_met);
        assert!(judge(Bar::CpuRatioAtMost(1, 0.25), &both).unwrap().is_met);
        assert!(!judge(Bar::CpuRatioAtMost(1, 0.24), &both).unwrap().is_met);
        assert!(!judge(Bar::AtLeast(96.0), &both).unwrap().is_met);
        let absent = [series(&[90.0], &[]), series(&[], &[])];
        assert!(judge(Bar::Ratio(1, 0.1), &absent).is_none());
        assert!(judge(Bar::CpuRatioAtMost(1, 9.0), &absent).is_none());
        assert!(judge(Bar::AmplificationAtMost(1.3), &absent).is_none());
    }
}
