// SPDX-License-Identifier: Apache-2.0
//! Descriptor chains: read once, checked, kept.

use crate::packed_ring::PackedDescriptor;
use crate::ring::{Descriptor, Ring};
use plinth_guest_memory::{GuestAddress, GuestMemory, OutsideMemory, Window};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

#[expect(clippy::cast_possible_truncation, reason = "the flags of a descriptor have 16 bits")]
pub(crate) mod flags {
    pub(crate) const NEXT: u16 = super::VRING_DESC_F_NEXT as u16;
    pub(crate) const WRITE: u16 = super::VRING_DESC_F_WRITE as u16;
    pub(crate) const INDIRECT: u16 = super::VRING_DESC_F_INDIRECT as u16;
}

/// Descriptors in an indirect table, at most. A driver may not make a chain longer than its
/// ring; rings have up to [`crate::QUEUE_SIZE_MAX`] entries, and drivers with short rings do it
/// anyway.
const TABLE_MAX: u32 = 1024;

/// A buffer of the guest that was found to be memory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Segment {
    pub address: GuestAddress,
    pub length: u32,
}

/// What is wrong with one chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChainFault {
    #[error("the chain has more descriptors than there are: it loops")]
    Loop,
    #[error("a descriptor points at one behind the end of its table")]
    NextOutOfRange,
    #[error("an indirect table without the feature")]
    IndirectNotNegotiated,
    #[error("an indirect table inside an indirect table")]
    IndirectInIndirect,
    #[error("a descriptor of an indirect table that has a next one too")]
    IndirectWithNext,
    #[error("an indirect table whose length is no count of descriptors")]
    IndirectLength,
    #[error("a descriptor of no bytes")]
    ZeroLength,
    #[error("a readable descriptor behind a writable one")]
    ReadableBehindWritable,
    #[error("a descriptor outside of the guest's memory")]
    OutsideMemory,
    #[error("a chain of more than 4 GiB")]
    TooLong,
}

/// The buffers of one chain: readable ones first, then writable ones. Reused from chain to
/// chain, so that nothing is allocated once it has seen the longest.
#[derive(Debug, Default)]
pub struct Chain {
    pub(crate) head: u16,
    pub(crate) segments: Vec<Segment>,
    readable_count: usize,
    readable_bytes: u32,
    writable_bytes: u32,
}

impl Chain {
    pub fn new() -> Self {
        Self::default()
    }

