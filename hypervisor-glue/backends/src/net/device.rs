// SPDX-License-Identifier: Apache-2.0
//! The worker's side of one NIC.

use super::burst::{Origin, PacketSlot};
use super::header::{self, HEADER_LEGACY, HEADER_MAX};
use super::{
    BURST, ChecksumRequest, HEAD_MAX, NetCounters, Offload, OutboundBurst, Payload, SegmentRequest,
};
use crate::kicks::KickChange;
use crate::slots::{Handled, Slot, Slots};
use plinth_guest_memory::Access;
use plinth_vhost::QueueChange;
use plinth_virtio::{Chain, PopFault, copy_in, copy_out};
use std::os::fd::BorrowedFd;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};

/// The longest packet, from the Ethernet header on: 64 KiB of IP with a VLAN tag.
pub const PACKET_MAX: usize = 65_535 + 18;

/// The shortest: an Ethernet header.
const PACKET_MIN: usize = 14;

/// [`BURST`], as rings count.
const BURST_16: u16 = 32;
const _: () = assert!(BURST_16 as usize == BURST);

/// Bytes of a packet whose buffer is fetched ahead, at most.
const FETCH_MAX: usize = 256;

/// Buffers for one packet, at most. Linux gives 1500 bytes a buffer or more.
const BUFFERS_MAX: usize = 64;

/// Why a packet was not put into the guest's ring. Nothing was shown to the guest then.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeliverRefusal {
    #[error("the guest's driver has not started this queue")]
    Down,
    #[error("the guest has made too few buffers available")]
    NoBuffers,
    #[error("the packet does not fit the buffers that the driver gives for one")]
    TooLong,
    #[error("the guest's buffers are malformed, and its queue was given up")]
    BuffersMalformed,
}

/// A packet for a guest: `head`, then `payload`.
#[derive(Clone, Copy, Debug)]
pub struct Inbound<'a> {
    pub head: &'a [u8],
    pub payload: Payload<'a>,
    pub offload: Offload,
}

/// All queues of one NIC, owned by one worker.
#[derive(Debug)]
pub struct NetDevice {
    slots: Slots,
    counters: NetCounters,
    /// Buffers of the packet that is being delivered; reused.
    chains: Vec<Chain>,
    /// A packet whose checksum must be completed here; reused.
    scratch: Vec<u8>,
}

/// The ring with the guest's transmitted packets.
const fn outbound_ring(pair: u16) -> u16 {
    pair * 2 + 1
}

/// The ring with the guest's receive buffers.
const fn inbound_ring(pair: u16) -> u16 {
    pair * 2
}

const fn is_outbound(ring: u16) -> bool {
    ring % 2 == 1
}

const fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

/// Bytes of the header before each packet.
const fn header_length(features: u64) -> usize {
    if has(features, VIRTIO_F_VERSION_1) || has(features, VIRTIO_NET_F_MRG_RXBUF) {
        HEADER_MAX
    } else {
        HEADER_LEGACY
    }
}

impl NetDevice {
    /// `queue_pairs` as in [`super::NetOptions`].
    pub fn new(queue_pairs: u16) -> Self {
        Self {
            slots: Slots::new(queue_pairs * 2, is_outbound),
            counters: NetCounters::default(),
            chains: (0..BUFFERS_MAX).map(|_| Chain::new()).collect(),
            scratch: Vec::with_capacity(PACKET_MAX),
        }
    }

    /// Takes over a queue, gives one back or changes its eventfd. A queue that is asked back
    /// while a burst of it is outstanding is given back at its release.
    pub fn handle(&mut self, change: QueueChange) {
        if let Handled::Started(ring) = self.slots.handle(change)
            && !is_outbound(ring)
            && let Some(slot) = self.slots.get_mut(ring)
        {
            // More receive buffers are no work, so nobody need tell of them.
            slot.queue.disarm_kicks();
        }
    }

