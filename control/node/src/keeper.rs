// SPDX-License-Identifier: Apache-2.0
//! Keeps one daemon alive and in its configuration, on a thread of its own.
//!
//! The daemon numbers configurations and refuses to go back. The number is chosen here, above
//! what the daemon has, so that neither side's lost state makes them disagree for ever.

use crate::daemon::{Daemon, Life, ReplaceError, Replaced};
use plinth_api::{DaemonState, DaemonStatus};
use plinth_ids::Epoch;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks at a daemon that does as it should.
const CALM: Duration = Duration::from_secs(1);
/// Between two looks while something is under way.
const HURRY: Duration = Duration::from_millis(100);
/// Between two glances at whether the process lives, which cost a system call each.
const GLANCE: Duration = Duration::from_millis(20);

/// A daemon's language.
pub(crate) trait Speaker: Send + 'static {
    type Config: Clone + Eq + Send;
    /// What the daemon is asked in every round, besides its status.
    type Extra: Clone + Default + Send;

    fn status(&mut self) -> Result<Seen, Trouble>;
    fn apply(&mut self, config: Self::Config, epoch: Epoch) -> Result<(), Trouble>;
    fn extra(&mut self) -> Result<Self::Extra, Trouble>;
}

/// What a daemon says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) process: u32,
    pub(crate) version: String,
    pub(crate) epoch: Option<Epoch>,
    /// For people.
    pub(crate) text: String,
}

/// Why a daemon did not do something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Call(#[from] plinth_manage::CallError),
    /// It understood and said no.
    #[error("{text}")]
    Refused { code: String, text: String },
    #[error("the daemon answered something else than it was asked; are both of one version?")]
    Confused,
}

