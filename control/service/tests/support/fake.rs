// SPDX-License-Identifier: Apache-2.0
//! A node that has volumes and VMs in memory only, and can be told to fail.

use plinth_api::*;
use plinth_client::{Agent, ByteStream};
use plinth_ids::{Epoch, Name, PoolId, SnapshotId, VmId, VolumeId};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

#[derive(Debug, Default)]
pub(crate) struct FakeAgent {
    state: Mutex<Fake>,
}

#[derive(Debug, Default)]
pub(crate) struct Fake {
    pub(crate) spec: Option<NodeSpec>,
    pub(crate) pools: Vec<PoolId>,
    /// Volumes with their sizes.
    pub(crate) volumes: BTreeMap<VolumeId, u64>,
    /// Snapshots with the volume and its size then.
    pub(crate) snapshots: BTreeMap<SnapshotId, (VolumeId, Name, u64)>,
    /// What was wiped, rolled back and so on, a line each.
    pub(crate) deeds: Vec<String>,
    pub(crate) disks: Vec<DiskStatus>,
    /// Backends of load balancers that fail their checks.
    pub(crate) unfit: Option<Vec<UnfitBackend>>,
    /// What the switch says of the backends of `web`.
    pub(crate) backends: String,
    pub(crate) vms: BTreeMap<VmId, VmStatus>,
    /// The answer to every command, instead of doing it.
    pub(crate) refusal: Option<Refusal>,
    /// What becomes of a VM that is to run.
    pub(crate) starts_as: Option<(VmState, &'static str)>,
    pub(crate) specs_taken: u64,
}

impl FakeAgent {
    pub(crate) fn state(&self) -> MutexGuard<'_, Fake> {
        self.state.lock().unwrap()
    }
}

impl Fake {
    fn take(&mut self, spec: NodeSpec) -> Result<Epoch, Refusal> {
        if self.spec.as_ref().is_some_and(|old| old.epoch > spec.epoch) {
            return Err(Refusal::new(Code::State, "an older spec"));
        }
        self.vms.retain(|id, _| spec.vms.iter().any(|vm| vm.id == *id));
        for vm in &spec.vms {
            for disk in &vm.disks {
                assert!(self.volumes.contains_key(&disk.volume), "a disk was not made");
            }
            let (state, reason) = match vm.run {
                Run::Stopped { .. } => (VmState::Stopped, ""),
                Run::Running => self.starts_as.unwrap_or((VmState::Running, "")),
            };
            let status = VmStatus {
                id: vm.id,
                state,
                process: None,
                since: 0,
                reason: reason.to_owned(),
                restarts: 0,
                start_number: vm.start_number,
                accelerator: "fake".to_owned(),
                nics: vm.nics.iter().map(|nic| nic.port).collect(),
                nics_due: Vec::new(),
            };
            self.vms.insert(vm.id, status);
        }
        self.specs_taken += 1;
        let epoch = spec.epoch;
        self.spec = Some(spec);
        Ok(epoch)
    }

    fn is_attached(&self, volume: VolumeId) -> bool {
        let vms = self.spec.iter().flat_map(|spec| &spec.vms);
        vms.flat_map(|vm| &vm.disks).any(|disk| disk.volume == volume)
    }

