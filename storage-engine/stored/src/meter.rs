// SPDX-License-Identifier: Apache-2.0
//! What is counted of an attachment and of a disk: see `docs/formats/metrics.md`.

use plinth_backends::blk::{BlkCounters, BlkOperation};
use plinth_metrics::{Operation, Slot};
use plinth_rt::cycles;
use plinth_store::{DiskCompletion, DiskRequest, DiskTag, StoreCounters};

/// Slots of the metrics file: disks and attachments of a node.
pub(crate) const SLOTS: u32 = 1024;

/// Places of an attachment's counters.
pub(crate) const READ_BYTES: usize = 0;
pub(crate) const WRITTEN_BYTES: usize = 1;
pub(crate) const FAILED: usize = 2;
pub(crate) const REFUSED: usize = 3;
pub(crate) const HELD: usize = 4;
pub(crate) const UNDER_WAY: usize = 5;
const ZEROINGS: usize = 6;
const RESUBMITTED: usize = 7;

/// Places of a disk's counters that mean something else.
pub(crate) const DISCARDS: usize = 4;
pub(crate) const BAD_BLOCKS: usize = 6;
const JOURNAL_ENTRIES: usize = 7;
const CHECKPOINTS: usize = 8;

/// The histogram of a guest's request; discards and zeroings have none.
pub(crate) const fn histogram_of(operation: BlkOperation) -> Option<Operation> {
    match operation {
        BlkOperation::Read { .. } => Some(Operation::Read),
        BlkOperation::Write { .. } => Some(Operation::Write),
        BlkOperation::Flush => Some(Operation::Flush),
        BlkOperation::Discard { .. } | BlkOperation::WriteZeroes { .. } => None,
    }
}

/// Shows what an attachment has counted.
pub(crate) fn show_attachment(slot: &Slot, counters: &BlkCounters, held: u64, under_way: usize) {
    for (place, value) in [
        (READ_BYTES, counters.read_bytes),
        (WRITTEN_BYTES, counters.written_bytes),
        (FAILED, counters.failed),
        (REFUSED, counters.refused + counters.queues_broken),
        (HELD, held),
        (UNDER_WAY, under_way as u64),
        (ZEROINGS, counters.discards + counters.zeroings),
        (RESUBMITTED, counters.resubmitted),
    ] {
        slot.set(place, value);
    }
}

/// What a request asks of a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Burden {
    /// `None` of a discard.
    operation: Option<Operation>,
    bytes: u64,
}

impl Burden {
    pub(crate) fn of(request: &DiskRequest) -> Self {
        let (operation, bytes) = match request {
            DiskRequest::Read { buffer, .. } => (Some(Operation::Read), buffer.length()),
            DiskRequest::Write { buffer, .. } => (Some(Operation::Write), buffer.length()),
            DiskRequest::Flush => (Some(Operation::Flush), 0),
            DiskRequest::Discard { .. } => (None, 0),
        };
        Self { operation, bytes: bytes as u64 }
    }
}

/// What a request to a disk was, until it ends.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// `None` of a discard.
    operation: Option<Operation>,
    at: u64,
}

/// The most tags that are followed: more than a disk has under way.
const TAGS_MAX: usize = 1 << 16;

/// Counts what goes through a disk.
///
/// The time is read once when requests are started and once when ends are looked for, not for each
/// request: what is asked between two looks counts from the first of them.
#[derive(Debug)]
pub(crate) struct DiskMeter {
    slot: Slot,
    sent: Vec<Sent>,
    under_way: u64,
    now: u64,
}

impl DiskMeter {
    pub(crate) fn new(slot: Slot) -> Self {
        Self { slot, sent: Vec::new(), under_way: 0, now: cycles() }
    }

    /// The disk has taken a request.
    pub(crate) fn sent(&mut self, tag: DiskTag, Burden { operation, bytes }: Burden) {
        match operation {
            Some(Operation::Read) => self.slot.add(READ_BYTES, bytes),
            Some(Operation::Write) => self.slot.add(WRITTEN_BYTES, bytes),
            Some(Operation::Flush) => {}
            None => self.slot.add(DISCARDS, 1),
        }
        let Some(place) = usize::try_from(tag.0).ok().filter(|&place| place < TAGS_MAX) else {
            return;
        };
        if place >= self.sent.len() {
            // Grows to the most that were ever under way at once.
            self.sent.resize(place + 1, Sent { operation: None, at: 0 });
        }
        self.sent[place] = Sent { operation, at: self.now };
        self.under_way += 1;
    }

    /// A reader has looked at bytes of the disk itself, which is no time.
    pub(crate) fn viewed(&mut self, length: usize) {
        self.slot.add(READ_BYTES, length as u64);
        self.slot.record(Operation::Read, 0);
    }

    /// The requests of this round start here.
    pub(crate) fn started(&mut self) {
        self.now = cycles();
        self.slot.set(UNDER_WAY, self.under_way);
    }

    /// What has ended since the last look.
    pub(crate) fn ended(&mut self, completions: &[DiskCompletion]) {
        self.now = cycles();
        for completion in completions {
            if completion.result.is_err() {
                self.slot.add(FAILED, 1);
            }
            let place = usize::try_from(completion.tag.0).unwrap_or(usize::MAX);
            let Some(sent) = self.sent.get(place) else { continue };
            if let Some(operation) = sent.operation {
                self.slot.record(operation, self.now.saturating_sub(sent.at));
            }
            self.under_way = self.under_way.saturating_sub(1);
        }
        if !completions.is_empty() {
            self.slot.set(UNDER_WAY, self.under_way);
        }
    }

    /// Shows what the store has counted.
    pub(crate) fn show(&self, counters: &StoreCounters) {
        self.slot.set(BAD_BLOCKS, counters.bad_blocks);
        self.slot.set(JOURNAL_ENTRIES, counters.journal_entries);
        self.slot.set(CHECKPOINTS, counters.checkpoints);
    }
}
