// SPDX-License-Identifier: Apache-2.0
//! What changes the volumes themselves: one job at a time, each one transaction.
//!
//! ```text
//!   check ─▶ wait for what is on its way, if it must end first ─▶ one transaction ─▶ effect
//! ```
//!
//! Every job takes the same time for a volume of any size. What must go over a volume's objects
//! (giving space back, rolling back, flattening) begins as the effect of a job and goes on beside
//! all others (`chores.rs`); what it needs to know is in the header, so that it goes on after a
//! power cut.

use crate::header::{Header, Link, Snapshot, State, emit_name, is_number, is_size};
use crate::key::Family;
use crate::request::{
    ChoreKind, SnapshotSpec, VolumeCompletion, VolumeRefusal, VolumeRequest, VolumeSpec, VolumeTag,
};
use crate::volume::{DEPTH_MAX, Kept, SNAPSHOTS_MAX, Volume};
use crate::volumes::{JOB, Omit, VOLUMES_MAX, Volumes};
use plinth_ids::{SnapshotId, VolumeId};
use plinth_store::{ObjectStore, Operation, StoreAnswer, StoreRefusal, StoreRequest};
use std::collections::VecDeque;

/// Jobs that may wait.
const JOBS_MAX: usize = 256;

#[derive(Debug)]
enum Work {
    Asked(VolumeRequest),
    /// Gives up what a clone stood on, if nothing else stands on it.
    Unlink(Link),
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

    pub(crate) fn unlink(link: Link) -> Self {
        Self { tag: None, work: Work::Unlink(link) }
    }
}

/// What must have ended before the transaction is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Drain {
    Nothing,
    /// Changes of this volume that the store has.
    Changes(u32),
    /// All requests on this volume.
    Requests(u32),
}

/// What is true once the transaction is done.
#[derive(Clone, Debug)]
enum Effect {
    /// The volume is there.
    Make,
    /// The header is this.
    Head(Header),
    /// The snapshot that was put in as newest is there.
    Record,
    /// Both: a clone of the volume at `source` as it is.
    MakeOf { source: u32 },
    /// The snapshot is gone for everybody.
    Leave { number: u64 },
}

#[derive(Debug)]
struct Begun {
    /// The volume's place in the table.
    at: u32,
    drain: Drain,
    transaction: Vec<Operation>,
    effect: Effect,
    /// What goes on afterwards.
    chore: Option<ChoreKind>,
}

/// The job that is carried out.
#[derive(Debug)]
struct Running {
    tag: Option<VolumeTag>,
    begun: Begun,
    is_sent: bool,
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

/// What became of a request.
#[derive(Debug)]
enum Begin {
    /// It is done already.
    Done,
    Job(Begun),
    /// A chore has it, and ends it.
    Handed,
}

type Start = Result<Begin, VolumeRefusal>;

impl<S: ObjectStore> Volumes<S> {
    /// Begins the next job or goes on with the one that runs.
    pub(crate) fn advance_jobs(&mut self) -> bool {
        if self.start.is_some() {
            return false;
        }
        let Some(mut running) = self.jobs.running.take() else {
            let Some(job) = self.jobs.waiting.pop_front() else { return false };
            self.begin_job(job);
            return true;
        };
        let place = |at| self.place(at);
        let is_drained = match running.begun.drain {
            Drain::Nothing => true,
            Drain::Changes(at) => place(at).is_none_or(|volume| volume.changing == 0),
            Drain::Requests(at) => place(at).is_none_or(|volume| volume.under_way == 0),
        };
        let can_send = !running.is_sent && is_drained && self.store.room() > 1;
        if can_send {
            running.is_sent = true;
            let transaction = std::mem::take(&mut running.begun.transaction);
            self.send(JOB, StoreRequest::Apply { transaction });
        }
        self.jobs.running = Some(running);
        can_send
    }

