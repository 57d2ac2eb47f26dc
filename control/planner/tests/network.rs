// SPDX-License-Identifier: Apache-2.0
//! Stories of routes, peerings, security groups and NICs, and every refusal with its words.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use plinth_api::*;
use plinth_ids::{GroupId, Name, NodeId, PortId, Prefix};
use plinth_planner::Change;
use std::net::IpAddr;
use support::{Bench, NOW, name, vm};

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn refused(result: Result<Change, Refusal>, code: Code, words: &str) {
    let refusal = result.expect_err(words);
    assert_eq!(refusal.code(), Some(code), "{refusal}");
    assert!(refusal.to_string().contains(words), "{refusal}");
}

fn scope() -> RuleScope {
    RuleScope {
        direction: RuleDirection::Inbound,
        priority: RulePriority::Mid,
        verdict: RuleVerdict::Allow,
        protocol: RuleProtocol::Tcp,
        ports: Some((80, 80)),
        icmp: None,
    }
}

impl Bench {
    fn route(&self, vpc: &str, to: &str, hop: RouteHop) -> Result<Change, Refusal> {
        self.cluster.route_add(&name(vpc), prefix(to), &hop, NOW)
    }

    fn rule(&self, group: &str, scope: RuleScope, peer: RulePeer) -> Result<Change, Refusal> {
        self.cluster.rule_add(&name(group), scope, &peer)
    }

    fn on(&mut self, vm_name: &str, node: &str, subnet: &str, groups: &[&str]) {
        let groups = groups.iter().map(|group| name(group)).collect();
        let nics = vec![NicRequest { subnet: name(subnet), address: None, groups }];
        self.create(&VmCreate { node: Some(name(node)), nics, ..vm(vm_name) }).unwrap();
    }

    fn spec(&self, node: u32) -> NodeSpec {
        self.cluster.node_spec(NodeId(node)).unwrap()
    }

    fn red(&mut self) {
        self.plan(self.cluster.vpc_create(name("red"), None, NOW)).unwrap();
        self.subnet("red-a", "red", [10, 1, 0, 0], 24).unwrap();
    }
}

fn names(list: &[&str]) -> Vec<Name> {
    list.iter().map(|text| name(text)).collect()
}

#[test]
fn a_vpc_comes_with_a_group_that_its_nics_are_in() {
    let mut bench = Bench::new();
    bench.on("web-1", "node-1", "blue-a", &[]);
    let views = bench.cluster.group_views(Some(&name("blue"))).unwrap();
    let [group] = &views[..] else { panic!("one group: {views:?}") };
    assert_eq!((group.name.as_str(), group.is_default), ("blue-default", true));
    assert_eq!(group.nics, names(&["web-1-0"]));
    let rule =
        |number: usize| (group.rules[number].scope.direction, group.rules[number].peer.clone());
    assert_eq!(rule(0), (RuleDirection::Outbound, RulePeer::Any));
    assert_eq!(rule(1), (RuleDirection::Inbound, RulePeer::Group(name("blue-default"))));
    let spec = bench.spec(1);
    assert_eq!(spec.vms[0].nics[0].groups, Some(vec![group.id]));
    assert_eq!(spec.groups.len(), 1);
    assert_eq!(spec.groups[0].rules[1].peer, PeerSpec::Group(group.id));
    // A name that is taken or too long does not keep a vpc from being made.
    bench.plan(bench.cluster.group_create(name("red-default"), &name("blue"), NOW)).unwrap();
    bench.red();
    let red = bench.cluster.group_views(Some(&name("red"))).unwrap();
    assert_eq!(red[0].name.as_str(), "default-2");
    let long = "x".repeat(63);
    bench.plan(bench.cluster.vpc_create(name(&long), None, NOW)).unwrap();
    assert_eq!(
        bench.cluster.group_views(Some(&name(&long))).unwrap()[0].name.as_str(),
        "default-3"
    );
}

#[test]
fn a_vpc_goes_with_its_groups() {
    let mut bench = Bench::new();
    bench.red();
    bench.plan(bench.cluster.group_create(name("web"), &name("red"), NOW)).unwrap();
    bench.plan(bench.cluster.subnet_delete(&name("red-a"))).unwrap();
    bench.plan(bench.cluster.vpc_delete(&name("red"))).unwrap();
    assert_eq!(bench.cluster.groups.len(), 1);
}

