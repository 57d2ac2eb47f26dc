// SPDX-License-Identifier: Apache-2.0
//! Whole stories through the planner's doors, and every refusal with its words.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use plinth_api::*;
use plinth_ids::{NodeId, Vni};
use plinth_planner::*;
use std::net::Ipv4Addr;
use support::{Bench, GIB, NOW, disk, name, status_of, vm};

fn refused(result: Result<(), Refusal>, code: Code, words: &str) {
    let refusal = result.expect_err(words);
    assert_eq!(refusal.code(), Some(code), "{refusal}");
    assert!(refusal.to_string().contains(words), "{refusal}");
}

#[test]
fn a_vm_with_an_image_lives_and_dies_with_its_system_disk() {
    let mut bench = Bench::new();
    bench.image("small");
    let request = VmCreate { image: Some(name("small")), kernel: None, ..vm("web-1") };
    bench.create(&request).unwrap();
    let node = bench.cluster.vms[&name("web-1")].node;
    assert!(bench.cluster.node_spec(node).unwrap().vms.is_empty(), "its disk is not made yet");
    bench.work_off();
    let spec = bench.cluster.node_spec(node).unwrap();
    assert_eq!(spec.vms[0].disks[0].name, name("web-1-system"));
    assert_eq!(spec.vms[0].run, Run::Running);
    bench.see(node, |_| {});
    let delete =
        |bench: &Bench, force| bench.cluster.vm_delete(&name("web-1"), force, &bench.observed);
    refused(delete(&bench, false).map(drop), Code::State, "is running");
    bench.plan(delete(&bench, true)).unwrap();
    assert!(bench.cluster.node_spec(node).unwrap().vms.is_empty());
    // The node still has it: nothing may be removed.
    assert!(bench.cluster.release(node, &bench.observed).is_empty());
    bench.see(node, |_| {});
    bench.apply(bench.cluster.release(node, &bench.observed));
    assert!(!bench.cluster.vms.contains_key(&name("web-1")));
    assert_eq!(bench.cluster.volumes[&name("web-1-system")].state, State::Deleting);
    bench.work_off();
    assert!(bench.cluster.volumes.is_empty());
}

#[test]
fn a_vm_is_not_released_by_a_node_that_has_an_older_spec() {
    let mut bench = Bench::new();
    bench.create(&vm("web-1")).unwrap();
    let node = bench.cluster.vms[&name("web-1")].node;
    // A status from before the deletion that does not list the VM, because it was just made.
    bench.see(node, |status| status.vms.clear());
    let before = bench.cluster.epoch();
    bench.plan(bench.cluster.vm_delete(&name("web-1"), true, &bench.observed)).unwrap();
    bench.see(node, |status| status.epoch = Some(before));
    assert!(bench.cluster.release(node, &bench.observed).is_empty());
    assert!(bench.cluster.epoch_wanted(node) > before.0);
    bench.see(node, |_| {});
    assert!(!bench.cluster.release(node, &bench.observed).is_empty());
}

#[test]
fn a_refused_system_disk_takes_its_vm_with_it() {
    let mut bench = Bench::new();
    bench.image("small");
    bench.volume("data-1", "pool-a").unwrap();
    bench.work_off();
    let request = VmCreate {
        image: Some(name("small")),
        kernel: None,
        volumes: vec![disk("data-1")],
        ..vm("web-1")
    };
    bench.create(&request).unwrap();
    let act = bench.cluster.due(NodeId(1)).remove(0);
    // A node that could not try leaves everything due.
    let unreachable = Err(Refusal::new(Code::Unreachable, "no answer"));
    assert!(bench.cluster.settle(&act, &unreachable).is_empty());
    let full = Err(Refusal::new(Code::NoRoom, "the pool is full"));
    bench.apply(bench.cluster.settle(&act, &full));
    assert!(bench.cluster.vms.is_empty());
    let volumes: Vec<String> = bench.cluster.volumes.keys().map(ToString::to_string).collect();
    assert_eq!(volumes, ["data-1"]);
}

