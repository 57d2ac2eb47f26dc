// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "the helper functions of a test are test code too")]
//! Real rings and a real DPDK device under one worker: what passes is right, and nothing is
//! allocated for it.

mod support;

use crossbeam_channel::{Sender, bounded};
use plinth_backends::fake::{FakeNic, Received};
use plinth_backends::net::{ChecksumRequest, Offload, SegmentRequest};
use plinth_backends::{DeviceToken, QueueEvent};
use plinth_dpdk::{Eal, EalConfig, EthDev, EthOptions, Mbuf, Mempool};
use plinth_ids::{Epoch, Moment, PortId, Vni};
use plinth_ports::{
    Answer, DataPath, EthernetPort, Frame, GuestPort, Message, Port, PortSet, Question,
    UplinkChange,
};
use plinth_rt::{CountingAllocator, InboxSender, Poller, Wake, allocations, inbox};
use plinth_switch_api::{Remote, SwitchConfig};
use plinth_vswitch::{Limits, Snapshot};
use plinth_wire::checksum::{self, PartialChecksum};
use std::sync::{Arc, OnceLock};
use support::{PEER, PEER_MAC, VTEP, VTEP_MAC, address, cut, mac, port, tcp, udp, underlay};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF,
};

#[global_allocator]
static COUNTED: CountingAllocator = CountingAllocator;

const FEATURES: u64 =
    1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_MRG_RXBUF;

struct Bench {
    path: DataPath,
    sender: InboxSender<Message>,
    events: Sender<QueueEvent>,
    now: Moment,
}

/// Starts guests 1, 2, … of one VPC, each with the features given for it.
fn bench(features: &[u64], uplink: Option<Port>) -> (Bench, Vec<FakeNic>) {
    let (mut bench, guests) = coming(features, uplink);
    bench.sender.try_send(Message::Hold(false)).unwrap();
    bench.rounds();
    (bench, guests)
}

/// The same as far as it is sent: the worker has taken nothing yet, and is to hold packets.
fn coming(features: &[u64], uplink: Option<Port>) -> (Bench, Vec<FakeNic>) {
    let limits = Limits { ports: 16, flows: 64, ..Limits::default() };
    let (sender, inbox) = inbox(64).unwrap();
    let (events, receiver) = bounded(64);
    let path = DataPath::new(inbox, receiver, limits, 7, None);
    let bench = Bench { path, sender, events, now: Moment::from_secs(1) };
    bench.sender.try_send(Message::Hold(true)).unwrap();
    let mut config = SwitchConfig {
        underlay: uplink.as_ref().map(|_| underlay()),
        ..SwitchConfig::empty(Epoch(1))
    };
    if uplink.is_some() {
        config.remotes.push(Remote {
            vni: Vni::new(5).unwrap(),
            mac: mac(9),
            addresses: vec![address(9).into()],
            vtep: PEER,
            subnet: None,
            security_groups: Vec::new(),
            allowed: Vec::new(),
        });
    }
    let uplink = UplinkChange::Replace(uplink.map(Box::new));
    let mut set = PortSet { uplink, ..PortSet::default() };
    let mut guests = Vec::new();
    for (id, &features) in (1u32..).zip(features) {
        let token = DeviceToken(id.into());
        config.ports.push(port(id, 5));
        set.guests.push((PortId(id), token));
        bench.sender.try_send(Message::Adopt(Box::new(GuestPort::new(token, 1)))).unwrap();
        guests.push(FakeNic::new(features, 256));
    }
    let snapshot = Snapshot::compile(&config, &limits, &Snapshot::default()).unwrap();
    let (answer, _) = bounded(1);
    let snapshot = Arc::new(snapshot);
    bench.sender.try_send(Message::Install { snapshot, ports: set, answer }).unwrap();
    for (id, guest) in (1u64..).zip(&mut guests) {
        guest.provide(250, 2048);
        for ring in [0, 1] {
            let change = guest.guest.start(ring, 0, None);
            bench.events.try_send(QueueEvent { device: DeviceToken(id), change }).unwrap();
        }
    }
    (bench, guests)
}

