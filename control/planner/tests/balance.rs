// SPDX-License-Identifier: Apache-2.0
//! Stories of load balancers, every refusal with its words, and random requests after which every
//! node's switch would still take its configuration.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use plinth_api::*;
use plinth_ids::{NodeId, Prefix};
use plinth_planner::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use support::{Bench, NOW, name, vm};

fn refused(result: Result<Change, Refusal>, code: Code, words: &str) {
    let refusal = result.expect_err(words);
    assert_eq!(refusal.code(), Some(code), "{refusal}");
    assert!(refusal.to_string().contains(words), "{refusal}");
    assert!(refusal.remedy.is_some(), "{refusal} has no remedy");
}

fn settings(first: u16, last: u16) -> ListenerSettings {
    ListenerSettings {
        protocol: ForwardProtocol::Tcp,
        ports: (first, last),
        scheduler: LbScheduler::SourceHash,
        stickiness: None,
        check: None,
    }
}

fn inside(lb: &str) -> BalancerCreate {
    BalancerCreate {
        name: name(lb),
        vpc: name("blue"),
        place: BalancerPlace::Subnet(name("blue-a")),
        address: None,
        listener: settings(80, 80),
    }
}

fn outside(lb: &str) -> BalancerCreate {
    BalancerCreate { place: BalancerPlace::Line(name("carrier")), ..inside(lb) }
}

fn named(lb: &str, nic: &str) -> BackendName {
    BackendName { balancer: name(lb), listener: None, nic: name(nic), port: None }
}

const ADD: BackendChange = BackendChange::Add { weight: 10 };

impl Bench {
    /// A line of four addresses, a VM on each node in `blue-a`.
    fn served() -> Self {
        let mut bench = Self::new();
        let pools: [Prefix; 1] = ["198.51.100.0/30".parse().unwrap()];
        let hop = Ipv4Addr::new(198, 51, 100, 254);
        bench.plan(bench.cluster.line_create(name("carrier"), hop, &pools, NOW)).unwrap();
        bench.on("web-1", "node-1").unwrap();
        bench.on("web-2", "node-2").unwrap();
        bench
    }

    fn on(&mut self, vm_name: &str, node: &str) -> Result<(), Refusal> {
        let nics = vec![NicRequest { subnet: name("blue-a"), address: None, groups: Vec::new() }];
        self.create(&VmCreate { node: Some(name(node)), nics, ..vm(vm_name) })
    }

    fn lb(&mut self, request: &BalancerCreate) -> Result<(), Refusal> {
        self.plan(self.cluster.balancer_create(request, NOW))
    }

    fn backend(&mut self, lb: &str, nic: &str, change: BackendChange) -> Result<(), Refusal> {
        self.plan(self.cluster.backend_change(&named(lb, nic), change))
    }

