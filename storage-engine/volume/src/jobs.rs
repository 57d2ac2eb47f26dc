// SPDX-License-Identifier: Apache-2.0
//! Creating, cloning, growing and deleting: one job at a time, in bounded steps.
//!
//! ```text
//!   create   one transaction: id and header objects
//!   grow     one transaction: size and time
//!   clone    header says "being made" ─▶ objects, 32 at once ─▶ header says "ready"
//!   delete   header says "being deleted" ─▶ objects, 32 at once ─▶ id and header go
//! ```
//!
//! A clone shares units: it costs a map of some KiB for each object that its source has, and no
//! data. After a power cut a volume that is being made is deleted, and a delete goes on.

use crate::header::{Header, State, emit_name, is_size};
use crate::key::{Kind, data_range, index_of, key};
use crate::request::{VolumeCompletion, VolumeRefusal, VolumeRequest, VolumeSpec, VolumeTag};
use crate::volumes::{VOLUMES_MAX, Volume, Volumes};
use plinth_ids::VolumeId;
use plinth_store::{
    Disk, ObjectKey, Operation, StoreAnswer, StoreRefusal, StoreRequest, StoreState,
};
use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// Objects that a job clones or removes at once.
const OBJECTS_AT_ONCE: u32 = 32;
/// Jobs that may wait.
const JOBS_MAX: usize = 256;

#[derive(Debug)]
enum Work {
    Asked(VolumeRequest),
    CleanUp(VolumeId),
}

#[derive(Debug)]
pub(crate) struct Job {
    /// `None` for what the pool does by itself.
    tag: Option<VolumeTag>,
    work: Work,
}

impl Job {
    pub(crate) fn new(tag: VolumeTag, request: VolumeRequest) -> Self {
        Self { tag: Some(tag), work: Work::Asked(request) }
    }

    pub(crate) fn clean_up(volume: VolumeId) -> Self {
        Self { tag: None, work: Work::CleanUp(volume) }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// The transaction that the job begins with.
    First,
    Objects,
    Last,
}

/// The job that is carried out.
#[derive(Debug)]
struct Running {
    tag: Option<VolumeTag>,
    volume: VolumeId,
    kind: Kinds,
    step: Step,
    /// Objects that are left.
    rest: Option<RangeInclusive<ObjectKey>>,
    pending: u32,
    refusal: Option<VolumeRefusal>,
    /// The transaction of this step is sent.
    is_sent: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kinds {
    Create,
    Grow { size: u64, now: u64 },
    Clone { source: VolumeId },
    Delete,
}

#[derive(Debug, Default)]
pub(crate) struct Jobs {
    waiting: VecDeque<Job>,
    running: Option<Running>,
}

impl Jobs {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_none()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= JOBS_MAX
    }

    pub(crate) fn push(&mut self, job: Job) {
        self.waiting.push_back(job);
    }
}

impl<D: Disk> Volumes<D> {
    /// Begins the next job or goes on with the one that runs.
    pub(crate) fn advance_jobs(&mut self) -> bool {
        if self.start.is_some() {
            return false;
        }
        let Some(running) = self.jobs.running.take() else {
            let Some(job) = self.jobs.waiting.pop_front() else { return false };
            self.begin_job(job);
            return true;
        };
        let (running, has_moved) = self.advance_job(running);
        self.jobs.running = running;
        has_moved
    }

    fn begin_job(&mut self, job: Job) {
        let begun = match job.work {
            Work::Asked(request) => self.begin(request),
            Work::CleanUp(volume) => Ok(Some((volume, Kinds::Delete))),
        };
        match begun {
            Ok(Some((volume, kind))) => {
                self.jobs.running = Some(Running {
                    tag: job.tag,
                    volume,
                    kind,
                    step: Step::First,
                    rest: None,
                    pending: 0,
                    refusal: None,
                    is_sent: false,
                });
            }
            Ok(None) => self.end_job(job.tag, Ok(())),
            Err(refusal) => self.end_job(job.tag, Err(refusal)),
        }
    }

    fn end_job(&mut self, tag: Option<VolumeTag>, result: Result<(), VolumeRefusal>) {
        if let Some(tag) = tag {
            self.completions.push(VolumeCompletion { tag, buffer: None, result });
        }
    }

