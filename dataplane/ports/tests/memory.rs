// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! The worker's rounds over ports in memory: whole stories from frame to frame.

mod support;

use crossbeam_channel::{Receiver, bounded};
use plinth_backends::{DeviceToken, QueueChange, QueueEvent};
use plinth_ids::{Epoch, Moment, PortId, Vni};
use plinth_ports::{
    Answer, DataPath, Discarded, Frame, GuestPort, MESSAGES_MAX, MemoryLink, Message, Port,
    PortSet, Question, UplinkChange, memory_port,
};
use plinth_rt::{InboxSender, Poller, Wake, inbox};
use plinth_switch_api::{
    DropCount, GuestPort as PortConfig, PortStatus, Remote, SwitchConfig, UPLINK, Underlay,
};
use plinth_vswitch::{Limits, Snapshot};
use plinth_wire::Segmentation;
use plinth_wire::checksum::{self, PartialChecksum};
use std::sync::Arc;
use support::{PEER, PEER_MAC, VTEP, VTEP_MAC, address, mac, port, tcp, udp, underlay};

const SECOND: Moment = Moment::from_secs(1);

struct Bench {
    path: DataPath,
    sender: InboxSender<Message>,
    events: crossbeam_channel::Sender<QueueEvent>,
    snapshot: Arc<Snapshot>,
    limits: Limits,
    now: Moment,
    epoch: u64,
}

impl Bench {
    fn new() -> Self {
        let limits = Limits { ports: 8, flows: 64, ..Limits::default() };
        let (sender, inbox) = inbox(64).unwrap();
        let (events, receiver) = bounded(64);
        let path = DataPath::new(inbox, receiver, limits, 7, None);
        let snapshot = Arc::default();
        Self { path, sender, events, snapshot, limits, now: SECOND, epoch: 0 }
    }

    /// Installs a configuration with a memory port for each guest port, and one more for the
    /// uplink if there is an underlay. Gives the links in that order.
    fn install(
        &mut self,
        ports: Vec<PortConfig>,
        underlay: Option<Underlay>,
        remotes: Vec<Remote>,
    ) -> Vec<MemoryLink> {
        let mut set = PortSet::default();
        let mut links = Vec::new();
        let mut memory = || {
            let (port, link) = memory_port(64);
            links.push(link);
            Port::Memory(port)
        };
        for config in &ports {
            set.others.push((config.id, memory()));
        }
        if underlay.is_some() {
            set.uplink = UplinkChange::Replace(Some(Box::new(memory())));
        }
        self.apply(ports, underlay, remotes, set);
        links
    }

    fn apply(
        &mut self,
        ports: Vec<PortConfig>,
        underlay: Option<Underlay>,
        remotes: Vec<Remote>,
        set: PortSet,
    ) -> Discarded {
        self.epoch += 1;
        let epoch = Epoch(self.epoch);
        let config = SwitchConfig { underlay, ports, remotes, ..SwitchConfig::empty(epoch) };
        let snapshot = Snapshot::compile(&config, &self.limits, &self.snapshot).unwrap();
        self.snapshot = Arc::new(snapshot);
        let (answer, discarded) = bounded(1);
        let snapshot = Arc::clone(&self.snapshot);
        self.sender.try_send(Message::Install { snapshot, ports: set, answer }).unwrap();
        self.rounds();
        discarded.try_recv().unwrap()
    }

    /// Polls until there is nothing to do.
    fn rounds(&mut self) {
        while self.path.poll(self.now) > 0 {}
    }

    fn ask(&mut self, question: Question) -> Answer {
        let (answer, told) = bounded(1);
        self.sender.try_send(Message::Ask { question, answer }).unwrap();
        self.rounds();
        told.try_recv().unwrap()
    }

    fn ports(&mut self) -> Vec<PortStatus> {
        let Answer::Ports(ports) = self.ask(Question::Ports) else { panic!("asked for ports") };
        ports
    }

    fn drops(&mut self) -> Vec<(String, u64)> {
        let Answer::Drops(drops) = self.ask(Question::Drops) else { panic!("asked for drops") };
        drops.into_iter().map(|DropCount { reason, packets }| (reason, packets)).collect()
    }
}

