// SPDX-License-Identifier: Apache-2.0
//! What a node has yet to do, and what its answers mean.
//!
//! Acts are read off states, so that they are the same before and after a crash. A node carries
//! out one act at a time; an act is sent again until it is answered.

use crate::change::{Change, Key, Record};
use crate::cluster::{Cluster, Observed};
use crate::record::{
    DiskRecord, PoolRecord, SnapshotRecord, Source, State, VmRecord, VolumeRecord,
};
use crate::spec::disk_spec;
use plinth_api::{AgentAnswer, Code, Command, Refusal};
use plinth_ids::{Name, NodeId, PortId, VolumeId};
use std::collections::BTreeSet;

/// One command for one node, and the record that it is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Act {
    pub key: Key,
    pub command: Command,
}

impl Cluster {
    /// Everything that a node has yet to do, pools first.
    pub fn due(&self, node: NodeId) -> Vec<Act> {
        let mut acts = Vec::new();
        for pool in self.pools.values().filter(|pool| pool.node == node) {
            if pool.state == State::Creating {
                acts.push(Act { key: Key::Pool(pool.name.clone()), command: format_command(pool) });
            } else {
                let commands = pool.disks.iter().filter_map(|disk| disk_command(pool, disk));
                let key = Key::Pool(pool.name.clone());
                acts.extend(commands.map(|command| Act { key: key.clone(), command }));
            }
        }
        for volume in self.volumes.values() {
            if self.pool(volume.pool).is_some_and(|pool| pool.node == node)
                && let Some(command) = self.volume_command(volume)
            {
                acts.push(Act { key: Key::Volume(volume.name.clone()), command });
            }
        }
        for snapshot in self.snapshots.values() {
            if let Some(volume) = self.volumes.get(&snapshot.volume)
                && self.pool(volume.pool).is_some_and(|pool| pool.node == node)
                && let Some(command) = snapshot_command(volume, snapshot)
            {
                let key = Key::Snapshot(snapshot.volume.clone(), snapshot.name.clone());
                acts.push(Act { key, command });
            }
        }
        for image in self.images.values().filter(|image| image.state == State::Deleting) {
            for copy in &image.copies {
                if self.pool(copy.pool).is_some_and(|pool| pool.node == node) {
                    let (pool, volume) = (copy.pool, copy.volume);
                    let command = match copy.snapshot {
                        Some(snapshot) => Command::SnapshotDelete { pool, volume, snapshot },
                        None => Command::VolumeDelete { pool, volume, wipe: false },
                    };
                    acts.push(Act { key: Key::Image(image.name.clone()), command });
                }
            }
        }
        acts
    }

    fn volume_command(&self, volume: &VolumeRecord) -> Option<Command> {
        let VolumeRecord { pool, id, size, ref name, .. } = *volume;
        match volume.state {
            State::Ready => None,
            State::Growing => Some(Command::VolumeGrow { pool, volume: id, size }),
            // Its VM's spec goes first.
            State::Deleting if self.holder(id).is_some() => None,
            // So do its snapshots.
            State::Deleting if self.snapshots_of(name).next().is_some() => None,
            State::Deleting => Some(Command::VolumeDelete { pool, volume: id, wipe: volume.wipe }),
            State::Creating => {
                let name = name.clone();
                if let Some(Source { volume: source, snapshot }) = volume.source {
                    return Some(Command::VolumeClone {
                        pool,
                        source,
                        snapshot,
                        volume: id,
                        name,
                        size,
                    });
                }
                let source = volume.image.and_then(|image| {
                    let image = self.images.values().find(|record| record.id == image)?;
                    image.copies.iter().find(|copy| copy.pool == pool)
                });
                Some(match source {
                    Some(copy) => {
                        let (source, snapshot) = (copy.volume, copy.snapshot);
                        Command::VolumeClone { pool, source, snapshot, volume: id, name, size }
                    }
                    None => Command::VolumeCreate { pool, volume: id, name, size },
                })
            }
        }
    }

