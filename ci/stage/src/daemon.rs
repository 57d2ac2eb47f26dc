// SPDX-License-Identifier: Apache-2.0
//! A process that a test started and that ends with it.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a process may take to obey SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// Killed on drop; its output is in a file.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with its output appended to `log`.
    ///
    /// # Errors
    /// When the log or the process cannot be made.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| log.display().to_string())?;
        let errors = file.try_clone().context("log")?;
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = command.spawn().with_context(|| format!("{command:?} could not be started"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    #[must_use]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// What it has written.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// # Errors
    /// With the end of its log when it is not running any more.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait().context("wait")? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}; its log:\n{}", self.name, self.tail()),
        }
    }

    /// The last lines of the log.
    #[must_use]
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// SIGKILL: what a crash looks like.
    ///
    /// # Errors
    /// When it was dead already.
    pub fn kill(&mut self) -> Result<()> {
        self.check()?;
        self.child.kill().context("kill")?;
        self.child.wait().context("wait")?;
        Ok(())
    }

    /// SIGTERM, and its status when it ends in time.
    ///
    /// # Errors
    /// When it does not end within ten seconds.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let number = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &number]).status().context("kill")?;
        self.wait(GRACE)
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().context("wait")? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("{} does not end within {limit:?}; its log:\n{}", self.name, self.tail())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Dead already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where cargo put the program `name`: beside the program that runs.
///
/// # Errors
/// When it is not there, with the command that builds it.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("our own path")?;
    // Test programs lie in `deps`, one folder below the others.
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built; run cargo build --release --workspace"))
}

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// When it fails, with what it wrote to standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{command:?} could not be started"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}:\n{text}{errors}", output.status);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_daemon_that_ends_says_so_with_its_log() {
        let scratch = Scratch::new().unwrap();
        let mut daemon = Daemon::start("d", sh("echo oh; exit 3"), &scratch.join("log")).unwrap();
        assert_eq!(daemon.wait(Duration::from_secs(5)).unwrap().code(), Some(3));
        let error = daemon.check().unwrap_err().to_string();
        assert!(error.contains("oh") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_dropped_daemon_is_dead() {
        let scratch = Scratch::new().unwrap();
        let daemon = Daemon::start("d", sh("exec sleep 60"), &scratch.join("log")).unwrap();
        let path = format!("/proc/{}", daemon.process());
        assert!(Path::new(&path).exists());
        drop(daemon);
        assert!(!Path::new(&path).exists());
    }

    #[test]
    fn failed_commands_say_what_they_wrote() {
        assert_eq!(output(&mut sh("echo fine")).unwrap(), "fine\n");
        let error = output(&mut sh("echo bad >&2; false")).unwrap_err().to_string();
        assert!(error.contains("bad"), "{error}");
    }
}
