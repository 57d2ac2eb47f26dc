// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench`: builds what is measured, then lets `plinth-perf bench` do the rest.

use crate::shell;
use anyhow::{Result, bail};
use std::process::Command;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Handed to `plinth-perf bench`; `--help` there says what it takes.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    shell::step("build programs", "cargo", &["build", "--release", "--workspace", "--bins"])?;
    let status = Command::new(shell::programs().join("plinth-perf"))
        .arg("bench")
        .args(&options.rest)
        .current_dir(shell::root())
        .status()?;
    if !status.success() {
        bail!("plinth-perf bench ended with {status}");
    }
    Ok(())
}
