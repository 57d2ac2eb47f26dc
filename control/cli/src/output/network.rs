// SPDX-License-Identifier: Apache-2.0
//! VPCs, subnets, routes, security groups and NICs, for people.

use super::word;
use crate::table::{Details, Table};
use plinth_api::{
    EniView, GroupView, NicRate, NicState, RouteHop, RouteView, RuleDirection, RulePeer,
    RuleProtocol, RuleScope, RuleView, SubnetView, VpcView,
};

pub(super) fn vpcs(views: &[VpcView]) -> String {
    let names = ["NAME", "VNI", "SUBNETS", "ROUTES", "NICS", "METADATA", "DOMAIN", "UPSTREAMS"];
    let mut table = Table::new(names);
    for view in views {
        table.row([
            view.name.to_string(),
            view.vni.to_string(),
            view.subnets.to_string(),
            view.routes.to_string(),
            view.nics.to_string(),
            if view.has_metadata { "on" } else { "off" }.to_owned(),
            view.dns.zone.clone(),
            view.dns.upstreams.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        ]);
    }
    table.print()
}

pub(super) fn subnets(views: &[SubnetView]) -> String {
    let mut table = Table::new(["NAME", "VPC", "CIDR", "GATEWAY", "IPV6", "USED", "FREE", "LEASE"]);
    for view in views {
        table.row([
            view.name.to_string(),
            view.vpc.to_string(),
            format!("{}/{}", view.network, view.prefix_length),
            view.gateway.to_string(),
            view.ipv6.map(|prefix| prefix.to_string()).unwrap_or_default(),
            view.addresses_used.to_string(),
            view.addresses_free.to_string(),
            match &view.dhcp {
                Some(dhcp) => dhcp.lease_seconds.to_string(),
                None => "off".to_owned(),
            },
        ]);
    }
    table.print()
}

pub(super) fn routes(views: &[RouteView]) -> String {
    let mut table = Table::new(["VPC", "DESTINATION", "NEXT HOP", "WAITS FOR"]);
    for view in views {
        let next_hop = match &view.next_hop {
            RouteHop::Address(address) => address.to_string(),
            RouteHop::Peer(vpc) => format!("vpc {vpc}"),
            RouteHop::Blackhole => "blackhole".to_owned(),
            RouteHop::External => "external".to_owned(),
        };
        table.row([
            view.vpc.to_string(),
            view.destination.to_string(),
            next_hop,
            view.pending.clone().unwrap_or_default(),
        ]);
    }
    table.print()
}

pub(super) fn groups(views: &[GroupView]) -> String {
    let mut table = Table::new(["NAME", "VPC", "DEFAULT", "RULES", "NICS"]);
    for view in views {
        table.row([
            view.name.to_string(),
            view.vpc.to_string(),
            if view.is_default { "yes" } else { "no" }.to_owned(),
            view.rules.len().to_string(),
            view.nics.len().to_string(),
        ]);
    }
    table.print()
}

pub(super) fn group(view: &GroupView) -> String {
    let details = Details::default()
        .line("name", &view.name)
        .line("id", view.id)
        .line("vpc", &view.vpc)
        .line("default", if view.is_default { "yes" } else { "no" })
        .line("nics", names(&view.nics));
    format!("{}\n{}", details.print(), rules(&view.rules))
}

fn rules(views: &[RuleView]) -> String {
    let mut table =
        Table::new(["RULE", "DIRECTION", "PRIORITY", "VERDICT", "PROTOCOL", "PORTS", "PEER"]);
    for view in views {
        let direction = match view.scope.direction {
            RuleDirection::Inbound => "in",
            RuleDirection::Outbound => "out",
        };
        let peer = match &view.peer {
            RulePeer::Any => "any".to_owned(),
            RulePeer::Prefix(prefix) => prefix.to_string(),
            RulePeer::Group(name) => format!("group {name}"),
        };
        table.row([
            view.number.to_string(),
            direction.to_owned(),
            word(&view.scope.priority),
            word(&view.scope.verdict),
            protocol(view.scope.protocol),
            ports(&view.scope),
            peer,
        ]);
    }
    table.print()
}

fn protocol(protocol: RuleProtocol) -> String {
    match protocol {
        RuleProtocol::Number(number) => number.to_string(),
        named => word(&named),
    }
}

fn ports(scope: &RuleScope) -> String {
    match (scope.ports, scope.icmp) {
        (Some((first, last)), _) if first == last => first.to_string(),
        (Some((first, last)), _) => format!("{first}-{last}"),
        (None, Some((kind, Some(code)))) => format!("type {kind}/{code}"),
        (None, Some((kind, None))) => format!("type {kind}"),
        (None, None) => "all".to_owned(),
    }
}

pub(super) fn nics(views: &[EniView]) -> String {
    let mut table =
        Table::new(["NAME", "VM", "VPC", "SUBNET", "MAC", "ADDRESSES", "GROUPS", "STATE"]);
    for view in views {
        table.row([
            view.name.to_string(),
            view.vm.to_string(),
            view.vpc.to_string(),
            view.subnet.to_string(),
            view.mac.to_string(),
            list(&view.addresses),
            groups_of(view),
            nic_state(view.state).to_owned(),
        ]);
    }
    table.print()
}

pub(super) fn nic(view: &EniView) -> String {
    Details::default()
        .line("name", &view.name)
        .line("vm", &view.vm)
        .line("state", nic_state(view.state))
        .line("port", view.port)
        .line("vpc", &view.vpc)
        .line("subnet", &view.subnet)
        .line("mac", view.mac)
        .line("addresses", list(&view.addresses))
        .line("groups", groups_of(view))
        .line(
            "may speak from",
            if view.allowed.is_empty() { "-".to_owned() } else { list(&view.allowed) },
        )
        .line("limit out", rate(&view.limits.outbound))
        .line("limit in", rate(&view.limits.inbound))
        .line("weight", if view.limits.weight == 0 { 100 } else { view.limits.weight })
        .print()
}

const fn nic_state(state: NicState) -> &'static str {
    match state {
        NicState::Attached => "attached",
        NicState::Waiting => "waiting",
        NicState::Leaving => "leaving",
        NicState::Off => "off",
    }
}

pub(super) fn rate(rate: &NicRate) -> String {
    let NicRate { bits_per_second, bits_burst, packets_per_second, packets_burst } = *rate;
    let mut parts = Vec::new();
    for (value, burst, unit) in
        [(bits_per_second, bits_burst, "bit"), (packets_per_second, packets_burst, "packets")]
    {
        if value > 0 {
            parts.push(format!("{} {unit}/s", decimal(value)));
        }
        if burst > 0 {
            parts.push(format!("burst {} {unit}", decimal(burst)));
        }
    }
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

/// With the largest decimal unit that loses nothing.
fn decimal(value: u64) -> String {
    let units = [(1_000_000_000, "G"), (1_000_000, "M"), (1000, "K")];
    let unit = units.into_iter().find(|(factor, _)| value > 0 && value.is_multiple_of(*factor));
    unit.map_or_else(|| value.to_string(), |(factor, unit)| format!("{}{unit}", value / factor))
}

fn groups_of(view: &EniView) -> String {
    match view.groups.as_deref() {
        None => "not filtered".to_owned(),
        Some([]) => "none: all denied".to_owned(),
        Some(list) => names(list),
    }
}

pub(super) fn names(list: &[plinth_ids::Name]) -> String {
    if list.is_empty() { "-".to_owned() } else { self::list(list) }
}

pub(super) fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
