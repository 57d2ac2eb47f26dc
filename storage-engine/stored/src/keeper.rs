// SPDX-License-Identifier: Apache-2.0
//! Carries the configuration out, and again, until the world is as it says.
//!
//! Level-triggered: [`Keeper::carry_out`] compares what is wanted with what is there and mends
//! the difference. It runs after every change and from time to time, so that a pool whose device
//! comes late, or an attachment whose volume is made later, comes into service by itself. A fault
//! stays with the pool or attachment that has it.

use crate::disks::stays;
use crate::format::{self, Means, Mounted, Purpose};
use crate::message::{AttachSpec, Attached, EngineRefusal, Message};
use crate::worker::WorkerPort;
use plinth_backends::blk::BlkClass;
use plinth_backends::{Device, DeviceOptions, DeviceToken, HandedDevice, Shrinkable};
use plinth_ids::{DiskId, PoolId, VolumeId};
use plinth_metrics::Metrics;
use plinth_obs::Chain;
use plinth_store::Rest;
use plinth_store_api::{Attachment, Pool, StoreConfig};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::field::display;

/// What serves an attachment.
#[derive(Debug)]
struct Served {
    spec: Attachment,
    device: Device,
    token: DeviceToken,
    class: Arc<BlkClass>,
}

/// What there is, and what is wrong.
#[derive(Debug, Default)]
struct Scene {
    wanted: Option<StoreConfig>,
    pools: BTreeMap<PoolId, Pool>,
    served: BTreeMap<VolumeKey, Served>,
    pool_faults: BTreeMap<PoolId, String>,
    /// Disks of pools in service that are not part of them.
    disk_faults: BTreeMap<(PoolId, DiskId), String>,
    attachment_faults: BTreeMap<VolumeKey, String>,
    /// Devices that another process has handed over and that are not served yet.
    handed: BTreeMap<VolumeKey, HandedDevice>,
    adopted: Vec<VolumeKey>,
    /// How the process that handed them over left its disks.
    rests: Vec<Rest>,
    /// What was wanted before it was handed over.
    given_up: Option<StoreConfig>,
}

/// What is left here of a device that was given away.
type Parts = (Attachment, DeviceToken, Arc<BlkClass>);

/// What one process hands to the next.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    pub(crate) devices: Vec<(VolumeKey, HandedDevice)>,
    pub(crate) rests: Vec<Rest>,
}

/// A volume's number is its pool's own.
pub(crate) type VolumeKey = (PoolId, VolumeId);

#[derive(Debug)]
pub(crate) struct Keeper {
    port: WorkerPort,
    purpose: Purpose,
    metrics: Arc<Metrics>,
    scene: Mutex<Scene>,
    /// Held while differences are mended, so that two threads do not mend the same one. Whoever
    /// only looks takes `scene` alone and never waits for a slow disk.
    mending: Mutex<()>,
}

impl Keeper {
    pub(crate) fn new(port: WorkerPort, purpose: Purpose, metrics: Arc<Metrics>) -> Self {
        Self { port, purpose, metrics, scene: Mutex::default(), mending: Mutex::default() }
    }

