// SPDX-License-Identifier: Apache-2.0
//! Eventfds that the other side gave us to write to.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};

/// Why a descriptor is not taken for an eventfd to write to.
#[derive(Debug, thiserror::Error)]
pub enum NotifierError {
    #[error("the kind of the descriptor cannot be found out")]
    Inspect { source: io::Error },
    #[error("the descriptor is no eventfd")]
    NotAnEventfd,
    #[error("the descriptor cannot be made non-blocking")]
    Unblock { source: io::Error },
}

/// An eventfd of the other side: call or error.
///
/// It is checked to be an eventfd and made non-blocking, because a worker writes to it and must
/// not be held up by a pipe that nobody reads.
#[derive(Debug)]
pub struct Notifier {
    file: File,
}

impl Notifier {
    pub fn new(file: File) -> Result<Self, NotifierError> {
        check_eventfd(&file)?;
        // SAFETY: the descriptor is open, and the command takes no argument.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        // SAFETY: the descriptor is open, and the command takes an integer.
        let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
        if flags < 0 || rc != 0 {
            return Err(NotifierError::Unblock { source: io::Error::last_os_error() });
        }
        Ok(Self { file })
    }

    /// Whether `file` is an eventfd, so that waiting for it is waiting for a kick.
    pub fn check(file: &File) -> Result<(), NotifierError> {
        check_eventfd(file)
    }

    /// Wakes the other side.
    #[inline]
    pub fn notify(&self) {
        // Would-block means that the counter is full of wake-ups that were not seen yet, and
        // another error that nobody listens any more: neither loses anything.
        let _ = (&self.file).write(&1u64.to_le_bytes());
    }
}

fn check_eventfd(file: &File) -> Result<(), NotifierError> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|source| NotifierError::Inspect { source })?;
    let is_eventfd = link.to_str().is_some_and(|name| name.starts_with("anon_inode:[eventfd"));
    if is_eventfd { Ok(()) } else { Err(NotifierError::NotAnEventfd) }
}

/// A new eventfd, non-blocking and closed on exec: for driver-side clients and fakes.
pub fn eventfd() -> io::Result<File> {
    // SAFETY: the call takes integers only.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above gave us this descriptor, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_notification_can_be_read_by_the_other_side() {
        let file = eventfd().unwrap();
        let notifier = Notifier::new(file.try_clone().unwrap()).unwrap();
        notifier.notify();
        notifier.notify();
        let mut bytes = [0; 8];
        (&file).read_exact(&mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 2);
    }

    #[test]
    fn a_full_counter_does_not_hold_up_the_writer() {
        let file = eventfd().unwrap();
        (&file).write_all(&(u64::MAX - 1).to_le_bytes()).unwrap();
        // SAFETY: the descriptor is open, and the command takes an integer: blocking again.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) };
        Notifier::new(file).unwrap().notify();
    }

    #[test]
    fn a_pipe_is_no_notifier() {
        let (_reader, writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        assert!(matches!(Notifier::new(file), Err(NotifierError::NotAnEventfd)));
    }
}
