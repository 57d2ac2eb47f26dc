// SPDX-License-Identifier: Apache-2.0
//! Carries a configuration out: sockets, the uplink's device, the worker's tables.
//!
//! A configuration that is pushed is carried out whole or refused whole: what it needs is opened
//! first, then it is kept on disk, then the worker is switched over between two bursts, and only
//! then is what it no longer needs closed. The one that was kept is carried out as far as the
//! machine allows, and the rest is tried again: a guest must not be without its neighbors
//! because a NIC comes late.

use crate::answerer::Answerer;
use crate::nic::{Nic, NicError, NicSpec, Nics};
use crate::uplink::{Opener, Uplink, UplinkError, UplinkSpec};
use crate::worker::{WorkerPort, WorkerSilent};
use plinth_answers::Checked;
use plinth_backends::{DeviceToken, HandedDevice};
use plinth_dpdk::{DeviceName, EthStats};
use plinth_ids::{Epoch, PortId};
use plinth_manage::{KeepError, Kept};
use plinth_obs::Chain;
use plinth_ports::{Answer, GuestPort, Message, Port, PortSet, Question, UplinkChange};
use plinth_switch_api::{Backend, Balancer, Change, Fitness, Listener, SwitchConfig};
use plinth_vswitch::{ChangeError, ConfigError, HandedSeat, Limits, Snapshot};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::field::display;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("the configuration is refused")]
    Config { source: ConfigError },
    #[error("the change is refused")]
    Change { source: ChangeError },
    #[error("a port of the configuration cannot be served")]
    Nic { source: NicError },
    #[error("the underlay of the configuration cannot be reached")]
    Uplink { source: UplinkError },
    #[error("the configuration cannot be kept; it would be forgotten at the next start")]
    Keep { source: KeepError },
    #[error("the configuration cannot be put into force")]
    Worker { source: WorkerSilent },
    #[error("plinth-switchd is stopping")]
    Stopping,
}

/// What is open, and by which configuration.
#[derive(Debug, Default)]
struct Scene {
    snapshot: Arc<Snapshot>,
    nics: BTreeMap<PortId, Nic>,
    uplink: Option<Uplink>,
    /// A kept configuration that is not wholly carried out.
    unfinished: Option<SwitchConfig>,
    is_stopping: bool,
    /// Of the process before this one, for the ports that are opened next.
    handed: BTreeMap<PortId, HandedDevice>,
    /// Another process is about to serve instead of this one: nothing may change.
    is_frozen: bool,
}

#[derive(Debug)]
pub(crate) struct Control {
    port: WorkerPort,
    nics: Nics,
    opener: Opener,
    kept: Kept<SwitchConfig>,
    limits: Limits,
    answerer: Arc<Answerer>,
    scene: Mutex<Scene>,
}

/// What is to be done when the uplink's device cannot be opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum WithoutUplink {
    Refuse,
    Serve,
}

/// How long a handed ring may take to be the worker's: it is one message away.
const COME_UP: Duration = Duration::from_millis(100);

impl Control {
    pub(crate) fn new(
        port: WorkerPort,
        nics: Nics,
        opener: Opener,
        kept: Kept<SwitchConfig>,
        limits: Limits,
        answerer: Arc<Answerer>,
    ) -> Self {
        Self { port, nics, opener, kept, limits, answerer, scene: Mutex::default() }
    }

    /// A panic ends the process, so a lock is never found poisoned by a live one.
    fn scene(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the configuration in force.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.scene().snapshot.epoch()
    }