#[test]
fn a_vm_deleted_while_its_disk_is_made_leaves_no_disk() {
    let mut bench = Bench::new();
    bench.image("small");
    let request = VmCreate { image: Some(name("small")), kernel: None, ..vm("web-1") };
    bench.create(&request).unwrap();
    let node = bench.cluster.vms[&name("web-1")].node;
    let act = bench.cluster.due(node).remove(0);
    bench.plan(bench.cluster.vm_delete(&name("web-1"), true, &bench.observed)).unwrap();
    bench.see(node, |_| {});
    bench.apply(bench.cluster.release(node, &bench.observed));
    bench.apply(bench.cluster.settle(&act, &Ok(AgentAnswer::Done)));
    bench.work_off();
    assert!(bench.cluster.volumes.is_empty());
}

/// Found by the random test: the VM was kept, with a disk that had no volume.
#[test]
fn a_disk_refused_while_its_vm_is_deleted_takes_the_vm_with_it() {
    let mut bench = Bench::new();
    bench.image("small");
    let request = VmCreate { image: Some(name("small")), kernel: None, ..vm("web-1") };
    bench.create(&request).unwrap();
    let node = bench.cluster.vms[&name("web-1")].node;
    let act = bench.cluster.due(node).remove(0);
    bench.plan(bench.cluster.vm_delete(&name("web-1"), true, &bench.observed)).unwrap();
    bench.apply(bench.cluster.settle(&act, &Err(Refusal::new(Code::NoRoom, "full"))));
    assert!(bench.cluster.vms.is_empty());
    assert!(bench.cluster.volumes.is_empty());
}

#[test]
fn a_volume_grows_and_a_refused_growth_falls_back() {
    let mut bench = Bench::new();
    bench.volume("data-1", "pool-a").unwrap();
    bench.work_off();
    let data = name("data-1");
    bench.plan(bench.cluster.volume_grow(&data, 2 * GIB, &bench.observed)).unwrap();
    let late = bench.cluster.due(NodeId(1)).remove(0);
    bench.plan(bench.cluster.volume_grow(&data, 3 * GIB, &bench.observed)).unwrap();
    // The answer to the first growth says nothing about the second.
    assert!(bench.cluster.settle(&late, &Ok(AgentAnswer::Done)).is_empty());
    bench.work_off();
    assert_eq!(bench.cluster.volumes[&data].size, 3 * GIB);
    bench.plan(bench.cluster.volume_grow(&data, 4 * GIB, &bench.observed)).unwrap();
    let act = bench.cluster.due(NodeId(1)).remove(0);
    bench.apply(bench.cluster.settle(&act, &Err(Refusal::new(Code::NoRoom, "full"))));
    assert_eq!(bench.cluster.volumes[&data].size, 3 * GIB);
    let shrink = bench.cluster.volume_grow(&data, GIB, &bench.observed).map(drop);
    refused(shrink, Code::Invalid, "has 3G already and cannot shrink");
}

#[test]
fn what_is_in_use_is_not_deleted_and_the_user_is_named() {
    let mut bench = Bench::new();
    bench.volume("data-1", "pool-a").unwrap();
    bench.work_off();
    bench.create(&VmCreate { volumes: vec![disk("data-1")], ..vm("web-1") }).unwrap();
    let cluster = &bench.cluster;
    let volume = cluster.volume_delete(&name("data-1"), false).map(drop);
    refused(volume, Code::InUse, "volume data-1 is a disk of VM web-1");
    let subnet = cluster.subnet_delete(&name("blue-a")).map(drop);
    refused(subnet, Code::InUse, "VM web-1 has a NIC in subnet blue-a");
    refused(cluster.vpc_delete(&name("blue")).map(drop), Code::InUse, "has subnet blue-a");
    let twice = bench.create(&VmCreate { volumes: vec![disk("data-1")], ..vm("web-2") });
    refused(twice, Code::InUse, "volume data-1 is a disk of VM web-1");
}

