// SPDX-License-Identifier: Apache-2.0
//! Stories of a cluster in one process.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use plinth_api::*;
use plinth_client::*;
use plinth_ids::VmId;
use plinth_planner::{Cluster, State};
use plinth_registry::{MemoryRegistry, Registry};
use std::net::IpAddr;
use std::sync::Arc;
use support::{FakeAgent, LIMIT, Lab, Running, anywhere, name, vm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn lab() -> (Lab, Running, Arc<MemoryRegistry>) {
    let lab = Lab::new();
    let registry = Arc::new(MemoryRegistry::new());
    let running = lab.start(Arc::clone(&registry) as Arc<dyn Registry>).await;
    running.until_alive().await;
    (lab, running, registry)
}

async fn furnished() -> (Lab, Running, Arc<MemoryRegistry>) {
    let (lab, running, registry) = lab().await;
    running.pool().await.unwrap();
    running.network().await.unwrap();
    running.import("small", 4096, 4096).await.unwrap().unwrap();
    (lab, running, registry)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_made_runs_is_stopped_and_leaves_nothing() {
    let (lab, running, _) = furnished().await;
    let answer = running.ask(Request::VmCreate(vm("web-1"))).await.unwrap();
    let Answer::Vm(view) = answer else { panic!("no VM: {answer:?}") };
    assert_eq!(view.state, Some(VmState::Running));
    assert_eq!(view.disks[0].volume, name("web-1-system"));
    assert_eq!(lab.agent.state().volumes.len(), 2, "image and clone");
    let stop = Request::VmStop { name: name("web-1"), grace_seconds: 5, wait_ms: 20_000 };
    let Answer::Vm(view) = running.ask(stop).await.unwrap() else { panic!("no VM") };
    assert_eq!(view.state, Some(VmState::Stopped));
    let delete = Request::VmDelete { name: name("web-1"), force: false, wait_ms: 20_000 };
    assert_eq!(running.ask(delete).await, Ok(Answer::Done));
    assert_eq!(lab.agent.state().volumes.len(), 1, "only the image is left");
    assert_eq!(running.ask(Request::ImageDelete(name("small"))).await, Ok(Answer::Done));
    // The agent hears of it after who asked.
    for _ in 0..200 {
        if lab.agent.state().volumes.is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the image's volume is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_fails_to_start_says_why_at_once() {
    let (lab, running, _) = furnished().await;
    lab.agent.state().starts_as = Some((VmState::Failed, "no such kernel"));
    let refusal = running.ask(Request::VmCreate(vm("web-1"))).await.unwrap_err();
    assert_eq!(refusal.code(), Some(Code::Failed));
    assert_eq!(refusal.text, "VM web-1 does not start: no such kernel");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_takes_long_is_told_and_goes_on() {
    let (lab, running, _) = furnished().await;
    lab.agent.state().starts_as = Some((VmState::Starting, ""));
    let request = VmCreate { wait_ms: 300, ..vm("web-1") };
    let refusal = running.ask(Request::VmCreate(request)).await.unwrap_err();
    assert_eq!(refusal.code(), Some(Code::Timeout));
    assert!(refusal.text.contains("still starting after 0.3 s"), "{refusal}");
    assert!(running.service.cluster().await.vms.contains_key(&name("web-1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_refuses_is_told_and_forgotten() {
    let (lab, running, _) = furnished().await;
    lab.agent.state().refusal = Some(Refusal::new(Code::NoRoom, "the pool is full"));
    let refusal = running.volume("data-1").await.unwrap_err();
    assert_eq!(refusal.text, "the pool is full");
    let refusal = running.ask(Request::VmCreate(vm("web-1"))).await.unwrap_err();
    assert_eq!(refusal.text, "the pool is full");
    let cluster = running.service.cluster().await;
    assert!(cluster.vms.is_empty() && cluster.volumes.is_empty());
    lab.agent.state().refusal = None;
    running.volume("data-1").await.unwrap();
}

/// Between the commit of a VM and its act, the link's own loop may carry the act out: whoever
/// asked was then told that the VM is gone, and not why.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_whoever_asked_however_quick_it_is() {
    let (lab, running, _) = furnished().await;
    lab.agent.state().refusal = Some(Refusal::new(Code::NoRoom, "the pool is full"));
    let ask = |vm_name: String| running.ask(Request::VmCreate(vm(&vm_name)));
    for round in 0..8 {
        let one = |number: u32| ask(format!("web-{round}-{number}"));
        let (a, b, c, d) = tokio::join!(one(0), one(1), one(2), one(3));
        for answer in [a, b, c, d] {
            assert_eq!(answer.unwrap_err().text, "the pool is full");
        }
    }
    assert!(running.service.cluster().await.vms.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_could_not_try_is_done_after_a_restart() {
    let (lab, running, registry) = furnished().await;
    lab.agent.state().refusal = Some(Refusal::new(Code::Unreachable, "the store restarts"));
    let refusal = running.ask(Request::VmCreate(vm("web-1"))).await.unwrap_err();
    assert_eq!(refusal.text, "the store restarts");
    assert_eq!(running.service.cluster().await.vms[&name("web-1")].state, State::Creating);
    drop(running);
    lab.agent.state().refusal = None;
    let running = lab.start(registry).await;
    running
        .until("the VM is made", |cluster| cluster.vms[&name("web-1")].state == State::Ready)
        .await;
    let start = Request::VmStart { name: name("web-1"), wait_ms: 20_000 };
    let Answer::Vm(view) = running.ask(start).await.unwrap() else { panic!("no VM") };
    assert_eq!(view.state, Some(VmState::Running));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_stops_half_way_leaves_no_copy() {
    let (lab, running, _) = lab().await;
    running.pool().await.unwrap();
    let refusal = running.import("small", 1_000_000, 500_000).await.unwrap().unwrap_err();
    assert!(refusal.text.contains("ended 500000 bytes early"), "{refusal}");
    running.until("the image is forgotten", |cluster| cluster.images.is_empty()).await;
    assert!(lab.agent.state().volumes.is_empty());
    // The name is free again.
    running.import("small", 10, 10).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_a_node_refuses_says_which_and_why() {
    let (lab, running, _) = lab().await;
    running.pool().await.unwrap();
    lab.agent.state().refusal = Some(Refusal::new(Code::Invalid, "not an image"));
    let refusal = running.import("small", 8_000_000, 8_000_000).await.unwrap().unwrap_err();
    assert_eq!(refusal.text, "node node-1: not an image");
    lab.agent.state().refusal = None;
    running.until("the image is forgotten", |cluster| cluster.images.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_answer_takes_nothing_new() {
    let (lab, running, _) = furnished().await;
    lab.agent_task.abort();
    let wait = async {
        loop {
            let show = running.ask(Request::NodeShow(name("node-1"))).await.unwrap();
            let Answer::Node(node) = show else { panic!("no node: {show:?}") };
            if !node.is_alive {
                return node;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let node = tokio::time::timeout(LIMIT, wait).await.expect("the node is never called dead");
    assert!(node.fault.is_some(), "{node:?}");
    let refusal = running.volume("data-1").await.unwrap_err();
    assert_eq!(refusal.code(), Some(Code::Unreachable));
    assert!(running.service.cluster().await.volumes.is_empty());
    let refusal = running.ask(Request::VmCreate(vm("web-1"))).await.unwrap_err();
    assert!(refusal.text.contains("node-1: its agent does not answer"), "{refusal}");
    let Answer::Cluster(view) = running.ask(Request::ClusterStatus).await.unwrap() else {
        panic!("no cluster")
    };
    assert_eq!(view.warnings, ["node node-1 does not answer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_one_node_in() {
    let (lab, running, _) = lab().await;
    let token = running.ask(Request::TokenCreate { lifetime_seconds: 60 }).await.unwrap();
    let Answer::Token(token) = token else { panic!("no token: {token:?}") };
    let token: Token = token.parse().unwrap();
    let key = NodeKey::generate().unwrap();
    // The second node listens before it joins, on a port that the system chose.
    let placeholder = std::net::UdpSocket::bind(anywhere()).unwrap();
    let agent = placeholder.local_addr().unwrap();
    let request = |node: &str| Join {
        name: name(node),
        secret: token.secret,
        public_key: key.public(),
        agent,
        underlay: None,
    };
    let address = running.service.join_address();
    let joined = join(address, &token, &request("node-2")).await.unwrap().result.unwrap();
    let refusal = join(address, &token, &request("node-3")).await.unwrap().result.unwrap_err();
    assert!(refusal.text.contains("was used already, by node node-2"), "{refusal}");
    let unknown = Token { secret: [9; 32], ..token.clone() };
    let forged = Join { secret: [9; 32], ..request("node-3") };
    let refusal = join(address, &unknown, &forged).await.unwrap().result.unwrap_err();
    assert!(refusal.text.contains("not one of this cluster"), "{refusal}");
    // With its certificate the node is one of the cluster.
    let folder = lab.folder.join("node-2");
    std::fs::create_dir(&folder).unwrap();
    Identity::save(&folder, "node", &joined.certificate, &key, &joined.ca).unwrap();
    drop(placeholder);
    let identity = Identity::load(&folder, "node").unwrap();
    let listener = Listener::bind(agent, &identity, Role::Service).unwrap();
    let second = Arc::new(FakeAgent::default());
    let task = tokio::spawn(serve_agent(listener, Arc::clone(&second)));
    let wait = async {
        while second.state().spec.is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the second node never got a spec");
    // A node may not act as an operator.
    let dialer = Dialer::new(&identity).unwrap();
    let failure = match dialer.connect(running.service.address(), Role::Service.name()).await {
        Err(err) => err.to_string(),
        Ok(peer) => {
            let call = peer.call::<_, Reply>(&Request::NodeList, LIMIT).await;
            call.unwrap_err().to_string()
        }
    };
    assert!(failure.contains("not for the role \"operator\""), "{failure}");
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn console_and_switch_tables_reach_through_the_service() {
    let (_lab, running, _) = furnished().await;
    running.ask(Request::VmCreate(vm("web-1"))).await.unwrap();
    let request = Request::VmConsole(name("web-1"));
    let mut exchange = running.peer.open(&request).await.unwrap();
    let reply: Reply = exchange.receive().await.unwrap();
    assert_eq!(reply.result, Ok(Answer::Done));
    let mut console = exchange.into_stream();
    console.write_all(b"abcd").await.unwrap();
    let mut echo = [0; 4];
    console.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"dcba");
    let refusal = running.ask(Request::VmConsole(name("web-2"))).await.unwrap_err();
    assert_eq!(refusal.code(), Some(Code::NotFound));
    let drops = Request::Switch { node: name("node-1"), table: SwitchTable::Drops };
    let drop = DropCount { reason: "vni-unknown".to_owned(), packets: 3 };
    assert_eq!(running.ask(drops).await, Ok(Answer::SwitchDrops(vec![drop])));
    let flows = SwitchTable::Flows { limit: 1 };
    let flows = Request::Switch { node: name("node-1"), table: flows };
    assert_eq!(running.ask(flows).await, Err(Refusal::new(Code::Failed, "not here")));
}

#[tokio::test(flavor = "multi_thread")]
async fn external_addresses_and_gateways_reach_the_node_and_are_counted() {
    let (lab, running, _) = furnished().await;
    running.ask(Request::VmCreate(vm("web-1"))).await.unwrap();
    let outside = |last| std::net::Ipv4Addr::new(198, 51, 100, last);
    let line = Request::LineCreate {
        name: name("carrier"),
        next_hop: outside(254),
        pools: vec!["198.51.100.0/28".parse().unwrap()],
    };
    let Ok(Answer::Line(view)) = running.ask(line).await else { panic!("a line is shown") };
    assert_eq!((view.addresses_used, view.addresses_free), (0, 16));
    let create = Request::EipCreate { name: name("web"), line: name("carrier"), address: None };
    running.ask(create).await.unwrap();
    let binding = EipBinding::Translated;
    let bind = Request::EipBind { name: name("web"), nic: name("web-1-0"), binding };
    let Ok(Answer::Eip(view)) = running.ask(bind).await else { panic!("it is shown") };
    assert_eq!(view.bound.unwrap().nic, name("web-1-0"));
    let gateway = NatCreate {
        name: name("out"),
        vpc: name("blue"),
        line: name("carrier"),
        addresses: Vec::new(),
        count: 1,
        ports_per_nic: 1024,
        serves: NatServes::Vpc,
        mapping: NatMapping::PerConnection,
    };
    running.ask(Request::NatCreate(gateway)).await.unwrap();
    let forward = NatForward {
        address: None,
        protocol: ForwardProtocol::Udp,
        ports: (53, 53),
        nic: name("web-1-0"),
        nic_port: None,
    };
    let add = Request::NatForwardAdd { gateway: name("out"), forward };
    running.ask(add).await.unwrap();
    let wait = async {
        while lab.agent.state().spec.as_ref().is_none_or(|spec| {
            spec.external.gateways.first().is_none_or(|one| one.forwards.is_empty())
        }) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the node never heard of it");
    let Ok(Answer::Eip(view)) = running.ask(Request::EipShow(name("web"))).await else {
        panic!("it is shown")
    };
    let counted = view.counters.expect("its node counts it");
    assert_eq!((counted.packets_in, counted.bytes_out), (1, 4));
    let Ok(Answer::NatGateway(view)) = running.ask(Request::NatShow(name("out"))).await else {
        panic!("it is shown")
    };
    assert_eq!(view.addresses[0].counters.map(|counted| counted.packets_out), Some(3));
    // All of it goes again, in the order that refusals ask for.
    let line = || Request::LineDelete(name("carrier"));
    assert_eq!(running.ask(line()).await.unwrap_err().code(), Some(Code::InUse));
    for request in [
        Request::EipUnbind(name("web")),
        Request::EipDelete(name("web")),
        Request::NatDelete(name("out")),
        line(),
    ] {
        running.ask(request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_balancer_reaches_the_node_with_its_backends() {
    let (lab, running, _) = furnished().await;
    running.ask(Request::VmCreate(vm("web-1"))).await.unwrap();
    let listener = ListenerSettings {
        protocol: ForwardProtocol::Tcp,
        ports: (80, 80),
        scheduler: LbScheduler::LeastConnections,
        stickiness: None,
        check: None,
    };
    let create = Request::BalancerCreate(BalancerCreate {
        name: name("web"),
        vpc: name("blue"),
        place: BalancerPlace::Subnet(name("blue-a")),
        address: None,
        listener: listener.clone(),
    });
    let Ok(Answer::Balancer(view)) = running.ask(create).await else { panic!("it is shown") };
    let second = ListenerSettings { ports: (443, 443), ..listener };
    let add = Request::ListenerAdd { balancer: name("web"), listener: second };
    running.ask(add).await.unwrap();
    let change = |change| Request::BackendChange {
        backend: BackendName {
            balancer: name("web"),
            listener: Some(1),
            nic: name("web-1-0"),
            port: Some(8080),
        },
        change,
    };
    running.ask(change(BackendChange::Add { weight: 10 })).await.unwrap();
    running.ask(change(BackendChange::Weight(20))).await.unwrap();
    let wait = async {
        let weight = |spec: &NodeSpec| {
            Some(spec.balancers.first()?.listeners.first()?.backends.first()?.weight)
        };
        while lab.agent.state().spec.as_ref().and_then(weight) != Some(20) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the node never heard of it");
    let Ok(Answer::Balancer(shown)) = running.ask(Request::BalancerShow(name("web"))).await else {
        panic!("it is shown")
    };
    assert_eq!((shown.address, shown.listeners.len()), (view.address, 2));
    let Ok(Answer::Balancers(list)) = running.ask(Request::BalancerList).await else {
        panic!("they are listed")
    };
    assert_eq!(list.len(), 1);
    running.ask(change(BackendChange::Drain { is_draining: true })).await.unwrap();
    running.ask(change(BackendChange::Remove)).await.unwrap();
    let gone = running.ask(change(BackendChange::Remove)).await.unwrap_err();
    assert_eq!(gone.code(), Some(Code::NotFound));
    running.ask(Request::ListenerRemove { balancer: name("web"), number: 2 }).await.unwrap();
    running.ask(Request::BalancerDelete(name("web"))).await.unwrap();
    let gone = running.ask(Request::BalancerShow(name("web"))).await.unwrap_err();
    assert_eq!(gone.code(), Some(Code::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_says_of_its_backends_is_kept_and_shown() {
    let (lab, running, _) = furnished().await;
    running.ask(Request::VmCreate(vm("web-1"))).await.unwrap();
    let check = CheckSpec {
        kind: CheckSpecKind::Tcp,
        port: None,
        interval_ms: 1000,
        timeout_ms: 500,
        rise: 2,
        fall: 3,
    };
    let create = Request::BalancerCreate(BalancerCreate {
        name: name("web"),
        vpc: name("blue"),
        place: BalancerPlace::Subnet(name("blue-a")),
        address: None,
        listener: ListenerSettings {
            protocol: ForwardProtocol::Tcp,
            ports: (80, 81),
            scheduler: LbScheduler::RoundRobin,
            stickiness: None,
            check: Some(check),
        },
    });
    running.ask(create).await.unwrap();
    let backend =
        BackendName { balancer: name("web"), listener: None, nic: name("web-1-0"), port: None };
    let add = Request::BackendChange { backend, change: BackendChange::Add { weight: 1 } };
    let Ok(Answer::Balancer(view)) = running.ask(add).await else { panic!("it is shown") };
    let backend = &view.listeners[0].backends[0];
    let unfit = UnfitBackend {
        balancer: name("web"),
        protocol: ForwardProtocol::Tcp,
        port: 80,
        address: backend.address,
        nic_port: backend.port,
    };
    for (told, is_unfit) in [(vec![unfit], true), (Vec::new(), false)] {
        lab.agent.state().unfit = Some(told);
        let what = format!("the backend is unfit: {is_unfit}");
        let of =
            |cluster: &Cluster| cluster.balancers[&name("web")].listeners[0].backends[0].is_unfit;
        running.until(&what, |cluster| of(cluster) == is_unfit).await;
        let Ok(Answer::Balancer(view)) = running.ask(Request::BalancerShow(name("web"))).await
        else {
            panic!("it is shown")
        };
        assert_eq!(view.listeners[0].backends[0].is_unfit, is_unfit);
    }
    shows_connections(&lab, &running, backend).await;
}

/// What a node's switch says of a backend is shown of that one, and nothing where it says nothing.
async fn shows_connections(lab: &Lab, running: &Running, backend: &BackendView) {
    let row = |port: u16, address: IpAddr| {
        serde_json::json!({
            "balancer": "web", "protocol": "tcp", "port": port, "backend": address,
            "backend_port": backend.port, "state": "draining", "connections": 7,
        })
    };
    let other = "10.9.9.9".parse().unwrap();
    let own = BackendSeen { node: name("node-1"), state: LbState::Draining, connections: 7 };
    for (rows, seen) in [
        (vec![row(80, other), row(80, backend.address)], vec![own]),
        (vec![row(80, other), row(81, backend.address)], Vec::new()),
    ] {
        lab.agent.state().backends = serde_json::json!({ "backends": rows }).to_string();
        let shown = running.ask(Request::BalancerShow(name("web"))).await;
        let Ok(Answer::Balancer(view)) = shown else { panic!("it is shown") };
        assert_eq!(view.listeners[0].backends[0].seen, seen);
    }
    lab.agent.state().backends = "nonsense".to_owned();
    let shown = running.ask(Request::BalancerShow(name("web"))).await;
    let Ok(Answer::Balancer(view)) = shown else { panic!("it is shown") };
    assert_eq!(view.listeners[0].backends[0].seen, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_service_pushes_no_spec() {
    let (lab, running, _) = furnished().await;
    running.ask(Request::VmCreate(vm("web-1"))).await.unwrap();
    let before = lab.agent.state().specs_taken;
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(lab.agent.state().specs_taken, before);
    // An agent that lost its spec gets it again.
    lab.agent.state().spec = None;
    lab.agent.state().vms.clear();
    let wait = async {
        while !lab.agent.state().vms.contains_key(&VmId(1)) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the spec was not pushed again");
}
