// SPDX-License-Identifier: Apache-2.0
//! Random requests, answers and refusals against a slow model that only keeps lists: who has
//! which address, who has which volume, what exists. The model judges each answer and each
//! refusal by itself; after every step the two must agree.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use plinth_api::*;
use plinth_ids::{Name, NodeId};
use plinth_planner::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use support::{Bench, GIB, NOW, disk, name, vm};

#[derive(Clone, Debug)]
enum Op {
    VpcCreate(u8),
    VpcDelete(u8),
    /// Two VPCs, overlapping ranges among four.
    SubnetCreate(u8, u8, u8),
    SubnetDelete(u8),
    VolumeCreate(u8, bool),
    VolumeGrow(u8, u8),
    VolumeDelete(u8),
    SnapshotCreate(u8, u8),
    SnapshotDelete(u8, u8),
    /// Of a volume, or of its snapshot.
    VolumeClone(u8, u8, Option<u8>),
    ScheduleSet(u8, bool),
    /// So many minutes pass, and the clock is looked at; or it goes back an hour.
    Clock(u8),
    VmCreate {
        vm: u8,
        nics: Vec<(u8, Option<u8>)>,
        volumes: Vec<u8>,
        image: bool,
        start: bool,
    },
    NicAttach(u8, (u8, Option<u8>)),
    NicDetach(u8, u8),
    VmStart(u8),
    VmStop(u8),
    VmDelete(u8, bool),
    /// The n-th due act of a node is answered: done, refused, or not at all.
    Answer(bool, u8, u8),
    /// A node's status comes, whole.
    Status(bool),
    /// The service is killed and reads its records again.
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let nic = (0..3_u8, prop::option::of(0..9_u8));
    prop_oneof![
        1 => (0..3_u8).prop_map(Op::VpcCreate),
        1 => (0..3_u8).prop_map(Op::VpcDelete),
        2 => (0..3_u8, 0..3_u8, 0..4_u8).prop_map(|(s, v, r)| Op::SubnetCreate(s, v, r)),
        1 => (0..3_u8).prop_map(Op::SubnetDelete),
        3 => (0..4_u8, any::<bool>()).prop_map(|(v, p)| Op::VolumeCreate(v, p)),
        1 => (0..4_u8, 1..4_u8).prop_map(|(v, s)| Op::VolumeGrow(v, s)),
        2 => (0..4_u8).prop_map(Op::VolumeDelete),
        3 => (0..4_u8, 0..2_u8).prop_map(|(v, s)| Op::SnapshotCreate(v, s)),
        2 => (0..4_u8, 0..2_u8).prop_map(|(v, s)| Op::SnapshotDelete(v, s)),
        2 => (0..4_u8, 0..4_u8, prop::option::of(0..2_u8))
            .prop_map(|(v, s, n)| Op::VolumeClone(v, s, n)),
        2 => (0..4_u8, any::<bool>()).prop_map(|(v, s)| Op::ScheduleSet(v, s)),
        4 => (0..200_u8).prop_map(Op::Clock),
        6 => (
            0..5_u8,
            prop::collection::vec(nic, 0..3),
            prop::collection::vec(0..4_u8, 0..3),
            any::<bool>(),
            any::<bool>(),
        )
            .prop_map(|(vm, nics, volumes, image, start)| Op::VmCreate {
                vm, nics, volumes, image, start,
            }),
        3 => (0..5_u8, (0..3_u8, prop::option::of(0..9_u8)))
            .prop_map(|(vm, nic)| Op::NicAttach(vm, nic)),
        2 => (0..5_u8, 0..4_u8).prop_map(|(vm, nic)| Op::NicDetach(vm, nic)),
        1 => (0..5_u8).prop_map(Op::VmStart),
        1 => (0..5_u8).prop_map(Op::VmStop),
        3 => (0..5_u8, any::<bool>()).prop_map(|(v, f)| Op::VmDelete(v, f)),
        8 => (any::<bool>(), 0..4_u8, 0..6_u8).prop_map(|(n, a, r)| Op::Answer(n, a, r)),
        4 => any::<bool>().prop_map(Op::Status),
        1 => Just(Op::Restart),
    ]
}

