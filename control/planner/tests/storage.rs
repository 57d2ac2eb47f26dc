// SPDX-License-Identifier: Apache-2.0
//! Stories of snapshots, schedules, limits and disks.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use plinth_api::*;
use plinth_ids::{DiskId, NodeId, PoolId, SnapshotId, VolumeId};
use plinth_planner::*;
use support::{Bench, GIB, NOW, disk, name, vm};

fn refused<T>(result: Result<T, Refusal>, code: Code, words: &str) {
    let Err(refusal) = result else { panic!("it was taken; expected: {words}") };
    assert_eq!(refusal.code(), Some(code), "{refusal}");
    assert!(refusal.text.contains(words), "{refusal}");
    assert!(refusal.remedy.is_some(), "{refusal} has no remedy");
}

/// A bench with volume `data-1` in pool `pool-a`.
fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.volume("data-1", "pool-a").unwrap();
    bench.work_off();
    bench
}

fn snapshot(bench: &mut Bench, snapshot: &str) -> Result<(), Refusal> {
    let change =
        bench.cluster.snapshot_create(&name("data-1"), &name(snapshot), &bench.observed, NOW);
    bench.plan(change)?;
    bench.work_off();
    Ok(())
}

fn names(bench: &Bench) -> Vec<String> {
    bench.cluster.snapshots_of(&name("data-1")).map(|one| one.name.to_string()).collect()
}

/// A node's pool as it is seen, with its first disk.
fn pool_is(bench: &mut Bench, level: Level, disks: Vec<DiskStatus>) {
    bench.see(NodeId(1), |status| {
        status.pools = vec![PoolStatus {
            id: PoolId(1),
            fault: None,
            capacity: 8 * GIB,
            used: 7 * GIB,
            checksum_errors: 0,
            level,
            disks,
        }];
    });
}

fn disk_is(number: u32, state: DiskState, used: u64, objects: u64) -> DiskStatus {
    DiskStatus {
        id: DiskId(number),
        device: "/srv/disk".to_owned(),
        state,
        reason: None,
        capacity: 10 * GIB,
        used,
        level: Level::Ok,
        objects,
        bad_blocks: 0,
        counters: DiskCounters::default(),
    }
}

#[test]
fn a_volume_goes_after_its_snapshots_and_not_with_those_that_someone_made() {
    let mut bench = bench();
    snapshot(&mut bench, "monday").unwrap();
    refused(snapshot(&mut bench, "monday"), Code::Exists, "has a snapshot monday");
    let data = name("data-1");
    refused(bench.cluster.volume_delete(&data, false), Code::InUse, "has 1 snapshots");
    bench.plan(bench.cluster.snapshot_delete(&data, &name("monday"))).unwrap();
    bench.work_off();
    assert!(names(&bench).is_empty());
    bench.plan(bench.cluster.volume_delete(&data, true)).unwrap();
    let due = bench.cluster.due(NodeId(1));
    assert!(matches!(due[0].command, Command::VolumeDelete { wipe: true, .. }), "{due:?}");
    bench.work_off();
    assert!(bench.cluster.volumes.is_empty());
    refused(snapshot(&mut bench, "tuesday"), Code::NotFound, "there is no volume data-1");
}

#[test]
fn a_snapshot_that_its_node_refuses_is_forgotten() {
    let mut bench = bench();
    let plan =
        bench.cluster.snapshot_create(&name("data-1"), &name("monday"), &bench.observed, NOW);
    bench.plan(plan).unwrap();
    let delete = bench.cluster.snapshot_delete(&name("data-1"), &name("monday"));
    refused(delete, Code::State, "is being made");
    let act = bench.cluster.due(NodeId(1)).remove(0);
    bench.apply(bench.cluster.settle(&act, &Err(Refusal::new(Code::NoRoom, "full"))));
    assert!(names(&bench).is_empty());
    // A number is not given out again.
    snapshot(&mut bench, "tuesday").unwrap();
    let tuesday = &bench.cluster.snapshots[&(name("data-1"), name("tuesday"))];
    assert_eq!(tuesday.id, SnapshotId(2));
}

