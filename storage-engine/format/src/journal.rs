// SPDX-License-Identifier: Apache-2.0
//! Journal entries.
//!
//! ```text
//!   0        96         96+records        next 4096        blocks*4096
//!   │ header │ records … │ zero           │ data blocks …  │
//! ```
//!
//! An entry is one write. Its checksum covers all of it, so that it is there whole or not at all,
//! and with it every transaction in it. Every record says what *is* afterwards, never what is
//! added: replaying a record over a page that has seen it already changes nothing.

use crate::bytes::{Le16, Le32, Le64};
use crate::page::{COUNTERS_MAX, PAGE_SIZE, PageFault, StoreId, crc32c};
use crate::pages::KeyBytes;
use crate::{FORMAT_VERSION, FORMAT_VERSION_MIN, OBJECT_BLOCKS, OBJECT_UNITS};
use bytemuck::{Pod, Zeroable};

const MAGIC: [u8; 8] = *b"PLNentry";
/// Bytes of an entry's header.
pub const ENTRY_HEADER: usize = size_of::<EntryHeader>();
/// The longest entry, in pages: 8 MiB, for the largest overwrite on a full disk.
pub const ENTRY_PAGES_MAX: u32 = 2048;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct EntryHeader {
    magic: [u8; 8],
    /// crc32c from byte 12 to the end of the entry.
    crc: Le32,
    version: Le32,
    /// Byte offset on the disk.
    address: Le64,
    store: StoreId,
    pub session: Le64,
    pub seq: Le64,
    /// Every entry up to this one was durable, data and all, when this one was made.
    pub durable_seq: Le64,
    /// Pages of the entry.
    pub pages: Le32,
    /// Bytes of records.
    pub record_bytes: Le32,
    /// Blocks of data at the entry's end.
    pub data_blocks: Le32,
    reserved: [u8; 20],
}

const _: () = assert!(ENTRY_HEADER == 96);

impl EntryHeader {
    /// What an entry is to say of itself; the rest is filled in by [`seal`].
    pub fn new(session: u64, seq: u64, durable_seq: u64) -> Self {
        Self {
            session: Le64::new(session),
            seq: Le64::new(seq),
            durable_seq: Le64::new(durable_seq),
            ..Self::zeroed()
        }
    }

    /// Bytes of the whole entry.
    pub fn length(&self) -> u64 {
        u64::from(self.pages.get()) * PAGE_SIZE as u64
    }

    /// Checks the lengths of a header, before the rest of the entry is read.
    ///
    /// # Errors
    /// When the first page is not the beginning of an entry that belongs at `address`.
    pub fn parse(first_page: &[u8], store: StoreId, address: u64) -> Result<Self, PageFault> {
        let bytes = first_page.first_chunk::<ENTRY_HEADER>().ok_or(PageFault::Magic)?;
        let header: Self = bytemuck::cast(*bytes);
        if header.magic != MAGIC {
            return Err(PageFault::Magic);
        }
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&header.version.get()) {
            return Err(PageFault::Version { found: header.version.get() });
        }
        if header.store != store {
            return Err(PageFault::Store);
        }
        if header.address.get() != address {
            return Err(PageFault::Address { found: header.address.get() });
        }
        let (pages, data) = (header.pages.get(), header.data_blocks.get());
        let records = ENTRY_HEADER as u64 + u64::from(header.record_bytes.get());
        let needed = records.div_ceil(PAGE_SIZE as u64) + u64::from(data);
        let is_counter = header.seq.get().max(header.session.get()) <= COUNTERS_MAX;
        if pages > ENTRY_PAGES_MAX || needed != u64::from(pages) || !is_counter {
            return Err(PageFault::Field);
        }
        Ok(header)
    }

    /// Checks the whole entry and gives its records and its data.
    ///
    /// # Errors
    /// `Checksum` for an entry that is torn.
    pub fn open<'a>(&self, entry: &'a [u8]) -> Result<(Records<'a>, &'a [u8]), PageFault> {
        let length = self.pages.get() as usize * PAGE_SIZE;
        let entry = entry.get(..length).ok_or(PageFault::Field)?;
        if self.crc.get() != crc32c(&entry[12..]) {
            return Err(PageFault::Checksum);
        }
        let data_at = length - self.data_blocks.get() as usize * PAGE_SIZE;
        let records_end = ENTRY_HEADER + self.record_bytes.get() as usize;
        let records = entry.get(ENTRY_HEADER..records_end).ok_or(PageFault::Field)?;
        Ok((Records { bytes: records }, &entry[data_at..]))
    }
}

