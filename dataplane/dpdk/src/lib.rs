// SPDX-License-Identifier: Apache-2.0
#![allow(unsafe_code, reason = "a fence: the only crate that calls DPDK")]
//! Safe owners of what DPDK gives: its environment, memory pools, packet buffers and devices.
//!
//! ```text
//!   Eal ──▶ Mempool ──▶ Mbuf          EthDev (control)     any thread, one at a time
//!    └────────┴──▶ EthDev::open ──▶ {                  }
//!                                     EthQueue (packets)   the worker that it was given to
//! ```
//!
//! Laws:
//! * There is one [`Eal`] a process, it is never taken down, and pools are never freed: an
//!   [`Mbuf`] may then live as long as it likes without counting references per packet. All of
//!   it is anonymous memory, which goes with the process; no file is left behind.
//! * An [`Mbuf`] is owned: it goes back to its pool when it is dropped or has been sent.
//! * A device is closed when its [`EthDev`] and its [`EthQueue`] are both gone.
//! * What DPDK prints is kept and comes out as the text of an error, not on stderr.

mod announce;
mod device_name;
mod eal;
mod ethdev;
mod log;
mod mbuf;
mod mempool;
mod merging;

pub use announce::{Announcer, AnnouncerError};
pub use device_name::{Bus, DeviceName, DeviceNameError};
pub use eal::{Eal, EalConfig, EalError, Memory, RegisterError, Registration};
pub use ethdev::{BURST_MAX, EthDev, EthOptions, EthQueue, EthStats, Link, OpenError};
pub use mbuf::Mbuf;
pub use mempool::{Mempool, MempoolError};
pub use merging::stop_merging;

/// What DPDK says about one of its error numbers.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Errno(pub i32);

impl Errno {
    /// From a call that returns a negative error number, or that returns -1 and sets
    /// `rte_errno`.
    fn from_return(code: i32) -> Self {
        if code == -1 {
            // SAFETY: reads a variable of this thread.
            let errno = unsafe { plinth_dpdk_sys::plinth_errno() };
            return Self(if errno == 0 { 1 } else { errno });
        }
        Self(code.wrapping_neg())
    }

    /// What `rte_errno` says now.
    fn last() -> Self {
        Self::from_return(-1)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // SAFETY: gives a zero-terminated text that is static or this thread's own, and stays
        // until this thread's next call; it is copied before that.
        let text = unsafe { std::ffi::CStr::from_ptr(plinth_dpdk_sys::rte_strerror(self.0)) };
        write!(f, "{} ({})", text.to_string_lossy(), self.0)
    }
}

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}
