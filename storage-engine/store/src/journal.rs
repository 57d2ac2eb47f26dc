// SPDX-License-Identifier: Apache-2.0
//! The journal's ring and the entries on their way.
//!
//! ```text
//!   open ── seal ──▶ written? ──┐
//!     data writes on their way ─┴▶ complete ── flush, where the pool asks for it ──▶ durable
//!                                                   named by a later durable entry ──▶ confirmed
//! ```
//!
//! Entries become complete, durable and confirmed in the order of their numbers, whatever the
//! order in which the disk finishes: recovery keeps a prefix, so an entry is worth nothing
//! before all earlier ones are there. The open entry only grows as long as the ring has room for
//! it, so that sealing never fails.

use plinth_format::journal::{
    ENTRY_PAGES_MAX, Record, VERSION_MAX, change_version, emit, entry_length,
};
use plinth_format::{Le32, PAGE_SIZE, journal::BlockData};
use std::collections::VecDeque;

/// Room that only entries without records may use: confirming must always be possible.
const RESERVE: u64 = 8 * PAGE_SIZE as u64;
/// The part of the ring that is kept for the marks that a checkpoint logs again: twice what as
/// many as there may be take.
const MARKS_SHARE: u64 = 16;

/// One entry that is open or on its way.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    /// What the entry says was durable.
    pub(crate) durable_seq: u64,
    pub(crate) is_sealed: bool,
    pub(crate) is_written: bool,
    /// Data writes on their way.
    pub(crate) data_pending: u32,
    /// Operations that are acknowledged when the entry is durable.
    pub(crate) ops: Vec<u32>,
}

#[derive(Debug)]
pub(crate) struct Journal {
    length: u64,
    head: u64,
    tail: u64,
    /// Oldest first; the last one is open.
    entries: VecDeque<Entry>,
    /// Emptied `ops` lists, used again.
    spare: Vec<Vec<u32>>,
    pub(crate) records: Vec<u8>,
    pub(crate) data: Vec<u8>,
    /// Transactions in the open entry, for the numbers of new objects.
    pub(crate) creations: u64,
    /// Changes in the open entry: what tells their versions apart.
    changes: u16,
    /// What is added to versions, so that they are above all that were taken over from elsewhere.
    pub(crate) version_base: u64,
    pub(crate) complete_seq: u64,
    pub(crate) durable_seq: u64,
    pub(crate) confirmed_seq: u64,
    /// The last sealed entry that somebody was or will be told of.
    pub(crate) changed_seq: u64,
    /// The last entry that was complete when a flush that has ended began.
    pub(crate) flushed_seq: u64,
    /// The first entry that recovery would replay.
    pub(crate) cut_seq: u64,
    pub(crate) writes_in_flight: u32,
    turn: Option<Turn>,
    /// Turns that were asked for, and how many of them have ended.
    turns_wanted: u64,
    turns_done: u64,
}

/// The way once round the ring, so that no old bytes are left in it.
#[derive(Debug)]
struct Turn {
    /// How many turns were wanted when it began.
    number: u64,
    /// Bytes to go.
    left: u64,
    /// The last entry that was written for it.
    last: u64,
}

impl Journal {
    /// An empty journal whose next entry is `seq`, at `offset`.
    pub(crate) fn new(length: u64, offset: u64, seq: u64) -> Self {
        let open = Entry { seq, ..Entry::default() };
        Self {
            length,
            head: offset,
            tail: offset,
            entries: VecDeque::from([open]),
            spare: Vec::new(),
            records: Vec::new(),
            data: Vec::new(),
            creations: 0,
            changes: 0,
            version_base: 0,
            complete_seq: seq - 1,
            durable_seq: seq - 1,
            confirmed_seq: seq - 1,
            changed_seq: seq - 1,
            flushed_seq: seq - 1,
            cut_seq: 0,
            writes_in_flight: 0,
            turn: None,
            turns_wanted: 0,
            turns_done: 0,
        }
    }

    pub(crate) fn open_seq(&self) -> u64 {
        self.entries.back().expect("the last entry is the open one").seq
    }

    pub(crate) fn open_entry(&mut self) -> &mut Entry {
        self.entries.back_mut().expect("the last entry is the open one")
    }

    pub(crate) fn entry(&mut self, seq: u64) -> Option<&mut Entry> {
        let first = self.entries.front()?.seq;
        let index = usize::try_from(seq.checked_sub(first)?).ok()?;
        self.entries.get_mut(index)
    }

    /// Whether nobody waits for the open entry. A change that changed nothing has no record, and
    /// is acknowledged after those before it all the same.
    pub(crate) fn is_open_empty(&self) -> bool {
        let ops = self.entries.back().map_or(0, |entry| entry.ops.len());
        self.records.is_empty() && ops == 0
    }

    /// Bytes between the tail and the head.
    pub(crate) fn used(&self) -> u64 {
        if self.head >= self.tail {
            self.head - self.tail
        } else {
            self.length - self.tail + self.head
        }
    }

