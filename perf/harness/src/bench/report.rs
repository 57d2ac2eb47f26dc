// SPDX-License-Identifier: Apache-2.0
//! The table for people, made from the kept results and from nothing else.

use super::{CaseResult, Series, Verdict};
use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// The middle of the figures, and of an even number the mean of the two middle ones.
pub(crate) fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle)?;
    if sorted.len().is_multiple_of(2) {
        Some(f64::midpoint(sorted[middle - 1], *upper))
    } else {
        Some(*upper)
    }
}

/// Distance from least to most, in percent of the median.
fn spread(figures: &[f64]) -> f64 {
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let most = figures.iter().copied().fold(0.0, f64::max);
    median(figures)
        .filter(|median| *median > 0.0)
        .map_or(0.0, |median| (most - least) / median * 100.0)
}

/// `1234567` as `1.23 M`, and `0.25` as it is.
fn scaled(figure: f64) -> String {
    match figure {
        figure if figure >= 1e6 => format!("{:.2} M", figure / 1e6),
        figure if figure >= 1e3 => format!("{:.1} k", figure / 1e3),
        figure => short(figure),
    }
}

/// One line a contender, for the terminal.
pub(crate) fn lines(result: &CaseResult) -> Vec<String> {
    let ours = result.series.first().and_then(|series| median(&series.figures));
    let mut lines: Vec<_> = result.series.iter().map(|series| line(result, series, ours)).collect();
    lines.extend(result.verdicts.iter().map(verdict));
    lines
}

fn verdict(verdict: &Verdict) -> String {
    let Verdict { what, measured, bar, is_met } = verdict;
    let met = if *is_met { "met" } else { "NOT met" };
    format!("{what}: {}, bar {bar}: {met}", exact(*measured))
}

/// A measured value with as many digits as say something.
fn exact(figure: f64) -> String {
    if figure >= 1000.0 { scaled(figure) } else { format!("{figure:.3}") }
}

/// The medians of what a server says of its costs, for the terminal.
fn costs(series: &Series) -> String {
    let mut text = String::new();
    for (name, figures) in [
        ("cycles", &series.cycles),
        ("system calls", &series.system_calls),
        ("µs CPU", &series.cpu),
        ("device bytes a byte", &series.amplification),
        ("% unfair", &series.unfairness),
    ] {
        if let Some(figure) = median(figures) {
            let _ = write!(text, ", {} {name}", short(figure));
        }
    }
    text
}

fn short(figure: f64) -> String {
    if figure >= 100.0 { format!("{figure:.0}") } else { format!("{figure:.2}") }
}

fn line(result: &CaseResult, series: &Series, ours: Option<f64>) -> String {
    let name = &series.contender;
    let Some(figure) = median(&series.figures) else {
        return format!("{name}: {}", series.absent.as_deref().unwrap_or("no figure"));
    };
    let ratio =
        ours.map_or_else(String::new, |ours| format!(", ours is {:.2} of it", ours / figure));
    let times = match (median(&series.p50), median(&series.p99)) {
        (Some(half), Some(most)) if half + most > 0.0 => {
            format!(", p50 {half:.1} µs, p99 {most:.1} µs")
        }
        _ => String::new(),
    };
    format!(
        "{name}: {} {} (spread {:.0} %){times}, {} lost{}{ratio}",
        scaled(figure),
        result.unit,
        spread(&series.figures),
        series.losses,
        costs(series)
    )
}

