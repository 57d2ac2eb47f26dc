// SPDX-License-Identifier: Apache-2.0
//! Requests on their way through the store.

use crate::buffer::{BLOCK_SIZE, IoBuffer};
use crate::keys::{
    KeysChange, POOL_MAX, Trees, companion, group_of, is_companion, is_hidden, log_key,
};
use crate::query::{Counting, Listing, Query};
use crate::request::{
    LIST_MAX, OBJECT_SIZE_MAX, ObjectKey, Operation, PgId, STEPS_MAX, StoreRefusal, StoreRequest,
    StoreTag,
};
use plinth_format::journal::VERSION_MAX;
use plinth_ids::PoolId;

#[derive(Debug)]
pub(crate) enum StepKind {
    Touch,
    Expect { version: u64 },
    Write { offset: u32, length: u32 },
    WriteFull { length: u32 },
    Zero { offset: u32, length: u32 },
    Scrap,
    Truncate { size: u32 },
    Remove,
    Clone { source: ObjectKey },
    SetAttribute { name: Vec<u8>, value: Vec<u8> },
    RemoveAttribute { name: Vec<u8> },
    Keys(KeysChange),
    SetVersion { version: u64 },
    RaiseVersions { above: u64 },
}

#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) key: ObjectKey,
    pub(crate) kind: StepKind,
    /// Of a step in a transaction; a single write's buffer is its operation's.
    pub(crate) buffer: Option<IoBuffer>,
}

#[derive(Debug)]
pub(crate) enum Work {
    Read { key: ObjectKey, offset: u32, length: u32 },
    Attributes { key: ObjectKey },
    Ask(Box<Query>),
    One(Step),
    Many(Vec<Step>),
    Flush,
}

/// One unit's bytes from before a change, for the blocks in `mask`.
#[derive(Debug)]
pub(crate) struct Old {
    pub(crate) step: usize,
    /// Index of the unit in the object.
    pub(crate) unit: u32,
    pub(crate) buffer: IoBuffer,
}

#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) tag: StoreTag,
    /// Rises from request to request.
    pub(crate) number: u64,
    pub(crate) work: Work,
    pub(crate) buffer: Option<IoBuffer>,
    /// Disk requests on their way that hold the operation back.
    pub(crate) pending: u32,
    /// A read met a change and starts again.
    pub(crate) must_retry: bool,
    pub(crate) refusal: Option<StoreRefusal>,
    pub(crate) old: Vec<Old>,
    pub(crate) units: i64,
    pub(crate) objects: i64,
    /// What the change gave to the objects it changed.
    pub(crate) version: u64,
    /// The trees of keys that the operation is about.
    pub(crate) trees: Option<Box<Trees>>,
    pub(crate) is_parked: bool,
}

impl Op {
    pub(crate) fn new(tag: StoreTag, number: u64, work: Work, buffer: Option<IoBuffer>) -> Self {
        Self {
            tag,
            number,
            work,
            buffer,
            pending: 0,
            must_retry: false,
            refusal: None,
            old: Vec::new(),
            units: 0,
            objects: 0,
            version: 0,
            trees: None,
            is_parked: false,
        }
    }

    pub(crate) fn steps(&self) -> &[Step] {
        match &self.work {
            Work::One(step) => std::slice::from_ref(step),
            Work::Many(steps) => steps,
            Work::Read { .. } | Work::Attributes { .. } | Work::Ask(_) | Work::Flush => &[],
        }
    }

    pub(crate) fn for_each_key(&self, mut visit: impl FnMut(&ObjectKey)) {
        match &self.work {
            Work::Read { key, .. } | Work::Attributes { key } => visit(key),
            Work::Ask(query) => query.for_each_key(visit),
            Work::Flush => {}
            Work::One(_) | Work::Many(_) => {
                for step in self.steps().iter().filter(|step| !is_companion(&step.key)) {
                    visit(&step.key);
                    if let StepKind::Clone { source } = &step.kind {
                        visit(source);
                    }
                }
            }
        }
    }
}

