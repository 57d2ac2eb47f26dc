// SPDX-License-Identifier: Apache-2.0
//! `plinth vpc` and `plinth subnet`.

use crate::text;
use clap::Subcommand;
use plinth_api::Request;
use plinth_ids::{Name, Vni};
use std::net::Ipv4Addr;

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
}

impl VpcVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Create { name, vni } => Request::VpcCreate { name, vni },
            Self::List => Request::VpcList,
            Self::Delete { name } => Request::VpcDelete(name),
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
        /// Kept free for the vpc's router [default: the first address]
        #[arg(long, value_name = "ADDRESS")]
        gateway: Option<Ipv4Addr>,
    },
    /// All subnets
    List,
    /// Delete a subnet without VMs
    Delete { name: Name },
}

impl SubnetVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Create { name, vpc, cidr: (network, prefix_length), gateway } => {
                Request::SubnetCreate { name, vpc, network, prefix_length, gateway }
            }
            Self::List => Request::SubnetList,
            Self::Delete { name } => Request::SubnetDelete(name),
        }
    }
}