/// Lists, nothing clever.
#[derive(Default)]
struct Model {
    vpcs: BTreeSet<String>,
    /// Subnet → vpc and range.
    subnets: BTreeMap<String, (String, u8)>,
    vms: BTreeMap<String, ModelVm>,
}

/// Addresses by vpc, and volumes.
type ModelVm = (Vec<(String, Ipv4Addr)>, BTreeSet<String>);

/// The n-th range: 10.0.0.0/29, 10.0.0.8/29, 10.0.0.0/28, 10.0.1.0/29.
const RANGES: [(u8, u8, u8); 4] = [(0, 0, 29), (0, 8, 29), (0, 0, 28), (1, 0, 29)];

fn overlap(a: u8, b: u8) -> bool {
    let addresses = |range: u8| {
        let (third, last, length) = RANGES[usize::from(range)];
        (0..1_u16 << (32 - length)).map(move |host| (third, u16::from(last) + host))
    };
    addresses(a).any(|address| addresses(b).any(|other| other == address))
}

impl Model {
    fn has_address(&self, vpc: &str, address: Ipv4Addr) -> bool {
        self.vms.values().any(|(nics, _)| nics.contains(&(vpc.to_owned(), address)))
    }

    fn holder(&self, volume: &str) -> Option<&String> {
        self.vms.iter().find(|(_, (_, disks))| disks.contains(volume)).map(|(vm, _)| vm)
    }

    /// A new VM, as the planner made it, is added only if no list says no.
    fn add_vm(&mut self, bench: &Bench, vm: &VmRecord) {
        let mut nics = Vec::new();
        for nic in &vm.nics {
            let (vpc, range) = &self.subnets[nic.subnet.as_str()];
            assert!(!self.has_address(vpc, nic.address), "{} is given twice", nic.address);
            assert!(!nics.contains(&(vpc.clone(), nic.address)), "{} twice in one", nic.address);
            let (third, first, length) = RANGES[usize::from(*range)];
            let [_, _, c, d] = nic.address.octets();
            let count = 1_u16 << (32 - length);
            let host = u16::from(d) - u16::from(first);
            // Not network, not gateway (the first host), not broadcast.
            assert!(c == third && (2..count - 1).contains(&host), "{} is no host", nic.address);
            nics.push((vpc.clone(), nic.address));
        }
        let mut disks = BTreeSet::new();
        for disk in &vm.disks {
            let volume = bench.cluster.volume(disk.volume).unwrap();
            assert!(self.holder(volume.name.as_str()).is_none(), "{} twice", volume.name);
            assert!(disks.insert(volume.name.to_string()), "{} twice in one", volume.name);
            assert_eq!(bench.cluster.pool(volume.pool).unwrap().node, vm.node);
        }
        self.vms.insert(vm.name.to_string(), (nics, disks));
    }

    /// The lists against the records.
    fn agree(&self, bench: &Bench) {
        let names = |names: Vec<&Name>| -> BTreeSet<String> {
            names.into_iter().map(ToString::to_string).collect()
        };
        let cluster = &bench.cluster;
        assert_eq!(names(cluster.vpcs.keys().collect()), self.vpcs);
        assert_eq!(
            names(cluster.subnets.keys().collect()),
            self.subnets.keys().cloned().collect::<BTreeSet<_>>()
        );
        let vms = names(cluster.vms.keys().collect());
        assert_eq!(vms, self.vms.keys().cloned().collect::<BTreeSet<_>>());
        for (_, disks) in self.vms.values() {
            for volume in disks {
                assert!(cluster.volumes.contains_key(&name(volume)), "{volume} was lost");
            }
        }
        // No spec has a volume or a MAC twice, on whatever node.
        let specs: Vec<NodeSpec> =
            cluster.nodes.values().map(|node| cluster.node_spec(node.id).unwrap()).collect();
        let mut volumes = BTreeSet::new();
        let mut macs = BTreeSet::new();
        for vm in specs.iter().flat_map(|spec| &spec.vms) {
            assert!(vm.disks.iter().all(|disk| volumes.insert(disk.volume)));
            assert!(vm.nics.iter().all(|nic| macs.insert(nic.mac)));
        }
    }
}

