// SPDX-License-Identifier: Apache-2.0
//! Reading: blocks of an object into a buffer, each compared with its checksum.
//!
//! A read looks up where its blocks are and remembers the version of the map page. If the bytes
//! do not match when they come back, and the page has changed meanwhile, the read starts again;
//! if it has not changed, the block is bad. So a read holds nobody up and takes no lock.

use crate::buffer::{BLOCK_SIZE, IoBuffer};
use crate::disk::{Disk, DiskError};
use crate::io::{Context, Place, ReadRun};
use crate::objects::{BAD_FRAME, NO_FRAME};
use crate::op::block_range;
use crate::request::{ObjectKey, StoreAnswer, StoreRefusal};
use crate::store::{Omit, Progress, Store};
use plinth_format::{Attributes, MAP_BLOCKS, UNIT_BLOCKS, crc32c};

/// What is known about one block of an object.
pub(crate) enum Source {
    Zero,
    Overlay(u64),
    Disk(u64),
}

impl<D: Disk> Store<D> {
    pub(crate) fn attempt_read(
        &mut self,
        op: u32,
        key: ObjectKey,
        offset: u32,
        length: u32,
    ) -> Progress {
        let (first, end) = block_range(offset, length);
        let Some(slot) = self.objects.find(&key) else {
            if let Some(buffer) = self.ops.get_mut(op).and_then(|op| op.buffer.as_mut()) {
                buffer.as_bytes_mut().fill(0);
            }
            self.counters.reads += 1;
            self.complete(op, Ok(StoreAnswer::Read));
            return Progress::Through;
        };
        for half in first / MAP_BLOCKS..=(end - 1) / MAP_BLOCKS {
            match self.need_frame(slot, half) {
                Ok(Some(_)) => {}
                Ok(None) => return Progress::Wait,
                Err(refusal) => {
                    self.complete(op, Err(refusal));
                    return Progress::Through;
                }
            }
        }
        if self.has_writes(slot, first, end) {
            return Progress::Wait;
        }
        self.counters.reads += 1;
        let Some(buffer) = self.ops.get_mut(op).and_then(|op| op.buffer.take()) else {
            return Progress::Through;
        };
        self.read_blocks(op, slot, first, end, buffer);
        self.end_read(op);
        Progress::Through
    }

    /// Whether data writes to these blocks are on their way, perhaps. All frames are there.
    pub(crate) fn has_writes(&self, slot: u32, first: u32, end: u32) -> bool {
        if self.writing.is_empty() {
            return false;
        }
        (first / UNIT_BLOCKS..=(end - 1) / UNIT_BLOCKS).any(|index| {
            let Some(unit) = self.unit_of(slot, index) else { return false };
            let mask = crate::change::unit_mask(index, first, end);
            let block = u64::from(unit) * u64::from(UNIT_BLOCKS);
            let first = block + u64::from(mask.trailing_zeros());
            self.writing.may_have(first, mask.count_ones())
        })
    }

    /// The unit at this place of an object whose frame is there.
    pub(crate) fn unit_of(&self, slot: u32, index: u32) -> Option<u32> {
        let units = MAP_BLOCKS / UNIT_BLOCKS;
        let frame = self.objects.slot(slot).frames[(index / units) as usize];
        (frame < BAD_FRAME).then(|| self.cache.frame(frame).page.unit(index % units)).flatten()
    }

    #[inline]
    pub(crate) fn source(&self, frame: u32, block: u32) -> Source {
        let page = &self.cache.frame(frame).page;
        let block = block % MAP_BLOCKS;
        if page.checksum(block).is_none() {
            return Source::Zero;
        }
        let Some(unit) = page.unit(block / UNIT_BLOCKS) else { return Source::Zero };
        let data_block = u64::from(unit) * u64::from(UNIT_BLOCKS) + u64::from(block % UNIT_BLOCKS);
        match self.overlay.get(data_block) {
            Some(_) => Source::Overlay(data_block),
            None => Source::Disk(data_block),
        }
    }

