// SPDX-License-Identifier: Apache-2.0
//! Generated workloads, the obvious model of what they do, and cuts at every step.
//!
//! A history is: format, mount, submit generated operations a few at a time, and after every
//! poll (so after every request that the disk ended) cut the power in several ways, mount what is
//! left, and compare. The model of an object is a map from sector to the number that was
//! written there; after a cut every object must be as after some prefix of its operations that
//! has all acknowledged ones, and a transaction must be in all its objects' prefixes or in none.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::cast_possible_truncation, reason = "numbers below small limits")]

#[path = "cuts.rs"]
mod cuts;

use crate::{key, questions, settle};
pub(crate) use cuts::{Cuts, Cutter};
use plinth_disks::memory::{Cache, Cut, Fault, FaultRule, MemoryDisk, Seed};
use plinth_store::{
    DiscardOptions, DiskError, Durability, FormatOptions, IoBuffer, Ladder, LayoutLimits,
    ObjectKey, Omit, Operation, Store, StoreAnswer, StoreCompletion, StoreOptions, StoreRefusal,
    StoreRequest, StoreTag,
};
use std::collections::BTreeMap;
use std::time::Duration;

#[path = "damage.rs"]
mod damage;
#[path = "explain.rs"]
mod explain;
#[path = "overwrites.rs"]
mod overwrites;
#[path = "rescue.rs"]
mod rescue;

const SECTOR: u32 = 512;
pub(crate) const OBJECTS: u64 = 5;
/// The group's log, which the model has as one more object.
pub(crate) const LOG: u64 = 100;
/// Sectors that the workload uses: the first five units, and two on each side of the border of
/// the two map pages.
const REGIONS: [(u32, u32); 2] = [(0, 320), (4096 - 128, 256)];

/// One object as it should be: `None` where there is no object.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Model {
    pub(crate) exists: bool,
    pub(crate) sectors: BTreeMap<u32, u64>,
    pub(crate) attribute: Option<u64>,
    /// Keys, or entries of the log.
    pub(crate) keys: BTreeMap<u64, u64>,
    /// Of the log.
    pub(crate) last: u64,
}

/// Versions of objects; none for one that is not there.
pub(crate) type Versions = BTreeMap<u64, u64>;

/// What one step does to the model.
#[derive(Clone, Debug)]
enum Change {
    Write {
        object: u64,
        sector: u32,
        count: u32,
        value: u64,
    },
    WriteFull {
        object: u64,
        count: u32,
        value: u64,
    },
    Zero {
        object: u64,
        sector: u32,
        count: u32,
    },
    Scrap {
        object: u64,
    },
    Truncate {
        object: u64,
        sectors: u32,
    },
    Remove {
        object: u64,
    },
    Clone {
        source: u64,
        target: u64,
    },
    Attribute {
        object: u64,
        value: u64,
    },
    SetKeys {
        object: u64,
        first: u64,
        count: u64,
        value: u64,
    },
    RemoveKeys {
        object: u64,
        first: u64,
        count: u64,
    },
    CutKeys {
        object: u64,
        first: u64,
        count: u64,
    },
    Append {
        version: u64,
        value: u64,
    },
    Trim {
        up_to: u64,
    },
    Forget,
    /// The object gets a version that another store gave.
    Adopt {
        object: u64,
        version: u64,
    },
}

impl Change {
    const fn object(&self) -> u64 {
        match self {
            Self::Write { object, .. }
            | Self::WriteFull { object, .. }
            | Self::Zero { object, .. }
            | Self::Truncate { object, .. }
            | Self::Scrap { object }
            | Self::Remove { object }
            | Self::SetKeys { object, .. }
            | Self::RemoveKeys { object, .. }
            | Self::CutKeys { object, .. }
            | Self::Adopt { object, .. }
            | Self::Attribute { object, .. } => *object,
            Self::Append { .. } | Self::Trim { .. } | Self::Forget => LOG,
            Self::Clone { target, .. } => *target,
        }
    }

