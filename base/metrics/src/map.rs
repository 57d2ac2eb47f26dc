// SPDX-License-Identifier: Apache-2.0
//! The writers' side.

use crate::histogram::{BUCKETS, bucket_of};
use crate::layout::{
    AT_BUCKETS, AT_COUNTERS, AT_COUNTS, AT_GENERATION, AT_HISTOGRAMS, AT_ID, AT_KIND, AT_POOL,
    AT_PROCESS, AT_RATE, AT_SLOT_SIZE, AT_SLOTS, AT_STARTED, AT_VERSION, COUNTERS, HEADER_SIZE,
    Kind, MAGIC, Operation, SLOT_SIZE, SLOTS_MAX, VERSION,
};
use plinth_rt::cycles;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("the metrics file {path:?} cannot be made")]
    File { path: PathBuf, source: io::Error },
    #[error("the metrics file {path:?} cannot be mapped")]
    Map { path: PathBuf, source: io::Error },
    #[error("a metrics file has 1 to {SLOTS_MAX} slots, not {slots}")]
    Slots { slots: u32 },
}

/// The mapping. Everything in it is reached through atomics only.
#[derive(Debug)]
struct Map {
    base: *mut u8,
    length: usize,
    /// Which slots have an owner.
    owned: Vec<AtomicBool>,
}

// SAFETY: the mapping is memory that stays until the last owner is gone; it is accessed through
// atomics only, which may be shared between threads.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    fn new(file: &File, length: usize, slots: u32) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address that the kernel chooses, of a file that is
        // open and was made `length` bytes long. Nobody else makes it shorter: it was made anew
        // by this process with mode 0644, and a root that cuts it ends this process only.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let owned = (0..slots).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { base: base.cast(), length, owned })
    }

    fn long(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.length);
        // SAFETY: inside the mapping, which is aligned to pages; the offset is a multiple of 8. All
        // accesses of this process are atomic, and other processes only read.
        unsafe { AtomicU64::from_ptr(self.base.add(offset).cast()) }
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.length);
        // SAFETY: as in `long`, for 4 bytes. No offset is used both ways.
        unsafe { AtomicU32::from_ptr(self.base.add(offset).cast()) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing refers to any more: slots hold an `Arc`
        // of this.
        let _ = unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

/// The file, and who owns which slot of it.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    map: Arc<Map>,
    started: Instant,
    started_cycles: u64,
}

/// How long the cycle counter is compared with the clock before the first rate is written.
const FIRST_LOOK: Duration = Duration::from_millis(5);

impl Metrics {
    /// Makes the file anew, for this process. One that is there already is replaced, so that a
    /// process before this one goes on writing into its own. Takes some milliseconds.
    pub fn create(path: &Path, slots: u32) -> Result<Self, CreateError> {
        if slots == 0 || slots > SLOTS_MAX {
            return Err(CreateError::Slots { slots });
        }
        let fault = |source| CreateError::File { path: path.into(), source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
            _ => {}
        }
        let length = HEADER_SIZE + slots as usize * SLOT_SIZE;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)
            .map_err(fault)?;
        file.set_len(length as u64).map_err(fault)?;
        file.write_all_at(&[0; HEADER_SIZE], 0).map_err(fault)?;
        let map = Map::new(&file, length, slots)
            .map_err(|source| CreateError::Map { path: path.into(), source })?;
        let size = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        for (offset, value) in [
            (AT_VERSION, VERSION),
            (AT_PROCESS, std::process::id()),
            (AT_SLOTS, slots),
            (AT_SLOT_SIZE, size(SLOT_SIZE)),
            (AT_COUNTERS, size(COUNTERS)),
            (AT_BUCKETS, size(BUCKETS)),
        ] {
            map.word(offset).store(value.to_le(), Ordering::Relaxed);
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        map.long(AT_STARTED).store(milliseconds.to_le(), Ordering::Relaxed);
        let (started, started_cycles) = (Instant::now(), cycles());
        let metrics = Self { file, map: Arc::new(map), started, started_cycles };
        std::thread::sleep(FIRST_LOOK);
        metrics.measure_rate();
        // Last of all: without it the file is nobody's.
        metrics.file.write_all_at(&MAGIC, 0).map_err(fault)?;
        Ok(metrics)
    }

