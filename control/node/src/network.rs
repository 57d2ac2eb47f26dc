// SPDX-License-Identifier: Apache-2.0
//! What a spec's VPCs and security groups mean for the switch: pure functions.

use plinth_api::{
    DhcpRouteSpec, GroupSpec, HopSpec, HostSpec, NicLimits, NicRate, NicSpec, NodeSpec, PeerSpec,
    RuleDirection, RulePriority, RuleProtocol, RuleSpec, RuleVerdict, VpcSpec,
};
use plinth_ids::{GroupId, Name};
use plinth_switch_api as switch;

/// The NIC's subnet, if the spec still has it. A VM that is being deleted keeps its port until its
/// process is gone, while its VPC may have left the spec: the port is then one of a flat segment,
/// and the configuration is not refused because of it.
pub(crate) fn known_subnet(spec: &NodeSpec, nic: &NicSpec) -> Option<Name> {
    let vpc = spec.vpcs.iter().find(|vpc| vpc.vni == nic.vni)?;
    vpc.subnets.iter().any(|subnet| subnet.name == nic.subnet).then(|| nic.subnet.clone())
}

/// The NIC's groups that the spec still has. Fewer groups allow less, and none allow nothing.
pub(crate) fn known_groups(spec: &NodeSpec, nic: &NicSpec) -> Option<Vec<GroupId>> {
    let is_known = |id: &&GroupId| spec.groups.iter().any(|group| group.id == **id);
    nic.groups.as_ref().map(|groups| groups.iter().filter(is_known).copied().collect())
}

pub(crate) fn vpc(spec: &VpcSpec) -> switch::Vpc {
    let subnets = spec.subnets.iter().map(|subnet| switch::Subnet {
        name: subnet.name.clone(),
        prefixes: subnet
            .prefixes
            .iter()
            .map(|given| switch::SubnetPrefix { prefix: given.prefix, gateway: given.gateway })
            .collect(),
    });
    let routes = spec.routes.iter().map(|route| switch::Route {
        destination: route.destination,
        next_hop: match route.next_hop {
            HopSpec::Address(hop) => switch::NextHop::Address(hop),
            HopSpec::Peer(peer) => switch::NextHop::Peer(peer),
            HopSpec::Blackhole => switch::NextHop::Blackhole,
            HopSpec::External => switch::NextHop::External,
        },
    });
    switch::Vpc {
        vni: spec.vni,
        name: spec.name.clone(),
        router_mac: spec.router_mac,
        subnets: subnets.collect(),
        routes: routes.collect(),
    }
}

/// What guests are told of the spec's VPCs.
pub(crate) fn answers(vpcs: &[VpcSpec]) -> switch::Answers {
    let mut answers = switch::Answers::NONE;
    for vpc in vpcs {
        let vni = vpc.vni;
        answers.dns.extend(vpc.dns.iter().map(|dns| switch::VpcDns {
            vni,
            zone: dns.zone.clone(),
            upstreams: dns.upstreams.clone(),
        }));
        answers.metadata.extend(vpc.has_metadata.then_some(vni));
        let told = vpc.subnets.iter().filter_map(|subnet| Some((subnet, subnet.dhcp.as_ref()?)));
        answers.dhcp.extend(told.map(|(subnet, dhcp)| switch::SubnetDhcp {
            vni,
            subnet: subnet.name.clone(),
            lease_seconds: dhcp.lease_seconds,
            dns: dhcp.dns.clone(),
            domain: dhcp.domain.clone(),
            routes: dhcp.routes.iter().map(dhcp_route).collect(),
            ntp: dhcp.ntp.clone(),
        }));
        let host =
            |host: &HostSpec| switch::HostName { vni, mac: host.mac, name: host.name.clone() };
        answers.names.extend(vpc.hosts.iter().map(host));
    }
    answers
}

const fn dhcp_route(route: &DhcpRouteSpec) -> switch::DhcpRoute {
    switch::DhcpRoute { destination: route.destination, gateway: route.gateway }
}

