// SPDX-License-Identifier: Apache-2.0
//! Load balancers, for people.

use super::word;
use crate::table::{Details, Table};
use plinth_api::{
    BackendView, BalancerPlace, BalancerView, CheckSpec, CheckSpecKind, ListenerView,
};

pub(super) fn balancers(views: &[BalancerView]) -> String {
    let mut table = Table::new(["NAME", "VPC", "ADDRESS", "PLACE", "LISTENERS", "BACKENDS"]);
    for view in views {
        let ports: Vec<String> = view.listeners.iter().map(ports).collect();
        let backends: usize = view.listeners.iter().map(|one| one.backends.len()).sum();
        table.row([
            view.name.to_string(),
            view.vpc.to_string(),
            view.address.to_string(),
            place(&view.place),
            ports.join(","),
            backends.to_string(),
        ]);
    }
    table.print()
}

fn place(place: &BalancerPlace) -> String {
    match place {
        BalancerPlace::Subnet(name) => format!("subnet {name}"),
        BalancerPlace::Line(name) => format!("line {name}"),
    }
}

fn ports(view: &ListenerView) -> String {
    format!("{}/{}", word(&view.settings.protocol), range(view.settings.ports))
}

fn range((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

pub(super) fn balancer(view: &BalancerView) -> String {
    let details = Details::default()
        .line("name", &view.name)
        .line("vpc", &view.vpc)
        .line("address", view.address)
        .line("place", place(&view.place))
        .some("node", view.node.as_ref());
    let mut text = details.print();
    for listener in &view.listeners {
        text.push('\n');
        text.push_str(&self::listener(listener));
    }
    text
}

fn listener(view: &ListenerView) -> String {
    let settings = &view.settings;
    let details = Details::default()
        .line("listener", view.number)
        .line("ports", ports(view))
        .line("scheduler", word(&settings.scheduler))
        .some("stickiness", settings.stickiness.map(|seconds| format!("{seconds} s")))
        .some("check", settings.check.as_ref().map(check));
    let (first, last) = settings.ports;
    let mut table =
        Table::new(["BACKEND", "NODE", "ADDRESS", "TO", "WEIGHT", "STATE", "CONNECTIONS"]);
    for backend in &view.backends {
        table.row([
            backend.nic.to_string(),
            backend.node.to_string(),
            backend.address.to_string(),
            range((backend.port, backend.port.saturating_add(last - first))),
            backend.weight.to_string(),
            state(backend).to_owned(),
            connections(backend),
        ]);
    }
    details.print() + &table.print()
}

fn check(check: &CheckSpec) -> String {
    let CheckSpec { kind, port, interval_ms, timeout_ms, rise, fall } = check;
    let kind = match kind {
        CheckSpecKind::Tcp => "tcp".to_owned(),
        CheckSpecKind::Icmp => "icmp".to_owned(),
        CheckSpecKind::Http(path) => format!("GET {path}"),
    };
    let port = port.map(|port| format!(" port {port}")).unwrap_or_default();
    format!(
        "{kind}{port} every {interval_ms} ms, timeout {timeout_ms} ms, rise {rise}, fall {fall}"
    )
}

/// What an operator wants of it; and of one that should serve, whether it can.
const fn state(backend: &BackendView) -> &'static str {
    match (backend.is_draining, backend.is_unfit) {
        (true, _) => "draining",
        (false, true) => "unfit",
        (false, false) => "active",
    }
}

/// Of the clients of all nodes that have said so; a dash where none has.
fn connections(backend: &BackendView) -> String {
    if backend.seen.is_empty() {
        return "-".to_owned();
    }
    backend.seen.iter().map(|seen| u64::from(seen.connections)).sum::<u64>().to_string()
}
