// SPDX-License-Identifier: Apache-2.0
//! What a TCP connection may send next, said slowly (RFC 9293, and the windows of van Rooij):
//! places in a stream are whole numbers that never wrap, and what a side has said stays as it was
//! said. It shares no code with the machine.

use super::generate::Random;
use plinth_vswitch::DropReason;
use plinth_wire::TcpHeader;

const SYN: u8 = TcpHeader::SYN;
const ACK: u8 = TcpHeader::ACK;
const FIN: u8 = TcpHeader::FIN;
const RST: u8 = TcpHeader::RST;

/// An acknowledgment may always be this old.
const AGE: i64 = 66_000;

/// A segment as a bystander sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Heard {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) window: u16,
    pub(crate) length: u16,
    /// Of a SYN.
    pub(crate) scale: Option<u8>,
}

impl Heard {
    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    const fn begins(&self) -> bool {
        self.has(SYN) && !self.has(ACK) && !self.has(FIN) && !self.has(RST)
    }

    /// No stack sends it.
    pub(crate) const fn is_nonsense(&self) -> bool {
        let is_none = !self.has(SYN) && !self.has(ACK) && !self.has(RST);
        is_none || self.has(SYN) && (self.has(FIN) || self.has(RST))
    }

    /// What it takes of the stream.
    fn size(&self) -> i64 {
        i64::from(self.length) + i64::from(self.has(SYN)) + i64::from(self.has(FIN))
    }
}

/// One side, as its segments have told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Side {
    sent_to: i64,
    room_to: i64,
    widest: i64,
    scale: Option<u8>,
    has_finished: bool,
    is_finish_heard: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Asked,
    Crossed,
    Answered,
    Open,
    Reset,
}

/// A connection between an opener (0) and its peer (1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Follow {
    sides: [Option<Side>; 2],
    stage: Stage,
    /// Nobody saw it begin.
    is_met: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Says {
    Passes,
    /// Of what was reset before its peer spoke nobody has a use any more.
    Either,
    /// It is over, and another one begins.
    Begins,
    Drops(DropReason),
}

const OUT: Says = Says::Drops(DropReason::TcpOutOfWindow);

/// The place with this number that is nearest to `place`.
fn near(place: i64, number: u32) -> i64 {
    let round = 1_i64 << 32;
    let ahead = (i64::from(number) - place).rem_euclid(round);
    place + if ahead < round / 2 { ahead } else { ahead - round }
}

impl Side {
    fn new(heard: &Heard) -> Self {
        let sent_to = i64::from(heard.sequence) + heard.size();
        Self {
            sent_to,
            room_to: sent_to,
            widest: i64::from(heard.window).max(1),
            scale: heard.scale.filter(|_| heard.has(SYN)),
            has_finished: false,
            is_finish_heard: false,
        }
    }
}

impl Follow {
    /// What a first segment begins, if it may; in a grace, a connection may be met amid.
    pub(crate) fn begin(heard: &Heard, is_grace: bool) -> Result<Self, DropReason> {
        if heard.is_nonsense() {
            return Err(DropReason::TcpFlagsInvalid);
        }
        if heard.begins() {
            let sides = [Some(Side::new(heard)), None];
            return Ok(Self { sides, stage: Stage::Asked, is_met: false });
        }
        if is_grace && heard.has(ACK) && !heard.has(SYN) && !heard.has(RST) {
            return Ok(Self { sides: [None; 2], stage: Stage::Open, is_met: true });
        }
        Err(DropReason::TcpNoConnection)
    }

    fn is_over(&self) -> bool {
        let is_done = |side: &Option<Side>| {
            side.is_some_and(|side| side.has_finished && side.is_finish_heard)
        };
        self.stage == Stage::Reset || self.stage == Stage::Open && self.sides.iter().all(is_done)
    }

