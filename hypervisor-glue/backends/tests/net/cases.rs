// SPDX-License-Identifier: Apache-2.0
// A NIC between a fake driver and a worker: included for each kind of ring by `net.rs`.

use plinth_backends::KickChange;
use plinth_backends::fake::{FakeGuest, FakeNic};
use plinth_backends::net::{
    BURST, ChecksumRequest, DeliverRefusal, HEAD_MAX, Inbound, NetDevice, Offload, OutboundBurst,
    OutboundPacket, Payload,
};
use plinth_guest_memory::GuestAddress;
use plinth_virtio::Segment;
use proptest::prelude::*;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF,
};

const ALL: u64 =
    1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// A guest with a started NIC.
fn nic(features: u64) -> (FakeNic, NetDevice) {
    let nic = FakeNic::new(features | RING, 64);
    let mut device = NetDevice::new(1);
    for index in 0..2 {
        device.handle(nic.guest.start(index, nic.guest.first_base(), None));
    }
    (nic, device)
}

fn packet(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| seed.wrapping_add(u8::try_from(at % 251).unwrap())).collect()
}

fn head(packet: &OutboundPacket<'_>) -> Vec<u8> {
    let mut head = vec![0; packet.head_length()];
    packet.copy_head(&mut head);
    head
}

/// Everything that `source` has sent goes to `target` as it is.
fn forward(
    source: &mut NetDevice,
    target: &mut NetDevice,
    burst: &mut OutboundBurst,
) -> Vec<Result<(), DeliverRefusal>> {
    source.receive(0, burst);
    let results = burst
        .iter()
        .map(|packet| {
            let head = head(&packet);
            target.deliver(0, &head, packet.payload(head.len()), packet.offload())
        })
        .collect();
    source.release(burst);
    source.flush();
    target.flush();
    results
}

#[test]
fn packets_pass_from_guest_to_guest_with_one_copy_of_the_payload() {
    let ((mut a, mut left), (mut b, mut right)) = (nic(ALL), nic(ALL));
    b.provide(40, 2048);
    let mut burst = OutboundBurst::new();
    let lengths = [14, 60, 255, 256, 257, 1514, 4000, 9000];
    for (seed, length) in (1..).zip(lengths) {
        a.send(&packet(length, seed), Offload::default(), 12 + length / 3);
    }
    let results = forward(&mut left, &mut right, &mut burst);
    assert_eq!(results, vec![Ok(()); lengths.len()]);
    for (seed, length) in (1..).zip(lengths) {
        let received = b.receive().unwrap();
        assert_eq!(received.bytes, packet(length, seed));
        assert_eq!(usize::from(received.buffers), (length + 12).div_ceil(2048));
    }
    assert_eq!(b.receive(), None);
    assert_eq!(a.reclaim(), lengths.len());
    let total: usize = lengths.iter().sum();
    assert_eq!(left.counters().outbound_packets, 8);
    assert_eq!(left.counters().outbound_bytes, total as u64);
    assert_eq!(right.counters().inbound_bytes, total as u64);
}

#[test]
fn a_packet_reaches_our_own_memory_and_comes_from_it() {
    let (mut nic, mut device) = nic(ALL);
    nic.provide(4, 2048);
    let mut burst = OutboundBurst::new();
    nic.send(&packet(1000, 3), Offload::default(), 500);
    assert_eq!(device.receive(0, &mut burst), 1);
    let seen = burst.packet(0);
    assert_eq!((head(&seen), seen.length()), (packet(1000, 3)[..HEAD_MAX].to_vec(), 1000));
    for skip in [256, 257, 999, 1000] {
        let payload = seen.payload(skip);
        let mut out = vec![0; payload.len()];
        payload.copy_to(&mut out);
        assert_eq!(out, packet(1000, 3)[skip..], "skipping {skip}");
        assert_eq!(payload.is_empty(), skip == 1000);
    }
    device.release(&mut burst);
    let offload = Offload { is_verified: true, ..Offload::default() };
    device.deliver(0, b"edited head of ", Payload::bytes(b"our own bytes"), offload).unwrap();
    device.flush();
    let received = nic.receive().unwrap();
    assert_eq!(received.bytes, b"edited head of our own bytes");
    assert_eq!(received.offload, offload);
}

