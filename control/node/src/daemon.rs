// SPDX-License-Identifier: Apache-2.0
//! One local daemon's process: started when it is not there, started again when it died.
//!
//! The daemon outlives the agent. Which process it is stands in the run folder, so that the
//! next agent finds it. A daemon that lives but does not answer is reported and left alone: its
//! packets and requests may well flow.

use crate::Places;
use plinth_manage::Kept;
use plinth_qemu::{Identity, Process, ProcessError, detached};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The pause after the second death in a row; it doubles with each. After the first one there is
/// none: guests' connections wait for the switch.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A daemon that lived this long has a clean slate.
const STABLE_TIME: Duration = Duration::from_secs(30);
/// How long a fresh daemon may take until it answers.
const START_TIME: Duration = Duration::from_secs(15);

/// How long a successor may take until it answers. It is given up by the old process before.
const REPLACE_TIME: Duration = Duration::from_secs(60);
/// Between two looks at it.
const REPLACE_LOOK: Duration = Duration::from_millis(5);

/// A process was replaced by another one.
#[derive(Clone, Debug)]
pub(crate) struct Replaced {
    pub(crate) before: u32,
    pub(crate) process: u32,
    pub(crate) version_before: String,
    pub(crate) version: String,
    /// From the start of the new one until it answered.
    pub(crate) took: Duration,
}

/// Why a daemon was not replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplaceError {
    #[error("{name} does not answer, so there is nothing to take over")]
    Absent { name: &'static str },
    #[error("the new {name} does not start: {fault}")]
    Start { name: &'static str, fault: ProcessError },
    #[error("the new {name} {ending}; process {before} goes on")]
    Ended { name: &'static str, before: u32, ending: String },
    #[error("the new {name}, process {process}, neither serves nor ends")]
    Silent { name: &'static str, process: u32 },
    #[error("the agent is stopping")]
    Stopping,
    #[error("another replacement is under way")]
    Busy,
}

/// Keeps one process alive.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    record: Kept<Identity>,
    process: Option<Process>,
    started_at: Option<Instant>,
    next_start: Option<Instant>,
    deaths: u32,
    starts: u64,
    text: String,
}

/// What a look at the process found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Life {
    /// It was started a moment ago and may take its time to answer.
    Young,
    /// It lives.
    Grown,
    /// It is not there.
    Absent,
}

impl Daemon {
    pub(crate) fn new(name: &'static str, program: &Path, places: &Places) -> Self {
        let folder = |path: &Path| path.display().to_string();
        Self {
            name,
            program: program.into(),
            arguments: vec![
                "--state-dir".to_owned(),
                folder(places.state()),
                "--run-dir".to_owned(),
                folder(places.run()),
            ],
            log: places.daemon_log(name),
            record: Kept::at(places.daemon_record(name)),
            process: None,
            started_at: None,
            next_start: None,
            deaths: 0,
            starts: 0,
            text: String::new(),
        }
    }

    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn process(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.identity().process)
    }

    pub(crate) const fn starts(&self) -> u64 {
        self.starts
    }

    /// Whether the process that was there has ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.is_alive())
    }

    /// Why it is not there, for people.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Takes note that the process `id` answers as this daemon, whoever started it.
    pub(crate) fn seen(&mut self, id: u32) {
        self.text.clear();
        if self.started_at.is_some_and(|start| start.elapsed() >= STABLE_TIME) {
            self.deaths = 0;
        }
        if self.process() == Some(id) {
            return;
        }
        let Some(start_time) = plinth_qemu::start_time(id) else { return };
        let identity = Identity { process: id, start_time };
        if let Some(process) = Process::find(identity, &self.log) {
            tracing::info!(daemon = self.name, process = id, "found");
            self.process = Some(process);
            self.keep(identity);
        }
    }

    /// Looks after the process when it does not answer: starts it when it is due.
    pub(crate) fn tend(&mut self) -> Life {
        if self.process.is_none() && self.started_at.is_none() {
            self.find();
        }
        if let Some(process) = &mut self.process {
            let Some(ending) = process.ending() else {
                let is_young = self.started_at.is_some_and(|start| start.elapsed() < START_TIME);
                return if is_young { Life::Young } else { Life::Grown };
            };
            self.died(&ending);
        }
        if self.next_start.is_none_or(|due| due <= Instant::now()) {
            return self.start();
        }
        Life::Absent
    }

    /// The process that an earlier agent wrote down.
    fn find(&mut self) {
        match self.record.load() {
            Ok(Some(identity)) => self.process = Process::find(identity, &self.log),
            Ok(None) => {}
            Err(err) => tracing::warn!(err = &err as &dyn std::error::Error, "process record"),
        }
    }

    /// Starts a process that takes over from the one that runs, and waits until it answers.
    /// `answering` is the process that answers now, if one does.
    ///
    /// When the new one ends instead, the old one goes on: it gives up nothing before the other
    /// serves.
    pub(crate) fn replace(
        &mut self,
        mut answering: impl FnMut() -> Option<(u32, String)>,
    ) -> Result<Replaced, ReplaceError> {
        let name = self.name;
        let (before, version_before) = answering().ok_or(ReplaceError::Absent { name })?;
        let mut arguments = self.arguments.clone();
        arguments.push("--take-over".to_owned());
        let begin = Instant::now();
        let mut successor = detached(&self.program, &arguments, &self.log)
            .map_err(|fault| ReplaceError::Start { name, fault })?;
        let identity = successor.identity();
        while begin.elapsed() < REPLACE_TIME {
            if let Some(ending) = successor.ending() {
                return Err(ReplaceError::Ended { name, before, ending });
            }
            if let Some((process, version)) = answering()
                && process == identity.process
            {
                let took = begin.elapsed();
                tracing::info!(daemon = name, before, process, ?took, "replaced");
                self.keep(identity);
                if let Some(mut old) = self.process.replace(successor) {
                    // It ends by itself, and is no zombie of ours afterwards.
                    while old.ending().is_none() && begin.elapsed() < REPLACE_TIME {
                        std::thread::sleep(REPLACE_LOOK);
                    }
                }
                self.started_at = Some(begin);
                self.starts += 1;
                return Ok(Replaced { before, process, version_before, version, took });
            }
            std::thread::sleep(REPLACE_LOOK);
        }
        // Whichever of the two it is that serves, it is found by what it answers.
        Err(ReplaceError::Silent { name, process: identity.process })
    }

    fn died(&mut self, ending: &str) {
        tracing::warn!(daemon = self.name, ending, "a daemon died");
        self.text = ending.to_owned();
        self.process = None;
        self.deaths += 1;
        let pause = match self.deaths {
            1 => Duration::ZERO,
            more => PAUSE_MIN.saturating_mul(1 << (more - 2).min(8)).min(PAUSE_MAX),
        };
        self.next_start = Some(Instant::now() + pause);
    }

    fn start(&mut self) -> Life {
        let now = Instant::now();
        match detached(&self.program, &self.arguments, &self.log) {
            Ok(process) => {
                tracing::info!(daemon = self.name, process = process.identity().process, "started");
                self.keep(process.identity());
                self.process = Some(process);
                self.started_at = Some(now);
                self.starts += 1;
                Life::Young
            }
            Err(err) => {
                self.text = err.to_string();
                self.next_start = Some(now + PAUSE_MAX);
                tracing::error!(err = &err as &dyn std::error::Error, daemon = self.name, "start");
                Life::Absent
            }
        }
    }

    fn keep(&self, identity: Identity) {
        if let Err(err) = self.record.save(&identity) {
            tracing::warn!(err = &err as &dyn std::error::Error, "process record");
        }
    }
}