    pub(crate) fn follow(&mut self, from: usize, heard: &Heard) -> Says {
        if heard.is_nonsense() {
            return Says::Drops(DropReason::TcpFlagsInvalid);
        }
        if heard.begins() {
            return self.hear_question(from, heard);
        }
        if self.stage == Stage::Reset && self.sides.contains(&None) && !self.is_met {
            return Says::Either;
        }
        if heard.has(RST) {
            return self.hear_reset(from, heard);
        }
        let is_early = matches!(self.stage, Stage::Asked | Stage::Answered);
        if heard.has(SYN) && is_early {
            return self.hear_answer(from, heard);
        }
        if self.stage == Stage::Asked {
            // The peer may ask what this is; the opener has nothing to say yet.
            return if from == 1 { Says::Passes } else { OUT };
        }
        let is_right = self.is_met || self.is_in_room(from, heard) && self.is_recent(from, heard);
        if !is_right {
            return OUT;
        }
        self.believe(from, heard);
        Says::Passes
    }

    fn hear_question(&mut self, from: usize, heard: &Heard) -> Says {
        if self.is_over() {
            return Says::Begins;
        }
        match self.stage {
            Stage::Asked => {
                self.sides[from] = Some(Side::new(heard));
                if from == 1 {
                    self.stage = Stage::Crossed;
                }
                Says::Passes
            }
            // An opener that has forgotten is let ask, and asks in vain.
            Stage::Crossed => Says::Passes,
            _ if from == 0 => Says::Passes,
            _ => OUT,
        }
    }

    fn hear_reset(&mut self, from: usize, heard: &Heard) -> Says {
        let is_right = match (self.stage, self.sides[0]) {
            _ if self.is_met => true,
            (Stage::Asked, Some(opener)) if from == 1 => {
                heard.has(ACK) && near(opener.sent_to, heard.acknowledgment) == opener.sent_to
            }
            (Stage::Asked, Some(opener)) => near(opener.sent_to, heard.sequence) == opener.sent_to,
            _ => self.is_in_room(from, heard),
        };
        if !is_right {
            return OUT;
        }
        self.stage = Stage::Reset;
        Says::Passes
    }

    fn hear_answer(&mut self, from: usize, heard: &Heard) -> Says {
        let Some(opener) = self.sides[0].as_mut().filter(|_| from == 1) else { return OUT };
        let place = near(opener.sent_to, heard.acknowledgment);
        if place > opener.sent_to || opener.sent_to - place > AGE {
            return OUT;
        }
        opener.room_to = place + i64::from(heard.window);
        self.sides[1] = Some(Side::new(heard));
        self.stage = Stage::Answered;
        Says::Passes
    }

    /// Not ahead of the room that its peer has, nor behind what the peer can still ask for.
    fn is_in_room(&self, from: usize, heard: &Heard) -> bool {
        let Some(own) = self.sides[from] else { return true };
        let begin = near(own.room_to, heard.sequence);
        let end = near(own.sent_to, heard.sequence) + heard.size();
        let is_old = self.sides[1 - from].is_some_and(|peer| end < own.sent_to - peer.widest);
        begin <= own.room_to && !is_old
    }

    /// It acknowledges what was sent, and not what was acknowledged long ago.
    fn is_recent(&self, from: usize, heard: &Heard) -> bool {
        let Some(peer) = self.sides[1 - from] else { return true };
        let place = near(peer.sent_to, heard.acknowledgment);
        let age = AGE.max(self.sides[from].map_or(0, |own| own.widest));
        place <= peer.sent_to && peer.sent_to - place <= age
    }

    fn scale_of(&self, from: usize) -> u32 {
        let offered = self.sides.map(|side| side.and_then(|side| side.scale));
        match offered {
            [Some(_), Some(_)] => u32::from(offered[from].unwrap()),
            _ => 0,
        }
    }

    fn believe(&mut self, from: usize, heard: &Heard) {
        let scale = if heard.has(SYN) { 0 } else { self.scale_of(from) };
        let window = i64::from(heard.window) << scale;
        if self.is_met {
            return self.believe_met(from, heard);
        }
        let [Some(mut own), Some(mut peer)] = [self.sides[from], self.sides[1 - from]] else {
            // Reset before the peer said anything.
            return;
        };
        own.widest = own.widest.max(window);
        let end = near(own.sent_to, heard.sequence) + heard.size();
        own.sent_to = own.sent_to.max(end);
        if end > own.room_to {
            peer.widest += end - own.room_to;
            own.room_to = end;
        }
        let heard_to = near(peer.sent_to, heard.acknowledgment);
        peer.room_to = peer.room_to.max(heard_to + window.max(1));
        peer.is_finish_heard |= peer.has_finished && heard_to == peer.sent_to;
        own.has_finished |= heard.has(FIN);
        (self.sides[from], self.sides[1 - from]) = (Some(own), Some(peer));
        self.open(from);
    }