    /// The next kick descriptor that came or went.
    pub fn take_kick_change(&mut self) -> Option<KickChange> {
        self.slots.take_kick_change()
    }

    /// Gives `watch` every descriptor whose readiness means work. Wait for them edge-triggered
    /// and never read them: a read of a descriptor that is shared with another process can
    /// block.
    pub fn watch_kicks(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.slots.watch_kicks(watch);
    }

    /// Whether the guest's driver has started at least one queue.
    pub fn is_up(&self) -> bool {
        self.slots.iter().any(|(_, slot)| slot.is_running())
    }

    /// Queue pairs of which both rings run.
    pub fn pairs_running(&self) -> impl Iterator<Item = u16> {
        let is_running = |ring| self.slots.get(ring).is_some_and(Slot::is_running);
        (0..self.slots.count() / 2)
            .filter(move |pair| is_running(inbound_ring(*pair)) && is_running(outbound_ring(*pair)))
    }

    /// Takes up to [`BURST`] packets that the guest has sent on `pair`. Malformed ones are
    /// counted, given back and not among them. Returns the burst's length.
    ///
    /// # Panics
    /// If `burst` holds packets: release it first.
    pub fn receive(&mut self, pair: u16, burst: &mut OutboundBurst) -> usize {
        self.receive_up_to(pair, BURST, burst)
    }

    /// As [`Self::receive`], and no more than `most`: the others wait in the guest's queue.
    ///
    /// # Panics
    /// If `burst` holds packets: release it first.
    pub fn receive_up_to(&mut self, pair: u16, most: usize, burst: &mut OutboundBurst) -> usize {
        assert!(burst.is_empty(), "a burst is released before it is filled again");
        let ring = outbound_ring(pair);
        let Some(slot) = self.slots.get_mut(ring).filter(|slot| slot.is_running()) else {
            return 0;
        };
        // Malformed packets count against the bound too, so that a guest that sends nothing
        // else does not keep the worker here.
        slot.queue.fetch_ahead(BURST_16, HEADER_MAX + HEAD_MAX, Access::Read);
        for _ in 0..BURST.min(most) {
            let packet = &mut burst.slots[burst.count];
            match slot.queue.pop(&mut packet.chain) {
                Ok(true) => {}
                Ok(false) => break,
                Err(PopFault::Chain { head, .. }) => {
                    self.counters.drop_chain_malformed += 1;
                    slot.queue.push(head, 0);
                    continue;
                }
                Err(PopFault::Ring { .. }) => {
                    self.counters.queues_broken += 1;
                    slot.mark_broken();
                    break;
                }
            }
            match judge(slot, packet) {
                Ok(()) => {
                    self.counters.outbound_packets += 1;
                    self.counters.outbound_bytes += packet.length as u64;
                    burst.count += 1;
                }
                Err(fault) => {
                    *fault.counter(&mut self.counters) += 1;
                    slot.queue.push(packet.chain.head(), 0);
                }
            }
        }
        // The next burst's lines come while this one is worked on.
        slot.queue.fetch_ahead(BURST_16, HEADER_MAX + HEAD_MAX, Access::Read);
        if burst.count > 0 {
            let (memory, generation) = (slot.queue.memory().clone(), slot.generation);
            burst.origin = Some(Origin { ring, generation, memory });
        }
        burst.count
    }

    /// Gives the buffers of a burst back to the guest that it came from. The guest sees them
    /// after [`NetDevice::flush`].
    pub fn release(&mut self, burst: &mut OutboundBurst) {
        let count = std::mem::take(&mut burst.count);
        let Some(Origin { ring, generation, .. }) = burst.origin.take() else { return };
        let slot = self.slots.get_mut(ring).filter(|slot| slot.generation == generation);
        // A queue waits for its burst before it goes, so a stranger is a burst of another NIC.
        let slot = slot.expect("a burst is released to the device that it was received from");
        slot.queue.push_all(burst.slots[..count].iter().map(|packet| packet.chain.head()));
        self.slots.give_back_if_idle(ring);
    }

