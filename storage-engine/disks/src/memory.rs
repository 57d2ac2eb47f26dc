// SPDX-License-Identifier: Apache-2.0
//! A disk in memory that fails on request.
//!
//! ```text
//!   enqueue ──▶ in flight ── complete, in any order ──▶ cache ── flush ──▶ durable
//!                   └──────────── cut ───┬────────────────┘
//!                                        ▼
//!                  a new disk: durable, and of each other write all, some sectors or nothing
//! ```
//!
//! Without a seed requests end at once and in order and nothing is remembered twice: what is
//! left is the cost of copying, for measuring what stands on the disk. With a seed the disk
//! ends requests one by one in an order that the seed gives, keeps what is durable apart from what
//! is merely written, and can be cut off at any moment. Equal seeds and equal requests give
//! equal histories.

use plinth_store::{
    BLOCK_SIZE, Block, Disk, DiskCompletion, DiskError, DiskGeometry, DiskRequest, DiskTag,
    IoBuffer,
};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

const SECTOR_SIZE: u32 = 512;
const SECTOR: usize = SECTOR_SIZE as usize;
const SECTORS_PER_BLOCK: u64 = (BLOCK_SIZE / SECTOR) as u64;

/// A small generator of numbers: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Seed(pub u64);

impl Seed {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// Blocks that two disks may share until one of them writes.
type Pages = Vec<Option<Arc<Block>>>;

#[derive(Clone, Debug)]
struct Write {
    offset: u64,
    bytes: Arc<[u8]>,
}

#[derive(Debug)]
struct Pending {
    tag: DiskTag,
    request: DiskRequest,
    /// Of a write: what a cut may leave on the disk, and where it goes.
    write: Option<Write>,
    /// Of a flush: writes that had completed when it was enqueued.
    covers: u64,
    fault: Option<Fault>,
}

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The request fails.
    Fail(DiskError),
    /// A write is said to be done and is not.
    Lose,
    /// A write goes to another place.
    Misdirect { offset: u64 },
    /// One bit of what is read or written is wrong.
    Corrupt { bit: u64 },
}

/// When a fault happens: for requests of this kind that touch these bytes, after so many that
/// did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FaultRule {
    pub is_write: bool,
    pub bytes: Range<u64>,
    pub skip: u32,
    /// How many requests it happens to.
    pub times: u32,
    pub fault: Fault,
}

/// How much the disk's cache promises.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Cache {
    /// What was not flushed may be lost.
    #[default]
    Volatile,
    /// What completed is durable.
    Protected,
}

/// What a cut does to the writes that are not durable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cut {
    /// All are lost.
    Lose,
    /// All are there.
    Keep,
    /// Each is lost, kept or torn between sectors, as the seed gives.
    Any(u64),
}

#[derive(Debug)]
pub struct MemoryDisk {
    length: u64,
    cache: Cache,
    /// What a read sees.
    current: Pages,
    /// What a cut leaves at least. Empty without a seed.
    durable: Pages,
    /// Completed writes that are not durable, oldest first; the first one's number.
    unflushed: VecDeque<Write>,
    unflushed_first: u64,
    queue: Vec<Pending>,
    queue_depth: usize,
    seed: Option<Seed>,
    rules: Vec<FaultRule>,
    writes_completed: u64,
    flushes_completed: u64,
    /// Skips the flushes, every one: for a test that must notice.
    ignores_flushes: bool,
}

impl MemoryDisk {
    /// A disk that ends every request at once.
    pub fn new(length: u64) -> Self {
        let blocks = usize::try_from(length.div_ceil(BLOCK_SIZE as u64)).unwrap_or(usize::MAX);
        Self {
            length,
            cache: Cache::Volatile,
            current: vec![None; blocks],
            durable: Vec::new(),
            unflushed: VecDeque::new(),
            unflushed_first: 0,
            queue: Vec::new(),
            queue_depth: 1024,
            seed: None,
            rules: Vec::new(),
            writes_completed: 0,
            flushes_completed: 0,
            ignores_flushes: false,
        }
    }

    /// A disk that ends requests one by one, in any order, and can be cut.
    pub fn with_seed(length: u64, cache: Cache, seed: u64) -> Self {
        let mut disk = Self::new(length);
        disk.restart(cache, seed);
        disk
    }

    /// Remembers from here on what is durable; everything there is now is.
    pub fn restart(&mut self, cache: Cache, seed: u64) {
        self.cache = cache;
        self.durable = self.current.clone();
        self.unflushed.clear();
        self.seed = Some(Seed(seed));
    }

    /// How many requests fit the queue.
    pub fn set_queue_depth(&mut self, depth: usize) {
        self.queue_depth = depth.max(1);
    }

    pub fn add_rule(&mut self, rule: FaultRule) {
        self.rules.push(rule);
    }