    /// Has the change be of this object.
    fn aim_at(&mut self, at: u64) {
        match self {
            Self::Write { object, .. }
            | Self::WriteFull { object, .. }
            | Self::Zero { object, .. }
            | Self::Truncate { object, .. }
            | Self::Scrap { object }
            | Self::Remove { object }
            | Self::SetKeys { object, .. }
            | Self::RemoveKeys { object, .. }
            | Self::CutKeys { object, .. }
            | Self::Adopt { object, .. }
            | Self::Attribute { object, .. } => *object = at,
            Self::Append { .. } | Self::Trim { .. } | Self::Forget => {}
            Self::Clone { source, target } => {
                if *source == at {
                    *source = *target;
                }
                *target = at;
            }
        }
    }

    fn apply(&self, state: &mut BTreeMap<u64, Model>) {
        let source = match self {
            Self::Clone { source, .. } => state.get(source).cloned().unwrap_or_default(),
            _ => Model::default(),
        };
        let model = state.entry(self.object()).or_default();
        match *self {
            Self::Write { sector, count, value, .. } => {
                model.exists = true;
                model.sectors.extend((sector..sector + count).map(|sector| (sector, value)));
            }
            Self::WriteFull { count, value, .. } => {
                model.exists = true;
                model.sectors = (0..count).map(|sector| (sector, value)).collect();
            }
            Self::Zero { sector, count, .. } => {
                model.sectors.retain(|at, _| !(sector..sector + count).contains(at));
            }
            Self::Scrap { .. } => model.sectors.clear(),
            Self::Truncate { sectors, .. } => {
                model.exists = true;
                model.sectors.retain(|at, _| *at < sectors);
            }
            Self::Remove { .. } => *model = Model::default(),
            Self::Clone { .. } => *model = source,
            Self::Attribute { value, .. } => {
                model.exists = true;
                model.attribute = Some(value);
            }
            Self::SetKeys { first, count, value, .. } => {
                model.exists = true;
                model.keys.extend((first..first + count).map(|name| (name, value)));
            }
            Self::RemoveKeys { first, count, .. } | Self::CutKeys { first, count, .. } => {
                model.keys.retain(|name, _| !(first..first + count).contains(name));
            }
            Self::Append { version, value } => {
                model.keys.insert(version, value);
                model.last = version;
            }
            Self::Trim { up_to } => model.keys.retain(|version, _| *version > up_to),
            Self::Forget => *model = Model::default(),
            Self::Adopt { .. } => model.exists = true,
        }
    }

    fn operation(&self) -> Operation {
        let at = |object: u64| key(u128::from(object));
        match *self {
            Self::Write { object, sector, count, value } => {
                let (buffer, length) = lay_out(sector, count, value);
                Operation::Write { key: at(object), offset: sector * SECTOR, length, buffer }
            }
            Self::WriteFull { object, count, value } => {
                let (buffer, length) = lay_out(0, count, value);
                Operation::WriteFull { key: at(object), length, buffer }
            }
            Self::Zero { object, sector, count } => {
                let (offset, length) = (sector * SECTOR, count * SECTOR);
                Operation::Zero { key: at(object), offset, length }
            }
            Self::Scrap { object } => Operation::Scrap { key: at(object) },
            Self::Truncate { object, sectors } => {
                Operation::Truncate { key: at(object), size: sectors * SECTOR }
            }
            Self::Remove { object } => Operation::Remove { key: at(object) },
            Self::Clone { source, target } => {
                Operation::Clone { source: at(source), target: at(target) }
            }
            Self::Attribute { object, value } => Operation::SetAttribute {
                key: at(object),
                name: b"n".to_vec(),
                value: value.to_le_bytes().repeat(1 + usize::try_from(value % 40).unwrap()),
            },
            Self::SetKeys { object, first, count, value } => {
                let pair = |name| (questions::name(name), questions::bytes(name, value));
                // In disorder: the store sorts.
                let pairs = (first..first + count).rev().map(pair).collect();
                Operation::SetKeys { key: at(object), pairs }
            }
            Self::RemoveKeys { object, first, count } => {
                let names = (first..first + count).rev().map(questions::name).collect();
                Operation::RemoveKeys { key: at(object), names }
            }
            Self::CutKeys { object, first, count } => {
                let (from, to) = (questions::name(first), Some(questions::name(first + count)));
                Operation::RemoveKeyRange { key: at(object), from, to }
            }
            Self::Append { version, value } => {
                let (pool, pg) = (key(0).pool, key(0).pg);
                Operation::LogAppend { pool, pg, version, entry: questions::bytes(0, value) }
            }
            Self::Trim { up_to } => Operation::LogTrim { pool: key(0).pool, pg: key(0).pg, up_to },
            Self::Forget => Operation::LogRemove { pool: key(0).pool, pg: key(0).pg },
            Self::Adopt { object, version } => Operation::SetVersion { key: at(object), version },
        }
    }
}

