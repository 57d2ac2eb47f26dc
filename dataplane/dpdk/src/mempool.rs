// SPDX-License-Identifier: Apache-2.0
//! A pool of packet buffers of one size.

use crate::{Eal, Errno, Mbuf, log};
use plinth_dpdk_sys::{self as sys, rte_mbuf, rte_mempool};
use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// A pool, taken from DPDK's memory once and kept until the process ends. Copies are the same
/// pool.
#[derive(Clone, Copy, Debug)]
pub struct Mempool {
    pool: NonNull<rte_mempool>,
    data_room: u16,
}

// SAFETY: a pool made by `rte_pktmbuf_pool_create` is for any number of producers and consumers:
// its shared ring is lock-free, and its caches belong to one registered thread each, threads
// that are not registered use none.
unsafe impl Send for Mempool {}
// SAFETY: as above; no method changes anything but through that ring.
unsafe impl Sync for Mempool {}

#[derive(Debug, thiserror::Error)]
#[error(
    "no pool of {count} packet buffers of {data_room} bytes (DPDK printed: {log}); give it more \
     memory"
)]
pub struct MempoolError {
    count: u32,
    data_room: u16,
    log: String,
    source: Errno,
}

/// What DPDK leaves free in front of a fresh buffer's data.
#[expect(clippy::cast_possible_truncation, reason = "compared on the next line")]
const HEADROOM: u16 = sys::RTE_PKTMBUF_HEADROOM as u16;
const _: () = assert!(HEADROOM as u32 == sys::RTE_PKTMBUF_HEADROOM);

/// Buffers that a registered thread keeps at hand. A pool must be a good deal larger than this
/// times its threads, or buffers lie in one thread's cache while another has none.
const CACHE_SIZE: u32 = 256;

impl Mempool {
    /// Makes a pool of `count` buffers (best a power of two less one), each with room for
    /// `data_room` bytes behind its headroom.
    pub fn new(_eal: Eal, count: u32, data_room: u16) -> Result<Self, MempoolError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = CString::new(format!("plinth-{number}")).expect("a number has no zero byte");
        let buffer = data_room.saturating_add(HEADROOM);
        let cache = CACHE_SIZE.min(count / 4);
        // Of whichever NUMA node has memory: `SOCKET_ID_ANY`.
        let socket = -1;
        // SAFETY: the environment is up, because the caller has an `Eal`; the name is
        // zero-terminated and copied.
        let pool =
            unsafe { sys::rte_pktmbuf_pool_create(name.as_ptr(), count, cache, 0, buffer, socket) };
        match NonNull::new(pool) {
            Some(pool) => Ok(Self { pool, data_room: buffer - HEADROOM }),
            None => {
                let source = Errno::last();
                Err(MempoolError { count, data_room, log: log::take(), source })
            }
        }
    }

    /// Bytes that a fresh buffer takes by [`Mbuf::append`].
    pub const fn data_room(&self) -> u16 {
        self.data_room
    }

    /// Buffers that are in nobody's hands.
    pub fn available(&self) -> u32 {
        // SAFETY: the pool lives until the process ends; the call only reads counters.
        unsafe { sys::rte_mempool_avail_count(self.pool.as_ptr()) }
    }

    /// An empty buffer, `None` when all are in use.
    #[inline]
    pub fn take(&self) -> Option<Mbuf> {
        // SAFETY: the pool lives until the process ends.
        let mbuf = unsafe { sys::plinth_mbuf_alloc(self.pool.as_ptr()) };
        // SAFETY: a buffer that was allocated is nobody else's.
        NonNull::new(mbuf).map(|mbuf| unsafe { Mbuf::from_raw(mbuf) })
    }

    /// Pushes `count` empty buffers onto `into`, or none when fewer are there. At most
    /// [`crate::BURST_MAX`] at a time.
    ///
    /// # Panics
    /// If `count` is larger.
    pub fn take_burst(&self, count: usize, into: &mut Vec<Mbuf>) -> bool {
        let mut raw = [std::ptr::null_mut::<rte_mbuf>(); crate::BURST_MAX];
        let raw = &mut raw[..count];
        // SAFETY: the pool lives until the process ends; DPDK writes `count` pointers into an
        // array of as many.
        let code = unsafe {
            sys::plinth_mbuf_alloc_bulk(
                self.pool.as_ptr(),
                raw.as_mut_ptr(),
                u32::try_from(raw.len()).expect("the slice above is of at most BURST_MAX"),
            )
        };
        if code != 0 {
            return false;
        }
        // SAFETY: after success every pointer is a buffer that is nobody else's.
        into.extend(
            raw.iter().map(|&mbuf| unsafe { Mbuf::from_raw(NonNull::new_unchecked(mbuf)) }),
        );
        true
    }

    pub(crate) const fn as_ptr(&self) -> *mut rte_mempool {
        self.pool.as_ptr()
    }
}