/// Bytes of an entry with so many bytes of records and of data (whole blocks).
pub const fn entry_length(record_bytes: usize, data_bytes: usize) -> usize {
    (ENTRY_HEADER + record_bytes).next_multiple_of(PAGE_SIZE) + data_bytes
}

/// Builds the entry in `into`, which has exactly [`entry_length`] bytes.
///
/// # Panics
/// If `into` has another length.
pub fn seal(
    into: &mut [u8],
    header: EntryHeader,
    store: StoreId,
    address: u64,
    records: &[u8],
    data: &[u8],
) {
    assert_eq!(into.len(), entry_length(records.len(), data.len()), "the entry's own length");
    let data_at = into.len() - data.len();
    let as_u32 = |value: usize| Le32::new(u32::try_from(value).unwrap_or(u32::MAX));
    let mut header = EntryHeader {
        magic: MAGIC,
        version: Le32::new(FORMAT_VERSION),
        address: Le64::new(address),
        store,
        pages: as_u32(into.len() / PAGE_SIZE),
        record_bytes: as_u32(records.len()),
        data_blocks: as_u32(data.len() / PAGE_SIZE),
        ..header
    };
    into[ENTRY_HEADER..ENTRY_HEADER + records.len()].copy_from_slice(records);
    into[ENTRY_HEADER + records.len()..data_at].fill(0);
    into[data_at..].copy_from_slice(data);
    into[..ENTRY_HEADER].copy_from_slice(bytemuck::bytes_of(&header));
    header.crc = Le32::new(crc32c(&into[12..]));
    into[..ENTRY_HEADER].copy_from_slice(bytemuck::bytes_of(&header));
}

/// What a `Checksums` record's blocks are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BlockData {
    /// Written by themselves to this data block and those after it, in parallel to the entry:
    /// until the entry is known durable, recovery compares them with their checksums.
    Direct { data_block: u64 },
    /// In this entry, from this block of its data on; to be written to this data block and
    /// those after it once the entry is safe.
    Deferred { index: u16, data_block: u64 },
    /// Durable before the entry was made, under another object.
    Shared,
    /// Written over what was at this data block and those after it, in parallel to the entry, under
    /// a mark: after a crash the old bytes are as good as these, and recovery compares nothing.
    InPlace { data_block: u64 },
}

/// The words of a journal entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Record<'a> {
    /// The slot holds this object, empty.
    Create {
        slot: u32,
        key: KeyBytes,
        incarnation: u64,
    },
    /// The slot is free.
    Remove {
        slot: u32,
    },
    /// Size and number of units of the slot's object.
    Object {
        slot: u32,
        size: u32,
        units: u16,
    },
    /// Units `first…` lie at places `index…` of the object, all blocks unwritten; or no units.
    Units {
        slot: u32,
        index: u16,
        count: u16,
        first: Option<u32>,
    },
    /// These blocks are written and have these checksums.
    Checksums {
        slot: u32,
        block: u16,
        data: BlockData,
        checksums: &'a [Le32],
    },
    /// These blocks are unwritten.
    Clear {
        slot: u32,
        block: u16,
        count: u16,
    },
    /// So many objects own each of these units; 0 frees them.
    Owners {
        first: u32,
        count: u16,
        owners: u16,
    },
    SetAttribute {
        slot: u32,
        name: &'a [u8],
        value: &'a [u8],
    },
    RemoveAttribute {
        slot: u32,
        name: &'a [u8],
    },
    /// The `number`th change of the entry was one of the object; see [`change_version`]. Noted in
    /// this half's page.
    Version {
        slot: u32,
        half: u8,
        number: u16,
    },
    /// The object has this version, whatever change gave it. Noted in this half's page.
    SetVersion {
        slot: u32,
        half: u8,
        version: u64,
    },
    /// From here on, this is added to what [`change_version`] says. It never falls.
    VersionBase {
        base: u64,
    },
    /// Blocks of these halves of the object (bit 0 the first) may be overwritten in place from the
    /// next entry on.
    Mark {
        slot: u32,
        halves: u8,
    },
}

/// The version that the `number`th change of an entry gives to the objects it changes, less the
/// store's base. Numbers begin with 1, so that it is never 0.
pub const fn change_version(seq: u64, number: u16) -> u64 {
    (seq << 16) | number as u64
}