#[test]
fn the_head_that_was_judged_is_the_head_that_is_sent_on() {
    let (mut nic, mut device) = nic(ALL);
    let mut burst = OutboundBurst::new();
    // All in one place of the guest's memory, which it overwrites after we have looked.
    let place = Segment { address: nic.guest.allocate(2000), length: 600 };
    nic.guest.own.memory.copy_in(place.address, &[0; 12]).unwrap();
    nic.guest.own.memory.copy_in(GuestAddress(place.address.0 + 12), &packet(588, 1)).unwrap();
    nic.outbound.add(&[place], &[]).unwrap();
    nic.outbound.publish();
    assert_eq!(device.receive(0, &mut burst), 1);
    let judged = head(&burst.packet(0));
    nic.guest.own.memory.copy_in(place.address, &[0xBB; 600]).unwrap();
    let payload = burst.packet(0).payload(HEAD_MAX);
    let mut out = vec![0; payload.len()];
    payload.copy_to(&mut out);
    assert_eq!(judged, packet(588, 1)[..HEAD_MAX]);
    assert!(out.iter().all(|byte| *byte == 0xBB), "the rest may be anything");
    device.release(&mut burst);
}

#[test]
#[should_panic(expected = "the head is sent from its private copy")]
fn a_payload_that_begins_inside_the_head_is_refused() {
    let (mut nic, mut device) = nic(ALL);
    let mut burst = OutboundBurst::new();
    nic.send(&packet(1000, 3), Offload::default(), 500);
    device.receive(0, &mut burst);
    let _ = burst.packet(0).payload(HEAD_MAX - 1);
}

#[test]
fn a_receive_buffer_that_is_not_the_devices_to_write_is_not_written() {
    let (mut nic, mut device) = nic(ALL);
    let readable = Segment { address: nic.guest.allocate(2000), length: 2000 };
    nic.inbound.add(&[readable], &[]).unwrap();
    nic.inbound.publish();
    let inbound =
        |_| Inbound { head: &[7; 60], payload: Payload::EMPTY, offload: Offload::default() };
    let mut refusals = Vec::new();
    // The first look at the ring goes the long way; the second finds the entry seen already.
    device.expect(0, 1, 60);
    device.deliver_burst(0, 1, inbound, |_, refusal| refusals.push(refusal));
    assert_eq!(refusals, [DeliverRefusal::BuffersMalformed]);
    let mut bytes = [0; 72];
    nic.guest.memory().copy_out(readable.address, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 72]);
}

/// Plain buffers take the short way; chains, and buffers that are too short for a packet, the long
/// one. What arrives is the same, and in order.
#[test]
fn buffers_of_every_shape_are_filled_alike() {
    let (mut nic, mut device) = nic(ALL);
    let memory = nic.guest.memory();
    for round in 0..60u8 {
        let plain = Segment { address: nic.guest.allocate(1400), length: 1400 };
        let parts = [100u32, 1300].map(|length| {
            let address = nic.guest.allocate(u64::from(length));
            Segment { address, length }
        });
        let short = [0, 1].map(|_| Segment { address: nic.guest.allocate(300), length: 300 });
        let mut shapes = [vec![plain], parts.to_vec(), vec![short[0]], vec![short[1]]];
        shapes[..2].rotate_left(usize::from(round % 2));
        let add = |shape: &Vec<Segment>| nic.inbound.add(&[], shape).unwrap();
        let heads: Vec<u16> = shapes.iter().map(add).collect();
        nic.inbound.publish();
        let packets = [60, 500, 400].map(|length| packet(length + usize::from(round), round));
        let inbound = |nth: usize| Inbound {
            head: &packets[nth][..20],
            payload: Payload::bytes(&packets[nth][20..]),
            offload: Offload::default(),
        };
        device.deliver_burst(0, 3, inbound, |nth, refusal| panic!("{nth}: {refusal}"));
        device.flush();
        let mut arrived = Vec::new();
        for (shape, head) in shapes.iter().zip(heads) {
            let used = nic.inbound.poll().unwrap().unwrap();
            assert_eq!(used.head, head);
            let mut bytes = vec![0; used.length as usize];
            plinth_virtio::copy_out(&memory, shape, 0, &mut bytes).unwrap();
            arrived.push(bytes);
        }
        let last = arrived.pop().unwrap();
        arrived[2].extend(last);
        for ((bytes, packet), buffers) in arrived.iter().zip(&packets).zip([1, 1, 2]) {
            assert_eq!(bytes[12..], packet[..]);
            assert_eq!(bytes[10..12], [buffers, 0]);
        }
    }
}

