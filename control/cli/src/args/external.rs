// SPDX-License-Identifier: Apache-2.0
//! `plinth line`, `plinth eip` and `plinth nat-gateway`.

use super::network::RateArguments;
use super::security::ports;
use crate::text;
use clap::{Args, Subcommand, ValueEnum};
use plinth_api::{
    EipBinding, EipLimits, ForwardProtocol, NatCreate, NatForward, NatMapping, NatServes, Request,
};
use plinth_ids::{Name, Prefix};
use std::net::Ipv4Addr;

#[derive(Debug, Subcommand)]
pub enum LineVerb {
    /// Name a way out and the addresses that lead in by it
    #[command(after_help = "Example:\n  plinth line create carrier --next-hop 198.51.100.254 \
        --pool 198.51.100.0/28")]
    Create {
        name: Name,
        /// Who takes packets out, on the underlay's segment of every node
        #[arg(long, value_name = "ADDRESS")]
        next_hop: Ipv4Addr,
        /// Addresses that are given out, all of the range; may be given again
        #[arg(long = "pool", value_parser = text::prefix, value_name = "ADDRESS[/LENGTH]")]
        pools: Vec<Prefix>,
    },
    /// All lines with their pools
    List,
    /// Delete a line of which no address is in use
    Delete { name: Name },
    /// Addresses of a line
    #[command(subcommand)]
    Pool(LinePoolVerb),
}

#[derive(Debug, Subcommand)]
pub enum LinePoolVerb {
    /// Give a line more addresses
    Add {
        line: Name,
        #[arg(value_parser = text::prefix, value_name = "ADDRESS[/LENGTH]")]
        range: Prefix,
    },
    /// Take a range away that nobody has an address of
    Remove {
        line: Name,
        #[arg(value_parser = text::prefix, value_name = "ADDRESS[/LENGTH]")]
        range: Prefix,
    },
}