    /// What a node's answer to an act changes. An answer that says the node could not try leaves
    /// everything as it is, and the act due.
    pub fn settle(&self, act: &Act, answer: &Result<AgentAnswer, Refusal>) -> Change {
        if let Err(refusal) = answer
            && matches!(refusal.code(), Some(Code::Unreachable | Code::Timeout))
        {
            return Change::default();
        }
        match (&act.key, &act.command) {
            (Key::Pool(name), Command::PoolFormat { .. }) => self.settle_pool(name, answer.is_ok()),
            (Key::Pool(name), Command::DiskAdd { disk, .. }) => {
                self.settle_disk(name, *disk, answer.is_ok())
            }
            (Key::Pool(name), Command::DiskRemove { disk, .. }) => {
                self.settle_disk(name, *disk, !is_gone(answer))
            }
            (Key::Snapshot(volume, name), Command::SnapshotCreate { snapshot, .. }) => {
                self.settle_snapshot((volume, name), *snapshot, answer.as_ref().err())
            }
            (Key::Snapshot(volume, name), Command::SnapshotDelete { .. }) if is_gone(answer) => {
                Change::default().delete(Key::Snapshot(volume.clone(), name.clone()))
            }
            (Key::Snapshot(volume, name), Command::SnapshotDelete { .. }) if is_kept(answer) => {
                self.snapshot_stays(volume, name)
            }
            (Key::Image(name), Command::SnapshotDelete { .. } | Command::VolumeDelete { .. })
                if is_kept(answer) =>
            {
                self.image_stays(name)
            }
            (Key::Image(name), Command::SnapshotDelete { volume, .. }) if is_gone(answer) => {
                self.copy_unfrozen(name, *volume)
            }
            (Key::Volume(name), command) => self.settle_volume(name, command, answer),
            (Key::Image(name), Command::VolumeDelete { volume, .. }) if is_gone(answer) => {
                self.copy_removed(name, *volume)
            }
            _ => Change::default(),
        }
    }

    fn settle_pool(&self, name: &Name, is_made: bool) -> Change {
        match self.pools.get(name) {
            Some(pool) if pool.state == State::Creating && is_made => {
                let mut pool = PoolRecord { state: State::Ready, ..pool.clone() };
                pool.disks.iter_mut().for_each(|disk| disk.state = State::Ready);
                Change::default().put(Record::Pool(pool))
            }
            Some(pool) if pool.state == State::Creating => {
                Change::default().delete(Key::Pool(name.clone()))
            }
            _ => Change::default(),
        }
    }

    fn settle_volume(
        &self,
        name: &Name,
        command: &Command,
        answer: &Result<AgentAnswer, Refusal>,
    ) -> Change {
        let Some(volume) = self.volumes.get(name) else { return Change::default() };
        match (volume.state, command) {
            (
                State::Creating,
                Command::VolumeCreate { volume: id, .. } | Command::VolumeClone { volume: id, .. },
            ) if *id == volume.id => self.settle_made(volume, answer.is_ok()),
            (State::Growing, Command::VolumeGrow { volume: id, size, .. })
                if *id == volume.id && *size == volume.size =>
            {
                // A refused growth falls back to what the node has.
                let size = if answer.is_ok() { volume.size } else { volume.served_size };
                Change::default().put(Record::Volume(VolumeRecord {
                    size,
                    served_size: size,
                    state: State::Ready,
                    ..volume.clone()
                }))
            }
            (State::Deleting, Command::VolumeDelete { volume: id, .. })
                if *id == volume.id && is_gone(answer) =>
            {
                Change::default().delete(Key::Volume(name.clone()))
            }
            // A system disk waits until nothing stands on it: its VM is gone, and nobody asks.
            (State::Deleting, Command::VolumeDelete { volume: id, .. })
                if *id == volume.id && is_kept(answer) && volume.system_of.is_none() =>
            {
                let volume = VolumeRecord { state: State::Ready, wipe: false, ..volume.clone() };
                Change::default().put(Record::Volume(volume))
            }
            _ => Change::default(),
        }
    }

    fn settle_made(&self, volume: &VolumeRecord, is_made: bool) -> Change {
        let vm = volume.system_of.map(|vm| self.vm(vm));
        let is_wanted = match vm {
            None => true,
            Some(vm) => vm.is_some_and(|vm| vm.state != State::Deleting),
        };
        if !is_made {
            let change = Change::default().delete(Key::Volume(volume.name.clone()));
            // A VM without its system disk is none. It was in no spec yet, so no node has it,
            // whether it is being made or deleted already.
            return match vm.flatten() {
                Some(vm) => self.unbind_nics(&[vm], change.delete(Key::Vm(vm.name.clone()))),
                None => change,
            };
        }
        if !is_wanted {
            return self.doom(volume);
        }
        let ready = VolumeRecord { state: State::Ready, ..volume.clone() };
        let mut change = Change::default().put(Record::Volume(ready));
        if let Some(Some(vm)) = vm
            && vm.state == State::Creating
        {
            let vm = self.put_vm(VmRecord { state: State::Ready, ..vm.clone() });
            change.writes.extend(vm.writes);
        }
        change
    }

