// SPDX-License-Identifier: Apache-2.0
//! The volumes of one pool: the table of them, who has them attached, and the doors.

use crate::chores::Chores;
use crate::gate::Gates;
use crate::header::State;
use crate::jobs::{Job, Jobs};
use crate::pending::Requests;
use crate::request::{
    SnapshotStatus, VolumeCompletion, VolumeHandle, VolumeRefusal, VolumeRequest, VolumeStatus,
    VolumeTag, WipeStatus,
};
use crate::start::Start;
use crate::volume::Volume;
use plinth_ids::{Moment, PoolId, SnapshotId, VolumeId};
use plinth_store::{IoBuffer, ObjectStore, StoreCompletion, StoreRequest, StoreTag};
use std::collections::BTreeMap;

/// The most volumes in a pool.
pub const VOLUMES_MAX: usize = 65_536;

/// Tags of store requests: who waits for the answer. Without a bit it is a client's request.
pub(crate) const START: u64 = 1 << 63;
pub(crate) const JOB: u64 = 1 << 62;
pub(crate) const GATE: u64 = 1 << 61;
pub(crate) const CHORE: u64 = 1 << 60;

/// Bytes of a unit of the store.
pub(crate) const UNIT: u64 = 32 * 1024;

/// A protection to leave out, so that the model test can show that it would notice. Programs
/// never say any.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Omit {
    #[default]
    Nothing,
    /// Changes heads without keeping them for snapshots.
    Copy,
    /// Does not say in a copy that there was nothing.
    AbsenceMark,
    /// Gives a clone's head nothing of what it inherits before it changes it.
    Settle,
    /// Removes a clone's object where it is zeroed, so that its parent shows through.
    EmptyHead,
    /// Lets changes go on while a snapshot is recorded.
    Recording,
    /// Leaves what clones know of a head as it was when the head moves on.
    Hide,
    /// Gives back copies that only an older snapshot reads.
    Needed,
    /// Rolls back without saying so before.
    RollbackState,
}

