// SPDX-License-Identifier: Apache-2.0
//! What a person asks of the switch, put to the worker in small pieces.

use crate::refusal;
use crate::worker::WorkerPort;
use plinth_ids::Vni;
use plinth_switch_api::{
    DropQuery, DropRow, FLOW_PAGE_MAX, FlowPage, FlowQuery, PortStatus, Refusal,
};
use plinth_vswitch::{DropReason, FLOW_ROOM_MIN, FlowCopy, FlowFilter, PortIndex, Snapshot};

/// Rows that one step may bring. More steps make the page.
const STEP_ROWS: usize = 512;

/// The port that is named, if one is.
pub(crate) fn port(
    snapshot: &Snapshot,
    text: Option<&String>,
) -> Result<Option<PortIndex>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    let found = snapshot.named_port(text);
    found.map(Some).ok_or_else(|| {
        refusal::of_look(format!("port {text:?} is not there; `plinth switch ports` lists all"))
    })
}

/// The VPC that is named, if one is.
pub(crate) fn vpc(snapshot: &Snapshot, text: Option<&String>) -> Result<Option<Vni>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    let found = snapshot.named_vpc(text);
    found.map(Some).ok_or_else(|| {
        let text = format!("vpc {text:?} is not on this node, nor is it a VNI; `plinth vpc list`");
        refusal::of_look(text)
    })
}

/// Drops of every port that is asked about, most packets first.
pub(crate) fn drops(
    snapshot: &Snapshot,
    query: &DropQuery,
    ports: &[PortStatus],
) -> Result<Vec<DropRow>, Refusal> {
    let place = port(snapshot, query.port.as_ref())?;
    let vni = vpc(snapshot, query.vpc.as_ref())?;
    let vpcs = snapshot.settings().map(|config| &config.vpcs[..]).unwrap_or_default();
    let mut rows = Vec::new();
    for status in ports {
        let here = snapshot.port_index(status.id).unwrap_or(PortIndex::UPLINK);
        if place.is_some_and(|place| place != here) || vni.is_some() && status.vni != vni {
            continue;
        }
        let vpc = vpcs.iter().find(|vpc| Some(vpc.vni) == status.vni);
        rows.extend(status.drops.iter().map(|drop| DropRow {
            port: status.id,
            name: status.name.clone(),
            vni: status.vni,
            vpc: vpc.map(|vpc| vpc.name.to_string()),
            reason: drop.reason.clone(),
            packets: drop.packets,
        }));
    }
    if let Some(reason) = &query.reason {
        let is_known = DropReason::ALL.iter().any(|known| known.name() == reason);
        if !is_known && !rows.iter().any(|row| row.reason == *reason) {
            let text = format!("drop reason {reason:?} is not known; docs/dataplane.md lists all");
            return Err(refusal::of_look(text));
        }
        rows.retain(|row| row.reason == *reason);
    }
    rows.sort_by(|left, right| {
        right.packets.cmp(&left.packets).then_with(|| left.port.cmp(&right.port))
    });
    Ok(rows)
}

/// A page of the flow table. The worker is asked for small steps and forwards between them.
pub(crate) fn flows(
    worker: &WorkerPort,
    snapshot: &Snapshot,
    query: &FlowQuery,
) -> Result<FlowPage, Refusal> {
    let filter = FlowFilter {
        place: port(snapshot, query.port.as_ref())?,
        vni: vpc(snapshot, query.vpc.as_ref())?,
        address: query.address,
        protocol: query.protocol,
        number: query.number,
        state: query.state.as_deref().map(state).transpose()?,
    };
    if !(1..=FLOW_PAGE_MAX).contains(&query.limit) {
        let text = format!("{} flows at once are not possible; 1 to {FLOW_PAGE_MAX}", query.limit);
        return Err(refusal::of_look(text));
    }
    let limit = query.limit as usize;
    let mut flows: Vec<FlowCopy> = Vec::new();
    let mut next = Some(query.cursor.unwrap_or(0));
    while let Some(from) = next
        && flows.len() < limit
    {
        // Whole buckets only, so that the cursor says where to go on: a page may have a few more.
        let room = (limit - flows.len()).min(STEP_ROWS) + FLOW_ROOM_MIN;
        let room = Vec::with_capacity(room);
        let scanned = worker.scan(from, filter, room).map_err(|err| refusal::of_worker(&err))?;
        flows.extend_from_slice(&scanned.rows);
        next = scanned.next;
    }
    let names = snapshot.settings().map(|config| &config.ports[..]).unwrap_or_default();
    let rows = flows.iter().map(|flow| {
        let mut row = flow.row();
        let named = names.iter().find(|port| port.id == row.port);
        row.name = named.map_or_else(|| "uplink".to_owned(), |port| port.name.to_string());
        row
    });
    Ok(FlowPage { flows: rows.collect(), next })
}

fn state(name: &str) -> Result<&'static str, Refusal> {
    FlowFilter::state(name).ok_or_else(|| {
        let known = FlowFilter::states().join(", ");
        refusal::of_look(format!("no connection is ever {name:?}; states are {known}"))
    })
}