    /// The configuration in force, compiled.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.scene().snapshot)
    }

    pub(crate) fn uplink_stats(&self) -> Option<EthStats> {
        self.scene().uplink.as_ref().map(|uplink| uplink.device.stats())
    }

    pub(crate) fn uplink_is_up(&self) -> bool {
        self.scene().uplink.as_ref().is_some_and(|uplink| uplink.device.link().is_up)
    }

    /// Carries a configuration out whole, or leaves the one before in force.
    pub(crate) fn apply(&self, config: SwitchConfig) -> Result<(), ApplyError> {
        let mut scene = self.scene();
        if scene.is_stopping || scene.is_frozen {
            return Err(ApplyError::Stopping);
        }
        let epoch = config.epoch;
        self.carry_out(&mut scene, &config, WithoutUplink::Refuse)?;
        scene.unfinished = None;
        tracing::info!(epoch = epoch.0, ports = scene.nics.len(), "configuration in force");
        Ok(())
    }

    /// Makes a change to the configuration in force, with all its edits or none.
    pub(crate) fn change(&self, change: &Change) -> Result<(), ApplyError> {
        let mut scene = self.scene();
        if scene.is_stopping || scene.is_frozen {
            return Err(ApplyError::Stopping);
        }
        // What is not wholly carried out is tried again, and would undo the change.
        let base = scene.unfinished.as_ref().map_or(scene.snapshot.epoch(), |_| None);
        if base.is_none() {
            let source = ChangeError::Base { from: change.from, in_force: base };
            return Err(ApplyError::Change { source });
        }
        let snapshot = scene
            .snapshot
            .change(change, &self.limits, self.is_unfit())
            .map_err(|source| ApplyError::Change { source })?;
        let config = snapshot.config().expect("its base was a configuration");
        self.carry_out_as(&mut scene, &config, Arc::new(snapshot), WithoutUplink::Refuse)?;
        let edits = change.edits.len();
        tracing::debug!(epoch = change.to.0, edits, "configuration changed");
        Ok(())
    }

    /// Carries the kept configuration out as far as possible, and remembers what is left.
    pub(crate) fn resume(&self, config: SwitchConfig) {
        let mut scene = self.scene();
        scene.unfinished = Some(config);
        self.continue_with(&mut scene, true);
    }

    /// Tries what is left of the kept configuration again.
    pub(crate) fn mend(&self) {
        let mut scene = self.scene();
        if scene.unfinished.is_some() && !scene.is_stopping && !scene.is_frozen {
            self.continue_with(&mut scene, false);
        }
    }

    /// Takes over what is thought of backends, where that has changed.
    pub(crate) fn heed_checks(&self) {
        if !self.answerer.take_news() {
            return;
        }
        let mut scene = self.scene();
        let Some(config) = scene.snapshot.config() else { return };
        if scene.is_stopping || scene.is_frozen || config.balancers.is_empty() {
            return;
        }
        let wanted = scene.nics.iter().map(|(id, nic)| (*id, nic.spec.clone())).collect();
        let compiled =
            Snapshot::compile_with(&config, &self.limits, &scene.snapshot, self.is_unfit());
        let done = compiled.map_err(|source| ApplyError::Config { source }).and_then(|snapshot| {
            self.switch_over(&mut scene, Arc::new(snapshot), &wanted, Opening::default())
        });
        if let Err(error) = done {
            tracing::error!(err = display(Chain(&error)), "checks of backends have no effect");
        }
    }

    /// Says of a backend whether its checks have failed.
    fn is_unfit(&self) -> impl Fn(&Balancer, &Listener, &Backend) -> bool {
        let opinions = self.answerer.opinions();
        move |balancer, listener, backend| {
            let checked = Checked::of(balancer.vni, listener, backend);
            checked.and_then(|checked| opinions.get(&checked).copied()) == Some(Fitness::Unfit)
        }
    }

    fn continue_with(&self, scene: &mut Scene, is_first: bool) {
        let Some(config) = scene.unfinished.clone() else { return };
        let result = self.carry_out(scene, &config, WithoutUplink::Serve);
        let is_whole = config.underlay.is_none() || scene.uplink.is_some();
        match result {
            Ok(()) if is_whole => {
                scene.unfinished = None;
                tracing::info!(epoch = config.epoch.0, "kept configuration in force");
            }
            Ok(()) => {
                if is_first {
                    tracing::warn!(epoch = config.epoch.0, "in force without the underlay");
                }
            }
            Err(error) => {
                // Once, and not every two seconds.
                if is_first {
                    let err = display(Chain(&error));
                    tracing::error!(epoch = config.epoch.0, err, "kept configuration waits");
                }
            }
        }
    }

    fn carry_out(
        &self,
        scene: &mut Scene,
        config: &SwitchConfig,
        without_uplink: WithoutUplink,
    ) -> Result<(), ApplyError> {
        let snapshot = self.compile(scene, config)?;
        self.carry_out_as(scene, config, snapshot, without_uplink)
    }

    /// `snapshot` is `config`, compiled.
    fn carry_out_as(
        &self,
        scene: &mut Scene,
        config: &SwitchConfig,
        snapshot: Arc<Snapshot>,
        without_uplink: WithoutUplink,
    ) -> Result<(), ApplyError> {
        let wanted: BTreeMap<PortId, NicSpec> =
            config.ports.iter().map(|port| (port.id, NicSpec::from(port))).collect();
        let mut opening = Opening::default();
        let opened = self
            .open_nics(scene, &wanted, &mut opening)
            .and_then(|()| self.open_uplink(scene, config, without_uplink, &mut opening));
        // The same again, which is what an agent sends after its own restart: flows stay as
        // they are.
        if opened.is_ok() && opening.is_nothing() && scene.snapshot.is_of(config) {
            return Ok(());
        }
        let is_kept = scene.unfinished.as_ref() == Some(config);
        let kept = opened.and_then(|()| {
            if is_kept {
                return Ok(());
            }
            self.kept.save(config).map_err(|source| ApplyError::Keep { source })
        });
        if let Err(error) = kept {
            self.roll_back(scene, opening);
            return Err(error);
        }
        self.switch_over(scene, snapshot, &wanted, opening)
    }

    /// Compiles a configuration; the one in force is there already.
    fn compile(&self, scene: &Scene, config: &SwitchConfig) -> Result<Arc<Snapshot>, ApplyError> {
        if scene.snapshot.is_of(config) {
            return Ok(Arc::clone(&scene.snapshot));
        }
        Snapshot::compile_with(config, &self.limits, &scene.snapshot, self.is_unfit())
            .map(Arc::new)
            .map_err(|source| ApplyError::Config { source })
    }

    /// Serves the sockets that are not served yet. A socket that changes hands is let go first.
    fn open_nics(
        &self,
        scene: &mut Scene,
        wanted: &BTreeMap<PortId, NicSpec>,
        opening: &mut Opening,
    ) -> Result<(), ApplyError> {
        let is_kept = |id: &PortId, nic: &Nic| wanted.get(id) == Some(&nic.spec);
        let coming: Vec<(PortId, &NicSpec)> = wanted
            .iter()
            .filter(|(id, _)| !scene.nics.get(id).is_some_and(|nic| is_kept(id, nic)))
            .map(|(id, spec)| (*id, spec))
            .collect();
        for (id, nic) in &mut scene.nics {
            let is_taken = coming.iter().any(|(_, spec)| spec.socket == nic.spec.socket);
            if is_taken && !is_kept(id, nic) {
                nic.device = None;
                opening.interrupted.push(*id);
            }
        }
        for (id, spec) in coming {
            let token = self.nics.token();
            let guest = Box::new(GuestPort::new(token, spec.queue_pairs));
            self.port
                .tell(Message::Adopt(guest))
                .map_err(|source| ApplyError::Worker { source })?;
            opening.adopted.push(token);
            let device = self
                .nics
                .serve(id, spec, token, scene.handed.remove(&id))
                .map_err(|source| ApplyError::Nic { source })?;
            opening.nics.insert(id, Nic { spec: spec.clone(), token, device: Some(device) });
        }
        Ok(())
    }

    fn open_uplink(
        &self,
        scene: &mut Scene,
        config: &SwitchConfig,
        without_uplink: WithoutUplink,
        opening: &mut Opening,
    ) -> Result<(), ApplyError> {
        let wanted = config.underlay.as_ref().map(UplinkSpec::from);
        if wanted == scene.uplink.as_ref().map(|uplink| uplink.spec.clone()) {
            return Ok(());
        }
        let Some(wanted) = wanted else {
            opening.uplink = UplinkStep::Close;
            return Ok(());
        };
        // DPDK has one device of a name, and two sockets on one interface would both receive.
        if let Some(before) = scene.uplink.take_if(|before| is_same_device(&before.spec, &wanted)) {
            opening.closed = Some(before.spec.clone());
            let discarded = self
                .port
                .change(|answer| Message::TakeUplink { answer })
                .map_err(|source| ApplyError::Worker { source })?;
            drop((before, discarded));
        }
        match self.opener.open(&wanted) {
            Ok((uplink, port)) => opening.uplink = UplinkStep::Open(uplink, Box::new(port)),
            Err(source) if without_uplink == WithoutUplink::Refuse => {
                return Err(ApplyError::Uplink { source });
            }
            Err(source) => {
                tracing::debug!(err = display(Chain(&source)), "the uplink is tried again");
                if scene.uplink.is_some() {
                    opening.uplink = UplinkStep::Close;
                }
            }
        }
        Ok(())
    }

    /// Puts everything back as it was before the configuration that is refused.
    fn roll_back(&self, scene: &mut Scene, opening: Opening) {
        // The new devices first: they may sit on the sockets of the old ones.
        drop(opening.nics);
        self.release(opening.adopted);
        for id in opening.interrupted {
            let Some(nic) = scene.nics.get_mut(&id) else { continue };
            match self.nics.serve(id, &nic.spec, nic.token, None) {
                Ok(device) => nic.device = Some(device),
                Err(error) => {
                    let err = display(Chain(&error));
                    tracing::error!(port = %id, err, "a port is out of service");
                }
            }
        }
        drop(opening.uplink);
        let Some(spec) = opening.closed else { return };
        match self.opener.open(&spec) {
            Ok((uplink, port)) => {
                scene.uplink = Some(uplink);
                let snapshot = Arc::clone(&scene.snapshot);
                let set = port_set(scene, UplinkChange::Replace(Some(Box::new(port))));
                if let Err(error) = self.install(snapshot, set) {
                    tracing::error!(err = display(Chain(&error)), "the underlay is out of service");
                }
            }
            Err(error) => {
                tracing::error!(err = display(Chain(&error)), "the underlay is out of service");
            }
        }
    }

    /// The worker forwards by the new configuration from here on, and what is old is closed.
    fn switch_over(
        &self,
        scene: &mut Scene,
        snapshot: Arc<Snapshot>,
        wanted: &BTreeMap<PortId, NicSpec>,
        opening: Opening,
    ) -> Result<(), ApplyError> {
        let mut leaving: Vec<Nic> = Vec::new();
        let (staying, going) = std::mem::take(&mut scene.nics)
            .into_iter()
            .partition(|(id, nic)| wanted.get(id) == Some(&nic.spec));
        scene.nics = staying;
        leaving.extend(BTreeMap::into_values(going));
        scene.nics.extend(opening.nics);
        let (uplink, change) = match opening.uplink {
            UplinkStep::Keep => (scene.uplink.take(), UplinkChange::Keep),
            UplinkStep::Close => (None, UplinkChange::Replace(None)),
            UplinkStep::Open(uplink, port) => (Some(uplink), UplinkChange::Replace(Some(port))),
        };
        let before = std::mem::replace(&mut scene.uplink, uplink);
        let set = port_set(scene, change);
        self.install(Arc::clone(&snapshot), set).map_err(|source| ApplyError::Worker { source })?;
        if let Some(config) = snapshot.config() {
            self.answerer.publish(&config);
        }
        scene.snapshot = snapshot;
        drop(before);
        let tokens = leaving.iter().map(|nic| nic.token).collect();
        // Each device takes its queues back from the worker, which still has its NIC.
        drop(leaving);
        self.release(tokens);
        Ok(())
    }

    fn install(&self, snapshot: Arc<Snapshot>, ports: PortSet) -> Result<(), WorkerSilent> {
        self.port.change(|answer| Message::Install { snapshot, ports, answer }).map(drop)
    }

    fn release(&self, tokens: Vec<DeviceToken>) {
        if tokens.is_empty() {
            return;
        }
        if let Err(error) = self.port.change(|answer| Message::Release { tokens, answer }) {
            tracing::error!(err = display(Chain(&error)), "NICs were not released");
        }
    }

    /// Puts the kept configuration into force without its guests, who are another process's yet:
    /// their connections can be taken over, and next hops be asked for.
    ///
    /// # Errors
    /// Also when the device to the underlay cannot be opened and the other process has it.
    pub(crate) fn prepare(
        &self,
        config: SwitchConfig,
        seats: &[HandedSeat],
        other_has_uplink: bool,
    ) -> Result<(), ApplyError> {
        let mut scene = self.scene();
        // NICs keep the ports that they have at gateways: connections with them are to come.
        scene.snapshot = Arc::new(Snapshot::seated(seats));
        let without = if other_has_uplink { WithoutUplink::Refuse } else { WithoutUplink::Serve };
        let snapshot = self.compile(&scene, &config)?;
        let mut opening = Opening::default();
        self.open_uplink(&mut scene, &config, without, &mut opening)?;
        self.switch_over(&mut scene, snapshot, &BTreeMap::new(), opening)?;
        scene.unfinished = Some(config);
        Ok(())
    }

    /// Goes on with the guests of the process before this one.
    ///
    /// # Errors
    /// Names a port that is not served.
    pub(crate) fn adopt(&self, devices: Vec<(PortId, HandedDevice)>) -> Result<(), PortId> {
        let mut scene = self.scene();
        let adopted: Vec<PortId> = devices.iter().map(|(id, _)| *id).collect();
        let held = self.hold(&devices);
        scene.handed.extend(devices);
        self.continue_with(&mut scene, true);
        self.let_go(&held);
        let is_served = |id: &PortId| scene.nics.get(id).is_some_and(|nic| nic.device.is_some());
        adopted.into_iter().find(|id| !is_served(id)).map_or(Ok(()), Err)
    }

    /// From here on until [`Self::go_on`] no configuration is put into force. Says whether the
    /// device to the underlay is open.
    pub(crate) fn freeze(&self) -> bool {
        let mut scene = self.scene();
        scene.is_frozen = true;
        scene.uplink.is_some()
    }

    /// Takes every guest's rings back from the worker, with whatever belongs to them.
    ///
    /// # Errors
    /// Names a port whose device did not let go within `patience`. All are served as before then.
    pub(crate) fn hand_over(
        &self,
        patience: Duration,
    ) -> Result<Vec<(PortId, HandedDevice)>, PortId> {
        let mut scene = self.scene();
        let deadline = Instant::now() + patience;
        // Nothing is sent to a guest whose rings have gone already. The question is answered after
        // the word before it.
        let _ = self.port.tell(Message::Hold(true));
        let _ = self.port.ask(Question::Ports);
        for device in scene.nics.values().filter_map(|nic| nic.device.as_ref()) {
            device.begin_hand_over();
        }
        let (mut given, mut stuck) = (Vec::new(), None);
        for (&id, nic) in &mut scene.nics {
            let Some(device) = nic.device.take() else { continue };
            match device.finish_hand_over(deadline.saturating_duration_since(Instant::now())) {
                Ok(handed) => given.push((id, handed)),
                Err(device) => {
                    nic.device = Some(device);
                    stuck = Some(id);
                }
            }
        }
        drop(scene);
        let Some(id) = stuck else { return Ok(given) };
        self.go_on(given);
        Err(id)
    }

    /// Serves again what was given up, after a hand-over that came to nothing.
    pub(crate) fn go_on(&self, devices: Vec<(PortId, HandedDevice)>) {
        let mut scene = self.scene();
        scene.is_frozen = false;
        let held = self.hold(&devices);
        for (id, handed) in devices {
            let Some(nic) = scene.nics.get_mut(&id) else { continue };
            match self.nics.serve(id, &nic.spec, nic.token, Some(handed)) {
                Ok(device) => nic.device = Some(device),
                Err(error) => {
                    let err = display(Chain(&error));
                    tracing::error!(port = %id, err, "a port is out of service");
                }
            }
        }
        self.let_go(&held);
    }

    /// Has the worker leave packets where they are while these come into service, so that none is
    /// sent to a guest whose rings have not come yet. Gives those that have a frontend.
    fn hold(&self, devices: &[(PortId, HandedDevice)]) -> Vec<PortId> {
        let connected = devices.iter().filter(|(_, device)| device.is_connected());
        // A worker that is silent moves no packets either.
        let _ = self.port.tell(Message::Hold(true));
        connected.map(|(id, _)| *id).collect()
    }

    /// Waits until the held ports are up, but not for long: a frontend may be connected without
    /// having started its rings. Then packets move again.
    fn let_go(&self, held: &[PortId]) {
        let end = Instant::now() + COME_UP;
        while let Ok(Answer::Ports(ports)) = self.port.ask(Question::Ports) {
            let is_up = |id: &PortId| ports.iter().any(|port| port.id == *id && port.is_up);
            if held.iter().all(is_up) || Instant::now() >= end {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let _ = self.port.tell(Message::Hold(false));
    }

    /// Lets guests go and removes their sockets. The kept configuration stays for the next start.
    pub(crate) fn stop(&self) {
        let mut scene = self.scene();
        scene.is_stopping = true;
        let nics = std::mem::take(&mut scene.nics);
        drop(nics);
        drop(scene.uplink.take());
    }
}

/// What a configuration opened before it is in force.
#[derive(Debug, Default)]
struct Opening {
    nics: BTreeMap<PortId, Nic>,
    /// NICs that the worker was told of.
    adopted: Vec<DeviceToken>,
    /// Ports whose socket was let go for another one.
    interrupted: Vec<PortId>,
    /// The device that was closed so that it could be opened again.
    closed: Option<UplinkSpec>,
    uplink: UplinkStep,
}

impl Opening {
    fn is_nothing(&self) -> bool {
        self.nics.is_empty() && self.closed.is_none() && matches!(self.uplink, UplinkStep::Keep)
    }
}

#[derive(Debug, Default)]
enum UplinkStep {
    #[default]
    Keep,
    Close,
    Open(Uplink, Box<Port>),
}

fn port_set(scene: &Scene, uplink: UplinkChange) -> PortSet {
    let guests = scene.nics.iter().map(|(id, nic)| (*id, nic.token)).collect();
    PortSet { guests, others: Vec::new(), uplink }
}

/// Whether two specifications cannot be open side by side.
fn is_same_device(before: &UplinkSpec, wanted: &UplinkSpec) -> bool {
    let names = (before.device.parse::<DeviceName>(), wanted.device.parse::<DeviceName>());
    let (Ok(before), Ok(wanted)) = names else { return false };
    let interface = |name: &DeviceName| name.argument("iface").map(str::to_owned);
    before.is_same_device(&wanted)
        || interface(&before).is_some() && interface(&before) == interface(&wanted)
}