#[test]
fn an_interrupted_import_is_given_up_and_its_copies_go() {
    let mut bench = Bench::new();
    let request = ImageImport {
        name: name("small"),
        pools: vec![name("pool-b")],
        format: DiskFormat::Qcow2,
        source: ImportSource::Stream { length: 9 },
    };
    bench.plan(bench.cluster.image_import(&request, NOW)).unwrap();
    let delete = bench.cluster.image_delete(&name("small")).map(drop);
    refused(delete, Code::State, "is being imported");
    bench.apply(bench.cluster.interrupted_imports());
    assert!(bench.cluster.due(NodeId(1)).is_empty());
    // First its snapshot, then the copy. What was never made is gone all the same.
    for words in ["no snapshot", "no volume"] {
        assert!(!bench.cluster.images.is_empty());
        let act = bench.cluster.due(NodeId(2)).remove(0);
        bench.apply(bench.cluster.settle(&act, &Err(Refusal::new(Code::NotFound, words))));
    }
    assert!(bench.cluster.images.is_empty());
}

#[test]
fn a_subnet_gives_out_every_address_once_and_then_says_so() {
    let mut bench = Bench::new();
    bench.subnet("tiny", "blue", [10, 0, 1, 0], 29).unwrap();
    let in_tiny = |vm_name: &str, address| VmCreate {
        nics: vec![NicRequest { subnet: name("tiny"), address, groups: Vec::new() }],
        vcpus: 1,
        memory: 32 << 20,
        ..vm(vm_name)
    };
    // A /29 has eight addresses: network, broadcast, gateway, five for NICs.
    for number in 0..5 {
        bench.create(&in_tiny(&format!("vm-{number}"), None)).unwrap();
    }
    let view = bench.cluster.subnet_view(&bench.cluster.subnets[&name("tiny")]);
    assert_eq!((view.addresses_used, view.addresses_free), (5, 0));
    refused(bench.create(&in_tiny("more", None)), Code::NoRoom, "has no address left");
    for (address, words) in [
        ([10, 0, 1, 1], "is that of the gateway"),
        ([10, 0, 1, 2], "is that of another NIC"),
        ([10, 0, 1, 0], "is no host address"),
        ([10, 0, 1, 7], "is no host address"),
        ([10, 0, 2, 2], "is no host address"),
    ] {
        let result = bench.create(&in_tiny("more", Some(address.into())));
        assert!(result.unwrap_err().to_string().contains(words), "{address:?}");
    }
}

#[test]
fn addresses_asked_for_come_before_free_choices() {
    let mut bench = Bench::new();
    let nic = |address: Option<[u8; 4]>| NicRequest {
        subnet: name("blue-a"),
        address: address.map(Ipv4Addr::from),
        groups: Vec::new(),
    };
    let nics = vec![nic(None), nic(Some([10, 0, 0, 2])), nic(None)];
    bench.create(&VmCreate { nics, ..vm("web-1") }).unwrap();
    let given: Vec<String> =
        bench.cluster.vms[&name("web-1")].nics.iter().map(|nic| nic.address.to_string()).collect();
    assert_eq!(given, ["10.0.0.3", "10.0.0.2", "10.0.0.4"]);
    let nics = vec![nic(Some([10, 0, 0, 9])), nic(Some([10, 0, 0, 9]))];
    refused(bench.create(&VmCreate { nics, ..vm("web-2") }), Code::Invalid, "is given twice");
}

#[test]
fn ranges_are_checked_and_the_remedy_is_named() {
    let mut bench = Bench::new();
    for (network, length, words) in [
        ([10, 1, 0, 5], 24, "did you mean 10.1.0.0/24?"),
        ([10, 1, 0, 0], 31, "is no size for a subnet"),
        ([127, 0, 0, 0], 24, "is reserved"),
        ([169, 254, 0, 0], 24, "is reserved"),
        ([224, 0, 0, 0], 24, "is reserved"),
        ([10, 0, 0, 128], 25, "overlaps subnet blue-a"),
        ([10, 0, 0, 0], 8, "overlaps subnet blue-a"),
    ] {
        let refusal = bench.subnet("more", "blue", network, length).unwrap_err();
        assert!(refusal.to_string().contains(words), "{refusal}");
        assert_eq!(refusal.field.as_deref(), Some("--cidr"));
    }
    // Another vpc may use the same range.
    bench.plan(bench.cluster.vpc_create(name("red"), None, NOW)).unwrap();
    bench.subnet("red-a", "red", [10, 0, 0, 0], 24).unwrap();
}