/// The blocks around a range, as first and one past the last.
pub(crate) const fn block_range(offset: u32, length: u32) -> (u32, u32) {
    let block = plinth_format::BLOCK_SIZE;
    (offset / block, (offset + length).div_ceil(block))
}

fn check_range(offset: u32, length: u32) -> Result<(), StoreRefusal> {
    let is_inside = offset.checked_add(length).is_some_and(|end| end <= OBJECT_SIZE_MAX);
    if is_inside && length > 0 { Ok(()) } else { Err(StoreRefusal::BadRange { offset, length }) }
}

fn check_buffer(offset: u32, length: u32, buffer: &mut IoBuffer) -> Result<(), StoreRefusal> {
    check_range(offset, length)?;
    let (first, end) = block_range(offset, length);
    let bytes = (end - first) as usize * BLOCK_SIZE;
    if buffer.capacity() < bytes {
        return Err(StoreRefusal::ShortBuffer);
    }
    buffer.set_length(bytes);
    Ok(())
}

fn check_blocks(offset: u32, length: u32) -> Result<(), StoreRefusal> {
    check_range(offset, length)?;
    let block = plinth_format::BLOCK_SIZE;
    let is_aligned = offset.is_multiple_of(block) && length.is_multiple_of(block);
    if is_aligned { Ok(()) } else { Err(StoreRefusal::BadRange { offset, length }) }
}

/// Turns a request into work; the ranges and buffers of what comes out are right. The buffer
/// comes back beside a refusal.
pub(crate) fn admit(request: StoreRequest) -> (Result<Work, StoreRefusal>, Option<IoBuffer>) {
    match request {
        StoreRequest::Read { key, offset, length, mut buffer } => {
            let fits = check_buffer(offset, length, &mut buffer);
            (fits.map(|()| Work::Read { key, offset, length }), Some(buffer))
        }
        StoreRequest::Write { key, offset, length, mut buffer } => {
            let fits = check_key(&key).and_then(|()| check_buffer(offset, length, &mut buffer));
            let kind = StepKind::Write { offset, length };
            (fits.map(|()| Work::One(Step { key, kind, buffer: None })), Some(buffer))
        }
        StoreRequest::Apply { transaction } => (admit_steps(transaction).map(Work::Many), None),
        StoreRequest::Attributes { key } => (Ok(Work::Attributes { key }), None),
        StoreRequest::List { range, limit } => {
            let limit = limit.clamp(1, LIST_MAX);
            (Ok(ask(Query::List(Listing { range, limit }))), None)
        }
        StoreRequest::Status { key } => (Ok(ask(Query::Status { key })), None),
        StoreRequest::Usage { key } => (Ok(ask(Query::Usage { key })), None),
        StoreRequest::UsageOf { keys } => (admit_keys(keys), None),
        StoreRequest::Wipe { key } => (Ok(ask(Query::Wipe { key, sent: None })), None),
        StoreRequest::TurnJournal => (Ok(ask(Query::TurnJournal { until: None })), None),
        StoreRequest::Compare { a, b } => (Ok(ask(Query::Compare { a, b })), None),
        StoreRequest::GetKeys { key, names } => (Ok(ask(Query::GetKeys { key, names })), None),
        StoreRequest::ListKeys { key, after, limit } => {
            let limit = limit.clamp(1, LIST_MAX);
            (Ok(ask(Query::ListKeys { key, after, limit })), None)
        }
        StoreRequest::ReadLog { pool, pg, after, limit } => {
            let (key, limit) = (log_key(pool, pg), limit.clamp(1, LIST_MAX));
            (Ok(ask(Query::ReadLog { key, after, limit })), None)
        }
        StoreRequest::Flush => (Ok(Work::Flush), None),
    }
}

