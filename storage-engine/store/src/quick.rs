// SPDX-License-Identifier: Apache-2.0
//! Reads and overwrites that go straight to the disk and straight back.
//!
//! Nearly every read finds its map page in memory, and its blocks side by side on the disk with
//! nothing on its way to them. Such a read needs no operation, no queue and no second look: what
//! it will be compared with goes down with the disk's request. Any other read, and one that comes
//! back with bytes that do not match, goes the long way through `read.rs`.
//!
//! The same for an overwrite of whole blocks of one unit that may be done in place: everything
//! that `change.rs` looks at for the general case is known to hold, and is looked at once.

use crate::buffer::{BLOCK_SIZE, IoBuffer};
use crate::change::unit_mask;
use crate::disk::{Disk, DiskError};
use crate::io::{Context, Place, ReadRun};
use crate::marks::Overwrite;
use crate::objects::BAD_FRAME;
use crate::op::{Op, Work, block_range};
use crate::request::{
    OBJECT_SIZE_MAX, ObjectKey, StoreAnswer, StoreCompletion, StoreRequest, StoreTag,
};
use crate::store::{Store, StoreState};
use plinth_format::journal::BlockData;
use plinth_format::{MAP_BLOCKS, MAP_UNITS, UNIT_BLOCKS, UNIT_SIZE};

/// Bytes of the records of an overwrite of one unit, at most.
const QUICK_RECORDS: usize = 96;

/// A read without an operation, while the disk has its buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuickRead {
    tag: StoreTag,
    key: ObjectKey,
    offset: u32,
    length: u32,
    frame: u32,
    version: u64,
}

/// Bytes of so many blocks.
pub(crate) const fn blocks_length(count: u32) -> usize {
    count as usize * BLOCK_SIZE
}

impl<D: Disk> Store<D> {
    /// Sends a read to the disk if nothing stands in its way; else gives it back.
    #[inline]
    pub(crate) fn read_quickly(
        &mut self,
        tag: StoreTag,
        request: StoreRequest,
    ) -> Result<(), StoreRequest> {
        let StoreRequest::Read { key, offset, length, mut buffer } = request else {
            return Err(request);
        };
        let found = self.find_run(&key, offset, length);
        let fits = |&(_, _, count): &_| buffer.capacity() >= blocks_length(count);
        let Some((frame, data_block, count)) = found.filter(fits) else {
            return Err(StoreRequest::Read { key, offset, length, buffer });
        };
        buffer.set_length(blocks_length(count));
        let touched = self.cache.touch(frame);
        touched.pins += 1;
        let version = touched.version;
        self.counters.reads += 1;
        self.requests += 1;
        self.quick_reads += 1;
        let read = QuickRead { tag, key, offset, length, frame, version };
        self.io.read(self.layout.data_address(data_block), buffer, Context::Quick(read));
        Ok(())
    }

    /// The map page's frame, first data block and number of blocks of a read that can go at once.
    #[inline]
    pub(crate) fn find_run(
        &self,
        key: &ObjectKey,
        offset: u32,
        length: u32,
    ) -> Option<(u32, u64, u32)> {
        let end = offset.checked_add(length).filter(|&end| end <= OBJECT_SIZE_MAX)?;
        if length == 0 || (!self.queues.is_empty() && self.queues.contains_key(key)) {
            return None;
        }
        let (first, end) = (offset / plinth_format::BLOCK_SIZE, block_range(0, end).1);
        let count = end - first;
        let half = first / MAP_BLOCKS;
        let slot = self.objects.slot(self.objects.find(key)?);
        let frame = slot.frames[half as usize];
        if frame >= BAD_FRAME || (end - 1) / MAP_BLOCKS != half {
            return None;
        }
        let page = &self.cache.frame(frame).page;
        let place = |block: u32| {
            let block = block % MAP_BLOCKS;
            page.checksum(block)?;
            let unit = page.unit(block / UNIT_BLOCKS)?;
            Some(u64::from(unit) * u64::from(UNIT_BLOCKS) + u64::from(block % UNIT_BLOCKS))
        };
        let data_block = place(first)?;
        let follows = |step: u32| place(first + step) == Some(data_block + u64::from(step));
        let mut blocks = data_block..data_block + u64::from(count);
        let is_free = (1..count).all(follows)
            && !self.writing.may_have(data_block, count)
            && (self.overlay.is_empty() || !blocks.any(|block| self.overlay.holds(block)));
        is_free.then_some((frame, data_block, count))
    }

