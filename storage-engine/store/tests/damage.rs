// SPDX-License-Identifier: Apache-2.0
//! A disk that spoils, loses and mixes up blocks: each is right or refused, and nothing else is.
//!
//! `PLINTH_HISTORIES=n` runs that many histories, `PLINTH_SEED=n` begins with that one.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
#![allow(clippy::disallowed_methods, reason = "who runs the test tells it what to do")]

#[path = "support/history.rs"]
mod history;
#[path = "support/questions.rs"]
mod questions;
mod support;

use history::{Cuts, Mix, Plan, Tally};
use plinth_store::{Durability, Omit};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use support::{key, lay_out, settle};

const HISTORIES: u64 = 3000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn run(seed: u64, omit: Omit, tally: &mut Tally) -> Result<(), String> {
    let mix = if seed.is_multiple_of(3) { Mix::Overwrite } else { Mix::Any };
    let atomic = if seed.is_multiple_of(2) { 4096 } else { 512 };
    let (durability, cuts) = (Durability::Flush, Cuts::NONE);
    let steps = 12 + usize::try_from(seed % 5 * 9).unwrap();
    let plan = Plan { seed, steps, durability, omit, mix, cuts, atomic };
    let run = catch_unwind(AssertUnwindSafe(|| plan.run_with_damage(tally)));
    run.unwrap_or_else(|_| Err(format!("seed {seed}: a panic")))
}

#[test]
fn what_a_bad_disk_has_spoiled_is_refused_and_nothing_else_is_wrong() {
    let (first, count) = (number("PLINTH_SEED", 1), number("PLINTH_HISTORIES", HISTORIES));
    let mut tally = Tally::default();
    for seed in first..first + count {
        run(seed, Omit::Nothing, &mut tally).unwrap();
    }
    println!("{tally:?}");
    if count >= HISTORIES {
        assert!(tally.damaged > count && tally.acknowledged > 10 * count, "{tally:?}");
        assert!(tally.tables > count / 4 && tally.journals > count / 60, "{tally:?}");
        assert!(tally.rescued > count, "{tally:?}");
        assert!(tally.bad_blocks > count / 16 && tally.lost_maps > count / 2, "{tally:?}");
    }
}

#[test]
fn each_check_left_out_is_found() {
    for omit in [
        Omit::CheckKept,
        Omit::MapAddress,
        Omit::MapAge,
        Omit::MarksEnd,
        Omit::Twins,
        Omit::JournalVouched,
        Omit::VouchWhenQuiet,
    ] {
        let fails = |&seed: &u64| run(seed, omit, &mut Tally::default()).is_err();
        let found = (1..HISTORIES).find(fails);
        println!("{omit:?}: history {found:?}");
        assert!(found.is_some(), "{omit:?} is not found in {HISTORIES} histories");
    }
}
