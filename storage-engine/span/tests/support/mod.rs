// SPDX-License-Identifier: Apache-2.0
//! A pool of memory disks, a slow map of what must be in it, and a life made of random steps.
//!
//! The model keeps for every kilobyte of every object the values that were written there, each
//! with the number of the request that did. A read may show the newest value of those that were
//! submitted before it, or one that came while it was on its way; after a cut, the newest
//! acknowledged value or a later one.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::cast_possible_truncation, reason = "numbers below small limits")]

use plinth_disks::memory::{Fault, FaultRule, Seed};
use plinth_ids::{DiskId, PoolId};
use plinth_span::{Omit, Span, Standing};
use plinth_store::{
    DiskError, IoBuffer, ObjectId, ObjectKey, ObjectStore, Operation, PgId, Store, StoreAnswer,
    StoreCompletion, StoreRefusal, StoreRequest, StoreTag,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

type Fallible<T> = Result<T, String>;

macro_rules! ensure {
    ($claim:expr, $($text:tt)*) => {
        if !$claim {
            return Err(format!($($text)*));
        }
    };
}

mod cut;
mod model;
mod pool;

use model::Model;
pub(crate) use pool::{Store1, formatted, member};
use pool::{member_of, options};

pub(crate) const POOL: PoolId = PoolId(1);
const DISK_LENGTH: u64 = 40 << 20;
const CELL: u32 = 1024;
/// Cells of an object: five units.
const CELLS: u32 = 160;
const GROUPS: u64 = 12;
const OBJECTS: u64 = 4;
/// Beside the cells of an object: whether it is there, its size, its attribute.
const EXISTS: u32 = 1000;
const SIZE: u32 = 1001;
const ATTRIBUTE: u32 = 1002;
/// Keys of an object: five or six of them fill a page.
const KEYS: Range<u32> = 2000..2012;
/// Of a log: its last version, and from `ENTRIES` on what the entry of each version says.
const LAST: u32 = 0;
const ENTRIES: u32 = 1;

pub(crate) fn key(pg: u64, object: u64, snapshot: u64) -> ObjectKey {
    let object = ObjectId(u128::from(object / 2) << 32 | u128::from(object % 2));
    ObjectKey { pool: POOL, pg: PgId(pg as u32), object, snapshot }
}

/// The model's name for a group's log, as if it were an object.
fn log_of(pg: u64) -> ObjectKey {
    ObjectKey { pool: POOL, pg: PgId(pg as u32), object: ObjectId(u128::MAX), snapshot: 0 }
}

fn is_log(key: &ObjectKey) -> bool {
    key.object.0 == u128::MAX
}

/// What the cells of an object say beside its bytes.
fn rest() -> impl Iterator<Item = u32> {
    [EXISTS, SIZE, ATTRIBUTE].into_iter().chain(KEYS)
}

fn name_of(cell: u32) -> Vec<u8> {
    format!("key {cell}").into_bytes()
}

/// The value of a key, or an entry of a log.
fn words(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(60 + (value % 40) as usize)
}

fn value_in(bytes: &[u8]) -> Option<u64> {
    let value = bytes.first_chunk().map(|first| u64::from_le_bytes(*first))?;
    (bytes == words(value)).then_some(value)
}

/// What a life is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) steps: u64,
    pub(crate) disks: u32,
    /// With more than one, most disks are behind rings.
    pub(crate) workers: u32,
    pub(crate) has_cuts: bool,
    pub(crate) has_failures: bool,
    pub(crate) omit: Omit,
}

#[derive(Debug)]
enum Asked {
    Change(u64),
    Read {
        key: ObjectKey,
        start: u32,
        count: u32,
        number: u64,
    },
    Attributes {
        key: ObjectKey,
        number: u64,
    },
    Keys {
        key: ObjectKey,
        number: u64,
    },
    Log {
        pg: u32,
        number: u64,
    },
    /// Asked when nothing is on its way.
    Version {
        key: ObjectKey,
    },
    List {
        pg: u32,
        number: u64,
    },
    Flush,
}

