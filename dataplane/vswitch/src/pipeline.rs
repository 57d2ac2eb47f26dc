// SPDX-License-Identifier: Apache-2.0
//! A burst's way through the machine, in three passes.
//!
//! 1. Every packet is parsed and, if it belongs to a flow, hashed; ARP, ND and the underlay's own
//!    packets are answered here.
//! 2. The flow table's cache lines for all hashes are brought close, so that their misses overlap.
//! 3. Every flow's packet is looked up. A hit does what its entry says; a miss asks the stages,
//!    which decide once, and keeps the decision. Either way the same function carries it out.

use crate::external::OUTSIDE;
use crate::flow::{FlowTable, Ingress, Touched};
use crate::judge::Judge;
use crate::snapshot::Snapshot;
use crate::stages::answer::{self, Answer, Asker};
use crate::stages::parse::{Class, Parsed, parse};
use crate::stages::tunnel::{self, Decapsulated};
use crate::stages::{guard, piece, router, too_big, underlay};
use crate::switch::Switch;
use crate::{DropReason, Packet, PortIndex, Verdict};
use plinth_ids::{Moment, Vni};
use plinth_wire::NdChecksum;
use std::sync::Arc;

/// A packet that belongs to a flow and waits for the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    is_waiting: bool,
    pub(crate) parsed: Parsed,
    pub(crate) hash: u64,
    /// The VPC that it came in: its port's, or its tunnel header's.
    pub(crate) vni: Vni,
    /// Set for a packet from the wire.
    pub(crate) tunnel: Option<Decapsulated>,
    pub(crate) wholeness: Wholeness,
    /// Where the flow table probably has it.
    pub(crate) place: usize,
}

/// Whether what has a flow's key is a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wholeness {
    Whole,
    /// Its first piece: the headers are there, and not the length.
    First,
    /// Another one: not even those.
    Later,
}

/// Of a packet whose VPC is not known yet.
const NO_VNI: Vni = Vni::new(0).expect("0 fits 24 bits");

impl Waiting {
    pub(crate) const NOTHING: Self = Self {
        is_waiting: false,
        parsed: Parsed::NOTHING,
        hash: 0,
        vni: NO_VNI,
        tunnel: None,
        wholeness: Wholeness::Whole,
        place: 0,
    };
}

/// After the first pass, a packet either waits for the table or is done.
pub(crate) enum Pass {
    Waiting,
    Done(Verdict),
}

pub(crate) fn run(switch: &mut Switch, now: Moment, packets: &mut [Packet]) {
    // Once a burst: snapshot and scratch are held by handles of their own, so that the tables
    // beside them can be written. This counts a reference and does not allocate.
    let snapshot = Arc::clone(&switch.snapshot);
    let mut waiting = std::mem::take(&mut switch.waiting);
    for (packet, flow) in packets.iter_mut().zip(&mut waiting) {
        let pass = arrive(switch, &snapshot, now, packet, flow);
        flow.is_waiting = matches!(pass, Ok(Pass::Waiting));
        match pass {
            Ok(Pass::Waiting) => {}
            Ok(Pass::Done(verdict)) => packet.set_verdict(verdict),
            Err(reason) => packet.set_verdict(Verdict::Drop(reason)),
        }
    }
    let waiting_now = &mut waiting[..packets.len()];
    if switch.beginnings >= BEGINNINGS_MIN {
        touch_beginnings(&switch.flows, waiting_now);
    }
    touch(&switch.flows, waiting_now);
    let made_before = switch.flow_counters.made;
    for (packet, flow) in packets.iter_mut().zip(&*waiting_now) {
        if flow.is_waiting {
            let verdict = Judge { switch, snapshot: &snapshot, now, packet, flow }.decide();
            let verdict = verdict
                .unwrap_or_else(|reason| refuse(switch, &snapshot, now, packet, (flow, reason)));
            packet.set_verdict(verdict);
        }
        count(switch, packet);
    }
    switch.beginnings = switch.flow_counters.made - made_before;
    if snapshot.has_limits {
        hold_to_limits(switch, now, packets);
    }
    switch.waiting = waiting;
}

