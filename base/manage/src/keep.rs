// SPDX-License-Identifier: Apache-2.0
//! A value kept on disk as JSON, replaced whole.
//!
//! The crash argument: the new text is written to a file beside the old one and made durable,
//! then renamed over it, then the folder is made durable. A cut before the rename leaves the old
//! value and a stray temporary file, which the next save overwrites; a cut after it leaves the
//! new value. There is no moment at which neither can be read.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// Longest text that is read back: twice the longest message, because the text is indented.
pub(crate) const LENGTH_MAX: u64 = 2 * crate::LINE_LENGTH_MAX as u64;

/// The place of one kept value.
#[derive(Debug)]
pub struct Kept<T> {
    path: PathBuf,
    value: PhantomData<fn() -> T>,
}

#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("{} cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the value for {} cannot be written as JSON", path.display())]
    Encode { path: PathBuf, source: serde_json::Error },
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is longer than {LENGTH_MAX} bytes; it is not what was kept there", path.display())]
    TooLong { path: PathBuf },
    #[error("{} is not understood; move it away to start without it", path.display())]
    Decode { path: PathBuf, source: serde_json::Error },
}

impl<T: Serialize + DeserializeOwned> Kept<T> {
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), value: PhantomData }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the kept value. Durable when this returns.
    pub fn save(&self, value: &T) -> Result<(), KeepError> {
        let mut text = serde_json::to_vec_pretty(value)
            .map_err(|source| KeepError::Encode { path: self.path.clone(), source })?;
        text.push(b'\n');
        self.replace(&text).map_err(|source| KeepError::Write { path: self.path.clone(), source })
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let folder = self.path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        // An empty parent is the folder that the process stands in.
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let mut file = File::create(&beside)?;
        file.write_all(text)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&beside, &self.path)?;
        File::open(folder)?.sync_all()
    }

    /// The kept value, `None` when nothing was kept.
    pub fn load(&self) -> Result<Option<T>, LoadError> {
        let fault = |source| LoadError::Read { path: self.path.clone(), source };
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(fault)?,
        };
        let mut text = Vec::new();
        file.take(LENGTH_MAX + 1).read_to_end(&mut text).map_err(fault)?;
        if text.len() as u64 > LENGTH_MAX {
            return Err(LoadError::TooLong { path: self.path.clone() });
        }
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| LoadError::Decode { path: self.path.clone(), source })
    }
}
