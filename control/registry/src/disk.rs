// SPDX-License-Identifier: Apache-2.0
//! The registry in one redb file.
//!
//! Two tables. `entries` maps a key to the revision of its last write (8 bytes, little-endian)
//! and the value. `meta` has `schema` and `revision`. redb commits with copy-on-write pages and
//! a checksummed root, synced before `commit` returns: a process killed anywhere leaves the last
//! commit.

use crate::{CommitError, Entry, Listing, Registry, Revision, StorageError, Transaction};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// The layout described above.
pub const SCHEMA_VERSION: u64 = 1;

const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SCHEMA: &str = "schema";
const REVISION: &str = "revision";
const REVISION_SIZE: usize = 8;

#[derive(Debug)]
pub struct DiskRegistry {
    database: Database,
    revision: watch::Sender<Revision>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the registry {} is in use; is another plinthd running?", path.display())]
    InUse { path: PathBuf },
    #[error("cannot open the registry {}", path.display())]
    Open { path: PathBuf, source: Box<DatabaseError> },
    #[error("cannot read the registry {}", path.display())]
    Read { path: PathBuf, source: StorageError },
    #[error(
        "the registry {} has schema {found}, this program knows {SCHEMA_VERSION}; start the \
         release that wrote it",
        path.display()
    )]
    Schema { path: PathBuf, found: u64 },
}

impl DiskRegistry {
    /// Opens the file, and makes it where there is none.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let database = Database::create(path).map_err(|source| match source {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.to_owned() },
            source => OpenError::Open { path: path.to_owned(), source: Box::new(source) },
        })?;
        let read = |source| OpenError::Read { path: path.to_owned(), source };
        let (schema, revision) = prepare(&database).map_err(read)?;
        if schema != SCHEMA_VERSION {
            return Err(OpenError::Schema { path: path.to_owned(), found: schema });
        }
        Ok(Self { database, revision: watch::Sender::new(revision) })
    }

    fn try_commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        let write = self.database.begin_write().map_err(failed)?;
        let revision = self.stage(&write, transaction)?;
        write.commit().map_err(failed)?;
        Ok(revision)
    }

    fn stage(
        &self,
        write: &WriteTransaction,
        transaction: Transaction,
    ) -> Result<Revision, CommitError> {
        let mut meta = write.open_table(META).map_err(failed)?;
        let mut entries = write.open_table(ENTRIES).map_err(failed)?;
        for (key, expected) in transaction.compares {
            let found = match entries.get(key.as_str()).map_err(failed)? {
                Some(bytes) => split(bytes.value()).map_err(CommitError::Storage)?.0,
                None => Revision(0),
            };
            if found != expected {
                return Err(CommitError::Conflict { key, expected, found });
            }
        }
        let before = meta.get(REVISION).map_err(failed)?.map_or(0, |revision| revision.value());
        let revision = Revision(before + 1);
        meta.insert(REVISION, revision.0).map_err(failed)?;
        for (key, value) in transaction.writes {
            match value {
                Some(value) => {
                    let mut bytes = revision.0.to_le_bytes().to_vec();
                    bytes.extend_from_slice(&value);
                    entries.insert(key.as_str(), bytes.as_slice()).map_err(failed)?;
                }
                None => drop(entries.remove(key.as_str()).map_err(failed)?),
            }
        }
        Ok(revision)
    }
}

impl Registry for DiskRegistry {
    fn get(&self, key: &str) -> Result<Option<Entry>, StorageError> {
        let read = self.database.begin_read().map_err(boxed)?;
        let entries = read.open_table(ENTRIES).map_err(boxed)?;
        let Some(bytes) = entries.get(key).map_err(boxed)? else { return Ok(None) };
        let (revision, value) = split(bytes.value())?;
        Ok(Some(Entry { key: key.to_owned(), value: value.to_vec(), revision }))
    }

    fn list(&self, prefix: &str) -> Result<Listing, StorageError> {
        let read = self.database.begin_read().map_err(boxed)?;
        let meta = read.open_table(META).map_err(boxed)?;
        let revision = meta.get(REVISION).map_err(boxed)?.map_or(0, |revision| revision.value());
        let table = read.open_table(ENTRIES).map_err(boxed)?;
        let mut entries = Vec::new();
        for entry in table.range(prefix..).map_err(boxed)? {
            let (key, bytes) = entry.map_err(boxed)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            let (revision, value) = split(bytes.value())?;
            entries.push(Entry { key: key.value().to_owned(), value: value.to_vec(), revision });
        }
        Ok(Listing { revision: Revision(revision), entries })
    }

    fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        let revision = self.try_commit(transaction)?;
        self.revision.send_replace(revision);
        Ok(revision)
    }

    fn watch(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }
}

/// Makes the tables of a fresh file; answers schema and revision.
fn prepare(database: &Database) -> Result<(u64, Revision), StorageError> {
    let write = database.begin_write().map_err(boxed)?;
    let found = {
        let mut meta = write.open_table(META).map_err(boxed)?;
        write.open_table(ENTRIES).map_err(boxed)?;
        let schema = meta.get(SCHEMA).map_err(boxed)?.map(|schema| schema.value());
        if schema.is_none() {
            meta.insert(SCHEMA, SCHEMA_VERSION).map_err(boxed)?;
        }
        let revision = meta.get(REVISION).map_err(boxed)?.map_or(0, |revision| revision.value());
        (schema.unwrap_or(SCHEMA_VERSION), Revision(revision))
    };
    write.commit().map_err(boxed)?;
    Ok(found)
}

/// An entry's revision and value.
fn split(bytes: &[u8]) -> Result<(Revision, &[u8]), StorageError> {
    let (revision, value) = bytes.split_first_chunk::<REVISION_SIZE>().ok_or_else(|| {
        Box::new(redb::Error::Corrupted("an entry is shorter than its revision".to_owned()))
    })?;
    Ok((Revision(u64::from_le_bytes(*revision)), value))
}

fn boxed(err: impl Into<redb::Error>) -> StorageError {
    Box::new(err.into())
}

fn failed(err: impl Into<redb::Error>) -> CommitError {
    CommitError::Storage(boxed(err))
}
