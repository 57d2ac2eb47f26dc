// SPDX-License-Identifier: Apache-2.0
//! The signals that ask a daemon to stop, as something to wait for.
//!
//! Nothing runs inside a signal handler: the signals are blocked in every thread and taken from
//! the kernel by the one thread that waits.

use std::io;
use std::time::Duration;

/// SIGTERM and SIGINT, blocked in the thread that made this and in all threads started by it
/// afterwards. Made first thing in `main`.
#[derive(Debug)]
pub struct StopSignals {
    set: libc::sigset_t,
}

impl StopSignals {
    pub fn block() -> io::Result<Self> {
        // SAFETY: a signal set is plain integers, for which all zeroes is a value; it is set up
        // by the calls that follow before anything reads it.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // SAFETY: `set` is a signal set that is ours alone, and the number is a signal's.
            check(unsafe { libc::sigaddset(&raw mut set, signal) })?;
        }
        // SAFETY: reads one signal set, which outlives the call; a null old set is allowed.
        let code =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if code == 0 { Ok(Self { set }) } else { Err(io::Error::from_raw_os_error(code)) }
    }

    /// Waits until one of the signals was sent, but not longer than `limit`. Says whether it was.
    pub fn wait(&self, limit: Duration) -> bool {
        let limit = libc::timespec {
            tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(limit.subsec_nanos()),
        };
        // SAFETY: reads one signal set and one time, which outlive the call; a null place for
        // details is allowed.
        let signal = unsafe {
            libc::sigtimedwait(&raw const self.set, std::ptr::null_mut(), &raw const limit)
        };
        // An error is the end of the time or an interruption by another signal: both are "no".
        signal > 0
    }
}

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_waited_for_and_ends_nothing() {
        let signals = StopSignals::block().unwrap();
        assert!(!signals.wait(Duration::ZERO));
        // SAFETY: sends a signal to this thread, where it is blocked.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) };
        assert!(signals.wait(Duration::from_secs(5)));
        assert!(!signals.wait(Duration::ZERO));
    }
}
