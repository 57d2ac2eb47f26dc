// SPDX-License-Identifier: Apache-2.0
//! Questions for other people's names, from asking upstream to the answer.
//!
//! Each question has a socket of its own, so the port that it is asked from is one that the system
//! draws, and an id that is drawn for it: whoever would forge an answer has to guess both, and the
//! server's address (RFC 5452). An answer that does not repeat the question is not one.
//!
//! ```text
//!   ask ─▶ asked ── answer that fits ──▶ reply to the guest
//!            ├── 2 s, or refused ──▶ next server, until none is left ──▶ nothing: the guest asks again
//!            └── answer that does not fit ──▶ goes on waiting
//! ```

use crate::Question;
use plinth_ids::{Moment, PortId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// How long a server may take.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Questions that are under way, of all guests and of one.
pub const UNDER_WAY_MAX: usize = 512;
pub const UNDER_WAY_OF_ONE_MAX: usize = 64;

/// Which question under way; also the place of its socket.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ticket(pub usize);

/// What is to be sent, from a new socket that is connected to this server: over TCP with its length
/// in front, as the guest's question came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Send {
    pub ticket: Ticket,
    pub server: SocketAddr,
    pub message: Vec<u8>,
    pub is_stream: bool,
}

/// An answer found its question, which is over.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reply<O> {
    pub origin: O,
    /// Or, over TCP, what is to be said on the connection.
    pub frame: Vec<u8>,
}

/// Too many questions are under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooMany;

#[derive(Debug)]
struct Pending<O> {
    origin: O,
    port: PortId,
    question: Question,
    id: [u8; 2],
    /// The server that is asked now, by its place among the question's.
    server: usize,
    deadline: Moment,
}

/// The questions under way. `O` says to whom an answer goes.
#[derive(Debug)]
pub struct Forwarder<O> {
    places: Vec<Option<Pending<O>>>,
    free: Vec<usize>,
    deadlines: BTreeSet<(Moment, usize)>,
    of_port: BTreeMap<PortId, usize>,
}

impl<O> Default for Forwarder<O> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            deadlines: BTreeSet::new(),
            of_port: BTreeMap::new(),
        }
    }
}

impl<O> Forwarder<O> {
    /// Begins to ask. `id` is drawn at random.
    ///
    /// # Errors
    /// When this guest, or all of them, have as many under way as they may.
    pub fn ask(
        &mut self,
        now: Moment,
        (origin, port): (O, PortId),
        question: Question,
        id: [u8; 2],
    ) -> Result<Send, TooMany> {
        let of_one = self.of_port.get(&port).copied().unwrap_or(0);
        let under_way = self.places.len() - self.free.len();
        let &server = question.upstream.first().ok_or(TooMany)?;
        if of_one >= UNDER_WAY_OF_ONE_MAX || under_way >= UNDER_WAY_MAX {
            return Err(TooMany);
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        let (message, is_stream) = (with_id(&question.message, id), question.is_stream());
        let deadline = now + PATIENCE;
        self.places[place] = Some(Pending { origin, port, question, id, server: 0, deadline });
        self.deadlines.insert((deadline, place));
        self.of_port.insert(port, of_one + 1);
        Ok(Send { ticket: Ticket(place), server, message, is_stream })
    }

    /// Takes a datagram from the ticket's server. `None` if it is not the answer: the question
    /// goes on waiting.
    pub fn answered(&mut self, ticket: Ticket, datagram: &[u8]) -> Option<Reply<O>> {
        let pending = self.places.get(ticket.0)?.as_ref()?;
        if !is_answer(&pending.question.message, pending.id, datagram) {
            return None;
        }
        let pending = self.end(ticket)?;
        let frame = pending.question.reply(datagram)?;
        Some(Reply { origin: pending.origin, frame })
    }

    /// The server cannot be reached: the next one is asked, with a new id, if there is one.
    pub fn failed(&mut self, now: Moment, ticket: Ticket, id: [u8; 2]) -> Option<Send> {
        let pending = self.places.get_mut(ticket.0)?.as_mut()?;
        pending.server += 1;
        let Some(&server) = pending.question.upstream.get(pending.server) else {
            self.end(ticket);
            return None;
        };
        self.deadlines.remove(&(pending.deadline, ticket.0));
        pending.id = id;
        pending.deadline = now + PATIENCE;
        self.deadlines.insert((pending.deadline, ticket.0));
        let is_stream = pending.question.is_stream();
        Some(Send { ticket, server, message: with_id(&pending.question.message, id), is_stream })
    }

    /// A question whose server has taken too long: to be told to [`Self::failed`].
    pub fn late(&self, now: Moment) -> Option<Ticket> {
        self.deadlines.first().filter(|(at, _)| *at <= now).map(|&(_, place)| Ticket(place))
    }

    pub fn deadline(&self) -> Option<Moment> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    /// Whether the question is under way.
    pub fn is_under_way(&self, ticket: Ticket) -> bool {
        self.places.get(ticket.0).is_some_and(Option::is_some)
    }

    fn end(&mut self, ticket: Ticket) -> Option<Pending<O>> {
        let pending = self.places.get_mut(ticket.0)?.take()?;
        self.free.push(ticket.0);
        self.deadlines.remove(&(pending.deadline, ticket.0));
        if let Some(count) = self.of_port.get_mut(&pending.port) {
            *count -= 1;
            if *count == 0 {
                self.of_port.remove(&pending.port);
            }
        }
        Some(pending)
    }
}

fn with_id(message: &[u8], id: [u8; 2]) -> Vec<u8> {
    let mut bytes = message.to_vec();
    if let Some(first) = bytes.first_chunk_mut() {
        *first = id;
    }
    bytes
}

/// Whether `answer` is a response with this id that repeats the one question of `asked`: names are
/// compared without regard to case, which servers may change.
fn is_answer(asked: &[u8], id: [u8; 2], answer: &[u8]) -> bool {
    const HEADER: usize = 12;
    const RESPONSE: u8 = 0x80;
    const OPCODE: u8 = 0x78;
    let (Some(header), Some(end)) =
        (answer.first_chunk::<HEADER>(), crate::question::question_end(asked))
    else {
        return false;
    };
    let is_ours = header[..2] == id && header[2] & (RESPONSE | OPCODE) == RESPONSE;
    // An error may come without the question (RFC 1035 knows no such thing, some servers do): it
    // is not believed either.
    let is_same = header[4..6] == [0, 1]
        && answer.get(HEADER..end).is_some_and(|question| {
            asked.get(HEADER..end).is_some_and(|own| own.eq_ignore_ascii_case(question))
        });
    is_ours && is_same
}

#[cfg(test)]
mod tests;