#[test]
fn a_clone_of_a_snapshot_has_its_size_and_holds_it_while_it_is_made() {
    let mut bench = bench();
    snapshot(&mut bench, "monday").unwrap();
    let data = name("data-1");
    bench.plan(bench.cluster.volume_grow(&data, 3 * GIB, &bench.observed)).unwrap();
    bench.work_off();
    let request = |snapshot: Option<&str>, size| VolumeClone {
        name: name("copy"),
        source: name("data-1"),
        snapshot: snapshot.map(name),
        size,
    };
    let clone = |bench: &Bench, request: VolumeClone| {
        bench.cluster.volume_clone(&request, &bench.observed, NOW)
    };
    refused(clone(&bench, request(Some("sunday"), None)), Code::NotFound, "no snapshot sunday");
    refused(clone(&bench, request(None, Some(GIB))), Code::Invalid, "smaller than the source");
    bench.plan(clone(&bench, request(Some("monday"), None))).unwrap();
    assert_eq!(bench.cluster.volumes[&name("copy")].size, GIB);
    refused(bench.cluster.volume_delete(&data, false), Code::InUse, "snapshots");
    let delete = bench.cluster.snapshot_delete(&data, &name("monday"));
    refused(delete, Code::InUse, "volume copy is being cloned from it");
    let due = bench.cluster.due(NodeId(1));
    let Command::VolumeClone { source, snapshot, .. } = due[0].command else { panic!("{due:?}") };
    assert_eq!((source, snapshot), (VolumeId(1), Some(SnapshotId(1))));
    bench.work_off();
    bench.plan(bench.cluster.snapshot_delete(&data, &name("monday"))).unwrap();
}

#[test]
fn what_clones_stand_on_is_kept_and_not_asked_for_for_ever() {
    let mut bench = bench();
    snapshot(&mut bench, "monday").unwrap();
    let data = name("data-1");
    let in_use = Err(Refusal::new(Code::InUse, "copy is a clone of it"));
    bench.plan(bench.cluster.snapshot_delete(&data, &name("monday"))).unwrap();
    let act = bench.cluster.due(NodeId(1)).remove(0);
    bench.apply(bench.cluster.settle(&act, &in_use));
    assert_eq!(names(&bench), ["monday"]);
    assert!(bench.cluster.due(NodeId(1)).is_empty());
    bench.plan(bench.cluster.snapshot_delete(&data, &name("monday"))).unwrap();
    bench.work_off();
    bench.plan(bench.cluster.volume_delete(&data, true)).unwrap();
    let act = bench.cluster.due(NodeId(1)).remove(0);
    bench.apply(bench.cluster.settle(&act, &in_use));
    let volume = &bench.cluster.volumes[&data];
    assert_eq!((volume.state, volume.wipe), (State::Ready, false));
    bench.image("small");
    bench.plan(bench.cluster.image_delete(&name("small"))).unwrap();
    let act = bench.cluster.due(NodeId(1)).remove(0);
    bench.apply(bench.cluster.settle(&act, &in_use));
    assert_eq!(bench.cluster.images[&name("small")].state, State::Ready);
}

#[test]
fn a_system_disk_is_a_clone_of_its_images_snapshot() {
    let mut bench = Bench::new();
    bench.image("small");
    bench.create(&VmCreate { image: Some(name("small")), ..vm("web-1") }).unwrap();
    let node = bench.cluster.vms[&name("web-1")].node;
    let due = bench.cluster.due(node);
    assert!(matches!(due[0].command, Command::VolumeClone { snapshot: Some(_), .. }), "{due:?}");
    // An image whose node could not make the snapshot is cloned as it is.
    let mut bench = Bench::new();
    let request = ImageImport {
        name: name("old"),
        pools: vec![name("pool-a")],
        format: DiskFormat::Raw,
        source: ImportSource::Stream { length: 1 },
    };
    bench.plan(bench.cluster.image_import(&request, NOW)).unwrap();
    bench.apply(bench.cluster.image_imported(&name("old"), GIB, &[false]));
    bench.create(&VmCreate { image: Some(name("old")), ..vm("web-1") }).unwrap();
    let due = bench.cluster.due(NodeId(1));
    assert!(matches!(due[0].command, Command::VolumeClone { snapshot: None, .. }), "{due:?}");
}