    /// The name of the chain: it is given back by it.
    #[inline]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// What the device may read.
    #[inline]
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable_count]
    }

    /// What the device may write.
    #[inline]
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable_count..]
    }

    #[inline]
    pub const fn readable_bytes(&self) -> u32 {
        self.readable_bytes
    }

    #[inline]
    pub const fn writable_bytes(&self) -> u32 {
        self.writable_bytes
    }

    /// Fills `self` with the chain that begins at `head`, which must be inside the table.
    #[inline]
    pub(crate) fn read(
        &mut self,
        ring: &Ring,
        head: u16,
        indirect: bool,
    ) -> Result<(), ChainFault> {
        self.head = head;
        self.segments.clear();
        (self.readable_count, self.readable_bytes, self.writable_bytes) = (0, 0, 0);
        let mut index = head;
        for _ in 0..ring.size() {
            let descriptor = ring.descriptor(index);
            if descriptor.flags & flags::INDIRECT != 0 {
                if !indirect {
                    return Err(ChainFault::IndirectNotNegotiated);
                }
                if descriptor.flags & flags::NEXT != 0 {
                    return Err(ChainFault::IndirectWithNext);
                }
                return self.read_table(ring.memory(), descriptor);
            }
            self.push(ring.memory(), descriptor)?;
            if descriptor.flags & flags::NEXT == 0 {
                return Ok(());
            }
            if descriptor.next >= ring.size() {
                return Err(ChainFault::NextOutOfRange);
            }
            index = descriptor.next;
        }
        Err(ChainFault::Loop)
    }

    /// Empties `self` for the chain that begins at slot `head` of a packed ring.
    #[inline]
    pub(crate) fn begin(&mut self, head: u16) {
        self.head = head;
        self.segments.clear();
        (self.readable_count, self.readable_bytes, self.writable_bytes) = (0, 0, 0);
    }

    /// Adds a descriptor of a packed ring.
    #[inline]
    pub(crate) fn push_packed(
        &mut self,
        memory: &GuestMemory,
        descriptor: PackedDescriptor,
        indirect: bool,
    ) -> Result<(), ChainFault> {
        let PackedDescriptor { address, length, flags, .. } = descriptor;
        let descriptor = Descriptor { address, length, flags, next: 0 };
        if flags & flags::INDIRECT == 0 {
            return self.push(memory, descriptor);
        }
        if !indirect {
            return Err(ChainFault::IndirectNotNegotiated);
        }
        if flags & flags::NEXT != 0 {
            return Err(ChainFault::IndirectWithNext);
        }
        self.read_packed_table(memory, descriptor)
    }

    /// Goes through an indirect table of a packed ring: all of it, from the first to the last.
    /// `NEXT` has no meaning there and is ignored (virtio 1.2, 2.8.7).
    fn read_packed_table(
        &mut self,
        memory: &GuestMemory,
        table: Descriptor,
    ) -> Result<(), ChainFault> {
        let count = table.length / 16;
        if count == 0 || count > TABLE_MAX || !table.length.is_multiple_of(16) {
            return Err(ChainFault::IndirectLength);
        }
        for index in 0..count {
            let mut bytes = [0; 16];
            let place = table.address.checked_add(16 * u64::from(index));
            memory
                .copy_out(place.ok_or(ChainFault::OutsideMemory)?, &mut bytes)
                .map_err(|_| ChainFault::OutsideMemory)?;
            let [first, second] = words(bytes);
            // The id takes the place of a split ring's flags, and the flags that of its next.
            let Descriptor { address, length, next: flags, .. } =
                Descriptor::from_words(first, second);
            if flags & flags::INDIRECT != 0 {
                return Err(ChainFault::IndirectInIndirect);
            }
            self.push(memory, Descriptor { address, length, flags, next: 0 })?;
        }
        Ok(())
    }

    /// Goes through an indirect table of a split ring.
    fn read_table(&mut self, memory: &GuestMemory, table: Descriptor) -> Result<(), ChainFault> {
        let count = table.length / 16;
        if count == 0 || count > TABLE_MAX || !table.length.is_multiple_of(16) {
            return Err(ChainFault::IndirectLength);
        }
        let mut index = 0;
        for _ in 0..count {
            let mut bytes = [0; 16];
            let place = table.address.checked_add(16 * u64::from(index));
            memory
                .copy_out(place.ok_or(ChainFault::OutsideMemory)?, &mut bytes)
                .map_err(|_| ChainFault::OutsideMemory)?;
            let [first, second] = words(bytes);
            let descriptor = Descriptor::from_words(first, second);
            if descriptor.flags & flags::INDIRECT != 0 {
                return Err(ChainFault::IndirectInIndirect);
            }
            self.push(memory, descriptor)?;
            if descriptor.flags & flags::NEXT == 0 {
                return Ok(());
            }
            index = u32::from(descriptor.next);
            if index >= count {
                return Err(ChainFault::NextOutOfRange);
            }
        }
        Err(ChainFault::Loop)
    }

    #[inline]
    fn push(&mut self, memory: &GuestMemory, descriptor: Descriptor) -> Result<(), ChainFault> {
        let Descriptor { address, length, .. } = descriptor;
        if length == 0 {
            return Err(ChainFault::ZeroLength);
        }
        memory.check(address, u64::from(length)).map_err(|_| ChainFault::OutsideMemory)?;
        let is_writable = descriptor.flags & flags::WRITE != 0;
        let total = if is_writable { &mut self.writable_bytes } else { &mut self.readable_bytes };
        *total = total.checked_add(length).ok_or(ChainFault::TooLong)?;
        if !is_writable {
            if self.readable_count != self.segments.len() {
                return Err(ChainFault::ReadableBehindWritable);
            }
            self.readable_count += 1;
        }
        self.segments.push(Segment { address, length });
        Ok(())
    }
}

