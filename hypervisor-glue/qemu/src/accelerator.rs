// SPDX-License-Identifier: Apache-2.0
//! Whether KVM runs a guest here, found by running one.
//!
//! /dev/kvm may be there and guests hang all the same, as in nested set-ups without hardware
//! help. So a guest is booted that does one thing: its boot sector, loaded by the ordinary
//! firmware from a virtio disk, tells QEMU to end with a status that nothing else gives.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The status that QEMU's isa-debug-exit makes of [`TOKEN`]: twice the value, plus one.
const STATUS: i32 = 2 * TOKEN as i32 + 1;
const TOKEN: u8 = 0x2a;
const PORT: u8 = 0xf4;
/// The firmware does not boot from a virtio disk of one sector.
const DISK_LENGTH: u64 = 1 << 20;

/// What is read of QEMU's complaints, less than a pipe holds.
const ERRORS_LENGTH_MAX: u64 = 16 * 1024;

/// What executes the guests' instructions.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's emulation: correct, and many times slower.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// What a try of KVM came to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Probe {
    pub accelerator: Accelerator,
    /// What was seen, for people.
    pub text: String,
}

/// Boots a guest under KVM. `limit` is how long it may take: half a second is usual where KVM
/// works; where the guest hangs all of it passes. `scratch` is a folder for a small file.
pub fn probe(qemu: &Path, device: &Path, scratch: &Path, limit: Duration) -> Probe {
    let tcg = |text: String| Probe { accelerator: Accelerator::Tcg, text };
    if !device.exists() {
        return tcg(format!("{} is not there", device.display()));
    }
    if let Err(error) = std::fs::File::options().read(true).write(true).open(device) {
        return tcg(format!("{} cannot be opened: {error}", device.display()));
    }
    match boot(qemu, scratch, limit) {
        Ok(Boot::Done(took)) => Probe {
            accelerator: Accelerator::Kvm,
            text: format!("a guest ran under KVM in {} ms", took.as_millis()),
        },
        Ok(Boot::Hung) => tcg(format!(
            "{} is there, but a guest under KVM did not get through its firmware in {} s",
            device.display(),
            limit.as_secs_f32()
        )),
        Ok(Boot::Ended(how)) => tcg(format!("QEMU under KVM {how}")),
        Err(error) => tcg(format!("{} cannot be tried: {error}", qemu.display())),
    }
}

enum Boot {
    Done(Duration),
    Hung,
    Ended(String),
}

fn boot(qemu: &Path, scratch: &Path, limit: Duration) -> io::Result<Boot> {
    let image = scratch.join("kvm-probe.img");
    std::fs::write(&image, boot_sector())?;
    std::fs::File::options().write(true).open(&image)?.set_len(DISK_LENGTH)?;
    let start = Instant::now();
    let mut child = Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"])
        .args(["-accel", "kvm", "-cpu", "host", "-m", "64"])
        .args(["-device", &format!("isa-debug-exit,iobase={PORT:#x},iosize=1")])
        .arg("-drive")
        .arg(format!("file={},format=raw,if=virtio,readonly=on", image.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    std::fs::remove_file(&image)?;
    Ok(match ended {
        None => Boot::Hung,
        Some(status) if status.code() == Some(STATUS) => Boot::Done(start.elapsed()),
        Some(status) => {
            let mut bytes = Vec::new();
            if let Some(errors) = child.stderr.take() {
                errors.take(ERRORS_LENGTH_MAX).read_to_end(&mut bytes)?;
            }
            let errors = String::from_utf8_lossy(&bytes);
            let first = errors.lines().next().unwrap_or("it said nothing");
            Boot::Ended(format!("ended with {status}: {first}"))
        }
    })
}

/// `mov al, TOKEN; out PORT, al; hlt; jmp back`, and the signature that makes it bootable.
fn boot_sector() -> [u8; 512] {
    let mut sector = [0; 512];
    sector[..7].copy_from_slice(&[0xb0, TOKEN, 0xe6, PORT, 0xf4, 0xeb, 0xfd]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    /// A folder with a stand-in for QEMU that does what `script` says.
    fn stand_in(name: &str, script: &str) -> (PathBuf, PathBuf) {
        let folder = std::env::temp_dir().join(format!("plinth-kvm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let program = folder.join("qemu");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        (folder, program)
    }

    fn outcome(name: &str, script: &str) -> Probe {
        let (folder, program) = stand_in(name, script);
        // Any file that opens stands for the device.
        let result = probe(&program, Path::new("/dev/null"), &folder, Duration::from_millis(500));
        std::fs::remove_dir_all(folder).unwrap();
        result
    }

    #[test]
    fn a_guest_that_hangs_means_tcg_within_the_limit() {
        let start = Instant::now();
        let probe = outcome("hang", "exec sleep 100");
        assert_eq!(probe.accelerator, Accelerator::Tcg);
        assert!(probe.text.contains("firmware"), "{}", probe.text);
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn the_guest_of_the_probe_gets_through_under_emulation() {
        // The same command line, with the accelerator changed on the way.
        let (folder, program) = stand_in(
            "emulated",
            "for word in \"$@\"; do shift; case $word in kvm) word=tcg ;; host) word=max ;; esac; \
             set -- \"$@\" \"$word\"; done; exec qemu-system-x86_64 \"$@\"",
        );
        let limit = Duration::from_secs(30);
        let result = probe(&program, Path::new("/dev/null"), &folder, limit);
        std::fs::remove_dir_all(folder).unwrap();
        assert_eq!(result.accelerator, Accelerator::Kvm, "{}", result.text);
    }

    #[test]
    fn the_token_s_status_means_kvm() {
        let probe = outcome("good", &format!("exit {STATUS}"));
        assert_eq!(probe.accelerator, Accelerator::Kvm, "{}", probe.text);
    }

    #[test]
    fn any_other_end_means_tcg() {
        for status in [0, 1, 2 * i32::from(TOKEN)] {
            let probe = outcome(&format!("end-{status}"), &format!("exit {status}"));
            assert_eq!(probe.accelerator, Accelerator::Tcg, "{status}: {}", probe.text);
        }
    }

    #[test]
    fn no_device_means_tcg_without_a_try() {
        let nowhere = Path::new("/nonexistent/kvm");
        let probe = probe(Path::new("/nonexistent/qemu"), nowhere, nowhere, Duration::from_secs(9));
        assert_eq!(probe.accelerator, Accelerator::Tcg);
        assert!(probe.text.contains("is not there"));
    }
}
