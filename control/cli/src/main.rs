// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! plinth.

use clap::Parser;

fn main() {
    let arguments = plinth_cli::args::Arguments::parse();
    let code = plinth_cli::run(arguments);
    // Standard input may have a thread that waits for it for ever; returning would wait for that.
    std::process::exit(i32::from(code));
}
