// SPDX-License-Identifier: Apache-2.0
//! `plinth-perf net`: sends and receives packets through one or two virtio-user ports.
//!
//! ```text
//!   generator ─▶ port a ─▶ backend (a switch) ─▶ port b ─▶ counted, timed
//!            ◀─            ◀─ with --both ─◀              ◀─
//! ```
//!
//! The ports are DPDK's `net_virtio_user`, so the rings are a guest's rings, written by code
//! that is not ours. One thread sends and receives: what it costs is part of every figure, and
//! is the same for every backend.

mod engine;
mod frame;
mod options;
mod tunnel;

pub(crate) use engine::NetResult;
pub(crate) use frame::Template;
pub(crate) use options::Options;

use crate::machine::Circumstances;
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// What one run of `net` writes as JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    pub circumstances: Circumstances,
    pub options: Options,
    /// What packet memory was made of.
    pub memory: String,
    pub result: NetResult,
}

impl Report {
    /// Whether anything came through at all, and nothing that was not sent.
    pub(crate) const fn is_good(&self) -> bool {
        self.result.received > 0 && self.result.foreign == 0
    }
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    options.check()?;
    let circumstances = Circumstances::before();
    let (memory, result) = engine::run(options)?;
    let options = options.clone();
    Ok(Report { circumstances: circumstances.after(), options, memory, result })
}
