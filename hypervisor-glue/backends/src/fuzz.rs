// SPDX-License-Identifier: Apache-2.0
//! Entries for fuzzing: any bytes as a guest's memory under a NIC or a disk.
//!
//! The first two bytes choose features and the entry at which the ring begins; the rest is the
//! guest's memory from its start on. The rings of 16 entries lie there one page apart:
//! descriptors (256 bytes), available ring (38), used ring (134, from 296 on).

use crate::blk::{BlkClass, BlkDevice, BlkOperation, BlkOptions, BlkStatus};
use crate::fake::FakeGuest;
use crate::net::{Inbound, NetDevice, OutboundBurst, Payload};
use plinth_vhost::QueueChange;
use plinth_virtio::DeviceQueue;
use std::sync::Arc;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};

const SIZE: u16 = 16;
const MEMORY: u64 = 64 * 1024;
/// Rounds of a worker: enough to see a ring that was broken stay so.
const ROUNDS: usize = 3;

/// A guest whose memory is `image`. `None` for rings that a device would not take.
fn guest(queues: u16, features: u64, base: u16, image: &[u8]) -> Option<FakeGuest> {
    let guest = FakeGuest::new(queues, SIZE, features, MEMORY);
    let length = image.len().min(64 * 1024);
    let start = guest.own.spec.guest;
    guest.own.memory.copy_in(start, &image[..length]).expect("the image was cut to fit");
    let is_taken = guest.layouts.iter().all(|layout| {
        DeviceQueue::new(guest.memory(), layout, guest.ring_features(), base, None).is_ok()
    });
    is_taken.then_some(guest)
}

fn starts(guest: &FakeGuest, queues: u16, base: u16) -> Vec<QueueChange> {
    (0..queues).map(|index| guest.start(index, base, None)).collect()
}

/// A NIC: receives what the guest sends, sends it back.
///
/// # Panics
/// Only on a defect.
pub fn net(data: &[u8]) {
    let [choice, base, image @ ..] = data else { return };
    let bit = |at: u32, feature: u32| u64::from(choice >> at & 1) << feature;
    let features = bit(0, VIRTIO_NET_F_CSUM)
        | bit(1, VIRTIO_NET_F_GUEST_CSUM)
        | bit(2, VIRTIO_NET_F_MRG_RXBUF)
        | bit(3, VIRTIO_NET_F_HOST_TSO4)
        | bit(4, VIRTIO_NET_F_HOST_TSO6)
        | bit(5, VIRTIO_NET_F_GUEST_TSO4)
        | bit(6, VIRTIO_NET_F_GUEST_TSO6);
    let base = u16::from(*base);
    let Some(guest) = guest(2, features, base, image) else { return };
    let mut device = NetDevice::new(1);
    starts(&guest, 2, base).into_iter().for_each(|change| device.handle(change));
    let mut burst = OutboundBurst::new();
    for _ in 0..ROUNDS {
        device.receive(0, &mut burst);
        for packet in burst.iter() {
            let mut head = vec![0; packet.head_length()];
            packet.copy_head(&mut head);
            let (payload, offload) = (packet.payload(head.len()), packet.offload());
            let mut out = vec![0; payload.len()];
            payload.copy_to(&mut out);
            let _ = device.deliver(0, &head, payload, offload);
            let payload = Payload::bytes(&out);
            let inbound = |_| Inbound { head: &head, payload, offload };
            device.deliver_burst(0, 2, inbound, |_, _| {});
        }
        device.release(&mut burst);
        device.flush();
        device.arm_kicks();
    }
    for index in 0..2 {
        let (change, answer) = FakeGuest::stop(index);
        device.handle(change);
        answer.try_recv().expect("nothing is outstanding, so the queue comes back at once");
    }
}

/// A disk: reads, writes and answers whatever the guest asks.
///
/// # Panics
/// Only on a defect.
pub fn blk(data: &[u8]) {
    let [choice, base, image @ ..] = data else { return };
    let base = u16::from(*base);
    let Some(guest) = guest(1, 0, base, image) else { return };
    let is_read_only = choice & 1 != 0;
    let options = BlkOptions {
        capacity: 64,
        is_read_only,
        queues: 1,
        serial: *b"plinth-fuzz\0\0\0\0\0\0\0\0\0",
        discard_unit: 64,
    };
    let class = Arc::new(BlkClass::new(options));
    let mut device = BlkDevice::new(class);
    starts(&guest, 1, base).into_iter().for_each(|change| device.handle(change));
    let mut requests = Vec::new();
    for _ in 0..ROUNDS {
        requests.clear();
        device.poll(&mut requests, 32);
        for request in &requests {
            let result = match request.operation {
                BlkOperation::Read { sector, length } => {
                    assert!(sector * 512 + u64::from(length) <= 64 * 512, "past the disk's end");
                    device.copy_in(request.tag, 0, &vec![7; length as usize])
                }
                BlkOperation::Write { sector, length } => {
                    assert!(sector * 512 + u64::from(length) <= 64 * 512, "past the disk's end");
                    assert!(!is_read_only, "a write to a read-only disk");
                    device.copy_out(request.tag, 0, &mut vec![0; length as usize])
                }
                BlkOperation::Flush => Ok(()),
                BlkOperation::Discard { sector, sectors }
                | BlkOperation::WriteZeroes { sector, sectors, .. } => {
                    assert!(sector + u64::from(sectors) <= 64, "past the disk's end");
                    Ok(())
                }
            };
            assert_eq!(result, Ok(()), "the data of a checked request can be copied");
            assert!(device.complete(request.tag, BlkStatus::Ok), "it was open");
            assert!(!device.complete(request.tag, BlkStatus::Ok), "it is not any more");
        }
        device.flush();
        device.arm_kicks();
    }
    let (change, answer) = FakeGuest::stop(0);
    device.handle(change);
    answer.try_recv().expect("nothing is open, so the queue comes back at once");
}
