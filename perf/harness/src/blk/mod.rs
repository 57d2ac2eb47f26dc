// SPDX-License-Identifier: Apache-2.0
//! `plinth-perf blk`: a vhost-user-blk client that measures or verifies a backend.
//!
//! ```text
//!   options ─▶ Disk (session + rings + slots) ─▶ engine: load ─▶ result
//!                                            └▶ engine: verify ─▶ result, or the place of a fault
//! ```

mod disk;
mod load;
mod model;
mod options;
mod stamp;
mod verify;

pub(crate) use load::LoadResult;
pub(crate) use options::Options;
pub(crate) use verify::VerifyResult;

use crate::machine::Circumstances;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What one run of `blk` writes as JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    pub circumstances: Circumstances,
    pub options: Options,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifyResult>,
}

impl Report {
    /// Whether everything that was asked for was served, and served rightly.
    pub(crate) fn is_good(&self) -> bool {
        let load = self.load.as_ref().is_none_or(|load| load.errors == 0);
        let verify = self.verify.as_ref().is_none_or(VerifyResult::is_good);
        load && verify
    }
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    options.check()?;
    let circumstances = Circumstances::before();
    let connect = |socket: &PathBuf| disk::Disk::connect(options, socket);
    let mut disks = options.socket.iter().map(connect).collect::<Result<Vec<_>>>()?;
    let (mut load, mut verify) = (None, None);
    if options.verify {
        verify = Some(verify::run(&mut disks[0], options)?);
    } else {
        load = Some(load::run(&mut disks, options)?);
    }
    Ok(Report { circumstances: circumstances.after(), options: options.clone(), load, verify })
}
