// SPDX-License-Identifier: Apache-2.0
//! The registry's twin for tests: nothing survives it, and it can be told to fail.

use crate::{CommitError, Entry, Listing, Registry, Revision, StorageError, Transaction};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

#[derive(Debug, Default)]
pub struct MemoryRegistry {
    state: Mutex<State>,
    revision: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<String, (Revision, Vec<u8>)>,
    revision: Revision,
    /// Commits that may still succeed; `None` is any number.
    commits_left: Option<u64>,
}

impl MemoryRegistry {
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets this many more commits succeed; later ones fail and change nothing.
    pub fn fail_after(&self, commits: u64) {
        self.state().commits_left = Some(commits);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is made whole or not at all, so a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry for MemoryRegistry {
    fn get(&self, key: &str) -> Result<Option<Entry>, StorageError> {
        let state = self.state();
        Ok(state.entries.get(key).map(|(revision, value)| Entry {
            key: key.to_owned(),
            value: value.clone(),
            revision: *revision,
        }))
    }

    fn list(&self, prefix: &str) -> Result<Listing, StorageError> {
        let state = self.state();
        let entries = state
            .entries
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, (revision, value))| Entry {
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
            })
            .collect();
        Ok(Listing { revision: state.revision, entries })
    }

    fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        let mut state = self.state();
        for (key, expected) in transaction.compares {
            let found = state.entries.get(&key).map_or(Revision(0), |(revision, _)| *revision);
            if found != expected {
                return Err(CommitError::Conflict { key, expected, found });
            }
        }
        match &mut state.commits_left {
            Some(0) => {
                let fault = std::io::Error::other("told to fail");
                return Err(CommitError::Storage(Box::new(redb::Error::Io(fault))));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let revision = Revision(state.revision.0 + 1);
        state.revision = revision;
        for (key, value) in transaction.writes {
            match value {
                Some(value) => drop(state.entries.insert(key, (revision, value))),
                None => drop(state.entries.remove(&key)),
            }
        }
        drop(state);
        self.revision.send_replace(revision);
        Ok(revision)
    }

    fn watch(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }
}
