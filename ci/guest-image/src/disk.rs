// SPDX-License-Identifier: Apache-2.0
//! The disk image that boots by itself: one ext4 file system over the whole disk, extlinux in it.
//!
//! There is no partition table on purpose: two boot stages that land at the same address one
//! after the other hang under QEMU's emulation when a vhost-user backend writes them (ADR-0071).

use crate::tree::{Entry, Tree};
use crate::{BuildError, KERNEL_PARAMETERS, ROOT_LABEL, write};
use std::path::Path;
use std::process::Command;

/// Room for the guest's own files, beside what it comes with.
const ROOM: u64 = 64 << 20;

/// extlinux reads ext4 without checksummed metadata and 64-bit block numbers.
const FEATURES: &str = "^64bit,^metadata_csum";

/// The UUID and hash seed are fixed, so that the same inputs give the same file system.
const IDENTITY: &str = "706c696e-7468-4775-8573-74726f6f7431";

/// The boot loader's settings.
pub(crate) fn settings() -> String {
    format!(
        "DEFAULT plinth\nPROMPT 0\nTIMEOUT 0\nLABEL plinth\n  LINUX /boot/vmlinuz\n  \
         INITRD /boot/initramfs\n  APPEND root=LABEL={ROOT_LABEL} {KERNEL_PARAMETERS}\n"
    )
}

/// Makes `disk.raw` in the folder `draft`.
pub(crate) fn make(
    draft: &Path,
    kernel: &[u8],
    early: &[u8],
    system: &Tree,
) -> Result<(), BuildError> {
    let mut tree = Tree::default();
    for (path, entry) in system.entries() {
        match entry {
            // The drivers are loaded before this file system is there.
            _ if path == "init" || path.starts_with("lib/plinth") => {}
            Entry::Directory => tree.directory(path),
            Entry::File { mode, content } => tree.file(path, *mode, content.clone()),
            Entry::Link { target } => tree.link(path, target),
        }
    }
    tree.file("boot/vmlinuz", 0o644, kernel.to_vec());
    tree.file("boot/initramfs", 0o644, early.to_vec());
    tree.file("boot/extlinux/extlinux.conf", 0o644, settings().into_bytes());

    let source = draft.join("root");
    std::fs::create_dir(&source)
        .and_then(|()| tree.write_below(&source))
        .map_err(|error| BuildError::Write { path: source.clone(), source: error })?;
    let image = draft.join("disk.raw");
    write(&image, &[])?;
    let size = (tree.size() + ROOM).next_multiple_of(1 << 20);
    std::fs::File::options()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(size))
        .map_err(|error| BuildError::Write { path: image.clone(), source: error })?;
    run(
        "mke2fs",
        Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", FEATURES])
            .args(["-L", ROOT_LABEL, "-U", IDENTITY])
            .args(["-E", &format!("root_owner=0:0,hash_seed={IDENTITY}")])
            .arg("-d")
            .arg(&source)
            .arg(&image)
            // Honoured by libext2fs: the time of creation.
            .env("E2FSPROGS_FAKE_TIME", "1"),
    )?;
    std::fs::remove_dir_all(&source)
        .map_err(|error| BuildError::Write { path: source.clone(), source: error })?;
    install_loader(draft, &image)
}

/// extlinux asks the kernel where its file lies, so the image must be mounted for a moment. The
/// mount lives in a mount namespace of its own, and the loop device frees itself with it: neither
/// outlives the shell, even when it is killed.
fn install_loader(draft: &Path, image: &Path) -> Result<(), BuildError> {
    let at = draft.join("mount");
    std::fs::create_dir(&at).map_err(|source| BuildError::Write { path: at.clone(), source })?;
    let script = "mount -o loop \"$1\" \"$2\" && extlinux --install \"$2/boot/extlinux\" && \
                  umount \"$2\"";
    run(
        "extlinux",
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh"])
            .arg(image)
            .arg(&at),
    )?;
    std::fs::remove_dir(&at).map_err(|source| BuildError::Write { path: at.clone(), source })
}

fn run(program: &'static str, command: &mut Command) -> Result<(), BuildError> {
    let output = command
        .output()
        .map_err(|source| BuildError::Start { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(BuildError::Failed { program, errors })
}
