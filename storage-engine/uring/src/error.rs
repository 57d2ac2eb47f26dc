// SPDX-License-Identifier: Apache-2.0
//! Why a file cannot be opened or a ring cannot be made, with what to do about it.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path:?} does not exist")]
    Missing { path: PathBuf },
    #[error("{path:?} is in use by another process, or mounted: stop that first")]
    InUse { path: PathBuf },
    /// The one who held it is dead, and the kernel has not let go of it yet.
    #[error(
        "{path:?} is still held for process {process}, which has ended: the kernel takes the \
         requests of the dead down late, after deleting large files later still; it is tried again"
    )]
    Lingers { path: PathBuf, process: u32 },
    #[error(
        "the file system of {path:?} refuses O_DIRECT: use a file on ext4, xfs or tmpfs, or a \
         block device"
    )]
    DirectRefused { path: PathBuf },
    #[error("{path:?} is neither a regular file nor a block device")]
    Kind { path: PathBuf },
    #[error("{path:?} cannot be opened")]
    Open { path: PathBuf, source: io::Error },
    #[error("size and sector size of {path:?} cannot be read")]
    Geometry { path: PathBuf, source: io::Error },
}

/// Why an operation failed. It may have been carried out in part.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OperationError {
    #[error("the device failed with errno {errno}")]
    Device { errno: i32 },
    /// The file ended, or the device took no more.
    #[error("the device moved {moved} of {wanted} bytes")]
    Short { moved: usize, wanted: usize },
}

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(
        "io_uring is switched off on this machine: set it free with `sysctl \
         kernel.io_uring_disabled=0`, or allow it in the container's seccomp profile"
    )]
    Disabled { source: io::Error },
    #[error(
        "this kernel or the seccomp profile of this process has no io_uring: Linux 5.19 or newer \
         is needed, and `io_uring_setup`, `io_uring_enter` and `io_uring_register` must be allowed"
    )]
    Missing { source: io::Error },
    #[error("the kernel has no memory to lock for a ring of {depth} operations: raise `ulimit -l`")]
    Memory { depth: u32, source: io::Error },
    #[error("no io_uring of {depth} operations can be made")]
    Other { depth: u32, source: io::Error },
    #[error("a ring has 1 to {max} operations; {depth} were asked for")]
    Depth { depth: u32, max: u32 },
}

impl SetupError {
    /// Sorts what `io_uring_setup` said by what an operator has to do.
    pub(crate) fn from_setup(depth: u32, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Disabled { source },
            Some(libc::ENOSYS) => Self::Missing { source },
            Some(libc::ENOMEM) => Self::Memory { depth, source },
            _ => Self::Other { depth, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_of_the_kernel_has_its_own_remedy() {
        let sorted = |code| SetupError::from_setup(8, io::Error::from_raw_os_error(code));
        assert!(matches!(sorted(libc::EPERM), SetupError::Disabled { .. }));
        assert!(matches!(sorted(libc::ENOSYS), SetupError::Missing { .. }));
        assert!(matches!(sorted(libc::ENOMEM), SetupError::Memory { depth: 8, .. }));
        assert!(matches!(sorted(libc::EMFILE), SetupError::Other { depth: 8, .. }));
        assert!(sorted(libc::EPERM).to_string().contains("kernel.io_uring_disabled=0"));
    }
}
