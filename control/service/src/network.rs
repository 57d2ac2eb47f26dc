// SPDX-License-Identifier: Apache-2.0
//! Requests about VPCs, subnets, routes, security groups and NICs: records only, which nodes are
//! told of by their next spec.

use crate::answer::{find, show};
use crate::service::Shared;
use crate::store::now;
use plinth_api::{Answer, Code, Refusal, Request};
use plinth_ids::{Name, Prefix};
use plinth_planner::{Cluster, Observed};

/// Whether [`answer`] answers it.
pub(crate) const fn is_ours(request: &Request) -> bool {
    is_of_ranges(request)
        || matches!(
            request,
            Request::RouteAdd { .. }
                | Request::RouteRemove { .. }
                | Request::RouteList(_)
                | Request::GroupCreate { .. }
                | Request::GroupList(_)
                | Request::GroupShow(_)
                | Request::GroupDelete(_)
                | Request::RuleAdd { .. }
                | Request::RuleRemove { .. }
                | Request::NicList(_)
                | Request::NicShow(_)
                | Request::NicAttach { .. }
                | Request::NicDetach(_)
                | Request::NicGroup { .. }
                | Request::NicAllow { .. }
                | Request::NicLimit { .. }
        )
}

/// Of VPCs and their subnets.
const fn is_of_ranges(request: &Request) -> bool {
    matches!(
        request,
        Request::VpcCreate { .. }
            | Request::VpcDelete(_)
            | Request::SubnetCreate { .. }
            | Request::SubnetDelete(_)
            | Request::VpcDns { .. }
            | Request::VpcMetadata { .. }
            | Request::SubnetDhcp { .. }
    )
}

pub(crate) async fn answer(shared: &Shared, request: Request) -> Result<Answer, Refusal> {
    match request {
        request if is_of_ranges(&request) => ranges(shared, request).await,
        Request::RouteAdd { vpc, destination, next_hop } => {
            let plan = |cluster: &Cluster, _: &Observed| {
                cluster.route_add(&vpc, destination, &next_hop, now())
            };
            shared.store.change(plan).await?;
            route(shared, &vpc, destination).await
        }
        Request::RouteRemove { vpc, destination } => {
            shared.store.change(|cluster, _| cluster.route_remove(&vpc, destination)).await?;
            Ok(Answer::Done)
        }
        Request::RouteList(vpc) => {
            show(shared, |state| Ok(Answer::Routes(state.cluster.route_views(vpc.as_ref())?))).await
        }
        Request::GroupCreate { name, vpc } => {
            let plan =
                |cluster: &Cluster, _: &Observed| cluster.group_create(name.clone(), &vpc, now());
            shared.store.change(plan).await?;
            group(shared, &name).await
        }
        Request::GroupList(vpc) => {
            show(shared, |state| Ok(Answer::Groups(state.cluster.group_views(vpc.as_ref())?))).await
        }
        Request::GroupShow(name) => group(shared, &name).await,
        Request::GroupDelete(name) => {
            shared.store.change(|cluster, _| cluster.group_delete(&name)).await?;
            Ok(Answer::Done)
        }
        Request::RuleAdd { group: name, scope, peer } => {
            shared.store.change(|cluster, _| cluster.rule_add(&name, scope, &peer)).await?;
            group(shared, &name).await
        }
        Request::RuleRemove { group: name, number } => {
            shared.store.change(|cluster, _| cluster.rule_remove(&name, number)).await?;
            group(shared, &name).await
        }
        request => nics(shared, request).await,
    }
}