    /// Carries out an overwrite in place if nothing stands in its way; else gives it back.
    #[inline]
    pub(crate) fn overwrite_quickly(
        &mut self,
        tag: StoreTag,
        request: StoreRequest,
    ) -> Result<(), StoreRequest> {
        let StoreRequest::Write { key, offset, length, mut buffer } = request else {
            return Err(request);
        };
        let Some((slot, unit)) = self.find_overwrite(&key, offset, length, &buffer) else {
            return Err(StoreRequest::Write { key, offset, length, buffer });
        };
        let (first, end) = block_range(offset, length);
        buffer.set_length((end - first) as usize * BLOCK_SIZE);
        self.requests += 1;
        self.counters.changes += 1;
        self.counters.user_bytes_written += u64::from(length);
        let mut op = Op::new(tag, self.requests, Work::Flush, None);
        (op.version, op.pending) = (self.journal.begin_change(), 1);
        let op = self.ops.insert(op);
        self.note_version(slot, first / MAP_BLOCKS);
        let data_block = u64::from(unit) * u64::from(UNIT_BLOCKS) + u64::from(first % UNIT_BLOCKS);
        self.sum(buffer.as_bytes());
        self.note_overwrite(slot, first, end - first);
        self.record_run(slot, first, BlockData::InPlace { data_block });
        self.write_data(data_block, buffer, Some(op));
        self.journal.open_entry().ops.push(op);
        if !self.bad.is_empty() {
            self.bad.forget(key, first, end);
        }
        Ok(())
    }

    /// The slot and the unit of an overwrite that can be done at once.
    #[inline]
    fn find_overwrite(
        &mut self,
        key: &ObjectKey,
        offset: u32,
        length: u32,
        buffer: &IoBuffer,
    ) -> Option<(u32, u32)> {
        let block = plinth_format::BLOCK_SIZE;
        let end = offset.checked_add(length).filter(|&end| end <= OBJECT_SIZE_MAX)?;
        let is_whole = offset.is_multiple_of(block) && length.is_multiple_of(block) && length > 0;
        let is_one = offset / UNIT_SIZE == end.saturating_sub(1) / UNIT_SIZE;
        if !is_whole || !is_one || buffer.capacity() < length as usize {
            return None;
        }
        if self.state != StoreState::Writable
            || (!self.queues.is_empty() && self.queues.contains_key(key))
        {
            return None;
        }
        let slot = self.objects.find(key)?;
        let place = self.objects.slot(slot);
        let index = offset / UNIT_SIZE;
        let frame = place.frames[(index / MAP_UNITS) as usize];
        if frame >= BAD_FRAME || place.size < end || !self.journal.has_room(QUICK_RECORDS, 0) {
            return None;
        }
        let mask = unit_mask(index, offset / block, end / block);
        let page = &self.cache.frame(frame).page;
        let unit = page.unit(index % MAP_UNITS)?;
        // Unwritten blocks are recorded in another way.
        if mask & !page.written(index % MAP_UNITS) != 0 {
            return None;
        }
        self.is_single_write = true;
        (self.overwrite(slot, index, mask) == Overwrite::Yes).then_some((slot, unit))
    }

    pub(crate) fn finish_quick(
        &mut self,
        read: QuickRead,
        buffer: Option<IoBuffer>,
        result: Result<(), DiskError>,
    ) {
        self.quick_reads -= 1;
        let QuickRead { tag, key, offset, length, frame, version } = read;
        let (first, end) = block_range(offset, length);
        let mut run = ReadRun {
            op: u32::MAX,
            frame,
            version,
            block: first,
            count: end - first,
            place: Place::Whole,
        };
        let is_good = result.is_ok()
            && buffer.as_ref().is_some_and(|buffer| self.verify_run(&run, buffer).is_none());
        if is_good {
            self.cache.release(frame);
            self.has_moved = true;
            self.completions.push(StoreCompletion { tag, buffer, result: Ok(StoreAnswer::Read) });
            return;
        }
        // As if it had come the long way so far.
        let mut op = Op::new(tag, self.requests, Work::Read { key, offset, length }, None);
        op.pending = 1;
        run.op = self.ops.insert(op);
        self.finish_run(run, buffer, result);
    }
}
