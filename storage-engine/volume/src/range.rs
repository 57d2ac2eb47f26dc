// SPDX-License-Identifier: Apache-2.0
//! From ranges of a volume to ranges of its objects: reads, writes, flushes.

use crate::gate::{Piece, Slow, SlowWork};
use crate::key::OBJECT_SIZE;
use crate::pending::{Pending, PendingKind, part_tag};
use crate::request::{REQUEST_BYTES_MAX, VolumeHandle, VolumeRefusal, VolumeRequest, VolumeTag};
use crate::volume::Access;
use crate::volumes::{Attached, Volumes};
use plinth_store::{BLOCK_SIZE, IoBuffer, ObjectStore, StoreRequest};

pub(crate) const BLOCK: u64 = BLOCK_SIZE as u64;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Direction {
    Read,
    Write,
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

impl<S: ObjectStore> Volumes<S> {
    pub(crate) fn check_range(
        &self,
        handle: VolumeHandle,
        offset: u64,
        length: u64,
    ) -> Result<Attached, VolumeRefusal> {
        let attached = self.attached(handle)?;
        let size = if attached.view == 0 {
            // The case of every guest's request: no search for a snapshot.
            self.place(attached.at).map_or(0, |volume| volume.header.size)
        } else {
            self.size(handle)?
        };
        let is_whole = offset.is_multiple_of(512) && length.is_multiple_of(512) && length > 0;
        let is_inside = offset.checked_add(length).is_some_and(|end| end <= size);
        if is_whole && is_inside { Ok(attached) } else { Err(VolumeRefusal::BadRange) }
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
        let covered = (offset % BLOCK + u64::from(length)).next_multiple_of(BLOCK);
        let checked = match self.check_range(handle, offset, u64::from(length)) {
            Ok(_) if length > REQUEST_BYTES_MAX => Err(VolumeRefusal::BadRange),
            Ok(_) if (buffer.capacity() as u64) < covered => Err(VolumeRefusal::ShortBuffer),
            Ok(attached) if attached.view != 0 && direction == Direction::Write => {
                Err(VolumeRefusal::Snapshot)
            }
            other => other,
        };
        let attached = match checked {
            Ok(attached) => attached,
            Err(refusal) => {
                self.refuse(tag, Some(buffer), refusal);
                return Ok(());
            }
        };
        let part = first_part(offset, u64::from(length));
        if part.length == length {
            let number = self.insert(Pending {
                tag,
                at: attached.at,
                buffer: None,
                parts: 1,
                refusal: None,
                is_change: direction == Direction::Write,
                kind: PendingKind::Whole,
            });
            self.send_part((number, 0), attached, direction, part, buffer);
        } else {
            self.split(tag, attached, direction, (offset, length), buffer);
        }
        Ok(())
    }

    /// Sends one object's part to the object, or to the gate that finds it.
    fn send_part(
        &mut self,
        (number, part_number): (u32, usize),
        attached: Attached,
        direction: Direction,
        part: Part,
        buffer: IoBuffer,
    ) {
        let pool = self.pool;
        let access = match direction {
            Direction::Read => Access::Read,
            Direction::Write => Access::Change,
        };
        let Part { index, offset, length } = part;
        let place = self.place_mut(attached.at).filter(|_| attached.view == 0);
        let direct = place.and_then(|volume| {
            let key = volume.direct(pool, index, access)?;
            volume.changing += u32::from(access == Access::Change);
            Some(key)
        });
        let Some(key) = direct else {
            let piece = Piece { number, part: part_number, offset, length };
            let work = match direction {
                Direction::Read => SlowWork::Read { view: attached.view, piece, buffer },
                Direction::Write => SlowWork::Write { piece, buffer },
            };
            self.queue_slow(Slow { at: attached.at, index, work });
            return;
        };
        let request = match direction {
            Direction::Read => StoreRequest::Read { key, offset, length, buffer },
            Direction::Write => StoreRequest::Write { key, offset, length, buffer },
        };
        self.send(part_tag(number, part_number), request);
    }

    /// A range over the border of two objects: each gets its part in a buffer of its own.
    fn split(
        &mut self,
        tag: VolumeTag,
        attached: Attached,
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
        let mut owns = lengths.map(|length| self.store.take_buffer(length));
        if direction == Direction::Write {
            for (own, from) in owns.iter_mut().zip(starts) {
                let bytes = &buffer.as_bytes()[from..from + own.length()];
                own.as_bytes_mut().copy_from_slice(bytes);
            }
        }
        let number = self.insert(Pending {
            tag,
            at: attached.at,
            buffer: Some(buffer),
            parts: 2,
            refusal: None,
            is_change: direction == Direction::Write,
            kind: PendingKind::Parts { starts, direction },
        });
        for (index, (part, own)) in [first, second].into_iter().zip(owns).enumerate() {
            self.send_part((number, index), attached, direction, part, own);
        }
    }

    pub(crate) fn submit_flush(
        &mut self,
        tag: VolumeTag,
        handle: VolumeHandle,
        request: VolumeRequest,
    ) -> Result<(), VolumeRequest> {
        let attached = match self.attached(handle) {
            Ok(attached) => attached,
            Err(refusal) => {
                self.refuse(tag, None, refusal);
                return Ok(());
            }
        };
        if self.store.room() == 0 {
            return Err(request);
        }
        let number = self.insert(Pending {
            tag,
            at: attached.at,
            buffer: None,
            parts: 1,
            refusal: None,
            is_change: false,
            kind: PendingKind::Whole,
        });
        self.send(part_tag(number, 0), StoreRequest::Flush);
        Ok(())
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
