// SPDX-License-Identifier: Apache-2.0
//! The entry that vouches for the last ones.
//!
//! Damage to an entry is told from the journal's end by a later entry which says that it was
//! durable (`scan.rs`). The last entries before a quiet time have none behind them: a disk that
//! lost one would have taken an acknowledged change along without a word. So an entry without
//! records goes behind them after [`QUIET`], one page for however many, and itself needs no other:
//!
//! ```text
//!   changes ── all durable ──▶ quiet ── QUIET passes ──▶ an entry that names them ──▶ at rest
//!                                └── another change, which vouches for them ──▶ quiet anew
//! ```

use crate::disk::Disk;
use crate::store::{Omit, Store, StoreState};
use plinth_ids::Moment;
use std::time::Duration;

/// How long nothing must have changed: a stream of changes vouches for itself.
const QUIET: Duration = Duration::from_secs(1);

/// Acknowledged changes of which only their own entries tell.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quiet {
    /// The last entry with a change, and since when there was no other; if there is something to
    /// vouch for.
    since: Option<(u64, Moment)>,
    /// The entry that vouches was asked for.
    is_asked: bool,
}

impl<D: Disk> Store<D> {
    /// Asks for an entry behind the last changes when it is time. One comparison a round where
    /// changes go on or nothing is there to vouch for.
    pub(crate) fn vouch_when_quiet(&mut self) {
        let journal = &self.journal;
        let last = journal.changed_seq;
        if journal.confirmed_seq >= last
            || journal.durable_seq < last
            || last < journal.cut_seq
            || self.state != StoreState::Writable
            || self.options.omit == Omit::VouchWhenQuiet
        {
            self.quiet = Quiet::default();
            return;
        }
        match self.quiet.since {
            Some((seq, since)) if seq == last => {
                if !self.quiet.is_asked && self.now.saturating_sub(since) >= QUIET {
                    self.quiet.is_asked = true;
                    self.wants_confirm = true;
                }
            }
            _ => self.quiet = Quiet { since: Some((last, self.now)), is_asked: false },
        }
    }

    /// When the store must be polled to vouch for the last changes.
    pub(crate) fn quiet_deadline(&self) -> Option<Moment> {
        let (_, since) = self.quiet.since.filter(|_| !self.quiet.is_asked)?;
        Some(since.saturating_add(QUIET))
    }
}