    pub(crate) const fn length(&self) -> u64 {
        self.length
    }

    pub(crate) const fn head(&self) -> u64 {
        self.head
    }

    /// Where `length` bytes fit, side by side and without the head reaching the tail.
    fn place(&self, length: u64) -> Option<u64> {
        if self.head < self.tail {
            return (length < self.tail - self.head).then_some(self.head);
        }
        let to_end = self.length - self.head;
        if length < to_end || (length == to_end && self.tail > 0) {
            return Some(self.head);
        }
        (length < self.tail).then_some(0)
    }

    /// The largest entry that this journal takes.
    pub(crate) fn entry_max(&self) -> usize {
        let eighth = usize::try_from(self.length / 8).unwrap_or(usize::MAX);
        eighth.min(ENTRY_PAGES_MAX as usize * PAGE_SIZE)
    }

    /// Whether the open entry may grow by so many bytes of records and data.
    pub(crate) fn has_room(&self, records: usize, data: usize) -> bool {
        let length = entry_length(self.records.len() + records, self.data.len() + data);
        let has_number = self.changes < u16::MAX;
        let place = self.place(length as u64 + RESERVE + self.marks_room());
        has_number && length <= self.entry_max() && place.is_some()
    }

    const fn marks_room(&self) -> u64 {
        self.length / MARKS_SHARE
    }

    /// Whether an entry of this size fits an empty journal.
    pub(crate) fn could_have_room(&self, records: usize, data: usize) -> bool {
        entry_length(records, data) <= self.entry_max()
    }

    pub(crate) fn record(&mut self, record: &Record<'_>) {
        emit(&mut self.records, record);
    }

    /// Begins a change, of which there is [`Journal::has_room`], and gives its version.
    pub(crate) fn begin_change(&mut self) -> u64 {
        self.changes = self.changes.saturating_add(1);
        self.version()
    }

    /// The version that the change which was begun last gives to objects.
    pub(crate) fn version(&self) -> u64 {
        self.version_base + change_version(self.open_seq(), self.changes)
    }

    /// Has the versions of all later changes be above this one, which is at most [`VERSION_MAX`].
    pub(crate) fn raise_versions(&mut self, above: u64) {
        if above <= self.version() {
            return;
        }
        self.version_base = above - change_version(self.open_seq(), self.changes);
        debug_assert!(self.version_base <= VERSION_MAX, "what is above was looked at before");
        self.record(&Record::VersionBase { base: self.version_base });
    }

    /// Notes that the change which was begun last is one of this object.
    pub(crate) fn record_version(&mut self, slot: u32, half: u8) {
        self.record(&Record::Version { slot, half, number: self.changes });
    }

    /// Appends a block of data and gives its place in the entry.
    pub(crate) fn push_data(&mut self, block: &[u8]) -> u16 {
        let index = self.data.len() / PAGE_SIZE;
        self.data.extend_from_slice(block);
        u16::try_from(index).expect("an entry is at most 8 MiB")
    }

    pub(crate) fn record_checksums(
        &mut self,
        slot: u32,
        block: u32,
        data: BlockData,
        checksums: &[Le32],
    ) {
        let block = u16::try_from(block).expect("an object has 1024 blocks");
        self.record(&Record::Checksums { slot, block, data, checksums });
    }

    /// Closes the open entry and opens the next. Gives the closed one's number and where it goes;
    /// the caller takes `records` and `data`.
    pub(crate) fn seal(&mut self) -> (u64, u64) {
        let length = entry_length(self.records.len(), self.data.len()) as u64;
        let at = self.place(length).expect("the open entry only grew while there was room");
        let (is_behind, seq) = (at == self.head, self.open_seq());
        if !self.is_open_empty() {
            self.changed_seq = seq;
        }
        if let Some(turn) = self.turn.as_mut().filter(|turn| turn.left > 0) {
            // Else what lies between the head and the end was passed over.
            turn.left = if is_behind { turn.left.saturating_sub(length) } else { self.length };
            turn.last = seq;
        }
        self.head = (at + length) % self.length;
        self.writes_in_flight += 1;
        self.creations = 0;
        self.changes = 0;
        let durable_seq = self.durable_seq;
        let ops = self.spare.pop().unwrap_or_default();
        let entry = self.open_entry();
        (entry.is_sealed, entry.durable_seq) = (true, durable_seq);
        self.entries.push_back(Entry { seq: seq + 1, ops, ..Entry::default() });
        (seq, at)
    }

    /// Whether an entry without records fits. Room for marks is left until they are logged.
    pub(crate) fn can_confirm(&self, has_marks: bool) -> bool {
        let marks = if has_marks { 0 } else { self.marks_room() };
        self.place(PAGE_SIZE as u64 + marks).is_some()
    }

