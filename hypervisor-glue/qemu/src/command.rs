// SPDX-License-Identifier: Apache-2.0
//! The command line of one VM's QEMU: a pure function from [`Machine`].

use crate::{Accelerator, VmFolder};
use plinth_ids::MacAddress;
use serde_json::Value;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Ring slots of a NIC's queue: 1024 is QEMU's most, and absorbs a burst of a poll-mode peer.
const NIC_QUEUE_SIZE: u16 = 1024;
/// Ring slots of a disk's queue.
const DISK_QUEUE_SIZE: u16 = 256;
/// MiB of translated code that emulation keeps. The default grows with the host's memory.
const TRANSLATION_CACHE: u32 = 128;

/// NICs of a VM, each in a port of its own, so that each can come and go while the VM runs. As
/// many as one device has functions.
pub const NIC_PORTS: u8 = 8;
/// Device on the PCI Express bus of the NICs' ports: the last that q35 leaves free.
const PORTS_ADDRESS: &str = "1e";

/// Everything that makes a VM's process what it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Machine {
    pub name: String,
    /// Told to the guest by the firmware, and by which a process is recognised.
    pub uuid: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub accelerator: Accelerator,
    /// Whether the guest's memory is to lie on 2 MiB hugepages.
    pub has_hugepages: bool,
    pub boot: Boot,
    pub disks: Vec<Disk>,
    /// At most [`NIC_PORTS`].
    pub nics: Vec<Nic>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Boot {
    /// By the firmware, from the first disk.
    Disk,
    Kernel {
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        append: String,
    },
}

/// A disk behind a vhost-user-blk socket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Disk {
    pub socket: PathBuf,
    pub queues: u16,
}

/// A NIC behind a vhost-user-net socket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Nic {
    pub socket: PathBuf,
    pub mac: MacAddress,
    pub mtu: u16,
    pub queue_pairs: u16,
    pub network: Vec<NicNetwork>,
}

/// One address that the guest is to give to a NIC.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NicNetwork {
    pub address: IpAddr,
    pub prefix_length: u8,
    pub gateway: Option<IpAddr>,
}

/// The arguments after the program's name.
pub fn command_line(machine: &Machine, folder: &VmFolder) -> Vec<String> {
    let mut line = Line::default();
    base(&mut line, machine, folder);
    sockets(&mut line, folder);
    nic_ports(&mut line);
    for (number, disk) in machine.disks.iter().enumerate() {
        add_disk(&mut line, machine, number, disk);
    }
    for (port, nic) in (0..NIC_PORTS).zip(&machine.nics) {
        add_nic(&mut line, machine.accelerator, port, nic);
    }
    if let Boot::Kernel { kernel, initrd, append } = &machine.boot {
        line.pair("-kernel", kernel.display());
        if let Some(initrd) = initrd {
            line.pair("-initrd", initrd.display());
        }
        line.pair("-append", append);
    }
    line.arguments
}

#[derive(Default)]
struct Line {
    arguments: Vec<String>,
}

impl Line {
    fn pair(&mut self, option: &str, value: impl std::fmt::Display) {
        self.arguments.push(option.to_owned());
        self.arguments.push(value.to_string());
    }
}

fn base(line: &mut Line, machine: &Machine, folder: &VmFolder) {
    for option in ["-nodefaults", "-no-user-config"] {
        line.arguments.push(option.to_owned());
    }
    line.pair("-display", "none");
    line.pair("-name", format_args!("guest={}", escaped(&machine.name)));
    line.pair("-uuid", &machine.uuid);
    line.pair("-pidfile", folder.process_file().display());
    // A guest that escapes into QEMU finds no way to start programs or change its rights.
    line.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    // A guest that switches itself off leaves a process that says so, whenever it is asked.
    line.pair("-action", "shutdown=pause");
    line.pair("-machine", "q35,memory-backend=memory");
    match machine.accelerator {
        Accelerator::Kvm => {
            line.pair("-accel", "kvm");
            line.pair("-cpu", "host");
        }
        Accelerator::Tcg => {
            line.pair("-accel", format_args!("tcg,thread=multi,tb-size={TRANSLATION_CACHE}"));
            line.pair("-cpu", "max");
        }
    }
    line.pair("-smp", machine.vcpus);
    line.pair("-m", format_args!("{}M", machine.memory_mib));
    // vhost-user backends map the guest's memory, so it is shared.
    let pages = if machine.has_hugepages { ",hugetlb=on,hugetlbsize=2M" } else { "" };
    line.pair(
        "-object",
        format_args!("memory-backend-memfd,id=memory,size={}M,share=on{pages}", machine.memory_mib),
    );
    line.pair("-rtc", "base=utc");
    line.pair("-device", "virtio-rng-pci,disable-legacy=on");
    for (key, file) in [("hostname", folder.hostname()), ("network", folder.network())] {
        line.pair("-fw_cfg", format_args!("name=opt/plinth/{key},file={}", path(&file)));
    }
}

