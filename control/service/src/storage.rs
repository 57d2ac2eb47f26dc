// SPDX-License-Identifier: Apache-2.0
//! Requests about volumes' snapshots and limits, pools' disks and scrubs, and what is measured.
//!
//! What must come about whatever dies meanwhile is a record with a state, and acts are read off
//! it. What an operator can ask for again (a rollback, a scrub) or only looks at is a command
//! that is sent once.

use crate::answer::{find, node_change, show};
use crate::link::Link;
use crate::service::Shared;
use crate::store::now;
use plinth_api::{
    AgentAnswer, AgentRequest, Answer, Code, Command, DeltaExport, DiffRange, DiskAdd, Refusal,
    Request, SlowRequestView, SnapshotUsage, VolumeClone, VolumeStatsView,
};
use plinth_ids::{DiskId, Name, NodeId, PoolId, VolumeId};
use plinth_planner::{Change, Cluster, Key, Observed};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a node may take for what it has in memory.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// For what changes a little on disk.
const ACT_LIMIT: Duration = Duration::from_secs(120);
/// For a whole delta.
const DELTA_LIMIT: Duration = Duration::from_secs(3600);
/// Pieces of a diff that are asked for at most; more would not fit a message.
const DIFF_RANGES_MAX: usize = 250_000;

pub(crate) async fn answer(shared: &Shared, request: Request) -> Result<Answer, Refusal> {
    match request {
        Request::NodeUpgradeStore(name) => upgrade(shared, &name, Command::StoreUpgrade).await,
        Request::NodeUpgradeSwitch(name) => upgrade(shared, &name, Command::SwitchUpgrade).await,
        Request::NodeStoreCores { node, cores } => {
            let plan = |cluster: &Cluster, observed: &Observed| {
                cluster.node_store_cores(&node, cores.clone(), observed)
            };
            shared.store.change(plan).await?;
            show(shared, |state| {
                let node = find(&state.cluster.nodes, "node", &node)?;
                Ok(Answer::Node(state.cluster.node_view(node, &state.observed)))
            })
            .await
        }
        Request::VolumeShow(name) => volume_show(shared, &name).await,
        Request::VolumeClone(request) => volume_clone(shared, request).await,
        Request::VolumeFlatten(name) => volume_flatten(shared, &name).await,
        Request::VolumeDiff { volume, from, to } => {
            volume_diff(shared, &volume, from.as_ref(), &to).await
        }
        Request::DeltaExport(request) => delta_export(shared, request).await,
        Request::DeltaImport { volume, source } => delta_import(shared, &volume, source).await,
        Request::VolumeStats(volume) => volume_stats(shared, volume.as_ref()).await,
        Request::VolumeSlow { volume, limit } => volume_slow(shared, volume.as_ref(), limit).await,
        Request::LimitSet { volume, limits } => {
            shared.store.change(|cluster, _| cluster.limit_set(&volume, limits)).await?;
            limit_show(shared, &volume).await
        }
        Request::LimitShow(volume) => limit_show(shared, &volume).await,
        Request::SnapshotCreate { volume, name } => snapshot_create(shared, &volume, &name).await,
        Request::SnapshotList(volume) => snapshot_list(shared, &volume).await,
        Request::SnapshotDelete { volume, name } => snapshot_delete(shared, &volume, &name).await,
        Request::SnapshotRollback { volume, name } => rollback(shared, &volume, &name).await,
        Request::ScheduleSet { volume, interval_seconds, keep } => {
            let plan = |cluster: &Cluster, _: &Observed| {
                cluster.schedule_set(&volume, interval_seconds, keep, now())
            };
            shared.store.change(plan).await?;
            schedule_show(shared, &volume).await
        }
        Request::ScheduleShow(volume) => schedule_show(shared, &volume).await,
        Request::ScheduleClear(volume) => {
            shared.store.change(|cluster, _| cluster.schedule_clear(&volume)).await?;
            Ok(Answer::Done)
        }
        other => disks(shared, other).await,
    }
}

