// SPDX-License-Identifier: Apache-2.0
//! Guests of one node that meet by their external addresses and ports.

use super::support::follow::{Follow, Heard};
use super::support::outside::*;
use super::support::*;
use super::tcp::{Judged, between, judge};
use super::{End, NICS, OURS, PORTS, Race};
use plinth_switch_api::PortMapping;
use plinth_vswitch::DropReason;
use plinth_wire::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};

/// A NIC's number, and an address and port of it.
type Inside = (u8, End);

/// A conversation of two. Of pings, the ports are identifiers: those of who asks in `from` and
/// `to_outside`, those that the other hears in the others.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Turn {
    protocol: u8,
    from: Inside,
    from_outside: End,
    to: Inside,
    to_outside: End,
}

/// Who is spoken from, and to which address and port of ours.
type Key = (Inside, End);

impl Turn {
    const fn asks(&self) -> Key {
        (self.from, self.to_outside)
    }

    const fn answers(&self) -> Key {
        (self.to, self.from_outside)
    }

    /// Whether the packets of both look the same somewhere.
    fn meets(&self, other: &Self) -> bool {
        let is_ping = self.protocol == PROTOCOL_ICMP;
        let across = !is_ping && (self.asks() == other.answers() || self.answers() == other.asks());
        let along = self.asks() == other.asks() || self.answers() == other.answers();
        self.protocol == other.protocol && (across || along)
    }
}

/// What a guest sends, to an address of ours.
struct Said {
    protocol: u8,
    key: Key,
    is_answer: bool,
}

impl Race {
    fn turn_holds(&self, turn: &Turn) -> bool {
        let (nic, (address, _)) = turn.from;
        let (outside, port) = turn.from_outside;
        let leaves = self.leaves_as(nic, address).is_some_and(|(own, block)| {
            let is_in = |(first, last)| (first..=last).contains(&port);
            own == outside && block.is_none_or(is_in)
        });
        let (nic, (address, port)) = turn.to;
        let led = self.leads_to((turn.protocol, turn.to_outside.0, turn.to_outside.1));
        let port = if turn.protocol == PROTOCOL_ICMP { turn.to_outside.1 } else { port };
        leaves && led == Some((nic, address, port))
    }

    fn any_said(&mut self) -> Said {
        if !self.turns.is_empty() && self.random.percent(50) {
            let turn = self.turns[self.random.below(self.turns.len())];
            let is_back = self.random.percent(60);
            let key = if is_back { turn.answers() } else { turn.asks() };
            let is_answer = is_back && turn.protocol == PROTOCOL_ICMP;
            return Said { protocol: turn.protocol, key, is_answer };
        }
        let random = &mut self.random;
        let protocols = [PROTOCOL_UDP, PROTOCOL_UDP, PROTOCOL_TCP, PROTOCOL_TCP, PROTOCOL_ICMP];
        let protocol = random.pick(&protocols);
        let nic = random.pick(&NICS);
        let source = if nic == 5 && random.percent(50) { CARRIED } else { v4(nic) };
        let inside = (nic, (source, random.pick(&PORTS)));
        let port = random.pick(&[80, 83, 1000, 5000, 8000, 8003, 8009, 8010]);
        let mut to = (random.pick(&OURS[..3]), port);
        if random.percent(30) && !self.ends.is_empty() {
            to = *self.ends.values().nth(random.below(self.ends.len())).unwrap();
        }
        if protocol == PROTOCOL_ICMP {
            to.1 = inside.1.1;
        }
        Said { protocol, key: (inside, to), is_answer: false }
    }

    /// The conversation of what is said, if it may go on, and whether this is its answer; one that
    /// may not ends.
    fn standing_turn(&mut self, said: &Said) -> Option<(Turn, bool)> {
        let is_ping = said.protocol == PROTOCOL_ICMP;
        let place = self.turns.iter().position(|turn| {
            let asks = turn.asks() == said.key && !said.is_answer;
            let answers = turn.answers() == said.key && said.is_answer == is_ping;
            turn.protocol == said.protocol && (asks || answers)
        })?;
        let turn = self.turns[place];
        if !self.turn_holds(&turn) {
            self.turns.swap_remove(place);
            return None;
        }
        Some((turn, turn.answers() == said.key && said.is_answer == is_ping))
    }

