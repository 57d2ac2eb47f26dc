// SPDX-License-Identifier: Apache-2.0
//! Records of what became of a kept value, appended to a file beside it
//! (`docs/formats/switch-journal.md`).
//!
//! ```text
//!  │ length 4 │ crc 4 │ JSON │ length 4 │ crc 4 │ JSON │ …
//! ```
//!
//! The crash argument: a record is written behind the last one and made durable before it is
//! acknowledged, and nothing is written over one that was. A cut while one is written leaves it
//! torn: its length or its checksum is wrong, and the reading ends before it.

use crate::keep::{KeepError, LENGTH_MAX, LoadError};
use crc_fast::CrcAlgorithm;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Length and checksum, little-endian.
const HEAD: usize = 8;

/// A file of records, and how far they are good.
#[derive(Debug)]
pub struct Journal<R> {
    path: PathBuf,
    /// Opened by the first write.
    file: Option<File>,
    length: u64,
    /// Whether the file is known to end there.
    is_cut: bool,
    record: PhantomData<fn() -> R>,
}

/// What a journal held when it was opened.
#[derive(Debug, Eq, PartialEq)]
pub struct Found<R> {
    /// Each with the place at which it ends.
    pub records: Vec<(R, u64)>,
    /// Bytes behind them that are no record.
    pub torn: u64,
}

impl<R: Serialize + DeserializeOwned> Journal<R> {
    /// Reads what is there. Nothing is written yet.
    ///
    /// # Errors
    /// When the file cannot be read, or is longer than any that was kept.
    pub fn open(path: impl Into<PathBuf>) -> Result<(Self, Found<R>), LoadError> {
        let path = path.into();
        let fault = |source| LoadError::Read { path: path.clone(), source };
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => {
                file.take(LENGTH_MAX + 1).read_to_end(&mut bytes).map_err(fault)?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(fault(error)),
        }
        if bytes.len() as u64 > LENGTH_MAX {
            return Err(LoadError::TooLong { path });
        }
        let mut records = Vec::new();
        let mut rest = &bytes[..];
        while let Some((record, behind)) = parse(rest) {
            rest = behind;
            records.push((record, (bytes.len() - rest.len()) as u64));
        }
        let length = (bytes.len() - rest.len()) as u64;
        let journal = Self { path, file: None, length, is_cut: false, record: PhantomData };
        Ok((journal, Found { records, torn: rest.len() as u64 }))
    }

    /// Of the good records, in bytes.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Says that only the records up to a place are good; what is behind goes with the next write.
    pub const fn end_at(&mut self, place: u64) {
        self.length = place;
        self.is_cut = false;
    }

    /// Adds a record. Durable when this returns; when it fails, the journal is as it was.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn append(&mut self, record: &R) -> Result<(), KeepError> {
        let encode = |source| KeepError::Encode { path: self.path.clone(), source };
        let mut bytes = vec![0; HEAD];
        serde_json::to_writer(&mut bytes, record).map_err(encode)?;
        let length = u32::try_from(bytes.len() - HEAD).map_err(|_| KeepError::Write {
            path: self.path.clone(),
            source: ErrorKind::FileTooLarge.into(),
        })?;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        let checksum = checksum(length, &bytes[HEAD..]);
        bytes[4..HEAD].copy_from_slice(&checksum.to_le_bytes());
        self.write(&bytes).map_err(|source| KeepError::Write { path: self.path.clone(), source })
    }

    /// Removes every record. Durable when this returns; when it fails, they go with the next
    /// write.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn clear(&mut self) -> Result<(), KeepError> {
        self.end_at(0);
        let cleared = self.cut().and_then(|file| file.sync_data());
        cleared.map_err(|source| KeepError::Write { path: self.path.clone(), source })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = self.length;
        let file = self.cut()?;
        let written = file.write_all_at(bytes, length).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // What is not acknowledged is not to be found by the next start either.
            let _ = file.set_len(length);
            self.is_cut = false;
            return Err(error);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// The file, which ends where its records do.
    fn cut(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            let file = options.create(true).truncate(false).write(true).open(&self.path)?;
            // A file that is new is durable with its folder.
            let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
            self.file = Some(file);
        }
        let file = self.file.as_ref().expect("it was opened above");
        if !self.is_cut {
            file.set_len(self.length)?;
            self.is_cut = true;
        }
        Ok(file)
    }
}

/// The first record, and what is behind it.
fn parse<R: DeserializeOwned>(bytes: &[u8]) -> Option<(R, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (found, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length);
    let (text, behind) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    if checksum(length, text) != u32::from_le_bytes(*found) {
        return None;
    }
    Some((serde_json::from_slice(text).ok()?, behind))
}

/// Of the length as well, so that zeros are no record.
fn checksum(length: u32, text: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&length.to_le_bytes());
    digest.update(text);
    (digest.finalize() & 0xffff_ffff) as u32
}
