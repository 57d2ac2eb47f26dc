// SPDX-License-Identifier: Apache-2.0
//! A node that has volumes and VMs in memory only, and can be told to fail.

use plinth_api::*;
use plinth_client::{Agent, ByteStream};
use plinth_ids::{Epoch, PoolId, VmId, VolumeId};
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
            Command::VolumeClone { pool, source, volume, size, .. } => {
                pool_is_there(pool)?;
                if !self.volumes.contains_key(source) {
                    return Err(Refusal::new(Code::NotFound, "no such source"));
                }
                self.volumes.insert(*volume, *size);
            }
            Command::VolumeGrow { volume, size, .. } => {
                self.volumes.insert(*volume, *size);
            }
            Command::VolumeDelete { volume, .. } => {
                if self.is_attached(*volume) {
                    return Err(Refusal::new(Code::InUse, "a VM has it"));
                }
                self.volumes.remove(volume);
            }
            Command::SwitchDrops => {
                let drop = DropCount { reason: "vni-unknown".to_owned(), packets: 3 };
                return Ok(AgentAnswer::SwitchDrops(vec![drop]));
            }
            Command::ImageImport { .. } | Command::SwitchPorts | Command::SwitchFlows { .. } => {
                return Err(Refusal::new(Code::Failed, "not here"));
            }
        }
        Ok(AgentAnswer::Done)
    }
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
            load: Load::default(),
        }
    }

    async fn perform(
        &self,
        command: Command,
        input: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<AgentAnswer, Refusal> {
        let Command::ImageImport { volume, .. } = command else {
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
        Ok(AgentAnswer::Imported { size })
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