    /// Answers flushes without flushing.
    pub fn ignore_flushes(&mut self) {
        self.ignores_flushes = true;
    }

    pub fn writes_completed(&self) -> u64 {
        self.writes_completed
    }

    pub fn flushes_completed(&self) -> u64 {
        self.flushes_completed
    }

    /// Writes past the queue and the cache, as decay and other programs do.
    pub fn overwrite(&mut self, offset: u64, bytes: &[u8]) {
        put(&mut self.current, offset, bytes);
        if self.seed.is_some() {
            put(&mut self.durable, offset, bytes);
        }
    }

    /// Reads past the queue.
    pub fn peek(&self, offset: u64, into: &mut [u8]) {
        copy_out(&self.current, offset, into);
    }

    /// The disk that a power cut at this moment may leave. This one goes on.
    ///
    /// # Panics
    /// If the disk has no seed: it does not remember what is durable.
    pub fn cut(&self, cut: Cut) -> Self {
        assert!(self.seed.is_some(), "a disk without a seed does not know what is durable");
        let mut after = Self::new(self.length);
        after.current = self.durable.clone();
        let mut seed = Seed(match cut {
            Cut::Any(seed) => seed,
            Cut::Lose | Cut::Keep => 0,
        });
        let in_flight = self.queue.iter().filter_map(|pending| pending.write.as_ref());
        for write in self.unflushed.iter().chain(in_flight) {
            let fate = match cut {
                Cut::Lose => 0,
                Cut::Keep => 1,
                Cut::Any(_) => seed.below(4),
            };
            match fate {
                0 => {}
                1 => put(&mut after.current, write.offset, &write.bytes),
                _ => tear(&mut after.current, write, &mut seed),
            }
        }
        after
    }

    fn check(&self, request: &DiskRequest) -> Result<(), DiskError> {
        let (offset, length) = match request {
            DiskRequest::Read { offset, buffer } | DiskRequest::Write { offset, buffer } => {
                (*offset, buffer.length() as u64)
            }
            DiskRequest::Discard { offset, length } => (*offset, *length),
            DiskRequest::Flush => (0, 0),
        };
        let end = offset.saturating_add(length);
        let sector = SECTOR as u64;
        if end > self.length || !offset.is_multiple_of(sector) || !length.is_multiple_of(sector) {
            return Err(DiskError::OutOfRange { offset, end });
        }
        Ok(())
    }

    fn fault_for(&mut self, request: &DiskRequest) -> Option<Fault> {
        let (offset, length, is_write) = match request {
            DiskRequest::Read { offset, buffer } => (*offset, buffer.length() as u64, false),
            DiskRequest::Write { offset, buffer } => (*offset, buffer.length() as u64, true),
            DiskRequest::Flush | DiskRequest::Discard { .. } => return None,
        };
        for rule in &mut self.rules {
            let touches = rule.bytes.start < offset + length && offset < rule.bytes.end;
            if rule.is_write != is_write || !touches || rule.times == 0 {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times -= 1;
            return Some(rule.fault);
        }
        None
    }

    /// Carries out one request.
    fn finish(&mut self, pending: Pending) -> DiskCompletion {
        let Pending { tag, request, write, covers, fault } = pending;
        let mut result = self.check(&request);
        if let Some(Fault::Fail(error)) = fault {
            result = Err(error);
        }
        let buffer = match request {
            DiskRequest::Read { offset, mut buffer } => {
                if result.is_ok() {
                    copy_out(&self.current, offset, buffer.as_bytes_mut());
                    if let Some(Fault::Corrupt { bit }) = fault {
                        flip(buffer.as_bytes_mut(), bit);
                    }
                }
                Some(buffer)
            }
            DiskRequest::Write { offset, buffer } => {
                if result.is_ok() {
                    self.finish_write(offset, &buffer, write);
                }
                Some(buffer)
            }
            DiskRequest::Flush => {
                self.flushes_completed += 1;
                if !self.ignores_flushes {
                    self.make_durable(covers);
                }
                None
            }
            DiskRequest::Discard { offset, length } => {
                if result.is_ok() {
                    self.discard(offset, length);
                }
                None
            }
        };
        DiskCompletion { tag, buffer, result }
    }

    fn finish_write(&mut self, offset: u64, buffer: &IoBuffer, write: Option<Write>) {
        self.writes_completed += 1;
        if self.seed.is_none() {
            put(&mut self.current, offset, buffer.as_bytes());
            return;
        }
        // A lost write has left nothing to remember.
        let Some(write) = write else { return };
        put(&mut self.current, write.offset, &write.bytes);
        if self.cache == Cache::Protected {
            put(&mut self.durable, write.offset, &write.bytes);
        } else {
            self.unflushed.push_back(write);
        }
    }

    fn make_durable(&mut self, covers: u64) {
        while self.unflushed_first < covers
            && let Some(write) = self.unflushed.pop_front()
        {
            put(&mut self.durable, write.offset, &write.bytes);
            self.unflushed_first += 1;
        }
    }

    fn discard(&mut self, offset: u64, length: u64) {
        let block = BLOCK_SIZE as u64;
        for index in offset.div_ceil(block)..(offset + length) / block {
            if let Some(page) = usize::try_from(index).ok().and_then(|i| self.current.get_mut(i)) {
                *page = None;
            }
        }
    }

    /// What a write will leave, with its fault worked in.
    fn prepare(&self, request: &DiskRequest, fault: Option<Fault>) -> Option<Write> {
        let DiskRequest::Write { offset, buffer } = request else { return None };
        self.seed.as_ref()?;
        let mut bytes: Arc<[u8]> = Arc::from(buffer.as_bytes());
        let mut offset = *offset;
        match fault {
            Some(Fault::Lose) => return None,
            Some(Fault::Misdirect { offset: other }) => offset = other,
            Some(Fault::Corrupt { bit }) => {
                if let Some(bytes) = Arc::get_mut(&mut bytes) {
                    flip(bytes, bit);
                }
            }
            Some(Fault::Fail(_)) | None => {}
        }
        (offset + bytes.len() as u64 <= self.length).then_some(Write { offset, bytes })
    }
}

impl Disk for MemoryDisk {
    fn geometry(&self) -> DiskGeometry {
        DiskGeometry {
            length: self.length,
            sector_size: SECTOR_SIZE,
            atomic_write_size: SECTOR_SIZE,
            has_discard: true,
        }
    }