#[test]
fn a_packet_reaches_its_port_with_every_byte() {
    let mut bench = Bench::new();
    let links = bench.install(vec![port(1, 5), port(2, 5)], None, Vec::new());
    for payload in [0, 1, 200, 213, 214, 215, 1000, 1422] {
        let frame = udp(1, 2, payload, false);
        links[0].send(frame.clone());
        bench.rounds();
        assert_eq!(links[1].take(), [frame], "with {payload} bytes of payload");
        assert_eq!(links[0].take(), []);
    }
    let ports = bench.ports();
    assert_eq!((ports[0].packets_received, ports[1].packets_sent), (8, 8));
    assert_eq!(bench.drops(), []);
}

#[test]
fn a_partial_checksum_goes_on_to_another_guest_and_is_completed_for_the_wire() {
    let mut bench = Bench::new();
    let remote = Remote {
        vni: Vni::new(5).unwrap(),
        mac: mac(3),
        addresses: vec![address(3).into()],
        vtep: PEER,
        subnet: None,
        security_groups: Vec::new(),
        allowed: Vec::new(),
    };
    let ports = vec![port(1, 5), port(2, 5)];
    let links = bench.install(ports, Some(underlay()), vec![remote]);
    let uplink = &links[2];
    links[0].send(udp(1, 2, 300, true));
    bench.rounds();
    assert_eq!(links[1].take(), [udp(1, 2, 300, true)]);
    learn_peer(&mut bench, uplink);
    links[0].send(udp(1, 3, 300, true));
    bench.rounds();
    let sent = uplink.take();
    let [frame] = &sent[..] else { panic!("one frame goes out: {sent:?}") };
    // A memory port takes partial checksums as a guest does; its place has moved behind the
    // outer headers. What an Ethernet device would be given is the completed frame.
    let partial = frame.partial.unwrap();
    assert_eq!(partial, PartialChecksum { start: 84, offset: 6 });
    let mut bytes = frame.bytes.clone();
    checksum::complete(&mut bytes, partial).unwrap();
    assert_eq!(bytes[50..], udp(1, 3, 300, false).bytes);
}

/// Lets the switch ask for its peer and answers, as the peer would.
fn learn_peer(bench: &mut Bench, uplink: &MemoryLink) {
    bench.now += SECOND;
    bench.rounds();
    let asked = uplink.take().iter().any(|frame| frame.bytes[12..14] == [0x08, 0x06]);
    assert!(asked, "the switch asks for its next hop by ARP");
    let mut answer = Vec::new();
    answer.extend(VTEP_MAC.0);
    answer.extend(PEER_MAC.0);
    answer.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    answer.extend(PEER_MAC.0);
    answer.extend(PEER.octets());
    answer.extend(VTEP_MAC.0);
    answer.extend(VTEP.octets());
    uplink.send(Frame { bytes: answer, partial: None, segmentation: None });
    bench.rounds();
}

#[test]
fn what_the_peer_sends_reaches_the_guest_whole() {
    let mut bench = Bench::new();
    let remote = Remote {
        vni: Vni::new(5).unwrap(),
        mac: mac(3),
        addresses: vec![address(3).into()],
        vtep: PEER,
        subnet: None,
        security_groups: Vec::new(),
        allowed: Vec::new(),
    };
    let links = bench.install(vec![port(1, 5)], Some(underlay()), vec![remote]);
    let (guest, uplink) = (&links[0], &links[1]);
    learn_peer(&mut bench, uplink);
    guest.send(udp(1, 3, 1000, false));
    bench.rounds();
    let [frame] = &uplink.take()[..] else { panic!("one frame goes out") };
    // The way back: outer addresses turned round, inner frame of the peer's guest, and a few
    // bytes of padding that must not reach the guest.
    let mut back = frame.bytes[..50].to_vec();
    back[..6].copy_from_slice(&VTEP_MAC.0);
    back[6..12].copy_from_slice(&PEER_MAC.0);
    back[24..26].fill(0);
    back[26..30].copy_from_slice(&PEER.octets());
    back[30..34].copy_from_slice(&VTEP.octets());
    let sum = checksum::checksum(&back[14..34]);
    back[24..26].copy_from_slice(&sum.to_be_bytes());
    let inner = udp(3, 1, 1000, false);
    back.extend(&inner.bytes);
    back.extend([0xee; 7]);
    uplink.send(Frame { bytes: back, partial: None, segmentation: None });
    bench.rounds();
    assert_eq!(guest.take(), [inner], "{:?}", bench.drops());
}