    fn begin_job(&mut self, Job { tag, work }: Job) {
        let begun = match work {
            // A volume that is not known may be there all the same.
            _ if self.is_blind => Err(VolumeRefusal::HeadersOut),
            Work::Asked(request) => self.begin(tag, request),
            Work::Unlink(link) => Ok(self.begin_unlink(link).map_or(Begin::Done, Begin::Job)),
        };
        match begun {
            Ok(Begin::Job(begun)) => {
                self.jobs.running = Some(Running { tag, begun, is_sent: false });
            }
            Ok(Begin::Done) => self.end_job(tag, Ok(())),
            Ok(Begin::Handed) => {}
            Err(refusal) => self.end_job(tag, Err(refusal)),
        }
    }

    pub(crate) fn end_job(&mut self, tag: Option<VolumeTag>, result: Result<(), VolumeRefusal>) {
        if let Some(tag) = tag {
            self.completions.push(VolumeCompletion { tag, buffer: None, result, answer: None });
        }
    }

    /// Whether the request can be carried out.
    fn begin(&mut self, tag: Option<VolumeTag>, request: VolumeRequest) -> Start {
        match request {
            VolumeRequest::Create { spec } => {
                let header = new_header(&spec, Family::new(spec.volume), None);
                let Some((at, transaction)) = self.put_in(&spec, header)? else {
                    return Ok(Begin::Done);
                };
                Ok(Begin::Job(Begun::new(at, transaction, Effect::Make)))
            }
            VolumeRequest::Clone { source, snapshot, spec } => {
                self.begin_clone(source, snapshot, &spec)
            }
            VolumeRequest::Grow { volume, size, now } => {
                let (at, found) = self.ready(volume)?;
                if !is_size(size) {
                    return Err(VolumeRefusal::BadSize);
                }
                if size < found.header.size {
                    return Err(VolumeRefusal::Shrink);
                }
                if size == found.header.size {
                    return Ok(Begin::Done);
                }
                let header = Header { size, updated_at: now, ..found.header.clone() };
                Ok(Begin::Job(self.rewrite(at, header, None)))
            }
            VolumeRequest::Delete { volume, wipe } => self.begin_delete(volume, wipe),
            VolumeRequest::SnapshotCreate { spec } => self.begin_snapshot(spec),
            VolumeRequest::SnapshotDelete { volume, snapshot } => {
                self.begin_leave(volume, snapshot)
            }
            VolumeRequest::Rollback { volume, snapshot, now } => {
                self.begin_rollback(tag, volume, snapshot, now)
            }
            VolumeRequest::Flatten { volume } => {
                let (at, found) = self.ready(volume)?;
                if found.header.parent.is_none() {
                    return Err(VolumeRefusal::NoClone);
                }
                if found.header.is_flattening {
                    return Err(VolumeRefusal::Busy);
                }
                let header = Header { is_flattening: true, ..found.header.clone() };
                Ok(Begin::Job(self.rewrite(at, header, Some(ChoreKind::Flatten))))
            }
            VolumeRequest::Usage { .. } | VolumeRequest::Changes { .. } => {
                self.begin_question(tag, request)?;
                Ok(Begin::Handed)
            }
            VolumeRequest::Read { .. }
            | VolumeRequest::Write { .. }
            | VolumeRequest::Zero { .. }
            | VolumeRequest::Discard { .. }
            | VolumeRequest::Flush { .. } => Err(VolumeRefusal::BadRange),
        }
    }

