// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! Fuzzing on stable Rust: plain functions, a seeded mutator, a bounded runner.
//!
//! ```text
//!   seeds + corpus/<target>/ ─▶ Mutator(seed) ─▶ target(&[u8]) ─▶ panic? shrink, save, report
//! ```
//!
//! A target is `fn(&[u8])` that must not panic, whatever the bytes: a panic is the finding. There
//! is no coverage feedback, so what a target reaches depends on its seeds: they are valid
//! inputs, made by the same code that the product uses, from which mutation departs. The same
//! seed gives the same inputs in the same order; a finding is repeated with `--seed`, or from
//! the file that was saved under `target/fuzz/`. A found input that mattered becomes a unit
//! test beside the code it broke, and a file in `ci/fuzz/corpus/<target>/`.

pub mod answers;
pub mod mutate;
pub mod runner;
pub mod streams;
pub mod targets;
