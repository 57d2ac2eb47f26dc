// SPDX-License-Identifier: Apache-2.0
//! Cargo's own tests: built once for the whole workspace, run one program after the other.

use super::tally::Tally;
use crate::shell;
use crate::traces::{MARK, Traces};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One test program may take this long. The slowest are model tests of a few seconds.
const PROGRAM_LIMIT: Duration = Duration::from_secs(300);
/// All doc tests together, with their compilation.
const DOC_LIMIT: Duration = Duration::from_secs(900);

/// One built test program.
#[derive(Debug)]
pub(super) struct Executable {
    name: String,
    path: PathBuf,
    folder: PathBuf,
}

/// The parts of a line of cargo's JSON that we read.
#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

/// Builds the programs that hosts and guest tests start.
pub(super) fn build_programs() -> Result<()> {
    shell::step("build programs", "cargo", &["build", "--release", "--workspace", "--bins"])
}

/// Builds all test programs and says where they are.
pub(super) fn build() -> Result<Vec<Executable>> {
    let begin = Instant::now();
    println!("== build tests");
    let output = Command::new("cargo")
        .args(["test", "--release", "--workspace", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(shell::root())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .context("cargo could not be started")?;
    if !output.status.success() {
        bail!("the tests do not build");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let executables: Vec<_> = text.lines().filter_map(executable).collect();
    if executables.is_empty() {
        bail!("cargo named no test program; that cannot be right");
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("   build tests: {} programs after {seconds:.0} s", executables.len());
    Ok(executables)
}

/// What one line of cargo's output says of a test program, if it is about one.
fn executable(line: &str) -> Option<Executable> {
    let message: Message = serde_json::from_str(line).ok()?;
    if message.reason != "compiler-artifact" || !message.profile?.test {
        return None;
    }
    let path = message.executable?;
    let folder = message.manifest_path?.parent()?.to_path_buf();
    let target = message.target?;
    let package = folder.file_name()?.to_string_lossy().into_owned();
    let is_unit = target.kind.iter().any(|kind| kind == "lib" || kind == "bin");
    let name = if is_unit { package } else { format!("{package}/{}", target.name) };
    Some(Executable { name, path, folder })
}

pub(super) fn run(
    executables: &[Executable],
    only: Option<&str>,
    traces: &Traces,
    tally: &mut Tally,
) -> Result<()> {
    println!("== unit, model and machine tests");
    for executable in executables {
        if only.is_some_and(|only| !executable.name.contains(only)) {
            continue;
        }
        let mut command = Command::new(&executable.path);
        // Output of passing tests is wanted for the reasons of those that skipped themselves.
        command.arg("--show-output").current_dir(&executable.folder);
        command.env("CARGO_MANIFEST_DIR", &executable.folder).env(MARK, traces.run());
        let outcome = shell::bounded(command, PROGRAM_LIMIT, false)?;
        tally.add(&executable.name, &outcome);
    }
    Ok(())
}

/// Examples in documentation comments.
pub(super) fn doc(only: Option<&str>, traces: &Traces, tally: &mut Tally) -> Result<()> {
    if only.is_some_and(|only| only != "doc") {
        return Ok(());
    }
    println!("== doc tests");
    let mut command = Command::new("cargo");
    command.args(["test", "--release", "--workspace", "--doc", "--quiet"]);
    command.current_dir(shell::root()).env(MARK, traces.run());
    let outcome = shell::bounded(command, DOC_LIMIT, false)?;
    tally.add("doc tests", &outcome);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: &str, is_test: bool) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","manifest_path":"/w/base/ids/Cargo.toml","target":{{"name":"plinth_ids","kind":["{kind}"]}},"profile":{{"test":{is_test}}},"executable":"/t/x"}}"#
        )
    }

    #[test]
    fn test_programs_are_found_in_cargos_output() {
        assert_eq!(executable(&line("lib", true)).unwrap().name, "ids");
        assert_eq!(executable(&line("test", true)).unwrap().name, "ids/plinth_ids");
        assert!(executable(&line("bin", false)).is_none());
        assert!(executable("not JSON").is_none());
        assert!(executable(r#"{"reason":"build-finished","success":true}"#).is_none());
    }
}
