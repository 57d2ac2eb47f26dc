// SPDX-License-Identifier: Apache-2.0
//! Blocks whose newest bytes are in the journal and not yet at their place on the disk.
//!
//! A small overwrite goes into the journal entry itself, because a device may tear the old block
//! while it writes the new one. Until the block is written back, reads get it from here. A
//! block is written back when its entry is confirmed, in the order of the disk, neighbors in
//! one write; a block that is overwritten again before that is written back once.

use crate::buffer::{BLOCK_SIZE, BufferPool, IoBuffer};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
struct Deferred {
    data: IoBuffer,
    seq: u64,
}

/// By data block: unit times eight, plus the block in it.
#[derive(Debug)]
pub(crate) struct Overlay {
    blocks: BTreeMap<u64, Deferred>,
    /// Blocks that the disk is writing back.
    writing: BTreeSet<u64>,
    capacity: usize,
}

/// The most blocks in one write back.
const WRITE_BACK_MAX: usize = 32;

impl Overlay {
    pub(crate) const fn new(capacity: usize) -> Self {
        Self { blocks: BTreeMap::new(), writing: BTreeSet::new(), capacity }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.writing.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn blocks(&self) -> impl Iterator<Item = u64> {
        self.blocks.keys().copied()
    }

    pub(crate) const fn capacity(&self) -> usize {
        self.capacity
    }

    #[inline]
    pub(crate) fn get(&self, block: u64) -> Option<&[u8]> {
        if self.blocks.is_empty() {
            return None;
        }
        self.blocks.get(&block).map(|deferred| deferred.data.as_bytes())
    }

    pub(crate) fn put(&mut self, block: u64, seq: u64, bytes: &[u8], pool: &mut BufferPool) {
        let deferred = self
            .blocks
            .entry(block)
            .or_insert_with(|| Deferred { data: pool.take(BLOCK_SIZE), seq });
        deferred.seq = seq;
        deferred.data.as_bytes_mut().copy_from_slice(bytes);
    }

    /// Forgets a block that nobody reads any more.
    pub(crate) fn drop_block(&mut self, block: u64, pool: &mut BufferPool) {
        if !self.blocks.is_empty()
            && let Some(deferred) = self.blocks.remove(&block)
        {
            pool.put(deferred.data);
        }
    }

    /// Whether the disk is writing this block back.
    pub(crate) fn is_writing(&self, block: u64) -> bool {
        !self.writing.is_empty() && self.writing.contains(&block)
    }

    pub(crate) fn writes_in_unit(&self, unit: u32) -> bool {
        let first = u64::from(unit) * 8;
        !self.writing.is_empty() && self.writing.range(first..first + 8).next().is_some()
    }

    pub(crate) fn writing_count(&self) -> usize {
        self.writing.len()
    }

    /// Whether a block of an entry before `seq` is still to be written back.
    pub(crate) fn has_before(&self, seq: u64) -> bool {
        !self.writing.is_empty() || self.blocks.values().any(|deferred| deferred.seq < seq)
    }

    /// The newest entry that a block waits for.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.blocks.values().map(|deferred| deferred.seq).max()
    }

    /// The next run of neighbors from `from` on that may be written back: entries up to
    /// `confirmed`. Gives the first block, the bytes, and each block's entry.
    pub(crate) fn next_run(
        &mut self,
        from: u64,
        confirmed: u64,
        pool: &mut BufferPool,
    ) -> Option<(u64, IoBuffer, Vec<u64>)> {
        let writing = &self.writing;
        let is_ready = |&(block, deferred): &(&u64, &Deferred)| {
            deferred.seq <= confirmed && !writing.contains(block)
        };
        let (&first, _) = self.blocks.range(from..).find(is_ready)?;
        let mut seqs = Vec::with_capacity(WRITE_BACK_MAX);
        let mut buffer = pool.take(WRITE_BACK_MAX * BLOCK_SIZE);
        for (index, pair) in self.blocks.range(first..).take(WRITE_BACK_MAX).enumerate() {
            // One write stays inside one unit, so that "who writes to this unit" is one question.
            let is_next = *pair.0 == first + index as u64 && *pair.0 / 8 == first / 8;
            if !is_next || !is_ready(&pair) {
                break;
            }
            let at = index * BLOCK_SIZE;
            buffer.as_bytes_mut()[at..at + BLOCK_SIZE].copy_from_slice(pair.1.data.as_bytes());
            seqs.push(pair.1.seq);
        }
        buffer.set_length(seqs.len() * BLOCK_SIZE);
        self.writing.extend(first..first + seqs.len() as u64);
        Some((first, buffer, seqs))
    }

    /// A run is at its place. Blocks that were overwritten meanwhile stay.
    pub(crate) fn written(&mut self, first: u64, seqs: &[u64], pool: &mut BufferPool) {
        for (block, seq) in (first..).zip(seqs) {
            self.writing.remove(&block);
            if self.blocks.get(&block).is_some_and(|deferred| deferred.seq == *seq)
                && let Some(deferred) = self.blocks.remove(&block)
            {
                pool.put(deferred.data);
            }
        }
    }
}
