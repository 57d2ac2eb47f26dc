// SPDX-License-Identifier: Apache-2.0
//! A mount for rescue, by exhaustion: at every cut of a history it reads right bytes or refuses.
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

const HISTORIES: u64 = 40;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn plan(seed: u64, atomic: u32) -> Plan {
    let durability = if seed.is_multiple_of(2) { Durability::Device } else { Durability::Flush };
    let is_long = seed.is_multiple_of(8);
    let steps = if is_long { 40 } else { 2 + usize::try_from(seed % 7).unwrap() };
    let cuts = if is_long { Cuts::SOME } else { Cuts::MANY };
    let mix = if atomic >= 4096 && !seed.is_multiple_of(3) { Mix::Overwrite } else { Mix::Any };
    Plan { seed, steps, durability, omit: Omit::Nothing, mix, cuts, atomic }
}

fn histories(atomic: u32) -> (u64, Tally) {
    let (first, count) = (number("PLINTH_SEED", 1), number("PLINTH_HISTORIES", HISTORIES));
    let mut tally = Tally::default();
    for seed in first..first + count {
        let plan = plan(seed, atomic);
        let run = catch_unwind(AssertUnwindSafe(|| plan.run_for_rescue(&mut tally)));
        run.unwrap_or_else(|_| Err(format!("seed {seed}: a panic"))).unwrap();
    }
    println!("{tally:?}");
    if count >= HISTORIES {
        assert!(tally.cuts > 20 * count && tally.rescued > 100 * count, "{tally:?}");
        assert!(tally.journals > count, "{tally:?}");
    }
    (count, tally)
}

#[test]
fn a_rescue_reads_what_is_right_or_refuses_it_where_everything_goes_to_new_places() {
    histories(512);
}

#[test]
fn a_rescue_takes_no_block_as_it_is_where_blocks_are_overwritten_in_place() {
    let (count, tally) = histories(4096);
    // What an ordinary mount takes.
    assert!(count < HISTORIES || tally.adopted > count, "{tally:?}");
}