async fn disks(shared: &Shared, request: Request) -> Result<Answer, Refusal> {
    match request {
        Request::DiskList(pool) => {
            show(shared, |state| {
                let pools = &state.cluster.pools;
                let pool = pool.as_ref().map(|name| find(pools, "pool", name)).transpose()?;
                Ok(Answer::Disks(state.cluster.disk_views(pool, &state.observed)))
            })
            .await
        }
        Request::DiskShow { pool, disk } => disk_show(shared, &pool, disk).await,
        Request::DiskAdd(request) => disk_add(shared, request).await,
        Request::DiskDrain { pool, disk, cancel } => {
            let plan = |cluster: &Cluster, observed: &Observed| {
                cluster.disk_drain(&pool, disk, cancel, observed)
            };
            shared.store.change(plan).await?;
            disk_view(shared, &pool, disk).await
        }
        Request::DiskRemove { pool, disk } => {
            let plan =
                |cluster: &Cluster, observed: &Observed| cluster.disk_remove(&pool, disk, observed);
            node_change(shared, &Key::Pool(pool.clone()), plan).await?;
            Ok(Answer::Done)
        }
        Request::ScrubStart { pool, disk, kind, rate } => {
            plinth_planner::check_scrub_rate(rate)?;
            let (id, node) = pool_and_disk(shared, &pool, disk).await?;
            let command = Command::ScrubStart { pool: id, disk, kind, rate };
            perform(shared, node, command, ACT_LIMIT).await?;
            scrubs(shared, id, node).await
        }
        Request::ScrubStop { pool, disk } => {
            let (id, node) = pool_and_disk(shared, &pool, disk).await?;
            perform(shared, node, Command::ScrubStop { pool: id, disk }, ACT_LIMIT).await?;
            scrubs(shared, id, node).await
        }
        Request::ScrubStatus(pool) => {
            let (id, node) = pool_and_disk(shared, &pool, None).await?;
            scrubs(shared, id, node).await
        }
        Request::ScrubSchedule { pool, schedule } => {
            shared.store.change(|cluster, _| cluster.scrub_schedule(&pool, schedule)).await?;
            show_pool(shared, &pool).await
        }
        Request::PoolAccess { pool, access } => {
            shared.store.change(|cluster, _| cluster.pool_access(&pool, access)).await?;
            show_pool(shared, &pool).await
        }
        _ => Err(Refusal::new(Code::Failed, "the request has no answer here")),
    }
}

async fn show_pool(shared: &Shared, pool: &Name) -> Result<Answer, Refusal> {
    show(shared, |state| {
        let pool = find(&state.cluster.pools, "pool", pool)?;
        Ok(Answer::Pool(state.cluster.pool_view(pool, &state.observed)))
    })
    .await
}

/// Sends one command to a node.
async fn perform(
    shared: &Shared,
    node: NodeId,
    command: Command,
    limit: Duration,
) -> Result<AgentAnswer, Refusal> {
    perform_on(shared, &shared.link(node), node, command, limit).await
}

async fn perform_on(
    shared: &Shared,
    link: &Link,
    node: NodeId,
    command: Command,
    limit: Duration,
) -> Result<AgentAnswer, Refusal> {
    match link.call(&AgentRequest::Perform(command), limit).await {
        Ok(reply) => reply.result,
        Err(err) => {
            let name = shared.store.state().await.cluster.node_name(node);
            let text = format!("node {name} did not answer: {}", plinth_obs::Chain(&err));
            Err(Refusal::new(Code::Unreachable, text)
                .remedy(format!("see `plinth node show {name}`")))
        }
    }
}

