// SPDX-License-Identifier: Apache-2.0
//! Each protection of a move is left out once, and the simulation must notice.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use plinth_span::Omit;
use support::{Plan, live, versions_of_one_made_anew};

/// Lives until a fault is noticed, at most so many.
const LIVES: u64 = 60;

fn is_noticed(omit: Omit) -> bool {
    let noticed = (1..=LIVES).find_map(|seed| {
        let disks = 2 + (seed % 2) as u32;
        let (has_cuts, has_failures) = (true, false);
        let plan = Plan { seed, steps: 2000, disks, workers: 1, has_cuts, has_failures, omit };
        live(plan).err().map(|why| (seed, why))
    });
    println!("{omit:?}: {noticed:?}");
    noticed.is_some()
}

#[test]
fn a_change_that_is_not_copied_again_is_noticed() {
    assert!(is_noticed(Omit::Dirt));
}

#[test]
fn a_group_that_is_not_held_is_noticed() {
    assert!(is_noticed(Omit::Hold));
}

#[test]
fn a_source_cleared_before_the_switch_is_durable_is_noticed() {
    assert!(is_noticed(Omit::SwitchBeforeClear));
}

#[test]
fn a_target_that_is_not_cleared_is_noticed() {
    assert!(is_noticed(Omit::ClearTarget));
}

#[test]
fn a_disk_that_is_not_swept_is_noticed() {
    assert!(is_noticed(Omit::Sweep));
}

#[test]
fn keys_that_are_not_copied_are_noticed() {
    assert!(is_noticed(Omit::Keys));
}

#[test]
fn versions_that_do_not_come_along_are_noticed() {
    assert!(is_noticed(Omit::Versions));
}

#[test]
fn versions_rise_also_of_an_object_that_was_removed_before_its_group_moved() {
    let (removed, made) = versions_of_one_made_anew(Omit::Nothing).unwrap();
    assert!(made > removed, "{made:#x} after {removed:#x}");
    let (removed, made) = versions_of_one_made_anew(Omit::LiftVersions).unwrap();
    assert!(made < removed, "a target that is not lifted has its own: {made:#x} {removed:#x}");
}

#[test]
fn a_log_that_is_not_copied_again_is_noticed() {
    assert!(is_noticed(Omit::Log));
}

#[test]
fn a_log_that_is_not_cleared_is_noticed() {
    assert!(is_noticed(Omit::ClearLog));
}

#[test]
fn a_relative_that_is_not_copied_again_is_noticed() {
    assert!(is_noticed(Omit::Relatives));
}
