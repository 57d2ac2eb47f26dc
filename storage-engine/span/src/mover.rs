// SPDX-License-Identifier: Apache-2.0
//! Moves groups to the disks where they belong, one at a time, while they are served.
//!
//! ```text
//!   Rest ─▶ Announce ─▶ Untracked ─▶ Clear ─▶ Copy ─▶ Again ... ─▶ Hold ─▶ Last ─▶ Flush ─▶ Switch
//!     ▲      target      wait for    old       all     what         wait    rest    target   owner
//!     │      in map      changes     rubbish           changed      for all                  in map
//!     └──────────────────────────── Clear (source) ◀─────────────────────────────────────────┘
//! ```
//! The source has the group until the switch is durable; until then every change goes to the
//! source, and what it changed is copied again. So a cut at any moment before finds the source
//! whole, and whatever is on the target is rubbish, which is cleared when the move begins again.
//! Only between `Hold` and `Switch` do requests of the group wait; they wait for at most
//! [`LAST_BYTES`], unless a guest writes faster than can be copied for [`ROUNDS_MAX`] rounds.

use crate::clear::Clearing;
use crate::copy::{Action, Copier, Task};
use crate::log::LogCopy;
use crate::pace::Pace;
use crate::route::Dirt;
use crate::span::{Omit, Op, Span, first_of, last_of};
use plinth_ids::{DiskId, Moment};
use plinth_store::{IoBuffer, ObjectKey, ObjectStore, StoreAnswer, StoreRefusal, StoreRequest};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Bytes a second that are copied where nobody chose.
pub const RATE_DEFAULT: u64 = 64 << 20;

/// Objects copied at once.
pub(crate) const COPIERS: usize = 4;
/// Objects listed at once.
const LISTED: usize = 30;
/// What may be left to copy while the group's requests wait.
const LAST_BYTES: u64 = 1 << 20;
/// How often changed objects are copied again before requests wait in any case.
const ROUNDS_MAX: u32 = 8;
/// When what failed is tried again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Objects that a copy may be compared with.
const CANDIDATES: usize = 3;
/// A disk fuller than this, in percent, is given no groups.
pub(crate) const FULL: u64 = 90;

const LIST_CALL: u32 = 1000;
pub(crate) const CLEAR_CALL: u32 = 1001;
pub(crate) const FLUSH_CALL: u32 = 1002;
pub(crate) const LOG_CALL: u32 = 1003;
pub(crate) const LIFT_CALL: u32 = 1004;

/// A group on its way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moving {
    pub group: u32,
    pub source: DiskId,
    pub target: DiskId,
    pub objects: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    Rest,
    Announce,
    Untracked,
    /// Removes what is on the target from an earlier try.
    ClearTarget,
    Copy,
    Again,
    Hold,
    Last,
    Flush,
    Switch,
    /// Something failed: the move is taken out of the map.
    Withdraw,
    /// Removes a run of groups from a disk that does not have them (any more).
    Clear,
}

/// What is moved now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub(crate) group: usize,
    pub(crate) source: usize,
    pub(crate) target: usize,
}

#[derive(Debug)]
pub(crate) struct Mover {
    pub(crate) stage: Stage,
    pub(crate) now: Option<Move>,
    /// Groups that belong elsewhere, and whether that must be found out anew.
    pub(crate) plan: VecDeque<usize>,
    pub(crate) looks: bool,
    pub(crate) look_at: Option<Moment>,
    pub(crate) trouble: Option<(usize, String)>,
    /// Disks whose foreign groups are to be cleared, and up to which group that is done.
    pub(crate) sweeps: VecDeque<(usize, usize)>,
    pub(crate) clearing: Option<Clearing>,
    /// The next key to be listed of the group that is copied, and the pass: snapshots, heads.
    pub(crate) cursor: Option<ObjectKey>,
    pub(crate) heads: bool,
    waiting: VecDeque<(ObjectKey, Task)>,
    copiers: [Option<Copier>; COPIERS],
    pub(crate) calls: usize,
    /// Changed since it was copied.
    dirty: BTreeMap<ObjectKey, Task>,
    /// Objects that are on the target as on the source, by family, and what shares with them.
    copied: BTreeMap<u64, Vec<ObjectKey>>,
    based: BTreeMap<ObjectKey, Vec<ObjectKey>>,
    pub(crate) log: LogCopy,
    /// What the source's versions have come to, once it said so.
    pub(crate) lift_from: Option<u64>,
    rounds: u32,
    pub(crate) objects: u64,
    pub(crate) failed: Option<StoreRefusal>,
    pub(crate) pace: Pace,
    pub(crate) is_paused: bool,
}