    /// A panic ends the process, so a lock is never found poisoned by a live one.
    fn scene(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wanted(&self) -> Option<StoreConfig> {
        self.scene().wanted.clone()
    }

    /// Replaces what is wanted. [`Keeper::carry_out`] brings it about.
    pub(crate) fn want(&self, config: StoreConfig) {
        self.scene().wanted = Some(config);
    }

    pub(crate) fn pool_fault(&self, pool: PoolId) -> Option<String> {
        self.scene().pool_faults.get(&pool).cloned()
    }

    pub(crate) fn attachment_fault(&self, key: VolumeKey) -> Option<String> {
        self.scene().attachment_faults.get(&key).cloned()
    }

    pub(crate) fn disk_fault(&self, pool: PoolId, disk: DiskId) -> Option<String> {
        self.scene().disk_faults.get(&(pool, disk)).cloned()
    }

    pub(crate) fn note_disk(&self, pool: PoolId, disk: DiskId, fault: Option<String>) {
        let faults = &mut self.scene().disk_faults;
        match fault {
            Some(fault) => drop(faults.insert((pool, disk), fault)),
            None => drop(faults.remove(&(pool, disk))),
        }
    }

    /// What is served of a pool.
    pub(crate) fn pool_in_service(&self, pool: PoolId) -> Option<Pool> {
        self.scene().pools.get(&pool).cloned()
    }

    /// The disks of a pool in service are those that are wanted, and those that still have data.
    pub(crate) fn keep_disks(&self, wanted: &Pool) {
        if let Some(known) = self.scene().pools.get_mut(&wanted.id) {
            known.disks.retain(|disk| !wanted.disks.iter().any(|wanted| wanted.id == disk.id));
            known.disks.extend(wanted.disks.iter().cloned());
        }
    }

    pub(crate) fn rests(&self) -> Vec<Rest> {
        self.scene().rests.clone()
    }

    pub(crate) fn means<'a>(&'a self, rests: &'a [Rest]) -> Means<'a> {
        Means { purpose: self.purpose, metrics: &self.metrics, rests, port: &self.port }
    }

    pub(crate) const fn port(&self) -> &WorkerPort {
        &self.port
    }

    /// A disk has left its pool for good.
    pub(crate) fn forget_disk(&self, pool: PoolId, disk: DiskId) {
        let mut scene = self.scene();
        if let Some(known) = scene.pools.get_mut(&pool) {
            known.disks.retain(|known| known.id != disk);
        }
        let left = "the disk left the pool: take it out of the configuration".to_owned();
        scene.disk_faults.insert((pool, disk), left);
    }

    /// The socket of a volume that is served.
    pub(crate) fn socket_of(&self, key: VolumeKey) -> Option<PathBuf> {
        self.scene().served.get(&key).map(|served| served.spec.socket.clone())
    }

    /// Tells a served volume's guest of its new size.
    pub(crate) fn grown(&self, key: VolumeKey, size: u64) {
        if let Some(served) = self.scene().served.get(&key) {
            served.class.grow(size / plinth_backends::blk::SECTOR_SIZE);
            served.device.announce_config_change();
        }
    }

    /// Mends what differs: first what must go, then what must come.
    pub(crate) fn carry_out(&self) {
        let _mending = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        self.metrics.measure_rate();
        let Some(wanted) = self.wanted() else { return };
        let wanted = wanted.placed();
        if let Err(err) = self.port.arrange(&wanted.workers) {
            // Who is without a worker says so; the others are served.
            tracing::error!(err, "the workers are not as they should be");
        }
        self.detach_unwanted(&wanted.attachments, &wanted.pools);
        let _ = self.close_unwanted(&wanted.pools);
        for pool in &wanted.pools {
            if self.scene().pools.contains_key(&pool.id) {
                self.mend_disks(pool);
            } else {
                self.open(pool);
            }
        }
        for attachment in &wanted.attachments {
            let key = (attachment.pool, attachment.volume);
            if !self.scene().served.contains_key(&key) {
                self.attach(attachment);
            }
        }
        self.limit(&wanted.attachments);
        self.scrub_by_schedule(&wanted.pools);
        let mut scene = self.scene();
        scene.pool_faults.retain(|&id, _| wanted.pools.iter().any(|pool| pool.id == id));
        let is_wanted = |&key: &VolumeKey| {
            wanted.attachments.iter().any(|wanted| (wanted.pool, wanted.volume) == key)
        };
        scene.attachment_faults.retain(|key, _| is_wanted(key));
    }

    /// Devices of the process before this one, to be taken over instead of served anew.
    pub(crate) fn adopt(&self, handed: Handed) {
        let Handed { devices, rests } = handed;
        let mut scene = self.scene();
        scene.rests = rests;
        scene.adopted = devices.iter().map(|(key, _)| *key).collect();
        scene.handed.extend(devices);
    }

    /// A device that was adopted and is not in service, and why.
    pub(crate) fn unserved(&self) -> Option<(VolumeKey, String)> {
        let scene = self.scene();
        let key = *scene.adopted.iter().find(|key| !scene.served.contains_key(key))?;
        let fault = scene.attachment_faults.get(&key).or(scene.pool_faults.get(&key.0));
        Some((key, fault.map_or_else(|| "the configuration lacks it".to_owned(), String::clone)))
    }

    /// Gives every device away and closes every pool. Until [`Keeper::go_on`] nothing is wanted.
    ///
    /// # Errors
    /// Says why nothing was given away; then everything is served as before.
    pub(crate) fn hand_over(&self, patience: Duration) -> Result<Handed, String> {
        let _mending = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        let served = {
            let mut scene = self.scene();
            if let Some(pool) = scene.pools.values().find(|pool| format::is_volatile(pool)) {
                return Err(format!("{} is in this process's memory and would be lost", pool.id));
            }
            scene.given_up = scene.wanted.take();
            std::mem::take(&mut scene.served)
        };
        let deadline = Instant::now() + patience;
        for served in served.values() {
            served.device.begin_hand_over();
        }
        let (mut given, mut kept) = (Vec::new(), Vec::new());
        for (key, Served { spec, device, token, class }) in served {
            let left = deadline.saturating_duration_since(Instant::now());
            match device.finish_hand_over(left) {
                Ok(handed) => given.push((key, handed, (spec, token, class))),
                Err(device) => kept.push((key, Served { spec, device, token, class })),
            }
        }
        if let Some((key, _)) = kept.first() {
            let (pool, volume) = *key;
            let text = format!("requests of {pool} {volume} did not end within {patience:?}");
            self.take_back(given, kept);
            return Err(text);
        }
        for (_, _, (_, token, _)) in &given {
            let token = *token;
            // Only a worker that has ended refuses, and then nothing is attached.
            let _ = self.port.detach(token);
        }
        let rests = self.close_unwanted(&[]);
        let devices = given.into_iter().map(|(key, handed, _)| (key, handed)).collect();
        Ok(Handed { devices, rests })
    }

    /// A hand-over is called off: what was given up goes on where it was.
    fn take_back(
        &self,
        given: Vec<(VolumeKey, HandedDevice, Parts)>,
        kept: Vec<(VolumeKey, Served)>,
    ) {
        let mut scene = self.scene();
        scene.wanted = scene.given_up.take();
        scene.served.extend(kept);
        for (key, handed, (spec, token, class)) in given {
            let shrinkable = Shrinkable::Refuse;
            let options = DeviceOptions { socket: spec.socket.clone(), token, shrinkable };
            let link = self.port.link(token).map_err(|error| Chain(&error).to_string());
            let device = link.and_then(|link| {
                let device = Device::take_over(options, class.clone(), link, handed);
                device.map_err(|error| Chain(&error).to_string())
            });
            match device {
                Ok(device) => {
                    scene.served.insert(key, Served { spec, device, token, class });
                }
                Err(err) => {
                    tracing::error!(
                        ?key,
                        err,
                        "a volume is not served any more; it is tried again"
                    );
                    // Nothing is served, so nothing can be under way: the answer is immediate.
                    let _ = self.port.detach(token);
                }
            }
        }
    }

    /// Serves again what was handed over to a process that did not serve.
    pub(crate) fn go_on(&self, devices: Vec<(VolumeKey, HandedDevice)>) {
        {
            let mut scene = self.scene();
            scene.handed.extend(devices);
            if let Some(wanted) = scene.given_up.take() {
                scene.wanted = Some(wanted);
            }
        }
        self.carry_out();
    }

    /// Ends everything in order: guests first, then pools with their checkpoints.
    pub(crate) fn stop(&self) {
        let _mending = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        self.scene().wanted = None;
        self.detach_unwanted(&[], &[]);
        let _ = self.close_unwanted(&[]);
    }

    fn detach_unwanted(&self, attachments: &[Attachment], pools: &[Pool]) {
        let mut leaving = Vec::new();
        {
            let mut scene = self.scene();
            let goes: Vec<_> = scene
                .served
                .iter()
                .filter(|(key, served)| {
                    let stays = scene.pools.get(&key.0).is_some_and(|pool| stays(pool, pools));
                    let is_same = |wanted: &Attachment| {
                        Attachment { limits: served.spec.limits, ..wanted.clone() } == served.spec
                    };
                    !stays || !attachments.iter().any(is_same)
                })
                .map(|(&key, _)| key)
                .collect();
            for key in goes {
                leaving.extend(scene.served.remove(&key).map(|served| (key, served)));
            }
        }
        for ((pool, volume), served) in leaving {
            // First the device, which gives its queues back; then the volume.
            served.device.stop();
            let token = served.token;
            if let Err(error) = self.port.detach(token) {
                let err = display(Chain(&error));
                tracing::error!(%pool, %volume, err, "a volume was not detached");
            } else {
                tracing::info!(%pool, %volume, "volume detached");
            }
        }
    }

    /// Changes the limits of what is served and stays.
    fn limit(&self, attachments: &[Attachment]) {
        let mut changed = Vec::new();
        {
            let mut scene = self.scene();
            for wanted in attachments {
                let served = scene.served.get_mut(&(wanted.pool, wanted.volume));
                let Some(served) = served.filter(|served| served.spec.limits != wanted.limits)
                else {
                    continue;
                };
                served.spec.limits = wanted.limits;
                changed.push((wanted.pool, wanted.volume, served.token, wanted.limits));
            }
        }
        for (pool, volume, token, limits) in changed {
            match self.port.tell(Message::Limit { token, limits }) {
                Ok(()) => tracing::info!(%pool, %volume, ?limits, "limits changed"),
                Err(error) => {
                    let err = display(Chain(&error));
                    tracing::error!(%pool, %volume, err, "limits not changed");
                }
            }
        }
    }

    fn close_unwanted(&self, pools: &[Pool]) -> Vec<Rest> {
        let mut rests = Vec::new();
        let goes: Vec<_> = {
            let scene = self.scene();
            scene.pools.values().filter(|pool| !stays(pool, pools)).map(|pool| pool.id).collect()
        };
        for pool in goes {
            self.port.close_doors(pool);
            let closed = self.port.ask(|answer| Message::PoolClose { pool, answer });
            self.scene().pools.remove(&pool);
            match closed {
                Ok(volumes) => {
                    rests.extend(format::unmount(*volumes, &self.port));
                    tracing::info!(%pool, "pool closed");
                }
                Err(error) => {
                    let err = display(Chain(&error));
                    tracing::error!(%pool, err, "pool closed with a fault");
                }
            }
        }
        rests
    }

    fn open(&self, pool: &Pool) {
        match self.try_open(pool) {
            Ok(()) => {
                let mut scene = self.scene();
                scene.pools.insert(pool.id, pool.clone());
                scene.pool_faults.remove(&pool.id);
                drop(scene);
                tracing::info!(pool = %pool.id, disks = ?pool.disks, "pool in service");
            }
            Err(fault) => {
                let old = self.scene().pool_faults.insert(pool.id, fault.clone());
                if old.as_ref() != Some(&fault) {
                    tracing::error!(pool = %pool.id, err = fault, "pool not in service");
                }
            }
        }
    }

    fn try_open(&self, pool: &Pool) -> Result<(), String> {
        let text = |error: &(dyn std::error::Error + 'static)| Chain(error).to_string();
        let home = format::place_of(pool.worker);
        self.port.settle(pool.id, home).map_err(|error| text(&error))?;
        let Mounted { volumes, faults } =
            format::mount(pool, self.means(&self.rests())).map_err(|error| text(&error))?;
        for (disk, fault) in &faults {
            tracing::error!(pool = %pool.id, %disk, err = fault, "disk not in service");
        }
        let (id, volumes) = (pool.id, Box::new(volumes));
        self.port
            .ask(|answer| Message::PoolOpen { pool: id, volumes, answer })
            .map_err(|error| text(&error))?;
        self.scene().disk_faults.retain(|(known, _), _| *known != id);
        for disk in &pool.disks {
            match faults.get(&disk.id) {
                Some(fault) => {
                    self.scene().disk_faults.insert((id, disk.id), fault.clone());
                }
                None => self.drain(id, disk),
            }
        }
        Ok(())
    }

    fn attach(&self, spec: &Attachment) {
        let key = (spec.pool, spec.volume);
        match self.try_attach(spec) {
            Ok(served) => {
                let mut scene = self.scene();
                scene.served.insert(key, served);
                scene.attachment_faults.remove(&key);
                drop(scene);
                let (pool, volume) = key;
                tracing::info!(%pool, %volume, socket = ?spec.socket, "volume attached");
            }
            Err(fault) => {
                let old = self.scene().attachment_faults.insert(key, fault.clone());
                if old.as_ref() != Some(&fault) {
                    let (pool, volume) = key;
                    tracing::error!(%pool, %volume, err = fault, "volume not attached");
                }
            }
        }
    }

    fn try_attach(&self, spec: &Attachment) -> Result<Served, String> {
        let text = |error: &(dyn std::error::Error + 'static)| Chain(error).to_string();
        if let Some(folder) = spec.socket.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|error| format!("the folder {folder:?} cannot be made: {error}"))?;
        }
        let attach = AttachSpec {
            pool: spec.pool,
            volume: spec.volume,
            queues: spec.queues,
            is_read_only: spec.is_read_only,
            limits: spec.limits,
        };
        let Attached { token, class } = self
            .port
            .attach(attach, format::place_of(spec.worker))
            .map_err(|error: EngineRefusal| text(&error))?;
        let options =
            DeviceOptions { socket: spec.socket.clone(), token, shrinkable: Shrinkable::Refuse };
        let served_class: Arc<BlkClass> = Arc::clone(&class);
        let key = (spec.pool, spec.volume);
        let handed = self.scene().handed.remove(&key);
        // A socket that was moved by the configuration is made anew: its guest will come again.
        let handed = handed.filter(|handed| handed.path() == spec.socket);
        let link = self.port.link(token).map_err(|error| text(&error))?;
        let served = match handed {
            Some(handed) => Device::take_over(options, class, link, handed),
            None => Device::serve(options, class, link),
        };
        match served {
            Ok(device) => Ok(Served { spec: spec.clone(), device, token, class: served_class }),
            Err(error) => {
                // Nothing is served, so nothing can be under way: the answer is immediate.
                let _ = self.port.detach(token);
                Err(text(&error))
            }
        }
    }
}