#[test]
fn a_checksum_is_left_to_a_guest_that_takes_it_and_completed_for_one_that_does_not() {
    let request = ChecksumRequest { start: 14, offset: 6 };
    let offload = Offload { checksum: Some(request), ..Offload::default() };
    for (features, is_left) in [(ALL, true), (ALL & !(1 << VIRTIO_NET_F_GUEST_CSUM), false)] {
        let ((mut a, mut left), (mut b, mut right)) = (nic(ALL), nic(features));
        b.provide(4, 2048);
        let mut burst = OutboundBurst::new();
        let sent = packet(701, 9);
        a.send(&sent, offload, 300);
        assert_eq!(forward(&mut left, &mut right, &mut burst), [Ok(())]);
        let received = b.receive().unwrap();
        assert_eq!(received.offload.checksum, is_left.then_some(request));
        if is_left {
            assert_eq!(received.bytes, sent);
        } else {
            assert_eq!(received.bytes[..20], sent[..20]);
            assert_ne!(received.bytes[20..22], sent[20..22]);
            assert_eq!(received.bytes[22..], sent[22..]);
        }
    }
}

#[test]
fn too_few_buffers_are_a_refusal_that_takes_none() {
    let (mut nic, mut device) = nic(ALL);
    let mut burst = OutboundBurst::new();
    nic.provide(2, 1024);
    let deliver = |device: &mut NetDevice, length| {
        device.deliver(0, &packet(length, 1), Payload::EMPTY, Offload::default())
    };
    assert_eq!(deliver(&mut device, 2037), Err(DeliverRefusal::NoBuffers));
    assert_eq!(deliver(&mut device, 2036), Ok(()), "both buffers were still there");
    assert_eq!(deliver(&mut device, 14), Err(DeliverRefusal::NoBuffers));
    device.flush();
    assert_eq!(nic.receive().unwrap().buffers, 2);
    assert_eq!(deliver(&mut device, 70_000), Err(DeliverRefusal::TooLong));
    assert_eq!(device.receive(0, &mut burst), 0);
    assert_eq!(device.counters().inbound_packets, 1);
}

#[test]
fn a_driver_without_mergeable_buffers_gets_a_packet_in_one_or_not_at_all() {
    let (mut nic, mut device) = nic(ALL & !(1 << VIRTIO_NET_F_MRG_RXBUF));
    nic.provide(4, 1024);
    let long = device.deliver(0, &packet(1013, 1), Payload::EMPTY, Offload::default());
    assert_eq!(long, Err(DeliverRefusal::TooLong));
    device.deliver(0, &packet(1012, 1), Payload::EMPTY, Offload::default()).unwrap();
    device.flush();
    assert_eq!(nic.receive().unwrap().bytes, packet(1012, 1));
}

#[test]
fn malformed_packets_are_counted_by_kind_and_given_back() {
    let (mut nic, mut device) = nic(ALL & !(1 << VIRTIO_NET_F_CSUM));
    let mut burst = OutboundBurst::new();
    nic.send_raw(&[0; 25], 12);
    let mut segmented = vec![0; 100];
    segmented[1] = 1;
    nic.send_raw(&segmented, 12);
    let mut summed = vec![0; 100];
    summed[0] = 1;
    nic.send_raw(&summed, 12);
    nic.send_raw(&vec![0; 65_600], 12);
    let outside = Segment { address: GuestAddress(u64::MAX - 5000), length: 100 };
    nic.outbound.add(&[outside], &[]).unwrap();
    let place = Segment { address: nic.guest.allocate(100), length: 100 };
    nic.outbound.add(&[place], &[place]).unwrap();
    nic.outbound.publish();
    nic.send(&packet(60, 1), Offload::default(), 20);
    assert_eq!(device.receive(0, &mut burst), 1, "the good one comes through");
    device.release(&mut burst);
    device.flush();
    let counters = device.counters();
    assert_eq!(counters.drop_too_short, 1);
    assert_eq!(counters.drop_offload_invalid, 2);
    assert_eq!(counters.drop_too_long, 1);
    assert_eq!(counters.drop_chain_malformed, 2);
    assert_eq!((counters.outbound_packets, counters.queues_broken), (1, 0));
    let mut given_back = 0;
    while nic.outbound.poll().unwrap().is_some() {
        given_back += 1;
    }
    assert_eq!(given_back, 7);
}

#[test]
fn malformed_receive_buffers_end_that_queue_and_no_other() {
    let (mut nic, mut device) = nic(ALL);
    let place = Segment { address: nic.guest.allocate(100), length: 100 };
    nic.inbound.add(&[place], &[place]).unwrap();
    nic.inbound.publish();
    let deliver =
        |device: &mut NetDevice| device.deliver(0, &[0; 60], Payload::EMPTY, Offload::default());
    assert_eq!(deliver(&mut device), Err(DeliverRefusal::BuffersMalformed));
    assert_eq!(deliver(&mut device), Err(DeliverRefusal::Down));
    assert_eq!(device.counters().queues_broken, 1);
    let mut burst = OutboundBurst::new();
    nic.send(&packet(60, 1), Offload::default(), 20);
    assert_eq!(device.receive(0, &mut burst), 1, "the other direction goes on");
    device.release(&mut burst);
    // The frontend takes both back and starts anew.
    for index in 0..2 {
        let (change, answer) = FakeGuest::stop(index);
        device.handle(change);
        answer.try_recv().unwrap();
    }
    assert!(!device.is_up());
}

