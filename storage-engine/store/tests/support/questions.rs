// SPDX-License-Identifier: Apache-2.0
//! Questions to a store whose answers follow from the model.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::cast_possible_truncation, reason = "numbers below small limits")]

use crate::history::{Model, OBJECTS, Versions};
use crate::{key, settle};
use plinth_disks::memory::{MemoryDisk, Seed};
use plinth_ids::PoolId;
use plinth_store::{ObjectKey, Store, StoreAnswer, StoreRefusal, StoreRequest, StoreTag};
use std::collections::{BTreeMap, BTreeSet};

type State = BTreeMap<u64, Model>;

pub(crate) fn ask(
    store: &mut Store<MemoryDisk>,
    request: StoreRequest,
) -> Result<Result<StoreAnswer, StoreRefusal>, String> {
    store.submit(StoreTag(0), request).map_err(|_| "no room for a question".to_owned())?;
    Ok(settle(store).pop().ok_or("a question without an end")?.result)
}

/// Numbers of keys that the workload uses.
pub(crate) const NAMES: u64 = 150;

/// The key of a number: in the order of numbers, of any length.
pub(crate) fn name(number: u64) -> Vec<u8> {
    let mut name = format!("{number:06}").into_bytes();
    name.resize(6 + (number * 31 % 200) as usize, b'-');
    name
}

/// What is stored under a key: of any length, and nothing but the value.
pub(crate) fn bytes(name: u64, value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(1 + ((name * 7 + value) % 120) as usize)
}

fn number(name: u64, bytes: &[u8]) -> Result<u64, String> {
    let value = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let is_whole = bytes == self::bytes(name, value);
    is_whole.then_some(value).ok_or(format!("the value of key {name} is torn"))
}

/// Every key of an object, a few at a time.
pub(crate) fn keys(
    store: &mut Store<MemoryDisk>,
    object: u64,
) -> Result<BTreeMap<u64, u64>, String> {
    let mut found = BTreeMap::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let (at, limit) = (key(u128::from(object)), 10);
        match ask(store, StoreRequest::ListKeys { key: at, after: after.clone(), limit })? {
            Ok(StoreAnswer::Keys { pairs, more }) => {
                for (name, bytes) in &pairs {
                    let digits = name.get(..6).and_then(|digits| std::str::from_utf8(digits).ok());
                    let parsed = digits.and_then(|digits| digits.parse().ok());
                    let name_number: u64 = parsed.ok_or("a key that is none")?;
                    if *name != self::name(name_number) {
                        return Err(format!("key {name_number} is torn"));
                    }
                    found.insert(name_number, number(name_number, bytes)?);
                }
                if pairs.len() > limit || (more && pairs.is_empty()) {
                    return Err(format!("{} pairs in a list of {limit}", pairs.len()));
                }
                after = pairs.last().map(|(name, _)| name.clone());
                if !more {
                    return Ok(found);
                }
            }
            Err(StoreRefusal::NotFound { .. }) => return Ok(found),
            other => return Err(format!("keys of {object} were answered with {other:?}")),
        }
    }
}

/// The group's log, as the model has it.
pub(crate) fn log(store: &mut Store<MemoryDisk>, limit: usize) -> Result<Model, String> {
    let mut model = Model::default();
    let (pool, pg) = (key(0).pool, key(0).pg);
    let mut after = 0;
    loop {
        match ask(store, StoreRequest::ReadLog { pool, pg, after, limit })? {
            Ok(StoreAnswer::Log { entries, last, more }) => {
                model.last = last;
                for (version, bytes) in &entries {
                    model.keys.insert(*version, number(0, bytes)?);
                    after = *version;
                }
                if !more {
                    return Ok(model);
                }
            }
            other => return Err(format!("the log was answered with {other:?}")),
        }
    }
}

/// Units that no other object has, of one that the store keeps beside those of users.
fn hidden_units(store: &mut Store<MemoryDisk>, at: ObjectKey, bits: u32) -> Result<u64, String> {
    let hidden = ObjectKey { pool: PoolId(at.pool.0 | bits << 30), ..at };
    match ask(store, StoreRequest::Usage { key: hidden })? {
        Ok(StoreAnswer::Usage { unique, .. }) => Ok(u64::from(unique)),
        Err(StoreRefusal::NotFound { .. }) => Ok(0),
        other => Err(format!("a usage was answered with {other:?}")),
    }
}

/// The object's version, 0 for none.
pub(crate) fn version(store: &mut Store<MemoryDisk>, object: u64) -> Result<u64, String> {
    match ask(store, StoreRequest::Status { key: key(u128::from(object)) })? {
        Ok(StoreAnswer::Status { version, .. }) => Ok(version),
        Err(StoreRefusal::NotFound { .. }) => Ok(0),
        other => Err(format!("a status was answered with {other:?}")),
    }
}

/// Compares lists, usages and differences with the model. `alone` units have one owner.
pub(crate) fn compare(
    store: &mut Store<MemoryDisk>,
    state: &State,
    versions: &Versions,
    alone: u64,
    seed: &mut Seed,
) -> Result<(), String> {
    for object in 0..OBJECTS {
        let (found, expected) = (version(store, object)?, versions.get(&object).copied());
        if found != expected.unwrap_or(0) {
            return Err(format!("object {object} has version {found:#x}, not {expected:x?}"));
        }
    }
    compare_list(store, state, seed)?;
    compare_usage(store, state, alone)?;
    compare_usage_of_some(store, seed)?;
    compare_differences(store, state, seed)
}