/// Each key once, all of one group: a question that waits holds each of them back once.
fn admit_keys(mut keys: Vec<ObjectKey>) -> Result<Work, StoreRefusal> {
    let Some(group) = keys.first().map(group_of) else {
        return Err(StoreRefusal::TransactionTooLarge);
    };
    if keys.len() > LIST_MAX {
        return Err(StoreRefusal::TransactionTooLarge);
    }
    if let Some(&key) = keys.iter().find(|key| group_of(key) != group) {
        return Err(StoreRefusal::BadTransaction { key });
    }
    keys.sort_unstable();
    keys.dedup();
    Ok(ask(Query::UsageOf(Counting { keys, ..Counting::default() })))
}

fn ask(query: Query) -> Work {
    Work::Ask(Box::new(query))
}

fn admit_steps(transaction: Vec<Operation>) -> Result<Vec<Step>, StoreRefusal> {
    if transaction.is_empty() || transaction.len() > STEPS_MAX {
        return Err(StoreRefusal::TransactionTooLarge);
    }
    let steps = transaction.into_iter().map(step).collect::<Result<Vec<_>, _>>()?;
    check_conflicts(&steps)?;
    Ok(with_companions(steps))
}

/// The keys of an object go where it goes.
fn with_companions(steps: Vec<Step>) -> Vec<Step> {
    let is_whole = |step: &Step| matches!(step.kind, StepKind::Remove | StepKind::Clone { .. });
    if !steps.iter().any(is_whole) {
        return steps;
    }
    let mut all = Vec::with_capacity(steps.len() * 2);
    for step in steps {
        let key = companion(&step.key);
        let kind = match &step.kind {
            _ if is_hidden(&step.key) => None,
            StepKind::Remove => Some(StepKind::Remove),
            StepKind::Clone { source } => Some(StepKind::Clone { source: companion(source) }),
            _ => None,
        };
        all.push(step);
        all.extend(kind.map(|kind| Step { key, kind, buffer: None }));
    }
    all
}

/// The upper bits of the pool tell what users have from what the store keeps beside it.
fn check_key(key: &ObjectKey) -> Result<(), StoreRefusal> {
    if is_hidden(key) { Err(StoreRefusal::BadPool { key: *key }) } else { Ok(()) }
}

fn check_version(version: u64) -> Result<u64, StoreRefusal> {
    if version <= VERSION_MAX { Ok(version) } else { Err(StoreRefusal::BadVersion { version }) }
}

fn log_step(
    pool: PoolId,
    pg: PgId,
    kind: impl FnOnce(&ObjectKey) -> Result<StepKind, StoreRefusal>,
) -> Result<Step, StoreRefusal> {
    let key = log_key(pool, pg);
    if pool.0 > POOL_MAX {
        return Err(StoreRefusal::BadPool { key });
    }
    Ok(Step { kind: kind(&key)?, key, buffer: None })
}

fn step(operation: Operation) -> Result<Step, StoreRefusal> {
    match operation {
        Operation::LogAppend { pool, pg, version, entry } => {
            let append = |key: &_| KeysChange::append(key, version, entry).map(StepKind::Keys);
            log_step(pool, pg, append)
        }
        Operation::LogTrim { pool, pg, up_to } => {
            log_step(pool, pg, |_| Ok(StepKind::Keys(KeysChange::Trim { up_to })))
        }
        Operation::LogRemove { pool, pg } => log_step(pool, pg, |_| Ok(StepKind::Remove)),
        Operation::RaiseVersions { pool, pg, above } => {
            let above = check_version(above)?;
            log_step(pool, pg, |_| Ok(StepKind::RaiseVersions { above }))
        }
        other => {
            let step = object_step(other)?;
            check_key(&step.key)?;
            if let StepKind::Clone { source } = &step.kind {
                check_key(source)?;
            }
            Ok(step)
        }
    }
}