struct Run {
    bench: Bench,
    model: Model,
    clock: u64,
    done: u32,
}

impl Run {
    fn new() -> Self {
        let mut bench = Bench::new();
        bench.image("small");
        let model = Model {
            vpcs: ["blue".to_owned()].into(),
            subnets: [("blue-a".to_owned(), ("blue".to_owned(), 3))].into(),
            ..Model::default()
        };
        // The bench's own subnet is wider than the model's ranges: make it one of them.
        bench.plan(bench.cluster.subnet_delete(&name("blue-a"))).unwrap();
        bench.subnet("blue-a", "blue", [10, 0, 1, 0], 29).unwrap();
        Self { bench, model, clock: NOW, done: 0 }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::VpcCreate(n) => self.vpc_create(*n),
            Op::VpcDelete(n) => self.vpc_delete(*n),
            Op::SubnetCreate(n, vpc, range) => self.subnet_create(*n, *vpc, *range),
            Op::SubnetDelete(n) => self.subnet_delete(*n),
            Op::VolumeCreate(n, pool) => {
                let pool = if *pool { "pool-a" } else { "pool-b" };
                let _ = self.bench.volume(&format!("data-{n}"), pool);
            }
            Op::VolumeGrow(n, size) => {
                let volume = name(&format!("data-{n}"));
                let size = u64::from(*size) * GIB;
                let _ = self.bench.plan(self.bench.cluster.volume_grow(
                    &volume,
                    size,
                    &self.bench.observed,
                ));
            }
            Op::VolumeDelete(n) => self.volume_delete(*n),
            Op::Clock(minutes) => self.clock(*minutes),
            Op::VmCreate { vm, nics, volumes, image, start } => {
                self.vm_create(*vm, nics, volumes, *image, *start);
            }
            Op::NicAttach(n, nic) => self.nic_attach(*n, *nic),
            Op::NicDetach(n, nic) => self.nic_detach(*n, *nic),
            Op::VmStart(n) => {
                let vm = name(&format!("vm-{n}"));
                let plan = self.bench.cluster.vm_start(&vm, &self.bench.observed);
                let _ = self.bench.plan(plan);
            }
            Op::VmStop(n) => {
                let vm = name(&format!("vm-{n}"));
                let _ = self.bench.plan(self.bench.cluster.vm_stop(&vm, 0));
            }
            Op::VmDelete(n, force) => {
                let vm = name(&format!("vm-{n}"));
                let plan = self.bench.cluster.vm_delete(&vm, *force, &self.bench.observed);
                let _ = self.bench.plan(plan);
            }
            Op::Answer(node, act, answer) => self.answer(*node, *act, *answer),
            Op::Status(node) => self.status(*node),
            Op::Restart => self.restart(),
            snapshots => self.step_snapshots(snapshots),
        }
        self.model.agree(&self.bench);
    }

    fn step_snapshots(&mut self, op: &Op) {
        match op {
            Op::SnapshotCreate(n, s) => {
                let (volume, snapshot) =
                    (name(&format!("data-{n}")), name(&format!("by-hand-{s}")));
                let bench = &self.bench;
                let plan = bench.cluster.snapshot_create(&volume, &snapshot, &bench.observed, NOW);
                let _ = self.bench.plan(plan);
            }
            Op::SnapshotDelete(n, s) => {
                let (volume, snapshot) =
                    (name(&format!("data-{n}")), name(&format!("by-hand-{s}")));
                let _ = self.bench.plan(self.bench.cluster.snapshot_delete(&volume, &snapshot));
            }
            Op::VolumeClone(n, source, snapshot) => {
                let request = VolumeClone {
                    name: name(&format!("data-{n}")),
                    source: name(&format!("data-{source}")),
                    snapshot: snapshot.map(|s| name(&format!("by-hand-{s}"))),
                    size: None,
                };
                let bench = &self.bench;
                let _ = self.bench.plan(bench.cluster.volume_clone(&request, &bench.observed, NOW));
            }
            Op::ScheduleSet(n, is_set) => {
                let volume = name(&format!("data-{n}"));
                let cluster = &self.bench.cluster;
                let plan = if *is_set {
                    cluster.schedule_set(&volume, 3600, 2, self.clock)
                } else {
                    cluster.schedule_clear(&volume)
                };
                let _ = self.bench.plan(plan);
            }
            _ => unreachable!("the other steps are taken above"),
        }
    }

    fn vpc_create(&mut self, n: u8) {
        let vpc = ["blue", "red", "green"][usize::from(n)];
        let made = self.bench.plan(self.bench.cluster.vpc_create(name(vpc), None, NOW)).is_ok();
        assert_eq!(made, self.model.vpcs.insert(vpc.to_owned()));
    }

    fn vpc_delete(&mut self, n: u8) {
        let vpc = ["blue", "red", "green"][usize::from(n)];
        let gone = self.bench.plan(self.bench.cluster.vpc_delete(&name(vpc))).is_ok();
        let is_used = self.model.subnets.values().any(|(other, _)| other == vpc);
        assert_eq!(gone, !is_used && self.model.vpcs.remove(vpc));
    }

    fn subnet_create(&mut self, n: u8, vpc: u8, range: u8) {
        let subnet = ["blue-a", "other-a", "other-b"][usize::from(n)];
        let vpc = ["blue", "red", "green"][usize::from(vpc)];
        let (third, last, length) = RANGES[usize::from(range)];
        let made = self.bench.subnet(subnet, vpc, [10, 0, third, last], length).is_ok();
        let clash = self.model.subnets.values().any(|(v, r)| v == vpc && overlap(*r, range));
        let is_free = !self.model.subnets.contains_key(subnet) && !clash;
        assert_eq!(made, is_free && self.model.vpcs.contains(vpc));
        if made {
            self.model.subnets.insert(subnet.to_owned(), (vpc.to_owned(), range));
        }
    }

    fn subnet_delete(&mut self, n: u8) {
        let subnet = ["blue-a", "other-a", "other-b"][usize::from(n)];
        let gone = self.bench.plan(self.bench.cluster.subnet_delete(&name(subnet))).is_ok();
        if gone {
            let (vpc, range) = self.model.subnets.remove(subnet).expect("it was there");
            let (third, first, length) = RANGES[usize::from(range)];
            for host in 0..1_u8 << (32 - length) {
                let address = Ipv4Addr::new(10, 0, third, first + host);
                assert!(!self.model.has_address(&vpc, address), "{address} lost its subnet");
            }
        }
    }

    fn volume_delete(&mut self, n: u8) {
        let volume = format!("data-{n}");
        let kept = self.bench.cluster.snapshots_of(&name(&volume)).any(|one| !one.is_scheduled);
        let plan = self.bench.cluster.volume_delete(&name(&volume), false);
        if self.bench.plan(plan).is_ok() {
            assert!(!kept, "{volume} had snapshots that someone made");
            assert_eq!(self.model.holder(&volume), None, "{volume} was in use");
        }
    }

    /// However much time passed, a schedule takes one snapshot, and deletes none but its own.
    fn clock(&mut self, minutes: u8) {
        self.clock = match minutes {
            199 => self.clock - 3600,
            _ => self.clock + 60 * u64::from(minutes),
        };
        let change = self.bench.cluster.schedules_due(self.clock, &self.bench.observed);
        let mut taken: BTreeSet<Name> = BTreeSet::new();
        for write in &change.writes {
            let Write::Put(Record::Snapshot(snapshot)) = write else { continue };
            assert!(snapshot.is_scheduled, "{} is not the schedule's", snapshot.name);
            if snapshot.state == State::Creating {
                assert!(taken.insert(snapshot.volume.clone()), "{} twice", snapshot.volume);
            }
        }
        self.bench.apply(change);
        for volume in taken {
            let pending = |one: &&SnapshotRecord| one.is_scheduled && one.state == State::Creating;
            assert_eq!(self.bench.cluster.snapshots_of(&volume).filter(pending).count(), 1);
        }
        let again = self.bench.cluster.schedules_due(self.clock, &self.bench.observed);
        assert!(again.is_empty(), "the same time asks for more: {again:?}");
    }

    fn nic(&self, (subnet, host): (u8, Option<u8>)) -> NicRequest {
        let subnet = ["blue-a", "other-a", "other-b"][usize::from(subnet)];
        let (_, range) = self.model.subnets.get(subnet).cloned().unwrap_or_default();
        let (third, first, _) = RANGES[usize::from(range)];
        let address = host.map(|host| Ipv4Addr::new(10, 0, third, first + host));
        NicRequest { subnet: name(subnet), address, groups: Vec::new() }
    }

    fn nic_attach(&mut self, n: u8, nic: (u8, Option<u8>)) {
        let vm = format!("vm-{n}");
        let plan = self.bench.cluster.nic_attach(&name(&vm), &self.nic(nic));
        if self.bench.plan(plan).is_ok() {
            // As if the VM came anew, with what it has and the new one.
            let (_, volumes) = self.model.vms.remove(&vm).expect("it was there");
            let record = self.bench.cluster.vms[&name(&vm)].clone();
            self.model.add_vm(&self.bench, &record);
            assert_eq!(self.model.vms[&vm].1, volumes);
            self.done += 1;
        }
    }

    fn nic_detach(&mut self, n: u8, nic: u8) {
        let vm = name(&format!("vm-{n}"));
        let views = self.bench.cluster.eni_views(Some(&vm), &self.bench.observed);
        if let Some(view) = views.ok().and_then(|views| views.get(usize::from(nic)).cloned()) {
            let _ = self.bench.plan(self.bench.cluster.nic_detach(&view.name));
        }
    }

    fn vm_create(
        &mut self,
        n: u8,
        nics: &[(u8, Option<u8>)],
        volumes: &[u8],
        image: bool,
        start: bool,
    ) {
        let vm_name = format!("vm-{n}");
        let request = VmCreate {
            nics: nics.iter().map(|nic| self.nic(*nic)).collect(),
            volumes: volumes.iter().map(|volume| disk(&format!("data-{volume}"))).collect(),
            image: image.then(|| name("small")),
            start,
            ..vm(&vm_name)
        };
        if self.bench.create(&request).is_ok() {
            assert!(!self.model.vms.contains_key(&vm_name));
            let record = self.bench.cluster.vms[&name(&vm_name)].clone();
            self.model.add_vm(&self.bench, &record);
            self.done += 1;
        }
    }

    fn answer(&mut self, node: bool, act: u8, answer: u8) {
        let due = self.bench.cluster.due(NodeId(1 + u32::from(node)));
        let Some(act) = due.get(usize::from(act)) else { return };
        let answer = match answer {
            0 => Err(Refusal::new(Code::NoRoom, "full")),
            1 => Err(Refusal::new(Code::Unreachable, "no answer")),
            _ => Ok(AgentAnswer::Done),
        };
        let vms = self.names();
        self.bench.apply(self.bench.cluster.settle(act, &answer));
        self.forget(&vms);
    }

    fn status(&mut self, node: bool) {
        let node = NodeId(1 + u32::from(node));
        self.bench.see(node, |_| {});
        let vms = self.names();
        self.bench.apply(self.bench.cluster.release(node, &self.bench.observed));
        self.forget(&vms);
    }

    fn names(&self) -> BTreeSet<Name> {
        self.bench.cluster.vms.keys().cloned().collect()
    }

    /// VMs that an answer or a status ended are gone from the lists too. Only those that were
    /// being made or deleted may be.
    fn forget(&mut self, before: &BTreeSet<Name>) {
        for vm in before.difference(&self.names()) {
            self.model.vms.remove(vm.as_str());
        }
        for (vm, (nics, _)) in &mut self.model.vms {
            let record = &self.bench.cluster.vms[&name(vm)];
            let is_there = |address: Ipv4Addr| record.nics.iter().any(|nic| nic.address == address);
            nics.retain(|(_, address)| is_there(*address));
        }
    }

    fn restart(&mut self) {
        let cluster = &self.bench.cluster;
        let mut change = Change::default().put(Record::Meta(cluster.meta.clone()));
        for record in records(cluster) {
            let key = record.key().to_string();
            change = change.put(Record::parse(&key, &record.emit()).unwrap());
        }
        let mut fresh = Cluster::new(Meta::new(String::new()));
        fresh.apply(change, cluster.revision);
        let specs = |cluster: &Cluster| [1, 2].map(|node| cluster.node_spec(NodeId(node)));
        assert_eq!(specs(&fresh), specs(cluster));
        let due = |cluster: &Cluster| [1, 2].map(|node| cluster.due(NodeId(node)));
        assert_eq!(due(&fresh), due(cluster));
        self.bench.cluster = fresh;
        self.bench.apply(self.bench.cluster.interrupted_imports());
    }
}

