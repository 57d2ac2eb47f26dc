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
/// What a discarded byte reads as on a disk with a seed.
const DISCARDED: u8 = 0xd5;
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
    /// Of a read: its bytes are in the buffer already, as they were when it was enqueued.
    is_early: bool,
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
    /// The ones whose bit is set are there, the oldest first; one of the others may be torn as
    /// the seed gives. So every outcome can be asked for.
    Writes { kept: u64, torn: Option<u32>, seed: u64 },
}

#[derive(Debug)]
pub struct MemoryDisk {
    length: u64,
    cache: Cache,
    /// Bytes that a cut never tears.
    atomic_write_size: u32,
    /// Counts changes of what a cut may leave.
    outcome: u64,
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
    /// Draws which reads get their bytes early, and when nothing ends. Apart, so that the order of
    /// ends is another matter.
    early: Seed,
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
            atomic_write_size: SECTOR_SIZE,
            outcome: 0,
            current: vec![None; blocks],
            durable: Vec::new(),
            unflushed: VecDeque::new(),
            unflushed_first: 0,
            queue: Vec::new(),
            queue_depth: 1024,
            seed: None,
            early: Seed(0),
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
        self.early = Seed(seed ^ 0xea51);
    }

    /// How many requests fit the queue.
    pub fn set_queue_depth(&mut self, depth: usize) {
        self.queue_depth = depth.max(1);
    }

    /// Has a cut tear writes only between pieces of this many bytes, a multiple of the sector.
    pub fn set_atomic_write_size(&mut self, size: u32) {
        self.atomic_write_size = size.max(SECTOR_SIZE);
    }

    /// Writes and discards that a cut may lose, those on their way included.
    pub fn volatile_writes(&self) -> usize {
        self.unflushed.len() + self.queue.iter().filter(|pending| pending.write.is_some()).count()
    }

    /// A number that is another one whenever a cut may leave something else than before.
    pub const fn outcome(&self) -> u64 {
        self.outcome
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
        after.atomic_write_size = self.atomic_write_size;
        let mut seed = Seed(match cut {
            Cut::Any(seed) | Cut::Writes { seed, .. } => seed,
            Cut::Lose | Cut::Keep => 0,
        });
        let in_flight = self.queue.iter().filter_map(|pending| pending.write.as_ref());
        for (index, write) in (0_u32..).zip(self.unflushed.iter().chain(in_flight)) {
            let fate = match cut {
                Cut::Lose => 0,
                Cut::Keep => 1,
                Cut::Any(_) => seed.below(4),
                Cut::Writes { torn, .. } if torn == Some(index) => 2,
                Cut::Writes { kept, .. } => kept.checked_shr(index).unwrap_or(0) & 1,
            };
            match fate {
                0 => {}
                1 => put(&mut after.current, write.offset, &write.bytes),
                _ => tear(&mut after.current, write, self.atomic_write_size, &mut seed),
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

    /// Gives some reads their bytes at once, so that a write which is on its way with a read, and
    /// ends first, need not be in what that read found.
    fn read_early(&mut self, request: &mut DiskRequest) -> bool {
        if self.seed.is_none() || self.check(request).is_err() {
            return false;
        }
        let DiskRequest::Read { offset, buffer } = request else { return false };
        if !self.early.one_in(2) {
            return false;
        }
        copy_out(&self.current, *offset, buffer.as_bytes_mut());
        true
    }

    /// Carries out one request.
    fn finish(&mut self, pending: Pending) -> DiskCompletion {
        let Pending { tag, request, write, covers, fault, is_early } = pending;
        let mut result = self.check(&request);
        if let Some(Fault::Fail(error)) = fault {
            result = Err(error);
        }
        let buffer = match request {
            DiskRequest::Read { offset, mut buffer } => {
                if result.is_ok() {
                    if !is_early {
                        copy_out(&self.current, offset, buffer.as_bytes_mut());
                    }
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
                match write {
                    Some(write) if result.is_ok() => self.keep_write(write),
                    None if result.is_ok() => self.discard(offset, length),
                    Some(_) | None => {}
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
        if let Some(write) = write {
            self.keep_write(write);
        }
    }

    fn keep_write(&mut self, write: Write) {
        self.outcome += 1;
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
            self.outcome += 1;
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

    /// What a write will leave, with its fault worked in. A discarded range may read as anything,
    /// so a disk with a seed writes nonsense to it.
    fn prepare(&self, request: &DiskRequest, fault: Option<Fault>) -> Option<Write> {
        self.seed.as_ref()?;
        let (offset, buffer) = match request {
            DiskRequest::Write { offset, buffer } => (offset, buffer),
            DiskRequest::Discard { offset, length } => {
                self.check(request).ok()?;
                let length = usize::try_from(*length).ok()?;
                return Some(Write { offset: *offset, bytes: Arc::from(vec![DISCARDED; length]) });
            }
            DiskRequest::Read { .. } | DiskRequest::Flush => return None,
        };
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
            atomic_write_size: self.atomic_write_size,
            has_discard: true,
        }
    }

    fn enqueue(&mut self, tag: DiskTag, mut request: DiskRequest) -> Result<(), DiskRequest> {
        if self.queue.len() >= self.queue_depth {
            return Err(request);
        }
        let is_early = self.read_early(&mut request);
        let fault = if self.rules.is_empty() { None } else { self.fault_for(&request) };
        let write = self.prepare(&request, fault);
        let covers = self.unflushed_first + self.unflushed.len() as u64;
        self.outcome += u64::from(write.is_some());
        self.queue.push(Pending { tag, request, write, covers, fault, is_early });
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
        // Now and then nothing ends although something is on its way, as on any disk.
        if self.queue.is_empty() || self.early.one_in(4) {
            return;
        }
        let pick = usize::try_from(seed.below(self.queue.len() as u64)).unwrap_or(0);
        let pending = self.queue.swap_remove(pick);
        let done = self.finish(pending);
        into.push(done);
    }

    fn lends(&self) -> bool {
        true
    }

    /// Inside of one block, since blocks lie apart. Faults of reads are those of requests.
    fn view(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let block = usize::try_from(offset / BLOCK_SIZE as u64).ok()?;
        let inside = usize::try_from(offset % BLOCK_SIZE as u64).ok()?;
        self.current.get(block)?.as_ref()?.0.get(inside..inside.checked_add(length)?)
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

/// Writes some pieces of a write: a prefix, or any. Pieces end where the disk's do.
fn tear(pages: &mut Pages, write: &Write, piece: u32, seed: &mut Seed) {
    let piece = piece as usize;
    let sectors = write.bytes.chunks(piece).enumerate();
    let count = sectors.len() as u64;
    let prefix = if seed.one_in(2) { Some(seed.below(count + 1)) } else { None };
    for (index, bytes) in sectors {
        let is_kept = match prefix {
            Some(prefix) => (index as u64) < prefix,
            None => seed.one_in(2),
        };
        if is_kept {
            put(pages, write.offset + (index * piece) as u64, bytes);
        }
    }
}

const _: () = assert!(SECTORS_PER_BLOCK == 8, "a block is torn in eight at most");

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
