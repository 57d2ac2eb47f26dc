// SPDX-License-Identifier: Apache-2.0
//! Random operations on volumes, their snapshots and clones, several at once, with restarts and
//! power cuts at any point, against a slow model. Sharing must survive all of it.
//!
//! `PLINTH_HISTORIES=n PLINTH_SEED=n cargo test --release -p plinth-volume --test model` runs any
//! number of histories.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
#![allow(clippy::disallowed_methods, reason = "how many histories is asked of the environment")]

mod support;

use plinth_volume::Omit;
use support::{Tally, World};

/// Batches of a history.
const STEPS: u64 = 120;

fn history(seed: u64, omit: Omit) -> Result<Tally, String> {
    let fail = |step: u64| move |what: String| format!("seed {seed}, step {step}: {what}");
    let mut world = World::new(seed, omit).map_err(fail(0))?;
    for step in 0..STEPS {
        world.step().map_err(fail(step))?;
        if world.one_in(12) {
            world.restart().map_err(fail(step))?;
        }
        if world.one_in(8) {
            world.compare().map_err(fail(step))?;
        }
    }
    world.compare().map_err(fail(STEPS))?;
    world.wind_up().map_err(fail(STEPS + 1))?;
    Ok(world.tally)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn volumes_snapshots_and_clones_are_what_the_model_says() {
    let (histories, first) = (number("PLINTH_HISTORIES", 40), number("PLINTH_SEED", 1));
    let mut sum = Tally::default();
    for seed in first..first + histories {
        let tally = history(seed, Omit::Nothing).unwrap();
        sum.done += tally.done;
        sum.refused += tally.refused;
        sum.cuts += tally.cuts;
        sum.cut_off += tally.cut_off;
        sum.restarts += tally.restarts;
        sum.freed += tally.freed;
        sum.cleared += tally.cleared;
        sum.diffs += tally.diffs;
    }
    // Each of these would be zero if a part of the test did nothing.
    let parts = [sum.done / 50, sum.refused, sum.cuts / 10, sum.cut_off, sum.restarts, sum.diffs];
    assert!(parts.into_iter().all(|part| part > histories), "{sum:?}");
    assert!(sum.freed > histories / 4 && sum.cleared > histories / 4, "{sum:?}");
    println!("{sum:?}");
}

/// Each protection is left out once, and the model must notice.
#[test]
fn every_fault_is_found() {
    for omit in Omit::ALL {
        let found = (1..=200).find_map(|seed| history(seed, omit).err().map(|what| (seed, what)));
        assert!(found.is_some(), "{omit:?} was not noticed in 200 histories");
    }
}