    /// Writes one packet into the guest's ring: `head`, then `payload`. The guest sees it after
    /// [`NetDevice::flush`].
    ///
    /// A checksum that the guest's driver has not agreed to complete is completed here, so that
    /// every guest can be sent every packet.
    pub fn deliver(
        &mut self,
        pair: u16,
        head: &[u8],
        payload: Payload<'_>,
        offload: Offload,
    ) -> Result<(), DeliverRefusal> {
        self.deliver_one(pair, Inbound { head, payload, offload })
    }

    /// Whether the guest takes packets that are still to be cut so. What it does not take the caller
    /// cuts.
    pub fn takes_segments(&self, pair: u16, request: SegmentRequest) -> bool {
        let slot = self.slots.get(inbound_ring(pair));
        slot.is_some_and(|slot| header::takes_segments(slot.features, request))
    }

    // Inlined by order, with everything that is small on its way: a packet's description is then
    // never put together in memory, where a load wider than the stores before it waits for the
    // store buffer. That wait was a seventh of a packet's time on Zen 4.
    #[inline(always)]
    fn deliver_one(&mut self, pair: u16, packet: Inbound<'_>) -> Result<(), DeliverRefusal> {
        let Inbound { head, payload, offload } = packet;
        let ring = inbound_ring(pair);
        let Some(slot) = self.slots.get_mut(ring).filter(|slot| slot.is_running()) else {
            return Err(DeliverRefusal::Down);
        };
        let length = head.len() + payload.len();
        if length > PACKET_MAX {
            return Err(DeliverRefusal::TooLong);
        }
        let takes_checksums = has(slot.features, VIRTIO_NET_F_GUEST_CSUM);
        let result = match (offload.checksum, offload.segments) {
            (Some(request), None) if !takes_checksums => {
                write_completed(slot, &mut self.chains, &mut self.scratch, packet, request)
            }
            (_, Some(request)) if !header::takes_segments(slot.features, request) => {
                Err(DeliverRefusal::TooLong)
            }
            _ => write_packet(slot, &mut self.chains, packet),
        };
        match result {
            Ok(()) => {
                self.counters.inbound_packets += 1;
                self.counters.inbound_bytes += length as u64;
            }
            Err(DeliverRefusal::BuffersMalformed) => {
                self.counters.queues_broken += 1;
                slot.mark_broken();
            }
            Err(_) => {}
        }
        result
    }

    /// Writes several packets into the guest's ring in their order, as [`Self::deliver`] does one.
    /// `packet` gives them by number; `refused` is told of those that were not written.
    pub fn deliver_burst<'a>(
        &mut self,
        pair: u16,
        count: usize,
        packet: impl Fn(usize) -> Inbound<'a>,
        mut refused: impl FnMut(usize, DeliverRefusal),
    ) {
        for nth in 0..count {
            if let Err(refusal) = self.deliver_one(pair, packet(nth)) {
                refused(nth, refusal);
            }
        }
    }

    /// Has the receive buffers fetched for `count` packets of up to `length` bytes that will
    /// probably come, so that they are near when they do.
    #[inline]
    pub fn expect(&mut self, pair: u16, count: usize, length: usize) {
        if let Some(slot) = self.slots.get_mut(inbound_ring(pair))
            && slot.is_running()
        {
            let count = u16::try_from(count).unwrap_or(u16::MAX);
            slot.queue.fetch_ahead(count, HEADER_MAX + length.min(FETCH_MAX), Access::Write);
        }
    }

    /// Shows the guest what was delivered and released since the last flush, and calls it where
    /// it asked for that. Once a burst.
    pub fn flush(&mut self) {
        for slot in self.slots.iter_mut() {
            self.counters.calls += u64::from(slot.flush());
        }
    }

    /// Asks the guest to kick before the worker sleeps. `true` when packets are there already:
    /// then poll again instead.
    pub fn arm_kicks(&mut self) -> bool {
        self.slots.arm_kicks(&mut self.counters.queues_broken)
    }

    /// Tells the guest that kicks are not needed, because the worker polls.
    pub fn disarm_kicks(&mut self) {
        self.slots.disarm_kicks();
    }

    pub const fn counters(&self) -> NetCounters {
        self.counters
    }
}

