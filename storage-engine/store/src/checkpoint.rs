// SPDX-License-Identifier: Apache-2.0
//! Checkpoints: metadata pages are brought up to date, so that the journal before them can go.
//!
//! ```text
//!   Idle ─ journal half full, cache half dirty, or asked ─▶ Maps
//!   Maps:  dirty map and count pages, deferred blocks      ─ all written ─▶ flush ─▶ Tables
//!   Tables: dirty index and bitmap pages                    ─ all written ─▶ flush ─▶ Super
//!   Super: the other superblock, which names the new replay point ─ written ─▶ flush ─▶ Idle
//! ```
//!
//! The replay point is the entry that was open when the checkpoint began. Pages are copied one
//! by one while changes go on, so a page may hold more than the replay point asks for; a map
//! page says which entry it contains last, and other records are absolute, so that replay is
//! harmless. A copied page waits until the entries
//! whose changes it holds are durable: else a crash would leave changes that never were.
//! The index is written after the maps it says exist, and the bitmap after the counts it names.

use crate::buffer::IoBuffer;
use crate::disk::{Disk, DiskError};
use crate::io::{Context, PageKind};
use crate::store::{Omit, ReadOnlyReason, Store, StoreState};
use bytemuck::Zeroable;
use plinth_format::{Le32, Le64, Page, PageFault, Superblock, generation_mark, is_older};
use std::collections::VecDeque;

/// Pages on their way to the disk at once.
const PAGES_IN_FLIGHT: usize = 32;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Idle,
    Maps,
    Tables,
    Super,
    /// The same pages, the superblock among them, once more over their other copies: from then on
    /// either copy of each will do, and the journal may be cut.
    Twins,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Flush {
    No,
    Wanted,
    OnItsWay,
    Done,
}

#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) is_wanted: bool,
    pub(crate) session: u64,
    /// Of the newest superblock.
    pub(crate) generation: u64,
    phase: Phase,
    flush: Flush,
    /// The entry that recovery will begin with, and its offset.
    pub(crate) replay_seq: u64,
    pub(crate) replay_offset: u64,
    /// The base of versions when that entry was opened.
    pub(crate) version_base: u64,
    todo: VecDeque<PageKind>,
    /// Pages of tables that were copied so far: they want a twin.
    singles: Vec<PageKind>,
    /// Copied pages and the entry each one waits for.
    held: VecDeque<(u64, PageKind, u64, IoBuffer)>,
    in_flight: usize,
}

impl Checkpoint {
    pub(crate) fn new(session: u64) -> Self {
        Self {
            is_wanted: false,
            session,
            generation: 0,
            phase: Phase::Idle,
            flush: Flush::No,
            replay_seq: 0,
            replay_offset: 0,
            version_base: 0,
            todo: VecDeque::new(),
            singles: Vec::new(),
            held: VecDeque::new(),
            in_flight: 0,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.phase != Phase::Idle || self.is_wanted
    }

    /// Whether what it needs of the journal is in the journal.
    pub(crate) fn has_begun(&self) -> bool {
        self.phase != Phase::Idle
    }

    pub(crate) fn wants_flush(&self) -> bool {
        self.flush == Flush::Wanted
    }

    pub(crate) fn take_flush(&mut self) -> bool {
        let is_wanted = self.wants_flush();
        if is_wanted {
            self.flush = Flush::OnItsWay;
        }
        is_wanted
    }

    pub(crate) fn flushed(&mut self) {
        self.flush = Flush::Done;
    }

    pub(crate) fn stop(&mut self) {
        self.phase = Phase::Idle;
        self.is_wanted = false;
        self.todo.clear();
        self.singles.clear();
        self.held.clear();
    }
}

impl<D: Disk> Store<D> {
    /// Goes on with the checkpoint, or begins one when it is time.
    pub(crate) fn advance_checkpoint(&mut self) {
        if self.state != StoreState::Writable {
            self.checkpoint.stop();
            return;
        }
        match self.checkpoint.phase {
            Phase::Idle => {
                let is_time = self.checkpoint.is_wanted
                    || self.journal.used() > self.journal.length() / 2
                    || self.cache.dirty_count() > self.cache.capacity() / 2;
                if is_time {
                    self.begin_checkpoint();
                }
            }
            Phase::Maps | Phase::Tables | Phase::Super | Phase::Twins => self.move_pages(),
        }
    }

