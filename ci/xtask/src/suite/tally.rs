// SPDX-License-Identifier: Apache-2.0
//! Counts of what ran, read from what test programs print.
//!
//! Two dialects are understood. The standard harness ends with `test result: …`; a test of it
//! that cannot run here prints a line that starts with `skipped:` and returns, and is counted
//! as skipped although the harness calls it passed. Our own runners print
//! `test NAME ... ok|FAILED|skipped: WHY` and end with `N passed, N failed, N skipped`.
//! A test of either that holds packets against a model says how many: `N packets: …`.

use crate::shell::Outcome;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: u64,
    failures: Vec<String>,
    /// Failures that were counted by a harness but not named one by one.
    unnamed_failures: u64,
    skips: Vec<String>,
    unnamed_skips: u64,
    /// That were held against models.
    packets: u64,
}

impl Tally {
    pub(crate) fn pass(&mut self, count: u64) {
        self.passed += count;
    }

    pub(crate) fn fail(&mut self, name: &str, why: &str) {
        println!("   FAILED {name}: {why}");
        self.failures.push(format!("{name}: {why}"));
    }

    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        self.skips.push(format!("{name}: {why}"));
    }

    pub(crate) const fn failed(&self) -> u64 {
        self.failures.len() as u64 + self.unnamed_failures
    }

    const fn skipped(&self) -> u64 {
        self.skips.len() as u64 + self.unnamed_skips
    }

    pub(crate) fn last_line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed(), self.skipped())
    }

    /// Says what was skipped and what failed, one line each.
    pub(crate) fn explain(&self) {
        for skip in &self.skips {
            println!("skipped {skip}");
        }
        for failure in &self.failures {
            println!("FAILED {failure}");
        }
        if self.packets > 0 {
            println!("{} packets were held against models", self.packets);
        }
    }

    /// Takes what one test program printed and how it ended. Prints the output where something
    /// failed, so that the reason is in the log.
    pub(crate) fn add(&mut self, program: &str, outcome: &Outcome) {
        let report = Report::read(&outcome.output);
        let is_whole = report.results > 0;
        let ended_well = outcome.status.is_some_and(|status| status.success());
        self.passed += report.passed;
        self.packets += report.packets;
        self.unnamed_skips += report.skipped.saturating_sub(report.skip_reasons.len() as u64);
        self.skips.extend(report.skip_reasons.iter().map(|reason| format!("{program} {reason}")));
        let named = report.failed_names.len() as u64;
        self.unnamed_failures += report.failed.saturating_sub(named);
        self.failures.extend(report.failed_names.iter().map(|name| format!("{program} {name}")));
        if !is_whole || (!ended_well && report.failed == 0) {
            let how = outcome.status.map_or_else(
                || format!("ran out of time after {:.0} s", outcome.took.as_secs_f64()),
                |status| format!("ended with {status} and no complete result"),
            );
            self.failures.push(format!("{program}: {how}"));
        }
        if report.failed > 0 || !ended_well || !is_whole {
            println!("{}", outcome.output);
        }
        let seconds = outcome.took.as_secs_f64();
        println!(
            "   {program}: {} passed, {} failed, {} skipped, {seconds:.1} s",
            report.passed, report.failed, report.skipped
        );
    }
}

/// The meaning of one program's output.
#[derive(Debug, Default, Eq, PartialEq)]
struct Report {
    /// How many result lines there were; without any the program did not finish.
    results: u64,
    passed: u64,
    failed: u64,
    skipped: u64,
    failed_names: Vec<String>,
    skip_reasons: Vec<String>,
    packets: u64,
}

impl Report {
    fn read(output: &str) -> Self {
        let mut report = Self::default();
        let mut section = None;
        let mut own_skips = 0;
        for line in output.lines() {
            if let Some(name) = section_name(line) {
                section = Some(name);
            } else if line == "failures:" {
                section = None;
            } else if let Some((name, verdict)) = test_line(line) {
                report.verdict(name, verdict);
            } else if let (Some(name), Some(why)) = (section, line.strip_prefix("skipped: ")) {
                report.skip_reasons.push(format!("{name}: {why}"));
                own_skips += 1;
                // One reason a test, however often it says it.
                section = None;
            } else if let Some((count, _)) = line.split_once(" packets: ") {
                report.packets += count.parse::<u64>().unwrap_or(0);
            } else {
                report.result(line);
            }
        }
        report.passed = report.passed.saturating_sub(own_skips);
        report.skipped += own_skips;
        report
    }

