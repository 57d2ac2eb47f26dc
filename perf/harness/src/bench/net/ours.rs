// SPDX-License-Identifier: Apache-2.0
//! plinth-switchd at the job of a case.

use super::changing;
use super::contender::Job;
use anyhow::{Context, Result, bail, ensure};
use plinth_ids::{GroupId, MacAddress, Name, Prefix, Vni};
use plinth_stage::{Scratch, Switch};
use plinth_switch_api::{
    AddressLimits, Answer, BACKEND_WEIGHT_DEFAULT, Backend, BackendState, Balancer, Binding,
    Direction, External, ExternalAddress, ForwardProtocol, Line, Listener, NatGateway, NextHop,
    PortMapping, Priority, Route, Rule, RulePeer, RuleProtocol, RuleVerdict, Scheduler,
    SecurityGroup, Serves, Subnet, SubnetPrefix, Underlay, Verb, Vpc,
};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

const VNI: u32 = 100;
const MAC_A: MacAddress = MacAddress([2, 0, 0, 0, 0, 10]);
const MAC_B: MacAddress = MacAddress([2, 0, 0, 0, 0, 11]);
const ADDRESS_A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ADDRESS_B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Of port b where it is outside.
const MAC_OUTSIDE: MacAddress = MacAddress([2, 0, 0, 0, 0, 12]);
const ADDRESS_OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// Of a balancer.
const BACKENDS: u16 = 1000;
/// The defaults of `plinth-perf net --vxlan`.
const VTEP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
const REMOTE_VTEP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
const WIRE_MAC: MacAddress = MacAddress([2, 0, 0, 0, 1, 1]);

#[derive(Debug)]
pub(super) struct Ours(Switch);

impl Ours {
    /// The switch, and the sockets of ports a and b.
    ///
    /// `table` are the entries of the flow table; `None`: as many as it has by itself.
    pub(super) fn start(
        scratch: &Scratch,
        job: Job,
        table: Option<u32>,
    ) -> Result<(Self, [PathBuf; 2])> {
        let mut switch = Switch::start_for_load(scratch, "s", table)?;
        let a = switch.add_port(1, VNI, MAC_A, ADDRESS_A);
        let b = match job {
            Job::Plain | Job::Groups => switch.add_port(2, VNI, MAC_B, ADDRESS_B),
            Job::Changes => {
                let b = switch.add_port(2, VNI, MAC_B, ADDRESS_B);
                let config = switch.config();
                // A tunnel is on an underlay, which carries nothing here.
                let device = "net_null0,no-rx=1".to_owned();
                config.underlay =
                    Some(Underlay { device, mtu: 1500, ..underlay(std::path::Path::new("")) });
                changing::populate(config, Vni::new(VNI).context("24 bits")?);
                b
            }
            Job::Tunnel => {
                let wire = scratch.join("wire.sock");
                switch.add_remote(VNI, MAC_B, ADDRESS_B, REMOTE_VTEP);
                switch.config().underlay = Some(underlay(&wire));
                wire
            }
            Job::Snat => translate(&mut switch)?,
            Job::Balance => balance(&mut switch)?,
        };
        // What is translated is followed in any case.
        if !matches!(job, Job::Plain | Job::Snat | Job::Balance) {
            follow_connections(&mut switch);
        }
        switch.apply()?;
        Ok((Self(switch), [a, b]))
    }

    /// Does something while NICs of other nodes move.
    ///
    /// # Errors
    /// Also when changes were refused or late.
    pub(super) fn while_changing(&self, load: impl FnOnce() -> Result<()>) -> Result<()> {
        let Answer::Status(status) = self.call(Verb::Status)? else {
            bail!("status was answered with something else");
        };
        let first = status.epoch.context("a configuration is in force")?;
        let vni = Vni::new(VNI).context("24 bits")?;
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| changing::send(self, vni, first, &is_over));
            let loaded = load();
            is_over.store(true, Ordering::Relaxed);
            let changed = changes.join().expect("a panic ends the process");
            loaded.and(changed)
        })
    }

    pub(super) fn call(&self, verb: Verb) -> Result<Answer> {
        self.0.call(verb)
    }

    /// Busy cycles of the worker for a packet that it received, since its start.
    pub(super) fn cycles_a_packet(&self) -> Result<Option<f64>> {
        let Answer::Status(status) = self.0.call(Verb::Status)? else {
            bail!("status was answered with something else");
        };
        ensure!(!status.workers.is_empty(), "the switch has no worker");
        let busy: u64 = status.workers.iter().map(|worker| worker.busy_cycles).sum();
        let packets: u64 = status.workers.iter().map(|worker| worker.packets).sum();
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
        let each = (packets > 0).then(|| busy as f64 / packets as f64);
        Ok(each)
    }
}