    fn enqueue(&mut self, tag: DiskTag, request: DiskRequest) -> Result<(), DiskRequest> {
        if self.queue.len() >= self.queue_depth {
            return Err(request);
        }
        let fault = if self.rules.is_empty() { None } else { self.fault_for(&request) };
        let write = self.prepare(&request, fault);
        let covers = self.unflushed_first + self.unflushed.len() as u64;
        self.queue.push(Pending { tag, request, write, covers, fault });
        Ok(())
    }

    fn submit(&mut self) {}

    fn complete(&mut self, into: &mut Vec<DiskCompletion>) {
        if self.seed.is_none() {
            let mut queue = std::mem::take(&mut self.queue);
            for pending in queue.drain(..) {
                let done = self.finish(pending);
                into.push(done);
            }
            self.queue = queue;
            return;
        }
        let Some(seed) = &mut self.seed else { return };
        if self.queue.is_empty() {
            return;
        }
        let pick = usize::try_from(seed.below(self.queue.len() as u64)).unwrap_or(0);
        let pending = self.queue.swap_remove(pick);
        let done = self.finish(pending);
        into.push(done);
    }
}

fn flip(bytes: &mut [u8], bit: u64) {
    let at = usize::try_from(bit / 8).unwrap_or(0) % bytes.len();
    bytes[at] ^= 1 << (bit % 8);
}

/// Visits the parts of a range that lie in one block each: block, bytes in it, bytes in the range.
fn split(offset: u64, length: usize, mut visit: impl FnMut(usize, Range<usize>, Range<usize>)) {
    let mut at = 0;
    while at < length {
        let position = offset + at as u64;
        let inside = usize::try_from(position % BLOCK_SIZE as u64).unwrap_or(0);
        let block = usize::try_from(position / BLOCK_SIZE as u64).unwrap_or(usize::MAX);
        let count = (BLOCK_SIZE - inside).min(length - at);
        visit(block, inside..inside + count, at..at + count);
        at += count;
    }
}

fn put(pages: &mut Pages, offset: u64, bytes: &[u8]) {
    split(offset, bytes.len(), |block, inside, part| {
        let Some(place) = pages.get_mut(block) else { return };
        let page = place.get_or_insert_with(|| Arc::new(Block([0; BLOCK_SIZE])));
        Arc::make_mut(page).0[inside].copy_from_slice(&bytes[part]);
    });
}

fn copy_out(pages: &Pages, offset: u64, into: &mut [u8]) {
    let length = into.len();
    split(offset, length, |block, inside, part| match pages.get(block) {
        Some(Some(page)) => into[part].copy_from_slice(&page.0[inside]),
        Some(None) | None => into[part].fill(0),
    });
}

/// Writes some sectors of a write: a prefix, or any.
fn tear(pages: &mut Pages, write: &Write, seed: &mut Seed) {
    let sectors = write.bytes.chunks(SECTOR).enumerate();
    let count = sectors.len() as u64;
    let prefix = if seed.one_in(2) { Some(seed.below(count + 1)) } else { None };
    for (index, bytes) in sectors {
        let is_kept = match prefix {
            Some(prefix) => (index as u64) < prefix,
            None => seed.one_in(2),
        };
        if is_kept {
            put(pages, write.offset + (index * SECTOR) as u64, bytes);
        }
    }
}

const _: () = assert!(SECTORS_PER_BLOCK == 8, "a block is torn in eight at most");

#[cfg(test)]
mod tests {
    use super::*;

