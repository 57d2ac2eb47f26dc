// SPDX-License-Identifier: Apache-2.0
//! The frame around every message.
//!
//! ```text
//!   0        2        4                 8
//!   ┌────────┬────────┬─────────────────┬──────────────
//!   │version │ kind   │ length          │ payload …
//!   └────────┴────────┴─────────────────┴──────────────
//! ```
//!
//! Integers are little-endian. `length` counts the payload. The header is judged in the order
//! version, kind, length, so a peer of another version is told about the version and nothing
//! else. The payload's archived types have alignment 1 (rkyv's `unaligned`), so a buffer needs
//! no alignment of its own.

use crate::v1;
use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error as Fault;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

/// The version of the messages in [`v1`].
pub const VERSION: u16 = 1;

/// Bytes of a frame's header.
pub const HEADER_SIZE: usize = 8;

/// What a payload is. A number is never used again for something else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum Kind {
    /// [`v1::Join`].
    Join = 1,
    /// [`v1::JoinReply`].
    JoinReply = 2,
    /// [`v1::Request`].
    Request = 10,
    /// [`v1::Reply`].
    Reply = 11,
    /// [`v1::AgentRequest`].
    AgentRequest = 20,
    /// [`v1::AgentReply`].
    AgentReply = 21,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Join,
        Self::JoinReply,
        Self::Request,
        Self::Reply,
        Self::AgentRequest,
        Self::AgentReply,
    ];

    /// The largest payload of this kind, in bytes. A longer one is refused unread.
    pub const fn length_max(self) -> u32 {
        match self {
            // A name, a key and an address.
            Self::Join => 4 * 1024,
            // Two certificates.
            Self::JoinReply => 32 * 1024,
            Self::Request => 256 * 1024,
            // A list of some 10 000 resources.
            Self::Reply => 16 * 1024 * 1024,
            // A node's whole spec: 100 bytes for each of 100 000 remotes.
            Self::AgentRequest => 16 * 1024 * 1024,
            Self::AgentReply => 16 * 1024 * 1024,
        }
    }

    fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == raw)
    }
}

/// A message that stands in a frame of its own kind.
pub trait Message:
    Sized
    + Archive<
        Archived: for<'a> CheckBytes<HighValidator<'a, Fault>>
                      + Deserialize<Self, HighDeserializer<Fault>>,
    > + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Fault>>
{
    const KIND: Kind;
}

impl Message for v1::Join {
    const KIND: Kind = Kind::Join;
}
impl Message for v1::JoinReply {
    const KIND: Kind = Kind::JoinReply;
}
impl Message for v1::Request {
    const KIND: Kind = Kind::Request;
}
impl Message for v1::Reply {
    const KIND: Kind = Kind::Reply;
}
impl Message for v1::AgentRequest {
    const KIND: Kind = Kind::AgentRequest;
}
impl Message for v1::AgentReply {
    const KIND: Kind = Kind::AgentReply;
}

/// A header that passed every check.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    pub kind: Kind,
    /// At most the kind's limit.
    pub length: u32,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FrameError {
    #[error(
        "the peer speaks message version {version}, this program speaks {VERSION}; install the \
         same release of plinth on both sides"
    )]
    Version { version: u16 },
    #[error("message kind {kind} does not exist in version {VERSION}")]
    Kind { kind: u16 },
    #[error("a message of kind {kind:?} came where {expected:?} was due")]
    Unexpected { kind: Kind, expected: Kind },
    #[error("a {kind:?} message of {length} bytes is over the limit of {}", kind.length_max())]
    Length { kind: Kind, length: u32 },
    #[error("the frame ends before its {wanted} bytes")]
    Truncated { wanted: usize },
    /// The text is the decoder's own.
    #[error("the {kind:?} message is damaged: {text}")]
    Payload { kind: Kind, text: String },
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EncodeError {
    #[error("the {kind:?} message has {length} bytes, over the limit of {}", kind.length_max())]
    Length { kind: Kind, length: usize },
    #[error("the {kind:?} message could not be written: {text}")]
    Serialize { kind: Kind, text: String },
}