fn object_step(operation: Operation) -> Result<Step, StoreRefusal> {
    let plain = |key, kind| Step { key, kind, buffer: None };
    Ok(match operation {
        Operation::SetKeys { key, pairs } => {
            plain(key, StepKind::Keys(KeysChange::set(&key, pairs)?))
        }
        Operation::RemoveKeys { key, names } => {
            plain(key, StepKind::Keys(KeysChange::remove(names)))
        }
        Operation::RemoveKeyRange { key, from, to } => {
            plain(key, StepKind::Keys(KeysChange::Cut { from, to }))
        }
        Operation::LogAppend { pool, pg, .. }
        | Operation::LogTrim { pool, pg, .. }
        | Operation::LogRemove { pool, pg }
        | Operation::RaiseVersions { pool, pg, .. } => {
            return Err(StoreRefusal::BadTransaction { key: log_key(pool, pg) });
        }
        Operation::Touch { key } => plain(key, StepKind::Touch),
        Operation::Expect { key, version } => plain(key, StepKind::Expect { version }),
        Operation::Write { key, offset, length, mut buffer } => {
            check_buffer(offset, length, &mut buffer)?;
            Step { key, kind: StepKind::Write { offset, length }, buffer: Some(buffer) }
        }
        Operation::WriteFull { key, length, mut buffer } => {
            check_buffer(0, length, &mut buffer)?;
            Step { key, kind: StepKind::WriteFull { length }, buffer: Some(buffer) }
        }
        Operation::Zero { key, offset, length } => {
            check_blocks(offset, length)?;
            plain(key, StepKind::Zero { offset, length })
        }
        Operation::Scrap { key } => plain(key, StepKind::Scrap),
        Operation::Truncate { key, size } => {
            if size > OBJECT_SIZE_MAX || !size.is_multiple_of(plinth_format::BLOCK_SIZE) {
                return Err(StoreRefusal::BadRange { offset: size, length: 0 });
            }
            plain(key, StepKind::Truncate { size })
        }
        Operation::Remove { key } => plain(key, StepKind::Remove),
        Operation::Clone { source, target } => plain(target, StepKind::Clone { source }),
        Operation::SetAttribute { key, name, value } => {
            plain(key, StepKind::SetAttribute { name, value })
        }
        Operation::RemoveAttribute { key, name } => plain(key, StepKind::RemoveAttribute { name }),
        Operation::SetVersion { key, version } => {
            plain(key, StepKind::SetVersion { version: check_version(version)? })
        }
    })
}

/// What the steps so far did to an object.
#[derive(Clone, Copy, Debug, Default)]
struct Touched {
    source: bool,
    data: bool,
    removed: bool,
    cloned_into: bool,
    rest: bool,
    keys: bool,
    /// Nothing may come behind.
    is_last: bool,
    /// A clone of it is changed: it stays as it is, so that all of the clone's units are shared
    /// by the time that happens.
    is_kept: bool,
}

impl Touched {
    const fn whole(self) -> bool {
        self.removed || self.cloned_into
    }
}

