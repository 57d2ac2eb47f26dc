// SPDX-License-Identifier: Apache-2.0
//! Requests, one by one. Each is a plan and what must happen after it.

use crate::join::hex;
use crate::service::Shared;
use crate::store::{State, now};
use crate::{balance, external, image, network, storage, wait};
use plinth_api::{
    AgentAnswer, AgentRequest, Answer, Code, Command, PoolCreate, Refusal, Request, SwitchTable,
    VmCreate, VolumeCreate,
};
use plinth_client::Token;
use plinth_ids::{Name, NodeId};
use plinth_planner::{Change, Cluster, Key, Observed, State as ResourceState};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a node may take to read out its switch's tables.
const TABLE_LIMIT: Duration = Duration::from_secs(10);

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) async fn answer(shared: &Shared, request: Request) -> Result<Answer, Refusal> {
    match request {
        Request::TokenCreate { lifetime_seconds } => token_create(shared, lifetime_seconds).await,
        Request::PoolCreate(request) => pool_create(shared, request).await,
        Request::ImageDelete(name) => image::delete(shared, &name).await,
        Request::VolumeCreate(request) => volume_create(shared, request).await,
        Request::VolumeGrow { name, size } => {
            let plan =
                |cluster: &Cluster, observed: &Observed| cluster.volume_grow(&name, size, observed);
            node_change(shared, &Key::Volume(name.clone()), plan).await?;
            show(shared, |state| volume(state, &name)).await
        }
        Request::VolumeDelete { name, wipe } => volume_delete(shared, &name, wipe).await,
        Request::VmCreate(request) => vm_create(shared, request).await,
        Request::VmStart { name, wait_ms } => {
            shared.store.change(|cluster, observed| cluster.vm_start(&name, observed)).await?;
            wait::until_running(&shared.store, &name, wait_ms).await?;
            show(shared, |state| vm(state, &name)).await
        }
        Request::VmStop { name, grace_seconds, wait_ms } => {
            shared.store.change(|cluster, _| cluster.vm_stop(&name, grace_seconds)).await?;
            wait::until_stopped(&shared.store, &name, wait_ms).await?;
            show(shared, |state| vm(state, &name)).await
        }
        Request::VmDelete { name, force, wait_ms } => {
            let plan =
                |cluster: &Cluster, observed: &Observed| cluster.vm_delete(&name, force, observed);
            shared.store.change(plan).await?;
            wait::until_deleted(&shared.store, &name, wait_ms).await?;
            Ok(Answer::Done)
        }
        Request::Switch { node, table } => {
            let command = match table {
                SwitchTable::Ports => Command::SwitchPorts,
                SwitchTable::Flows { limit } => Command::SwitchFlows { limit },
                SwitchTable::Drops => Command::SwitchDrops,
            };
            switch(shared, &node, command).await
        }
        Request::SwitchLook { node, question } => {
            switch(shared, &node, Command::SwitchLook(question)).await
        }
        reading if is_reading(&reading) => show(shared, |state| read(state, &reading)).await,
        other if balance::is_ours(&other) => balance::answer(shared, other).await,
        other if external::is_ours(&other) => external::answer(shared, other).await,
        other if network::is_ours(&other) => network::answer(shared, other).await,
        other => storage::answer(shared, other).await,
    }
}

/// Whether the records and what was seen answer it.
const fn is_reading(request: &Request) -> bool {
    matches!(
        request,
        Request::ClusterStatus
            | Request::NodeList
            | Request::NodeShow(_)
            | Request::PoolList
            | Request::PoolShow(_)
            | Request::ImageList
            | Request::VolumeList
            | Request::VpcList
            | Request::SubnetList
            | Request::VmList
            | Request::VmShow(_)
    )
}