    fn begin_checkpoint(&mut self) {
        if !self.journal.is_open_empty() {
            self.seal_entry();
        }
        let checkpoint = &mut self.checkpoint;
        checkpoint.is_wanted = false;
        checkpoint.replay_seq = self.journal.open_seq();
        checkpoint.replay_offset = self.journal.head();
        checkpoint.version_base = self.journal.version_base;
        checkpoint.phase = Phase::Maps;
        checkpoint.flush = Flush::No;
        self.log_marks_again();
        let checkpoint = &mut self.checkpoint;
        for frame in self.cache.dirty_frames() {
            let found = self.cache.frame(frame);
            let (slot, half) = (found.slot, found.half);
            let incarnation = self.objects.slot(slot).incarnation;
            checkpoint.todo.push_back(PageKind::Map { frame, slot, half, incarnation });
        }
        for (page, state) in (0..).zip(&self.space.count_pages) {
            if state.is_dirty {
                checkpoint.todo.push_back(PageKind::Count { page });
            }
        }
        self.has_moved = true;
    }

    fn move_pages(&mut self) {
        self.release_held();
        while self.checkpoint.in_flight + self.checkpoint.held.len() < PAGES_IN_FLIGHT {
            let Some(kind) = self.checkpoint.todo.pop_front() else { break };
            self.copy_page(kind);
        }
        self.release_held();
        let checkpoint = &self.checkpoint;
        let is_written =
            checkpoint.todo.is_empty() && checkpoint.held.is_empty() && checkpoint.in_flight == 0;
        if !is_written || (checkpoint.phase == Phase::Maps && self.must_write_back()) {
            return;
        }
        let omit = self.options.omit;
        let is_skipped = match checkpoint.phase {
            Phase::Maps => omit == Omit::FlushBeforeIndex,
            Phase::Tables => omit == Omit::FlushBeforeSuperblock,
            Phase::Super | Phase::Twins | Phase::Idle => false,
        };
        match checkpoint.flush {
            Flush::No if is_skipped => self.next_phase(),
            Flush::No => self.checkpoint.flush = Flush::Wanted,
            Flush::Wanted | Flush::OnItsWay => {}
            Flush::Done => self.next_phase(),
        }
        self.has_moved = true;
    }

    fn must_write_back(&self) -> bool {
        self.options.omit != Omit::WriteBackBeforeCut
            && self.overlay.has_before(self.checkpoint.replay_seq)
    }

    fn next_phase(&mut self) {
        self.checkpoint.flush = Flush::No;
        match self.checkpoint.phase {
            Phase::Maps => {
                self.checkpoint.phase = Phase::Tables;
                for (page, state) in (0..).zip(&self.objects.pages) {
                    if state.is_dirty {
                        self.checkpoint.todo.push_back(PageKind::Index { page });
                    }
                }
                for (page, state) in (0..).zip(&self.space.bitmap_pages) {
                    if state.is_dirty {
                        self.checkpoint.todo.push_back(PageKind::Bitmap { page });
                    }
                }
            }
            Phase::Tables => {
                self.checkpoint.phase = Phase::Super;
                self.checkpoint.todo.push_back(PageKind::Superblock);
            }
            Phase::Super if self.options.omit != Omit::Twins => {
                self.checkpoint.phase = Phase::Twins;
                let singles = std::mem::take(&mut self.checkpoint.singles);
                self.checkpoint.todo.extend(singles);
            }
            Phase::Super | Phase::Twins | Phase::Idle => {
                self.checkpoint.phase = Phase::Idle;
                self.checkpoint.singles.clear();
                self.journal.cut(self.checkpoint.replay_seq, self.checkpoint.replay_offset);
                self.marks.cut();
                self.counters.checkpoints += 1;
            }
        }
        self.move_pages_if_running();
    }

