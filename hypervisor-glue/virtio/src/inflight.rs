// SPDX-License-Identifier: Apache-2.0
//! The in-flight record of the vhost-user protocol, split layout.
//!
//! The record lives in memory that the frontend keeps when the backend dies. For each ring:
//!
//! ```text
//!   0  u64 features (0)       16 + 16 n  u8  in flight
//!   8  u16 version (1)        17 + 16 n  5 bytes of zeros
//!  10  u16 entries            22 + 16 n  u16 next entry of the last batch
//!  12  u16 head of last batch 24 + 16 n  u64 counter: the order in which heads were taken
//!  14  u16 used index
//! ```
//!
//! The laws of the protocol ("Inflight I/O tracking") and why a kill anywhere loses nothing:
//! 1. *Take*: the counter, then the mark. A head without a mark was not begun: it is taken from
//!    the available ring again, because the available index to go on from is computed as used
//!    index + marks.
//! 2. *Give back*, a batch: chain the heads from `last batch`; store the used index of the ring;
//!    clear the marks; store the record's used index. Killed before the ring's index moved, the
//!    marks stand and all are submitted again. Killed after it, the two indexes differ by the
//!    batch's size, and that many heads from `last batch` on are cleared first.
//!
//! All words are Relaxed: the reader is another process that starts after this one is dead, or
//! this one; a compiler's order is what matters, and `fence` below gives it. x86 keeps stores in
//! order.

use plinth_guest_memory::{MapError, SharedMemory, Shrinkable, sealed_memfd};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

const HEADER: usize = 16;
const ENTRY: usize = 16;
const VERSION: u16 = 1;
/// Each ring's part begins at a multiple of a cache line.
const ALIGNMENT: usize = 64;

/// Why a record is not taken.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    #[error("the in-flight region cannot be made")]
    Make { source: io::Error },
    #[error("the in-flight region cannot be mapped")]
    Map { source: MapError },
    #[error(
        "the in-flight region has {length} bytes at {offset}, {queues} rings of {size} need {wanted}"
    )]
    TooShort { length: u64, offset: u64, queues: u16, size: u16, wanted: u64 },
    #[error("the in-flight region begins at {offset}, which is no multiple of 8")]
    Misaligned { offset: u64 },
    #[error("ring {index} has no part in an in-flight region of {queues}")]
    NoSuchQueue { index: u16, queues: u16 },
    #[error("a record of version {version}; {VERSION} is known")]
    Version { version: u16 },
    #[error("a record of {entries} entries for a ring of {size}")]
    Entries { entries: u16, size: u16 },
    #[error("the record's last batch has {count} entries and leads outside of the ring")]
    Batch { count: u16 },
}

/// The record of all rings of one device.
#[derive(Clone, Debug)]
pub struct Inflight {
    shared: Arc<SharedMemory>,
    queues: u16,
    size: u16,
}

impl Inflight {
    /// How many bytes `queues` rings of `size` entries need.
    pub const fn bytes(queues: u16, size: u16) -> u64 {
        Self::queue_bytes(size) as u64 * queues as u64
    }

    const fn queue_bytes(size: u16) -> usize {
        (HEADER + ENTRY * size as usize).next_multiple_of(ALIGNMENT)
    }

    /// A file with an empty record, for the frontend to keep.
    pub fn create(queues: u16, size: u16) -> Result<File, InflightError> {
        sealed_memfd(c"plinth-inflight", Self::bytes(queues, size))
            .map_err(|source| InflightError::Make { source })
    }

    /// Opens the record that the frontend brings.
    pub fn open(
        file: &File,
        offset: u64,
        length: u64,
        queues: u16,
        size: u16,
        shrinkable: Shrinkable,
    ) -> Result<Self, InflightError> {
        let wanted = Self::bytes(queues, size);
        if length < wanted {
            return Err(InflightError::TooShort { length, offset, queues, size, wanted });
        }
        if !offset.is_multiple_of(8) {
            return Err(InflightError::Misaligned { offset });
        }
        let shared = SharedMemory::map(file, offset, wanted, shrinkable)
            .map_err(|source| InflightError::Map { source })?;
        Ok(Self { shared: Arc::new(shared), queues, size })
    }

    /// The record of one ring.
    pub fn queue(&self, index: u16) -> Result<InflightQueue, InflightError> {
        if index >= self.queues {
            return Err(InflightError::NoSuchQueue { index, queues: self.queues });
        }
        let base = usize::from(index) * Self::queue_bytes(self.size);
        Ok(InflightQueue { shared: self.shared.clone(), base, entries: self.size, counter: 0 })
    }
}

/// The record of one ring.
#[derive(Debug)]
pub struct InflightQueue {
    shared: Arc<SharedMemory>,
    base: usize,
    entries: u16,
    /// What the next taken head gets.
    counter: u64,
}

