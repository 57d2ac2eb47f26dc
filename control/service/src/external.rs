// SPDX-License-Identifier: Apache-2.0
//! Requests about lines, external addresses and NAT gateways: records, which nodes are told of by
//! their next spec, and counters, which nodes are asked for.

use crate::answer::{find, show, switch};
use crate::service::Shared;
use crate::store::now;
use plinth_api::{Answer, Code, Command, EipCounters, NatView, Refusal, Request};
use plinth_ids::Name;
use plinth_planner::{Cluster, Observed};
use plinth_switch_api::{ExternalStatus, Look, Sight};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::Ipv4Addr;

/// Whether [`answer`] answers it.
pub(crate) const fn is_ours(request: &Request) -> bool {
    matches!(
        request,
        Request::LineCreate { .. }
            | Request::LineList
            | Request::LineDelete(_)
            | Request::LinePool { .. }
            | Request::EipCreate { .. }
            | Request::EipList
            | Request::EipShow(_)
            | Request::EipDelete(_)
            | Request::EipBind { .. }
            | Request::EipUnbind(_)
            | Request::EipLimit { .. }
            | Request::NatCreate(_)
            | Request::NatList
            | Request::NatShow(_)
            | Request::NatDelete(_)
            | Request::NatAddressAdd { .. }
            | Request::NatAddressRemove { .. }
            | Request::NatForwardAdd { .. }
            | Request::NatForwardRemove { .. }
    )
}

pub(crate) async fn answer(shared: &Shared, request: Request) -> Result<Answer, Refusal> {
    match request {
        Request::LineCreate { .. }
        | Request::LineList
        | Request::LineDelete(_)
        | Request::LinePool { .. } => lines(shared, request).await,
        Request::EipCreate { .. }
        | Request::EipList
        | Request::EipShow(_)
        | Request::EipDelete(_)
        | Request::EipBind { .. }
        | Request::EipUnbind(_)
        | Request::EipLimit { .. } => eips(shared, request).await,
        other => gateways(shared, other).await,
    }
}

/// Changes the records as `plan` says.
async fn change(
    shared: &Shared,
    plan: impl FnOnce(&Cluster) -> Result<plinth_planner::Change, Refusal>,
) -> Result<(), Refusal> {
    shared.store.change(|cluster: &Cluster, _: &Observed| plan(cluster)).await
}

async fn lines(shared: &Shared, request: Request) -> Result<Answer, Refusal> {
    let name = match request {
        Request::LineCreate { name, next_hop, pools } => {
            change(shared, |cluster| cluster.line_create(name.clone(), next_hop, &pools, now()))
                .await?;
            name
        }
        Request::LinePool { line, pool, is_member } => {
            change(shared, |cluster| cluster.line_pool(&line, pool, is_member)).await?;
            line
        }
        Request::LineDelete(name) => {
            change(shared, |cluster| cluster.line_delete(&name)).await?;
            return Ok(Answer::Done);
        }
        _ => {
            return show(shared, |state| {
                let lines = state.cluster.lines.values();
                Ok(Answer::Lines(lines.map(|line| state.cluster.line_view(line)).collect()))
            })
            .await;
        }
    };
    show(shared, |state| {
        let line = find(&state.cluster.lines, "line", &name)?;
        Ok(Answer::Line(state.cluster.line_view(line)))
    })
    .await
}

async fn eips(shared: &Shared, request: Request) -> Result<Answer, Refusal> {
    let name = match request {
        Request::EipCreate { name, line, address } => {
            change(shared, |cluster| cluster.eip_create(name.clone(), &line, address, now()))
                .await?;
            name
        }
        Request::EipBind { name, nic, binding } => {
            change(shared, |cluster| cluster.eip_bind(&name, &nic, binding)).await?;
            name
        }
        Request::EipUnbind(name) => {
            change(shared, |cluster| cluster.eip_unbind(&name)).await?;
            name
        }
        Request::EipLimit { name, limits } => {
            change(shared, |cluster| cluster.eip_limit(&name, limits)).await?;
            name
        }
        Request::EipDelete(name) => {
            change(shared, |cluster| cluster.eip_delete(&name)).await?;
            return Ok(Answer::Done);
        }
        Request::EipShow(name) => return eip_show(shared, &name).await,
        _ => {
            return show(shared, |state| {
                let eips = state.cluster.eips.values();
                Ok(Answer::Eips(eips.map(|eip| state.cluster.eip_view(eip)).collect()))
            })
            .await;
        }
    };
    show(shared, |state| {
        let eip = find(&state.cluster.eips, "eip", &name)?;
        Ok(Answer::Eip(state.cluster.eip_view(eip)))
    })
    .await
}

