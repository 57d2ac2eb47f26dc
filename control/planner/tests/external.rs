// SPDX-License-Identifier: Apache-2.0
//! Stories of lines, external addresses and NAT gateways, every refusal with its words, and
//! random requests after which every node's switch would still take its configuration.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use plinth_api::*;
use plinth_ids::{Name, NodeId, PortId, Prefix};
use plinth_planner::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use support::{Bench, NOW, name, vm};

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

const fn outside(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, last)
}

fn refused(result: Result<Change, Refusal>, code: Code, words: &str) {
    let refusal = result.expect_err(words);
    assert_eq!(refusal.code(), Some(code), "{refusal}");
    assert!(refusal.to_string().contains(words), "{refusal}");
    assert!(refusal.remedy.is_some(), "{refusal} has no remedy");
}

fn nat(gateway: &str, count: u16) -> NatCreate {
    NatCreate {
        name: name(gateway),
        vpc: name("blue"),
        line: name("carrier"),
        addresses: Vec::new(),
        count,
        ports_per_nic: 1024,
        serves: NatServes::Vpc,
        mapping: NatMapping::Open,
    }
}

fn forward(nic: &str, ports: (u16, u16)) -> NatForward {
    NatForward {
        address: None,
        protocol: ForwardProtocol::Tcp,
        ports,
        nic: name(nic),
        nic_port: Some(80),
    }
}

impl Bench {
    /// A line of eight addresses.
    fn outside() -> Self {
        let mut bench = Self::new();
        let pools = [prefix("198.51.100.0/29")];
        let hop = outside(254);
        bench.plan(bench.cluster.line_create(name("carrier"), hop, &pools, NOW)).unwrap();
        bench
    }

    fn on(&mut self, vm_name: &str, node: &str) -> Result<(), Refusal> {
        let nics = vec![NicRequest { subnet: name("blue-a"), address: None, groups: Vec::new() }];
        self.create(&VmCreate { node: Some(name(node)), nics, ..vm(vm_name) })
    }

    fn eip(&mut self, eip: &str) {
        let line = name("carrier");
        self.plan(self.cluster.eip_create(name(eip), &line, None, NOW)).unwrap();
    }

    fn bind(&mut self, eip: &str, nic: &str, binding: EipBinding) -> Result<(), Refusal> {
        self.plan(self.cluster.eip_bind(&name(eip), &name(nic), binding))
    }

    fn external(&self, node: u32) -> ExternalSpec {
        self.cluster.node_spec(NodeId(node)).unwrap().external
    }

    fn view(&self, gateway: &str) -> NatView {
        self.cluster.nat_view(&self.cluster.gateways[&name(gateway)])
    }

    fn gone(&mut self, vm: &str) {
        self.plan(self.cluster.vm_delete(&name(vm), true, &self.observed)).unwrap();
        for node in [NodeId(1), NodeId(2)] {
            self.see(node, |status| status.epoch = Some(plinth_ids::Epoch(u64::MAX)));
            self.apply(self.cluster.release(node, &self.observed));
        }
    }
}

#[test]
fn an_external_address_is_on_the_node_of_its_nic() {
    let mut bench = Bench::outside();
    bench.on("web-1", "node-1").unwrap();
    bench.on("web-2", "node-2").unwrap();
    bench.eip("web");
    assert_eq!(bench.external(1), ExternalSpec::default(), "an address that is bound to nothing");
    bench.bind("web", "web-1-0", EipBinding::Translated).unwrap();
    let limits = EipLimits {
        outbound: NicRate { bits_per_second: 1_000_000, ..NicRate::default() },
        ..EipLimits::default()
    };
    bench.plan(bench.cluster.eip_limit(&name("web"), limits)).unwrap();
    let spec = bench.external(1);
    let expected = EipSpec {
        address: outside(0),
        line: name("carrier"),
        port: PortId(1),
        binding: EipBinding::Translated,
        limits,
    };
    assert_eq!(spec.eips, std::slice::from_ref(&expected));
    assert_eq!(spec.lines, [LineSpec { name: name("carrier"), next_hop: outside(254) }]);
    assert_eq!(bench.external(2), ExternalSpec::default());
    bench.plan(bench.cluster.eip_unbind(&name("web"))).unwrap();
    bench.bind("web", "web-2-0", EipBinding::Translated).unwrap();
    assert_eq!(bench.external(1), ExternalSpec::default());
    assert_eq!(bench.external(2).eips, [EipSpec { port: PortId(2), ..expected }]);
    let view = bench.cluster.eip_view(&bench.cluster.eips[&name("web")]);
    let bound = view.bound.unwrap();
    assert_eq!((bound.nic, bound.node), (name("web-2-0"), name("node-2")));
}

