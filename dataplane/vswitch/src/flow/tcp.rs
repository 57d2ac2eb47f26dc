// SPDX-License-Identifier: Apache-2.0
//! What a TCP connection may send next (RFC 9293), followed from outside.
//!
//! The window check is that of Guido van Rooij, "Real stateful TCP packet filtering in IP Filter"
//! (2001): of each side is kept the highest sequence number that it sent, the highest that its
//! peer has room for, and the largest window that it offered. From these follow four bounds,
//! which every segment of a connection that both ends keep to is within, whatever was lost or
//! overtaken on the way, and which a segment that was guessed is hardly ever within.
//!
//! ```text
//!  Opening ──SYN,ACK──▶ Answered ──ACK──▶ Established ──FIN──▶ HalfClosed ──FIN──▶ Closing
//!     └────SYN────▶ Crossed ────ACK──────────┘                                       │ both acked
//!  any ──RST in the window──▶ Reset                                                  ▼
//!  Reset, Closed ──SYN──▶ the connection is another one                            Closed
//! ```
//!
//! What is let pass without being believed: a SYN of the opener into a connection that exists (its
//! stack forgot it; the peer will ask, and the answer to that closes it), and a bare ACK as answer
//! to a SYN (that question). Not here: selective acknowledgments and timestamps, which bound
//! nothing further.

use crate::DropReason;
use plinth_wire::{TcpHeader, window_scale};

/// What the tracker needs of a segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Segment {
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) window: u16,
    pub(crate) flags: u8,
    /// Of the payload.
    pub(crate) length: u32,
    /// Of a SYN.
    pub(crate) scale: Option<u8>,
}

const SYN: u8 = TcpHeader::SYN;
const ACK: u8 = TcpHeader::ACK;
const FIN: u8 = TcpHeader::FIN;
const RST: u8 = TcpHeader::RST;

impl Segment {
    /// Reads the header at the front of `upper`, whose packet has `length` bytes from there.
    /// `None` when it is not a header, which is refused when the packet is parsed.
    #[inline]
    pub(crate) fn read(upper: &[u8], length: usize) -> Option<Self> {
        let header = TcpHeader::parse(upper).ok()?;
        let header_length = header.header_length();
        let payload = length.checked_sub(header_length)?;
        let scale = if header.flags() & SYN == 0 {
            None
        } else {
            let options = &upper[TcpHeader::LENGTH..upper.len().min(header_length)];
            window_scale(options)
        };
        Some(Self {
            sequence: header.sequence(),
            acknowledgment: header.acknowledgment(),
            window: header.window(),
            flags: header.flags(),
            length: u32::try_from(payload).ok()?,
            scale,
        })
    }

    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The sequence number behind its last byte; SYN and FIN count as one each.
    const fn end(&self) -> u32 {
        let marks = self.has(SYN) as u32 + self.has(FIN) as u32;
        self.sequence.wrapping_add(self.length).wrapping_add(marks)
    }

    /// Whether a connection may begin with it.
    pub(crate) const fn opens(&self) -> bool {
        self.flags & (SYN | ACK | FIN | RST) == SYN
    }

    /// Whether it may be of a connection that is established.
    pub(crate) const fn continues(&self) -> bool {
        self.flags & (SYN | RST | ACK) == ACK
    }

    /// Whether no stack sets these flags together.
    pub(crate) const fn is_nonsense(&self) -> bool {
        let of_syn = self.has(SYN) && self.flags & (FIN | RST) != 0;
        of_syn || self.flags & (SYN | ACK | RST) == 0
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, PartialOrd)]
#[repr(u8)]
pub(crate) enum TcpState {
    /// A SYN was seen.
    Opening,
    /// And one from the other side that does not acknowledge it.
    Crossed,
    /// And its SYN with ACK.
    Answered,
    Established,
    /// One side has said that it sends no more.
    HalfClosed,
    /// Both have.
    Closing,
    /// And both have heard it.
    Closed,
    Reset,
}

