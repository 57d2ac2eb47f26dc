// SPDX-License-Identifier: Apache-2.0
#![forbid(unsafe_code)]
//! The guest that tests and the demonstration boot, made on the spot from Debian's packages.
//!
//! [`build`] gives a kernel and an initramfs for direct boot, and a disk image that boots by
//! itself. Both hold the same guest: busybox, the tools that tests use, a shell on the serial
//! console, and an agent on a virtio-serial port that [`GuestAgent`] speaks with.
//!
//! ```text
//!   direct boot   kernel + initramfs ───────────────────────────▶ /sbin/init in memory
//!   disk boot     BIOS ▶ extlinux ▶ kernel + small initramfs ──▶ /sbin/init on the ext4 disk
//! ```
//!
//! The disk is one ext4 file system without a partition table (ADR-0071).
//! How the guest learns its addresses is ADR-0070.
//! Results lie in a cache folder under a name made from the content of all inputs, so that a
//! second call only looks.

mod agent;
mod cpio;
mod disk;
mod inputs;
mod tree;

pub use agent::{AgentError, GuestAgent, Output};

use inputs::Kernel;
use std::io;
use std::path::{Path, PathBuf};
use tree::{Entry, Tree};

/// Kernel parameters that both ways to boot share. The last seven save seconds under emulation.
pub const KERNEL_PARAMETERS: &str = "console=ttyS0 panic=10 quiet nokaslr mitigations=off \
     random.trust_cpu=on no_timer_check tsc=reliable cryptomgr.notests";

/// The label of the file system on the self-booting disk.
pub const ROOT_LABEL: &str = "plinth-root";

/// The name of the agent's virtio-serial port.
pub const AGENT_PORT: &str = "plinth.agent";

/// Programs that the guest has beside busybox, and the Debian packages they are from.
const PROGRAMS: [(&str, &str); 4] = [
    ("/sbin/mke2fs", "e2fsprogs"),
    ("/sbin/e2fsck", "e2fsprogs"),
    ("/sbin/resize2fs", "e2fsprogs"),
    ("/usr/bin/iperf3", "iperf3"),
];

const BUSYBOX: &str = "/bin/busybox";

/// A finished guest. The files belong to the cache: copy before writing to them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GuestImage {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// A raw image that boots by itself.
    pub disk: PathBuf,
    /// For direct boot.
    pub kernel_parameters: &'static str,
}