async fn eip_show(shared: &Shared, name: &Name) -> Result<Answer, Refusal> {
    let mut view = {
        let state = shared.store.state().await;
        state.cluster.eip_view(find(&state.cluster.eips, "eip", name)?)
    };
    if let Some(bound) = &view.bound {
        view.counters = counters(shared, &bound.node).await.remove(&view.address);
    }
    Ok(Answer::Eip(view))
}

async fn gateways(shared: &Shared, request: Request) -> Result<Answer, Refusal> {
    let name = match request {
        Request::NatCreate(request) => {
            change(shared, |cluster| cluster.nat_create(&request, now())).await?;
            request.name
        }
        Request::NatAddressAdd { gateway, address } => {
            change(shared, |cluster| cluster.nat_address_add(&gateway, address)).await?;
            gateway
        }
        Request::NatAddressRemove { gateway, address } => {
            change(shared, |cluster| cluster.nat_address_remove(&gateway, address)).await?;
            gateway
        }
        Request::NatForwardAdd { gateway, forward } => {
            change(shared, |cluster| cluster.nat_forward_add(&gateway, &forward)).await?;
            gateway
        }
        Request::NatForwardRemove { gateway, number } => {
            change(shared, |cluster| cluster.nat_forward_remove(&gateway, number)).await?;
            gateway
        }
        Request::NatDelete(name) => {
            change(shared, |cluster| cluster.nat_delete(&name)).await?;
            return Ok(Answer::Done);
        }
        Request::NatShow(name) => {
            let mut view = gateway(shared, &name).await?;
            count(shared, &mut view).await;
            return Ok(Answer::NatGateway(view));
        }
        Request::NatList => {
            return show(shared, |state| {
                let all = state.cluster.gateways.values();
                Ok(Answer::NatGateways(all.map(|one| state.cluster.nat_view(one)).collect()))
            })
            .await;
        }
        _ => return Err(Refusal::new(Code::Failed, "the request has no answer here")),
    };
    Ok(Answer::NatGateway(gateway(shared, &name).await?))
}

async fn gateway(shared: &Shared, name: &Name) -> Result<NatView, Refusal> {
    let state = shared.store.state().await;
    Ok(state.cluster.nat_view(find(&state.cluster.gateways, "nat-gateway", name)?))
}

/// Fills in what went through a gateway's addresses, each asked for where it is.
async fn count(shared: &Shared, view: &mut NatView) {
    let mut told = BTreeMap::new();
    for node in view.addresses.iter().filter_map(|one| one.node.clone()) {
        if let Entry::Vacant(place) = told.entry(node) {
            let counted = counters(shared, place.key()).await;
            place.insert(counted);
        }
    }
    for one in &mut view.addresses {
        let node = one.node.as_ref().and_then(|node| told.get_mut(node));
        one.counters = node.and_then(|counted| counted.remove(&one.address));
    }
}

/// What a node's switch counted; nothing where it does not say.
async fn counters(shared: &Shared, node: &Name) -> BTreeMap<Ipv4Addr, EipCounters> {
    let Ok(question) = serde_json::to_string(&Look::External) else { return BTreeMap::new() };
    let Ok(Answer::SwitchSight(text)) = switch(shared, node, Command::SwitchLook(question)).await
    else {
        return BTreeMap::new();
    };
    let Ok(Sight::External(list)) = serde_json::from_str(&text) else { return BTreeMap::new() };
    list.into_iter().map(|one| (one.address, counted(&one))).collect()
}

const fn counted(status: &ExternalStatus) -> EipCounters {
    EipCounters {
        packets_in: status.packets_in,
        bytes_in: status.bytes_in,
        packets_out: status.packets_out,
        bytes_out: status.bytes_out,
        dropped_in: status.dropped_in,
        dropped_out: status.dropped_out,
    }
}