    fn move_pages_if_running(&mut self) {
        if self.checkpoint.phase != Phase::Idle {
            self.move_pages();
        }
    }

    /// Copies a page as it is and has the copy wait for the entries whose changes it holds.
    fn copy_page(&mut self, kind: PageKind) {
        let open = self.journal.open_seq();
        let mut until = if self.journal.is_open_empty() { open - 1 } else { open };
        let mut buffer = self.io.pool.take(plinth_format::PAGE_SIZE);
        let (id, layout) = (self.id, self.layout);
        let is_twin = self.checkpoint.phase == Phase::Twins;
        if !is_twin && !matches!(kind, PageKind::Map { .. }) {
            self.checkpoint.singles.push(kind);
        }
        let address = match kind {
            PageKind::Map { frame, slot, half, incarnation } => {
                let found = self.objects.occupied(slot);
                let is_same = found.is_some_and(|place| place.incarnation == incarnation);
                if !is_same || self.objects.slot(slot).frames[half as usize] != frame {
                    self.io.pool.put(buffer);
                    return;
                }
                if self.cache.frame(frame).page.seq.get() == open && !self.journal.is_open_empty() {
                    // A page holds all of an entry's changes or none: so replay may compare
                    // numbers, and needs to be exact for nothing else.
                    self.seal_entry();
                }
                let frame = self.cache.begin_write(frame);
                until = frame.page.seq.get();
                let address = layout.map_address(slot, half, frame.generation % 2);
                let generation = frame.generation;
                put_page(&mut buffer, &mut *frame.page.clone(), id, address, generation)
            }
            PageKind::Count { page } => {
                let mut image = self.space.count_page(page);
                let generation =
                    next_generation(&mut self.space.count_pages[page as usize], is_twin);
                let address = layout.count_address(page, generation % 2);
                put_page(&mut buffer, &mut image, id, address, generation)
            }
            PageKind::Bitmap { page } => {
                let mut image = self.space.bitmap_page(page);
                let generation =
                    next_generation(&mut self.space.bitmap_pages[page as usize], is_twin);
                let address = layout.bitmap_address(page, generation % 2);
                put_page(&mut buffer, &mut image, id, address, generation)
            }
            PageKind::Index { page } => {
                let mut image = self.objects.page(page);
                let generation = next_generation(&mut self.objects.pages[page as usize], is_twin);
                let address = layout.index_address(page, generation % 2);
                put_page(&mut buffer, &mut image, id, address, generation)
            }
            PageKind::Superblock => {
                let mut image = self.superblock();
                self.checkpoint.generation += 1;
                let generation = self.checkpoint.generation;
                let address = layout.superblock_address(generation % 2);
                put_page(&mut buffer, &mut image, id, address, generation)
            }
        };
        if self.options.omit == Omit::WriteAhead {
            until = 0;
        }
        self.checkpoint.held.push_back((until, kind, address, buffer));
    }

    pub(crate) fn superblock(&self) -> Superblock {
        let mut image = Superblock::zeroed();
        self.layout.emit(&mut image);
        image.session = Le64::new(self.checkpoint.session);
        image.replay_seq = Le64::new(self.checkpoint.replay_seq);
        image.replay_offset = Le64::new(self.checkpoint.replay_offset);
        if self.options.omit != Omit::VersionBase {
            image.version_base = Le64::new(self.checkpoint.version_base);
        }
        let written = self.objects.pages.iter().rposition(|state| state.is_on_disk);
        let index_pages = written.map_or(0, |last| last + 1);
        image.undiscarded = Le32::new(u32::from(self.has_discards()));
        image.index_pages = Le32::new(u32::try_from(index_pages).unwrap_or(u32::MAX));
        image
    }

