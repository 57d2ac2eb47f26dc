// SPDX-License-Identifier: Apache-2.0
//! A packet's imagined way, on the management thread: of the worker, only what is in force is
//! asked.

use crate::look;
use crate::refusal;
use plinth_switch_api::{
    Refusal, Trace, TraceFrom, TracePacket, TraceQuery, TraceStep, TraceVerdict,
};
use plinth_vswitch::{
    ImagineError, Imagined, Packet, PortIndex, Scene, Sender, Traced, Verdict, load_seen,
};

/// The longest head that is taken; the switch looks at less.
const HEAD_MAX: usize = 4096;

pub(crate) fn trace(scene: &Scene, query: &TraceQuery) -> Result<Trace, Refusal> {
    let sender = sender(scene, &query.from)?;
    let refused = |error: ImagineError| refusal::of_look(error.to_string());
    let (packet, traced) = match &query.packet {
        TracePacket::Imagined {
            source,
            destination,
            protocol,
            source_port,
            destination_port,
            tcp_flags,
            time_to_live,
            payload,
        } => {
            let imagined = Imagined {
                source: *source,
                destination: *destination,
                protocol: *protocol,
                source_port: *source_port,
                destination_port: *destination_port,
                tcp_flags: *tcp_flags,
                time_to_live: *time_to_live,
                payload: *payload,
            };
            let mut packet = imagined.load(scene.snapshot(), sender).map_err(refused)?;
            let traced = scene.trace(&mut packet);
            (packet, traced)
        }
        TracePacket::Seen { head, length } => {
            let place = match sender {
                Sender::Guest(index) => index,
                Sender::Tunnel { .. } | Sender::Outside => PortIndex::UPLINK,
            };
            let head = bytes(head)?;
            let mut packet = load_seen(scene.snapshot(), place, &head, *length).map_err(refused)?;
            let traced = scene.trace_amid(&mut packet);
            (packet, traced)
        }
    };
    Ok(told(scene, &packet, traced))
}

fn sender(scene: &Scene, from: &TraceFrom) -> Result<Sender, Refusal> {
    let snapshot = scene.snapshot();
    match from {
        TraceFrom::Port(name) => match look::port(snapshot, Some(name))? {
            Some(PortIndex::UPLINK) | None => Ok(Sender::Outside),
            Some(index) => Ok(Sender::Guest(index)),
        },
        TraceFrom::Tunnel { vpc, vtep } => {
            let vni = look::vpc(snapshot, Some(vpc))?;
            let gone = || refusal::of_look(format!("vpc {vpc:?} is not on this node"));
            Ok(Sender::Tunnel { vni: vni.ok_or_else(gone)?, vtep: *vtep })
        }
        TraceFrom::Outside => Ok(Sender::Outside),
    }
}

fn bytes(digits: &str) -> Result<Vec<u8>, Refusal> {
    let wrong = || refusal::of_look("a packet's head is pairs of hexadecimal digits".to_owned());
    if digits.len() > 2 * HEAD_MAX || !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return Err(wrong());
    }
    let pairs = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16));
    pairs.collect::<Result<_, _>>().map_err(|_| wrong())
}

fn told(scene: &Scene, packet: &Packet, traced: Traced) -> Trace {
    let verdict = match traced.verdict {
        Verdict::Send(to) if to == packet.port() => TraceVerdict::Answered,
        Verdict::Send(PortIndex::UPLINK) => TraceVerdict::Sent("uplink".to_owned()),
        Verdict::Send(to) => {
            let ports = scene.snapshot().settings().map(|config| &config.ports[..]);
            let mut ports = ports.unwrap_or_default().iter();
            let found = ports.find(|port| scene.snapshot().port_index(port.id) == Some(to));
            TraceVerdict::Sent(found.map(|port| port.name.to_string()).unwrap_or_default())
        }
        Verdict::Absorbed => TraceVerdict::Absorbed,
        Verdict::Ask => TraceVerdict::Asked,
        Verdict::Drop(reason) => TraceVerdict::Dropped(reason.name().to_owned()),
    };
    let steps = traced.steps.into_iter().map(|step| TraceStep {
        stage: step.stage.to_owned(),
        text: step.text,
        refused: step.refused.map(|reason| reason.name().to_owned()),
    });
    Trace { steps: steps.collect(), verdict }
}
