// SPDX-License-Identifier: Apache-2.0
//! What a spec's load balancers mean for the switch: a pure function.
//!
//! What the switch would refuse all of the configuration for is left out: a balancer whose
//! address a port still has, because the port's VM is not gone yet, or whose line is not here.

use plinth_api::{
    BalancerSpec, CheckSpec, CheckSpecKind, ForwardProtocol, LbScheduler, ListenerSpec, NicSpec,
    NodeSpec,
};
use plinth_switch_api as switch;

/// The balancers beside these NICs.
pub(crate) fn balancers(spec: &NodeSpec, nics: &[NicSpec]) -> Vec<switch::Balancer> {
    let is_usable = |one: &&BalancerSpec| {
        let Some(vpc) = spec.vpcs.iter().find(|vpc| vpc.vni == one.vni) else { return false };
        match &one.line {
            Some(line) => {
                let mut lines = spec.external.lines.iter();
                spec.underlay.is_some() && lines.any(|given| given.name == *line)
            }
            None => {
                let mut prefixes = vpc.subnets.iter().flat_map(|subnet| &subnet.prefixes);
                prefixes.any(|given| given.prefix.contains(one.address))
                    && !is_taken(spec, nics, one)
            }
        }
    };
    let usable = spec.balancers.iter().filter(is_usable);
    usable.map(balancer).collect()
}

fn is_taken(spec: &NodeSpec, nics: &[NicSpec], one: &BalancerSpec) -> bool {
    let here = nics.iter().filter(|nic| nic.vni == one.vni);
    let mut here = here.flat_map(|nic| &nic.addresses).map(|address| address.ip);
    let elsewhere = spec.remotes.iter().filter(|remote| remote.vni == one.vni);
    here.any(|address| address == one.address)
        || elsewhere.flat_map(|remote| &remote.addresses).any(|address| *address == one.address)
}

fn balancer(given: &BalancerSpec) -> switch::Balancer {
    switch::Balancer {
        name: given.name.clone(),
        vni: given.vni,
        address: given.address,
        line: given.line.clone(),
        listeners: given.listeners.iter().map(listener).collect(),
    }
}

fn listener(given: &ListenerSpec) -> switch::Listener {
    let settings = &given.settings;
    let backends = given.backends.iter().map(|backend| switch::Backend {
        address: backend.address,
        port: backend.port,
        weight: backend.weight,
        state: match backend.is_draining {
            true => switch::BackendState::Draining,
            false => switch::BackendState::Active,
        },
    });
    switch::Listener {
        protocol: match settings.protocol {
            ForwardProtocol::Tcp => switch::ForwardProtocol::Tcp,
            ForwardProtocol::Udp => switch::ForwardProtocol::Udp,
        },
        ports: settings.ports,
        scheduler: match settings.scheduler {
            LbScheduler::RoundRobin => switch::Scheduler::RoundRobin,
            LbScheduler::LeastConnections => switch::Scheduler::LeastConnections,
            LbScheduler::SourceHash => switch::Scheduler::SourceHash,
        },
        stickiness: settings.stickiness,
        check: settings.check.as_ref().map(check),
        backends: backends.collect(),
    }
}

