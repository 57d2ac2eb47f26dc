// SPDX-License-Identifier: Apache-2.0
//! Commands: acts on pools and images, and questions to the switch.

use crate::agent::{Inner, lock};
use crate::keeper::Trouble;
use crate::store::Store;
use crate::switch::Switch;
use plinth_api::{AgentAnswer, Code, Command, DiskFormat, PoolSpec, Refusal};
use plinth_ids::{DiskId, Name, PoolId, VolumeId};
use plinth_store_api::Verb;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a pool may take until it is served.
const SERVE_LIMIT: Duration = Duration::from_secs(30);
/// A volume's size is a multiple of this.
const SECTOR: u64 = 512;

/// An image that is to become a volume.
pub(crate) struct Import {
    pub(crate) pool: PoolId,
    pub(crate) volume: VolumeId,
    pub(crate) name: Name,
    pub(crate) format: DiskFormat,
    pub(crate) source: PathBuf,
}

impl Inner {
    fn store_socket(&self) -> Store {
        Store::at(self.config.places.stored_socket())
    }

    fn switch_socket(&self) -> Switch {
        Switch::at(self.config.places.switchd_socket())
    }

    /// Carries out every command but an import.
    pub(crate) fn perform(&self, command: Command) -> Result<AgentAnswer, Refusal> {
        let done = |verb| {
            let result = self.store_socket().act(verb);
            self.store.look();
            result.map(|()| AgentAnswer::Done)
        };
        match command {
            Command::PoolFormat { pool, name, device, size, durability, overwrite } => {
                let fresh = PoolSpec { id: pool, name, device, durability };
                return self.format(fresh, size, overwrite);
            }
            Command::VolumeCreate { pool, volume, name, size } => {
                done(Verb::VolumeCreate { pool, volume, name, size })
            }
            Command::VolumeClone { pool, source, volume, name, size } => {
                done(Verb::VolumeClone { pool, source, snapshot: None, volume, name, size })
            }
            Command::VolumeGrow { pool, volume, size } => {
                done(Verb::VolumeGrow { pool, volume, size })
            }
            Command::VolumeDelete { pool, volume } => {
                match done(Verb::VolumeDelete { pool, volume, wipe: false }) {
                    Err(Trouble::Refused { code, .. }) if code == "volume-missing" => {
                        Ok(AgentAnswer::Done)
                    }
                    other => other,
                }
            }
            Command::SwitchPorts => self.switch_socket().ports().map(AgentAnswer::SwitchPorts),
            Command::SwitchFlows { limit } => {
                self.switch_socket().flows(limit).map(AgentAnswer::SwitchFlows)
            }
            Command::SwitchDrops => self.switch_socket().drops().map(AgentAnswer::SwitchDrops),
            Command::ImageImport { .. } => {
                return Err(Refusal::new(Code::Invalid, "an import comes with its bytes"));
            }
        }
        .map_err(|trouble| refusal(&trouble))
    }