    fn begin_rollback(
        &mut self,
        tag: Option<VolumeTag>,
        volume: VolumeId,
        snapshot: SnapshotId,
        now: u64,
    ) -> Start {
        let (at, found) = self.find(volume).ok_or(VolumeRefusal::NotFound)?;
        let kept = found.named(snapshot).ok_or(VolumeRefusal::SnapshotMissing)?;
        let target = kept.record.number;
        let is_stuck = found.header.state == State::RollingBack
            && found.header.target == target
            && self.chores.status(at).is_none();
        if is_stuck {
            // It failed before, for want of space perhaps.
            self.begin_chore(at, ChoreKind::Rollback, tag);
            return Ok(Begin::Handed);
        }
        let (at, found) = self.ready(volume)?;
        if found.attachments > 0 {
            return Err(VolumeRefusal::Attached);
        }
        let state = State::RollingBack;
        let header = Header { state, target, updated_at: now, ..found.header.clone() };
        let mut begun = self.rewrite(at, header, Some(ChoreKind::Rollback));
        if self.omit == Omit::RollbackState {
            begun.transaction = found.header.emit(self.pool, volume);
        }
        begun.drain = Drain::Requests(at);
        Ok(Begin::Job(begun))
    }

    /// A volume that users know of and that nothing holds up.
    pub(crate) fn ready(&self, volume: VolumeId) -> Result<(u32, &Volume), VolumeRefusal> {
        let (at, found) = self.find(volume).ok_or(VolumeRefusal::NotFound)?;
        match found.header.state {
            State::Ready => Ok((at, found)),
            State::Hidden | State::HiddenToWipe => Err(VolumeRefusal::NotFound),
            State::Making | State::Deleting | State::Wiping | State::RollingBack => {
                Err(VolumeRefusal::Busy)
            }
        }
    }

    fn rewrite(&self, at: u32, header: Header, chore: Option<ChoreKind>) -> Begun {
        let volume = self.place(at).map_or(VolumeId(0), |volume| volume.id);
        let transaction = header.emit(self.pool, volume);
        Begun { chore, ..Begun::new(at, transaction, Effect::Head(header)) }
    }

    /// Puts the new volume into the table, in the state "being made", and says how to write it;
    /// `None` when it is there as it should be.
    fn put_in(
        &mut self,
        spec: &VolumeSpec,
        header: Header,
    ) -> Result<Option<(u32, Vec<Operation>)>, VolumeRefusal> {
        if !is_size(spec.size) {
            return Err(VolumeRefusal::BadSize);
        }
        if self.broken.contains(&spec.volume) {
            return Err(VolumeRefusal::BadHeader);
        }
        if let Some((_, found)) = self.find(spec.volume) {
            let is_same = found.name == spec.name && found.header.size == spec.size;
            return match found.header.state {
                State::Ready if is_same => Ok(None),
                State::Ready | State::RollingBack => Err(VolumeRefusal::Exists),
                State::Making
                | State::Deleting
                | State::Wiping
                | State::Hidden
                | State::HiddenToWipe => Err(VolumeRefusal::Busy),
            };
        }
        if self.ids.len() >= VOLUMES_MAX {
            return Err(VolumeRefusal::TooMany);
        }
        let is_taken = |found: &Volume| {
            found.name == spec.name
                && !found.header.state.is_going()
                && !found.header.state.is_hidden()
        };
        if self.all().any(|(_, found)| is_taken(found)) {
            return Err(VolumeRefusal::NameTaken);
        }
        let mut transaction = header.emit(self.pool, spec.volume);
        transaction.push(emit_name(self.pool, spec.volume, &spec.name));
        let header = Header { state: State::Making, ..header };
        let at = self.add_volume(Volume::new(spec.volume, spec.name.clone(), header));
        Ok(Some((at, transaction)))
    }

