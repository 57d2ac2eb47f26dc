// SPDX-License-Identifier: Apache-2.0
//! Subnets: address ranges of a VPC, and who has which address.

use crate::change::{Change, Key, Record};
use crate::cluster::Cluster;
use crate::names;
use crate::record::{BalancerRecord, SubnetRecord, VpcRecord};
use plinth_api::{BalancerPlace, Code, DhcpSpec, GatewaySpec, HopSpec, Refusal, ServesSpec};
use plinth_ids::{MacAddress, Name, Prefix};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Of one VPC; the switch takes as many.
const SUBNETS_MAX: usize = 256;

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

    /// Its ranges with the router's address in each.
    pub fn prefixes(&self) -> Vec<GatewaySpec> {
        let ipv4 = Prefix::new(self.network.into(), self.prefix_length);
        let ipv4 = ipv4.ok().map(|prefix| GatewaySpec { prefix, gateway: self.gateway.into() });
        let ipv6 = self.ipv6.and_then(|prefix| match prefix.network() {
            IpAddr::V6(network) => {
                let gateway = Ipv6Addr::from_bits(network.to_bits() | 1).into();
                Some(GatewaySpec { prefix, gateway })
            }
            IpAddr::V4(_) => None,
        });
        ipv4.into_iter().chain(ipv6).collect()
    }

    /// Whether an address of either family is in one of its ranges.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.prefixes().iter().any(|given| given.prefix.contains(address))
    }

    /// The address of IPv6 that a NIC makes of its MAC (RFC 4291, appendix A).
    pub fn ipv6_of(&self, mac: MacAddress) -> Option<Ipv6Addr> {
        let IpAddr::V6(network) = self.ipv6?.network() else { return None };
        let [a, b, c, d, e, f] = mac.0;
        let host = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        Some(Ipv6Addr::from_bits(network.to_bits() | u128::from(host)))
    }
}

impl Cluster {
    pub fn subnet_create(
        &self,
        name: Name,
        vpc: &Name,
        cidr: (Ipv4Addr, u8),
        gateway: Option<Ipv4Addr>,
        ipv6: Option<Prefix>,
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
        if let Some(ipv6) = ipv6 {
            self.check_ipv6(vpc, ipv6)?;
        }
        let range = Prefix::new(cidr.0.into(), cidr.1).expect("Network::parse checked it");
        for prefix in std::iter::once(range).chain(ipv6) {
            if vpc.routes.iter().any(|route| route.destination == prefix) {
                let text = format!("vpc {} has a route to {prefix}", vpc.name);
                return Err(Refusal::new(Code::Exists, text)
                    .field("--cidr")
                    .remedy("remove the route first: a subnet is one by itself"));
            }
        }
        let count = self.subnets.values().filter(|subnet| subnet.vpc == vpc.vni).count();
        if count >= SUBNETS_MAX {
            let text = format!("vpc {} has {SUBNETS_MAX} subnets, which is the limit", vpc.name);
            return Err(Refusal::new(Code::NoRoom, text)
                .field("--vpc")
                .remedy("delete one, or make another vpc"));
        }
        let subnet = SubnetRecord {
            name,
            vpc: vpc.vni,
            network: cidr.0,
            prefix_length: cidr.1,
            gateway,
            ipv6,
            dhcp: Some(DhcpSpec::default()),
            created_at: now,
        };
        Ok(Change::default().put(Record::Subnet(subnet)))
    }

    /// Checks a range of IPv6 for a subnet of `vpc`.
    fn check_ipv6(&self, vpc: &VpcRecord, ipv6: Prefix) -> Result<(), Refusal> {
        let refuse = |code, text: String, remedy: &str| {
            Err(Refusal::new(code, text).field("--ipv6").remedy(remedy))
        };
        if ipv6.is_ipv4() || ipv6.length() != 64 {
            let text = format!("{ipv6} is no /64 of IPv6");
            return refuse(Code::Invalid, text, "give one, as in fd00:1::/64");
        }
        let network = ipv6.network();
        let is_special = network.is_multicast()
            || network.is_loopback()
            || network.is_unspecified()
            || matches!(network, IpAddr::V6(address) if address.is_unicast_link_local());
        if is_special {
            let text = format!("{ipv6} is reserved");
            return refuse(Code::Invalid, text, "give a private range, as in fd00:1::/64");
        }
        let clash = |subnet: &&SubnetRecord| subnet.vpc == vpc.vni && subnet.ipv6 == Some(ipv6);
        match self.subnets.values().find(clash) {
            None => Ok(()),
            Some(other) => refuse(
                Code::Exists,
                format!("{ipv6} is that of subnet {} of the same vpc", other.name),
                "choose a range apart from it",
            ),
        }
    }

    pub fn subnet_delete(&self, name: &Name) -> Result<Change, Refusal> {
        let subnet = names::find(&self.subnets, "subnet", "NAME", name)?;
        let user = self.vms.values().find(|vm| vm.nics.iter().any(|nic| nic.subnet == *name));
        if let Some(vm) = user {
            return Err(Refusal::new(
                Code::InUse,
                format!("VM {} has a NIC in subnet {name}", vm.name),
            )
            .field("NAME")
            .remedy(format!("delete the VM first: plinth vm delete {}", vm.name)));
        }
        let serves = ServesSpec::Subnet(name.clone());
        if let Some(gateway) = self.gateways.values().find(|gateway| gateway.serves == serves) {
            let text = format!("NAT gateway {} serves subnet {name}", gateway.name);
            return Err(Refusal::new(Code::InUse, text)
                .field("NAME")
                .remedy(format!("delete it first: plinth nat-gateway delete {}", gateway.name)));
        }
        if let Some(balancer) = self.balanced_in(name).next() {
            let text = format!("load balancer {} has an address of subnet {name}", balancer.name);
            return Err(Refusal::new(Code::InUse, text)
                .field("NAME")
                .remedy(format!("delete it first: plinth lb delete {}", balancer.name)));
        }
        // A next hop in no subnet would have the switches refuse the whole configuration.
        let vpc = self.vpc(subnet.vpc);
        let through = vpc.into_iter().flat_map(|vpc| &vpc.routes).find(
            |route| matches!(route.next_hop, HopSpec::Address(hop) if subnet.has_address(hop)),
        );
        if let Some(route) = through {
            let text = format!("the route to {} leads through subnet {name}", route.destination);
            return Err(Refusal::new(Code::InUse, text)
                .field("NAME")
                .remedy("remove it first: plinth route remove"));
        }
        Ok(Change::default().delete(Key::Subnet(name.clone())))
    }

    /// Addresses of a subnet that a NIC or a load balancer has.
    pub fn addresses_used(&self, subnet: &Name) -> BTreeSet<Ipv4Addr> {
        self.vms
            .values()
            .flat_map(|vm| &vm.nics)
            .filter(|nic| nic.subnet == *subnet)
            .map(|nic| nic.address)
            .chain(self.balanced_in(subnet).filter_map(|one| match one.address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            }))
            .collect()
    }

    /// The load balancers that have an address of a subnet.
    fn balanced_in<'a>(&'a self, subnet: &'a Name) -> impl Iterator<Item = &'a BalancerRecord> {
        let is_in = move |one: &&BalancerRecord| matches!(&one.place, BalancerPlace::Subnet(name) if name == subnet);
        self.balancers.values().filter(is_in)
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
            let whose = if wanted == subnet.gateway {
                "the gateway"
            } else {
                "another NIC or load balancer"
            };
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
