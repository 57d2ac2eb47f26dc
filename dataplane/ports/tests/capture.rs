// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! What a capture shows of packets that pass and packets that are dropped.

#[allow(dead_code, reason = "other tests of the path use the rest")]
mod support;

use crossbeam_channel::bounded;
use plinth_ids::{Epoch, Moment};
use plinth_ports::{
    CaptureBounds, CaptureFilter, CaptureReader, DataPath, MemoryLink, Message, Port, PortSet,
    capture, memory_port,
};
use plinth_rt::{InboxSender, Poller, inbox};
use plinth_switch_api::SwitchConfig;
use plinth_vswitch::{Limits, Snapshot, Verdict};
use std::sync::Arc;
use support::{port, udp};

const BOUNDS: CaptureBounds =
    CaptureBounds { packets: 100, bytes: 10_000, time: Moment::from_secs(60), snap: 60 };

struct Bench {
    path: DataPath,
    sender: InboxSender<Message>,
    links: Vec<MemoryLink>,
}

impl Bench {
    fn new() -> Self {
        let limits = Limits { ports: 8, flows: 64, ..Limits::default() };
        let (sender, inbox) = inbox(64).unwrap();
        let (_, receiver) = bounded(64);
        let path = DataPath::new(inbox, receiver, limits, 7, None);
        let ports = vec![port(1, 100), port(2, 100)];
        let (mut set, mut links) = (PortSet::default(), Vec::new());
        for config in &ports {
            let (port, link) = memory_port(64);
            links.push(link);
            set.others.push((config.id, Port::Memory(port)));
        }
        let config = SwitchConfig { ports, ..SwitchConfig::empty(Epoch(1)) };
        let snapshot = Arc::new(Snapshot::compile(&config, &limits, &Arc::default()).unwrap());
        let (answer, _told) = bounded(1);
        sender.try_send(Message::Install { snapshot, ports: set, answer }).unwrap();
        let mut bench = Self { path, sender, links };
        bench.path.poll(Moment::from_secs(1));
        bench
    }

    fn begin(&mut self, filter: CaptureFilter, bounds: CaptureBounds) -> CaptureReader {
        let (worker, reader) = capture(filter, bounds);
        let (answer, _told) = bounded(1);
        let capture = Some(Box::new(worker));
        self.sender.try_send(Message::Capture { capture, answer }).unwrap();
        self.path.poll(Moment::from_secs(1));
        reader
    }

    /// One datagram that passes, and one from an address that is not the sender's.
    fn send(&mut self) {
        self.links[0].send(udp(1, 2, 100, false));
        self.links[0].send(udp(2, 1, 100, false));
        self.path.poll(Moment::from_secs(1));
    }
}

fn all(reader: &CaptureReader) -> Vec<(bool, bool, usize)> {
    let look = |seen: &plinth_ports::Captured| {
        (seen.came_in, matches!(seen.verdict, Verdict::Drop(_)), seen.bytes().len())
    };
    std::iter::from_fn(|| reader.read(look)).collect()
}

#[test]
fn a_capture_shows_what_passes_and_what_is_dropped() {
    let mut bench = Bench::new();
    let filter = CaptureFilter { came_in: true, goes_out: true, ..CaptureFilter::default() };
    let reader = bench.begin(filter, BOUNDS);
    bench.send();
    assert_eq!(all(&reader), [(true, false, 60), (false, false, 60), (true, true, 60)]);
}

#[test]
fn a_filter_and_the_bounds_hold() {
    let mut bench = Bench::new();
    let both = CaptureFilter { came_in: true, goes_out: true, ..CaptureFilter::default() };
    let reader = bench.begin(CaptureFilter { is_dropped: true, ..both }, BOUNDS);
    bench.send();
    assert_eq!(all(&reader), [(true, true, 60)]);
    let reader = bench.begin(CaptureFilter { protocol: Some(6), ..both }, BOUNDS);
    bench.send();
    assert_eq!(all(&reader), []);
    let reader = bench.begin(both, CaptureBounds { packets: 2, ..BOUNDS });
    bench.send();
    assert_eq!(all(&reader).len(), 2);
}

#[test]
fn an_address_and_a_port_number_are_looked_for_at_both_ends() {
    let wanted = |address: &str, number| {
        let mut bench = Bench::new();
        let address = Some(address.parse().unwrap());
        let filter = CaptureFilter { came_in: true, address, number, ..CaptureFilter::default() };
        let reader = bench.begin(filter, BOUNDS);
        bench.send();
        all(&reader).len()
    };
    assert_eq!((wanted("0.0.0.0/0", None), wanted("203.0.113.9/32", None)), (2, 0));
    assert_eq!(wanted("0.0.0.0/0", Some(1)), 0);
}

#[test]
fn a_capture_ends_by_bytes_and_by_time() {
    let mut bench = Bench::new();
    let filter = CaptureFilter { came_in: true, ..CaptureFilter::default() };
    let reader = bench.begin(filter, CaptureBounds { bytes: 60, ..BOUNDS });
    bench.send();
    assert_eq!(all(&reader).len(), 1);
    let reader = bench.begin(filter, CaptureBounds { time: Moment::from_secs(2), ..BOUNDS });
    bench.send();
    assert_eq!(all(&reader).len(), 2);
    bench.links[0].send(udp(1, 2, 100, false));
    bench.path.poll(Moment::from_secs(4));
    assert_eq!(all(&reader), []);
}

#[test]
fn what_finds_no_buffer_is_counted_and_read_buffers_are_used_again() {
    let mut bench = Bench::new();
    let filter = CaptureFilter { came_in: true, ..CaptureFilter::default() };
    let most = CaptureBounds { packets: u64::MAX, bytes: u64::MAX, ..BOUNDS };
    let reader = bench.begin(filter, most);
    (0..1030).for_each(|_| bench.send());
    assert_eq!(reader.missed(), 12);
    assert_eq!(all(&reader).len(), 2048);
    bench.send();
    assert_eq!((all(&reader).len(), reader.missed()), (2, 12));
}
