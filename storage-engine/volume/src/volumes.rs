// SPDX-License-Identifier: Apache-2.0
//! The volumes of one pool and the requests on their way.

use crate::header::State;
use crate::jobs::{Job, Jobs};
use crate::range::{Direction, Span};
use crate::request::{
    VolumeCompletion, VolumeHandle, VolumeRefusal, VolumeRequest, VolumeStatus, VolumeTag,
};
use crate::start::Start;
use plinth_ids::{Moment, Name, PoolId, VolumeId};
use plinth_store::{
    Disk, IoBuffer, Store, StoreAnswer, StoreCompletion, StoreRefusal, StoreRequest, StoreTag,
};
use std::collections::BTreeMap;

/// The most volumes in a pool.
pub const VOLUMES_MAX: usize = 65_536;

/// Tags of store requests: who waits for the answer.
const JOB: u64 = 1 << 62;
const START: u64 = 1 << 63;
/// The part of a request, above its number.
const PART_SHIFT: u32 = 40;

#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) name: Name,
    pub(crate) size: u64,
    pub(crate) created_at: u64,
    pub(crate) updated_at: u64,
    pub(crate) state: State,
    pub(crate) units: i64,
    pub(crate) objects: i64,
    pub(crate) attachments: u32,
    /// A job reads it, so that it may not be attached or deleted.
    pub(crate) is_source: bool,
}

#[derive(Clone, Copy, Debug)]
struct Attached {
    volume: VolumeId,
    generation: u16,
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) tag: VolumeTag,
    pub(crate) volume: VolumeId,
    pub(crate) buffer: Option<IoBuffer>,
    pub(crate) parts: u32,
    pub(crate) refusal: Option<VolumeRefusal>,
    pub(crate) kind: PendingKind,
}

#[derive(Debug)]
pub(crate) enum PendingKind {
    /// One store request carries the buffer.
    Whole,
    /// Several store requests carry parts; where each begins in the buffer.
    Parts { starts: [usize; 2], direction: Direction },
    /// A range that is zeroed object by object.
    Zero(Span),
}

/// The volumes of one pool, and the store they are in.
#[derive(Debug)]
pub struct Volumes<D> {
    pub(crate) store: Store<D>,
    pub(crate) pool: PoolId,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    /// Volumes whose header cannot be understood.
    pub(crate) broken: Vec<VolumeId>,
    attached: Vec<Option<Attached>>,
    generation: u16,
    requests: Vec<Option<Pending>>,
    free: Vec<u32>,
    /// Zeroed ranges that have objects left.
    zeroing: Vec<u32>,
    pub(crate) jobs: Jobs,
    pub(crate) start: Option<Start>,
    pub(crate) completions: Vec<VolumeCompletion>,
    answers: Vec<StoreCompletion>,
}

