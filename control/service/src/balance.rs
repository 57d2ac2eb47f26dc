// SPDX-License-Identifier: Apache-2.0
//! Requests about load balancers: records, which nodes are told of by their next spec.

use crate::answer::{find, show};
use crate::service::Shared;
use crate::store::now;
use plinth_api::{
    AgentAnswer, AgentReply, AgentRequest, Answer, BackendSeen, BackendView, BalancerView, Code,
    Command, ForwardProtocol, LbState, Refusal, Request,
};
use plinth_ids::{Name, NodeId};
use plinth_planner::{Change, Cluster, Observed};
use plinth_switch_api::{self as switch, BackendState, BackendStatus, Look, Sight};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long whoever wants to see a balancer waits for the nodes that have it.
const SEEN_LIMIT: Duration = Duration::from_secs(2);

/// Whether [`answer`] answers it.
pub(crate) const fn is_ours(request: &Request) -> bool {
    matches!(
        request,
        Request::BalancerCreate(_)
            | Request::BalancerList
            | Request::BalancerShow(_)
            | Request::BalancerDelete(_)
            | Request::ListenerAdd { .. }
            | Request::ListenerRemove { .. }
            | Request::BackendChange { .. }
    )
}

pub(crate) async fn answer(shared: &Shared, request: Request) -> Result<Answer, Refusal> {
    let name = match request {
        Request::BalancerCreate(request) => {
            change(shared, |cluster| cluster.balancer_create(&request, now())).await?;
            request.name
        }
        Request::ListenerAdd { balancer, listener } => {
            change(shared, |cluster| cluster.listener_add(&balancer, &listener)).await?;
            balancer
        }
        Request::ListenerRemove { balancer, number } => {
            change(shared, |cluster| cluster.listener_remove(&balancer, number)).await?;
            balancer
        }
        Request::BackendChange { backend, change: what } => {
            change(shared, |cluster| cluster.backend_change(&backend, what)).await?;
            backend.balancer
        }
        Request::BalancerDelete(name) => {
            change(shared, |cluster| cluster.balancer_delete(&name)).await?;
            return Ok(Answer::Done);
        }
        Request::BalancerShow(name) => {
            let (mut view, nodes) = {
                let state = shared.store.state().await;
                let found = find(&state.cluster.balancers, "lb", &name)?;
                (state.cluster.balancer_view(found), state.cluster.nodes_with(found))
            };
            see(shared, &mut view, nodes).await;
            return Ok(Answer::Balancer(view));
        }
        Request::BalancerList => {
            return show(shared, |state| {
                let all = state.cluster.balancers.values();
                Ok(Answer::Balancers(all.map(|one| state.cluster.balancer_view(one)).collect()))
            })
            .await;
        }
        _ => return Err(Refusal::new(Code::Failed, "the request has no answer here")),
    };
    balancer(shared, &name).await
}

/// Changes the records as `plan` says.
async fn change(
    shared: &Shared,
    plan: impl FnOnce(&Cluster) -> Result<Change, Refusal>,
) -> Result<(), Refusal> {
    shared.store.change(|cluster: &Cluster, _: &Observed| plan(cluster)).await
}

async fn balancer(shared: &Shared, name: &Name) -> Result<Answer, Refusal> {
    show(shared, |state| {
        let found = find(&state.cluster.balancers, "lb", name)?;
        Ok(Answer::Balancer(state.cluster.balancer_view(found)))
    })
    .await
}

/// What tells a backend of a balancer from all others: its listener's protocol and first port, its
/// own address and port.
type Place = (ForwardProtocol, u16, IpAddr, u16);

/// Fills in what the nodes' switches say of its backends. A node that does not answer in time, or is
/// of an older release, is left out.
async fn see(shared: &Shared, view: &mut BalancerView, nodes: BTreeMap<NodeId, Name>) {
    let Ok(question) = serde_json::to_string(&Look::Backends(view.name.clone())) else { return };
    let mut asked = JoinSet::new();
    for (id, node) in nodes {
        let link = shared.link(id);
        let request = AgentRequest::Perform(Command::SwitchLook(question.clone()));
        asked.spawn(async move {
            let reply = link.call(&request, SEEN_LIMIT).await.ok()?;
            Some((node, told(reply)?))
        });
    }
    // By the nodes' names, whoever answered first.
    let told: BTreeMap<Name, _> = asked.join_all().await.into_iter().flatten().collect();
    for listener in &mut view.listeners {
        let (protocol, (first, _)) = (listener.settings.protocol, listener.settings.ports);
        for backend in &mut listener.backends {
            let BackendView { address, port, .. } = *backend;
            let seen = told.iter().filter_map(|(node, backends)| {
                let (state, connections) = *backends.get(&(protocol, first, address, port))?;
                Some(BackendSeen { node: node.clone(), state, connections })
            });
            backend.seen = seen.collect();
        }
    }
}

/// A node's answer, if it is one.
fn told(reply: AgentReply) -> Option<BTreeMap<Place, (LbState, u32)>> {
    let Ok(AgentAnswer::SwitchSight(text)) = reply.result else { return None };
    let Ok(Sight::Backends(list)) = serde_json::from_str(&text) else { return None };
    Some(list.iter().map(|one| (place(one), (state(one.state), one.connections))).collect())
}

const fn place(status: &BackendStatus) -> Place {
    let protocol = match status.protocol {
        switch::ForwardProtocol::Tcp => ForwardProtocol::Tcp,
        switch::ForwardProtocol::Udp => ForwardProtocol::Udp,
    };
    (protocol, status.port, status.backend, status.backend_port)
}

const fn state(state: BackendState) -> LbState {
    match state {
        BackendState::Active => LbState::Active,
        BackendState::Draining => LbState::Draining,
        BackendState::Down => LbState::Down,
    }
}