    /// Removes the VMs that their node has let go of, and dooms their system disks.
    pub fn release(&self, node: NodeId, observed: &Observed) -> Change {
        let mut change = Change::default();
        let Some(status) = observed.status(node) else { return change };
        let mut gone = Vec::new();
        for vm in self.vms.values().filter(|vm| vm.node == node && vm.state == State::Deleting) {
            let has_spec = status.epoch.is_some_and(|epoch| epoch > vm.changed_after);
            if !has_spec || status.vms.iter().any(|seen| seen.id == vm.id) {
                continue;
            }
            change = change.delete(Key::Vm(vm.name.clone()));
            gone.push(vm);
            for volume in self.system_volumes(vm) {
                // One that is being made yet is doomed when that is answered.
                if volume.state != State::Creating {
                    change.writes.extend(self.doom(volume).writes);
                }
            }
        }
        let nics = self.detached(node, observed);
        let is_free = |vm: &VmRecord| !gone.iter().any(|other| other.id == vm.id);
        for vm in self.vms.values().filter(|vm| is_free(vm)) {
            if vm.nics.iter().any(|nic| nics.contains(&nic.port)) {
                let mut vm = vm.clone();
                vm.nics.retain(|nic| !nics.contains(&nic.port));
                change.writes.extend(self.put_vm(vm).writes);
            }
        }
        let ports = gone.iter().flat_map(|vm| &vm.nics).map(|nic| nic.port).chain(nics).collect();
        self.unbind_ports(&ports, change)
    }

    /// NICs that were taken from their VMs, and that no process of the node has or may be started
    /// with any more.
    fn detached(&self, node: NodeId, observed: &Observed) -> BTreeSet<PortId> {
        let Some(status) = observed.status(node) else { return BTreeSet::new() };
        let is_told = |vm: &&VmRecord| status.epoch.is_some_and(|epoch| epoch > vm.changed_after);
        let is_held = |port: PortId| {
            status.vms.iter().any(|seen| seen.nics.contains(&port) || seen.nics_due.contains(&port))
        };
        let vms = self.vms.values().filter(|vm| vm.node == node).filter(is_told);
        let leaving = vms.flat_map(|vm| &vm.nics).filter(|nic| nic.is_leaving);
        leaving.map(|nic| nic.port).filter(|port| !is_held(*port)).collect()
    }

    fn system_volumes(&self, vm: &VmRecord) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.values().filter(|volume| volume.system_of == Some(vm.id))
    }

    /// The lowest epoch that a node's spec must have to hold every change of its VMs.
    pub fn epoch_wanted(&self, node: NodeId) -> u64 {
        let changes = self.vms.values().filter(|vm| vm.node == node).map(|vm| vm.changed_after.0);
        changes.max().map_or(0, |newest| newest + 1)
    }

    /// Whether a volume of this id is known: as a volume or as an image's copy.
    pub fn knows_volume(&self, id: VolumeId) -> bool {
        self.volume(id).is_some()
            || self.images.values().any(|image| image.copies.iter().any(|copy| copy.volume == id))
    }
}

fn is_gone(answer: &Result<AgentAnswer, Refusal>) -> bool {
    match answer {
        Ok(_) => true,
        Err(refusal) => refusal.code() == Some(Code::NotFound),
    }
}

/// The node says that something stands on it, as a clone does, or that it cannot do this at all,
/// as a wipe by a store of an older release: it stays until somebody asks anew.
fn is_kept(answer: &Result<AgentAnswer, Refusal>) -> bool {
    let code = answer.as_ref().err().and_then(Refusal::code);
    matches!(code, Some(Code::InUse | Code::Invalid))
}

fn format_command(pool: &PoolRecord) -> Command {
    Command::PoolFormat {
        pool: pool.id,
        name: pool.name.clone(),
        disks: pool.disks.iter().map(disk_spec).collect(),
        // All disks of a pool that is being made were asked for at once.
        size: pool.disks.first().and_then(|disk| disk.size),
        durability: pool.durability,
        class: pool.class,
        overwrite: pool.disks.iter().any(|disk| disk.overwrite),
    }
}

fn disk_command(pool: &PoolRecord, disk: &DiskRecord) -> Option<Command> {
    match disk.state {
        State::Ready | State::Growing => None,
        State::Creating => Some(Command::DiskAdd {
            pool: pool.id,
            disk: disk.id,
            device: disk.device.clone(),
            size: disk.size,
            overwrite: disk.overwrite,
        }),
        State::Deleting => Some(Command::DiskRemove { pool: pool.id, disk: disk.id }),
    }
}

fn snapshot_command(volume: &VolumeRecord, snapshot: &SnapshotRecord) -> Option<Command> {
    let (pool, id) = (volume.pool, snapshot.id);
    match snapshot.state {
        State::Ready | State::Growing => None,
        State::Creating => Some(Command::SnapshotCreate {
            pool,
            volume: volume.id,
            snapshot: id,
            name: snapshot.name.clone(),
        }),
        State::Deleting => Some(Command::SnapshotDelete { pool, volume: volume.id, snapshot: id }),
    }
}