#[test]
fn a_guest_may_speak_from_the_address_that_it_carries() {
    let mut bench = Bench::outside();
    bench.on("web-1", "node-1").unwrap();
    bench.eip("web");
    let allowed =
        |bench: &Bench| bench.cluster.node_spec(NodeId(1)).unwrap().vms[0].nics[0].allowed.clone();
    bench.bind("web", "web-1-0", EipBinding::Carried).unwrap();
    assert_eq!(allowed(&bench), [prefix("198.51.100.0/32")]);
    bench.plan(bench.cluster.eip_unbind(&name("web"))).unwrap();
    assert_eq!(allowed(&bench), []);
    // Both together are as many ranges as the switch takes.
    let nic = name("web-1-0");
    for number in 0..64_u8 {
        let range = Prefix::host(Ipv4Addr::new(10, 8, 0, number).into());
        bench.plan(bench.cluster.nic_allow(&nic, range, true)).unwrap();
    }
    let carried = bench.cluster.eip_bind(&name("web"), &nic, EipBinding::Carried);
    refused(carried, Code::NoRoom, "speaks from 64 ranges");
    bench.plan(bench.cluster.nic_allow(&nic, prefix("10.8.0.0/32"), false)).unwrap();
    bench.bind("web", "web-1-0", EipBinding::Carried).unwrap();
    let one_more = bench.cluster.nic_allow(&nic, prefix("10.8.0.0/32"), true);
    refused(one_more, Code::NoRoom, "64 allowed ranges at most");
}

#[test]
fn every_wrong_external_address_is_refused() {
    let mut bench = Bench::outside();
    bench.on("web-1", "node-1").unwrap();
    bench.eip("web");
    let create = |bench: &Bench, eip: &str, line: &str, address: Option<Ipv4Addr>| {
        bench.cluster.eip_create(name(eip), &name(line), address, NOW)
    };
    refused(create(&bench, "web", "carrier", None), Code::Exists, "eip web exists");
    refused(create(&bench, "db", "carrie", None), Code::NotFound, "did you mean carrier");
    let taken = create(&bench, "db", "carrier", Some(outside(0)));
    refused(taken, Code::Exists, "198.51.100.0 is that of external address web");
    let foreign = create(&bench, "db", "carrier", Some(outside(8)));
    refused(foreign, Code::Invalid, "198.51.100.8 is in no pool of line carrier");
    for number in 0..7 {
        bench.eip(&format!("more-{number}"));
    }
    refused(
        create(&bench, "db", "carrier", None),
        Code::NoRoom,
        "line carrier has no address left",
    );
    refused(
        bench.cluster.eip_bind(&name("web"), &name("web-9-0"), EipBinding::Translated),
        Code::NotFound,
        "there is no NIC web-9-0",
    );
    bench.bind("web", "web-1-0", EipBinding::Translated).unwrap();
    let bind = |bench: &Bench, eip: &str| {
        bench.cluster.eip_bind(&name(eip), &name("web-1-0"), EipBinding::Translated)
    };
    refused(bind(&bench, "web"), Code::InUse, "web is bound to NIC web-1-0");
    refused(bind(&bench, "more-0"), Code::Exists, "NIC web-1-0 goes out as web already");
    refused(bench.cluster.eip_delete(&name("web")), Code::InUse, "is bound to NIC web-1-0");
    refused(bench.cluster.eip_unbind(&name("more-0")), Code::State, "is not bound");
    let limits = EipLimits {
        inbound: NicRate { bits_per_second: 1, ..NicRate::default() },
        ..EipLimits::default()
    };
    refused(bench.cluster.eip_limit(&name("web"), limits), Code::Invalid, "out of range");
}

