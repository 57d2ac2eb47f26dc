// SPDX-License-Identifier: Apache-2.0
//! Answers as text for people and as JSON for programs.

mod balance;
mod external;
pub(crate) mod net;
mod network;
mod storage;

use crate::table::{Details, Table};
use crate::text::age;
use plinth_api::{
    Answer, CheckState, ClusterView, DaemonUpgrade, DropCount, Durability, FlowStatus, ImageView,
    NodeView, PoolAccess, PoolView, Refusal, ResourceState, Run, SwitchPort, VmState, VmView,
};
use plinth_planner::Size;
use serde::Serialize;

/// One line of JSON: a list for what lists, an object for one thing.
pub fn json(answer: &Answer) -> String {
    let line = match answer {
        Answer::Done => return "{}\n".to_owned(),
        Answer::Token(token) => return format!("{}\n", serde_json::json!({ "token": token })),
        Answer::Cluster(view) => line(view),
        Answer::Nodes(views) => line(views),
        Answer::Pools(views) => line(views),
        Answer::Images(views) => line(views),
        Answer::Volumes(views) => line(views),
        Answer::Vpcs(views) => line(views),
        Answer::Subnets(views) => line(views),
        Answer::Vms(views) => line(views),
        Answer::Node(view) => line(view),
        Answer::Pool(view) => line(view),
        Answer::Image(view) => line(view),
        Answer::Volume(view) => line(view),
        Answer::Vpc(view) => line(view),
        Answer::Subnet(view) => line(view),
        Answer::Vm(view) => line(view),
        Answer::Snapshot(view) => line(view),
        Answer::Snapshots(views) => line(views),
        Answer::Schedule(view) => line(view),
        Answer::Limits(view) => line(view),
        Answer::Diff(ranges) => line(ranges),
        Answer::VolumeStats(views) => line(views),
        Answer::SlowRequests(views) => line(views),
        Answer::Disk(view) => line(view),
        Answer::Disks(views) => line(views),
        Answer::Scrubs(views) => line(views),
        Answer::Routes(views) => line(views),
        Answer::Route(view) => line(view),
        Answer::Groups(views) => line(views),
        Answer::Group(view) => line(view),
        Answer::Nics(views) => line(views),
        Answer::Nic(view) => line(view),
        Answer::Lines(views) => line(views),
        Answer::Line(view) => line(view),
        Answer::Eips(views) => line(views),
        Answer::Eip(view) => line(view),
        Answer::NatGateways(views) => line(views),
        Answer::NatGateway(view) => line(view),
        Answer::Balancers(views) => line(views),
        Answer::Balancer(view) => line(view),
        Answer::SwitchPorts(rows) => line(rows),
        Answer::SwitchFlows(rows) => line(rows),
        Answer::SwitchDrops(rows) => line(rows),
        // It is JSON already.
        Answer::SwitchSight(sight) => sight.clone(),
        Answer::StoreUpgraded(upgrade) | Answer::SwitchUpgraded(upgrade) => line(upgrade),
    };
    format!("{line}\n")
}

/// A refusal or failure as one line of JSON.
pub fn json_error(refusal: &Refusal) -> String {
    #[derive(Serialize)]
    struct Failed<'a> {
        error: &'a Refusal,
    }
    format!("{}\n", line(&Failed { error: refusal }))
}

fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("views have text keys and whole numbers only")
}