/// Lists some range of objects, a few at a time.
fn compare_list(
    store: &mut Store<MemoryDisk>,
    state: &State,
    seed: &mut Seed,
) -> Result<(), String> {
    let (from, to) = (seed.below(OBJECTS), seed.below(OBJECTS));
    let (limit, end) = (1 + seed.below(3) as usize, key(u128::from(to)));
    let mut found = Vec::new();
    let mut next = Some(key(u128::from(from)));
    while let Some(start) = next {
        let answer = ask(store, StoreRequest::List { range: start..=end, limit })?;
        let Ok(StoreAnswer::Listed { objects, next: after }) = answer else {
            return Err(format!("a list was answered with {answer:?}"));
        };
        if objects.len() > limit || (after.is_some() && objects.len() < limit) {
            return Err(format!("{} objects in a list of {limit}", objects.len()));
        }
        found.extend(objects.into_iter().map(|object| object.key));
        next = after;
    }
    let exists = |object: &u64| state.get(object).is_some_and(|model| model.exists);
    let expected: Vec<ObjectKey> =
        (from..to + 1).filter(exists).map(|object| key(u128::from(object))).collect();
    if found == expected { Ok(()) } else { Err(format!("listed {found:?}, not {expected:?}")) }
}

/// What some objects alone have and what all others have is everything, and nothing twice.
fn compare_usage_of_some(store: &mut Store<MemoryDisk>, seed: &mut Seed) -> Result<(), String> {
    let mut count = |keys: Vec<ObjectKey>| {
        if keys.is_empty() {
            return Ok((0, 0));
        }
        match ask(store, StoreRequest::UsageOf { keys })? {
            Ok(StoreAnswer::Usage { units, unique, .. }) => Ok((units, unique)),
            other => Err(format!("a usage of some was answered with {other:?}")),
        }
    };
    let hidden =
        |at: ObjectKey, bits: u32| ObjectKey { pool: PoolId(at.pool.0 | bits << 30), ..at };
    let keys = (0..OBJECTS).map(|object| key(u128::from(object)));
    let keys = keys.flat_map(|key| [key, hidden(key, 2)]).chain([hidden(key(0), 3)]);
    let all: Vec<ObjectKey> = keys.collect();
    let (some, others): (Vec<_>, Vec<_>) = all.iter().partition(|_| seed.one_in(2));
    let (total, total_alone) = count(all.clone())?;
    let ((of_some, alone), (of_others, others_alone)) = (count(some)?, count(others)?);
    let is_right = total == total_alone
        && alone + of_others == total
        && others_alone + of_some == total
        && alone <= of_some;
    if is_right {
        return Ok(());
    }
    Err(format!(
        "{of_some} units, {alone} alone, others {of_others} and {others_alone}, of {total}"
    ))
}

fn compare_usage(store: &mut Store<MemoryDisk>, state: &State, alone: u64) -> Result<(), String> {
    let mut sum = hidden_units(store, key(0), 3)?;
    for object in 0..OBJECTS {
        sum += hidden_units(store, key(u128::from(object)), 2)?;
        let model = state.get(&object).cloned().unwrap_or_default();
        let at = key(u128::from(object));
        let answer = ask(store, StoreRequest::Usage { key: at })?;
        if !model.exists {
            if answer != Err(StoreRefusal::NotFound { key: at }) {
                return Err(format!("the usage of no object is {answer:?}"));
            }
            continue;
        }
        let Ok(StoreAnswer::Usage { units, unique, blocks }) = answer else {
            return Err(format!("a usage was answered with {answer:?}"));
        };
        sum += u64::from(unique);
        let places = |size: u32| model.sectors.keys().map(move |at| at / size).collect();
        let (in_units, in_blocks): (BTreeSet<u32>, BTreeSet<u32>) = (places(64), places(8));
        if (units as usize, blocks as usize) != (in_units.len(), in_blocks.len()) {
            return Err(format!(
                "object {object} has {units} units and {blocks} blocks, not {} and {}",
                in_units.len(),
                in_blocks.len()
            ));
        }
    }
    if sum == alone { Ok(()) } else { Err(format!("{sum} unique units, not {alone}")) }
}

/// Blocks that differ are named; those that both never had are not.
fn compare_differences(
    store: &mut Store<MemoryDisk>,
    state: &State,
    seed: &mut Seed,
) -> Result<(), String> {
    let (a, b) = (seed.below(OBJECTS), seed.below(OBJECTS));
    let request = StoreRequest::Compare { a: key(u128::from(a)), b: key(u128::from(b)) };
    let answer = ask(store, request)?;
    let Ok(StoreAnswer::Compared { ranges }) = answer else {
        return Err(format!("a comparison was answered with {answer:?}"));
    };
    if ranges.windows(2).any(|pair| pair[0].first + pair[0].count >= pair[1].first) {
        return Err(format!("ranges touch or are out of order: {ranges:?}"));
    }
    let named: BTreeSet<u32> =
        ranges.iter().flat_map(|range| range.first..range.first + range.count).collect();
    let sectors = |object: u64| state.get(&object).map(|model| model.sectors.clone());
    let (in_a, in_b) = (sectors(a).unwrap_or_default(), sectors(b).unwrap_or_default());
    let either: BTreeSet<u32> = in_a.keys().chain(in_b.keys()).copied().collect();
    let differing: BTreeSet<u32> =
        either.iter().filter(|at| in_a.get(at) != in_b.get(at)).map(|at| at / 8).collect();
    if let Some(block) = differing.difference(&named).next() {
        return Err(format!("{a} and {b} differ in block {block}, which is not named"));
    }
    let written: BTreeSet<u32> = either.iter().map(|at| at / 8).collect();
    if a == b && !named.is_empty() || !named.is_subset(&written) {
        return Err(format!("{a} and {b} cannot differ in all of {named:?}"));
    }
    Ok(())
}
