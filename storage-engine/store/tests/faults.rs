// SPDX-License-Identifier: Apache-2.0
//! The crash test is worth what it finds: each protection left out must make a history fail.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

#[path = "support/history.rs"]
mod history;
#[path = "support/questions.rs"]
mod questions;
mod support;

use history::{Cuts, Mix, Plan, Tally};
use plinth_store::{Durability, Omit};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use support::{key, lay_out, settle};

/// Histories after which a fault that was not found counts as overlooked.
const HISTORIES: u64 = 400;

/// Protections of overwrites in place, which are done where the disk does not tear blocks.
const OVERWRITES: [Omit; 8] = [
    Omit::Mark,
    Omit::MarkDurable,
    Omit::MarkAtCheckpoint,
    Omit::Adopt,
    Omit::OverwriteConfirm,
    Omit::OverwriteDeferred,
    Omit::OverwriteSerial,
    Omit::CloneSettled,
];

/// The first history that fails, and how.
fn first_failure(omit: Omit) -> Option<(u64, String)> {
    for seed in 1..=HISTORIES {
        for durability in [Durability::Flush, Durability::Device] {
            let steps = 12 + usize::try_from(seed % 4 * 12).ok()?;
            let atomic = if OVERWRITES.contains(&omit) { 4096 } else { 512 };
            let mix = match omit {
                _ if atomic == 4096 => Mix::Overwrite,
                Omit::ClearGuard | Omit::AloneGuard => Mix::Handover,
                _ => Mix::Any,
            };
            let plan = Plan { seed, steps, durability, omit, mix, cuts: Cuts::SOME, atomic };
            let mut tally = Tally::default();
            let run = catch_unwind(AssertUnwindSafe(|| plan.run(&mut tally)));
            match run.unwrap_or_else(|_| Err("a panic".to_owned())) {
                Ok(()) => {}
                Err(error) => return Some((seed, error)),
            }
        }
    }
    None
}

#[test]
fn every_protection_left_out_is_found() {
    // The store's own assertions are one way of finding a fault; their noise is not wanted.
    std::panic::set_hook(Box::new(|_| {}));
    let faults = [
        Omit::FlushBeforeAcknowledge,
        Omit::DataBeforeAcknowledge,
        Omit::Quarantine,
        Omit::ConfirmBeforeWriteBack,
        Omit::OwnersRecord,
        Omit::SharedOwnersRecord,
        Omit::Judge,
        Omit::WriteAhead,
        Omit::FlushBeforeSuperblock,
        Omit::FlushBeforeIndex,
        Omit::WriteBackBeforeCut,
        Omit::Redirect,
        Omit::ClearGuard,
        Omit::AloneGuard,
        Omit::ReplayDeferred,
        Omit::EarlierSteps,
        Omit::VersionRecord,
        Omit::VersionBase,
        Omit::VersionBaseRecord,
        Omit::KeysApart,
        Omit::DiscardConfirm,
        Omit::DiscardHold,
        Omit::WipeConfirm,
    ];
    let mut overlooked = Vec::new();
    for omit in faults.into_iter().chain(OVERWRITES) {
        match first_failure(omit) {
            Some((seed, error)) => {
                let words: String = error.chars().filter(|c| !"[]{}".contains(*c)).collect();
                let end = words.char_indices().rev().nth(160).map_or(0, |(at, _)| at);
                println!("{omit:?}: history {seed}: …{}", &words[end..]);
            }
            None => overlooked.push(omit),
        }
    }
    let _ = std::panic::take_hook();
    assert!(overlooked.is_empty(), "not found in {HISTORIES} histories: {overlooked:?}");
}
