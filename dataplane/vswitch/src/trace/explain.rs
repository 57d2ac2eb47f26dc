// SPDX-License-Identifier: Apache-2.0
//! The questions of the slow path, put one after the other, with their answers in words.

use super::Step;
use crate::carry::check_alive;
use crate::flow::{Action, FlowKey};
use crate::pipeline::{Pass, Waiting, arrive};
use crate::security::Question;
use crate::snapshot::{Port, Snapshot};
use crate::stages::forward::{self, Decision, Judgment};
use crate::stages::guard;
use crate::stages::security::{self, Ends};
use crate::switch::Switch;
use crate::vpc::Hop;
use crate::{DropReason, Packet, PortIndex, Verdict};
use plinth_ids::{Moment, Vni};
use plinth_switch_api::Direction;
use plinth_wire::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};
use std::net::IpAddr;

fn step(stage: &'static str, text: impl Into<String>) -> Step {
    Step { stage, text: text.into(), refused: None }
}

fn refused(stage: &'static str, text: impl Into<String>, reason: DropReason) -> Step {
    Step { stage, text: text.into(), refused: Some(reason) }
}

/// Everything until the packet is put out, or refused. `verdict` is what became of it.
pub(super) fn before(
    switch: &mut Switch,
    now: Moment,
    packet: &mut Packet,
    verdict: Verdict,
) -> Vec<Step> {
    let snapshot = std::sync::Arc::clone(&switch.snapshot);
    let mut flow = Waiting::NOTHING;
    let mut steps = vec![ingress(&snapshot, packet)];
    match arrive(switch, &snapshot, now, packet, &mut flow) {
        Err(reason) => {
            steps.push(refused("parse", "the headers, or the tunnel around them", reason));
            return steps;
        }
        Ok(Pass::Done(_)) => {
            steps.push(step("parse", "ARP, neighbor discovery or the underlay's own"));
            return steps;
        }
        Ok(Pass::Waiting) => {}
    }
    if let Some(tunnel) = flow.tunnel {
        let vtep = snapshot.tunnel(tunnel.tunnel).vtep;
        steps.push(step("tunnel", format!("from {vtep}, {}", vpc_name(&snapshot, tunnel.vni))));
    }
    steps.push(step("parse", of_key(&flow.parsed.key)));
    let mut walk = Walk { switch, snapshot: &snapshot, now, packet, flow: &flow, verdict, steps };
    // What ends the way has written its step down.
    let _ = walk.go();
    walk.steps
}

/// What is done with it in the end.
pub(super) fn end(snapshot: &Snapshot, packet: &Packet) -> Step {
    match packet.verdict() {
        Verdict::Drop(reason) => refused("output", "", reason),
        Verdict::Absorbed => step("output", "the switch takes notice, nothing is sent"),
        Verdict::Ask => step("output", "answered beside the worker: DHCP, DNS or metadata"),
        Verdict::Send(to) if to == packet.port() => {
            step("output", format!("an answer of the switch, {} bytes", packet.output_length()))
        }
        Verdict::Send(PortIndex::UPLINK) => {
            step("output", format!("uplink, {} bytes", packet.output_length()))
        }
        Verdict::Send(to) => {
            let name = snapshot.port(to).map_or("?", |port| port.name.as_str());
            step("output", format!("port {name}, {} bytes", packet.output_length()))
        }
    }
}

fn ingress(snapshot: &Snapshot, packet: &Packet) -> Step {
    let length = packet.length();
    let text = match snapshot.port(packet.port()) {
        None if packet.port() == PortIndex::UPLINK => format!("uplink, {length} bytes"),
        None => format!("a port that is not there, {length} bytes"),
        Some(port) => {
            format!("port {} of {}, {length} bytes", port.name, vpc_name(snapshot, port.vni))
        }
    };
    step("ingress", text)
}

fn vpc_name(snapshot: &Snapshot, vni: Vni) -> String {
    match snapshot.vpc(vni) {
        Some(vpc) => format!("vpc {} (vni {vni})", vpc.name),
        None => format!("vni {vni}"),
    }
}