/// Has a node's agent replace the store's or the switch's process. Nothing is recorded: who does not
/// hear the answer can see the process in `node show`, and ask again.
async fn upgrade(shared: &Shared, name: &Name, command: Command) -> Result<Answer, Refusal> {
    let node = {
        let state = shared.store.state().await;
        plinth_planner::find(&state.cluster.nodes, "node", "NODE", name)?.id
    };
    match perform(shared, node, command, ACT_LIMIT).await? {
        AgentAnswer::StoreUpgraded(upgrade) => Ok(Answer::StoreUpgraded(upgrade)),
        AgentAnswer::SwitchUpgraded(upgrade) => Ok(Answer::SwitchUpgraded(upgrade)),
        _ => Err(confused()),
    }
}

fn confused() -> Refusal {
    Refusal::new(Code::Failed, "the node gave another answer than was asked for")
        .remedy("install the same release on both sides")
}

/// A volume's numbers and its node.
async fn home(shared: &Shared, volume: &Name) -> Result<(PoolId, VolumeId, NodeId), Refusal> {
    let state = shared.store.state().await;
    let record = state.cluster.usable_volume_named(volume)?;
    let pool = state.cluster.pool(record.pool);
    let node = pool.map(|pool| pool.node).ok_or_else(|| {
        Refusal::new(Code::Failed, format!("volume {volume} has no pool; report this"))
    })?;
    Ok((record.pool, record.id, node))
}

async fn usage(shared: &Shared, volume: &Name) -> Result<plinth_api::VolumeUsage, Refusal> {
    let (pool, id, node) = home(shared, volume).await?;
    match perform(shared, node, Command::VolumeShow { pool, volume: id }, LOOK_LIMIT).await? {
        AgentAnswer::VolumeUsage(usage) => Ok(usage),
        _ => Err(confused()),
    }
}

/// What the node counts is shown if it answers; what the records say is shown anyway.
async fn volume_show(shared: &Shared, name: &Name) -> Result<Answer, Refusal> {
    let usage = usage(shared, name).await.ok();
    show(shared, |state| {
        let volume = find(&state.cluster.volumes, "volume", name)?;
        let mut view = state.cluster.volume_view(volume, &state.observed);
        view.written = usage.as_ref().map(|usage| usage.written).or(view.written);
        view.usage = usage;
        Ok(Answer::Volume(view))
    })
    .await
}

async fn volume_clone(shared: &Shared, request: VolumeClone) -> Result<Answer, Refusal> {
    let name = request.name.clone();
    let (_, _, node) = home(shared, &request.source).await.map_err(|no| no.field("SOURCE"))?;
    let key = Key::Volume(name.clone());
    let plan =
        |cluster: &Cluster, observed: &Observed| cluster.volume_clone(&request, observed, now());
    shared.link(node).change_and_act(&key, plan).await?;
    show(shared, |state| {
        let volume = find(&state.cluster.volumes, "volume", &name)?;
        Ok(Answer::Volume(state.cluster.volume_view(volume, &state.observed)))
    })
    .await
}

async fn volume_flatten(shared: &Shared, name: &Name) -> Result<Answer, Refusal> {
    let (_, _, node) = home(shared, name).await?;
    let command = {
        let state = shared.store.state().await;
        state.cluster.volume_flatten(name, &state.observed)?
    };
    perform(shared, node, command, ACT_LIMIT).await?;
    Ok(Answer::Done)
}

/// Asks piece by piece until the end.
async fn volume_diff(
    shared: &Shared,
    volume: &Name,
    from: Option<&Name>,
    to: &Name,
) -> Result<Answer, Refusal> {
    let (pool, id, node) = home(shared, volume).await?;
    let (from, to) = {
        let state = shared.store.state().await;
        let from = from.map(|name| state.cluster.ready_snapshot(volume, "--from", name));
        let to = state.cluster.ready_snapshot(volume, "--to", to)?;
        (from.transpose()?.map(|one| one.id), to.id)
    };
    let mut all: Vec<DiffRange> = Vec::new();
    let mut start = 0;
    loop {
        let command = Command::VolumeDiff { pool, volume: id, from, to, start };
        let AgentAnswer::Diff { ranges, next } = perform(shared, node, command, ACT_LIMIT).await?
        else {
            return Err(confused());
        };
        all.extend(ranges);
        if all.len() > DIFF_RANGES_MAX {
            let text = format!("more than {DIFF_RANGES_MAX} ranges differ");
            return Err(Refusal::new(Code::NoRoom, text)
                .remedy("write them to a file with `plinth volume export`"));
        }
        match next {
            None => return Ok(Answer::Diff(all)),
            Some(next) if next > start => start = next,
            Some(_) => return Err(confused()),
        }
    }
}

