// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! Where the control service keeps what must survive it.
//!
//! A registry maps text keys to bytes. Changes come as [`Transaction`]s that compare first: all
//! writes happen, or none, and a committed one is durable. Every commit has a revision; the
//! revision of an entry is that of the commit that wrote it. The trait is narrow so that redb in
//! one process ([`DiskRegistry`]) and a consensus store for a cluster can stand behind it;
//! [`MemoryRegistry`] is the twin for tests.

mod disk;
mod memory;

pub use disk::{DiskRegistry, OpenError, SCHEMA_VERSION};
pub use memory::MemoryRegistry;

use std::fmt;
use tokio::sync::watch;

/// Counts commits. 0 is the empty registry, and the revision of a key that is not there.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Revision(pub u64);

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    /// Of the commit that wrote it.
    pub revision: Revision,
}

/// Entries as they were at one revision, in order of key.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listing {
    pub revision: Revision,
    pub entries: Vec<Entry>,
}

/// Writes that happen together, if every comparison holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Transaction {
    compares: Vec<(String, Revision)>,
    /// `None` deletes.
    writes: Vec<(String, Option<Vec<u8>>)>,
}

impl Transaction {
    /// Only if the key was written last by this revision; 0 means it is not there.
    #[must_use]
    pub fn compare(mut self, key: impl Into<String>, revision: Revision) -> Self {
        self.compares.push((key.into(), revision));
        self
    }

    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: Vec<u8>) -> Self {
        self.writes.push((key.into(), Some(value)));
        self
    }

    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push((key.into(), None));
        self
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Somebody else wrote first: read again and decide anew.
    #[error("{key} was changed at revision {found}, not {expected}")]
    Conflict { key: String, expected: Revision, found: Revision },
    #[error("the registry failed; nothing of the change is kept")]
    Storage(#[source] StorageError),
}

/// The disk or its contents failed. Boxed: the engine's error is large.
pub type StorageError = Box<redb::Error>;

pub trait Registry: Send + Sync + fmt::Debug {
    fn get(&self, key: &str) -> Result<Option<Entry>, StorageError>;

    /// Every entry whose key starts with `prefix`.
    fn list(&self, prefix: &str) -> Result<Listing, StorageError>;

    /// Durable when it returns.
    fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError>;

    /// The newest revision, and a wake-up at each new one.
    fn watch(&self) -> watch::Receiver<Revision>;
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