/// Objects that may share units across object numbers: the low half of a number is an index in
/// volumes. Where it means something else, less is shared and nothing is wrong.
fn family(key: &ObjectKey) -> u64 {
    u64::try_from(key.object.0 & u128::from(u32::MAX)).unwrap_or(0)
}

impl Mover {
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            stage: Stage::Rest,
            now: None,
            plan: VecDeque::new(),
            looks: true,
            look_at: None,
            trouble: None,
            sweeps: VecDeque::new(),
            clearing: None,
            cursor: None,
            heads: false,
            waiting: VecDeque::new(),
            copiers: [const { None }; COPIERS],
            calls: 0,
            dirty: BTreeMap::new(),
            copied: BTreeMap::new(),
            based: BTreeMap::new(),
            log: LogCopy::first(),
            lift_from: None,
            rounds: 0,
            objects: 0,
            failed: None,
            pace: Pace::new(rate),
            is_paused: false,
        }
    }

    pub(crate) fn look_again(&mut self) {
        self.looks = true;
    }

    pub(crate) fn sweep(&mut self, seat: usize) {
        self.sweeps.push_back((seat, 0));
    }

    /// Whether it does nothing, and would not begin anything by itself.
    pub(crate) fn is_resting(&self) -> bool {
        if self.is_paused {
            // What waits for the rate waits on.
            self.calls == self.pace.waiting() && !self.must_end()
        } else {
            self.is_done() && self.look_at.is_none()
        }
    }

    /// Whether requests wait for it, or the map is on its way.
    fn must_end(&self) -> bool {
        let holds = [Stage::Hold, Stage::Last, Stage::Flush].contains(&self.stage);
        holds || self.is_writing()
    }

    /// Whether it does nothing now.
    pub(crate) fn is_done(&self) -> bool {
        let has_none = self.plan.is_empty() && !self.looks && self.sweeps.is_empty();
        self.stage == Stage::Rest && has_none
    }

    /// Whether the map is being written in the order that a move needs.
    pub(crate) fn is_writing(&self) -> bool {
        matches!(self.stage, Stage::Announce | Stage::Switch | Stage::Withdraw)
    }

    /// Hears of the end of a change.
    pub(crate) fn note(&mut self, group: u16, dirt: Option<Vec<(ObjectKey, Dirt)>>) {
        let Some(dirt) = dirt else { return };
        if self.now.is_none_or(|now| now.group != usize::from(group)) {
            return;
        }
        for (key, dirt) in dirt {
            self.soil(key, dirt);
        }
    }

    fn soil(&mut self, key: ObjectKey, dirt: Dirt) {
        if let Dirt::Log { is_new } = dirt {
            return self.log.soil(is_new);
        }
        match self.dirty.get_mut(&key) {
            Some(task) => task.join(dirt),
            None => {
                self.dirty.insert(key, Task::of(dirt));
            }
        }
        // What was compared with it may have been compared with a later state than was copied.
        for other in self.based.remove(&key).unwrap_or_default() {
            self.dirty.insert(other, Task::Whole);
        }
    }

    /// What the target has just as the source has it, likeliest relatives last.
    fn candidates(&self, key: &ObjectKey) -> Vec<ObjectKey> {
        let is_being_changed = |other: &ObjectKey| {
            let is_copied = self.copiers.iter().flatten().any(|copier| copier.key() == *other);
            let waits = self.waiting.iter().any(|(waiting, _)| waiting == other);
            is_copied || waits || self.dirty.contains_key(other) || other == key
        };
        let all = self.copied.get(&family(key)).map(Vec::as_slice).unwrap_or_default();
        let own = all.iter().rev().filter(|other| other.object == key.object);
        let foreign = all.iter().rev().filter(|other| other.object != key.object);
        let able = own.chain(foreign).filter(|other| !is_being_changed(other));
        let mut candidates: Vec<_> = able.copied().take(CANDIDATES).collect();
        candidates.reverse();
        candidates
    }

    fn dirty_bytes(&self) -> u64 {
        self.dirty.values().map(Task::bytes).sum()
    }

    pub(crate) fn forget_move(&mut self) {
        self.cursor = None;
        self.waiting.clear();
        self.dirty.clear();
        self.copied.clear();
        self.based.clear();
        self.log = LogCopy::first();
        self.lift_from = None;
        self.rounds = 0;
        self.objects = 0;
        self.failed = None;
    }
}