#[test]
fn routes_reach_the_node_and_say_what_they_wait_for() {
    let mut bench = Bench::new();
    bench.on("web-1", "node-1", "blue-a", &[]);
    bench.plan(bench.route("blue", "0.0.0.0/0", RouteHop::Address(ip("10.0.0.9")))).unwrap();
    bench.plan(bench.route("blue", "10.8.0.0/16", RouteHop::Address(ip("10.0.0.2")))).unwrap();
    bench.plan(bench.route("blue", "10.9.0.0/16", RouteHop::Blackhole)).unwrap();
    let views = bench.cluster.route_views(None).unwrap();
    let pending: Vec<Option<&str>> = views.iter().map(|view| view.pending.as_deref()).collect();
    assert_eq!(pending, [Some("no NIC has the address"), None, None]);
    let vpc = &bench.spec(1).vpcs[0];
    assert_eq!(vpc.routes.len(), 3);
    assert_eq!(vpc.routes[2].next_hop, HopSpec::Blackhole);
    assert_eq!(vpc.subnets[0].prefixes[0].gateway, ip("10.0.0.1"));
    assert!(bench.spec(2).vpcs.is_empty(), "node-2 has no NIC of it");
    bench.plan(bench.cluster.route_remove(&name("blue"), prefix("10.9.0.0/16"))).unwrap();
    assert_eq!(bench.spec(1).vpcs[0].routes.len(), 2);
}

#[test]
fn every_route_that_leads_nowhere_is_refused() {
    let mut bench = Bench::new();
    bench.red();
    let via = |text: &str| RouteHop::Address(ip(text));
    let blue = |to: &str, hop| bench.route("blue", to, hop);
    refused(bench.route("bleu", "10.9.0.0/16", RouteHop::Blackhole), Code::NotFound, "no vpc bleu");
    refused(blue("10.0.0.0/24", RouteHop::Blackhole), Code::Exists, "is subnet blue-a");
    refused(blue("10.9.0.0/16", via("10.1.0.5")), Code::Invalid, "is in no subnet of vpc blue");
    refused(blue("10.9.0.0/16", via("fd00::5")), Code::Invalid, "two address families");
    refused(blue("10.9.0.0/16", via("10.0.0.1")), Code::Invalid, "the router's own address");
    let peer = |text: &str| RouteHop::Peer(name(text));
    refused(blue("10.9.0.0/16", peer("blue")), Code::Invalid, "cannot be its own peer");
    refused(blue("10.9.0.0/16", peer("green")), Code::NotFound, "there is no vpc green");
    bench.plan(bench.route("blue", "10.9.0.0/16", via("10.0.0.5"))).unwrap();
    refused(
        bench.route("blue", "10.9.0.0/16", RouteHop::Blackhole),
        Code::Exists,
        "has a route to 10.9.0.0/16",
    );
    refused(
        bench.cluster.subnet_delete(&name("blue-a")),
        Code::InUse,
        "leads through subnet blue-a",
    );
    let gone = bench.cluster.route_remove(&name("blue"), prefix("10.7.0.0/16"));
    refused(gone, Code::NotFound, "has no route to 10.7.0.0/16");
    let taken = bench.subnet("blue-b", "blue", [10, 9, 0, 0], 16).unwrap_err();
    assert!(taken.to_string().contains("vpc blue has a route to 10.9.0.0/16"), "{taken}");
}

#[test]
fn a_peering_needs_both_sides() {
    let mut bench = Bench::new();
    bench.red();
    bench.on("web-1", "node-1", "blue-a", &[]);
    bench.on("db-1", "node-2", "red-a", &[]);
    let peer = |text: &str| RouteHop::Peer(name(text));
    bench.plan(bench.route("blue", "10.1.0.0/16", peer("red"))).unwrap();
    let pending = bench.cluster.route_views(None).unwrap()[0].pending.clone();
    assert_eq!(pending.as_deref(), Some("vpc red has no route to vpc blue"));
    let one = bench.spec(1);
    assert_eq!((one.vpcs.len(), one.remotes.len()), (1, 0), "red has not agreed");
    assert_eq!(one.vpcs[0].routes[0].next_hop, HopSpec::Blackhole);
    bench.plan(bench.route("red", "10.0.0.0/16", peer("blue"))).unwrap();
    assert!(bench.cluster.route_views(None).unwrap().iter().all(|view| view.pending.is_none()));
    let one = bench.spec(1);
    assert_eq!((one.vpcs.len(), one.remotes.len()), (2, 1));
    let red = bench.cluster.vpcs[&name("red")].vni;
    assert_eq!(one.vpcs[0].routes[0].next_hop, HopSpec::Peer(red));
    assert_eq!((one.remotes[0].vni, &one.remotes[0].subnet), (red, &name("red-a")));
    // A third vpc is no business of node-1: red's route to it is a black hole there.
    bench.plan(bench.cluster.vpc_create(name("green"), None, NOW)).unwrap();
    bench.plan(bench.route("red", "10.2.0.0/16", peer("green"))).unwrap();
    bench.plan(bench.route("green", "10.1.0.0/16", peer("red"))).unwrap();
    let one = bench.spec(1);
    assert_eq!(one.vpcs.len(), 2);
    let of_red = one.vpcs.iter().find(|vpc| vpc.vni == red).unwrap();
    assert_eq!(of_red.routes[1].next_hop, HopSpec::Blackhole);
    let delete = |bench: &Bench, vpc: &str| bench.cluster.vpc_delete(&name(vpc));
    refused(delete(&bench, "green"), Code::InUse, "vpc red has a route to vpc green");
}

