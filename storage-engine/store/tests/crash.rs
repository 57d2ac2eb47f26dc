// SPDX-License-Identifier: Apache-2.0
//! The crash rules, by exhaustion: generated histories, the power cut after every request that
//! the disk took or ended, with every subset of the volatile writes kept where they are few, and
//! writes torn at 512 bytes (at 4 KiB in every third history, as some disks promise).
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

use history::{Cuts, Mix, Plan, Tally};
use plinth_store::{Durability, Omit};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use support::{key, lay_out, settle};

/// For each durability.
const HISTORIES: u64 = 500;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Mostly short histories, in which few writes are volatile at a time, so that every subset of them
/// can be kept; and long ones now and then, for what only a full journal or disk shows.
fn plan(seed: u64, durability: Durability, atomic: u32) -> Plan {
    let is_long = seed.is_multiple_of(16);
    let steps = if is_long { 48 } else { 2 + usize::try_from(seed % 7).unwrap() };
    let cuts = if is_long { Cuts::SOME } else { Cuts::MANY };
    let mix = match seed % 5 {
        0 => Mix::Handover,
        1 | 2 if atomic >= 4096 => Mix::Overwrite,
        _ => Mix::Any,
    };
    Plan { seed, steps, durability, omit: Omit::Nothing, mix, cuts, atomic }
}

fn run(plan: Plan, tally: &mut Tally) -> Result<(), String> {
    let run = catch_unwind(AssertUnwindSafe(|| plan.run(tally)));
    run.unwrap_or_else(|_| Err(format!("seed {}: a panic", plan.seed)))
}

fn histories(durability: Durability, atomic: u32) {
    let first = number("PLINTH_SEED", 1);
    let count = number("PLINTH_HISTORIES", HISTORIES);
    let mut tally = Tally::default();
    for seed in first..first + count {
        run(plan(seed, durability, atomic), &mut tally).unwrap();
    }
    println!("{durability:?}: {tally:?}");
    if count >= HISTORIES {
        assert!(tally.histories >= HISTORIES && tally.cuts > 30 * count, "{tally:?}");
        assert!(tally.exhausted * 2 > tally.moments && tally.torn > 8 * count, "{tally:?}");
        assert!(tally.recoveries_cut > 4 * count && tally.checkpoints > count / 2, "{tally:?}");
        assert!(tally.acknowledged > 4 * count, "{tally:?}");
        assert!(tally.discards > count / 4, "{tally:?}");
        let is_in_place = atomic >= 4096;
        assert_eq!(tally.overwritten * 2 > count, is_in_place, "{tally:?}");
        assert_eq!(tally.adopted > count, is_in_place, "{tally:?}");
    }
}

#[test]
fn nothing_is_lost_or_torn_where_the_cache_is_volatile() {
    histories(Durability::Flush, 512);
}

#[test]
fn nothing_is_lost_or_torn_where_the_cache_is_protected() {
    histories(Durability::Device, 512);
}

#[test]
fn nothing_is_lost_where_blocks_are_overwritten_in_place_and_the_cache_is_volatile() {
    histories(Durability::Flush, 4096);
}

#[test]
fn nothing_is_lost_where_blocks_are_overwritten_in_place_and_the_cache_is_protected() {
    histories(Durability::Device, 4096);
}
