// SPDX-License-Identifier: Apache-2.0
//! What a switch refuses of VPCs, routes and security groups, each with its own error.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use plinth_ids::{GroupId, MacAddress, Prefix};
use plinth_switch_api::{
    Direction, NextHop, Priority, Route, Rule, RulePeer, RuleProtocol, RuleVerdict, SecurityGroup,
    Subnet, SubnetPrefix, SwitchConfig, Vpc,
};
use plinth_vswitch::{ConfigError, Limits, Place, RulePlace, SecurityError, Switch, VpcError};
use std::net::IpAddr;
use std::time::Duration;
use support::*;

const ROUTER: MacAddress = MacAddress([2, 0xff, 0, 0, 0, 1]);

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(text: &str) -> plinth_ids::Name {
    text.parse().unwrap()
}

fn range(text: &str, gateway: &str) -> SubnetPrefix {
    SubnetPrefix { prefix: prefix(text), gateway: ip(gateway) }
}

fn group(id: u32) -> SecurityGroup {
    let rule = Rule {
        direction: Direction::Inbound,
        priority: Priority::Mid,
        verdict: RuleVerdict::Allow,
        protocol: RuleProtocol::Tcp,
        ports: Some((80, 80)),
        icmp: None,
        peer: RulePeer::Any,
    };
    SecurityGroup { id: GroupId(id), name: name(&format!("group-{id}")), rules: vec![rule] }
}

/// Two routed VPCs with the NICs of [`two_vpcs`], peers of each other, and two groups.
fn routed() -> SwitchConfig {
    let mut config = two_vpcs();
    for (segment, other) in [(100, 200), (200, 100)] {
        config.vpcs.push(Vpc {
            vni: vni(segment),
            name: name(&format!("vpc-{segment}")),
            router_mac: ROUTER,
            subnets: vec![
                Subnet {
                    name: name("front"),
                    prefixes: vec![
                        range("10.0.0.0/24", "10.0.0.254"),
                        range("fd00::/64", "fd00::fe"),
                    ],
                },
                Subnet { name: name("back"), prefixes: vec![range("10.0.1.0/24", "10.0.1.1")] },
            ],
            routes: vec![
                Route { destination: prefix("10.9.0.0/16"), next_hop: NextHop::Peer(vni(other)) },
                Route {
                    destination: prefix("0.0.0.0/0"),
                    next_hop: NextHop::Address(ip("10.0.0.1")),
                },
            ],
        });
    }
    config.security_groups = vec![group(1), group(2)];
    for port in &mut config.ports {
        port.subnet = Some(name("front"));
        port.security_groups = Some(vec![GroupId(1), GroupId(2)]);
    }
    config.remotes[0].subnet = Some(name("front"));
    config.remotes[0].security_groups = vec![GroupId(77)];
    config
}

fn refusal(change: impl FnOnce(&mut SwitchConfig)) -> ConfigError {
    with_limits(limits(), change)
}

fn with_limits(limits: Limits, change: impl FnOnce(&mut SwitchConfig)) -> ConfigError {
    let mut config = routed();
    change(&mut config);
    let mut switch = Switch::new(limits, SEED);
    let error = switch.apply(Duration::ZERO, &config).expect_err("it is refused");
    assert_eq!(switch.epoch(), None, "nothing of it is in force");
    assert!(!error.code().is_empty() && error.to_string().contains(": "), "{error}");
    error
}

fn vpc(change: impl FnOnce(&mut Vpc)) -> VpcError {
    match refusal(|config| change(&mut config.vpcs[0])) {
        ConfigError::Vpc(error) => error,
        other => panic!("{other}"),
    }
}

fn rule(change: impl FnOnce(&mut Rule)) -> SecurityError {
    match refusal(|config| change(&mut config.security_groups[1].rules[0])) {
        ConfigError::Security(error) => error,
        other => panic!("{other}"),
    }
}

fn our_vpc() -> plinth_ids::Name {
    name("vpc-100")
}

fn nic(id: u32) -> Place {
    Place::Port { id: plinth_ids::PortId(id), name: name(&format!("nic-{id}")) }
}

#[test]
fn what_is_right_is_accepted() {
    let mut switch = Switch::new(limits(), SEED);
    switch.apply(Duration::ZERO, &routed()).unwrap();
}

#[test]
fn a_vpc_is_itself_only() {
    let error = refusal(|config| config.vpcs[1].vni = vni(100));
    let (first, second) = (our_vpc(), name("vpc-200"));
    assert_eq!(error, VpcError::VniTwice { vni: vni(100), first, second }.into());
    let error = refusal(|config| config.vpcs[0].vni = vni(0));
    assert_eq!(error, ConfigError::VniZero { place: Place::Vpc { name: our_vpc() } });
    let error = refusal(|config| config.vpcs[0].router_mac = MacAddress::BROADCAST);
    let place = Place::Vpc { name: our_vpc() };
    assert_eq!(error, ConfigError::Mac { place, mac: MacAddress::BROADCAST });
}