    /// Compares the cycle counter with the clock again. The longer since the start the better.
    pub fn measure_rate(&self) -> u64 {
        let nanoseconds = self.started.elapsed().as_nanos().max(1);
        let ticks = u128::from(cycles().saturating_sub(self.started_cycles));
        let rate = u64::try_from(ticks * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX).max(1);
        self.map.long(AT_RATE).store(rate.to_le(), Ordering::Relaxed);
        rate
    }

    /// The file, for [`crate::read`].
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// A slot with nothing counted yet. `None` when all have an owner or the file's place is full:
    /// then nobody counts, which is no reason not to serve.
    pub fn claim(&self, kind: Kind, pool: u32, id: u64) -> Option<Slot> {
        let take = |owned: &AtomicBool| !owned.swap(true, Ordering::AcqRel);
        // Acquire and release: what the owner before wrote is there before we write.
        let index = self.map.owned.iter().position(take)?;
        let base = HEADER_SIZE + index * SLOT_SIZE;
        let map = Arc::clone(&self.map);
        // Through the file and not the mapping: where there is no room left, this is an error, and
        // a store into the mapping would end the process.
        let zeros = [0; SLOT_SIZE - AT_COUNTS];
        if self.file.write_all_at(&zeros, (base + AT_COUNTS) as u64).is_err() {
            map.owned[index].store(false, Ordering::Release);
            return None;
        }
        map.word(base + AT_KIND).store((kind as u32).to_le(), Ordering::Relaxed);
        map.word(base + AT_POOL).store(pool.to_le(), Ordering::Relaxed);
        map.long(base + AT_ID).store(id.to_le(), Ordering::Relaxed);
        let slot = Slot { map, index };
        slot.turn_generation();
        Some(slot)
    }
}

/// One row of counters and histograms, with one writer.
#[derive(Debug)]
pub struct Slot {
    map: Arc<Map>,
    index: usize,
}

impl Slot {
    fn at(&self, offset: usize) -> &AtomicU64 {
        self.map.long(HEADER_SIZE + self.index * SLOT_SIZE + offset)
    }

    /// Even: free. Odd: in use. Release: whoever sees it sees what was written before.
    fn turn_generation(&self) {
        let generation = self.at(AT_GENERATION);
        let next = u64::from_le(generation.load(Ordering::Relaxed)).wrapping_add(1);
        generation.store(next.to_le(), Ordering::Release);
    }

    /// A load and a store instead of a locked addition: there is one writer.
    #[inline]
    fn bump(&self, offset: usize, amount: u64) {
        let place = self.at(offset);
        let sum = u64::from_le(place.load(Ordering::Relaxed)).wrapping_add(amount);
        place.store(sum.to_le(), Ordering::Relaxed);
    }

    /// Counts one operation that took `ticks` of the cycle counter.
    #[inline]
    pub fn record(&mut self, operation: Operation, ticks: u64) {
        let bucket = operation as usize * BUCKETS + bucket_of(ticks);
        self.bump(AT_HISTOGRAMS + bucket * 8, 1);
    }

    #[inline]
    pub fn add(&mut self, counter: usize, amount: u64) {
        assert!(counter < COUNTERS);
        self.bump(AT_COUNTS + counter * 8, amount);
    }

    /// Shows a number that is counted elsewhere.
    #[inline]
    pub fn set(&self, counter: usize, value: u64) {
        assert!(counter < COUNTERS);
        self.at(AT_COUNTS + counter * 8).store(value.to_le(), Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.turn_generation();
        self.map.owned[self.index].store(false, Ordering::Release);
    }
}
