// SPDX-License-Identifier: Apache-2.0
//! `plinth vpc`, `plinth subnet`, `plinth route` and `plinth nic`.

use super::storage::Switch;
use crate::text;
use clap::{Args, Subcommand};
use plinth_api::{DhcpRouteSpec, DhcpSpec, NicLimits, NicRate, NicRequest, Request, RouteHop};
use plinth_ids::{Name, Prefix, Vni};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

#[derive(Debug, Subcommand)]
pub enum VpcVerb {
    /// Make a network that no other can hear
    #[command(after_help = "Example:\n  plinth vpc create blue")]
    Create {
        name: Name,
        /// Its number in VXLAN [default: the next free one]
        #[arg(long, value_parser = vni)]
        vni: Option<Vni>,
    },
    /// All VPCs
    List,
    /// Delete a vpc without subnets
    Delete { name: Name },
    /// Say who is asked about names that are no VM's, instead of those before
    #[command(
        after_help = "VMs are NAME.VPC.internal in their vpc, whoever is asked about others.\n\n\
        Examples:\n  plinth vpc dns blue --upstream 192.0.2.53\n  plinth vpc dns blue"
    )]
    Dns {
        name: Name,
        /// A name server, asked from the node's own network; none: other names are refused
        #[arg(long, value_parser = text::server, value_name = "ADDRESS[:PORT]")]
        upstream: Vec<SocketAddr>,
    },
    /// Say whether guests are told their metadata at 169.254.169.254 and fd00:ec2::254
    #[command(after_help = "Example:\n  plinth vpc metadata blue off")]
    Metadata {
        name: Name,
        #[arg(value_enum)]
        state: Switch,
    },
}

impl VpcVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Create { name, vni } => Request::VpcCreate { name, vni },
            Self::List => Request::VpcList,
            Self::Delete { name } => Request::VpcDelete(name),
            Self::Dns { name, upstream } => Request::VpcDns { name, upstreams: upstream },
            Self::Metadata { name, state } => {
                Request::VpcMetadata { name, is_told: state == Switch::On }
            }
        }
    }
}

fn vni(text: &str) -> Result<Vni, String> {
    let raw: u32 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    Vni::try_from(raw).map_err(|err| err.to_string())
}

#[derive(Debug, Subcommand)]
pub enum SubnetVerb {
    /// Give a vpc an address range
    #[command(after_help = "Example:\n  plinth subnet create blue-a --vpc blue --cidr 10.0.0.0/24")]
    Create {
        name: Name,
        #[arg(long)]
        vpc: Name,
        /// The range
        #[arg(long, value_parser = text::cidr, value_name = "ADDRESS/LENGTH")]
        cidr: (Ipv4Addr, u8),
        /// Of the vpc's router [default: the first address]
        #[arg(long, value_name = "ADDRESS")]
        gateway: Option<Ipv4Addr>,
        /// A /64 beside it; NICs take the address in it that their MAC makes
        #[arg(long, value_name = "ADDRESS/64")]
        ipv6: Option<Prefix>,
    },
    /// All subnets
    List,
    /// Delete a subnet without VMs
    Delete { name: Name },
    /// Say what guests are told by DHCP and router advertisements, instead of what they were told
    #[command(after_help = "Address, gateway and MTU are those of the NIC and not said here.\n\n\
        Examples:\n  plinth subnet dhcp blue-a --lease 3600 --dns 10.0.0.53 --domain example.org\n  \
        plinth subnet dhcp blue-a --route 10.9.0.0/16=10.0.0.5\n  plinth subnet dhcp blue-a --off")]
    Dhcp {
        name: Name,
        #[command(flatten)]
        told: DhcpArguments,
    },
}

#[derive(Args, Clone, Debug)]
pub struct DhcpArguments {
    /// Of the address, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = DhcpSpec::default().lease_seconds)]
    lease: u32,
    /// A name server [default: the router, which knows the vpc's VMs]
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// To search for names [default: VPC.internal]
    #[arg(long)]
    domain: Option<String>,
    /// A route beside the default one
    #[arg(long, value_parser = text::told_route, value_name = "ADDRESS/LENGTH=GATEWAY")]
    route: Vec<DhcpRouteSpec>,
    /// A time server
    #[arg(long, value_name = "ADDRESS")]
    ntp: Vec<Ipv4Addr>,
    /// Tell guests nothing
    #[arg(long, conflicts_with_all = ["lease", "dns", "domain", "route", "ntp"])]
    off: bool,
}

