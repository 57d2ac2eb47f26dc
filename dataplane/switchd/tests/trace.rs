// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! What the real process says of a packet before it comes is what it does when it comes.

#[allow(dead_code, reason = "other tests of the process use the rest")]
mod support;

use plinth_switch_api::{
    Answer, DropQuery, DropRow, FlowQuery, Look, PortStatus, Refusal, Sight, Trace, TraceFrom,
    TracePacket, TraceQuery, TraceVerdict, Verb,
};
use support::{Daemon, Guest, address, config, eventually, mac};

/// A UDP datagram of `from`, which says that it is `says`, to port 53 of `to`.
fn udp(from: u32, says: u32, to: u32) -> Vec<u8> {
    let mut frame = [mac(to).0, mac(from).0].concat();
    frame.extend([8, 0, 0x45, 0, 0, 32, 0, 1, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(address(says).octets());
    frame.extend(address(to).octets());
    let sum = plinth_wire::checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0x10, 0, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    frame.resize(60, 0);
    frame
}

fn look(daemon: &Daemon, look: Look) -> Result<Sight, Refusal> {
    match daemon.ask(Verb::Look(look))? {
        Answer::Sight(sight) => Ok(sight),
        other => panic!("a look is answered with {other:?}"),
    }
}

fn trace(daemon: &Daemon, from: &str, packet: TracePacket) -> Result<Trace, Refusal> {
    let query = TraceQuery { from: TraceFrom::Port(from.to_owned()), packet };
    match look(daemon, Look::Trace(query))? {
        Sight::Trace(trace) => Ok(trace),
        other => panic!("a trace is {other:?}"),
    }
}

fn seen(frame: &[u8]) -> TracePacket {
    let head = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    TracePacket::Seen { head, length: u32::try_from(frame.len()).unwrap() }
}

fn imagined(says: u32, to: u32) -> TracePacket {
    TracePacket::Imagined {
        source: Some(address(says).into()),
        destination: address(to).into(),
        protocol: 17,
        source_port: 4096,
        destination_port: 53,
        tcp_flags: 0,
        time_to_live: 64,
        payload: 4,
    }
}

fn ports(daemon: &Daemon) -> Vec<PortStatus> {
    match daemon.ask(Verb::Ports).unwrap() {
        Answer::Ports(ports) => ports,
        other => panic!("ports are {other:?}"),
    }
}

fn drops(daemon: &Daemon) -> Vec<DropRow> {
    let query = DropQuery { port: None, vpc: None, reason: None };
    match look(daemon, Look::Drops(query)).unwrap() {
        Sight::Drops(rows) => rows,
        other => panic!("drops are {other:?}"),
    }
}

fn flows(daemon: &Daemon) -> usize {
    let query = FlowQuery { limit: 100, ..FlowQuery::default() };
    match look(daemon, Look::Flows(query)).unwrap() {
        Sight::Flows(page) => page.flows.len(),
        other => panic!("flows are {other:?}"),
    }
}

#[test]
fn a_trace_says_what_then_happens_and_leaves_nothing_behind() {
    let daemon = Daemon::start();
    let list = vec![daemon.port(1, 5), daemon.port(2, 5)];
    daemon.apply(&config(1, list.clone())).unwrap();
    let [mut first, mut second] = [0, 1].map(|nth: usize| Guest::connect(&list[nth].socket));
    let before = eventually("both guests are there", || {
        let ports = ports(&daemon);
        ports.iter().all(|port| port.is_up).then_some(ports)
    });
    let name = |nth: usize| list[nth].name.to_string();
    let sent = TraceVerdict::Sent(name(1));
    for packet in [imagined(1, 2), seen(&udp(1, 1, 2))] {
        assert_eq!(trace(&daemon, "1", packet).unwrap().verdict, sent);
    }
    let mut reason = String::new();
    for packet in [imagined(3, 2), seen(&udp(1, 3, 2))] {
        let told = trace(&daemon, &name(0), packet).unwrap();
        let last = told.steps.last().unwrap();
        assert_eq!(last.stage, "source");
        reason = last.refused.clone().unwrap();
        assert_eq!(told.verdict, TraceVerdict::Dropped(reason.clone()));
    }
    assert_eq!((ports(&daemon), drops(&daemon), flows(&daemon)), (before, Vec::new(), 0));
    first.send(&udp(1, 3, 2), None);
    first.send(&udp(1, 1, 2), None);
    assert_eq!(second.receive().1, udp(1, 1, 2));
    let told: Vec<_> = drops(&daemon).into_iter().map(|row| (row.reason, row.packets)).collect();
    assert_eq!(told, [(reason, 1)]);
    assert_eq!(flows(&daemon), 1);
}

#[test]
fn a_trace_that_cannot_be_is_refused() {
    let daemon = Daemon::start();
    let list = vec![daemon.port(1, 5)];
    daemon.apply(&config(1, list)).unwrap();
    let head = |head: &str, length| TracePacket::Seen { head: head.to_owned(), length };
    for (from, packet) in [
        ("nobody", imagined(1, 2)),
        ("1", head("0", 60)),
        ("1", head("zz", 60)),
        ("1", head("+1", 60)),
        ("1", head("00", 60)),
        ("1", head(&"00".repeat(5000), 5000)),
        ("uplink", imagined(1, 2)),
    ] {
        assert_eq!(trace(&daemon, from, packet).unwrap_err().code, "look-invalid", "{from}");
    }
}
