// SPDX-License-Identifier: Apache-2.0
//! A switch and a store that have no data plane: sockets are plain files.

use plinth_ids::{Epoch, Name, PoolId, SnapshotId, VolumeId};
use plinth_manage::{Kept, LineFault, Server, ServerConfig, Service};
use plinth_store_api as store;
use plinth_switch_api as switch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Makes the sockets that a configuration names, and removes those that an older one named.
fn make_sockets(folder: &Path, wanted: &[PathBuf]) {
    std::fs::create_dir_all(folder).expect("the run folder can be written");
    for entry in std::fs::read_dir(folder).expect("the folder was just made") {
        let path = entry.expect("the folder can be read").path();
        if !wanted.contains(&path) {
            std::fs::remove_file(path).expect("only we remove files here");
        }
    }
    for path in wanted {
        std::fs::write(path, "").expect("the run folder can be written");
    }
}

fn serve<S: Service>(socket: PathBuf, service: S) {
    let server = Server::start(ServerConfig::new(socket), Arc::new(service));
    let _server = server.expect("the agent starts a daemon only when none answers");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The law that both daemons hold configurations to. `None` when it may be carried out.
fn refused(kept: Option<Epoch>, offered: Epoch, is_same: bool) -> Option<&'static str> {
    match kept {
        Some(kept) if offered < kept => Some("config-old"),
        Some(kept) if offered == kept && !is_same => Some("config-same-epoch"),
        _ => None,
    }
}

pub(crate) fn switchd(state: &Path, run: &Path) {
    let kept = Kept::at(state.join("switchd.json"));
    let config: Option<switch::SwitchConfig> = kept.load().expect("we wrote it");
    let (config_now, unfit) = (Mutex::new(config.clone()), run.join("unfit.json"));
    let service = Switch { kept, config: config_now, folder: run.join("net"), unfit };
    if let Some(config) = config {
        service.carry_out(&config);
    }
    serve(run.join("switchd.sock"), service);
}

struct Switch {
    kept: Kept<switch::SwitchConfig>,
    config: Mutex<Option<switch::SwitchConfig>>,
    folder: PathBuf,
    /// A test says here which backends have failed their checks.
    unfit: PathBuf,
}

impl Switch {
    fn carry_out(&self, config: &switch::SwitchConfig) {
        let sockets: Vec<PathBuf> = config.ports.iter().map(|port| port.socket.clone()).collect();
        make_sockets(&self.folder, &sockets);
    }

    fn answer(&self, verb: switch::Verb) -> Result<switch::Answer, switch::Refusal> {
        let mut config = self.config.lock().expect("no holder panics");
        match verb {
            switch::Verb::Apply(offered) => {
                let kept = config.as_ref().map(|kept| kept.epoch);
                let is_same = config.as_ref() == Some(&offered);
                if let Some(code) = refused(kept, offered.epoch, is_same) {
                    return Err(switch::Refusal { code: code.into(), text: code.into() });
                }
                self.kept.save(&offered).expect("the state folder can be written");
                self.carry_out(&offered);
                let epoch = offered.epoch;
                *config = Some(offered);
                Ok(switch::Answer::Applied { epoch })
            }
            // What a switch says to a base that it does not have: the whole is to be sent.
            switch::Verb::Change(_) => Err(switch::Refusal {
                code: "change-base".to_owned(),
                text: "send the whole configuration".to_owned(),
            }),
            switch::Verb::Status => Ok(switch::Answer::Status(switch::Status {
                process: std::process::id(),
                version: "fake".to_owned(),
                epoch: config.as_ref().map(|kept| kept.epoch),
                memory: "ordinary pages".to_owned(),
                workers: Vec::new(),
                answers: switch::AnswerCounts::default(),
            })),
            switch::Verb::Ports => Ok(switch::Answer::Ports(Vec::new())),
            switch::Verb::Flows { .. } => Ok(switch::Answer::Flows(Vec::new())),
            switch::Verb::Drops => Ok(switch::Answer::Drops(vec![switch::DropCount {
                reason: "vni-unknown".to_owned(),
                packets: 3,
            }])),
            switch::Verb::Unfit => {
                let told = std::fs::read_to_string(&self.unfit).unwrap_or_else(|_| "[]".to_owned());
                Ok(switch::Answer::Unfit(serde_json::from_str(&told).expect("a test wrote it")))
            }
            switch::Verb::Look(switch::Look::Drops(_)) => {
                Ok(switch::Answer::Sight(switch::Sight::Drops(Vec::new())))
            }
            switch::Verb::Look(_) => Err(switch::Refusal {
                code: "look-invalid".to_owned(),
                text: "the fake has no packets".to_owned(),
            }),
        }
    }
}

