// SPDX-License-Identifier: Apache-2.0
//! What differs between two snapshots of a volume, as a file: `docs/formats/volume-delta.md`.
//!
//! ```text
//!   header 256 │ head 32 │ data │ head 32 │ data │ head 32 (zeros) │ … │ head 32 (end)
//! ```
//!
//! A file is judged as it is read, front to back, with the memory of one record.

use crate::page::crc32c;

/// Bytes of the header.
pub const DELTA_HEADER: usize = 256;
/// Bytes of a record's head.
pub const DELTA_HEAD: usize = 32;
/// The most bytes of data in one record.
pub const DELTA_DATA_MAX: u64 = 1 << 20;

const MAGIC: [u8; 8] = *b"PLNdelta";
const VERSION: u32 = 1;
const SECTOR: u64 = 512;

/// A snapshot, as a delta names it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DeltaEnd {
    /// What it is known by in any pool.
    pub identity: [u8; 16],
    /// Of the volume, in bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub created_at: u64,
    /// At most 63 bytes.
    pub name: String,
}

/// What a delta is from and to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeltaHeader {
    /// `None`: from nothing, the whole contents.
    pub base: Option<DeltaEnd>,
    pub end: DeltaEnd,
}

/// Why bytes are not a delta that can be taken in.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeltaFault {
    #[error("the file ends inside its header or a record: it was cut off")]
    Short,
    #[error("this is no volume delta")]
    Magic,
    #[error("the delta has version {version}; this store reads {VERSION}")]
    Version { version: u32 },
    #[error("the header does not match its checksum, or names no volume that can be")]
    Header,
    #[error("record {number} does not match its checksum, or is another file's")]
    Checksum { number: u64 },
    #[error("record {number} is of no kind that this store knows")]
    Kind { number: u64 },
    #[error("record {number} is not behind the one before it, or not inside the volume")]
    Range { number: u64 },
    #[error("the records are not as many as the last one says")]
    Count,
    #[error("something follows the last record")]
    Trailing,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes[at..at + 8].try_into().expect("eight bytes were cut out");
    u64::from_le_bytes(bytes)
}

fn short(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were cut out"))
}