impl<S: ObjectStore> Span<S> {
    pub(crate) fn advance_mover(&mut self, now: Moment) -> bool {
        let mut has_moved = false;
        // A few transitions a round; each that waits for an answer ends the loop.
        for _ in 0..8 {
            let Some(many) = &mut self.many else { return has_moved };
            many.mover.pace.refill(now);
            if many.mover.look_at.is_some_and(|at| at <= now) {
                many.mover.look_at = None;
                many.mover.looks = true;
            }
            if many.mover.is_paused && !many.mover.must_end() {
                return has_moved;
            }
            self.release_throttled();
            if !self.step(now) {
                break;
            }
            has_moved = true;
        }
        has_moved
    }

    /// One transition. Says whether there was one.
    fn step(&mut self, now: Moment) -> bool {
        let Some(many) = &mut self.many else { return false };
        let mover = &mut many.mover;
        if let Some(refusal) = mover.failed
            && mover.calls == 0
            && !mover.is_writing()
        {
            return self.withdraw(refusal, now);
        }
        match mover.stage {
            Stage::Rest => self.choose(now),
            Stage::Announce => self.announced(now),
            Stage::Untracked => {
                let Some(moving) = mover.now else { return false };
                if many.groups[moving.group].untracked > 0 {
                    return false;
                }
                mover.stage = Stage::ClearTarget;
                if self.omit == Omit::ClearTarget {
                    return true;
                }
                let (first, last) = self.range(moving.group);
                self.begin_clear(moving.target, first, last);
                true
            }
            Stage::ClearTarget | Stage::Clear => self.clear(),
            Stage::Copy => self.copy_all(),
            Stage::Again => self.copy_again(),
            Stage::Hold => self.hold(),
            Stage::Last => self.copy_last(),
            Stage::Flush => false,
            Stage::Switch => self.switched(now),
            Stage::Withdraw => self.withdrawn(now),
        }
    }

    pub(crate) fn range(&self, group: usize) -> (ObjectKey, ObjectKey) {
        (first_of(self.pool, group), last_of(self.pool, group))
    }

    /// Writes the map to the group's owner, and to the others when that one has it.
    pub(crate) fn write_in_order(&mut self, owner: usize, stage: Stage) {
        let Some(many) = &mut self.many else { return };
        many.mover.stage = stage;
        many.writing.has_failed = false;
        many.writing.first = Some(owner);
        self.write_map(owner);
        if let Some(many) = &mut self.many
            && many.writing.left == 0
        {
            // The disk takes no writes any more.
            many.writing.first = None;
            many.writing.has_failed = true;
        }
    }

