// SPDX-License-Identifier: Apache-2.0
//! A QEMU guest that ends with its test.

use anyhow::{Context, Result};
use plinth_guest_image::{GuestAgent, GuestImage};
use plinth_ids::{MacAddress, VmId};
use plinth_qemu::{
    Accelerator, Boot, Disk, Machine, Nic, NicNetwork, Process, VmFolder, launch, uuid,
};
use plinth_stage::Scratch;
use plinth_stage::daemon::program;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Emulation on a busy machine: the kernel is at its shell after some seconds, usually.
const BOOT: Duration = Duration::from_secs(100);

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// The guest's files, made once and kept beside what cargo builds.
pub(crate) fn image() -> Result<GuestImage> {
    let own = program("plinth-guest")?;
    let target = own.ancestors().nth(2).context("the target folder")?;
    Ok(plinth_guest_image::build(&target.join("guest-image"))?)
}

#[derive(Debug)]
pub(crate) struct Vm {
    process: Running,
    pub agent: GuestAgent,
}

/// What a VM is given.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub disks: Vec<PathBuf>,
    pub nics: Vec<(PathBuf, MacAddress, Ipv4Addr)>,
    pub boots_from_disk: bool,
}

impl Vm {
    /// Starts a guest and waits until it answers.
    pub(crate) fn start(scratch: &Scratch, number: u64, parts: Parts) -> Result<Self> {
        let image = image()?;
        let folder = VmFolder::new(scratch.join(&format!("vm{number}")))?;
        std::fs::create_dir_all(folder.path()).context("the VM's folder")?;
        let boot = if parts.boots_from_disk {
            Boot::Disk
        } else {
            Boot::Kernel {
                kernel: image.kernel,
                initrd: Some(image.initramfs),
                append: image.kernel_parameters.to_owned(),
            }
        };
        let nic = |(socket, mac, address): (PathBuf, MacAddress, Ipv4Addr)| Nic {
            socket,
            mac,
            mtu: 1450,
            queue_pairs: 1,
            network: vec![NicNetwork {
                address: IpAddr::V4(address),
                prefix_length: 24,
                gateway: None,
            }],
        };
        let machine = Machine {
            name: format!("guest-{number}"),
            uuid: uuid(VmId(number)),
            vcpus: 1,
            memory_mib: 192,
            accelerator: Accelerator::Tcg,
            has_hugepages: false,
            boot,
            disks: parts.disks.into_iter().map(|socket| Disk { socket, queues: 1 }).collect(),
            nics: parts.nics.into_iter().map(nic).collect(),
        };
        let process = Running(launch(Path::new(QEMU), &machine, &folder)?);
        let agent = GuestAgent::connect(&folder.agent(), BOOT).with_context(|| {
            let console = std::fs::read(folder.console_log()).unwrap_or_default();
            format!("the guest's console:\n{}", String::from_utf8_lossy(&console))
        })?;
        Ok(Self { process, agent })
    }

    pub(crate) fn process(&self) -> u32 {
        self.process.0.identity().process
    }

    /// What the guest's kernel complains of, one line each.
    pub(crate) fn complaints(&mut self) -> Result<Vec<String>> {
        let log = self.agent.check("dmesg")?;
        let words = ["I/O error", "blk_update_request", "Buffer I/O", "EXT4-fs error", "hung_task"];
        let is_complaint = |line: &&str| words.iter().any(|word| line.contains(word));
        Ok(log.lines().filter(is_complaint).map(str::to_owned).collect())
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.process.0.is_alive()
    }
}

/// QEMU, ended on drop, also when the guest in it never spoke.
#[derive(Debug)]
struct Running(Process);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill();
        self.0.wait(Duration::from_secs(5));
        // Reaps it: it is our child.
        self.0.ending();
    }
}
