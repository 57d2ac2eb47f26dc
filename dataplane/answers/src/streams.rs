// SPDX-License-Identifier: Apache-2.0
//! TCP with guests: what they ask by a connection, and what they are told.
//!
//! Every port that speaks has a stack of its own for each service ([`Stack`]), with its own sockets
//! and buffers, so that whose request it is follows from where its packets came from and from nothing in them. A
//! stack is there while its guest has a connection, and no longer.
//!
//! ```text
//!  segment ─▶ Streams::take ─▶ Effect::Ask ─▶ whoever knows ─▶ Streams::answer
//!                  │ ▲                                              │
//!    Effect::Say ◀─┘ └── Streams::tick, when the deadline comes     └─▶ Effect::Say …
//! ```
//!
//! # Bounds
//! [`STACKS_MAX`] guests at once, [`CONNECTIONS_MAX`](crate::CONNECTIONS_MAX) connections of each,
//! each with buffers of 5 KiB, a request of [`REQUEST_MAX`](crate::REQUEST_MAX) and a response of
//! [`RESPONSE_MAX`], for [`LIFE`](crate::LIFE) at most: 52 MiB if all of them would ask
//! for all of it.

use crate::directory::DNS_PORT;
use crate::frame::Macs;
use crate::stack::Stack;
use plinth_ids::{MacAddress, Moment, PortId};
use plinth_switch_api::{METADATA_PORT, METADATA_RESPONSE_MAX};
use plinth_wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader};
use std::collections::{BTreeMap, VecDeque};

/// The longest response.
pub const RESPONSE_MAX: usize = METADATA_RESPONSE_MAX;

/// Guests that have connections at once, counted for each service. What a guest beyond sends is not
/// heard; it sends again.
pub const STACKS_MAX: usize = 256;

/// What a guest has a connection to.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Service {
    /// What its node knows of it, by HTTP: one request a connection.
    Metadata,
    /// Names, one question after the other.
    Dns,
}

impl Service {
    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::Metadata => METADATA_PORT,
            Self::Dns => DNS_PORT,
        }
    }
}

/// A guest's IP packet with a piece of a conversation, found to be for a service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Segment {
    pub(crate) service: Service,
    /// Of the NIC.
    pub(crate) mtu: u16,
    pub(crate) packet: Vec<u8>,
    macs: Macs,
}

impl Segment {
    pub(crate) fn new(service: Service, mtu: u16, macs: Macs, packet: &[u8]) -> Self {
        Self { service, mtu, packet: packet.to_vec(), macs }
    }
}

/// A connection. None is ever given twice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StreamId(pub u64);

/// What is to be done, in this order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect<O> {
    /// Send a whole frame to this guest.
    Say(O, Vec<u8>),
    /// The guest asked; say what the answer is with [`Streams::answer`]. The guest is not heard
    /// before.
    Ask { stream: StreamId, origin: O, service: Service, request: Vec<u8> },
}

/// The conversations of all guests. `O` is where what is said to a guest goes; a guest with
/// another origin than before is another guest.
#[derive(Debug)]
pub struct Streams<O> {
    stacks: BTreeMap<Place, Conversations<O>>,
    /// Where a request came from that has no answer yet.
    asked: BTreeMap<StreamId, Place>,
    effects: VecDeque<Effect<O>>,
    next: u64,
    seed: u64,
}

type Place = (PortId, Service);

#[derive(Debug)]
struct Conversations<O> {
    origin: O,
    guest: MacAddress,
    router: MacAddress,
    stack: Stack,
}

impl<O: Copy + Eq> Streams<O> {
    /// The seed makes sequence numbers hard to guess for whoever does not see them.
    pub fn new(seed: u64) -> Self {
        let (stacks, asked) = (BTreeMap::new(), BTreeMap::new());
        Self { stacks, asked, effects: VecDeque::new(), next: 0, seed }
    }