fn of_key(key: &FlowKey) -> String {
    let (source, destination) = key.addresses();
    let protocol = match key.protocol() {
        PROTOCOL_TCP => "tcp".to_owned(),
        PROTOCOL_UDP => "udp".to_owned(),
        PROTOCOL_ICMP => "icmp".to_owned(),
        PROTOCOL_ICMPV6 => "icmpv6".to_owned(),
        other => format!("protocol {other}"),
    };
    if key.is_fragment() {
        return format!("a piece of {protocol} {source} > {destination}");
    }
    if !key.has_ports() {
        return format!("{protocol} {source} > {destination}");
    }
    if key.is_icmp() {
        let [kind, code] = key.destination_port().to_be_bytes();
        return format!("{protocol} {source} > {destination} type {kind} code {code}");
    }
    let (from, to) = (key.source_port(), key.destination_port());
    let end = |address: IpAddr, port: u16| std::net::SocketAddr::new(address, port);
    format!("{protocol} {} > {}", end(source, from), end(destination, to))
}

/// The way has ended, and its last step says so.
struct Ended;

struct Walk<'a> {
    switch: &'a Switch,
    snapshot: &'a Snapshot,
    now: Moment,
    packet: &'a Packet,
    flow: &'a Waiting,
    verdict: Verdict,
    steps: Vec<Step>,
}