pub(crate) struct Life {
    plan: Plan,
    seed: Seed,
    pub(crate) span: Span<Store1>,
    model: Model,
    asked: BTreeMap<u64, Asked>,
    tag: u64,
    pub(crate) now: Duration,
    disks: u32,
    /// Disks whose store turned read-only, until the next start.
    broken: BTreeSet<DiskId>,
    pub(crate) moves: u64,
    pub(crate) cuts: u64,
    last_move: Option<u32>,
}

/// Lives a life to its end.
pub(crate) fn live(plan: Plan) -> Fallible<(u64, u64)> {
    let mut life = Life::new(plan);
    for step in 0..plan.steps {
        life.step().map_err(|error| format!("seed {} step {step}: {error}", plan.seed))?;
    }
    let end = life.end().map_err(|error| format!("seed {} at the end: {error}", plan.seed));
    end.map(|()| (life.moves, life.cuts))
}

impl Life {
    fn new(plan: Plan) -> Self {
        let mut seed = Seed(plan.seed);
        let members = (1..=plan.disks)
            .map(|number| {
                let disk = formatted(number, seed.draw());
                member_of(number, disk, plan.workers, u64::from(number) + plan.seed)
            })
            .collect();
        let (mut span, refused) = Span::start(POOL, members, &[]).map_err(|(e, _)| e).unwrap();
        assert!(refused.is_empty());
        span.omit(plan.omit);
        span.set_rate(1 << 40);
        Self {
            plan,
            seed,
            span,
            model: Model::default(),
            asked: BTreeMap::new(),
            tag: 0,
            now: Duration::ZERO,
            disks: plan.disks,
            broken: BTreeSet::new(),
            moves: 0,
            cuts: 0,
            last_move: None,
        }
    }

    /// One that only does what it is told.
    pub(crate) fn quiet(disks: u32) -> Self {
        let (omit, has_cuts, has_failures) = (Omit::Nothing, false, false);
        Self::new(Plan { seed: 1, steps: 0, disks, workers: 1, has_cuts, has_failures, omit })
    }

    /// Adds an empty disk.
    pub(crate) fn join(&mut self, number: u32) -> Fallible<()> {
        let disk = formatted(number, u64::from(number));
        self.span.join(member(number, disk)).map_err(|refused| refused.error.to_string())?;
        self.poll()
    }

    fn step(&mut self) -> Fallible<()> {
        match self.seed.below(1000) {
            0..=559 => self.submit_change(),
            560..=749 => self.submit_question(),
            750..=759 if self.seed.one_in(4) => self.change_disks(),
            760..=762 if self.plan.has_cuts => return self.cut(),
            763 if self.plan.has_failures => self.fail_a_disk(),
            764..=766 => return self.check_all(),
            767..=769 => {
                let rate = if self.seed.one_in(2) { 1 << 40 } else { 1 << 20 };
                self.span.set_rate(rate);
            }
            _ => {}
        }
        for _ in 0..self.seed.below(4) {
            self.poll()?;
        }
        Ok(())
    }

    fn any_key(&mut self) -> ObjectKey {
        let snapshot = if self.seed.one_in(3) { 1 + self.seed.below(2) } else { 0 };
        key(self.seed.below(GROUPS), self.seed.below(OBJECTS), snapshot)
    }

    fn submit(&mut self, request: StoreRequest, asked: Asked) {
        if self.span.room() == 0 {
            if let Asked::Change(number) = asked {
                self.model.pending.remove(&number);
                for cell in self.model.cells.values_mut() {
                    cell.retain(|&(at, _)| at != number);
                }
            }
            return;
        }
        self.tag += 1;
        self.asked.insert(self.tag, asked);
        self.span.submit(StoreTag(self.tag), request).expect("there is room");
    }