impl DhcpArguments {
    fn spec(self) -> Option<DhcpSpec> {
        let Self { lease, dns, domain, route, ntp, off } = self;
        (!off).then_some(DhcpSpec { lease_seconds: lease, dns, domain, routes: route, ntp })
    }
}

impl SubnetVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Create { name, vpc, cidr: (network, prefix_length), gateway, ipv6 } => {
                Request::SubnetCreate { name, vpc, network, prefix_length, gateway, ipv6 }
            }
            Self::List => Request::SubnetList,
            Self::Delete { name } => Request::SubnetDelete(name),
            Self::Dhcp { name, told } => Request::SubnetDhcp { name, dhcp: told.spec() },
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum RouteVerb {
    /// Lead a range of addresses somewhere
    #[command(after_help = "Examples:\n  plinth route add blue 0.0.0.0/0 --via 10.0.0.5\n  \
        plinth route add blue 10.1.0.0/16 --peer red\n  plinth route add blue 10.9.0.0/16 \
        --blackhole\n  plinth route add blue 0.0.0.0/0 --external")]
    Add {
        vpc: Name,
        /// The longest one that has a packet's address decides
        #[arg(value_parser = text::prefix, value_name = "ADDRESS/LENGTH")]
        destination: Prefix,
        #[command(flatten)]
        hop: HopArguments,
    },
    /// Forget a route
    Remove {
        vpc: Name,
        #[arg(value_parser = text::prefix, value_name = "ADDRESS/LENGTH")]
        destination: Prefix,
    },
    /// The routes of a vpc, or of all
    List { vpc: Option<Name> },
}

#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct HopArguments {
    /// The address of a NIC of the vpc, whose VM routes
    #[arg(long, value_name = "ADDRESS")]
    via: Option<IpAddr>,
    /// The subnets of another vpc, once it has a route back
    #[arg(long, value_name = "VPC")]
    peer: Option<Name>,
    /// Outside, under an external address or by a NAT gateway
    #[arg(long)]
    external: bool,
    /// Drop it
    #[arg(long)]
    blackhole: bool,
}

impl RouteVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Add { vpc, destination, hop } => {
                let next_hop = match (hop.via, hop.peer) {
                    (Some(address), _) => RouteHop::Address(address),
                    (None, Some(peer)) => RouteHop::Peer(peer),
                    (None, None) if hop.external => RouteHop::External,
                    (None, None) => RouteHop::Blackhole,
                };
                Request::RouteAdd { vpc, destination, next_hop }
            }
            Self::Remove { vpc, destination } => Request::RouteRemove { vpc, destination },
            Self::List { vpc } => Request::RouteList(vpc),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum NicVerb {
    /// The NICs of a VM, or of all
    List { vm: Option<Name> },
    /// One NIC: addresses, groups, ranges that it may speak from
    Show { nic: Name },
    /// Give a VM one more NIC, also while it runs
    #[command(after_help = "Example:\n  plinth nic attach web-1 subnet=blue-a,group=web")]
    Attach {
        vm: Name,
        /// A subnet, maybe an address, maybe security groups, as in `plinth vm create --nic`
        #[arg(value_parser = super::vm::nic, value_name = "NIC")]
        nic: NicRequest,
    },
    /// Take a NIC from its VM, also while that runs; its addresses are free when the guest has let
    /// go of it
    Detach { nic: Name },
    /// Security groups of a NIC
    #[command(subcommand)]
    Group(NicGroupVerb),
    /// How much a NIC may carry
    #[command(subcommand)]
    Limit(NicLimitVerb),
    /// Let a NIC speak from a range that is not its own, as a router or a VPN does
    Allow {
        nic: Name,
        #[arg(value_parser = text::prefix, value_name = "ADDRESS/LENGTH")]
        range: Prefix,
    },
    /// Take such a range back
    Disallow {
        nic: Name,
        #[arg(value_parser = text::prefix, value_name = "ADDRESS/LENGTH")]
        range: Prefix,
    },
}