#[test]
fn every_wrong_line_is_refused() {
    let mut bench = Bench::outside();
    let line = |next_hop: [u8; 4], pools: &[Prefix]| {
        bench.cluster.line_create(name("other"), next_hop.into(), pools, NOW)
    };
    refused(line([172, 16, 0, 1], &[]), Code::Exists, "the VTEP of node node-1");
    refused(line([224, 0, 0, 1], &[]), Code::Invalid, "no address of a machine");
    let clash = [prefix("198.51.100.4/30")];
    refused(line([198, 51, 100, 253], &clash), Code::Exists, "overlaps 198.51.100.0/29 of line");
    let twice = [prefix("192.0.2.0/28"), prefix("192.0.2.8/29")];
    refused(line([198, 51, 100, 253], &twice), Code::Exists, "overlaps 192.0.2.0/28 of line other");
    for pool in ["fd00::/64", "127.0.0.0/8", "0.0.0.0/0", "255.255.255.255/32"] {
        refused(line([198, 51, 100, 253], &[prefix(pool)]), Code::Invalid, "no machine may have");
    }
    bench.eip("web");
    refused(bench.cluster.line_delete(&name("carrier")), Code::InUse, "web is of line carrier");
    let pool = |range: &str| bench.cluster.line_pool(&name("carrier"), prefix(range), false);
    refused(pool("198.51.100.0/29"), Code::InUse, "198.51.100.0 of 198.51.100.0/29 is that of");
    refused(pool("198.51.100.0/30"), Code::NotFound, "has no pool 198.51.100.0/30");
    let hop = bench.cluster.line_create(name("other"), outside(0), &[], NOW);
    refused(hop, Code::Exists, "is the address of external address web");
    bench.plan(bench.cluster.eip_delete(&name("web"))).unwrap();
    bench.plan(bench.cluster.line_delete(&name("carrier"))).unwrap();
}

#[test]
fn a_gateways_addresses_are_where_its_nics_are() {
    let mut bench = Bench::outside();
    bench.plan(bench.cluster.nat_create(&nat("out", 1), NOW)).unwrap();
    assert_eq!(bench.view("out").addresses[0].node, None);
    bench.on("web-1", "node-1").unwrap();
    assert_eq!(bench.view("out").addresses[0].node, Some(name("node-1")));
    assert_eq!(bench.external(1).gateways[0].addresses, [outside(0)]);
    // The other node goes without until there is another address.
    bench.on("web-2", "node-2").unwrap();
    assert_eq!(bench.view("out").lacking, [name("node-2")]);
    assert_eq!(bench.external(2), ExternalSpec::default());
    bench.plan(bench.cluster.nat_address_add(&name("out"), None)).unwrap();
    assert_eq!(bench.view("out").lacking, Vec::<Name>::new());
    assert_eq!(bench.external(2).gateways[0].addresses, [outside(1)]);
    // When the last NIC of a node is gone, its address is there for others.
    bench.gone("web-1");
    bench.plan(bench.cluster.nat_address_remove(&name("out"), outside(1))).unwrap();
    assert_eq!(bench.view("out").addresses[0].node, Some(name("node-2")));
    let last = bench.cluster.nat_address_remove(&name("out"), outside(0));
    refused(last, Code::InUse, "is the last one of NAT gateway out");
    bench.plan(bench.cluster.nat_delete(&name("out"))).unwrap();
    assert_eq!(bench.external(2), ExternalSpec::default());
}

#[test]
fn a_vm_for_which_a_gateway_has_no_ports_is_not_made() {
    let mut bench = Bench::outside();
    let wide = NatCreate { ports_per_nic: 64_512, ..nat("out", 1) };
    bench.plan(bench.cluster.nat_create(&wide, NOW)).unwrap();
    bench.on("web-1", "node-1").unwrap();
    let refusal = bench.on("web-2", "node-1").unwrap_err();
    assert!(refusal.text.contains("has ports for 1 NICs on node node-1"), "{refusal}");
    assert!(refusal.remedy.unwrap().contains("nat-gateway address add out"));
    bench.plan(bench.cluster.nat_address_add(&name("out"), Some(outside(5)))).unwrap();
    bench.on("web-2", "node-1").unwrap();
    assert_eq!(bench.external(1).gateways[0].addresses, [outside(0), outside(5)]);
    let fewer = bench.cluster.nat_address_remove(&name("out"), outside(5));
    refused(fewer, Code::NoRoom, "has ports for 1 NICs");
}