    fn submit_change(&mut self) {
        self.model.number += 1;
        let (number, key) = (self.model.number, self.any_key());
        let start = self.seed.below(u64::from(CELLS)) as u32;
        let count = 1 + self.seed.below(u64::from(CELLS - start).min(40)) as u32;
        let request = match self.seed.below(13) {
            0..=5 => {
                let (buffer, length) = lay_out(start, count, number);
                self.model.set_range(key, start, count, number);
                self.model.make(key, (start + count) * CELL);
                StoreRequest::Write { key, offset: start * CELL, length, buffer }
            }
            6 => {
                let (start, count) =
                    (start / 4 * 4, 4 * (1 + count / 4).min(CELLS / 4 - start / 4));
                if self.model.now(key, EXISTS) == 1 {
                    self.model.set_range(key, start, count, 0);
                }
                let step = Operation::Zero { key, offset: start * CELL, length: count * CELL };
                StoreRequest::Apply { transaction: vec![step] }
            }
            7 => {
                self.model.remove(key);
                StoreRequest::Apply { transaction: vec![Operation::Remove { key }] }
            }
            8 => {
                self.model.make(key, 0);
                self.model.set(key, ATTRIBUTE, number);
                let value = number.to_le_bytes().to_vec();
                let step = Operation::SetAttribute { key, name: b"n".to_vec(), value };
                StoreRequest::Apply { transaction: vec![step] }
            }
            9..=11 => self.change_keys_and_log(key, number),
            _ => {
                // The first write after a snapshot.
                let head = ObjectKey { snapshot: 0, ..key };
                let target = ObjectKey { snapshot: 1 + self.seed.below(2), ..key };
                if self.model.now(head, EXISTS) == 0 {
                    return;
                }
                self.model.clone(head, target);
                let (buffer, length) = lay_out(start, count, number);
                self.model.set_range(head, start, count, number);
                self.model.make(head, (start + count) * CELL);
                let write = Operation::Write { key: head, offset: start * CELL, length, buffer };
                let clone = Operation::Clone { source: head, target };
                StoreRequest::Apply { transaction: vec![clone, write] }
            }
        };
        self.submit(request, Asked::Change(number));
    }

    /// Keys of an object and an entry of its group's log, or one of both.
    fn change_keys_and_log(&mut self, key: ObjectKey, number: u64) -> StoreRequest {
        let (pool, pg, log) = (POOL, key.pg, log_of(u64::from(key.pg.0)));
        let mut transaction = Vec::new();
        let first = KEYS.start + self.seed.below(u64::from(KEYS.end - KEYS.start)) as u32;
        let end = KEYS.end.min(first + 1 + self.seed.below(5) as u32);
        match self.seed.below(4) {
            0 => {}
            1 if self.model.now(key, EXISTS) == 1 => {
                self.model.set_keys(key, first..end, 0);
                let (from, to) = (name_of(first), Some(name_of(end - 1)));
                // As much as the range would take, by its names.
                self.model.set(key, EXISTS, 1);
                transaction.push(Operation::RemoveKeyRange { key, from, to });
                let names = vec![name_of(end - 1)];
                transaction.push(Operation::RemoveKeys { key, names });
            }
            1 => {}
            _ => {
                self.model.make(key, 0);
                self.model.set_keys(key, first..end, number);
                let pairs = (first..end).map(|cell| (name_of(cell), words(number))).collect();
                transaction.push(Operation::SetKeys { key, pairs });
            }
        }
        let entry = ENTRIES + number as u32;
        match self.seed.below(8) {
            0 => {
                let up_to = self.seed.below(number + 1);
                self.model.trim(log, ENTRIES + up_to as u32 + 1);
                transaction.push(Operation::LogTrim { pool, pg, up_to });
            }
            1 if self.seed.one_in(3) => {
                self.model.trim(log, u32::MAX);
                self.model.set(log, LAST, 0);
                transaction.push(Operation::LogRemove { pool, pg });
            }
            2..=5 => {
                self.model.set(log, entry, number);
                self.model.set(log, LAST, number);
                let entry = words(number);
                transaction.push(Operation::LogAppend { pool, pg, version: number, entry });
            }
            _ => {}
        }
        if transaction.is_empty() {
            transaction.push(Operation::RaiseVersions { pool, pg, above: 0 });
        }
        StoreRequest::Apply { transaction }
    }