    /// Has the whole ring be written over once. [`Journal::turns_done`] reaches the number when
    /// that is done.
    pub(crate) fn begin_turn(&mut self) -> u64 {
        self.turns_wanted += 1;
        self.start_turn();
        self.turns_wanted
    }

    fn start_turn(&mut self) {
        if self.turn.is_none() && self.turns_wanted > self.turns_done {
            self.turn = Some(Turn { number: self.turns_wanted, left: self.length, last: 0 });
        }
    }

    pub(crate) const fn turns_done(&self) -> u64 {
        self.turns_done
    }

    pub(crate) const fn is_turning(&self) -> bool {
        self.turn.is_some()
    }

    /// Whether the turn needs no more entries.
    pub(crate) fn is_turned(&self) -> bool {
        self.turn.as_ref().is_none_or(|turn| turn.left == 0)
    }

    /// Ends the turn if all of it is written, and begins the next that somebody wants.
    pub(crate) fn finish_turn(&mut self) -> bool {
        let complete = self.complete_seq;
        let Some(turn) = self.turn.take_if(|turn| turn.left == 0 && turn.last <= complete) else {
            return false;
        };
        self.turns_done = turn.number;
        self.start_turn();
        true
    }

    /// Bytes of data that an entry may have that goes on with the turn from the head on, up to
    /// the ring's end. `None` when there is no room, or no need.
    pub(crate) fn filler(&self) -> Option<usize> {
        self.turn.as_ref().filter(|turn| turn.left > 0)?;
        let keep = RESERVE + self.marks_room() + PAGE_SIZE as u64;
        let room = if self.head < self.tail {
            (self.tail - self.head).saturating_sub(keep)
        } else if self.tail > keep {
            self.length - self.head
        } else {
            (self.length - self.head).saturating_sub(keep)
        };
        let most = usize::try_from(room).unwrap_or(usize::MAX).min(self.entry_max());
        (most / PAGE_SIZE * PAGE_SIZE).checked_sub(PAGE_SIZE)
    }

    /// Moves `complete_seq` over every entry that is there, data and all.
    pub(crate) fn advance_complete(&mut self) {
        let first = self.entries.front().map_or(0, |entry| entry.seq);
        let from = usize::try_from(self.complete_seq + 1 - first).unwrap_or(usize::MAX);
        for entry in self.entries.iter().skip(from) {
            if !entry.is_sealed || !entry.is_written || entry.data_pending > 0 {
                return;
            }
            self.complete_seq = entry.seq;
        }
    }

    /// Takes the next entry that is durable as far as `durable_seq` says; the caller
    /// acknowledges its operations and gives the list back.
    pub(crate) fn pop_durable(&mut self) -> Option<Vec<u32>> {
        let first = self.entries.front()?;
        if first.seq > self.durable_seq || !first.is_sealed {
            return None;
        }
        let entry = self.entries.pop_front()?;
        self.confirmed_seq = self.confirmed_seq.max(entry.durable_seq);
        Some(entry.ops)
    }

    pub(crate) fn recycle(&mut self, mut ops: Vec<u32>) {
        ops.clear();
        if self.spare.len() < 64 {
            self.spare.push(ops);
        }
    }

    /// A checkpoint has made everything before this offset needless.
    pub(crate) fn cut(&mut self, seq: u64, tail: u64) {
        self.cut_seq = seq;
        self.tail = tail;
    }

    /// Every operation that waits for an entry: for a store that stops writing.
    pub(crate) fn abandon(&mut self) -> Vec<u32> {
        self.entries.iter_mut().flat_map(|entry| std::mem::take(&mut entry.ops)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_never_reaches_the_tail() {
        let mut journal = Journal::new(16 * 4096, 0, 1);
        let mut sealed = Vec::new();
        while journal.can_confirm(true) {
            sealed.push(journal.seal().1);
            assert_ne!(journal.head(), 0, "a full ring looks empty");
        }
        assert_eq!(sealed.len(), 15);
        journal.cut(16, 4096 * 15);
        assert_eq!(journal.used(), 0);
        assert!(journal.can_confirm(true));
        assert_eq!(journal.seal().1, 4096 * 15);
        assert_eq!((journal.seal().1, journal.used()), (0, 2 * 4096));
    }

    #[test]
    fn entries_complete_in_order() {
        let mut journal = Journal::new(1 << 20, 0, 5);
        journal.open_entry().data_pending = 1;
        assert_eq!(journal.seal().0, 5);
        assert_eq!(journal.seal().0, 6);
        journal.entry(5).unwrap().is_written = true;
        journal.entry(6).unwrap().is_written = true;
        journal.advance_complete();
        assert_eq!(journal.complete_seq, 4);
        journal.entry(5).unwrap().data_pending = 0;
        journal.advance_complete();
        assert_eq!(journal.complete_seq, 6);
        assert!(journal.pop_durable().is_none());
        journal.durable_seq = 6;
        assert!(journal.pop_durable().is_some() && journal.pop_durable().is_some());
        assert!(journal.pop_durable().is_none());
    }
}