    /// Of a connection that was met amid only the ends are known.
    fn believe_met(&mut self, from: usize, heard: &Heard) {
        let unknown = Side { scale: None, ..Side::new(heard) };
        let mut sides = self.sides.map(|side| side.unwrap_or(unknown));
        sides[1 - from].is_finish_heard |= sides[1 - from].has_finished;
        sides[from].has_finished |= heard.has(FIN);
        self.sides = sides.map(Some);
        self.open(from);
    }

    /// The peer's word alone does not make its own answer heard.
    fn open(&mut self, from: usize) {
        let is_open = self.stage == Stage::Crossed || self.stage == Stage::Answered && from == 0;
        if is_open {
            self.stage = Stage::Open;
        }
    }

    /// A segment of a side, mostly as a stack would send it or one off from that.
    pub(crate) fn guess(this: Option<&Self>, from: usize, random: &mut Random) -> Heard {
        let own = this.and_then(|this| this.sides[from]);
        let peer = this.and_then(|this| this.sides[1 - from]);
        let begin = [1000, i64::from(u32::MAX) - 3, 0, 1 << 31][random.below(4)];
        let (sent_to, room_to) = own.map_or((begin, begin), |own| (own.sent_to, own.room_to));
        let widest = peer.map_or(0, |peer| peer.widest);
        let length = random.pick(&[0, 0, 1, 100, 1000]);
        let behind = sent_to - widest - i64::from(length);
        let sequence = match random.below(16) {
            0 => room_to,
            1 => room_to + 1,
            2 => behind,
            3 => behind - 1,
            4 => sent_to - 1,
            5 => (random.next() >> 32).cast_signed(),
            6 => sent_to + 70_000,
            _ => sent_to,
        };
        let told = peer.map_or(0, |peer| peer.sent_to);
        let oldest = AGE.max(own.map_or(0, |own| own.widest));
        let acknowledgment = match random.below(16) {
            0 => told + 1,
            1 => told - oldest,
            2 => told - oldest - 1,
            3 => told - 1,
            4 => (random.next() >> 32).cast_signed(),
            _ => told,
        };
        let is_begun = this.is_some_and(|this| this.stage != Stage::Asked);
        let usual = match (is_begun, from, own, peer) {
            (false, 0, ..) => SYN,
            (_, 1, None, Some(_)) => SYN | ACK,
            _ => ACK,
        };
        let others = [SYN, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK, 0, SYN | FIN, ACK];
        let flags = if random.percent(70) { usual } else { random.pick(&others) };
        let is_first = flags & SYN != 0;
        Heard {
            flags,
            sequence: number(if is_first && own.is_some() { sequence - 1 } else { sequence }),
            acknowledgment: number(acknowledgment),
            window: random.pick(&[0, 1, 1000, 1000, 65_535]),
            length: if is_first { 0 } else { length },
            scale: random.pick(&[None, Some(0), Some(7), Some(14)]).filter(|_| is_first),
        }
    }
}

/// As it is written on the wire.
fn number(place: i64) -> u32 {
    u32::try_from(place.rem_euclid(1 << 32)).unwrap()
}

/// The bytes of a segment, whose sum is left to whoever knows its addresses.
pub(crate) fn segment(ports: (u16, u16), heard: &Heard) -> Vec<u8> {
    let header = TcpHeader::new(ports.0, ports.1, heard.sequence, heard.flags)
        .acknowledging(heard.acknowledgment, heard.window);
    let mut bytes = bytemuck::bytes_of(&header).to_vec();
    if let Some(scale) = heard.scale {
        // No operation, then the option, and the header is a word longer.
        bytes[12] += 1 << 4;
        bytes.extend([1, 3, 3, scale]);
    }
    bytes.extend(vec![0x55; heard.length.into()]);
    bytes
}
