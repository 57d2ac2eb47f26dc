// SPDX-License-Identifier: Apache-2.0
//! `plinth vm`.

use super::Deed;
use crate::text;
use clap::{Args, Subcommand};
use plinth_api::{DiskRequest, NicRequest, Request, VmCreate};
use plinth_ids::Name;

#[derive(Debug, Subcommand)]
pub enum VmVerb {
    /// Make a VM
    ///
    /// Its system disk is a clone of the image, and is deleted with it. Volumes given with
    /// --volume are its further disks, and stay when it is deleted.
    #[command(
        after_help = "Examples:\n  plinth vm create web-1 --image small --nic subnet=blue-a \
        --start\n  plinth vm create web-2 --vcpus 2 --memory 1G --image small \\\n      --nic \
        subnet=blue-a,address=10.0.0.5 --volume data-1 --volume shared,ro\n  plinth vm create lab \
        --kernel /boot/vmlinuz --initrd /boot/initrd.img --append quiet --nic blue-a"
    )]
    Create(Box<CreateArguments>),
    /// Start a VM
    Start {
        name: Name,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// Ask a VM's guest to switch itself off, and cut it off when it has not in time
    Stop {
        name: Name,
        /// Cut it off at once
        #[arg(long, conflicts_with = "grace")]
        hard: bool,
        /// How long the guest may take
        #[arg(long, default_value = "30s", value_parser = text::seconds, value_name = "TIME")]
        grace: u32,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// Delete a VM and its system disk
    Delete {
        name: Name,
        /// Cut it off if it runs
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// All VMs
    List,
    /// One VM
    Show { name: Name },
    /// A VM's serial console; Ctrl-] leaves it
    Console { name: Name },
}

#[derive(Args, Clone, Debug)]
pub struct CreateArguments {
    pub name: Name,
    #[arg(long, default_value = "1")]
    pub vcpus: u32,
    #[arg(long, default_value = "256M", value_parser = text::size)]
    pub memory: u64,
    /// The system disk is a clone of it
    #[arg(long)]
    pub image: Option<Name>,
    /// Of the system disk [default: the image's size]
    #[arg(long, value_parser = text::size, value_name = "SIZE")]
    pub system_size: Option<u64>,
    /// A kernel on the node to boot instead of the first disk
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<String>,
    #[arg(long, value_name = "PATH")]
    pub initrd: Option<String>,
    /// Parameters of the kernel
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// A NIC; may be given several times
    #[arg(long, value_parser = nic, value_name = "[subnet=]SUBNET[,address=ADDRESS][,group=GROUP]...")]
    pub nic: Vec<NicRequest>,
    /// A further disk; may be given several times
    #[arg(long, value_parser = volume, value_name = "VOLUME[,ro]")]
    pub volume: Vec<DiskRequest>,
    /// Where to run it [default: the planner chooses]
    #[arg(long)]
    pub node: Option<Name>,
    /// Start it too
    #[arg(long)]
    pub start: bool,
    #[command(flatten)]
    pub wait: WaitArguments,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct WaitArguments {
    /// Return when it is done, or fail after so long
    #[arg(long, default_value = "60s", value_parser = text::seconds, value_name = "TIME")]
    pub wait: u32,
    /// Return at once
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
}

impl WaitArguments {
    const fn milliseconds(self) -> u32 {
        if self.no_wait { 0 } else { self.wait.saturating_mul(1000) }
    }
}

impl VmVerb {
    pub(super) fn deed(self) -> Deed {
        Deed::Call(match self {
            Self::Console { name } => return Deed::Console(name),
            Self::Create(arguments) => Request::VmCreate(arguments.request()),
            Self::Start { name, wait } => Request::VmStart { name, wait_ms: wait.milliseconds() },
            Self::Stop { name, hard, grace, wait } => Request::VmStop {
                name,
                grace_seconds: if hard { 0 } else { grace },
                wait_ms: wait.milliseconds(),
            },
            Self::Delete { name, force, wait } => {
                Request::VmDelete { name, force, wait_ms: wait.milliseconds() }
            }
            Self::List => Request::VmList,
            Self::Show { name } => Request::VmShow(name),
        })
    }
}

impl CreateArguments {
    fn request(self) -> VmCreate {
        VmCreate {
            name: self.name,
            vcpus: self.vcpus,
            memory: self.memory,
            image: self.image,
            system_size: self.system_size,
            kernel: self.kernel,
            initrd: self.initrd,
            append: self.append,
            nics: self.nic,
            volumes: self.volume,
            node: self.node,
            start: self.start,
            wait_ms: self.wait.milliseconds(),
        }
    }
}

/// `blue-a`, `subnet=blue-a`, `subnet=blue-a,address=10.0.0.5,group=web,group=db`.
pub(super) fn nic(text: &str) -> Result<NicRequest, String> {
    let mut subnet = None;
    let mut address = None;
    let mut groups = Vec::new();
    for part in text.split(',') {
        match part.split_once('=') {
            None | Some(("subnet", _)) if subnet.is_some() => {
                return Err("a NIC is in one subnet; repeat --nic for more".to_owned());
            }
            None => subnet = Some(part.parse().map_err(error)?),
            Some(("subnet", name)) => subnet = Some(name.parse().map_err(error)?),
            Some(("address", value)) => {
                let parsed = value.parse();
                address = Some(parsed.map_err(|_| format!("{value:?} is no IPv4 address"))?);
            }
            Some(("group", name)) => groups.push(name.parse().map_err(error)?),
            Some((key, _)) => {
                return Err(format!("a NIC has no {key:?}; it has subnet, address and group"));
            }
        }
    }
    let subnet = subnet.ok_or("a NIC needs a subnet, as in subnet=blue-a")?;
    Ok(NicRequest { subnet, address, groups })
}

/// `data-1`, `data-1,ro`.
fn volume(text: &str) -> Result<DiskRequest, String> {
    let (name, is_read_only) = match text.split_once(',') {
        None => (text, false),
        Some((name, "ro")) => (name, true),
        Some((_, option)) => {
            return Err(format!("a disk has no option {option:?}; it has ro"));
        }
    };
    Ok(DiskRequest { volume: name.parse().map_err(error)?, is_read_only })
}

fn error(err: plinth_ids::NameError) -> String {
    err.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn a_nic_is_a_subnet_and_maybe_an_address() {
        let subnet: Name = "blue-a".parse().unwrap();
        let plain = NicRequest { subnet: subnet.clone(), address: None, groups: Vec::new() };
        assert_eq!(nic("blue-a"), Ok(plain.clone()));
        assert_eq!(nic("subnet=blue-a"), Ok(plain));
        let address = Some(Ipv4Addr::new(10, 0, 0, 5));
        let groups = vec!["web".parse().unwrap(), "db".parse().unwrap()];
        let full = NicRequest { subnet, address, groups };
        assert_eq!(nic("subnet=blue-a,address=10.0.0.5,group=web,group=db"), Ok(full));
        for text in
            ["", "address=10.0.0.5", "a,b", "a,mtu=9", "a,address=x", "a,group=", "subnet=A"]
        {
            assert!(nic(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_disk_may_be_read_only() {
        assert!(!volume("data-1").unwrap().is_read_only);
        assert!(volume("data-1,ro").unwrap().is_read_only);
        assert!(volume("data-1,rw").is_err());
    }
}
