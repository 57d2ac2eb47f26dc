// SPDX-License-Identifier: Apache-2.0
//! The socket where plinth-switchd asks on behalf of guests: one connection is one request, which
//! is there whole before it is asked. So one thread is enough, and no guest can hold it.

use crate::agent::{Inner, StartError, lock};
use crate::metadata;
use plinth_switch_api::MetadataAsker;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A line about the asker and the head of a request.
const REQUEST_MAX: usize = 8192;

/// How long whoever asks may take: it has all of it ready.
const PATIENCE: Duration = Duration::from_secs(2);

/// The pause after a fault of the system, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// The running server.
#[derive(Debug)]
pub(crate) struct MetadataSocket {
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl MetadataSocket {
    pub(crate) fn start(inner: &Arc<Inner>) -> Result<Self, StartError> {
        let path = inner.config.places.metadata_socket();
        let listener =
            plinth_manage::bind(&path).map_err(|source| StartError::Metadata { source })?;
        let inner = Arc::clone(inner);
        let thread = std::thread::Builder::new().name("metadata".to_owned());
        let thread = thread
            .spawn(move || serve(&inner, &listener))
            .map_err(|source| StartError::Thread { source })?;
        Ok(Self { path, thread: Some(thread) })
    }

    /// Ends the thread, which sees that the agent is stopping.
    pub(crate) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        // A connection wakes it.
        let _ = UnixStream::connect(&self.path);
        // A panic there was told by the panic hook.
        let _ = thread.join();
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(inner: &Inner, listener: &UnixListener) {
    loop {
        let stream = listener.accept();
        if inner.is_stopping() {
            return;
        }
        let told = match stream {
            Ok((stream, _)) => tell(inner, stream),
            Err(error) => {
                std::thread::sleep(PAUSE);
                Err(error)
            }
        };
        if let Err(error) = told {
            tracing::debug!(err = &error as &dyn std::error::Error, "a guest is told nothing");
        }
    }
}

fn tell(inner: &Inner, mut stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut asked = Vec::new();
    // One more than may be says that there is more.
    let limit = u64::try_from(REQUEST_MAX + 1).unwrap_or(u64::MAX);
    Read::by_ref(&mut stream).take(limit).read_to_end(&mut asked)?;
    let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
    let end = asked.iter().position(|byte| *byte == b'\n');
    let end = end.filter(|_| asked.len() <= REQUEST_MAX).ok_or_else(|| invalid("no asker"))?;
    let asker: MetadataAsker = serde_json::from_slice(&asked[..end])?;
    let response = metadata::response(lock(&inner.spec).as_ref(), asker, &asked[end + 1..]);
    stream.write_all(&response)
}
