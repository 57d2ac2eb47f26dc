// SPDX-License-Identifier: Apache-2.0
//! Map pages in memory: a fixed number of frames, given up by the clock algorithm.
//!
//! A frame may go when it is clean, nobody reads through it, the disk does not write it, and
//! what was cleared in it is confirmed. A changed frame stays until a checkpoint has written it.

use plinth_format::MapPage;
use std::collections::VecDeque;

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) page: Box<MapPage>,
    pub(crate) slot: u32,
    pub(crate) half: u32,
    /// Of the newest copy on the disk.
    pub(crate) generation: u64,
    pub(crate) is_dirty: bool,
    /// A checkpoint's write of it is on its way.
    pub(crate) is_writing: bool,
    /// Reads on their way that will be compared with this page.
    pub(crate) pins: u32,
    /// Counts changes: a read that fails its checksum after a change is tried again.
    pub(crate) version: u64,
    /// The last entry that unwrote a block of a unit that stayed.
    pub(crate) clear_seq: u64,
    /// The entry that recovery replays into the page.
    pub(crate) replayed_seq: u64,
    /// The entry with the mark under which blocks may be overwritten in place; 0 for none. See
    /// `marks.rs`, also for the next three.
    pub(crate) mark_seq: u64,
    /// Whether something was since the last checkpoint.
    pub(crate) is_mark_used: bool,
    /// The last entry that overwrote something in place.
    pub(crate) in_place_seq: u64,
    /// The last entry that may hold a deferred block of this half.
    pub(crate) deferred_seq: u64,
    is_used: bool,
    was_touched: bool,
    is_queued: bool,
}

impl Frame {
    const fn may_go(&self) -> bool {
        self.is_used && !self.is_dirty && !self.is_writing && self.pins == 0
    }
}

#[derive(Debug)]
pub(crate) struct MapCache {
    frames: Vec<Frame>,
    free: Vec<u32>,
    /// The clock: every frame that may go, and some that no longer may. Those fall out when the
    /// hand comes to them and come back when they may again, so that a cache full of changes is
    /// not searched again by each request that waits for the checkpoint.
    clock: VecDeque<u32>,
    capacity: usize,
    dirty_count: usize,
}

