// SPDX-License-Identifier: Apache-2.0
//! An Ethernet device of DPDK: the uplink.

use crate::Delivery;
use crate::port::counts;
use plinth_dpdk::{Announcer, EthQueue, Mbuf, Mempool};
use plinth_switch_api::DropCount;
use plinth_vswitch::DropReason;
use plinth_wire::checksum;
use std::os::fd::{AsFd, BorrowedFd};

/// Packets that wait for the device. More are refused as `port-queue-full`.
const BACKLOG_MAX: usize = 256;

/// The packet end of a device, with what is on its way to it.
#[derive(Debug)]
pub struct EthernetPort {
    queue: EthQueue,
    pool: Mempool,
    backlog: Vec<Mbuf>,
    announcer: Option<Announcer>,
    /// Packets in more buffers than fit into one.
    oversized: u64,
}

impl EthernetPort {
    /// `announcer` tells of received packets while the worker sleeps; without it the worker
    /// looks from time to time.
    pub fn new(queue: EthQueue, pool: Mempool, announcer: Option<Announcer>) -> Self {
        let backlog = Vec::with_capacity(BACKLOG_MAX);
        Self { queue, pool, backlog, announcer, oversized: 0 }
    }

    /// The device's queue, with what waits for it dropped.
    pub fn into_queue(self) -> EthQueue {
        self.queue
    }

    /// Pushes up to a burst of packets onto `into`, without letting it grow.
    #[inline]
    pub(crate) fn receive(&mut self, into: &mut Vec<Mbuf>) -> usize {
        self.queue.receive(into, &mut self.oversized)
    }

    #[inline]
    pub(crate) fn deliver(&mut self, delivery: &Delivery<'_>) -> Result<(), DropReason> {
        if delivery.segmentation.is_some() {
            return self.deliver_segments(delivery);
        }
        let length = delivery.head.len() + delivery.payload.len();
        self.put(length, |frame| {
            let (head, payload) = frame.split_at_mut(delivery.head.len());
            head.copy_from_slice(delivery.head);
            delivery.payload.copy_to(payload);
            let Some(partial) = delivery.partial else { return Ok(()) };
            // On the wire nobody else will fill it in. The machine has checked where it is, so this
            // cannot be refused; if it is, the packet must not go out with half a sum.
            checksum::complete(frame, partial).map_err(|_| DropReason::PortBufferInvalid)
        })
    }

    /// Cuts a packet into frames. When no more are taken in the middle, what was put out stays, and
    /// TCP sends the rest again.
    fn deliver_segments(&mut self, delivery: &Delivery<'_>) -> Result<(), DropReason> {
        let segments = delivery.segments().ok_or(DropReason::PortBufferInvalid)?;
        for nth in 0..segments.count() {
            let length = segments.headers() + segments.payload(nth).len();
            self.put(length, |frame| {
                delivery.cut(&segments, nth, frame);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// One frame of `length` bytes, filled by `fill`.
    #[inline]
    fn put(
        &mut self,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        if self.backlog.len() >= BACKLOG_MAX {
            self.flush();
            if self.backlog.len() >= BACKLOG_MAX {
                return Err(DropReason::PortQueueFull);
            }
        }
        let mut mbuf = self.pool.take().ok_or(DropReason::PortQueueFull)?;
        fill(mbuf.append(length).ok_or(DropReason::PortBufferInvalid)?)?;
        self.backlog.push(mbuf);
        Ok(())
    }

    pub(crate) fn flush(&mut self) {
        // What the device does not take stays for the next round.
        while !self.backlog.is_empty() && self.queue.send(&mut self.backlog) > 0 {}
    }

    /// Whether packets wait for the device.
    pub(crate) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    pub(crate) fn arm(&mut self) -> bool {
        let Some(announcer) = &self.announcer else { return false };
        announcer.drain();
        // Room in the device's queue is announced by nothing.
        self.backlog.is_empty()
    }

    pub(crate) fn watch(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        if let Some(announcer) = &self.announcer {
            watch(announcer.as_fd());
        }
    }

    pub(crate) fn drops(&self) -> Vec<DropCount> {
        counts(&[("receive-oversized", self.oversized)])
    }
}
