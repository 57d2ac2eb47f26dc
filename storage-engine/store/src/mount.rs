// SPDX-License-Identifier: Apache-2.0
//! Recovery: from whatever a crash left to a store that is whole.
//!
//! ```text
//!   flush ▶ superblock ▶ bitmap, counts, index ▶ journal: scan ▶ judge ▶ superblock says how far
//!         ▶ replay ▶ deferred blocks to their places ▶ checkpoint in a new session
//! ```
//!
//! What is read is the superblock, the tables and the journal, and the map pages that the
//! journal touches; never the data, but for the blocks of entries that may be incomplete. Until
//! the last superblock is written, every step can be cut off and begun again.

use crate::blocking;
use crate::buffer::IoBuffer;
use crate::checkpoint::put_page;
use crate::disk::{Disk, DiskError};
use crate::journal::Journal;
use crate::replay::Replay;
use crate::request::ObjectKey;
use crate::rest::Rest;
use crate::scan::{Found, Scanned, WINDOW, read_entry, read_or_lost, scan};
use crate::store::{Access, Omit, ReadOnlyReason, Store, StoreOptions, StoreState};
use plinth_format::journal::{BlockData, Record, RecordError, VERSION_MAX};
use plinth_format::{
    BLOCK_SIZE, BitmapPage, COUNTERS_MAX, IndexPage, Layout, LayoutError, Le64, PAGE_SIZE, Page,
    PageFault, StoreId, Superblock, crc32c,
};
use std::time::Duration;

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MountError {
    #[error("neither superblock can be used (first: {first}; second: {second}): format the disk")]
    NoSuperblock { first: PageFault, second: PageFault },
    #[error("the superblock's sizes do not fit the disk")]
    Layout(#[from] LayoutError),
    #[error("the superblock's replay point, byte {offset} of the journal, or its number cannot be")]
    ReplayPoint { offset: u64 },
    #[error("neither copy of bitmap page {page} can be used")]
    Bitmap { page: u32 },
    #[error("neither copy of count page {page} can be used")]
    Count { page: u32 },
    #[error("neither copy of index page {page} can be used")]
    Index { page: u32 },
    #[error("journal entry {seq} has a record that cannot be")]
    Record { seq: u64, source: RecordError },
    #[error("journal entry {seq} speaks of a slot, unit or block that the store does not have")]
    Bounds { seq: u64 },
    #[error("journal entry {seq}, which recovery had judged, is gone")]
    JournalCut { seq: u64 },
    #[error(
        "journal entry {seq} is damaged (byte {offset} of the disk): the changes of entries {seq} to \
         {last}, which were durable, cannot be replayed; nothing was written, so copy the disk, \
         save what a mount for rescue reads, then format it and restore its volumes"
    )]
    Journal { seq: u64, last: u64, offset: u64 },
    #[error(
        "journal entry {seq} is damaged (byte {offset} of the disk): a map page of {key} has changes \
         of entry {last}, which was durable; recovery had begun to write by then (superblocks, and \
         map pages of what it replayed), so copy the disk as it is, save what a mount for rescue reads, \
         then format it and restore its volumes"
    )]
    PageAhead { key: ObjectKey, seq: u64, last: u64, offset: u64 },
    #[error(
        "the newest superblock is lost: the other one is of session {found}, and the journal has \
         changes of session {session}, which cannot be replayed without it; nothing was written, so \
         copy the disk, save what a mount for rescue reads, then format it and restore its volumes"
    )]
    Superseded { session: u64, found: u64 },
    #[error("{key} is in the index twice")]
    Twice { key: ObjectKey },
    #[error("the disk failed")]
    Disk(#[from] DiskError),
    #[error("the disk failed while the recovered state was written")]
    ReadOnly(ReadOnlyReason),
}

