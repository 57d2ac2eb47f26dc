// SPDX-License-Identifier: Apache-2.0
//! Zeroing and discarding ranges, object by object.
//!
//! Objects that are not there read as zeros already. In a volume without a parent those that are
//! there are found by listing, group by group, so that a discard of a whole large volume costs
//! what it has and not what it could have. A clone must look at every object of the range, since
//! what its parent has must not show through.

use crate::gate::{Piece, Slow, SlowWork};
use crate::key::{OBJECT_SIZE, data_range, index_of};
use crate::pending::{Pending, PendingKind, part_tag};
use crate::range::{BLOCK, Part, first_part};
use crate::request::{VolumeHandle, VolumeRefusal, VolumeTag};
use crate::volume::Access;
use crate::volumes::{Attached, Volumes};
use plinth_store::{
    BLOCK_SIZE, ObjectKey, ObjectStore, Operation, StoreAnswer, StoreRefusal, StoreRequest,
};
use std::collections::VecDeque;

/// Objects of one zeroed range on their way at once.
const ZERO_PARTS: u32 = 16;
/// Keys that are listed at once.
const LIST: usize = 64;
/// The part of the tag that says that a listing was answered, and not a change.
const LIST_PART: usize = 1;

/// What is left of a range to be zeroed.
#[derive(Debug)]
pub(crate) struct Zeroing {
    from: u64,
    to: u64,
    /// The next index to look at, in the order of the walk; past the last when none is left.
    next: u64,
    /// Indexes that lie this far apart are in one placement group and are listed together;
    /// 0: every index is looked at.
    stride: u32,
    /// Where listing the group goes on.
    cursor: Option<ObjectKey>,
    /// Objects that were found, and are not sent.
    found: VecDeque<u32>,
    pub(crate) is_listing: bool,
}

impl Zeroing {
    fn first(&self) -> u32 {
        first_part(self.from, 1).index
    }

    fn last(&self) -> u32 {
        first_part(self.to - 1, 1).index
    }

    /// How many walks there are: groups, or indexes.
    fn walks_end(&self) -> u64 {
        let first = u64::from(self.first());
        let count = u64::from(self.last()) - first + 1;
        first + if self.stride == 0 { count } else { count.min(u64::from(self.stride)) }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.from >= self.to || (self.next >= self.walks_end() && self.found.is_empty())
    }

    /// What of the range is in an object.
    fn part(&self, index: u32) -> Part {
        let start = u64::from(index) * OBJECT_SIZE;
        let from = self.from.max(start);
        first_part(from, self.to.min(start + OBJECT_SIZE) - from)
    }
}

impl<S: ObjectStore> Volumes<S> {
    pub(crate) fn submit_zero(
        &mut self,
        tag: VolumeTag,
        handle: VolumeHandle,
        offset: u64,
        length: u64,
        is_discard: bool,
    ) {
        let attached = match self.check_range(handle, offset, length) {
            Ok(attached) if attached.view != 0 => {
                return self.refuse(tag, None, VolumeRefusal::Snapshot);
            }
            Ok(attached) => attached,
            Err(refusal) => return self.refuse(tag, None, refusal),
        };
        let (mut from, mut to) = (offset, offset + length);
        if is_discard {
            // A discard is a hint: what is left of blocks at the ends stays as it is.
            (from, to) = (from.next_multiple_of(BLOCK), to - to % BLOCK);
        }
        let Attached { at, .. } = attached;
        let has_parent = self.place(at).is_some_and(|volume| !volume.chain.is_empty());
        let groups = self.place(at).map_or(1, |volume| volume.header.family.groups);
        let zeroing = Zeroing {
            from,
            to,
            next: from / OBJECT_SIZE,
            stride: if has_parent { 0 } else { groups },
            cursor: None,
            found: VecDeque::new(),
            is_listing: false,
        };
        let kind = PendingKind::Zero(Box::new(zeroing));
        let number = self.insert(Pending {
            tag,
            at,
            buffer: None,
            parts: 0,
            refusal: None,
            is_change: true,
            kind,
        });
        self.requests.zeroing.push(number);
        self.advance_zeroing();
    }

    /// Sends the next parts of zeroed ranges.
    pub(crate) fn advance_zeroing(&mut self) -> bool {
        let mut has_moved = false;
        let mut index = 0;
        while let Some(&number) = self.requests.zeroing.get(index) {
            while self.zero_next(number) {
                has_moved = true;
            }
            let is_done = self.requests.get_mut(number).is_none_or(|pending| match &pending.kind {
                PendingKind::Zero(zeroing) => zeroing.is_done() || pending.refusal.is_some(),
                PendingKind::Whole | PendingKind::Parts { .. } => true,
            });
            if is_done {
                self.requests.zeroing.swap_remove(index);
                self.end_if_done(number);
            } else {
                index += 1;
            }
        }
        has_moved
    }

    /// Goes on with a range by one object or one listing. `false` when it must wait.
    fn zero_next(&mut self, number: u32) -> bool {
        let has_room = self.store.room() > 3;
        let pool = self.pool;
        let Some(pending) = self.requests.get_mut(number) else { return false };
        let (at, parts) = (pending.at, pending.parts);
        let PendingKind::Zero(zeroing) = &mut pending.kind else { return false };
        if zeroing.is_done() || pending.refusal.is_some() || !has_room || parts >= ZERO_PARTS {
            return false;
        }
        if let Some(index) = zeroing.found.pop_front() {
            let part = zeroing.part(index);
            self.clear_part(number, at, part);
            return true;
        }
        if zeroing.is_listing {
            return false;
        }
        let index = u32::try_from(zeroing.next).expect("the walk is inside the volume");
        if zeroing.stride == 0 {
            zeroing.next += 1;
            zeroing.found.push_back(index);
            return true;
        }
        let (last, cursor) = (zeroing.last(), zeroing.cursor);
        zeroing.is_listing = true;
        let Some(volume) = self.place(at) else { return false };
        let group = volume.header.family.group(index);
        let range = data_range(pool, group, volume.id..=volume.id, index..=last);
        let range = cursor.unwrap_or(*range.start())..=*range.end();
        self.send(part_tag(number, LIST_PART), StoreRequest::List { range, limit: LIST });
        true
    }

