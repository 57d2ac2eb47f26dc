// SPDX-License-Identifier: Apache-2.0
//! Blocks whose newest bytes are in the journal and not yet at their place on the disk.
//!
//! A small overwrite goes into the journal entry itself, because a device may tear the old block
//! while it writes the new one. Until the block is written back, reads get it from here. A
//! block is written back when its entry is confirmed, in the order of the disk, neighbors in
//! one write; a block that is overwritten again before that is written back once.

use crate::buffer::{BLOCK_SIZE, BufferPool, IoBuffer};
use std::collections::btree_map::Entry;
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
    /// How many blocks wait for each entry.
    by_seq: BTreeMap<u64, u32>,
    /// Blocks that the disk is writing back.
    writing: BTreeSet<u64>,
    capacity: usize,
    /// Where the next run is looked for, so that write backs go over the disk in one direction.
    cursor: u64,
    /// The newest confirmed entry at which everything that could be written back was.
    exhausted_at: Option<u64>,
}

/// The most blocks in one write back: those of a unit.
const WRITE_BACK_MAX: usize = 8;

/// The entries of the blocks of one write back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) first: u64,
    count: usize,
    seqs: [u64; WRITE_BACK_MAX],
}

impl Overlay {
    pub(crate) const fn new(capacity: usize) -> Self {
        Self {
            blocks: BTreeMap::new(),
            by_seq: BTreeMap::new(),
            writing: BTreeSet::new(),
            capacity,
            cursor: 0,
            exhausted_at: None,
        }
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

    /// Whether the block waits for its write back, or is being written back.
    pub(crate) fn holds(&self, block: u64) -> bool {
        self.get(block).is_some() || self.is_writing(block)
    }

    pub(crate) fn put(&mut self, block: u64, seq: u64, bytes: &[u8], pool: &mut BufferPool) {
        *self.by_seq.entry(seq).or_insert(0) += 1;
        let before = match self.blocks.entry(block) {
            Entry::Occupied(mut place) => {
                let deferred = place.get_mut();
                deferred.data.as_bytes_mut().copy_from_slice(bytes);
                Some(std::mem::replace(&mut deferred.seq, seq))
            }
            Entry::Vacant(place) => {
                let mut data = pool.take(BLOCK_SIZE);
                data.as_bytes_mut().copy_from_slice(bytes);
                place.insert(Deferred { data, seq });
                None
            }
        };
        if let Some(before) = before {
            self.uncount(before);
        }
    }

    /// Forgets a block that nobody reads any more.
    pub(crate) fn drop_block(&mut self, block: u64, pool: &mut BufferPool) {
        if !self.blocks.is_empty()
            && let Some(deferred) = self.blocks.remove(&block)
        {
            self.uncount(deferred.seq);
            pool.put(deferred.data);
        }
    }

    fn uncount(&mut self, seq: u64) {
        if let Some(count) = self.by_seq.get_mut(&seq) {
            *count -= 1;
            if *count == 0 {
                self.by_seq.remove(&seq);
            }
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
        let oldest = self.by_seq.first_key_value();
        !self.writing.is_empty() || oldest.is_some_and(|(&oldest, _)| oldest < seq)
    }

    /// The newest entry that a block waits for.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.by_seq.last_key_value().map(|(&seq, _)| seq)
    }

    /// The next run of neighbors that may be written back, and its bytes: entries up to
    /// `confirmed`. When it gives nothing it has looked at all, and looks again only after more is
    /// confirmed or something was written back.
    pub(crate) fn next_run(
        &mut self,
        confirmed: u64,
        pool: &mut BufferPool,
    ) -> Option<(Run, IoBuffer)> {
        let has_old = self.by_seq.first_key_value().is_some_and(|(&seq, _)| seq <= confirmed);
        if !has_old || self.exhausted_at == Some(confirmed) {
            return None;
        }
        let found = self.run_from(self.cursor, confirmed, pool);
        let found = found.or_else(|| self.run_from(0, confirmed, pool));
        match &found {
            Some((run, _)) => self.cursor = run.first + run.count as u64,
            None => self.exhausted_at = Some(confirmed),
        }
        found
    }

    fn run_from(
        &mut self,
        from: u64,
        confirmed: u64,
        pool: &mut BufferPool,
    ) -> Option<(Run, IoBuffer)> {
        let writing = &self.writing;
        let is_ready = |&(block, deferred): &(&u64, &Deferred)| {
            deferred.seq <= confirmed && !writing.contains(block)
        };
        let (&first, _) = self.blocks.range(from..).find(is_ready)?;
        // One write stays inside one unit, so that "who writes to this unit" is one question.
        let unit_end = (first / 8 + 1) * 8;
        let mut run = Run { first, count: 0, seqs: [0; WRITE_BACK_MAX] };
        for pair in self.blocks.range(first..unit_end) {
            if *pair.0 != first + run.count as u64 || !is_ready(&pair) {
                break;
            }
            run.seqs[run.count] = pair.1.seq;
            run.count += 1;
        }
        let mut buffer = pool.take(run.count * BLOCK_SIZE);
        let blocks = self.blocks.range(first..first + run.count as u64);
        for (into, (_, deferred)) in buffer.as_bytes_mut().chunks_exact_mut(BLOCK_SIZE).zip(blocks)
        {
            into.copy_from_slice(deferred.data.as_bytes());
        }
        self.writing.extend(first..first + run.count as u64);
        Some((run, buffer))
    }

    /// A run is at its place. Blocks that were overwritten meanwhile stay.
    pub(crate) fn written(&mut self, run: &Run, pool: &mut BufferPool) {
        self.exhausted_at = None;
        for (block, seq) in (run.first..).zip(&run.seqs[..run.count]) {
            self.writing.remove(&block);
            if self.blocks.get(&block).is_some_and(|deferred| deferred.seq == *seq)
                && let Some(deferred) = self.blocks.remove(&block)
            {
                self.uncount(deferred.seq);
                pool.put(deferred.data);
            }
        }
    }
}