    fn balancers(&self, node: u32) -> Vec<BalancerSpec> {
        self.cluster.node_spec(NodeId(node)).unwrap().balancers
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
fn an_address_inside_is_on_every_node_of_its_vpc() {
    let mut bench = Bench::served();
    bench.lb(&inside("web")).unwrap();
    bench.backend("web", "web-1-0", ADD).unwrap();
    bench.backend("web", "web-2-0", BackendChange::Add { weight: 20 }).unwrap();
    bench.backend("web", "web-2-0", BackendChange::Drain { is_draining: true }).unwrap();
    let [spec] = &bench.balancers(1)[..] else { panic!("one: {:?}", bench.balancers(1)) };
    assert_eq!(bench.balancers(2), std::slice::from_ref(spec));
    let backend = |last: u8, weight, is_draining| BackendSpec {
        address: [10, 0, 0, last].into(),
        port: 80,
        weight,
        is_draining,
    };
    assert_eq!(spec.address, IpAddr::from([10, 0, 0, 4]), "two NICs came before");
    assert_eq!(spec.listeners[0].backends, [backend(2, 10, false), backend(3, 20, true)]);
    // A NIC that comes takes the next address, and no vpc but this one hears of it.
    bench.plan(bench.cluster.vpc_create(name("red"), None, NOW)).unwrap();
    bench.subnet("red-a", "red", [10, 0, 0, 0], 24).unwrap();
    bench.gone("web-2");
    let nics = vec![NicRequest { subnet: name("red-a"), address: None, groups: Vec::new() }];
    bench.create(&VmCreate { node: Some(name("node-2")), nics, ..vm("red-1") }).unwrap();
    assert_eq!(bench.balancers(2), []);
    let [spec] = &bench.balancers(1)[..] else { panic!("one") };
    assert_eq!(spec.listeners[0].backends, [backend(2, 10, false)], "a VM goes with its backends");
    bench.on("web-3", "node-1").unwrap();
    bench.on("web-4", "node-1").unwrap();
    let taken: Vec<_> = bench.cluster.vms[&name("web-4")].nics.iter().map(|n| n.address).collect();
    assert_eq!(taken, [Ipv4Addr::new(10, 0, 0, 5)]);
}

fn checked() -> BalancerCreate {
    let check = CheckSpec {
        kind: CheckSpecKind::Tcp,
        port: None,
        interval_ms: 1000,
        timeout_ms: 500,
        rise: 2,
        fall: 3,
    };
    let listener = ListenerSettings { check: Some(check), ..settings(80, 80) };
    BalancerCreate { listener, ..inside("web") }
}

/// The first NIC in `blue-a`, of `web-1` on node 1, behind port 8080.
fn unfit() -> UnfitBackend {
    UnfitBackend {
        balancer: name("web"),
        protocol: ForwardProtocol::Tcp,
        port: 80,
        address: [10, 0, 0, 2].into(),
        nic_port: 8080,
    }
}

impl Bench {
    /// A checked backend on each node, `web-1-0` behind port 8080 and `web-2-0` behind 80.
    fn checked() -> Self {
        let mut bench = Self::served();
        bench.lb(&checked()).unwrap();
        let first = BackendName { port: Some(8080), ..named("web", "web-1-0") };
        bench.plan(bench.cluster.backend_change(&first, ADD)).unwrap();
        bench.backend("web", "web-2-0", ADD).unwrap();
        bench
    }

    fn judge(&mut self, node: u32, unfit: Option<Vec<UnfitBackend>>) {
        self.see(NodeId(node), |status| status.unfit = unfit);
        self.apply(self.cluster.judge_backends(NodeId(node), &self.observed, NOW));
    }

    /// What a node has of the backends: whether each gets no new connections.
    fn shut(&self, node: u32) -> Vec<bool> {
        let listeners = &self.balancers(node)[0].listeners;
        listeners[0].backends.iter().map(|backend| backend.is_draining).collect()
    }

    fn is_unfit(&self) -> Vec<bool> {
        let view = self.cluster.balancer_view(&self.cluster.balancers[&name("web")]);
        view.listeners[0].backends.iter().map(|backend| backend.is_unfit).collect()
    }
}

#[test]
fn what_a_node_says_of_its_backends_is_heeded_by_the_others() {
    let mut bench = Bench::checked();
    bench.judge(1, Some(Vec::new()));
    let calm = bench.cluster.revision;
    bench.judge(1, Some(vec![unfit()]));
    assert_eq!(bench.is_unfit(), [true, false]);
    assert_eq!(bench.shut(2), [true, false], "on the other node");
    assert_eq!(bench.shut(1), [false, false], "its own node goes on checking it");
    assert!(bench.cluster.revision > calm, "nodes are told by a new epoch");
    // What is said again is no news, and what is not known leaves all as it is.
    let told = bench.cluster.revision;
    bench.judge(1, Some(vec![unfit()]));
    bench.judge(1, None);
    assert_eq!((bench.cluster.revision, bench.is_unfit()), (told, vec![true, false]));
    bench.judge(1, Some(Vec::new()));
    assert_eq!((bench.shut(2), bench.is_unfit()), (vec![false, false], vec![false, false]));
}

#[test]
fn a_node_speaks_of_its_own_backends_only_and_names_them_whole() {
    let mut bench = Bench::checked();
    let others: [fn(&mut UnfitBackend); 5] = [
        |other| other.balancer = name("other"),
        |other| other.protocol = ForwardProtocol::Udp,
        |other| other.port = 81,
        |other| other.address = [10, 0, 0, 3].into(),
        |other| other.nic_port = 80,
    ];
    for change in others {
        let mut other = unfit();
        change(&mut other);
        bench.judge(1, Some(vec![other]));
        assert_eq!(bench.is_unfit(), [false, false]);
    }
    bench.judge(2, Some(vec![unfit()]));
    assert_eq!(bench.is_unfit(), [false, false], "it is not node 2's");
}

#[test]
fn backends_of_a_node_that_is_lost_are_unfit_but_never_the_last_one() {
    let mut bench = Bench::checked();
    for node in [1, 2] {
        bench.judge(node, Some(Vec::new()));
    }
    let lose = |bench: &mut Bench, node: u32, later: u64| {
        bench.observed.nodes.get_mut(&NodeId(node)).unwrap().is_alive = false;
        bench.apply(bench.cluster.judge_backends(NodeId(node), &bench.observed, NOW + later));
    };
    lose(&mut bench, 1, 29);
    assert_eq!(bench.is_unfit(), [false, false], "an agent may be away for a while");
    lose(&mut bench, 1, 30);
    assert_eq!(bench.is_unfit(), [true, false]);
    lose(&mut bench, 2, 60);
    assert_eq!(bench.is_unfit(), [true, false], "the last one");
    // A service that starts again has seen nobody, and believes its records.
    bench.observed = Observed::default();
    bench.apply(bench.cluster.judge_backends(NodeId(1), &bench.observed, NOW + 90));
    bench.apply(bench.cluster.judge_backends(NodeId(2), &bench.observed, NOW + 90));
    assert_eq!(bench.is_unfit(), [true, false]);
    bench.judge(1, Some(Vec::new()));
    assert_eq!(bench.is_unfit(), [false, false], "it is back");
}

#[test]
fn what_nobody_checks_is_fit_whatever_becomes_of_its_node() {
    let mut bench = Bench::served();
    bench.lb(&inside("web")).unwrap();
    for nic in ["web-1-0", "web-2-0"] {
        bench.backend("web", nic, ADD).unwrap();
    }
    bench.judge(1, Some(vec![UnfitBackend { nic_port: 80, ..unfit() }]));
    bench.judge(2, Some(Vec::new()));
    bench.observed.nodes.get_mut(&NodeId(1)).unwrap().is_alive = false;
    bench.apply(bench.cluster.judge_backends(NodeId(1), &bench.observed, NOW + 90));
    assert_eq!(bench.is_unfit(), [false, false]);
}

#[test]
fn an_external_address_is_where_its_backends_are() {
    let mut bench = Bench::served();
    bench.lb(&outside("front")).unwrap();
    assert_eq!((bench.balancers(1), bench.balancers(2)), (Vec::new(), Vec::new()));
    bench.backend("front", "web-2-0", ADD).unwrap();
    assert_eq!(bench.balancers(1), []);
    let spec = bench.cluster.node_spec(NodeId(2)).unwrap();
    assert_eq!(spec.balancers[0].line, Some(name("carrier")));
    assert_eq!(spec.balancers[0].address, IpAddr::from([198, 51, 100, 0]));
    assert_eq!(spec.external.lines.len(), 1, "the line comes with it");
    let view = bench.cluster.balancer_view(&bench.cluster.balancers[&name("front")]);
    assert_eq!(view.node, Some(name("node-2")));
    let elsewhere = bench.cluster.backend_change(&named("front", "web-1-0"), ADD);
    refused(elsewhere, Code::Invalid, "the external address of front is on node node-2");
    // The address is nobody else's.
    let same = Some(Ipv4Addr::new(198, 51, 100, 0));
    let eip = bench.cluster.eip_create(name("web"), &name("carrier"), same, NOW);
    refused(eip, Code::Exists, "that of load balancer front");
    refused(bench.cluster.line_delete(&name("carrier")), Code::InUse, "load balancer front");
    bench.gone("web-2");
    assert_eq!(bench.balancers(2), []);
    bench.backend("front", "web-1-0", ADD).unwrap();
    assert_eq!(bench.balancers(1).len(), 1);
}

#[test]
fn every_wrong_balancer_is_refused() {
    let mut bench = Bench::served();
    bench.lb(&inside("web")).unwrap();
    let create = |request: BalancerCreate| bench.cluster.balancer_create(&request, NOW);
    refused(create(inside("web")), Code::Exists, "lb web exists");
    let at =
        |address: &str| BalancerCreate { address: Some(address.parse().unwrap()), ..inside("two") };
    refused(create(at("10.0.0.1")), Code::Exists, "--address: 10.0.0.1 of subnet blue-a is that");
    refused(create(at("10.0.0.2")), Code::Exists, "is that of another NIC or load balancer");
    refused(create(at("10.0.0.4")), Code::Exists, "is that of another NIC or load balancer");
    refused(create(at("10.1.0.4")), Code::Invalid, "no host address of subnet blue-a");
    refused(create(at("fd00::4")), Code::Invalid, "is not in subnet blue-a");
    let six = BalancerCreate { address: Some("fd00::4".parse().unwrap()), ..outside("two") };
    refused(create(six), Code::Invalid, "the outside is IPv4");
    let ports = |first, last| BalancerCreate { listener: settings(first, last), ..inside("two") };
    refused(create(ports(0, 1)), Code::Invalid, "ports 0-1 are no range");
    refused(create(ports(2, 1)), Code::Invalid, "ports 2-1 are no range");
    let sticky = ListenerSettings { stickiness: Some(86_401), ..settings(80, 80) };
    let sticky = BalancerCreate { listener: sticky, ..inside("two") };
    refused(create(sticky), Code::Invalid, "a stickiness of 86401 seconds is out of range");
    let faults: [fn(&mut CheckSpec); 4] = [
        |check| check.interval_ms = 199,
        |check| check.timeout_ms = 2001,
        |check| check.fall = 0,
        |check| check.kind = CheckSpecKind::Http("health".to_owned()),
    ];
    for fault in faults {
        let mut check = CheckSpec {
            kind: CheckSpecKind::Tcp,
            port: None,
            interval_ms: 2000,
            timeout_ms: 1000,
            rise: 2,
            fall: 3,
        };
        fault(&mut check);
        let listener = ListenerSettings { check: Some(check), ..settings(80, 80) };
        let request = BalancerCreate { listener, ..inside("two") };
        refused(bench.cluster.balancer_create(&request, NOW), Code::Invalid, "--check: ");
    }
    bench.plan(bench.cluster.vpc_create(name("red"), None, NOW)).unwrap();
    let foreign = BalancerCreate { vpc: name("red"), ..inside("two") };
    refused(bench.cluster.balancer_create(&foreign, NOW), Code::Invalid, "is of another vpc");
    let other = bench.cluster.listener_add(&name("web"), &settings(79, 90));
    refused(other, Code::Exists, "ports 79-90 overlap listener 1");
    refused(bench.cluster.listener_remove(&name("web"), 2), Code::NotFound, "has no listener 2");
    refused(bench.cluster.balancer_delete(&name("wep")), Code::NotFound, "did you mean web");
    for vm in ["web-1", "web-2"] {
        bench.gone(vm);
    }
    let subnet = bench.cluster.subnet_delete(&name("blue-a"));
    refused(subnet, Code::InUse, "load balancer web has an address of subnet blue-a");
    bench.plan(bench.cluster.balancer_delete(&name("web"))).unwrap();
    bench.lb(&outside("front")).unwrap();
    bench.plan(bench.cluster.subnet_delete(&name("blue-a"))).unwrap();
    refused(bench.cluster.vpc_delete(&name("blue")), Code::InUse, "load balancer front is of vpc");
}

#[test]
fn every_wrong_backend_is_refused() {
    let mut bench = Bench::served();
    bench.lb(&inside("web")).unwrap();
    bench.backend("web", "web-1-0", ADD).unwrap();
    let change = |named: &BackendName, change| bench.cluster.backend_change(named, change);
    let first = named("web", "web-1-0");
    refused(change(&first, ADD), Code::Exists, "web-1-0 with port 80 is a backend already");
    let second = named("web", "web-2-0");
    refused(
        change(&second, BackendChange::Remove),
        Code::NotFound,
        "no such backend of listener 1",
    );
    refused(change(&named("web", "web-9-0"), ADD), Code::NotFound, "no NIC web-9-0");
    for weight in [0, 101] {
        refused(change(&second, BackendChange::Add { weight }), Code::Invalid, "out of range");
        refused(change(&first, BackendChange::Weight(weight)), Code::Invalid, "out of range");
    }
    let high = BackendName { port: Some(0), ..second.clone() };
    refused(change(&high, ADD), Code::Invalid, "cannot lead to 0");
    let two = BackendName { listener: Some(2), ..second.clone() };
    refused(change(&two, ADD), Code::NotFound, "has no listener 2");
    bench.plan(bench.cluster.listener_add(&name("web"), &settings(443, 450))).unwrap();
    let which = bench.cluster.backend_change(&second, ADD);
    refused(which, Code::Invalid, "load balancer web has 2 listeners");
    let narrow = BackendName { port: Some(65_530), ..two.clone() };
    refused(bench.cluster.backend_change(&narrow, ADD), Code::Invalid, "cannot lead to 65530");
    bench.plan(bench.cluster.backend_change(&two, ADD)).unwrap();
    let again = BackendName { port: Some(1443), ..two.clone() };
    bench.plan(bench.cluster.backend_change(&again, ADD)).unwrap();
    let remove = bench.cluster.backend_change(&two, BackendChange::Remove);
    refused(remove, Code::Invalid, "more than one backend of listener 2");
    bench.plan(bench.cluster.backend_change(&again, BackendChange::Remove)).unwrap();
    bench.plan(bench.cluster.vpc_create(name("red"), None, NOW)).unwrap();
    bench.subnet("red-a", "red", [10, 0, 0, 0], 24).unwrap();
    let red = BalancerCreate {
        vpc: name("red"),
        place: BalancerPlace::Subnet(name("red-a")),
        ..inside("red")
    };
    bench.lb(&red).unwrap();
    let foreign = bench.cluster.backend_change(&named("red", "web-1-0"), ADD);
    refused(foreign, Code::Invalid, "of another vpc than load balancer red");
}

#[test]
fn no_more_is_taken_than_a_switch_takes() {
    let mut bench = Bench::served();
    let mut listener = settings(80, 80);
    bench.lb(&inside("web")).unwrap();
    for port in 1..=1024 {
        let backend = BackendName { port: Some(port), ..named("web", "web-1-0") };
        bench.plan(bench.cluster.backend_change(&backend, ADD)).unwrap();
    }
    let more = BackendName { port: Some(2000), ..named("web", "web-1-0") };
    refused(bench.cluster.backend_change(&more, ADD), Code::NoRoom, "1024 backends at most");
    // Tables by hash of listeners with many backends are large, and all of them are counted.
    for number in 0..260_u16 {
        let mut change = bench.cluster.balancers[&name("web")].clone();
        change.name = name(&format!("lb-{number}"));
        change.address = IpAddr::from([10, 0, 0, 250]);
        bench.cluster.balancers.insert(change.name.clone(), change);
    }
    listener.ports = (81, 81);
    let more = bench.cluster.listener_add(&name("web"), &listener);
    refused(more, Code::NoRoom, "are more than the 65536 that a switch takes");
    for balancer in bench.cluster.balancers.values_mut() {
        balancer.listeners[0].backends.truncate(200);
    }
    let more = bench.cluster.listener_add(&name("web"), &listener);
    refused(more, Code::NoRoom, "places in tables by hash are more than the 16777216");
}

#[derive(Clone, Debug)]
enum Op {
    Vm(u8, bool),
    Gone(u8),
    Inside(u8, Option<u8>),
    Outside(u8),
    Delete(u8),
    Listener(u8, u16),
    Backend(u8, u8, u16, BackendChange),
}

fn op() -> impl Strategy<Value = Op> {
    let change = prop_oneof![
        3 => (0..102_u16).prop_map(|weight| BackendChange::Add { weight }),
        1 => Just(BackendChange::Remove),
        1 => any::<bool>().prop_map(|is_draining| BackendChange::Drain { is_draining }),
        1 => (0..102_u16).prop_map(BackendChange::Weight),
    ];
    prop_oneof![
        3 => (0..6_u8, any::<bool>()).prop_map(|(vm, node)| Op::Vm(vm, node)),
        1 => (0..6_u8).prop_map(Op::Gone),
        2 => (0..4_u8, prop::option::of(0..12_u8)).prop_map(|(lb, at)| Op::Inside(lb, at)),
        1 => (0..4_u8).prop_map(Op::Outside),
        1 => (0..4_u8).prop_map(Op::Delete),
        1 => (0..4_u8, 79..84_u16).prop_map(|(lb, port)| Op::Listener(lb, port)),
        6 => (0..4_u8, 0..6_u8, 0..3_u16, change)
            .prop_map(|(lb, nic, port, change)| Op::Backend(lb, nic, port, change)),
    ]
}

/// What the switch asks of a node's balancers, said once more and simply.
fn check(bench: &Bench) {
    let mut external = BTreeSet::new();
    for node in [1, 2] {
        let spec = bench.cluster.node_spec(NodeId(node)).unwrap();
        let here: Vec<IpAddr> = spec
            .vms
            .iter()
            .flat_map(|vm| &vm.nics)
            .flat_map(|nic| &nic.addresses)
            .map(|one| one.ip)
            .collect();
        let everywhere: Vec<IpAddr> = here
            .iter()
            .copied()
            .chain(spec.remotes.iter().flat_map(|one| one.addresses.clone()))
            .collect();
        let mut addresses = BTreeSet::new();
        for balancer in &spec.balancers {
            assert!(addresses.insert(balancer.address), "{} twice", balancer.address);
            assert!(!everywhere.contains(&balancer.address), "{} is a NIC's", balancer.address);
            if let Some(line) = &balancer.line {
                assert!(external.insert(balancer.address), "{} on two nodes", balancer.address);
                assert!(spec.external.lines.iter().any(|one| one.name == *line));
            }
            for listener in &balancer.listeners {
                let mut seen = BTreeSet::new();
                for backend in &listener.backends {
                    assert!(seen.insert((backend.address, backend.port)));
                    assert!((1..=100).contains(&backend.weight) && backend.port > 0);
                    let known = if balancer.line.is_some() { &here } else { &everywhere };
                    assert!(known.contains(&backend.address), "{backend:?} is nobody");
                }
            }
        }
    }
}

fn step(bench: &mut Bench, op: &Op) {
    let vm_name = |number: u8| format!("vm-{number}");
    let lb = |number: u8| format!("lb-{number}");
    let cluster = &bench.cluster;
    let change = match *op {
        Op::Vm(vm, node) => {
            let _ = bench.on(&vm_name(vm), if node { "node-1" } else { "node-2" });
            return;
        }
        Op::Gone(vm) => {
            if cluster.vms.contains_key(&name(&vm_name(vm))) {
                bench.gone(&vm_name(vm));
            }
            return;
        }
        Op::Inside(number, at) => {
            let address = at.map(|last| IpAddr::from([10, 0, 0, last]));
            cluster.balancer_create(&BalancerCreate { address, ..inside(&lb(number)) }, NOW)
        }
        Op::Outside(number) => cluster.balancer_create(&outside(&lb(number)), NOW),
        Op::Delete(number) => cluster.balancer_delete(&name(&lb(number))),
        Op::Listener(number, port) => {
            cluster.listener_add(&name(&lb(number)), &settings(port, port + 1))
        }
        Op::Backend(number, nic, port, change) => {
            let port = (port > 0).then_some(8000 + port);
            let named = BackendName {
                port,
                listener: Some(1),
                ..named(&lb(number), &format!("vm-{nic}-0"))
            };
            cluster.backend_change(&named, change)
        }
    };
    match change {
        Ok(change) => bench.apply(change),
        Err(refusal) => assert!(refusal.remedy.is_some(), "{refusal} has no remedy"),
    }
}

proptest! {
    #[test]
    fn no_request_makes_balancers_that_a_switch_refuses(ops in prop::collection::vec(op(), 1..60)) {
        let mut bench = Bench::served();
        for op in &ops {
            step(&mut bench, op);
            check(&bench);
        }
    }
}
