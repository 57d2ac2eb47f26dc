// SPDX-License-Identifier: Apache-2.0
//! Outbound packets between their arrival and their release.

use super::{BURST, HEAD_MAX, Offload};
use plinth_guest_memory::{GuestMemory, OutsideMemory, Window};
use plinth_virtio::{Chain, Segment, copy_between, copy_out, copy_to_window};
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
    /// Bytes before the packet in the chain: the virtio-net header.
    pub(crate) skip: usize,
    pub(crate) length: usize,
    pub(crate) offload: Offload,
}

impl PacketSlot {
    fn new() -> Self {
        Self { chain: Chain::new(), skip: 0, length: 0, offload: Offload::default() }
    }
}

/// Up to [`BURST`] packets of one guest's ring.
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
    #[inline]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = OutboundPacket<'_>> {
        (0..self.count).map(|index| self.packet(index))
    }

    /// # Panics
    /// If there is no such packet.
    #[inline]
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
    /// How many bytes [`Self::copy_head`] copies: all of a short packet, else [`HEAD_MAX`].
    #[inline]
    pub fn head_length(&self) -> usize {
        self.slot.length.min(HEAD_MAX)
    }

    /// Copies the first bytes, from the Ethernet header on, into private memory. To be called once:
    /// a second copy may have other bytes.
    ///
    /// # Panics
    /// If `into` has not exactly [`Self::head_length`] bytes.
    #[inline]
    pub fn copy_head(&self, into: &mut [u8]) {
        assert_eq!(into.len(), self.head_length(), "a head is copied whole");
        let is_whole = copy_out(self.memory, self.slot.chain.readable(), self.slot.skip, into);
        assert_eq!(is_whole, Ok(true), "a checked chain can be read");
    }

    /// Bytes of the whole packet from the Ethernet header on, head included.
    #[inline]
    pub const fn length(&self) -> usize {
        self.slot.length
    }

    #[inline]
    pub const fn offload(&self) -> Offload {
        self.slot.offload
    }

    /// What follows the first `skip` bytes of the packet, to be copied once.
    ///
    /// It begins behind the head, whose bytes were judged from a private copy: whoever sent them on
    /// from here could send other bytes than those that were judged.
    ///
    /// # Panics
    /// If `skip` is inside the head or past the packet's length.
    #[inline]
    pub fn payload(&self, skip: usize) -> Payload<'a> {
        assert!(skip >= self.head_length(), "the head is sent from its private copy");
        assert!(skip <= self.length(), "{skip} bytes of a packet of {}", self.length());
        let guest = GuestPart {
            memory: self.memory,
            segments: self.slot.chain.readable(),
            skip: self.slot.skip + skip,
            length: self.length() - skip,
        };
        Payload { bytes: &[], guest: Some(guest) }
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

    #[inline]
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

    /// Copies `into.len()` bytes from byte `from` of the payload on.
    ///
    /// # Panics
    /// If the payload ends before.
    pub fn copy_part_to(&self, from: usize, into: &mut [u8]) {
        let ours = self.bytes.get(from..).unwrap_or_default();
        let (front, back) = into.split_at_mut(ours.len().min(into.len()));
        front.copy_from_slice(&ours[..front.len()]);
        if back.is_empty() {
            return;
        }
        let guest = self.guest.expect("what is not ours is the guest's");
        let at = from + front.len() - self.bytes.len();
        assert!(at + back.len() <= guest.length, "a part of the payload");
        let is_whole = copy_out(guest.memory, guest.segments, guest.skip + at, back);
        assert_eq!(is_whole, Ok(true), "a checked chain can be read");
    }

    /// Copies the whole payload, once, into `window` from `at` on.
    #[inline(always)]
    pub(crate) fn copy_to_window(&self, window: &Window<'_>, at: usize) {
        window.copy_in(at, self.bytes);
        if let Some(guest) = self.guest
            && guest.length > 0
        {
            let (skip, at) = (guest.skip, at + self.bytes.len());
            let is_whole =
                copy_to_window(guest.memory, guest.segments, skip, window, at, guest.length);
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