/// The order of steps that `Operation` promises: planning looks at the objects as they are before
/// the transaction, and knows no more of earlier steps than what is allowed here.
fn check_conflicts(steps: &[Step]) -> Result<(), StoreRefusal> {
    let group = group_of(&steps[0].key);
    let mut touched: Vec<(ObjectKey, Touched)> = Vec::with_capacity(steps.len() + 1);
    let mut touch = |key: ObjectKey, allows: fn(&mut Touched) -> bool| {
        let at = touched.iter().position(|(other, _)| *other == key).unwrap_or_else(|| {
            touched.push((key, Touched::default()));
            touched.len() - 1
        });
        let of = &mut touched[at].1;
        let is_allowed = group_of(&key) == group && !of.is_last && allows(of);
        if is_allowed { Ok(()) } else { Err(StoreRefusal::BadTransaction { key }) }
    };
    for (number, step) in steps.iter().enumerate() {
        match &step.kind {
            StepKind::Clone { source } => {
                touch(*source, |of| {
                    of.source = true;
                    !of.data && !of.keys && !of.whole()
                })?;
                if *source == step.key {
                    return Err(StoreRefusal::BadTransaction { key: *source });
                }
                touch(step.key, |of| {
                    !of.data
                        && !of.rest
                        && !of.is_kept
                        && !std::mem::replace(&mut of.cloned_into, true)
                        && !of.removed
                })?;
            }
            // What it compares with is what was there before the transaction.
            StepKind::Expect { .. } => {
                touch(step.key, |of| !of.data && !of.rest && !of.whole())?;
            }
            StepKind::Remove => touch(step.key, |of| {
                let is_new = !of.data && !of.rest && !of.cloned_into && !of.is_kept;
                is_new && !std::mem::replace(&mut of.removed, true)
            })?,
            StepKind::Write { .. }
            | StepKind::WriteFull { .. }
            | StepKind::Zero { .. }
            | StepKind::Scrap
            | StepKind::Truncate { .. } => {
                touch(step.key, |of| {
                    !of.removed && !of.is_kept && !std::mem::replace(&mut of.data, true)
                })?;
                if let Some(source) = cloned_from(steps, number) {
                    touch(source, |of| {
                        of.is_kept = true;
                        !of.data && !of.whole()
                    })?;
                }
            }
            StepKind::Keys(_) => touch(step.key, |of| {
                (of.keys, of.rest) = (true, true);
                !of.whole()
            })?,
            StepKind::SetVersion { .. } => touch(step.key, |of| {
                of.is_last = true;
                !of.removed
            })?,
            StepKind::RaiseVersions { .. } => touch(step.key, |_| true)?,
            StepKind::Touch | StepKind::SetAttribute { .. } | StepKind::RemoveAttribute { .. } => {
                touch(step.key, |of| {
                    of.rest = true;
                    !of.removed
                })?;
            }
        }
    }
    Ok(())
}

/// Whether a step before the `number`th clones this object: then its units are shared by the
/// time that step is carried out.
pub(crate) fn is_cloned_before(steps: &[Step], number: usize) -> bool {
    let key = steps[number].key;
    let clones = |step: &Step| matches!(&step.kind, StepKind::Clone { source } if *source == key);
    number > 0 && steps[..number].iter().any(clones)
}