    fn release_held(&mut self) {
        for _ in 0..self.checkpoint.held.len() {
            let Some((until, kind, address, buffer)) = self.checkpoint.held.pop_front() else {
                return;
            };
            if until <= self.journal.durable_seq {
                self.checkpoint.in_flight += 1;
                self.io.write(address, buffer, Context::Page(kind));
                self.has_moved = true;
            } else {
                self.checkpoint.held.push_back((until, kind, address, buffer));
            }
        }
    }

    pub(crate) fn finish_page(&mut self, kind: PageKind, result: Result<(), DiskError>) {
        self.checkpoint.in_flight -= 1;
        if let Err(error) = result {
            self.turn_read_only(ReadOnlyReason::Metadata(error));
        }
        match kind {
            PageKind::Map { frame, slot, half, incarnation } => {
                let generation = self.cache.frame(frame).generation;
                self.cache.end_write(frame);
                let found = self.objects.occupied(slot);
                if result.is_ok() && found.is_some_and(|place| place.incarnation == incarnation) {
                    let place = self.objects.change(slot);
                    place.halves |= 1 << half;
                    place.marks[half as usize] = generation_mark(generation);
                }
            }
            PageKind::Count { page } => {
                let state = &mut self.space.count_pages[page as usize];
                if !std::mem::replace(&mut state.is_on_disk, true) {
                    // The bitmap page must say that this page is there.
                    self.space.bitmap_pages[page as usize / 16].is_dirty = true;
                }
            }
            PageKind::Bitmap { page } => {
                self.space.bitmap_pages[page as usize].is_on_disk = true;
            }
            PageKind::Index { page } => self.objects.pages[page as usize].is_on_disk = true,
            PageKind::Superblock => {}
        }
    }

    /// The newer of the two copies of a map page that is whole, this object's, and not older than the
    /// index says.
    pub(crate) fn choose_map(
        &self,
        slot: u32,
        half: u32,
        buffer: &IoBuffer,
    ) -> Option<(plinth_format::MapPage, u64)> {
        let place = self.objects.slot(slot);
        let key = crate::objects::key_bytes(&place.key);
        let mut best: Option<(plinth_format::MapPage, u64)> = None;
        for (copy, bytes) in (0..).zip(buffer.as_bytes().chunks_exact(plinth_format::PAGE_SIZE)) {
            let page: plinth_format::MapPage = *bytemuck::from_bytes(bytes);
            let address = self.layout.map_address(slot, half, copy);
            let verified = match page.verify(Some(self.id), address) {
                Err(PageFault::Address { .. }) if self.options.omit == Omit::MapAddress => Ok(()),
                verified => verified,
            };
            let is_good = verified.is_ok()
                && page.judge(&key, place.incarnation, self.layout.unit_count).is_ok();
            if is_good && best.as_ref().is_none_or(|(_, newest)| page.generation() > *newest) {
                best = Some((page, page.generation()));
            }
        }
        // An older copy beside a lost newer one would give old data for new.
        if self.options.omit == Omit::MapAge {
            return best;
        }
        best.filter(|(_, generation)| !is_older(*generation, place.marks[half as usize]))
    }
}

/// A twin may have more than the first copy has: the page stays as dirty as it became meanwhile.
const fn next_generation(state: &mut crate::space::PageState, is_twin: bool) -> u64 {
    state.is_dirty &= is_twin;
    state.generation += 1;
    state.generation
}

/// Seals a page into a buffer; gives the address back for the caller's expression.
pub(crate) fn put_page<P: Page>(
    buffer: &mut IoBuffer,
    page: &mut P,
    id: plinth_format::StoreId,
    address: u64,
    generation: u64,
) -> u64 {
    page.seal(id, address, generation);
    buffer.as_bytes_mut().copy_from_slice(bytemuck::bytes_of(page));
    address
}