impl<D: Disk> Store<D> {
    /// Recovers the store on a disk.
    ///
    /// Polls the disk until all is read and a fresh checkpoint is written, or, for
    /// [`Access::Rescue`], until all is read. Takes memory for the
    /// bitmap and the index, whose sizes are bounded by the disk's length, and the caches that
    /// the options name.
    ///
    /// # Errors
    /// Names the first thing without which there is no store. Damage that concerns one object
    /// is no error here: that object's requests are refused.
    pub fn mount(mut disk: D, options: StoreOptions) -> Result<Self, MountError> {
        // After the death of a process, what it had written may still be in the device's cache:
        // what recovery reads must be what a power cut would leave.
        blocking::flush(&mut disk)?;
        let superblock = newest_superblock(&mut disk)?;
        let layout = Layout::parse(&superblock, disk.geometry().length)?;
        let id = superblock.store();
        let replay_offset = superblock.replay_offset.get();
        let counters = [superblock.replay_seq.get(), superblock.session.get()];
        let are_counters = counters.iter().all(|count| (1..=COUNTERS_MAX).contains(count));
        let version_base = superblock.version_base.get();
        let are_counters = are_counters && version_base <= VERSION_MAX;
        let is_inside = replay_offset < layout.journal_length && are_counters;
        if !is_inside || !replay_offset.is_multiple_of(PAGE_SIZE as u64) {
            return Err(MountError::ReplayPoint { offset: replay_offset });
        }
        let session = superblock.session.get();
        // The journal of the recovered store begins behind what is replayed, in a new session.
        let placeholder = Journal::new(layout.journal_length, 0, 1);
        let mut store = Self::new(disk, layout, id, options, placeholder, session.wrapping_add(1));
        store.load_tables(superblock.index_pages.get())?;
        let Scanned { mut entries, highest, fault } =
            scan(&mut store.io.disk, &layout, &superblock, &options)?;
        if options.access == Access::Rescue {
            store.lost = store.lost.or(fault);
            store.judge_for_rescue(superblock.judged_seq.get(), &mut entries)?;
            store.rescue(&entries)?;
            return Ok(store);
        }
        if let Some(fault) = fault {
            return Err(fault);
        }
        let judged = superblock.judged_seq.get();
        store.checkpoint.generation = superblock.generation();
        if judged != 0 {
            entries.retain(|entry| entry.header.seq.get() <= judged);
            let last = entries.last().map_or(0, |entry| entry.header.seq.get());
            if last != judged {
                return Err(MountError::JournalCut { seq: judged });
            }
        } else {
            store.judge(&mut entries)?;
            store.say_judged(&superblock, &entries)?;
        }
        store.journal.version_base = version_base;
        Replay::run(&mut store, &entries)?;
        store.objects.rebuild().map_err(|key| MountError::Twice { key })?;
        if superblock.undiscarded.get() != 0 || !entries.is_empty() {
            store.discard_all_free();
        }
        store.begin_session(&superblock, &entries, highest)?;
        store.discards.is_open = true;
        Ok(store)
    }

    /// Reads bitmap, counts and index: of each page the newer copy that is whole. What has only one
    /// copy, or two that differ, the first checkpoint of the session writes to both.
    fn load_tables(&mut self, index_pages: u32) -> Result<(), MountError> {
        let (layout, id) = (self.layout, self.id);
        let is_rescue = self.options.access == Access::Rescue;
        let lost = &mut self.lost;
        // For a rescue a page that is lost costs what it alone knows.
        let mut judge = |error| {
            if is_rescue {
                lost.get_or_insert(error);
                Ok(())
            } else {
                Err(error)
            }
        };
        let mut in_use = Vec::new();
        let space = &mut self.space;
        let base = layout.bitmap_offset;
        read_pairs(&mut self.io.disk, id, base, layout.bitmap_pages(), |page, found, has_twin| {
            let Some(found): Option<&BitmapPage> = found else {
                return judge(MountError::Bitmap { page });
            };
            let counts = space.load_bitmap(page, found);
            space.bitmap_pages[page as usize].is_dirty |= !has_twin;
            in_use
                .extend((0..16).filter(|bit| counts & (1 << bit) != 0).map(|bit| page * 16 + bit));
            Ok(())
        })?;
        for page in in_use.into_iter().filter(|&page| page < layout.count_pages()) {
            let base = layout.count_address(page, 0);
            read_pairs(&mut self.io.disk, id, base, 1, |_, found, has_twin| {
                let Some(found) = found else { return judge(MountError::Count { page }) };
                space.load_counts(page, found);
                space.count_pages[page as usize].is_dirty |= !has_twin;
                Ok(())
            })?;
        }
        let objects = &mut self.objects;
        let pages = index_pages.min(layout.index_pages());
        read_pairs(&mut self.io.disk, id, layout.index_offset, pages, |page, found, has_twin| {
            let Some(found): Option<&IndexPage> = found else {
                return judge(MountError::Index { page });
            };
            objects.load_page(page, found);
            objects.pages[page as usize].is_dirty |= !has_twin;
            Ok(())
        })
    }

    /// Keeps the entries whose data is all there, and of those after the first that misses some
    /// none: nobody was told of them.
    fn judge(&mut self, entries: &mut Vec<Found>) -> Result<(), MountError> {
        if self.options.omit == Omit::Judge {
            return Ok(());
        }
        let known = entries.iter().map(|entry| entry.header.durable_seq.get()).max().unwrap_or(0);
        for index in 0..entries.len() {
            if entries[index].header.seq.get() > known && !self.has_data(entries[index])? {
                entries.truncate(index);
                return Ok(());
            }
        }
        Ok(())
    }

