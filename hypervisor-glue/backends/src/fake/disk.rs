// SPDX-License-Identifier: Apache-2.0
//! A disk's driver, for any number of queues.

use super::FakeGuest;
use plinth_guest_memory::GuestAddress;
use plinth_virtio::{DriverQueue, Segment};
use std::collections::BTreeMap;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

/// What a status byte holds before the device has written it.
pub const STATUS_UNWRITTEN: u8 = 0xEE;

/// A request that came back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    pub head: u16,
    pub status: u8,
    /// What was read.
    pub data: Vec<u8>,
}

/// A request under way: where its status and its data to read are.
#[derive(Debug)]
struct Pending {
    status: GuestAddress,
    data: Vec<Segment>,
}

/// The driver of a disk.
#[derive(Debug)]
pub struct FakeDisk {
    pub guest: FakeGuest,
    pub queues: Vec<DriverQueue>,
    pending: BTreeMap<(u16, u16), Pending>,
}

impl FakeDisk {
    pub fn new(queues: u16, size: u16, memory: u64) -> Self {
        let guest = FakeGuest::new(queues, size, 0, memory);
        let driver = |layout| {
            DriverQueue::new(guest.memory(), layout, guest.ring_features())
                .expect("the ring lies in memory")
        };
        let queues = guest.layouts.iter().map(driver).collect();
        Self { guest, queues, pending: BTreeMap::new() }
    }

    pub fn read(&mut self, queue: u16, sector: u64, length: u32) -> u16 {
        self.submit(queue, VIRTIO_BLK_T_IN, sector, &[], length, 3)
    }

    pub fn write(&mut self, queue: u16, sector: u64, data: &[u8]) -> u16 {
        self.submit(queue, VIRTIO_BLK_T_OUT, sector, data, 0, 3)
    }

    pub fn flush(&mut self, queue: u16) -> u16 {
        self.submit(queue, VIRTIO_BLK_T_FLUSH, 0, &[], 0, 1)
    }

    pub fn identify(&mut self, queue: u16) -> u16 {
        self.submit(queue, VIRTIO_BLK_T_GET_ID, 0, &[], 20, 1)
    }

    pub fn discard(&mut self, queue: u16, sector: u64, sectors: u32, flags: u32) -> u16 {
        let range = range(sector, sectors, flags);
        self.submit(queue, VIRTIO_BLK_T_DISCARD, 0, &range, 0, 1)
    }

    pub fn write_zeroes(&mut self, queue: u16, sector: u64, sectors: u32, flags: u32) -> u16 {
        let range = range(sector, sectors, flags);
        self.submit(queue, VIRTIO_BLK_T_WRITE_ZEROES, 0, &range, 0, 1)
    }

    /// Any request: `data` goes to the device, `length` bytes come back, both cut into `pieces`
    /// segments. The header is cut too where there are several, as a driver may.
    pub fn submit(
        &mut self,
        queue: u16,
        kind: u32,
        sector: u64,
        data: &[u8],
        length: u32,
        pieces: u32,
    ) -> u16 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let mut front = header.to_vec();
        front.extend_from_slice(data);
        let readable = self.place(u32::try_from(front.len()).expect("tests are small"), pieces);
        plinth_virtio::copy_in(&self.guest.own.memory, &readable, 0, &front).expect("it is memory");
        let inbound = self.place(length, pieces);
        let status = self.guest.allocate(1);
        let memory = self.guest.memory();
        memory.copy_in(status, &[STATUS_UNWRITTEN]).expect("it is memory");
        let mut writable = inbound.clone();
        writable.push(Segment { address: status, length: 1 });
        let table = self.guest.allocate(16 * (readable.len() + writable.len()) as u64);
        let ring = &mut self.queues[usize::from(queue)];
        let head = if pieces > 1 {
            ring.add_indirect(table, &readable, &writable)
        } else {
            ring.add(&readable, &writable)
        };
        let head = head.expect("the ring has room");
        ring.publish();
        self.pending.insert((queue, head), Pending { status, data: inbound });
        head
    }

    /// Places for `length` bytes, cut into `pieces`.
    fn place(&mut self, length: u32, pieces: u32) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut left = length;
        for piece in 0..pieces {
            let step = if piece + 1 == pieces { left } else { left / 2 };
            if step > 0 {
                let address = self.guest.allocate(u64::from(step));
                segments.push(Segment { address, length: step });
                left -= step;
            }
        }
        segments
    }

    /// The next request that came back on a queue.
    pub fn poll(&mut self, queue: u16) -> Option<Answer> {
        let ring = &mut self.queues[usize::from(queue)];
        let used = ring.poll().expect("the device keeps the rules")?;
        let pending = self.pending.remove(&(queue, used.head));
        let Pending { status, data } = pending.expect("a request comes back once");
        let memory = &self.guest.own.memory;
        let mut byte = [0];
        memory.copy_out(status, &mut byte).expect("it is memory");
        let length: usize = data.iter().map(|segment| segment.length as usize).sum();
        let mut bytes = vec![0; length];
        plinth_virtio::copy_out(memory, &data, 0, &mut bytes).expect("it is memory");
        Some(Answer { head: used.head, status: byte[0], data: bytes })
    }

    /// Requests under way.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }
}

fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut range = [0; 16];
    range[..8].copy_from_slice(&sector.to_le_bytes());
    range[8..12].copy_from_slice(&sectors.to_le_bytes());
    range[12..].copy_from_slice(&flags.to_le_bytes());
    range
}