#[derive(Debug, Subcommand)]
pub enum NicLimitVerb {
    /// Hold a NIC to these limits instead of those it had, also while its VM runs
    #[command(after_help = "Example:\n  plinth nic limit set web-1-0 --out 100M --in 1G \
        --in-pps 200K")]
    Set(NicLimitArguments),
    /// Limit a NIC no more
    Clear { nic: Name },
}

#[derive(Args, Debug)]
pub struct NicLimitArguments {
    nic: Name,
    /// What is over a limit waits in the guest, or is dropped before it
    #[command(flatten)]
    rates: RateArguments,
    /// Share of a worker that is too busy for all, 1 to 1000 [default: 100]
    #[arg(long)]
    weight: Option<u16>,
}

/// Rates of both directions.
#[derive(Args, Debug)]
pub struct RateArguments {
    /// Bits a second from the guest, as 100M
    #[arg(long, value_parser = text::decimal, default_value = "0", value_name = "BITS")]
    out: u64,
    /// Bits that may go at once after a pause [default: 50 ms' worth]
    #[arg(long, value_parser = text::decimal, default_value = "0", value_name = "BITS")]
    out_burst: u64,
    /// Packets a second from the guest
    #[arg(long, value_parser = text::decimal, default_value = "0", value_name = "PACKETS")]
    out_pps: u64,
    /// Packets that may go at once after a pause [default: 50 ms' worth]
    #[arg(long, value_parser = text::decimal, default_value = "0", value_name = "PACKETS")]
    out_pps_burst: u64,
    /// Bits a second to the guest
    #[arg(long = "in", value_parser = text::decimal, default_value = "0", value_name = "BITS")]
    inbound: u64,
    /// Bits that may come at once after a pause [default: 50 ms' worth]
    #[arg(long, value_parser = text::decimal, default_value = "0", value_name = "BITS")]
    in_burst: u64,
    /// Packets a second to the guest
    #[arg(long, value_parser = text::decimal, default_value = "0", value_name = "PACKETS")]
    in_pps: u64,
    /// Packets that may come at once after a pause [default: 50 ms' worth]
    #[arg(long, value_parser = text::decimal, default_value = "0", value_name = "PACKETS")]
    in_pps_burst: u64,
}

impl RateArguments {
    /// Outbound and inbound.
    pub(super) const fn rates(&self) -> (NicRate, NicRate) {
        let outbound = NicRate {
            bits_per_second: self.out,
            bits_burst: self.out_burst,
            packets_per_second: self.out_pps,
            packets_burst: self.out_pps_burst,
        };
        let inbound = NicRate {
            bits_per_second: self.inbound,
            bits_burst: self.in_burst,
            packets_per_second: self.in_pps,
            packets_burst: self.in_pps_burst,
        };
        (outbound, inbound)
    }
}

impl NicLimitArguments {
    fn request(self) -> Request {
        let (outbound, inbound) = self.rates.rates();
        let limits = NicLimits { outbound, inbound, weight: self.weight.unwrap_or(0) };
        Request::NicLimit { nic: self.nic, limits }
    }
}

#[derive(Debug, Subcommand)]
pub enum NicGroupVerb {
    /// Put a NIC into a group
    Add { nic: Name, group: Name },
    /// Take a NIC out of a group; in none, everything is denied
    Remove { nic: Name, group: Name },
}

impl NicVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::List { vm } => Request::NicList(vm),
            Self::Show { nic } => Request::NicShow(nic),
            Self::Attach { vm, nic } => Request::NicAttach { vm, nic },
            Self::Detach { nic } => Request::NicDetach(nic),
            Self::Group(NicGroupVerb::Add { nic, group }) => {
                Request::NicGroup { nic, group, is_member: true }
            }
            Self::Group(NicGroupVerb::Remove { nic, group }) => {
                Request::NicGroup { nic, group, is_member: false }
            }
            Self::Limit(NicLimitVerb::Set(arguments)) => arguments.request(),
            Self::Limit(NicLimitVerb::Clear { nic }) => {
                Request::NicLimit { nic, limits: NicLimits::default() }
            }
            Self::Allow { nic, range } => Request::NicAllow { nic, range, is_allowed: true },
            Self::Disallow { nic, range } => Request::NicAllow { nic, range, is_allowed: false },
        }
    }
}