/// What is known of one side's sending.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub(crate) struct Side {
    /// Behind the highest byte that it sent.
    end: u32,
    /// Behind the highest byte that its peer has room for.
    end_max: u32,
    /// The largest window that it offered; zero before its first segment.
    window_max: u32,
    /// Of its windows, as long as both SYNs announce one.
    scale: u8,
    /// What its SYN announced, or [`NO_SCALE`].
    offered: u8,
    has_finished: bool,
    /// And its peer has acknowledged that.
    is_finish_heard: bool,
}

/// More than any scale.
const NO_SCALE: u8 = u8::MAX;

const _: () = assert!(size_of::<Side>() == 16, "both sides are half a cache line");

impl Side {
    /// Before its first segment.
    const SILENT: Self = Self {
        end: 0,
        end_max: 0,
        window_max: 0,
        scale: 0,
        offered: NO_SCALE,
        has_finished: false,
        is_finish_heard: false,
    };

    /// After its SYN, whose window is not scaled (RFC 7323, section 2.2).
    fn opened(segment: &Segment) -> Self {
        let end = segment.end();
        Self {
            end,
            end_max: end,
            window_max: u32::from(segment.window).max(1),
            scale: 0,
            offered: segment.scale.unwrap_or(NO_SCALE),
            has_finished: false,
            is_finish_heard: false,
        }
    }
}

/// A connection's sides, the opener's first, and what they are at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub(crate) struct Tcp {
    sides: [Side; 2],
    pub(crate) state: TcpState,
    /// It was met in its middle, or came in pieces, so that windows are not known.
    pub(crate) is_loose: bool,
}

impl TcpState {
    const ALL: [Self; 8] = [
        Self::Opening,
        Self::Crossed,
        Self::Answered,
        Self::Established,
        Self::HalfClosed,
        Self::Closing,
        Self::Closed,
        Self::Reset,
    ];
}

/// Bytes of [`Tcp::emit`].
const EMITTED: usize = 34;

impl Tcp {
    /// Writes it down for the next process: the two sides, the state's number, "loose".
    pub(super) fn emit(&self, into: &mut Vec<u8>) {
        for side in &self.sides {
            for number in [side.end, side.end_max, side.window_max] {
                into.extend(number.to_le_bytes());
            }
            let has_scale = side.offered != NO_SCALE;
            let flags = [has_scale, side.has_finished, side.is_finish_heard].map(u8::from);
            into.push(if has_scale { side.offered } else { 0 });
            into.extend(flags);
        }
        into.extend([self.state as u8, u8::from(self.is_loose)]);
    }

    /// `None` if it is not what [`Self::emit`] writes.
    pub(super) fn parse(bytes: &[u8; EMITTED]) -> Option<Self> {
        let claim = |byte: u8| match byte {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        };
        let (words, &[state, loose]) = bytes.as_chunks::<4>() else { return None };
        let word = |nth: usize| words.get(nth).copied().map(u32::from_le_bytes);
        let side = |first: usize| {
            let [scale, has_scale, has_finished, is_finish_heard] = *words.get(first + 3)?;
            // RFC 7323 allows no more, and a window is shifted by it.
            let scale = (scale <= 14).then_some(scale)?;
            Some(Side {
                end: word(first)?,
                end_max: word(first + 1)?,
                window_max: word(first + 2)?,
                scale: 0,
                offered: if claim(has_scale)? { scale } else { NO_SCALE },
                has_finished: claim(has_finished)?,
                is_finish_heard: claim(is_finish_heard)?,
            })
        };
        let state = *TcpState::ALL.get(usize::from(state))?;
        let mut tcp = Self { sides: [side(0)?, side(4)?], state, is_loose: claim(loose)? };
        tcp.agree_on_scales();
        Some(tcp)
    }
}

/// What a segment is to a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Followed {
    /// It belongs to it.
    Accepted,
    /// The connection is over, and this begins another one.
    Reopens,
}

/// `left < right`, as sequence numbers.
const fn before(left: u32, right: u32) -> bool {
    left.wrapping_sub(right).cast_signed() < 0
}

/// An acknowledgment may be this old at least: a stack may send one for every segment that it
/// finds unacceptable, with a window that has shrunk to nothing.
const ACK_AGE_MIN: u32 = 66_000;

