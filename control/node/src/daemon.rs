// SPDX-License-Identifier: Apache-2.0
//! One local daemon's process: started when it is not there, started again when it died.
//!
//! The daemon outlives the agent. Which process it is stands in the run folder, so that the
//! next agent finds it. A daemon that lives but does not answer is reported and left alone: its
//! packets and requests may well flow.

use crate::Places;
use plinth_manage::Kept;
use plinth_qemu::{Identity, Process, detached};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The pause after the first death; it doubles with each.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A daemon that lived this long has a clean slate.
const STABLE_TIME: Duration = Duration::from_secs(30);
/// How long a fresh daemon may take until it answers.
const START_TIME: Duration = Duration::from_secs(15);

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

    fn died(&mut self, ending: &str) {
        tracing::warn!(daemon = self.name, ending, "a daemon died");
        self.text = ending.to_owned();
        self.process = None;
        self.deaths += 1;
        let pause = PAUSE_MIN.saturating_mul(1 << (self.deaths - 1).min(8)).min(PAUSE_MAX);
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
