// SPDX-License-Identifier: Apache-2.0
//! A cluster to plan against: two nodes, a pool on each, a vpc and a subnet.
#![allow(dead_code, reason = "each test file uses its own part of the support")]

use plinth_api::*;
use plinth_ids::{Epoch, Name, NodeId, VmId};
use plinth_planner::*;
use std::net::Ipv4Addr;

pub(crate) const NOW: u64 = 1_000_000;
pub(crate) const GIB: u64 = 1 << 30;

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A cluster and what is seen of it, as the service would have them.
#[derive(Clone, Debug)]
pub(crate) struct Bench {
    pub(crate) cluster: Cluster,
    pub(crate) observed: Observed,
}

impl Bench {
    /// Two nodes that are alive, with a ready pool each, and subnet `blue-a` of vpc `blue`.
    pub(crate) fn new() -> Self {
        let cluster = Cluster::new(Meta::new("lab".to_owned()));
        let mut bench = Self { cluster, observed: Observed::default() };
        for (number, pool) in [(1, "pool-a"), (2, "pool-b")] {
            let node = name(&format!("node-{number}"));
            let agent = format!("192.0.2.{number}:7710").parse().unwrap();
            let (id, change) =
                bench.cluster.node_add(node.clone(), agent, underlay(number), NOW).unwrap();
            bench.apply(change);
            bench.see(id, |_| {});
            let request = PoolCreate {
                name: name(pool),
                node,
                devices: vec![format!("/srv/{pool}")],
                size: Some(GIB),
                durability: Durability::Flush,
                class: PoolClass::Ordinary,
                overwrite: false,
            };
            let change = bench.cluster.pool_create(request, NOW).unwrap();
            bench.apply(change);
        }
        bench.work_off();
        let change = bench.cluster.vpc_create(name("blue"), None, NOW).unwrap();
        bench.apply(change);
        bench.subnet("blue-a", "blue", [10, 0, 0, 0], 24).unwrap();
        bench
    }

    /// Commits, as the registry would, and reads every record back.
    pub(crate) fn apply(&mut self, change: Change) {
        for write in &change.writes {
            if let Write::Put(record) = write {
                let key = record.key().to_string();
                assert_eq!(&Record::parse(&key, &record.emit()).unwrap(), record);
            }
        }
        if !change.is_empty() {
            let revision = self.cluster.revision + 1;
            self.cluster.apply(change, revision);
        }
        assert_eq!(self.cluster.check(), Vec::<String>::new());
    }

    pub(crate) fn plan(&mut self, change: Result<Change, Refusal>) -> Result<(), Refusal> {
        self.apply(change?);
        Ok(())
    }

    pub(crate) fn subnet(
        &mut self,
        subnet: &str,
        vpc: &str,
        network: [u8; 4],
        length: u8,
    ) -> Result<(), Refusal> {
        let cidr = (Ipv4Addr::from(network), length);
        self.plan(self.cluster.subnet_create(name(subnet), &name(vpc), cidr, None, None, NOW))
    }

    pub(crate) fn volume(&mut self, volume: &str, pool: &str) -> Result<(), Refusal> {
        let request = VolumeCreate {
            name: name(volume),
            pool: Some(name(pool)),
            size: Some(GIB),
            image: None,
        };
        self.plan(self.cluster.volume_create(&request, &self.observed, NOW))
    }

    /// An image with a copy in both pools.
    pub(crate) fn image(&mut self, image: &str) {
        let request = ImageImport {
            name: name(image),
            pools: Vec::new(),
            format: DiskFormat::Raw,
            source: ImportSource::Stream { length: 1 },
        };
        self.plan(self.cluster.image_import(&request, NOW)).unwrap();
        self.apply(self.cluster.image_imported(&name(image), GIB, &[true, true]));
    }

    pub(crate) fn create(&mut self, request: &VmCreate) -> Result<(), Refusal> {
        self.plan(self.cluster.vm_create(request, &self.observed, NOW))
    }

    /// Every act that is due on every node succeeds, and so do those that follow from it.
    pub(crate) fn work_off(&mut self) {
        for node in [NodeId(1), NodeId(2)] {
            // A volume goes after its snapshots, so twice is enough.
            for act in self.cluster.due(node) {
                self.apply(self.cluster.settle(&act, &Ok(AgentAnswer::Done)));
            }
            for act in self.cluster.due(node) {
                self.apply(self.cluster.settle(&act, &Ok(AgentAnswer::Done)));
            }
        }
    }

    /// A node answers: it has every VM of its spec in the state that is wanted.
    pub(crate) fn see(&mut self, node: NodeId, change: impl FnOnce(&mut NodeStatus)) {
        let spec = self.cluster.node_spec(node).unwrap();
        let vms = spec.vms.iter().map(|vm| {
            let state = match vm.run {
                Run::Running => VmState::Running,
                Run::Stopped { .. } => VmState::Stopped,
            };
            status_of(vm.id, state, vm.start_number)
        });
        let mut status = NodeStatus {
            epoch: Some(Epoch(spec.epoch.0 + 1)),
            version: "test".to_owned(),
            facts: Facts {
                cpus: 2,
                memory: 8 * GIB,
                accelerator: "tcg".to_owned(),
                ..Facts::default()
            },
            daemons: Vec::new(),
            vms: vms.collect(),
            pools: Vec::new(),
            volumes: Vec::new(),
            unfit: None,
            load: Load::default(),
        };
        change(&mut status);
        let seen = Seen { is_alive: true, at: Some(NOW), status: Some(status), fault: None };
        self.observed.nodes.insert(node, seen);
    }
}

pub(crate) fn status_of(id: VmId, state: VmState, start_number: u64) -> VmStatus {
    VmStatus {
        id,
        state,
        process: None,
        since: NOW,
        reason: String::new(),
        restarts: 0,
        start_number,
        accelerator: String::new(),
        nics: Vec::new(),
        nics_due: Vec::new(),
    }
}

fn underlay(number: u8) -> Option<Underlay> {
    Some(Underlay {
        device: "net_af_packet0,iface=eth1".to_owned(),
        vtep: Ipv4Addr::new(172, 16, 0, number),
        prefix_length: 24,
        gateway: None,
        mac: plinth_ids::MacAddress([2, 0x51, 172, 16, 0, number]),
        mtu: 1500,
    })
}

/// A VM that boots a kernel, with one NIC in `blue-a`.
pub(crate) fn vm(vm: &str) -> VmCreate {
    VmCreate {
        name: name(vm),
        vcpus: 1,
        memory: 256 << 20,
        image: None,
        system_size: None,
        kernel: Some("/boot/vmlinuz".to_owned()),
        initrd: None,
        append: None,
        nics: vec![NicRequest { subnet: name("blue-a"), address: None, groups: Vec::new() }],
        volumes: Vec::new(),
        node: None,
        start: true,
        wait_ms: 0,
    }
}

pub(crate) fn disk(volume: &str) -> DiskRequest {
    DiskRequest { volume: name(volume), is_read_only: false }
}