/// Brings close what the packets' flows need, line by line: every pass asks for lines that the one
/// before has shown the way to, and none of them waits for another packet's.
#[inline]
fn touch(flows: &FlowTable, waiting: &mut [Waiting]) {
    let mut touched = Touched::default();
    for flow in waiting.iter().filter(|flow| flow.is_waiting) {
        touched.and(flows.touch_bucket(flow.hash));
    }
    for flow in waiting.iter_mut().filter(|flow| flow.is_waiting) {
        let (place, entry) = flows.touch(flow.hash);
        flow.place = place;
        touched.and(entry);
    }
    for flow in waiting.iter().filter(|flow| flow.is_waiting) {
        touched.and(flows.touch_connection(flow.place));
    }
    touched.end();
}

/// From so many beginnings in a burst on, the next one's are looked after.
const BEGINNINGS_MIN: u64 = 8;

/// Brings close what beginnings need, in two passes of their own: the buckets of both directions,
/// and what will be written. Which packets begin is known only after a bucket has come, and hits
/// would pay a tenth for asking; so it is done when the burst before had many.
#[inline(never)]
fn touch_beginnings(flows: &FlowTable, waiting: &[Waiting]) {
    let mut touched = Touched::default();
    for flow in waiting.iter().filter(|flow| flow.is_waiting) {
        touched.and(flows.touch_buckets(flow.hash));
    }
    let absent = waiting.iter().filter(|flow| flow.is_waiting && flows.is_absent(flow.hash));
    for (nth, flow) in absent.enumerate() {
        touched.and(flows.touch_room(flow.hash, nth));
    }
    touched.end();
}

/// Counts what was taken from ports, and drops what their receivers' limits do not let pass.
#[inline(never)]
fn hold_to_limits(switch: &mut Switch, now: Moment, packets: &mut [Packet]) {
    for packet in packets {
        switch.rates.spend(packet.port(), packet.length());
        let Verdict::Send(to) = packet.verdict() else { continue };
        // An answer of the switch's own costs nobody anything.
        if to != packet.port() && !switch.rates.admit(now, to, packet.output_length()) {
            switch.undelivered(packet, DropReason::InboundRateExceeded);
            packet.set_verdict(Verdict::Drop(DropReason::InboundRateExceeded));
        }
    }
}

/// The end of a packet that is not forwarded, of which its sender may have to be told.
#[cold]
fn refuse(
    switch: &mut Switch,
    snapshot: &Snapshot,
    now: Moment,
    packet: &mut Packet,
    (flow, reason): (&Waiting, DropReason),
) -> Verdict {
    if reason == DropReason::TimeToLiveExceeded
        && let Some(port) = snapshot.port(packet.port())
    {
        let budget = &mut switch.errors;
        if router::time_exceeded(snapshot, budget, now, packet, &flow.parsed, port).is_some() {
            return Verdict::Send(packet.port());
        }
    }
    Verdict::Drop(reason)
}

/// The first pass for one packet.
pub(crate) fn arrive(
    switch: &mut Switch,
    snapshot: &Snapshot,
    now: Moment,
    packet: &mut Packet,
    flow: &mut Waiting,
) -> Result<Pass, DropReason> {
    let pass = if packet.port() == PortIndex::UPLINK {
        arrive_from_wire(switch, snapshot, now, packet, flow)
    } else {
        arrive_from_guest(switch, snapshot, now, packet, flow)
    }?;
    if matches!(pass, Pass::Waiting) {
        let place = packet.port();
        let incarnation = switch.incarnations[place.get()];
        flow.parsed.key.set_ingress(Ingress { place: place.0, incarnation, vni: flow.vni });
        flow.hash = switch.flows.hash(&flow.parsed.key);
    }
    Ok(pass)
}

fn arrive_from_guest(
    switch: &mut Switch,
    snapshot: &Snapshot,
    now: Moment,
    packet: &mut Packet,
    flow: &mut Waiting,
) -> Result<Pass, DropReason> {
    let index = packet.port();
    let port = snapshot.port(index).ok_or(DropReason::PortUnknown)?;
    (flow.vni, flow.tunnel) = (port.vni, None);
    let length = packet.length() as usize;
    let too_long = (port.frame_length_max, DropReason::PortMtuExceeded);
    if packet.length() > port.frame_length_max && packet.segmentation().is_none() {
        parse(packet.head(), length, &mut flow.parsed).map_err(|_| too_long.1)?;
        return too_big::tell(switch, snapshot, now, (packet, flow), too_long).map(Pass::Done);
    }
    parse(packet.head(), length, &mut flow.parsed)?;
    let partial = packet.offload().partial;
    guard::check_offload(partial, &flow.parsed, length)?;
    match guard::check_segmentation(packet, &flow.parsed, port.frame_length_max) {
        Err(DropReason::PortMtuExceeded) => {
            return too_big::tell(switch, snapshot, now, (packet, flow), too_long).map(Pass::Done);
        }
        judged => judged?,
    }
    if flow.parsed.key.is_fragment() {
        piece::check(packet.head(), &flow.parsed)?;
    }
    if !matches!(flow.parsed.class, Class::Flow | Class::Error) {
        let asker = Asker::Guest { index, port };
        let checksum = if partial.is_some() { NdChecksum::Partial } else { NdChecksum::Complete };
        let answer = answered(snapshot, asker, &flow.parsed, packet, checksum)?;
        return Ok(Pass::Done(put(packet, &answer)));
    }
    Ok(Pass::Waiting)
}

