// SPDX-License-Identifier: Apache-2.0
//! Memory with rings in it.

use plinth_guest_memory::{GuestAddress, GuestMemory, OwnMemory};
use plinth_vhost::{QueueChange, StartedQueue, StopTicket};
use plinth_virtio::{
    DeviceQueue, InflightQueue, Notifier, QueueLayout, RingFeatures, RingState, eventfd,
};
use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// What every driver of virtio 1 accepts of a ring.
pub(crate) const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Where the guest's memory begins: not at 0, so that a forgotten address is no memory.
const BASE: u64 = 0x10_0000;

/// The memory of a guest, with rings at its start and the rest for buffers.
#[derive(Debug)]
pub struct FakeGuest {
    pub own: OwnMemory,
    pub features: u64,
    pub layouts: Vec<QueueLayout>,
    pub calls: Vec<File>,
    pub kicks: Vec<File>,
    next_free: u64,
    end: u64,
}

impl FakeGuest {
    /// `features` besides those of the ring.
    pub fn new(queues: u16, size: u16, features: u64, memory: u64) -> Self {
        let own = OwnMemory::new(GuestAddress(BASE), memory).expect("a memory file can be made");
        let step = QueueLayout::contiguous_bytes(size).next_multiple_of(4096);
        let layouts: Vec<_> = (0..u64::from(queues))
            .map(|index| QueueLayout::contiguous(size, GuestAddress(BASE + index * step)))
            .collect();
        let make = || eventfd().expect("an eventfd can be made");
        let calls = (0..queues).map(|_| make()).collect();
        let kicks = (0..queues).map(|_| make()).collect();
        let next_free = BASE + u64::from(queues) * step;
        let features = features | RING_FEATURES;
        Self { own, features, layouts, calls, kicks, next_free, end: BASE + memory }
    }

    pub fn memory(&self) -> Arc<GuestMemory> {
        self.own.memory.clone()
    }

    pub fn ring_features(&self) -> RingFeatures {
        RingFeatures {
            event_index: self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
            indirect: self.features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0,
            packed: self.features & 1 << VIRTIO_F_RING_PACKED != 0,
            in_order: self.features & 1 << VIRTIO_F_IN_ORDER != 0,
        }
    }

    /// Memory for a buffer that is never given back.
    pub fn allocate(&mut self, bytes: u64) -> GuestAddress {
        let address = self.next_free;
        self.next_free = (address + bytes).next_multiple_of(64);
        assert!(self.next_free <= self.end, "the fake guest has no memory left");
        GuestAddress(address)
    }

    /// Where a ring of the driver's begins: see [`DeviceQueue::new`].
    pub fn first_base(&self) -> u16 {
        if self.ring_features().packed { 1 << 15 } else { 0 }
    }

    /// What the device's thread sends when the frontend starts a ring.
    pub fn start(&self, index: u16, base: u16, inflight: Option<InflightQueue>) -> QueueChange {
        let at = usize::from(index);
        let layout = &self.layouts[at];
        let queue = DeviceQueue::new(self.memory(), layout, self.ring_features(), base, inflight)
            .expect("the ring lies in memory");
        let clone = |file: &File| file.try_clone().expect("a descriptor can be had");
        QueueChange::Start(Box::new(StartedQueue {
            index,
            queue,
            kick: Some(clone(&self.kicks[at])),
            call: Some(Notifier::new(clone(&self.calls[at])).expect("it is an eventfd")),
            error: None,
            features: self.features,
        }))
    }

    /// What the device's thread sends to have a ring back, and where the answer comes.
    pub fn stop(index: u16) -> (QueueChange, crossbeam_channel::Receiver<RingState>) {
        let (ticket, answer) = StopTicket::new(index);
        (QueueChange::Stop(ticket), answer)
    }

    /// How often the guest was called on a ring since the last question.
    pub fn take_calls(&self, index: u16) -> u64 {
        let mut bytes = [0; 8];
        match (&self.calls[usize::from(index)]).read_exact(&mut bytes) {
            Ok(()) => u64::from_le_bytes(bytes),
            // Nothing was written, and the eventfd does not block.
            Err(_) => 0,
        }
    }
}
