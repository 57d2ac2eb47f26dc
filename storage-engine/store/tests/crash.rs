// SPDX-License-Identifier: Apache-2.0
//! The crash rules, by exhaustion: generated histories, the power cut after every request that
//! the disk ended, several legal outcomes each.
//!
//! `PLINTH_HISTORIES=n` runs that many histories instead of those that CI has time for,
//! `PLINTH_SEED=n` begins with that one. A failure names its seed.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
#![allow(clippy::disallowed_methods, reason = "who runs the test tells it what to do")]

#[path = "support/history.rs"]
mod history;
#[path = "support/questions.rs"]
mod questions;
mod support;

use history::{Mix, Plan, Tally};
use plinth_store::{Durability, Omit};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use support::{key, lay_out, settle};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn plan(seed: u64, durability: Durability) -> Plan {
    let steps = 12 + usize::try_from(seed % 4 * 12).unwrap();
    let mix = if seed.is_multiple_of(5) { Mix::Handover } else { Mix::Any };
    Plan { seed, steps, durability, omit: Omit::Nothing, mix, cuts: 3 }
}

fn run(plan: Plan, tally: &mut Tally) -> Result<(), String> {
    let run = catch_unwind(AssertUnwindSafe(|| plan.run(tally)));
    run.unwrap_or_else(|_| Err(format!("seed {}: a panic", plan.seed)))
}

fn histories(durability: Durability) {
    let first = number("PLINTH_SEED", 1);
    let count = number("PLINTH_HISTORIES", 200);
    let mut tally = Tally::default();
    for seed in first..first + count {
        run(plan(seed, durability), &mut tally).unwrap();
    }
    println!("{count} histories: {tally:?}");
    if count >= 200 {
        assert!(tally.cuts > 20_000, "{tally:?}");
        assert!(tally.recoveries_cut > 4000 && tally.checkpoints > 200, "{tally:?}");
        assert!(tally.acknowledged > 4000, "{tally:?}");
    }
}

#[test]
fn nothing_is_lost_or_torn_where_the_cache_is_volatile() {
    histories(Durability::Flush);
}

#[test]
fn nothing_is_lost_or_torn_where_the_cache_is_protected() {
    histories(Durability::Device);
}