async fn nics(shared: &Shared, request: Request) -> Result<Answer, Refusal> {
    match request {
        Request::NicList(vm) => {
            show(shared, |state| {
                Ok(Answer::Nics(state.cluster.eni_views(vm.as_ref(), &state.observed)?))
            })
            .await
        }
        Request::NicShow(name) => nic(shared, &name).await,
        Request::NicAttach { vm, nic } => {
            let plan = |cluster: &Cluster, _: &Observed| {
                Ok((cluster.next_port(), cluster.nic_attach(&vm, &nic)?))
            };
            let port = shared.store.transact(plan).await?;
            show(shared, |state| Ok(Answer::Nic(state.cluster.eni_of(port, &state.observed)?)))
                .await
        }
        Request::NicDetach(name) => {
            shared.store.change(|cluster, _| cluster.nic_detach(&name)).await?;
            nic(shared, &name).await
        }
        Request::NicGroup { nic: name, group, is_member } => {
            let plan =
                |cluster: &Cluster, _: &Observed| cluster.nic_group(&name, &group, is_member);
            shared.store.change(plan).await?;
            nic(shared, &name).await
        }
        Request::NicAllow { nic: name, range, is_allowed } => {
            let plan =
                |cluster: &Cluster, _: &Observed| cluster.nic_allow(&name, range, is_allowed);
            shared.store.change(plan).await?;
            nic(shared, &name).await
        }
        Request::NicLimit { nic: name, limits } => {
            shared
                .store
                .change(|cluster: &Cluster, _: &Observed| cluster.nic_limit(&name, limits))
                .await?;
            nic(shared, &name).await
        }
        _ => Err(Refusal::new(Code::Failed, "the request has no answer here")),
    }
}

async fn ranges(shared: &Shared, request: Request) -> Result<Answer, Refusal> {
    match request {
        Request::VpcCreate { name, vni } => {
            let plan =
                |cluster: &Cluster, _: &Observed| cluster.vpc_create(name.clone(), vni, now());
            shared.store.change(plan).await?;
            vpc(shared, &name).await
        }
        Request::VpcDelete(name) => {
            shared.store.change(|cluster, _| cluster.vpc_delete(&name)).await?;
            Ok(Answer::Done)
        }
        Request::SubnetCreate { name, vpc, network, prefix_length, gateway, ipv6 } => {
            let cidr = (network, prefix_length);
            let plan = |cluster: &Cluster, _: &Observed| {
                cluster.subnet_create(name.clone(), &vpc, cidr, gateway, ipv6, now())
            };
            shared.store.change(plan).await?;
            subnet(shared, &name).await
        }
        Request::SubnetDelete(name) => {
            shared.store.change(|cluster, _| cluster.subnet_delete(&name)).await?;
            Ok(Answer::Done)
        }
        Request::VpcDns { name, upstreams } => {
            shared.store.change(|cluster, _| cluster.vpc_dns(&name, upstreams.clone())).await?;
            vpc(shared, &name).await
        }
        Request::VpcMetadata { name, is_told } => {
            shared.store.change(|cluster, _| cluster.vpc_metadata(&name, is_told)).await?;
            vpc(shared, &name).await
        }
        Request::SubnetDhcp { name, dhcp } => {
            shared.store.change(|cluster, _| cluster.subnet_dhcp(&name, dhcp.clone())).await?;
            subnet(shared, &name).await
        }
        _ => Err(Refusal::new(Code::Failed, "the request has no answer here")),
    }
}

async fn vpc(shared: &Shared, name: &Name) -> Result<Answer, Refusal> {
    show(shared, |state| {
        let vpc = find(&state.cluster.vpcs, "vpc", name)?;
        Ok(Answer::Vpc(state.cluster.vpc_view(vpc)))
    })
    .await
}

async fn subnet(shared: &Shared, name: &Name) -> Result<Answer, Refusal> {
    show(shared, |state| {
        let subnet = find(&state.cluster.subnets, "subnet", name)?;
        Ok(Answer::Subnet(state.cluster.subnet_view(subnet)))
    })
    .await
}

async fn route(shared: &Shared, vpc: &Name, destination: Prefix) -> Result<Answer, Refusal> {
    show(shared, |state| {
        let record = find(&state.cluster.vpcs, "vpc", vpc)?;
        let mut routes = record.routes.iter();
        let route = routes.find(|route| route.destination == destination).ok_or_else(|| {
            Refusal::new(Code::NotFound, format!("the route to {destination} is gone again"))
        })?;
        Ok(Answer::Route(state.cluster.route_view(record, route)))
    })
    .await
}

async fn group(shared: &Shared, name: &Name) -> Result<Answer, Refusal> {
    show(shared, |state| {
        let group = find(&state.cluster.groups, "security-group", name)?;
        Ok(Answer::Group(state.cluster.group_view(group)))
    })
    .await
}

async fn nic(shared: &Shared, name: &Name) -> Result<Answer, Refusal> {
    show(shared, |state| Ok(Answer::Nic(state.cluster.eni_view(name, &state.observed)?))).await
}