async fn delta_export(shared: &Shared, request: DeltaExport) -> Result<Answer, Refusal> {
    let volume = &request.volume;
    let (pool, id, node) = home(shared, volume).await?;
    check_path(&request.target)?;
    let (from, to) = {
        let state = shared.store.state().await;
        let find = |field, name| state.cluster.ready_snapshot(volume, field, name);
        let from = request.from.as_ref().map(|name| find("--from-snapshot", name)).transpose()?;
        (from.map(|one| one.id), find("--to-snapshot", &request.to)?.id)
    };
    let target = request.target;
    let command = Command::DeltaExport { pool, volume: id, from, to, target };
    perform(shared, node, command, DELTA_LIMIT).await?;
    Ok(Answer::Done)
}

fn check_path(path: &str) -> Result<(), Refusal> {
    if path.starts_with('/') {
        return Ok(());
    }
    Err(Refusal::new(Code::Invalid, format!("{path:?} is no absolute path"))
        .field("--file")
        .remedy("give a path on the volume's node, as in /srv/data-1.delta"))
}

/// The snapshot that a delta brings has a number before it is sent, and a record afterwards. A
/// service that is killed between leaves a snapshot that the next import of the delta names.
async fn delta_import(shared: &Shared, volume: &Name, source: String) -> Result<Answer, Refusal> {
    check_path(&source)?;
    let (pool, id, node) = home(shared, volume).await?;
    let reserve = |cluster: &Cluster, _: &Observed| Ok(cluster.snapshot_reserve());
    let snapshot = shared.store.transact(reserve).await?;
    let command = Command::DeltaImport { pool, volume: id, snapshot, source };
    let AgentAnswer::Snapshot(found) = perform(shared, node, command, DELTA_LIMIT).await? else {
        return Err(confused());
    };
    shared.store.change(|cluster, _| Ok(cluster.snapshot_imported(volume, &found))).await?;
    snapshot_view(shared, volume, &found.name).await
}

async fn snapshot_view(shared: &Shared, volume: &Name, name: &Name) -> Result<Answer, Refusal> {
    show(shared, |state| {
        let snapshot = state.cluster.find_snapshot(volume, "NAME", name)?;
        Ok(Answer::Snapshot(state.cluster.snapshot_view(snapshot, None)))
    })
    .await
}

async fn snapshot_create(shared: &Shared, volume: &Name, name: &Name) -> Result<Answer, Refusal> {
    let (_, _, node) = home(shared, volume).await?;
    let key = Key::Snapshot(volume.clone(), name.clone());
    let plan = |cluster: &Cluster, observed: &Observed| {
        cluster.snapshot_create(volume, name, observed, now())
    };
    shared.link(node).change_and_act(&key, plan).await?;
    snapshot_view(shared, volume, name).await
}

async fn snapshot_delete(shared: &Shared, volume: &Name, name: &Name) -> Result<Answer, Refusal> {
    let key = Key::Snapshot(volume.clone(), name.clone());
    let plan = |cluster: &Cluster, _: &Observed| cluster.snapshot_delete(volume, name);
    node_change(shared, &key, plan).await?;
    Ok(Answer::Done)
}