/// What a step before the `number`th makes this object from: what it has by the time that step is
/// carried out is what that one has, and all of it is shared.
pub(crate) fn cloned_from(steps: &[Step], number: usize) -> Option<ObjectKey> {
    let key = steps[number].key;
    steps[..number].iter().find_map(|step| match &step.kind {
        StepKind::Clone { source } if step.key == key => Some(*source),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ObjectId;

    fn key(object: u128) -> ObjectKey {
        ObjectKey { pool: PoolId(1), pg: PgId(0), object: ObjectId(object), snapshot: 0 }
    }

    fn refusal(transaction: Vec<Operation>) -> Option<StoreRefusal> {
        admit(StoreRequest::Apply { transaction }).0.err()
    }

    #[test]
    fn a_transaction_that_would_see_itself_is_refused() {
        let zero = |object| Operation::Zero { key: key(object), offset: 0, length: 4096 };
        let touch = |object| Operation::Touch { key: key(object) };
        let clone = |source, target| Operation::Clone { source: key(source), target: key(target) };
        let bad = |object| Some(StoreRefusal::BadTransaction { key: key(object) });
        assert_eq!(refusal(vec![zero(1), zero(2), touch(1)]), None);
        assert_eq!(refusal(vec![zero(1), zero(1)]), bad(1));
        assert_eq!(refusal(vec![zero(1), clone(1, 2)]), bad(1));
        assert_eq!(refusal(vec![clone(1, 1)]), bad(1));
        assert_eq!(refusal(vec![clone(1, 2), zero(2)]), None);
        assert_eq!(refusal(vec![clone(1, 2), clone(1, 3), zero(3)]), None);
        assert_eq!(refusal(vec![clone(1, 2), zero(2), zero(2)]), bad(2));
        assert_eq!(refusal(vec![clone(1, 2), zero(1), zero(2)]), bad(1));
        assert_eq!(refusal(vec![clone(1, 2), zero(2), zero(1)]), bad(1));
        assert_eq!(refusal(vec![clone(1, 2), zero(2), clone(3, 1)]), bad(1));
        assert_eq!(refusal(vec![touch(2), clone(1, 2)]), bad(2));
        assert_eq!(refusal(vec![clone(1, 2), clone(2, 3)]), bad(2));
        assert_eq!(refusal(vec![clone(1, 2), zero(1), zero(1)]), bad(1));
        let remove = |object| Operation::Remove { key: key(object) };
        assert_eq!(refusal(vec![remove(1), touch(1)]), bad(1));
        assert_eq!(refusal(vec![remove(1), clone(2, 1)]), bad(1));
        let expect = |object| Operation::Expect { key: key(object), version: 1 };
        assert_eq!(refusal(vec![touch(1), expect(1)]), bad(1));
        assert_eq!(refusal(vec![expect(1), expect(2), clone(1, 2), zero(1)]), None);
        // What is cloned may be changed or replaced behind that, and a clone gets attributes.
        assert_eq!(refusal(vec![clone(1, 2), zero(1), touch(1), touch(2)]), None);
        assert_eq!(refusal(vec![clone(1, 2), clone(1, 3), clone(4, 1)]), None);
        assert_eq!(refusal(vec![clone(1, 2), remove(1)]), None);
        assert_eq!(refusal(vec![touch(1), Operation::Remove { key: key(1) }]), bad(1));
        let version = |object| Operation::SetVersion { key: key(object), version: 1 };
        assert_eq!(refusal(vec![clone(1, 2), zero(1), version(1), version(2)]), None);
        assert_eq!(refusal(vec![version(1), touch(1)]), bad(1));
        assert_eq!(refusal(vec![version(1), clone(1, 2)]), bad(1));
        assert_eq!(refusal(vec![remove(1), version(1)]), bad(1));
        let high = Operation::SetVersion { key: key(1), version: u64::MAX };
        assert_eq!(refusal(vec![high]), Some(StoreRefusal::BadVersion { version: u64::MAX }));
        let other = ObjectKey { pg: PgId(1), ..key(1) };
        let usage = |keys| admit(StoreRequest::UsageOf { keys }).0.err();
        assert_eq!(usage(vec![key(1), key(2), key(1)]), None);
        assert_eq!(usage(vec![key(1), other]), Some(StoreRefusal::BadTransaction { key: other }));
        assert_eq!(usage(Vec::new()), Some(StoreRefusal::TransactionTooLarge));
        assert_eq!(usage(vec![key(1); LIST_MAX + 1]), Some(StoreRefusal::TransactionTooLarge));
        let refused = Some(StoreRefusal::BadTransaction { key: other });
        assert_eq!(refusal(vec![touch(1), Operation::Touch { key: other }]), refused);
        assert_eq!(refusal(Vec::new()), Some(StoreRefusal::TransactionTooLarge));
        let many = (0..=STEPS_MAX as u128).map(touch).collect();
        assert_eq!(refusal(many), Some(StoreRefusal::TransactionTooLarge));
    }

    #[test]
    fn a_range_outside_the_object_or_its_buffer_is_refused() {
        let read = |offset, length, bytes| {
            let buffer = IoBuffer::zeroed(bytes);
            admit(StoreRequest::Read { key: key(1), offset, length, buffer }).0.err()
        };
        assert_eq!(read(4095, 2, 8192), None);
        assert_eq!(read(4095, 2, 4096), Some(StoreRefusal::ShortBuffer));
        for (offset, length) in [(0, 0), (OBJECT_SIZE_MAX, 1), (u32::MAX, 2)] {
            let bad = Some(StoreRefusal::BadRange { offset, length });
            assert_eq!(read(offset, length, 4096), bad);
        }
        let unaligned = Operation::Zero { key: key(1), offset: 512, length: 4096 };
        let bad = Some(StoreRefusal::BadRange { offset: 512, length: 4096 });
        assert_eq!(refusal(vec![unaligned]), bad);
    }
}
