// SPDX-License-Identifier: Apache-2.0
//! Whether a process of a VM exists, from before its birth until after its end.
//!
//! A process that was just begun answers nobody yet, and whoever began it may have ended before
//! it wrote that down. So it is begun with a locked file (flock(2)) as its standard input: the
//! lock belongs to the open file, which the fork shares before anything else happens, and which
//! the kernel closes with the last process that has it. QEMU never reads it.

use crate::VmFolder;
use std::fs::{File, TryLockError};
use std::io;

/// Takes the lock of the VM, to begin its process with. `None` when a process has it.
///
/// # Errors
/// When the lock's file cannot be made, opened or locked.
pub(crate) fn take(folder: &VmFolder) -> io::Result<Option<File>> {
    let file = File::options().create(true).append(true).read(true).open(folder.birth())?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(err)) => Err(err),
    }
}

/// Whether a process of the VM exists, be it one that does not answer yet. A process that was
/// begun by a release without the lock is not seen.
pub fn has_begun(folder: &VmFolder) -> bool {
    let Ok(file) = File::open(folder.birth()) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_has_it_until_its_end_and_its_parent_does_not() {
        let path = std::env::temp_dir().join(format!("plinth-birth-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let folder = VmFolder::new(&path).unwrap();
        assert!(!has_begun(&folder), "without a file");
        let lock = take(&folder).unwrap().unwrap();
        assert!(has_begun(&folder));
        assert!(take(&folder).unwrap().is_none());
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(lock)).spawn().unwrap();
        assert!(has_begun(&folder), "the parent has closed its own");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!has_begun(&folder));
        assert!(take(&folder).unwrap().is_some());
        std::fs::remove_dir_all(&path).unwrap();
    }
}