impl DeltaEnd {
    fn emit(&self, bytes: &mut [u8; DELTA_HEADER], place: usize) {
        bytes[16 + 16 * place..][..16].copy_from_slice(&self.identity);
        bytes[48 + 8 * place..][..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[64 + 8 * place..][..8].copy_from_slice(&self.created_at.to_le_bytes());
        let name = &self.name.as_bytes()[..self.name.len().min(63)];
        bytes[80 + 64 * place] = u8::try_from(name.len()).expect("63 at most");
        bytes[81 + 64 * place..][..name.len()].copy_from_slice(name);
    }

    fn parse(bytes: &[u8; DELTA_HEADER], place: usize) -> Option<Self> {
        let length = usize::from(bytes[80 + 64 * place]);
        let name = bytes[81 + 64 * place..][..63].get(..length)?;
        let size = number(bytes, 48 + 8 * place);
        Some(Self {
            identity: bytes[16 + 16 * place..][..16].try_into().ok()?,
            size: Some(size).filter(|size| size.is_multiple_of(SECTOR))?,
            created_at: number(bytes, 64 + 8 * place),
            name: String::from_utf8(name.to_vec()).ok()?,
        })
    }
}

impl DeltaHeader {
    pub fn emit(&self) -> [u8; DELTA_HEADER] {
        let mut bytes = [0; DELTA_HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        if let Some(base) = &self.base {
            base.emit(&mut bytes, 0);
        }
        self.end.emit(&mut bytes, 1);
        let crc = crc32c(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// # Errors
    /// What is wrong with the bytes.
    pub fn parse(bytes: &[u8; DELTA_HEADER]) -> Result<Self, DeltaFault> {
        if bytes[..8] != MAGIC {
            return Err(DeltaFault::Magic);
        }
        let version = short(bytes, 8);
        if version != VERSION {
            return Err(DeltaFault::Version { version });
        }
        if short(bytes, 12) != crc32c(&bytes[16..]) {
            return Err(DeltaFault::Header);
        }
        let base = DeltaEnd::parse(bytes, 0).ok_or(DeltaFault::Header)?;
        let end = DeltaEnd::parse(bytes, 1).ok_or(DeltaFault::Header)?;
        let base = (base.identity != [0; 16]).then_some(base);
        let shrinks = base.as_ref().is_some_and(|base| base.size > end.size);
        if shrinks || end.size == 0 || end.identity == [0; 16] {
            return Err(DeltaFault::Header);
        }
        Ok(Self { base, end })
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeltaKind {
    /// These bytes, which follow.
    Data,
    /// Zeros.
    Zero,
    /// Nothing more: `offset` is the number of records before, `length` that of data bytes.
    End,
}

/// What stands before each record's data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeltaRecord {
    pub kind: DeltaKind,
    /// Of the volume, in bytes.
    pub offset: u64,
    pub length: u64,
}

impl DeltaRecord {
    /// Bytes that follow the head.
    pub fn data_length(&self) -> u64 {
        if self.kind == DeltaKind::Data { self.length } else { 0 }
    }
}

/// Goes along a delta, written or read, and knows what may come next.
#[derive(Clone, Debug)]
pub struct DeltaScan {
    /// The header's checksum, which every record's covers: records of two files do not mix.
    seed: u32,
    size: u64,
    next: u64,
    records: u64,
    data: u64,
    is_over: bool,
}

impl DeltaScan {
    /// # Errors
    /// As [`DeltaHeader::parse`].
    pub fn new(header: &[u8; DELTA_HEADER]) -> Result<Self, DeltaFault> {
        let size = DeltaHeader::parse(header)?.end.size;
        let seed = short(header, 12);
        Ok(Self { seed, size, next: 0, records: 0, data: 0, is_over: false })
    }

    /// Whether the last record was seen.
    pub const fn is_over(&self) -> bool {
        self.is_over
    }

    /// The head of the next record.
    pub fn emit(
        &mut self,
        kind: DeltaKind,
        (offset, length): (u64, u64),
        data: &[u8],
    ) -> [u8; DELTA_HEAD] {
        let mut head = [0; DELTA_HEAD];
        let code: u32 = match kind {
            DeltaKind::Data => 1,
            DeltaKind::Zero => 2,
            DeltaKind::End => 3,
        };
        head[..4].copy_from_slice(&code.to_le_bytes());
        head[8..16].copy_from_slice(&offset.to_le_bytes());
        head[16..24].copy_from_slice(&length.to_le_bytes());
        head[24..32].copy_from_slice(&self.records.to_le_bytes());
        let crc = self.checksum(&head, data);
        head[4..8].copy_from_slice(&crc.to_le_bytes());
        self.go_on(DeltaRecord { kind, offset, length });
        head
    }

    /// The head of the last record.
    pub fn emit_end(&mut self) -> [u8; DELTA_HEAD] {
        let counts = (self.records, self.data);
        self.emit(DeltaKind::End, counts, &[])
    }

    /// Judges a head by itself, so that its reader knows how much data follows.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn parse(&self, head: &[u8; DELTA_HEAD]) -> Result<DeltaRecord, DeltaFault> {
        let (count, offset, length) = (self.records, number(head, 8), number(head, 16));
        if self.is_over {
            return Err(DeltaFault::Trailing);
        }
        if number(head, 24) != count {
            return Err(DeltaFault::Checksum { number: count });
        }
        let kind = match short(head, 0) {
            1 => DeltaKind::Data,
            2 => DeltaKind::Zero,
            3 => DeltaKind::End,
            _ => return Err(DeltaFault::Kind { number: count }),
        };
        if kind == DeltaKind::End {
            let is_right = (offset, length) == (count, self.data);
            return if is_right {
                Ok(DeltaRecord { kind, offset, length })
            } else {
                Err(DeltaFault::Count)
            };
        }
        let end = offset.checked_add(length).filter(|&end| end <= self.size);
        let is_whole = offset.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR);
        let fits = kind == DeltaKind::Zero || length <= DELTA_DATA_MAX;
        if end.is_none() || length == 0 || offset < self.next || !is_whole || !fits {
            return Err(DeltaFault::Range { number: count });
        }
        Ok(DeltaRecord { kind, offset, length })
    }

    /// Takes a record in that [`DeltaScan::parse`] let through, with its data.
    ///
    /// # Errors
    /// `Checksum` when they do not match.
    pub fn accept(
        &mut self,
        head: &[u8; DELTA_HEAD],
        record: DeltaRecord,
        data: &[u8],
    ) -> Result<(), DeltaFault> {
        if short(head, 4) != self.checksum(head, data) {
            return Err(DeltaFault::Checksum { number: self.records });
        }
        self.go_on(record);
        Ok(())
    }

    fn go_on(&mut self, record: DeltaRecord) {
        self.is_over = record.kind == DeltaKind::End;
        self.next = record.offset.saturating_add(record.length);
        self.records += 1;
        self.data += record.data_length();
    }

    fn checksum(&self, head: &[u8; DELTA_HEAD], data: &[u8]) -> u32 {
        let mut words = [0; 12];
        words[..4].copy_from_slice(&self.seed.to_le_bytes());
        words[4..8].copy_from_slice(&head[..4]);
        words[8..].copy_from_slice(&crc32c(&head[8..]).to_le_bytes());
        crc32c(&words) ^ crc32c(data).rotate_left(1)
    }
}

/// Judges a whole delta.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn judge_delta(bytes: &[u8]) -> Result<DeltaHeader, DeltaFault> {
    let (first, mut rest) = bytes.split_first_chunk().ok_or(DeltaFault::Short)?;
    let header = DeltaHeader::parse(first)?;
    let mut scan = DeltaScan::new(first)?;
    while !scan.is_over() {
        let (head, behind) = rest.split_first_chunk().ok_or(DeltaFault::Short)?;
        let record = scan.parse(head)?;
        let length = usize::try_from(record.data_length()).map_err(|_| DeltaFault::Short)?;
        let (data, behind) = behind.split_at_checked(length).ok_or(DeltaFault::Short)?;
        scan.accept(head, record, data)?;
        rest = behind;
    }
    if rest.is_empty() { Ok(header) } else { Err(DeltaFault::Trailing) }
}

/// For fuzzing: judges bytes as they are, and once more with every checksum mended, so that what
/// stands behind the checksums is reached.
///
/// # Panics
/// Never: that is what it is for.
pub fn fuzz_delta(bytes: &[u8]) {
    let _ = judge_delta(bytes);
    let Some((first, mut rest)) = bytes.split_first_chunk::<DELTA_HEADER>() else { return };
    let mut first = *first;
    first[..8].copy_from_slice(&MAGIC);
    first[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32c(&first[16..]);
    first[12..16].copy_from_slice(&crc.to_le_bytes());
    let Ok(mut scan) = DeltaScan::new(&first) else { return };
    while let Some((head, behind)) = rest.split_first_chunk::<DELTA_HEAD>() {
        let mut head = *head;
        head[24..32].copy_from_slice(&scan.records.to_le_bytes());
        let Ok(record) = scan.parse(&head) else { return };
        let Ok(length) = usize::try_from(record.data_length()) else { return };
        let Some((data, behind)) = behind.split_at_checked(length) else { return };
        let crc = scan.checksum(&head, data);
        head[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(scan.accept(&head, record, data), Ok(()), "the checksum was just made");
        assert!(scan.is_over() || scan.next <= scan.size, "no record leaves the volume");
        rest = behind;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(byte: u8, size: u64) -> DeltaEnd {
        let name = format!("day-{byte}");
        DeltaEnd { identity: [byte; 16], size, created_at: 1000 + u64::from(byte), name }
    }

    fn sample() -> Vec<u8> {
        let header = DeltaHeader { base: Some(end(1, 8192)), end: end(2, 16_384) };
        let first = header.emit();
        let mut scan = DeltaScan::new(&first).unwrap();
        let mut bytes = first.to_vec();
        let data: Vec<u8> = (0..=250).cycle().take(1024).collect();
        bytes.extend(scan.emit(DeltaKind::Data, (512, 1024), &data));
        bytes.extend(&data);
        bytes.extend(scan.emit(DeltaKind::Zero, (4096, 8192), &[]));
        bytes.extend(scan.emit_end());
        bytes
    }

    #[test]
    fn a_delta_is_what_it_was() {
        let header = judge_delta(&sample()).unwrap();
        assert_eq!(header.base, Some(end(1, 8192)));
        assert_eq!(header.end, end(2, 16_384));
    }

    #[test]
    fn the_bytes_are_those_of_version_1() {
        assert_eq!(sample(), include_bytes!("../tests/golden/delta-1.bin"));
    }

    #[test]
    fn a_delta_that_is_cut_off_or_changed_anywhere_is_refused() {
        let good = sample();
        for length in 0..good.len() {
            assert_eq!(judge_delta(&good[..length]), Err(DeltaFault::Short), "{length}");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(judge_delta(&bad).is_err(), "bit {bit} of byte {at}");
            }
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(judge_delta(&longer), Err(DeltaFault::Trailing));
    }

    #[test]
    fn records_that_go_back_or_leave_the_volume_are_refused() {
        let first = DeltaHeader { base: None, end: end(2, 16_384) }.emit();
        let with = |records: &[(DeltaKind, u64, u64)]| {
            let mut scan = DeltaScan::new(&first).unwrap();
            let mut bytes = first.to_vec();
            for &(kind, offset, length) in records {
                bytes.extend(scan.emit(kind, (offset, length), &[]));
            }
            bytes.extend(scan.emit_end());
            judge_delta(&bytes).map(|_| ())
        };
        let zero = DeltaKind::Zero;
        assert_eq!(with(&[(zero, 0, 512), (zero, 512, 512)]), Ok(()));
        assert_eq!(with(&[(zero, 512, 512), (zero, 0, 512)]), Err(DeltaFault::Range { number: 1 }));
        for (offset, length) in [(16_384, 512), (0, 0), (1, 512), (512, 100), (u64::MAX - 511, 512)]
        {
            assert_eq!(with(&[(zero, offset, length)]), Err(DeltaFault::Range { number: 0 }));
        }
        let huge = [(DeltaKind::Data, 0, DELTA_DATA_MAX + 512)];
        assert_eq!(with(&huge), Err(DeltaFault::Range { number: 0 }));
        let mut other = first;
        other[8] = 2;
        assert_eq!(judge_delta(&other), Err(DeltaFault::Version { version: 2 }));
        assert_eq!(judge_delta(&[0; 300]), Err(DeltaFault::Magic));
    }
}