    /// Takes a group's next objects, if the answer is that of a listing.
    pub(crate) fn zero_listed(
        &mut self,
        number: u32,
        part: usize,
        result: &Result<StoreAnswer, StoreRefusal>,
    ) -> bool {
        let Some(pending) = self.requests.get_mut(number) else { return false };
        let PendingKind::Zero(zeroing) = &mut pending.kind else { return false };
        if part != LIST_PART {
            return false;
        }
        zeroing.is_listing = false;
        match result {
            Ok(StoreAnswer::Listed { objects, next }) => {
                zeroing.cursor = *next;
                zeroing.next += u64::from(next.is_none());
                let heads = objects.iter().filter(|object| object.key.snapshot == 0);
                zeroing.found.extend(heads.map(|object| index_of(&object.key)));
            }
            Ok(_) => {}
            Err(refusal) => pending.refusal = Some(VolumeRefusal::Store(*refusal)),
        }
        self.end_if_done(number);
        true
    }

    /// Zeroes what of the range is in one object: whole blocks in one piece, and what is left of
    /// blocks at the ends in one each.
    fn clear_part(&mut self, number: u32, at: u32, part: Part) {
        for (offset, length) in pieces(part.offset, part.length).into_iter().flatten() {
            if let Some(pending) = self.requests.get_mut(number) {
                pending.parts += 1;
            }
            self.clear_piece(at, part.index, Piece { number, part: 0, offset, length });
        }
    }

    fn clear_piece(&mut self, at: u32, index: u32, piece: Piece) {
        let pool = self.pool;
        let access = if piece.is_whole() { Access::Remove } else { Access::Change };
        let direct = self.place_mut(at).and_then(|volume| {
            let key = volume.direct(pool, index, access)?;
            volume.changing += 1;
            Some(key)
        });
        let Some(key) = direct else {
            return self.queue_slow(Slow { at, index, work: SlowWork::Clear { piece } });
        };
        let operation = self.clear_operation(key, piece, false);
        let request = StoreRequest::Apply { transaction: vec![operation] };
        self.send(part_tag(piece.number, piece.part), request);
    }

    /// The step that zeroes a piece. A clone keeps an empty object: what its parent has must not
    /// show through.
    pub(crate) fn clear_operation(
        &mut self,
        key: ObjectKey,
        piece: Piece,
        is_kept: bool,
    ) -> Operation {
        let Piece { offset, length, .. } = piece;
        let (from, block) = (u64::from(offset), BLOCK);
        if piece.is_whole() {
            return if is_kept {
                Operation::Truncate { key, size: 0 }
            } else {
                Operation::Remove { key }
            };
        }
        if from.is_multiple_of(block) && u64::from(length).is_multiple_of(block) {
            return Operation::Zero { key, offset, length };
        }
        let mut buffer = self.store.take_buffer(BLOCK_SIZE);
        buffer.as_bytes_mut().fill(0);
        Operation::Write { key, offset, length, buffer }
    }
}

/// A range as whole blocks and what is left of blocks before and behind them.
fn pieces(offset: u32, length: u32) -> [Option<(u32, u32)>; 3] {
    let block = u32::try_from(BLOCK).expect("4096");
    let end = offset + length;
    let (first, last) = (offset.next_multiple_of(block), end - end % block);
    let some = |from: u32, to: u32| (from < to).then(|| (from, to - from));
    if first > last {
        // Inside one block.
        return [some(offset, end), None, None];
    }
    [some(offset, first), some(first, last), some(last, end)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zeroing(from: u64, to: u64, stride: u32) -> Zeroing {
        let (next, found) = (from / OBJECT_SIZE, VecDeque::new());
        Zeroing { from, to, next, stride, cursor: None, found, is_listing: false }
    }

    #[test]
    fn a_range_is_walked_group_by_group_or_index_by_index() {
        let object = |count| count * OBJECT_SIZE;
        assert_eq!(zeroing(512, object(1), 256).walks_end(), 1);
        assert_eq!(zeroing(object(3), object(10_000), 256).walks_end(), 259);
        assert_eq!(zeroing(object(3), object(10_000), 1).walks_end(), 4);
        assert_eq!(zeroing(object(3), object(10_000) + 512, 0).walks_end(), 10_001);
        assert!(zeroing(4096, 4096, 256).is_done());
        let part = zeroing(512, object(2) + 512, 256).part(2);
        assert_eq!(part, Part { index: 2, offset: 0, length: 512 });
    }

    #[test]
    fn a_range_is_cut_at_whole_blocks() {
        let some = |offset, length| Some((offset, length));
        assert_eq!(pieces(0, 8192), [None, some(0, 8192), None]);
        assert_eq!(pieces(512, 8192), [some(512, 3584), some(4096, 4096), some(8192, 512)]);
        assert_eq!(pieces(512, 1024), [some(512, 1024), None, None]);
        assert_eq!(pieces(512, 4096), [some(512, 3584), None, some(4096, 512)]);
        assert_eq!(pieces(4096, 512), [None, None, some(4096, 512)]);
    }
}
