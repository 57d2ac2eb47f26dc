// SPDX-License-Identifier: Apache-2.0
//! Reads without a request: bytes of a disk that is memory, looked at where they are.
//!
//! ```text
//!   sight(next) ── look-ups, lines expected ─┐
//!   view(this)  ── checksum, lines fetched ──┴──▶ &[u8] ──▶ copied once, by whoever asked
//! ```
//!
//! What [`Store::view`] gives has matched its checksum, and nobody can write it while it is
//! borrowed. Whatever is not as simple as that (a change on its way, a block that was never
//! written, one that does not match) gives `None`, and must be read by a request, which knows
//! what to do about it.
//!
//! A read from cold memory is mostly waiting: two thirds of its time on the machine of
//! `perf/store-tries.md`. So the bytes of the next read are fetched while this one is judged.

use crate::disk::Disk;
use crate::quick::blocks_length;
use crate::request::ObjectKey;
use crate::store::Store;
use plinth_format::{MAP_BLOCKS, crc32c};

/// Where the bytes of a read are, for as long as the store is asked for nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// Which store of several; theirs alone to fill in.
    pub place: u8,
    /// The store's count of calls that may move bytes, when it looked.
    calls: u64,
    data_block: u64,
    frame: u32,
    /// First block, of the object.
    block: u32,
    count: u32,
    /// Of the first block. Loaded here already, because its line is as cold as the rest: a
    /// twelfth of a read was spent waiting for it in `view`.
    checksum: Option<u32>,
}

impl<D: Disk> Store<D> {
    /// Whether [`Store::sight`] may find anything.
    #[inline]
    pub fn lends(&self) -> bool {
        self.io.disk.lends()
    }

    /// Finds where a read's bytes are, and expects to view them.
    #[inline]
    pub fn sight(&mut self, key: &ObjectKey, offset: u32, length: u32) -> Option<Sight> {
        let (frame, data_block, count) = self.find_run(key, offset, length)?;
        self.io.disk.expect(self.layout.data_address(data_block), blocks_length(count));
        // The first lines, and with them the way through the page tables.
        self.io.disk.fetch();
        let block = offset / plinth_format::BLOCK_SIZE;
        let checksum = self.cache.frame(frame).page.checksum(block % MAP_BLOCKS);
        Some(Sight { place: 0, calls: self.calls, data_block, frame, block, count, checksum })
    }

    /// The whole blocks around a read's bytes, compared with their checksums. `None`: read them by a request.
    #[inline]
    pub fn view(&mut self, sight: &Sight) -> Option<&[u8]> {
        if sight.calls != self.calls {
            return None;
        }
        let address = self.layout.data_address(sight.data_block);
        let page = &self.cache.frame(sight.frame).page;
        for step in 0..sight.count {
            let expected = match step {
                0 => sight.checksum,
                _ => page.checksum((sight.block + step) % MAP_BLOCKS),
            };
            self.io.disk.fetch();
            let at = address + blocks_length(step) as u64;
            let bytes = self.io.disk.view(at, blocks_length(1))?;
            if expected.is_none() || expected != Some(crc32c(bytes)) {
                return None;
            }
            self.io.disk.fetch();
        }
        self.cache.touch(sight.frame);
        let length = blocks_length(sight.count);
        self.counters.reads += 1;
        self.io.bytes_read += length as u64;
        self.io.disk.note_view(length);
        self.io.disk.view(address, length)
    }

    /// Has some of what is expected fetched, while something else is done.
    #[inline]
    pub fn fetch(&mut self) {
        self.io.disk.fetch();
    }
}