/// Port b carries the address that port a sends to as an external one, and sees port a as an
/// address of a gateway: sources are translated, destinations are not, as in the peer's scenario.
/// The generator speaks to the MAC of b, which is the router's here.
fn translate(switch: &mut Switch) -> Result<PathBuf> {
    let b = switch.add_port(2, VNI, MAC_OUTSIDE, ADDRESS_OUTSIDE);
    let vni = Vni::new(VNI).context("24 bits")?;
    let config = switch.config();
    for (port, name) in config.ports.iter_mut().zip(["inside", "outside"]) {
        port.subnet = Some(name.parse()?);
    }
    config.ports[1].allowed = vec![Prefix::host(ADDRESS_B.into())];
    config.vpcs = vec![Vpc {
        vni,
        name: "measured".parse()?,
        router_mac: MAC_B,
        subnets: vec![
            subnet("inside", "10.0.0.0/24", [10, 0, 0, 254])?,
            subnet("outside", "10.1.0.0/24", [10, 1, 0, 1])?,
        ],
        routes: vec![Route {
            destination: Prefix::host(ADDRESS_B.into()),
            next_hop: NextHop::External,
        }],
    }];
    // A line is on an underlay, which carries nothing here.
    let device = "net_null0".to_owned();
    config.underlay = Some(Underlay { device, mtu: 1500, ..underlay(std::path::Path::new("")) });
    let line: Name = "line".parse()?;
    config.external = External {
        lines: vec![Line { name: line.clone(), next_hop: REMOTE_VTEP }],
        addresses: vec![ExternalAddress {
            address: ADDRESS_B,
            line: line.clone(),
            vni,
            nic: ADDRESS_OUTSIDE,
            binding: Binding::Carried,
            limits: AddressLimits::default(),
        }],
        gateways: vec![NatGateway {
            name: "out".parse()?,
            vni,
            line,
            addresses: vec![Ipv4Addr::new(198, 51, 100, 9)],
            // All of them: 100 000 flows differ in their target port as well.
            ports_per_nic: 64_512,
            serves: Serves::Subnet("inside".parse()?),
            mapping: PortMapping::PerConnection,
            forwards: Vec::new(),
        }],
    };
    Ok(b)
}

/// Port a sends to an address that a thousand ports of port b stand for, by turns. A backend is an
/// address and a port, and what the switch does for one does not hang on where the others are.
fn balance(switch: &mut Switch) -> Result<PathBuf> {
    let b = switch.add_port(2, VNI, MAC_OUTSIDE, ADDRESS_OUTSIDE);
    let vni = Vni::new(VNI).context("24 bits")?;
    let backend = |port| Backend {
        address: ADDRESS_OUTSIDE.into(),
        port,
        weight: BACKEND_WEIGHT_DEFAULT,
        state: BackendState::Active,
    };
    // The generator's flows use these; ports of one backend follow each other.
    let ports = (1024, 1031);
    let config = switch.config();
    for (port, name) in config.ports.iter_mut().zip(["clients", "backends"]) {
        port.subnet = Some(name.parse()?);
    }
    config.vpcs = vec![Vpc {
        vni,
        name: "measured".parse()?,
        router_mac: MAC_B,
        subnets: vec![
            subnet("clients", "10.0.0.0/24", [10, 0, 0, 254])?,
            subnet("backends", "10.1.0.0/24", [10, 1, 0, 1])?,
        ],
        routes: Vec::new(),
    }];
    config.balancers = vec![Balancer {
        name: "measured".parse()?,
        vni,
        address: ADDRESS_B.into(),
        line: None,
        listeners: vec![Listener {
            protocol: ForwardProtocol::Udp,
            ports,
            scheduler: Scheduler::RoundRobin,
            stickiness: None,
            check: None,
            backends: (0..BACKENDS).map(|number| backend(2000 + 8 * number)).collect(),
        }],
    }];
    Ok(b)
}

fn subnet(name: &str, prefix: &str, gateway: [u8; 4]) -> Result<Subnet> {
    let prefixes = vec![SubnetPrefix { prefix: prefix.parse()?, gateway: gateway.into() }];
    Ok(Subnet { name: name.parse()?, prefixes })
}

/// A wire that the generator is at the other end of, by the driver that testpmd uses.
fn underlay(socket: &std::path::Path) -> Underlay {
    Underlay {
        device: format!("net_vhost0,iface={}", socket.display()),
        vtep: VTEP,
        prefix_length: 24,
        gateway: None,
        mac: WIRE_MAC,
        mtu: 1600,
    }
}

/// Every port is in one group, which lets UDP out to anybody and in from its members.
fn follow_connections(switch: &mut Switch) {
    let group = GroupId(1);
    let rule = |direction, peer| Rule {
        direction,
        priority: Priority::Mid,
        verdict: RuleVerdict::Allow,
        protocol: RuleProtocol::Udp,
        ports: None,
        icmp: None,
        peer,
    };
    let config = switch.config();
    config.security_groups = vec![SecurityGroup {
        id: group,
        name: "measured".parse().expect("a short name of letters"),
        rules: vec![
            rule(Direction::Outbound, RulePeer::Any),
            rule(Direction::Inbound, RulePeer::Group(group)),
        ],
    }];
    for port in &mut config.ports {
        port.security_groups = Some(vec![group]);
    }
    for remote in &mut config.remotes {
        remote.security_groups = vec![group];
    }
}