impl Tcp {
    /// After the opener's SYN.
    pub(crate) fn opened(segment: &Segment) -> Self {
        let sides = [Side::opened(segment), Side::SILENT];
        Self { sides, state: TcpState::Opening, is_loose: false }
    }

    /// In the middle of a connection whose beginning nobody saw.
    pub(crate) fn met() -> Self {
        Self { sides: [Side::SILENT; 2], state: TcpState::Established, is_loose: true }
    }

    /// For a connection of another protocol, whose record has no use for this.
    pub(crate) const NONE: Self =
        Self { sides: [Side::SILENT; 2], state: TcpState::Closed, is_loose: true };

    /// Takes note of a segment that side `from` sent (0 is the opener), or refuses it and stays
    /// as it was.
    #[inline]
    pub(crate) fn follow(
        &mut self,
        from: usize,
        segment: &Segment,
    ) -> Result<Followed, DropReason> {
        if segment.flags & (SYN | RST | ACK) == ACK && self.state >= TcpState::Answered {
            self.check(from, segment)?;
            self.advance(from, segment);
            return Ok(Followed::Accepted);
        }
        self.follow_mark(from, segment)
    }

    /// A segment with SYN or RST, or before both sides have answered.
    fn follow_mark(&mut self, from: usize, segment: &Segment) -> Result<Followed, DropReason> {
        if segment.is_nonsense() {
            return Err(DropReason::TcpFlagsInvalid);
        }
        if segment.opens() {
            return self.follow_open(from, segment);
        }
        if segment.has(RST) {
            self.check_reset(from, segment)?;
            self.state = TcpState::Reset;
            return Ok(Followed::Accepted);
        }
        if segment.has(SYN) {
            return self.follow_answer(from, segment);
        }
        match (self.state, from) {
            // "Which connection?": a peer that has an older one asks so (RFC 9293, 3.10.7.4).
            (TcpState::Opening, 1) => Ok(Followed::Accepted),
            (TcpState::Opening, _) => Err(DropReason::TcpOutOfWindow),
            _ => {
                self.check(from, segment)?;
                self.advance(from, segment);
                Ok(Followed::Accepted)
            }
        }
    }

    fn follow_open(&mut self, from: usize, segment: &Segment) -> Result<Followed, DropReason> {
        match (self.state, from) {
            (TcpState::Reset | TcpState::Closed, _) => return Ok(Followed::Reopens),
            (TcpState::Opening, 0) => self.sides[0] = Side::opened(segment),
            (TcpState::Opening, _) => {
                self.sides[1] = Side::opened(segment);
                self.agree_on_scales();
                self.state = TcpState::Crossed;
            }
            (TcpState::Crossed, _) | (_, 0) => {}
            _ => return Err(DropReason::TcpOutOfWindow),
        }
        Ok(Followed::Accepted)
    }

    fn follow_answer(&mut self, from: usize, segment: &Segment) -> Result<Followed, DropReason> {
        match (self.state, from) {
            (TcpState::Opening | TcpState::Answered, 1) => {
                let opener = &self.sides[0];
                let age = opener.end.wrapping_sub(segment.acknowledgment);
                if age > ACK_AGE_MIN {
                    return Err(DropReason::TcpOutOfWindow);
                }
                self.sides[1] = Side::opened(segment);
                self.agree_on_scales();
                let room = segment.acknowledgment.wrapping_add(segment.window.into());
                self.sides[0].end_max = room;
                self.state = TcpState::Answered;
            }
            (TcpState::Opening | TcpState::Answered, _) => return Err(DropReason::TcpOutOfWindow),
            _ => {
                self.check(from, segment)?;
                self.advance(from, segment);
            }
        }
        Ok(Followed::Accepted)
    }

    /// Windows are scaled when both SYNs said so (RFC 7323, section 2.2). A server that answers
    /// once more may say something else than before, as after a SYN cookie.
    fn agree_on_scales(&mut self) {
        let is_agreed = self.sides.iter().all(|side| side.offered != NO_SCALE);
        for side in &mut self.sides {
            side.scale = if is_agreed { side.offered } else { 0 };
        }
    }

