// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The operator's command line: arguments in, one request to the service, a table or JSON out.
//!
//! Nothing is decided here. Arguments become a request ([`args`]), the service answers, and
//! [`output`] shows the answer. `cluster init` and `node join` are the two verbs that work on
//! this machine's files.

pub mod args;
mod capture;
mod console;
mod failure;
mod import;
mod init;
mod join;
mod net;
pub mod output;
mod pcapng;
mod run;
mod sample;
pub mod table;
mod text;

pub use failure::{Failure, exit};
pub use run::run;
