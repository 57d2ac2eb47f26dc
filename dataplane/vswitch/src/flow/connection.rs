// SPDX-License-Identifier: Apache-2.0
//! Connections: what the two flows of one exchange have in common.
//!
//! A connection is one cache line in a table of its own. The flow entries of both directions hold
//! its index, so that it is found without another lookup, and it holds their places, so that they
//! live and go together. A hit of anything but TCP does not touch it.

use super::table::Slot;
use super::tcp::{Tcp, TcpState};
use crate::limits::Timeouts;
use std::time::Duration;

/// Which way a flow goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Direction {
    /// As the packet that began the connection.
    Forward,
    Back,
}

impl Direction {
    pub(crate) const fn number(self) -> usize {
        match self {
            Self::Forward => 0,
            Self::Back => 1,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Back => "back",
        }
    }

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Forward => Self::Back,
            Self::Back => Self::Forward,
        }
    }
}

/// The place of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ConnectionIndex(u32);

#[cfg(test)]
impl ConnectionIndex {
    pub(crate) const fn of(place: u32) -> Self {
        Self(place)
    }
}

/// A flow entry's connection and its direction in it, or none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Link(u32);

impl Link {
    pub(crate) const NONE: Self = Self(u32::MAX);

    pub(crate) const fn new(connection: ConnectionIndex, direction: Direction) -> Self {
        Self(connection.0 << 1 | matches!(direction, Direction::Back) as u32)
    }

    /// Connections are numbered from zero, and each has two.
    pub(super) const fn raw(self) -> u32 {
        self.0
    }

    #[inline]
    pub(crate) const fn get(self) -> Option<(ConnectionIndex, Direction)> {
        if self.0 == u32::MAX {
            return None;
        }
        let direction = if self.0 & 1 == 0 { Direction::Forward } else { Direction::Back };
        Some((ConnectionIndex(self.0 >> 1), direction))
    }
}

/// How a connection is followed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tracked {
    Tcp,
    Icmp,
    /// UDP, and every protocol that is not looked into.
    Datagrams,
    /// No exchange, but the port outside of an address and port inside.
    Mapping,
}

impl Tracked {
    /// As it is handed over.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Tcp => 0,
            Self::Icmp => 1,
            Self::Datagrams => 2,
            Self::Mapping => 3,
        }
    }

    pub(super) const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Tcp),
            1 => Some(Self::Icmp),
            2 => Some(Self::Datagrams),
            3 => Some(Self::Mapping),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Connection {
    pub(crate) tcp: Tcp,
    /// The flow entries, the forward one's place first; of a free record, the next free one.
    entries: [Option<Slot>; 2],
    /// Of the configuration that allowed it.
    pub(crate) generation: u32,
    /// In milliseconds, wrapping.
    pub(crate) made: u32,
    pub(crate) tracked: Tracked,
    /// Whether a packet came back.
    pub(crate) is_answered: bool,
    /// Whether both directions have an edit record.
    pub(crate) is_translated: bool,
}

const _: () = assert!(size_of::<Connection>() == 64, "a connection is one cache line");

impl Connection {
    pub(crate) const fn new(tracked: Tracked, tcp: Tcp, generation: u32, made: u32) -> Self {
        let (is_answered, is_translated) = (false, false);
        Self { tcp, entries: [None; 2], generation, made, tracked, is_answered, is_translated }
    }

    /// Whether both sides want it, so that no new flow may take its place.
    pub(crate) const fn is_assured(&self) -> bool {
        match self.tracked {
            Tracked::Tcp => matches!(
                self.tcp.state,
                TcpState::Established | TcpState::HalfClosed | TcpState::Closing
            ),
            Tracked::Icmp | Tracked::Datagrams | Tracked::Mapping => self.is_answered,
        }
    }

    /// How long it is kept without a packet, in milliseconds.
    pub(crate) const fn timeout(&self, timeouts: &Milliseconds) -> u32 {
        match (self.tracked, self.is_answered) {
            (Tracked::Icmp, _) => timeouts.icmp,
            (Tracked::Datagrams, false) => timeouts.datagrams_one_way,
            (Tracked::Datagrams, true) => timeouts.datagrams,
            (Tracked::Mapping, _) => timeouts.mapping,
            (Tracked::Tcp, _) => match self.tcp.state {
                TcpState::Opening | TcpState::Crossed | TcpState::Answered => timeouts.tcp_opening,
                TcpState::Established => timeouts.tcp_established,
                TcpState::HalfClosed => timeouts.tcp_half_closed,
                TcpState::Closing | TcpState::Closed => timeouts.tcp_closed,
                TcpState::Reset => timeouts.tcp_reset,
            },
        }
    }