fn arrive_from_wire(
    switch: &mut Switch,
    snapshot: &Snapshot,
    now: Moment,
    packet: &mut Packet,
    flow: &mut Waiting,
) -> Result<Pass, DropReason> {
    let uplink = snapshot.uplink.as_ref().ok_or(DropReason::PortUnknown)?;
    // What the wire brings is whole: nobody there could have left a checksum to us.
    if packet.offload().partial.is_some() || packet.segmentation().is_some() {
        return Err(DropReason::OffloadInvalid);
    }
    let datagram =
        match underlay::arrive(uplink, &snapshot.external, &mut switch.neighbors, now, packet)? {
            underlay::Arrival::Datagram(datagram) => datagram,
            underlay::Arrival::External(place) => {
                if !switch.external.count_in(now, place, packet.length()) {
                    return Err(DropReason::ExternalRateExceeded);
                }
                parse(packet.head(), packet.output_length() as usize, &mut flow.parsed)?;
                flow.vni = OUTSIDE;
                flow.tunnel = None;
                return Ok(Pass::Waiting);
            }
            underlay::Arrival::Answered => return Ok(Pass::Done(Verdict::Send(PortIndex::UPLINK))),
            underlay::Arrival::Absorbed => return Ok(Pass::Done(Verdict::Absorbed)),
        };
    let from = tunnel::decapsulate(snapshot, packet, datagram)?;
    parse(packet.head(), packet.output_length() as usize, &mut flow.parsed)?;
    if !matches!(flow.parsed.class, Class::Flow | Class::Error) {
        let asker = Asker::Tunnel { vni: from.vni };
        let answer = answered(snapshot, asker, &flow.parsed, packet, NdChecksum::Complete)?;
        let verdict = put(packet, &answer);
        if matches!(verdict, Verdict::Send(_)) {
            let source_port = tunnel::source_port(switch.flows.hash(&flow.parsed.key));
            let way = (from.tunnel, from.vni, source_port);
            tunnel::encapsulate(snapshot, uplink, &switch.neighbors, packet, way)?;
        }
        return Ok(Pass::Done(verdict));
    }
    flow.parsed.expected.set_vtep(datagram.source);
    flow.vni = from.vni;
    flow.tunnel = Some(from);
    Ok(Pass::Waiting)
}

/// The answer to a packet that belongs to no flow: what is not ND is ARP.
fn answered(
    snapshot: &Snapshot,
    asker: Asker<'_>,
    parsed: &Parsed,
    packet: &Packet,
    checksum: NdChecksum,
) -> Result<Answer, DropReason> {
    let bytes = packet.head();
    match parsed.class {
        Class::Nd(kind) => answer::nd(snapshot, asker, parsed, kind, bytes, checksum),
        Class::Arp | Class::Flow | Class::Error => answer::arp(snapshot, asker, parsed, bytes),
    }
}

/// Puts an answer in the packet's place.
fn put(packet: &mut Packet, answer: &Answer) -> Verdict {
    match answer {
        Answer::Arp(frame) => packet.replace(frame),
        Answer::Nd(frame) => packet.replace(frame),
        Answer::Silence => return Verdict::Absorbed,
    }
    Verdict::Send(packet.port())
}

fn count(switch: &mut Switch, packet: &Packet) {
    let (here, verdict) = (packet.port(), packet.verdict());
    switch.counters[here.get()].count_received(here, packet.length(), verdict);
    if let Verdict::Send(to) = verdict {
        switch.counters[to.get()].count_sent(packet.output_length());
    }
}