#[test]
fn a_rollback_waits_for_nobody_and_is_refused_while_a_vm_runs() {
    let mut bench = bench();
    snapshot(&mut bench, "monday").unwrap();
    let rollback = |bench: &Bench| {
        bench.cluster.snapshot_rollback(&name("data-1"), &name("monday"), &bench.observed)
    };
    assert!(matches!(rollback(&bench), Ok(Command::SnapshotRollback { .. })));
    let request =
        VmCreate { image: None, volumes: vec![disk("data-1")], start: true, ..vm("web-1") };
    bench.create(&request).unwrap();
    bench.see(NodeId(1), |_| {});
    refused(rollback(&bench), Code::InUse, "disk of VM web-1, which is not off");
    bench.plan(bench.cluster.vm_stop(&name("web-1"), 0)).unwrap();
    refused(rollback(&bench), Code::InUse, "which is not off");
    bench.see(NodeId(1), |_| {});
    assert!(matches!(rollback(&bench), Ok(Command::SnapshotRollback { .. })));
}

const HOUR: u64 = 3600;

fn tick(bench: &mut Bench, now: u64) {
    let change = bench.cluster.schedules_due(now, &bench.observed);
    bench.apply(change);
}

#[test]
fn a_schedule_takes_a_snapshot_a_slot_and_leaves_the_newest() {
    let mut bench = bench();
    snapshot(&mut bench, "by-hand").unwrap();
    let data = name("data-1");
    refused(bench.cluster.schedule_set(&data, 59, 2, NOW), Code::Invalid, "no interval");
    refused(bench.cluster.schedule_set(&data, HOUR, 0, NOW), Code::Invalid, "cannot be kept");
    bench.plan(bench.cluster.schedule_set(&data, HOUR, 2, NOW)).unwrap();
    tick(&mut bench, NOW);
    assert_eq!(names(&bench), ["by-hand"], "the slot that it was set in needs none");
    // 1970-01-12t13:46:40 is NOW; its next slot is 14:00.
    let slot = NOW.next_multiple_of(HOUR);
    assert_eq!(bench.cluster.schedule_next(NOW), Some(slot));
    for step in 0..4 {
        for _ in 0..3 {
            tick(&mut bench, slot + step * HOUR);
            bench.work_off();
        }
    }
    let left = ["auto-1970-01-12t16-00z", "auto-1970-01-12t17-00z", "by-hand"];
    assert_eq!(names(&bench), left);
    // Ended, it deletes nothing any more.
    bench.plan(bench.cluster.schedule_clear(&data)).unwrap();
    tick(&mut bench, slot + 99 * HOUR);
    assert_eq!(names(&bench), left);
}

#[test]
fn after_a_long_night_there_is_one_snapshot_and_not_a_storm() {
    let mut bench = bench();
    bench.plan(bench.cluster.schedule_set(&name("data-1"), HOUR, 9, NOW)).unwrap();
    tick(&mut bench, NOW + 1000 * HOUR);
    assert_eq!(names(&bench).len(), 1);
    // While it is on its way, no further one comes.
    tick(&mut bench, NOW + 1002 * HOUR);
    assert_eq!(names(&bench).len(), 1);
    bench.work_off();
    tick(&mut bench, NOW + 1002 * HOUR);
    assert_eq!(names(&bench).len(), 2);
    bench.work_off();
    // A clock that goes back takes nothing, and goes on from there.
    tick(&mut bench, NOW + 10 * HOUR);
    assert_eq!(names(&bench).len(), 2);
    tick(&mut bench, NOW + 11 * HOUR);
    assert_eq!(names(&bench).len(), 3);
}

