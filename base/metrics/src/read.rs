// SPDX-License-Identifier: Apache-2.0
//! The readers' side: copies and checks, trusts nothing.
//!
//! It reads the file instead of mapping it: a mapped file that its owner cuts would end the
//! reader with a bus error.

use crate::histogram::{BUCKETS, Histogram};
use crate::layout::{
    AT_BUCKETS, AT_COUNTERS, AT_COUNTS, AT_GENERATION, AT_HISTOGRAMS, AT_ID, AT_KIND, AT_POOL,
    AT_PROCESS, AT_RATE, AT_SLOT_SIZE, AT_SLOTS, AT_STARTED, AT_VERSION, COUNTERS, HEADER_SIZE,
    Kind, MAGIC, OPERATIONS, Operation, SLOT_SIZE, SLOTS_MAX, VERSION,
};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the metrics file {path:?} cannot be opened: name the one in the run folder")]
    Open { path: PathBuf, source: io::Error },
    #[error("the metrics file cannot be read")]
    Io { source: io::Error },
    #[error("this is no metrics file, or its process has not finished making it")]
    Magic,
    #[error("the metrics file has version {version}, this program reads {VERSION}")]
    Version { version: u32 },
    #[error("the metrics file contradicts itself: {what} is {value}")]
    Layout { what: &'static str, value: u64 },
}

/// A slot as it was at one time. Counters of one row are of slightly different moments.
#[derive(Clone, Debug)]
pub struct Row {
    pub kind: Kind,
    pub pool: u32,
    pub id: u64,
    pub counters: [u64; COUNTERS],
    histograms: [Histogram; OPERATIONS],
}

impl Row {
    pub const fn histogram(&self, operation: Operation) -> &Histogram {
        &self.histograms[operation as usize]
    }
}

/// The whole file at about one time.
#[derive(Clone, Debug)]
pub struct Picture {
    pub process: u32,
    /// Milliseconds since 1970.
    pub started_at: u64,
    /// Ticks of the histograms in a second.
    pub rate: u64,
    pub rows: Vec<Row>,
    /// Slots that changed owners again and again while they were read, or made no sense.
    pub unread: u32,
}

impl Picture {
    /// Nanoseconds of a histogram's value.
    pub fn nanoseconds(&self, ticks: u64) -> u64 {
        let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(self.rate.max(1));
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(long)
}

fn is(header: &[u8], at: usize, wanted: usize) -> bool {
    word(header, at) as usize == wanted
}

/// How often a slot is read again that changed its owner meanwhile.
const TRIES: u32 = 4;

pub fn read_path(path: &Path) -> Result<Picture, ReadError> {
    let file = File::open(path).map_err(|source| ReadError::Open { path: path.into(), source })?;
    read(&file)
}

pub fn read(file: &File) -> Result<Picture, ReadError> {
    let io = |source| ReadError::Io { source };
    let mut header = [0; HEADER_SIZE];
    file.read_exact_at(&mut header, 0).map_err(io)?;
    if header[..MAGIC.len()] != MAGIC {
        return Err(ReadError::Magic);
    }
    let version = word(&header, AT_VERSION);
    if version != VERSION {
        return Err(ReadError::Version { version });
    }
    let slots = word(&header, AT_SLOTS);
    for (what, value, is_right) in [
        ("the number of slots", slots, slots <= SLOTS_MAX),
        ("the size of a slot", word(&header, AT_SLOT_SIZE), is(&header, AT_SLOT_SIZE, SLOT_SIZE)),
        ("the number of counters", word(&header, AT_COUNTERS), is(&header, AT_COUNTERS, COUNTERS)),
        ("the number of buckets", word(&header, AT_BUCKETS), is(&header, AT_BUCKETS, BUCKETS)),
    ] {
        if !is_right {
            return Err(ReadError::Layout { what, value: u64::from(value) });
        }
    }
    let rate = long(&header, AT_RATE);
    if rate == 0 {
        return Err(ReadError::Layout { what: "the rate of the clock", value: rate });
    }
    let (process, started_at) = (word(&header, AT_PROCESS), long(&header, AT_STARTED));
    let mut picture = Picture { process, started_at, rate, rows: Vec::new(), unread: 0 };
    let mut bytes = vec![0; SLOT_SIZE];
    for slot in 0..slots {
        let at = HEADER_SIZE as u64 + u64::from(slot) * SLOT_SIZE as u64;
        match read_slot(file, at, &mut bytes).map_err(io)? {
            Found::Nothing => {}
            Found::Row(row) => picture.rows.push(*row),
            Found::Nonsense => picture.unread += 1,
        }
    }
    Ok(picture)
}

enum Found {
    Nothing,
    Row(Box<Row>),
    Nonsense,
}

fn read_slot(file: &File, at: u64, bytes: &mut [u8]) -> io::Result<Found> {
    let mut generation = [0; 8];
    for _ in 0..TRIES {
        file.read_exact_at(&mut generation, at + AT_GENERATION as u64)?;
        let before = u64::from_le_bytes(generation);
        if before.is_multiple_of(2) {
            return Ok(Found::Nothing);
        }
        file.read_exact_at(bytes, at)?;
        file.read_exact_at(&mut generation, at + AT_GENERATION as u64)?;
        if u64::from_le_bytes(generation) == before {
            return Ok(row(bytes).map_or(Found::Nonsense, |row| Found::Row(Box::new(row))));
        }
    }
    Ok(Found::Nonsense)
}

fn row(bytes: &[u8]) -> Option<Row> {
    let kind = match word(bytes, AT_KIND) {
        1 => Kind::Attachment,
        2 => Kind::Disk,
        _ => return None,
    };
    let counters = std::array::from_fn(|index| long(bytes, AT_COUNTS + index * 8));
    let histograms = std::array::from_fn(|operation| {
        let base = AT_HISTOGRAMS + operation * BUCKETS * 8;
        Histogram::new((0..BUCKETS).map(|bucket| long(bytes, base + bucket * 8)).collect())
    });
    Some(Row { kind, pool: word(bytes, AT_POOL), id: long(bytes, AT_ID), counters, histograms })
}