#[test]
fn a_vni_rests_before_it_is_used_again() {
    let mut bench = Bench::new();
    let vni = |bench: &Bench, vpc: &str| bench.cluster.vpcs[&name(vpc)].vni.get();
    bench.plan(bench.cluster.vpc_create(name("red"), None, NOW)).unwrap();
    assert_eq!(vni(&bench, "red"), 2);
    bench.plan(bench.cluster.vpc_delete(&name("red"))).unwrap();
    bench.plan(bench.cluster.vpc_create(name("green"), None, NOW)).unwrap();
    assert_eq!(vni(&bench, "green"), 3);
    bench.plan(bench.cluster.vpc_create(name("last"), Vni::new(Vni::MAX), NOW)).unwrap();
    bench.plan(bench.cluster.vpc_create(name("wrapped"), None, NOW)).unwrap();
    assert_eq!(vni(&bench, "wrapped"), 2);
    let taken = bench.cluster.vpc_create(name("again"), Vni::new(3), NOW).map(drop);
    refused(taken, Code::Exists, "VNI 3 is that of vpc green");
    let zero = bench.cluster.vpc_create(name("again"), Vni::new(0), NOW).map(drop);
    refused(zero, Code::Invalid, "VNI 0 belongs to no VPC");
}

#[test]
fn wrong_shapes_name_field_and_remedy() {
    let mut bench = Bench::new();
    bench.image("small");
    let long = "x".repeat(57);
    for (request, field) in [
        (VmCreate { vcpus: 0, ..vm("a") }, "--vcpus"),
        (VmCreate { vcpus: 257, ..vm("a") }, "--vcpus"),
        (VmCreate { memory: 1, ..vm("a") }, "--memory"),
        (VmCreate { memory: (256 << 20) + 1, ..vm("a") }, "--memory"),
        (VmCreate { kernel: None, initrd: Some("/i".to_owned()), ..vm("a") }, "--initrd"),
        (VmCreate { kernel: None, append: Some("x".to_owned()), ..vm("a") }, "--append"),
        (VmCreate { kernel: None, ..vm("a") }, "--image"),
        (VmCreate { kernel: Some("vmlinuz".to_owned()), ..vm("a") }, "--kernel"),
        (VmCreate { system_size: Some(GIB), ..vm("a") }, "--system-size"),
        (VmCreate { nics: vec![vm("a").nics[0].clone(); 9], ..vm("a") }, "--nic"),
        (VmCreate { volumes: vec![disk("nothing")], ..vm("a") }, "--volume"),
        (VmCreate { image: Some(name("large")), ..vm("a") }, "--image"),
        (VmCreate { node: Some(name("node-9")), ..vm("a") }, "--node"),
        (vm(&long), "NAME"),
    ] {
        let refusal = bench.create(&request).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some(field), "{refusal}");
        assert!(refusal.remedy.is_some(), "{refusal}");
    }
    let small = VmCreate { image: Some(name("small")), system_size: Some(4096), ..vm("a") };
    refused(bench.create(&small), Code::Invalid, "is smaller than the image (1G)");
}

#[test]
fn volumes_of_two_nodes_fit_no_vm_and_one_volume_decides_the_node() {
    let mut bench = Bench::new();
    bench.volume("here", "pool-a").unwrap();
    bench.volume("there", "pool-b").unwrap();
    bench.work_off();
    let both = VmCreate { volumes: vec![disk("here"), disk("there")], ..vm("web-1") };
    refused(bench.create(&both), Code::Invalid, "are on different nodes");
    let twice = VmCreate { volumes: vec![disk("here"), disk("here")], ..vm("web-1") };
    refused(bench.create(&twice), Code::Invalid, "is named twice");
    bench.create(&VmCreate { volumes: vec![disk("there")], ..vm("web-1") }).unwrap();
    assert_eq!(bench.cluster.vms[&name("web-1")].node, NodeId(2));
    let wrong = VmCreate { volumes: vec![disk("here")], node: Some(name("node-2")), ..vm("web-2") };
    refused(bench.create(&wrong), Code::NoRoom, "node-2: the volumes are on another node");
}