    fn write(disk: &mut MemoryDisk, offset: u64, byte: u8) {
        let mut buffer = IoBuffer::zeroed(4096);
        buffer.as_bytes_mut().fill(byte);
        disk.enqueue(DiskTag(1), DiskRequest::Write { offset, buffer }).unwrap();
    }

    fn settle(disk: &mut MemoryDisk) -> Vec<Result<(), DiskError>> {
        let mut done = Vec::new();
        while !disk.queue.is_empty() {
            disk.complete(&mut done);
        }
        done.into_iter().map(|done| done.result).collect()
    }

    fn byte(disk: &MemoryDisk, offset: u64) -> u8 {
        let mut one = [0];
        disk.peek(offset, &mut one);
        one[0]
    }

    #[test]
    fn a_cut_keeps_what_was_flushed_and_may_lose_the_rest() {
        let mut disk = MemoryDisk::with_seed(1 << 20, Cache::Volatile, 1);
        write(&mut disk, 0, 1);
        settle(&mut disk);
        disk.enqueue(DiskTag(2), DiskRequest::Flush).unwrap();
        settle(&mut disk);
        write(&mut disk, 0, 2);
        write(&mut disk, 4096, 2);
        settle(&mut disk);
        assert_eq!((byte(&disk, 0), byte(&disk, 4096)), (2, 2));
        let lost = disk.cut(Cut::Lose);
        assert_eq!((byte(&lost, 0), byte(&lost, 4096)), (1, 0));
        let kept = disk.cut(Cut::Keep);
        assert_eq!((byte(&kept, 0), byte(&kept, 4096)), (2, 2));
        // Some seed keeps one write and not the other, and some seed tears one.
        let cuts: Vec<_> = (0..100).map(|seed| disk.cut(Cut::Any(seed))).collect();
        assert!(cuts.iter().any(|cut| (byte(cut, 0), byte(cut, 4096)) == (1, 2)));
        assert!(cuts.iter().any(|cut| byte(cut, 0) != byte(cut, 512)));
    }

    #[test]
    fn a_flush_covers_only_what_had_completed() {
        let mut disk = MemoryDisk::with_seed(1 << 20, Cache::Volatile, 1);
        write(&mut disk, 0, 1);
        disk.enqueue(DiskTag(2), DiskRequest::Flush).unwrap();
        settle(&mut disk);
        assert_eq!(byte(&disk.cut(Cut::Lose), 0), 0);
        let mut protected = MemoryDisk::with_seed(1 << 20, Cache::Protected, 1);
        write(&mut protected, 0, 1);
        settle(&mut protected);
        assert_eq!(byte(&protected.cut(Cut::Lose), 0), 1);
    }

    #[test]
    fn faults_hit_what_they_are_meant_for() {
        let mut disk = MemoryDisk::with_seed(1 << 20, Cache::Volatile, 1);
        let error = DiskError::Device { errno: 5 };
        let rule = |bytes, fault| FaultRule { is_write: true, bytes, skip: 0, times: 1, fault };
        disk.add_rule(rule(0..4096, Fault::Fail(error)));
        disk.add_rule(rule(4096..8192, Fault::Lose));
        disk.add_rule(rule(8192..12288, Fault::Misdirect { offset: 40960 }));
        disk.add_rule(rule(12288..16384, Fault::Corrupt { bit: 0 }));
        for block in 0..4 {
            write(&mut disk, block * 4096, 2);
        }
        let results = settle(&mut disk);
        assert_eq!(results.iter().filter(|result| **result == Err(error)).count(), 1);
        let found = [0, 4096, 8192, 40960, 12288, 12289].map(|at| byte(&disk, at));
        assert_eq!(found, [0, 0, 0, 2, 3, 2]);
        write(&mut disk, 0, 4);
        assert_eq!(settle(&mut disk), [Ok(())]);
    }

    #[test]
    fn a_request_outside_the_disk_is_refused_and_a_full_queue_gives_back() {
        let mut disk = MemoryDisk::new(8192);
        disk.set_queue_depth(1);
        write(&mut disk, 8192, 1);
        assert!(disk.enqueue(DiskTag(2), DiskRequest::Flush).is_err());
        assert_eq!(settle(&mut disk), [Err(DiskError::OutOfRange { offset: 8192, end: 12288 })]);
    }
}
