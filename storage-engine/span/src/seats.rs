// SPDX-License-Identifier: Apache-2.0
//! The disks of a pool, from the span's side.

use crate::map::{GROUPS, Standing};
use crate::span::Span;
use plinth_ids::DiskId;
use plinth_store::{ObjectStore, ReadOnlyReason, StoreCapacity, StoreState};

/// Reads that a disk may fail in a row, none succeeding in between, before it is taken out.
pub(crate) const READ_FAILURES_MAX: u32 = 64;

/// A disk with its store.
#[derive(Debug)]
pub(crate) struct Seat<S> {
    pub(crate) disk: DiskId,
    pub(crate) store: S,
    pub(crate) serial: [u8; 16],
    /// Reads that failed since one succeeded.
    pub(crate) read_failures: u32,
    /// It left the pool; whoever asked for that has not taken it yet.
    pub(crate) has_left: bool,
}

impl<S: ObjectStore> Seat<S> {
    pub(crate) fn condition(&self) -> DiskCondition {
        match self.store.state() {
            StoreState::ReadOnly(reason) => DiskCondition::ReadOnly(reason),
            StoreState::Writable if self.read_failures >= READ_FAILURES_MAX => {
                DiskCondition::Unreadable
            }
            StoreState::Writable => DiskCondition::Working,
        }
    }

    pub(crate) fn is_working(&self) -> bool {
        self.condition() == DiskCondition::Working && !self.has_left
    }
}

/// Whether a disk works, as far as is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DiskCondition {
    Working,
    /// It failed a write: it takes no more, and reads are tried.
    ReadOnly(ReadOnlyReason),
    /// It failed one read after the other: nothing is asked of it any more.
    Unreadable,
    /// It is not there, or is not the disk that the pool has under this number.
    Missing,
}

impl std::fmt::Display for DiskCondition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Working => f.write_str("works"),
            Self::ReadOnly(reason) => write!(f, "it takes no writes, because {reason}"),
            Self::Unreadable => write!(f, "{READ_FAILURES_MAX} reads in a row failed"),
            Self::Missing => f.write_str("it is not there"),
        }
    }
}

/// A disk of a pool, for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpanDisk {
    pub disk: DiskId,
    pub standing: Standing,
    pub condition: DiskCondition,
    /// Placement groups it has, and how many of those belong elsewhere.
    pub groups: usize,
    pub leaving: usize,
    /// `None` of a disk that is not there.
    pub capacity: Option<StoreCapacity>,
}

impl<S: ObjectStore> Span<S> {
    /// The pool's disks by number, those that left not included. Of a pool of one disk that was
    /// never more, that disk.
    pub fn disks(&self) -> Vec<SpanDisk> {
        let Some(many) = &self.many else {
            let of = |seat: &Seat<S>| SpanDisk {
                disk: seat.disk,
                standing: Standing::In,
                condition: seat.condition(),
                groups: GROUPS,
                leaving: 0,
                capacity: Some(seat.store.capacity()),
            };
            return self.seats.iter().flatten().map(of).collect();
        };
        let mut disks = Vec::new();
        for (&disk, entry) in &many.map.disks {
            if entry.standing == Standing::Left {
                continue;
            }
            let seat = self.seats.iter().flatten().find(|seat| seat.disk == disk);
            let of_it = |group: &&usize| many.map.groups[**group].owner == disk;
            let all: Vec<usize> = (0..GROUPS).collect();
            disks.push(SpanDisk {
                disk,
                standing: entry.standing,
                condition: seat.map_or(DiskCondition::Missing, Seat::condition),
                groups: all.iter().filter(of_it).count(),
                leaving: all
                    .iter()
                    .filter(of_it)
                    .filter(|group| many.map.place(**group).is_some_and(|place| place != disk))
                    .count(),
                capacity: seat.map(|seat| seat.store.capacity()),
            });
        }
        disks
    }

    pub(crate) fn seat_of(&self, disk: DiskId) -> Option<usize> {
        self.seats.iter().position(|seat| seat.as_ref().is_some_and(|seat| seat.disk == disk))
    }

    /// The store of a disk that is there.
    pub fn store(&self, disk: DiskId) -> Option<&S> {
        self.seats.iter().flatten().find(|seat| seat.disk == disk).map(|seat| &seat.store)
    }

    pub fn store_mut(&mut self, disk: DiskId) -> Option<&mut S> {
        self.seats.iter_mut().flatten().find(|seat| seat.disk == disk).map(|seat| &mut seat.store)
    }

    /// The stores of all disks that are there.
    pub fn stores(&self) -> impl Iterator<Item = (DiskId, &S)> {
        self.seats.iter().flatten().map(|seat| (seat.disk, &seat.store))
    }

    pub fn stores_mut(&mut self) -> impl Iterator<Item = (DiskId, &mut S)> {
        self.seats.iter_mut().flatten().map(|seat| (seat.disk, &mut seat.store))
    }
}
