// SPDX-License-Identifier: Apache-2.0
//! The sleep of a worker: an edge-triggered epoll set over the poller's descriptors.
//!
//! The set is made afresh whenever the descriptors change. Taking single descriptors out would
//! not do: a kick eventfd is shared with another process, and epoll keeps an entry until the
//! last copy of the file is closed, whoever holds it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes an integer, gives a new descriptor or -1.
        let raw = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` was opened on the line above and nobody else knows its number.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(raw) } })
    }

    /// Watches `fd` until this set is dropped.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        // EPOLLIN and EPOLLET are bits of an unsigned word that libc gives as `c_int`.
        let events = (libc::EPOLLIN | libc::EPOLLET).cast_unsigned();
        let mut event = libc::epoll_event { events, u64: 0 };
        // SAFETY: both descriptors are open while they are borrowed; the kernel reads `event`
        // during the call only.
        let rc = unsafe {
            libc::epoll_ctl(
                self.fd.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                fd.as_raw_fd(),
                &raw mut event,
            )
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sleeps until a watched descriptor becomes ready, a signal comes or `limit` is over.
    /// `true` when a descriptor was ready.
    pub(crate) fn sleep(&self, limit: Option<Duration>) -> bool {
        let timeout = limit.map(|limit| libc::timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // That one is ready is all that is asked: the round that follows looks at every source.
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let events_max: libc::c_int = 1;
        // By number and not through libc's wrapper, which glibc has only since 2.35. The wait in
        // milliseconds of the older call would be coarser than the timed poll.
        //
        // SAFETY: the kernel writes at most `events_max` entries, the one `event`, and reads a
        // timespec that lives in this frame, or none; the signal mask is left as it is.
        let ready = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                &raw mut event,
                events_max,
                timeout,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        // A negative answer is EINTR: the arguments are right by construction. Waking early is
        // always allowed.
        ready > 0
    }
}