/// The answer for people. `now` is for ages, in seconds since 1970.
pub fn text(answer: &Answer, now: u64) -> String {
    match answer {
        Answer::Done => String::new(),
        Answer::Token(token) => format!("{token}\n"),
        Answer::Cluster(view) => cluster(view),
        Answer::Nodes(views) => nodes(views),
        Answer::Pools(views) => pools(views),
        Answer::Images(views) => images(views, now),
        Answer::Volumes(views) => storage::volumes(views),
        Answer::Vpcs(views) => network::vpcs(views),
        Answer::Subnets(views) => network::subnets(views),
        Answer::Vms(views) => vms(views),
        Answer::Node(view) => node(view, now),
        Answer::Pool(view) => pool(view),
        Answer::Image(view) => images(std::slice::from_ref(view), now),
        Answer::Volume(view) => storage::volume(view, now),
        Answer::Vpc(view) => network::vpcs(std::slice::from_ref(view)),
        Answer::Subnet(view) => network::subnets(std::slice::from_ref(view)),
        Answer::Vm(view) => vm(view, now),
        Answer::Snapshot(view) => storage::snapshots(std::slice::from_ref(view), now),
        Answer::Snapshots(views) => storage::snapshots(views, now),
        Answer::Schedule(view) => storage::schedule(view, now),
        Answer::Limits(view) => storage::limits(view),
        Answer::Diff(ranges) => storage::diff(ranges),
        Answer::VolumeStats(views) => storage::stats(views),
        Answer::SlowRequests(views) => storage::slow(views, now),
        Answer::Disk(view) => storage::disk(view, now),
        Answer::Disks(views) => storage::disks(views),
        Answer::Scrubs(views) => storage::scrubs(views, now),
        Answer::Routes(views) => network::routes(views),
        Answer::Route(view) => network::routes(std::slice::from_ref(view)),
        Answer::Groups(views) => network::groups(views),
        Answer::Group(view) => network::group(view),
        Answer::Nics(views) => network::nics(views),
        Answer::Nic(view) => network::nic(view),
        Answer::Lines(views) => external::lines(views),
        Answer::Line(view) => external::lines(std::slice::from_ref(view)),
        Answer::Eips(views) => external::eips(views),
        Answer::Eip(view) => external::eip(view),
        Answer::NatGateways(views) => external::gateways(views),
        Answer::NatGateway(view) => external::gateway(view),
        Answer::Balancers(views) => balance::balancers(views),
        Answer::Balancer(view) => balance::balancer(view),
        Answer::SwitchPorts(rows) => ports(rows),
        Answer::SwitchFlows(rows) => flows(rows),
        Answer::SwitchDrops(rows) => drops(rows),
        Answer::SwitchSight(sight) => net::text(sight),
        Answer::StoreUpgraded(upgrade) | Answer::SwitchUpgraded(upgrade) => upgraded(upgrade),
    }
}

fn upgraded(upgrade: &DaemonUpgrade) -> String {
    Details::default()
        .line("process", format!("{}, before {}", upgrade.process, upgrade.process_before))
        .line("version", format!("{}, before {}", upgrade.version, upgrade.version_before))
        .line("took", format!("{} ms", upgrade.took_ms))
        .print()
}

fn cluster(view: &ClusterView) -> String {
    let mut text = Details::default()
        .line("cluster", &view.name)
        .line("version", &view.version)
        .line("revision", view.revision)
        .line("nodes", format!("{} of {} alive", view.nodes_alive, view.nodes))
        .line("vms", format!("{} of {} running", view.vms_running, view.vms))
        .line("volumes", view.volumes)
        .line("storage", format!("{} of {} used", Size(view.used), Size(view.capacity)))
        .print();
    for warning in &view.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}

fn nodes(views: &[NodeView]) -> String {
    let mut table = Table::new(["NAME", "STATE", "VMS", "VCPUS", "MEMORY", "ACCEL", "AGENT"]);
    for view in views {
        let accelerator = view.status.as_ref().map(|status| status.facts.accelerator.clone());
        table.row([
            view.name.to_string(),
            alive(view).to_owned(),
            view.vms.to_string(),
            format!("{}/{}", view.vcpus_allocated, view.vcpus_allocatable),
            format!("{}/{}", Size(view.memory_allocated), Size(view.memory_allocatable)),
            accelerator.unwrap_or_default(),
            view.agent.to_string(),
        ]);
    }
    table.print()
}

const fn alive(view: &NodeView) -> &'static str {
    if view.is_alive { "alive" } else { "no-answer" }
}

