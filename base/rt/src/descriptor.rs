// SPDX-License-Identifier: Apache-2.0
//! Putting another open file behind a descriptor that somebody else owns.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes `target` refer to what `source` refers to; what it referred to is closed. The number
/// stays, and so does whoever owns it.
///
/// For a library that keeps its socket to itself and has to go on with another one.
///
/// # Errors
/// What dup3(2) says; then nothing was changed.
pub fn replace_descriptor(target: &impl AsRawFd, source: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both numbers are open for the length of the call, because their owners are
    // borrowed. The owner of `target` still has an open descriptor afterwards, and closes it once.
    let rc = unsafe { libc::dup3(source.as_raw_fd(), target.as_raw_fd(), libc::O_CLOEXEC) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_number_stays_and_another_socket_is_behind_it() {
        let (first, mut old_peer) = UnixStream::pair().expect("descriptors are there");
        let (second, mut new_peer) = UnixStream::pair().expect("descriptors are there");
        let number = first.as_raw_fd();
        replace_descriptor(&first, second.as_fd()).expect("both are open");
        drop(second);
        assert_eq!(first.as_raw_fd(), number);
        (&first).write_all(b"x").expect("the new peer is there");
        let mut byte = [0];
        new_peer.read_exact(&mut byte).expect("it was written");
        assert_eq!(&byte, b"x");
        // The old socket was closed by the exchange: its peer reads the end.
        assert_eq!(old_peer.read(&mut byte).expect("an end is no error"), 0);
    }
}