/// Requests that change nothing.
fn read(state: &State, request: &Request) -> Result<Answer, Refusal> {
    let State { cluster, observed, .. } = state;
    Ok(match request {
        Request::ClusterStatus => Answer::Cluster(cluster.cluster_view(observed, VERSION)),
        Request::NodeList => Answer::Nodes(
            cluster.nodes.values().map(|node| cluster.node_view(node, observed)).collect(),
        ),
        Request::NodeShow(name) => {
            Answer::Node(cluster.node_view(find(&cluster.nodes, "node", name)?, observed))
        }
        Request::PoolList => Answer::Pools(
            cluster.pools.values().map(|pool| cluster.pool_view(pool, observed)).collect(),
        ),
        Request::PoolShow(name) => {
            Answer::Pool(cluster.pool_view(find(&cluster.pools, "pool", name)?, observed))
        }
        Request::ImageList => {
            Answer::Images(cluster.images.values().map(|one| cluster.image_view(one)).collect())
        }
        Request::VolumeList => Answer::Volumes(
            cluster.volumes.values().map(|one| cluster.volume_view(one, observed)).collect(),
        ),
        Request::VpcList => {
            Answer::Vpcs(cluster.vpcs.values().map(|vpc| cluster.vpc_view(vpc)).collect())
        }
        Request::SubnetList => {
            Answer::Subnets(cluster.subnets.values().map(|one| cluster.subnet_view(one)).collect())
        }
        Request::VmList => {
            Answer::Vms(cluster.vms.values().map(|one| cluster.vm_view(one, observed)).collect())
        }
        Request::VmShow(name) => vm(state, name)?,
        _ => return Err(Refusal::new(Code::Failed, "the request has no answer here")),
    })
}

pub(crate) async fn show(
    shared: &Shared,
    view: impl FnOnce(&State) -> Result<Answer, Refusal>,
) -> Result<Answer, Refusal> {
    view(&*shared.store.state().await)
}

fn volume(state: &State, name: &Name) -> Result<Answer, Refusal> {
    let volume = find(&state.cluster.volumes, "volume", name)?;
    Ok(Answer::Volume(state.cluster.volume_view(volume, &state.observed)))
}

fn vm(state: &State, name: &Name) -> Result<Answer, Refusal> {
    let vm = find(&state.cluster.vms, "vm", name)?;
    Ok(Answer::Vm(state.cluster.vm_view(vm, &state.observed)))
}

/// The record of that name.
pub(crate) fn find<'a, T>(
    records: &'a BTreeMap<Name, T>,
    kind: &'static str,
    name: &Name,
) -> Result<&'a T, Refusal> {
    plinth_planner::find(records, kind, "NAME", name)
}

async fn token_create(shared: &Shared, lifetime_seconds: u32) -> Result<Answer, Refusal> {
    let token = Token::generate(shared.ca.fingerprint())
        .map_err(|err| Refusal::new(Code::Failed, err.to_string()))?;
    let digest = hex(&Token::digest(&token.secret));
    let plan =
        |cluster: &Cluster, _: &Observed| cluster.token_create(digest, lifetime_seconds, now());
    shared.store.change(plan).await?;
    Ok(Answer::Token(token.to_string()))
}

async fn pool_create(shared: &Shared, request: PoolCreate) -> Result<Answer, Refusal> {
    let name = request.name.clone();
    let node = {
        let state = shared.store.state().await;
        plinth_planner::find(&state.cluster.nodes, "node", "--node", &request.node)?.id
    };
    let key = Key::Pool(name.clone());
    let plan = |cluster: &Cluster, _: &Observed| cluster.pool_create(request, now());
    let link = shared.link(node);
    link.change_and_act(&key, plan).await?;
    // So that the answer has its capacity, and what comes next finds it served.
    link.await_pools().await;
    show(shared, |state| {
        let pool = find(&state.cluster.pools, "pool", &name)?;
        Ok(Answer::Pool(state.cluster.pool_view(pool, &state.observed)))
    })
    .await
}

async fn volume_create(shared: &Shared, request: VolumeCreate) -> Result<Answer, Refusal> {
    let name = request.name.clone();
    let node = {
        let state = shared.store.state().await;
        state.cluster.pick_pool(request.pool.as_ref())?.node
    };
    let key = Key::Volume(name.clone());
    let plan =
        |cluster: &Cluster, observed: &Observed| cluster.volume_create(&request, observed, now());
    shared.link(node).change_and_act(&key, plan).await?;
    show(shared, |state| volume(state, &name)).await
}

