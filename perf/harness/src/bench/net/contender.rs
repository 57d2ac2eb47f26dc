// SPDX-License-Identifier: Apache-2.0
//! Who carries the packets.

use super::super::Run;
use super::super::shared::{perf, read};
use super::cases::Case;
use super::ours::Ours;
use super::ovs::{self, Ovs};
use super::testpmd::testpmd;
use crate::net;
use anyhow::Result;
use plinth_stage::daemon::output;
use plinth_stage::{Daemon, Scratch};
use std::path::PathBuf;
use std::process::Command;

/// What a switch is to do between the generator's ports a and b.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Job {
    /// Two guests of one segment, nothing filtered.
    Plain,
    /// Two guests of one segment with security groups: connections are followed.
    Groups,
    /// Port a is a guest with security groups, port b the wire to another node.
    Tunnel,
    /// Port a is a guest that port b sees under an external address.
    Snat,
    /// As with groups, beside 20 000 NICs on other nodes, of which 10 000 a second move.
    Changes,
    /// Port a sends to a balancer's address, for which a thousand ports of port b stand.
    Balance,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Contender {
    /// plinth-switchd at the job of the case.
    Switchd,
    /// plinth-switchd that forwards and filters nothing, whatever the case is about.
    SwitchdPlain,
    /// plinth-switchd at the job of the case, but that nothing is changed meanwhile.
    SwitchdUndisturbed,
    /// One flow from port to port: it decides nothing.
    OvsPort,
    /// A learning switch.
    OvsNormal,
    /// Flows that look at addresses and ports.
    OvsL3l4,
    /// A firewall that follows connections.
    OvsCt,
    /// The same with source addresses translated.
    OvsSnat,
    /// A guest and a tunnel; nothing is followed.
    OvsVxlan,
    /// The same, and connections are followed.
    OvsVxlanCt,
    /// testpmd, which moves packets and looks at nothing: a limit, no switch.
    Testpmd,
}

/// A server that runs, and how to ask what it spent.
#[derive(Debug)]
enum Server {
    Ours(Box<Ours>),
    Ovs(Ovs),
    Testpmd(#[expect(dead_code, reason = "it is held until the run's end")] Daemon),
}

impl Contender {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Switchd => "plinth-switchd",
            Self::SwitchdPlain => "plinth-switchd, plain forwarding",
            Self::SwitchdUndisturbed => "plinth-switchd, undisturbed",
            Self::OvsPort => "OVS-DPDK, port",
            Self::OvsNormal => "OVS-DPDK, normal",
            Self::OvsL3l4 => "OVS-DPDK, l3l4",
            Self::OvsCt => "OVS-DPDK, ct",
            Self::OvsSnat => "OVS-DPDK, snat",
            Self::OvsVxlan => "OVS-DPDK, vxlan",
            Self::OvsVxlanCt => "OVS-DPDK, vxlan-ct",
            Self::Testpmd => "testpmd, io",
        }
    }

    /// The scenario of `perf/baselines/ovs`.
    const fn scenario(self) -> Option<&'static str> {
        Some(match self {
            Self::Switchd | Self::SwitchdPlain | Self::SwitchdUndisturbed | Self::Testpmd => {
                return None;
            }
            Self::OvsPort => "port",
            Self::OvsNormal => "normal",
            Self::OvsL3l4 => "l3l4",
            Self::OvsCt => "ct",
            Self::OvsSnat => "snat",
            Self::OvsVxlan => "vxlan",
            Self::OvsVxlanCt => "vxlan-ct",
        })
    }

    const fn program(self) -> Option<&'static str> {
        match self {
            Self::Switchd | Self::SwitchdPlain | Self::SwitchdUndisturbed => None,
            Self::Testpmd => Some("dpdk-testpmd"),
            _ => Some("ovs-vswitchd"),
        }
    }

    pub(crate) fn version(self) -> String {
        let Some(program) = self.program() else {
            return concat!("plinth ", env!("CARGO_PKG_VERSION")).to_owned();
        };
        // testpmd has no --version; its package is DPDK's.
        if self == Self::Testpmd {
            let asked = output(Command::new("pkg-config").args(["--modversion", "libdpdk"]));
            return asked
                .map_or_else(|_| "DPDK".to_owned(), |text| format!("DPDK {}", text.trim()));
        }
        let text = output(Command::new(program).arg("--version")).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    }

    /// Why this contender cannot run here.
    pub(crate) fn unmet(self) -> Option<String> {
        let program = self.program()?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        if !is_there {
            return Some(format!("{program} is not installed (ci/setup bench)"));
        }
        self.scenario()?;
        ovs::lacks_hugepages()
    }

    /// Starts the server, loads it for `seconds`, and ends it.
    pub(crate) fn run(self, case: &Case, seconds: f64) -> Result<Run> {
        let scratch = Scratch::new()?;
        let (server, sockets) = self.start(&scratch, case)?;
        let mut command = perf(&scratch, "net", seconds)?;
        command.arg("--a").arg(&sockets[0]).arg("--b").arg(&sockets[1]).args(case.load);
        command.args(["--mac-a", "02:00:00:00:00:0a", "--mac-b", "02:00:00:00:00:0b"]);
        if matches!(server, Server::Ovs(_)) {
            command.arg("--server");
        }
        match &server {
            Server::Ours(ours) if case.job == Job::Changes && self == Self::Switchd => {
                ours.while_changing(|| output(&mut command).map(drop))?;
            }
            _ => drop(output(&mut command)?),
        }
        let cycles = match &server {
            Server::Ours(switch) => switch.cycles_a_packet()?,
            Server::Ovs(ovs) => ovs.cycles_a_packet()?,
            Server::Testpmd(_) => None,
        };
        let report: net::Report = read(&scratch)?;
        let (result, command) = (report.result, report.circumstances.command);
        Ok(Run {
            figure: result.received_pps,
            p50: result.latency.p50,
            p99: result.latency.p99,
            losses: result.lost,
            command,
            cycles,
            ..Run::default()
        })
    }

    fn start(self, scratch: &Scratch, case: &Case) -> Result<(Server, [PathBuf; 2])> {
        let sockets = [scratch.join("g0.sock"), scratch.join("g1.sock")];
        Ok(match self.scenario() {
            Some(scenario) => (Server::Ovs(Ovs::start(scratch, scenario)?), sockets),
            None if self == Self::Testpmd => {
                let daemon = testpmd(scratch, &sockets)?;
                (Server::Testpmd(daemon), sockets)
            }
            None => {
                let job = if self == Self::SwitchdPlain { Job::Plain } else { case.job };
                let (ours, sockets) = Ours::start(scratch, job, case.table)?;
                (Server::Ours(Box::new(ours)), sockets)
            }
        })
    }
}