#[test]
fn another_vpc_hears_nothing() {
    let mut bench = Bench::new();
    let mut twin = port(2, 6);
    twin.id = PortId(4);
    twin.name = "twin".parse().unwrap();
    twin.socket = "/run/none/twin.sock".into();
    let links = bench.install(vec![port(1, 5), port(2, 5), twin], None, Vec::new());
    links[0].send(udp(1, 2, 10, false));
    bench.rounds();
    assert_eq!((links[1].take().len(), links[2].take().len()), (1, 0));
}

#[test]
fn a_packet_that_cannot_be_delivered_is_counted_at_its_destination() {
    let mut bench = Bench::new();
    let links = bench.install(vec![port(1, 5), port(2, 5)], None, Vec::new());
    links[1].set_up(false);
    links[0].send(udp(1, 2, 10, false));
    bench.rounds();
    assert_eq!(bench.drops(), [("port-down".to_owned(), 1)]);
    assert!(!bench.ports()[1].is_up);
    links[1].set_up(true);
    // The link keeps 64.
    (0..70).for_each(|_| links[0].send(udp(1, 2, 10, false)));
    bench.rounds();
    assert_eq!(links[1].take().len(), 64);
    let ports = bench.ports();
    assert_eq!((ports[1].packets_sent, ports[0].packets_received), (64, 71));
    let expected = [("port-down".to_owned(), 1), ("port-queue-full".to_owned(), 6)];
    assert_eq!(bench.drops(), expected);
    let at_port: Vec<_> =
        ports[1].drops.iter().map(|count| (&*count.reason, count.packets)).collect();
    assert_eq!(at_port, [("port-down", 1), ("port-queue-full", 6)]);
}

#[test]
fn frames_of_any_length_are_dropped_or_sent_and_counted() {
    let mut bench = Bench::new();
    let links = bench.install(vec![port(1, 5), port(2, 5)], None, Vec::new());
    let whole = udp(1, 2, 300, false).bytes;
    for length in 0..whole.len() {
        links[0].send(Frame { bytes: whole[..length].to_vec(), partial: None, segmentation: None });
        bench.rounds();
    }
    let delivered = links[1].take().len() as u64;
    let dropped: u64 = bench.drops().iter().map(|(_, packets)| packets).sum();
    assert_eq!(delivered + dropped, whole.len() as u64);
}

#[test]
fn a_port_that_leaves_the_configuration_is_given_back_with_the_old_snapshot() {
    let mut bench = Bench::new();
    bench.install(vec![port(1, 5), port(2, 5)], Some(underlay()), Vec::new());
    let before = Arc::downgrade(&bench.snapshot);
    let discarded = bench.apply(vec![port(1, 5)], Some(underlay()), Vec::new(), PortSet::default());
    assert_eq!(discarded.ports.len(), 2, "both memory ports, and not the uplink");
    assert!(discarded.snapshot.is_some());
    drop(discarded);
    assert!(before.upgrade().is_none(), "the worker has let go of the old snapshot");
    let ids: Vec<_> = bench.ports().into_iter().map(|port| port.id).collect();
    assert_eq!(ids, [UPLINK, PortId(1)]);
}

#[test]
fn an_adopted_nic_serves_only_while_it_is_in_the_set() {
    let mut bench = Bench::new();
    let token = DeviceToken(9);
    bench.sender.try_send(Message::Adopt(Box::new(GuestPort::new(token, 1)))).unwrap();
    let guests = vec![(PortId(1), token)];
    let set = PortSet { guests, ..PortSet::default() };
    let discarded = bench.apply(vec![port(1, 5)], None, Vec::new(), set);
    assert!(discarded.ports.is_empty());
    assert!(!bench.ports()[0].is_up, "no frontend has connected");
    assert!(release(&mut bench, token).is_empty(), "a NIC in force is not given up");
    bench.apply(Vec::new(), None, Vec::new(), PortSet::default());
    assert_eq!(release(&mut bench, token).len(), 1);
}

fn release(bench: &mut Bench, token: DeviceToken) -> Vec<Port> {
    let (answer, discarded): (_, Receiver<Discarded>) = bounded(1);
    bench.sender.try_send(Message::Release { tokens: vec![token], answer }).unwrap();
    bench.rounds();
    discarded.try_recv().unwrap().ports
}