    fn check_reset(&self, from: usize, segment: &Segment) -> Result<(), DropReason> {
        if self.is_loose {
            return Ok(());
        }
        let is_right = match (self.state, from) {
            // Nothing but the opener's SYN is known; its peer proves that it saw that.
            (TcpState::Opening, 1) => {
                segment.has(ACK) && segment.acknowledgment == self.sides[0].end
            }
            (TcpState::Opening, _) => segment.sequence == self.sides[0].end,
            _ => return self.check_sequence(from, segment),
        };
        if is_right { Ok(()) } else { Err(DropReason::TcpOutOfWindow) }
    }

    /// The four bounds.
    #[inline]
    fn check(&self, from: usize, segment: &Segment) -> Result<(), DropReason> {
        if self.is_loose {
            return Ok(());
        }
        self.check_sequence(from, segment)?;
        if !segment.has(ACK) {
            return Ok(());
        }
        let (sender, receiver) = (&self.sides[from], &self.sides[1 - from]);
        let age = receiver.end.wrapping_sub(segment.acknowledgment);
        // What was not sent yet cannot be acknowledged: then the age is enormous.
        if receiver.window_max > 0 && age > ACK_AGE_MIN.max(sender.window_max) {
            return Err(DropReason::TcpOutOfWindow);
        }
        Ok(())
    }

    #[inline]
    fn check_sequence(&self, from: usize, segment: &Segment) -> Result<(), DropReason> {
        let (sender, receiver) = (&self.sides[from], &self.sides[1 - from]);
        if sender.window_max == 0 {
            // It was reset before it said anything, so nothing is known of it.
            return Ok(());
        }
        let is_ahead = before(sender.end_max, segment.sequence);
        let oldest = sender.end.wrapping_sub(receiver.window_max);
        let is_behind = receiver.window_max > 0 && before(segment.end(), oldest);
        if is_ahead || is_behind { Err(DropReason::TcpOutOfWindow) } else { Ok(()) }
    }

    /// What an acceptable segment tells.
    #[inline]
    fn advance(&mut self, from: usize, segment: &Segment) {
        let [first, second] = &mut self.sides;
        let (sender, receiver) = if from == 0 { (first, second) } else { (second, first) };
        let end = segment.end();
        let scale = if segment.has(SYN) { 0 } else { sender.scale };
        let window = u32::from(segment.window) << scale;
        sender.window_max = sender.window_max.max(window);
        if before(sender.end, end) {
            sender.end = end;
        }
        if before(sender.end_max, end) {
            // It began inside the room and was sent all the same, so there was more of it.
            // Of a receiver that never spoke nothing is known, and zero says so.
            if receiver.window_max > 0 {
                let more = end.wrapping_sub(sender.end_max);
                receiver.window_max = receiver.window_max.saturating_add(more);
            }
            sender.end_max = end;
        }
        // A probe of a closed window is one byte (RFC 9293, section 3.8.6.1).
        let room = segment.acknowledgment.wrapping_add(window.max(1));
        if before(receiver.end_max, room) {
            receiver.end_max = room;
        }
        if receiver.has_finished && (self.is_loose || segment.acknowledgment == receiver.end) {
            receiver.is_finish_heard = true;
        }
        sender.has_finished |= segment.has(FIN);
        if self.state != TcpState::Established || segment.has(FIN) {
            self.change_state(from);
        }
    }

    fn change_state(&mut self, from: usize) {
        let [opener, other] = &self.sides;
        self.state = match self.state {
            TcpState::Reset | TcpState::Closed => self.state,
            // The other side's word does not make its own answer heard.
            TcpState::Answered if from == 1 => TcpState::Answered,
            _ => match (opener.has_finished, other.has_finished) {
                (false, false) => TcpState::Established,
                (true, true) if opener.is_finish_heard && other.is_finish_heard => TcpState::Closed,
                (true, true) => TcpState::Closing,
                _ => TcpState::HalfClosed,
            },
        };
    }
}