fn lay_out(sector: u32, count: u32, value: u64) -> (IoBuffer, u32) {
    let bytes = value.to_le_bytes().repeat((count * SECTOR / 8) as usize);
    crate::lay_out(sector * SECTOR, &bytes)
}

/// One request: the changes that happen together.
type Step = Vec<Change>;

fn generate_change(seed: &mut Seed, value: u64) -> Change {
    let object = seed.below(OBJECTS);
    let (start, length) = REGIONS[usize::from(seed.one_in(4))];
    let sector_in = |seed: &mut Seed| start + seed.below(u64::from(length) - 1) as u32;
    match seed.below(26) {
        0..=7 => {
            // Small and odd: parts of blocks, a block, a few.
            let sector = sector_in(seed);
            let most = (start + length - sector).min(1 + seed.below(24) as u32);
            Change::Write { object, sector, count: most, value }
        }
        8..=10 => {
            // Whole blocks or whole units.
            let grain = if seed.one_in(2) { 8 } else { 64 };
            let sector = sector_in(seed) / grain * grain;
            let count = grain * (1 + seed.below(2) as u32);
            Change::Write { object, sector, count: count.min(start + length - sector), value }
        }
        11 => Change::WriteFull { object, count: 1 + seed.below(100) as u32, value },
        12 if seed.one_in(2) => Change::Scrap { object },
        12..=13 => {
            let sector = sector_in(seed) / 8 * 8;
            Change::Zero { object, sector, count: 8 * (1 + seed.below(12) as u32) }
        }
        14 => Change::Truncate { object, sectors: sector_in(seed) / 8 * 8 },
        15 => Change::Remove { object },
        16..=18 => {
            let target = (object + 1 + seed.below(OBJECTS - 1)) % OBJECTS;
            Change::Clone { source: object, target }
        }
        19..=22 => {
            let first = seed.below(questions::NAMES);
            let most = if seed.one_in(6) { 24 } else { 4 };
            let count = 1 + seed.below(most);
            Change::SetKeys { object, first, count, value }
        }
        23 => {
            let first = seed.below(questions::NAMES);
            Change::RemoveKeys { object, first, count: 1 + seed.below(12) }
        }
        24 => {
            let first = seed.below(questions::NAMES);
            Change::CutKeys { object, first, count: 1 + seed.below(questions::NAMES) }
        }
        _ => Change::Attribute { object, value },
    }
}

/// What the operations of a history are like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mix {
    Any,
    /// A unit is written, shared, half unwritten, left by its other owner and written again: the
    /// order in which a write in place could hurt somebody.
    Handover,
    /// Small overwrites of few blocks, now and then something that they must not meet.
    Overwrite,
}

fn generate_handover(seed: &mut Seed, count: usize) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    while steps.len() < count {
        let value = steps.len() as u64 * 100 + 1;
        let object = seed.below(OBJECTS);
        let other = (object + 1 + seed.below(OBJECTS - 1)) % OBJECTS;
        let sector = 64 * seed.below(4) as u32;
        let hole = sector + 8 * seed.below(8) as u32;
        let is_shared = seed.one_in(2);
        steps.push(vec![Change::Write { object, sector, count: 64, value }]);
        if is_shared {
            steps.push(vec![Change::Clone { source: object, target: other }]);
        }
        steps.push(vec![Change::Zero { object, sector: hole, count: 8 }]);
        if is_shared {
            steps.push(vec![Change::Remove { object: other }]);
        }
        steps.push(vec![Change::Write { object, sector: hole, count: 8, value: value + 1 }]);
    }
    steps.truncate(count);
    steps
}