#[test]
fn a_nic_for_which_a_gateway_has_no_ports_is_not_attached() {
    let mut bench = Bench::outside();
    let wide = NatCreate { ports_per_nic: 32_256, ..nat("out", 1) };
    bench.plan(bench.cluster.nat_create(&wide, NOW)).unwrap();
    bench.on("web-1", "node-1").unwrap();
    let nic = NicRequest { subnet: name("blue-a"), address: None, groups: Vec::new() };
    // The NIC that is there is not counted again.
    bench.plan(bench.cluster.nic_attach(&name("web-1"), &nic)).unwrap();
    let third = bench.cluster.nic_attach(&name("web-1"), &nic);
    refused(third, Code::NoRoom, "has ports for 2 NICs on node node-1");
}

#[test]
fn a_forward_leads_to_a_nic_from_an_address_of_its_node() {
    let mut bench = Bench::outside();
    bench.on("web-1", "node-1").unwrap();
    bench.on("web-2", "node-2").unwrap();
    bench.plan(bench.cluster.nat_create(&nat("out", 2), NOW)).unwrap();
    let add =
        |bench: &Bench, forward: NatForward| bench.cluster.nat_forward_add(&name("out"), &forward);
    bench.plan(add(&bench, forward("web-2-0", (8000, 8009)))).unwrap();
    let found = &bench.external(2).gateways[0].forwards;
    let expected = ForwardSpec {
        address: outside(1),
        protocol: ForwardProtocol::Tcp,
        ports: (8000, 8009),
        port: PortId(2),
        nic_port: 80,
    };
    assert_eq!(*found, [expected]);
    assert_eq!(bench.external(1).gateways[0].forwards, []);
    let overlap = forward("web-2-0", (8009, 8020));
    refused(add(&bench, overlap.clone()), Code::Exists, "overlap forward 1 of 198.51.100.1");
    let udp = NatForward { protocol: ForwardProtocol::Udp, ..overlap.clone() };
    bench.plan(add(&bench, udp)).unwrap();
    let elsewhere = NatForward { address: Some(outside(0)), ..overlap };
    refused(add(&bench, elsewhere), Code::Invalid, "is not on the node of NIC web-2-0");
    let unknown = NatForward { address: Some(outside(7)), ..forward("web-2-0", (1, 1)) };
    refused(add(&bench, unknown), Code::NotFound, "no address of NAT gateway out");
    refused(add(&bench, forward("web-9-0", (1, 1))), Code::NotFound, "no NIC web-9-0");
    refused(add(&bench, forward("web-1-0", (0, 1))), Code::Invalid, "cannot lead to 80");
    refused(add(&bench, forward("web-1-0", (9, 1))), Code::Invalid, "cannot lead to 80");
    let high = NatForward { nic_port: Some(65_530), ..forward("web-1-0", (1, 10)) };
    refused(add(&bench, high), Code::Invalid, "cannot lead to 65530");
    let held = bench.cluster.nat_address_remove(&name("out"), outside(1));
    refused(held, Code::InUse, "lead to a NIC");
    let none = bench.cluster.nat_forward_remove(&name("out"), 9);
    refused(none, Code::NotFound, "has no forward 9");
    bench.plan(bench.cluster.nat_forward_remove(&name("out"), 2)).unwrap();
    // What leads to a VM goes with it.
    bench.gone("web-2");
    assert_eq!(bench.view("out").forwards, []);
}