fn check(given: &CheckSpec) -> switch::HealthCheck {
    switch::HealthCheck {
        kind: match &given.kind {
            CheckSpecKind::Tcp => switch::CheckKind::Tcp,
            CheckSpecKind::Http(path) => switch::CheckKind::Http { path: path.clone() },
            CheckSpecKind::Icmp => switch::CheckKind::Icmp,
        },
        port: given.port,
        interval_ms: given.interval_ms,
        timeout_ms: given.timeout_ms,
        rise: given.rise,
        fall: given.fall,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_api::{
        Address, BackendSpec, ExternalSpec, GatewaySpec, LineSpec, ListenerSettings, NicLimits,
        SubnetSpec, VpcSpec,
    };
    use plinth_ids::{Epoch, MacAddress, NodeId, PortId, Vni};

    fn nic(last: u8) -> NicSpec {
        NicSpec {
            port: PortId(last.into()),
            name: format!("web-{last}-0").parse().unwrap(),
            vni: Vni::new(5).unwrap(),
            mac: MacAddress([2, 0x50, 0, 0, 0, last]),
            addresses: vec![Address { ip: [10, 0, 0, last].into(), prefix_length: 24 }],
            gateway: None,
            mtu: 1450,
            subnet: "blue-a".parse().unwrap(),
            groups: None,
            allowed: Vec::new(),
            limits: NicLimits::default(),
        }
    }

    fn spec(address: [u8; 4], line: Option<&str>) -> NodeSpec {
        let prefix = "10.0.0.0/24".parse().unwrap();
        let carrier =
            LineSpec { name: "carrier".parse().unwrap(), next_hop: [172, 16, 0, 254].into() };
        let backend = |last: u8, is_draining| BackendSpec {
            address: [10, 0, 0, last].into(),
            port: 8080,
            weight: last.into(),
            is_draining,
        };
        let settings = ListenerSettings {
            protocol: ForwardProtocol::Udp,
            ports: (53, 54),
            scheduler: LbScheduler::LeastConnections,
            stickiness: Some(60),
            check: Some(CheckSpec {
                kind: CheckSpecKind::Http("/health".to_owned()),
                port: Some(81),
                interval_ms: 2000,
                timeout_ms: 1000,
                rise: 2,
                fall: 3,
            }),
        };
        NodeSpec {
            epoch: Epoch(1),
            node: NodeId(1),
            name: "node-1".parse().unwrap(),
            underlay: Some(plinth_api::Underlay {
                device: "net_null0".to_owned(),
                vtep: [172, 16, 0, 1].into(),
                prefix_length: 24,
                gateway: None,
                mac: MacAddress([2, 0x51, 172, 16, 0, 1]),
                mtu: 1500,
            }),
            pools: Vec::new(),
            vms: Vec::new(),
            remotes: Vec::new(),
            vpcs: vec![VpcSpec {
                vni: Vni::new(5).unwrap(),
                name: "blue".parse().unwrap(),
                router_mac: MacAddress([2, 0x52, 0, 0, 0, 5]),
                subnets: vec![SubnetSpec {
                    name: "blue-a".parse().unwrap(),
                    prefixes: vec![GatewaySpec { prefix, gateway: [10, 0, 0, 1].into() }],
                    dhcp: None,
                }],
                routes: Vec::new(),
                dns: None,
                has_metadata: true,
                hosts: Vec::new(),
            }],
            groups: Vec::new(),
            external: ExternalSpec { lines: vec![carrier], ..ExternalSpec::default() },
            balancers: vec![BalancerSpec {
                name: "web".parse().unwrap(),
                vni: Vni::new(5).unwrap(),
                address: address.into(),
                line: line.map(|line| line.parse().unwrap()),
                listeners: vec![ListenerSpec {
                    settings,
                    backends: vec![backend(2, false), backend(3, true)],
                }],
            }],
            store_cores: Vec::new(),
        }
    }

    #[test]
    fn all_that_was_said_of_a_balancer_reaches_the_switch() {
        let found = balancers(&spec([10, 0, 0, 100], None), &[nic(2)]);
        let [switch::Balancer { listeners, line: None, .. }] = &found[..] else {
            panic!("one inside: {found:?}")
        };
        let listener = &listeners[0];
        assert_eq!(listener.protocol, switch::ForwardProtocol::Udp);
        assert_eq!(listener.scheduler, switch::Scheduler::LeastConnections);
        assert_eq!((listener.ports, listener.stickiness), ((53, 54), Some(60)));
        let check = switch::HealthCheck {
            kind: switch::CheckKind::Http { path: "/health".to_owned() },
            port: Some(81),
            interval_ms: 2000,
            timeout_ms: 1000,
            rise: 2,
            fall: 3,
        };
        assert_eq!(listener.check, Some(check));
        let states: Vec<_> = listener.backends.iter().map(|one| (one.weight, one.state)).collect();
        use switch::BackendState::{Active, Draining};
        assert_eq!(states, [(2, Active), (3, Draining)]);
        let outside = balancers(&spec([198, 51, 100, 1], Some("carrier")), &[nic(2)]);
        assert_eq!(outside[0].line.as_ref().map(|line| line.as_str()), Some("carrier"));
    }

    #[test]
    fn what_a_switch_would_refuse_is_left_out() {
        let inside = spec([10, 0, 0, 100], None);
        assert_eq!(balancers(&inside, &[nic(100)]), [], "a port has its address still");
        let gone = NodeSpec { vpcs: Vec::new(), ..inside };
        assert_eq!(balancers(&gone, &[]), [], "its vpc is gone");
        assert_eq!(balancers(&spec([10, 9, 0, 1], None), &[]), [], "it is in no subnet");
        let outside = || spec([198, 51, 100, 1], Some("carrier"));
        let alone = NodeSpec { underlay: None, ..outside() };
        assert_eq!(balancers(&alone, &[]), [], "there is no way out");
        let lineless = NodeSpec { external: ExternalSpec::default(), ..outside() };
        assert_eq!(balancers(&lineless, &[]), [], "its line is not here");
    }
}
