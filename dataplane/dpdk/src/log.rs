// SPDX-License-Identifier: Apache-2.0
//! What DPDK prints, kept for the error that it explains.
//!
//! The log goes into a pipe that nobody waits on: when it is full, what comes later is lost, and
//! the printing thread is not held up.

use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Mutex, OnceLock};

/// The reading end, made once.
static LOG: OnceLock<Mutex<std::fs::File>> = OnceLock::new();

/// Longest text that an error carries.
const TEXT_LENGTH_MAX: usize = 2000;

/// Sends what DPDK prints from here on into the pipe.
pub(crate) fn capture() -> io::Result<()> {
    if LOG.get().is_some() {
        return Ok(());
    }
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors into an array of two.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let [read_end, write_end] = ends;
    // SAFETY: opened by the call above, known to nobody else.
    let read_end = unsafe { OwnedFd::from_raw_fd(read_end) };
    // SAFETY: the descriptor was opened above and becomes the stream's; the mode is a
    // zero-terminated text.
    let stream = unsafe { libc::fdopen(write_end, c"w".as_ptr()) };
    if stream.is_null() {
        let error = io::Error::last_os_error();
        // SAFETY: `fdopen` failed, so the descriptor is still ours alone.
        drop(unsafe { OwnedFd::from_raw_fd(write_end) });
        return Err(error);
    }
    // SAFETY: the stream was opened above and nothing was written to it. Without a buffer a
    // line is in the pipe when it is printed, and none is stuck in front of a full pipe.
    unsafe { libc::setvbuf(stream, std::ptr::null_mut(), libc::_IONBF, 0) };
    // SAFETY: DPDK keeps the stream for the life of the process, and nobody closes it. Its type
    // is the C library's `FILE`, which the two bindings name each in their own way.
    unsafe { plinth_dpdk_sys::rte_openlog_stream(stream.cast()) };
    // A second caller cannot be here at the same time: `Eal::init` holds its own lock.
    let _ = LOG.set(Mutex::new(std::fs::File::from(read_end)));
    Ok(())
}

/// Takes what was printed since the last call, on one line.
pub(crate) fn take() -> String {
    let Some(log) = LOG.get() else { return String::new() };
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    let mut log = log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    while let Ok(length @ 1..) = log.read(&mut piece) {
        bytes.extend_from_slice(&piece[..length]);
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut line = text.lines().map(str::trim).filter(|line| !line.is_empty()).fold(
        String::new(),
        |mut all, line| {
            if !all.is_empty() {
                all.push_str("; ");
            }
            all.push_str(line);
            all
        },
    );
    if line.len() > TEXT_LENGTH_MAX {
        let cut = (0..=TEXT_LENGTH_MAX).rev().find(|&at| line.is_char_boundary(at));
        line.truncate(cut.expect("zero is a boundary of every text"));
    }
    line
}