    /// Guests speak to each other by their outsides.
    pub(crate) fn turn(&mut self) {
        let said = self.any_said();
        let ((nic, own), to) = said.key;
        if !self.is_ours(to.0) {
            return;
        }
        let known = self.standing_turn(&said);
        let side = known.map_or(0, |(_, is_back)| usize::from(is_back));
        let stream = known.and_then(|(turn, _)| self.turn_streams.get(&turn));
        let heard =
            (said.protocol == PROTOCOL_TCP).then(|| Follow::guess(stream, side, &mut self.random));
        let going = packet(&said, (own, to), heard.as_ref());
        let frame = going.frame((mac(nic), ROUTER), 64);
        let place = self.story.rig.index(nic.into());
        let outcome = match heard {
            Some(_) => self.story.rig.once(place, frame),
            None => self.story.rig.send(place, frame),
        };
        let known = match (known, &heard) {
            (Some((turn, is_back)), Some(heard)) => {
                match judge(self.turn_streams.get_mut(&turn), side, heard) {
                    Judged::Refused(reason) => return self.cut(&outcome, reason, "of a guest"),
                    Judged::Either if matches!(outcome, Outcome::Dropped(_)) => return,
                    Judged::Known | Judged::Either => Some((turn, is_back)),
                    Judged::New => {
                        self.turns.retain(|other| *other != turn);
                        None
                    }
                }
            }
            (known, _) => known,
        };
        match known {
            Some((turn, is_back)) => {
                let (from, (nic, to)) = match is_back {
                    true => (turn.to_outside, turn.from),
                    false => (turn.from_outside, turn.to),
                };
                self.check_meeting(&said, (from, nic, to), heard.as_ref(), outcome);
            }
            None => self.begin_turn(&said, heard.as_ref(), outcome),
        }
    }

    fn check_meeting(
        &mut self,
        said: &Said,
        (from, nic, to): (End, u8, End),
        heard: Option<&Heard>,
        outcome: Outcome,
    ) {
        let place = self.story.rig.index(nic.into());
        // A ping has one identifier, which stands on the side of who asks.
        let from = if said.protocol == PROTOCOL_ICMP { (from.0, to.1) } else { from };
        let expected = packet(said, (from, to), heard);
        assert_eq!(outcome.sent(), expected.arrived(place, nic));
        self.passed += 1;
        self.met += 1;
    }

    /// Whether somebody waits already for what would be the answers to a mapped end.
    fn is_answer_taken(&self, said: &Said, to: Inside) -> bool {
        let ((nic, own), _) = said.key;
        let outside = self.ends.get(&(said.protocol, nic, own));
        let still = |end: &&End| self.maps_to(said.protocol, **end).is_some();
        let Some(outside) = outside.filter(still) else { return false };
        self.turns.iter().any(|turn| {
            let key = (to, *outside);
            turn.protocol == said.protocol && (turn.asks() == key || turn.answers() == key)
        })
    }

    fn begin_turn(&mut self, said: &Said, heard: Option<&Heard>, outcome: Outcome) {
        let ((nic, own), target) = said.key;
        let led = self.leads_to((said.protocol, target.0, target.1));
        let (Some((address, block)), Some((to_nic, to_address, to_port))) =
            (self.leaves_as(nic, own.0), led)
        else {
            return self.refuse(&outcome, "a packet to nobody's outside");
        };
        if to_nic == nic || said.is_answer {
            return self.refuse(&outcome, "a packet to oneself, or an answer to nothing");
        }
        let to = (to_address, to_port);
        let is_mapped = self.mapping != PortMapping::PerConnection
            && block.is_some()
            && said.protocol != PROTOCOL_ICMP;
        if is_mapped && self.is_answer_taken(said, (to_nic, to)) {
            return self.cut(&outcome, DropReason::NatPortsExhausted, "its answers are another's");
        }
        let begun = match heard.map(|heard| Follow::begin(heard, self.is_grace)) {
            Some(Err(reason)) => return self.cut(&outcome, reason, "the first of a guest"),
            Some(Ok(begun)) => Some(begun),
            None => None,
        };
        let (place, frame) = outcome.clone().sent();
        let port = source_port(&frame);
        let is_own = block.map_or(port == own.1, |(first, last)| (first..=last).contains(&port));
        assert!(is_own, "NIC {nic} came by port {port} of {address}, which is not its own");
        let is_ping = said.protocol == PROTOCOL_ICMP;
        let turn = Turn {
            protocol: said.protocol,
            from: (nic, own),
            from_outside: (address, port),
            to: (to_nic, if is_ping { (to_address, port) } else { to }),
            to_outside: target,
        };
        assert_eq!(place, self.story.rig.index(to_nic.into()), "{turn:?}");
        self.map((said.protocol, nic, own), turn.from_outside, block.is_some());
        self.turns.retain(|other| !turn.meets(other));
        self.turns.push(turn);
        if let Some(begun) = begun {
            self.turn_streams.insert(turn, begun);
        }
        self.check_meeting(said, (turn.from_outside, to_nic, turn.to.1), heard, outcome);
    }
}

fn packet(said: &Said, (from, to): (End, End), heard: Option<&Heard>) -> Ip {
    match heard {
        Some(heard) => between(from, to, heard),
        None => Race::packet((said.protocol, from, to), said.is_answer),
    }
}