/// What is wrong with an outbound packet whose chain is in order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum PacketFault {
    WritableBuffers,
    TooShort,
    TooLong,
    OffloadInvalid,
}

impl PacketFault {
    const fn counter(self, counters: &mut NetCounters) -> &mut u64 {
        match self {
            Self::WritableBuffers => &mut counters.drop_chain_malformed,
            Self::TooShort => &mut counters.drop_too_short,
            Self::TooLong => &mut counters.drop_too_long,
            Self::OffloadInvalid => &mut counters.drop_offload_invalid,
        }
    }
}

/// Reads the header of the packet whose chain is in `packet`.
#[inline]
fn judge(slot: &Slot, packet: &mut PacketSlot) -> Result<(), PacketFault> {
    let skip = header_length(slot.features);
    let total = packet.chain.readable_bytes() as usize;
    if packet.chain.writable_bytes() != 0 {
        return Err(PacketFault::WritableBuffers);
    }
    if total < skip + PACKET_MIN {
        return Err(PacketFault::TooShort);
    }
    let length = total - skip;
    if length > PACKET_MAX {
        return Err(PacketFault::TooLong);
    }
    let mut front = [0; HEADER_MAX];
    let is_whole = copy_out(slot.queue.memory(), packet.chain.readable(), 0, &mut front[..skip]);
    assert_eq!(is_whole, Ok(true), "a checked chain can be read");
    let offload =
        header::parse(&front, length, slot.features).ok_or(PacketFault::OffloadInvalid)?;
    (packet.skip, packet.length) = (skip, length);
    packet.offload = offload;
    Ok(())
}

/// Takes buffers for a packet and fills them.
#[inline(always)]
fn write_packet(
    slot: &mut Slot,
    chains: &mut [Chain],
    packet: Inbound<'_>,
) -> Result<(), DeliverRefusal> {
    let header_length = header_length(slot.features);
    let total = header_length + packet.head.len() + packet.payload.len();
    let has_guest_checksum = has(slot.features, VIRTIO_NET_F_GUEST_CSUM);
    let front = header::emit(packet.offload, has_guest_checksum, 1);
    let length = u32::try_from(total).expect("a packet has below 64 KiB + 64");
    let is_filled = slot.queue.fill_next(length, |window| {
        // The two lengths there are, each known to the compiler.
        match header_length {
            HEADER_MAX => window.copy_in(0, &front),
            shorter => window.copy_in(0, &front[..shorter]),
        }
        window.copy_in(header_length, packet.head);
        packet.payload.copy_to_window(window, header_length + packet.head.len());
    });
    if is_filled { Ok(()) } else { write_chains(slot, chains, packet) }
}

/// Completes a packet's checksum in memory of our own, for a guest that does not.
#[cold]
fn write_completed(
    slot: &mut Slot,
    chains: &mut [Chain],
    scratch: &mut Vec<u8>,
    packet: Inbound<'_>,
    request: ChecksumRequest,
) -> Result<(), DeliverRefusal> {
    let Inbound { head, payload, .. } = packet;
    scratch.clear();
    scratch.extend_from_slice(head);
    scratch.resize(head.len() + payload.len(), 0);
    payload.copy_to(&mut scratch[head.len()..]);
    header::complete_checksum(scratch, request);
    let payload = Payload::bytes(scratch);
    write_packet(slot, chains, Inbound { head: &[], payload, offload: Offload::default() })
}