/// Reads every result of the folder and writes the report.
pub(crate) fn write(results: &Path, report: &Path) -> Result<()> {
    let mut paths: Vec<_> = fs::read_dir(results)
        .with_context(|| format!("no results in {}", results.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let result = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        all.push(result);
    }
    fs::write(report, markdown(&all)).with_context(|| report.display().to_string())?;
    println!("{} is written from {} results", report.display(), all.len());
    Ok(())
}

fn markdown(all: &[CaseResult]) -> String {
    let mut text = String::from(HEAD);
    if all.is_empty() {
        text.push_str("\nNo results are kept.\n");
    }
    text.push_str(&bars(all));
    for result in all {
        let circumstances = &result.circumstances;
        let machine = &circumstances.machine;
        let date = date(circumstances.at);
        let _ = write!(
            text,
            "\n## {}\n\n{date}, commit {}, {} with {} cores, {} MiB, kernel {}, hugepages {}, load \
             {:.2} before and {:.2} after, {} s a run.\n\n",
            result.case,
            circumstances.commit,
            machine.cpu,
            machine.cores,
            machine.memory_mib,
            machine.kernel,
            machine.hugepages,
            circumstances.load_before,
            circumstances.load_after,
            result.seconds
        );
        let _ = writeln!(
            text,
            "| who | {} (median) | spread | runs | p50 µs | p99 µs | lost | cycles | system calls | \
             CPU µs | device bytes | ours / it |\n|---|---|---|---|---|---|---|---|---|---|---|---|",
            result.unit
        );
        let ours = result.series.first().and_then(|series| median(&series.figures));
        for series in &result.series {
            text.push_str(&row(series, ours));
        }
        if !result.note.is_empty() {
            let _ = writeln!(text, "\n{}", result.note);
        }
        for verdict in &result.verdicts {
            let _ = writeln!(text, "\n{}.", self::verdict(verdict));
        }
    }
    text
}

/// All bars in one table, those that are not met in bold.
fn bars(all: &[CaseResult]) -> String {
    let mut text = String::new();
    for result in all {
        for Verdict { what, measured, bar, is_met } in &result.verdicts {
            let met = if *is_met { "yes" } else { "**no**" };
            let (case, measured) = (&result.case, exact(*measured));
            let _ = writeln!(text, "| {case} | {what} | {bar} | {measured} | {met} |");
        }
    }
    if text.is_empty() {
        return text;
    }
    format!("\n## Bars\n\n| case | of what | bar | measured | met |\n|---|---|---|---|---|\n{text}")
}

fn row(series: &Series, ours: Option<f64>) -> String {
    let name = format!("{} ({})", series.contender, series.version);
    let Some(figure) = median(&series.figures) else {
        let why = series.absent.as_deref().unwrap_or("no figure").replace(['|', '\n'], " ");
        let none = "– | ".repeat(10);
        return format!("| {name} | {none}{why} |\n");
    };
    let ratio = ours.map_or_else(|| "–".to_owned(), |ours| format!("{:.2}", ours / figure));
    format!(
        "| {name} | {} | {:.0} % | {} | {:.1} | {:.1} | {} | {} | {} | {} | {} | {ratio} |\n",
        scaled(figure),
        spread(&series.figures),
        series.figures.len(),
        median(&series.p50).unwrap_or(0.0),
        median(&series.p99).unwrap_or(0.0),
        series.losses,
        or_dash(&series.cycles),
        or_dash(&series.system_calls),
        or_dash(&series.cpu),
        or_dash(&series.amplification)
    )
}

fn or_dash(figures: &[f64]) -> String {
    median(figures).map_or_else(|| "–".to_owned(), short)
}

const HEAD: &str = "# Measured\n\n\
    Made by `make bench` from the results beside this page; how it is measured and what it does \
    not say is in [docs/perf.md](../docs/perf.md).\n\
    Every figure is the median of runs that took turns with the other contenders of its table.\n\
    A ratio above 1 means that ours is faster.\n\
    Cycles (of the time-stamp counter, idle rounds left out), system calls and CPU time are of the \
    server and a request; CPU time is the kernel's count with all spinning in it; device bytes are \
    for a byte that the client wrote.\n";

/// A day in the calendar from seconds since 1970 (days to civil, by the 400-year cycle).
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Circumstances;

    #[test]
    fn medians_and_spreads_are_of_the_sorted_figures() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert!((spread(&[90.0, 100.0, 110.0]) - 20.0).abs() < 1e-9);
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(951_782_400), "2000-02-29");
        assert_eq!(date(1_735_689_599), "2024-12-31");
    }

    #[test]
    fn a_contender_that_is_not_there_is_in_the_table_with_its_reason() {
        let series = |name: &str, figures: &[f64], absent: Option<&str>| Series {
            contender: name.to_owned(),
            version: "1".to_owned(),
            figures: figures.to_vec(),
            absent: absent.map(str::to_owned),
            ..Series::default()
        };
        let result = CaseResult {
            case: "case".to_owned(),
            unit: "IOPS".to_owned(),
            circumstances: Circumstances::default(),
            seconds: 1.0,
            verdicts: vec![Verdict {
                what: "rate".to_owned(),
                measured: 1.5,
                bar: "≥ 2".to_owned(),
                is_met: false,
            }],
            note: String::new(),
            series: vec![
                series("ours", &[2000.0], None),
                series("theirs", &[1000.0], None),
                series("gone", &[], Some("it is not installed")),
            ],
        };
        let text = markdown(&[result]);
        let row = "| theirs (1) | 1.0 k | 0 % | 1 | 0.0 | 0.0 | 0 | – | – | – | – | 2.00 |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("| case | rate | ≥ 2 | 1.500 | **no** |"), "{text}");
        assert!(text.contains("| it is not installed |"), "{text}");
    }
}
