// SPDX-License-Identifier: Apache-2.0
//! Commands: acts on pools and images, and questions to the switch.

use crate::agent::{Inner, lock};
use crate::daemon::{ReplaceError, Replaced};
use crate::keeper::Trouble;
use crate::storage;
use crate::store::Store;
use crate::switch::Switch;
use plinth_api::{
    AgentAnswer, Code, Command, DaemonUpgrade, DiskFormat, PoolAccess, PoolSpec, Refusal,
    ScrubSchedule,
};
use plinth_ids::{Name, PoolId, SnapshotId, VolumeId};
use plinth_store_api::{Answer, Verb};
use plinth_switch_api::Look;
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
    pub(crate) snapshot: SnapshotId,
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
            Command::PoolFormat { pool, name, disks, size, durability, class, overwrite } => {
                // When it is scrubbed comes with the spec.
                let (scrub, access) = (ScrubSchedule::default(), PoolAccess::Whole);
                let fresh = PoolSpec { id: pool, name, disks, durability, class, scrub, access };
                return self.format(fresh, size, overwrite);
            }
            Command::DiskAdd { pool, disk, device, size, overwrite } => {
                let device = PathBuf::from(device);
                return self.disk_add(Verb::PoolDiskAdd { pool, disk, device, size, overwrite });
            }
            Command::DiskRemove { pool, disk } => {
                forgiving(done(Verb::PoolDiskRemove { pool, disk }), "disk-missing")
            }
            Command::VolumeCreate { pool, volume, name, size } => {
                done(Verb::VolumeCreate { pool, volume, name, size })
            }
            Command::VolumeClone { pool, source, snapshot, volume, name, size } => {
                done(Verb::VolumeClone { pool, source, snapshot, volume, name, size })
            }
            Command::VolumeGrow { pool, volume, size } => {
                done(Verb::VolumeGrow { pool, volume, size })
            }
            Command::VolumeDelete { pool, volume, wipe } => {
                forgiving(done(Verb::VolumeDelete { pool, volume, wipe }), "volume-missing")
            }
            Command::VolumeFlatten { pool, volume } => done(Verb::VolumeFlatten { pool, volume }),
            Command::SnapshotCreate { pool, volume, snapshot, name } => {
                done(Verb::SnapshotCreate { pool, volume, snapshot, name })
            }
            Command::SnapshotDelete { pool, volume, snapshot } => {
                forgiving(done(Verb::SnapshotDelete { pool, volume, snapshot }), "snapshot-missing")
            }
            Command::SnapshotRollback { pool, volume, snapshot } => {
                done(Verb::SnapshotRollback { pool, volume, snapshot })
            }
            Command::DeltaExport { pool, volume, from, to, target } => {
                done(Verb::DeltaExport { pool, volume, from, to, target: target.into() })
            }
            Command::ScrubStart { pool, disk, kind, rate } => {
                done(Verb::ScrubStart { pool, disk, kind: storage::scrub_kind(kind), rate })
            }
            Command::ScrubStop { pool, disk } => done(Verb::ScrubStop { pool, disk }),
            question @ (Command::VolumeShow { .. }
            | Command::VolumeDiff { .. }
            | Command::DeltaImport { .. }
            | Command::DiskShow { .. }
            | Command::ScrubStatus { .. }
            | Command::Metrics
            | Command::SlowRequests { .. }) => self.ask_store(question),
            Command::StoreUpgrade => return self.upgrade_store(),
            Command::SwitchUpgrade => return self.upgrade_switch(),
            Command::SwitchPorts => self.switch_socket().ports().map(AgentAnswer::SwitchPorts),
            Command::SwitchFlows { limit } => {
                self.switch_socket().flows(limit).map(AgentAnswer::SwitchFlows)
            }
            Command::SwitchDrops => self.switch_socket().drops().map(AgentAnswer::SwitchDrops),
            Command::SwitchLook(question) => return self.look_at_switch(&question),
            Command::ImageImport { .. } => {
                return Err(Refusal::new(Code::Invalid, "an import comes with its bytes"));
            }
        }
        .map_err(|trouble| refusal(&trouble))
    }

    /// Hands a question on. It is read here first, so that nothing but a question gets through.
    fn look_at_switch(&self, question: &str) -> Result<AgentAnswer, Refusal> {
        let look: Look = serde_json::from_str(question).map_err(|err| {
            Refusal::new(Code::Invalid, format!("the question is not understood: {err}"))
                .remedy("use a plinth of the node's version")
        })?;
        let sight = self.switch_socket().look(look).map_err(|trouble| refusal(&trouble))?;
        let text = serde_json::to_string(&sight)
            .map_err(|err| Refusal::new(Code::Failed, format!("the answer has no text: {err}")))?;
        Ok(AgentAnswer::SwitchSight(text))
    }

    fn upgrade_store(&self) -> Result<AgentAnswer, Refusal> {
        upgraded(self.store.replace(), "plinth-stored").map(AgentAnswer::StoreUpgraded)
    }

    fn upgrade_switch(&self) -> Result<AgentAnswer, Refusal> {
        upgraded(self.switch.replace(), "plinth-switchd").map(AgentAnswer::SwitchUpgraded)
    }

    /// Commands that the store answers with something to show.
    fn ask_store(&self, command: Command) -> Result<AgentAnswer, Trouble> {
        let verb = match command {
            Command::VolumeShow { pool, volume } => Verb::VolumeShow { pool, volume },
            Command::VolumeDiff { pool, volume, from, to, start } => {
                Verb::VolumeDiff { pool, volume, from, to, start }
            }
            Command::DeltaImport { pool, volume, snapshot, source } => {
                Verb::DeltaImport { pool, volume, snapshot, source: source.into() }
            }
            Command::DiskShow { pool, disk } => Verb::DiskShow { pool, disk },
            Command::ScrubStatus { pool } => Verb::ScrubStatus { pool },
            Command::Metrics => Verb::Metrics,
            Command::SlowRequests { limit } => Verb::SlowRequests { limit },
            _ => return Err(Trouble::Confused),
        };
        if let Verb::DeltaImport { pool, volume, snapshot, .. } = verb {
            self.store_socket().act(verb)?;
            return self.snapshot_made(pool, volume, snapshot);
        }
        Ok(match self.store_socket().call(verb)? {
            Answer::VolumeDetail(detail) => AgentAnswer::VolumeUsage(storage::usage(*detail)),
            Answer::Diff(diff) => AgentAnswer::Diff {
                ranges: diff.ranges.into_iter().map(storage::range).collect(),
                next: diff.next,
            },
            Answer::Disk(detail) => AgentAnswer::BadBlocks(
                detail.bad_blocks.into_iter().map(storage::bad_block).collect(),
            ),
            Answer::Scrubs(scrubs) => {
                AgentAnswer::Scrubs(scrubs.into_iter().map(storage::scrub).collect())
            }
            Answer::Metrics(metrics) => {
                AgentAnswer::Metrics(metrics.attachments.iter().map(storage::metrics).collect())
            }
            Answer::SlowRequests(requests) => {
                AgentAnswer::SlowRequests(requests.into_iter().map(storage::slow).collect())
            }
            _ => return Err(Trouble::Confused),
        })
    }

    /// A snapshot that was just made, as the store has it: its name came with a delta.
    fn snapshot_made(
        &self,
        pool: PoolId,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<AgentAnswer, Trouble> {
        self.store.look();
        let Answer::Snapshots(all) = self.store_socket().call(Verb::Snapshots { pool, volume })?
        else {
            return Err(Trouble::Confused);
        };
        let made = all.into_iter().find(|one| one.snapshot == snapshot);
        made.map(|one| AgentAnswer::Snapshot(storage::snapshot(one))).ok_or(Trouble::Confused)
    }

    /// Makes a disk for a pool that is served; the spec names it afterwards. A disk that has a
    /// pool already is refused, also where a crash cut off the answer to the first try: which
    /// pool it is can be told only by losing it.
    fn disk_add(&self, verb: Verb) -> Result<AgentAnswer, Refusal> {
        let result = self.store_socket().act(verb).map(|()| AgentAnswer::Done);
        self.store.look();
        result.map_err(|trouble| refusal(&trouble).field("--device"))
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
        let first = fresh.disks.first().map(|disk| PathBuf::from(&disk.device));
        if let Some(pool) = is_served(self)
            && pool.fault.is_none()
            && Some(&pool.device) == first.as_ref()
        {
            return Ok(AgentAnswer::Done);
        }
        let formatted = self.format_disks(&fresh, size, overwrite);
        // Perhaps it is this very pool, formatted before a crash: whether it is, is seen when it
        // is served.
        let is_there = formatted.as_ref().is_err_and(is_there);
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

    /// Formats every disk of a pool. Disks that are there already are told as the last fault, so
    /// that those after them are made too.
    fn format_disks(
        &self,
        fresh: &PoolSpec,
        size: Option<u64>,
        overwrite: bool,
    ) -> Result<(), Trouble> {
        let mut there = Ok(());
        for disk in &fresh.disks {
            let verb = Verb::PoolFormat {
                id: fresh.id,
                disk: disk.id,
                device: PathBuf::from(&disk.device),
                size,
                overwrite,
            };
            match self.store_socket().act(verb) {
                Err(trouble) if is_there(&trouble) => there = Err(trouble),
                other => other?,
            }
        }
        there
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
        let has_snapshot = self.freeze(import)?;
        Ok(AgentAnswer::Imported { size: whole, has_snapshot })
    }

    /// Makes the snapshot that system disks are cloned from. A store that was started by an older
    /// release has none; its images are cloned as they are.
    fn freeze(&self, import: &Import) -> Result<bool, Refusal> {
        let verb = Verb::SnapshotCreate {
            pool: import.pool,
            volume: import.volume,
            snapshot: import.snapshot,
            name: import.name.clone(),
        };
        match self.store_socket().act(verb) {
            Ok(()) => Ok(true),
            Err(Trouble::Refused { code, .. })
                if code == "not-served" || code == "not-a-request" =>
            {
                Ok(false)
            }
            Err(trouble) => Err(refusal(&trouble)),
        }
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

/// The pool's disk is there, or is some other pool's: which, is seen when it is served.
fn is_there(trouble: &Trouble) -> bool {
    matches!(trouble, Trouble::Refused { code, .. }
        if code == "pool-there" || code == "device-in-use")
}

/// A result for which the store's `code` says that it was done before.
fn forgiving(result: Result<AgentAnswer, Trouble>, expected: &str) -> Result<AgentAnswer, Trouble> {
    match result {
        Err(Trouble::Refused { code, .. }) if code == expected => Ok(AgentAnswer::Done),
        other => other,
    }
}

/// What an operator hears of a daemon whose process was to be replaced.
fn upgraded(
    outcome: Result<Replaced, ReplaceError>,
    daemon: &str,
) -> Result<DaemonUpgrade, Refusal> {
    let replaced = outcome.map_err(|error| {
        Refusal::new(Code::Failed, error.to_string())
            .remedy(format!("see the log of {daemon} on the node"))
    })?;
    Ok(DaemonUpgrade {
        process_before: replaced.before,
        process: replaced.process,
        version_before: replaced.version_before,
        version: replaced.version,
        took_ms: u32::try_from(replaced.took.as_millis()).unwrap_or(u32::MAX),
    })
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
        "pool-missing" | "volume-missing" | "device-missing" | "snapshot-missing"
        | "disk-missing" => Code::NotFound,
        "pool-there"
        | "pool-exists"
        | "volume-exists"
        | "name-taken"
        | "snapshot-exists"
        | "snapshot-name-taken"
        | "target-exists" => Code::Exists,
        "volume-attached"
        | "device-in-use"
        | "volume-has-snapshots"
        | "disk-needed"
        | "snapshot-has-clones"
        | "snapshot-in-use" => Code::InUse,
        "volume-busy" | "pool-starting" | "stopping" | "pool-fault" | "scrub-running"
        | "delta-base" | "disk-leaving" | "disk-join" | "disk-out" | "clone-too-deep"
        | "volume-no-clone" => Code::State,
        "no-space" | "volumes-full" | "snapshots-full" => Code::NoRoom,
        "volume-size" | "volume-shrink" | "range" | "device-path" | "device-size"
        | "device-shrink" | "not-served" => Code::Invalid,
        _ => Code::Failed,
    }
}