#[test]
fn a_scheduled_snapshot_that_is_refused_says_why() {
    let mut bench = bench();
    let data = name("data-1");
    bench.plan(bench.cluster.schedule_set(&data, HOUR, 2, NOW)).unwrap();
    tick(&mut bench, NOW + HOUR);
    let act = bench.cluster.due(NodeId(1)).remove(0);
    bench.apply(bench.cluster.settle(&act, &Err(Refusal::new(Code::NoRoom, "too many"))));
    let view = bench.cluster.schedule_view(&data, NOW + HOUR).unwrap();
    assert_eq!((view.fault.as_deref(), view.snapshots), (Some("too many"), 0));
    tick(&mut bench, NOW + HOUR);
    assert!(names(&bench).is_empty(), "the same slot is not tried again");
    pool_is(&mut bench, Level::Full, Vec::new());
    tick(&mut bench, NOW + 2 * HOUR);
    let view = bench.cluster.schedule_view(&data, NOW + 2 * HOUR).unwrap();
    assert!(view.fault.unwrap().contains("pool pool-a is full"));
    pool_is(&mut bench, Level::Ok, Vec::new());
    tick(&mut bench, NOW + 3 * HOUR);
    bench.work_off();
    let view = bench.cluster.schedule_view(&data, NOW + 3 * HOUR).unwrap();
    assert_eq!((view.fault, view.snapshots), (None, 1));
}

#[test]
fn a_volumes_scheduled_snapshots_go_with_it() {
    let mut bench = bench();
    bench.plan(bench.cluster.schedule_set(&name("data-1"), HOUR, 2, NOW)).unwrap();
    tick(&mut bench, NOW + HOUR);
    bench.work_off();
    bench.plan(bench.cluster.volume_delete(&name("data-1"), false)).unwrap();
    let first = &bench.cluster.due(NodeId(1))[0].command;
    assert!(matches!(first, Command::SnapshotDelete { .. }), "{first:?}");
    bench.work_off();
    assert!(bench.cluster.volumes.is_empty() && bench.cluster.snapshots.is_empty());
}

#[test]
fn the_ladder_stops_promises_first_and_snapshots_last() {
    let mut bench = bench();
    pool_is(&mut bench, Level::Warn, Vec::new());
    bench.volume("data-2", "pool-a").unwrap();
    bench.work_off();
    pool_is(&mut bench, Level::Nearfull, Vec::new());
    let words = "pool pool-a is nearly full: 7G of 8G are used";
    refused(bench.volume("data-3", "pool-a"), Code::NoRoom, words);
    let grow = bench.cluster.volume_grow(&name("data-1"), 2 * GIB, &bench.observed);
    refused(grow, Code::NoRoom, words);
    let clone =
        VolumeClone { name: name("copy"), source: name("data-1"), snapshot: None, size: None };
    refused(bench.cluster.volume_clone(&clone, &bench.observed, NOW), Code::NoRoom, words);
    snapshot(&mut bench, "monday").unwrap();
    pool_is(&mut bench, Level::Full, Vec::new());
    refused(snapshot(&mut bench, "tuesday"), Code::NoRoom, "pool pool-a is full");
    // What gives room back is never refused.
    bench.plan(bench.cluster.snapshot_delete(&name("data-1"), &name("monday"))).unwrap();
    bench.plan(bench.cluster.volume_delete(&name("data-2"), false)).unwrap();
}

#[test]
fn a_pool_that_is_open_for_rescue_is_promised_nothing_until_it_is_whole_again() {
    let mut bench = bench();
    let access = |bench: &Bench| bench.cluster.node_spec(NodeId(1)).unwrap().pools[0].access;
    refused(
        bench.cluster.pool_access(&name("pool-z"), PoolAccess::Rescue),
        Code::NotFound,
        "there is no pool pool-z",
    );
    assert_eq!(access(&bench), PoolAccess::Whole);
    bench.plan(bench.cluster.pool_access(&name("pool-a"), PoolAccess::Rescue)).unwrap();
    assert_eq!(access(&bench), PoolAccess::Rescue);
    let view = bench.cluster.pool_view(&bench.cluster.pools[&name("pool-a")], &bench.observed);
    assert_eq!(view.access, PoolAccess::Rescue);
    let words = "pool pool-a is open for rescue";
    refused(bench.volume("data-2", "pool-a"), Code::State, words);
    refused(snapshot(&mut bench, "monday"), Code::State, words);
    let grow = bench.cluster.volume_grow(&name("data-1"), 2 * GIB, &bench.observed);
    refused(grow, Code::State, words);
    bench.plan(bench.cluster.pool_access(&name("pool-a"), PoolAccess::Whole)).unwrap();
    assert_eq!(access(&bench), PoolAccess::Whole);
    snapshot(&mut bench, "monday").unwrap();
}