    fn submit_question(&mut self) {
        let (key, number) = (self.any_key(), self.model.number);
        match self.seed.below(10) {
            8 => self.ask_keys(key, number),
            9 => self.ask_log(key.pg.0, number),
            0 => {
                let (first, last) = (
                    ObjectKey { object: ObjectId(0), snapshot: 0, ..key },
                    ObjectKey { object: ObjectId(u128::MAX), snapshot: u64::MAX, ..key },
                );
                let request = StoreRequest::List { range: first..=last, limit: 100 };
                self.submit(request, Asked::List { pg: key.pg.0, number });
            }
            1 => self.submit(StoreRequest::Flush, Asked::Flush),
            2 => self.submit(StoreRequest::Attributes { key }, Asked::Attributes { key, number }),
            _ => {
                let start = self.seed.below(u64::from(CELLS)) as u32;
                let count = 1 + self.seed.below(u64::from(CELLS - start)) as u32;
                self.ask_read(key, start, count, number);
            }
        }
    }

    fn ask_read(&mut self, key: ObjectKey, start: u32, count: u32, number: u64) {
        let (offset, length) = (start * CELL, count * CELL);
        let buffer = IoBuffer::zeroed((offset % 4096 + length).next_multiple_of(4096) as usize);
        let request = StoreRequest::Read { key, offset, length, buffer };
        self.submit(request, Asked::Read { key, start, count, number });
    }

    fn ask_keys(&mut self, key: ObjectKey, number: u64) {
        let request = StoreRequest::ListKeys { key, after: None, limit: 100 };
        self.submit(request, Asked::Keys { key, number });
    }

    fn ask_log(&mut self, pg: u32, number: u64) {
        let request = StoreRequest::ReadLog { pool: POOL, pg: PgId(pg), after: 0, limit: 1000 };
        self.submit(request, Asked::Log { pg, number });
    }

    fn poll(&mut self) -> Fallible<()> {
        self.now += Duration::from_millis(1);
        let mut ended = Vec::new();
        self.span.poll(self.now, &mut ended);
        let moving = self.span.moving().map(|moving| moving.group);
        if moving != self.last_move {
            self.moves += u64::from(moving.is_some());
            self.last_move = moving;
        }
        for completion in ended {
            self.judge(completion)?;
        }
        while let Some((disk, store)) = self.span.take_left() {
            ensure!(store.capacity().objects <= 1, "{disk} left with objects");
        }
        Ok(())
    }

    /// Whether a value may be seen. While a disk is out, changes are refused, and reads show what
    /// was there before or what came through; of what was acknowledged after a read was asked for,
    /// that read need not know.
    fn may_be(&self, key: ObjectKey, cell: u32, value: u64, number: u64) -> bool {
        let floor = self.model.floor(key, cell);
        let number = if self.broken.is_empty() { number } else { number.min(floor) };
        self.model.may_be(key, cell, value, number)
    }

    fn expect_cell(&self, key: ObjectKey, cell: u32, value: u64, number: u64) -> Fallible<()> {
        ensure!(
            self.may_be(key, cell, value, number),
            "{key} cell {cell} is {value}, should be {:?} (asked at {number})",
            self.model.cells.get(&(key, cell))
        );
        Ok(())
    }

    fn is_out(&self, refusal: &StoreRefusal) -> bool {
        // A block whose write failed is neither what it was nor what it should have become.
        let is_such = matches!(
            refusal,
            StoreRefusal::ReadOnly | StoreRefusal::DiskOut { .. } | StoreRefusal::BadBlock { .. }
        );
        is_such && !self.broken.is_empty()
    }