    fn begin_clone(
        &mut self,
        source: VolumeId,
        snapshot: Option<SnapshotId>,
        spec: &VolumeSpec,
    ) -> Start {
        if self.ids.contains_key(&spec.volume) {
            // Asked again: done, or another volume of this number.
            let header = new_header(spec, Family::new(spec.volume), None);
            return self.put_in(spec, header).map(|_| Begin::Done);
        }
        let (of, found) = self.ready(source)?;
        let depth = u32::try_from(found.chain.len()).unwrap_or(u32::MAX);
        if depth >= DEPTH_MAX {
            return Err(VolumeRefusal::TooDeep { depth });
        }
        let kept = match snapshot {
            Some(snapshot) => {
                Some(found.named(snapshot).ok_or(VolumeRefusal::SnapshotMissing)?.record.clone())
            }
            None => found.unchanged().map(|kept| kept.record.clone()),
        };
        let size = kept.as_ref().map_or(found.header.size, |record| record.size);
        if size > spec.size {
            return Err(VolumeRefusal::Shrink);
        }
        let number = kept.as_ref().map_or(found.header.next, |record| record.number);
        if kept.is_none() {
            check_snapshots(found)?;
        }
        let (family, link) = (found.header.family, Link { volume: source, number });
        let mut chain = vec![link];
        chain.extend(&found.chain);
        let Some((at, mut transaction)) =
            self.put_in(spec, new_header(spec, family, Some(link)))?
        else {
            return Ok(Begin::Done);
        };
        if let Some(volume) = self.place_mut(at) {
            volume.chain = chain;
        }
        if kept.is_some() {
            return Ok(Begin::Job(Begun::new(at, transaction, Effect::Make)));
        }
        // A snapshot that only the clone knows goes with its last clone.
        let spec = SnapshotSpec {
            volume: source,
            snapshot: SnapshotId(0),
            name: spec.name.clone(),
            identity: [0; 16],
            created_at: spec.created_at,
        };
        transaction.extend(self.put_in_snapshot(of, spec, false));
        let effect = Effect::MakeOf { source: of };
        Ok(Begin::Job(Begun { drain: Drain::Changes(of), ..Begun::new(at, transaction, effect) }))
    }

    fn begin_snapshot(&mut self, spec: SnapshotSpec) -> Start {
        let (at, found) = self.ready(spec.volume)?;
        let mut named = found.snapshots.iter().map(|kept| &kept.record);
        let same = |record: &&Snapshot| record.id == spec.snapshot && record.name.is_some();
        if let Some(record) = named.clone().find(same) {
            let is_done = record.name.as_ref() == Some(&spec.name) && !record.is_leaving;
            return if is_done { Ok(Begin::Done) } else { Err(VolumeRefusal::SnapshotExists) };
        }
        if named.any(|record| record.name.as_ref() == Some(&spec.name) && !record.is_leaving) {
            return Err(VolumeRefusal::SnapshotNameTaken);
        }
        check_snapshots(found)?;
        let transaction = self.put_in_snapshot(at, spec, true);
        let drain = Drain::Changes(at);
        Ok(Begin::Job(Begun { drain, ..Begun::new(at, transaction, Effect::Record) }))
    }

    /// Makes the snapshot the newest of its volume, so that nothing is changed without a copy
    /// from here on; changes wait until it is recorded.
    fn put_in_snapshot(&mut self, at: u32, spec: SnapshotSpec, is_named: bool) -> Vec<Operation> {
        let pool = self.pool;
        let Some(volume) = self.place_mut(at) else { return Vec::new() };
        let record = Snapshot {
            number: volume.header.next,
            name: is_named.then_some(spec.name),
            id: spec.snapshot,
            identity: spec.identity,
            size: volume.header.size,
            created_at: spec.created_at,
            is_leaving: false,
        };
        volume.header.next += 1;
        let mut transaction = volume.header.emit(pool, volume.id);
        transaction.extend(record.emit(pool, volume.id));
        volume.snapshots.push(Kept::new(record));
        volume.is_recording = true;
        volume.settle();
        transaction
    }

    /// The volumes that were cloned from a volume, or from one snapshot of it.
    pub(crate) fn clones(
        &self,
        volume: VolumeId,
        number: Option<u64>,
    ) -> impl Iterator<Item = VolumeId> {
        let is_clone = move |link: Link| {
            link.volume == volume && number.is_none_or(|number| link.number == number)
        };
        let all = self.all().filter(move |(_, found)| found.header.parent.is_some_and(is_clone));
        all.map(|(_, found)| found.id)
    }