#[test]
fn limits_come_from_the_class_until_an_operator_chooses() {
    let mut bench = Bench::new();
    let request = PoolCreate {
        name: name("fast"),
        node: name("node-1"),
        devices: vec!["/dev/a".to_owned(), "/dev/b".to_owned()],
        size: None,
        durability: Durability::Flush,
        class: PoolClass::Performance,
        overwrite: false,
    };
    bench.plan(bench.cluster.pool_create(request, NOW)).unwrap();
    bench.work_off();
    bench.volume("data-1", "fast").unwrap();
    bench.volume("slow-1", "pool-a").unwrap();
    bench.work_off();
    let limits = |bench: &Bench, volume: &str| {
        bench.cluster.limits_of(&bench.cluster.volumes[&name(volume)])
    };
    // 1.07 GB.
    assert_eq!(limits(&bench, "data-1").map(|limits| limits.iops), Some(1853));
    assert_eq!(limits(&bench, "slow-1"), None);
    let chosen = VolumeLimits { iops: 100, iops_burst: 0, bytes_per_second: 0, bytes_burst: 0 };
    bench.plan(bench.cluster.limit_set(&name("data-1"), Some(chosen))).unwrap();
    let request =
        VmCreate { image: None, volumes: vec![disk("data-1")], start: true, ..vm("web-1") };
    bench.create(&request).unwrap();
    let spec = bench.cluster.node_spec(NodeId(1)).unwrap();
    assert_eq!(spec.vms[0].disks[0].limits, Some(chosen));
    bench.plan(bench.cluster.limit_set(&name("data-1"), None)).unwrap();
    let spec = bench.cluster.node_spec(NodeId(1)).unwrap();
    assert_eq!(spec.vms[0].disks[0].limits.unwrap().iops, 1853);
    let burst = VolumeLimits { iops: 0, iops_burst: 5, bytes_per_second: 0, bytes_burst: 0 };
    let set = bench.cluster.limit_set(&name("data-1"), Some(burst));
    refused(set, Code::Invalid, "a burst needs a rate");
    let crawl = VolumeLimits { bytes_per_second: 100, ..chosen };
    let set = bench.cluster.limit_set(&name("data-1"), Some(crawl));
    refused(set, Code::Invalid, "move nothing");
}

fn add(bench: &mut Bench, device: &str) -> Result<(), Refusal> {
    let request =
        DiskAdd { pool: name("pool-a"), device: device.to_owned(), size: None, overwrite: false };
    bench.plan(bench.cluster.disk_add(&request))
}

fn disk_numbers(bench: &Bench) -> Vec<u32> {
    bench.cluster.pools[&name("pool-a")].disks.iter().map(|disk| disk.id.0).collect()
}

#[test]
fn a_disk_is_added_when_its_node_made_it_and_has_a_number_of_its_own() {
    let mut bench = Bench::new();
    refused(add(&mut bench, "/srv/pool-a"), Code::InUse, "is pool pool-a");
    refused(add(&mut bench, "disk"), Code::Invalid, "is no absolute path");
    add(&mut bench, "/dev/b").unwrap();
    let in_spec = |bench: &Bench| bench.cluster.node_spec(NodeId(1)).unwrap().pools[0].disks.len();
    assert_eq!(in_spec(&bench), 1, "it is not in the spec before it is made");
    let act = bench.cluster.due(NodeId(1)).remove(0);
    bench.apply(bench.cluster.settle(&act, &Err(Refusal::new(Code::Invalid, "no such disk"))));
    assert_eq!(disk_numbers(&bench), [1]);
    add(&mut bench, "/dev/b").unwrap();
    bench.work_off();
    assert_eq!((disk_numbers(&bench), in_spec(&bench)), (vec![1, 3], 2));
}