fn records(cluster: &Cluster) -> Vec<Record> {
    let Cluster {
        tokens,
        nodes,
        pools,
        images,
        volumes,
        snapshots,
        vpcs,
        subnets,
        groups,
        vms,
        ..
    } = cluster;
    let mut records: Vec<Record> = tokens.values().cloned().map(Record::Token).collect();
    records.extend(nodes.values().cloned().map(Record::Node));
    records.extend(pools.values().cloned().map(Record::Pool));
    records.extend(images.values().cloned().map(Record::Image));
    records.extend(volumes.values().cloned().map(Record::Volume));
    records.extend(snapshots.values().cloned().map(Record::Snapshot));
    records.extend(vpcs.values().cloned().map(Record::Vpc));
    records.extend(subnets.values().cloned().map(Record::Subnet));
    records.extend(groups.values().cloned().map(Record::Group));
    records.extend(vms.values().cloned().map(Record::Vm));
    records
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_planner_agrees_with_lists(ops in prop::collection::vec(op(), 1..80)) {
        let mut run = Run::new();
        for op in &ops {
            run.step(op);
        }
        // When every node answers and every VM is let go of, nothing is left over.
        let vms = run.names();
        for vm in &vms {
            let plan = run.bench.cluster.vm_delete(vm, true, &run.bench.observed);
            let _ = run.bench.plan(plan);
        }
        for _ in 0..3 {
            run.status(false);
            run.status(true);
            run.bench.work_off();
        }
        prop_assert!(run.bench.cluster.vms.is_empty());
        let left: Vec<_> = run.bench.cluster.volumes.values().collect();
        prop_assert!(
            left.iter().all(|volume| volume.system_of.is_none() && volume.state == State::Ready),
            "left over: {left:?}"
        );
    }
}

#[test]
fn the_random_requests_make_vms_at_all() {
    let mut run = Run::new();
    let create = |vm, image| Op::VmCreate {
        vm,
        nics: vec![(0, None), (0, Some(5))],
        volumes: Vec::new(),
        image,
        start: true,
    };
    run.step(&create(0, true));
    run.step(&Op::Answer(false, 0, 2));
    run.step(&Op::Answer(true, 0, 2));
    assert_eq!(run.done, 1);
    assert_eq!(run.bench.cluster.vms[&name("vm-0")].state, State::Ready);
    // Its second NIC has the address that this one asks for.
    run.step(&create(1, false));
    assert_eq!(run.done, 1);
}