    fn announced(&mut self, now: Moment) -> bool {
        let Some(many) = &mut self.many else { return false };
        if many.writing.left > 0 || many.writing.first.is_some() {
            return false;
        }
        if many.writing.has_failed {
            return self.withdraw(StoreRefusal::ReadOnly, now);
        }
        many.mover.stage = Stage::Untracked;
        true
    }

    /// Feeds the copiers from the list of the source: snapshots first, so that heads can share.
    fn copy_all(&mut self) -> bool {
        let has_moved = self.feed();
        let Some(many) = &mut self.many else { return false };
        let mover = &mut many.mover;
        if has_moved || mover.calls > 0 || !mover.waiting.is_empty() {
            return has_moved;
        }
        let Some(moving) = mover.now else { return false };
        if let Some(from) = mover.cursor {
            let range = from..=last_of(self.pool, moving.group);
            self.call_source(LIST_CALL, StoreRequest::List { range, limit: LISTED });
        } else if !mover.heads {
            mover.heads = true;
            mover.cursor = Some(first_of(self.pool, moving.group));
        } else if mover.log.is_first() {
            // At the rate of all the rest; what is appended meanwhile is copied with what changes.
            self.copy_log();
        } else {
            mover.stage = Stage::Again;
        }
        true
    }

    /// Gives waiting objects to idle copiers.
    fn feed(&mut self) -> bool {
        let mut has_moved = false;
        for number in 0..COPIERS {
            let Some(many) = &mut self.many else { return has_moved };
            let mover = &mut many.mover;
            if mover.copiers[number].is_some() || mover.failed.is_some() {
                continue;
            }
            let Some((key, task)) = mover.waiting.pop_front() else { return has_moved };
            let candidates = mover.candidates(&key);
            // From here on, not from the clone on: what changes them now may be compared already.
            for &candidate in candidates.iter().filter(|_| self.omit != Omit::Relatives) {
                mover.based.entry(candidate).or_default().push(key);
            }
            let mut copier = Copier::new(key, task, candidates, self.omit);
            let action = copier.next(None, &mut self.buffers);
            mover.copiers[number] = Some(copier);
            mover.objects += 1;
            self.act(number, action);
            has_moved = true;
        }
        has_moved
    }

    fn act(&mut self, number: usize, action: Action) {
        let Some(many) = &mut self.many else { return };
        let call = u32::try_from(number).unwrap_or(0);
        match action {
            Action::Source(request) => self.call_source_in_time(call, request),
            Action::Target(request) => self.call_target(call, request),
            Action::Done => {
                let Some(copier) = many.mover.copiers[number].take() else { return };
                let key = copier.key();
                let copied = many.mover.copied.entry(family(&key)).or_default();
                if key.snapshot != 0 && !copied.contains(&key) {
                    copied.push(key);
                }
            }
            Action::Failed(refusal) => {
                many.mover.copiers[number] = None;
                many.mover.failed = many.mover.failed.or(Some(refusal));
            }
        }
    }

    pub(crate) fn call_source(&mut self, call: u32, request: StoreRequest) {
        if let Some(moving) = self.many.as_ref().and_then(|many| many.mover.now) {
            self.call(moving.source, call, request);
        }
    }

    pub(crate) fn call_target(&mut self, call: u32, request: StoreRequest) {
        if let Some(moving) = self.many.as_ref().and_then(|many| many.mover.now) {
            self.call(moving.target, call, request);
        }
    }

    pub(crate) fn call(&mut self, seat: usize, call: u32, request: StoreRequest) {
        let Some(many) = &mut self.many else { return };
        let Some(Some(seat)) = self.seats.get_mut(seat) else { return };
        many.mover.calls += 1;
        let inner = many.insert(Op::Move(call));
        let taken = seat.store.submit(inner, request);
        assert!(taken.is_ok(), "the disk has room for the span's own requests");
    }