    /// Makes a pool and waits until it is served.
    fn format(
        &self,
        fresh: PoolSpec,
        size: Option<u64>,
        overwrite: bool,
    ) -> Result<AgentAnswer, Refusal> {
        let is_served = |inner: &Self| {
            let pools = inner.store.extra().pools;
            pools.into_iter().find(|pool| pool.id == fresh.id)
        };
        if let Some(pool) = is_served(self)
            && pool.fault.is_none()
            && pool.device == Path::new(&fresh.device)
        {
            return Ok(AgentAnswer::Done);
        }
        let verb = Verb::PoolFormat {
            id: fresh.id,
            disk: DiskId::FIRST,
            device: PathBuf::from(&fresh.device),
            size,
            overwrite,
        };
        let formatted = self.store_socket().act(verb);
        // Perhaps it is this very pool, formatted before a crash: whether it is, is seen when it
        // is served.
        let is_there = matches!(&formatted, Err(Trouble::Refused { code, .. })
            if code == "pool-there" || code == "device-in-use");
        if let Err(trouble) = &formatted
            && !is_there
        {
            return Err(refusal(trouble).field("device"));
        }
        lock(&self.fresh_pools).retain(|pool| pool.id != fresh.id);
        lock(&self.fresh_pools).push(fresh.clone());
        self.bell.ring();
        let deadline = Instant::now() + SERVE_LIMIT;
        let fault = loop {
            self.store.look();
            match is_served(self) {
                Some(pool) if pool.fault.is_none() => return Ok(AgentAnswer::Done),
                Some(pool) if Instant::now() >= deadline || is_there => break pool.fault,
                None if Instant::now() >= deadline => break None,
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        lock(&self.fresh_pools).retain(|pool| pool.id != fresh.id);
        self.bell.ring();
        match formatted {
            Err(trouble) => Err(refusal(&trouble).field("device")),
            Ok(()) => {
                let fault = fault.unwrap_or_else(|| self.store.status().text);
                let text = format!("the pool is made but not served: {fault}");
                Err(Refusal::new(Code::Failed, text))
            }
        }
    }

    /// Makes a volume with the bytes of an image file.
    pub(crate) fn import(&self, import: &Import) -> Result<AgentAnswer, Refusal> {
        let raw = Scratch::new(self.config.places.imports().join(format!("{}.raw", import.volume)));
        self.convert(import, raw.path())?;
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Refusal::new(Code::Failed, format!("{what}: {error}"))
        };
        let size = std::fs::metadata(raw.path())
            .map_err(|error| failed("the converted image cannot be read", &error))?
            .len();
        if size == 0 {
            return Err(Refusal::new(Code::Invalid, "the image is empty").field("file"));
        }
        let whole = size.next_multiple_of(SECTOR);
        if whole != size {
            std::fs::File::options()
                .write(true)
                .open(raw.path())
                .and_then(|file| file.set_len(whole))
                .map_err(|error| failed("the converted image cannot be rounded up", &error))?;
        }
        let (pool, volume) = (import.pool, import.volume);
        let name = import.name.clone();
        let store = self.store_socket();
        let result =
            store.act(Verb::VolumeCreate { pool, volume, name, size: whole }).and_then(|()| {
                store.act(Verb::VolumeImport { pool, volume, source: raw.path().into() })
            });
        self.store.look();
        result.map_err(|trouble| refusal(&trouble))?;
        Ok(AgentAnswer::Imported { size: whole })
    }

    /// qemu-img reads every format; the store wants raw. The format is said, never guessed: a
    /// raw image that looks like qcow2 could name a file of this node as its backing file.
    fn convert(&self, import: &Import, target: &Path) -> Result<(), Refusal> {
        let format = match import.format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        if import.format == DiskFormat::Qcow2 {
            self.refuse_backing_file(&import.source)?;
        }
        let output = std::process::Command::new(&self.config.qemu_img)
            .args(["convert", "-f", format, "-O", "raw", "-S", "4k", "-t", "none", "--"])
            .arg(&import.source)
            .arg(target)
            .output()
            .map_err(|error| {
                Refusal::new(Code::Failed, format!("qemu-img does not start: {error}"))
                    .remedy("apt-get install qemu-utils")
            })?;
        if output.status.success() {
            return Ok(());
        }
        let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Refusal::new(Code::Invalid, errors).field("file").remedy(format!("is it {format}?")))
    }

    /// A qcow2 image may name other files, which would be read with the node's rights.
    fn refuse_backing_file(&self, source: &Path) -> Result<(), Refusal> {
        let output = std::process::Command::new(&self.config.qemu_img)
            .args(["info", "-f", "qcow2", "--output=json", "--"])
            .arg(source)
            .output()
            .map_err(|error| Refusal::new(Code::Failed, format!("qemu-img: {error}")))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if text.contains("\"backing-filename\"") || text.contains("\"data-file\"") {
            return Err(Refusal::new(Code::Invalid, "the image names another file")
                .field("file")
                .remedy("flatten it first: qemu-img convert -O qcow2 OLD NEW"));
        }
        Ok(())
    }
}

/// A file that is gone when it is dropped.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What a daemon's no means to an operator.
pub(crate) fn refusal(trouble: &Trouble) -> Refusal {
    match trouble {
        Trouble::Call(error) => {
            Refusal::new(Code::Failed, error.to_string()).remedy("see `node show` for the daemon")
        }
        Trouble::Confused => Refusal::new(Code::Failed, trouble.to_string()),
        Trouble::Refused { code, text } => Refusal::new(meaning(code), text.clone()),
    }
}

/// The daemon's code in the operator's words; a daemon has finer ones.
fn meaning(code: &str) -> Code {
    match code {
        "pool-missing" | "volume-missing" | "device-missing" => Code::NotFound,
        "pool-there" | "pool-exists" | "volume-exists" | "name-taken" => Code::Exists,
        "volume-attached" | "device-in-use" => Code::InUse,
        "volume-busy" | "pool-starting" | "stopping" | "pool-fault" => Code::State,
        "no-space" | "volumes-full" => Code::NoRoom,
        "volume-size" | "volume-shrink" | "range" | "device-path" | "device-size"
        | "device-shrink" => Code::Invalid,
        _ => Code::Failed,
    }
}