    fn carry_out(&mut self, command: &Command) -> Result<AgentAnswer, Refusal> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let pool_is_there = |pool: &PoolId| {
            if self.pools.contains(pool) {
                Ok(())
            } else {
                Err(Refusal::new(Code::NotFound, "no such pool"))
            }
        };
        match command {
            Command::PoolFormat { pool, .. } => {
                if !self.pools.contains(pool) {
                    self.pools.push(*pool);
                }
            }
            Command::VolumeCreate { pool, volume, size, .. } => {
                pool_is_there(pool)?;
                self.volumes.insert(*volume, *size);
            }
            Command::VolumeClone { pool, source, snapshot, volume, size, .. } => {
                pool_is_there(pool)?;
                if snapshot.is_some_and(|snapshot| !self.snapshots.contains_key(&snapshot)) {
                    return Err(Refusal::new(Code::NotFound, "no such snapshot"));
                }
                if !self.volumes.contains_key(source) {
                    return Err(Refusal::new(Code::NotFound, "no such source"));
                }
                self.volumes.insert(*volume, *size);
            }
            Command::VolumeGrow { volume, size, .. } => {
                self.volumes.insert(*volume, *size);
            }
            Command::VolumeDelete { volume, wipe, .. } => {
                if self.snapshots.values().any(|(other, ..)| other == volume) {
                    return Err(Refusal::new(Code::InUse, "it has snapshots"));
                }
                if *wipe {
                    self.deeds.push(format!("wipe {volume}"));
                }
                if self.is_attached(*volume) {
                    return Err(Refusal::new(Code::InUse, "a VM has it"));
                }
                self.volumes.remove(volume);
            }
            Command::SwitchDrops => {
                let drop = DropCount { reason: "vni-unknown".to_owned(), packets: 3 };
                return Ok(AgentAnswer::SwitchDrops(vec![drop]));
            }
            other => return self.carry_out_more(other),
        }
        Ok(AgentAnswer::Done)
    }

    fn carry_out_more(&mut self, command: &Command) -> Result<AgentAnswer, Refusal> {
        let size_of = |state: &Self, volume: &VolumeId| {
            let size = state.volumes.get(volume).copied();
            size.ok_or_else(|| Refusal::new(Code::NotFound, "no such volume"))
        };
        match command {
            Command::SnapshotCreate { volume, snapshot, name, .. } => {
                let size = size_of(self, volume)?;
                self.snapshots.insert(*snapshot, (*volume, name.clone(), size));
            }
            Command::SnapshotDelete { snapshot, .. } => {
                self.snapshots.remove(snapshot);
            }
            Command::SnapshotRollback { volume, snapshot, .. } => {
                let (_, name, size) = self.snapshots[snapshot].clone();
                self.volumes.insert(*volume, size);
                self.deeds.push(format!("rollback {volume} to {name}"));
            }
            Command::VolumeShow { volume, .. } => {
                let size = size_of(self, volume)?;
                return Ok(AgentAnswer::VolumeUsage(self.usage(*volume, size)));
            }
            Command::VolumeDiff { start: 0, .. } => {
                let ranges = vec![DiffRange { offset: 0, length: 4096, is_zero: false }];
                return Ok(AgentAnswer::Diff { ranges, next: Some(8192) });
            }
            Command::VolumeDiff { start, .. } => {
                let ranges = vec![DiffRange { offset: *start, length: 4096, is_zero: true }];
                return Ok(AgentAnswer::Diff { ranges, next: None });
            }
            Command::DeltaImport { volume, snapshot, .. } => {
                let name: Name = "tuesday".parse().unwrap();
                self.volumes.insert(*volume, 2 << 20);
                self.snapshots.insert(*snapshot, (*volume, name.clone(), 2 << 20));
                return Ok(AgentAnswer::Snapshot(SnapshotUsage {
                    id: *snapshot,
                    name,
                    size: 2 << 20,
                    unique: 0,
                    created_at: 9,
                }));
            }
            Command::VolumeFlatten { .. }
            | Command::DeltaExport { .. }
            | Command::DiskAdd { .. }
            | Command::DiskRemove { .. }
            | Command::ScrubStart { .. }
            | Command::ScrubStop { .. } => self.deeds.push(word_of(command)),
            Command::SwitchLook(question) if question == "\"external\"" => {
                return Ok(AgentAnswer::SwitchSight(self.external()));
            }
            Command::SwitchLook(question) if question == "{\"backends\":\"web\"}" => {
                return Ok(AgentAnswer::SwitchSight(self.backends.clone()));
            }
            Command::ImageImport { .. }
            | Command::SwitchPorts
            | Command::SwitchLook(_)
            | Command::SwitchFlows { .. } => {
                return Err(Refusal::new(Code::Failed, "not here"));
            }
            question => return self.look(question),
        }
        Ok(AgentAnswer::Done)
    }

    /// A switch's answer: every address of the spec with numbers that tests know again.
    fn external(&self) -> String {
        let eips = self.spec.iter().flat_map(|spec| &spec.external.eips);
        let gateways = self.spec.iter().flat_map(|spec| &spec.external.gateways);
        let shared = gateways.flat_map(|gateway| gateway.addresses.iter().copied());
        let rows: Vec<String> = eips
            .map(|eip| eip.address)
            .chain(shared)
            .map(|address| {
                format!(
                    "{{\"address\":\"{address}\",\"packets_in\":1,\"bytes_in\":2,\
                     \"packets_out\":3,\"bytes_out\":4}}"
                )
            })
            .collect();
        format!("{{\"external\":[{}]}}", rows.join(","))
    }

    fn usage(&self, volume: VolumeId, size: u64) -> VolumeUsage {
        let own = self.snapshots.iter().filter(|(_, (other, ..))| *other == volume);
        let usage = |(id, (_, name, size)): (&SnapshotId, &(VolumeId, Name, u64))| SnapshotUsage {
            id: *id,
            name: name.clone(),
            size: *size,
            unique: 4096,
            created_at: 7,
        };
        VolumeUsage {
            size,
            written: 8192,
            unique: 4096,
            snapshots_unique: 4096,
            snapshots: own.map(usage).collect(),
            parent: None,
            job: None,
        }
    }

    fn look(&self, question: &Command) -> Result<AgentAnswer, Refusal> {
        Ok(match question {
            Command::Metrics => AgentAnswer::Metrics(self.metrics()),
            Command::SlowRequests { limit } => {
                let slow = |at_ms: u64| SlowRequest {
                    at_ms,
                    pool: self.pools[0],
                    volume: VolumeId(1),
                    kind: "read".to_owned(),
                    offset: 0,
                    length: 4096,
                    total_ns: 20_000_000,
                    waits: vec![Wait { stage: "disk".to_owned(), ns: 19_000_000 }],
                };
                AgentAnswer::SlowRequests((0..(*limit).min(9).into()).map(slow).collect())
            }
            Command::SwitchUpgrade => AgentAnswer::SwitchUpgraded(DaemonUpgrade {
                process_before: 21,
                process: 22,
                version_before: "fake".to_owned(),
                version: "fake-2".to_owned(),
                took_ms: 7,
            }),
            Command::StoreUpgrade => AgentAnswer::StoreUpgraded(DaemonUpgrade {
                process_before: 11,
                process: 12,
                version_before: "fake".to_owned(),
                version: "fake-2".to_owned(),
                took_ms: 40,
            }),
            Command::DiskShow { .. } => AgentAnswer::BadBlocks(vec![BadBlock {
                object: "data".to_owned(),
                volume: Some(VolumeId(1)),
                volume_offset: Some(4096),
                block: 1,
                offset: 65_536,
                found_by: FoundBy::DeepScrub,
                found_at: 7,
            }]),
            Command::ScrubStatus { .. } => AgentAnswer::Scrubs(Vec::new()),
            _ => return Err(Refusal::new(Code::Failed, "not here either")),
        })
    }

    /// Every attached volume has read once.
    fn metrics(&self) -> Vec<VolumeMetrics> {
        let latency = Latency { count: 1, p50: 1000, p99: 2000, p999: 3000, max: 4000 };
        let vms = self.spec.iter().flat_map(|spec| &spec.vms);
        vms.flat_map(|vm| &vm.disks)
            .map(|disk| VolumeMetrics {
                pool: disk.pool,
                volume: disk.volume,
                read: latency,
                write: Latency::default(),
                flush: Latency::default(),
                read_bytes: 4096,
                written_bytes: 0,
                errors: 0,
                throttled: disk.limits.map_or(0, |limits| limits.iops),
            })
            .collect()
    }
}