#[test]
fn every_wrong_gateway_is_refused() {
    let mut bench = Bench::outside();
    bench.on("web-1", "node-1").unwrap();
    bench.plan(bench.cluster.nat_create(&nat("out", 1), NOW)).unwrap();
    let create = |request: NatCreate| bench.cluster.nat_create(&request, NOW);
    refused(create(nat("out", 1)), Code::Exists, "nat-gateway out exists");
    refused(create(nat("two", 1)), Code::Exists, "NAT gateway out serves the same");
    let subnet = NatServes::Subnet(name("blue-a"));
    let narrow = NatCreate { serves: subnet, ..nat("two", 1) };
    refused(create(NatCreate { count: 0, ..narrow.clone() }), Code::Invalid, "needs an address");
    refused(create(NatCreate { count: 8, ..narrow.clone() }), Code::NoRoom, "no address left");
    let few = NatCreate { ports_per_nic: 63, ..narrow.clone() };
    refused(create(few), Code::Invalid, "63 ports for a NIC are out of range");
    let taken = NatCreate { addresses: vec![outside(0)], ..narrow.clone() };
    refused(create(taken), Code::Exists, "198.51.100.0 is that of NAT gateway out");
    let twice = NatCreate { addresses: vec![outside(2), outside(2)], ..narrow.clone() };
    refused(create(twice), Code::Exists, "is that of this one already");
    bench.plan(bench.cluster.vpc_create(name("red"), None, NOW)).unwrap();
    let foreign = NatCreate { vpc: name("red"), ..narrow.clone() };
    refused(bench.cluster.nat_create(&foreign, NOW), Code::Invalid, "is of another vpc");
    bench.plan(bench.cluster.nat_create(&narrow, NOW)).unwrap();
    refused(bench.cluster.subnet_delete(&name("blue-a")), Code::InUse, "VM web-1 has a NIC");
    bench.gone("web-1");
    let subnet = bench.cluster.subnet_delete(&name("blue-a"));
    refused(subnet, Code::InUse, "NAT gateway two serves subnet blue-a");
    bench.plan(bench.cluster.nat_delete(&name("two"))).unwrap();
    bench.plan(bench.cluster.subnet_delete(&name("blue-a"))).unwrap();
    refused(bench.cluster.vpc_delete(&name("blue")), Code::InUse, "NAT gateway out is of vpc blue");
}

#[test]
fn a_route_leads_outside_in_ipv4_only() {
    let mut bench = Bench::outside();
    bench.on("web-1", "node-1").unwrap();
    let add =
        |to: &str| bench.cluster.route_add(&name("blue"), prefix(to), &RouteHop::External, NOW);
    refused(add("2000::/3"), Code::Invalid, "the outside is IPv4");
    let change = add("0.0.0.0/0");
    bench.plan(change).unwrap();
    let route = bench.cluster.node_spec(NodeId(1)).unwrap().vpcs[0].routes[0];
    assert_eq!(route.next_hop, HopSpec::External);
    assert_eq!(bench.cluster.route_views(None).unwrap()[0].next_hop, RouteHop::External);
}

#[derive(Clone, Debug)]
enum Op {
    Vm(u8, bool),
    Gone(u8),
    Eip(u8),
    Bind(u8, u8, bool),
    Unbind(u8),
    EipDelete(u8),
    Nat(u8, u8, u16),
    NatDelete(u8),
    AddressAdd(u8),
    AddressRemove(u8, u8),
    ForwardAdd(u8, u8, u16, Option<u8>),
    ForwardRemove(u8, u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..6_u8, any::<bool>()).prop_map(|(vm, node)| Op::Vm(vm, node)),
        1 => (0..6_u8).prop_map(Op::Gone),
        2 => (0..4_u8).prop_map(Op::Eip),
        3 => (0..4_u8, 0..6_u8, any::<bool>()).prop_map(|(e, n, c)| Op::Bind(e, n, c)),
        1 => (0..4_u8).prop_map(Op::Unbind),
        1 => (0..4_u8).prop_map(Op::EipDelete),
        2 => (0..3_u8, 0..3_u8, 1..3_u16).prop_map(|(g, s, c)| Op::Nat(g, s, c)),
        1 => (0..3_u8).prop_map(Op::NatDelete),
        2 => (0..3_u8).prop_map(Op::AddressAdd),
        2 => (0..3_u8, 0..8_u8).prop_map(|(g, a)| Op::AddressRemove(g, a)),
        3 => (0..3_u8, 0..6_u8, 1..20_u16, prop::option::of(0..8_u8))
            .prop_map(|(g, n, p, a)| Op::ForwardAdd(g, n, p, a)),
        1 => (0..3_u8, 1..5_u32).prop_map(|(g, n)| Op::ForwardRemove(g, n)),
    ]
}

