// SPDX-License-Identifier: Apache-2.0
//! Which CPUs the calling thread may run on.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum AffinityError {
    #[error(
        "the thread cannot be pinned to CPU {cpu}; choose one that is online and in the \
         process's cpuset"
    )]
    Refused { cpu: u32, source: io::Error },
    #[error("the thread's CPU set cannot be changed")]
    Set { source: io::Error },
    #[error("the thread's CPU set cannot be read")]
    Read { source: io::Error },
}

const CPU_MAX: u32 = libc::CPU_SETSIZE as u32 - 1;

/// Pins the calling thread to one CPU. Threads that it starts later inherit this.
pub fn pin_to(cpu: u32) -> Result<(), AffinityError> {
    set(&[cpu]).map_err(|source| AffinityError::Refused { cpu, source })
}

/// The CPUs that the calling thread may run on, lowest first.
pub fn allowed_cpus() -> Result<Vec<u32>, AffinityError> {
    // SAFETY: `cpu_set_t` is an array of integers, for which all zeroes is a legal value.
    let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `size_of::<cpu_set_t>()` bytes into a set of that size
    // that lives on this stack.
    let rc = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut cpus) };
    if rc != 0 {
        return Err(AffinityError::Read { source: io::Error::last_os_error() });
    }
    // SAFETY: CPU_ISSET reads a bit of the set; the index is below CPU_SETSIZE.
    let is_set = |cpu: &u32| unsafe { libc::CPU_ISSET(*cpu as usize, &cpus) };
    Ok((0..=CPU_MAX).filter(is_set).collect())
}

/// Lets the calling thread run on each of `cpus`: the way back from a library that pinned it.
pub fn allow_all_cpus(cpus: &[u32]) -> Result<(), AffinityError> {
    set(cpus).map_err(|source| AffinityError::Set { source })
}

fn set(cpus: &[u32]) -> io::Result<()> {
    // SAFETY: as in `allowed_cpus`.
    let mut wanted: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        if cpu > CPU_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: CPU_SET writes a bit of our own set; the index is below CPU_SETSIZE, checked
        // above.
        unsafe { libc::CPU_SET(cpu as usize, &mut wanted) };
    }
    // SAFETY: the kernel reads `size_of::<cpu_set_t>()` bytes of a set of that size.
    let rc = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const wanted) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_run_on_one_cpu_only_and_can_be_let_go() {
        // A thread of its own, because the harness's threads must keep all CPUs.
        std::thread::spawn(|| {
            let all = allowed_cpus().unwrap();
            let last = *all.last().unwrap();
            pin_to(last).unwrap();
            assert_eq!(allowed_cpus().unwrap(), [last]);
            allow_all_cpus(&all).unwrap();
            assert_eq!(allowed_cpus().unwrap(), all);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named_in_the_refusal() {
        for cpu in [CPU_MAX, CPU_MAX + 1, u32::MAX] {
            let error = pin_to(cpu).unwrap_err();
            assert!(error.to_string().contains(&cpu.to_string()), "{error}");
        }
    }
}