impl LineVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Create { name, next_hop, pools } => Request::LineCreate { name, next_hop, pools },
            Self::List => Request::LineList,
            Self::Delete { name } => Request::LineDelete(name),
            Self::Pool(LinePoolVerb::Add { line, range }) => {
                Request::LinePool { line, pool: range, is_member: true }
            }
            Self::Pool(LinePoolVerb::Remove { line, range }) => {
                Request::LinePool { line, pool: range, is_member: false }
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum EipVerb {
    /// Take an external address of a line's pools
    #[command(after_help = "Example:\n  plinth eip create web --line carrier\n  \
        plinth eip bind web web-1-0\n  plinth route add blue 0.0.0.0/0 --external")]
    Create {
        name: Name,
        #[arg(long)]
        line: Name,
        /// That one [default: the next free one]
        #[arg(long, value_name = "ADDRESS")]
        address: Option<Ipv4Addr>,
    },
    /// All external addresses
    List,
    /// One external address: where it is, its limits, what went through it
    Show { name: Name },
    /// Give an external address back that is bound to nothing
    Delete { name: Name },
    /// Lead an external address to a NIC
    ///
    /// The NIC's vpc needs a route out: plinth route add VPC 0.0.0.0/0 --external
    Bind {
        name: Name,
        nic: Name,
        /// Who has the address
        #[arg(long, default_value = "translated")]
        mode: BindingWord,
    },
    /// Take an external address from its NIC; connections by it end
    Unbind { name: Name },
    /// How much an external address may carry
    #[command(subcommand)]
    Limit(EipLimitVerb),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum BindingWord {
    /// The switch, which puts it in the place of the NIC's own
    Translated,
    /// The guest, which has it as a second address
    Carried,
}

#[derive(Debug, Subcommand)]
pub enum EipLimitVerb {
    /// Hold an external address to these limits instead of those it had, at once
    #[command(after_help = "Example:\n  plinth eip limit set web --out 100M --in 100M")]
    Set {
        name: Name,
        /// What is over a limit is dropped in both directions
        #[command(flatten)]
        rates: RateArguments,
    },
    /// Limit an external address no more
    Clear { name: Name },
}

impl EipVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Create { name, line, address } => Request::EipCreate { name, line, address },
            Self::List => Request::EipList,
            Self::Show { name } => Request::EipShow(name),
            Self::Delete { name } => Request::EipDelete(name),
            Self::Bind { name, nic, mode } => {
                let binding = match mode {
                    BindingWord::Translated => EipBinding::Translated,
                    BindingWord::Carried => EipBinding::Carried,
                };
                Request::EipBind { name, nic, binding }
            }
            Self::Unbind { name } => Request::EipUnbind(name),
            Self::Limit(EipLimitVerb::Set { name, rates }) => {
                let (outbound, inbound) = rates.rates();
                Request::EipLimit { name, limits: EipLimits { outbound, inbound } }
            }
            Self::Limit(EipLimitVerb::Clear { name }) => {
                Request::EipLimit { name, limits: EipLimits::default() }
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum NatVerb {
    /// Let NICs of a vpc out under shared addresses
    ///
    /// An address is on one node at a time: a gateway needs one for each node with NICs that it
    /// serves. A gateway of a NIC comes before one of its subnet, and that before one of the vpc.
    #[command(
        after_help = "Example:\n  plinth nat-gateway create out --vpc blue --line carrier\n  \
        plinth route add blue 0.0.0.0/0 --external"
    )]
    Create(NatArguments),
    /// All NAT gateways
    List,
    /// One gateway: addresses and where they are, forwards, what went through
    Show { name: Name },
    /// Delete a gateway; connections through it end
    Delete { name: Name },
    /// Addresses of a gateway
    #[command(subcommand)]
    Address(NatAddressVerb),
    /// Ports of a gateway's addresses that lead to a NIC
    #[command(subcommand)]
    Forward(ForwardVerb),
}

#[derive(Args, Debug)]
pub struct NatArguments {
    name: Name,
    #[arg(long)]
    vpc: Name,
    #[arg(long)]
    line: Name,
    /// Serve one subnet of the vpc only
    #[arg(long, conflicts_with = "nic")]
    subnet: Option<Name>,
    /// Serve one NIC only
    #[arg(long)]
    nic: Option<Name>,
    /// Go out as this address; may be given again
    #[arg(long = "address", value_name = "ADDRESS")]
    addresses: Vec<Ipv4Addr>,
    /// So many free addresses of the line [default: 1 if none is named]
    #[arg(long)]
    count: Option<u16>,
    /// Ports of an address that each NIC has to itself, 64 to 64512
    #[arg(long, default_value_t = 1024)]
    ports_per_nic: u16,
    /// Whether an address and port inside have one port outside, whoever they speak to, and
    /// whether everybody may speak to it
    #[arg(long, value_enum, default_value_t = MappingWord::PerConnection)]
    mapping: MappingWord,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(super) enum MappingWord {
    /// A port is found for every connection
    PerConnection,
    /// One port for all; who was spoken to may answer
    Independent,
    /// One port for all, and for strangers
    Open,
}

#[derive(Debug, Subcommand)]
pub enum NatAddressVerb {
    /// Give a gateway one more
    Add {
        gateway: Name,
        /// That one [default: the next free one]
        #[arg(long, value_name = "ADDRESS")]
        address: Option<Ipv4Addr>,
    },
    /// Take one away that no forward is on
    Remove { gateway: Name, address: Ipv4Addr },
}

#[derive(Debug, Subcommand)]
pub enum ForwardVerb {
    /// Lead ports in
    #[command(after_help = "Example:\n  plinth nat-gateway forward add out --protocol tcp \
        --port 8000-8009 --nic web-1-0 --to 80")]
    Add(ForwardArguments),
    /// Lead ports in no more; connections through them end
    Remove {
        gateway: Name,
        /// As `show` has it
        number: u32,
    },
}

#[derive(Args, Debug)]
pub struct ForwardArguments {
    gateway: Name,
    #[arg(long)]
    protocol: ProtocolWord,
    /// Outside
    #[arg(long, value_parser = ports, value_name = "PORT[-PORT]")]
    port: (u16, u16),
    #[arg(long)]
    nic: Name,
    /// The NIC's port for the first of them, the others follow [default: the same]
    #[arg(long, value_name = "PORT")]
    to: Option<u16>,
    /// One of the gateway's, on the NIC's node [default: the first there]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<Ipv4Addr>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum ProtocolWord {
    Tcp,
    Udp,
}

impl NatVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Create(arguments) => arguments.request(),
            Self::List => Request::NatList,
            Self::Show { name } => Request::NatShow(name),
            Self::Delete { name } => Request::NatDelete(name),
            Self::Address(NatAddressVerb::Add { gateway, address }) => {
                Request::NatAddressAdd { gateway, address }
            }
            Self::Address(NatAddressVerb::Remove { gateway, address }) => {
                Request::NatAddressRemove { gateway, address }
            }
            Self::Forward(ForwardVerb::Add(arguments)) => arguments.request(),
            Self::Forward(ForwardVerb::Remove { gateway, number }) => {
                Request::NatForwardRemove { gateway, number }
            }
        }
    }
}

impl NatArguments {
    fn request(self) -> Request {
        let serves = match (self.subnet, self.nic) {
            (Some(subnet), _) => NatServes::Subnet(subnet),
            (None, Some(nic)) => NatServes::Nic(nic),
            (None, None) => NatServes::Vpc,
        };
        let count = self.count.unwrap_or_else(|| self.addresses.is_empty().into());
        Request::NatCreate(NatCreate {
            name: self.name,
            vpc: self.vpc,
            line: self.line,
            addresses: self.addresses,
            count,
            ports_per_nic: self.ports_per_nic,
            serves,
            mapping: match self.mapping {
                MappingWord::PerConnection => NatMapping::PerConnection,
                MappingWord::Independent => NatMapping::Independent,
                MappingWord::Open => NatMapping::Open,
            },
        })
    }
}

impl ForwardArguments {
    fn request(self) -> Request {
        let protocol = match self.protocol {
            ProtocolWord::Tcp => ForwardProtocol::Tcp,
            ProtocolWord::Udp => ForwardProtocol::Udp,
        };
        let forward = NatForward {
            address: self.address,
            protocol,
            ports: self.port,
            nic: self.nic,
            nic_port: self.to,
        };
        Request::NatForwardAdd { gateway: self.gateway, forward }
    }
}
