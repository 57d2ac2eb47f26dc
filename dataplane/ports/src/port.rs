// SPDX-License-Identifier: Apache-2.0
//! What every port can do.

use crate::{EthernetPort, GuestPort, MemoryPort};
use plinth_backends::net::{DeliverRefusal, Payload};
use plinth_switch_api::DropCount;
use plinth_vswitch::DropReason;
use plinth_wire::checksum::PartialChecksum;
use plinth_wire::{Segmentation, Segments};

/// A port of one of the three kinds. An enum and not a trait object: the call is on the path of
/// every packet, and the kinds are known.
#[derive(Debug)]
pub enum Port {
    Guest(Box<GuestPort>),
    Ethernet(Box<EthernetPort>),
    Memory(MemoryPort),
}

/// One packet to be put out at a port: `head`, then `payload`.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    pub head: &'a [u8],
    pub payload: Payload<'a>,
    /// A checksum that is still to be filled in, by us or by the receiver.
    pub partial: Option<PartialChecksum>,
    /// How the packet is to be cut into segments, by us or by the receiver.
    pub segmentation: Option<Segmentation>,
}

impl Delivery<'_> {
    /// The segments, if there are to be any.
    pub(crate) fn segments(&self) -> Option<Segments> {
        let plan = self.segmentation?;
        let segments = Segments::new(plan, self.head.len() + self.payload.len());
        // The machine gives no other plan.
        debug_assert!(segments.is_some(), "a judged plan can be carried out: {plan:?}");
        segments
    }

    /// Puts segment `nth` together in `frame`, which has its length: a whole frame with every sum
    /// completed.
    pub(crate) fn cut(&self, segments: &Segments, nth: usize, frame: &mut [u8]) {
        let range = segments.payload(nth);
        let (headers, data) = frame.split_at_mut(segments.headers());
        headers.copy_from_slice(&self.head[..segments.headers()]);
        // The front of the payload was copied with the head.
        let at = segments.headers() + range.start;
        let ours = self.head.get(at..).unwrap_or_default();
        let (front, back) = data.split_at_mut(ours.len().min(range.len()));
        front.copy_from_slice(&ours[..front.len()]);
        if !back.is_empty() {
            self.payload.copy_part_to(at + front.len() - self.head.len(), back);
        }
        segments.finish(nth, frame);
    }
}

impl Port {
    /// Puts one packet out. It reaches the other side with the next [`Self::flush`].
    #[inline]
    pub(crate) fn deliver(&mut self, delivery: &Delivery<'_>) -> Result<(), DropReason> {
        match self {
            Self::Guest(port) => port.deliver(delivery),
            Self::Ethernet(port) => port.deliver(delivery),
            Self::Memory(port) => port.deliver(delivery),
        }
    }

    /// Puts several packets out in their order, as [`Self::deliver`] does one. `delivery` gives them
    /// by number; `refused` is told of those that were not taken.
    #[inline]
    pub(crate) fn deliver_burst<'a>(
        &mut self,
        count: usize,
        delivery: impl Fn(usize) -> Delivery<'a>,
        mut refused: impl FnMut(usize, DropReason),
    ) {
        if let Self::Guest(port) = self {
            return port.deliver_burst(count, delivery, refused);
        }
        for nth in 0..count {
            if let Err(reason) = self.deliver(&delivery(nth)) {
                refused(nth, reason);
            }
        }
    }

    /// Shows the other side what was delivered and taken since the last flush.
    pub(crate) fn flush(&mut self) {
        match self {
            Self::Guest(port) => port.flush(),
            Self::Ethernet(port) => port.flush(),
            Self::Memory(_) => {}
        }
    }

    /// Whether packets can pass, as far as the port itself knows.
    pub fn is_up(&self) -> bool {
        match self {
            Self::Guest(port) => port.is_up(),
            Self::Ethernet(_) => true,
            Self::Memory(port) => port.is_up(),
        }
    }

    /// Asks for an announcement of the next work. `false` when this port has none to give.
    pub(crate) fn arm(&mut self) -> bool {
        match self {
            Self::Guest(port) => port.arm(),
            Self::Ethernet(port) => port.arm(),
            Self::Memory(_) => true,
        }
    }

    pub(crate) fn disarm(&mut self) {
        if let Self::Guest(port) = self {
            port.disarm();
        }
    }

    /// What ended at the port before the switch saw it.
    pub(crate) fn drops(&self) -> Vec<DropCount> {
        match self {
            Self::Guest(port) => port.drops(),
            Self::Ethernet(port) => port.drops(),
            Self::Memory(_) => Vec::new(),
        }
    }
}

/// The switch's word for a guest's refusal.
pub(crate) const fn reason(refusal: DeliverRefusal) -> DropReason {
    match refusal {
        DeliverRefusal::Down => DropReason::PortDown,
        DeliverRefusal::NoBuffers => DropReason::PortQueueFull,
        DeliverRefusal::TooLong | DeliverRefusal::BuffersMalformed => DropReason::PortBufferInvalid,
    }
}

/// Counts that are not zero, by name.
pub(crate) fn counts(named: &[(&str, u64)]) -> Vec<DropCount> {
    let counted = named.iter().filter(|(_, packets)| *packets > 0);
    counted.map(|&(reason, packets)| DropCount { reason: reason.to_owned(), packets }).collect()
}