fn generate(seed: &mut Seed, count: usize, mix: Mix) -> Vec<Step> {
    match mix {
        Mix::Handover => return generate_handover(seed, count),
        Mix::Overwrite => return overwrites::generate(seed, count),
        Mix::Any => {}
    }
    let mut steps = Vec::new();
    for index in 0..count {
        let value = index as u64 * 100 + 1;
        let mut step = vec![generate_change(seed, value)];
        if seed.one_in(4) {
            add_second(seed, &mut step, value + 1);
        }
        // Its version rises from step to step, whichever of them are refused.
        if seed.one_in(4) {
            step.push(Change::Append { version: index as u64 + 1, value });
        } else if seed.one_in(12) {
            step.push(Change::Trim { up_to: seed.below(index as u64 + 2) });
        } else if seed.one_in(24) {
            step.push(Change::Forget);
        }
        if seed.one_in(8) {
            // Of an object of the step, as a rule; below what this store gave, or above.
            let object = if seed.one_in(3) { seed.below(OBJECTS) } else { step[0].object() };
            let is_gone = |change: &Change| match change {
                Change::Remove { object: gone } => *gone == object,
                _ => false,
            };
            if !step.iter().any(is_gone) {
                step.push(Change::Adopt { object, version: 1 + seed.below(1 << 26) });
            }
        }
        steps.push(step);
    }
    steps
}

/// Adds a change to the transaction that may stand behind the first: of another object, or of the
/// object that the first one clones, or the clone's attribute.
fn add_second(seed: &mut Seed, step: &mut Step, value: u64) {
    let mut second = generate_change(seed, value);
    if let Change::Clone { source, target } = step[0] {
        if seed.one_in(4) {
            step.push(Change::Attribute { object: target, value: value + 10 });
        }
        let of_clone = seed.one_in(3);
        if of_clone {
            second.aim_at(target);
        } else if !seed.one_in(4) {
            second.aim_at(source);
        }
        let is_data = matches!(
            &second,
            Change::Write { .. }
                | Change::WriteFull { .. }
                | Change::Zero { .. }
                | Change::Scrap { .. }
                | Change::Truncate { .. }
        );
        let is_legal = match &second {
            Change::Clone { source: other, target: into } => *other != target && *into != target,
            other => other.object() != target || is_data,
        };
        if is_legal {
            step.push(second);
        }
        return;
    }
    let touches = |change: &Change| match change {
        Change::Clone { source, target } => vec![*source, *target],
        other => vec![other.object()],
    };
    if !touches(&step[0]).iter().any(|object| touches(&second).contains(object)) {
        step.push(second);
    }
}

/// The version that an object has after a step that was answered with this one.
fn version_after(step: &Step, object: u64, answered: u64) -> u64 {
    let adopted = step.iter().find_map(|change| match change {
        Change::Adopt { object: other, version } if *other == object => Some(*version),
        _ => None,
    });
    adopted.unwrap_or(answered)
}

fn request(step: &Step) -> StoreRequest {
    match &step[..] {
        [Change::Write { object, sector, count, value }] => {
            let (buffer, length) = lay_out(*sector, *count, *value);
            let key = key(u128::from(*object));
            StoreRequest::Write { key, offset: sector * SECTOR, length, buffer }
        }
        changes => {
            let transaction = changes.iter().map(Change::operation).collect();
            StoreRequest::Apply { transaction }
        }
    }
}

/// The request, sometimes with an expected version, and whether that is a wrong one.
fn with_expectation(seed: &mut Seed, step: &Step, versions: &Versions) -> (StoreRequest, bool) {
    if !seed.one_in(3) {
        return (request(step), false);
    }
    let object = seed.below(OBJECTS);
    let is_wrong = seed.one_in(3);
    let version = versions.get(&object).copied().unwrap_or(0) + u64::from(is_wrong);
    let mut transaction = vec![Operation::Expect { key: key(u128::from(object)), version }];
    transaction.extend(step.iter().map(Change::operation));
    (StoreRequest::Apply { transaction }, is_wrong)
}

/// What is done after every poll.
type AtEach<'a> = dyn FnMut(&Store<MemoryDisk>, &Progress) -> Result<(), String> + 'a;

/// How a history is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) steps: usize,
    pub(crate) durability: Durability,
    pub(crate) omit: Omit,
    pub(crate) mix: Mix,
    /// How thoroughly the power is cut.
    pub(crate) cuts: Cuts,
    /// What the disk never tears: 512, or 4096 for overwrites in place.
    pub(crate) atomic: u32,
}

