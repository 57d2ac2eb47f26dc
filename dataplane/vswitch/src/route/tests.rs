// SPDX-License-Identifier: Apache-2.0
//! Where packets are routed, and what keeps VPCs apart while they are.

use super::*;
use crate::Limits;
use crate::snapshot::Destination;
use plinth_ids::{Epoch, GroupId, MacAddress, PortId, Prefix};
use plinth_switch_api::{
    Direction, GuestPort, NextHop, Priority, Route, Rule, RulePeer, RuleProtocol, RuleVerdict,
    SecurityGroup, Subnet, SubnetPrefix, SwitchConfig, Vpc,
};
use proptest::prelude::*;

fn vni(raw: u32) -> Vni {
    Vni::new(raw).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn port(id: u32, segment: u32, addresses: &[&str]) -> GuestPort {
    GuestPort {
        id: PortId(id),
        name: format!("nic-{id}").parse().unwrap(),
        vni: vni(segment),
        mac: mac(id),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        socket: format!("/run/{id}").into(),
        mtu: 1450,
        queue_pairs: 1,
        subnet: None,
        security_groups: None,
        allowed: Vec::new(),
        limits: plinth_switch_api::PortLimits::NONE,
    }
}

fn mac(id: u32) -> MacAddress {
    let [.., low] = id.to_be_bytes();
    MacAddress([2, 0, 0, 0, 0, low])
}

/// Two subnets, `front` and `back`, IPv4 and IPv6.
fn vpc(segment: u32, second: u8, routes: &[(&str, NextHop)]) -> Vpc {
    let subnet = |name: &str, third: u8| Subnet {
        name: name.parse().unwrap(),
        prefixes: vec![
            SubnetPrefix {
                prefix: prefix(&format!("10.{second}.{third}.0/24")),
                gateway: ip(&format!("10.{second}.{third}.1")),
            },
            SubnetPrefix {
                prefix: prefix(&format!("fd00:{second}:{third}::/64")),
                gateway: ip(&format!("fd00:{second}:{third}::1")),
            },
        ],
    };
    Vpc {
        vni: vni(segment),
        name: format!("vpc-{segment}").parse().unwrap(),
        router_mac: MacAddress([2, 0xff, 0, 0, 0, 1]),
        subnets: vec![subnet("front", 1), subnet("back", 2)],
        routes: routes
            .iter()
            .map(|&(destination, next_hop)| Route { destination: prefix(destination), next_hop })
            .collect(),
    }
}

fn compile(config: &SwitchConfig) -> Snapshot {
    Snapshot::compile(config, &Limits::default(), &Snapshot::default()).unwrap()
}

/// Who gets a packet that the router of `segment` was given: VNI and port.
fn lead(snapshot: &Snapshot, segment: u32, to: &str) -> Result<(u32, PortId), DropReason> {
    match snapshot.route(vni(segment), ip(to))? {
        Routed::Router => Ok((segment, PortId(0))),
        Routed::External => panic!("nothing leads outside"),
        Routed::Owner { vni, owner } => match owner.destination {
            Destination::Local(index) => Ok((vni.get(), snapshot.port(index).unwrap().id)),
            Destination::Remote(_) => panic!("there are no remotes"),
        },
    }
}

#[test]
fn subnets_are_routed_and_the_longest_prefix_decides() {
    let routes = [
        ("0.0.0.0/0", NextHop::Address(ip("10.0.1.5"))),
        ("192.168.0.0/16", NextHop::Blackhole),
        ("192.168.7.0/24", NextHop::Address(ip("10.0.2.6"))),
        ("10.0.2.64/26", NextHop::Blackhole),
        ("::/0", NextHop::Address(ip("fd00:0:2::9"))),
    ];
    let config = SwitchConfig {
        ports: vec![
            port(5, 100, &["10.0.1.5", "fd00:0:1::5"]),
            port(6, 100, &["10.0.2.6", "fd00:0:2::6"]),
            port(7, 100, &["10.0.2.65"]),
        ],
        vpcs: vec![vpc(100, 0, &routes)],
        ..SwitchConfig::empty(Epoch(1))
    };
    let snapshot = compile(&config);
    assert_eq!(lead(&snapshot, 100, "10.0.1.5"), Ok((100, PortId(5))));
    assert_eq!(lead(&snapshot, 100, "fd00:0:2::6"), Ok((100, PortId(6))));
    assert_eq!(lead(&snapshot, 100, "10.0.2.99"), Err(DropReason::RouteBlackhole));
    assert_eq!(lead(&snapshot, 100, "10.0.2.65"), Err(DropReason::RouteBlackhole));
    assert_eq!(lead(&snapshot, 100, "10.0.2.7"), Err(DropReason::DestinationUnknown));
    assert_eq!(lead(&snapshot, 100, "8.8.8.8"), Ok((100, PortId(5))));
    assert_eq!(lead(&snapshot, 100, "192.168.7.1"), Ok((100, PortId(6))));
    assert_eq!(lead(&snapshot, 100, "192.168.8.1"), Err(DropReason::RouteBlackhole));
    assert_eq!(lead(&snapshot, 100, "2001:db8::1"), Err(DropReason::RouteNextHopUnknown));
    for own in ["10.0.1.1", "10.0.2.1", "fd00:0:1::1"] {
        assert_eq!(snapshot.route(vni(100), ip(own)), Ok(Routed::Router), "{own}");
    }
    let router = snapshot.vpc(vni(100)).unwrap();
    assert_eq!(snapshot.route(vni(100), router.link_local.into()), Ok(Routed::Router));
    // Whatever the default route says: these are of one link or of no host.
    for never in ["169.254.1.1", "fe80::5", "224.0.0.1", "255.255.255.255", "127.0.0.1", "::1"] {
        assert_eq!(lead(&snapshot, 100, never), Err(DropReason::RouteUnknown), "{never}");
    }
    assert_eq!(lead(&snapshot, 200, "10.0.1.5"), Err(DropReason::RouteUnknown), "no such vpc");
}

#[test]
fn a_peering_leads_into_subnets_of_the_peer_and_no_further() {
    let peer = |segment| NextHop::Peer(vni(segment));
    let config = SwitchConfig {
        ports: vec![
            port(1, 100, &["10.0.1.5"]),
            port(2, 200, &["10.1.1.5"]),
            port(3, 300, &["10.2.1.5"]),
        ],
        vpcs: vec![
            vpc(100, 0, &[("10.1.0.0/16", peer(200)), ("10.2.0.0/16", peer(200))]),
            vpc(200, 1, &[("10.0.0.0/16", peer(100)), ("10.2.0.0/16", peer(300))]),
            vpc(300, 2, &[("10.1.0.0/16", peer(200))]),
        ],
        ..SwitchConfig::empty(Epoch(1))
    };
    let snapshot = compile(&config);
    assert_eq!(lead(&snapshot, 100, "10.1.1.5"), Ok((200, PortId(2))));
    assert_eq!(lead(&snapshot, 200, "10.0.1.5"), Ok((100, PortId(1))));
    assert_eq!(lead(&snapshot, 100, "10.1.1.6"), Err(DropReason::DestinationUnknown));
    assert_eq!(lead(&snapshot, 100, "10.1.1.1"), Err(DropReason::DestinationUnknown));
    assert_eq!(lead(&snapshot, 100, "10.1.9.1"), Err(DropReason::RouteUnknown));
    assert_eq!(lead(&snapshot, 200, "10.2.1.5"), Ok((300, PortId(3))));
    assert_eq!(lead(&snapshot, 100, "10.2.1.5"), Err(DropReason::RouteUnknown), "through 200");
    assert_eq!(lead(&snapshot, 300, "10.0.1.5"), Err(DropReason::RouteUnknown));
}

#[test]
fn an_allowed_range_makes_a_source_of_hosts_only() {
    let mut router = port(1, 100, &["10.0.1.5"]);
    router.allowed = vec![prefix("0.0.0.0/0"), prefix("fd00:7::/64")];
    let config = SwitchConfig { ports: vec![router], ..SwitchConfig::empty(Epoch(1)) };
    let snapshot = compile(&config);
    let port = snapshot.port(snapshot.port_index(PortId(1)).unwrap()).unwrap();
    for allowed in ["10.0.1.5", "8.8.8.8", "fd00:7::1"] {
        assert!(port.has_address(ip(allowed)), "{allowed}");
    }
    for refused in ["0.0.0.0", "255.255.255.255", "127.0.0.1", "224.0.0.1", "fd00:8::1", "fe80::1"]
    {
        assert!(!port.has_address(ip(refused)), "{refused}");
    }
}

#[test]
fn a_group_as_peer_is_found_by_address_inside_the_vpc() {
    let rule = Rule {
        direction: Direction::Inbound,
        priority: Priority::Mid,
        verdict: RuleVerdict::Allow,
        protocol: RuleProtocol::Any,
        ports: None,
        icmp: None,
        peer: RulePeer::Group(GroupId(1)),
    };
    let group = SecurityGroup { id: GroupId(1), name: "web".parse().unwrap(), rules: vec![rule] };
    let in_groups = |port: GuestPort, groups: &[u32]| GuestPort {
        security_groups: Some(groups.iter().map(|&id| GroupId(id)).collect()),
        ..port
    };
    let config = SwitchConfig {
        ports: vec![
            in_groups(port(1, 100, &["10.0.1.1"]), &[1]),
            in_groups(port(2, 100, &["10.0.1.2"]), &[1]),
            in_groups(port(3, 100, &["10.0.1.3"]), &[]),
            port(4, 200, &["10.0.1.2"]),
        ],
        security_groups: vec![group],
        ..SwitchConfig::empty(Epoch(1))
    };
    let snapshot = compile(&config);
    let ask = |to: u32, segment: u32, from: &str| {
        let port = snapshot.port(snapshot.port_index(PortId(to)).unwrap()).unwrap();
        let peer_groups = snapshot.groups_of(vni(segment), ip(from));
        let question = Question {
            direction: Direction::Inbound,
            protocol: 6,
            port: Some(80),
            peer: ip(from),
            peer_groups,
        };
        snapshot.permits(port, &question)
    };
    assert_eq!(ask(1, 100, "10.0.1.2"), Ok(()));
    assert_eq!(ask(1, 100, "10.0.1.3"), Err(DropReason::SecurityGroupDenied));
    assert_eq!(ask(1, 200, "10.0.1.2"), Err(DropReason::SecurityGroupDenied), "another vpc's");
    assert_eq!(ask(3, 100, "10.0.1.2"), Err(DropReason::SecurityGroupDenied), "no groups at all");
    assert_eq!(ask(4, 100, "10.0.1.2"), Ok(()), "not filtered");
    assert_eq!(snapshot.security().name_of(GroupId(1)).map(|name| name.as_str()), Some("web"));
}

// ---- the slow model -------------------------------------------------------------------------

/// Tries every subnet and every route of the configuration, as the documentation says it.
fn model(config: &SwitchConfig, segment: Vni, to: IpAddr) -> Result<(Vni, PortId), DropReason> {
    let find = |segment| config.vpcs.iter().find(|vpc| vpc.vni == segment);
    let subnets = |vpc: &Vpc| -> Vec<SubnetPrefix> {
        vpc.subnets.iter().flat_map(|subnet| subnet.prefixes.clone()).collect()
    };
    let vpc = find(segment).ok_or(DropReason::RouteUnknown)?;
    if subnets(vpc).iter().any(|given| given.gateway == to) {
        return Ok((segment, PortId(0)));
    }
    let owner = |segment, address: IpAddr, reason| {
        let mut ports = config.ports.iter().filter(|port| port.vni == segment);
        let port = ports.find(|port| port.addresses.contains(&address)).ok_or(reason)?;
        Ok((segment, port.id))
    };
    let connected = subnets(vpc).into_iter().map(|given| (given.prefix, None));
    let routes = vpc.routes.iter().map(|route| (route.destination, Some(route.next_hop)));
    let containing = connected.chain(routes).filter(|(prefix, _)| prefix.contains(to));
    let longest = containing.max_by_key(|(prefix, _)| prefix.length());
    let (_, next_hop) = longest.ok_or(DropReason::RouteUnknown)?;
    match next_hop {
        None => owner(segment, to, DropReason::DestinationUnknown),
        Some(NextHop::Blackhole) => Err(DropReason::RouteBlackhole),
        Some(NextHop::External) => panic!("nothing leads outside"),
        Some(NextHop::Address(hop)) => owner(segment, hop, DropReason::RouteNextHopUnknown),
        Some(NextHop::Peer(peer)) => {
            let other = find(peer).ok_or(DropReason::RouteUnknown)?;
            if !subnets(other).iter().any(|given| given.prefix.contains(to)) {
                return Err(DropReason::RouteUnknown);
            }
            owner(peer, to, DropReason::DestinationUnknown)
        }
    }
}

fn host() -> impl Strategy<Value = IpAddr> {
    (any::<bool>(), 0u8..2, 0u8..4, 0u8..8).prop_map(|(is_v4, second, third, last)| {
        if is_v4 {
            ip(&format!("10.{second}.{third}.{last}"))
        } else {
            ip(&format!("fd00:{second}:{third}::{last}"))
        }
    })
}

/// Routes, of which the configuration keeps those that it may have.
fn routes() -> impl Strategy<Value = Vec<(IpAddr, u8, NextHop)>> {
    let next_hop = prop_oneof![
        Just(NextHop::Blackhole),
        host().prop_map(NextHop::Address),
        (1u32..4).prop_map(|peer| NextHop::Peer(Vni::new(peer * 100).unwrap())),
    ];
    let length = prop::sample::select(vec![0u8, 8, 15, 16, 22, 23, 25, 29, 31, 32]);
    prop::collection::vec((host(), length, next_hop), 0..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn routing_is_what_the_slow_model_says(
        lists in prop::collection::vec(routes(), 3),
        nics in prop::collection::btree_set((1u32..4, host()), 0..20),
        packets in prop::collection::vec((1u32..4, host()), 64),
    ) {
        let mut config = SwitchConfig::empty(Epoch(1));
        for (number, list) in (1u32..).zip(lists) {
            // VPCs 100 and 300 use the same addresses.
            let mut vpc = vpc(number * 100, u8::from(number == 2), &[]);
            for (address, length, next_hop) in list {
                let length = if address.is_ipv4() { length } else { length * 4 };
                let destination = match Prefix::new(address, length) {
                    Err(plinth_ids::PrefixError::HostBits { network, .. }) => {
                        Prefix::new(network, length).unwrap()
                    }
                    other => other.unwrap(),
                };
                vpc.routes.push(Route { destination, next_hop });
            }
            config.vpcs.push(vpc);
        }
        for (id, (segment, address)) in (1u32..).zip(nics) {
            let gateways = ["::1", ".1"];
            if !gateways.iter().any(|end| address.to_string().ends_with(end)) {
                config.ports.push(port(id, segment * 100, &[&address.to_string()]));
            }
        }
        // What is refused is taken out, one by one, until the configuration is accepted.
        let snapshot = loop {
            let error = match Snapshot::compile(&config, &Limits::default(), &Snapshot::default()) {
                Ok(snapshot) => break snapshot,
                Err(error) => error,
            };
            let text = error.to_string();
            let at = config.vpcs.iter().find_map(|vpc| {
                let place = vpc.routes.iter().rposition(|route| {
                    text.starts_with(&format!("vpc {}: route {} ", vpc.name, route.destination))
                        || text.starts_with(&format!("vpc {}: route {}:", vpc.name, route.destination))
                })?;
                Some((vpc.vni, place))
            });
            let Some((segment, place)) = at else { panic!("{text}") };
            let vpc = config.vpcs.iter_mut().find(|vpc| vpc.vni == segment).unwrap();
            vpc.routes.remove(place);
        };
        for (segment, to) in packets {
            let segment = Vni::new(segment * 100).unwrap();
            let found = match snapshot.route(segment, to) {
                Ok(Routed::Router) => Ok((segment, PortId(0))),
                Ok(Routed::External) => panic!("nothing leads outside"),
                Ok(Routed::Owner { vni, owner }) => match owner.destination {
                    Destination::Local(index) => Ok((vni, snapshot.port(index).unwrap().id)),
                    Destination::Remote(_) => panic!("there are no remotes"),
                },
                Err(reason) => Err(reason),
            };
            prop_assert_eq!(found, model(&config, segment, to), "{} {}", segment, to);
        }
    }
}