    /// Fills the operation's buffer. Disk runs are on their way afterwards; the rest is there.
    fn read_blocks(&mut self, op: u32, slot: u32, first: u32, end: u32, buffer: IoBuffer) {
        let mut buffer = Some(buffer);
        let mut block = first;
        while block < end {
            let frame = self.objects.slot(slot).frames[(block / MAP_BLOCKS) as usize];
            self.cache.touch(frame);
            let at = (block - first) as usize * BLOCK_SIZE;
            match self.source(frame, block) {
                Source::Disk(data_block) => {
                    let count = self.run_length(frame, block, end, data_block);
                    if count == end - first
                        && let Some(whole) = buffer.take()
                    {
                        self.start_run(op, frame, block, count, data_block, Place::Whole, whole);
                    } else {
                        let part = self.io.pool.take(count as usize * BLOCK_SIZE);
                        let place = Place::Part { at };
                        self.start_run(op, frame, block, count, data_block, place, part);
                    }
                    block += count;
                }
                source => {
                    if let Some(buffer) = &mut buffer {
                        let into = &mut buffer.as_bytes_mut()[at..at + BLOCK_SIZE];
                        match source {
                            Source::Overlay(data_block) => {
                                let bytes = self.overlay.get(data_block);
                                into.copy_from_slice(bytes.expect("`source` has just seen it"));
                            }
                            Source::Zero | Source::Disk(_) => into.fill(0),
                        }
                    }
                    block += 1;
                }
            }
        }
        if let (Some(op), Some(buffer)) = (self.ops.get_mut(op), buffer) {
            op.buffer = Some(buffer);
        }
    }

    /// How many blocks from `block` on lie side by side on the disk, in one half of the object.
    fn run_length(&self, frame: u32, block: u32, end: u32, data_block: u64) -> u32 {
        let end = end.min((block / MAP_BLOCKS + 1) * MAP_BLOCKS);
        let mut count = 1;
        while block + count < end
            && matches!(self.source(frame, block + count),
                Source::Disk(next) if next == data_block + u64::from(count))
        {
            count += 1;
        }
        count
    }

    #[expect(clippy::too_many_arguments, reason = "all of it is one disk request and its context")]
    pub(crate) fn start_run(
        &mut self,
        op: u32,
        frame: u32,
        block: u32,
        count: u32,
        data_block: u64,
        place: Place,
        buffer: IoBuffer,
    ) {
        let touched = self.cache.touch(frame);
        touched.pins += 1;
        let version = touched.version;
        if let Some(op) = self.ops.get_mut(op) {
            op.pending += 1;
        }
        let run = ReadRun { op, frame, version, block, count, place };
        let address = self.layout.data_address(data_block);
        self.io.read(address, buffer, Context::Read(run));
    }

    /// Reads the blocks of `mask` of one unit as they are before a change.
    pub(crate) fn read_old(&mut self, op: u32, slot: u32, index: u32, mask: u8, old: usize) {
        let frame = self.objects.slot(slot).frames[(index * UNIT_BLOCKS / MAP_BLOCKS) as usize];
        let mut at = 0;
        while at < UNIT_BLOCKS {
            let block = index * UNIT_BLOCKS + at;
            let in_mask = |at: u32| at < UNIT_BLOCKS && mask & (1 << at) != 0;
            let offset = at as usize * BLOCK_SIZE;
            if !in_mask(at) {
                at += 1;
                continue;
            }
            match self.source(frame, block) {
                Source::Disk(data_block) => {
                    let end = (at..).find(|&at| !in_mask(at)).unwrap_or(UNIT_BLOCKS);
                    let end = index * UNIT_BLOCKS + end;
                    let count = self.run_length(frame, block, end, data_block);
                    let part = self.io.pool.take(count as usize * BLOCK_SIZE);
                    let place = Place::Old { index: old, at: offset };
                    self.start_run(op, frame, block, count, data_block, place, part);
                    at += count;
                }
                source => {
                    let bytes = match source {
                        Source::Overlay(data_block) => self.overlay.get(data_block),
                        Source::Zero | Source::Disk(_) => None,
                    };
                    if let Some(op) = self.ops.get_mut(op) {
                        let into = op.old[old].buffer.as_bytes_mut();
                        let into = &mut into[offset..offset + BLOCK_SIZE];
                        match bytes {
                            Some(bytes) => into.copy_from_slice(bytes),
                            None => into.fill(0),
                        }
                    }
                    at += 1;
                }
            }
        }
    }