#[test]
fn a_subnet_may_have_ipv6_and_its_nics_an_address_of_their_mac() {
    let mut bench = Bench::new();
    let make = |bench: &Bench, subnet: &str, third: u8, ipv6: &str| {
        let cidr = ([10, 0, third, 0].into(), 24);
        let (vpc, ipv6) = (name("blue"), Some(prefix(ipv6)));
        bench.cluster.subnet_create(name(subnet), &vpc, cidr, None, ipv6, NOW)
    };
    bench.plan(make(&bench, "blue-b", 1, "fd00:1::/64")).unwrap();
    bench.on("web-1", "node-1", "blue-b", &[]);
    bench.on("web-2", "node-2", "blue-b", &[]);
    let spec = bench.spec(1);
    let nic = &spec.vms[0].nics[0];
    let own = Address { ip: ip("fd00:1::50:ff:fe00:1"), prefix_length: 64 };
    assert_eq!(nic.addresses[1], own, "of {}", nic.mac);
    assert_eq!(spec.remotes[0].addresses, [ip("10.0.1.3"), ip("fd00:1::50:ff:fe00:2")]);
    let subnet = spec.vpcs[0].subnets.iter().find(|subnet| subnet.name == name("blue-b")).unwrap();
    assert_eq!(subnet.prefixes[1].gateway, ip("fd00:1::1"));
    refused(make(&bench, "blue-c", 2, "fd00:1::/64"), Code::Exists, "is that of subnet blue-b");
    for wrong in ["fd00:2::/48", "10.5.0.0/16"] {
        refused(make(&bench, "blue-c", 2, wrong), Code::Invalid, "is no /64 of IPv6");
    }
    for reserved in ["fe80::/64", "ff00::/64", "::/64"] {
        refused(make(&bench, "blue-c", 2, reserved), Code::Invalid, "is reserved");
    }
}

#[test]
fn groups_and_rules_reach_the_node() {
    let mut bench = Bench::new();
    bench.plan(bench.cluster.group_create(name("web"), &name("blue"), NOW)).unwrap();
    bench.plan(bench.cluster.group_create(name("db"), &name("blue"), NOW)).unwrap();
    bench.on("web-1", "node-1", "blue-a", &["web"]);
    bench.on("db-1", "node-2", "blue-a", &["db"]);
    assert!(bench.spec(1).groups[0].rules.is_empty(), "everything is denied at first");
    bench.plan(bench.rule("db", scope(), RulePeer::Group(name("web")))).unwrap();
    bench.plan(bench.rule("db", RuleScope { ports: None, ..scope() }, RulePeer::Any)).unwrap();
    let two = bench.spec(2);
    let web = bench.cluster.groups[&name("web")].id;
    assert_eq!(two.groups.len(), 1, "web's rules are judged where web is");
    assert_eq!(two.groups[0].rules[0], RuleSpec { scope: scope(), peer: PeerSpec::Group(web) });
    assert_eq!(two.remotes[0].groups, [web]);
    bench.plan(bench.cluster.rule_remove(&name("db"), 1)).unwrap();
    bench.plan(bench.rule("db", scope(), RulePeer::Any)).unwrap();
    let view = bench.cluster.group_view(&bench.cluster.groups[&name("db")]);
    let numbers: Vec<u32> = view.rules.iter().map(|rule| rule.number).collect();
    assert_eq!(numbers, [2, 3], "a number is never given out twice");
    assert_eq!(bench.spec(2).groups[0].rules.len(), 2);
}