/// The monitor, the serial console and the guest agent's port, each on a socket of its own.
fn sockets(line: &mut Line, folder: &VmFolder) {
    let server = |id: &str, socket: &Path| {
        format!("socket,id={id},path={},server=on,wait=off", path(socket))
    };
    line.pair("-chardev", server("qmp", &folder.qmp()));
    line.pair("-mon", "chardev=qmp,mode=control");
    line.pair(
        "-chardev",
        format_args!(
            "{},logfile={},logappend=on",
            server("console", &folder.console()),
            path(&folder.console_log())
        ),
    );
    line.pair("-serial", "chardev:console");
    line.pair("-chardev", server("agent", &folder.agent()));
    line.pair("-device", "virtio-serial-pci,disable-legacy=on");
    line.pair("-device", "virtserialport,chardev=agent,name=plinth.agent");
}

fn add_disk(line: &mut Line, machine: &Machine, number: usize, disk: &Disk) {
    line.pair("-chardev", client(&format!("blk{number}"), &disk.socket));
    let mut device = format!(
        "vhost-user-blk-pci,chardev=blk{number},disable-legacy=on,num-queues={},queue-size={}",
        disk.queues, DISK_QUEUE_SIZE
    );
    if number == 0 && machine.boot == Boot::Disk {
        device.push_str(",bootindex=0");
    }
    line.pair("-device", device);
}

fn add_nic(line: &mut Line, accelerator: Accelerator, port: u8, nic: &Nic) {
    let (chardev, netdev) = (names::chardev(port), names::netdev(port));
    line.pair("-chardev", client(&chardev, &nic.socket));
    line.pair(
        "-netdev",
        format_args!("vhost-user,id={netdev},chardev={chardev},queues={}", nic.queue_pairs),
    );
    let (bus, id) = (names::bus(port), names::device(port));
    let mut device = format!("virtio-net-pci,bus={bus},id={id},netdev={netdev}");
    for (name, value) in nic_properties(accelerator, nic) {
        match value {
            Value::Bool(true) => write!(device, ",{name}=on"),
            Value::String(text) => write!(device, ",{name}={text}"),
            other => write!(device, ",{name}={other}"),
        }
        .expect("a string takes everything");
    }
    line.pair("-device", device);
}

/// What makes a NIC's device, at the start of a VM or later.
pub(crate) fn nic_properties(accelerator: Accelerator, nic: &Nic) -> Vec<(&'static str, Value)> {
    let mut properties = vec![
        ("disable-legacy", "on".into()),
        ("mac", nic.mac.to_string().into()),
        ("host_mtu", nic.mtu.into()),
        ("rx_queue_size", NIC_QUEUE_SIZE.into()),
        ("tx_queue_size", NIC_QUEUE_SIZE.into()),
        ("romfile", "".into()),
    ];
    if nic.queue_pairs > 1 {
        properties.push(("mq", true.into()));
    }
    // One vector a queue, one for the control queue, one for configuration changes. Without KVM
    // none: QEMU 7.2 crashes when it starts a vhost-user NIC with MSI-X vectors under TCG.
    match accelerator {
        Accelerator::Kvm if nic.queue_pairs > 1 => {
            properties.push(("vectors", (2 * nic.queue_pairs + 2).into()));
        }
        Accelerator::Kvm => {}
        Accelerator::Tcg => properties.push(("vectors", 0.into())),
    }
    properties
}

