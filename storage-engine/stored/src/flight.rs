// SPDX-License-Identifier: Apache-2.0
//! What is under way between a guest's request and the pool.
//!
//! A request is cut where an object ends, because a volume moves at most one object at once. Each
//! piece is a [`Flight`] with one buffer; the pieces of a request that has several share a
//! [`Group`], which remembers whether one of them failed.

use plinth_backends::blk::{BlkOperation, BlkStatus, BlkTag};

/// A volume's pieces end where an object ends.
const OBJECT_SIZE: u64 = 4 << 20;

/// What a buffer's alignment is measured in.
const BLOCK_SIZE: u64 = 4096;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FlightKind {
    Read,
    Write,
    /// No data: flush, discard, zeroing.
    Plain,
}

/// One piece of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) attachment: u32,
    pub(crate) tag: BlkTag,
    pub(crate) kind: FlightKind,
    pub(crate) piece: Piece,
    pub(crate) group: Option<u32>,
    pub(crate) operation: BlkOperation,
    pub(crate) times: Times,
}

/// When what happened to a request, by the cycle counter, as of the rounds in which it did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// Since when it may have been in its ring.
    pub(crate) looked: u64,
    /// Taken from the ring.
    pub(crate) taken: u64,
    /// Let pass by the volume's limits.
    pub(crate) admitted: u64,
    /// The last of its pieces was given to the pool.
    pub(crate) started: u64,
}

/// Where a piece lies.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Piece {
    /// In the request's data.
    pub(crate) data_offset: u32,
    /// In the volume.
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

impl Piece {
    /// The piece of a request for `length` bytes at `offset` that starts `data_offset` bytes into
    /// it: up to its end, but not past the end of an object.
    pub(crate) fn at(offset: u64, length: u32, data_offset: u32) -> Self {
        let offset = offset + u64::from(data_offset);
        let room = OBJECT_SIZE - offset % OBJECT_SIZE;
        let left = length - data_offset;
        let length = u32::try_from(room).map_or(left, |room| room.min(left));
        Self { data_offset, offset, length }
    }

    /// Where the piece starts in its buffer, whose first byte is a block's first.
    pub(crate) fn skew(self) -> usize {
        usize::try_from(self.offset % BLOCK_SIZE).expect("less than a block")
    }

    /// Bytes of a buffer for the whole blocks around the piece.
    pub(crate) fn buffer_length(self) -> usize {
        (self.skew() + self.length as usize).next_multiple_of(4096)
    }
}

/// The pieces of one request.
#[derive(Clone, Copy, Debug)]
struct Group {
    /// Pieces that have not ended, those not yet started included.
    left: u32,
    has_failed: bool,
}

/// A fixed number of numbered places.
#[derive(Debug)]
struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    fn new(count: u32) -> Self {
        Self { places: (0..count).map(|_| None).collect(), free: (0..count).rev().collect() }
    }

    fn take(&mut self, value: T) -> Option<u32> {
        let number = self.free.pop()?;
        self.places[number as usize] = Some(value);
        Some(number)
    }

    fn release(&mut self, number: u32) -> Option<T> {
        let value = self.places.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(value)
    }
}

/// All flights of a worker. Memory is taken once; full is back-pressure.
#[derive(Debug)]
pub(crate) struct Flights {
    flights: Slab<Flight>,
    groups: Slab<Group>,
}

impl Flights {
    pub(crate) fn new(count: u32) -> Self {
        Self { flights: Slab::new(count), groups: Slab::new(count) }
    }

    /// A group for a request of `length` bytes at `offset`; `Ok(None)` when it is one piece only,
    /// `Err` when there is no place.
    pub(crate) fn group(&mut self, offset: u64, length: u32) -> Result<Option<u32>, Full> {
        let end = offset + u64::from(length);
        let pieces = end.div_ceil(OBJECT_SIZE) - offset / OBJECT_SIZE;
        if pieces <= 1 {
            return Ok(None);
        }
        let left = u32::try_from(pieces).expect("4 GiB are a thousand objects");
        self.groups.take(Group { left, has_failed: false }).map(Some).ok_or(Full)
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.flights.free.is_empty()
    }

    pub(crate) fn start(&mut self, flight: Flight) -> Option<u32> {
        self.flights.take(flight)
    }

    pub(crate) fn land(&mut self, number: u32) -> Option<Flight> {
        self.flights.release(number)
    }

    /// Counts the end of a piece. The request's status when it was the last one.
    pub(crate) fn end(&mut self, group: Option<u32>, is_ok: bool) -> Option<BlkStatus> {
        let status = |is_ok| if is_ok { BlkStatus::Ok } else { BlkStatus::IoError };
        let Some(number) = group else { return Some(status(is_ok)) };
        let place = self.groups.places.get_mut(number as usize)?;
        let group = place.as_mut()?;
        group.left -= 1;
        group.has_failed |= !is_ok;
        if group.left > 0 {
            return None;
        }
        let has_failed = group.has_failed;
        self.groups.release(number);
        Some(status(!has_failed))
    }
}

/// No place is free: try again after something has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Full;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_objects_end_and_leave_nothing_out() {
        let (offset, length) = (OBJECT_SIZE - 512, u32::try_from(2 * OBJECT_SIZE).unwrap());
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < length {
            let piece = Piece::at(offset, length, done);
            done += piece.length;
            pieces.push(piece);
        }
        let lengths: Vec<_> = pieces.iter().map(|piece| piece.length).collect();
        assert_eq!(lengths, [512, 4 << 20, (4 << 20) - 512]);
        assert_eq!(pieces[0].skew(), 3584);
        assert_eq!(pieces[0].buffer_length(), 4096);
        assert_eq!(pieces[1].offset, OBJECT_SIZE);
        let mut flights = Flights::new(4);
        let group = flights.group(offset, length).unwrap();
        assert_eq!(flights.groups.places[group.unwrap() as usize].unwrap().left, 3);
    }

    #[test]
    fn a_request_ends_with_its_last_piece_and_fails_with_any() {
        let mut flights = Flights::new(4);
        let group = flights.group(0, 3 * (4 << 20)).unwrap();
        assert_eq!(flights.end(group, true), None);
        assert_eq!(flights.end(group, false), None);
        assert_eq!(flights.end(group, true), Some(BlkStatus::IoError));
        assert_eq!(flights.group(0, 4 << 20), Ok(None));
        assert_eq!(flights.end(None, true), Some(BlkStatus::Ok));
    }
}