/// Why the guest could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("no /boot/vmlinuz-*-cloud-* is there: apt-get install linux-image-cloud-amd64")]
    NoKernel,
    #[error("{} has no modules.dep: reinstall linux-image-cloud-amd64", modules.display())]
    NoModules { modules: PathBuf },
    #[error("{} does not list the module {module}", path.display())]
    NoModule { module: &'static str, path: PathBuf },
    #[error("{path} is missing: apt-get install {package}")]
    NoProgram { path: &'static str, package: &'static str },
    #[error("{} needs a library that is not there: {line}", program.display())]
    Library { program: PathBuf, line: String },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot start {program}")]
    Start { program: String, source: io::Error },
    #[error("{program} failed: {errors}")]
    Failed { program: &'static str, errors: String },
}

/// Makes the guest below `cache`, or finds it there. Needs root, for a loop mount in a mount
/// namespace of its own that ends with the step that uses it.
///
/// # Errors
/// Each error names what is missing and, where one exists, the package that has it.
pub fn build(cache: &Path) -> Result<GuestImage, BuildError> {
    let kernel = Kernel::find()?;
    let kernel_image = inputs::read(&kernel.image)?;
    let early = early_tree(&kernel)?;
    let system = system_tree()?;

    let mut whole = early.clone();
    for (path, entry) in system.entries() {
        match entry {
            Entry::Directory => whole.directory(path),
            Entry::File { mode, content } => whole.file(path, *mode, content.clone()),
            Entry::Link { target } => whole.link(path, target),
        }
    }
    let mut inputs = whole.clone();
    inputs.file("boot/vmlinuz", 0o644, kernel_image.clone());
    inputs.file("boot/settings", 0o644, disk::settings().into_bytes());
    let folder = cache.join(format!("{:016x}", inputs.fingerprint()));
    let image = GuestImage {
        kernel: folder.join("vmlinuz"),
        initramfs: folder.join("initramfs"),
        disk: folder.join("disk.raw"),
        kernel_parameters: KERNEL_PARAMETERS,
    };
    // One at a time: tests of several processes and threads ask for the same guest at once.
    let _turn = take_turn(cache)?;
    if folder.exists() {
        return Ok(image);
    }
    // Made aside and renamed whole, so that a folder with the right name is always complete.
    let draft = cache.join("draft");
    draw(&draft, &kernel_image, &early, &whole)?;
    std::fs::rename(&draft, &folder)
        .map_err(|source| BuildError::Write { path: folder.clone(), source })?;
    Ok(image)
}

/// Waits until nobody else works in `cache`. The turn ends when the file is closed.
fn take_turn(cache: &Path) -> Result<std::fs::File, BuildError> {
    let path = cache.join("lock");
    let open = || {
        std::fs::create_dir_all(cache)?;
        let file = std::fs::File::create(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|source| BuildError::Write { path: path.clone(), source })
}

fn draw(draft: &Path, kernel: &[u8], early: &Tree, whole: &Tree) -> Result<(), BuildError> {
    // What an interrupted build left.
    if draft.exists() {
        std::fs::remove_dir_all(draft)
            .map_err(|source| BuildError::Write { path: draft.into(), source })?;
    }
    std::fs::create_dir(draft)
        .map_err(|source| BuildError::Write { path: draft.into(), source })?;
    write(&draft.join("vmlinuz"), kernel)?;
    write(&draft.join("initramfs"), &cpio::archive(whole))?;
    disk::make(draft, kernel, &cpio::archive(early), whole)
}

pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), BuildError> {
    std::fs::write(path, content).map_err(|source| BuildError::Write { path: path.into(), source })
}

/// What is needed until the root file system is there: busybox, drivers, the first script.
fn early_tree(kernel: &Kernel) -> Result<Tree, BuildError> {
    let mut tree = Tree::default();
    for folder in ["dev", "proc", "sys", "run", "tmp"] {
        tree.directory(folder);
    }
    busybox(&mut tree)?;
    tree.file("init", 0o755, include_bytes!("../guest/init").to_vec());
    let mut list = String::new();
    for file in kernel.module_files()? {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let path = format!("lib/plinth/{name}");
        list.push_str(&format!("/{path}\n"));
        tree.file(&path, 0o644, inputs::read(&file)?);
    }
    tree.file("lib/plinth/modules", 0o644, list.into_bytes());
    Ok(tree)
}

/// Everything that the guest's first process starts and its users type.
fn system_tree() -> Result<Tree, BuildError> {
    let mut tree = Tree::default();
    for folder in ["dev", "proc", "sys", "run", "tmp", "mnt", "root", "var/log"] {
        tree.directory(folder);
    }
    tree.link("var/run", "/run");
    busybox(&mut tree)?;
    for (path, package) in PROGRAMS {
        if !Path::new(path).exists() {
            return Err(BuildError::NoProgram { path, package });
        }
        let program = Path::new(path);
        tree.file(&path[1..], 0o755, inputs::read(program)?);
        for library in inputs::libraries(program)? {
            let inside = library.to_string_lossy();
            tree.file(inside.trim_start_matches('/'), 0o755, inputs::read(&library)?);
        }
    }
    for name in ["mkfs.ext4", "mkfs.ext2"] {
        tree.link(&format!("sbin/{name}"), "mke2fs");
    }
    tree.link("sbin/fsck.ext4", "e2fsck");
    // Without this file mkfs.ext4 makes an ext2 file system.
    tree.file("etc/mke2fs.conf", 0o644, inputs::read(Path::new("/etc/mke2fs.conf"))?);
    tree.file("etc/inittab", 0o644, include_bytes!("../guest/inittab").to_vec());
    tree.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n".to_vec());
    tree.file("etc/group", 0o644, b"root:x:0:\n".to_vec());
    tree.file("etc/profile", 0o644, b"PS1='\\h:\\w# '\n".to_vec());
    tree.file("etc/plinth/start", 0o755, include_bytes!("../guest/start").to_vec());
    tree.file("etc/acpi/PWRF/00000080", 0o755, include_bytes!("../guest/power-off").to_vec());
    tree.file("usr/bin/plinth-agent", 0o755, include_bytes!("../guest/plinth-agent").to_vec());
    Ok(tree)
}

/// busybox with a link for each of its applets, but for those that a real program replaces.
fn busybox(tree: &mut Tree) -> Result<(), BuildError> {
    let program = Path::new(BUSYBOX);
    if !program.exists() {
        return Err(BuildError::NoProgram { path: BUSYBOX, package: "busybox-static" });
    }
    let output = std::process::Command::new(program)
        .arg("--list-full")
        .output()
        .map_err(|source| BuildError::Start { program: BUSYBOX.to_owned(), source })?;
    tree.file("bin/busybox", 0o755, inputs::read(program)?);
    for path in String::from_utf8_lossy(&output.stdout).lines() {
        let is_replaced = ["bin/busybox", "sbin/mke2fs", "sbin/mkfs.ext2"].contains(&path);
        if !is_replaced && !path.starts_with("linuxrc") {
            tree.link(path, "/bin/busybox");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_has_what_tests_call() {
        let mut tree = early_tree(&Kernel::find().unwrap()).unwrap();
        for (path, entry) in system_tree().unwrap().entries() {
            if let Entry::File { mode, content } = entry {
                tree.file(path, *mode, content.clone());
            }
        }
        for path in [
            "init",
            "sbin/init",
            "bin/ping",
            "sbin/mke2fs",
            "bin/dd",
            "usr/bin/sha256sum",
            "sbin/acpid",
            "bin/base64",
            "usr/bin/timeout",
            "sbin/findfs",
            "sbin/switch_root",
            "lib64/ld-linux-x86-64.so.2",
            "lib/plinth/virtio_blk.ko",
        ] {
            assert!(tree.entries().any(|(other, _)| other == path), "{path} is missing");
        }
    }
}
