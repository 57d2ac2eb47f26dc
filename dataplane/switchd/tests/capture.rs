// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! What a person who begins a capture is given by the real process.

#[allow(dead_code, reason = "other tests of the process use the rest")]
mod support;

use plinth_switch_api::{
    Answer, CapturePage, CaptureQuery, CaptureRow, CaptureWish, Look, Refusal, Sight, Verb,
};
use support::{Daemon, Guest, address, config, eventually, mac};

const ALL: CaptureQuery = CaptureQuery {
    port: None,
    filter: CaptureWish {
        inbound: false,
        outbound: false,
        address: None,
        protocol: None,
        number: None,
        vni: None,
        dropped: false,
    },
    packets: 1000,
    bytes: 1_000_000,
    seconds: 60,
    snap: 256,
};

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

fn begin(daemon: &Daemon, query: &CaptureQuery) -> Result<u64, Refusal> {
    match look(daemon, Look::CaptureBegin(query.clone()))? {
        Sight::CaptureBegun(begun) => Ok(begun.capture),
        other => panic!("a capture begins with {other:?}"),
    }
}

fn page(daemon: &Daemon, question: Look) -> Result<CapturePage, Refusal> {
    match look(daemon, question)? {
        Sight::Capture(page) => Ok(page),
        other => panic!("a capture is read as {other:?}"),
    }
}

/// Everything until it is over.
fn rest(daemon: &Daemon, capture: u64) -> Vec<CaptureRow> {
    let mut rows = Vec::new();
    eventually("the capture is over", || {
        let page = page(daemon, Look::CaptureRead(capture)).unwrap();
        rows.extend(page.packets);
        page.is_over.then_some(())
    });
    rows
}

fn pair() -> (Daemon, Guest, Guest) {
    let daemon = Daemon::start();
    let ports = vec![daemon.port(1, 5), daemon.port(2, 5)];
    daemon.apply(&config(1, ports.clone())).unwrap();
    let [first, second] = [0, 1].map(|nth: usize| Guest::connect(&ports[nth].socket));
    (daemon, first, second)
}

fn digits(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_person_sees_what_passes_and_why_the_rest_does_not() {
    let (daemon, mut first, mut second) = pair();
    let capture = begin(&daemon, &CaptureQuery { packets: 3, ..ALL }).unwrap();
    let (good, spoofed) = (udp(1, 1, 2), udp(1, 3, 2));
    first.send(&good, None);
    assert_eq!(second.receive().1, good);
    first.send(&spoofed, None);
    let rows = rest(&daemon, capture);
    let told: Vec<_> =
        rows.iter().map(|row| (row.port.0, row.came_in, row.drop.as_deref())).collect();
    assert_eq!(told[..2], [(1, true, None), (2, false, None)]);
    let (port, came_in, drop) = told[2];
    assert!((port, came_in) == (1, true) && drop.is_some(), "{told:?}");
    assert_eq!(rows[0].head, digits(&good));
    assert_eq!(rows[2].head, digits(&spoofed));
    assert_eq!(rows[0].length, 60);
    // The bound was reached: what comes now is nobody's.
    first.send(&good, None);
    second.receive();
    let after = page(&daemon, Look::CaptureRead(capture)).unwrap();
    assert!(after.is_over && after.packets.is_empty(), "{after:?}");
}

#[test]
fn a_capture_is_filtered_cut_and_ended() {
    let (daemon, mut first, mut second) = pair();
    let filter = CaptureWish { outbound: true, number: Some(53), ..ALL.filter };
    let query = CaptureQuery { port: Some("2".to_owned()), filter, snap: 20, ..ALL };
    let capture = begin(&daemon, &query).unwrap();
    first.send(&udp(1, 1, 2), None);
    second.receive();
    let refusal = begin(&daemon, &query).unwrap_err();
    assert_eq!(refusal.code, "capture-running");
    let ended = page(&daemon, Look::CaptureEnd(capture)).unwrap();
    let told: Vec<_> = ended.packets.iter().map(|row| (row.port.0, row.came_in)).collect();
    assert_eq!((told, ended.is_over), (vec![(2, false)], true));
    assert_eq!(ended.packets[0].head, digits(&udp(1, 1, 2)[..20]));
    first.send(&udp(1, 1, 2), None);
    second.receive();
    assert_eq!(page(&daemon, Look::CaptureRead(capture)).unwrap().packets, []);
    let other = CaptureWish { number: Some(54), ..filter };
    let next = begin(&daemon, &CaptureQuery { filter: other, ..query }).unwrap();
    first.send(&udp(1, 1, 2), None);
    second.receive();
    assert_eq!(page(&daemon, Look::CaptureEnd(next)).unwrap().packets, []);
    assert_eq!(page(&daemon, Look::CaptureRead(capture)).unwrap_err().code, "capture-gone");
}

#[test]
fn what_finds_no_buffer_is_counted() {
    let (daemon, mut first, mut second) = pair();
    let capture = begin(&daemon, &CaptureQuery { packets: 100_000, ..ALL }).unwrap();
    // Two are shown of each, and 2048 buffers are there.
    for _ in 0..1100 {
        first.send(&udp(1, 1, 2), None);
        second.receive();
    }
    let ended = page(&daemon, Look::CaptureEnd(capture)).unwrap();
    assert!(!ended.is_over, "buffers are full of it");
    let shown = ended.packets.len() + rest(&daemon, capture).len();
    assert_eq!((shown, ended.missed), (2048, 152));
}

#[test]
fn a_capture_ends_with_its_time() {
    let (daemon, mut first, mut second) = pair();
    let capture = begin(&daemon, &CaptureQuery { seconds: 1, ..ALL }).unwrap();
    assert_eq!(rest(&daemon, capture), []);
    first.send(&udp(1, 1, 2), None);
    second.receive();
    assert_eq!(rest(&daemon, capture), []);
}

#[test]
fn a_capture_that_cannot_be_is_refused() {
    let daemon = Daemon::start();
    for wrong in [
        CaptureQuery { port: Some("nobody".to_owned()), ..ALL },
        CaptureQuery { packets: 0, ..ALL },
        CaptureQuery { packets: u64::MAX, ..ALL },
        CaptureQuery { bytes: 0, ..ALL },
        CaptureQuery { seconds: 0, ..ALL },
        CaptureQuery { snap: 257, ..ALL },
    ] {
        assert_eq!(begin(&daemon, &wrong).unwrap_err().code, "look-invalid", "{wrong:?}");
    }
    assert_eq!(page(&daemon, Look::CaptureRead(0)).unwrap_err().code, "capture-gone");
}