    /// Whether the request can be carried out; `None` when it is done already.
    fn begin(
        &mut self,
        request: VolumeRequest,
    ) -> Result<Option<(VolumeId, Kinds)>, VolumeRefusal> {
        match request {
            VolumeRequest::Create { spec } => self.begin_create(&spec, Kinds::Create),
            VolumeRequest::Clone { source, spec } => {
                let kind = Kinds::Clone { source };
                if self.volumes.contains_key(&spec.volume) {
                    return self.begin_create(&spec, kind);
                }
                let found = self.volumes.get(&source).ok_or(VolumeRefusal::NotFound)?;
                match found {
                    found if found.state != State::Ready => return Err(VolumeRefusal::Busy),
                    found if found.attachments > 0 => return Err(VolumeRefusal::Attached),
                    found if found.size > spec.size => return Err(VolumeRefusal::Shrink),
                    _ => {}
                }
                let begun = self.begin_create(&spec, kind)?;
                if let Some(found) = self.volumes.get_mut(&source) {
                    found.is_source = true;
                }
                Ok(begun)
            }
            VolumeRequest::Grow { volume, size, now } => {
                let found = self.volumes.get(&volume).ok_or(VolumeRefusal::NotFound)?;
                match found {
                    found if found.state != State::Ready => Err(VolumeRefusal::Busy),
                    _ if !is_size(size) => Err(VolumeRefusal::BadSize),
                    found if size < found.size => Err(VolumeRefusal::Shrink),
                    found if size == found.size => Ok(None),
                    _ => Ok(Some((volume, Kinds::Grow { size, now }))),
                }
            }
            VolumeRequest::Delete { volume } => {
                let found = self.volumes.get_mut(&volume).ok_or(VolumeRefusal::NotFound)?;
                if found.attachments > 0 {
                    return Err(VolumeRefusal::Attached);
                }
                found.state = State::Deleting;
                Ok(Some((volume, Kinds::Delete)))
            }
            _ => Err(VolumeRefusal::BadRange),
        }
    }

    /// Puts the new volume into the table, in the state "being made".
    fn begin_create(
        &mut self,
        spec: &VolumeSpec,
        kind: Kinds,
    ) -> Result<Option<(VolumeId, Kinds)>, VolumeRefusal> {
        if !is_size(spec.size) {
            return Err(VolumeRefusal::BadSize);
        }
        if self.broken.contains(&spec.volume) {
            return Err(VolumeRefusal::BadHeader);
        }
        if let Some(found) = self.volumes.get(&spec.volume) {
            let is_same = found.name == spec.name && found.size == spec.size;
            return match found.state {
                State::Ready if is_same => Ok(None),
                State::Ready => Err(VolumeRefusal::Exists),
                State::Making | State::Deleting => Err(VolumeRefusal::Busy),
            };
        }
        if self.volumes.len() >= VOLUMES_MAX {
            return Err(VolumeRefusal::TooMany);
        }
        if self.volumes.values().any(|found| found.name == spec.name) {
            return Err(VolumeRefusal::NameTaken);
        }
        let volume = Volume {
            name: spec.name.clone(),
            size: spec.size,
            created_at: spec.created_at,
            updated_at: spec.created_at,
            state: State::Making,
            units: 0,
            objects: 0,
            attachments: 0,
            is_source: false,
        };
        self.volumes.insert(spec.volume, volume);
        Ok(Some((spec.volume, kind)))
    }

    fn advance_job(&mut self, mut running: Running) -> (Option<Running>, bool) {
        if running.pending > 0 && (running.step != Step::Objects || running.refusal.is_some()) {
            return (Some(running), false);
        }
        if running.refusal.is_some() {
            return (self.fail_job(running), true);
        }
        match running.step {
            Step::First | Step::Last if !running.is_sent => {
                if self.store.room() == 0 {
                    return (Some(running), false);
                }
                running.is_sent = true;
                running.pending = 1;
                let transaction = self.transaction(&running);
                self.send_job(0, StoreRequest::Apply { transaction });
                (Some(running), true)
            }
            Step::First => (self.after_first(running), true),
            Step::Objects => self.move_objects(running),
            Step::Last => {
                self.finish_job(&running);
                self.end_job(running.tag, Ok(()));
                (None, true)
            }
        }
    }

