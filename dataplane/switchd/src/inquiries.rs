// SPDX-License-Identifier: Apache-2.0
//! Requests of guests for their metadata, asked of whoever answers for the node.
//!
//! A connection to its socket is one request, as [`METADATA_SOCKET`] says. The request is there
//! whole before anybody is asked, so that no guest makes the node wait for it; and nobody waits
//! for the node longer than [`PATIENCE`].
//!
//! [`METADATA_SOCKET`]: plinth_switch_api::METADATA_SOCKET

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use plinth_answers::StreamId;
use plinth_ids::Moment;
use plinth_switch_api::{METADATA_RESPONSE_MAX, MetadataAsker};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;
use std::time::Duration;

/// Requests under way: all connections of eight guests.
const INQUIRIES_MAX: usize = 64;

/// How long the node may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tokens from here on are places of inquiries; those of questions upstream are below.
const FIRST: usize = 1 << 20;
const _: () = assert!(plinth_answers::UNDER_WAY_MAX < FIRST);

/// For a guest whose node says nothing.
pub(crate) const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Connection: close\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n";

/// The place that a token is of.
pub(crate) fn place(token: Token) -> Option<usize> {
    token.0.checked_sub(FIRST).filter(|place| *place < INQUIRIES_MAX)
}

/// What is under way.
#[derive(Debug)]
pub(crate) struct Inquiries {
    socket: PathBuf,
    places: [Option<Inquiry>; INQUIRIES_MAX],
}

#[derive(Debug)]
struct Inquiry {
    stream: StreamId,
    socket: UnixStream,
    response: Vec<u8>,
    until: Moment,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("{INQUIRIES_MAX} requests for metadata are under way already")]
    TooMany,
    #[error("the request cannot be handed on")]
    Socket(#[from] io::Error),
}

impl Inquiries {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, places: [const { None }; INQUIRIES_MAX] }
    }

    /// Asks for `asker`. The answer comes with [`Self::receive`] or [`Self::late`].
    ///
    /// # Errors
    /// When nobody is there, or too much is asked at once.
    pub(crate) fn ask(
        &mut self,
        registry: &Registry,
        now: Moment,
        stream: StreamId,
        asker: MetadataAsker,
        request: &[u8],
    ) -> Result<(), AskError> {
        let place = self.places.iter().position(Option::is_none).ok_or(AskError::TooMany)?;
        let mut message = serde_json::to_vec(&asker).map_err(io::Error::from)?;
        message.push(b'\n');
        message.extend_from_slice(request);
        let mut socket = UnixStream::connect(&self.socket)?;
        // A new socket's buffer holds many times as much.
        if socket.write(&message)? < message.len() {
            return Err(io::Error::from(ErrorKind::WriteZero).into());
        }
        socket.shutdown(Shutdown::Write)?;
        registry.register(&mut socket, Token(FIRST + place), Interest::READABLE)?;
        let until = now + PATIENCE;
        self.places[place] = Some(Inquiry { stream, socket, response: Vec::new(), until });
        Ok(())
    }

    /// Hears what is said at a place, and gives the response once it is whole.
    pub(crate) fn receive(&mut self, place: usize) -> Option<(StreamId, Vec<u8>)> {
        let inquiry = self.places.get_mut(place)?.as_mut()?;
        inquiry.hear()?;
        let Inquiry { stream, mut response, .. } = self.places[place].take()?;
        if response.is_empty() || response.len() > METADATA_RESPONSE_MAX {
            response = UNAVAILABLE.to_vec();
        }
        Some((stream, response))
    }

    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.places.iter().flatten().map(|inquiry| inquiry.until).min()
    }

    /// Gives up one that has waited for too long.
    pub(crate) fn late(&mut self, now: Moment) -> Option<(StreamId, Vec<u8>)> {
        let is_late = |inquiry: &mut Inquiry| inquiry.until <= now;
        let late = self.places.iter_mut().find_map(|place| place.take_if(is_late))?;
        Some((late.stream, UNAVAILABLE.to_vec()))
    }
}

impl Inquiry {
    /// Reads what is there; `Some` when nothing more will come.
    fn hear(&mut self) -> Option<()> {
        let mut bytes = [0; 4096];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return Some(()),
                Ok(length) => {
                    self.response.extend_from_slice(&bytes[..length]);
                    if self.response.len() > METADATA_RESPONSE_MAX {
                        return Some(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What was said before is not the whole of it.
                Err(_) => {
                    self.response.clear();
                    return Some(());
                }
            }
        }
    }
}