/// A command's name.
fn word_of(command: &Command) -> String {
    let text = format!("{command:?}");
    text.split(' ').next().unwrap_or_default().to_owned()
}

impl Agent for FakeAgent {
    async fn apply(&self, spec: NodeSpec) -> Result<Epoch, Refusal> {
        self.state().take(spec)
    }

    async fn status(&self) -> NodeStatus {
        let state = self.state();
        let pool = |id: &PoolId| PoolStatus {
            id: *id,
            fault: None,
            capacity: 1 << 30,
            used: 0,
            checksum_errors: 0,
            level: Level::Ok,
            disks: state.disks.clone(),
        };
        let served = state.spec.iter().flat_map(|spec| &spec.pools).map(|pool| pool.id);
        NodeStatus {
            epoch: state.spec.as_ref().map(|spec| spec.epoch),
            version: "fake".to_owned(),
            facts: Facts { cpus: 4, memory: 16 << 30, ..Facts::default() },
            daemons: Vec::new(),
            vms: state.vms.values().cloned().collect(),
            pools: served.collect::<Vec<_>>().iter().map(pool).collect(),
            volumes: Vec::new(),
            unfit: state.unfit.clone(),
            load: Load::default(),
        }
    }

    async fn perform(
        &self,
        command: Command,
        input: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<AgentAnswer, Refusal> {
        let Command::ImageImport { volume, snapshot, name, .. } = command else {
            return self.state().carry_out(&command);
        };
        if let Some(refusal) = &self.state().refusal {
            return Err(refusal.clone());
        }
        // Visible from the first byte, as a real volume is.
        self.state().volumes.insert(volume, 0);
        let mut bytes = Vec::new();
        input
            .read_to_end(&mut bytes)
            .await
            .map_err(|err| Refusal::new(Code::Invalid, err.to_string()))?;
        let size = bytes.len() as u64;
        self.state().volumes.insert(volume, size);
        self.state().snapshots.insert(snapshot, (volume, name, size));
        Ok(AgentAnswer::Imported { size, has_snapshot: true })
    }

    async fn console(&self, vm: VmId) -> Result<Box<dyn ByteStream>, Refusal> {
        if !self.state().vms.contains_key(&vm) {
            return Err(Refusal::new(Code::State, "the VM is off"));
        }
        let (near, mut far) = tokio::io::duplex(64);
        tokio::spawn(async move {
            let mut bytes = [0; 4];
            far.read_exact(&mut bytes).await.unwrap();
            bytes.reverse();
            far.write_all(&bytes).await.unwrap();
        });
        Ok(Box::new(near))
    }
}
