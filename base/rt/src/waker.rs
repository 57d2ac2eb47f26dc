// SPDX-License-Identifier: Apache-2.0
//! Waking a worker from another thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// An eventfd that a worker watches. Clones wake the same worker.
///
/// Nobody reads it: it is watched edge-triggered, each write is an edge, and the counter cannot
/// be filled by writes of one within the life of a machine.
#[derive(Clone, Debug)]
pub struct Waker {
    fd: Arc<OwnedFd>,
}

impl Waker {
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes two integers and gives a new descriptor or -1.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` was opened on the line above and nobody else knows its number.
        Ok(Self { fd: Arc::new(unsafe { OwnedFd::from_raw_fd(raw) }) })
    }

    /// Ends the worker's present sleep, or its next one if it is awake.
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: writes the eight bytes of a local to a descriptor that this value keeps open.
        let written = unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
        // The only failure of a one added to a non-blocking eventfd is a full counter, and a
        // full counter has been announced.
        debug_assert!(
            written == 8 || io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
        );
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