    fn judge(&mut self, completion: StoreCompletion) -> Fallible<()> {
        let StoreCompletion { tag, buffer, result } = completion;
        let asked = self.asked.remove(&tag.0).ok_or("an answer that nobody asked for")?;
        match (asked, result) {
            (Asked::Change(number), Ok(answer)) => {
                if let StoreAnswer::Changed { version, .. } = answer {
                    self.model.note_version(number, version)?;
                }
                self.model.acknowledge(number);
            }
            (
                Asked::Keys { key, number },
                answer @ (Ok(_) | Err(StoreRefusal::NotFound { .. })),
            ) => {
                for (cell, value) in keys_in(answer)? {
                    self.expect_cell(key, cell, value, number)?;
                }
            }
            (Asked::Log { pg, number }, Ok(answer)) => {
                let log = log_of(u64::from(pg));
                for (cell, value) in log_in(answer, &self.model.entries(log))? {
                    self.expect_cell(log, cell, value, number)?;
                }
            }
            (Asked::Version { key }, Ok(StoreAnswer::Status { version, .. })) => {
                self.model.check_version(key, version)?;
            }
            (Asked::Version { .. }, Err(StoreRefusal::NotFound { .. })) => {}
            (Asked::Flush, Ok(_)) => {}
            (Asked::Read { key, start, count, number }, Ok(_)) => {
                let buffer = buffer.ok_or("a read without its buffer")?;
                self.judge_read(key, start, count, number, &buffer)?;
            }
            (
                Asked::Attributes { key, number },
                Ok(StoreAnswer::Attributes { size, attributes, .. }),
            ) => {
                let value = attributes.first().map_or(0, |(_, value)| {
                    u64::from_le_bytes(value.as_slice().try_into().unwrap_or_default())
                });
                for (cell, value) in [(EXISTS, 1), (SIZE, u64::from(size)), (ATTRIBUTE, value)] {
                    self.expect_cell(key, cell, value, number)?;
                }
            }
            (Asked::Attributes { key, number }, Err(StoreRefusal::NotFound { .. })) => {
                ensure!(self.may_be(key, EXISTS, 0, number), "{key} is not there");
            }
            (Asked::List { pg, number }, Ok(StoreAnswer::Listed { objects, .. })) => {
                let found: BTreeSet<_> = objects.iter().map(|object| object.key).collect();
                for object in 0..OBJECTS {
                    for snapshot in 0..3 {
                        let key = key(u64::from(pg), object, snapshot);
                        let is_there = u64::from(found.contains(&key));
                        ensure!(
                            self.may_be(key, EXISTS, is_there, number),
                            "{key} is listed: {is_there}"
                        );
                    }
                }
            }
            (asked, Err(refusal)) => {
                ensure!(self.is_out(&refusal), "{asked:?} is refused: {refusal}");
                if let Asked::Change(number) = asked {
                    self.model.pending.remove(&number);
                }
            }
            (asked, Ok(answer)) => return Err(format!("{asked:?} is answered by {answer:?}")),
        }
        Ok(())
    }

    fn judge_read(
        &self,
        key: ObjectKey,
        start: u32,
        count: u32,
        number: u64,
        buffer: &IoBuffer,
    ) -> Fallible<()> {
        let skew = (start * CELL % 4096) as usize;
        for cell in start..start + count {
            let at = skew + ((cell - start) * CELL) as usize;
            let value = value_of(&buffer.as_bytes()[at..at + CELL as usize])
                .ok_or_else(|| format!("{key} cell {cell} is torn"))?;
            ensure!(
                self.may_be(key, cell, value, number),
                "{key} cell {cell} is {value}, should be {:?} (asked at {number})",
                self.model.cells.get(&(key, cell))
            );
        }
        Ok(())
    }

    /// Adds a disk, or begins or ends a drain, or forgets a drained one.
    fn change_disks(&mut self) {
        let disks = self.span.disks();
        let is_in = |disk: &&plinth_span::SpanDisk| disk.standing == Standing::In;
        let ins = disks.iter().filter(is_in).count();
        match self.seed.below(4) {
            0 if disks.len() < 5 && self.disks < 40 => {
                self.disks += 1;
                let disk = formatted(self.disks, self.seed.draw());
                let chance = u64::from(self.disks) + self.cuts;
                let member = member_of(self.disks, disk, self.plan.workers, chance);
                self.span.join(member).map_err(|r| r.error).unwrap();
            }
            1 | 2 if ins > 1 => {
                let disk = disks[self.seed.below(disks.len() as u64) as usize];
                let is_draining = disk.standing == Standing::In || self.seed.one_in(2);
                // Refused of the last one that is in.
                let _ = self.span.set_draining(disk.disk, is_draining);
            }
            _ => {
                for disk in disks.iter().filter(|disk| disk.standing == Standing::Draining) {
                    // Refused while anything is on it.
                    let _ = self.span.leave(disk.disk);
                }
            }
        }
    }