impl Header {
    pub fn parse(bytes: [u8; HEADER_SIZE]) -> Result<Self, FrameError> {
        let [v0, v1, k0, k1, l0, l1, l2, l3] = bytes;
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(FrameError::Version { version });
        }
        let kind = u16::from_le_bytes([k0, k1]);
        let kind = Kind::from_raw(kind).ok_or(FrameError::Kind { kind })?;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length > kind.length_max() {
            return Err(FrameError::Length { kind, length });
        }
        Ok(Self { kind, length })
    }

    pub fn emit(self) -> [u8; HEADER_SIZE] {
        let [v0, v1] = VERSION.to_le_bytes();
        let [k0, k1] = (self.kind as u16).to_le_bytes();
        let [l0, l1, l2, l3] = self.length.to_le_bytes();
        [v0, v1, k0, k1, l0, l1, l2, l3]
    }

    /// Refuses a frame of another kind than the one that is due.
    pub fn expect(self, expected: Kind) -> Result<Self, FrameError> {
        if self.kind == expected {
            Ok(self)
        } else {
            Err(FrameError::Unexpected { kind: self.kind, expected })
        }
    }
}

/// The whole frame of a message.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, EncodeError> {
    let kind = M::KIND;
    let payload = rkyv::to_bytes::<Fault>(message)
        .map_err(|err| EncodeError::Serialize { kind, text: err.to_string() })?;
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|length| *length <= kind.length_max())
        .ok_or(EncodeError::Length { kind, length: payload.len() })?;
    let mut frame = Vec::with_capacity(HEADER_SIZE + payload.len());
    frame.extend_from_slice(&Header { kind, length }.emit());
    frame.extend_from_slice(&payload);
    Ok(frame)
}

/// The message of a payload whose header said [`Message::KIND`].
pub fn decode<M: Message>(payload: &[u8]) -> Result<M, FrameError> {
    rkyv::from_bytes::<M, Fault>(payload)
        .map_err(|err| FrameError::Payload { kind: M::KIND, text: one_line(&err.to_string()) })
}

/// Splits a frame that lies whole in memory, and decodes it.
pub fn decode_frame<M: Message>(frame: &[u8]) -> Result<M, FrameError> {
    let (header, payload) = frame
        .split_first_chunk::<HEADER_SIZE>()
        .ok_or(FrameError::Truncated { wanted: HEADER_SIZE })?;
    let header = Header::parse(*header)?.expect(M::KIND)?;
    let length = header.length as usize;
    let payload =
        payload.get(..length).ok_or(FrameError::Truncated { wanted: HEADER_SIZE + length })?;
    decode(payload)
}

/// The decoder's error has a line for each level; the first says it.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Fuzz entry: no bytes make the decoder panic, and what decodes encodes again to a message
/// that is equal.
pub fn fuzz_frame(data: &[u8]) {
    let Some((header, _)) = data.split_first_chunk::<HEADER_SIZE>() else { return };
    let Ok(header) = Header::parse(*header) else { return };
    match header.kind {
        Kind::Join => round_trip::<v1::Join>(data),
        Kind::JoinReply => round_trip::<v1::JoinReply>(data),
        Kind::Request => round_trip::<v1::Request>(data),
        Kind::Reply => round_trip::<v1::Reply>(data),
        Kind::AgentRequest => round_trip::<v1::AgentRequest>(data),
        Kind::AgentReply => round_trip::<v1::AgentReply>(data),
    }
}

fn round_trip<M: Message + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let Ok(message) = decode_frame::<M>(data) else { return };
    // Other writers may pack a message closer than ours, so it may pass its limit here.
    let Ok(frame) = encode(&message) else { return };
    let again = decode_frame::<M>(&frame);
    assert_eq!(again.as_ref(), Ok(&message), "a message changed on its way");
}
