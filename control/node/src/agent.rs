// SPDX-License-Identifier: Apache-2.0
//! The agent: what it is made of, its start and its end.

use crate::daemon::Daemon;
use crate::facts::CpuSample;
use crate::keeper::Keeper;
use crate::metadata_socket::MetadataSocket;
use crate::runner::{Ground, Runner, VmRecord};
use crate::store::Store;
use crate::switch::Switch;
use crate::{PlaceError, Places, Surroundings, preflight};
use plinth_api::{Facts, NodeSpec, NodeStatus, PoolSpec, Refusal};
use plinth_ids::{Epoch, VmId};
use plinth_manage::{Kept, ListenError, LoadError};
use plinth_qemu::Accelerator;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a node agent is started with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub places: Places,
    /// Paths of the programs.
    pub switchd: PathBuf,
    pub stored: PathBuf,
    pub qemu: PathBuf,
    pub qemu_img: PathBuf,
    /// What the preflight looks at; tests give it another root.
    pub surroundings: Surroundings,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("cannot make {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("what was kept in {} cannot be used", path.display())]
    Kept { path: PathBuf, source: LoadError },
    #[error("guests cannot be told of themselves")]
    Metadata { source: ListenError },
    #[error("cannot start a thread")]
    Thread { source: io::Error },
}

/// Something to wait for that may be rung from anywhere.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    is_rung: Mutex<bool>,
    ringing: Condvar,
}

impl Bell {
    pub(crate) fn ring(&self) {
        *self.is_rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ringing.notify_all();
    }

    /// Waits until it rings, `limit` at most.
    pub(crate) fn wait(&self, limit: Duration) {
        let rung = self.is_rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ringing.wait_timeout_while(rung, limit, |rung| !*rung);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

/// A lock whose holders leave the value whole even when they panic: they replace parts of it by
/// single assignments.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the agent's threads share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: NodeConfig,
    pub(crate) kept: Kept<NodeSpec>,
    pub(crate) spec: Mutex<Option<NodeSpec>>,
    /// Pools that a command made and no spec has named yet.
    pub(crate) fresh_pools: Mutex<Vec<PoolSpec>>,
    pub(crate) runners: Mutex<BTreeMap<VmId, Runner>>,
    pub(crate) switch: Keeper<Switch>,
    pub(crate) store: Keeper<Store>,
    pub(crate) facts: Mutex<Facts>,
    pub(crate) accelerator: Mutex<Option<Accelerator>>,
    pub(crate) load: Mutex<CpuSample>,
    /// VMs whose console somebody is at.
    pub(crate) consoles: Mutex<BTreeSet<VmId>>,
    pub(crate) bell: Arc<Bell>,
    is_stopping: AtomicBool,
}

/// A node's agent. When it is dropped its threads end; the daemons and the VMs go on.
#[derive(Debug)]
pub struct NodeAgent {
    pub(crate) inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
    metadata: MetadataSocket,
}

impl NodeAgent {
    /// Starts the agent: the daemons, and the VMs of the last spec, come up without waiting for
    /// the service.
    ///
    /// # Errors
    /// When the folders cannot be made or hold something that is not understood.
    pub fn start(config: NodeConfig) -> Result<Self, StartError> {
        let places = &config.places;
        for path in [
            places.state().to_owned(),
            places.vm_records(),
            places.imports(),
            places.run().to_owned(),
            places.run().join("net"),
            places.run().join("blk"),
            places.run().join("vm"),
        ] {
            std::fs::create_dir_all(&path)
                .map_err(|source| StartError::Folder { path: path.clone(), source })?;
        }
        let kept = Kept::at(places.spec());
        let spec: Option<NodeSpec> = load(&kept)?;
        let thread = |source| StartError::Thread { source };
        let switch = Keeper::start(
            Daemon::new("plinth-switchd", &config.switchd, places),
            Switch::at(places.switchd_socket()),
        )
        .map_err(thread)?;
        let store = Keeper::start(
            Daemon::new("plinth-stored", &config.stored, places),
            Store::at(places.stored_socket()),
        )
        .map_err(thread)?;
        let bell = Arc::new(Bell::default());
        let runners = begin_runners(&config, &bell)?;
        let facts = preflight::facts(&config.surroundings);
        let inner = Arc::new(Inner {
            config,
            kept,
            spec: Mutex::new(spec),
            fresh_pools: Mutex::default(),
            runners: Mutex::new(runners),
            switch,
            store,
            facts: Mutex::new(facts),
            accelerator: Mutex::new(None),
            load: Mutex::new(CpuSample::default()),
            consoles: Mutex::default(),
            bell,
            is_stopping: AtomicBool::new(false),
        });
        let threads = vec![
            spawn("reconciler", &inner, Inner::reconcile).map_err(thread)?,
            spawn("preflight", &inner, Inner::find_accelerator).map_err(thread)?,
        ];
        let metadata = MetadataSocket::start(&inner)?;
        Ok(Self { inner, threads, metadata })
    }

    /// Takes a spec, keeps it, and starts to make it true.
    ///
    /// # Errors
    /// When it is older than the one in force, or cannot be kept.
    pub fn take(&self, spec: NodeSpec) -> Result<Epoch, Refusal> {
        self.inner.take(spec)
    }

    /// What is seen now. Looks at memory only.
    pub fn look(&self) -> NodeStatus {
        self.inner.look()
    }
}

impl Drop for NodeAgent {
    fn drop(&mut self) {
        self.inner.is_stopping.store(true, Ordering::SeqCst);
        self.inner.bell.ring();
        self.metadata.stop();
        for thread in self.threads.drain(..) {
            // A panic there was told by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Inner {
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// Tries KVM once a machine start; VMs wait for the outcome.
    fn find_accelerator(self: &Arc<Self>) {
        let probe = preflight::accelerator(
            &self.config.surroundings,
            &self.config.qemu,
            &self.config.places,
        );
        tracing::info!(accelerator = %probe.accelerator, text = probe.text, "tried KVM");
        {
            let mut facts = lock(&self.facts);
            facts.accelerator = probe.accelerator.to_string();
            facts.checks.insert(0, preflight::kvm_check(&probe));
        }
        *lock(&self.accelerator) = Some(probe.accelerator);
        self.bell.ring();
    }
}

fn spawn(name: &str, inner: &Arc<Inner>, body: fn(&Arc<Inner>)) -> io::Result<JoinHandle<()>> {
    let inner = Arc::clone(inner);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || body(&inner))
}

fn load<T: serde::Serialize + serde::de::DeserializeOwned>(
    kept: &Kept<T>,
) -> Result<Option<T>, StartError> {
    kept.load().map_err(|source| StartError::Kept { path: kept.path().into(), source })
}

/// The VMs that an earlier agent looked after.
fn begin_runners(
    config: &NodeConfig,
    bell: &Arc<Bell>,
) -> Result<BTreeMap<VmId, Runner>, StartError> {
    let folder = config.places.vm_records();
    let fault = |source| StartError::Folder { path: folder.clone(), source };
    let mut runners = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let kept: Kept<VmRecord> = Kept::at(&path);
        let Some(record) = load(&kept)? else { continue };
        let spec = record.spec().clone();
        let id = spec.id;
        let runner = Runner::start(ground(config), spec, Some(record), Arc::clone(bell))
            .map_err(|source| StartError::Thread { source })?;
        runners.insert(id, runner);
    }
    Ok(runners)
}

pub(crate) fn ground(config: &NodeConfig) -> Ground {
    Ground {
        places: config.places.clone(),
        qemu: config.qemu.clone(),
        root: config.surroundings.root.clone(),
    }
}
