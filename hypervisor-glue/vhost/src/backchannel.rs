// SPDX-License-Identifier: Apache-2.0
//! What the `vhost` crate cannot do, done beside it.
//!
//! * It keeps the channel to the frontend to itself and cannot send CONFIG_CHANGE_MSG on it.
//! * It refuses SET_VRING_ENABLE before SET_FEATURES, which QEMU sends for a NIC with several
//!   queues.
//!
//! So each message is looked at before the crate takes it from the socket. A look gives us a
//! descriptor of our own, and tells which message to take ourselves.

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use vhost::vhost_user::message::{BackendReq, FrontendReq};

/// Request u32, flags u32, size u32.
const HEADER: usize = 12;

/// The protocol's version in the flags of every message, and two more flags.
const VERSION: u32 = 1;
const IS_REPLY: u32 = 1 << 2;
const NEEDS_REPLY: u32 = 1 << 3;

/// A message that concerns this module.
#[derive(Debug)]
pub(crate) enum Glimpse {
    /// It brings the channel to the frontend; the crate takes it from the socket.
    Channel(Backchannel),
    /// It enables or disables a ring.
    Enable,
}

/// Looks at the message that waits on `socket`. Nothing is taken from the socket.
pub(crate) fn peek(socket: &UnixStream) -> Option<Glimpse> {
    let mut header = [0; HEADER];
    // A message has 32 descriptors at most; those of other messages are closed right here.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut header)], &mut control, flags).ok()?;
    let request = word(&header, 0);
    if received.bytes != HEADER {
        return None;
    }
    if request == u32::from(FrontendReq::SET_VRING_ENABLE) {
        return Some(Glimpse::Enable);
    }
    if request != u32::from(FrontendReq::SET_BACKEND_REQ_FD) {
        return None;
    }
    let descriptor: OwnedFd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })?;
    let stream = UnixStream::from(descriptor);
    // The device's thread must not be held up by a frontend that does not read.
    stream.set_nonblocking(true).ok()?;
    Some(Glimpse::Channel(Backchannel { stream }))
}

/// A SET_VRING_ENABLE that was taken from the socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Enable {
    pub(crate) index: u32,
    pub(crate) value: u32,
    pub(crate) needs_reply: bool,
}

/// Takes the SET_VRING_ENABLE that [`peek`] saw.
pub(crate) fn take_enable(mut socket: &UnixStream) -> io::Result<Enable> {
    let mut message = [0; HEADER + 8];
    socket.read_exact(&mut message)?;
    if word(&message, 8) != 8 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a ring state of another size"));
    }
    let needs_reply = word(&message, 4) & NEEDS_REPLY != 0;
    Ok(Enable { index: word(&message, 12), value: word(&message, 16), needs_reply })
}

/// Answers a SET_VRING_ENABLE that asked for it.
pub(crate) fn acknowledge_enable(mut socket: &UnixStream, is_done: bool) -> io::Result<()> {
    let mut reply = [0; HEADER + 8];
    let request = u32::from(FrontendReq::SET_VRING_ENABLE);
    reply[..4].copy_from_slice(&request.to_le_bytes());
    reply[4..8].copy_from_slice(&(VERSION | IS_REPLY).to_le_bytes());
    reply[8..12].copy_from_slice(&8u32.to_le_bytes());
    reply[12..].copy_from_slice(&u64::from(!is_done).to_le_bytes());
    socket.write_all(&reply)
}

/// The messages in which a frontend agrees on features and on protocol features, as it sent them
/// to the process before this one.
pub(crate) fn agreement([features, protocol_features]: [u64; 2]) -> [Vec<u8>; 4] {
    let message = |request: FrontendReq, body: Option<u64>| {
        let body = body.map(u64::to_le_bytes);
        let body = body.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        let length = u32::try_from(body.len()).expect("it has eight bytes or none");
        let mut message = Vec::with_capacity(HEADER + body.len());
        for word in [u32::from(request), VERSION, length] {
            message.extend(word.to_le_bytes());
        }
        message.extend(body);
        message
    };
    [
        message(FrontendReq::GET_FEATURES, None),
        message(FrontendReq::SET_FEATURES, Some(features)),
        message(FrontendReq::GET_PROTOCOL_FEATURES, None),
        message(FrontendReq::SET_PROTOCOL_FEATURES, Some(protocol_features)),
    ]
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes[at..].first_chunk().expect("messages are read whole");
    u32::from_le_bytes(*word)
}

/// The frontend's end of the channel.
#[derive(Debug)]
pub(crate) struct Backchannel {
    stream: UnixStream,
}

impl Backchannel {
    /// A channel that another process has handed over.
    pub(crate) const fn from_stream(stream: UnixStream) -> Self {
        Self { stream }
    }

    pub(crate) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Sends CONFIG_CHANGE_MSG, without asking for an answer.
    pub(crate) fn announce_config_change(&mut self) -> io::Result<()> {
        let mut message = [0; HEADER];
        message[..4].copy_from_slice(&u32::from(BackendReq::CONFIG_CHANGE_MSG).to_le_bytes());
        message[4..8].copy_from_slice(&VERSION.to_le_bytes());
        match self.stream.write(&message)? {
            HEADER => Ok(()),
            _ => Err(Errno::AGAIN.into()),
        }
    }
}
