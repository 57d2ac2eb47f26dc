// SPDX-License-Identifier: Apache-2.0
//! Snapshots, limits, disks and what is measured, from an operator to a node and back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use plinth_api::*;
use plinth_ids::DiskId;
use plinth_registry::{MemoryRegistry, Registry};
use std::sync::Arc;
use support::{Lab, Running, name, vm};

async fn lab() -> (Lab, Running, Arc<MemoryRegistry>) {
    let lab = Lab::new();
    let registry = Arc::new(MemoryRegistry::new());
    let running = lab.start(Arc::clone(&registry) as Arc<dyn Registry>).await;
    running.until_alive().await;
    running.pool().await.unwrap();
    running.volume("data-1").await.unwrap();
    (lab, running, registry)
}

async fn snapshot(running: &Running, snapshot: &str) -> Result<Answer, Refusal> {
    let (volume, name) = (name("data-1"), name(snapshot));
    running.ask(Request::SnapshotCreate { volume, name }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_kept_rolled_back_cloned_and_deleted() {
    let (lab, running, _) = lab().await;
    let Answer::Snapshot(view) = snapshot(&running, "monday").await.unwrap() else { panic!() };
    assert_eq!((view.state, view.size), (ResourceState::Ready, 1 << 20));
    let grow = Request::VolumeGrow { name: name("data-1"), size: 2 << 20 };
    running.ask(grow).await.unwrap();
    let Answer::Snapshots(views) =
        running.ask(Request::SnapshotList(name("data-1"))).await.unwrap()
    else {
        panic!("no snapshots")
    };
    assert_eq!((views.len(), views[0].unique), (1, Some(4096)));
    let clone = VolumeClone {
        name: name("copy"),
        source: name("data-1"),
        snapshot: Some(name("monday")),
        size: None,
    };
    let Answer::Volume(copy) = running.ask(Request::VolumeClone(clone)).await.unwrap() else {
        panic!("no volume")
    };
    assert_eq!((copy.size, copy.state), (1 << 20, ResourceState::Ready));
    let rollback = Request::SnapshotRollback { volume: name("data-1"), name: name("monday") };
    let Answer::Volume(view) = running.ask(rollback).await.unwrap() else { panic!("no volume") };
    assert_eq!(view.size, 1 << 20, "the volume is what it was, its size too");
    assert_eq!(view.usage.map(|usage| usage.unique), Some(4096));
    let delete = Request::VolumeDelete { name: name("data-1"), wipe: true };
    let refusal = running.ask(delete.clone()).await.unwrap_err();
    assert_eq!(refusal.code(), Some(Code::InUse), "{refusal}");
    let gone = Request::SnapshotDelete { volume: name("data-1"), name: name("monday") };
    assert_eq!(running.ask(gone).await, Ok(Answer::Done));
    assert_eq!(running.ask(delete).await, Ok(Answer::Done));
    let deeds = lab.agent.state().deeds.clone();
    assert_eq!(deeds, ["rollback volume-1 to monday", "wipe volume-1"]);
    assert!(lab.agent.state().snapshots.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diff_is_put_together_and_a_delta_brings_its_snapshot() {
    let (_lab, running, _) = lab().await;
    snapshot(&running, "monday").await.unwrap();
    let diff = |to: &str| Request::VolumeDiff { volume: name("data-1"), from: None, to: name(to) };
    let Answer::Diff(ranges) = running.ask(diff("monday")).await.unwrap() else { panic!() };
    let expected = [(0, false), (8192, true)].map(|(offset, is_zero)| DiffRange {
        offset,
        length: 4096,
        is_zero,
    });
    assert_eq!(ranges, expected);
    let refusal = running.ask(diff("sunday")).await.unwrap_err();
    assert_eq!((refusal.code(), refusal.field.as_deref()), (Some(Code::NotFound), Some("--to")));
    let import =
        |source: &str| Request::DeltaImport { volume: name("data-1"), source: source.to_owned() };
    let refusal = running.ask(import("delta")).await.unwrap_err();
    assert!(refusal.text.contains("no absolute path"), "{refusal}");
    let Answer::Snapshot(view) = running.ask(import("/srv/delta")).await.unwrap() else {
        panic!("no snapshot")
    };
    assert_eq!((view.name, view.size), (name("tuesday"), 2 << 20));
    let cluster = running.service.cluster().await;
    assert_eq!(cluster.volumes[&name("data-1")].size, 2 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_reach_a_running_vm_and_its_latencies_come_back() {
    let (lab, running, _) = lab().await;
    running.network().await.unwrap();
    let stats = || Request::VolumeStats(Some(name("data-1")));
    let refusal = running.ask(stats()).await.unwrap_err();
    assert!(refusal.text.contains("is not served to a VM"), "{refusal}");
    let disk = DiskRequest { volume: name("data-1"), is_read_only: false };
    let request = VmCreate {
        image: None,
        kernel: Some("/boot/vmlinuz".to_owned()),
        volumes: vec![disk],
        ..vm("web-1")
    };
    running.ask(Request::VmCreate(request)).await.unwrap();
    let limits = VolumeLimits { iops: 777, iops_burst: 0, bytes_per_second: 0, bytes_burst: 0 };
    let set = Request::LimitSet { volume: name("data-1"), limits: Some(limits) };
    let Answer::Limits(view) = running.ask(set).await.unwrap() else { panic!("no limits") };
    assert_eq!((view.limits, view.is_chosen), (Some(limits), true));
    let throttled = |answer: Answer| match answer {
        Answer::VolumeStats(views) => views[0].metrics.throttled,
        other => panic!("no latencies: {other:?}"),
    };
    let arrived = async {
        while throttled(running.ask(stats()).await.unwrap()) != 777 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(support::LIMIT, arrived).await.expect("the limits never reach the node");
    let clear = Request::LimitSet { volume: name("data-1"), limits: None };
    let Answer::Limits(view) = running.ask(clear).await.unwrap() else { panic!("no limits") };
    assert_eq!((view.limits.map(|one| one.iops), view.is_chosen), (Some(1800), false));
    let slow = Request::VolumeSlow { volume: None, limit: 3 };
    let Answer::SlowRequests(views) = running.ask(slow).await.unwrap() else { panic!() };
    assert_eq!((views.len(), &views[0].volume), (3, &name("data-1")));
    drop(lab);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_goes_on_after_a_restart_with_one_snapshot() {
    let (lab, running, registry) = lab().await;
    let set = Request::ScheduleSet { volume: name("data-1"), interval_seconds: 3600, keep: 2 };
    let Answer::Schedule(view) = running.ask(set).await.unwrap() else { panic!("no schedule") };
    assert_eq!((view.keep, view.snapshots), (2, 0));
    drop(running);
    // As if the service had been away for a hundred hours.
    let key = "volume/data-1";
    let entry = registry.get(key).unwrap().unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
    let slot = record["volume"]["schedule"]["last_slot"].as_u64().unwrap();
    record["volume"]["schedule"]["last_slot"] = (slot - 100).into();
    let change =
        plinth_registry::Transaction::default().put(key, serde_json::to_vec(&record).unwrap());
    registry.commit(change).unwrap();
    let running = lab.start(registry).await;
    running
        .until("the snapshot is taken", |cluster| {
            cluster.snapshots.values().any(|one| one.state == ResourceState::Ready)
        })
        .await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(lab.agent.state().snapshots.len(), 1, "one for all that was missed");
    let Answer::Snapshots(views) =
        running.ask(Request::SnapshotList(name("data-1"))).await.unwrap()
    else {
        panic!("no snapshots")
    };
    assert!(views[0].is_scheduled && views[0].name.as_str().starts_with("auto-"), "{views:?}");
    // It is no obstacle to deleting the volume.
    let delete = Request::VolumeDelete { name: name("data-1"), wipe: false };
    assert_eq!(running.ask(delete).await, Ok(Answer::Done));
    assert!(lab.agent.state().snapshots.is_empty() && lab.agent.state().volumes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_comes_and_goes() {
    let (lab, running, _) = lab().await;
    let add = DiskAdd {
        pool: name("trial"),
        device: "/dev/vdb".to_owned(),
        size: None,
        overwrite: false,
    };
    let Answer::Disk(view) = running.ask(Request::DiskAdd(add)).await.unwrap() else { panic!() };
    assert_eq!((view.disk, view.resource), (DiskId(2), ResourceState::Ready));
    let drain = Request::DiskDrain { pool: name("trial"), disk: DiskId(1), cancel: false };
    running.ask(drain).await.unwrap();
    let remove = || Request::DiskRemove { pool: name("trial"), disk: DiskId(1) };
    let refusal = running.ask(remove()).await.unwrap_err();
    assert!(refusal.text.contains("the node has not said"), "{refusal}");
    let status = |number| DiskStatus {
        id: DiskId(number),
        device: "/dev/vdb".to_owned(),
        state: if number == 1 { DiskState::Draining } else { DiskState::In },
        reason: None,
        capacity: 1 << 30,
        used: 0,
        level: Level::Ok,
        objects: 0,
        bad_blocks: 0,
        counters: DiskCounters::default(),
    };
    lab.agent.state().disks = vec![status(1), status(2)];
    let removed = async {
        while let Err(refusal) = running.ask(remove()).await {
            assert!(refusal.text.contains("the node has not said"), "{refusal}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(support::LIMIT, removed).await.expect("it is never removed");
    let Answer::Disks(views) = running.ask(Request::DiskList(None)).await.unwrap() else {
        panic!("no disks")
    };
    assert_eq!(views.iter().map(|view| view.disk).collect::<Vec<_>>(), [DiskId(2)]);
    let show = Request::DiskShow { pool: name("trial"), disk: DiskId(2) };
    let Answer::Disk(view) = running.ask(show).await.unwrap() else { panic!("no disk") };
    assert_eq!(view.bad_blocks.len(), 1);
    let start =
        |rate| Request::ScrubStart { pool: name("trial"), disk: None, kind: ScrubKind::Deep, rate };
    assert_eq!(running.ask(start(None)).await, Ok(Answer::Scrubs(Vec::new())));
    let refusal = running.ask(start(Some(1))).await.unwrap_err();
    assert_eq!(refusal.field.as_deref(), Some("--rate"));
    assert_eq!(lab.agent.state().deeds, ["DiskAdd", "DiskRemove", "ScrubStart"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cores_of_a_store_reach_its_node() {
    let (lab, running, _) = lab().await;
    let choose =
        |cores: &[u32]| Request::NodeStoreCores { node: name("node-1"), cores: cores.to_vec() };
    let refusal = running.ask(choose(&[0, 4])).await.unwrap_err();
    assert_eq!(refusal.code(), Some(Code::Invalid), "the node has four: {refusal}");
    let Answer::Node(view) = running.ask(choose(&[3, 0])).await.unwrap() else { panic!("no node") };
    assert_eq!(view.store_cores, [3, 0]);
    let arrived = async {
        let spec = || lab.agent.state().spec.clone();
        while spec().is_none_or(|spec| spec.store_cores != [3, 0]) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(support::LIMIT, arrived).await.expect("they never reach the node");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rescue_reaches_the_node_and_stops_promises_until_it_is_taken_back() {
    let (lab, running, _) = lab().await;
    let set = |pool: &str, access| Request::PoolAccess { pool: name(pool), access };
    let refusal = running.ask(set("slow", PoolAccess::Rescue)).await.unwrap_err();
    assert_eq!(refusal.code(), Some(Code::NotFound), "{refusal}");
    let access_there = || lab.agent.state().spec.as_ref().map(|spec| spec.pools[0].access);
    for access in [PoolAccess::Rescue, PoolAccess::Whole] {
        let Answer::Pool(view) = running.ask(set("trial", access)).await.unwrap() else {
            panic!("no pool")
        };
        assert_eq!(view.access, access);
        let arrived = async {
            while access_there() != Some(access) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(support::LIMIT, arrived).await.expect("the node never hears of it");
        let created = running.volume(if access == PoolAccess::Rescue { "no" } else { "yes" }).await;
        assert_eq!(created.is_err(), access == PoolAccess::Rescue, "{created:?}");
    }
}
