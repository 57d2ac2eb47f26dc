// SPDX-License-Identifier: Apache-2.0
//! From ranges of a volume to ranges of its objects.

use crate::key::{Kind, OBJECT_SIZE, data_range, index_of, key};
use crate::request::{REQUEST_BYTES_MAX, VolumeHandle, VolumeRefusal, VolumeRequest, VolumeTag};
use crate::volumes::{Pending, PendingKind, Volumes};
use plinth_ids::VolumeId;
use plinth_store::{BLOCK_SIZE, Disk, IoBuffer, Operation, StoreRequest};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Store requests of one zeroed range on their way at once.
const ZERO_PARTS: u32 = 16;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// What is left of a range to be zeroed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Span {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Span {
    pub(crate) const fn is_done(&self) -> bool {
        self.from >= self.to
    }
}

/// The part of a range that lies in one object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Part {
    pub(crate) index: u32,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// The first object's part of a range.
pub(crate) fn first_part(offset: u64, length: u64) -> Part {
    let inside = offset % OBJECT_SIZE;
    let fits = |value: u64| u32::try_from(value).expect("an object has 4 MiB");
    Part {
        index: u32::try_from(offset / OBJECT_SIZE).expect("a volume has at most 16 PiB"),
        offset: fits(inside),
        length: fits(length.min(OBJECT_SIZE - inside)),
    }
}

impl<D: Disk> Volumes<D> {
    fn check_range(
        &self,
        handle: VolumeHandle,
        offset: u64,
        length: u64,
    ) -> Result<VolumeId, VolumeRefusal> {
        let volume = self.volume_of(handle)?;
        let size = self.size(handle)?;
        let is_whole = offset.is_multiple_of(512) && length.is_multiple_of(512) && length > 0;
        let is_inside = offset.checked_add(length).is_some_and(|end| end <= size);
        if is_whole && is_inside { Ok(volume) } else { Err(VolumeRefusal::BadRange) }
    }

    pub(crate) fn submit_io(
        &mut self,
        tag: VolumeTag,
        request: VolumeRequest,
    ) -> Result<(), VolumeRequest> {
        if self.store.room() < 2 {
            return Err(request);
        }
        let (direction, handle, offset, length, buffer) = match request {
            VolumeRequest::Read { volume, offset, length, buffer } => {
                (Direction::Read, volume, offset, length, buffer)
            }
            VolumeRequest::Write { volume, offset, length, buffer } => {
                (Direction::Write, volume, offset, length, buffer)
            }
            other => return Err(other),
        };
        let checked = self.check_range(handle, offset, u64::from(length));
        let covered = (offset % BLOCK + u64::from(length)).next_multiple_of(BLOCK);
        let refusal = match checked {
            Err(refusal) => Some(refusal),
            Ok(_) if length > REQUEST_BYTES_MAX => Some(VolumeRefusal::BadRange),
            Ok(_) if (buffer.capacity() as u64) < covered => Some(VolumeRefusal::ShortBuffer),
            Ok(_) => None,
        };
        let volume = match (checked, refusal) {
            (Ok(volume), None) => volume,
            (_, refusal) => {
                self.refuse(tag, Some(buffer), refusal.unwrap_or(VolumeRefusal::BadRange));
                return Ok(());
            }
        };
        let part = first_part(offset, u64::from(length));
        if part.length == length {
            let kind = PendingKind::Whole;
            let number =
                self.insert(Pending { tag, volume, buffer: None, parts: 1, refusal: None, kind });
            let request = self.store_request(direction, volume, part, buffer);
            self.send_part(number, 0, request);
        } else {
            self.split(tag, volume, direction, (offset, length), buffer);
        }
        Ok(())
    }

    fn store_request(
        &self,
        direction: Direction,
        volume: VolumeId,
        part: Part,
        buffer: IoBuffer,
    ) -> StoreRequest {
        let key = key(self.pool, Kind::Data, volume, part.index);
        let Part { offset, length, .. } = part;
        match direction {
            Direction::Read => StoreRequest::Read { key, offset, length, buffer },
            Direction::Write => StoreRequest::Write { key, offset, length, buffer },
        }
    }

    /// A range over the border of two objects: each gets its part in a buffer of its own.
    fn split(
        &mut self,
        tag: VolumeTag,
        volume: VolumeId,
        direction: Direction,
        (offset, length): (u64, u32),
        mut buffer: IoBuffer,
    ) {
        let covered = (offset % BLOCK + u64::from(length)).next_multiple_of(BLOCK);
        buffer.set_length(usize::try_from(covered).expect("4 MiB and a block"));
        let first = first_part(offset, u64::from(length));
        let border = offset + u64::from(first.length);
        let second = first_part(border, u64::from(length - first.length));
        let border_at = usize::try_from(border - (offset - offset % BLOCK)).expect("4 MiB");
        let lengths = [border_at, buffer.length() - border_at];
        let starts = [0, border_at];
        let kind = PendingKind::Parts { starts, direction };
        let number =
            self.insert(Pending { tag, volume, buffer: None, parts: 2, refusal: None, kind });
        for (index, part) in [first, second].into_iter().enumerate() {
            let mut own = self.store.take_buffer(lengths[index]);
            if direction == Direction::Write {
                let from = starts[index];
                let bytes = &buffer.as_bytes()[from..from + lengths[index]];
                own.as_bytes_mut().copy_from_slice(bytes);
            }
            let request = self.store_request(direction, volume, part, own);
            self.send_part(number, index, request);
        }
        if let Some(pending) = self.pending(number) {
            pending.buffer = Some(buffer);
        }
    }