/// What histories went through, so that a test can say that it did something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) histories: u64,
    /// Moments at which a cut could leave something new.
    pub(crate) moments: u64,
    /// Of them: those at which every subset of the volatile writes was kept.
    pub(crate) exhausted: u64,
    pub(crate) cuts: u64,
    /// Cuts that tore a write.
    pub(crate) torn: u64,
    pub(crate) recoveries_cut: u64,
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    pub(crate) checkpoints: u64,
    pub(crate) overwritten: u64,
    pub(crate) adopted: u64,
    /// Blocks and pages that were damaged, blocks that were refused for it, and blocks that were
    /// refused because their map is lost.
    pub(crate) damaged: u64,
    pub(crate) bad_blocks: u64,
    pub(crate) lost_maps: u64,
    /// Copies of pages of tables that were damaged, and journals that were refused for damage.
    pub(crate) tables: u64,
    pub(crate) journals: u64,
    /// Sectors that a mount for rescue has read.
    pub(crate) rescued: u64,
    pub(crate) discards: u64,
}

fn format_options() -> FormatOptions {
    let limits = LayoutLimits { journal_length: 256 * 1024, slot_count: 16 };
    FormatOptions { id: *b"one more history", limits: Some(limits) }
}

/// 64 KiB, journal, tables, maps and some 50 units.
const DISK_LENGTH: u64 = 2304 * 1024;

impl Plan {
    fn options(&self) -> StoreOptions {
        StoreOptions {
            access: plinth_store::Access::Whole,
            durability: self.durability,
            cache_pages: 64,
            overlay_blocks: 32,
            requests_max: 8,
            buffer_bytes: 1 << 20,
            ladder: Ladder::default(),
            discard: self.discard(),
            omit: self.omit,
            rest: None,
        }
    }

    /// In every third history, and where that is what is looked for, what is freed is discarded as
    /// soon as it can be; the disk then has nonsense there.
    fn discard(&self) -> DiscardOptions {
        let is_wanted = matches!(self.omit, Omit::DiscardConfirm | Omit::DiscardHold);
        if is_wanted || self.seed.is_multiple_of(3) {
            DiscardOptions { rate: u64::MAX, delay: Duration::ZERO }
        } else {
            DiscardOptions::OFF
        }
    }

    const fn cache(&self) -> Cache {
        match self.durability {
            Durability::Flush => Cache::Volatile,
            Durability::Device => Cache::Protected,
        }
    }

    /// Runs the history once without cuts, to learn which steps are refused, and once with.
    pub(crate) fn run(&self, tally: &mut Tally) -> Result<(), String> {
        let mut seed = Seed(self.seed);
        let steps = generate(&mut seed, self.steps, self.mix);
        tally.histories += 1;
        let refused = self.drive(&steps, &mut |_, _| Ok(()))?;
        tally.refused += refused.iter().filter(|&&is_refused| is_refused).count() as u64;
        let mut cutter = Cutter::new(self.seed, self.cuts);
        let mut counters = Tally::default();
        self.drive(&steps, &mut |store, progress| {
            counters.acknowledged = progress.acknowledged.iter().filter(|&&is| is).count() as u64;
            counters.checkpoints = store.counters().checkpoints;
            counters.overwritten = store.counters().blocks_overwritten;
            counters.discards = store.counters().discards;
            for cut in cutter.cuts(store.disk(), counters.acknowledged, &mut counters) {
                counters.cuts += 1;
                let mut disk = store.disk().cut(cut);
                if cutter.seed.one_in(8) {
                    counters.recoveries_cut += 1;
                    disk = self.cut_recovery(disk, &mut cutter.seed)?;
                }
                let told = || format!("seed {} {cut:?} {progress:?}", self.seed);
                counters.adopted += self
                    .verify(disk, &steps, &refused, progress)
                    .map_err(|e| format!("{}: {e}", told()))?;
            }
            Ok(())
        })?;
        tally.cuts += counters.cuts;
        tally.moments += counters.moments;
        tally.exhausted += counters.exhausted;
        tally.torn += counters.torn;
        tally.recoveries_cut += counters.recoveries_cut;
        tally.acknowledged += counters.acknowledged;
        tally.checkpoints += counters.checkpoints;
        tally.overwritten += counters.overwritten;
        tally.adopted += counters.adopted;
        tally.discards += counters.discards;
        Ok(())
    }