    /// Blocks came up from the disk.
    pub(crate) fn finish_run(
        &mut self,
        run: ReadRun,
        buffer: Option<IoBuffer>,
        result: Result<(), DiskError>,
    ) {
        let buffer = buffer.unwrap_or_else(|| IoBuffer::zeroed(run.count as usize * BLOCK_SIZE));
        let is_kept = matches!(run.place, Place::Old { .. });
        let verdict = match result {
            Ok(()) if is_kept && self.options.omit == Omit::CheckKept => None,
            Ok(()) => self.verify_run(&run, &buffer),
            Err(_) => Some((run.block, true)),
        };
        let mut was_changed = self.cache.frame(run.frame).version != run.version;
        let verdict = match verdict {
            Some((_, false)) if !was_changed => match self.adopt_run(&run, &buffer) {
                Some(false) => verdict,
                Some(true) => None,
                None => {
                    was_changed = true;
                    verdict
                }
            },
            other => other,
        };
        if let Some(op) = self.ops.get_mut(run.op) {
            op.pending -= 1;
            match verdict {
                Some((_, false)) if was_changed => op.must_retry = true,
                Some((block, is_device)) => {
                    let key = self.objects_key(run.op, run.place);
                    self.note_bad(key, run.frame, block, is_device);
                    self.refuse_block(run.op, key, block, is_device);
                }
                None => {}
            }
        }
        self.place_run(&run, buffer);
        self.cache.release(run.frame);
        self.end_read(run.op);
    }

    /// The first block that does not match, if one does not.
    #[inline]
    pub(crate) fn verify_run(&self, run: &ReadRun, buffer: &IoBuffer) -> Option<(u32, bool)> {
        let page = &self.cache.frame(run.frame).page;
        for (block, bytes) in (run.block..).zip(buffer.as_bytes().chunks_exact(BLOCK_SIZE)) {
            if page.checksum(block % MAP_BLOCKS) != Some(crc32c(bytes)) {
                return Some((block, false));
            }
        }
        None
    }

    fn objects_key(&self, op: u32, place: Place) -> ObjectKey {
        let Some(op) = self.ops.get(op) else { return ObjectKey::default() };
        if let Place::Old { index, .. } = place
            && let Some(old) = op.old.get(index)
        {
            return op.steps()[old.step].key;
        }
        if let (Place::Node { tree }, Some(trees)) = (place, &op.trees)
            && let Some(key) = trees.key(tree)
        {
            return key;
        }
        let mut found = ObjectKey::default();
        op.for_each_key(|key| found = *key);
        found
    }

    fn refuse_block(&mut self, op: u32, key: ObjectKey, block: u32, is_device: bool) {
        let refusal = if is_device {
            self.counters.read_errors += 1;
            StoreRefusal::ReadFailed { key, block }
        } else {
            self.counters.bad_blocks += 1;
            StoreRefusal::BadBlock { key, block }
        };
        if let Some(op) = self.ops.get_mut(op) {
            op.refusal = op.refusal.or(Some(refusal));
        }
    }

    fn place_run(&mut self, run: &ReadRun, buffer: IoBuffer) {
        let Some(op) = self.ops.get_mut(run.op) else {
            self.io.pool.put(buffer);
            return;
        };
        let (target, at) = match run.place {
            Place::Whole => {
                op.buffer = Some(buffer);
                return;
            }
            Place::Node { tree } => {
                if let Some(trees) = &mut op.trees {
                    trees.place(tree, run.block, buffer.as_bytes());
                }
                self.io.pool.put(buffer);
                return;
            }
            Place::Part { at } => (op.buffer.as_mut(), at),
            Place::Old { index, at } => (op.old.get_mut(index).map(|old| &mut old.buffer), at),
        };
        if let Some(target) = target {
            let bytes = buffer.as_bytes();
            target.as_bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        }
        self.io.pool.put(buffer);
    }