/// [`write_packet`] for any shape of buffers.
#[inline(never)]
fn write_chains(
    slot: &mut Slot,
    chains: &mut [Chain],
    packet: Inbound<'_>,
) -> Result<(), DeliverRefusal> {
    let Inbound { head, payload, offload } = packet;
    let header_length = header_length(slot.features);
    let total = header_length + head.len() + payload.len();
    let count = take_buffers(slot, chains, total, header_length)?;
    let buffers = u16::try_from(count).expect("at most BUFFERS_MAX were taken");
    let front = header::emit(offload, has(slot.features, VIRTIO_NET_F_GUEST_CSUM), buffers);
    let memory = slot.queue.memory();
    let mut is_whole = Ok(true);
    let mut done = 0;
    for (index, chain) in chains[..count].iter().enumerate() {
        // The first buffer has the header in front, which `take_buffers` made sure fits.
        let at = if index == 0 { header_length } else { 0 };
        if index == 0 {
            is_whole = copy_in(memory, chain.writable(), 0, &front[..header_length]);
        }
        let room = chain.writable_bytes() as usize - at;
        let step = room.min(total - header_length - done);
        let from_head = head.get(done..).unwrap_or_default();
        let from_head = &from_head[..from_head.len().min(step)];
        let target = (&**memory, chain.writable());
        is_whole = is_whole.and_then(|so_far| {
            let head_fits = copy_in(memory, chain.writable(), at, from_head)?;
            let (from, left) =
                ((done + from_head.len()).saturating_sub(head.len()), step - from_head.len());
            let rest_fits =
                left == 0 || payload.copy_into_guest(from, left, target, at + from_head.len())?;
            Ok(so_far && head_fits && rest_fits)
        });
        done += step;
    }
    // The buffers were checked against this very table, which never changes.
    assert_eq!(is_whole, Ok(true), "checked buffers can be written");
    give_buffers(slot, &chains[..count], total);
    Ok(())
}

/// Gives filled buffers to the guest, all but the last of them full.
fn give_buffers(slot: &mut Slot, chains: &[Chain], total: usize) {
    let mut left = total;
    for chain in chains {
        let written = left.min(chain.writable_bytes() as usize);
        left -= written;
        slot.queue
            .push(chain.head(), u32::try_from(written).expect("a packet has below 64 KiB + 64"));
    }
}

/// Pops buffers until they hold `total` bytes. On a refusal all are put back.
#[inline]
fn take_buffers(
    slot: &mut Slot,
    chains: &mut [Chain],
    total: usize,
    header_length: usize,
) -> Result<usize, DeliverRefusal> {
    let takes_several = has(slot.features, VIRTIO_NET_F_MRG_RXBUF);
    let most = if takes_several { chains.len() } else { 1 };
    let (mut count, mut room) = (0, 0);
    let refusal = loop {
        if room >= total {
            return Ok(count);
        }
        if count == most {
            break DeliverRefusal::TooLong;
        }
        let chain = &mut chains[count];
        match slot.queue.pop(chain) {
            Ok(true) => count += 1,
            Ok(false) => break DeliverRefusal::NoBuffers,
            Err(PopFault::Chain { .. }) => {
                count += 1;
                break DeliverRefusal::BuffersMalformed;
            }
            Err(PopFault::Ring { .. }) => break DeliverRefusal::BuffersMalformed,
        }
        let writable = chain.writable_bytes() as usize;
        let is_short = count == 1 && writable < header_length;
        if chain.readable_bytes() != 0 || is_short {
            break DeliverRefusal::BuffersMalformed;
        }
        room += writable;
    };
    let mut heads = [0; BUFFERS_MAX];
    for (head, chain) in heads.iter_mut().zip(&chains[..count]) {
        *head = chain.head();
    }
    slot.queue.rewind(&heads[..count]);
    Err(refusal)
}
