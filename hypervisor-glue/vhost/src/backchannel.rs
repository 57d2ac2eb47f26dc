// SPDX-License-Identifier: Apache-2.0
//! The way from the backend to the frontend, for the one message that we send on it.
//!
//! The `vhost` crate keeps the channel to itself and cannot send CONFIG_CHANGE_MSG. So the
//! message that brings the channel is looked at before the crate takes it from the socket: a
//! look gives us a descriptor of our own.

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use vhost::vhost_user::message::{BackendReq, FrontendReq};

/// Request u32, flags u32, size u32.
const HEADER: usize = 12;

/// The protocol's version in the flags of every message.
const VERSION: u32 = 1;

/// The frontend's end of the channel.
#[derive(Debug)]
pub(crate) struct Backchannel {
    stream: UnixStream,
}

impl Backchannel {
    /// Looks at the message that waits on `socket`, and takes the channel if it brings one.
    /// Nothing is taken from the socket.
    pub(crate) fn peek(socket: &UnixStream) -> Option<Self> {
        let mut header = [0; HEADER];
        // A message has 32 descriptors at most; those of other messages are closed right here.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received =
            recvmsg(socket, &mut [IoSliceMut::new(&mut header)], &mut control, flags).ok()?;
        let request = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        if received.bytes != HEADER || request != u32::from(FrontendReq::SET_BACKEND_REQ_FD) {
            return None;
        }
        let descriptor: OwnedFd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })?;
        let stream = UnixStream::from(descriptor);
        // The device's thread must not be held up by a frontend that does not read.
        stream.set_nonblocking(true).ok()?;
        Some(Self { stream })
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
