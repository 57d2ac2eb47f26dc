// SPDX-License-Identifier: Apache-2.0
//! Flows: what tells one from another, the table of compiled decisions, and the connections that
//! pairs of flows belong to.

mod connection;
mod doubt;
mod edit;
mod handed;
mod key;
mod mapping;
mod room;
mod table;
mod tcp;
#[cfg(test)]
mod tcp_tests;
#[cfg(test)]
mod tests;

pub(crate) use connection::{Connection, ConnectionIndex, Direction, Link, STATE_NAMES, Tracked};
pub(crate) use edit::{Edit, added, updated};
pub(crate) use handed::{Handed, RECORD as HANDED_RECORD};
pub(crate) use key::{Expected, FlowKey, FlowKind, Ingress, has_identifier, is_question};
pub(crate) use table::{
    Action, Entry, FlowTable, Found, Hashed, NoRoom, Route, Slot, Touched, Way, milliseconds,
};
pub(crate) use tcp::{Followed, Segment, Tcp};
