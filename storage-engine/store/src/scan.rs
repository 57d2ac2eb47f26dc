// SPDX-License-Identifier: Apache-2.0
//! Reading the journal after a stop, and telling its end from damage in its middle.
//!
//! ```text
//!   replay point ▶ entry, entry, … ▶ one that is not there
//!                                      │ some whole entry says that it was durable ─▶ damage
//!                                      │ one of a later session has changed things  ─▶ no superblock
//!                                      └ nobody says so ─▶ the end: nobody was told of it
//! ```
//!
//! Every entry says up to which number all entries were durable when it was made. So a power cut,
//! which takes only what was not durable, never leaves an entry missing that another one vouches
//! for; what was lost in its stead was damaged. Entries that nobody vouches for are the last ones,
//! and may be there in any selection.

use crate::blocking;
use crate::buffer::IoBuffer;
use crate::disk::{Disk, DiskError};
use crate::mount::MountError;
use crate::store::Omit;
use crate::store::StoreOptions;
use plinth_format::journal::{BlockData, EntryHeader, Record};
use plinth_format::{BLOCK_SIZE, Layout, PAGE_SIZE, Page, PageFault, StoreId, Superblock};

/// How much of a region is read in one go.
pub(crate) const WINDOW: usize = 1 << 20;

/// An entry that was found whole in the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) offset: u64,
    pub(crate) header: EntryHeader,
}

/// What is in the journal.
#[derive(Debug)]
pub(crate) struct Scanned {
    /// The entries from the replay point on, without a gap.
    pub(crate) entries: Vec<Found>,
    /// No entry that is whole has a higher number, of whatever session.
    pub(crate) highest: u64,
    /// Why what was durable behind the last entry cannot be replayed, if something was.
    pub(crate) fault: Option<MountError>,
}

/// Follows the journal from the replay point for as long as each entry is the next one, and then
/// looks through all of it for an entry that knows of more.
///
/// Says what is wrong when an entry is missing that was durable, or the superblock is not the newest
/// that there was.
///
/// # Errors
/// When the disk fails.
pub(crate) fn scan<D: Disk>(
    disk: &mut D,
    layout: &Layout,
    superblock: &Superblock,
    options: &StoreOptions,
) -> Result<Scanned, MountError> {
    let mut reader = Reader { disk, layout, id: superblock.store(), window: Window::default() };
    let mut entries = Vec::new();
    let mut offset = superblock.replay_offset.get();
    let mut next = Next { session: superblock.session.get(), seq: superblock.replay_seq.get() };
    while let Some(found) = reader.find(&next, offset)? {
        offset = (found.offset + found.header.length()) % layout.journal_length;
        entries.push(found);
        next.seq += 1;
    }
    if options.omit == Omit::JournalVouched {
        let highest = next.seq - 1;
        return Ok(Scanned { entries, highest, fault: None });
    }
    if let Some(highest) = options.rest.and_then(|rest| rest.highest(superblock, &entries)) {
        return Ok(Scanned { entries, highest, fault: None });
    }
    let missing = layout.journal_offset + offset;
    let is_atomic = reader.disk.geometry().atomic_write_size >= BLOCK_SIZE;
    if is_atomic && (reader.is_spoiled(&next, offset)? || reader.is_spoiled(&next, 0)?) {
        let highest = next.seq;
        let fault = MountError::Journal { seq: next.seq, last: next.seq, offset: missing };
        return Ok(Scanned { entries, highest, fault: Some(fault) });
    }
    let Known { durable, highest, session } = reader.survey(&next)?;
    let fault = match session {
        Some(session) => Some(MountError::Superseded { session, found: next.session }),
        None => (durable >= next.seq).then_some(MountError::Journal {
            seq: next.seq,
            last: durable,
            offset: missing,
        }),
    };
    Ok(Scanned { entries, highest, fault })
}

/// The entry that should come next.
struct Next {
    session: u64,
    seq: u64,
}

/// What entries behind the end say.
#[derive(Default)]
struct Known {
    /// The highest number that an entry of the session calls durable.
    durable: u64,
    highest: u64,
    /// A later session in which the store was in service.
    session: Option<u64>,
}

struct Reader<'a, D> {
    disk: &'a mut D,
    layout: &'a Layout,
    id: StoreId,
    window: Window,
}

