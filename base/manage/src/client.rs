// SPDX-License-Identifier: Apache-2.0
//! The asking end: blocking, with a limit on every wait.

use crate::line::{Line, read_line};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A connection to a daemon. After an error it is of no more use: make another.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("nobody answers at {}; is the daemon running?", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("the request cannot be sent to {}", path.display())]
    Send { path: PathBuf, source: io::Error },
    #[error("the request cannot be written as JSON")]
    Encode { source: serde_json::Error },
    #[error("no answer from {}", path.display())]
    Receive { path: PathBuf, source: io::Error },
    #[error("{} closed the connection before it answered", path.display())]
    Closed { path: PathBuf },
    #[error("the answer of {} is not understood; are both of one version?", path.display())]
    Decode { path: PathBuf, source: serde_json::Error },
}

impl CallError {
    /// Whether the daemon may be there later: it is starting, or it is being started again.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Send { .. } | Self::Receive { .. } => true,
            Self::Closed { .. } => true,
            Self::Encode { .. } | Self::Decode { .. } => false,
        }
    }
}

impl Client {
    /// Connects; `limit` bounds each later wait for the other end.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, CallError> {
        let fault = |source| CallError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(fault)?;
        stream.set_read_timeout(Some(limit)).map_err(fault)?;
        stream.set_write_timeout(Some(limit)).map_err(fault)?;
        Ok(Self { path: path.to_owned(), stream: BufReader::new(stream), line: Vec::new() })
    }

    /// Sends one request and waits for its reply.
    pub fn call<Q: Serialize, R: DeserializeOwned>(&mut self, request: &Q) -> Result<R, CallError> {
        let path = || self.path.clone();
        let mut text =
            serde_json::to_vec(request).map_err(|source| CallError::Encode { source })?;
        text.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&text)
            .map_err(|source| CallError::Send { path: path(), source })?;
        let line = read_line(&mut self.stream, &mut self.line)
            .map_err(|source| CallError::Receive { path: path(), source })?;
        match line {
            Line::Whole => serde_json::from_slice(&self.line)
                .map_err(|source| CallError::Decode { path: path(), source }),
            Line::End | Line::Unfinished => Err(CallError::Closed { path: path() }),
            Line::TooLong => Err(CallError::Receive {
                path: path(),
                source: io::Error::other("the answer is longer than a message may be"),
            }),
        }
    }
}