impl Bench {
    /// Polls until there is nothing to do; says how many allocations that took.
    fn rounds(&mut self) -> u64 {
        let before = allocations();
        while self.path.poll(self.now) > 0 {}
        allocations() - before
    }
}

fn request(partial: PartialChecksum) -> ChecksumRequest {
    ChecksumRequest { start: partial.start, offset: partial.offset }
}

#[test]
fn bursts_between_guests_allocate_nothing_and_lose_nothing() {
    let (mut bench, mut guests) = bench(&[FEATURES, FEATURES], None);
    let frame = udp(1, 2, 1400, false).bytes;
    for round in 0..50 {
        for _ in 0..40 {
            guests[0].send(&frame, Offload::default(), 12);
        }
        let allocated = bench.rounds();
        // The first burst takes room for the longest chains, which later ones use again.
        assert!(allocated == 0 || round == 0, "{allocated} allocations in round {round}");
        for _ in 0..40 {
            assert_eq!(guests[1].receive().unwrap().bytes, frame);
        }
        assert_eq!(guests[1].receive(), None);
        assert_eq!(guests[0].reclaim(), 40, "every buffer is given back");
    }
}

/// A device's ring may come by its way sooner than the word on its NIC by the other.
#[test]
fn rings_of_nics_that_the_worker_is_still_to_hear_of_are_taken() {
    let (mut bench, mut guests) = bench(&[FEATURES; 12], None);
    for to in 2..=12 {
        guests[0].send(&udp(1, to, 100, false).bytes, Offload::default(), 12);
    }
    bench.rounds();
    for (to, guest) in (2..=12).zip(&mut guests[1..]) {
        assert_eq!(guest.receive().map(|packet| packet.bytes), Some(udp(1, to, 100, false).bytes));
    }
}

/// More rings come than a round takes, and a packet for the last of them is there already.
#[test]
fn held_packets_wait_for_every_ring_that_was_sent_before_the_release() {
    let (mut bench, mut guests) = coming(&[FEATURES; 12], None);
    let frame = udp(1, 12, 100, false).bytes;
    guests[0].send(&frame, Offload::default(), 12);
    bench.rounds();
    assert_eq!(guests[11].receive(), None, "packets are held");
    let (mut bench, mut guests) = coming(&[FEATURES; 12], None);
    guests[0].send(&frame, Offload::default(), 12);
    bench.sender.try_send(Message::Hold(false)).unwrap();
    bench.rounds();
    assert_eq!(guests[11].receive().map(|packet| packet.bytes), Some(frame));
}

#[test]
fn a_checksum_is_passed_on_to_a_guest_that_takes_it_and_completed_for_one_that_does_not() {
    let (mut bench, mut guests) = bench(&[FEATURES, FEATURES, 1 << VIRTIO_NET_F_MRG_RXBUF], None);
    for target in [2, 3] {
        let frame = udp(1, target, 700, true);
        let checksum = Some(request(frame.partial.unwrap()));
        guests[0].send(&frame.bytes, Offload { checksum, ..Offload::default() }, 60);
        bench.rounds();
    }
    let Received { bytes, offload, .. } = guests[1].receive().unwrap();
    assert_eq!(bytes, udp(1, 2, 700, true).bytes);
    assert_eq!(offload.checksum, udp(1, 2, 700, true).partial.map(request));
    let Received { bytes, offload, .. } = guests[2].receive().unwrap();
    assert_eq!((bytes, offload.checksum), (udp(1, 3, 700, false).bytes, None));
}

const SEGMENTED: u64 = FEATURES | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO4;

fn segmented(frame: &Frame, size: u16, headers: u16) -> Offload {
    let segments = SegmentRequest { size, is_ipv6: false, has_ecn: false, headers };
    Offload { checksum: frame.partial.map(request), segments: Some(segments), ..Offload::default() }
}