#[test]
fn every_rule_that_cannot_match_is_refused() {
    let mut bench = Bench::new();
    bench.red();
    bench.plan(bench.cluster.group_create(name("web"), &name("blue"), NOW)).unwrap();
    let rule = |scope| bench.rule("web", scope, RulePeer::Any);
    let any = RuleScope { protocol: RuleProtocol::Any, ..scope() };
    refused(rule(any), Code::Invalid, "only tcp and udp have ports");
    refused(rule(RuleScope { ports: Some((9, 8)), ..scope() }), Code::Invalid, "run backwards");
    let typed = RuleScope { icmp: Some((8, None)), ports: None, ..scope() };
    refused(rule(typed), Code::Invalid, "only icmp and icmpv6 have types");
    let to = |peer: &str| bench.rule("web", scope(), RulePeer::Group(name(peer)));
    refused(to("none"), Code::NotFound, "there is no security-group none");
    refused(to("red-default"), Code::Invalid, "is of another vpc than web");
    refused(bench.cluster.rule_remove(&name("web"), 1), Code::NotFound, "has no rule 1");
    bench.plan(bench.rule("web", scope(), RulePeer::Any)).unwrap();
    refused(bench.rule("web", scope(), RulePeer::Any), Code::Exists, "has this rule");
    for port in 1..1000 {
        bench
            .plan(bench.rule(
                "web",
                RuleScope { ports: Some((port, 1999)), ..scope() },
                RulePeer::Any,
            ))
            .unwrap();
    }
    refused(
        bench.rule("web", RuleScope { ports: None, ..scope() }, RulePeer::Any),
        Code::NoRoom,
        "the limit",
    );
}

#[test]
fn a_group_in_use_is_kept() {
    let mut bench = Bench::new();
    bench.plan(bench.cluster.group_create(name("web"), &name("blue"), NOW)).unwrap();
    bench.plan(bench.cluster.group_create(name("db"), &name("blue"), NOW)).unwrap();
    bench.on("web-1", "node-1", "blue-a", &["web"]);
    let delete = |bench: &Bench, group: &str| bench.cluster.group_delete(&name(group));
    refused(delete(&bench, "blue-default"), Code::InUse, "is the default one of vpc blue");
    refused(delete(&bench, "web"), Code::InUse, "NIC web-1-0 is in security group web");
    bench.plan(bench.rule("web", scope(), RulePeer::Group(name("db")))).unwrap();
    bench.plan(bench.rule("db", scope(), RulePeer::Group(name("db")))).unwrap();
    refused(delete(&bench, "db"), Code::InUse, "a rule of security group web names db as peer");
    bench.plan(bench.cluster.rule_remove(&name("web"), 1)).unwrap();
    bench.plan(delete(&bench, "db")).unwrap();
    refused(bench.cluster.group_create(name("web"), &name("blue"), NOW), Code::Exists, "exists");
}

#[test]
fn a_nic_changes_groups_and_ranges_while_its_vm_runs() {
    let mut bench = Bench::new();
    bench.red();
    bench.plan(bench.cluster.group_create(name("web"), &name("blue"), NOW)).unwrap();
    bench.on("web-1", "node-1", "blue-a", &[]);
    let group = |bench: &Bench, group: &str, is_member| {
        bench.cluster.nic_group(&name("web-1-0"), &name(group), is_member)
    };
    bench.plan(group(&bench, "web", true)).unwrap();
    refused(group(&bench, "web", true), Code::Exists, "is in security group web already");
    refused(group(&bench, "red-default", true), Code::Invalid, "of another vpc than NIC web-1-0");
    bench.plan(group(&bench, "blue-default", false)).unwrap();
    refused(group(&bench, "blue-default", false), Code::NotFound, "is not in security group");
    let web = bench.cluster.groups[&name("web")].id;
    assert_eq!(bench.spec(1).vms[0].nics[0].groups, Some(vec![web]));
    bench.plan(group(&bench, "web", false)).unwrap();
    assert_eq!(bench.spec(1).vms[0].nics[0].groups, Some(Vec::<GroupId>::new()), "all is denied");
    let allow = |bench: &Bench, range: &str, is_allowed| {
        bench.cluster.nic_allow(&name("web-1-0"), prefix(range), is_allowed)
    };
    bench.plan(allow(&bench, "10.8.0.0/16", true)).unwrap();
    refused(allow(&bench, "10.8.0.0/16", true), Code::Exists, "may speak from 10.8.0.0/16 already");
    assert_eq!(bench.spec(1).vms[0].nics[0].allowed, [prefix("10.8.0.0/16")]);
    bench.plan(allow(&bench, "10.8.0.0/16", false)).unwrap();
    refused(allow(&bench, "10.8.0.0/16", false), Code::NotFound, "no range that was allowed");
    let nobody = bench.cluster.nic_group(&name("web-9-0"), &name("web"), true);
    refused(nobody, Code::NotFound, "there is no NIC web-9-0");
    let view = bench.cluster.eni_view(&name("web-1-0"), &bench.observed).unwrap();
    assert_eq!((view.groups, view.vm), (Some(Vec::new()), name("web-1")));
    assert_eq!(bench.cluster.eni_views(Some(&name("web-1")), &bench.observed).unwrap().len(), 1);
    assert!(bench.cluster.eni_views(Some(&name("web-2")), &bench.observed).is_err());
}