    /// Takes a guest's segment.
    pub fn take(&mut self, now: Moment, (origin, port): (O, PortId), segment: &Segment) {
        let is_same = |known: &Conversations<O>| {
            known.origin == origin && known.stack.mtu() == Stack::fitting(segment.mtu)
        };
        let place = (port, segment.service);
        if self.stacks.get(&place).is_some_and(|known| !is_same(known)) {
            self.drop_stack(place);
        }
        if self.stacks.len() >= STACKS_MAX && !self.stacks.contains_key(&place) {
            return;
        }
        let seed = self.seed;
        let known = self.stacks.entry(place).or_insert_with(|| Conversations {
            origin,
            guest: segment.macs.source,
            router: segment.macs.destination,
            stack: Stack::new(now, segment.mtu, seed),
        });
        // Another one for the next stack (Steele and Vigna's `SplitMix64` increment).
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15).rotate_left(7);
        known.stack.take(now, segment.service, &segment.packet, &mut self.next);
        self.collect(place);
    }

    /// Gives a request its answer: all of it, after which the connection ends, or one for names is
    /// heard again. A request that is gone needs none. What is too long to be passed on is answered by `false`, and the guest with a
    /// connection that breaks off.
    pub fn answer(&mut self, now: Moment, stream: StreamId, response: Vec<u8>) -> bool {
        let Some(place) = self.asked.remove(&stream) else { return true };
        let Some(known) = self.stacks.get_mut(&place) else { return true };
        let fits = response.len() <= RESPONSE_MAX;
        known.stack.answer(now, stream, if fits { response } else { Vec::new() });
        self.collect(place);
        fits
    }

    /// Whether a request still waits for its answer.
    pub fn is_waiting(&self, stream: StreamId) -> bool {
        self.asked.contains_key(&stream)
    }

    /// What is to be done next.
    pub fn next_effect(&mut self) -> Option<Effect<O>> {
        self.effects.pop_front()
    }

    /// When something is due of its own accord.
    pub fn deadline(&self) -> Option<Moment> {
        self.stacks.values().filter_map(|known| known.stack.deadline()).min()
    }

    /// Does what is due: at most one look at each stack.
    pub fn tick(&mut self, now: Moment) {
        let is_due = |known: &Conversations<O>| known.stack.deadline().is_some_and(|at| at <= now);
        let due: Vec<Place> = self
            .stacks
            .iter()
            .filter(|(_, known)| is_due(known))
            .map(|(&place, _)| place)
            .collect();
        for place in due {
            if let Some(known) = self.stacks.get_mut(&place) {
                known.stack.settle(now);
            }
            self.collect(place);
        }
    }

    /// Forgets the conversations of guests for whom `stays` is false, without a word to them:
    /// who has their ports now is told nothing of them.
    pub fn retain(&mut self, stays: impl Fn(PortId, &O, Service) -> bool) {
        self.stacks.retain(|&(port, service), known| stays(port, &known.origin, service));
        self.asked.retain(|_, place| self.stacks.contains_key(place));
    }

    /// Guests that have a connection now.
    pub fn guests(&self) -> usize {
        self.stacks.len()
    }

    /// Forgets a guest's conversations without a word to it.
    pub fn forget(&mut self, port: PortId) {
        self.retain(|of, _, _| of != port);
    }

    fn drop_stack(&mut self, place: Place) {
        self.stacks.remove(&place);
        self.asked.retain(|_, of| *of != place);
    }

    /// Takes what a stack has to say, and the stack away when it has nothing left to do.
    fn collect(&mut self, place: Place) {
        let Some(known) = self.stacks.get_mut(&place) else { return };
        for packet in known.stack.packets() {
            let ethertype = match packet.first().map(|first| first >> 4) {
                Some(4) => ETHERTYPE_IPV4,
                _ => ETHERTYPE_IPV6,
            };
            let header = EthernetHeader::new(known.guest, known.router, ethertype);
            let frame = [bytemuck::bytes_of(&header), &packet].concat();
            self.effects.push_back(Effect::Say(known.origin, frame));
        }
        for (stream, service, request) in known.stack.requests() {
            self.asked.insert(stream, place);
            let origin = known.origin;
            self.effects.push_back(Effect::Ask { stream, origin, service, request });
        }
        for stream in known.stack.forgotten() {
            self.asked.remove(&stream);
        }
        if known.stack.is_idle() {
            self.drop_stack(place);
        }
    }
}
