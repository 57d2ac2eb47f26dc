// SPDX-License-Identifier: Apache-2.0
//! Random lives of pools against the obvious model; `PLINTH_LIVES=n PLINTH_SEED=n` for more.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
#![allow(clippy::disallowed_methods, reason = "who runs the test tells it what to do")]

mod support;

use plinth_span::Omit;
use support::{Plan, live};

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn plan(seed: u64) -> Plan {
    let disks = 1 + (seed % 3) as u32;
    let omit = Omit::Nothing;
    Plan { seed, steps: 3000, disks, workers: 1, has_cuts: true, has_failures: true, omit }
}

fn all(plan: impl Fn(u64) -> Plan) {
    let (first, lives) = (number("PLINTH_SEED", 1), number("PLINTH_LIVES", 12));
    let (mut moves, mut cuts) = (0, 0);
    for seed in first..first + lives {
        let (moved, cut) = live(plan(seed)).unwrap();
        moves += moved;
        cuts += cut;
    }
    println!("{lives} lives: {moves} moves, {cuts} cuts");
    assert!(moves >= lives, "groups must have moved: {moves}");
}

#[test]
fn whatever_happens_to_disks_every_byte_is_what_was_written() {
    all(plan);
}

#[test]
fn without_cuts_reads_see_exactly_what_was_written_before() {
    all(|seed| Plan { has_cuts: false, has_failures: false, ..plan(seed) });
}

#[test]
fn disks_of_other_workers_behave_as_those_at_hand() {
    all(|seed| Plan { workers: 2 + (seed % 2) as u32, ..plan(seed) });
}

#[test]
fn without_cuts_reads_through_rings_see_exactly_what_was_written_before() {
    all(|seed| Plan { workers: 3, has_cuts: false, has_failures: false, ..plan(seed) });
}