    /// Runs the steps one after the other, without cuts, with a restart now and then, and
    /// compares the whole store with the model after every few.
    pub(crate) fn run_against_model(&self, tally: &mut Tally) -> Result<(), String> {
        let mut seed = Seed(self.seed);
        let steps = generate(&mut seed, self.steps, self.mix);
        let mut disk = MemoryDisk::new(DISK_LENGTH);
        disk.set_atomic_write_size(self.atomic);
        Store::format(&mut disk, &format_options()).map_err(|e| e.to_string())?;
        let mut store = Store::mount(disk, self.options()).map_err(|e| e.to_string())?;
        let mut state: BTreeMap<u64, Model> = BTreeMap::new();
        let (mut versions, mut highest) = (Versions::new(), 0);
        for (index, step) in steps.iter().enumerate() {
            let (request, is_wrong) = with_expectation(&mut seed, step, &versions);
            let taken = store.submit(StoreTag(0), request);
            taken.map_err(|_| "no room for a request".to_owned())?;
            let done = settle(&mut store).pop().ok_or("a request without an end")?;
            let is_mismatch = matches!(done.result, Err(StoreRefusal::VersionMismatch { .. }));
            if is_mismatch != is_wrong {
                return Err(format!("seed {} step {index}: {:?}", self.seed, done.result));
            }
            if let Ok(StoreAnswer::Changed { version, .. }) = done.result {
                tally.acknowledged += 1;
                for change in step {
                    change.apply(&mut state);
                }
                if version <= highest {
                    return Err(format!("seed {} step {index}: {version:#x} came late", self.seed));
                }
                let zeroed = give_spare_units_back(&mut store, step)?;
                highest = highest.max(zeroed.unwrap_or(version));
                for object in step.iter().map(Change::object) {
                    highest = highest.max(version_after(step, object, version));
                    let version = zeroed.unwrap_or(version_after(step, object, version));
                    if state.get(&object).is_some_and(|model| model.exists) {
                        versions.insert(object, version);
                    } else {
                        versions.remove(&object);
                    }
                }
            } else {
                tally.refused += 1;
            }
            if seed.one_in(16) {
                let is_clean = seed.one_in(2);
                let (disk, rest) =
                    if is_clean { store.put_away() } else { (store.abandon(), None) };
                let rest = rest.filter(|_| index.is_multiple_of(2));
                let mounted = Store::mount(disk, StoreOptions { rest, ..self.options() });
                store = mounted.map_err(|e| format!("seed {} step {index}: {e}", self.seed))?;
                tally.cuts += 1;
            }
            if !seed.one_in(4) {
                continue;
            }
            let report = store.check();
            let report = report.map_err(|e| format!("seed {} step {index}: {e}", self.seed))?;
            let alone = report.units - report.shared_units;
            questions::compare(&mut store, &state, &versions, alone, &mut seed)
                .map_err(|e| format!("seed {} step {index}: {e}", self.seed))?;
            for object in (0..OBJECTS).chain([LOG]) {
                let found = match object {
                    LOG => questions::log(&mut store, 3)?,
                    object => read_object(&mut store, object)?,
                };
                let expected = state.get(&object).cloned().unwrap_or_default();
                if found != expected {
                    let misfit = explain::misfit(object, &[(index, expected)], &found);
                    return Err(format!("seed {}: {misfit}", self.seed));
                }
            }
        }
        tally.checkpoints += store.counters().checkpoints;
        Ok(())
    }