async fn snapshot_list(shared: &Shared, volume: &Name) -> Result<Answer, Refusal> {
    let counted: BTreeMap<_, SnapshotUsage> = usage(shared, volume)
        .await
        .map(|usage| usage.snapshots.into_iter().map(|one| (one.id, one)).collect())
        .unwrap_or_default();
    show(shared, |state| {
        find(&state.cluster.volumes, "volume", volume)?;
        let mut snapshots: Vec<_> = state.cluster.snapshots_of(volume).collect();
        snapshots.sort_by_key(|one| (one.created_at, one.id));
        let view = |one| state.cluster.snapshot_view(one, counted.get(&one.id));
        Ok(Answer::Snapshots(snapshots.into_iter().map(view).collect()))
    })
    .await
}

async fn rollback(shared: &Shared, volume: &Name, name: &Name) -> Result<Answer, Refusal> {
    let (_, _, node) = home(shared, volume).await?;
    let link = shared.link(node);
    {
        // Nothing else is done in the node's pools meanwhile. A VM that is started now waits: the
        // store gives a volume that is rolled back to nobody.
        let _guard = link.hold().await;
        let command = {
            let state = shared.store.state().await;
            state.cluster.snapshot_rollback(volume, name, &state.observed)?
        };
        perform_on(shared, &link, node, command, ACT_LIMIT).await?;
    }
    let size = usage(shared, volume).await?.size;
    shared.store.change(|cluster, _| Ok(cluster.volume_resized(volume, size))).await?;
    volume_show(shared, volume).await
}

async fn limit_show(shared: &Shared, volume: &Name) -> Result<Answer, Refusal> {
    show(shared, |state| {
        let record = find(&state.cluster.volumes, "volume", volume)?;
        Ok(Answer::Limits(state.cluster.limit_view(record)))
    })
    .await
}

async fn schedule_show(shared: &Shared, volume: &Name) -> Result<Answer, Refusal> {
    show(shared, |state| Ok(Answer::Schedule(state.cluster.schedule_view(volume, now())?))).await
}

/// The nodes to ask about one volume or all, and the number of that one.
async fn nodes_of(
    shared: &Shared,
    volume: Option<&Name>,
) -> Result<(Vec<NodeId>, Option<(PoolId, VolumeId)>), Refusal> {
    if let Some(volume) = volume {
        let (pool, id, node) = home(shared, volume).await?;
        return Ok((vec![node], Some((pool, id))));
    }
    let state = shared.store.state().await;
    let mut nodes: Vec<NodeId> = state.cluster.pools.values().map(|pool| pool.node).collect();
    nodes.sort();
    nodes.dedup();
    nodes.retain(|node| state.observed.is_alive(*node));
    Ok((nodes, None))
}

async fn names(shared: &Shared) -> BTreeMap<(PoolId, VolumeId), Name> {
    let state = shared.store.state().await;
    let name = |one: &plinth_planner::VolumeRecord| ((one.pool, one.id), one.name.clone());
    state.cluster.volumes.values().map(name).collect()
}

async fn volume_stats(shared: &Shared, volume: Option<&Name>) -> Result<Answer, Refusal> {
    let (nodes, wanted) = nodes_of(shared, volume).await?;
    let names = names(shared).await;
    let mut views = Vec::new();
    for node in nodes {
        let AgentAnswer::Metrics(metrics) =
            perform(shared, node, Command::Metrics, LOOK_LIMIT).await?
        else {
            return Err(confused());
        };
        for one in metrics {
            let key = (one.pool, one.volume);
            if wanted.is_none_or(|wanted| wanted == key)
                && let Some(name) = names.get(&key)
            {
                views.push(VolumeStatsView { volume: name.clone(), metrics: one });
            }
        }
    }
    if let Some(volume) = volume
        && views.is_empty()
    {
        let text = format!("volume {volume} is not served to a VM, so nothing is measured of it");
        return Err(Refusal::new(Code::State, text).field("NAME").remedy("start its VM"));
    }
    views.sort_by(|a, b| a.volume.cmp(&b.volume));
    Ok(Answer::VolumeStats(views))
}

