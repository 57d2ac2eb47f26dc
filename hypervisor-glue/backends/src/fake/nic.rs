// SPDX-License-Identifier: Apache-2.0
//! A NIC's driver with one queue pair.

use super::FakeGuest;
use crate::net::{ChecksumRequest, Offload, SegmentRequest};
use plinth_guest_memory::GuestAddress;
use plinth_virtio::{DriverQueue, Segment};
use std::collections::{BTreeMap, VecDeque};

/// Bytes of the header before each packet.
const HEADER: usize = 12;

/// A packet that arrived, and what its header said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Received {
    pub bytes: Vec<u8>,
    pub offload: Offload,
    /// Buffers that it came in.
    pub buffers: u16,
}

/// The driver of rings 0 and 1 of a guest.
#[derive(Debug)]
pub struct FakeNic {
    pub guest: FakeGuest,
    pub inbound: DriverQueue,
    pub outbound: DriverQueue,
    buffers: BTreeMap<u16, Segment>,
    /// Places for packets to send, with those that are under way.
    places: VecDeque<GuestAddress>,
    sending: BTreeMap<u16, GuestAddress>,
}

impl FakeNic {
    /// `features` besides those of the ring.
    pub fn new(features: u64, size: u16) -> Self {
        let mut guest = FakeGuest::new(2, size, features, 64 << 20);
        let driver = |guest: &FakeGuest, index: usize| {
            DriverQueue::new(guest.memory(), &guest.layouts[index], guest.ring_features())
                .expect("the ring lies in memory")
        };
        let (inbound, outbound) = (driver(&guest, 0), driver(&guest, 1));
        let places = (0..size).map(|_| guest.allocate(70_000)).take(256).collect();
        let (buffers, sending) = (BTreeMap::new(), BTreeMap::new());
        Self { guest, inbound, outbound, buffers, places, sending }
    }

    /// Adds `count` receive buffers of `bytes` each. `true` when the device wants a kick.
    pub fn provide(&mut self, count: u16, bytes: u32) -> bool {
        for _ in 0..count {
            let address = self.guest.allocate(u64::from(bytes));
            self.provide_at(Segment { address, length: bytes });
        }
        self.inbound.publish()
    }

    fn provide_at(&mut self, segment: Segment) {
        let head = self.inbound.add(&[], &[segment]).expect("the ring has room");
        self.buffers.insert(head, segment);
    }

    /// Sends a packet, in two segments cut at `cut`. `true` when the device wants a kick.
    pub fn send(&mut self, packet: &[u8], offload: Offload, cut: usize) -> bool {
        let mut header = [0; HEADER];
        if let Some(ChecksumRequest { start, offset }) = offload.checksum {
            header[0] = 1;
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
        }
        if let Some(SegmentRequest { size, is_ipv6, has_ecn, headers }) = offload.segments {
            header[1] = if is_ipv6 { 4 } else { 1 } | if has_ecn { 0x80 } else { 0 };
            header[2..4].copy_from_slice(&headers.to_le_bytes());
            header[4..6].copy_from_slice(&size.to_le_bytes());
        }
        let mut whole = header.to_vec();
        whole.extend_from_slice(packet);
        self.send_raw(&whole, cut)
    }

    /// Sends bytes, header included, as they are.
    pub fn send_raw(&mut self, whole: &[u8], cut: usize) -> bool {
        self.reclaim();
        let place = self.places.pop_front().expect("fewer packets are under way than places");
        self.guest.own.memory.copy_in(place, whole).expect("the place is memory");
        let cut = cut.clamp(1, whole.len().max(2) - 1);
        let length = |bytes: usize| u32::try_from(bytes).expect("packets are short");
        let first = Segment { address: place, length: length(cut) };
        let rest = Segment {
            address: GuestAddress(place.0 + cut as u64),
            length: length(whole.len() - cut),
        };
        let head = self.outbound.add(&[first, rest], &[]).expect("the ring has room");
        self.sending.insert(head, place);
        self.outbound.publish()
    }

    /// Takes back what the device has sent. How many packets that were.
    pub fn reclaim(&mut self) -> usize {
        let mut count = 0;
        while let Some(used) = self.outbound.poll().expect("the device keeps the rules") {
            let place = self.sending.remove(&used.head).expect("it was sent");
            self.places.push_back(place);
            count += 1;
        }
        count
    }

    /// The next packet that arrived. Its buffers are given to the device again.
    pub fn receive(&mut self) -> Option<Received> {
        let first = self.inbound.poll().expect("the device keeps the rules")?;
        let mut bytes = self.take_buffer(first.head, first.length);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (buffers, request) = (word(10), ChecksumRequest { start: word(6), offset: word(8) });
        let checksum = (bytes[0] & 1 != 0).then_some(request);
        let segments = (bytes[1] != 0).then(|| SegmentRequest {
            size: word(4),
            is_ipv6: bytes[1] & 0x7F == 4,
            has_ecn: bytes[1] & 0x80 != 0,
            headers: word(2),
        });
        let offload = Offload { checksum, is_verified: bytes[0] & 2 != 0, segments };
        for _ in 1..buffers {
            let more = self.inbound.poll().expect("the device keeps the rules");
            let more = more.expect("all buffers of a packet are shown at once");
            bytes.extend(self.take_buffer(more.head, more.length));
        }
        self.inbound.publish();
        Some(Received { bytes: bytes.split_off(HEADER), offload, buffers })
    }

    fn take_buffer(&mut self, head: u16, length: u32) -> Vec<u8> {
        let segment = self.buffers.remove(&head).expect("the device had this buffer");
        assert!(length <= segment.length, "the device says it wrote more than there is");
        let mut bytes = vec![0; length as usize];
        self.guest.own.memory.copy_out(segment.address, &mut bytes).expect("it is memory");
        self.provide_at(segment);
        bytes
    }
}