    pub(crate) fn move_answer(
        &mut self,
        call: u32,
        buffer: Option<IoBuffer>,
        result: Result<StoreAnswer, StoreRefusal>,
    ) {
        let Some(many) = &mut self.many else { return };
        many.mover.calls -= 1;
        many.mover.pace.heard(call, &result);
        match call {
            LIST_CALL => self.listed(result),
            CLEAR_CALL => self.cleared(result),
            FLUSH_CALL => self.flushed(result),
            LOG_CALL => self.log_answer(result),
            LIFT_CALL => self.lifted(result),
            number => {
                let number = number as usize;
                let Some(Some(copier)) = many.mover.copiers.get_mut(number) else { return };
                let action = copier.next(Some((buffer, result)), &mut self.buffers);
                if many.mover.failed.is_some() && !matches!(action, Action::Failed(_)) {
                    // Another copier failed: this one ends here.
                    many.mover.copiers[number] = None;
                    return;
                }
                self.act(number, action);
            }
        }
    }

    fn listed(&mut self, result: Result<StoreAnswer, StoreRefusal>) {
        let Some(many) = &mut self.many else { return };
        let mover = &mut many.mover;
        match result {
            Ok(StoreAnswer::Listed { objects, next }) => {
                mover.cursor = next;
                let heads = mover.heads;
                let of_pass = objects.iter().filter(|object| (object.key.snapshot == 0) == heads);
                mover.waiting.extend(of_pass.map(|object| (object.key, Task::First)));
            }
            Ok(_) => unreachable!("a list is answered by a list"),
            Err(refusal) => mover.failed = Some(refusal),
        }
    }

    /// Copies what changed, until little is left.
    fn copy_again(&mut self) -> bool {
        let has_moved = self.feed();
        let Some(many) = &mut self.many else { return false };
        let mover = &mut many.mover;
        if has_moved || mover.calls > 0 || !mover.waiting.is_empty() {
            return has_moved;
        }
        if mover.log.is_dirty && mover.rounds < ROUNDS_MAX {
            mover.rounds += 1;
            self.copy_log();
            return true;
        }
        if mover.dirty_bytes() <= LAST_BYTES || mover.rounds >= ROUNDS_MAX {
            mover.stage = Stage::Hold;
            if let Some(moving) = mover.now {
                many.groups[moving.group].is_held = self.omit != Omit::Hold;
            }
            return true;
        }
        mover.rounds += 1;
        mover.waiting = std::mem::take(&mut mover.dirty).into_iter().collect();
        true
    }

    /// Waits until no store has a request of the group.
    fn hold(&mut self) -> bool {
        let Some(many) = &mut self.many else { return false };
        let Some(moving) = many.mover.now else { return false };
        if many.groups[moving.group].in_flight > 0 && self.omit != Omit::Hold {
            return false;
        }
        many.mover.waiting = std::mem::take(&mut many.mover.dirty).into_iter().collect();
        many.mover.stage = Stage::Last;
        true
    }

    fn copy_last(&mut self) -> bool {
        let has_moved = self.feed();
        let Some(many) = &mut self.many else { return false };
        let mover = &mut many.mover;
        if has_moved || mover.calls > 0 || !mover.waiting.is_empty() {
            return has_moved;
        }
        // A copy that shares with one that was copied again meanwhile.
        if !mover.dirty.is_empty() {
            mover.waiting = std::mem::take(&mut mover.dirty).into_iter().collect();
            return true;
        }
        if mover.log.is_dirty {
            self.copy_log();
            return true;
        }
        mover.stage = Stage::Flush;
        self.lift_versions();
        true
    }

