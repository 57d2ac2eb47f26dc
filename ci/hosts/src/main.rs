// SPDX-License-Identifier: Apache-2.0
//! Tests of real daemons in network namespaces.

use plinth_stage::runner::{self, Test};
use std::process::ExitCode;

const TESTS: &[Test] = &[];

fn main() -> ExitCode {
    runner::main(TESTS)
}
