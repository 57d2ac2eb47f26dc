// SPDX-License-Identifier: Apache-2.0
//! Whether what was found after a cut is explained by a prefix of each object's steps.

use super::{Change, LOG, Model, OBJECTS, Progress, Step, overwrites, version_after};
use std::collections::BTreeMap;

/// Finds a prefix of each object's steps that explains what was found.
pub(super) fn explain(
    steps: &[Step],
    refused: &[bool],
    progress: &Progress,
    found: &BTreeMap<u64, (Model, u64)>,
    is_in_place: bool,
) -> Result<(), String> {
    // The states of every object after each of its steps. A clone's source is as it is at that
    // time in the order of submission: requests on one object are carried out in that order.
    let mut state: BTreeMap<u64, Model> = BTreeMap::new();
    let mut states: BTreeMap<u64, Vec<(usize, Model)>> = BTreeMap::new();
    for object in (0..OBJECTS).chain([LOG]) {
        states.insert(object, vec![(usize::MAX, Model::default())]);
    }
    for (index, step) in steps.iter().enumerate().take(progress.submitted) {
        if refused[index] {
            continue;
        }
        for change in step {
            change.apply(&mut state);
            let object = change.object();
            let after = state.get(&object).cloned().unwrap_or_default();
            let list = states.entry(object).or_default();
            // A transaction's changes of one object are one change: nothing between is legal.
            list.retain(|(other, _)| *other != index);
            list.push((index, after));
        }
    }
    let mut choices: Vec<(u64, Vec<usize>)> = Vec::new();
    for (object, list) in &states {
        let acknowledged =
            |&(index, _): &(usize, Model)| index != usize::MAX && progress.acknowledged[index];
        let least = list.iter().rposition(acknowledged).unwrap_or(0);
        let (there, version) = &found[object];
        let has_version = |index: usize| match (there.exists, progress.versions.get(index)) {
            (false, _) => *version == 0,
            // Nobody was told the version of a step that was not acknowledged.
            (true, None | Some(0)) => *version != 0,
            (true, Some(given)) => version_after(&steps[index], *object, *given) == *version,
        };
        let may_be_cut = |index: usize| {
            let is_single = matches!(steps[index][..], [Change::Write { .. }]);
            is_in_place && is_single && !progress.acknowledged[index]
        };
        let mut fits: Vec<usize> = (least..list.len())
            .filter(|&at| overwrites::fits(&list[least..], at - least, there, may_be_cut))
            .collect();
        if fits.is_empty() {
            return Err(misfit(*object, &list[least..], there));
        }
        fits.retain(|&at| has_version(list[at].0));
        if fits.is_empty() {
            return Err(format!("object {object} has version {version:#x}, which is no step's"));
        }
        choices.push((*object, fits));
    }
    if is_consistent(&choices, &states, steps, &mut BTreeMap::new()) {
        Ok(())
    } else {
        Err("a transaction is in one object and not in another".to_owned())
    }
}

/// Says in a few words how an object differs from the nearest state it could be in.
pub(super) fn misfit(object: u64, list: &[(usize, Model)], found: &Model) -> String {
    let differences = |model: &Model| {
        let sectors = model.sectors.keys().chain(found.sectors.keys());
        let at = |of: &Model, sector: &u32| of.sectors.get(sector).copied();
        let wrong = sectors.filter(|sector| at(model, sector) != at(found, sector));
        let mut words: Vec<String> = wrong
            .map(|s| format!("sector {s}: {:?} and not {:?}", at(found, s), at(model, s)))
            .collect();
        let names = model.keys.keys().chain(found.keys.keys());
        let at = |of: &Model, name: &u64| of.keys.get(name).copied();
        let wrong = names.filter(|name| at(model, name) != at(found, name));
        words.extend(
            wrong.map(|n| format!("key {n}: {:?} and not {:?}", at(found, n), at(model, n))),
        );
        words.dedup();
        words
    };
    let Some((step, model)) = list.iter().min_by_key(|(_, model)| differences(model).len()) else {
        return format!("object {object} has no legal state");
    };
    let mut words = differences(model);
    words.truncate(6);
    let (exists, attribute) = (found.exists, found.attribute);
    format!(
        "object {object} is in no legal state; nearest after step {step}: {words:?}; there: \
         {exists} and not {}; attribute {attribute:?} and not {:?}",
        model.exists, model.attribute
    )
}

/// Whether the chosen prefixes can be combined so that every transaction is in or out as a whole.
fn is_consistent(
    choices: &[(u64, Vec<usize>)],
    states: &BTreeMap<u64, Vec<(usize, Model)>>,
    steps: &[Step],
    chosen: &mut BTreeMap<u64, usize>,
) -> bool {
    let Some(((object, fits), rest)) = choices.split_first() else { return true };
    for &fit in fits {
        chosen.insert(*object, fit);
        let agrees =
            steps.iter().enumerate().filter(|(_, step)| step.len() > 1).all(|(index, step)| {
                let mut is_in = step.iter().filter_map(|change| {
                    let object = change.object();
                    let at = states[&object].iter().position(|(step, _)| *step == index)?;
                    Some(*chosen.get(&object)? >= at)
                });
                let first = is_in.next();
                is_in.all(|other| Some(other) == first)
            });
        if agrees && is_consistent(rest, states, steps, chosen) {
            return true;
        }
    }
    chosen.remove(object);
    false
}