/// Deletes the snapshots that its schedule made, then the volume.
async fn volume_delete(shared: &Shared, name: &Name, wipe: bool) -> Result<Answer, Refusal> {
    let key = Key::Volume(name.clone());
    let link = shared.link_of(&key).await;
    node_change(shared, &key, |cluster, _| cluster.volume_delete(name, wipe)).await?;
    let snapshots: Vec<Key> = {
        let state = shared.store.state().await;
        let snapshots = state.cluster.snapshots_of(name);
        snapshots.map(|one| Key::Snapshot(one.volume.clone(), one.name.clone())).collect()
    };
    if let Some(link) = link.filter(|_| !snapshots.is_empty()) {
        for snapshot in &snapshots {
            link.act_now(snapshot).await?;
        }
        link.act_now(&key).await?;
    }
    Ok(Answer::Done)
}

/// A change of a record that its node has to carry out.
pub(crate) async fn node_change(
    shared: &Shared,
    key: &Key,
    plan: impl FnOnce(&Cluster, &Observed) -> Result<Change, Refusal>,
) -> Result<(), Refusal> {
    match shared.link_of(key).await {
        Some(link) => link.change_and_act(key, plan).await,
        // Nothing to carry out: the plan says why.
        None => shared.store.change(plan).await,
    }
}

async fn vm_create(shared: &Shared, request: VmCreate) -> Result<Answer, Refusal> {
    let name = request.name.clone();
    let plan = |cluster: &Cluster, observed: &Observed| {
        let change = cluster.vm_create(&request, observed, now())?;
        let system = change.writes.iter().find_map(system_volume);
        Ok((system.zip(change.writes.iter().find_map(node_of_vm)), change))
    };
    // The node is read off the plan: when the refusal is quick, the records are gone by now.
    if let Some((system, node)) = shared.store.transact(plan).await? {
        shared.link(node).act_now(&system).await?;
        is_made(shared, &name).await?;
    }
    if request.start {
        wait::until_running(&shared.store, &name, request.wait_ms).await?;
    }
    show(shared, |state| vm(state, &name)).await
}

/// The key of a system disk among a new VM's records.
fn system_volume(write: &plinth_planner::Write) -> Option<Key> {
    match write {
        plinth_planner::Write::Put(plinth_planner::Record::Volume(volume)) => {
            Some(Key::Volume(volume.name.clone()))
        }
        _ => None,
    }
}

/// Where a new VM was placed, read off its record.
fn node_of_vm(write: &plinth_planner::Write) -> Option<NodeId> {
    match write {
        plinth_planner::Write::Put(plinth_planner::Record::Vm(vm)) => Some(vm.node),
        _ => None,
    }
}

/// Whoever made the system disk, the VM is there now, or was given up.
async fn is_made(shared: &Shared, name: &Name) -> Result<(), Refusal> {
    let state = shared.store.state().await;
    match state.cluster.vms.get(name).map(|vm| vm.state) {
        Some(ResourceState::Ready) => Ok(()),
        _ => Err(Refusal::new(Code::Failed, format!("the system disk of VM {name} was refused"))
            .remedy("plinthd's log on the service says why")),
    }
}

pub(crate) async fn switch(
    shared: &Shared,
    node: &Name,
    command: Command,
) -> Result<Answer, Refusal> {
    let id = {
        let state = shared.store.state().await;
        plinth_planner::find(&state.cluster.nodes, "node", "--node", node)?.id
    };
    let request = AgentRequest::Perform(command);
    let reply = shared.link(id).call(&request, TABLE_LIMIT).await.map_err(|err| {
        let text = format!("node {node} did not answer: {}", plinth_obs::Chain(&err));
        Refusal::new(Code::Unreachable, text).remedy(format!("see `plinth node show {node}`"))
    })?;
    match reply.result? {
        AgentAnswer::SwitchPorts(ports) => Ok(Answer::SwitchPorts(ports)),
        AgentAnswer::SwitchFlows(flows) => Ok(Answer::SwitchFlows(flows)),
        AgentAnswer::SwitchDrops(drops) => Ok(Answer::SwitchDrops(drops)),
        AgentAnswer::SwitchSight(sight) => Ok(Answer::SwitchSight(sight)),
        _ => Err(Refusal::new(Code::Failed, format!("node {node} gave another answer"))),
    }
}