#[test]
fn an_event_for_a_device_that_is_gone_gives_its_ticket_up() {
    let mut bench = Bench::new();
    let (ticket, answer) = plinth_vhost::StopTicket::new(0);
    let change = QueueChange::Stop(ticket);
    bench.events.try_send(QueueEvent { device: DeviceToken(77), change }).unwrap();
    bench.rounds();
    assert!(answer.try_recv().is_err() && bench.events.is_empty());
}

#[test]
fn a_flood_of_questions_does_not_hold_up_packets() {
    let mut bench = Bench::new();
    let links = bench.install(vec![port(1, 5), port(2, 5)], None, Vec::new());
    let (answer, _told) = bounded(64);
    for _ in 0..60 {
        let answer = answer.clone();
        bench.sender.try_send(Message::Ask { question: Question::Ports, answer }).unwrap();
    }
    links[0].send(udp(1, 2, 10, false));
    let work = bench.path.poll(bench.now);
    assert_eq!(work, MESSAGES_MAX + 1);
    assert_eq!(links[1].take().len(), 1);
}

#[test]
fn memory_ports_let_the_worker_sleep_on_descriptors() {
    let mut bench = Bench::new();
    bench.install(vec![port(1, 5)], None, Vec::new());
    assert_eq!(bench.path.arm(), Wake::Descriptors);
    let before = bench.path.watch_version();
    bench.install(vec![port(1, 5)], None, Vec::new());
    assert_ne!(bench.path.watch_version(), before);
    let mut watched = 0;
    bench.path.watch(&mut |_| watched += 1);
    assert_eq!(watched, 1, "the inbox");
}

/// A guest's wish to have a packet cut is a claim like any other.
#[test]
fn what_may_not_be_cut_is_dropped_with_its_reason() {
    type Change = fn(&mut Frame);
    let wish = |size| Segmentation {
        size,
        is_ipv6: false,
        has_ecn: false,
        network: 0,
        transport: 0,
        headers: 0,
    };
    let cases: [(&str, u16, Change); 13] = [
        ("port-mtu-exceeded", 1411, |_| {}),
        ("port-mtu-exceeded", 65_535, |_| {}),
        ("port-mtu-exceeded", 1400, |frame| frame.segmentation = None),
        ("offload-invalid", 70, |_| {}),
        ("offload-invalid", 1400, |frame| frame.partial = None),
        ("offload-invalid", 1400, |frame| frame.partial.as_mut().unwrap().offset = 20),
        ("offload-invalid", 1400, |frame| frame.segmentation.as_mut().unwrap().is_ipv6 = true),
        ("offload-invalid", 1400, |frame| frame.bytes[47] |= 0x02),
        ("offload-invalid", 1400, |frame| frame.bytes[47] |= 0x04),
        ("offload-invalid", 1400, |frame| frame.bytes[47] |= 0x20),
        // Bytes behind the packet.
        ("offload-invalid", 1400, |frame| frame.bytes.push(0)),
        // A fragment.
        ("offload-invalid", 1400, |frame| frame.bytes[20] = 0x20),
        // Another protocol.
        ("offload-invalid", 1400, |frame| frame.bytes[23] = 47),
    ];
    for (reason, size, change) in cases {
        let mut bench = Bench::new();
        let links = bench.install(vec![port(1, 5), port(2, 5)], None, Vec::new());
        let mut frame = tcp(1, 2, 9000, 0x18);
        frame.segmentation = Some(wish(size));
        change(&mut frame);
        links[0].send(frame);
        bench.rounds();
        assert_eq!(bench.drops(), [(reason.to_owned(), 1)], "size {size}");
        assert!(links[1].take().is_empty());
    }
    // What is not longer than a segment needs no cutting, and passes as what it is.
    let mut bench = Bench::new();
    let links = bench.install(vec![port(1, 5), port(2, 5)], None, Vec::new());
    for (payload, is_cut) in [(1410, false), (1411, true)] {
        let mut frame = tcp(1, 2, payload, 0x18);
        frame.segmentation = Some(wish(1410));
        links[0].send(frame);
        bench.rounds();
        let seen = links[1].take().pop().unwrap();
        assert_eq!(seen.segmentation.is_some(), is_cut);
        let plan = Segmentation { network: 14, transport: 34, headers: 54, ..wish(1410) };
        assert_eq!(seen.segmentation.unwrap_or(plan), plan);
    }
}
