// SPDX-License-Identifier: Apache-2.0
//! A process that outlives us: started in its own session, held by a pidfd, found again.

use crate::{Monitor, VmFolder};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long an adopted QEMU may take for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Names one process for ever: an id alone is given away again.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Identity {
    pub process: u32,
    /// In clock ticks after the machine's start (proc(5), stat, field 22).
    pub start_time: u64,
}

/// A living or ended process that we hold on to.
#[derive(Debug)]
pub struct Process {
    identity: Identity,
    handle: OwnedFd,
    /// When we are its parent: then we hear how it ended, and must reap it.
    child: Option<Child>,
    log: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot open the log {}", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error("cannot start {}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("process {process} ended before it could be held")]
    Gone { process: u32, source: io::Error },
}

/// Starts `program` in a session of its own, with its output at the end of `log`. It hears no
/// signal of our terminal, and lives on when we die.
///
/// # Errors
/// When the log cannot be opened or the program not be started.
pub fn detached<S: AsRef<OsStr>>(
    program: &Path,
    arguments: &[S],
    log: &Path,
) -> Result<Process, ProcessError> {
    begin(program, arguments, log, Stdio::null())
}

/// [`detached`] with `input` as its standard input.
pub(crate) fn begin<S: AsRef<OsStr>>(
    program: &Path,
    arguments: &[S],
    log: &Path,
    input: Stdio,
) -> Result<Process, ProcessError> {
    let fault = |source| ProcessError::Log { path: log.into(), source };
    let output = File::options().create(true).append(true).open(log).map_err(fault)?;
    let errors = output.try_clone().map_err(fault)?;
    // setsid(1) executes the program in the same process, because a fresh child leads no group.
    let child = Command::new("setsid")
        .arg(program)
        .args(arguments)
        .stdin(input)
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|source| ProcessError::Start { program: program.into(), source })?;
    let process = child.id();
    // Not reaped yet, so the id is still this child's even if it ended at once.
    let handle = hold(process).map_err(|source| ProcessError::Gone { process, source })?;
    let identity = Identity { process, start_time: start_time(process).unwrap_or_default() };
    Ok(Process { identity, handle, child: Some(child), log: log.into() })
}

fn hold(process: u32) -> io::Result<OwnedFd> {
    let id = i32::try_from(process).ok().and_then(Pid::from_raw);
    let id = id.ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(id, PidfdFlags::empty())?)
}

/// When a process started, in clock ticks after the machine's start. `None` when there is none.
pub fn start_time(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the fields after it are numbers.
    let (_, fields) = text.rsplit_once(") ")?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// Finds the QEMU of a VM again. `uuid` is what it must say of itself; `record` is what was
/// written down of it, for a process that is too busy to answer. One of which nothing was written
/// down is found by what it wrote itself.
pub fn adopt(folder: &VmFolder, uuid: &str, record: Option<Identity>) -> Option<Process> {
    by_monitor(folder, uuid)
        .or_else(|| Process::find(record?, &folder.log()))
        .or_else(|| by_process_file(folder, uuid))
}

/// The file outlives its process, so the id in it counts only if that process was begun with this
/// VM's words.
fn by_process_file(folder: &VmFolder, uuid: &str) -> Option<Process> {
    let process = std::fs::read_to_string(folder.process_file()).ok()?.trim().parse().ok()?;
    let handle = hold(process).ok()?;
    // Both read after the pidfd was opened, so that they are of what the pidfd holds.
    let start_time = start_time(process)?;
    let line = std::fs::read(format!("/proc/{process}/cmdline")).ok()?;
    let has = |word: &OsStr| line.split(|byte| *byte == 0).any(|part| part == word.as_bytes());
    if !has(folder.process_file().as_os_str()) || !has(uuid.as_ref()) {
        return None;
    }
    let identity = Identity { process, start_time };
    let found = Process { identity, handle, child: None, log: folder.log() };
    found.is_alive().then_some(found)
}

fn by_monitor(folder: &VmFolder, uuid: &str) -> Option<Process> {
    let mut monitor = Monitor::connect(&folder.qmp(), ANSWER_LIMIT).ok()?;
    if monitor.uuid().ok()? != uuid {
        return None;
    }
    let process = monitor.process()?;
    let handle = hold(process).ok()?;
    let start_time = start_time(process)?;
    // An answer after the pidfd was opened proves that the pidfd is of the process that answers.
    monitor.status().ok()?;
    let identity = Identity { process, start_time };
    Some(Process { identity, handle, child: None, log: folder.log() })
}

impl Process {
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// Takes hold of a process that was written down. `None` when it is gone.
    pub fn find(record: Identity, log: &Path) -> Option<Self> {
        let handle = hold(record.process).ok()?;
        // Read after the pidfd was opened, so that it is the start time of what the pidfd holds.
        if start_time(record.process)? != record.start_time {
            return None;
        }
        let process = Self { identity: record, handle, child: None, log: log.into() };
        process.is_alive().then_some(process)
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        let mut wait = [PollFd::new(&self.handle, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A pidfd is readable once its process has ended.
        matches!(poll(&mut wait, Some(&now)), Ok(0))
    }

    /// Waits for the end, `limit` at most. Whether it has ended.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut wait = [PollFd::new(&self.handle, PollFlags::IN)];
        let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 });
        matches!(poll(&mut wait, Some(&limit)), Ok(1..)) || !self.is_alive()
    }

    /// How it ended, for people, with the last line of its log. `None` while it lives.
    pub fn ending(&mut self) -> Option<String> {
        if self.is_alive() {
            return None;
        }
        let status = self.child.as_mut().and_then(|child| child.wait().ok());
        let how = match status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => format!("ended with status {code}"),
            Some((None, Some(signal))) => format!("killed by signal {signal}"),
            Some((None, None)) | None => "ended while nobody was its parent".to_owned(),
        };
        Some(match last_line(&self.log) {
            Some(line) => format!("{how}; it last said: {line}"),
            None => how,
        })
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) {
        // The only failure is that it has ended.
        let _ = pidfd_send_signal(&self.handle, Signal::TERM);
    }

    /// Ends it by force (SIGKILL).
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }
}

