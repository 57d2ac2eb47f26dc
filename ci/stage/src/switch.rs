// SPDX-License-Identifier: Apache-2.0
//! plinth-switchd, as a node agent would run it.

use crate::daemon::{Daemon, program};
use crate::namespace::Namespace;
use crate::scratch::Scratch;
use crate::wait::within;
use anyhow::{Context, Result, anyhow, bail};
use plinth_ids::{Epoch, MacAddress, PortId, Vni};
use plinth_manage::Client;
use plinth_switch_api::{
    Answer, GuestPort, PortStatus, Remote, Reply, Request, SwitchConfig, Underlay, Verb,
};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The first start loads DPDK's drivers, on a machine that may be busy.
const START: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(15);

/// A running switch, its folders and its next configuration.
#[derive(Debug)]
pub struct Switch {
    daemon: Daemon,
    namespace: Option<String>,
    arguments: Vec<String>,
    folder: PathBuf,
    /// What [`Switch::apply`] sends; its epoch is counted up there.
    pub config: SwitchConfig,
}

impl Switch {
    /// Starts a switch without ports, inside `namespace` where one is given.
    ///
    /// # Errors
    /// When it does not come up, with its log.
    pub fn start(scratch: &Scratch, tag: &str, namespace: Option<&Namespace>) -> Result<Self> {
        let namespace = namespace.map(|namespace| namespace.name().to_owned());
        Self::start_with(scratch, tag, namespace, vec!["--no-hugepages".to_owned()])
    }

    /// Starts a switch whose worker is pinned to CPU 1 and takes the memory of a generator as it
    /// is: to be measured, not tested. `flows`: entries of its flow table, if not as many as it
    /// has by itself.
    ///
    /// # Errors
    /// When it does not come up, with its log.
    pub fn start_for_load(scratch: &Scratch, tag: &str, flows: Option<u32>) -> Result<Self> {
        let flows = flows.map(|flows| ["--flows".to_owned(), flows.to_string()]);
        let own = ["--cpu", "1", "--trust-frontends"].map(str::to_owned);
        let arguments = own.into_iter().chain(flows.into_iter().flatten()).collect();
        Self::start_with(scratch, tag, None, arguments)
    }

    fn start_with(
        scratch: &Scratch,
        tag: &str,
        namespace: Option<String>,
        arguments: Vec<String>,
    ) -> Result<Self> {
        let folder = scratch.join(tag);
        std::fs::create_dir_all(&folder).context("the switch's folder")?;
        let daemon = launch(&folder, namespace.as_deref(), &arguments)?;
        let config = SwitchConfig::empty(Epoch(0));
        let mut switch = Self { daemon, namespace, arguments, folder, config };
        switch.wait_until_up()?;
        Ok(switch)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        within(START, "plinth-switchd answers", || {
            self.daemon.check()?;
            self.call(Verb::Status).map(drop)
        })
    }

    /// Takes a VTEP on a device of the namespace.
    pub fn set_underlay(&mut self, device: &str, vtep: Ipv4Addr, mac: MacAddress) {
        self.config.underlay = Some(Underlay {
            device: format!("net_af_packet0,iface={device}"),
            vtep,
            prefix_length: 24,
            gateway: None,
            mac,
            mtu: 1500,
        });
    }

    /// Adds a guest's port and gives its socket.
    ///
    /// # Panics
    /// If `vni` has more than 24 bits.
    pub fn add_port(&mut self, id: u32, vni: u32, mac: MacAddress, address: Ipv4Addr) -> PathBuf {
        let socket = self.folder.join(format!("net-{id}.sock"));
        self.config.ports.push(GuestPort {
            id: PortId(id),
            name: format!("nic-{id}").parse().expect("a short name of letters and digits"),
            vni: Vni::new(vni).expect("24 bits"),
            mac,
            addresses: vec![IpAddr::V4(address)],
            socket: socket.clone(),
            mtu: 1450,
            queue_pairs: 1,
            subnet: None,
            security_groups: None,
            allowed: Vec::new(),
            limits: plinth_switch_api::PortLimits::NONE,
        });
        socket
    }

    /// # Panics
    /// If `vni` has more than 24 bits.
    pub fn add_remote(&mut self, vni: u32, mac: MacAddress, address: Ipv4Addr, vtep: Ipv4Addr) {
        self.config.remotes.push(Remote {
            vni: Vni::new(vni).expect("24 bits"),
            mac,
            addresses: vec![IpAddr::V4(address)],
            vtep,
            subnet: None,
            security_groups: Vec::new(),
            allowed: Vec::new(),
        });
    }

    /// The configuration that [`Self::apply`] sends next.
    pub const fn config(&mut self) -> &mut SwitchConfig {
        &mut self.config
    }

    /// Has the configuration carried out.
    ///
    /// # Errors
    /// When it is refused.
    pub fn apply(&mut self) -> Result<()> {
        self.config.epoch.0 += 1;
        match self.call(Verb::Apply(self.config.clone()))? {
            Answer::Applied { epoch } if epoch == self.config.epoch => Ok(()),
            other => bail!("apply was answered with {other:?}"),
        }
    }

    /// # Errors
    /// When the switch does not answer, or refuses.
    pub fn call(&self, verb: Verb) -> Result<Answer> {
        let mut client = Client::connect(&self.folder.join("switchd.sock"), ANSWER)?;
        let reply: Reply = client.call(&Request { id: 1, verb })?;
        reply.result.map_err(|refusal| anyhow!("{}: {}", refusal.code, refusal.text))
    }

    /// # Errors
    /// As [`Switch::call`].
    pub fn ports(&self) -> Result<Vec<PortStatus>> {
        match self.call(Verb::Ports)? {
            Answer::Ports(ports) => Ok(ports),
            other => bail!("ports was answered with {other:?}"),
        }
    }

    /// Packets that were dropped for `reason`, over all ports.
    ///
    /// # Errors
    /// As [`Switch::call`].
    pub fn drops(&self, reason: &str) -> Result<u64> {
        match self.call(Verb::Drops)? {
            Answer::Drops(drops) => {
                Ok(drops.iter().filter(|drop| drop.reason == reason).map(|drop| drop.packets).sum())
            }
            other => bail!("drops was answered with {other:?}"),
        }
    }

    /// Waits until every guest has connected.
    ///
    /// # Errors
    /// When one does not.
    pub fn wait_for_guests(&mut self) -> Result<()> {
        let count = self.config.ports.len();
        within(START, "every port is up", || {
            self.daemon.check()?;
            let ports = self.ports()?;
            let up = ports.iter().filter(|port| port.vni.is_some() && port.is_up).count();
            if up == count { Ok(()) } else { bail!("{up} of {count} ports are up") }
        })
    }

    /// # Errors
    /// When it was dead already.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.kill()
    }

    /// Starts it again over its folders, as the node agent does. No configuration is sent.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        self.daemon = launch(&self.folder, self.namespace.as_deref(), &self.arguments)?;
        self.wait_until_up()
    }

    pub const fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

fn launch(folder: &Path, namespace: Option<&str>, arguments: &[String]) -> Result<Daemon> {
    let path = program("plinth-switchd")?;
    let mut command = match namespace {
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name]).arg(path);
            command
        }
        None => Command::new(path),
    };
    command.arg("--run-dir").arg(folder).arg("--state-dir").arg(folder.join("state"));
    command.args(["--memory-mb", "64"]).args(arguments);
    Daemon::start("plinth-switchd", command, &folder.join("log"))
}
