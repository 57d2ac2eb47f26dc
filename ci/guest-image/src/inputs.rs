// SPDX-License-Identifier: Apache-2.0
//! What the guest is made of: files of Debian packages on this machine.

use crate::BuildError;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Drivers that the guest loads, in this order, each after what it depends on.
const MODULES: [&str; 7] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "qemu_fw_cfg",
    // The power button, without which a graceful stop is not heard.
    "button",
    "evdev",
];

/// The newest cloud kernel on the machine.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    pub(crate) modules: PathBuf,
}

impl Kernel {
    pub(crate) fn find() -> Result<Self, BuildError> {
        let mut releases: Vec<(Vec<u64>, String)> = std::fs::read_dir("/boot")
            .map_err(|source| BuildError::Read { path: "/boot".into(), source })?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
            .filter(|release| release.contains("-cloud-"))
            .map(|release| (numbers(&release), release))
            .collect();
        releases.sort();
        let (_, release) = releases.pop().ok_or(BuildError::NoKernel)?;
        let modules = Path::new("/lib/modules").join(&release);
        if !modules.join("modules.dep").exists() {
            return Err(BuildError::NoModules { modules });
        }
        Ok(Self { image: format!("/boot/vmlinuz-{release}").into(), modules })
    }

    /// Files of the wanted modules and what they depend on, in the order to load them.
    pub(crate) fn module_files(&self) -> Result<Vec<PathBuf>, BuildError> {
        let path = self.modules.join("modules.dep");
        let text = read_text(&path)?;
        let mut order = Vec::new();
        for module in MODULES {
            load_order(&text, module, &mut order)
                .ok_or_else(|| BuildError::NoModule { module, path: path.clone() })?;
        }
        Ok(order.into_iter().map(|file| self.modules.join(file)).collect())
    }
}

/// The digit groups of a release, so that 6.1.0-10 is newer than 6.1.0-9.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// Appends `module` to `order` after all that it needs. `None` when modules.dep does not know it.
///
/// A line of modules.dep names a file and every file it needs, the deepest last.
fn load_order(dependencies: &str, module: &str, order: &mut Vec<String>) -> Option<()> {
    let suffix = format!("/{module}.ko");
    let (file, needs) = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(file, _)| file.ends_with(&suffix))?;
    for next in needs.split_whitespace().rev().chain([file]) {
        if !order.iter().any(|earlier| earlier == next) {
            order.push(next.to_owned());
        }
    }
    Some(())
}

/// The shared libraries that a program needs, and its loader, as absolute paths.
pub(crate) fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>, BuildError> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .map_err(|source| BuildError::Start { program: "ldd".into(), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        return Err(BuildError::Library { program: program.into(), line: line.trim().to_owned() });
    }
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    std::fs::read(path).map_err(|source| BuildError::Read { path: path.into(), source })
}

fn read_text(path: &Path) -> Result<String, BuildError> {
    std::fs::read_to_string(path).map_err(|source| BuildError::Read { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let text = "k/virtio.ko: k/core.ko\nk/core.ko:\nk/virtio_net.ko: k/failover.ko k/virtio.ko k/core.ko\n";
        let mut order = Vec::new();
        load_order(text, "virtio", &mut order).unwrap();
        load_order(text, "virtio_net", &mut order).unwrap();
        assert_eq!(order, ["k/core.ko", "k/virtio.ko", "k/failover.ko", "k/virtio_net.ko"]);
        assert!(load_order(text, "absent", &mut order).is_none());
    }

    #[test]
    fn ten_is_newer_than_nine() {
        assert!(numbers("6.1.0-10-cloud-amd64") > numbers("6.1.0-9-cloud-amd64"));
    }
}