impl InflightQueue {
    /// Begins with a ring of `size` entries whose used index is `used`: repairs the record and
    /// gives the heads that were taken and not given back, in the order of their taking. `None`
    /// when the record knows nothing of this ring.
    pub(crate) fn recover(
        &mut self,
        size: u16,
        used: u16,
    ) -> Result<Option<Vec<u16>>, InflightError> {
        if size > self.entries {
            return Err(InflightError::Entries { entries: self.entries, size });
        }
        let version = self.word(8);
        if version == 0 {
            // An empty record. The version goes last: before it, the record is empty still.
            self.set_word(10, size);
            self.set_word(12, 0);
            self.set_word(14, used);
            fence(Ordering::Release);
            self.set_word(8, VERSION);
            return Ok(None);
        }
        if version != VERSION {
            return Err(InflightError::Version { version });
        }
        let entries = self.word(10);
        if entries != size {
            return Err(InflightError::Entries { entries, size });
        }
        let is_unmarked = (0..size).all(|head| !self.is_marked(head));
        if is_unmarked && used.wrapping_sub(self.word(14)) > size {
            // Left over from a ring that was since begun anew; with no mark it says nothing.
            self.set_word(14, used);
            return Ok(None);
        }
        self.finish_batch(size, used)?;
        let mut heads: Vec<(u64, u16)> = (0..size)
            .filter(|head| self.is_marked(*head))
            .map(|head| (self.counter_at(head), head))
            .collect();
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(Some(heads.into_iter().map(|(_, head)| head).collect()))
    }

    /// Clears the marks of a batch whose used index went out before its marks were cleared.
    fn finish_batch(&self, size: u16, used: u16) -> Result<(), InflightError> {
        let count = used.wrapping_sub(self.word(14));
        if count > size {
            return Err(InflightError::Batch { count });
        }
        let mut head = self.word(12);
        for _ in 0..count {
            if head >= size {
                return Err(InflightError::Batch { count });
            }
            self.set_mark(head, false);
            head = self.next_at(head);
        }
        fence(Ordering::Release);
        self.set_word(14, used);
        Ok(())
    }

    /// Records that `head` was taken. Before anything is done with it.
    #[inline]
    pub(crate) fn take(&mut self, head: u16) {
        self.shared.u64_at(self.entry(head) + 8).store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        // The counter before the mark, for a process that comes after this one.
        fence(Ordering::Release);
        self.set_mark(head, true);
    }

    /// Chains `head` to the batch that will be given back next.
    #[inline]
    pub(crate) fn give_back(&self, head: u16) {
        self.set_next(head, self.word(12));
        fence(Ordering::Release);
        self.set_word(12, head);
    }

    /// After the ring's used index became `used`: the batch is over.
    #[inline]
    pub(crate) fn batch_is_out(&self, batch: &[u16], used: u16) {
        fence(Ordering::Release);
        for head in batch {
            self.set_mark(*head, false);
        }
        fence(Ordering::Release);
        self.set_word(14, used);
    }

    #[inline]
    fn entry(&self, head: u16) -> usize {
        assert!(head < self.entries, "heads are checked against the ring's size");
        self.base + HEADER + ENTRY * usize::from(head)
    }

    #[inline]
    fn word(&self, offset: usize) -> u16 {
        self.shared.u16_at(self.base + offset).load(Ordering::Relaxed)
    }

    #[inline]
    fn set_word(&self, offset: usize, value: u16) {
        self.shared.u16_at(self.base + offset).store(value, Ordering::Relaxed);
    }

    fn is_marked(&self, head: u16) -> bool {
        self.shared.u8_at(self.entry(head)).load(Ordering::Relaxed) != 0
    }

    #[inline]
    fn set_mark(&self, head: u16, is_marked: bool) {
        self.shared.u8_at(self.entry(head)).store(u8::from(is_marked), Ordering::Relaxed);
    }

    fn next_at(&self, head: u16) -> u16 {
        self.shared.u16_at(self.entry(head) + 6).load(Ordering::Relaxed)
    }

    #[inline]
    fn set_next(&self, head: u16, next: u16) {
        self.shared.u16_at(self.entry(head) + 6).store(next, Ordering::Relaxed);
    }