    fn fail_a_disk(&mut self) {
        let disks = self.span.disks();
        if !self.broken.is_empty() || disks.len() < 2 {
            return;
        }
        let disk = disks[self.seed.below(disks.len() as u64) as usize].disk;
        // One that was not there at the start has no store to fail.
        let Some(store) = self.span.store_mut(disk) else { return };
        self.broken.insert(disk);
        let fault = Fault::Fail(DiskError::Device { errno: 5 });
        let rule =
            FaultRule { is_write: true, bytes: 0..DISK_LENGTH, skip: 0, times: 1_000_000, fault };
        store.store_mut().disk_mut().add_rule(rule);
    }

    pub(crate) fn run(&mut self, request: StoreRequest) -> Fallible<StoreCompletion> {
        self.tag += 1;
        let tag = StoreTag(self.tag);
        self.span.submit(tag, request).map_err(|_| "no room")?;
        for _ in 0..100_000 {
            self.now += Duration::from_millis(1);
            let mut ended = Vec::new();
            self.span.poll(self.now, &mut ended);
            if let Some(completion) = ended.pop() {
                ensure!(completion.tag == tag, "an answer to something else");
                return Ok(completion);
            }
        }
        Err(format!("stuck: {:?} {:?}", self.span.moving(), self.span.trouble()))
    }

    /// Waits until all is answered and reads everything.
    fn check_all(&mut self) -> Fallible<()> {
        for _ in 0..200_000 {
            if self.asked.is_empty() {
                break;
            }
            self.poll()?;
        }
        ensure!(self.asked.is_empty(), "stuck: {:?}", self.asked);
        if !self.broken.is_empty() {
            return Ok(());
        }
        for pg in 0..GROUPS {
            for object in 0..OBJECTS {
                for snapshot in 0..3 {
                    let number = self.model.number;
                    self.ask_read(key(pg, object, snapshot), 0, CELLS, number);
                    self.settle_asked()?;
                    let key = key(pg, object, snapshot);
                    self.submit(
                        StoreRequest::Attributes { key },
                        Asked::Attributes { key, number },
                    );
                    self.ask_keys(key, number);
                    self.submit(StoreRequest::Status { key }, Asked::Version { key });
                    self.settle_asked()?;
                }
            }
            self.ask_log(pg as u32, self.model.number);
            self.settle_asked()?;
        }
        Ok(())
    }

    fn settle_asked(&mut self) -> Fallible<()> {
        for _ in 0..200_000 {
            if self.asked.is_empty() {
                return Ok(());
            }
            self.poll()?;
        }
        Err(format!("stuck: {:?}", self.asked))
    }

    /// Lets so many milliseconds pass.
    pub(crate) fn rest(&mut self, milliseconds: u64) -> Fallible<()> {
        (0..milliseconds).try_for_each(|_| self.poll())
    }

    pub(crate) fn come_to_rest(&mut self) -> Fallible<()> {
        for _ in 0..2_000_000 {
            self.poll()?;
            if self.span.is_idle() && self.span.trouble().is_none() {
                return Ok(());
            }
        }
        let (moving, trouble) = (self.span.moving(), self.span.trouble());
        Err(format!("moves do not end: {moving:?} {trouble:?}"))
    }

    /// Lets all moves end, and looks whether every group is where it belongs, and nowhere else.
    fn end(&mut self) -> Fallible<()> {
        if !self.broken.is_empty() {
            self.cut()?;
        }
        self.span.set_rate(1 << 40);
        self.check_all()?;
        self.come_to_rest()?;
        self.check_all()?;
        // What was asked last may have had a store begin a checkpoint.
        self.come_to_rest()?;
        let mut objects = 0;
        for pg in 0..GROUPS {
            for object in 0..OBJECTS {
                for snapshot in 0..3 {
                    let key = key(pg, object, snapshot);
                    objects += self.model.now(key, EXISTS);
                    // Keys are in an object of their own, and so is a log.
                    objects += u64::from(KEYS.clone().any(|cell| self.model.now(key, cell) != 0));
                }
            }
            objects += u64::from(self.model.now(log_of(pg), LAST) != 0);
        }
        let disks = self.span.disks();
        for disk in &disks {
            ensure!(disk.leaving == 0, "{disk:?} has groups that belong elsewhere");
        }
        let found = self.span.capacity().objects;
        // A pool that had one disk from the first has no map.
        let maps = self.span.stores().count() as u64;
        let maps = if maps == 1 && found == objects { 0 } else { maps };
        ensure!(found == objects + maps, "{found} objects are on {maps} disks, {objects} exist");
        for (disk, store) in self.span.stores_mut() {
            let report = store.store_mut().check();
            ensure!(report.is_ok(), "{disk}: {report:?}");
        }
        Ok(())
    }
}

