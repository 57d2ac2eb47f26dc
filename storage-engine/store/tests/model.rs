// SPDX-License-Identifier: Apache-2.0
//! The store against a slow obvious model: a map from sector to the number written there, in
//! which a clone is a copy.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

#[path = "support/history.rs"]
mod history;
#[path = "support/questions.rs"]
mod questions;
mod support;

use history::{Cuts, Mix, Plan, Tally};
use plinth_store::{Durability, Omit};

pub(crate) use support::{key, lay_out, settle};

#[test]
fn the_store_agrees_with_the_model() {
    let mut tally = Tally::default();
    for seed in 1..=60 {
        let durability = if seed % 2 == 0 { Durability::Flush } else { Durability::Device };
        let (omit, mix) = (Omit::Nothing, Mix::Any);
        let (cuts, atomic) = (Cuts::NONE, 512 << (seed % 2 * 3));
        let plan = Plan { seed, steps: 300, durability, omit, mix, cuts, atomic };
        plan.run_against_model(&mut tally).unwrap();
    }
    println!("{tally:?}");
    assert!(tally.acknowledged > 10_000 && tally.cuts > 500, "{tally:?}");
    assert!(tally.refused > 100 && tally.checkpoints > 50, "{tally:?}");
}