#[test]
fn the_routers_addresses_are_nobody_elses() {
    let taken = |mac, owner| VpcError::RouterMacTaken { vpc: our_vpc(), mac, owner };
    assert_eq!(vpc(|vpc| vpc.router_mac = mac(2)), taken(mac(2), nic(2)));
    assert_eq!(vpc(|vpc| vpc.router_mac = mac(4)), taken(mac(4), Place::Remote { index: 1 }));
    let link_local = IpAddr::V6(plinth_wire::link_local_of(ROUTER));
    let error = refusal(|config| config.ports[0].addresses.push(link_local));
    assert_eq!(error, taken(ROUTER, nic(1)).into());
    let error = vpc(|vpc| vpc.subnets[0].prefixes[0].gateway = v4(2).into());
    let (subnet, gateway) = (name("front"), v4(2).into());
    assert_eq!(error, VpcError::GatewayTaken { vpc: our_vpc(), subnet, gateway, owner: nic(2) });
}

#[test]
fn subnets_are_apart_and_have_a_gateway_inside() {
    let error = vpc(|vpc| vpc.subnets[1].name = name("front"));
    assert_eq!(error, VpcError::SubnetTwice { vpc: our_vpc(), subnet: name("front") });
    let error = vpc(|vpc| vpc.subnets[1].prefixes.clear());
    assert_eq!(error, VpcError::SubnetEmpty { vpc: our_vpc(), subnet: name("back") });
    for (text, gateway) in [
        ("0.0.0.0/0", "10.0.0.1"),
        ("10.0.1.0/31", "10.0.1.1"),
        ("224.0.0.0/8", "224.0.0.1"),
        ("169.254.0.0/16", "169.254.0.1"),
        ("127.0.0.0/8", "127.0.0.1"),
        ("fe80::/64", "fe80::1"),
        ("fd01::/127", "fd01::1"),
    ] {
        let error = vpc(|vpc| vpc.subnets[1].prefixes[0] = range(text, gateway));
        let (subnet, prefix) = (name("back"), prefix(text));
        assert_eq!(error, VpcError::SubnetPrefix { vpc: our_vpc(), subnet, prefix });
    }
    for overlapping in ["10.0.0.128/25", "10.0.0.0/16", "10.0.0.0/24"] {
        let gateway = if overlapping == "10.0.0.128/25" { "10.0.0.200" } else { "10.0.0.250" };
        let error = vpc(|vpc| vpc.subnets[1].prefixes[0] = range(overlapping, gateway));
        assert!(matches!(error, VpcError::SubnetOverlap { .. }), "{overlapping}: {error}");
    }
    for (text, gateway) in [
        ("10.0.1.0/24", "10.0.2.1"),
        ("10.0.1.0/24", "10.0.1.0"),
        ("10.0.1.0/24", "10.0.1.255"),
        ("10.0.1.0/24", "fd00:1::1"),
        ("fd00:1::/64", "fd00:1::"),
    ] {
        let error = vpc(|vpc| vpc.subnets[1].prefixes[0] = range(text, gateway));
        let (subnet, gateway, prefix) = (name("back"), ip(gateway), prefix(text));
        assert_eq!(error, VpcError::GatewayOutside { vpc: our_vpc(), subnet, gateway, prefix });
    }
}

#[test]
fn a_nic_is_inside_its_subnet() {
    let error = refusal(|config| config.ports[0].subnet = Some(name("side")));
    let subnet = name("side");
    assert_eq!(error, VpcError::SubnetUnknown { place: nic(1), vni: vni(100), subnet }.into());
    let error = refusal(|config| config.ports[0].subnet = Some(name("back")));
    let (address, subnet) = (v4(1).into(), name("back"));
    assert_eq!(error, VpcError::AddressOutside { place: nic(1), address, subnet }.into());
    let error = refusal(|config| config.remotes[0].subnet = Some(name("back")));
    let place = Place::Remote { index: 0 };
    let (address, subnet) = (v4(3).into(), name("back"));
    assert_eq!(error, VpcError::AddressOutside { place, address, subnet }.into());
}