    /// What is shown to people.
    pub(crate) const fn state_name(&self) -> &'static str {
        match (self.tracked, self.is_answered) {
            (Tracked::Tcp, _) if self.tcp.is_loose => "picked-up",
            (Tracked::Tcp, _) => match self.tcp.state {
                TcpState::Opening => "syn-sent",
                TcpState::Crossed => "syn-crossed",
                TcpState::Answered => "syn-answered",
                TcpState::Established => "established",
                TcpState::HalfClosed => "half-closed",
                TcpState::Closing => "closing",
                TcpState::Closed => "closed",
                TcpState::Reset => "reset",
            },
            (_, false) => "one-way",
            (_, true) => "answered",
        }
    }

    pub(crate) const fn entry(&self, direction: Direction) -> Option<Slot> {
        self.entries[direction.number()]
    }

    pub(crate) const fn set_entry(&mut self, direction: Direction, slot: Option<Slot>) {
        self.entries[direction.number()] = slot;
    }
}

/// Every name that [`Connection::state_name`] gives.
pub(crate) const STATE_NAMES: [&str; 11] = [
    "syn-sent",
    "syn-crossed",
    "syn-answered",
    "established",
    "half-closed",
    "closing",
    "closed",
    "reset",
    "picked-up",
    "one-way",
    "answered",
];

/// [`Timeouts`] as the table compares them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Milliseconds {
    tcp_opening: u32,
    tcp_established: u32,
    tcp_half_closed: u32,
    tcp_closed: u32,
    tcp_reset: u32,
    datagrams_one_way: u32,
    datagrams: u32,
    icmp: u32,
    mapping: u32,
    /// The least of all, below which nothing needs to be looked up.
    pub(crate) least: u32,
}

impl Milliseconds {
    /// `sweep` is how long it takes to look at the whole table once, which is when a mapping
    /// hears of its connections: it outlasts two of them.
    pub(crate) fn new(timeouts: &Timeouts, sweep: Duration) -> Self {
        let of = super::table::milliseconds_of;
        let mut all = Self {
            tcp_opening: of(timeouts.tcp_opening),
            tcp_established: of(timeouts.tcp_established),
            tcp_half_closed: of(timeouts.tcp_half_closed),
            tcp_closed: of(timeouts.tcp_closed),
            tcp_reset: of(timeouts.tcp_reset),
            datagrams_one_way: of(timeouts.datagrams_one_way),
            datagrams: of(timeouts.datagrams),
            icmp: of(timeouts.icmp),
            mapping: of(timeouts.datagrams.max(sweep * 3)),
            least: 0,
        };
        let each = [
            all.tcp_opening,
            all.tcp_established,
            all.tcp_half_closed,
            all.tcp_closed,
            all.tcp_reset,
            all.datagrams_one_way,
            all.datagrams,
            all.icmp,
        ];
        all.least = each.into_iter().min().unwrap_or(0);
        all
    }
}

/// All connections, in a fixed number of places.
#[derive(Debug)]
pub(crate) struct Connections {
    records: Box<[Connection]>,
    /// Places that were given back. They are not linked through the records: the next one would
    /// have to be read from a line that nobody has fetched.
    free: Vec<u32>,
    /// Places from here on were never taken.
    fresh: u32,
    live: u32,
}

impl Connections {
    pub(crate) fn new(count: usize) -> Self {
        let empty = Connection::new(Tracked::Icmp, Tcp::NONE, 0, 0);
        let records = vec![empty; count].into();
        // All of them may be given back, and none of that allocates.
        Self { records, free: Vec::with_capacity(count), fresh: 0, live: 0 }
    }

    pub(crate) const fn live(&self) -> u32 {
        self.live
    }

    #[inline]
    pub(crate) fn get(&self, index: ConnectionIndex) -> &Connection {
        &self.records[index.0 as usize]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: ConnectionIndex) -> &mut Connection {
        &mut self.records[index.0 as usize]
    }

    /// Brings the place close that is taken after `ahead` others.
    #[inline]
    pub(super) fn touch_next(&self, ahead: usize) -> u64 {
        let place = match self.free.len().checked_sub(ahead + 1) {
            Some(at) => self.free[at] as usize,
            None => self.fresh as usize + ahead - self.free.len(),
        };
        self.records.get(place).map_or(0, |record| u64::from(record.generation))
    }

    pub(crate) fn take(&mut self, connection: Connection) -> Option<ConnectionIndex> {
        let place = match self.free.pop() {
            Some(place) => place,
            None => self.fresh,
        };
        let record = self.records.get_mut(place as usize)?;
        *record = Connection { entries: [None; 2], ..connection };
        self.fresh = self.fresh.max(place + 1);
        self.live += 1;
        Some(ConnectionIndex(place))
    }

    pub(crate) fn give_back(&mut self, index: ConnectionIndex) {
        debug_assert!(self.free.len() < self.free.capacity(), "a place is given back once");
        self.free.push(index.0);
        self.live -= 1;
    }
}