impl Service for Switch {
    type Request = switch::Request;
    type Reply = switch::Reply;

    fn handle(&self, request: switch::Request) -> switch::Reply {
        switch::Reply { id: request.id, result: self.answer(request.verb) }
    }

    fn refuse(&self, fault: LineFault) -> switch::Reply {
        let refusal = switch::Refusal { code: fault.code().to_owned(), text: fault.to_string() };
        switch::Reply { id: 0, result: Err(refusal) }
    }
}

/// A pool's file: which pool it is and what is in it.
#[derive(Default, Deserialize, Serialize)]
struct PoolFile {
    id: PoolId,
    /// Name and size.
    volumes: BTreeMap<u64, (String, u64)>,
    /// Volume and name.
    #[serde(default)]
    snapshots: BTreeMap<u64, (u64, String)>,
}

struct Store {
    kept: Kept<store::StoreConfig>,
    config: Mutex<Option<store::StoreConfig>>,
    folder: PathBuf,
    /// The last import's bytes are copied here.
    imported: PathBuf,
}

pub(crate) fn stored(state: &Path, run: &Path) {
    let kept = Kept::at(state.join("stored.json"));
    let config: Option<store::StoreConfig> = kept.load().expect("we wrote it");
    let service = Store {
        kept,
        config: Mutex::new(config.clone()),
        folder: run.join("blk"),
        imported: state.join("imported"),
    };
    if let Some(config) = config {
        service.carry_out(&config);
    }
    serve(run.join("stored.sock"), service);
}

fn no(code: &str) -> store::Refusal {
    store::Refusal { code: code.to_owned(), text: format!("the fake says {code}") }
}

impl Store {
    fn carry_out(&self, config: &store::StoreConfig) {
        let sockets = config.attachments.iter().map(|attachment| attachment.socket.clone());
        make_sockets(&self.folder, &sockets.collect::<Vec<_>>());
    }

    /// Changes the content of a pool that is in the configuration.
    fn change<T>(
        &self,
        pool: PoolId,
        act: impl FnOnce(&mut PoolFile) -> Result<T, store::Refusal>,
    ) -> Result<T, store::Refusal> {
        let config = self.config.lock().expect("no holder panics");
        let pools = config.as_ref().map(|config| config.pools.as_slice()).unwrap_or_default();
        let known =
            pools.iter().find(|known| known.id == pool).ok_or_else(|| no("pool-missing"))?;
        let kept: Kept<PoolFile> = Kept::at(&known.disks[0].device);
        let mut content = kept.load().map_err(|_| no("pool-fault"))?;
        let content = content.as_mut().ok_or_else(|| no("pool-missing"))?;
        let result = act(content)?;
        kept.save(content).map_err(|_| no("device"))?;
        Ok(result)
    }

    fn answer(&self, verb: store::Verb) -> Result<store::Answer, store::Refusal> {
        match verb {
            store::Verb::Apply(offered) => self.apply(offered),
            store::Verb::Status => {
                let config = self.config.lock().expect("no holder panics");
                Ok(store::Answer::Status(store::Status {
                    process: std::process::id(),
                    version: "fake".to_owned(),
                    epoch: config.as_ref().map(|kept| kept.epoch),
                    attachments: Vec::new(),
                    busy: 0.0,
                    busy_cycles: 0,
                    requests: 0,
                    sleeps: 0,
                    costs: store::Costs::default(),
                }))
            }
            store::Verb::PoolFormat { id, device, overwrite, .. } => {
                let kept: Kept<PoolFile> = Kept::at(&device);
                if device.exists() && !overwrite {
                    return Err(no("pool-there"));
                }
                kept.save(&PoolFile { id, ..PoolFile::default() }).map_err(|_| no("device"))?;
                Ok(store::Answer::Done)
            }
            store::Verb::Pools => Ok(store::Answer::Pools(self.pools())),
            store::Verb::VolumeCreate { pool, volume, name, size } => {
                self.change(pool, |content| {
                    let wanted = (name.to_string(), size);
                    match content.volumes.insert(volume.0, wanted.clone()) {
                        Some(other) if other != wanted => Err(no("volume-exists")),
                        _ => Ok(store::Answer::Done),
                    }
                })
            }
            store::Verb::VolumeDelete { pool, volume, .. } => self.change(pool, |content| {
                let removed = content.volumes.remove(&volume.0).ok_or_else(|| no("volume-missing"));
                removed.map(|_| store::Answer::Done)
            }),
            store::Verb::Volumes { pool } => self.change(pool, |content| {
                Ok(store::Answer::Volumes(content.volumes.iter().map(volume).collect()))
            }),
            store::Verb::VolumeImport { pool, volume, source } => self.change(pool, |content| {
                let (_, size) =
                    content.volumes.get(&volume.0).ok_or_else(|| no("volume-missing"))?;
                let bytes = std::fs::read(source).map_err(|_| no("source"))?;
                if bytes.len() as u64 != *size {
                    return Err(no("volume-size"));
                }
                std::fs::write(&self.imported, bytes).map_err(|_| no("device"))?;
                Ok(store::Answer::Done)
            }),
            other => self.answer_snapshots(other),
        }
    }