    pub(crate) fn submit_zero(
        &mut self,
        tag: VolumeTag,
        handle: VolumeHandle,
        offset: u64,
        length: u64,
        is_discard: bool,
    ) {
        let volume = match self.check_range(handle, offset, length) {
            Ok(volume) => volume,
            Err(refusal) => return self.refuse(tag, None, refusal),
        };
        let (mut from, mut to) = (offset, offset + length);
        if is_discard {
            // A discard is a hint: what is left of blocks at the ends stays as it is.
            (from, to) = (from.next_multiple_of(BLOCK), to - to % BLOCK);
        }
        let kind = PendingKind::Zero(Span { from, to });
        let number =
            self.insert(Pending { tag, volume, buffer: None, parts: 0, refusal: None, kind });
        self.zeroing().push(number);
        self.advance_zeroing();
    }

    /// Sends the next parts of zeroed ranges. At most 16 of each are on their way.
    pub(crate) fn advance_zeroing(&mut self) -> bool {
        let mut has_moved = false;
        let mut index = 0;
        while let Some(&number) = self.zeroing().get(index) {
            while self.zero_next(number) {
                has_moved = true;
            }
            let is_done = self.pending(number).is_none_or(|pending| match &pending.kind {
                PendingKind::Zero(span) => span.is_done() || pending.refusal.is_some(),
                PendingKind::Whole | PendingKind::Parts { .. } => true,
            });
            if is_done {
                self.zeroing().swap_remove(index);
                self.end_if_done(number);
            } else {
                index += 1;
            }
        }
        has_moved
    }

    /// Zeroes the next piece of a range. `false` when there is none or no room for it.
    fn zero_next(&mut self, number: u32) -> bool {
        let has_room = self.store.room() > 0;
        let Some(pending) = self.pending(number) else { return false };
        let (volume, parts) = (pending.volume, pending.parts);
        let PendingKind::Zero(span) = &mut pending.kind else { return false };
        if span.is_done() || pending.refusal.is_some() || parts >= ZERO_PARTS || !has_room {
            return false;
        }
        let Span { from, to } = *span;
        // Objects that are not there read as zeros: go on at the next one that is.
        let first = first_part(from, 1).index;
        let start = key(self.pool, Kind::Data, volume, first);
        let range = start..=*data_range(self.pool, volume).end();
        let found = self.store.list(range, 1).first().map(|object| index_of(&object.key));
        let from = match found {
            None => to,
            Some(index) if index == first => from,
            Some(index) => u64::from(index) * OBJECT_SIZE,
        };
        if from >= to {
            self.set_span(number, to);
            return true;
        }
        let (request, length) = self.zero_request(volume, from, to);
        self.set_span(number, from + length);
        if let Some(pending) = self.pending(number) {
            pending.parts += 1;
        }
        self.send_part(number, 0, request);
        true
    }

    fn set_span(&mut self, number: u32, from: u64) {
        if let Some(pending) = self.pending(number)
            && let PendingKind::Zero(span) = &mut pending.kind
        {
            span.from = from;
        }
    }

    /// The request for the first piece of a range: a whole object goes, whole blocks are
    /// zeroed, parts of blocks are written.
    fn zero_request(&mut self, volume: VolumeId, from: u64, to: u64) -> (StoreRequest, u64) {
        let part = first_part(from, to - from);
        let key = key(self.pool, Kind::Data, volume, part.index);
        let end = from + u64::from(part.length);
        if u64::from(part.length) == OBJECT_SIZE {
            let transaction = vec![Operation::Remove { key }];
            return (StoreRequest::Apply { transaction }, OBJECT_SIZE);
        }
        let edge = from.next_multiple_of(BLOCK).min(end);
        let blocks = end - end % BLOCK;
        let (length, is_whole) = if edge > from {
            (edge - from, false)
        } else if blocks > from {
            (blocks - from, true)
        } else {
            (end - from, false)
        };
        let (offset, short) = (part.offset, u32::try_from(length).expect("at most an object"));
        if is_whole {
            let transaction = vec![Operation::Zero { key, offset, length: short }];
            return (StoreRequest::Apply { transaction }, length);
        }
        let mut buffer = self.store.take_buffer(BLOCK_SIZE);
        buffer.as_bytes_mut().fill(0);
        (StoreRequest::Write { key, offset, length: short, buffer }, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_ends_with_its_object() {
        let part = |index, offset, length| Part { index, offset, length };
        assert_eq!(first_part(0, 512), part(0, 0, 512));
        assert_eq!(first_part(OBJECT_SIZE - 512, 4096), part(0, 4_193_792, 512));
        assert_eq!(first_part(3 * OBJECT_SIZE, u64::MAX), part(3, 0, 4_194_304));
    }
}
