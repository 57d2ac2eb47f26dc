// SPDX-License-Identifier: Apache-2.0
//! Subnets: address ranges of a VPC, and who has which address.

use crate::change::{Change, Key, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::record::SubnetRecord;
use plinth_api::{Code, Refusal};
use plinth_ids::Name;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// An IPv4 range of 2 to 2^24 hosts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network {
    address: Ipv4Addr,
    prefix_length: u8,
}

impl Network {
    pub const fn mask(self) -> u32 {
        u32::MAX << (32 - self.prefix_length)
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.address.to_bits()
    }

    pub const fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask())
    }

    fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// Addresses that a NIC or the gateway may have, in order.
    fn hosts(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.address.to_bits() + 1..self.broadcast().to_bits()).map(Ipv4Addr::from_bits)
    }

    /// Checks a range that an operator wrote.
    fn parse(address: Ipv4Addr, prefix_length: u8) -> Result<Self, Refusal> {
        let refuse = |text: String, remedy: String| {
            Refusal::new(Code::Invalid, text).field("--cidr").remedy(remedy)
        };
        if !(8..=30).contains(&prefix_length) {
            return Err(refuse(
                format!("/{prefix_length} is no size for a subnet"),
                "give /8 to /30, as in 10.0.0.0/24".to_owned(),
            ));
        }
        let network = Self { address, prefix_length };
        let first = Ipv4Addr::from_bits(address.to_bits() & network.mask());
        if first != address {
            return Err(refuse(
                format!("{address}/{prefix_length} has host bits"),
                format!("did you mean {first}/{prefix_length}?"),
            ));
        }
        let is_special = address.is_loopback()
            || address.is_link_local()
            || address.octets()[0] == 0
            || address.octets()[0] >= 224;
        if is_special {
            return Err(refuse(
                format!("{address}/{prefix_length} is reserved"),
                "give a private range, as in 10.0.0.0/24".to_owned(),
            ));
        }
        Ok(network)
    }
}

impl SubnetRecord {
    pub const fn range(&self) -> Network {
        Network { address: self.network, prefix_length: self.prefix_length }
    }
}

impl Cluster {
    pub fn subnet_create(
        &self,
        name: Name,
        vpc: &Name,
        cidr: (Ipv4Addr, u8),
        gateway: Option<Ipv4Addr>,
        now: u64,
    ) -> Result<Change, Refusal> {
        names::free(&self.subnets, "subnet", &name)?;
        let vpc = names::find(&self.vpcs, "vpc", "--vpc", vpc)?;
        let network = Network::parse(cidr.0, cidr.1)?;
        let clash =
            |subnet: &&SubnetRecord| subnet.vpc == vpc.vni && subnet.range().overlaps(network);
        if let Some(other) = self.subnets.values().find(clash) {
            return Err(Refusal::new(
                Code::Exists,
                format!(
                    "{}/{} overlaps subnet {} ({}/{}) of the same vpc",
                    cidr.0, cidr.1, other.name, other.network, other.prefix_length
                ),
            )
            .field("--cidr")
            .remedy("choose a range apart from it"));
        }
        let first = network.hosts().next().expect("a /30 or larger has two hosts");
        let gateway = gateway.unwrap_or(first);
        if !network.hosts_contain(gateway) {
            return Err(Refusal::new(
                Code::Invalid,
                format!("{gateway} is no host address of {}/{}", cidr.0, cidr.1),
            )
            .field("--gateway")
            .remedy(format!("give one from {first} on, or leave it out")));
        }
        let subnet = SubnetRecord {
            name,
            vpc: vpc.vni,
            network: cidr.0,
            prefix_length: cidr.1,
            gateway,
            created_at: now,
        };
        Ok(Change::default().put(Record::Subnet(subnet)))
    }

    pub fn subnet_delete(&self, name: &Name) -> Result<Change, Refusal> {
        names::find(&self.subnets, "subnet", "NAME", name)?;
        let user = self.vms.values().find(|vm| vm.nics.iter().any(|nic| nic.subnet == *name));
        if let Some(vm) = user {
            return Err(Refusal::new(
                Code::InUse,
                format!("VM {} has a NIC in subnet {name}", vm.name),
            )
            .field("NAME")
            .remedy(format!("delete the VM first: plinth vm delete {}", vm.name)));
        }
        Ok(Change::default().delete(Key::Subnet(name.clone())))
    }

    /// Addresses of a subnet that a NIC has.
    pub fn addresses_used(&self, subnet: &Name) -> BTreeSet<Ipv4Addr> {
        self.vms
            .values()
            .flat_map(|vm| &vm.nics)
            .filter(|nic| nic.subnet == *subnet)
            .map(|nic| nic.address)
            .collect()
    }

    /// An address for a new NIC: the one asked for, or the lowest free one. `taken` are those
    /// that the same request has given out.
    pub(crate) fn pick_address(
        &self,
        subnet: &SubnetRecord,
        wanted: Option<Ipv4Addr>,
        taken: &BTreeSet<Ipv4Addr>,
    ) -> Result<Ipv4Addr, Refusal> {
        let mut used = self.addresses_used(&subnet.name);
        used.extend(taken);
        used.insert(subnet.gateway);
        let range = subnet.range();
        let Some(wanted) = wanted else {
            // At most one more than are used is looked at.
            return range.hosts().find(|address| !used.contains(address)).ok_or_else(|| {
                Refusal::new(Code::NoRoom, format!("subnet {} has no address left", subnet.name))
                    .field("--nic")
                    .remedy("delete a VM in it, or make another subnet in the vpc")
            });
        };
        if !range.hosts_contain(wanted) {
            return Err(Refusal::new(
                Code::Invalid,
                format!(
                    "{wanted} is no host address of subnet {} ({}/{})",
                    subnet.name, subnet.network, subnet.prefix_length
                ),
            )
            .field("--nic address")
            .remedy("leave it out to take the next free one"));
        }
        if used.contains(&wanted) {
            let whose = if wanted == subnet.gateway { "the gateway" } else { "another NIC" };
            return Err(Refusal::new(
                Code::Exists,
                format!("{wanted} of subnet {} is that of {whose}", subnet.name),
            )
            .field("--nic address")
            .remedy("leave it out to take the next free one"));
        }
        Ok(wanted)
    }
}

impl Network {
    fn hosts_contain(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.address && address != self.broadcast()
    }

    /// How many addresses [`Self::hosts`] has.
    pub const fn host_count(self) -> u64 {
        (1 << (32 - self.prefix_length)) - 2
    }
}
