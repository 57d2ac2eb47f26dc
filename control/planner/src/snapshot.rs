// SPDX-License-Identifier: Apache-2.0
//! Snapshots of volumes, by hand and by schedule.
//!
//! A schedule is level-triggered: [`Cluster::schedules_due`] compares the slot that the clock is
//! in with the last one that was served. However long the service was away, a volume gets one
//! snapshot for it, because slots that have passed are not asked for. A schedule deletes its own
//! snapshots only, and takes none while its last one is on its way.

use crate::change::{Change, Record};
use crate::clock::scheduled_name;
use crate::cluster::{Cluster, Observed};
use crate::names;
use crate::record::{Meta, Schedule, SnapshotRecord, State, VolumeRecord};
use plinth_api::{Code, Command, Level, Refusal, SnapshotUsage, VmState};
use plinth_ids::{Name, SnapshotId};

/// A shorter interval has two snapshots of one name.
const INTERVAL_MIN: u64 = 60;
const INTERVAL_MAX: u64 = 366 * 24 * 60 * 60;
const KEEP_MAX: u32 = 256;

impl Cluster {
    /// A volume's snapshots, by name.
    pub fn snapshots_of<'a>(
        &'a self,
        volume: &'a Name,
    ) -> impl Iterator<Item = &'a SnapshotRecord> + Clone {
        let lowest: Name = "a".parse().expect("a letter is a name");
        let from = (volume.clone(), lowest);
        self.snapshots
            .range(from..)
            .map(|(_, one)| one)
            .take_while(move |one| one.volume == *volume)
    }

    /// The record of a snapshot, or a refusal that names what there is.
    pub fn find_snapshot(
        &self,
        volume: &Name,
        field: &'static str,
        name: &Name,
    ) -> Result<&SnapshotRecord, Refusal> {
        self.snapshots.get(&(volume.clone(), name.clone())).ok_or_else(|| {
            Refusal::new(Code::NotFound, format!("volume {volume} has no snapshot {name}"))
                .field(field)
                .remedy(format!("`plinth volume snapshot list {volume}` shows what it has"))
        })
    }

    /// The same, of one that can be used.
    pub fn ready_snapshot(
        &self,
        volume: &Name,
        field: &'static str,
        name: &Name,
    ) -> Result<&SnapshotRecord, Refusal> {
        let snapshot = self.find_snapshot(volume, field, name)?;
        if snapshot.state == State::Ready {
            return Ok(snapshot);
        }
        Err(Refusal::new(Code::State, format!("snapshot {name} of {volume} is not ready"))
            .field(field)
            .remedy(format!("`plinth volume snapshot list {volume}` shows its state")))
    }

    pub fn snapshot_create(
        &self,
        volume: &Name,
        name: &Name,
        observed: &Observed,
        now: u64,
    ) -> Result<Change, Refusal> {
        let volume = self.usable_volume(volume, "VOLUME")?;
        if let Some(pool) = self.pool(volume.pool) {
            self.has_room(pool, observed, Level::Full, "VOLUME")?;
        }
        self.snapshot_is_free(&volume.name, name)?;
        let snapshot = SnapshotRecord {
            id: SnapshotId(self.meta.next_snapshot),
            volume: volume.name.clone(),
            name: name.clone(),
            size: volume.served_size,
            is_scheduled: false,
            state: State::Creating,
            created_at: now,
        };
        Ok(self.with_next_snapshots(1).put(Record::Snapshot(snapshot)))
    }

    fn snapshot_is_free(&self, volume: &Name, name: &Name) -> Result<(), Refusal> {
        if self.snapshots.contains_key(&(volume.clone(), name.clone())) {
            let text = format!("volume {volume} has a snapshot {name}");
            return Err(Refusal::new(Code::Exists, text)
                .field("NAME")
                .remedy("choose another name, or delete that one first"));
        }
        Ok(())
    }

    fn with_next_snapshots(&self, count: u64) -> Change {
        let next_snapshot = self.meta.next_snapshot + count;
        Change::default().put(Record::Meta(Meta { next_snapshot, ..self.meta.clone() }))
    }

    /// The number of a snapshot that a delta brings. It is spent also if the delta is refused.
    pub fn snapshot_reserve(&self) -> (SnapshotId, Change) {
        (SnapshotId(self.meta.next_snapshot), self.with_next_snapshots(1))
    }

    /// Takes note of a snapshot that a delta brought.
    pub fn snapshot_imported(&self, volume: &Name, found: &SnapshotUsage) -> Change {
        let key = (volume.clone(), found.name.clone());
        let Some(record) = self.volumes.get(volume).filter(|_| !self.snapshots.contains_key(&key))
        else {
            return Change::default();
        };
        // A delta may be of a volume that grew.
        let size = found.size;
        let grown = VolumeRecord { size, served_size: size, ..record.clone() };
        let snapshot = SnapshotRecord {
            id: found.id,
            volume: volume.clone(),
            name: found.name.clone(),
            size,
            is_scheduled: false,
            state: State::Ready,
            created_at: found.created_at,
        };
        Change::default().put(Record::Volume(grown)).put(Record::Snapshot(snapshot))
    }

    pub fn snapshot_delete(&self, volume: &Name, name: &Name) -> Result<Change, Refusal> {
        names::find(&self.volumes, "volume", "VOLUME", volume)?;
        let snapshot = self.find_snapshot(volume, "NAME", name)?;
        if snapshot.state == State::Creating {
            let text = format!("snapshot {name} of {volume} is being made");
            return Err(Refusal::new(Code::State, text)
                .field("NAME")
                .remedy("wait until its node has made it"));
        }
        let making = |volume: &&VolumeRecord| {
            volume.state == State::Creating
                && volume.source.is_some_and(|source| source.snapshot == Some(snapshot.id))
        };
        if let Some(clone) = self.volumes.values().find(making) {
            let text = format!("volume {} is being cloned from it", clone.name);
            return Err(Refusal::new(Code::InUse, text)
                .field("NAME")
                .remedy("wait until it is made"));
        }
        Ok(Change::default().put(doomed(snapshot)))
    }

    /// The command that makes a volume what a snapshot is. The VM that has it must be off.
    pub fn snapshot_rollback(
        &self,
        volume: &Name,
        name: &Name,
        observed: &Observed,
    ) -> Result<Command, Refusal> {
        let record = self.usable_volume(volume, "VOLUME")?;
        let snapshot = self.ready_snapshot(volume, "NAME", name)?;
        if let Some(vm) = self.holder(record.id) {
            let seen = observed.vm(vm.node, vm.id).map(|status| status.state);
            let is_off = matches!(seen, None | Some(VmState::Stopped))
                && matches!(vm.run, plinth_api::Run::Stopped { .. });
            if !is_off {
                let text = format!("volume {volume} is a disk of VM {}, which is not off", vm.name);
                return Err(Refusal::new(Code::InUse, text)
                    .field("VOLUME")
                    .remedy(format!("stop it first: plinth vm stop {}", vm.name)));
            }
        }
        Ok(Command::SnapshotRollback {
            pool: record.pool,
            volume: record.id,
            snapshot: snapshot.id,
        })
    }

    /// The size that a node says a volume has after it was rolled back.
    pub fn volume_resized(&self, name: &Name, size: u64) -> Change {
        match self.volumes.get(name) {
            Some(volume) if volume.state == State::Ready && volume.size != size => {
                let volume = VolumeRecord { size, served_size: size, ..volume.clone() };
                Change::default().put(Record::Volume(volume))
            }
            _ => Change::default(),
        }
    }

    pub fn schedule_set(
        &self,
        volume: &Name,
        interval_seconds: u64,
        keep: u32,
        now: u64,
    ) -> Result<Change, Refusal> {
        let record = self.usable_volume(volume, "VOLUME")?;
        if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&interval_seconds) {
            let text = format!("{interval_seconds} seconds is no interval for snapshots");
            return Err(Refusal::new(Code::Invalid, text)
                .field("--every")
                .remedy("give one minute to 366 days, as in 1h or 1d"));
        }
        if keep == 0 || keep > KEEP_MAX {
            return Err(Refusal::new(Code::Invalid, format!("{keep} snapshots cannot be kept"))
                .field("--keep")
                .remedy(format!("give 1 to {KEEP_MAX}")));
        }
        // The slot that this is asked in needs none: the first comes when the next begins.
        let last_slot = now / interval_seconds;
        let schedule = Some(Schedule { interval_seconds, keep, last_slot, fault: None });
        Ok(Change::default().put(Record::Volume(VolumeRecord { schedule, ..record.clone() })))
    }

    /// Its snapshots stay, and are then like others.
    pub fn schedule_clear(&self, volume: &Name) -> Result<Change, Refusal> {
        let record = names::find(&self.volumes, "volume", "VOLUME", volume)?;
        if record.schedule.is_none() {
            return Ok(Change::default());
        }
        let kept = self.snapshots_of(volume).filter(|one| one.is_scheduled);
        let kept = kept.map(|one| SnapshotRecord { is_scheduled: false, ..one.clone() });
        let change = kept.fold(Change::default(), |change, one| change.put(Record::Snapshot(one)));
        Ok(change.put(Record::Volume(VolumeRecord { schedule: None, ..record.clone() })))
    }

    /// What all schedules need at this time: snapshots of slots that began, and the end of those
    /// that are too many. Empty when nothing does.
    pub fn schedules_due(&self, now: u64, observed: &Observed) -> Change {
        let mut change = Change::default();
        let mut next = self.meta.next_snapshot;
        for volume in self.volumes.values() {
            let Some(schedule) = &volume.schedule else { continue };
            if !matches!(volume.state, State::Ready | State::Growing) {
                continue;
            }
            let own = self.snapshots_of(&volume.name).filter(|one| one.is_scheduled);
            let slot = now / schedule.interval_seconds;
            let is_pending = own.clone().any(|one| one.state == State::Creating);
            if slot != schedule.last_slot && !is_pending {
                let taken = self.take_scheduled(volume, schedule, SnapshotId(next), slot, observed);
                next += u64::from(taken.writes.len() > 1);
                change.writes.extend(taken.writes);
            }
            let mut ready: Vec<_> = own.filter(|one| one.state == State::Ready).collect();
            ready.sort_by_key(|one| (one.created_at, one.id));
            let excess = ready.len().saturating_sub(schedule.keep as usize);
            for old in &ready[..excess] {
                change = change.put(doomed(old));
            }
        }
        if next > self.meta.next_snapshot {
            change.writes.extend(self.with_next_snapshots(next - self.meta.next_snapshot).writes);
        }
        change
    }

    /// The volume with its slot marked as served, and the snapshot for it if there is to be one.
    fn take_scheduled(
        &self,
        volume: &VolumeRecord,
        schedule: &Schedule,
        id: SnapshotId,
        slot: u64,
        observed: &Observed,
    ) -> Change {
        // A clock that went back has served these slots already: go on from where it is.
        let is_forward = slot > schedule.last_slot;
        let room =
            self.pool(volume.pool).map(|pool| self.has_room(pool, observed, Level::Full, ""));
        let fault = room.and_then(Result::err).map(|refusal| refusal.text);
        let at = slot * schedule.interval_seconds;
        let name = scheduled_name(at);
        let is_free = self.snapshot_is_free(&volume.name, &name).is_ok();
        let snapshot = (is_forward && is_free && fault.is_none()).then(|| SnapshotRecord {
            id,
            volume: volume.name.clone(),
            name,
            size: volume.served_size,
            is_scheduled: true,
            state: State::Creating,
            created_at: at,
        });
        let schedule = Some(Schedule { last_slot: slot, fault, ..schedule.clone() });
        let change =
            Change::default().put(Record::Volume(VolumeRecord { schedule, ..volume.clone() }));
        match snapshot {
            Some(snapshot) => change.put(Record::Snapshot(snapshot)),
            None => change,
        }
    }

    /// When the next slot of any schedule begins.
    pub fn schedule_next(&self, now: u64) -> Option<u64> {
        let schedules = self.volumes.values().filter_map(|volume| volume.schedule.as_ref());
        schedules.map(|one| (now / one.interval_seconds + 1) * one.interval_seconds).min()
    }

    /// What a node's answer to the making of a snapshot changes.
    pub(crate) fn settle_snapshot(
        &self,
        key: (&Name, &Name),
        id: SnapshotId,
        refusal: Option<&Refusal>,
    ) -> Change {
        let Some(snapshot) = self.snapshots.get(&(key.0.clone(), key.1.clone())) else {
            return Change::default();
        };
        if snapshot.id != id || snapshot.state != State::Creating {
            return Change::default();
        }
        let Some(refusal) = refusal else {
            let snapshot = SnapshotRecord { state: State::Ready, ..snapshot.clone() };
            return Change::default().put(Record::Snapshot(snapshot));
        };
        let change =
            Change::default().delete(crate::change::Key::Snapshot(key.0.clone(), key.1.clone()));
        let volume = self.volumes.get(key.0).filter(|_| snapshot.is_scheduled);
        let Some((volume, schedule)) = volume.and_then(|one| Some((one, one.schedule.as_ref()?)))
        else {
            return change;
        };
        let schedule = Some(Schedule { fault: Some(refusal.text.clone()), ..schedule.clone() });
        change.put(Record::Volume(VolumeRecord { schedule, ..volume.clone() }))
    }

    /// A volume of which something can be asked.
    pub fn usable_volume_named(&self, name: &Name) -> Result<&VolumeRecord, Refusal> {
        self.usable_volume(name, "VOLUME")
    }

    /// A snapshot that its node keeps because clones stand on it. Where its volume is to go, it
    /// is asked for again.
    pub(crate) fn snapshot_stays(&self, volume: &Name, name: &Name) -> Change {
        let is_doomed =
            self.volumes.get(volume).is_none_or(|volume| volume.state == State::Deleting);
        match self.snapshots.get(&(volume.clone(), name.clone())) {
            Some(snapshot) if snapshot.state == State::Deleting && !is_doomed => {
                // By hand from here on, or its schedule would ask for ever.
                let (state, is_scheduled) = (State::Ready, false);
                let snapshot = SnapshotRecord { state, is_scheduled, ..snapshot.clone() };
                Change::default().put(Record::Snapshot(snapshot))
            }
            _ => Change::default(),
        }
    }

    /// What can be made of a volume only while it is one.
    pub(crate) fn usable_volume(
        &self,
        name: &Name,
        field: &'static str,
    ) -> Result<&VolumeRecord, Refusal> {
        let volume = names::find(&self.volumes, "volume", field, name)?;
        match volume.state {
            State::Ready | State::Growing => Ok(volume),
            State::Creating | State::Deleting => {
                Err(Refusal::new(Code::State, format!("volume {name} is not ready"))
                    .field(field)
                    .remedy("`plinth volume show` says its state"))
            }
        }
    }
}

/// The snapshot as it is while its node removes it.
pub(crate) fn doomed(snapshot: &SnapshotRecord) -> Record {
    Record::Snapshot(SnapshotRecord { state: State::Deleting, ..snapshot.clone() })
}