async fn volume_slow(
    shared: &Shared,
    volume: Option<&Name>,
    limit: u32,
) -> Result<Answer, Refusal> {
    let (nodes, wanted) = nodes_of(shared, volume).await?;
    let names = names(shared).await;
    let mut views = Vec::new();
    for node in nodes {
        // Of one volume: all that the node kept, because most may be another's.
        let limit = if wanted.is_some() { u32::MAX } else { limit };
        let AgentAnswer::SlowRequests(requests) =
            perform(shared, node, Command::SlowRequests { limit }, LOOK_LIMIT).await?
        else {
            return Err(confused());
        };
        for request in requests {
            let key = (request.pool, request.volume);
            if wanted.is_none_or(|wanted| wanted == key)
                && let Some(name) = names.get(&key)
            {
                views.push(SlowRequestView { volume: name.clone(), request });
            }
        }
    }
    views.sort_by_key(|view| std::cmp::Reverse(view.request.at_ms));
    views.truncate(limit as usize);
    Ok(Answer::SlowRequests(views))
}

/// A pool's number and node; its disk, if one is named, is there.
async fn pool_and_disk(
    shared: &Shared,
    pool: &Name,
    disk: Option<DiskId>,
) -> Result<(PoolId, NodeId), Refusal> {
    let state = shared.store.state().await;
    let record = match disk {
        Some(disk) => state.cluster.usable_disk(pool, disk)?.0,
        None => plinth_planner::find(&state.cluster.pools, "pool", "POOL", pool)?,
    };
    Ok((record.id, record.node))
}

async fn scrubs(shared: &Shared, pool: PoolId, node: NodeId) -> Result<Answer, Refusal> {
    match perform(shared, node, Command::ScrubStatus { pool }, LOOK_LIMIT).await? {
        AgentAnswer::Scrubs(scrubs) => Ok(Answer::Scrubs(scrubs)),
        _ => Err(confused()),
    }
}

async fn disk_view(shared: &Shared, pool: &Name, disk: DiskId) -> Result<Answer, Refusal> {
    show(shared, |state| {
        let (pool, disk) = state.cluster.usable_disk(pool, disk)?;
        Ok(Answer::Disk(state.cluster.disk_of(pool, disk, &state.observed)))
    })
    .await
}

async fn disk_show(shared: &Shared, pool: &Name, disk: DiskId) -> Result<Answer, Refusal> {
    let (id, node) = pool_and_disk(shared, pool, Some(disk)).await?;
    let command = Command::DiskShow { pool: id, disk };
    let answer = perform(shared, node, command, LOOK_LIMIT).await;
    let Answer::Disk(view) = disk_view(shared, pool, disk).await? else { return Err(confused()) };
    let is_clean = view.status.as_ref().is_none_or(|status| status.bad_blocks == 0);
    let bad_blocks = match answer {
        Ok(AgentAnswer::BadBlocks(bad_blocks)) => bad_blocks,
        Ok(_) => return Err(confused()),
        // What was seen last is shown, unless it says that there is something to name.
        Err(_) if is_clean => Vec::new(),
        Err(refusal) => return Err(refusal),
    };
    Ok(Answer::Disk(plinth_api::PoolDiskView { bad_blocks, ..view }))
}

async fn disk_add(shared: &Shared, request: DiskAdd) -> Result<Answer, Refusal> {
    let pool = request.pool.clone();
    let key = Key::Pool(pool.clone());
    let plan =
        |cluster: &Cluster, _: &Observed| -> Result<Change, Refusal> { cluster.disk_add(&request) };
    node_change(shared, &key, plan).await?;
    show(shared, |state| {
        let pool = find(&state.cluster.pools, "pool", &pool)?;
        let disk = pool.disks.iter().rev().find(|disk| disk.device == request.device);
        let disk = disk.ok_or_else(|| {
            Refusal::new(Code::Failed, format!("{} was not added", request.device))
        })?;
        Ok(Answer::Disk(state.cluster.disk_of(pool, disk, &state.observed)))
    })
    .await
}