    fn begin_leave(&mut self, volume: VolumeId, snapshot: SnapshotId) -> Start {
        let (at, found) = self.ready(volume)?;
        let known = |kept: &&Kept| kept.record.id == snapshot && kept.record.name.is_some();
        let kept = found.snapshots.iter().find(known).ok_or(VolumeRefusal::SnapshotMissing)?;
        if kept.record.is_leaving {
            return Ok(Begin::Done);
        }
        if kept.holders > 0 {
            return Err(VolumeRefusal::SnapshotInUse);
        }
        let mut clones = self.clones(volume, Some(kept.record.number));
        if let Some(child) = clones.next() {
            let count = 1 + u32::try_from(clones.count()).unwrap_or(u32::MAX - 1);
            return Err(VolumeRefusal::HasClones { child, count });
        }
        Ok(Begin::Job(self.leave(at, kept.record.clone())))
    }

    fn leave(&self, at: u32, record: Snapshot) -> Begun {
        let volume = self.place(at).map_or(VolumeId(0), |volume| volume.id);
        let record = Snapshot { is_leaving: true, ..record };
        let transaction = Vec::from(record.emit(self.pool, volume));
        let effect = Effect::Leave { number: record.number };
        Begun { chore: Some(ChoreKind::Trim), ..Begun::new(at, transaction, effect) }
    }

    fn begin_delete(&mut self, volume: VolumeId, wipe: bool) -> Start {
        let (at, found) = self.find(volume).ok_or(VolumeRefusal::NotFound)?;
        match found.header.state {
            State::Ready => {}
            State::Hidden | State::HiddenToWipe => return Err(VolumeRefusal::NotFound),
            // Asked again. What is given back already cannot be wiped any more.
            State::Deleting if wipe => return Err(VolumeRefusal::NotFound),
            State::Deleting | State::Wiping => return Ok(Begin::Done),
            State::Making | State::RollingBack => return Err(VolumeRefusal::Busy),
        }
        if found.attachments > 0 {
            return Err(VolumeRefusal::Attached);
        }
        let is_named = |kept: &&Kept| kept.record.name.is_some() && !kept.record.is_leaving;
        let count = found.snapshots.iter().filter(is_named).count();
        if count > 0 {
            return Err(VolumeRefusal::HasSnapshots { count: u32::try_from(count).unwrap_or(0) });
        }
        Ok(Begin::Job(self.delete(at, wipe)))
    }

    /// A volume that clones stand on is hidden until the last of them is gone.
    fn delete(&self, at: u32, wipe: bool) -> Begun {
        let volume = self.place(at).expect("the caller found it");
        let is_hidden = self.clones(volume.id, None).next().is_some();
        let header = if is_hidden {
            let state = if wipe { State::HiddenToWipe } else { State::Hidden };
            Header { state, ..volume.header.clone() }
        } else {
            let (parent, is_flattening) = (None, false);
            let state = if wipe { State::Wiping } else { State::Deleting };
            Header { state, parent, is_flattening, ..volume.header.clone() }
        };
        let chore = (!is_hidden).then_some(ChoreKind::Reclaim);
        Begun { drain: Drain::Requests(at), ..self.rewrite(at, header, chore) }
    }

    fn begin_unlink(&mut self, link: Link) -> Option<Begun> {
        let (at, found) = self.find(link.volume)?;
        let state = found.header.state;
        if state == State::Making || state.is_going() {
            return None;
        }
        if state.is_hidden() && self.clones(link.volume, None).next().is_none() {
            return Some(self.delete(at, state.wipes()));
        }
        let kept = found.numbered(link.number)?;
        let is_needed = kept.record.name.is_some()
            || kept.record.is_leaving
            || self.clones(link.volume, Some(link.number)).next().is_some();
        (!is_needed).then(|| self.leave(at, kept.record.clone()))
    }