pub(crate) fn security_group(spec: &GroupSpec) -> switch::SecurityGroup {
    let rules = spec.rules.iter().map(rule).collect();
    switch::SecurityGroup { id: spec.id, name: spec.name.clone(), rules }
}

fn rule(spec: &RuleSpec) -> switch::Rule {
    let scope = &spec.scope;
    switch::Rule {
        direction: match scope.direction {
            RuleDirection::Inbound => switch::Direction::Inbound,
            RuleDirection::Outbound => switch::Direction::Outbound,
        },
        priority: match scope.priority {
            RulePriority::High => switch::Priority::High,
            RulePriority::Mid => switch::Priority::Mid,
            RulePriority::Low => switch::Priority::Low,
        },
        verdict: match scope.verdict {
            RuleVerdict::Allow => switch::RuleVerdict::Allow,
            RuleVerdict::Deny => switch::RuleVerdict::Deny,
        },
        protocol: match scope.protocol {
            RuleProtocol::Any => switch::RuleProtocol::Any,
            RuleProtocol::Tcp => switch::RuleProtocol::Tcp,
            RuleProtocol::Udp => switch::RuleProtocol::Udp,
            RuleProtocol::Icmp => switch::RuleProtocol::Icmp,
            RuleProtocol::Icmpv6 => switch::RuleProtocol::Icmpv6,
            RuleProtocol::Number(number) => switch::RuleProtocol::Number(number),
        },
        ports: scope.ports,
        icmp: scope.icmp,
        peer: match spec.peer {
            PeerSpec::Any => switch::RulePeer::Any,
            PeerSpec::Prefix(prefix) => switch::RulePeer::Prefix(prefix),
            PeerSpec::Group(group) => switch::RulePeer::Group(group),
        },
    }
}

/// 0 is none.
pub(crate) fn port_limits(limits: NicLimits) -> switch::PortLimits {
    switch::PortLimits {
        outbound: rate_limit(limits.outbound),
        inbound: rate_limit(limits.inbound),
        weight: (limits.weight > 0).then_some(limits.weight),
    }
}