/// The last line of a log that says something, at most 300 bytes of it.
fn last_line(log: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(2048))).ok()?;
    let mut bytes = Vec::new();
    file.take(2048).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().take(300).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("plinth-process-{name}-{}", std::process::id()))
    }

    fn shell(name: &str, script: &str) -> Process {
        detached(Path::new("sh"), &["-c", script], &log(name)).unwrap()
    }

    #[test]
    fn a_signal_is_told_apart_from_a_status() {
        let mut process = shell("crash", "kill -SEGV $$");
        assert!(process.wait(Duration::from_secs(10)));
        assert_eq!(process.ending().as_deref(), Some("killed by signal 11"));
        std::fs::remove_file(log("crash")).unwrap();
    }

    #[test]
    fn an_ending_tells_the_last_line_of_the_log() {
        let mut process = shell("line", "echo first; echo 'last words'; echo; exit 3");
        assert!(process.wait(Duration::from_secs(10)));
        let ending = process.ending().unwrap();
        std::fs::remove_file(log("line")).unwrap();
        assert_eq!(ending, "ended with status 3; it last said: last words");
    }

    #[test]
    fn a_process_leads_its_own_session() {
        let process = shell("session", "exec sleep 60");
        let id = process.identity().process;
        // setsid(1) needs a moment to make the session.
        let leads = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
            let fields = stat.rsplit_once(") ").unwrap().1;
            fields.split_whitespace().nth(3) == Some(&id.to_string())
        });
        process.kill();
        assert!(process.wait(Duration::from_secs(10)));
        std::fs::remove_file(log("session")).unwrap();
        assert!(leads, "process {id} is in the session of its parent");
    }

    /// A shell that has the words of a QEMU and stays deaf.
    #[test]
    fn a_deaf_process_is_found_by_what_it_wrote_and_no_other() {
        let path = log("file");
        std::fs::create_dir_all(&path).unwrap();
        let folder = VmFolder::new(&path).unwrap();
        assert!(adopt(&folder, "uuid-1", None).is_none(), "without a file");
        let file = folder.process_file().display().to_string();
        let script = "echo $$ > \"$2\"; while :; do sleep 60; done";
        let words = ["-c", script, "-pidfile", "uuid-1", &file];
        let process = detached(Path::new("sh"), &words, &folder.log()).unwrap();
        let is_found = |uuid| adopt(&folder, uuid, None).map(|found| found.identity());
        let found = (0..500).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            is_found("uuid-1")
        });
        let other = is_found("uuid-2");
        // Of the shell's session is its sleep, too.
        let group = Pid::from_raw(i32::try_from(process.identity().process).unwrap()).unwrap();
        rustix::process::kill_process_group(group, Signal::KILL).unwrap();
        assert!(process.wait(Duration::from_secs(10)));
        let late = is_found("uuid-1");
        std::fs::remove_dir_all(&path).unwrap();
        assert_eq!(found.map(|identity| identity.process), Some(process.identity().process));
        assert_eq!((other, late), (None, None));
    }

    #[test]
    fn a_process_id_that_was_given_away_again_is_not_taken() {
        let mut process = shell("reuse", "exec sleep 60");
        let identity = process.identity();
        let other = Identity { start_time: identity.start_time + 1, ..identity };
        assert!(Process::find(identity, &log("reuse")).is_some());
        assert!(Process::find(other, &log("reuse")).is_none());
        process.kill();
        assert!(process.wait(Duration::from_secs(10)));
        process.ending().unwrap();
        assert!(Process::find(identity, &log("reuse")).is_none());
        std::fs::remove_file(log("reuse")).unwrap();
    }
}