/// One daemon and the thread that looks after it.
#[derive(Debug)]
pub(crate) struct Keeper<S: Speaker> {
    shared: Arc<Shared<S>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<S: Speaker> {
    state: Mutex<State<S>>,
    changed: Condvar,
}

impl<S: Speaker> std::fmt::Debug for Shared<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

struct State<S: Speaker> {
    wanted: Option<S::Config>,
    /// Counts what was wanted.
    wish: u64,
    /// The last wish that the daemon carries out.
    done: u64,
    status: DaemonStatus,
    extra: S::Extra,
    is_stopping: bool,
    /// Who wants the daemon's process replaced.
    replace: Option<SyncSender<Result<Replaced, ReplaceError>>>,
}

impl<S: Speaker> Shared<S> {
    /// Every change of the state is one assignment, so a panic elsewhere leaves it whole.
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Speaker> Keeper<S> {
    /// Starts to look after the daemon. It gets a configuration with the first [`Self::want`].
    pub(crate) fn start(daemon: Daemon, speaker: S) -> std::io::Result<Self> {
        let state = State {
            wanted: None,
            wish: 0,
            done: 0,
            status: DaemonStatus {
                name: daemon.name().to_owned(),
                state: DaemonState::Starting,
                process: None,
                version: None,
                epoch: None,
                starts: 0,
                text: String::new(),
            },
            extra: S::Extra::default(),
            is_stopping: false,
            replace: None,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut nurse = Nurse { daemon, speaker, shared: Arc::clone(&shared), in_force: None };
        let thread =
            std::thread::Builder::new().name("keeper".to_owned()).spawn(move || nurse.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Says what the daemon is to do. The number given back is for [`Self::is_done`].
    pub(crate) fn want(&self, config: S::Config) -> u64 {
        let mut state = self.shared.lock();
        if state.wanted.as_ref() != Some(&config) {
            state.wanted = Some(config);
            state.wish += 1;
            self.shared.changed.notify_all();
        }
        state.wish
    }

    /// Whether the daemon carries out that wish or a later one.
    pub(crate) fn is_done(&self, wish: u64) -> bool {
        self.shared.lock().done >= wish
    }

    pub(crate) fn status(&self) -> DaemonStatus {
        self.shared.lock().status.clone()
    }

    /// What the daemon last answered besides its status.
    pub(crate) fn extra(&self) -> S::Extra {
        self.shared.lock().extra.clone()
    }

    /// Has the daemon's process replaced by a new one that takes over, and waits for that. While it
    /// is done the daemon is looked after by nobody, so that none is started beside the two.
    pub(crate) fn replace(&self) -> Result<Replaced, ReplaceError> {
        let (answer, answered) = sync_channel(1);
        {
            let mut state = self.shared.lock();
            if state.is_stopping {
                return Err(ReplaceError::Stopping);
            }
            if state.replace.is_some() {
                return Err(ReplaceError::Busy);
            }
            state.replace = Some(answer);
        }
        self.shared.changed.notify_all();
        answered.recv().unwrap_or(Err(ReplaceError::Stopping))
    }

    /// Has a look soon, because something was changed behind the keeper's back.
    pub(crate) fn look(&self) {
        self.shared.changed.notify_all();
    }

    /// Ends the thread; the daemon goes on.
    pub(crate) fn stop(&mut self) {
        self.shared.lock().is_stopping = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was told by the panic hook.
            let _ = thread.join();
        }
    }
}

impl<S: Speaker> Drop for Keeper<S> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Why a pause ended.
struct Waited {
    is_stopping: bool,
    /// Somebody wants something.
    is_woken: bool,
}

struct Nurse<S: Speaker> {
    daemon: Daemon,
    speaker: S,
    shared: Arc<Shared<S>>,
    /// The configuration that we know the daemon to have: its epoch and our wish.
    in_force: Option<(Epoch, u64)>,
}

impl<S: Speaker> Nurse<S> {
    fn run(&mut self) {
        loop {
            let is_calm = self.round();
            self.replace();
            let is_stopping =
                if is_calm { self.rest() } else { self.wait(HURRY, false).is_stopping };
            if is_stopping {
                return;
            }
        }
    }

    /// Waits until somebody wants something, the daemon's process dies, or it is time to look
    /// again. Whether the keeper is to stop.
    fn rest(&self) -> bool {
        let begin = Instant::now();
        loop {
            // At least one pause, so that a dead process in whose place another one answers that
            // cannot be held makes no endless loop of looks.
            let seen = self.wait(GLANCE, true);
            if seen.is_stopping || seen.is_woken {
                return seen.is_stopping;
            }
            if self.daemon.is_gone() || begin.elapsed() >= CALM {
                return false;
            }
        }
    }

    /// Waits for `pause`, but not over what came before or comes meanwhile. A wish that the daemon
    /// did not take waits all the same.
    fn wait(&self, pause: Duration, is_calm: bool) -> Waited {
        let state = self.shared.lock();
        let is_pending = state.replace.is_some() || is_calm && state.done < state.wish;
        if state.is_stopping || is_pending {
            return Waited { is_stopping: state.is_stopping, is_woken: true };
        }
        let waited = self.shared.changed.wait_timeout(state, pause);
        let (state, outcome) = waited.unwrap_or_else(PoisonError::into_inner);
        Waited { is_stopping: state.is_stopping, is_woken: !outcome.timed_out() }
    }

    /// Replaces the process, if somebody wants that.
    fn replace(&mut self) {
        let wanted = self.shared.lock().replace.take();
        let Some(answer) = wanted else { return };
        let speaker = &mut self.speaker;
        let outcome =
            self.daemon.replace(|| speaker.status().ok().map(|seen| (seen.process, seen.version)));
        // The next status is the new one's.
        self.round();
        // Nobody waits any more when the connection that asked is gone.
        let _ = answer.send(outcome);
    }

    /// One look. Whether all is as it should be.
    fn round(&mut self) -> bool {
        match self.speaker.status() {
            Ok(seen) => {
                self.daemon.seen(seen.process);
                self.configure(&seen)
            }
            Err(trouble) => {
                self.in_force = None;
                let life = self.daemon.tend();
                self.report_absent(life, &trouble);
                false
            }
        }
    }

    fn configure(&mut self, seen: &Seen) -> bool {
        let (wanted, wish) = {
            let state = self.shared.lock();
            (state.wanted.clone(), state.wish)
        };
        let mut epoch = seen.epoch;
        let mut text = seen.text.clone();
        let mut is_good = true;
        let has_it =
            self.in_force.is_some_and(|force| seen.epoch.is_some_and(|e| (e, wish) == force));
        if let Some(config) = wanted.filter(|_| !has_it) {
            let next = Epoch(seen.epoch.map_or(0, |epoch| epoch.0) + 1);
            match self.speaker.apply(config, next) {
                Ok(()) => {
                    self.in_force = Some((next, wish));
                    epoch = Some(next);
                }
                Err(trouble) => {
                    let name = self.daemon.name();
                    tracing::warn!(daemon = name, text = %trouble, "configuration not taken");
                    text = format!("does not take its configuration: {trouble}");
                    is_good = false;
                }
            }
        }
        let extra = self.speaker.extra().ok();
        let mut state = self.shared.lock();
        state.status = DaemonStatus {
            name: self.daemon.name().to_owned(),
            state: DaemonState::Up,
            process: Some(seen.process),
            version: Some(seen.version.clone()),
            epoch,
            starts: self.daemon.starts(),
            text,
        };
        if let Some(extra) = extra {
            state.extra = extra;
        }
        if is_good && self.in_force.is_some() {
            state.done = wish;
        }
        drop(state);
        self.shared.changed.notify_all();
        is_good
    }

    fn report_absent(&self, life: Life, trouble: &Trouble) {
        let text = match life {
            Life::Young => String::new(),
            Life::Grown => format!("lives but does not answer: {trouble}"),
            Life::Absent => self.daemon.text().to_owned(),
        };
        let mut state = self.shared.lock();
        state.status = DaemonStatus {
            name: self.daemon.name().to_owned(),
            state: if life == Life::Young { DaemonState::Starting } else { DaemonState::Down },
            process: self.daemon.process(),
            version: None,
            epoch: None,
            starts: self.daemon.starts(),
            text,
        };
    }
}