/// 0 is none.
pub(crate) fn rate_limit(rate: NicRate) -> switch::RateLimit {
    let some = |value: u64| (value > 0).then_some(value);
    switch::RateLimit {
        bits_per_second: some(rate.bits_per_second),
        bits_burst: some(rate.bits_burst),
        packets_per_second: some(rate.packets_per_second),
        packets_burst: some(rate.packets_burst),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_api::{DhcpSpec, DnsSpec, GatewaySpec, RouteSpec, RuleScope, SubnetSpec};
    use plinth_ids::{Epoch, MacAddress, NodeId, PortId, Vni};

    fn nic() -> NicSpec {
        NicSpec {
            port: PortId(1),
            name: "web-1-0".parse().unwrap(),
            vni: Vni::new(5).unwrap(),
            mac: MacAddress([2, 0x50, 0, 0, 0, 1]),
            addresses: Vec::new(),
            gateway: None,
            mtu: 1450,
            subnet: "blue-a".parse().unwrap(),
            groups: Some(vec![GroupId(1), GroupId(2)]),
            allowed: Vec::new(),
            limits: NicLimits::default(),
        }
    }

    fn rule(peer: PeerSpec) -> RuleSpec {
        let scope = RuleScope {
            direction: RuleDirection::Outbound,
            priority: RulePriority::High,
            verdict: RuleVerdict::Deny,
            protocol: RuleProtocol::Icmp,
            ports: None,
            icmp: Some((8, None)),
        };
        RuleSpec { scope, peer }
    }

    fn spec() -> NodeSpec {
        let gateway =
            GatewaySpec { prefix: "10.0.0.0/24".parse().unwrap(), gateway: [10, 0, 0, 1].into() };
        let dhcp =
            Some(DhcpSpec { domain: Some("blue.example".to_owned()), ..DhcpSpec::default() });
        let subnet = SubnetSpec { name: "blue-a".parse().unwrap(), prefixes: vec![gateway], dhcp };
        let destination = "10.9.0.0/16".parse().unwrap();
        NodeSpec {
            epoch: Epoch(1),
            node: NodeId(1),
            name: "node-1".parse().unwrap(),
            underlay: None,
            pools: Vec::new(),
            vms: Vec::new(),
            remotes: Vec::new(),
            vpcs: vec![VpcSpec {
                vni: Vni::new(5).unwrap(),
                name: "blue".parse().unwrap(),
                router_mac: MacAddress([2, 0x52, 0, 0, 0, 5]),
                subnets: vec![subnet],
                routes: vec![RouteSpec { destination, next_hop: HopSpec::Blackhole }],
                dns: Some(DnsSpec {
                    zone: "blue.internal".to_owned(),
                    upstreams: vec!["192.0.2.53:53".parse().unwrap()],
                }),
                has_metadata: true,
                hosts: vec![HostSpec { mac: nic().mac, name: "web-1".parse().unwrap() }],
            }],
            groups: vec![GroupSpec {
                id: GroupId(2),
                name: "web".parse().unwrap(),
                rules: vec![rule(PeerSpec::Any), rule(PeerSpec::Group(GroupId(7)))],
            }],
            external: plinth_api::ExternalSpec::default(),
            balancers: Vec::new(),
            store_cores: Vec::new(),
        }
    }

    #[test]
    fn guests_are_told_what_the_spec_has_of_their_vpc() {
        let mut spec = spec();
        let config = answers(&spec.vpcs);
        let vni = Vni::new(5).unwrap();
        assert_eq!((config.dhcp[0].vni, config.dhcp[0].subnet.as_str()), (vni, "blue-a"));
        assert_eq!(config.dhcp[0].lease_seconds, 86_400);
        assert_eq!(config.dhcp[0].domain.as_deref(), Some("blue.example"));
        assert_eq!((config.dns[0].vni, config.dns[0].zone.as_str()), (vni, "blue.internal"));
        assert_eq!(config.dns[0].upstreams[0].to_string(), "192.0.2.53:53");
        let host = &config.names[0];
        assert_eq!((host.vni, host.mac, host.name.as_str()), (vni, nic().mac, "web-1"));
        assert_eq!(config.metadata, [vni]);
        spec.vpcs[0].subnets[0].dhcp = None;
        assert_eq!(answers(&spec.vpcs).dhcp, []);
        spec.vpcs[0].has_metadata = false;
        assert_eq!(answers(&spec.vpcs).metadata, []);
    }

    #[test]
    fn a_port_that_outlives_its_vpc_does_not_spoil_the_configuration() {
        assert_eq!(known_subnet(&spec(), &nic()), Some("blue-a".parse().unwrap()));
        assert_eq!(known_groups(&spec(), &nic()), Some(vec![GroupId(2)]));
        let gone = NodeSpec { vpcs: Vec::new(), groups: Vec::new(), ..spec() };
        assert_eq!(known_subnet(&gone, &nic()), None);
        assert_eq!(known_groups(&gone, &nic()), Some(Vec::new()), "nothing is allowed then");
        let unfiltered = NicSpec { groups: None, ..nic() };
        assert_eq!(known_groups(&spec(), &unfiltered), None);
    }

    #[test]
    fn vpcs_and_rules_are_said_to_the_switch_as_they_are() {
        let vpc = vpc(&spec().vpcs[0]);
        assert_eq!(vpc.router_mac, MacAddress([2, 0x52, 0, 0, 0, 5]));
        assert_eq!(vpc.subnets[0].prefixes[0].gateway.to_string(), "10.0.0.1");
        assert_eq!(vpc.routes[0].next_hop, switch::NextHop::Blackhole);
        let group = security_group(&spec().groups[0]);
        let expected = switch::Rule {
            direction: switch::Direction::Outbound,
            priority: switch::Priority::High,
            verdict: switch::RuleVerdict::Deny,
            protocol: switch::RuleProtocol::Icmp,
            ports: None,
            icmp: Some((8, None)),
            peer: switch::RulePeer::Any,
        };
        let peer = switch::RulePeer::Group(GroupId(7));
        assert_eq!(group.rules, [expected, switch::Rule { peer, ..expected }]);
    }
}
