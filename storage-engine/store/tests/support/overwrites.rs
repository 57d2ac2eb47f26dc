// SPDX-License-Identifier: Apache-2.0
//! Workloads for overwrites in place, and what a crash may leave of them.
//!
//! A single write that was not acknowledged may be there block by block, whatever became of its
//! record and of writes beside it: each block is the old or the new one. Everything else keeps
//! its order: what an object is beside such blocks is what some prefix of its steps made it.

use super::{Change, Model, OBJECTS, Step};
use plinth_disks::memory::Seed;
use std::collections::BTreeMap;

const SECTORS_PER_BLOCK: u32 = 8;

/// The sectors of one block, as far as they were written.
fn block(model: &Model, number: u32) -> BTreeMap<u32, u64> {
    let first = number * SECTORS_PER_BLOCK;
    let sectors = model.sectors.range(first..first + SECTORS_PER_BLOCK);
    sectors.map(|(&sector, &value)| (sector, value)).collect()
}

/// Whether `found` is the state `at` of the list, but for blocks that writes which may be cut
/// (`may_be_cut`, asked with the step's number) left old or new.
pub(super) fn fits(
    list: &[(usize, Model)],
    at: usize,
    found: &Model,
    may_be_cut: impl Fn(usize) -> bool,
) -> bool {
    let state = &list[at].1;
    if state == found {
        return true;
    }
    if (state.exists, state.attribute) != (found.exists, found.attribute) {
        return false;
    }
    let all = list.iter().map(|(_, model)| model).chain([found]);
    let mut numbers: Vec<u32> = all
        .flat_map(|model| model.sectors.keys().map(|sector| sector / SECTORS_PER_BLOCK))
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.into_iter().all(|number| {
        let wanted = block(found, number);
        let is_at = |place: usize| block(&list[place].1, number) == wanted;
        // From one state to the next the block stays as it is, or a write that may be cut changes it.
        let joins = |later: usize| {
            block(&list[later - 1].1, number) == block(&list[later].1, number)
                || may_be_cut(list[later].0)
        };
        let first = (1..=at).rev().take_while(|&later| joins(later)).last();
        let first = first.map_or(at, |later| later - 1);
        let last = (at + 1..list.len()).take_while(|&later| joins(later)).last().unwrap_or(at);
        (first..=last).any(is_at)
    })
}

/// Two objects are filled; then few blocks are written over and over, with transactions, holes,
/// clones and removals between.
pub(super) fn generate(seed: &mut Seed, count: usize) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for object in 0..2 {
        steps.push(vec![Change::Write { object, sector: 0, count: 128, value: object + 1 }]);
    }
    while steps.len() < count {
        let value = steps.len() as u64 * 100 + 1;
        let object = seed.below(2);
        let sector = 8 * seed.below(6) as u32 + if seed.one_in(4) { 60 } else { 0 };
        let step = match seed.below(24) {
            0 => vec![Change::Zero { object, sector: sector / 8 * 8, count: 8 }],
            1 => vec![Change::Clone { source: object, target: 2 + seed.below(OBJECTS - 2) }],
            2 => vec![Change::Remove { object: 2 + seed.below(OBJECTS - 2) }],
            3 | 4 => {
                // A transaction goes through the journal, over the same blocks.
                let write = Change::Write { object, sector, count: 8, value };
                vec![write, Change::Attribute { object: 4, value }]
            }
            5 => vec![Change::Clone { source: object, target: 1 - object }],
            _ => {
                let length = if seed.one_in(3) { 3 + seed.below(20) as u32 } else { 8 };
                vec![Change::Write { object, sector, count: length, value }]
            }
        };
        steps.push(step);
    }
    steps
}
