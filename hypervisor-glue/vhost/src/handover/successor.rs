// SPDX-License-Identifier: Apache-2.0
//! The process that comes to take over, as the one that serves sees it.

use super::HandOverError;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// A process that has connected, by a descriptor that no other process can ever stand behind.
#[derive(Debug)]
pub struct Successor {
    process: OwnedFd,
}

impl Successor {
    /// Listens for successors. A socket that is left over from a dead process is replaced; whoever
    /// calls makes sure that there is no living one.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn wait_at(path: &Path) -> io::Result<UnixListener> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        UnixListener::bind(path)
    }

    /// Who has connected. To be asked before anything is given.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn of(stream: &UnixStream) -> Result<Self, HandOverError> {
        let fault = |errno: rustix::io::Errno| HandOverError::Line { source: errno.into() };
        let peer = rustix::net::sockopt::socket_peercred(stream).map_err(fault)?;
        let process = pidfd_open(peer.pid, PidfdFlags::empty()).map_err(fault)?;
        Ok(Self { process })
    }

    /// Ends it and waits for its end: what it was given must have one owner again.
    pub fn end(&self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        // A pidfd is readable once its process has ended; SIGKILL cannot be put off for long, but
        // by a disk that hangs, and then nobody can have it.
        let ended = &mut [PollFd::new(&self.process, PollFlags::IN)];
        while let Err(rustix::io::Errno::INTR) = poll(ended, None) {
            // Interrupted by a signal, which says nothing about the process.
        }
    }
}