    fn verdict(&mut self, name: &str, verdict: &str) {
        if verdict == "FAILED" {
            self.failed_names.push(name.to_owned());
        } else if let Some(why) = verdict.strip_prefix("ignored, ") {
            self.skip_reasons.push(format!("{name}: {why}"));
        } else if let Some(why) = verdict.strip_prefix("skipped: ") {
            self.skip_reasons.push(format!("{name}: {why}"));
        }
    }

    fn result(&mut self, line: &str) {
        let counts = line
            .strip_prefix("test result: ")
            .map_or(line, |rest| rest.split_once(". ").map_or(rest, |(_, counts)| counts));
        let mut numbers = [None; 3];
        for part in counts.split([';', ',']) {
            let Some((number, word)) = part.trim().split_once(' ') else { return };
            let Ok(number) = number.parse::<u64>() else { continue };
            match word {
                "passed" => numbers[0] = Some(number),
                "failed" => numbers[1] = Some(number),
                "ignored" | "skipped" => numbers[2] = Some(number),
                _ => {}
            }
        }
        if let [Some(passed), Some(failed), Some(skipped)] = numbers {
            self.results += 1;
            self.passed += passed;
            self.failed += failed;
            self.skipped += skipped;
        }
    }
}

/// `---- NAME stdout ----` opens what a test printed.
fn section_name(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

fn test_line(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.split_once(" ... ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_harness_is_understood() {
        let report = Report::read(
            "running 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\ntest d ... ignored, needs root\n\
             \nfailures:\n\n---- a::c stdout ----\nthread panicked\n\nfailures:\n    a::c\n\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!((report.passed, report.failed, report.skipped, report.results), (1, 1, 1, 1));
        assert_eq!(report.failed_names, ["a::c"]);
        assert_eq!(report.skip_reasons, ["d: needs root"]);
    }

    #[test]
    fn a_test_that_says_it_skipped_did_not_pass() {
        let report = Report::read(
            "test a ... ok\ntest b ... ok\n\nsuccesses:\n\n---- b stdout ----\nskipped: no /dev/kvm\n\
             skipped: no /dev/kvm\n\nsuccesses:\n    a\n    b\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!((report.passed, report.skipped), (1, 1));
        assert_eq!(report.skip_reasons, ["b: no /dev/kvm"]);
    }

    #[test]
    fn packets_of_models_add_up() {
        let report = Report::read(
            "---- a stdout ----\n500 packets: 300 passed, 200 were refused\nmany packets: none\n\
             ---- b stdout ----\n1000 packets: {}\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!((report.packets, report.passed), (1500, 2));
    }

    #[test]
    fn our_own_runners_are_understood() {
        let report = Report::read(
            "test ping ... ok (0.2 s)\ntest pong ... skipped: not root\n1 passed, 0 failed, 1 skipped\n",
        );
        assert_eq!((report.passed, report.failed, report.skipped, report.results), (1, 0, 1, 1));
        assert_eq!(report.skip_reasons, ["pong: not root"]);
    }

    #[test]
    fn a_program_that_dies_is_a_failure_and_a_silent_one_too() {
        for script in ["echo 'test a ... ok'; kill -SEGV $$", "true"] {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", script]);
            let limit = std::time::Duration::from_secs(10);
            let mut tally = Tally::default();
            tally.add("sh", &crate::shell::bounded(command, limit, false).unwrap());
            assert_eq!(tally.last_line(), "0 passed, 1 failed, 0 skipped", "{script}");
        }
    }

    #[test]
    fn doc_tests_of_many_crates_add_up() {
        let one = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n";
        let report = Report::read(&one.repeat(3));
        assert_eq!((report.passed, report.skipped, report.results), (6, 3, 3));
    }
}