    fn answer_snapshots(&self, verb: store::Verb) -> Result<store::Answer, store::Refusal> {
        match verb {
            store::Verb::SnapshotCreate { pool, volume, snapshot, name } => {
                self.change(pool, |content| {
                    if !content.volumes.contains_key(&volume.0) {
                        return Err(no("volume-missing"));
                    }
                    content.snapshots.insert(snapshot.0, (volume.0, name.to_string()));
                    Ok(store::Answer::Snapshot(snapshot_of(snapshot, name)))
                })
            }
            store::Verb::SnapshotDelete { pool, snapshot, .. } => self.change(pool, |content| {
                let removed = content.snapshots.remove(&snapshot.0);
                removed.map(|_| store::Answer::Done).ok_or_else(|| no("snapshot-missing"))
            }),
            store::Verb::VolumeShow { pool, volume: id } => self.change(pool, |content| {
                let known = content.volumes.get_key_value(&id.0);
                let status = known.map(volume).ok_or_else(|| no("volume-missing"))?;
                let own = content.snapshots.iter().filter(|(_, (volume, _))| *volume == id.0);
                let snapshot = |(id, (_, name)): (&u64, &(u64, String))| {
                    snapshot_of(SnapshotId(*id), name.parse().expect("it was a name"))
                };
                Ok(store::Answer::VolumeDetail(Box::new(store::VolumeDetail {
                    status,
                    unique: 4096,
                    snapshots_unique: 8192,
                    snapshots: own.map(snapshot).collect(),
                    parent: None,
                    job: None,
                })))
            }),
            _ => Err(no("not-served")),
        }
    }

    fn apply(&self, offered: store::StoreConfig) -> Result<store::Answer, store::Refusal> {
        let mut config = self.config.lock().expect("no holder panics");
        let kept = config.as_ref().map(|kept| kept.epoch);
        if let Some(code) = refused(kept, offered.epoch, config.as_ref() == Some(&offered)) {
            return Err(no(code));
        }
        self.kept.save(&offered).expect("the state folder can be written");
        self.carry_out(&offered);
        let epoch = offered.epoch;
        *config = Some(offered);
        Ok(store::Answer::Applied { epoch })
    }

    fn pools(&self) -> Vec<store::PoolStatus> {
        let config = self.config.lock().expect("no holder panics");
        let pools = config.as_ref().map(|config| config.pools.as_slice()).unwrap_or_default();
        let status = |pool: &store::Pool| {
            let content = Kept::<PoolFile>::at(&pool.disks[0].device).load();
            let is_it = matches!(&content, Ok(Some(content)) if content.id == pool.id);
            store::PoolStatus {
                id: pool.id,
                device: pool.disks[0].device.clone(),
                fault: (!is_it).then(|| "another pool is there".to_owned()),
                capacity: 1 << 30,
                used: 0,
                volumes: 0,
                objects: 0,
                checksum_errors: 0,
                level: store::Level::Ok,
                disks: Vec::new(),
                wipes: Vec::new(),
            }
        };
        pools.iter().map(status).collect()
    }
}

fn snapshot_of(snapshot: SnapshotId, name: Name) -> store::SnapshotStatus {
    store::SnapshotStatus { snapshot, name, size: 1, unique: 2, created_at: 3, is_leaving: false }
}

fn volume((number, (name, size)): (&u64, &(String, u64))) -> store::VolumeStatus {
    store::VolumeStatus {
        volume: VolumeId(*number),
        name: name.parse().expect("it was a name"),
        size: *size,
        written: 0,
        objects: 0,
        created_at: 0,
        updated_at: 0,
        attached: None,
    }
}

impl Service for Store {
    type Request = store::Request;
    type Reply = store::Reply;

    fn handle(&self, request: store::Request) -> store::Reply {
        store::Reply { id: request.id, result: self.answer(request.verb) }
    }

    fn refuse(&self, fault: LineFault) -> store::Reply {
        store::Reply { id: 0, result: Err(no(fault.code())) }
    }
}
