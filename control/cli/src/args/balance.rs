// SPDX-License-Identifier: Apache-2.0
//! `plinth lb`.

use super::external::ProtocolWord;
use super::security::ports;
use clap::{Args, Subcommand, ValueEnum};
use plinth_api::{
    BackendChange, BackendName, BalancerCreate, BalancerPlace, CheckSpec, CheckSpecKind,
    ForwardProtocol, LbScheduler, ListenerSettings, Request,
};
use plinth_ids::Name;
use std::net::IpAddr;

#[derive(Debug, Subcommand)]
pub enum LbVerb {
    /// Make an address that stands for NICs of a vpc, with its first listener
    ///
    /// With --subnet the address is the vpc's alone. With --line it is an external one, and all
    /// its backends are on one node, with the address.
    #[command(after_help = "Examples:\n  plinth lb create web --vpc blue --subnet blue-a \
        --port 80\n  plinth lb backend add web web-1-0 --to 8080\n  plinth lb create front \
        --vpc blue --line carrier --port 443 --scheduler least-connections")]
    Create(CreateArguments),
    /// All load balancers
    List,
    /// One load balancer: listeners and their backends
    Show { name: Name },
    /// Delete a load balancer; connections through it end
    Delete { name: Name },
    /// Ports of a load balancer's address
    #[command(subcommand)]
    Listener(ListenerVerb),
    /// NICs that serve
    #[command(subcommand)]
    Backend(BackendVerb),
}

#[derive(Args, Debug)]
pub struct CreateArguments {
    name: Name,
    #[arg(long)]
    vpc: Name,
    /// Of the vpc, that the address is in
    #[arg(long, required_unless_present = "line", conflicts_with = "line")]
    subnet: Option<Name>,
    /// That the address is an external one of
    #[arg(long)]
    line: Option<Name>,
    /// That one [default: the next free one of IPv4]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,
    #[command(flatten)]
    listener: ListenerArguments,
}

#[derive(Args, Debug)]
pub struct ListenerArguments {
    #[arg(long, default_value = "tcp")]
    protocol: ProtocolWord,
    /// Of the address; backends have as many
    #[arg(long, value_parser = ports, value_name = "PORT[-PORT]")]
    port: (u16, u16),
    /// How a new connection gets its backend
    #[arg(long, default_value = "source-hash")]
    scheduler: SchedulerWord,
    /// A client gets its last backend again for so long, 1 to 86400 [default: not]
    #[arg(long, value_name = "SECONDS")]
    stickiness: Option<u32>,
    /// How a backend's node finds out whether it is fit: tcp (it takes a connection), icmp (it
    /// answers a ping), or a path as in /health (GET answers with 2xx or 3xx) [default: not]
    #[arg(long, value_name = "CHECK", value_parser = check_kind)]
    check: Option<CheckSpecKind>,
    /// The port that is checked [default: the backend's]
    #[arg(long, value_name = "PORT", requires = "check")]
    check_port: Option<u16>,
    /// From one check to the next, 200 to 3600000
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 2000)]
    check_interval: u32,
    /// Silence for so long is a failure; at most the interval
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000)]
    check_timeout: u32,
    /// Successes in a row that make a backend fit again
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    check_rise: u8,
    /// Failures in a row that make a backend unfit: it gets no new connections
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    check_fall: u8,
}

