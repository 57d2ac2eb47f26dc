// SPDX-License-Identifier: Apache-2.0
//! One VM: its lifecycle machine, its process, its record, on a thread of its own, so that a
//! QEMU that does not answer holds up nobody else.

use crate::nics::{NicCare, ports};
use crate::{Places, translate};
use plinth_api::{Run, VmSpec, VmState, VmStatus};
use plinth_ids::PortId;
use plinth_manage::Kept;
use plinth_qemu::{
    Accelerator, Identity, LaunchError, Monitor, Process, RunState, VmFolder, adopt, has_begun,
    launch,
};
use plinth_vm::{Effect, Input, Lifecycle, Record, State, Wish};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between two looks at a process.
pub(crate) const LOOK: Duration = Duration::from_millis(500);
/// Between two looks for a process that an agent before us has begun.
const FRESH_PAUSE: Duration = Duration::from_millis(50);
/// How long QEMU may take for one answer.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// What every runner needs to know of its node.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    pub(crate) places: Places,
    pub(crate) qemu: PathBuf,
    /// Free 2 MiB pages are read below it.
    pub(crate) root: PathBuf,
}

/// What of a VM survives a restart of the agent and of the node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct VmRecord {
    lifecycle: Record,
    /// The process, when one was started.
    identity: Option<Identity>,
    accelerator: Option<Accelerator>,
    /// The last that the agent knew of.
    spec: VmSpec,
    /// What the living process was started with, with the NICs that it has now.
    held: Option<VmSpec>,
}

impl VmRecord {
    pub(crate) const fn spec(&self) -> &VmSpec {
        &self.spec
    }
}

#[derive(Debug)]
pub(crate) struct Runner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<Inbox>,
    changed: Condvar,
    /// Called when something came about that the reconciler wants to know.
    notice: Arc<crate::agent::Bell>,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) spec: VmSpec,
    wish: Wish,
    accelerator: Option<Accelerator>,
    /// Why a launch must wait for the daemons; `None` when it need not.
    pub(crate) obstacle: Option<String>,
    status: VmStatus,
    pub(crate) held: Option<VmSpec>,
    /// Whether the process of the record was looked for, so that the status is true.
    is_settled: bool,
    is_stopping: bool,
}

