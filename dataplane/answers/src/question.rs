// SPDX-License-Identifier: Apache-2.0
//! A guest's question for a name that is not its VPC's.

use crate::frame::{Macs, datagram};
use crate::streams::RESPONSE_MAX;
use std::net::SocketAddr;

/// What must be asked upstream, and the way back. The message is checked: it is one question in
/// the Internet class. Whoever asks upstream gives the message an id of its own, so that an
/// answer cannot be guessed by the guest or by anyone else, and puts the guest's back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    /// Whom to ask, in this order.
    pub upstream: Vec<SocketAddr>,
    /// The whole DNS message as the guest sent it.
    pub message: Vec<u8>,
    /// The longest answer that the guest takes, in bytes of DNS message.
    pub answer_max: usize,
    pub(crate) way: Way,
}

/// How an answer goes back, and its question goes upstream: over UDP or TCP, as it was asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    Datagram { macs: Macs, client: SocketAddr, server: SocketAddr },
    Stream,
}

/// The longest answer over TCP.
pub(crate) const STREAM_ANSWER_MAX: usize = RESPONSE_MAX - 2;

impl Way {
    /// What carries an answer: a whole frame, or what is said on the connection (RFC 1035, section
    /// 4.2.2). `None` for what is too long for either.
    pub(crate) fn carry(self, answer: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Datagram { macs, client, server } => datagram(macs, server, client, answer),
            Self::Stream => {
                let length = u16::try_from(answer.len()).ok()?;
                Some([&length.to_be_bytes(), answer].concat())
            }
        }
    }
}

impl Question {
    /// The guest's id of its question.
    pub fn id(&self) -> [u8; 2] {
        self.message.first_chunk().copied().unwrap_or_default()
    }

    /// Whether it came over TCP, and is to be asked so.
    pub const fn is_stream(&self) -> bool {
        matches!(self.way, Way::Stream)
    }

    /// The whole frame of an answer, or what is to be said on the connection. An answer that is too long for the guest is cut to its
    /// header and question, and marked so, and the guest is free to ask over TCP; `None` for an
    /// answer without a header.
    pub fn reply(&self, answer: &[u8]) -> Option<Vec<u8>> {
        const HEADER: usize = 12;
        const TRUNCATED: u8 = 0x02;
        let mut bytes = answer.to_vec();
        let header = bytes.first_chunk_mut::<HEADER>()?;
        header[..2].copy_from_slice(&self.id());
        if answer.len() > self.answer_max {
            header[2] |= TRUNCATED;
            // One question, and no records.
            header[4..].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
            let end = question_end(answer)?;
            bytes.truncate(end);
        }
        self.way.carry(&bytes)
    }
}

/// Where the first question of a message ends: names there are not compressed.
pub(crate) fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match *message.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    Some(at + 5).filter(|&end| end <= message.len())
}