/// No store gives an object a higher version by [`Record::SetVersion`], or has a higher base. What
/// entries of all numbers add to that does not overflow.
pub const VERSION_MAX: u64 = 1 << 62;

/// Every record begins with this.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Head {
    kind: u8,
    mode: u8,
    count: Le16,
    slot: Le32,
}

/// What follows the head of the records of fixed length.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Body {
    at: Le16,
    small: Le16,
    value: Le64,
}

const _: () = assert!(size_of::<Head>() == 8 && size_of::<Body>() == 12);

const CREATE: u8 = 1;
const REMOVE: u8 = 2;
const OBJECT: u8 = 3;
const UNITS: u8 = 4;
const CHECKSUMS: u8 = 5;
const CLEAR: u8 = 6;
const OWNERS: u8 = 7;
const SET_ATTRIBUTE: u8 = 8;
const REMOVE_ATTRIBUTE: u8 = 9;
const VERSION: u8 = 10;
const SET_VERSION: u8 = 11;
const VERSION_BASE: u8 = 12;
const MARK: u8 = 16;

const DIRECT: u8 = 0;
const DEFERRED: u8 = 1;
const SHARED: u8 = 2;
const IN_PLACE: u8 = 3;

/// Appends a record.
pub fn emit(into: &mut Vec<u8>, record: &Record<'_>) {
    let mut put = |kind, mode, count: usize, slot, body: Option<(u16, u16, u64)>| {
        let count = Le16::new(u16::try_from(count).unwrap_or(u16::MAX));
        let head = Head { kind, mode, count, slot: Le32::new(slot) };
        into.extend_from_slice(bytemuck::bytes_of(&head));
        if let Some((at, small, value)) = body {
            let body = Body { at: Le16::new(at), small: Le16::new(small), value: Le64::new(value) };
            into.extend_from_slice(bytemuck::bytes_of(&body));
        }
    };
    match *record {
        Record::Create { slot, key, incarnation } => {
            put(CREATE, 0, 0, slot, Some((0, 0, incarnation)));
            into.extend_from_slice(bytemuck::bytes_of(&key));
        }
        Record::Remove { slot } => put(REMOVE, 0, 0, slot, None),
        Record::Object { slot, size, units } => {
            put(OBJECT, 0, 0, slot, Some((0, units, size.into())));
        }
        Record::Units { slot, index, count, first } => {
            let first = first.map_or(0, |first| u64::from(first) + 1);
            put(UNITS, 0, count.into(), slot, Some((index, 0, first)));
        }
        Record::Checksums { slot, block, data, checksums } => {
            let (mode, index, value) = match data {
                BlockData::Direct { data_block } => (DIRECT, 0, data_block),
                BlockData::Deferred { index, data_block } => (DEFERRED, index, data_block),
                BlockData::Shared => (SHARED, 0, 0),
                BlockData::InPlace { data_block } => (IN_PLACE, 0, data_block),
            };
            put(CHECKSUMS, mode, checksums.len(), slot, Some((block, index, value)));
            into.extend_from_slice(bytemuck::cast_slice(checksums));
        }
        Record::Clear { slot, block, count } => {
            put(CLEAR, 0, count.into(), slot, Some((block, 0, 0)));
        }
        Record::Owners { first, count, owners } => {
            put(OWNERS, 0, count.into(), first, Some((0, owners, 0)));
        }
        Record::SetAttribute { slot, name, value } => {
            let name_length = u16::try_from(name.len()).unwrap_or(u16::MAX);
            put(SET_ATTRIBUTE, 0, value.len(), slot, Some((name_length, 0, 0)));
            into.extend_from_slice(name);
            into.extend_from_slice(value);
        }
        Record::RemoveAttribute { slot, name } => {
            put(REMOVE_ATTRIBUTE, 0, name.len(), slot, None);
            into.extend_from_slice(name);
        }
        Record::Version { slot, half, number } => put(VERSION, half, number.into(), slot, None),
        Record::SetVersion { slot, half, version } => {
            put(SET_VERSION, half, 0, slot, Some((0, 0, version)));
        }
        Record::VersionBase { base } => put(VERSION_BASE, 0, 0, 0, Some((0, 0, base))),
        Record::Mark { slot, halves } => put(MARK, halves, 0, slot, None),
    }
}

