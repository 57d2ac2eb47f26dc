// SPDX-License-Identifier: Apache-2.0
//! The verbs and their arguments.

mod balance;
mod capture;
mod cluster;
mod disk;
mod external;
mod net;
mod network;
mod security;
mod storage;
mod switch;
mod trace;
mod vm;
mod volume;

pub use balance::{
    BackendArguments, BackendVerb, CreateArguments, LbVerb, ListenerArguments, ListenerVerb,
    SchedulerWord,
};
pub use capture::CaptureArguments;
pub use cluster::{ClusterVerb, Cores, InitArguments, JoinArguments, NodeVerb, UnderlayArguments};
pub use disk::{DiskVerb, Interval, ScrubVerb};
pub use external::{
    BindingWord, EipLimitVerb, EipVerb, ForwardArguments, ForwardVerb, LinePoolVerb, LineVerb,
    NatAddressVerb, NatArguments, NatVerb, ProtocolWord,
};
pub use net::{NetDeed, NetVerb};
pub use network::{HopArguments, NicGroupVerb, NicVerb, RouteVerb, SubnetVerb, VpcVerb};
pub use security::{DirectionWord, PriorityWord, RuleArguments, RuleVerb, SecurityGroupVerb};
pub use storage::{ImageVerb, ImportArguments, PoolVerb};
pub use switch::SwitchVerb;
pub use trace::TraceArguments;
pub use vm::VmVerb;
pub use volume::{SnapshotArea, VolumeVerb};

use clap::{Parser, Subcommand};
use plinth_api::Request;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Virtual machines on your own servers: networks, disks and VMs from one command.
#[derive(Debug, Parser)]
#[command(name = "plinth", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Arguments {
    /// The folder with the operator's certificate
    #[arg(
        long,
        global = true,
        env = "PLINTH_CONFIG",
        default_value = "/etc/plinth",
        value_name = "FOLDER"
    )]
    pub config_dir: PathBuf,
    /// Where the control service listens [default: as in the operator's folder]
    #[arg(long, global = true, env = "PLINTH_SERVICE", value_name = "ADDRESS:PORT")]
    pub service: Option<SocketAddr>,
    /// Answer in JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub verb: Area,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused or failed
  2  the command line is not understood
  3  the control service cannot be reached
  4  taken, but not done in time";

#[derive(Debug, Subcommand)]
pub enum Area {
    /// Make a cluster, see how it is
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Servers that run VMs
    #[command(subcommand)]
    Node(NodeVerb),
    /// Disks and files that hold volumes
    #[command(subcommand)]
    Pool(PoolVerb),
    /// The disks of a pool
    #[command(subcommand)]
    Disk(DiskVerb),
    /// Checks of what is on disks
    #[command(subcommand)]
    Scrub(ScrubVerb),
    /// Disk images that system disks are cloned from
    #[command(subcommand)]
    Image(ImageVerb),
    /// Disks of VMs
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Snapshots that volumes get by themselves
    #[command(subcommand)]
    Snapshot(SnapshotArea),
    /// Tenant networks
    #[command(subcommand)]
    Vpc(VpcVerb),
    /// Address ranges of a vpc
    #[command(subcommand)]
    Subnet(SubnetVerb),
    /// Where a vpc's packets go beyond its subnets
    #[command(subcommand)]
    Route(RouteVerb),
    /// Rules for who may speak with whom
    #[command(subcommand)]
    SecurityGroup(SecurityGroupVerb),
    /// Network cards of VMs
    #[command(subcommand)]
    Nic(NicVerb),
    /// Ways out of the cluster, and the addresses that lead in
    #[command(subcommand)]
    Line(LineVerb),
    /// External addresses of NICs
    #[command(subcommand)]
    Eip(EipVerb),
    /// Shared ways out for NICs of a vpc, and ports that lead in
    #[command(subcommand)]
    NatGateway(NatVerb),
    /// Addresses whose connections are spread over NICs of a vpc
    #[command(subcommand)]
    Lb(LbVerb),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmVerb),
    /// What a node's switch does
    #[command(subcommand)]
    Switch(SwitchVerb),
    /// Why packets go where they go: flows, drops, load
    #[command(subcommand)]
    Net(NetVerb),
    /// Print a completion script for a shell
    ///
    /// For bash: plinth completion bash > /etc/bash_completion.d/plinth
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// What a command line comes to.
#[derive(Debug)]
pub enum Deed {
    /// One request, and how its answer is shown.
    Call(Request),
    Init(Box<InitArguments>),
    Join(Box<JoinArguments>),
    Import(ImportArguments),
    /// A pool on the only node, if none is named.
    PoolCreate(plinth_api::PoolCreate, Option<plinth_ids::Name>),
    Console(plinth_ids::Name),
    Switch(Option<plinth_ids::Name>, plinth_api::SwitchTable),
    Net(Option<plinth_ids::Name>, NetDeed),
    Completion(clap_complete::Shell),
}

impl Area {
    pub fn deed(self) -> Deed {
        match self {
            Self::Cluster(verb) => verb.deed(),
            Self::Node(verb) => verb.deed(),
            Self::Pool(verb) => verb.deed(),
            Self::Image(verb) => verb.deed(),
            Self::Volume(verb) => Deed::Call(verb.request()),
            Self::Disk(verb) => Deed::Call(verb.request()),
            Self::Scrub(verb) => Deed::Call(verb.request()),
            Self::Snapshot(verb) => Deed::Call(verb.request()),
            Self::Vpc(verb) => Deed::Call(verb.request()),
            Self::Subnet(verb) => Deed::Call(verb.request()),
            Self::Route(verb) => Deed::Call(verb.request()),
            Self::SecurityGroup(verb) => Deed::Call(verb.request()),
            Self::Nic(verb) => Deed::Call(verb.request()),
            Self::Line(verb) => Deed::Call(verb.request()),
            Self::Eip(verb) => Deed::Call(verb.request()),
            Self::NatGateway(verb) => Deed::Call(verb.request()),
            Self::Lb(verb) => Deed::Call(verb.request()),
            Self::Vm(verb) => verb.deed(),
            Self::Switch(verb) => verb.deed(),
            Self::Net(verb) => verb.deed(),
            Self::Completion { shell } => Deed::Completion(shell),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_verbs_are_consistent() {
        Arguments::command().debug_assert();
    }
}
