// SPDX-License-Identifier: Apache-2.0
//! Outbound packets between their arrival and their release.

use super::{BURST, HEAD_MAX, Offload};
use plinth_guest_memory::{GuestMemory, OutsideMemory};
use plinth_virtio::{Chain, Segment, copy_between, copy_out};
use std::sync::Arc;

/// Where a burst came from, so that it goes back there and nowhere else.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) ring: u16,
    pub(crate) generation: u32,
    pub(crate) memory: Arc<GuestMemory>,
}

/// One packet in a burst.
#[derive(Debug)]
pub(crate) struct PacketSlot {
    pub(crate) chain: Chain,
    pub(crate) head: [u8; HEAD_MAX],
    pub(crate) head_length: usize,
    /// Bytes before the packet in the chain: the virtio-net header.
    pub(crate) skip: usize,
    pub(crate) length: usize,
    pub(crate) offload: Offload,
}

impl PacketSlot {
    fn new() -> Self {
        Self {
            chain: Chain::new(),
            head: [0; HEAD_MAX],
            head_length: 0,
            skip: 0,
            length: 0,
            offload: Offload::default(),
        }
    }
}

/// Up to [`BURST`] packets of one guest's ring, with their heads in private memory.
///
/// Filled by [`super::NetDevice::receive`], emptied by [`super::NetDevice::release`]; reused
/// from round to round, so that nothing is allocated. It should be released before the worker
/// takes further queue events: a queue that is asked back waits for it.
#[derive(Debug)]
pub struct OutboundBurst {
    pub(crate) slots: Vec<PacketSlot>,
    pub(crate) count: usize,
    pub(crate) origin: Option<Origin>,
}

impl Default for OutboundBurst {
    fn default() -> Self {
        Self::new()
    }
}

impl OutboundBurst {
    pub fn new() -> Self {
        Self { slots: (0..BURST).map(|_| PacketSlot::new()).collect(), count: 0, origin: None }
    }

    pub const fn len(&self) -> usize {
        self.count
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The packets in the order in which the guest sent them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = OutboundPacket<'_>> {
        (0..self.count).map(|index| self.packet(index))
    }

    /// # Panics
    /// If there is no such packet.
    pub fn packet(&self, index: usize) -> OutboundPacket<'_> {
        assert!(index < self.count, "packet {index} of a burst of {}", self.count);
        let origin = self.origin.as_ref().expect("a burst with packets has an origin");
        OutboundPacket { slot: &self.slots[index], memory: &origin.memory }
    }
}

/// One packet of a guest. The head is ours; the rest is still in the guest and may change.
#[derive(Clone, Copy, Debug)]
pub struct OutboundPacket<'a> {
    slot: &'a PacketSlot,
    memory: &'a GuestMemory,
}

impl<'a> OutboundPacket<'a> {
    /// The first bytes, from the Ethernet header on: all of a short packet, else
    /// [`HEAD_MAX`].
    pub fn head(&self) -> &'a [u8] {
        &self.slot.head[..self.slot.head_length]
    }

    /// Bytes of the whole packet from the Ethernet header on, head included.
    pub const fn length(&self) -> usize {
        self.slot.length
    }

    pub const fn offload(&self) -> Offload {
        self.slot.offload
    }

    /// What follows the first `skip` bytes of the packet, to be copied once.
    ///
    /// Bytes below [`HEAD_MAX`] are given from the private copy, so that nobody is sent other
    /// bytes than those that were judged.
    ///
    /// # Panics
    /// If `skip` is past the packet's length.
    pub fn payload(&self, skip: usize) -> Payload<'a> {
        assert!(skip <= self.length(), "{skip} bytes of a packet of {}", self.length());
        let judged = self.head().get(skip..).unwrap_or_default();
        let from = skip.max(self.slot.head_length);
        let guest = GuestPart {
            memory: self.memory,
            segments: self.slot.chain.readable(),
            skip: self.slot.skip + from,
            length: self.length() - from,
        };
        Payload { bytes: judged, guest: Some(guest) }
    }
}

/// Bytes that are still in a guest.
#[derive(Clone, Copy, Debug)]
struct GuestPart<'a> {
    memory: &'a GuestMemory,
    segments: &'a [Segment],
    skip: usize,
    length: usize,
}

/// The part of a packet behind the head that the caller brings, wherever it lies: some bytes of
/// our own, then perhaps some that are still in a guest.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    bytes: &'a [u8],
    guest: Option<GuestPart<'a>>,
}

impl<'a> Payload<'a> {
    pub const EMPTY: Payload<'static> = Payload { bytes: &[], guest: None };

    /// Bytes of our own, such as an mbuf's.
    pub const fn bytes(bytes: &'a [u8]) -> Self {
        Self { bytes, guest: None }
    }

    pub const fn len(&self) -> usize {
        match self.guest {
            Some(guest) => self.bytes.len() + guest.length,
            None => self.bytes.len(),
        }
    }

    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the whole payload out, once.
    ///
    /// # Panics
    /// If `into` has not exactly [`Payload::len`] bytes.
    pub fn copy_to(&self, into: &mut [u8]) {
        assert_eq!(into.len(), self.len(), "the payload is copied whole");
        let (front, back) = into.split_at_mut(self.bytes.len());
        front.copy_from_slice(self.bytes);
        if let Some(guest) = self.guest {
            let is_whole = copy_out(guest.memory, guest.segments, guest.skip, back);
            // The chain was checked against this very table, which never changes.
            assert_eq!(is_whole, Ok(true), "a checked chain can be read");
        }
    }

    /// Copies `length` bytes from byte `from` of the payload on into `target`, where they go to
    /// byte `at` of its segments.
    #[inline]
    pub(crate) fn copy_into_guest(
        &self,
        from: usize,
        length: usize,
        target: (&GuestMemory, &[Segment]),
        at: usize,
    ) -> Result<bool, OutsideMemory> {
        let ours = self.bytes.get(from..).unwrap_or_default();
        let ours = &ours[..ours.len().min(length)];
        if !plinth_virtio::copy_in(target.0, target.1, at, ours)? {
            return Ok(false);
        }
        let left = length - ours.len();
        match self.guest {
            _ if left == 0 => Ok(true),
            Some(guest) => {
                let skip = guest.skip + (from + ours.len() - self.bytes.len());
                let source = (guest.memory, guest.segments);
                copy_between(source, skip, target, at + ours.len(), left)
            }
            None => Ok(false),
        }
    }
}