    fn counter_at(&self, head: u16) -> u64 {
        self.shared.u64_at(self.entry(head) + 8).load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the numbers of these tests are small")]
mod tests {
    use super::*;

    const SIZE: u16 = 8;

    /// One store of the protocol.
    type Step<'a> = Box<dyn FnMut(&InflightQueue) + 'a>;

    fn open(file: &File) -> InflightQueue {
        let length = Inflight::bytes(2, SIZE);
        let inflight = Inflight::open(file, 0, length, 2, SIZE, Shrinkable::Refuse).unwrap();
        inflight.queue(1).unwrap()
    }

    #[test]
    fn the_layout_is_that_of_the_protocol() {
        let file = Inflight::create(2, SIZE).unwrap();
        let mut queue = open(&file);
        assert_eq!(queue.recover(SIZE, 7).unwrap(), None);
        queue.take(3);
        queue.take(5);
        queue.give_back(5);
        let mut bytes = vec![0; Inflight::bytes(2, SIZE) as usize];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        let part = &bytes[192..];
        assert_eq!(part[..16], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 5, 0, 7, 0]);
        assert_eq!(part[16 + 48..16 + 64], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(part[16 + 80..16 + 96], [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert!(bytes[..192].iter().all(|byte| *byte == 0), "the other ring is not touched");
    }

    /// Cuts the steps of take and give-back after each, as a kill does, and looks at what a new
    /// process finds. The steps are written here word by word, from the protocol's text.
    #[test]
    fn a_kill_after_any_step_resubmits_exactly_what_was_not_given_back() {
        // Heads 2, 6, 4 are taken; 6 and 2 are given back in one batch; then used is 9.
        for cut in 0..=9 {
            let file = Inflight::create(2, SIZE).unwrap();
            let mut queue = open(&file);
            assert_eq!(queue.recover(SIZE, 7).unwrap(), None);
            for head in [2, 6, 4] {
                queue.take(head);
            }
            let mut used = 7;
            let mut steps: Vec<Step<'_>> = vec![
                Box::new(|queue| queue.set_next(6, 0)),
                Box::new(|queue| queue.set_word(12, 6)),
                Box::new(|queue| queue.set_next(2, 6)),
                Box::new(|queue| queue.set_word(12, 2)),
                Box::new(|_| used = 9),
                Box::new(|queue| queue.set_mark(6, false)),
                Box::new(|queue| queue.set_mark(2, false)),
                Box::new(|queue| queue.set_word(14, 9)),
                Box::new(|queue| assert!(!queue.is_marked(2))),
            ];
            for step in &mut steps[..cut] {
                step(&queue);
            }
            drop(steps);
            let expected: &[u16] = if used == 9 { &[4] } else { &[2, 6, 4] };
            assert_eq!(
                open(&file).recover(SIZE, used).unwrap().unwrap(),
                expected,
                "cut after {cut} steps"
            );
            // And killed again during its own recovery: the same answer.
            assert_eq!(
                open(&file).recover(SIZE, used).unwrap().unwrap(),
                expected,
                "again, after {cut}"
            );
        }
    }

    #[test]
    fn our_own_steps_are_those_of_the_protocol() {
        let file = Inflight::create(2, SIZE).unwrap();
        let mut queue = open(&file);
        queue.recover(SIZE, u16::MAX).unwrap();
        for head in [0, 7, 3] {
            queue.take(head);
        }
        for head in [3, 0] {
            queue.give_back(head);
        }
        assert_eq!(
            open(&file).recover(SIZE, u16::MAX).unwrap().unwrap(),
            [0, 7, 3],
            "before the index"
        );
        assert_eq!(open(&file).recover(SIZE, 1).unwrap().unwrap(), [7], "after the index");
        queue.batch_is_out(&[3, 0], 1);
        assert_eq!(open(&file).recover(SIZE, 1).unwrap().unwrap(), [7]);
        // Two more batches with the same heads.
        let mut queue = open(&file);
        queue.recover(SIZE, 1).unwrap();
        queue.take(0);
        queue.give_back(7);
        queue.give_back(0);
        queue.batch_is_out(&[7, 0], 3);
        assert_eq!(open(&file).recover(SIZE, 3).unwrap().unwrap(), []);
    }

    #[test]
    fn a_record_of_nonsense_is_refused_by_name() {
        let file = Inflight::create(2, SIZE).unwrap();
        let mut queue = open(&file);
        queue.recover(SIZE, 7).unwrap();
        let refusal = open(&file).recover(4, 7).unwrap_err();
        assert!(matches!(refusal, InflightError::Entries { .. }), "{refusal}");
        let refusal = open(&file).recover(16, 7).unwrap_err();
        assert!(matches!(refusal, InflightError::Entries { .. }), "{refusal}");
        queue.take(1);
        let refusal = open(&file).recover(SIZE, 70).unwrap_err();
        assert!(matches!(refusal, InflightError::Batch { .. }), "{refusal}");
        queue.set_mark(1, false);
        assert_eq!(open(&file).recover(SIZE, 70).unwrap(), None, "of an earlier ring, and empty");
        queue.set_word(14, 7);
        queue.set_word(12, 8);
        let refusal = open(&file).recover(SIZE, 8).unwrap_err();
        assert!(matches!(refusal, InflightError::Batch { .. }), "{refusal}");
        queue.set_word(8, 2);
        let refusal = open(&file).recover(SIZE, 7).unwrap_err();
        assert!(matches!(refusal, InflightError::Version { version: 2 }), "{refusal}");
    }

    #[test]
    fn a_region_that_does_not_fit_is_refused_by_name() {
        let file = Inflight::create(2, SIZE).unwrap();
        let length = Inflight::bytes(2, SIZE);
        let open = |offset, length, queues| {
            Inflight::open(&file, offset, length, queues, SIZE, Shrinkable::Refuse)
        };
        assert!(matches!(open(0, length - 1, 2), Err(InflightError::TooShort { .. })));
        assert!(matches!(open(4, length, 1), Err(InflightError::Misaligned { .. })));
        assert!(matches!(open(8, length, 2), Err(InflightError::Map { .. })));
        let refusal = open(0, length, 2).unwrap().queue(2).unwrap_err();
        assert!(matches!(refusal, InflightError::NoSuchQueue { .. }), "{refusal}");
    }
}