#[test]
fn vms_spread_until_no_node_has_room_and_each_says_why() {
    let mut bench = Bench::new();
    let large = |vm_name: &str| VmCreate { memory: 3 * GIB, ..vm(vm_name) };
    for number in 0..4 {
        bench.create(&large(&format!("vm-{number}"))).unwrap();
    }
    let on = |id| bench.cluster.vms.values().filter(|vm| vm.node == NodeId(id)).count();
    assert_eq!((on(1), on(2)), (2, 2));
    let refusal = bench.create(&large("more")).unwrap_err().to_string();
    assert!(refusal.contains("node-1: needs 3G of memory, 1G left"), "{refusal}");
    assert!(refusal.contains("node-2: needs 3G of memory, 1G left"), "{refusal}");
    let wide = bench.create(&VmCreate { vcpus: 9, ..vm("wide") }).unwrap_err().to_string();
    assert!(wide.contains("node-1: needs 9 vCPU, 6 left"), "{wide}");
}

#[test]
fn nodes_hear_of_each_others_nics_in_shared_vpcs_only() {
    let mut bench = Bench::new();
    bench.plan(bench.cluster.vpc_create(name("red"), None, NOW)).unwrap();
    bench.subnet("red-a", "red", [10, 0, 0, 0], 24).unwrap();
    let at = |vm_name: &str, node: &str, subnet: &str| VmCreate {
        node: Some(name(node)),
        nics: vec![NicRequest { subnet: name(subnet), address: None, groups: Vec::new() }],
        ..vm(vm_name)
    };
    bench.create(&at("blue-1", "node-1", "blue-a")).unwrap();
    bench.create(&at("blue-2", "node-2", "blue-a")).unwrap();
    bench.create(&at("red-2", "node-2", "red-a")).unwrap();
    let one = bench.cluster.node_spec(NodeId(1)).unwrap();
    assert_eq!(one.remotes.len(), 1);
    assert_eq!(one.remotes[0].vtep, Ipv4Addr::new(172, 16, 0, 2));
    assert_eq!(one.remotes[0].vni, bench.cluster.vpcs[&name("blue")].vni);
    let two = bench.cluster.node_spec(NodeId(2)).unwrap();
    assert_eq!(two.remotes.len(), 1, "node-1 has no NIC in red");
}

#[test]
fn a_node_without_underlay_takes_no_vm_of_a_vpc_that_is_elsewhere() {
    let mut bench = Bench::new();
    let agent = "192.0.2.3:7710".parse().unwrap();
    let (id, change) = bench.cluster.node_add(name("node-3"), agent, None, NOW).unwrap();
    bench.apply(change);
    bench.see(id, |_| {});
    bench.create(&VmCreate { node: Some(name("node-1")), ..vm("web-1") }).unwrap();
    let alone = bench.create(&VmCreate { node: Some(name("node-3")), ..vm("web-2") });
    refused(alone, Code::NoRoom, "no underlay joins it with node-1");
    let apart = VmCreate { node: Some(name("node-3")), nics: Vec::new(), ..vm("web-2") };
    bench.create(&apart).unwrap();
}

#[test]
fn dead_and_unfit_nodes_take_no_vm() {
    let mut bench = Bench::new();
    bench.see(NodeId(1), |status| {
        status.facts.checks.push(Check {
            name: "io-uring".to_owned(),
            state: CheckState::Missing,
            text: "io_uring is disabled".to_owned(),
            remedy: None,
        });
    });
    bench.observed.nodes.get_mut(&NodeId(2)).unwrap().is_alive = false;
    let refusal = bench.create(&vm("web-1")).unwrap_err().to_string();
    assert!(refusal.contains("node-1: cannot run VMs: io_uring is disabled"), "{refusal}");
    assert!(refusal.contains("node-2: its agent does not answer"), "{refusal}");
}

#[test]
fn a_start_is_counted_once_and_again_for_a_guest_that_switched_itself_off() {
    let mut bench = Bench::new();
    bench.create(&VmCreate { start: false, ..vm("web-1") }).unwrap();
    let web = name("web-1");
    let number = |bench: &Bench| bench.cluster.vms[&web].start_number;
    let start = |bench: &mut Bench| {
        bench.plan(bench.cluster.vm_start(&web, &bench.observed)).unwrap();
    };
    start(&mut bench);
    assert_eq!(number(&bench), 1);
    start(&mut bench);
    assert_eq!(number(&bench), 1, "it is starting already");
    let record = bench.cluster.vms[&web].clone();
    let off = status_of(record.id, VmState::Stopped, 1);
    bench.see(record.node, |status| status.vms = vec![off]);
    start(&mut bench);
    assert_eq!(number(&bench), 2);
    bench.plan(bench.cluster.vm_stop(&web, 30)).unwrap();
    assert_eq!(bench.cluster.vms[&web].run, Run::Stopped { grace_seconds: 30 });
    bench.plan(bench.cluster.vm_stop(&web, 0)).unwrap();
    assert_eq!(bench.cluster.vms[&web].run, Run::Stopped { grace_seconds: 0 });
}