/// Ports for the NICs, those that come later included. One slot of the bus holds all of them, so
/// that a VM with many disks has not fewer places for it.
fn nic_ports(line: &mut Line) {
    for port in 0..NIC_PORTS {
        line.pair(
            "-device",
            format_args!(
                "pcie-root-port,id={bus},bus=pcie.0,addr={PORTS_ADDRESS}.{port},\
                 multifunction=on,chassis={number},slot={number}",
                bus = names::bus(port),
                number = port + 1
            ),
        );
    }
}

/// What QEMU calls the NIC of a port and what is behind it.
pub(crate) mod names {
    pub(crate) fn bus(port: u8) -> String {
        format!("nicport{port}")
    }

    pub(crate) fn device(port: u8) -> String {
        format!("nic{port}")
    }

    pub(crate) fn netdev(port: u8) -> String {
        format!("nicnet{port}")
    }

    pub(crate) fn chardev(port: u8) -> String {
        format!("nicchr{port}")
    }
}

/// A socket that a daemon serves: tried again each second after the daemon died.
fn client(id: &str, socket: &Path) -> String {
    format!("socket,id={id},path={},reconnect=1", path(socket))
}

fn path(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

/// In an option's value a comma is written twice.
fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

/// What the guest reads as `opt/plinth/network` (ADR-0070). Only the first address of each
/// family of a NIC carries the gateway, so that there is one default route.
pub fn network_file(nics: &[Nic]) -> String {
    let mut text = String::new();
    for nic in nics {
        for address in &nic.network {
            let gateway = address.gateway.map_or("-".to_owned(), |gateway| gateway.to_string());
            writeln!(
                text,
                "{} {}/{} {gateway} {}",
                nic.mac, address.address, address.prefix_length, nic.mtu
            )
            .expect("a string takes everything");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            name: "web-1".to_owned(),
            uuid: "706c696e-7468-4000-8000-000000000007".to_owned(),
            vcpus: 2,
            memory_mib: 256,
            accelerator: Accelerator::Tcg,
            has_hugepages: false,
            boot: Boot::Disk,
            disks: vec![
                Disk { socket: "/run/plinth/blk/volume-1.sock".into(), queues: 2 },
                Disk { socket: "/run/plinth/blk/volume-2.sock".into(), queues: 2 },
            ],
            nics: vec![Nic {
                socket: "/run/plinth/net/port-1.sock".into(),
                mac: MacAddress([2, 0, 0, 0, 0, 7]),
                mtu: 1450,
                queue_pairs: 1,
                network: vec![NicNetwork {
                    address: "10.0.0.7".parse().unwrap(),
                    prefix_length: 24,
                    gateway: Some("10.0.0.1".parse().unwrap()),
                }],
            }],
        }
    }

    fn folder() -> VmFolder {
        VmFolder::new("/run/plinth/vm/7").unwrap()
    }

    /// One option a line, as a person would read it.
    fn text(machine: &Machine) -> String {
        command_line(machine, &folder()).join(" ").replace(" -", "\n-")
    }

    #[test]
    fn a_vm_that_boots_from_its_disk_under_emulation() {
        assert_eq!(text(&machine()), include_str!("../tests/snapshots/disk-tcg").trim_end());
    }

    #[test]
    fn a_vm_that_boots_a_kernel_under_kvm_on_hugepages() {
        let machine = Machine {
            accelerator: Accelerator::Kvm,
            has_hugepages: true,
            boot: Boot::Kernel {
                kernel: "/boot/vmlinuz".into(),
                initrd: Some("/boot/initrd".into()),
                append: "console=ttyS0 quiet".to_owned(),
            },
            disks: Vec::new(),
            nics: vec![Nic { queue_pairs: 2, ..machine().nics[0].clone() }],
            ..machine()
        };
        assert_eq!(text(&machine), include_str!("../tests/snapshots/kernel-kvm").trim_end());
    }

    #[test]
    fn a_comma_in_a_path_stays_in_the_path() {
        let machine = Machine {
            disks: vec![Disk { socket: "/run/a,server=on".into(), queues: 1 }],
            ..machine()
        };
        assert!(text(&machine).contains("path=/run/a,,server=on,reconnect=1"));
    }

    #[test]
    fn the_network_file_has_one_line_an_address() {
        assert_eq!(network_file(&machine().nics), "02:00:00:00:00:07 10.0.0.7/24 10.0.0.1 1450\n");
    }
}
