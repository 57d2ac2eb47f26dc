// SPDX-License-Identifier: Apache-2.0
//! `plinth cluster` and `plinth node`.

use super::Deed;
use crate::text;
use clap::{Args, Subcommand};
use plinth_api::Request;
use plinth_client::UnderlayConfig;
use plinth_ids::{MacAddress, Name};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Make a cluster on this machine: certificates, configuration, an operator
    ///
    /// Writes the cluster's CA, the certificates of service and node and plinthd.toml to the
    /// state folder, and an operator's certificate to the config folder. Start plinthd then.
    #[command(after_help = "Examples:\n  plinth cluster init\n  plinth cluster init --name lab \
        --listen 192.0.2.1:7700 --join 192.0.2.1:7701 \\\n      --agent 192.0.2.1:7710 --vtep \
        172.16.0.1/24 --underlay-device net_af_packet0,iface=eth1")]
    Init(Box<InitArguments>),
    /// How the cluster is
    Status,
}

#[derive(Args, Clone, Debug)]
pub struct InitArguments {
    /// The cluster's name
    #[arg(long, default_value = "plinth")]
    pub name: Name,
    /// This machine's name as a node
    #[arg(long, default_value = "node-1")]
    pub node: Name,
    /// Run the control service only, no VMs
    #[arg(long, conflicts_with_all = ["vtep", "underlay_device"])]
    pub no_node: bool,
    /// Where operators call
    #[arg(long, default_value = "127.0.0.1:7700", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Where new nodes call
    #[arg(long, default_value = "127.0.0.1:7701", value_name = "ADDRESS:PORT")]
    pub join: SocketAddr,
    /// Where the service calls this node's agent
    #[arg(long, default_value = "127.0.0.1:7710", value_name = "ADDRESS:PORT")]
    pub agent: SocketAddr,
    /// What must survive a reboot
    #[arg(long, default_value = "/var/lib/plinth", value_name = "FOLDER")]
    pub state_dir: PathBuf,
    #[command(flatten)]
    pub underlay: UnderlayArguments,
}

/// The tunnels to other nodes. Without `--vtep` a node's VMs reach only each other.
#[derive(Args, Clone, Debug)]
pub struct UnderlayArguments {
    /// The tunnel address of this node; no kernel interface may carry it
    #[arg(long, value_name = "ADDRESS/LENGTH", value_parser = text::cidr, requires = "underlay_device")]
    pub vtep: Option<(Ipv4Addr, u8)>,
    /// The DPDK device of the underlay, as in net_af_packet0,iface=eth1 or a PCI address
    #[arg(long, value_name = "DEVICE", requires = "vtep")]
    pub underlay_device: Option<String>,
    /// The next hop to nodes of other subnets
    #[arg(long, value_name = "ADDRESS", requires = "vtep")]
    pub underlay_gateway: Option<Ipv4Addr>,
    /// The underlay's largest IP packet
    #[arg(long, default_value = "1500", value_name = "BYTES")]
    pub underlay_mtu: u16,
    /// The underlay's Ethernet address [default: made from the tunnel address]
    #[arg(long, value_name = "MAC", requires = "vtep")]
    pub underlay_mac: Option<MacAddress>,
}

impl UnderlayArguments {
    /// `None` for a node without tunnels.
    pub fn config(&self) -> Option<UnderlayConfig> {
        let (vtep, prefix_length) = self.vtep?;
        Some(UnderlayConfig {
            device: self.underlay_device.clone()?,
            vtep,
            prefix_length,
            gateway: self.underlay_gateway,
            mac: self.underlay_mac,
            mtu: self.underlay_mtu,
        })
    }
}

impl ClusterVerb {
    pub(super) fn deed(self) -> Deed {
        match self {
            Self::Init(arguments) => Deed::Init(arguments),
            Self::Status => Deed::Call(Request::ClusterStatus),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// Make a one-time token for a node to join with
    Token {
        /// How long it is good for
        #[arg(long, default_value = "1h", value_parser = text::seconds, value_name = "TIME")]
        lifetime: u32,
    },
    /// Join this machine to a cluster
    ///
    /// Run it on the new machine with a token of `plinth node token`, and start plinthd then.
    #[command(after_help = "Example:\n  plinth node join plinth1.… --name node-2 \
        --join 192.0.2.1:7701 --agent 192.0.2.2:7710")]
    Join(Box<JoinArguments>),
    /// All nodes
    List,
    /// One node: what it is, has and lacks
    Show { name: Name },
    /// Replace a node's store process by the installed one, under running VMs
    ///
    /// The new process takes disks and guests over from the one that runs, whose requests wait for
    /// some milliseconds. If it does not serve, the one that runs goes on.
    #[command(after_help = "Example:\n  plinth node upgrade-store node-1")]
    UpgradeStore { name: Name },
    /// Replace a node's switch process by the installed one, under running VMs
    ///
    /// The new process takes ports, flows and connections over from the one that runs; packets wait
    /// in the guests' queues for some milliseconds, and no connection is lost. If it does not serve,
    /// the one that runs goes on.
    #[command(after_help = "Example:\n  plinth node upgrade-switch node-1")]
    UpgradeSwitch { name: Name },
    /// Choose the cores of a node's store: one worker on each
    ///
    /// Pools are spread over the workers by their numbers, and the disks of a pool over all of
    /// them. A disk whose worker is another one then is closed and opened, and its guests wait
    /// until they are connected again, a second or so: choose the cores before there is load.
    #[command(after_help = "Examples:\n  plinth node store-cores node-1 2,3\n  \
        plinth node store-cores node-1 any")]
    StoreCores {
        name: Name,
        /// Numbers as in /proc/cpuinfo, or `any` for one worker wherever the system puts it
        #[arg(value_name = "CORES", value_parser = text::cores)]
        cores: Cores,
    },
}

/// CPUs by their numbers; none is `any`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cores(pub Vec<u32>);

#[derive(Args, Clone, Debug)]
pub struct JoinArguments {
    /// Of `plinth node token`
    pub token: String,
    /// This machine's name as a node
    #[arg(long)]
    pub name: Name,
    /// Where the service takes new nodes
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub join: SocketAddr,
    /// Where the service will call this node's agent
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub agent: SocketAddr,
    /// What must survive a reboot
    #[arg(long, default_value = "/var/lib/plinth", value_name = "FOLDER")]
    pub state_dir: PathBuf,
    #[command(flatten)]
    pub underlay: UnderlayArguments,
}

impl NodeVerb {
    pub(super) fn deed(self) -> Deed {
        Deed::Call(match self {
            Self::Join(arguments) => return Deed::Join(arguments),
            Self::Token { lifetime } => Request::TokenCreate { lifetime_seconds: lifetime },
            Self::List => Request::NodeList,
            Self::Show { name } => Request::NodeShow(name),
            Self::UpgradeStore { name } => Request::NodeUpgradeStore(name),
            Self::UpgradeSwitch { name } => Request::NodeUpgradeSwitch(name),
            Self::StoreCores { name, cores } => {
                Request::NodeStoreCores { node: name, cores: cores.0 }
            }
        })
    }
}