/// As the command line takes them.
fn store_cores(cores: &[u32]) -> String {
    if cores.is_empty() {
        return "any".to_owned();
    }
    cores.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn node(view: &NodeView, now: u64) -> String {
    let mut details = Details::default()
        .line("name", &view.name)
        .line("id", view.id)
        .line("state", alive(view))
        .some("fault", view.fault.as_ref())
        .some("last seen", view.last_seen.map(|then| format!("{} ago", age(now, then))))
        .line("agent", view.agent)
        .some(
            "vtep",
            view.underlay.as_ref().map(|underlay| {
                format!("{}/{} on {}", underlay.vtep, underlay.prefix_length, underlay.device)
            }),
        )
        .line("vms", view.vms)
        .line("vcpus", format!("{} of {} given", view.vcpus_allocated, view.vcpus_allocatable))
        .line(
            "memory",
            format!("{} of {} given", Size(view.memory_allocated), Size(view.memory_allocatable)),
        )
        .line("store cores", store_cores(&view.store_cores));
    let Some(status) = &view.status else { return details.print() };
    details = details
        .line("version", &status.version)
        .line("cpu", format!("{} x {}", status.facts.cpus, status.facts.cpu_model))
        .line("kernel", &status.facts.kernel)
        .line("accelerator", &status.facts.accelerator)
        .line(
            "load",
            format!("{}.{} %", status.load.cpu_permille / 10, status.load.cpu_permille % 10),
        );
    let mut text = details.print();
    if !status.daemons.is_empty() {
        let mut table = Table::new(["DAEMON", "STATE", "PROCESS", "STARTS", "SAYS"]);
        for daemon in &status.daemons {
            table.row([
                daemon.name.clone(),
                word(&daemon.state),
                daemon.process.map(|process| process.to_string()).unwrap_or_default(),
                daemon.starts.to_string(),
                daemon.text.clone(),
            ]);
        }
        text.push('\n');
        text.push_str(&table.print());
    }
    if !status.facts.checks.is_empty() {
        let mut table = Table::new(["CHECK", "STATE", "FOUND", "REMEDY"]);
        for check in &status.facts.checks {
            let remedy = match check.state {
                CheckState::Good => String::new(),
                CheckState::Warning | CheckState::Missing => {
                    check.remedy.clone().unwrap_or_default()
                }
            };
            table.row([check.name.clone(), word(&check.state), check.text.clone(), remedy]);
        }
        text.push('\n');
        text.push_str(&table.print());
    }
    text
}

fn pools(views: &[PoolView]) -> String {
    let mut table = Table::new([
        "NAME",
        "NODE",
        "STATE",
        "LEVEL",
        "USED",
        "CAPACITY",
        "PROVISIONED",
        "VOLUMES",
        "DISKS",
    ]);
    for view in views {
        table.row([
            view.name.to_string(),
            view.node.to_string(),
            pool_state(view),
            view.level.map(|level| word(&level)).unwrap_or_default(),
            bytes(view.used),
            bytes(view.capacity),
            Size(view.provisioned).to_string(),
            view.volumes.to_string(),
            view.disks.len().to_string(),
        ]);
    }
    table.print()
}

fn pool_state(view: &PoolView) -> String {
    match (view.state, &view.fault) {
        (ResourceState::Ready, Some(_)) => "fault".to_owned(),
        (state, _) => word(&state),
    }
}

fn pool(view: &PoolView) -> String {
    let details = Details::default()
        .line("name", &view.name)
        .line("id", view.id)
        .line("node", &view.node)
        .line("state", pool_state(view))
        .some("fault", view.fault.as_ref())
        .some("level", view.level.map(|level| word(&level)))
        .some("access", (view.access == PoolAccess::Rescue).then_some("rescue, read-only"))
        .line("class", word(&view.class))
        .line(
            "durability",
            match view.durability {
                Durability::Flush => "flush",
                Durability::Device => "device",
            },
        )
        .line("capacity", bytes(view.capacity))
        .line("used", bytes(view.used))
        .line("provisioned", Size(view.provisioned))
        .line("volumes", view.volumes)
        .line("scrubs", storage::scrub_schedule(&view.scrub))
        .some("checksum errors", view.checksum_errors);
    format!("{}\n{}", details.print(), storage::disks(&view.disks))
}

fn images(views: &[ImageView], now: u64) -> String {
    let mut table = Table::new(["NAME", "STATE", "SIZE", "POOLS", "AGE"]);
    for view in views {
        let pools: Vec<&str> = view.copies.iter().map(|copy| copy.pool.as_str()).collect();
        let state = match view.state {
            ResourceState::Creating => "importing".to_owned(),
            state => word(&state),
        };
        table.row([
            view.name.to_string(),
            state,
            bytes(view.size),
            pools.join(","),
            age(now, view.created_at),
        ]);
    }
    table.print()
}

fn vms(views: &[VmView]) -> String {
    let mut table = Table::new(["NAME", "STATE", "NODE", "VCPUS", "MEMORY", "ADDRESSES"]);
    for view in views {
        table.row([
            view.name.to_string(),
            vm_state(view),
            view.node.to_string(),
            view.vcpus.to_string(),
            Size(view.memory).to_string(),
            addresses(view),
        ]);
    }
    table.print()
}

/// What is seen; where nothing is yet, how far the VM has come.
fn vm_state(view: &VmView) -> String {
    match (view.resource, view.state) {
        (ResourceState::Deleting, _) => "deleting".to_owned(),
        (_, Some(state)) => word(&state),
        (ResourceState::Creating, None) => "creating".to_owned(),
        (_, None) => match view.run {
            Run::Running => "unknown".to_owned(),
            Run::Stopped { .. } => word(&VmState::Stopped),
        },
    }
}

fn addresses(view: &VmView) -> String {
    let all: Vec<String> =
        view.nics.iter().flat_map(|nic| &nic.addresses).map(ToString::to_string).collect();
    all.join(",")
}

fn vm(view: &VmView, now: u64) -> String {
    let wanted = match view.run {
        Run::Running => "running",
        Run::Stopped { .. } => "stopped",
    };
    let mut text = Details::default()
        .line("name", &view.name)
        .line("id", view.id)
        .line("node", &view.node)
        .line("state", vm_state(view))
        .some("reason", view.reason.as_ref())
        .some("since", view.since.map(|then| format!("{} ago", age(now, then))))
        .line("wanted", wanted)
        .some("process", view.process)
        .some("accelerator", view.accelerator.as_ref())
        .line("restarts", view.restarts)
        .line("vcpus", view.vcpus)
        .line("memory", Size(view.memory))
        .some("image", view.image.as_ref())
        .line("age", age(now, view.created_at))
        .print();
    if !view.nics.is_empty() {
        let mut table = Table::new(["NIC", "VPC", "SUBNET", "MAC", "ADDRESS"]);
        for nic in &view.nics {
            let all: Vec<String> = nic.addresses.iter().map(ToString::to_string).collect();
            table.row([
                nic.port.to_string(),
                nic.vpc.to_string(),
                nic.subnet.to_string(),
                nic.mac.to_string(),
                all.join(","),
            ]);
        }
        text.push('\n');
        text.push_str(&table.print());
    }
    if !view.disks.is_empty() {
        let mut table = Table::new(["DISK", "SIZE", "KIND", "ACCESS"]);
        for disk in &view.disks {
            table.row([
                disk.volume.to_string(),
                Size(disk.size).to_string(),
                if disk.is_system { "system" } else { "data" }.to_owned(),
                if disk.is_read_only { "read-only" } else { "read-write" }.to_owned(),
            ]);
        }
        text.push('\n');
        text.push_str(&table.print());
    }
    text
}

fn ports(rows: &[SwitchPort]) -> String {
    let mut table = Table::new([
        "PORT",
        "NAME",
        "VNI",
        "STATE",
        "MAC",
        "ADDRESSES",
        "RECEIVED",
        "SENT",
        "DROPPED",
    ]);
    for row in rows {
        let all: Vec<String> = row.addresses.iter().map(ToString::to_string).collect();
        table.row([
            row.id.to_string(),
            row.name.clone(),
            row.vni.map(|vni| vni.to_string()).unwrap_or_default(),
            if row.is_up { "up" } else { "down" }.to_owned(),
            row.mac.to_string(),
            all.join(","),
            row.packets_received.to_string(),
            row.packets_sent.to_string(),
            row.drops.iter().map(|drop| drop.packets).sum::<u64>().to_string(),
        ]);
    }
    table.print()
}

fn flows(rows: &[FlowStatus]) -> String {
    let mut table = Table::new(["PORT", "VNI", "FLOW", "ACTION", "PACKETS", "BYTES", "IDLE"]);
    for row in rows {
        table.row([
            row.port.to_string(),
            row.vni.to_string(),
            row.key.clone(),
            row.action.clone(),
            row.packets.to_string(),
            Size(row.bytes).to_string(),
            format!("{}.{}s", row.idle_ms / 1000, row.idle_ms % 1000 / 100),
        ]);
    }
    table.print()
}

fn drops(rows: &[DropCount]) -> String {
    let mut table = Table::new(["REASON", "PACKETS"]);
    for row in rows {
        table.row([row.reason.clone(), row.packets.to_string()]);
    }
    table.print()
}

fn bytes(size: Option<u64>) -> String {
    size.map(|size| Size(size).to_string()).unwrap_or_default()
}

/// A plain enum's one name, which is also its JSON.
fn word(value: &impl Serialize) -> String {
    let text = line(value);
    text.trim_matches('"').to_owned()
}