#[inline]
fn words(bytes: [u8; 16]) -> [u64; 2] {
    let both = u128::from_le_bytes(bytes);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are taken apart")]
    let halves = [both as u64, (both >> 64) as u64];
    halves
}

/// Calls `piece(at, address, length)` for the parts of `segments` that hold the bytes `offset ..
/// offset + length`. `false`, and no call for what is missing, when they end before.
#[inline]
fn pieces(
    segments: &[Segment],
    offset: usize,
    length: usize,
    mut piece: impl FnMut(usize, GuestAddress, usize) -> Result<(), OutsideMemory>,
) -> Result<bool, OutsideMemory> {
    let (mut skip, mut at) = (offset, 0);
    for segment in segments {
        if at == length {
            break;
        }
        let there = segment.length as usize;
        if skip >= there {
            skip -= there;
            continue;
        }
        let step = (there - skip).min(length - at);
        // The segment was found to be memory, so its address does not wrap.
        piece(at, GuestAddress(segment.address.0 + skip as u64), step)?;
        at += step;
        skip = 0;
    }
    Ok(at == length)
}

/// Copies the bytes of `segments` from `offset` on into all of `into`. `Ok(false)` when the
/// segments end before; then the front of `into` may have been filled.
#[inline]
pub fn copy_out(
    memory: &GuestMemory,
    segments: &[Segment],
    offset: usize,
    into: &mut [u8],
) -> Result<bool, OutsideMemory> {
    // Nearly always the first segment has it all.
    if let Some(first) = segments.first()
        && offset + into.len() <= first.length as usize
    {
        return memory.copy_out(GuestAddress(first.address.0 + offset as u64), into).map(|()| true);
    }
    pieces(segments, offset, into.len(), |at, address, step| {
        memory.copy_out(address, &mut into[at..at + step])
    })
}

/// Copies all of `from` into `segments` from `offset` on. `Ok(false)` when they end before; then
/// they may have been filled.
#[inline]
pub fn copy_in(
    memory: &GuestMemory,
    segments: &[Segment],
    offset: usize,
    from: &[u8],
) -> Result<bool, OutsideMemory> {
    pieces(segments, offset, from.len(), |at, address, step| {
        memory.copy_in(address, &from[at..at + step])
    })
}

/// Writes `length` zeros into `segments` from `offset` on, as [`copy_in`] does.
#[inline]
pub fn zero_in(
    memory: &GuestMemory,
    segments: &[Segment],
    offset: usize,
    length: usize,
) -> Result<bool, OutsideMemory> {
    pieces(segments, offset, length, |_, address, step| memory.zero(address, step))
}

/// Copies `length` bytes of `segments` from `offset` on into `window` from `at` on. `Ok(false)` when
/// they end before.
///
/// # Panics
/// If the window is too short.
#[inline]
pub fn copy_to_window(
    memory: &GuestMemory,
    segments: &[Segment],
    offset: usize,
    window: &Window<'_>,
    at: usize,
    length: usize,
) -> Result<bool, OutsideMemory> {
    pieces(segments, offset, length, |done, address, step| {
        window.copy_from(at + done, memory, address, step)
    })
}

/// Copies `length` bytes of the source's segments from `offset` on into the target's segments
/// from `at` on, from guest to guest. `Ok(false)` when either ends before.
#[inline]
pub fn copy_between(
    source: (&GuestMemory, &[Segment]),
    offset: usize,
    target: (&GuestMemory, &[Segment]),
    at: usize,
    length: usize,
) -> Result<bool, OutsideMemory> {
    let mut target_ended = false;
    let is_whole = pieces(source.1, offset, length, |done, from, step| {
        let is_whole = pieces(target.1, at + done, step, |inner, to, step| {
            source.0.copy_between(GuestAddress(from.0 + inner as u64), target.0, to, step)
        })?;
        target_ended |= !is_whole;
        Ok(())
    })?;
    Ok(is_whole && !target_ended)
}
