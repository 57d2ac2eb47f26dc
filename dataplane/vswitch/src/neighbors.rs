// SPDX-License-Identifier: Apache-2.0
//! Next hops on the underlay: whose MAC is known, and whom to ask.
//!
//! The switch owns the VTEP's address and no kernel helps it, so it speaks ARP itself. It asks for
//! every next hop of the configuration at once and keeps asking, so that a packet hardly ever
//! finds one unknown; a packet that does is dropped and counted, not held.
//!
//! ```text
//!                 answer                      30 s pass
//!   Searching ────────────▶ Known ──────────────────────────▶ Doubted
//!    ▲   │ ask all, after     ▲                                │   │ ask it, 3 times,
//!    │   └ 1 s, 2 s, 4 s, 8 s └──────────── answer ────────────┘   └ 1 s apart
//!    └──────────────────────── no answer ──────────────────────────┘
//! ```
//!
//! In `Doubted` its MAC is still used. Any ARP message of a next hop is an answer; nobody else's
//! is listened to, so the table has a bound: the configuration's.

use crate::snapshot::UplinkTables;
use plinth_ids::{MacAddress, Moment};
use plinth_wire::ArpPacket;
use std::net::Ipv4Addr;
use std::time::Duration;

const KNOWN_FOR: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(8);
const DOUBTS: u8 = 3;
/// How often and at what distance a new address is announced (RFC 5227, section 1.1).
const ANNOUNCEMENTS: u8 = 2;
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Searching { asked: u8 },
    Known { mac: MacAddress },
    Doubted { mac: MacAddress, asked: u8 },
}

#[derive(Clone, Copy, Debug)]
struct Neighbor {
    address: Ipv4Addr,
    state: State,
    /// When something is to be done about it.
    due: Moment,
}

/// Announcements still to be made.
#[derive(Clone, Copy, Debug)]
struct Announcing {
    left: u8,
    due: Moment,
}

/// An ARP message to be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Asking {
    pub(crate) message: ArpPacket,
    pub(crate) destination: MacAddress,
}

#[derive(Debug)]
pub(crate) struct Neighbors {
    /// In order of address, as [`UplinkTables::next_hops`].
    list: Vec<Neighbor>,
    /// Room to build the next list in.
    spare: Vec<Neighbor>,
    /// Where the pass over the list goes on.
    cursor: usize,
    /// No neighbor is due before; `None` without neighbors.
    due: Option<Moment>,
    announcing: Announcing,
}

impl Neighbors {
    pub(crate) fn new(count_max: u16) -> Self {
        Self {
            list: Vec::with_capacity(count_max.into()),
            spare: Vec::with_capacity(count_max.into()),
            cursor: 0,
            due: None,
            announcing: Announcing { left: 0, due: Moment::ZERO },
        }
    }

    /// Takes over the next hops of a configuration. What is known of those that stay is kept.
    pub(crate) fn install(&mut self, now: Moment, next_hops: &[Ipv4Addr]) {
        assert!(next_hops.len() <= self.spare.capacity(), "the limit was checked in compile");
        self.spare.clear();
        let mut known = self.list.iter().peekable();
        for &address in next_hops {
            while known.next_if(|neighbor| neighbor.address < address).is_some() {}
            let kept = known.next_if(|neighbor| neighbor.address == address);
            let fresh = Neighbor { address, state: State::Searching { asked: 0 }, due: now };
            self.spare.push(kept.copied().unwrap_or(fresh));
        }
        std::mem::swap(&mut self.list, &mut self.spare);
        self.cursor = 0;
        self.due = self.list.iter().map(|neighbor| neighbor.due).min();
    }

    /// Tells the underlay where the VTEP is, from now on.
    pub(crate) const fn announce(&mut self, now: Moment) {
        self.announcing = Announcing { left: ANNOUNCEMENTS, due: now };
    }

    /// The MAC of a next hop, by its place in the configuration's list.
    pub(crate) fn mac(&self, next_hop: u16) -> Option<MacAddress> {
        match self.list.get(usize::from(next_hop))?.state {
            State::Known { mac } | State::Doubted { mac, .. } => Some(mac),
            State::Searching { .. } => None,
        }
    }

    /// Hears that `address` is at `mac`. `false` when it is no next hop of ours.
    pub(crate) fn learn(&mut self, now: Moment, address: Ipv4Addr, mac: MacAddress) -> bool {
        let Ok(place) = self.list.binary_search_by_key(&address, |neighbor| neighbor.address)
        else {
            return false;
        };
        let due = now + KNOWN_FOR;
        self.list[place] = Neighbor { address, state: State::Known { mac }, due };
        true
    }

    /// What is to be said now, if anything. At most one pass over the list a call.
    pub(crate) fn tick(&mut self, now: Moment, uplink: &UplinkTables) -> Option<Asking> {
        if self.announcing.left > 0 && self.announcing.due <= now {
            let left = self.announcing.left - 1;
            self.announcing = Announcing { left, due: now + ANNOUNCE_AGAIN };
            let message = ArpPacket::request((uplink.mac, uplink.vtep), uplink.vtep);
            return Some(Asking { message, destination: MacAddress::BROADCAST });
        }
        if self.due.is_none_or(|due| now < due) {
            return None;
        }
        while let Some(neighbor) = self.list.get_mut(self.cursor) {
            self.cursor += 1;
            if neighbor.due <= now {
                let destination = neighbor.ask(now);
                let message = ArpPacket::request((uplink.mac, uplink.vtep), neighbor.address);
                return Some(Asking { message, destination });
            }
        }
        // The pass is over: nobody is due before the earliest of them.
        self.cursor = 0;
        self.due = self.list.iter().map(|neighbor| neighbor.due).min();
        None
    }

