// SPDX-License-Identifier: Apache-2.0
//! Lines, external addresses and NAT gateways, for people.

use super::network::{list, names, rate};
use super::word;
use crate::table::{Details, Table};
use plinth_api::{EipCounters, EipView, ForwardView, LineView, NatMapping, NatServes, NatView};
use plinth_planner::Size;

pub(super) fn lines(views: &[LineView]) -> String {
    let mut table = Table::new(["NAME", "NEXT HOP", "POOLS", "USED", "FREE"]);
    for view in views {
        table.row([
            view.name.to_string(),
            view.next_hop.to_string(),
            if view.pools.is_empty() { "-".to_owned() } else { list(&view.pools) },
            view.addresses_used.to_string(),
            view.addresses_free.to_string(),
        ]);
    }
    table.print()
}

pub(super) fn eips(views: &[EipView]) -> String {
    let mut table = Table::new(["NAME", "ADDRESS", "LINE", "NIC", "NODE", "MODE"]);
    for view in views {
        let bound = view.bound.as_ref();
        table.row([
            view.name.to_string(),
            view.address.to_string(),
            view.line.to_string(),
            bound.map(|bound| bound.nic.to_string()).unwrap_or_default(),
            bound.map(|bound| bound.node.to_string()).unwrap_or_default(),
            bound.map(|bound| word(&bound.binding)).unwrap_or_default(),
        ]);
    }
    table.print()
}

pub(super) fn eip(view: &EipView) -> String {
    let bound = view.bound.as_ref();
    let counters = view.counters.as_ref();
    Details::default()
        .line("name", &view.name)
        .line("address", view.address)
        .line("line", &view.line)
        .some("nic", bound.map(|bound| &bound.nic))
        .some("node", bound.map(|bound| &bound.node))
        .some("mode", bound.map(|bound| word(&bound.binding)))
        .line("limit out", rate(&view.limits.outbound))
        .line("limit in", rate(&view.limits.inbound))
        .some("out", counters.map(outward))
        .some("in", counters.map(inward))
        .print()
}

fn outward(counters: &EipCounters) -> String {
    carried(counters.packets_out, counters.bytes_out, counters.dropped_out)
}

fn inward(counters: &EipCounters) -> String {
    carried(counters.packets_in, counters.bytes_in, counters.dropped_in)
}

fn carried(packets: u64, bytes: u64, dropped: u64) -> String {
    format!("{packets} packets, {}; {dropped} over the limit", Size(bytes))
}

pub(super) fn gateways(views: &[NatView]) -> String {
    let mut table =
        Table::new(["NAME", "VPC", "LINE", "SERVES", "ADDRESSES", "FORWARDS", "LACKING"]);
    for view in views {
        let addresses: Vec<_> = view.addresses.iter().map(|one| one.address).collect();
        table.row([
            view.name.to_string(),
            view.vpc.to_string(),
            view.line.to_string(),
            serves(&view.serves),
            list(&addresses),
            view.forwards.len().to_string(),
            names(&view.lacking),
        ]);
    }
    table.print()
}

fn serves(serves: &NatServes) -> String {
    match serves {
        NatServes::Vpc => "vpc".to_owned(),
        NatServes::Subnet(name) => format!("subnet {name}"),
        NatServes::Nic(name) => format!("nic {name}"),
    }
}

const fn mapping(mapping: NatMapping) -> &'static str {
    match mapping {
        NatMapping::PerConnection => "per connection",
        NatMapping::Independent => "independent",
        NatMapping::Open => "open",
    }
}

pub(super) fn gateway(view: &NatView) -> String {
    let details = Details::default()
        .line("name", &view.name)
        .line("vpc", &view.vpc)
        .line("line", &view.line)
        .line("serves", serves(&view.serves))
        .line("ports per nic", view.ports_per_nic)
        .line("mapping", mapping(view.mapping))
        .line("nodes that lack an address", names(&view.lacking));
    let mut table = Table::new(["ADDRESS", "NODE", "OUT", "IN"]);
    for one in &view.addresses {
        let counters = one.counters.as_ref();
        table.row([
            one.address.to_string(),
            one.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            counters
                .map(|counted| passed(counted.packets_out, counted.bytes_out))
                .unwrap_or_default(),
            counters
                .map(|counted| passed(counted.packets_in, counted.bytes_in))
                .unwrap_or_default(),
        ]);
    }
    let mut text = format!("{}\n{}", details.print(), table.print());
    if !view.forwards.is_empty() {
        text.push('\n');
        text.push_str(&forwards(&view.forwards));
    }
    text
}

fn passed(packets: u64, bytes: u64) -> String {
    format!("{packets} packets, {}", Size(bytes))
}

fn forwards(views: &[ForwardView]) -> String {
    let mut table = Table::new(["FORWARD", "ADDRESS", "PROTOCOL", "PORTS", "NIC", "TO"]);
    for view in views {
        let (first, last) = view.ports;
        let range = |first: u16, last: u16| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        table.row([
            view.number.to_string(),
            view.address.to_string(),
            word(&view.protocol),
            range(first, last),
            view.nic.to_string(),
            range(view.nic_port, view.nic_port.saturating_add(last - first)),
        ]);
    }
    table.print()
}