#[test]
fn a_route_leads_somewhere_and_not_in_circles() {
    let to = |text: &str, next_hop| Route { destination: prefix(text), next_hop };
    let routed = |route: Route| vpc(|vpc| vpc.routes.push(route));
    let error = routed(to("10.9.0.0/16", NextHop::Blackhole));
    let destination = prefix("10.9.0.0/16");
    assert_eq!(error, VpcError::RouteTwice { vpc: our_vpc(), destination });
    let error = routed(to("10.0.1.0/24", NextHop::Blackhole));
    let (destination, subnet) = (prefix("10.0.1.0/24"), name("back"));
    assert_eq!(error, VpcError::RouteIsSubnet { vpc: our_vpc(), destination, subnet });
    let destination = prefix("10.8.0.0/16");
    let hop = |text| routed(to("10.8.0.0/16", NextHop::Address(ip(text))));
    let next_hop = ip("fd00::1");
    let error = hop("fd00::1");
    assert_eq!(error, VpcError::NextHopFamily { vpc: our_vpc(), destination, next_hop });
    let next_hop = ip("10.7.0.1");
    let error = hop("10.7.0.1");
    assert_eq!(error, VpcError::NextHopUnknown { vpc: our_vpc(), destination, next_hop });
    let next_hop = ip("10.0.1.1");
    let error = hop("10.0.1.1");
    assert_eq!(error, VpcError::NextHopIsRouter { vpc: our_vpc(), destination, next_hop });
    let error = routed(to("10.8.0.0/16", NextHop::Peer(vni(100))));
    assert_eq!(error, VpcError::PeerIsSelf { vpc: our_vpc(), destination });
    let error = routed(to("10.8.0.0/16", NextHop::Peer(vni(300))));
    assert_eq!(error, VpcError::PeerUnknown { vpc: our_vpc(), destination, peer: vni(300) });
    let error = refusal(|config| {
        config.vpcs[1].routes.remove(0);
    });
    let (destination, peer) = (prefix("10.9.0.0/16"), name("vpc-200"));
    assert_eq!(error, VpcError::PeerOneSided { vpc: our_vpc(), destination, peer }.into());
}

#[test]
fn a_rule_can_match_something() {
    let place = || RulePlace { group: GroupId(2), name: name("group-2"), index: 0 };
    let error = rule(|rule| rule.ports = Some((90, 80)));
    assert_eq!(error, SecurityError::PortsBackwards { place: place(), first: 90, last: 80 });
    for protocol in [RuleProtocol::Any, RuleProtocol::Icmp, RuleProtocol::Number(6)] {
        let error = rule(|rule| rule.protocol = protocol);
        assert_eq!(error, SecurityError::PortsWithoutProtocol { place: place() });
    }
    let error = rule(|rule| rule.icmp = Some((8, None)));
    assert_eq!(error, SecurityError::IcmpWithoutProtocol { place: place() });
}

#[test]
fn a_ports_groups_exist_once_each() {
    let error = refusal(|config| config.security_groups[1].id = GroupId(1));
    let (first, second) = (name("group-1"), name("group-2"));
    assert_eq!(error, SecurityError::IdTwice { id: GroupId(1), first, second }.into());
    let error = refusal(|config| config.security_groups[1].id = GroupId(0));
    assert_eq!(error, SecurityError::IdReserved { name: name("group-2") }.into());
    let list = |groups: &[u32]| groups.iter().map(|&id| GroupId(id)).collect::<Vec<_>>();
    let error = refusal(|config| config.ports[1].security_groups = Some(list(&[1, 9])));
    let group = GroupId(9);
    assert_eq!(error, SecurityError::GroupUnknown { place: nic(2), group }.into());
    let error = refusal(|config| config.ports[1].security_groups = Some(list(&[2, 2])));
    let group = GroupId(2);
    assert_eq!(error, SecurityError::GroupNamedTwice { place: nic(2), group }.into());
    let error = refusal(|config| config.remotes[2].security_groups = list(&[0]));
    let (place, group) = (Place::Remote { index: 2 }, GroupId(0));
    assert_eq!(error, SecurityError::GroupUnknown { place, group }.into());
}

#[test]
fn limits_of_tenants_are_kept() {
    let few = |change: &dyn Fn(&mut Limits)| {
        let mut limits = limits();
        change(&mut limits);
        with_limits(limits, |_| {})
    };
    let count = |what, found, limit| ConfigError::TooMany { what, found, limit };
    assert_eq!(few(&|limits| limits.vpc.vpcs = 1), count("vpcs", 2, 1));
    assert_eq!(few(&|limits| limits.vpc.security_groups = 1), count("security groups", 2, 1));
    assert_eq!(few(&|limits| limits.vpc.rules = 1), count("rules", 2, 1));
    let of_vpc = |what, found, limit| {
        ConfigError::from(VpcError::TooMany { vpc: our_vpc(), what, found, limit })
    };
    assert_eq!(few(&|limits| limits.vpc.subnets_per_vpc = 1), of_vpc("subnets", 2, 1));
    assert_eq!(few(&|limits| limits.vpc.routes_per_vpc = 1), of_vpc("routes", 2, 1));
    let prefixes = few(&|limits| limits.vpc.prefixes_per_subnet = 1);
    assert_eq!(prefixes, of_vpc("prefixes of one subnet", 2, 1));
    let (group, found) = (GroupId(1), 1);
    let rules = few(&|limits| limits.vpc.rules_per_group = 0);
    let name = name("group-1");
    assert_eq!(rules, SecurityError::TooManyRules { group, name, found, limit: 0 }.into());
    let groups = few(&|limits| limits.vpc.groups_per_nic = 1);
    assert_eq!(groups, SecurityError::TooManyGroups { place: nic(1), found: 2, limit: 1 }.into());
    let error = refusal(|config| config.ports[0].allowed = vec![prefix("10.0.0.0/8"); 65]);
    assert_eq!(error, VpcError::TooManyAllowed { place: nic(1), found: 65, limit: 64 }.into());
}
