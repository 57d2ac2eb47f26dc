// SPDX-License-Identifier: Apache-2.0
//! The socket in the file system: made, replaced when stale, removed when it is still ours.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why a device is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{} is there and is not a socket; remove it or choose another path", path.display())]
    NotASocket { path: PathBuf },
    #[error("another process listens on {}; stop it first", path.display())]
    InUse { path: PathBuf },
    #[error("cannot replace the stale socket {}", path.display())]
    Replace { path: PathBuf, source: io::Error },
    #[error(
        "cannot listen on {}; its folder must exist and the path be shorter than 108 bytes",
        path.display()
    )]
    Listen { path: PathBuf, source: io::Error },
    #[error("no thread or descriptor for {}", path.display())]
    Start { path: PathBuf, source: io::Error },
}

/// A listening socket, whose file is removed on drop unless somebody has replaced it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    /// Device and inode, by which the file is known again.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    pub(crate) fn bind(path: &Path) -> Result<Self, ServeError> {
        let own = || path.to_path_buf();
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(ServeError::NotASocket { path: own() });
            }
            // Whoever listens answers a connection; a dead process's socket refuses it.
            if UnixStream::connect(path).is_ok() {
                return Err(ServeError::InUse { path: own() });
            }
            std::fs::remove_file(path)
                .map_err(|source| ServeError::Replace { path: own(), source })?;
        }
        let listen = |source| ServeError::Listen { path: own(), source };
        let listener = UnixListener::bind(path).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        Ok(Self { listener, path: own(), identity: identity(path) })
    }

    /// Goes on with a socket that another process listened on.
    pub(crate) fn adopt(listener: UnixListener, path: &Path) -> Self {
        Self { listener, path: path.to_path_buf(), identity: identity(path) }
    }

    /// Leaves the file where it is: somebody else listens from now on.
    pub(crate) fn keep_file(&mut self) {
        self.identity = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // It is gone or replaced in this very moment: either way nothing is left to do.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
