// SPDX-License-Identifier: Apache-2.0
// A worker that is killed: included by `net.rs` behind the cases.

use plinth_guest_memory::Shrinkable;
use plinth_virtio::{Inflight, InflightQueue};

fn record(file: &std::fs::File, index: u16) -> InflightQueue {
    let length = Inflight::bytes(2, 64);
    Inflight::open(file, 0, length, 2, 64, Shrinkable::Refuse).unwrap().queue(index).unwrap()
}

/// A worker's side that begins anew with the record that the frontend kept.
fn with_record(nic: &FakeNic, file: &std::fs::File) -> NetDevice {
    let mut device = NetDevice::new(1);
    // The frontend's own idea of where to go on is wrong after a kill: the record decides, or the
    // packed ring itself.
    for index in 0..2 {
        device.handle(nic.guest.start(index, nic.guest.first_base(), Some(record(file, index))));
    }
    device
}

#[test]
fn a_dead_backends_packets_are_sent_by_the_next_one() {
    let mut nic = FakeNic::new(ALL | RING, 64);
    let file = Inflight::create(2, 64).unwrap();
    let mut burst = OutboundBurst::new();
    let mut device = with_record(&nic, &file);
    for seed in 1..=3 {
        nic.send(&packet(100, seed), Offload::default(), 50);
    }
    assert_eq!(device.receive(0, &mut burst), 3);
    // Killed with all three taken and none given back.
    drop((device, burst));
    let mut burst = OutboundBurst::new();
    let mut device = with_record(&nic, &file);
    nic.send(&packet(100, 4), Offload::default(), 50);
    assert_eq!(device.receive(0, &mut burst), 4);
    for (seed, sent) in (1..).zip(burst.iter()) {
        assert_eq!(head(&sent), packet(100, seed), "in the order in which they were taken");
    }
    device.release(&mut burst);
    device.flush();
    assert_eq!(nic.reclaim(), 4);
    drop(device);
    assert_eq!(with_record(&nic, &file).receive(0, &mut burst), 0, "none is sent twice");
}

#[test]
fn buffers_that_were_too_few_are_there_after_a_kill() {
    let mut nic = FakeNic::new(ALL | RING, 64);
    let file = Inflight::create(2, 64).unwrap();
    let deliver = |device: &mut NetDevice, length| {
        device.deliver(0, &packet(length, 1), Payload::EMPTY, Offload::default())
    };
    let mut device = with_record(&nic, &file);
    nic.provide(2, 1024);
    assert_eq!(deliver(&mut device, 2037), Err(DeliverRefusal::NoBuffers));
    assert_eq!(deliver(&mut device, 2037), Err(DeliverRefusal::NoBuffers));
    drop(device);
    let mut device = with_record(&nic, &file);
    assert_eq!(deliver(&mut device, 2037), Err(DeliverRefusal::NoBuffers));
    nic.provide(1, 1024);
    assert_eq!(deliver(&mut device, 2037), Ok(()), "the two and the new one");
    device.flush();
    let received = nic.receive().unwrap();
    assert_eq!((received.bytes, received.buffers), (packet(2037, 1), 3));
    // Its three buffers are offered again, and nothing else is.
    assert_eq!(deliver(&mut device, 3 * 1024 - 11), Err(DeliverRefusal::NoBuffers));
    assert_eq!(deliver(&mut device, 3 * 1024 - 12), Ok(()));
}