/// What the switch asks of a node's outside, said once more and simply.
fn check(bench: &Bench) {
    let mut everywhere = BTreeSet::new();
    for node in [1, 2] {
        let spec = bench.cluster.node_spec(NodeId(node)).unwrap();
        let nics: Vec<&NicSpec> = spec.vms.iter().flat_map(|vm| &vm.nics).collect();
        let port = |port: PortId| nics.iter().find(|nic| nic.port == port);
        let lines: Vec<&Name> = spec.external.lines.iter().map(|line| &line.name).collect();
        for eip in &spec.external.eips {
            assert!(everywhere.insert(eip.address), "{} is in two places", eip.address);
            assert!(lines.contains(&&eip.line));
            let nic = port(eip.port).unwrap();
            let is_carried = eip.binding == EipBinding::Carried;
            assert_eq!(is_carried, nic.allowed.contains(&Prefix::host(eip.address.into())));
        }
        for gateway in &spec.external.gateways {
            assert!(lines.contains(&&gateway.line));
            for address in &gateway.addresses {
                assert!(everywhere.insert(*address), "{address} is in two places");
            }
            let served = nics.iter().filter(|nic| match &gateway.serves {
                ServesSpec::Vpc => true,
                ServesSpec::Subnet(subnet) => nic.subnet == *subnet,
                ServesSpec::Nic(port) => nic.port == *port,
            });
            let blocks = gateway.addresses.len() * (64_512 / usize::from(gateway.ports_per_nic));
            assert!(served.count() <= blocks, "a switch would refuse {gateway:?}");
            for forward in &gateway.forwards {
                assert!(gateway.addresses.contains(&forward.address));
                assert!(port(forward.port).is_some());
            }
        }
    }
}

fn step(bench: &mut Bench, op: &Op) {
    let vm_name = |number: u8| format!("vm-{number}");
    let nic = |number: u8| name(&format!("vm-{number}-0"));
    let eip = |number: u8| name(&format!("eip-{number}"));
    let gateway = |number: u8| name(&format!("nat-{number}"));
    let cluster = &bench.cluster;
    let change = match *op {
        Op::Vm(vm, node) => {
            // Refused where a gateway has no ports left.
            let _ = bench.on(&vm_name(vm), if node { "node-1" } else { "node-2" });
            return;
        }
        Op::Gone(vm) => {
            if cluster.vms.contains_key(&name(&vm_name(vm))) {
                bench.gone(&vm_name(vm));
            }
            return;
        }
        Op::Eip(number) => cluster.eip_create(eip(number), &name("carrier"), None, NOW),
        Op::Bind(number, to, carried) => {
            let binding = if carried { EipBinding::Carried } else { EipBinding::Translated };
            cluster.eip_bind(&eip(number), &nic(to), binding)
        }
        Op::Unbind(number) => cluster.eip_unbind(&eip(number)),
        Op::EipDelete(number) => cluster.eip_delete(&eip(number)),
        Op::Nat(number, serves, count) => {
            let serves = match serves {
                0 => NatServes::Vpc,
                1 => NatServes::Subnet(name("blue-a")),
                _ => NatServes::Nic(nic(0)),
            };
            let request = nat(gateway(number).as_str(), count);
            // Two NICs an address, so that ports are short.
            cluster.nat_create(&NatCreate { serves, ports_per_nic: 32_000, ..request }, NOW)
        }
        Op::NatDelete(number) => cluster.nat_delete(&gateway(number)),
        Op::AddressAdd(number) => cluster.nat_address_add(&gateway(number), None),
        Op::AddressRemove(number, address) => {
            cluster.nat_address_remove(&gateway(number), outside(address))
        }
        Op::ForwardAdd(number, to, port, address) => {
            let address = address.map(outside);
            let forward = forward(nic(to).as_str(), (port, port + 1));
            cluster.nat_forward_add(&gateway(number), &NatForward { address, ..forward })
        }
        Op::ForwardRemove(number, forward) => cluster.nat_forward_remove(&gateway(number), forward),
    };
    match change {
        Ok(change) => bench.apply(change),
        Err(refusal) => assert!(refusal.remedy.is_some(), "{refusal} has no remedy"),
    }
}

proptest! {
    #[test]
    fn no_request_makes_an_outside_that_a_switch_refuses(ops in prop::collection::vec(op(), 1..60)) {
        let mut bench = Bench::outside();
        for op in &ops {
            step(&mut bench, op);
            check(&bench);
        }
    }
}