    /// As an ordinary mount judges, for what nobody was told of must not hide what was there before;
    /// but behind a gap there were others that vouch for all before it, whose data may be another's.
    fn judge_for_rescue(
        &mut self,
        judged: u64,
        entries: &mut Vec<Found>,
    ) -> Result<(), MountError> {
        if judged == 0 {
            return if self.lost.is_none() { self.judge(entries) } else { Ok(()) };
        }
        entries.retain(|entry| entry.header.seq.get() <= judged);
        if entries.last().is_none_or(|entry| entry.header.seq.get() != judged) {
            self.lost.get_or_insert(MountError::JournalCut { seq: judged });
        }
        Ok(())
    }

    fn has_data(&mut self, entry: Found) -> Result<bool, MountError> {
        let seq = entry.header.seq.get();
        let bytes = read_entry(&mut self.io.disk, &self.layout, entry)?;
        let opened = entry.header.open(bytes.as_bytes());
        let (records, _) = opened.map_err(|_| MountError::JournalCut { seq })?;
        for record in records {
            let record = record.map_err(|source| MountError::Record { seq, source })?;
            let Record::Checksums { data: BlockData::Direct { data_block }, checksums, .. } =
                record
            else {
                continue;
            };
            let blocks = u64::from(self.layout.unit_count) * 8;
            let count = checksums.len() as u64;
            if count == 0 || data_block.checked_add(count).is_none_or(|end| end > blocks) {
                return Err(MountError::Bounds { seq });
            }
            let address = self.layout.data_address(data_block);
            // A block that cannot be read was not written whole.
            let length = checksums.len() * BLOCK_SIZE as usize;
            let Some(data) = read_or_lost(&mut self.io.disk, address, length)? else {
                return Ok(false);
            };
            let blocks = data.as_bytes().chunks_exact(BLOCK_SIZE as usize);
            if !blocks.zip(checksums).all(|(block, sum)| crc32c(block) == sum.get()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes down how far the journal counts. From here on recovery writes to places that the
    /// judgment has looked at, so a second recovery must not judge again.
    fn say_judged(&mut self, superblock: &Superblock, entries: &[Found]) -> Result<(), MountError> {
        let Some(last) = entries.last() else { return Ok(()) };
        let mut image = *superblock;
        image.judged_seq = last.header.seq;
        // Both copies, one after the other: whichever of them is lost, nothing is judged twice.
        for _ in 0..2 {
            self.checkpoint.generation += 1;
            let generation = self.checkpoint.generation;
            let address = self.layout.superblock_address(generation % 2);
            let mut buffer = IoBuffer::zeroed(PAGE_SIZE);
            put_page(&mut buffer, &mut image, self.id, address, generation);
            blocking::write(&mut self.io.disk, address, buffer)?;
            blocking::flush(&mut self.io.disk)?;
        }
        Ok(())
    }

    /// Opens an empty journal behind the old one and writes the first checkpoint of the session.
    fn begin_session(
        &mut self,
        superblock: &Superblock,
        entries: &[Found],
        highest: u64,
    ) -> Result<(), MountError> {
        let length = self.layout.journal_length;
        let (offset, seq) = match entries.last() {
            None => (superblock.replay_offset.get(), superblock.replay_seq.get()),
            Some(last) => (
                (last.offset + last.header.length()) % length,
                last.header.seq.get().saturating_add(1),
            ),
        };
        // Numbers of entries that a crash took back are not used again: somebody may have seen
        // the versions of objects that they gave.
        let seq = seq.max(1).saturating_add(numbers_lost(&self.layout));
        // Nor are those that an earlier try of this mount has left: they would vouch for ours.
        let version_base = self.journal.version_base;
        self.journal = Journal::new(length, offset, seq.max(highest.saturating_add(1)));
        self.journal.version_base = version_base;
        self.request_checkpoint();
        let mut none = Vec::new();
        while self.checkpoint.is_running() {
            self.poll(Duration::ZERO, &mut none);
            std::hint::spin_loop();
        }
        match self.state {
            StoreState::Writable => Ok(()),
            StoreState::ReadOnly(reason) => Err(MountError::ReadOnly(reason)),
        }
    }

    /// Checkpoints, flushes, and gives the disk back. A store that is read-only gives it back as
    /// it is; it will be recovered.
    pub fn unmount(self) -> D {
        self.put_away().0
    }

    /// As [`Store::unmount`]; what is known of the store afterwards spares a mount that is told of
    /// it ([`StoreOptions::rest`]) the look through the journal.
    pub fn put_away(mut self) -> (D, Option<Rest>) {
        self.scrub_stop();
        self.stop_discards();
        self.come_to_rest();
        // Nothing is overwritten in place any more, and what was is durable with the checkpoint. A
        // mark that stayed would have the next mount excuse what the disk spoils until then.
        if self.options.omit != Omit::MarksEnd {
            self.cache.end_marks();
        }
        self.request_checkpoint();
        self.come_to_rest();
        let rest = self.rest();
        (self.io.disk, rest)
    }

    /// Polls until nothing is on its way.
    fn come_to_rest(&mut self) {
        let mut none = Vec::new();
        while !self.is_idle() {
            self.poll(Duration::ZERO, &mut none);
            none.clear();
            std::hint::spin_loop();
        }
    }
}

fn newest_superblock<D: Disk>(disk: &mut D) -> Result<Superblock, MountError> {
    let mut faults = [PageFault::Magic; 2];
    let mut best: Option<Superblock> = None;
    for (copy, fault) in (0..).zip(&mut faults) {
        let address = copy * u64::from(plinth_format::UNIT_SIZE);
        if disk.geometry().length < address + PAGE_SIZE as u64 {
            continue;
        }
        let Some(bytes) = read_or_lost(disk, address, PAGE_SIZE)? else {
            *fault = PageFault::Checksum;
            continue;
        };
        let page: Superblock = *bytemuck::from_bytes(bytes.as_bytes());
        match page.verify(None, address) {
            Err(found) => *fault = found,
            Ok(()) => {
                if best.as_ref().is_none_or(|best| page.generation() > best.generation()) {
                    best = Some(page);
                }
            }
        }
    }
    best.ok_or(MountError::NoSuperblock { first: faults[0], second: faults[1] })
}

/// Where the part of a page begins that says something: before it is what tells copies apart.
const PAGE_OWN: usize = 48;

/// Reads pages that exist twice, side by side, and gives each one's newer copy that is whole, and
/// whether the other one says the same.
fn read_pairs<D: Disk, P: Page>(
    disk: &mut D,
    id: StoreId,
    base: u64,
    pages: u32,
    mut visit: impl FnMut(u32, Option<&P>, bool) -> Result<(), MountError>,
) -> Result<(), MountError> {
    let per_window = u32::try_from(WINDOW / (2 * PAGE_SIZE)).unwrap_or(1);
    let mut first = 0;
    while first < pages {
        let count = per_window.min(pages - first);
        let start = base + u64::from(first) * 2 * PAGE_SIZE as u64;
        let bytes = read_what_is_left(disk, start, count as usize * 2 * PAGE_SIZE)?;
        for (index, pair) in (0..count).zip(bytes.as_bytes().chunks_exact(2 * PAGE_SIZE)) {
            let address = start + u64::from(index) * 2 * PAGE_SIZE as u64;
            let good = |copy: usize| {
                let page: &P =
                    bytemuck::from_bytes(&pair[copy * PAGE_SIZE..(copy + 1) * PAGE_SIZE]);
                let at = address + (copy * PAGE_SIZE) as u64;
                page.verify(Some(id), at).is_ok().then_some(page)
            };
            let says = |copy: usize| &pair[copy * PAGE_SIZE + PAGE_OWN..(copy + 1) * PAGE_SIZE];
            let (newer, has_twin) = match (good(0), good(1)) {
                (Some(a), Some(b)) => {
                    let is_first = a.generation() > b.generation();
                    (Some(if is_first { a } else { b }), says(0) == says(1))
                }
                (a, b) => (a.or(b), false),
            };
            visit(first + index, newer, has_twin)?;
        }
        first += count;
    }
    Ok(())
}

/// Reads pages; those that the device has lost are zeros, which are no page.
fn read_what_is_left<D: Disk>(
    disk: &mut D,
    start: u64,
    length: usize,
) -> Result<IoBuffer, DiskError> {
    if let Some(bytes) = read_or_lost(disk, start, length)? {
        return Ok(bytes);
    }
    let mut bytes = IoBuffer::zeroed(length);
    for (index, into) in (0..).zip(bytes.as_bytes_mut().chunks_exact_mut(PAGE_SIZE)) {
        let at = start + index * PAGE_SIZE as u64;
        if let Some(page) = read_or_lost(disk, at, PAGE_SIZE)? {
            into.copy_from_slice(page.as_bytes());
        }
    }
    Ok(bytes)
}

/// How many numbers a recovery passes over: a journal has no room for more entries.
pub(crate) const fn numbers_lost(layout: &Layout) -> u64 {
    layout.journal_length / PAGE_SIZE as u64
}

/// Whether a page lacks what an entry says.
pub(crate) const fn is_newer(seq: u64, page_seq: Le64) -> bool {
    seq > page_seq.get()
}

/// Makes the checksum of a page, or of an entry of one page, right again: for tests that attack
/// the meaning of fields.
pub fn repair_checksum(page: &mut [u8; PAGE_SIZE]) {
    let crc = crc32c(&page[12..]);
    page[8..12].copy_from_slice(&crc.to_le_bytes());
}
