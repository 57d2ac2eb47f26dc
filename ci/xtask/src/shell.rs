// SPDX-License-Identifier: Apache-2.0
//! Running other programs with a bound on their time.

use anyhow::{Context, Result, bail};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often a running child is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long a child may take to obey SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// The workspace's root folder, from where this crate's manifest is.
pub(crate) fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("ci/xtask is two folders below the root").to_path_buf()
}

/// Where cargo puts programs: asked from cargo's own variable, as cargo does.
pub(crate) fn programs() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("release")
}

/// Runs one step in the root folder, shows its output, and says how long it took.
pub(crate) fn step(name: &str, program: &str, arguments: &[&str]) -> Result<()> {
    let begin = Instant::now();
    println!("== {name}: {program} {}", arguments.join(" "));
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .status()
        .with_context(|| format!("{program} could not be started"))?;
    if !status.success() {
        bail!("{name} failed: {program} {} ended with {status}", arguments.join(" "));
    }
    println!("   {name}: fine after {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// What a bounded run came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `None` when the time ran out and the process group was ended.
    pub(crate) status: Option<ExitStatus>,
    /// Standard output and standard error, in the order they were read.
    pub(crate) output: String,
    pub(crate) took: Duration,
}

/// Runs `command` in a process group of its own, for at most `limit`.
///
/// When the time is up the whole group gets SIGTERM, then SIGKILL, so that a hanging test takes
/// its children with it.
pub(crate) fn bounded(mut command: Command, limit: Duration, echo: bool) -> Result<Outcome> {
    let begin = Instant::now();
    let (mut reader, writer) = std::io::pipe().context("no pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut child = command.spawn().with_context(|| format!("{command:?} could not be started"))?;
    // The command holds our copies of the pipe's writing end; the reader ends when they are gone.
    drop(command);
    let drain = thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut buffer) {
            if echo {
                print!("{}", String::from_utf8_lossy(&buffer[..length]));
            }
            bytes.extend_from_slice(&buffer[..length]);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let status = wait(&mut child, begin + limit)?;
    if status.is_none() {
        end_group(&mut child)?;
    }
    let output = collect(drain);
    Ok(Outcome { status, output, took: begin.elapsed() })
}

/// A grandchild that was left running keeps the pipe open for ever, so the wait for the rest of
/// the output has an end too.
fn collect(drain: thread::JoinHandle<String>) -> String {
    let until = Instant::now() + GRACE;
    while !drain.is_finished() && Instant::now() < until {
        thread::sleep(LOOK);
    }
    if drain.is_finished() {
        return drain.join().unwrap_or_default();
    }
    "FAILED: a process that was started in this run still holds its output\n".to_owned()
}

fn wait(child: &mut Child, until: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait().context("a child cannot be waited for")? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

fn end_group(child: &mut Child) -> Result<()> {
    for signal in ["-TERM", "-KILL"] {
        let group = format!("-{}", child.id());
        Command::new("kill").args([signal, "--", &group]).status().context("kill")?;
        if wait(child, Instant::now() + GRACE)?.is_some() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_of_both_streams_is_kept() {
        let outcome =
            bounded(sh("echo out; echo err >&2"), Duration::from_secs(10), false).unwrap();
        assert!(outcome.status.unwrap().success());
        assert_eq!(outcome.output, "out\nerr\n");
    }

    #[test]
    fn a_hanging_group_is_ended_with_its_children() {
        let outcome =
            bounded(sh("sleep 60 & echo $!; wait"), Duration::from_millis(300), false).unwrap();
        assert!(outcome.status.is_none());
        assert!(outcome.took < Duration::from_secs(20));
        let child: u32 = outcome.output.lines().next().unwrap().parse().unwrap();
        // It was sent the signal; on a busy machine it has to be given a CPU to die.
        let until = Instant::now() + GRACE;
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                break;
            }
            assert!(Instant::now() < until, "{stat}");
            thread::sleep(LOOK);
        }
    }
}