impl MapCache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            frames: Vec::new(),
            free: Vec::new(),
            clock: VecDeque::new(),
            capacity,
            dirty_count: 0,
        }
    }

    pub(crate) const fn capacity(&self) -> usize {
        self.capacity
    }

    /// For recovery, whose bound is the journal, and for a store that writes no page any more.
    pub(crate) fn grow(&mut self, count: usize) {
        self.capacity += count;
    }

    /// Frames that pages can be put in without pushing out others.
    pub(crate) const fn free_count(&self) -> usize {
        self.free.len()
    }

    pub(crate) const fn dirty_count(&self) -> usize {
        self.dirty_count
    }

    #[inline]
    pub(crate) fn frame(&self, frame: u32) -> &Frame {
        &self.frames[frame as usize]
    }

    #[inline]
    pub(crate) fn touch(&mut self, frame: u32) -> &mut Frame {
        let frame = &mut self.frames[frame as usize];
        frame.was_touched = true;
        frame
    }

    /// The frame for a change by entry `seq`.
    pub(crate) fn change(&mut self, frame: u32, seq: u64) -> &mut Frame {
        let frame = &mut self.frames[frame as usize];
        if !frame.is_dirty {
            frame.is_dirty = true;
            self.dirty_count += 1;
        }
        frame.was_touched = true;
        frame.version += 1;
        frame.page.seq = plinth_format::Le64::new(seq);
        frame
    }

    /// Has the next checkpoint write the page as it is, and leave out so many generations.
    pub(crate) fn mark_dirty(&mut self, frame: u32, skip: u64) {
        let frame = &mut self.frames[frame as usize];
        frame.generation += skip;
        if !frame.is_dirty {
            frame.is_dirty = true;
            self.dirty_count += 1;
        }
    }

    /// Marks the frame as being written; changes from here on make it dirty again.
    pub(crate) fn begin_write(&mut self, frame: u32) -> &mut Frame {
        let frame = &mut self.frames[frame as usize];
        if frame.is_dirty {
            frame.is_dirty = false;
            self.dirty_count -= 1;
        }
        frame.is_writing = true;
        frame.generation += 1;
        frame
    }

    pub(crate) fn dirty_frames(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.frames).filter(|(_, frame)| frame.is_used && frame.is_dirty).map(|(i, _)| i)
    }

    pub(crate) const fn frame_count(&self) -> usize {
        self.frames.len()
    }

    /// Slot and half of a frame whose mark goes on. A mark that was not used ends.
    pub(crate) fn renew_mark(&mut self, index: usize) -> Option<(u32, u32)> {
        let frame = &mut self.frames[index];
        if !frame.is_used || frame.mark_seq == 0 {
            return None;
        }
        if !std::mem::take(&mut frame.is_mark_used) {
            frame.mark_seq = 0;
            return None;
        }
        Some((frame.slot, frame.half))
    }

    /// No mark goes on.
    pub(crate) fn end_marks(&mut self) {
        for frame in &mut self.frames {
            (frame.mark_seq, frame.is_mark_used) = (0, false);
        }
    }

    /// Puts a page in a frame. `None` when no frame can be given up; else the new frame and the
    /// slot and half that lost theirs.
    pub(crate) fn insert(
        &mut self,
        slot: u32,
        half: u32,
        page: &MapPage,
        generation: u64,
        confirmed: u64,
    ) -> Option<(u32, Option<(u32, u32)>)> {
        let (index, evicted) = self.make_room(confirmed)?;
        let version = self.frames.get(index as usize).map_or(0, |frame| frame.version + 1);
        let frame = &mut self.frames[index as usize];
        *frame.page = *page;
        (frame.slot, frame.half) = (slot, half);
        frame.generation = generation;
        frame.version = version;
        (frame.clear_seq, frame.replayed_seq) = (0, 0);
        (frame.mark_seq, frame.is_mark_used, frame.in_place_seq) = (0, false, 0);
        // What was deferred before the page was put away is not remembered: perhaps its last
        // change.
        frame.deferred_seq = page.seq.get();
        (frame.is_used, frame.was_touched) = (true, true);
        self.enqueue(index);
        Some((index, evicted))
    }

    /// Makes sure that so many pages can be put in without asking. Tells of every page that had
    /// to go. `false` when there are not enough frames that can be given up.
    pub(crate) fn reserve(
        &mut self,
        count: usize,
        confirmed: u64,
        mut evicted: impl FnMut(u32, u32),
    ) -> bool {
        while self.free.len() < count {
            let Some((index, gone)) = self.evict(confirmed) else { return false };
            if let Some((slot, half)) = gone {
                evicted(slot, half);
            }
            self.frames[index as usize].is_used = false;
            self.free.push(index);
        }
        true
    }

    fn make_room(&mut self, confirmed: u64) -> Option<(u32, Option<(u32, u32)>)> {
        if let Some(index) = self.free.pop() {
            return Some((index, None));
        }
        self.evict(confirmed)
    }

    fn evict(&mut self, confirmed: u64) -> Option<(u32, Option<(u32, u32)>)> {
        if self.frames.len() < self.capacity {
            self.frames.push(Frame {
                page: Box::new(bytemuck::Zeroable::zeroed()),
                slot: 0,
                half: 0,
                generation: 0,
                is_dirty: false,
                is_writing: false,
                pins: 0,
                version: 0,
                clear_seq: 0,
                replayed_seq: 0,
                mark_seq: 0,
                is_mark_used: false,
                in_place_seq: 0,
                deferred_seq: 0,
                is_used: false,
                was_touched: false,
                is_queued: false,
            });
            let index = u32::try_from(self.frames.len() - 1).expect("frames are few");
            return Some((index, None));
        }
        // Two rounds: the first may only take marks away.
        for _ in 0..self.clock.len() * 2 {
            let index = self.clock.pop_front()?;
            let frame = &mut self.frames[index as usize];
            if !frame.may_go() {
                frame.is_queued = false;
                continue;
            }
            if frame.clear_seq > confirmed || std::mem::take(&mut frame.was_touched) {
                self.clock.push_back(index);
                continue;
            }
            frame.is_queued = false;
            return Some((index, Some((frame.slot, frame.half))));
        }
        None
    }

    /// Has the hand come to a frame that may go.
    fn enqueue(&mut self, index: u32) {
        let frame = &mut self.frames[index as usize];
        if frame.may_go() && !frame.is_queued {
            frame.is_queued = true;
            self.clock.push_back(index);
        }
    }

    /// Forgets a page whose object is gone. A frame that is being written or read through is
    /// freed by [`MapCache::settle`].
    pub(crate) fn discard(&mut self, index: u32) {
        let frame = &mut self.frames[index as usize];
        if std::mem::take(&mut frame.is_dirty) {
            self.dirty_count -= 1;
        }
        frame.is_used = false;
        frame.version += 1;
        self.settle(index);
    }

    /// After a write or a read ended: frees the frame if it was discarded meanwhile.
    pub(crate) fn settle(&mut self, index: u32) {
        let frame = &self.frames[index as usize];
        if !frame.is_used && !frame.is_writing && frame.pins == 0 {
            self.free.push(index);
        }
        self.enqueue(index);
    }

    /// A checkpoint's write of the frame ended.
    pub(crate) fn end_write(&mut self, index: u32) {
        self.frames[index as usize].is_writing = false;
        self.settle(index);
    }

    /// A read through the frame ended.
    pub(crate) fn release(&mut self, index: u32) {
        self.frames[index as usize].pins -= 1;
        self.settle(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;

    const ALL: u64 = u64::MAX;

    fn full(capacity: u32) -> MapCache {
        let mut cache = MapCache::new(capacity as usize);
        for slot in 0..capacity {
            let (index, gone) = cache.insert(slot, 0, &MapPage::zeroed(), 1, ALL).unwrap();
            assert_eq!((index, gone), (slot, None));
        }
        cache
    }

    fn insert(cache: &mut MapCache, slot: u32) -> Option<(u32, Option<(u32, u32)>)> {
        cache.insert(slot, 0, &MapPage::zeroed(), 1, ALL)
    }

    #[test]
    fn pages_that_may_not_go_are_looked_at_once() {
        let mut cache = full(4);
        cache.change(0, 1);
        cache.begin_write(1);
        cache.touch(2).pins += 1;
        cache.mark_dirty(3, 0);
        assert_eq!(insert(&mut cache, 9), None);
        assert!(cache.clock.is_empty(), "who waits for room would go through all of them again");
    }

    #[test]
    fn a_page_may_go_when_its_last_holder_lets_go() {
        let mut cache = full(2);
        cache.begin_write(0);
        cache.touch(0).pins += 1;
        cache.change(1, 1);
        assert_eq!(insert(&mut cache, 9), None);
        cache.end_write(0);
        assert_eq!(insert(&mut cache, 9), None, "it is read through");
        cache.release(0);
        assert_eq!(insert(&mut cache, 9), Some((0, Some((0, 0)))));
        cache.begin_write(1);
        cache.change(1, 2);
        cache.end_write(1);
        cache.touch(0).pins += 1;
        assert_eq!(insert(&mut cache, 10), None, "it was changed while it was written");
    }

    #[test]
    fn what_was_touched_goes_a_round_later() {
        let mut cache = full(3);
        // Takes all marks away, and the page that was there longest.
        assert_eq!(insert(&mut cache, 9), Some((0, Some((0, 0)))));
        cache.touch(1);
        assert_eq!(insert(&mut cache, 10), Some((2, Some((2, 0)))));
    }

    #[test]
    fn a_page_with_an_unconfirmed_clearing_stays() {
        let mut cache = full(2);
        cache.touch(0).clear_seq = 7;
        assert_eq!(cache.insert(9, 0, &MapPage::zeroed(), 1, 6), Some((1, Some((1, 0)))));
        cache.touch(1).pins += 1;
        assert_eq!(cache.insert(10, 0, &MapPage::zeroed(), 1, 6), None);
        assert_eq!(cache.insert(10, 0, &MapPage::zeroed(), 1, 7), Some((0, Some((0, 0)))));
    }
}
