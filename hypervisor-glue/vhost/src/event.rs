// SPDX-License-Identifier: Apache-2.0
//! What passes between a device's thread and the worker that polls its queues.

use crossbeam_channel::{Sender, bounded};
use plinth_virtio::{DeviceQueue, Notifier, RingState};
use std::fmt;
use std::fs::File;
use std::sync::Arc;

/// Names a device in the events of a worker that serves several. Chosen by the caller.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DeviceToken(pub u64);

/// What a kind of device tells the protocol. Called on the device's own thread.
pub trait DeviceClass: Send + Sync + fmt::Debug + 'static {
    /// The virtio feature bits of the kind. Ring and transport bits are added by the server.
    fn features(&self) -> u64;

    /// How many rings the device has.
    fn queue_count(&self) -> u16;

    /// Whether requests are recorded in the in-flight region, so that another process can
    /// submit again what this one left unfinished.
    fn keeps_inflight(&self) -> bool;

    /// Whether the worker takes packed rings. Nothing is recorded of those in the in-flight region,
    /// so that a device whose requests must not be lost says no.
    fn takes_packed(&self) -> bool {
        false
    }

    /// Whether the frontend gets the configuration space from us. QEMU wants that of a disk and
    /// warns of it at a NIC.
    fn offers_config(&self) -> bool;

    /// Fills `into` with the configuration space from `offset` on; zeros behind its end.
    fn read_config(&self, offset: usize, into: &mut [u8]);

    /// The driver writes to the configuration space.
    fn write_config(&self, offset: usize, bytes: &[u8]) -> Result<(), ConfigRefusal>;
}

/// The driver may not write there.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("configuration space at {offset} is read-only for {length} bytes")]
pub struct ConfigRefusal {
    pub offset: usize,
    pub length: usize,
}

/// The way from device threads to a worker.
#[derive(Clone)]
pub struct WorkerLink {
    events: Sender<QueueEvent>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl WorkerLink {
    /// `wake` ends the worker's sleep, if it sleeps. The worker must take events from the other
    /// end of `events` at least once a round: a device's thread waits for room and for answers.
    pub fn new(events: Sender<QueueEvent>, wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { events, wake }
    }

    /// `false` when the worker is gone, which frees all that it held.
    pub(crate) fn send(&self, event: QueueEvent) -> bool {
        let is_sent = self.events.send(event).is_ok();
        (self.wake)();
        is_sent
    }
}

impl fmt::Debug for WorkerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerLink").finish_non_exhaustive()
    }
}

/// Something about a device's queue, for the worker.
#[derive(Debug)]
pub struct QueueEvent {
    pub device: DeviceToken,
    pub change: QueueChange,
}

#[derive(Debug)]
pub enum QueueChange {
    /// The queue is the worker's from here on.
    Start(Box<StartedQueue>),
    /// Give the queue back: finish what is in flight, drop the queue, answer the ticket.
    Stop(StopTicket),
    /// The frontend has another eventfd for used buffers, or wants none.
    Call { index: u16, call: Option<Notifier> },
}

/// A queue that the frontend has started and enabled.
#[derive(Debug)]
pub struct StartedQueue {
    pub index: u16,
    pub queue: DeviceQueue,
    /// Readable when the driver has made buffers available and was asked to tell. Register it
    /// edge-triggered and never read it: a read of a foreign descriptor can block.
    pub kick: Option<File>,
    /// Written when buffers were used and the driver wants to hear of it.
    pub call: Option<Notifier>,
    /// Written when the queue is broken beyond use.
    pub error: Option<Notifier>,
    /// The virtio features that the driver has accepted.
    pub features: u64,
}

/// The duty to answer a [`QueueChange::Stop`]. Dropped unanswered, the device's thread takes
/// the queue for gone and reads its state from the ring.
#[derive(Debug)]
pub struct StopTicket {
    index: u16,
    reply: Sender<RingState>,
}

impl StopTicket {
    /// A ticket and the end at which its answer arrives. For the server and for fakes of it.
    pub fn new(index: u16) -> (Self, crossbeam_channel::Receiver<RingState>) {
        let (reply, answer) = bounded(1);
        (Self { index, reply }, answer)
    }

    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Says that the ring and its memory will not be touched again by this worker.
    pub fn answer(self, state: RingState) {
        // Nobody waits any more when the device's thread has ended: then the answer is moot.
        let _ = self.reply.send(state);
    }
}