#[test]
fn a_queue_that_is_asked_back_waits_for_its_burst() {
    let (mut nic, mut device) = nic(ALL);
    let mut burst = OutboundBurst::new();
    nic.send(&packet(60, 1), Offload::default(), 20);
    device.receive(0, &mut burst);
    let (change, answer) = FakeGuest::stop(1);
    device.handle(change);
    assert!(answer.try_recv().is_err(), "a packet is still out");
    nic.send(&packet(60, 2), Offload::default(), 20);
    device.release(&mut burst);
    let state = answer.try_recv().unwrap();
    assert_eq!(state.next_available, state.next_used);
    // One chain, which is two slots of a packed ring in its first lap.
    assert_eq!(state.next_used, if RING & crate::PACKED == 0 { 1 } else { 0x8002 });
    assert_eq!(nic.reclaim(), 1, "what was given back was shown before the answer");
    assert_eq!(device.receive(0, &mut burst), 0, "the queue is gone");
    let changes: Vec<_> = std::iter::from_fn(|| device.take_kick_change()).collect();
    assert_eq!(changes, [KickChange::Added { queue: 1 }, KickChange::Removed { queue: 1 }]);
    // It comes again, and goes on where it stood.
    device.handle(nic.guest.start(1, state.next_available, None));
    assert_eq!(device.receive(0, &mut burst), 1);
    assert_eq!(head(&burst.packet(0)), packet(60, 2));
    device.release(&mut burst);
}

#[test]
fn a_sleeping_worker_is_kicked_and_a_sleeping_guest_called_once_a_burst() {
    let (mut nic, mut device) = nic(ALL);
    let mut burst = OutboundBurst::new();
    nic.guest.take_calls(1);
    assert!(!device.arm_kicks());
    assert!(nic.send(&packet(60, 1), Offload::default(), 20), "the worker sleeps");
    assert!(!nic.send(&packet(60, 1), Offload::default(), 20), "and was kicked already");
    let mut watched = 0;
    device.watch_kicks(&mut |_| watched += 1);
    assert_eq!(watched, 1, "receive buffers are no work");
    assert!(device.arm_kicks(), "two packets wait");
    device.disarm_kicks();
    nic.outbound.arm_calls();
    assert_eq!(device.receive(0, &mut burst), 2);
    device.release(&mut burst);
    device.flush();
    device.flush();
    assert_eq!(nic.guest.take_calls(1), 1);
}

#[test]
fn a_burst_is_bounded() {
    let (mut nic, mut device) = nic(ALL);
    let mut burst = OutboundBurst::new();
    for seed in 0..31 {
        nic.send(&packet(60, seed), Offload::default(), 20);
    }
    assert_eq!(device.receive(0, &mut burst), 31);
    device.release(&mut burst);
    device.flush();
    nic.reclaim();
    for seed in 0..32 {
        nic.send(&packet(60, seed), Offload::default(), 20);
    }
    // 32 chains of two descriptors fill the ring of 64; one burst takes them all.
    assert_eq!(device.receive(0, &mut burst), BURST);
    device.release(&mut burst);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// Any lengths, cuts and buffer sizes: what arrives is what was sent, in order.
    #[test]
    fn what_arrives_is_what_was_sent(
        lengths in prop::collection::vec((14..5000usize, 0..5100usize), 1..60),
        buffer in 64..4096u32,
        is_mergeable: bool,
    ) {
        let features = if is_mergeable { ALL } else { ALL & !(1 << VIRTIO_NET_F_MRG_RXBUF) };
        let ((mut a, mut left), (mut b, mut right)) = (nic(ALL), nic(features));
        b.provide(64, buffer);
        let mut burst = OutboundBurst::new();
        for (seed, (length, cut)) in (1u8..).zip(lengths) {
            a.send(&packet(length, seed), Offload::default(), cut);
            let results = forward(&mut left, &mut right, &mut burst);
            let room = if is_mergeable { 64 * buffer as usize } else { buffer as usize };
            prop_assert_eq!(results, vec![if length + 12 <= room { Ok(()) } else { Err(DeliverRefusal::TooLong) }]);
            if length + 12 <= room {
                prop_assert_eq!(b.receive().unwrap().bytes, packet(length, seed));
            }
            prop_assert_eq!(b.receive(), None);
            prop_assert_eq!(a.reclaim(), 1);
        }
    }
}
