// SPDX-License-Identifier: Apache-2.0
//! One packet buffer.

use plinth_dpdk_sys::{self as sys, rte_mbuf};
use std::ptr::NonNull;

/// A packet in DPDK's memory. It goes back to its pool when dropped.
///
/// What holds for every `Mbuf`: nobody else has the buffer (its reference count is one), so its
/// fields and bytes are read and written like those of a `Box`; pool memory is never unmapped
/// and was mapped as zeros, so its bytes are initialized. A packet that a device spread over
/// several buffers is made one by [`crate::EthQueue::receive`] before anybody sees it.
#[derive(Debug)]
#[repr(transparent)]
pub struct Mbuf {
    raw: NonNull<rte_mbuf>,
}

// SAFETY: a buffer is not tied to a thread: the pool takes it back from any thread.
unsafe impl Send for Mbuf {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for Mbuf {}

impl Mbuf {
    /// # Safety
    /// `raw` came from a pool or a device, is valid, and is owned by the caller alone.
    pub(crate) const unsafe fn from_raw(raw: NonNull<rte_mbuf>) -> Self {
        Self { raw }
    }

    #[inline]
    fn fields(&self) -> &rte_mbuf {
        // SAFETY: valid and ours alone, by the type's law; shared for reading while borrowed.
        unsafe { self.raw.as_ref() }
    }

    #[inline]
    fn fields_mut(&mut self) -> &mut rte_mbuf {
        // SAFETY: valid and ours alone, by the type's law.
        unsafe { self.raw.as_mut() }
    }

    /// Of the packet, in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.fields().data_len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that [`Self::prepend`] can still give.
    #[inline]
    pub fn headroom(&self) -> usize {
        usize::from(self.fields().data_off)
    }

    /// Bytes that [`Self::append`] can still give.
    #[inline]
    pub fn tailroom(&self) -> usize {
        let fields = self.fields();
        let used = usize::from(fields.data_off) + usize::from(fields.data_len);
        usize::from(fields.buf_len).saturating_sub(used)
    }

    /// The packet.
    #[inline]
    pub fn data(&self) -> &[u8] {
        let fields = self.fields();
        // SAFETY: DPDK and the methods here keep `data_off + data_len <= buf_len`, and the
        // buffer's `buf_len` bytes from `buf_addr` are initialized and ours while borrowed.
        unsafe {
            let start = fields.buf_addr.cast::<u8>().add(usize::from(fields.data_off));
            std::slice::from_raw_parts(start, usize::from(fields.data_len))
        }
    }

    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        let fields = self.fields_mut();
        // SAFETY: as in `data`, and borrowed mutably.
        unsafe {
            let start = fields.buf_addr.cast::<u8>().add(usize::from(fields.data_off));
            std::slice::from_raw_parts_mut(start, usize::from(fields.data_len))
        }
    }

    /// Makes the packet longer by `length` bytes, which have any value, and gives them to be
    /// written. `None` when there is not so much room.
    #[inline]
    pub fn append(&mut self, length: usize) -> Option<&mut [u8]> {
        if length > self.tailroom() {
            return None;
        }
        let before = self.len();
        let added = u16::try_from(length).ok()?;
        let fields = self.fields_mut();
        fields.data_len += added;
        fields.pkt_len += u32::from(added);
        Some(&mut self.data_mut()[before..])
    }

    /// Makes room for `length` bytes in front of the packet, which have any value.
    #[inline]
    pub fn prepend(&mut self, length: usize) -> Option<&mut [u8]> {
        if length > self.headroom() {
            return None;
        }
        let added = u16::try_from(length).ok()?;
        let fields = self.fields_mut();
        // A packet may not be longer than the length field says: 64 KiB less one.
        fields.data_len = fields.data_len.checked_add(added)?;
        fields.data_off -= added;
        fields.pkt_len += u32::from(added);
        Some(&mut self.data_mut()[..length])
    }

    /// Takes `length` bytes off the front. `false`, and nothing is changed, when the packet is
    /// shorter.
    pub fn trim_front(&mut self, length: usize) -> bool {
        let Ok(removed) = u16::try_from(length) else { return false };
        let fields = self.fields_mut();
        if removed > fields.data_len {
            return false;
        }
        fields.data_off += removed;
        fields.data_len -= removed;
        fields.pkt_len -= u32::from(removed);
        true
    }

    /// Cuts the packet to its first `length` bytes, if it is longer.
    pub fn truncate(&mut self, length: usize) {
        let Ok(kept) = u16::try_from(length) else { return };
        let fields = self.fields_mut();
        if kept < fields.data_len {
            fields.data_len = kept;
            fields.pkt_len = u32::from(kept);
        }
    }

    /// Puts the parts of a packet that came in several buffers into the first. `false` when
    /// they do not fit there.
    pub(crate) fn make_one(&mut self) -> bool {
        if self.fields().nb_segs == 1 {
            return true;
        }
        // SAFETY: the buffer and the chain behind it are ours alone.
        unsafe { sys::plinth_mbuf_linearize(self.raw.as_ptr()) == 0 }
    }
}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: ours alone, and not used again. Buffers that were handed to a device are
        // taken out of their `Vec` without this drop.
        unsafe { sys::plinth_mbuf_free(self.raw.as_ptr()) };
    }
}