#[test]
fn a_disk_leaves_when_it_is_empty() {
    let mut bench = Bench::new();
    let pool = name("pool-a");
    let (one, two) = (DiskId(1), DiskId(2));
    let drain = |bench: &Bench, disk| bench.cluster.disk_drain(&pool, disk, false, &bench.observed);
    let remove = |bench: &Bench, disk| bench.cluster.disk_remove(&pool, disk, &bench.observed);
    refused(drain(&bench, DiskId(9)), Code::NotFound, "pool pool-a has no disk-9");
    refused(drain(&bench, one), Code::NoRoom, "no other disk of pool pool-a");
    refused(remove(&bench, one), Code::State, "is the only disk");
    add(&mut bench, "/dev/b").unwrap();
    bench.work_off();
    let seen = |first, used, objects| {
        vec![disk_is(1, first, used, objects), disk_is(2, DiskState::In, 4 * GIB, 9)]
    };
    pool_is(&mut bench, Level::Ok, seen(DiskState::In, 5 * GIB, 9));
    refused(drain(&bench, one), Code::NoRoom, "disk-1 of pool pool-a has 5G, and the others take");
    pool_is(&mut bench, Level::Ok, seen(DiskState::In, 4 * GIB, 9));
    refused(remove(&bench, one), Code::State, "is in service");
    bench.plan(drain(&bench, one)).unwrap();
    assert!(bench.cluster.node_spec(NodeId(1)).unwrap().pools[0].disks[0].is_draining);
    refused(drain(&bench, two), Code::NoRoom, "no other disk");
    pool_is(&mut bench, Level::Ok, seen(DiskState::Draining, GIB, 3));
    refused(remove(&bench, one), Code::State, "still has 3 objects");
    pool_is(&mut bench, Level::Ok, seen(DiskState::Draining, 0, 0));
    bench.plan(remove(&bench, one)).unwrap();
    // The node may find that it is not so.
    let act = bench.cluster.due(NodeId(1)).remove(0);
    bench.apply(bench.cluster.settle(&act, &Err(Refusal::new(Code::InUse, "not empty"))));
    assert_eq!(disk_numbers(&bench), [1, 2]);
    bench.plan(remove(&bench, one)).unwrap();
    bench.work_off();
    assert_eq!(disk_numbers(&bench), [2]);
}

#[test]
fn a_failed_disk_is_a_warning_and_may_be_removed() {
    let mut bench = Bench::new();
    add(&mut bench, "/dev/b").unwrap();
    bench.work_off();
    let failed = DiskStatus {
        reason: Some("write: input/output error".to_owned()),
        ..disk_is(2, DiskState::Failed, GIB, 7)
    };
    let worn = DiskStatus { bad_blocks: 3, ..disk_is(1, DiskState::In, GIB, 7) };
    pool_is(&mut bench, Level::Ok, vec![worn, failed]);
    let warnings = bench.cluster.cluster_view(&bench.observed, "0").warnings;
    let text = warnings.join("\n");
    assert!(text.contains("disk-2 of pool pool-a failed: write: input/output error"), "{text}");
    assert!(text.contains("`plinth disk show pool-a 1` names them"), "{text}");
    bench.plan(bench.cluster.disk_remove(&name("pool-a"), DiskId(2), &bench.observed)).unwrap();
    bench.work_off();
    assert_eq!(disk_numbers(&bench), [1]);
}

