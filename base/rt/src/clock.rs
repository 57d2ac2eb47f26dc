// SPDX-License-Identifier: Apache-2.0
//! The two clocks of a worker: time for decisions, cycles for the books.

use plinth_ids::Moment;
use std::time::Instant;

/// Gives [`Moment`]s: time since this clock was made. Copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    pub fn now(&self) -> Moment {
        self.start.elapsed()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// The CPU's time-stamp counter. Its rate is constant and the same on every CPU of a machine
/// that can run this program, but it is not the CPU's clock rate: compare it with itself only.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn cycles() -> u64 {
    // SAFETY: RDTSC reads a counter and touches no memory. The kernel leaves it enabled for
    // user space; a process that asked for PR_TSC_SIGSEGV would be the only one to be hurt.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The CPU's virtual counter. Its rate is constant and the same on every CPU.
#[cfg(target_arch = "aarch64")]
#[inline]
pub fn cycles() -> u64 {
    let count: u64;
    // SAFETY: reads a counter register that Linux leaves enabled for user space; no memory and
    // no flags are touched.
    unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack)) };
    count
}