    /// Submits the steps a few at a time; calls `at_each` after every poll.
    fn drive(&self, steps: &[Step], at_each: &mut AtEach<'_>) -> Result<Vec<bool>, String> {
        let mut disk = MemoryDisk::new(DISK_LENGTH);
        disk.set_atomic_write_size(self.atomic);
        Store::format(&mut disk, &format_options()).map_err(|e| e.to_string())?;
        disk.restart(self.cache(), self.seed);
        let mut store = Store::mount(disk, self.options()).map_err(|e| e.to_string())?;
        let mut pace = Seed(self.seed ^ 0xface);
        let mut progress = Progress {
            submitted: 0,
            acknowledged: vec![false; steps.len()],
            refused: vec![false; steps.len()],
            versions: vec![0; steps.len()],
        };
        let mut done: Vec<StoreCompletion> = Vec::new();
        for poll in 0.. {
            while progress.submitted < steps.len() && !pace.one_in(3) {
                let tag = StoreTag(progress.submitted as u64);
                if store.submit(tag, request(&steps[progress.submitted])).is_err() {
                    break;
                }
                progress.submitted += 1;
            }
            if pace.one_in(40) {
                let _ = store.submit(StoreTag(u64::MAX), StoreRequest::Flush);
            }
            if pace.one_in(60) {
                store.request_checkpoint();
            }
            // Whoever has nothing scrapped has nothing to wipe.
            if pace.one_in(12) {
                let key = key(u128::from(pace.below(OBJECTS)));
                let _ = store.submit(StoreTag(u64::MAX), StoreRequest::Wipe { key });
            }
            if pace.one_in(600) {
                let _ = store.submit(StoreTag(u64::MAX), StoreRequest::TurnJournal);
            }
            store.poll(Duration::ZERO, &mut done);
            for done in done.drain(..) {
                let Ok(index) = usize::try_from(done.tag.0) else { continue };
                let Some(place) = progress.acknowledged.get_mut(index) else { continue };
                match done.result {
                    Ok(StoreAnswer::Changed { version, .. }) => {
                        *place = true;
                        progress.versions[index] = version;
                    }
                    Ok(answer) => return Err(format!("a change was answered with {answer:?}")),
                    Err(_) => progress.refused[index] = true,
                }
            }
            at_each(&store, &progress)?;
            if progress.submitted == steps.len() && store.is_idle() {
                return Ok(progress.refused);
            }
            if poll > 100_000 {
                return Err(format!("seed {}: stuck: {}", self.seed, store.waits()));
            }
        }
        Err("the loop has no end".to_owned())
    }

    /// Cuts the power once more, while the store recovers.
    fn cut_recovery(&self, mut disk: MemoryDisk, seed: &mut Seed) -> Result<MemoryDisk, String> {
        disk.restart(self.cache(), seed.draw());
        disk.add_rule(FaultRule {
            is_write: true,
            bytes: 0..DISK_LENGTH,
            skip: seed.below(24) as u32,
            times: u32::MAX,
            fault: Fault::Fail(DiskError::Gone),
        });
        match Store::mount(&mut disk, self.options()) {
            Ok(store) => drop(store),
            Err(error) if disk_is_gone(&error) => {}
            Err(error) => return Err(format!("the first recovery: {error:?}")),
        }
        Ok(disk.cut(Cut::Any(seed.draw())))
    }

    /// Mounts what is left and compares it with the model.
    fn verify(
        &self,
        disk: MemoryDisk,
        steps: &[Step],
        refused: &[bool],
        progress: &Progress,
    ) -> Result<u64, String> {
        let mut store = Store::mount(disk, self.options()).map_err(|e| format!("mount: {e:?}"))?;
        store.check().map_err(|e| format!("check: {e}"))?;
        let mut found = BTreeMap::new();
        for object in 0..OBJECTS {
            let version = questions::version(&mut store, object)?;
            found.insert(object, (read_object(&mut store, object)?, version));
        }
        found.insert(LOG, (questions::log(&mut store, 7)?, 0));
        store.check().map_err(|e| format!("check after reading: {e}"))?;
        explain::explain(steps, refused, progress, &found, self.atomic >= 4096)?;
        expect_higher(&mut store, steps, progress)?;
        Ok(store.counters().adopted_blocks)
    }
}

/// Demands that versions go on above all that anybody was told of.
fn expect_higher(
    store: &mut Store<MemoryDisk>,
    steps: &[Step],
    progress: &Progress,
) -> Result<(), String> {
    let told = steps.iter().zip(&progress.versions).filter(|(_, version)| **version != 0);
    let highest = told.flat_map(|(step, &version)| {
        step.iter().map(move |change| version_after(step, change.object(), version).max(version))
    });
    let highest = highest.max().unwrap_or(0);
    let (pool, pg) = (key(0).pool, key(0).pg);
    let transaction = vec![Operation::RaiseVersions { pool, pg, above: 0 }];
    match questions::ask(store, StoreRequest::Apply { transaction })? {
        Ok(StoreAnswer::Changed { version, .. }) if version > highest => Ok(()),
        other => Err(format!("after version {highest:#x}: {other:x?}")),
    }
}