impl Shared {
    /// Every change of the inbox is one assignment, so a panic elsewhere leaves it whole.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runner {
    /// Goes on with a VM, or begins with it when there is no record.
    pub(crate) fn start(
        ground: Ground,
        spec: VmSpec,
        record: Option<VmRecord>,
        notice: Arc<crate::agent::Bell>,
    ) -> std::io::Result<Self> {
        let now = Instant::now();
        let lifecycle = record
            .as_ref()
            .map_or_else(Lifecycle::default, |r| Lifecycle::restore(&r.lifecycle, Duration::ZERO));
        let held = record.as_ref().and_then(|r| r.held.clone());
        let held = held.filter(|_| lifecycle.has_process());
        let folder = ground.places.vm(spec.id).map_err(std::io::Error::other)?;
        let kept = Kept::at(ground.places.vm_record(spec.id));
        let state = Inbox {
            wish: Wish::Stop { grace: Duration::MAX },
            accelerator: None,
            obstacle: Some("the node has just begun".to_owned()),
            status: first_status(&spec, &lifecycle),
            held: held.clone(),
            spec,
            is_settled: false,
            is_stopping: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), notice });
        let mut hand = Hand {
            ground,
            folder,
            kept,
            lifecycle,
            process: None,
            identity: record.as_ref().and_then(|r| r.identity),
            accelerator: record.as_ref().and_then(|r| r.accelerator),
            held,
            nics: NicCare::default(),
            has_wish: false,
            is_found: false,
            shared: Arc::clone(&shared),
            start: now,
            since: unix_now(),
            last_look: None,
            last_state: None,
            saved: None,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vm-{}", shared.lock().spec.id.0))
            .spawn(move || hand.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Says what the VM is and what is wanted of it. `obstacle` says why it cannot be started
    /// yet; a stop never has one.
    pub(crate) fn want(
        &self,
        spec: VmSpec,
        accelerator: Option<Accelerator>,
        obstacle: Option<String>,
    ) {
        let mut inbox = self.shared.lock();
        inbox.wish = match spec.run {
            Run::Running => Wish::Run { start_number: spec.start_number },
            Run::Stopped { grace_seconds } => {
                Wish::Stop { grace: Duration::from_secs(grace_seconds.into()) }
            }
        };
        let is_news =
            inbox.spec != spec || inbox.accelerator != accelerator || inbox.obstacle != obstacle;
        inbox.spec = spec;
        inbox.accelerator = accelerator;
        inbox.obstacle = obstacle;
        if is_news {
            self.shared.changed.notify_all();
        }
    }

    /// Wants the VM gone, its process first.
    pub(crate) fn cut_off(&self) {
        let mut inbox = self.shared.lock();
        inbox.obstacle = Some("it is to be gone".to_owned());
        let wish = Wish::Stop { grace: Duration::ZERO };
        if inbox.wish != wish {
            inbox.wish = wish;
            self.shared.changed.notify_all();
        }
    }

    /// Whether it has no process, and none is on its way.
    pub(crate) fn is_gone(&self) -> bool {
        let inbox = self.shared.lock();
        inbox.held.is_none() && inbox.is_settled && inbox.status.state == VmState::Stopped
    }

    pub(crate) fn status(&self) -> VmStatus {
        self.shared.lock().status.clone()
    }

    /// What the living process was started with. `None` when there is no process.
    pub(crate) fn held(&self) -> Option<VmSpec> {
        self.shared.lock().held.clone()
    }

    /// Ends the thread; the process goes on.
    pub(crate) fn stop(&mut self) {
        self.shared.lock().is_stopping = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was told by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What is known before the thread has looked.
fn first_status(spec: &VmSpec, lifecycle: &Lifecycle) -> VmStatus {
    VmStatus {
        id: spec.id,
        // The process is yet to be found.
        state: if lifecycle.has_process() { VmState::Starting } else { state_name(lifecycle) },
        process: None,
        since: unix_now(),
        reason: lifecycle.reason().to_owned(),
        restarts: lifecycle.restarts(),
        start_number: lifecycle.start_number(),
        accelerator: String::new(),
        nics: Vec::new(),
        // Until it is known what the process has.
        nics_due: spec.nics.iter().map(|nic| nic.port).collect(),
    }
}

fn state_name(lifecycle: &Lifecycle) -> VmState {
    match lifecycle.state() {
        State::Off => VmState::Stopped,
        State::Launching => VmState::Starting,
        State::Running { .. } => VmState::Running,
        State::Stopping { .. } | State::Quitting { .. } | State::Killing { .. } => {
            VmState::Stopping
        }
        State::Waiting { .. } if lifecycle.restarts() == 0 => VmState::Starting,
        State::Waiting { .. } | State::Failed => VmState::Failed,
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The thread's own.
pub(crate) struct Hand {
    pub(crate) ground: Ground,
    pub(crate) folder: VmFolder,
    kept: Kept<VmRecord>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) process: Option<Process>,
    identity: Option<Identity>,
    pub(crate) accelerator: Option<Accelerator>,
    pub(crate) held: Option<VmSpec>,
    pub(crate) nics: NicCare,
    /// Whether the reconciler has said what it wants since this thread began.
    pub(crate) has_wish: bool,
    /// Whether the process of the record was looked for.
    is_found: bool,
    pub(crate) shared: Arc<Shared>,
    start: Instant,
    since: u64,
    last_look: Option<Instant>,
    last_state: Option<VmState>,
    saved: Option<VmRecord>,
}

impl Hand {
    fn run(&mut self) {
        loop {
            self.round();
            if self.is_found {
                self.publish();
            }
            let inbox = self.shared.lock();
            if inbox.is_stopping {
                return;
            }
            if !self.is_found {
                drop(self.shared.changed.wait_timeout(inbox, FRESH_PAUSE));
                continue;
            }
            let pause = self
                .lifecycle
                .deadline()
                .map_or(LOOK, |deadline| deadline.saturating_sub(self.start.elapsed()).min(LOOK));
            drop(self.shared.changed.wait_timeout(inbox, pause));
        }
    }

    fn round(&mut self) {
        self.is_found = self.is_found || self.find();
        if !self.is_found {
            return;
        }
        self.look();
        let wish = {
            let inbox = self.shared.lock();
            // What the agent wants is known once it has said so: the wish that stands at the
            // start would stop a VM that is to run.
            self.has_wish |= inbox.wish != Wish::Stop { grace: Duration::MAX };
            inbox.wish
        };
        if self.has_wish {
            self.feed(Input::Want(wish));
        }
        self.feed(Input::Tick);
        self.fit_nics();
    }

    /// Gives one input to the machine and carries out what it says, until it says nothing.
    fn feed(&mut self, input: Input) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let effect = self.lifecycle.handle(self.start.elapsed(), input);
            // The record comes before the act: after a crash between the two the process is
            // looked for and not found, which is harmless; the other way round it would run twice.
            self.save();
            match effect {
                Some(Effect::Launch) => next = Some(self.launch()),
                Some(Effect::PressPower) => self.with_monitor(Monitor::press_power),
                Some(Effect::Quit) => self.with_monitor(Monitor::quit),
                Some(Effect::Kill) => {
                    if let Some(process) = &self.process {
                        process.kill();
                    }
                }
                None => {}
            }
        }
    }

    /// Looks for the process that the record tells of. Whether it is known what became of it.
    fn find(&mut self) -> bool {
        if !self.lifecycle.has_process() {
            return true;
        }
        let uuid = plinth_qemu::uuid(self.shared.lock().spec.id);
        if let Some(process) = adopt(&self.folder, &uuid, self.identity) {
            tracing::info!(vm = %self.folder.path().display(), "found its process again");
            self.identity = Some(process.identity());
            self.process = Some(process);
            return true;
        }
        // The agent before us may have ended right after it began one, which does not answer
        // yet: taken for dead, it would lose its sockets.
        if has_begun(&self.folder) {
            return false;
        }
        let reason = "its process ended while no agent watched".to_owned();
        self.feed(Input::Exited { reason });
        true
    }

    /// Whether the process has ended, or the guest has.
    fn look(&mut self) {
        let Some(process) = &mut self.process else { return };
        if let Some(reason) = process.ending() {
            tracing::info!(vm = %self.folder.path().display(), reason, "its process is gone");
            self.process = None;
            self.forget_process();
            self.feed(Input::Exited { reason });
            return;
        }
        if self.last_look.is_some_and(|last| last.elapsed() < LOOK) {
            return;
        }
        self.last_look = Some(Instant::now());
        // A QEMU that is busy for a moment is asked again at the next look.
        let state = Monitor::connect(&self.folder.qmp(), ANSWER_LIMIT)
            .and_then(|mut monitor| monitor.status());
        if let Ok(RunState::Off) = state {
            self.feed(Input::GuestOff);
        }
    }

    fn forget_process(&mut self) {
        if self.process.is_none() && !self.lifecycle.has_process() {
            self.held = None;
            self.identity = None;
        }
    }

    fn launch(&mut self) -> Input {
        let (spec, accelerator) = match self.begin_launch() {
            Ok(ready) => ready,
            Err(reason) => return Input::LaunchDeferred { reason },
        };
        self.held = Some(spec.clone());
        self.accelerator = Some(accelerator);
        self.publish();
        let has_hugepages = has_hugepages(&self.ground.root, spec.memory);
        let machine = translate::machine(&spec, &self.ground.places, accelerator, has_hugepages);
        // An agent before us may have been ended between the start and its record.
        let found = adopt(&self.folder, &machine.uuid, None).map(Ok);
        match found.unwrap_or_else(|| launch(&self.ground.qemu, &machine, &self.folder)) {
            Ok(process) => {
                self.identity = Some(process.identity());
                self.process = Some(process);
                self.nics = NicCare::of_new_process();
                Input::Launched
            }
            Err(err @ LaunchError::Begun) => Input::LaunchDeferred { reason: plain(&err) },
            Err(err) => {
                let reason = plain(&err);
                tracing::warn!(vm = %spec.name, reason, "launch failed");
                self.held = None;
                Input::LaunchFailed { reason }
            }
        }
    }

    /// Takes what a launch needs, or says what it waits for. Under one lock, so that the
    /// reconciler either sees what the process is to use, or has held the launch back before.
    fn begin_launch(&self) -> Result<(VmSpec, Accelerator), String> {
        let mut inbox = self.shared.lock();
        if let Some(obstacle) = &inbox.obstacle {
            return Err(obstacle.clone());
        }
        let accelerator = inbox.accelerator.ok_or("waits for the try of KVM")?;
        let sockets = translate::sockets(&inbox.spec, &self.ground.places);
        if let Some(missing) = sockets.into_iter().find(|socket| !socket.exists()) {
            return Err(format!("waits for {}", missing.display()));
        }
        inbox.held = Some(inbox.spec.clone());
        Ok((inbox.spec.clone(), accelerator))
    }

    fn with_monitor<T>(
        &self,
        act: impl FnOnce(&mut Monitor) -> Result<T, plinth_qemu::MonitorError>,
    ) {
        let done = Monitor::connect(&self.folder.qmp(), ANSWER_LIMIT)
            .and_then(|mut monitor| act(&mut monitor).map(drop));
        // The machine's deadline goes on to the next stronger means.
        if let Err(err) = done {
            tracing::debug!(err = &err as &dyn std::error::Error, "monitor");
        }
    }

    fn reason(&self) -> String {
        let reason = self.lifecycle.reason();
        if reason.is_empty() { self.nics.trouble.clone() } else { reason.to_owned() }
    }

    fn save(&mut self) {
        let record = VmRecord {
            lifecycle: self.lifecycle.record(),
            identity: self.identity,
            accelerator: self.accelerator,
            spec: self.shared.lock().spec.clone(),
            held: self.held.clone(),
        };
        if self.saved.as_ref() == Some(&record) {
            return;
        }
        match self.kept.save(&record) {
            Ok(()) => self.saved = Some(record),
            Err(err) => tracing::error!(err = &err as &dyn std::error::Error, "VM record"),
        }
    }

    pub(crate) fn publish(&mut self) {
        self.forget_process();
        self.save();
        let state = state_name(&self.lifecycle);
        let is_news = self.last_state != Some(state);
        if is_news {
            self.since = unix_now();
            self.last_state = Some(state);
        }
        let mut inbox = self.shared.lock();
        let is_news = is_news || inbox.held != self.held;
        inbox.held = self.held.clone();
        inbox.is_settled = true;
        let held = self.held.iter().flat_map(|held| &held.nics);
        let has = |port: PortId| ports(held.clone()).any(|other| other == port);
        let due = ports(inbox.spec.nics.iter()).filter(|port| !has(*port)).collect();
        inbox.status = VmStatus {
            id: inbox.spec.id,
            state,
            process: self.process.as_ref().map(|process| process.identity().process),
            since: self.since,
            reason: self.reason(),
            restarts: self.lifecycle.restarts(),
            start_number: self.lifecycle.start_number(),
            nics: ports(held).collect(),
            nics_due: due,
            accelerator: self.accelerator.map_or_else(String::new, |a| a.to_string()),
        };
        drop(inbox);
        if is_news {
            self.shared.notice.ring();
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn plain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Whether the guest's memory fits into the free 2 MiB pages.
fn has_hugepages(root: &std::path::Path, memory: u64) -> bool {
    let folder = root.join("sys/kernel/mm/hugepages/hugepages-2048kB");
    let number = |name: &str| -> u64 {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let free = number("free_hugepages").saturating_sub(number("resv_hugepages"));
    free >= memory.div_ceil(2 << 20) && memory > 0
}
