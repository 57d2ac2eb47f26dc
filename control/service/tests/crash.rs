// SPDX-License-Identifier: Apache-2.0
//! The service dies at every commit in turn; the next one goes on, and node and records agree.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use plinth_api::*;
use plinth_ids::{SnapshotId, VolumeId};
use plinth_registry::{MemoryRegistry, Registry};
use std::collections::BTreeSet;
use std::sync::Arc;
use support::{Lab, Running, name, vm};

/// Everything that changes records, in one story. Failures are expected: the service dies in it.
async fn story(running: &Running) {
    let _ = running.pool().await;
    let _ = running.network().await;
    let _ = running.import("small", 4096, 4096).await;
    let _ = running.volume("data-1").await;
    let request = VmCreate {
        volumes: vec![DiskRequest { volume: name("data-1"), is_read_only: false }],
        wait_ms: 2000,
        ..vm("web-1")
    };
    let _ = running.ask(Request::VmCreate(request)).await;
    let _ = running.ask(Request::VmCreate(VmCreate { wait_ms: 2000, ..vm("web-2") })).await;
    let delete = Request::VmDelete { name: name("web-2"), force: true, wait_ms: 2000 };
    let _ = running.ask(delete).await;
    let _ = running.volume("data-2").await;
    let _ = running.ask(Request::VolumeGrow { name: name("data-2"), size: 2 << 20 }).await;
    let snapshot = |snapshot: &str| (name("data-2"), name(snapshot));
    for word in ["monday", "tuesday"] {
        let (volume, name) = snapshot(word);
        let _ = running.ask(Request::SnapshotCreate { volume, name }).await;
    }
    let clone = VolumeClone {
        name: name("data-3"),
        source: name("data-2"),
        snapshot: Some(name("monday")),
        size: None,
    };
    let _ = running.ask(Request::VolumeClone(clone)).await;
    for word in ["monday", "tuesday"] {
        let (volume, name) = snapshot(word);
        let _ = running.ask(Request::SnapshotDelete { volume, name }).await;
    }
    for volume in ["data-2", "data-3"] {
        let _ = running.ask(Request::VolumeDelete { name: name(volume), wipe: true }).await;
    }
}

/// The commits of the whole story when nothing fails.
async fn commits() -> u64 {
    let lab = Lab::new();
    let registry = Arc::new(MemoryRegistry::new());
    let running = lab.start(Arc::clone(&registry) as Arc<dyn Registry>).await;
    running.until_alive().await;
    story(&running).await;
    let cluster = running.service.cluster().await;
    assert!(cluster.vms.contains_key(&name("web-1")), "the story itself works");
    assert!(!cluster.vms.contains_key(&name("web-2")));
    assert!(!cluster.volumes.contains_key(&name("data-2")));
    cluster.revision
}

/// Runs the story with the `last` commit as the last that succeeds, then a new service.
async fn survives(last: u64) {
    let lab = Lab::new();
    let registry = Arc::new(MemoryRegistry::new());
    {
        let running = lab.start(Arc::clone(&registry) as Arc<dyn Registry>).await;
        running.until_alive().await;
        let done = running.service.cluster().await.revision;
        registry.fail_after(last.saturating_sub(done));
        // What the fake answers after the registry is gone is lost, as it is in a kill.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(20), story(&running)).await;
    }
    registry.fail_after(u64::MAX);
    let running = lab.start(Arc::clone(&registry) as Arc<dyn Registry>).await;
    running
        .until("nothing is left to do", |cluster| {
            let nodes = cluster.nodes.values();
            let is_idle = nodes.map(|node| cluster.due(node.id)).all(|due| due.is_empty());
            is_idle && !cluster.vms.values().any(|vm| vm.state == ResourceState::Deleting)
        })
        .await;
    let cluster = running.service.cluster().await;
    assert_eq!(cluster.check(), Vec::<String>::new());
    let known: BTreeSet<VolumeId> = cluster
        .volumes
        .values()
        .map(|volume| volume.id)
        .chain(cluster.images.values().flat_map(|image| &image.copies).map(|copy| copy.volume))
        .collect();
    let made: BTreeSet<VolumeId> = lab.agent.state().volumes.keys().copied().collect();
    assert_eq!(made, known, "after commit {last} node and records disagree");
    let known: BTreeSet<SnapshotId> = cluster
        .snapshots
        .values()
        .map(|snapshot| snapshot.id)
        .chain(
            cluster
                .images
                .values()
                .flat_map(|image| &image.copies)
                .filter_map(|copy| copy.snapshot),
        )
        .collect();
    let made: BTreeSet<SnapshotId> = lab.agent.state().snapshots.keys().copied().collect();
    assert_eq!(made, known, "after commit {last} node and records disagree on snapshots");
    // And it serves: the whole story again, with what is there already refused.
    running.until_alive().await;
    story(&running).await;
    let cluster = running.service.cluster().await;
    assert!(cluster.vms.contains_key(&name("web-1")), "after commit {last} no VM can be made");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_may_die_at_any_commit() {
    let commits = commits().await;
    assert!(commits > 12, "the story has {commits} commits only");
    for last in 2..=commits {
        survives(last).await;
    }
}