impl Walk<'_> {
    fn go(&mut self) -> Result<(), Ended> {
        self.source()?;
        self.route();
        let Some(decision) = self.judgment()? else { return Ok(()) };
        if decision.way.route.is_some() {
            let is_ipv4 = self.flow.parsed.key.is_ipv4();
            if let Err(reason) = check_alive(self.packet, is_ipv4) {
                return self.end("route", "its time to live ends here".to_owned(), reason);
            }
        }
        self.connection()?;
        self.rules(&decision)
    }

    fn say(&mut self, stage: &'static str, text: impl Into<String>) {
        self.steps.push(step(stage, text));
    }

    fn end(&mut self, stage: &'static str, text: String, reason: DropReason) -> Result<(), Ended> {
        self.steps.push(refused(stage, text, reason));
        Err(Ended)
    }

    /// Whether a guest may call itself so.
    fn source(&mut self) -> Result<(), Ended> {
        let Some(port) = self.snapshot.port(self.packet.port()) else { return Ok(()) };
        let mac = self.flow.parsed.expected.source();
        let text = format!("{mac} {}", self.flow.parsed.key.addresses().0);
        match guard::check_source(port, &self.flow.parsed) {
            Ok(()) => self.say("source", format!("{text} is the port's")),
            Err(reason) => return self.end("source", format!("{text} is not the port's"), reason),
        }
        Ok(())
    }

    /// What the routes of the VPC say, if the packet is its router's.
    fn route(&mut self) {
        let mac = self.flow.parsed.expected.destination();
        let destination = self.flow.parsed.key.addresses().1;
        let Some(vpc) = self.snapshot.vpc(self.flow.vni) else { return };
        if !vpc.is_router(mac) {
            return self.say("route", format!("none: to {mac}, which is not the router's"));
        }
        if vpc.is_router_address(destination) {
            return self.say("route", format!("{destination} is the router's own"));
        }
        let text = match vpc.longest(destination) {
            None => format!("no route to {destination}"),
            Some((prefix, hop)) => {
                let hop = match hop {
                    Hop::Connected => "of a subnet here".to_owned(),
                    Hop::Address(address) => format!("by {address}"),
                    Hop::Peer(peer) => format!("into {}", vpc_name(self.snapshot, peer)),
                    Hop::External => "to the outside".to_owned(),
                    Hop::Blackhole => "nowhere".to_owned(),
                };
                format!("{prefix} {hop}")
            }
        };
        self.say("route", text);
    }

    /// Asks what the worker asks of the first packet of a flow.
    fn judgment(&mut self) -> Result<Option<Decision>, Ended> {
        let Self { switch, snapshot, now, flow, .. } = self;
        let judged = forward::judge(switch, snapshot, *now, self.packet.port(), flow, None);
        let decision = match judged {
            Err(reason) => {
                let text = format!("to {}", self.flow.parsed.expected.destination());
                return self.end("forward", text, reason).map(|()| None);
            }
            Ok(Judgment::Router) => {
                self.say("forward", "to the router itself");
                return Ok(None);
            }
            Ok(Judgment::Question) => {
                self.say("forward", "a question that is answered beside the worker");
                return Ok(None);
            }
            Ok(Judgment::Pieces) => {
                self.say("forward", "a piece: the packet's first one decides");
                return Ok(None);
            }
            Ok(Judgment::Forward(decision)) => decision,
        };
        if let Some(translation) = &decision.translation {
            self.say("translate", format!("goes as {}", of_key(&translation.key)));
        }
        let text = match decision.way.action {
            Action::Deliver(to) => {
                let name = self.snapshot.port(to).map_or("?", |port| port.name.as_str());
                format!("port {name} here")
            }
            Action::Encapsulate { tunnel, .. } => {
                let vni = decision.way.route.map_or(self.flow.vni, |route| route.vni);
                let tunnel = self.snapshot.tunnel(tunnel);
                format!("tunnel to {} with vni {vni}, {}", tunnel.vtep, self.hop(tunnel.next_hop))
            }
            Action::External { next_hop, .. } => format!("the outside, {}", self.hop(next_hop)),
            Action::Drop(reason) => {
                let text = "nobody has the destination".to_owned();
                return self.end("forward", text, reason).map(|()| None);
            }
        };
        self.say("forward", text);
        Ok(Some(decision))
    }

    fn hop(&self, place: u16) -> String {
        let uplink = self.snapshot.uplink.as_ref();
        let address = uplink.and_then(|uplink| uplink.next_hops.get(usize::from(place)));
        let address = address.map_or_else(|| "?".to_owned(), ToString::to_string);
        match self.switch.neighbors.mac(place) {
            Some(mac) => format!("next hop {address} at {mac}"),
            None => format!("next hop {address}, whose MAC is not known"),
        }
    }

    /// What nobody's rules are asked about: a packet that cannot begin a connection.
    fn connection(&mut self) -> Result<(), Ended> {
        match self.verdict {
            Verdict::Drop(
                reason @ (DropReason::TcpFlagsInvalid
                | DropReason::TcpNoConnection
                | DropReason::IcmpUnrelated
                | DropReason::FragmentUnmatched),
            ) => self.end("connection", "there is none, and this begins none".to_owned(), reason),
            _ => Ok(()),
        }
    }

    /// The rules of both ends, as a connection's first packet is judged.
    fn rules(&mut self, decision: &Decision) -> Result<(), Ended> {
        let key = self.flow.parsed.key;
        let going = decision.translation.map_or(key, |translation| translation.key);
        let ends = Ends::new(self.snapshot, self.packet.port(), decision.way.action);
        let snapshot = self.snapshot;
        let is_denied = self.verdict == Verdict::Drop(DropReason::SecurityGroupDenied);
        if !is_denied && security::permit(snapshot, &ends, &key, &going).is_err() {
            self.say("connection", "taken for begun by the other end, whose rules allow it");
            return Ok(());
        }
        for (port, question) in security::questions(snapshot, &ends, &key, &going) {
            let (text, is_allowed) = ruling(snapshot, port, &question);
            let stage = match question.direction {
                Direction::Outbound => "rules out",
                Direction::Inbound => "rules in",
            };
            if !is_allowed {
                return self.end(stage, text, DropReason::SecurityGroupDenied);
            }
            self.say(stage, text);
        }
        Ok(())
    }
}

/// Which rule says what, in the words of the configuration.
fn ruling(snapshot: &Snapshot, port: &Port, question: &Question) -> (String, bool) {
    let ruling = snapshot.judge(port, question);
    let Some(rule) = ruling.rule else {
        return (format!("port {}: no rule allows it", port.name), ruling.is_allowed);
    };
    let name = snapshot.security().name_of(rule.group);
    let name = name.map_or_else(|| rule.group.to_string(), ToString::to_string);
    let says = if ruling.is_allowed { "allowed" } else { "denied" };
    // People count from one, and so does the list of a group.
    let number = u32::from(rule.index) + 1;
    let text = format!("port {}: {says} by rule {number} of group {name}", port.name);
    (text, ruling.is_allowed)
}
