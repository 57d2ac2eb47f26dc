// SPDX-License-Identifier: Apache-2.0
//! Carries the configuration out, and again, until the world is as it says.
//!
//! Level-triggered: [`Keeper::carry_out`] compares what is wanted with what is there and mends
//! the difference. It runs after every change and from time to time, so that a pool whose device
//! comes late, or an attachment whose volume is made later, comes into service by itself. A fault
//! stays with the pool or attachment that has it.

use crate::format::{self, Purpose};
use crate::message::{AttachSpec, Attached, EngineRefusal, Message};
use crate::worker::WorkerPort;
use plinth_backends::blk::BlkClass;
use plinth_backends::{Device, DeviceOptions, DeviceToken, Shrinkable, WorkerLink};
use plinth_ids::{PoolId, VolumeId};
use plinth_obs::Chain;
use plinth_store_api::{Attachment, Pool, StoreConfig};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    attachment_faults: BTreeMap<VolumeKey, String>,
}

/// A volume's number is its pool's own.
pub(crate) type VolumeKey = (PoolId, VolumeId);

#[derive(Debug)]
pub(crate) struct Keeper {
    port: WorkerPort,
    link: WorkerLink,
    purpose: Purpose,
    scene: Mutex<Scene>,
    /// Held while differences are mended, so that two threads do not mend the same one. Whoever
    /// only looks takes `scene` alone and never waits for a slow disk.
    mending: Mutex<()>,
}

impl Keeper {
    pub(crate) fn new(port: WorkerPort, link: WorkerLink, purpose: Purpose) -> Self {
        Self { port, link, purpose, scene: Mutex::default(), mending: Mutex::default() }
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
        let Some(wanted) = self.wanted() else { return };
        self.detach_unwanted(&wanted.attachments, &wanted.pools);
        self.close_unwanted(&wanted.pools);
        for pool in &wanted.pools {
            if !self.scene().pools.contains_key(&pool.id) {
                self.open(pool);
            }
        }
        for attachment in &wanted.attachments {
            let key = (attachment.pool, attachment.volume);
            if !self.scene().served.contains_key(&key) {
                self.attach(attachment);
            }
        }
        let mut scene = self.scene();
        scene.pool_faults.retain(|&id, _| wanted.pools.iter().any(|pool| pool.id == id));
        let is_wanted = |&key: &VolumeKey| {
            wanted.attachments.iter().any(|wanted| (wanted.pool, wanted.volume) == key)
        };
        scene.attachment_faults.retain(|key, _| is_wanted(key));
    }

    /// Ends everything in order: guests first, then pools with their checkpoints.
    pub(crate) fn stop(&self) {
        let _mending = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        self.scene().wanted = None;
        self.detach_unwanted(&[], &[]);
        self.close_unwanted(&[]);
    }

    fn detach_unwanted(&self, attachments: &[Attachment], pools: &[Pool]) {
        let mut leaving = Vec::new();
        {
            let mut scene = self.scene();
            let goes: Vec<_> = scene
                .served
                .iter()
                .filter(|(key, served)| {
                    let stays = scene.pools.get(&key.0).is_some_and(|pool| pools.contains(pool));
                    !stays || !attachments.contains(&served.spec)
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
            if let Err(error) = self.port.ask(|answer| Message::Detach { token, answer }) {
                let err = display(Chain(&error));
                tracing::error!(%pool, %volume, err, "a volume was not detached");
            } else {
                tracing::info!(%pool, %volume, "volume detached");
            }
        }
    }

    fn close_unwanted(&self, pools: &[Pool]) {
        let goes: Vec<_> = {
            let scene = self.scene();
            scene.pools.values().filter(|pool| !pools.contains(pool)).map(|pool| pool.id).collect()
        };
        for pool in goes {
            let closed = self.port.ask(|answer| Message::PoolClose { pool, answer });
            self.scene().pools.remove(&pool);
            match closed {
                Ok(volumes) => {
                    format::unmount(*volumes);
                    tracing::info!(%pool, "pool closed");
                }
                Err(error) => {
                    let err = display(Chain(&error));
                    tracing::error!(%pool, err, "pool closed with a fault");
                }
            }
        }
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
        let volumes =
            format::mount(pool, self.purpose).map_err(|error| Chain(&error).to_string())?;
        let (pool, volumes) = (pool.id, Box::new(volumes));
        self.port
            .ask(|answer| Message::PoolOpen { pool, volumes, answer })
            .map_err(|error| Chain(&error).to_string())
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
        };
        let Attached { token, class } = self
            .port
            .ask(|answer| Message::Attach { spec: attach, answer })
            .map_err(|error: EngineRefusal| text(&error))?;
        let options =
            DeviceOptions { socket: spec.socket.clone(), token, shrinkable: Shrinkable::Refuse };
        let served_class: Arc<BlkClass> = Arc::clone(&class);
        match Device::serve(options, class, self.link.clone()) {
            Ok(device) => Ok(Served { spec: spec.clone(), device, token, class: served_class }),
            Err(error) => {
                // Nothing is served, so nothing can be under way: the answer is immediate.
                let _ = self.port.ask(|answer| Message::Detach { token, answer });
                Err(text(&error))
            }
        }
    }
}