    fn flushed(&mut self, result: Result<StoreAnswer, StoreRefusal>) {
        let Some(many) = &mut self.many else { return };
        let mover = &mut many.mover;
        if let Err(refusal) = result {
            mover.failed = Some(refusal);
            return;
        }
        let Some(moving) = mover.now else { return };
        if many.writing.left > 0 {
            // The map is on its way with something else: flush once more, which costs little.
            self.call_target(FLUSH_CALL, StoreRequest::Flush);
            return;
        }
        let entry = &mut many.map.groups[moving.group];
        if let Some(target) = entry.target.take() {
            entry.owner = target;
        }
        entry.version += 1;
        if self.omit == Omit::SwitchBeforeClear {
            many.mover.stage = Stage::Switch;
            return;
        }
        self.write_in_order(moving.source, Stage::Switch);
    }

    fn switched(&mut self, now: Moment) -> bool {
        let Some(many) = &mut self.many else { return false };
        if many.writing.left > 0 || many.writing.first.is_some() {
            return false;
        }
        let Some(moving) = many.mover.now.take() else { return false };
        let known = &mut many.groups[moving.group];
        (known.is_held, known.is_tracked) = (false, false);
        if many.writing.has_failed {
            // Nobody knows whether the source has the switch. It takes no changes, and what it
            // has equals what the target has: the next start finds out.
            let disk = |seat: usize| self.seats.get(seat)?.as_ref().map(|seat| seat.disk);
            if let (Some(source), Some(target)) = (disk(moving.source), disk(moving.target)) {
                let entry = &mut many.map.groups[moving.group];
                (entry.owner, entry.target) = (source, Some(target));
                entry.version -= 1;
            }
            many.mover.trouble = Some((moving.group, StoreRefusal::ReadOnly.to_string()));
            many.mover.look_at = Some(now + PATIENCE);
            many.mover.stage = Stage::Rest;
            return true;
        }
        many.mover.trouble = None;
        many.mover.forget_move();
        // It went where an interrupted move had begun to bring it, which may be the wrong place.
        let entry = &many.map.groups[moving.group];
        many.mover.looks |= many.map.place(moving.group) != Some(entry.owner);
        self.seat_groups_keeping_plan();
        let (first, last) = self.range(moving.group);
        if let Some(many) = &mut self.many {
            many.mover.stage = Stage::Clear;
        }
        self.begin_clear(moving.source, first, last);
        true
    }

    fn seat_groups_keeping_plan(&mut self) {
        let looks = self.many.as_ref().is_some_and(|many| many.mover.looks);
        self.seat_groups();
        if let Some(many) = &mut self.many {
            many.mover.looks = looks;
        }
    }

    /// Takes a move back that failed.
    fn withdraw(&mut self, refusal: StoreRefusal, now: Moment) -> bool {
        let Some(many) = &mut self.many else { return false };
        many.mover.failed = None;
        for copier in &mut many.mover.copiers {
            *copier = None;
        }
        let Some(moving) = many.mover.now else {
            // Clearing failed: the disk is out, or will be swept after the next start.
            many.mover.clearing = None;
            many.mover.stage = Stage::Rest;
            return true;
        };
        many.mover.trouble = Some((moving.group, refusal.to_string()));
        many.mover.look_at = Some(now + PATIENCE);
        if many.writing.left > 0 {
            many.mover.failed = Some(refusal);
            return false;
        }
        let entry = &mut many.map.groups[moving.group];
        entry.target = None;
        entry.version += 1;
        self.write_in_order(moving.source, Stage::Withdraw);
        true
    }

    fn withdrawn(&mut self, now: Moment) -> bool {
        let Some(many) = &mut self.many else { return false };
        if many.writing.left > 0 || many.writing.first.is_some() {
            return false;
        }
        let Some(moving) = many.mover.now.take() else { return false };
        let known = &mut many.groups[moving.group];
        (known.is_held, known.is_tracked) = (false, false);
        many.mover.forget_move();
        many.mover.look_at = Some(now + PATIENCE);
        if many.writing.has_failed {
            many.mover.stage = Stage::Rest;
            return true;
        }
        many.mover.stage = Stage::Clear;
        let (first, last) = self.range(moving.group);
        self.begin_clear(moving.target, first, last);
        true
    }
}
