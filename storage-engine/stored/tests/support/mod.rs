// SPDX-License-Identifier: Apache-2.0
//! A store daemon of a test's own, and a guest for it.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]

pub(crate) mod guest;
pub(crate) mod pattern;

use plinth_ids::{DiskId, Epoch, Name, PoolId, VolumeId};
use plinth_manage::Client;
use plinth_store_api::{
    Answer, Attachment, CONFIG_VERSION, Durability, Pool, PoolDisk, PoolStatus, Refusal, Reply,
    Request, Status, StoreConfig, Verb, VolumeStatus,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The longest that anything here may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const POOL: PoolId = PoolId(1);
pub(crate) const VOLUME: VolumeId = VolumeId(7);

pub(crate) const MIB: u64 = 1 << 20;

/// A folder of a test's own, removed on drop.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        Self::under(&std::env::temp_dir())
    }

    /// In memory where there is such a place: for tests that flush thousands of times.
    pub(crate) fn fast() -> Self {
        let shared = Path::new("/dev/shm");
        if shared.is_dir() { Self::under(shared) } else { Self::new() }
    }

    fn under(parent: &Path) -> Self {
        // Only makes names differ within this process; publishes nothing.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("plinth-st-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The kernel drops the files of dead processes one after the other. Were one of these the
        // last to hold its file, the kernel would give back its space there, and the next test's
        // pool would be in use until then. So it is given back here.
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                let file = fs::OpenOptions::new().write(true).open(entry.path());
                let _ = file.and_then(|file| file.set_len(0));
            }
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Waits until `ready` gives something.
pub(crate) fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A running plinth-stored, killed on drop.
pub(crate) struct Daemon {
    process: Child,
    pub(crate) socket: PathBuf,
}

impl Daemon {
    /// Starts one with its folders in `folder` and waits until it answers.
    pub(crate) fn start(folder: &Folder) -> Self {
        Self::start_with(folder, &[])
    }

    /// The same with more arguments.
    pub(crate) fn start_with(folder: &Folder, arguments: &[&str]) -> Self {
        let mut daemon = Self::spawn(folder, arguments);
        daemon.wait_until_it_answers();
        daemon
    }

    /// Starts one and waits for nothing.
    pub(crate) fn spawn(folder: &Folder, arguments: &[&str]) -> Self {
        let socket = folder.path("stored.sock");
        let process = Command::new(env!("CARGO_BIN_EXE_plinth-stored"))
            .arg("--run-dir")
            .arg(folder.path("run"))
            .arg("--state-dir")
            .arg(folder.path("state"))
            .arg("--socket")
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, socket }
    }

    pub(crate) fn wait_until_it_answers(&mut self) {
        wait_for("a store that answers", || {
            assert_eq!(self.process.try_wait().unwrap(), None, "the store has ended");
            Client::connect(&self.socket, PATIENCE).ok()
        });
    }

    /// Whether the process is gone, and in good order.
    pub(crate) fn has_ended(&mut self) -> Option<()> {
        let ended = self.process.try_wait().unwrap()?;
        assert!(ended.success(), "{ended}");
        Some(())
    }

    /// `kill -9`, and nothing else.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// `kill -9` of one, and the start of the next.
    pub(crate) fn start_after_kill(old: &mut Self, folder: &Folder) -> Self {
        old.process.kill().unwrap();
        old.process.wait().unwrap();
        Self::start(folder)
    }

    /// SIGTERM; says how it ended.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let process = &mut self.process;
        wait_for("the end of the store", || process.try_wait().unwrap()).code()
    }

    pub(crate) fn call(&self, verb: Verb) -> Result<Answer, Refusal> {
        let mut client = Client::connect(&self.socket, PATIENCE).unwrap();
        let reply: Reply = client.call(&Request { id: 1, verb }).unwrap();
        reply.result
    }

    pub(crate) fn format(&self, device: &Path, size: u64) {
        let device = device.into();
        let verb = Verb::PoolFormat {
            id: POOL,
            disk: DiskId::FIRST,
            device,
            size: Some(size),
            overwrite: false,
        };
        assert_eq!(self.call(verb), Ok(Answer::Done));
    }

    pub(crate) fn apply(&self, config: StoreConfig) {
        let epoch = config.epoch;
        assert_eq!(self.call(Verb::Apply(config)), Ok(Answer::Applied { epoch }));
    }

    pub(crate) fn create(&self, volume: VolumeId, size: u64) -> Result<Answer, Refusal> {
        let name: Name = format!("v{}", volume.0).parse().unwrap();
        self.call(Verb::VolumeCreate { pool: POOL, volume, name, size })
    }

    pub(crate) fn pools(&self) -> Vec<PoolStatus> {
        match self.call(Verb::Pools) {
            Ok(Answer::Pools(pools)) => pools,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn volumes(&self) -> Vec<VolumeStatus> {
        match self.call(Verb::Volumes { pool: POOL }) {
            Ok(Answer::Volumes(volumes)) => volumes,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn status(&self) -> Status {
        match self.call(Verb::Status) {
            Ok(Answer::Status(status)) => status,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A configuration with one pool.
pub(crate) fn config(epoch: u64, device: &Path, attachments: &[Attachment]) -> StoreConfig {
    let pool = Pool::of_one(POOL, device, Durability::Flush);
    StoreConfig {
        version: CONFIG_VERSION,
        workers: Vec::new(),
        epoch: Epoch(epoch),
        pools: vec![pool],
        attachments: attachments.to_vec(),
    }
}

/// Two workers, and a second disk for the pool, which the second worker owns.
pub(crate) fn spread(daemon: &Daemon, config: &mut StoreConfig, device: &Path, size: u64) {
    let cpus = plinth_rt::allowed_cpus().unwrap();
    assert!(cpus.len() > 1, "two workers need two CPUs");
    config.workers = cpus[..2].to_vec();
    let disk = DiskId(2);
    let (size, overwrite) = (Some(size), false);
    let verb = Verb::PoolDiskAdd { pool: POOL, disk, device: device.into(), size, overwrite };
    assert_eq!(daemon.call(verb), Ok(Answer::Done));
    let mut second = PoolDisk { id: disk, ..PoolDisk::first(device) };
    second.worker = Some(1);
    config.pools[0].disks.push(second);
}

pub(crate) fn attachment(volume: VolumeId, socket: &Path, queues: u16) -> Attachment {
    Attachment {
        pool: POOL,
        volume,
        socket: socket.into(),
        queues,
        is_read_only: false,
        limits: None,
        worker: None,
    }
}

/// A daemon that serves one volume of `size` bytes with `queues` queues, in a pool of `pool_size`.
pub(crate) fn serving(folder: &Folder, pool_size: u64, size: u64, queues: u16) -> Daemon {
    let daemon = Daemon::start(folder);
    let device = folder.path("pool");
    daemon.format(&device, pool_size);
    daemon.apply(config(1, &device, &[]));
    daemon.create(VOLUME, size).unwrap();
    let attachment = attachment(VOLUME, &folder.path("blk.sock"), queues);
    daemon.apply(config(2, &device, &[attachment]));
    daemon
}