/// A record that cannot be: the entry's checksum is right, so a program wrote it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordError {
    #[error("the records end inside one")]
    Cut,
    #[error("a record of kind {kind} is unknown")]
    Kind { kind: u8 },
    #[error("a record speaks of blocks or units outside an object")]
    Range,
}

/// The records of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
}

impl<'a> Records<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    fn split<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (head, rest) = self.bytes.split_first_chunk::<N>().ok_or(RecordError::Cut)?;
        self.bytes = rest;
        Ok(*head)
    }

    fn split_bytes(&mut self, length: usize) -> Result<&'a [u8], RecordError> {
        let (head, rest) = self.bytes.split_at_checked(length).ok_or(RecordError::Cut)?;
        self.bytes = rest;
        Ok(head)
    }

    fn body(&mut self) -> Result<(u16, u16, u64), RecordError> {
        let body: Body = bytemuck::cast(self.split::<{ size_of::<Body>() }>()?);
        Ok((body.at.get(), body.small.get(), body.value.get()))
    }

    fn record(&mut self) -> Result<Record<'a>, RecordError> {
        let head: Head = bytemuck::cast(self.split::<{ size_of::<Head>() }>()?);
        let (slot, count) = (head.slot.get(), head.count.get());
        let range = |at: u16, limit: u32| {
            if u32::from(at) + u32::from(count) > limit { Err(RecordError::Range) } else { Ok(at) }
        };
        match head.kind {
            CREATE => {
                let (_, _, incarnation) = self.body()?;
                let key = bytemuck::cast(self.split::<32>()?);
                Ok(Record::Create { slot, key, incarnation })
            }
            REMOVE => Ok(Record::Remove { slot }),
            OBJECT => {
                let (_, units, size) = self.body()?;
                let size = u32::try_from(size).map_err(|_| RecordError::Range)?;
                Ok(Record::Object { slot, size, units })
            }
            UNITS => {
                let (at, _, first) = self.body()?;
                let index = range(at, OBJECT_UNITS)?;
                let first = u32::try_from(first).map_err(|_| RecordError::Range)?.checked_sub(1);
                Ok(Record::Units { slot, index, count, first })
            }
            CHECKSUMS => self.checksums(head, slot),
            CLEAR => {
                let (at, _, _) = self.body()?;
                Ok(Record::Clear { slot, block: range(at, OBJECT_BLOCKS)?, count })
            }
            OWNERS => {
                let (_, owners, _) = self.body()?;
                Ok(Record::Owners { first: slot, count, owners })
            }
            SET_ATTRIBUTE => {
                let (name_length, _, _) = self.body()?;
                let name = self.split_bytes(name_length.into())?;
                Ok(Record::SetAttribute { slot, name, value: self.split_bytes(count.into())? })
            }
            REMOVE_ATTRIBUTE => {
                Ok(Record::RemoveAttribute { slot, name: self.split_bytes(count.into())? })
            }
            VERSION if head.mode < 2 => {
                Ok(Record::Version { slot, half: head.mode, number: count })
            }
            VERSION => Err(RecordError::Range),
            SET_VERSION | VERSION_BASE => {
                let (_, _, value) = self.body()?;
                match head.kind {
                    _ if value > VERSION_MAX || head.mode >= 2 => Err(RecordError::Range),
                    VERSION_BASE => Ok(Record::VersionBase { base: value }),
                    _ => Ok(Record::SetVersion { slot, half: head.mode, version: value }),
                }
            }
            MARK if head.mode <= 3 => Ok(Record::Mark { slot, halves: head.mode }),
            MARK => Err(RecordError::Range),
            kind => Err(RecordError::Kind { kind }),
        }
    }

    fn checksums(&mut self, head: Head, slot: u32) -> Result<Record<'a>, RecordError> {
        let (block, index, data_block) = self.body()?;
        let count = head.count.get();
        if u32::from(block) + u32::from(count) > OBJECT_BLOCKS {
            return Err(RecordError::Range);
        }
        let data = match head.mode {
            DIRECT => BlockData::Direct { data_block },
            DEFERRED => BlockData::Deferred { index, data_block },
            SHARED => BlockData::Shared,
            IN_PLACE => BlockData::InPlace { data_block },
            mode => return Err(RecordError::Kind { kind: mode }),
        };
        let checksums = bytemuck::cast_slice(self.split_bytes(usize::from(count) * 4)?);
        Ok(Record::Checksums { slot, block, data, checksums })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    /// The next record; an error is the last item.
    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.bytes = &[];
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(sums: &[Le32]) -> Vec<Record<'_>> {
        let key = KeyBytes { pool: Le32::new(3), ..KeyBytes::zeroed() };
        vec![
            Record::Create { slot: 1, key, incarnation: 9 },
            Record::Remove { slot: u32::MAX },
            Record::Object { slot: 1, size: 77, units: 3 },
            Record::Units { slot: 1, index: 120, count: 8, first: Some(0) },
            Record::Units { slot: 1, index: 0, count: 128, first: None },
            Record::Checksums {
                slot: 1,
                block: 1021,
                data: BlockData::Direct { data_block: 1 << 40 },
                checksums: sums,
            },
            Record::Checksums {
                slot: 1,
                block: 0,
                data: BlockData::Deferred { index: 5, data_block: 77 },
                checksums: sums,
            },
            Record::Checksums { slot: 1, block: 0, data: BlockData::Shared, checksums: &[] },
            Record::Checksums {
                slot: 1,
                block: 9,
                data: BlockData::InPlace { data_block: 3 },
                checksums: sums,
            },
            Record::Mark { slot: 5, halves: 2 },
            Record::Clear { slot: 1, block: 8, count: 1 },
            Record::Owners { first: 6, count: 2, owners: 65535 },
            Record::SetAttribute { slot: 2, name: b"name", value: b"" },
            Record::RemoveAttribute { slot: 2, name: b"name" },
            Record::Version { slot: 2, half: 1, number: 65535 },
            Record::SetVersion { slot: 2, half: 1, version: VERSION_MAX },
            Record::VersionBase { base: VERSION_MAX },
        ]
    }

    #[test]
    fn records_come_back_as_they_went() {
        let sums = [1, 2, u32::MAX].map(Le32::new);
        let mut bytes = Vec::new();
        for record in all(&sums) {
            emit(&mut bytes, &record);
        }
        let back: Vec<_> = Records::new(&bytes).map(Result::unwrap).collect();
        assert_eq!(back, all(&sums));
        // Cut anywhere, the records before the cut are the same and the cut is named.
        for cut in 0..bytes.len() {
            let found: Vec<_> = Records::new(&bytes[..cut]).collect();
            let good = found.iter().filter(|record| record.is_ok()).count();
            assert!(found[..good].iter().flatten().eq(back[..good].iter()), "cut at {cut}");
            assert!(found[good..].iter().all(|fault| *fault == Err(RecordError::Cut)));
        }
    }

    #[test]
    fn a_record_outside_its_object_is_refused() {
        let mut bytes = Vec::new();
        emit(&mut bytes, &Record::Clear { slot: 0, block: 1023, count: 2 });
        assert_eq!(Records::new(&bytes).next(), Some(Err(RecordError::Range)));
        bytes.clear();
        emit(&mut bytes, &Record::Units { slot: 0, index: 128, count: 1, first: None });
        assert_eq!(Records::new(&bytes).next(), Some(Err(RecordError::Range)));
        bytes.clear();
        emit(&mut bytes, &Record::VersionBase { base: VERSION_MAX + 1 });
        assert_eq!(Records::new(&bytes).next(), Some(Err(RecordError::Range)));
    }

    #[test]
    fn an_entry_is_whole_or_refused() {
        let (store, address) = ([7; 16], 65536);
        let (records, data) = (vec![1; 5000], vec![2; 8192]);
        let mut entry = vec![0xee; entry_length(records.len(), data.len())];
        seal(&mut entry, EntryHeader::new(1, 2, 1), store, address, &records, &data);
        assert_eq!(entry.len(), 4 * 4096);
        let header = EntryHeader::parse(&entry[..4096], store, address).unwrap();
        let (found_records, found_data) = header.open(&entry).unwrap();
        assert_eq!((found_records.bytes, found_data), (&records[..], &data[..]));
        assert!(EntryHeader::parse(&entry, store, 0).is_err());
        assert!(EntryHeader::parse(&entry, [8; 16], address).is_err());
        for byte in [100, 4095, 5096, 8191, 8192, 16383] {
            let mut torn = entry.clone();
            torn[byte] ^= 0x80;
            let header = EntryHeader::parse(&torn, store, address).unwrap();
            assert!(matches!(header.open(&torn), Err(PageFault::Checksum)), "byte {byte}");
        }
        let mut lying = entry.clone();
        lying[64] = 0xff;
        assert!(matches!(EntryHeader::parse(&lying, store, address), Err(PageFault::Field)));
    }
}
