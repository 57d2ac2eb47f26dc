// SPDX-License-Identifier: Apache-2.0
//! The run folder of one VM, and the limit that the kernel sets to socket paths.

use plinth_ids::VmId;
use std::path::{Path, PathBuf};

/// Longest path of a unix socket: `sun_path` has 108 bytes with its final zero (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;

/// Where the files of one VM lie. All of them may be lost with the machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VmFolder {
    path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error(
        "the socket path {} has {length} bytes, the kernel takes {SOCKET_PATH_MAX}: choose a \
         shorter --run-dir", path.display()
    )]
    TooLong { path: PathBuf, length: usize },
}

impl VmFolder {
    /// # Errors
    /// When a socket in the folder would have a path that the kernel does not take.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let folder = Self { path: path.into() };
        for socket in [folder.qmp(), folder.console(), folder.agent()] {
            check_socket_path(&socket)?;
        }
        Ok(folder)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The monitor's socket.
    pub fn qmp(&self) -> PathBuf {
        self.path.join("qmp.sock")
    }

    /// The serial console's socket.
    pub fn console(&self) -> PathBuf {
        self.path.join("console.sock")
    }

    /// Everything that the serial console ever said.
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// The socket of the virtio-serial port `plinth.agent`.
    pub fn agent(&self) -> PathBuf {
        self.path.join("agent.sock")
    }

    /// What QEMU says of itself.
    pub fn log(&self) -> PathBuf {
        self.path.join("qemu.log")
    }

    /// Locked by QEMU while it lives, so that a second one for the same VM ends at once.
    pub fn process_file(&self) -> PathBuf {
        self.path.join("qemu.pid")
    }

    /// Locked by a process from before its birth, see [`crate::has_begun`].
    pub fn birth(&self) -> PathBuf {
        self.path.join("birth.lock")
    }

    /// The guest's name, for fw_cfg.
    pub fn hostname(&self) -> PathBuf {
        self.path.join("hostname")
    }

    /// The guest's addresses, for fw_cfg.
    pub fn network(&self) -> PathBuf {
        self.path.join("network")
    }
}

/// What the firmware tells the guest of itself, and by which its process is recognised.
pub fn uuid(vm: VmId) -> String {
    // Version 4 and the usual variant in their places (RFC 9562); the front spells "plinth".
    let low = vm.0 & 0xffff_ffff_ffff;
    let high = vm.0 >> 48;
    format!("706c696e-7468-4000-{:04x}-{low:012x}", 0x8000 | (high & 0x3fff))
}

/// # Errors
/// When the kernel does not take `path` as a socket's.
pub(crate) fn check_socket_path(path: &Path) -> Result<(), FolderError> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(FolderError::TooLong { path: path.into(), length });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_socket_path_that_the_kernel_takes_is_taken() {
        let room = SOCKET_PATH_MAX - "/console.sock".len();
        assert!(VmFolder::new("x".repeat(room)).is_ok());
        let error = VmFolder::new("x".repeat(room + 1)).unwrap_err();
        assert!(error.to_string().contains("--run-dir"), "{error}");
    }

    #[test]
    fn every_vm_has_its_own_uuid() {
        assert_eq!(uuid(VmId(7)), "706c696e-7468-4000-8000-000000000007");
        assert_ne!(uuid(VmId(7)), uuid(VmId(7 | 1 << 48)));
    }
}