#[test]
fn records_of_the_first_release_are_read() {
    let pool = r#"{"pool":{"id":1,"name":"trial","node":1,"device":"/srv/p","size":4096,"durability":"flush","overwrite":true,"state":"ready","created_at":5}}"#;
    let Record::Pool(pool) = Record::parse("pool/trial", pool.as_bytes()).unwrap() else {
        panic!("it was a pool")
    };
    assert_eq!((pool.next_disk, pool.access), (2, PoolAccess::Whole));
    assert_eq!((pool.disks[0].id, pool.disks[0].device.as_str()), (DiskId(1), "/srv/p"));
    assert_eq!((pool.disks[0].size, pool.disks[0].state), (Some(4096), State::Ready));
    let volume = r#"{"volume":{"id":1,"name":"data-1","pool":1,"size":4096,"served_size":4096,"image":null,"system_of":null,"state":"ready","created_at":5}}"#;
    assert!(Record::parse("volume/data-1", volume.as_bytes()).is_ok());
    let image = r#"{"image":{"id":1,"name":"small","state":"ready","size":1,"copies":[{"pool":1,"volume":2}],"created_at":5}}"#;
    assert!(Record::parse("image/small", image.as_bytes()).is_ok());
    let meta = r#"{"meta":{"name":"lab","next_node":1,"next_pool":1,"next_image":1,"next_volume":1,"next_vm":1,"next_port":1,"next_vni":1,"vcpus_per_cpu":4}}"#;
    let Record::Meta(meta) = Record::parse("meta", meta.as_bytes()).unwrap() else {
        panic!("it was the cluster")
    };
    assert_eq!(meta.next_snapshot, 1);
    assert_eq!(meta.next_group, 1);
    let vpc = r#"{"vpc":{"name":"blue","vni":1,"created_at":5}}"#;
    let Record::Vpc(vpc) = Record::parse("vpc/blue", vpc.as_bytes()).unwrap() else {
        panic!("it was a vpc")
    };
    assert_eq!((vpc.default_group, vpc.routes), (None, Vec::new()));
    let subnet = r#"{"subnet":{"name":"blue-a","vpc":1,"network":"10.0.0.0","prefix_length":24,"gateway":"10.0.0.1","created_at":5}}"#;
    assert!(Record::parse("subnet/blue-a", subnet.as_bytes()).is_ok());
    // A field that nobody knows is still an error.
    assert!(Record::parse("meta", br#"{"meta":{"extra":1}}"#).is_err());
}

#[test]
fn a_store_runs_on_cores_that_its_node_has_each_of_them_once() {
    let mut bench = bench();
    let choose = |bench: &Bench, node: &str, cores: &[u32]| {
        bench.cluster.node_store_cores(&name(node), cores.to_vec(), &bench.observed)
    };
    refused(choose(&bench, "node-9", &[0]), Code::NotFound, "there is no node node-9");
    bench.observed.nodes.remove(&NodeId(1));
    refused(choose(&bench, "node-1", &[0]), Code::Unreachable, "has not said yet");
    bench.see(NodeId(1), |status| status.facts.cpus = 4);
    refused(choose(&bench, "node-1", &[1, 4]), Code::Invalid, "node node-1 has no core 4");
    refused(choose(&bench, "node-1", &[1, 2, 1]), Code::Invalid, "core 1 is in the list twice");
    let many: Vec<u32> = (0..65).collect();
    refused(choose(&bench, "node-1", &many), Code::Invalid, "65 cores are too many");
    let cores = |bench: &Bench| bench.cluster.node_spec(NodeId(1)).unwrap().store_cores;
    assert!(cores(&bench).is_empty());
    bench.plan(choose(&bench, "node-1", &[3, 1])).unwrap();
    assert_eq!(cores(&bench), [3, 1]);
    assert!(choose(&bench, "node-1", &[3, 1]).unwrap().is_empty(), "nothing has changed");
    let view = bench.cluster.node_view(&bench.cluster.nodes[&name("node-1")], &bench.observed);
    assert_eq!(view.store_cores, [3, 1]);
    // Taken back without the node's help.
    bench.observed.nodes.remove(&NodeId(1));
    bench.plan(choose(&bench, "node-1", &[])).unwrap();
    assert!(cores(&bench).is_empty());
}