#[test]
fn a_new_nic_names_groups_of_its_own_vpc_once() {
    let mut bench = Bench::new();
    bench.red();
    let refusal = |groups: &[&str]| {
        let groups = names(groups);
        let nics = vec![NicRequest { subnet: name("blue-a"), address: None, groups }];
        bench.cluster.vm_create(&VmCreate { nics, ..vm("web-1") }, &bench.observed, NOW)
    };
    refused(refusal(&["red-default"]), Code::Invalid, "is of another vpc than blue-a");
    refused(refusal(&["nobody"]), Code::NotFound, "there is no security-group nobody");
    refused(refusal(&["blue-default", "blue-default"]), Code::Invalid, "is named twice");
}

#[test]
fn limits_of_a_nic_reach_its_node_and_are_checked() {
    let mut bench = Bench::new();
    bench.on("web-1", "node-1", "blue-a", &[]);
    let limit = |bench: &Bench, limits| bench.cluster.nic_limit(&name("web-1-0"), limits);
    let rate = |bits, packets| NicRate {
        bits_per_second: bits,
        packets_per_second: packets,
        ..NicRate::default()
    };
    let limits = NicLimits { outbound: rate(100_000_000, 0), inbound: rate(0, 5000), weight: 200 };
    bench.plan(limit(&bench, limits)).unwrap();
    assert_eq!(bench.spec(1).vms[0].nics[0].limits, limits);
    let wrong = NicLimits { outbound: rate(100, 0), ..NicLimits::default() };
    refused(limit(&bench, wrong), Code::Invalid, "out of range");
    let burst = NicRate { bits_burst: 1_000_000, ..NicRate::default() };
    let wrong = NicLimits { inbound: burst, ..NicLimits::default() };
    refused(limit(&bench, wrong), Code::Invalid, "needs a rate");
    let wrong = NicLimits { weight: 1001, ..NicLimits::default() };
    refused(limit(&bench, wrong), Code::Invalid, "weight");
    assert!(bench.cluster.nic_limit(&name("nobody"), limits).is_err());
}

impl Bench {
    fn attach(&mut self, subnet: &str, address: Option<[u8; 4]>) -> Result<(), Refusal> {
        let address = address.map(Into::into);
        let nic = NicRequest { subnet: name(subnet), address, groups: Vec::new() };
        self.plan(self.cluster.nic_attach(&name("web-1"), &nic))
    }

    /// What node-1 says of web-1's NICs, and what the planner makes of it.
    fn node_has(&mut self, nics: &[u32], due: &[u32]) {
        let ports = |list: &[u32]| list.iter().map(|&port| PortId(port)).collect();
        self.see(NodeId(1), |status| {
            status.vms[0].nics = ports(nics);
            status.vms[0].nics_due = ports(due);
        });
        self.apply(self.cluster.release(NodeId(1), &self.observed));
    }

    /// Names and states of web-1's NICs.
    fn states(&self) -> Vec<(String, NicState)> {
        let views = self.cluster.eni_views(Some(&name("web-1")), &self.observed).unwrap();
        views.into_iter().map(|view| (view.name.to_string(), view.state)).collect()
    }
}

