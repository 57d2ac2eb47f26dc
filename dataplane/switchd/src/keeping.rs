// SPDX-License-Identifier: Apache-2.0
//! The configuration in force on disk: a whole one, and a journal of the changes since.
//!
//! ```text
//!  switchd.json       ├─ whole, number 5 ─┤          replaced by a rename
//!  switchd.journal    │ 5 to 6 │ 6 to 7 │ …          appended to, emptied after the rename
//! ```
//!
//! A change is made durable by as many bytes as it has. A journal that has outgrown the whole file
//! is followed by a new whole one. A cut between the two leaves changes that the whole file has:
//! they are passed over. `docs/formats/switch-journal.md` lists all the cuts.

use plinth_ids::Epoch;
use plinth_manage::{Found, Journal, KeepError, Kept, LINE_LENGTH_MAX, LoadError};
use plinth_obs::Chain;
use plinth_switch_api::{Change, SwitchConfig};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tracing::field::display;

/// A small configuration is not written anew every few changes.
const JOURNAL_MIN: u64 = 1 << 20;
/// With one more record it can still be read back.
const JOURNAL_MAX: u64 = LINE_LENGTH_MAX as u64 / 2;

#[derive(Debug)]
pub(crate) struct Keeping {
    whole: Kept<SwitchConfig>,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    journal: Journal<Change>,
    /// To which the files lead; `None`: to none, or nobody knows.
    epoch: Option<Epoch>,
    /// Of the whole file, in bytes.
    whole_length: u64,
}

impl Keeping {
    /// Reads what was kept in a folder. Nothing is written yet, so that a process beside this one
    /// can go on with the files.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Option<SwitchConfig>), LoadError> {
        let whole = Kept::at(folder.join("switchd.json"));
        let (mut journal, Found { records, torn }) = Journal::open(folder.join("switchd.journal"))?;
        let config: Option<SwitchConfig> = whole.load()?;
        if torn > 0 {
            tracing::warn!(bytes = torn, "the journal ends with what is no change: dropped");
        }
        let config = config.map(|config| {
            let (changes, ends): (Vec<Change>, Vec<u64>) = records.into_iter().unzip();
            let replayed = config.replay(&changes);
            if let Some(misfit) = replayed.misfit {
                let (left, err) = (changes.len() - replayed.taken, display(Chain(&misfit)));
                tracing::warn!(left, err, "the journal ends with what does not fit: dropped");
                journal.end_at(replayed.taken.checked_sub(1).map_or(0, |last| ends[last]));
            }
            replayed.config
        });
        if config.is_none() {
            journal.end_at(0);
        }
        let epoch = config.as_ref().map(|config| config.epoch);
        let mut books = Books { journal, epoch, whole_length: 0 };
        books.measure(&whole);
        Ok((Self { whole, books: Mutex::new(books) }, config))
    }

    /// Keeps a whole configuration.
    pub(crate) fn save(&self, config: &SwitchConfig) -> Result<(), KeepError> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        self.save_whole(&mut books, config)
    }

    /// Keeps a change, which makes `config`.
    pub(crate) fn change(
        &self,
        change: &Change,
        config: impl FnOnce() -> SwitchConfig,
    ) -> Result<(), KeepError> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        // A change that was kept and then came to nothing has led elsewhere.
        let is_next = books.epoch == Some(change.from);
        let room = books.whole_length.clamp(JOURNAL_MIN, JOURNAL_MAX);
        if !is_next || books.journal.length() > room {
            return self.save_whole(&mut books, &config());
        }
        books.journal.append(change)?;
        books.epoch = Some(change.to);
        Ok(())
    }

    fn save_whole(&self, books: &mut Books, config: &SwitchConfig) -> Result<(), KeepError> {
        // Changes to a greater number would not be passed over after it.
        if books.epoch.take().is_some_and(|kept| config.epoch < kept) {
            books.journal.clear()?;
        }
        self.whole.save(config)?;
        books.epoch = Some(config.epoch);
        books.measure(&self.whole);
        if books.journal.length() > 0
            && let Err(error) = books.journal.clear()
        {
            // They are passed over.
            tracing::warn!(err = display(Chain(&error)), "the journal keeps changes of old");
        }
        Ok(())
    }
}

impl Books {
    fn measure(&mut self, whole: &Kept<SwitchConfig>) {
        self.whole_length = std::fs::metadata(whole.path()).map_or(0, |file| file.len());
    }
}

#[cfg(test)]
mod tests;
