// SPDX-License-Identifier: Apache-2.0
//! Flows: what tells one from another, and the table of compiled decisions.

mod key;
mod table;

pub(crate) use key::{FlowKey, FlowKind};
pub(crate) use table::{Action, Entry, FlowTable, Insertion, milliseconds};
