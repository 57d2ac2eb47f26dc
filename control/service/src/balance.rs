// SPDX-License-Identifier: Apache-2.0
//! Requests about load balancers: records, which nodes are told of by their next spec.

use crate::answer::{find, show};
use crate::service::Shared;
use crate::store::now;
use plinth_api::{Answer, Code, Refusal, Request};
use plinth_ids::Name;
use plinth_planner::{Change, Cluster, Observed};

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
        Request::BalancerShow(name) => name,
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
