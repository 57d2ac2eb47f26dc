// SPDX-License-Identifier: Apache-2.0
//! Runs tests one after the other, each in a process of its own with an end in time.

use crate::namespace;
use anyhow::Result;
use clap::Parser;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Every process of a test carries this in its environment, also those that left the group.
const MARK: &str = "PLINTH_STAGE_TEST";

/// How long an ended group may take to go.
const GRACE: Duration = Duration::from_secs(10);

/// One thing that a test needs of the machine.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    Root,
    /// A program in PATH, and the package that has it.
    Program(&'static str, &'static str),
    /// A file or device.
    Path(&'static str),
    /// A path that the test will make and remove, and that must not be somebody's.
    Absent(&'static str),
}

impl Need {
    /// Why the need is not met.
    #[must_use]
    pub fn unmet(self) -> Option<String> {
        match self {
            Self::Root => (!is_root()).then(|| "it needs root".to_owned()),
            Self::Program(name, package) => (!is_installed(name))
                .then(|| format!("{name} is not installed; ci/setup installs {package}")),
            Self::Path(path) => (!Path::new(path).exists()).then(|| format!("there is no {path}")),
            Self::Absent(path) => Path::new(path).exists().then(|| {
                format!("{path} is there and may be in use; `make down` and move it away")
            }),
        }
    }
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    line.split_whitespace().nth(1) == Some("0")
}

fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// How much time a test has.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    pub is_long: bool,
}

impl Length {
    /// The shorter of two lengths, unless `--long` was given.
    #[must_use]
    pub const fn pick(self, short: Duration, long: Duration) -> Duration {
        if self.is_long { long } else { short }
    }
}

/// What a test does; an error is its failure.
pub type Run = fn(Length) -> Result<()>;

#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// A sentence, as `a_guest_pings_a_guest`.
    pub name: &'static str,
    pub needs: &'static [Need],
    /// It is ended after this many seconds, ten times as many with `--long`.
    pub limit_seconds: u64,
    pub run: Run,
}

#[derive(Debug, Parser)]
struct Arguments {
    /// Tests whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Each test at its full length.
    #[arg(long)]
    long: bool,
    /// Tests that would begin after this time are skipped.
    #[arg(long)]
    budget_seconds: Option<u64>,
    /// Prints the names and nothing else.
    #[arg(long)]
    list: bool,
    /// Runs this one test in this process: what the runner does for each.
    #[arg(long, hide = true)]
    here: Option<String>,
}

/// The whole `main` of a program of tests.
#[must_use]
pub fn main(tests: &[Test]) -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(name) = &arguments.here {
        return here(tests, name, arguments.long);
    }
    let only = arguments.only.as_deref();
    let chosen: Vec<&Test> =
        tests.iter().filter(|test| only.is_none_or(|only| test.name.contains(only))).collect();
    if arguments.list {
        chosen.iter().for_each(|test| println!("{}", test.name));
        return ExitCode::SUCCESS;
    }
    let begin = Instant::now();
    let budget = arguments.budget_seconds.map_or(Duration::MAX, Duration::from_secs);
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for test in chosen {
        let unmet = test.needs.iter().find_map(|need| need.unmet());
        let unmet = unmet
            .or_else(|| (begin.elapsed() >= budget).then(|| "the time budget is spent".to_owned()));
        if let Some(why) = unmet {
            println!("test {} ... skipped: {why}", test.name);
            skipped += 1;
            continue;
        }
        let at = Instant::now();
        let verdict = apart(test, arguments.long);
        let seconds = at.elapsed().as_secs_f64();
        match verdict {
            Ok(()) => {
                println!("test {} ... ok", test.name);
                println!("   {seconds:.1} s");
                passed += 1;
            }
            Err(why) => {
                println!("test {} ... FAILED", test.name);
                println!("   {why} after {seconds:.1} s");
                failed += 1;
            }
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn here(tests: &[Test], name: &str, is_long: bool) -> ExitCode {
    let Some(test) = tests.iter().find(|test| test.name == name) else {
        eprintln!("there is no test {name}");
        return ExitCode::from(2);
    };
    match (test.run)(Length { is_long }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("   {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a test in a process group of its own and ends the group when the time is up.
fn apart(test: &Test, is_long: bool) -> Result<(), String> {
    let limit = Duration::from_secs(test.limit_seconds * if is_long { 10 } else { 1 });
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(own);
    let mark = format!("{}-{}", std::process::id(), test.name);
    command.args(["--here", test.name]).env(MARK, &mark);
    command.stdin(Stdio::null()).process_group(0);
    if is_long {
        command.arg("--long");
    }
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let number = child.id();
    let verdict = match wait(&mut child, limit) {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(match status.signal() {
            Some(signal) => format!("it was ended by signal {signal}"),
            None => "it failed".to_owned(),
        }),
        None => Err(format!("it did not end within {limit:?}")),
    };
    // Also after a good end: a daemon that outlives its test must not meet the next one.
    end_group(number, &mut child);
    end_marked(&format!("{MARK}={mark}"));
    namespace::sweep(number);
    verdict
}

fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let until = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(20)),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn end_group(number: u32, child: &mut Child) {
    let group = format!("-{number}");
    let send = |signal: &str| {
        let mut kill = Command::new("kill");
        kill.args([signal, "--", &group]).stderr(Stdio::null());
        kill.status().is_ok_and(|status| status.success())
    };
    if send("-TERM") {
        wait(child, GRACE.min(Duration::from_secs(2)));
        send("-KILL");
        wait(child, GRACE);
    }
}

/// Ends what has left the group: QEMU has a session of its own.
fn end_marked(mark: &str) {
    let Ok(entries) = std::fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|word| word == mark.as_bytes()) {
            let mut kill = Command::new("kill");
            let _ = kill.args(["-KILL", &number.to_string()]).stderr(Stdio::null()).status();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmet_needs_say_what_is_missing() {
        assert_eq!(Need::Path("/").unmet(), None);
        assert_eq!(Need::Path("/not/there").unmet().unwrap(), "there is no /not/there");
        assert_eq!(Need::Absent("/not/there").unmet(), None);
        assert!(Need::Absent("/").unmet().unwrap().contains("may be in use"));
        assert_eq!(Need::Program("sh", "dash").unmet(), None);
        let why = Need::Program("no-such-program", "some-package").unmet().unwrap();
        assert!(why.contains("ci/setup installs some-package"), "{why}");
    }
}
