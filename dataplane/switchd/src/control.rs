// SPDX-License-Identifier: Apache-2.0
//! Carries a configuration out: sockets, the uplink's device, the worker's tables.
//!
//! A configuration that is pushed is carried out whole or refused whole: what it needs is opened
//! first, then it is kept on disk, then the worker is switched over between two bursts, and only
//! then is what it no longer needs closed. The one that was kept is carried out as far as the
//! machine allows, and the rest is tried again: a guest must not be without its neighbors
//! because a NIC comes late.

mod handing;
mod opening;

use crate::answerer::Answerer;
use crate::keeping::Keeping;
use crate::nic::{Nic, NicError, NicSpec, Nics};
use crate::uplink::{Opener, Uplink, UplinkError};
use crate::worker::{WorkerPort, WorkerSilent};
use opening::{Opening, UplinkStep};
use plinth_answers::Checked;
use plinth_backends::{DeviceToken, HandedDevice};
use plinth_dpdk::EthStats;
use plinth_ids::{Epoch, PortId};
use plinth_manage::KeepError;
use plinth_obs::Chain;
use plinth_ports::{Message, PortSet, UplinkChange};
use plinth_switch_api::{
    Backend, Balancer, Change, Fitness, Listener, SwitchConfig, UNFIT_LISTED_MAX, UnfitBackend,
};
use plinth_vswitch::{ChangeError, ConfigError, Limits, Snapshot};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    keeping: Keeping,
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

/// What is to be carried out, as it is kept.
#[derive(Clone, Copy, Debug)]
enum Wish<'a> {
    Whole(&'a SwitchConfig),
    Change(&'a Change),
}

impl Control {
    pub(crate) fn new(
        port: WorkerPort,
        nics: Nics,
        opener: Opener,
        keeping: Keeping,
        limits: Limits,
        answerer: Arc<Answerer>,
    ) -> Self {
        Self { port, nics, opener, keeping, limits, answerer, scene: Mutex::default() }
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
        let snapshot = Arc::new(snapshot);
        let wish = Wish::Change(change);
        self.carry_out_as(&mut scene, wish, snapshot, WithoutUplink::Refuse)?;
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

    /// The backends on this node that have failed their checks, of the configuration in force.
    pub(crate) fn unfit(&self) -> Vec<UnfitBackend> {
        let snapshot = self.snapshot();
        let Some(config) = snapshot.settings() else { return Vec::new() };
        unfit_of(config, self.is_unfit())
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
        self.carry_out_as(scene, Wish::Whole(config), snapshot, without_uplink)
    }

    /// `snapshot` is what is wished for, compiled.
    fn carry_out_as(
        &self,
        scene: &mut Scene,
        wish: Wish<'_>,
        snapshot: Arc<Snapshot>,
        without_uplink: WithoutUplink,
    ) -> Result<(), ApplyError> {
        let settings = snapshot.settings().expect("it was made of a configuration");
        let wanted: BTreeMap<PortId, NicSpec> =
            settings.ports.iter().map(|port| (port.id, NicSpec::from(port))).collect();
        let mut opening = Opening::default();
        let opened = self
            .open_nics(scene, &wanted, &mut opening)
            .and_then(|()| self.open_uplink(scene, settings, without_uplink, &mut opening));
        // The same again, which is what an agent sends after its own restart: flows stay as
        // they are.
        if opened.is_ok() && opening.is_nothing() && Arc::ptr_eq(&scene.snapshot, &snapshot) {
            return Ok(());
        }
        let kept = opened.and_then(|()| {
            let kept = match wish {
                Wish::Whole(config) if scene.unfinished.as_ref() == Some(config) => Ok(()),
                Wish::Whole(config) => self.keeping.save(config),
                Wish::Change(change) => {
                    let config = || snapshot.config().expect("it was made of a configuration");
                    self.keeping.change(change, config)
                }
            };
            kept.map_err(|source| ApplyError::Keep { source })
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
        if !snapshot.tells_as_before()
            && let Some(config) = snapshot.config()
        {
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

    /// Lets guests go and removes their sockets. The kept configuration stays for the next start.
    pub(crate) fn stop(&self) {
        let mut scene = self.scene();
        scene.is_stopping = true;
        let nics = std::mem::take(&mut scene.nics);
        drop(nics);
        drop(scene.uplink.take());
    }
}

fn port_set(scene: &Scene, uplink: UplinkChange) -> PortSet {
    let guests = scene.nics.iter().map(|(id, nic)| (*id, nic.token)).collect();
    PortSet { guests, others: Vec::new(), uplink }
}

/// Those of the backends of checked listeners that `is_unfit` says are.
fn unfit_of(
    config: &SwitchConfig,
    is_unfit: impl Fn(&Balancer, &Listener, &Backend) -> bool,
) -> Vec<UnfitBackend> {
    let mut unfit = Vec::new();
    for balancer in &config.balancers {
        for listener in balancer.listeners.iter().filter(|listener| listener.check.is_some()) {
            let failed = listener.backends.iter().filter(|one| is_unfit(balancer, listener, one));
            unfit.extend(failed.map(|backend| UnfitBackend {
                balancer: balancer.name.clone(),
                protocol: listener.protocol,
                port: listener.ports.0,
                backend: backend.address,
                backend_port: backend.port,
            }));
        }
    }
    unfit.truncate(UNFIT_LISTED_MAX);
    unfit
}
