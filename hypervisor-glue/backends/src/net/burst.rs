// SPDX-License-Identifier: Apache-2.0
//! Outbound packets between their arrival and their release.

use super::Offload;

/// Up to [`super::BURST`] packets of one guest's ring, with their heads in private memory.
///
/// Filled by [`super::NetDevice::receive`], emptied by [`super::NetDevice::release`]; reused
/// from round to round, so that nothing is allocated. It must be released before the worker
/// takes further queue events: a queue that is asked back waits for it.
#[derive(Debug, Default)]
pub struct OutboundBurst {
    packets: Vec<OutboundPacket>,
}

impl OutboundBurst {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.packets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// The packets in the order in which the guest sent them.
    pub fn iter(&self) -> impl Iterator<Item = &OutboundPacket> {
        self.packets.iter()
    }
}

/// One packet of a guest. The head is ours; the rest is still in the guest and may change.
#[derive(Debug)]
pub struct OutboundPacket {
    offload: Offload,
}

impl OutboundPacket {
    /// The first bytes, from the Ethernet header on: all of a short packet, else
    /// [`super::HEAD_MAX`].
    pub fn head(&self) -> &[u8] {
        unimplemented!()
    }

    /// Bytes of the whole packet from the Ethernet header on, head included.
    pub fn length(&self) -> usize {
        unimplemented!()
    }

    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// What follows the first `skip` bytes of the packet, to be copied once.
    ///
    /// # Panics
    /// If `skip` is past the packet's length.
    pub fn payload(&self, skip: usize) -> Payload<'_> {
        let _ = skip;
        unimplemented!()
    }
}

/// The part of a packet behind the head that the caller brings, wherever it lies.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    bytes: &'a [u8],
}

impl<'a> Payload<'a> {
    pub const EMPTY: Payload<'static> = Payload { bytes: &[] };

    /// Bytes of our own, such as an mbuf's.
    pub const fn bytes(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the whole payload out, once.
    ///
    /// # Panics
    /// If `into` has not exactly [`Payload::len`] bytes.
    pub fn copy_to(&self, into: &mut [u8]) {
        let _ = into;
        unimplemented!()
    }
}