#[test]
fn a_long_packet_passes_whole_to_a_guest_that_takes_it_and_cut_to_one_that_does_not() {
    // The third guest takes no checksums either, and the fourth only those.
    let none = 1 << VIRTIO_NET_F_MRG_RXBUF;
    let (mut bench, mut guests) = bench(&[SEGMENTED, SEGMENTED, none, FEATURES], None);
    for (length, round) in [(20_000, 0), (65_535 - 40, 1), (1396 + 1, 2), (20_000, 3)] {
        for target in [2, 3, 4] {
            let frame = tcp(1, target, length, 0x18);
            // What a guest says of its headers' length is not believed.
            guests[0].send(&frame.bytes, segmented(&frame, 1396, 999), 12);
        }
        let allocated = bench.rounds();
        assert!(allocated == 0 || round < 2, "{allocated} allocations in round {round}");
        let Received { bytes, offload, .. } = guests[1].receive().unwrap();
        let frame = tcp(1, 2, length, 0x18);
        assert!(bytes == frame.bytes, "the whole packet");
        assert_eq!(offload, segmented(&frame, 1396, 54));
        for target in [3, 4] {
            let guest = &mut guests[target as usize - 1];
            for expected in cut(&tcp(1, target, length, 0x18).bytes, 1396) {
                let Received { bytes, offload, .. } = guest.receive().unwrap();
                assert!(bytes == expected && offload == Offload::default(), "round {round}");
            }
            assert_eq!(guest.receive(), None);
        }
        guests[0].reclaim();
    }
}

#[test]
fn a_long_packet_for_the_wire_is_cut_into_frames_with_their_own_outer_headers() {
    let pool = Mempool::new(eal(), 1023, 2048).unwrap();
    let (mut bench, mut guests) = bench(&[SEGMENTED], Some(uplink(2, pool)));
    let frame = tcp(1, 9, 30_000, 0x19);
    guests[0].send(&frame.bytes, segmented(&frame, 1396, 54), 12);
    assert_eq!(bench.path.poll(bench.now), 1);
    let (answer, discarded) = bounded(1);
    bench.sender.try_send(Message::TakeUplink { answer }).unwrap();
    bench.rounds();
    let Some(Port::Ethernet(port)) = discarded.try_recv().unwrap().ports.pop() else {
        panic!("the uplink is given back")
    };
    let mut sent: Vec<Mbuf> = Vec::with_capacity(32);
    port.into_queue().receive(&mut sent, &mut 0);
    let tunnelled: Vec<&Mbuf> = sent.iter().filter(|mbuf| mbuf.len() > 100).collect();
    let expected = cut(&frame.bytes, 1396);
    assert_eq!(tunnelled.len(), expected.len());
    for (mbuf, inner) in tunnelled.iter().zip(&expected) {
        let bytes = mbuf.data();
        assert!(bytes[50..] == inner[..]);
        assert!(checksum::is_right(&bytes[14..34]), "the outer header's sum");
        let word = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        assert_eq!((word(16), word(38)), (bytes.len() - 14, bytes.len() - 34));
    }
    drop(sent);
    assert_eq!(pool.available(), 1023, "a buffer was lost");
}

#[test]
fn a_guest_that_changes_its_buffer_after_the_check_changes_payload_only() {
    let (mut bench, mut guests) = bench(&[FEATURES, FEATURES], None);
    // Two frames in one place: the second overwrites the first before the switch looks. What
    // is judged is what is sent, whichever of them it is.
    let honest = udp(1, 2, 1000, false).bytes;
    let mut spoofed = honest.clone();
    spoofed[6..12].copy_from_slice(&mac(7).0);
    guests[0].send(&honest, Offload::default(), 12);
    guests[0].send(&spoofed, Offload::default(), 12);
    bench.rounds();
    assert_eq!(guests[1].receive().unwrap().bytes, honest);
    assert_eq!(guests[1].receive(), None, "the spoofed one is dropped");
}