    pub(crate) fn deadline(&self) -> Option<Moment> {
        let announcing = (self.announcing.left > 0).then_some(self.announcing.due);
        announcing.into_iter().chain(self.due).min()
    }
}

impl Neighbor {
    /// Asks once more: sets what follows from no answer, and says to whom the question goes.
    fn ask(&mut self, now: Moment) -> MacAddress {
        match self.state {
            State::Known { mac } => {
                self.state = State::Doubted { mac, asked: 1 };
                self.due = now + ASK_AGAIN;
                mac
            }
            State::Doubted { mac, asked } if asked < DOUBTS => {
                self.state = State::Doubted { mac, asked: asked + 1 };
                self.due = now + ASK_AGAIN;
                mac
            }
            State::Doubted { .. } => self.search(now, 0),
            State::Searching { asked } => self.search(now, asked),
        }
    }

    fn search(&mut self, now: Moment, asked: u8) -> MacAddress {
        let pause = ASK_AGAIN.saturating_mul(1 << asked.min(3));
        self.state = State::Searching { asked: asked.saturating_add(1) };
        self.due = now + pause.min(ASK_AGAIN_MAX);
        MacAddress::BROADCAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
    const OTHER: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 9);
    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

    fn uplink() -> UplinkTables {
        UplinkTables {
            vtep: Ipv4Addr::new(172, 16, 0, 1),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            frame_length_max: 1514,
            next_hops: [HOP].into(),
        }
    }

    /// The destinations of everything that is said at `now`.
    fn said(neighbors: &mut Neighbors, now: Moment) -> Vec<(Ipv4Addr, MacAddress)> {
        std::iter::from_fn(|| neighbors.tick(now, &uplink()))
            .map(|asking| (asking.message.target_address(), asking.destination))
            .collect()
    }

    #[test]
    fn a_silent_next_hop_is_asked_for_ever_less_often() {
        let mut neighbors = Neighbors::new(4);
        neighbors.install(Moment::ZERO, &[HOP]);
        let mut asked_at = Vec::new();
        while asked_at.len() < 7 {
            let now = neighbors.deadline().unwrap();
            for (target, destination) in said(&mut neighbors, now) {
                assert_eq!((target, destination), (HOP, MacAddress::BROADCAST));
                asked_at.push(now.as_secs());
            }
        }
        assert_eq!(asked_at, [0, 1, 3, 7, 15, 23, 31]);
        assert_eq!(neighbors.mac(0), None);
    }

    #[test]
    fn an_answer_holds_thirty_seconds_and_is_then_asked_for_again() {
        let mut neighbors = Neighbors::new(4);
        neighbors.install(Moment::ZERO, &[HOP]);
        assert_eq!(said(&mut neighbors, Moment::ZERO).len(), 1);
        assert!(neighbors.learn(SECOND / 2, HOP, MAC));
        assert_eq!(neighbors.mac(0), Some(MAC));
        assert_eq!(said(&mut neighbors, SECOND), []);
        for second in 31..34 {
            assert_eq!(said(&mut neighbors, SECOND * second), [(HOP, MAC)]);
            assert_eq!(neighbors.mac(0), Some(MAC), "it is used while it is doubted");
        }
        assert_eq!(said(&mut neighbors, SECOND * 34), [(HOP, MacAddress::BROADCAST)]);
        assert_eq!(neighbors.mac(0), None);
        neighbors.learn(SECOND * 35, HOP, MAC);
        assert_eq!(neighbors.mac(0), Some(MAC));
    }

    #[test]
    fn a_stranger_is_not_learned() {
        let mut neighbors = Neighbors::new(4);
        neighbors.install(Moment::ZERO, &[HOP]);
        assert!(!neighbors.learn(Moment::ZERO, OTHER, MAC));
        assert_eq!(neighbors.mac(0), None);
    }

    #[test]
    fn what_is_known_outlives_a_configuration() {
        let mut neighbors = Neighbors::new(4);
        neighbors.install(Moment::ZERO, &[HOP]);
        said(&mut neighbors, Moment::ZERO);
        neighbors.learn(SECOND, HOP, MAC);
        let first = Ipv4Addr::new(172, 16, 0, 1);
        neighbors.install(2 * SECOND, &[first, HOP, OTHER]);
        assert_eq!([0, 1, 2].map(|place| neighbors.mac(place)), [None, Some(MAC), None]);
        let targets: Vec<_> =
            said(&mut neighbors, 2 * SECOND).into_iter().map(|(target, _)| target).collect();
        assert_eq!(targets, [first, OTHER]);
        neighbors.install(3 * SECOND, &[OTHER]);
        assert_eq!([0, 1].map(|place| neighbors.mac(place)), [None, None]);
    }

    #[test]
    fn a_new_address_is_announced_twice() {
        let mut neighbors = Neighbors::new(4);
        neighbors.announce(SECOND);
        let announced = [(uplink().vtep, MacAddress::BROADCAST)];
        assert_eq!(neighbors.deadline(), Some(SECOND));
        assert_eq!(said(&mut neighbors, SECOND), announced);
        assert_eq!(neighbors.deadline(), Some(3 * SECOND));
        assert_eq!(said(&mut neighbors, 3 * SECOND), announced);
        assert_eq!(neighbors.deadline(), None);
    }
}