    pub(crate) fn job_answer(&mut self, result: Result<StoreAnswer, StoreRefusal>) {
        let Some(Running { tag, begun, .. }) = self.jobs.running.take() else { return };
        if let Err(refusal) = result {
            self.undo(&begun);
            return self.end_job(tag, Err(VolumeRefusal::Store(refusal)));
        }
        let Begun { at, effect, chore, .. } = begun;
        match effect {
            Effect::Make => self.made(at),
            Effect::MakeOf { source } => {
                self.made(at);
                self.recorded(source);
            }
            Effect::Record => self.recorded(at),
            Effect::Head(header) => self.rewritten(at, header),
            Effect::Leave { number } => {
                if let Some(volume) = self.place_mut(at) {
                    if let Some(kept) = volume.numbered_mut(number) {
                        kept.record.is_leaving = true;
                    }
                    volume.settle();
                }
            }
        }
        // Who asks for a volume to be what a snapshot is, or to stand alone, wants to know when.
        let is_awaited = matches!(chore, Some(ChoreKind::Rollback | ChoreKind::Flatten));
        if let Some(kind) = chore {
            self.begin_chore(at, kind, tag.filter(|_| is_awaited));
        }
        if !is_awaited {
            self.end_job(tag, Ok(()));
        }
    }

    fn made(&mut self, at: u32) {
        if let Some(volume) = self.place_mut(at) {
            volume.header.state = State::Ready;
        }
        let parent = self.place(at).and_then(|volume| volume.header.parent);
        if let Some((at, _)) = parent.and_then(|link| self.find(link.volume))
            && let Some(volume) = self.place_mut(at)
        {
            volume.has_clones = true;
        }
    }

    fn recorded(&mut self, at: u32) {
        if let Some(volume) = self.place_mut(at) {
            volume.is_recording = false;
        }
    }

    fn rewritten(&mut self, at: u32, header: Header) {
        let Some(volume) = self.place_mut(at) else { return };
        let parent = volume.header.parent;
        let is_cut = parent != header.parent;
        // The number of the next snapshot may have risen since the header was made.
        let next = volume.header.next;
        volume.header = Header { next, ..header };
        volume.settle();
        if is_cut {
            self.link_chains();
        }
        if is_cut && let Some(link) = parent {
            self.jobs.push(Job::unlink(link));
        }
    }

    /// A header was written by a chore at its end.
    pub(crate) fn finish_header(&mut self, at: u32, header: Header) {
        self.rewritten(at, header);
    }

    /// The transaction was refused: nothing of the job is left.
    fn undo(&mut self, begun: &Begun) {
        let recording = match begun.effect {
            Effect::Record => Some(begun.at),
            Effect::MakeOf { source } => Some(source),
            Effect::Make | Effect::Head(_) | Effect::Leave { .. } => None,
        };
        if let Some(volume) = recording.and_then(|at| self.place_mut(at)) {
            volume.snapshots.pop();
            volume.is_recording = false;
            volume.settle();
        }
        if matches!(begun.effect, Effect::Make | Effect::MakeOf { .. }) {
            self.remove_volume(begun.at);
        }
    }
}

impl Begun {
    const fn new(at: u32, transaction: Vec<Operation>, effect: Effect) -> Self {
        Self { at, drain: Drain::Nothing, transaction, effect, chore: None }
    }
}

fn new_header(spec: &VolumeSpec, family: Family, parent: Option<Link>) -> Header {
    Header {
        size: spec.size,
        created_at: spec.created_at,
        updated_at: spec.created_at,
        state: State::Ready,
        family,
        next: 1,
        parent,
        target: 0,
        is_flattening: false,
    }
}

fn check_snapshots(volume: &Volume) -> Result<(), VolumeRefusal> {
    let has_room = volume.snapshots.len() < SNAPSHOTS_MAX && is_number(volume.header.next);
    if has_room { Ok(()) } else { Err(VolumeRefusal::TooManySnapshots) }
}