#[test]
fn nics_come_to_a_vm_and_keep_their_names_when_others_go() {
    use NicState::{Attached, Leaving, Waiting};
    let mut bench = Bench::new();
    bench.on("web-1", "node-1", "blue-a", &[]);
    bench.attach("blue-a", None).unwrap();
    bench.attach("blue-a", Some([10, 0, 0, 9])).unwrap();
    let ports: Vec<u32> = bench.spec(1).vms[0].nics.iter().map(|nic| nic.port.0).collect();
    let [first, second, third] = ports[..] else { panic!("three NICs: {ports:?}") };
    bench.node_has(&[first], &[second, third]);
    let named = |list: &[(&str, NicState)]| -> Vec<(String, NicState)> {
        list.iter().map(|(name, state)| ((*name).to_owned(), *state)).collect()
    };
    let before = named(&[("web-1-0", Attached), ("web-1-1", Waiting), ("web-1-2", Waiting)]);
    assert_eq!(bench.states(), before);
    bench.node_has(&[first, second, third], &[]);

    // Not forgotten before its node says so, wherever it is on the way; its address stays taken.
    bench.plan(bench.cluster.nic_detach(&name("web-1-1"))).unwrap();
    assert_eq!(bench.spec(1).vms[0].nics.len(), 2);
    bench.node_has(&[first, second, third], &[]);
    bench.node_has(&[first, third], &[second]);
    let during = named(&[("web-1-0", Attached), ("web-1-1", Leaving), ("web-1-2", Attached)]);
    assert_eq!(bench.states(), during);
    let taken = bench.attach("blue-a", Some([10, 0, 0, 3])).unwrap_err();
    assert!(taken.to_string().contains("10.0.0.3"), "{taken}");
    bench.node_has(&[first, third], &[]);
    assert_eq!(bench.states(), named(&[("web-1-0", Attached), ("web-1-2", Attached)]));
    let names: Vec<Name> = bench.spec(1).vms[0].nics.iter().map(|nic| nic.name.clone()).collect();
    assert_eq!(names, [name("web-1-0"), name("web-1-2")]);
    // The number that is free is given again, the port is not.
    bench.attach("blue-a", Some([10, 0, 0, 3])).unwrap();
    let newest = bench.cluster.eni_of(PortId(third + 1), &bench.observed).unwrap();
    assert_eq!((newest.name.as_str(), newest.state), ("web-1-1", Waiting));
}

#[test]
fn what_is_bound_to_a_nic_goes_with_it_and_not_before() {
    let mut bench = Bench::new();
    bench.on("web-1", "node-1", "blue-a", &[]);
    bench.attach("blue-a", None).unwrap();
    let nic = bench.spec(1).vms[0].nics[1].clone();
    let line = bench.cluster.line_create(
        name("carrier"),
        [172, 16, 0, 254].into(),
        &[prefix("198.51.100.0/28")],
        NOW,
    );
    bench.plan(line).unwrap();
    bench.plan(bench.cluster.eip_create(name("www"), &name("carrier"), None, NOW)).unwrap();
    let bound = bench.cluster.eip_bind(&name("www"), &nic.name, EipBinding::Translated);
    bench.plan(bound).unwrap();
    bench.plan(bench.cluster.nic_detach(&nic.name)).unwrap();
    bench.node_has(&[1, nic.port.0], &[]);
    assert!(bench.cluster.eips[&name("www")].bound.is_some());
    assert!(bench.spec(1).external.eips.is_empty(), "nothing more is led to it");
    bench.node_has(&[1], &[]);
    assert!(bench.cluster.eips[&name("www")].bound.is_none());
    assert_eq!(bench.spec(1).vms[0].nics.len(), 1);
}

#[test]
fn a_nic_that_cannot_be_attached_is_refused() {
    let mut bench = Bench::new();
    bench.on("web-1", "node-1", "blue-a", &[]);
    let none = bench.cluster.nic_attach(
        &name("nobody"),
        &NicRequest { subnet: name("blue-a"), address: None, groups: Vec::new() },
    );
    refused(none, Code::NotFound, "nobody");
    assert_eq!(bench.attach("green-a", None).unwrap_err().code(), Some(Code::NotFound));
    for _ in 1..8 {
        bench.attach("blue-a", None).unwrap();
    }
    let full = bench.attach("blue-a", None).unwrap_err();
    assert_eq!(full.code(), Some(Code::NoRoom));
    assert!(full.to_string().contains("plinth nic detach"), "{full}");
    refused(bench.cluster.nic_detach(&name("web-1-9")), Code::NotFound, "web-1-9");
}