#[test]
fn a_token_is_good_once_and_until_it_ends() {
    let mut bench = Bench::new();
    let join = |bench: &Bench, token: &str, node: &str, now: u64| {
        let agent = format!("192.0.2.{}:7710", node.len() + 100).parse().unwrap();
        bench.cluster.node_join(token, name(node), agent, None, now).map(|(_, change)| change)
    };
    refused(join(&bench, "aa", "new", NOW).map(drop), Code::Denied, "not one of this cluster");
    bench.plan(bench.cluster.token_create("aa".to_owned(), 60, NOW)).unwrap();
    refused(join(&bench, "aa", "new", NOW + 60).map(drop), Code::Denied, "has expired");
    bench.plan(join(&bench, "aa", "new", NOW + 59)).unwrap();
    let again = join(&bench, "aa", "newer", NOW + 59).map(drop);
    refused(again, Code::Denied, "was used already, by node new");
    // A used token that has ended is forgotten when the next is made.
    bench.plan(bench.cluster.token_create("bb".to_owned(), 60, NOW + 61)).unwrap();
    assert_eq!(bench.cluster.tokens.len(), 1);
    refused(join(&bench, "bb", "node-1", NOW + 61).map(drop), Code::Exists, "node node-1 exists");
    let forever = bench.cluster.token_create("cc".to_owned(), 0, NOW).map(drop);
    refused(forever, Code::Invalid, "a token lives");
}

#[test]
fn a_pool_is_one_device_of_one_node() {
    let mut bench = Bench::new();
    let request = |pool: &str, device: &str, size| PoolCreate {
        name: name(pool),
        node: name("node-1"),
        devices: vec![device.to_owned()],
        size,
        durability: Durability::Flush,
        class: PoolClass::Ordinary,
        overwrite: false,
    };
    let create = |bench: &Bench, pool: &str, device: &str, size| {
        bench.cluster.pool_create(request(pool, device, size), NOW).map(drop)
    };
    refused(create(&bench, "more", "/srv/pool-a", None), Code::InUse, "is pool pool-a");
    refused(create(&bench, "more", "pool", None), Code::Invalid, "is no absolute path");
    refused(create(&bench, "more", "/srv/x", Some(4096)), Code::Invalid, "is not possible");
    refused(create(&bench, "pool-a", "/srv/x", None), Code::Exists, "pool pool-a exists");
    bench.plan(bench.cluster.pool_create(request("more", "/srv/x", None), NOW)).unwrap();
    let volume = bench.volume("data-1", "more");
    refused(volume, Code::State, "pool more is not made yet");
    // A device that its node refused is free for the next try.
    let act = bench.cluster.due(NodeId(1)).remove(0);
    bench.apply(bench.cluster.settle(&act, &Err(Refusal::new(Code::InUse, "mounted"))));
    assert!(!bench.cluster.pools.contains_key(&name("more")));
    let unnamed = VolumeCreate { name: name("a"), pool: None, size: Some(GIB), image: None };
    let volume = bench.cluster.volume_create(&unnamed, &bench.observed, NOW).map(drop);
    refused(volume, Code::Invalid, "there are 2 pools; say which");
}

#[test]
fn records_at_the_wrong_key_or_of_nonsense_are_named() {
    let bench = Bench::new();
    let record = Record::Vpc(bench.cluster.vpcs[&name("blue")].clone());
    let err = Record::parse("vpc/red", &record.emit()).unwrap_err();
    assert_eq!(err.to_string(), "the record at vpc/red belongs at vpc/blue");
    let err = Record::parse("vpc/red", b"{}").unwrap_err();
    assert!(matches!(err, RecordError::Json { .. }), "{err}");
}