impl Omit {
    /// Every protection.
    pub const ALL: [Self; 8] = [
        Self::Copy,
        Self::AbsenceMark,
        Self::Settle,
        Self::EmptyHead,
        Self::Recording,
        Self::Hide,
        Self::Needed,
        Self::RollbackState,
    ];
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Attached {
    pub(crate) volume: VolumeId,
    /// The volume's place in the table.
    pub(crate) at: u32,
    /// 0 for the volume itself, else the number of the snapshot that is read.
    pub(crate) view: u64,
    generation: u16,
}

/// The volumes of one pool, and the store they are in.
#[derive(Debug)]
pub struct Volumes<S> {
    pub(crate) store: S,
    pub(crate) pool: PoolId,
    places: Vec<Option<Box<Volume>>>,
    pub(crate) ids: BTreeMap<VolumeId, u32>,
    /// Volumes whose header cannot be understood.
    pub(crate) broken: Vec<VolumeId>,
    attached: Vec<Option<Attached>>,
    generation: u16,
    pub(crate) requests: Requests,
    pub(crate) gates: Gates,
    pub(crate) jobs: Jobs,
    pub(crate) chores: Chores,
    pub(crate) start: Option<Start>,
    /// The disk with the headers was not there when they were to be read.
    pub(crate) is_blind: bool,
    pub(crate) omit: Omit,
    pub(crate) completions: Vec<VolumeCompletion>,
    answers: Vec<StoreCompletion>,
}

impl<S: ObjectStore> Volumes<S> {
    /// Takes the store over and begins to read the volumes' headers.
    pub fn start(store: S, pool: PoolId) -> Self {
        Self {
            store,
            pool,
            places: Vec::new(),
            ids: BTreeMap::new(),
            broken: Vec::new(),
            attached: Vec::new(),
            generation: 0,
            requests: Requests::default(),
            gates: Gates::default(),
            jobs: Jobs::default(),
            chores: Chores::default(),
            start: Some(Start::new(pool)),
            is_blind: false,
            omit: Omit::Nothing,
            completions: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// How many objects a second are given back in the background, for all volumes together;
    /// `None` is as fast as it goes.
    pub fn set_reclaim_rate(&mut self, objects: Option<u32>) {
        self.chores.set_rate(objects);
    }

    /// How many objects a second are wiped, for all volumes together; a full one is 4 MiB of
    /// writes. `None` is as fast as it goes.
    pub fn set_wipe_rate(&mut self, objects: Option<u32>) {
        self.chores.set_wipe_rate(objects);
    }

    /// For tests of tests.
    pub fn set_omit(&mut self, omit: Omit) {
        self.omit = omit;
    }

    /// Whether every header is read. Volumes are refused with `NotReady` before.
    pub const fn is_ready(&self) -> bool {
        self.start.is_none()
    }

    /// Whether no volume is known, because the disk with their headers is not there. They are
    /// refused with `HeadersOut` until [`Volumes::look_again`] finds it.
    pub const fn is_blind(&self) -> bool {
        self.is_blind
    }

    /// Whether nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.is_ready()
            && self.requests.is_empty()
            && self.jobs.is_empty()
            && self.gates.is_empty()
            && self.chores.is_empty()
            && self.completions.is_empty()
            && self.store.is_idle()
    }

    /// Whether something goes on by the clock alone, so that its owner must poll from time to
    /// time.
    pub fn waits_for_time(&self) -> bool {
        !self.chores.is_empty()
    }

    pub fn store(&self) -> &S {
        &self.store
    }

    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Gives the store back. What is not done in the background goes on after the next start.
    pub fn stop(self) -> S {
        self.store
    }

    /// A buffer from the store's pool.
    pub fn take_buffer(&mut self, length: usize) -> IoBuffer {
        self.store.take_buffer(length)
    }

    pub fn put_buffer(&mut self, buffer: IoBuffer) {
        self.store.put_buffer(buffer);
    }

    /// All volumes, by number.
    pub fn list(&self) -> Vec<VolumeStatus> {
        self.ids.keys().filter_map(|&volume| self.status(volume)).collect()
    }

    /// Deleted volumes that are being wiped, and how far that is.
    pub fn wipes(&self) -> Vec<WipeStatus> {
        let wiping = self.ids.values().filter_map(|&at| Some((at, self.place(at)?)));
        wiping
            .filter(|(_, volume)| volume.header.state == State::Wiping)
            .map(|(at, volume)| {
                let done = self.chores.status(at).map_or(0, |chore| chore.done);
                // As many as there were when it began, or began again.
                let found = volume.heads.objects + volume.copies.objects;
                let total = done.max(u64::try_from(found).unwrap_or(0));
                WipeStatus { volume: volume.id, done, total }
            })
            .collect()
    }

    /// Volumes that are there and cannot be served: their headers make no sense.
    pub fn broken(&self) -> &[VolumeId] {
        &self.broken
    }

    pub fn status(&self, volume: VolumeId) -> Option<VolumeStatus> {
        let (at, found) = self.find(volume).filter(|(_, found)| found.is_seen())?;
        let parent = found.header.parent.map(|link| {
            let parent =
                self.find(link.volume).and_then(|(_, parent)| parent.numbered(link.number));
            let named = parent.filter(|kept| kept.record.name.is_some());
            (link.volume, named.map(|kept| kept.record.id))
        });
        Some(VolumeStatus {
            volume,
            name: found.name.clone(),
            size: found.header.size,
            written: u64::try_from(found.heads.units).unwrap_or(0) * UNIT,
            objects: u64::try_from(found.heads.objects).unwrap_or(0),
            created_at: found.header.created_at,
            updated_at: found.header.updated_at,
            is_attached: found.attachments > 0,
            parent,
            chore: self.chores.status(at),
        })
    }

    /// The snapshots of a volume, oldest first; those that clones alone know are not among them.
    pub fn snapshots(&self, volume: VolumeId) -> Option<Vec<SnapshotStatus>> {
        let (_, found) = self.find(volume).filter(|(_, found)| found.is_seen())?;
        let status = |kept: &crate::volume::Kept| {
            let record = &kept.record;
            if found.is_recording && record.number == found.newest {
                return None;
            }
            Some(SnapshotStatus {
                snapshot: record.id,
                name: record.name.clone()?,
                identity: record.identity,
                size: record.size,
                created_at: record.created_at,
                is_leaving: record.is_leaving,
            })
        };
        Some(found.snapshots.iter().filter_map(status).collect())
    }

    /// Opens a volume for reading and writing. It can be attached several times.
    ///
    /// # Errors
    /// `NotReady`, `HeadersOut`, `NotFound`, `BadHeader`, or `Busy` while it is deleted or rolled back.
    pub fn attach(&mut self, volume: VolumeId) -> Result<VolumeHandle, VolumeRefusal> {
        let at = self.attachable(volume)?;
        let handle = self.new_handle(volume, at, 0)?;
        if let Some(found) = self.place_mut(at) {
            found.attachments += 1;
        }
        Ok(handle)
    }

    /// Opens a snapshot for reading; it cannot be deleted meanwhile.
    ///
    /// # Errors
    /// As [`Volumes::attach`], and `SnapshotMissing`.
    pub fn attach_snapshot(
        &mut self,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<VolumeHandle, VolumeRefusal> {
        let at = self.attachable(volume)?;
        let found = self.place(at).and_then(|found| found.named(snapshot));
        let view = found.ok_or(VolumeRefusal::SnapshotMissing)?.record.number;
        let handle = self.new_handle(volume, at, view)?;
        if let Some(kept) = self.place_mut(at).and_then(|found| found.numbered_mut(view)) {
            kept.holders += 1;
        }
        Ok(handle)
    }

    fn attachable(&self, volume: VolumeId) -> Result<u32, VolumeRefusal> {
        if !self.is_ready() {
            return Err(VolumeRefusal::NotReady);
        }
        if self.is_blind {
            return Err(VolumeRefusal::HeadersOut);
        }
        if self.broken.contains(&volume) {
            return Err(VolumeRefusal::BadHeader);
        }
        let (at, found) = self.find(volume).ok_or(VolumeRefusal::NotFound)?;
        match found.header.state {
            State::Ready => Ok(at),
            State::Hidden | State::HiddenToWipe => Err(VolumeRefusal::NotFound),
            State::Making | State::Deleting | State::Wiping | State::RollingBack => {
                Err(VolumeRefusal::Busy)
            }
        }
    }

    fn new_handle(
        &mut self,
        volume: VolumeId,
        at: u32,
        view: u64,
    ) -> Result<VolumeHandle, VolumeRefusal> {
        let free = self.attached.iter().position(Option::is_none);
        let index = free.unwrap_or(self.attached.len());
        let Ok(low) = u16::try_from(index) else { return Err(VolumeRefusal::TooMany) };
        self.generation = self.generation.wrapping_add(1);
        let attached = Some(Attached { volume, at, view, generation: self.generation });
        match self.attached.get_mut(index) {
            Some(place) => *place = attached,
            None => self.attached.push(attached),
        }
        Ok(VolumeHandle(u32::from(self.generation) << 16 | u32::from(low)))
    }

    /// Gives a handle back. Requests on their way end as they would.
    ///
    /// # Errors
    /// `BadHandle` when it is none.
    pub fn detach(&mut self, handle: VolumeHandle) -> Result<(), VolumeRefusal> {
        let attached = self.attached(handle)?;
        self.attached[(handle.0 & 0xffff) as usize] = None;
        let Some(found) = self.place_mut(attached.at) else { return Ok(()) };
        if attached.view == 0 {
            found.attachments -= 1;
        } else if let Some(kept) = found.numbered_mut(attached.view) {
            kept.holders -= 1;
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn attached(&self, handle: VolumeHandle) -> Result<Attached, VolumeRefusal> {
        match self.attached.get((handle.0 & 0xffff) as usize) {
            Some(Some(place)) if u32::from(place.generation) == handle.0 >> 16 => Ok(*place),
            Some(_) | None => Err(VolumeRefusal::BadHandle),
        }
    }

    /// Which volume a handle is for.
    ///
    /// # Errors
    /// `BadHandle` when it is none, or was detached.
    pub fn volume_of(&self, handle: VolumeHandle) -> Result<VolumeId, VolumeRefusal> {
        self.attached(handle).map(|attached| attached.volume)
    }

    /// Bytes of an attached volume, or of the snapshot that the handle reads.
    ///
    /// # Errors
    /// `BadHandle` when the handle is none.
    pub fn size(&self, handle: VolumeHandle) -> Result<u64, VolumeRefusal> {
        let attached = self.attached(handle)?;
        let found = self.place(attached.at).ok_or(VolumeRefusal::NotFound)?;
        if attached.view == 0 {
            return Ok(found.header.size);
        }
        found.numbered(attached.view).map(|kept| kept.record.size).ok_or(VolumeRefusal::NotFound)
    }

    /// Takes a request. Its end comes out of [`Volumes::poll`].
    ///
    /// # Errors
    /// Gives the request back when the store has no room for it: poll, and try again.
    pub fn submit(&mut self, tag: VolumeTag, request: VolumeRequest) -> Result<(), VolumeRequest> {
        match request {
            VolumeRequest::Read { .. } | VolumeRequest::Write { .. } => {
                self.submit_io(tag, request)
            }
            VolumeRequest::Zero { volume, offset, length } => {
                self.submit_zero(tag, volume, offset, length, false);
                Ok(())
            }
            VolumeRequest::Discard { volume, offset, length } => {
                self.submit_zero(tag, volume, offset, length, true);
                Ok(())
            }
            VolumeRequest::Flush { volume } => self.submit_flush(tag, volume, request),
            other => {
                if self.jobs.is_full() {
                    return Err(other);
                }
                self.jobs.push(Job::new(tag, other));
                Ok(())
            }
        }
    }

    /// Moves everything that can move and appends what ended. Says whether anything did.
    pub fn poll(&mut self, now: Moment, into: &mut Vec<VolumeCompletion>) -> bool {
        let mut answers = std::mem::take(&mut self.answers);
        let mut has_moved = self.store.poll(now, &mut answers);
        for answer in answers.drain(..) {
            self.answer(answer);
        }
        self.answers = answers;
        has_moved |= self.advance_start();
        has_moved |= self.advance_gates();
        has_moved |= self.advance_jobs();
        has_moved |= self.advance_zeroing();
        has_moved |= self.advance_chores(now);
        has_moved |= !self.completions.is_empty();
        into.append(&mut self.completions);
        has_moved
    }

    fn answer(&mut self, answer: StoreCompletion) {
        let StoreCompletion { tag, buffer, result } = answer;
        if tag.0 >> 60 == 0 {
            self.request_answer(tag.0, buffer, result);
            return;
        }
        if let Some(buffer) = buffer {
            self.store.put_buffer(buffer);
        }
        let number = u32::try_from(tag.0 & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        match tag.0 & (START | JOB | GATE | CHORE) {
            START => self.start_answer(number, result),
            JOB => self.job_answer(result),
            GATE => self.gate_answer(number, result),
            _ => self.chore_answer(number, tag.0 >> 32 & 0xffff, result),
        }
    }

    pub(crate) fn refuse(
        &mut self,
        tag: VolumeTag,
        buffer: Option<IoBuffer>,
        refusal: VolumeRefusal,
    ) {
        self.completions.push(VolumeCompletion { tag, buffer, result: Err(refusal), answer: None });
    }

    /// Submits to the store, which has room.
    pub(crate) fn send(&mut self, tag: u64, request: StoreRequest) {
        let taken = self.store.submit(StoreTag(tag), request);
        assert!(taken.is_ok(), "the caller looked whether the store has room");
    }

    // The table of volumes.

    #[inline]
    pub(crate) fn place(&self, at: u32) -> Option<&Volume> {
        self.places.get(at as usize)?.as_deref()
    }

    #[inline]
    pub(crate) fn place_mut(&mut self, at: u32) -> Option<&mut Volume> {
        self.places.get_mut(at as usize)?.as_deref_mut()
    }

    pub(crate) fn find(&self, volume: VolumeId) -> Option<(u32, &Volume)> {
        let at = *self.ids.get(&volume)?;
        Some((at, self.place(at)?))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (u32, &Volume)> {
        self.ids.values().filter_map(|&at| Some((at, self.place(at)?)))
    }

    pub(crate) fn add_volume(&mut self, volume: Volume) -> u32 {
        let at = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
        let number = u32::try_from(at).expect("`VOLUMES_MAX` bounds the table");
        self.ids.insert(volume.id, number);
        let volume = Some(Box::new(volume));
        match self.places.get_mut(at) {
            Some(place) => *place = volume,
            None => self.places.push(volume),
        }
        number
    }

    pub(crate) fn remove_volume(&mut self, at: u32) {
        if let Some(volume) = self.places.get_mut(at as usize).and_then(Option::take) {
            self.ids.remove(&volume.id);
        }
    }

    pub(crate) fn forget_all(&mut self) {
        self.places.clear();
        self.ids.clear();
        self.broken.clear();
    }

    /// Finds the ancestors of every volume again, and forgets what was inherited from whom.
    pub(crate) fn link_chains(&mut self) {
        let places: Vec<u32> = self.ids.values().copied().collect();
        let mut parents = Vec::new();
        for at in places {
            let mut chain = Vec::new();
            let mut next = self.place(at).and_then(|volume| volume.header.parent);
            while let Some(link) = next
                && chain.len() < crate::volume::DEPTH_MAX as usize
            {
                chain.push(link);
                next = self.find(link.volume).and_then(|(_, parent)| parent.header.parent);
            }
            let parent = chain.first().map(|link| link.volume);
            if let Some(volume) = self.place_mut(at) {
                volume.has_clones = false;
                if volume.chain != chain {
                    volume.chain = chain;
                    volume.table.clear();
                    volume.settle();
                }
            }
            parents.extend(parent);
        }
        for parent in parents {
            if let Some(volume) = self.ids.get(&parent).copied().and_then(|at| self.place_mut(at)) {
                volume.has_clones = true;
            }
        }
    }
}