impl<D: Disk> Volumes<D> {
    /// Takes the store over and begins to read the volumes' headers.
    pub fn start(store: Store<D>, pool: PoolId) -> Self {
        Self {
            store,
            pool,
            volumes: BTreeMap::new(),
            broken: Vec::new(),
            attached: Vec::new(),
            generation: 0,
            requests: Vec::new(),
            free: Vec::new(),
            zeroing: Vec::new(),
            jobs: Jobs::default(),
            start: Some(Start::new(pool)),
            completions: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// Whether every header is read. Volumes are refused with `NotReady` before.
    pub const fn is_ready(&self) -> bool {
        self.start.is_none()
    }

    /// Whether nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.is_ready()
            && self.requests.len() == self.free.len()
            && self.jobs.is_empty()
            && self.completions.is_empty()
            && self.store.is_idle()
    }

    pub fn store(&self) -> &Store<D> {
        &self.store
    }

    pub fn store_mut(&mut self) -> &mut Store<D> {
        &mut self.store
    }

    /// Waits for what is on its way, checkpoints, and gives the disk back. Jobs that are not
    /// done go on after the next start; a clone that is not done is removed then.
    pub fn stop(self) -> D {
        self.store.unmount()
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
        self.volumes.keys().filter_map(|&volume| self.status(volume)).collect()
    }

    /// Volumes that are there and cannot be served: their headers make no sense.
    pub fn broken(&self) -> &[VolumeId] {
        &self.broken
    }

    pub fn status(&self, volume: VolumeId) -> Option<VolumeStatus> {
        let found = self.volumes.get(&volume).filter(|volume| volume.state == State::Ready)?;
        let unit = 32 * 1024;
        Some(VolumeStatus {
            volume,
            name: found.name.clone(),
            size: found.size,
            written: u64::try_from(found.units).unwrap_or(0) * unit,
            objects: u64::try_from(found.objects).unwrap_or(0),
            created_at: found.created_at,
            updated_at: found.updated_at,
            is_attached: found.attachments > 0,
        })
    }

    /// Opens a volume for reading and writing. It can be attached several times.
    ///
    /// # Errors
    /// `NotReady`, `NotFound`, `BadHeader`, or `Busy` while a job makes, reads or deletes it.
    pub fn attach(&mut self, volume: VolumeId) -> Result<VolumeHandle, VolumeRefusal> {
        if !self.is_ready() {
            return Err(VolumeRefusal::NotReady);
        }
        if self.broken.contains(&volume) {
            return Err(VolumeRefusal::BadHeader);
        }
        let found = self.volumes.get_mut(&volume).ok_or(VolumeRefusal::NotFound)?;
        if found.state != State::Ready || found.is_source {
            return Err(VolumeRefusal::Busy);
        }
        let free = self.attached.iter().position(Option::is_none);
        let index = free.unwrap_or(self.attached.len());
        let Ok(low) = u16::try_from(index) else { return Err(VolumeRefusal::TooMany) };
        self.generation = self.generation.wrapping_add(1);
        let attached = Some(Attached { volume, generation: self.generation });
        match self.attached.get_mut(index) {
            Some(place) => *place = attached,
            None => self.attached.push(attached),
        }
        found.attachments += 1;
        Ok(VolumeHandle(u32::from(self.generation) << 16 | u32::from(low)))
    }

    /// Gives a handle back. Requests on their way end as they would.
    ///
    /// # Errors
    /// `BadHandle` when it is none.
    pub fn detach(&mut self, handle: VolumeHandle) -> Result<(), VolumeRefusal> {
        let volume = self.volume_of(handle)?;
        self.attached[(handle.0 & 0xffff) as usize] = None;
        if let Some(found) = self.volumes.get_mut(&volume) {
            found.attachments -= 1;
        }
        Ok(())
    }

    /// Which volume a handle is for.
    ///
    /// # Errors
    /// `BadHandle` when it is none, or was detached.
    pub fn volume_of(&self, handle: VolumeHandle) -> Result<VolumeId, VolumeRefusal> {
        let place = self.attached.get((handle.0 & 0xffff) as usize).copied().flatten();
        match place {
            Some(place) if u32::from(place.generation) == handle.0 >> 16 => Ok(place.volume),
            Some(_) | None => Err(VolumeRefusal::BadHandle),
        }
    }

    /// Bytes of an attached volume.
    ///
    /// # Errors
    /// `BadHandle` when the handle is none.
    pub fn size(&self, handle: VolumeHandle) -> Result<u64, VolumeRefusal> {
        let volume = self.volume_of(handle)?;
        self.volumes.get(&volume).map(|volume| volume.size).ok_or(VolumeRefusal::NotFound)
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
            VolumeRequest::Create { .. }
            | VolumeRequest::Clone { .. }
            | VolumeRequest::Grow { .. }
            | VolumeRequest::Delete { .. } => {
                if self.jobs.is_full() {
                    return Err(request);
                }
                self.jobs.push(Job::new(tag, request));
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
        has_moved |= self.advance_jobs();
        has_moved |= self.advance_zeroing();
        has_moved |= !self.completions.is_empty();
        into.append(&mut self.completions);
        has_moved
    }

    fn answer(&mut self, answer: StoreCompletion) {
        let StoreCompletion { tag, buffer, result } = answer;
        if tag.0 & START != 0 {
            self.start_answer(tag.0 & !START, result);
        } else if tag.0 & JOB != 0 {
            self.job_answer(tag.0 & !JOB, result);
        } else {
            self.request_answer(tag, buffer, result);
        }
    }

    fn request_answer(
        &mut self,
        tag: StoreTag,
        buffer: Option<IoBuffer>,
        result: Result<StoreAnswer, StoreRefusal>,
    ) {
        let number = u32::try_from(tag.0 & ((1 << PART_SHIFT) - 1)).unwrap_or(u32::MAX);
        let part = usize::try_from(tag.0 >> PART_SHIFT).unwrap_or(0);
        let Some(pending) = self.requests.get_mut(number as usize).and_then(Option::as_mut) else {
            return;
        };
        match result {
            Ok(StoreAnswer::Changed { units, objects, .. }) => {
                if let Some(volume) = self.volumes.get_mut(&pending.volume) {
                    volume.units += units;
                    volume.objects += objects;
                }
            }
            Ok(_) => {}
            Err(refusal) => {
                pending.refusal = pending.refusal.or(Some(VolumeRefusal::Store(refusal)));
            }
        }
        match (&pending.kind, buffer) {
            (PendingKind::Whole, Some(buffer)) => pending.buffer = Some(buffer),
            (PendingKind::Parts { starts, direction }, Some(buffer)) => {
                if let (Direction::Read, Some(whole)) = (direction, &mut pending.buffer) {
                    let at = starts[part.min(1)];
                    let bytes = buffer.as_bytes();
                    whole.as_bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
                }
                self.store.put_buffer(buffer);
            }
            (PendingKind::Zero(_), Some(buffer)) => self.store.put_buffer(buffer),
            (_, None) => {}
        }
        pending.parts -= 1;
        self.end_if_done(number);
    }

    /// Ends a request whose parts have all been answered.
    pub(crate) fn end_if_done(&mut self, number: u32) {
        let Some(Some(pending)) = self.requests.get(number as usize) else { return };
        let has_more = match &pending.kind {
            PendingKind::Zero(span) => !span.is_done() && pending.refusal.is_none(),
            PendingKind::Whole | PendingKind::Parts { .. } => false,
        };
        if pending.parts > 0 || has_more {
            return;
        }
        if let Some(pending) = self.requests[number as usize].take() {
            self.free.push(number);
            let Pending { tag, buffer, refusal, .. } = pending;
            let result = refusal.map_or(Ok(()), Err);
            self.completions.push(VolumeCompletion { tag, buffer, result });
        }
    }

    pub(crate) fn insert(&mut self, pending: Pending) -> u32 {
        if let Some(number) = self.free.pop() {
            self.requests[number as usize] = Some(pending);
            return number;
        }
        self.requests.push(Some(pending));
        u32::try_from(self.requests.len() - 1).expect("the store bounds what is on its way")
    }

    pub(crate) fn pending(&mut self, number: u32) -> Option<&mut Pending> {
        self.requests.get_mut(number as usize)?.as_mut()
    }

    pub(crate) fn zeroing(&mut self) -> &mut Vec<u32> {
        &mut self.zeroing
    }

    pub(crate) fn refuse(
        &mut self,
        tag: VolumeTag,
        buffer: Option<IoBuffer>,
        refusal: VolumeRefusal,
    ) {
        self.completions.push(VolumeCompletion { tag, buffer, result: Err(refusal) });
    }

    fn submit_flush(
        &mut self,
        tag: VolumeTag,
        handle: VolumeHandle,
        request: VolumeRequest,
    ) -> Result<(), VolumeRequest> {
        let volume = match self.volume_of(handle) {
            Ok(volume) => volume,
            Err(refusal) => {
                self.refuse(tag, None, refusal);
                return Ok(());
            }
        };
        if self.store.room() == 0 {
            return Err(request);
        }
        let kind = PendingKind::Whole;
        let number =
            self.insert(Pending { tag, volume, buffer: None, parts: 1, refusal: None, kind });
        self.send(StoreTag(u64::from(number)), StoreRequest::Flush);
        Ok(())
    }

    /// Submits to the store, which has room.
    pub(crate) fn send(&mut self, tag: StoreTag, request: StoreRequest) {
        let taken = self.store.submit(tag, request);
        assert!(taken.is_ok(), "the caller looked whether the store has room");
    }

    pub(crate) fn send_part(&mut self, number: u32, part: usize, request: StoreRequest) {
        let tag = u64::from(number) | (part as u64) << PART_SHIFT;
        self.send(StoreTag(tag), request);
    }

    pub(crate) fn send_job(&mut self, detail: u64, request: StoreRequest) {
        self.send(StoreTag(JOB | detail), request);
    }

    pub(crate) fn send_start(&mut self, detail: u64, request: StoreRequest) {
        self.send(StoreTag(START | detail), request);
    }
}