    /// Ends a read whose last run has come. A change that waited for old bytes is tried again by
    /// the poll.
    fn end_read(&mut self, op: u32) {
        let Some(entry) = self.ops.get_mut(op) else { return };
        if entry.pending > 0 {
            return;
        }
        let crate::op::Work::Read { key, offset, length } = entry.work else { return };
        if let Some(refusal) = entry.refusal {
            self.complete(op, Err(refusal));
        } else if std::mem::take(&mut entry.must_retry) {
            self.counters.read_retries += 1;
            self.restart(op, key, offset, length);
        } else {
            self.complete(op, Ok(StoreAnswer::Read));
        }
    }

    fn restart(&mut self, op: u32, key: ObjectKey, offset: u32, length: u32) {
        if self.attempt_read(op, key, offset, length) == Progress::Wait {
            self.park(op);
        }
    }

    pub(crate) fn attempt_attributes(&mut self, op: u32, key: ObjectKey) -> Progress {
        let result = match self.objects.find(&key) {
            None => Err(StoreRefusal::NotFound { key }),
            Some(slot) => match self.need_frame(slot, 0) {
                Ok(None) => return Progress::Wait,
                Err(refusal) => Err(refusal),
                Ok(Some(frame)) => {
                    let found = Attributes::parse(&self.cache.touch(frame).page);
                    let size = self.objects.slot(slot).size;
                    found.map_err(|_| StoreRefusal::BadMetadata { key }).map(|found| {
                        let pairs = found.iter();
                        let attributes =
                            pairs.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
                        StoreAnswer::Attributes { size, attributes }
                    })
                }
            },
        };
        self.complete(op, result);
        Progress::Through
    }

    /// The frame of half an object; `None` while it is on its way or no frame is free.
    pub(crate) fn need_frame(&mut self, slot: u32, half: u32) -> Result<Option<u32>, StoreRefusal> {
        let place = *self.objects.slot(slot);
        match place.frames[half as usize] {
            BAD_FRAME => return Err(StoreRefusal::BadMetadata { key: place.key }),
            NO_FRAME => {}
            frame => {
                self.cache.touch(frame);
                return Ok(Some(frame));
            }
        }
        if place.halves & (1 << half) == 0 {
            let page = plinth_format::MapPage::empty(
                crate::objects::key_bytes(&place.key),
                place.incarnation,
            );
            return Ok(self.install(slot, half, &page, 0));
        }
        if self.loading.insert((slot, half)) {
            self.counters.map_page_reads += 1;
            let buffer = self.io.pool.take(2 * BLOCK_SIZE);
            let incarnation = place.incarnation;
            let address = self.layout.map_address(slot, half, 0);
            self.io.read(address, buffer, Context::PageIn { slot, half, incarnation });
        }
        Ok(None)
    }

    /// Puts a page in a frame, if one can be given up; else a checkpoint is wanted.
    pub(crate) fn install(
        &mut self,
        slot: u32,
        half: u32,
        page: &plinth_format::MapPage,
        generation: u64,
    ) -> Option<u32> {
        let confirmed = self.journal.confirmed_seq;
        let Some((frame, evicted)) = self.cache.insert(slot, half, page, generation, confirmed)
        else {
            self.checkpoint.is_wanted = true;
            self.wants_confirm = true;
            return None;
        };
        if let Some((slot, half)) = evicted {
            self.objects.set_frame(slot, half, NO_FRAME);
        }
        self.objects.set_frame(slot, half, frame);
        Some(frame)
    }

    /// A map page came up: both copies, of which the newer one that is whole counts.
    pub(crate) fn finish_page_in(
        &mut self,
        (slot, half, incarnation): (u32, u32, u64),
        buffer: Option<IoBuffer>,
        result: Result<(), DiskError>,
    ) {
        self.loading.remove(&(slot, half));
        let buffer = buffer.unwrap_or_else(|| IoBuffer::zeroed(2 * BLOCK_SIZE));
        let is_same = self.objects.occupied(slot).is_some_and(|place| {
            place.incarnation == incarnation && place.frames[half as usize] == NO_FRAME
        });
        if is_same {
            match result.ok().and_then(|()| self.choose_map(slot, half, &buffer)) {
                Some((page, generation)) => {
                    self.install(slot, half, &page, generation);
                }
                None => {
                    self.counters.bad_metadata += 1;
                    self.objects.set_frame(slot, half, BAD_FRAME);
                }
            }
        }
        self.io.pool.put(buffer);
    }
}