fn check_kind(text: &str) -> Result<CheckSpecKind, String> {
    match text {
        "tcp" => Ok(CheckSpecKind::Tcp),
        "icmp" => Ok(CheckSpecKind::Icmp),
        path if path.starts_with('/') => Ok(CheckSpecKind::Http(path.to_owned())),
        _ => Err("give tcp, icmp or a path that begins with /".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum SchedulerWord {
    /// By the client's address, the same one from every node
    SourceHash,
    /// By turns, as often as its weight says
    RoundRobin,
    /// The one with the fewest connections for its weight
    LeastConnections,
}

#[derive(Debug, Subcommand)]
pub enum ListenerVerb {
    /// Serve more ports
    #[command(after_help = "Example:\n  plinth lb listener add web --port 443")]
    Add {
        lb: Name,
        #[command(flatten)]
        listener: ListenerArguments,
    },
    /// Serve ports no more; connections through them end
    Remove {
        lb: Name,
        /// As `show` has it
        number: u32,
    },
}

#[derive(Debug, Subcommand)]
pub enum BackendVerb {
    /// Let a NIC serve
    #[command(after_help = "Example:\n  plinth lb backend add web web-1-0 --to 8080 --weight 20")]
    Add {
        #[command(flatten)]
        backend: BackendArguments,
        /// Its share beside others, 1 to 100
        #[arg(long, default_value_t = plinth_switch_api::BACKEND_WEIGHT_DEFAULT)]
        weight: u16,
    },
    /// Let a NIC serve no more; its connections end
    Remove {
        #[command(flatten)]
        backend: BackendArguments,
    },
    /// Give a backend no new connections; it keeps those that it has
    Drain {
        #[command(flatten)]
        backend: BackendArguments,
        /// Give it new ones again
        #[arg(long)]
        off: bool,
    },
    /// Change a backend's share
    SetWeight {
        #[command(flatten)]
        backend: BackendArguments,
        /// 1 to 100
        weight: u16,
    },
}

#[derive(Args, Debug)]
pub struct BackendArguments {
    lb: Name,
    nic: Name,
    /// By number, as `show` has it [default: the only one]
    #[arg(long, value_name = "NUMBER")]
    listener: Option<u32>,
    /// The NIC's port for the first of the listener's, the others follow [default: the same, or
    /// the one that it has]
    #[arg(long, value_name = "PORT")]
    to: Option<u16>,
}

impl LbVerb {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Create(arguments) => arguments.request(),
            Self::List => Request::BalancerList,
            Self::Show { name } => Request::BalancerShow(name),
            Self::Delete { name } => Request::BalancerDelete(name),
            Self::Listener(ListenerVerb::Add { lb, listener }) => {
                Request::ListenerAdd { balancer: lb, listener: listener.settings() }
            }
            Self::Listener(ListenerVerb::Remove { lb, number }) => {
                Request::ListenerRemove { balancer: lb, number }
            }
            Self::Backend(verb) => verb.request(),
        }
    }
}

impl CreateArguments {
    fn request(self) -> Request {
        let place = match (self.line, self.subnet) {
            (Some(line), _) => BalancerPlace::Line(line),
            (None, Some(subnet)) => BalancerPlace::Subnet(subnet),
            (None, None) => unreachable!("clap wants one of both"),
        };
        Request::BalancerCreate(BalancerCreate {
            name: self.name,
            vpc: self.vpc,
            place,
            address: self.address,
            listener: self.listener.settings(),
        })
    }
}

impl ListenerArguments {
    fn settings(self) -> ListenerSettings {
        ListenerSettings {
            protocol: match self.protocol {
                ProtocolWord::Tcp => ForwardProtocol::Tcp,
                ProtocolWord::Udp => ForwardProtocol::Udp,
            },
            ports: self.port,
            scheduler: match self.scheduler {
                SchedulerWord::SourceHash => LbScheduler::SourceHash,
                SchedulerWord::RoundRobin => LbScheduler::RoundRobin,
                SchedulerWord::LeastConnections => LbScheduler::LeastConnections,
            },
            stickiness: self.stickiness,
            check: self.check.map(|kind| CheckSpec {
                kind,
                port: self.check_port,
                interval_ms: self.check_interval,
                timeout_ms: self.check_timeout,
                rise: self.check_rise,
                fall: self.check_fall,
            }),
        }
    }
}

impl BackendVerb {
    fn request(self) -> Request {
        let (backend, change) = match self {
            Self::Add { backend, weight } => (backend, BackendChange::Add { weight }),
            Self::Remove { backend } => (backend, BackendChange::Remove),
            Self::Drain { backend, off } => (backend, BackendChange::Drain { is_draining: !off }),
            Self::SetWeight { backend, weight } => (backend, BackendChange::Weight(weight)),
        };
        let BackendArguments { lb, nic, listener, to } = backend;
        let backend = BackendName { balancer: lb, listener, nic, port: to };
        Request::BackendChange { backend, change }
    }
}