/// The model knows the units that have something; a scrapped object has others too. Gives the
/// version of the last change.
fn give_spare_units_back(
    store: &mut Store<MemoryDisk>,
    step: &Step,
) -> Result<Option<u64>, String> {
    let scraps = step.iter().any(|change| matches!(change, Change::Scrap { .. }));
    if !scraps {
        return Ok(None);
    }
    // All that the step was about, so that all of it has one version.
    let mut objects: Vec<u64> = step.iter().map(Change::object).filter(|at| *at != LOG).collect();
    objects.sort_unstable();
    objects.dedup();
    let zero = |object: u64, is_scrapped: bool| {
        let length = if is_scrapped { 4 << 20 } else { 4096 };
        // Past what the workload uses where nothing was scrapped.
        let offset = if is_scrapped { 0 } else { (4 << 20) - 4096 };
        Operation::Zero { key: key(u128::from(object)), offset, length }
    };
    let is_scrapped = |object: u64| {
        step.iter().any(|change| matches!(change, Change::Scrap { object: of } if *of == object))
    };
    let transaction = objects.into_iter().map(|object| zero(object, is_scrapped(object))).collect();
    let request = StoreRequest::Apply { transaction };
    store.submit(StoreTag(0), request).map_err(|_| "no room for a request".to_owned())?;
    match settle(store).pop().map(|done| done.result) {
        Some(Ok(StoreAnswer::Changed { version, .. })) => Ok(Some(version)),
        other => Err(format!("zeroing ended with {other:?}")),
    }
}

fn disk_is_gone(error: &plinth_store::MountError) -> bool {
    use plinth_store::{MountError, ReadOnlyReason};
    matches!(
        error,
        MountError::Disk(DiskError::Gone)
            | MountError::ReadOnly(
                ReadOnlyReason::Metadata(DiskError::Gone)
                    | ReadOnlyReason::Data(DiskError::Gone)
                    | ReadOnlyReason::Journal(DiskError::Gone)
            )
    )
}

#[derive(Clone, Debug)]
struct Progress {
    submitted: usize,
    acknowledged: Vec<bool>,
    refused: Vec<bool>,
    /// Of the acknowledged steps.
    versions: Vec<u64>,
}

fn read_object(store: &mut Store<MemoryDisk>, object: u64) -> Result<Model, String> {
    let at: ObjectKey = key(u128::from(object));
    let mut model = Model { exists: store.object(&at).is_some(), ..Model::default() };
    for (start, count) in REGIONS {
        let (offset, length) = (start * SECTOR, (count + 64) * SECTOR);
        let buffer = IoBuffer::zeroed(length as usize);
        let request = StoreRequest::Read { key: at, offset, length, buffer };
        store.submit(StoreTag(0), request).map_err(|_| "no room for a read".to_owned())?;
        let done = settle(store).pop().ok_or("a read without an end")?;
        done.result.map_err(|refusal| format!("object {object}: {refusal}"))?;
        let buffer = done.buffer.ok_or("a read without a buffer")?;
        for (sector, bytes) in (start..).zip(buffer.as_bytes().chunks_exact(SECTOR as usize)) {
            let value = u64::from_le_bytes(bytes[..8].try_into().map_err(|_| "eight bytes")?);
            if bytes.chunks_exact(8).any(|word| word != value.to_le_bytes()) {
                return Err(format!("object {object} sector {sector} is torn"));
            }
            if value != 0 {
                model.sectors.insert(sector, value);
            }
        }
    }
    model.keys = questions::keys(store, object)?;
    if model.exists {
        store
            .submit(StoreTag(0), StoreRequest::Attributes { key: at })
            .map_err(|_| "no room for a read".to_owned())?;
        let done = settle(store).pop().ok_or("a read without an end")?;
        if let Ok(StoreAnswer::Attributes { attributes, .. }) = done.result {
            let first = attributes.first().and_then(|(_, value)| value.get(..8));
            let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
            model.attribute = first.and_then(number);
        }
    }
    Ok(model)
}
