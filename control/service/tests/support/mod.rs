// SPDX-License-Identifier: Apache-2.0
//! A whole cluster in one process: service, fake agents and an operator over loopback QUIC.
#![allow(dead_code, reason = "each test file uses its own part of the support")]

mod fake;

pub(crate) use fake::FakeAgent;

use plinth_api::*;
use plinth_client::*;
use plinth_ids::Name;
use plinth_planner::Cluster;
use plinth_registry::Registry;
use plinth_service::{FirstNode, Service, ServiceOptions};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Certificates and an agent that outlive services.
pub(crate) struct Lab {
    pub(crate) folder: PathBuf,
    pub(crate) agent: Arc<FakeAgent>,
    pub(crate) agent_address: SocketAddr,
    pub(crate) agent_task: tokio::task::JoinHandle<()>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = format!("plinth-service-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let ca = ClusterCa::create().unwrap();
        ca.save(&folder).unwrap();
        let node = name("node-1");
        for (stem, role, name) in [
            ("service", Role::Service, None),
            ("node", Role::Node, Some(&node)),
            ("operator", Role::Operator, None),
        ] {
            let (key, certificate) = ca.issue(role, name).unwrap();
            Identity::save(&folder, stem, &certificate, &key, ca.certificate()).unwrap();
        }
        let agent = Arc::new(FakeAgent::default());
        let identity = Identity::load(&folder, "node").unwrap();
        let listener = Listener::bind(anywhere(), &identity, Role::Service).unwrap();
        let agent_address = listener.address().unwrap();
        let agent_task = tokio::spawn(serve_agent(listener, Arc::clone(&agent)));
        Self { folder, agent, agent_address, agent_task }
    }

    pub(crate) async fn start(&self, registry: Arc<dyn Registry>) -> Running {
        let options = ServiceOptions {
            cluster: "lab".to_owned(),
            vcpus_per_cpu: 4,
            listen: anywhere(),
            join: anywhere(),
            first_node: Some(FirstNode {
                name: name("node-1"),
                agent: self.agent_address,
                underlay: Some(Underlay {
                    device: "net_null0".to_owned(),
                    vtep: [172, 16, 0, 1].into(),
                    prefix_length: 24,
                    gateway: None,
                    mac: plinth_ids::MacAddress([2, 0x51, 172, 16, 0, 1]),
                    mtu: 1500,
                }),
            }),
        };
        let service = Service::start(options, &self.folder, registry).await.unwrap();
        let identity = Identity::load(&self.folder, "operator").unwrap();
        let dialer = Dialer::new(&identity).unwrap();
        let peer = dialer.connect(service.address(), Role::Service.name()).await.unwrap();
        Running { service, peer, _dialer: dialer }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.agent_task.abort();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A service with an operator at it.
pub(crate) struct Running {
    pub(crate) service: Service,
    pub(crate) peer: Peer,
    _dialer: Dialer,
}

impl Running {
    pub(crate) async fn ask(&self, request: Request) -> Result<Answer, Refusal> {
        self.peer.call::<_, Reply>(&request, LIMIT).await.unwrap().result
    }

    /// Waits until the records are as wanted.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Cluster) -> bool) {
        let wait = async {
            while !is_so(&self.service.cluster().await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    /// Waits until the node has been heard of.
    pub(crate) async fn until_alive(&self) {
        let wait = async {
            loop {
                let answer = self.ask(Request::NodeList).await.unwrap();
                let Answer::Nodes(nodes) = answer else { panic!("no nodes: {answer:?}") };
                if nodes.iter().any(|node| node.is_alive) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("the node never answered");
    }

    pub(crate) async fn pool(&self) -> Result<Answer, Refusal> {
        self.ask(Request::PoolCreate(PoolCreate {
            name: name("trial"),
            node: name("node-1"),
            devices: vec!["/srv/trial".to_owned()],
            size: Some(1 << 30),
            durability: Durability::Flush,
            class: PoolClass::Performance,
            overwrite: false,
        }))
        .await
    }

    pub(crate) async fn network(&self) -> Result<(), Refusal> {
        let vpc = self.ask(Request::VpcCreate { name: name("blue"), vni: None }).await;
        // Also where the vpc was there already.
        self.ask(Request::SubnetCreate {
            name: name("blue-a"),
            vpc: name("blue"),
            network: [10, 0, 0, 0].into(),
            prefix_length: 24,
            gateway: None,
            ipv6: None,
        })
        .await?;
        vpc.map(drop)
    }

    pub(crate) async fn volume(&self, volume: &str) -> Result<Answer, Refusal> {
        self.ask(Request::VolumeCreate(VolumeCreate {
            name: name(volume),
            pool: None,
            size: Some(1 << 20),
            image: None,
        }))
        .await
    }

    /// Sends `sent` of `length` bytes of an image, and reads the reply.
    pub(crate) async fn import(
        &self,
        image: &str,
        length: u64,
        sent: usize,
    ) -> Result<Result<Answer, Refusal>, CallError> {
        let request = Request::ImageImport(ImageImport {
            name: name(image),
            pools: Vec::new(),
            format: DiskFormat::Raw,
            source: ImportSource::Stream { length },
        });
        let mut exchange = self.peer.open(&request).await?;
        let _ = exchange.send_bytes(&vec![7; sent]).await;
        Ok(exchange.end_and_receive::<Reply>().await?.result)
    }
}

/// A VM with a system disk from image `small` and a NIC in `blue-a`.
pub(crate) fn vm(vm: &str) -> VmCreate {
    VmCreate {
        name: name(vm),
        vcpus: 1,
        memory: 256 << 20,
        image: Some(name("small")),
        system_size: None,
        kernel: None,
        initrd: None,
        append: None,
        nics: vec![NicRequest { subnet: name("blue-a"), address: None, groups: Vec::new() }],
        volumes: Vec::new(),
        node: None,
        start: true,
        wait_ms: 20_000,
    }
}
