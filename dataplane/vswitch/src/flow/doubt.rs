// SPDX-License-Identifier: Apache-2.0
//! Which decisions hold when another configuration has come into force.

use super::table::{Entry, FlowTable};
use super::{Expected, Link};
use crate::stamps::{Stamps, is_newer_than};
use std::sync::Arc;

/// What the configuration in force says of older decisions.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// Everything that was judged before this generation is to be judged again.
    since: u32,
    stamps: Arc<Stamps>,
    /// What is added to the number of a snapshot to make it a generation.
    offset: u32,
}

impl FlowTable {
    /// Puts every entry in doubt.
    #[cfg(test)]
    pub(crate) fn next_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.doubt.since = self.generation;
    }

    /// Puts in doubt what a configuration concerns that comes into force. Of one that was not made
    /// of the one before it nobody knows what that is.
    pub(crate) fn install(&mut self, stamps: &Arc<Stamps>) {
        let Doubt { since, stamps: before, offset } = &mut self.doubt;
        if stamps.follow(before) {
            self.generation = stamps.number().wrapping_add(*offset);
        } else {
            self.generation = self.generation.wrapping_add(1);
            *since = self.generation;
            *offset = self.generation.wrapping_sub(stamps.number());
        }
        // The one before is kept by its snapshot, so that nothing is freed here.
        *before = Arc::clone(stamps);
    }

    /// Of the configuration in force.
    pub(crate) const fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether an entry's decision is as the configuration in force would make it.
    #[inline]
    pub(super) fn is_current(&self, entry: &Entry) -> bool {
        entry.generation == self.generation || !self.is_in_doubt(entry)
    }

    /// Whether an entry's decision is that of the configuration in force.
    pub(crate) fn is_judged(&self, entry: &Entry) -> bool {
        entry.expected != Expected::NOTHING && self.is_current(entry)
    }

    /// A packet's flow is asked about once after each installation.
    #[inline(never)]
    fn is_in_doubt(&self, entry: &Entry) -> bool {
        let Doubt { since, ref stamps, offset } = self.doubt;
        if is_newer_than(since, entry.generation) {
            return true;
        }
        let judged = entry.generation.wrapping_sub(offset);
        if stamps.concern(judged, &entry.key, &entry.expected) {
            return true;
        }
        let is_translated = entry.is_translated && entry.link != Link::NONE;
        is_translated && stamps.concern_ends(judged, &self.edit(entry.link).applied(&entry.key))
    }
}