/// The version of an object's removal, and of making it anew when its group has gone to another
/// disk.
pub(crate) fn versions_of_one_made_anew(omit: Omit) -> Fallible<(u64, u64)> {
    let mut life = Life::quiet(1);
    life.span.omit(omit);
    let key = key(0, 0, 0);
    let change = |life: &mut Life, step| {
        let done = life.run(StoreRequest::Apply { transaction: vec![step] })?;
        match done.result {
            Ok(StoreAnswer::Changed { version, .. }) => Ok(version),
            other => Err(format!("a change was answered by {other:?}")),
        }
    };
    // More than the moves of all groups are for the target.
    for _ in 0..3000 {
        change(&mut life, Operation::Touch { key })?;
    }
    let removed = change(&mut life, Operation::Remove { key })?;
    life.join(2)?;
    life.span.set_draining(DiskId(1), true).map_err(|error| error.to_string())?;
    life.come_to_rest()?;
    ensure!(life.span.disks().iter().any(|disk| disk.leaving == 0), "nothing moved");
    Ok((removed, change(&mut life, Operation::Touch { key })?))
}

/// The cells of an object's keys, all of them.
fn keys_in(answer: Result<StoreAnswer, StoreRefusal>) -> Fallible<Vec<(u32, u64)>> {
    let pairs = match answer {
        Ok(StoreAnswer::Keys { pairs, more: false }) => pairs,
        Err(StoreRefusal::NotFound { .. }) => Vec::new(),
        other => return Err(format!("keys were answered by {other:?}")),
    };
    let mut pairs: BTreeMap<_, _> = pairs.into_iter().collect();
    let cells = KEYS.map(|cell| match pairs.remove(&name_of(cell)) {
        Some(bytes) => Ok((cell, value_in(&bytes).ok_or(format!("key {cell} is torn"))?)),
        None => Ok((cell, 0)),
    });
    let cells = cells.collect::<Fallible<Vec<_>>>()?;
    ensure!(pairs.is_empty(), "keys that nobody set: {pairs:?}");
    Ok(cells)
}

/// The cells of a log: its last version, and each entry that it ever had.
fn log_in(answer: StoreAnswer, known: &[u32]) -> Fallible<Vec<(u32, u64)>> {
    let StoreAnswer::Log { entries, last, more: false } = answer else {
        return Err(format!("a log was answered by {answer:?}"));
    };
    let mut entries: BTreeMap<_, _> = entries.into_iter().collect();
    let mut cells = vec![(LAST, last)];
    for &cell in known {
        let value = match entries.remove(&u64::from(cell - ENTRIES)) {
            Some(bytes) => value_in(&bytes).ok_or(format!("entry {cell} is torn"))?,
            None => 0,
        };
        cells.push((cell, value));
    }
    ensure!(entries.is_empty(), "entries that nobody appended: {entries:?}");
    Ok(cells)
}

/// Something to stand in while the real one is taken apart.
fn empty() -> Span<Store1> {
    let store = Store::mount(formatted(999, 1), options()).unwrap();
    Span::of_one(POOL, DiskId(999), [0; 16], Store1::Here(Box::new(store)))
}

fn lay_out(start: u32, count: u32, value: u64) -> (IoBuffer, u32) {
    let head = (start * CELL % 4096) as usize;
    let length = count * CELL;
    let mut buffer = IoBuffer::zeroed((head + length as usize).next_multiple_of(4096));
    buffer.as_bytes_mut().fill(0xdb);
    let bytes = value.to_le_bytes().repeat(length as usize / 8);
    buffer.as_bytes_mut()[head..head + length as usize].copy_from_slice(&bytes);
    (buffer, length)
}

/// The value that fills a cell, if it is one.
fn value_of(bytes: &[u8]) -> Option<u64> {
    let value: [u8; 8] = bytes[..8].try_into().ok()?;
    bytes.chunks(8).all(|chunk| chunk == value).then(|| u64::from_le_bytes(value))
}