/// DPDK starts once a process.
fn eal() -> Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    *EAL.get_or_init(|| {
        let config = EalConfig { memory_mb: 64, use_hugepages: false, single_file: false };
        Eal::init(&config).unwrap()
    })
}

/// A device that gives back what it was sent, with the peer's ARP answer in it: the switch will
/// know its next hop at once. Its own frames come back to it as another machine's.
fn uplink(number: u32, pool: Mempool) -> Port {
    let name = format!("net_ring{number}").parse().unwrap();
    let (_, mut queue) = EthDev::open(eal(), &name, &pool, &EthOptions::default()).unwrap();
    let mut answer = pool.take().unwrap();
    answer.append(42).unwrap().copy_from_slice(&arp_answer());
    assert_eq!(queue.send(&mut vec![answer]), 1);
    Port::Ethernet(Box::new(EthernetPort::new(queue, pool, None)))
}

#[test]
fn bursts_to_a_device_allocate_nothing_and_give_every_buffer_back() {
    let pool = Mempool::new(eal(), 1023, 2048).unwrap();
    let (mut bench, mut guests) = bench(&[FEATURES], Some(uplink(0, pool)));
    let frame = udp(1, 9, 1000, true);
    let checksum = Some(request(frame.partial.unwrap()));
    for round in 0..20 {
        for _ in 0..40 {
            guests[0].send(&frame.bytes, Offload { checksum, ..Offload::default() }, 12);
        }
        let allocated = bench.rounds();
        assert!(allocated == 0 || round == 0, "{allocated} allocations in round {round}");
    }
    let (answer, told) = bounded(1);
    bench.sender.try_send(Message::Ask { question: Question::Ports, answer }).unwrap();
    bench.rounds();
    let Answer::Ports(ports) = told.try_recv().unwrap() else { panic!("asked for ports") };
    assert!(ports[0].packets_sent >= 800, "{ports:?}");
    assert_eq!(pool.available(), 1023, "a buffer was lost");
    assert_eq!(bench.path.arm(), Wake::Timer, "this device has no descriptor");
}

#[test]
fn a_frame_for_the_wire_is_whole_with_its_checksum_completed() {
    let pool = Mempool::new(eal(), 1023, 2048).unwrap();
    let (mut bench, mut guests) = bench(&[FEATURES], Some(uplink(1, pool)));
    let frame = udp(1, 9, 1000, true);
    let checksum = Some(request(frame.partial.unwrap()));
    guests[0].send(&frame.bytes, Offload { checksum, ..Offload::default() }, 12);
    // One round: the uplink is looked at first, so what goes out now has not come back yet.
    assert_eq!(bench.path.poll(bench.now), 1);
    let (answer, discarded) = bounded(1);
    bench.sender.try_send(Message::TakeUplink { answer }).unwrap();
    bench.rounds();
    let Some(Port::Ethernet(port)) = discarded.try_recv().unwrap().ports.pop() else {
        panic!("the uplink is given back")
    };
    let mut sent: Vec<Mbuf> = Vec::with_capacity(32);
    port.into_queue().receive(&mut sent, &mut 0);
    let tunnelled: Vec<_> = sent.iter().filter(|mbuf| mbuf.len() > 100).collect();
    let [mbuf] = tunnelled[..] else { panic!("one frame went out: {sent:?}") };
    assert_eq!((&mbuf.data()[..6], &mbuf.data()[6..12]), (&PEER_MAC.0[..], &VTEP_MAC.0[..]));
    assert_eq!(mbuf.data()[50..], udp(1, 9, 1000, false).bytes);
}

/// The peer's ARP answer to the switch.
fn arp_answer() -> Vec<u8> {
    let mut answer = Vec::new();
    answer.extend(VTEP_MAC.0);
    answer.extend(PEER_MAC.0);
    answer.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    answer.extend(PEER_MAC.0);
    answer.extend(PEER.octets());
    answer.extend(VTEP_MAC.0);
    answer.extend(VTEP.octets());
    answer
}