    fn transaction(&self, running: &Running) -> Vec<Operation> {
        let (pool, volume) = (self.pool, running.volume);
        let Some(found) = self.volumes.get(&volume) else { return Vec::new() };
        let mut header = Header {
            size: found.size,
            created_at: found.created_at,
            updated_at: found.updated_at,
            state: State::Ready,
        };
        match (running.kind, running.step) {
            (Kinds::Delete, Step::Last) => {
                let remove = |kind| Operation::Remove { key: key(pool, kind, volume, 0) };
                return vec![remove(Kind::Id), remove(Kind::Header)];
            }
            (Kinds::Grow { size, now }, _) => (header.size, header.updated_at) = (size, now),
            (Kinds::Clone { .. }, Step::First) => header.state = State::Making,
            (Kinds::Delete, _) => header.state = State::Deleting,
            (Kinds::Create | Kinds::Clone { .. }, _) => {}
        }
        let mut transaction = header.emit(pool, volume);
        transaction.push(emit_name(pool, volume, &found.name));
        transaction
    }

    fn after_first(&mut self, mut running: Running) -> Option<Running> {
        let from = match running.kind {
            Kinds::Clone { source } => source,
            Kinds::Delete => running.volume,
            Kinds::Create | Kinds::Grow { .. } => {
                running.step = Step::Last;
                return Some(running);
            }
        };
        running.step = Step::Objects;
        running.is_sent = false;
        running.rest = Some(data_range(self.pool, from));
        Some(running)
    }

    /// Clones or removes the next objects.
    fn move_objects(&mut self, mut running: Running) -> (Option<Running>, bool) {
        let mut has_moved = false;
        while running.pending < OBJECTS_AT_ONCE
            && self.store.room() > 0
            && let Some(range) = running.rest.take()
        {
            let Some(object) = self.store.list(range.clone(), 1).pop() else { break };
            let source = object.key;
            let operation = match running.kind {
                Kinds::Clone { .. } => {
                    let index = index_of(&source);
                    let target = key(self.pool, Kind::Data, running.volume, index);
                    Operation::Clone { source, target }
                }
                _ => Operation::Remove { key: source },
            };
            let mut next = source;
            next.object.0 += 1;
            running.rest = (next <= *range.end()).then(|| next..=*range.end());
            running.pending += 1;
            has_moved = true;
            self.send_job(0, StoreRequest::Apply { transaction: vec![operation] });
        }
        if running.pending == 0 && running.rest.is_none() {
            running.step = Step::Last;
            running.is_sent = false;
            has_moved = true;
        }
        (Some(running), has_moved)
    }

    fn finish_job(&mut self, running: &Running) {
        match running.kind {
            Kinds::Create | Kinds::Clone { .. } => {
                if let Some(found) = self.volumes.get_mut(&running.volume) {
                    found.state = State::Ready;
                }
            }
            Kinds::Grow { size, now } => {
                if let Some(found) = self.volumes.get_mut(&running.volume) {
                    (found.size, found.updated_at) = (size, now);
                }
            }
            Kinds::Delete => {
                self.volumes.remove(&running.volume);
            }
        }
        self.release_source(running.kind);
    }

    fn release_source(&mut self, kind: Kinds) {
        if let Kinds::Clone { source } = kind
            && let Some(found) = self.volumes.get_mut(&source)
        {
            found.is_source = false;
        }
    }

    /// A step was refused. What was half made is deleted, if the store still takes changes; a
    /// delete stays "being deleted" and can be asked for again.
    fn fail_job(&mut self, running: Running) -> Option<Running> {
        let refusal = running.refusal.unwrap_or(VolumeRefusal::Busy);
        self.release_source(running.kind);
        self.end_job(running.tag, Err(refusal));
        let is_making = matches!(running.kind, Kinds::Create | Kinds::Clone { .. });
        if !is_making {
            return None;
        }
        if running.step == Step::First {
            self.volumes.remove(&running.volume);
        } else if self.store.state() == StoreState::Writable {
            self.jobs.push(Job::clean_up(running.volume));
        }
        None
    }

    pub(crate) fn job_answer(&mut self, _detail: u64, result: Result<StoreAnswer, StoreRefusal>) {
        let Some(running) = &mut self.jobs.running else { return };
        running.pending -= 1;
        match result {
            Ok(StoreAnswer::Changed { units, objects, .. }) if running.step == Step::Objects => {
                if let Some(found) = self.volumes.get_mut(&running.volume) {
                    found.units += units;
                    found.objects += objects;
                }
            }
            Ok(_) => {}
            Err(refusal) => {
                running.refusal = running.refusal.or(Some(VolumeRefusal::Store(refusal)));
            }
        }
    }
}