impl<D: Disk> Reader<'_, D> {
    /// The next entry, behind the last one or at the journal's start.
    fn find(&mut self, next: &Next, offset: u64) -> Result<Option<Found>, MountError> {
        for at in [offset, 0] {
            let Ok(header) = self.header(at)? else { continue };
            let is_next = header.seq.get() == next.seq && header.session.get() == next.session;
            if is_next && self.is_whole(&header, at)? {
                return Ok(Some(Found { offset: at, header }));
            }
        }
        Ok(None)
    }

    /// Whether an entry of one page was written here and is not what was written, on a disk that
    /// writes a page whole or not at all.
    fn is_spoiled(&mut self, next: &Next, at: u64) -> Result<bool, MountError> {
        let Ok(header) = self.header(at)? else { return Ok(false) };
        let is_next = header.seq.get() == next.seq && header.session.get() == next.session;
        Ok(is_next && header.pages.get() == 1 && !self.is_whole(&header, at)?)
    }

    /// Looks at every page of the journal for an entry that should not be there if the next one
    /// never was.
    fn survey(&mut self, next: &Next) -> Result<Known, MountError> {
        let mut known = Known { highest: next.seq - 1, ..Known::default() };
        let mut at = 0;
        while at < self.layout.journal_length {
            let mut step = PAGE_SIZE as u64;
            if let Ok(header) = self.header(at)? {
                let (seq, session) = (header.seq.get(), header.session.get());
                let is_later = session > next.session;
                let is_news = seq > known.highest || seq >= next.seq || is_later;
                if is_news && self.is_whole(&header, at)? {
                    known.highest = known.highest.max(seq);
                    if is_later && self.is_in_service(&header, at)? {
                        known.session = known.session.max(Some(session));
                    }
                    if session == next.session && seq >= next.seq {
                        known.durable = known.durable.max(header.durable_seq.get().min(seq));
                    }
                    step = header.length();
                }
            }
            at += step;
        }
        Ok(known)
    }

    /// Whether an entry has anything that a mount does not write before its superblock: that
    /// writes marks of what is suspected and checksums of what is adopted.
    fn is_in_service(&mut self, header: &EntryHeader, at: u64) -> Result<bool, MountError> {
        let length = usize::try_from(header.length()).unwrap_or(0);
        let Some(bytes) = self.bytes(at, length)? else { return Ok(false) };
        let Ok((mut records, _)) = header.open(bytes) else { return Ok(false) };
        Ok(!records.all(|record| {
            matches!(
                record,
                Ok(Record::Mark { .. } | Record::Checksums { data: BlockData::Shared, .. })
            )
        }))
    }

    fn header(&mut self, at: u64) -> Result<Result<EntryHeader, PageFault>, MountError> {
        let (id, address) = (self.id, self.layout.journal_offset + at);
        let room = self.layout.journal_length - at;
        let Some(first) = self.bytes(at, PAGE_SIZE)? else { return Ok(Err(PageFault::Checksum)) };
        let header = EntryHeader::parse(first, id, address);
        Ok(header.and_then(|it| if it.length() > room { Err(PageFault::Field) } else { Ok(it) }))
    }

    fn is_whole(&mut self, header: &EntryHeader, at: u64) -> Result<bool, MountError> {
        let length = usize::try_from(header.length()).unwrap_or(0);
        Ok(self.bytes(at, length)?.is_some_and(|entry| header.open(entry).is_ok()))
    }

    /// The journal's bytes from `at`; `None` when the device has lost them.
    fn bytes(&mut self, at: u64, length: usize) -> Result<Option<&[u8]>, MountError> {
        let window = &mut self.window;
        let have = window.bytes.as_ref().map_or(0, |bytes| bytes.length() as u64);
        let is_inside = at >= window.start && at + length as u64 <= window.start + have;
        if !is_inside {
            let room = usize::try_from(self.layout.journal_length - at).unwrap_or(usize::MAX);
            let address = self.layout.journal_offset + at;
            window.start = at;
            let long = WINDOW.max(length).min(room);
            // A fresh megabyte costs as much as what it is read from.
            let old = window.bytes.take().filter(|old| old.length() == long);
            let buffer = old.unwrap_or_else(|| IoBuffer::zeroed(long));
            window.bytes = read_into_or_lost(self.disk, address, buffer)?;
            if window.bytes.is_none() && long > length {
                // Some of it is lost; perhaps not this.
                window.bytes = read_or_lost(self.disk, address, length)?;
            }
        }
        let from = usize::try_from(at - window.start).unwrap_or(usize::MAX);
        Ok(window.bytes.as_ref().and_then(|bytes| bytes.as_bytes().get(from..from + length)))
    }
}

/// Bytes of the journal that were read together.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: Option<IoBuffer>,
}

/// Reads; `None` when the device answers that it cannot give these bytes.
///
/// # Errors
/// When the device does not answer as a whole: then nothing is known of the bytes.
pub(crate) fn read_or_lost<D: Disk>(
    disk: &mut D,
    address: u64,
    length: usize,
) -> Result<Option<IoBuffer>, DiskError> {
    read_into_or_lost(disk, address, IoBuffer::zeroed(length))
}

fn read_into_or_lost<D: Disk>(
    disk: &mut D,
    address: u64,
    buffer: IoBuffer,
) -> Result<Option<IoBuffer>, DiskError> {
    match blocking::read(disk, address, buffer) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(DiskError::Device { .. } | DiskError::Short { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads one entry that was found before.
pub(crate) fn read_entry<D: Disk>(
    disk: &mut D,
    layout: &Layout,
    entry: Found,
) -> Result<IoBuffer, DiskError> {
    let length = usize::try_from(entry.header.length()).unwrap_or(0);
    blocking::read(disk, layout.journal_offset + entry.offset, IoBuffer::zeroed(length))
}
