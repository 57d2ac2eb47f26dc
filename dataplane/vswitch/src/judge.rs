// SPDX-License-Identifier: Apache-2.0
//! The third pass for one packet: what its flow's entry says, or the stages and the connection.
//!
//! ```text
//!  find ─ fresh ─▶ follow TCP ─▶ carry out
//!    ├─── stale ─▶ stages ─▶ its connection: still allowed? follow ─▶ renew ─▶ carry out
//!    └─ nothing ─▶ stages ─▶ neither end filtered: keep the decision ─▶ carry out
//!                       └──▶ rules of both ends ─▶ a new connection ─▶ carry out
//! ```
//!
//! The stages (who may send, where it goes) judge a packet; the rules judge a connection, in the
//! direction in which it was begun, once for every configuration.

use crate::carry::carry_out;
use crate::flow::{
    Action, Connection, ConnectionIndex, Direction, Followed, Found, Hashed, Ingress, NoRoom,
    Segment, Slot, Tcp, Tracked, Way, is_question, milliseconds,
};
use crate::pipeline::Waiting;
use crate::snapshot::Snapshot;
use crate::stages::forward::{self, Decision};
use crate::stages::security::{self, Ends};
use crate::switch::Switch;
use crate::{DropReason, Packet, PortIndex, Verdict};
use plinth_ids::Moment;
use plinth_wire::PROTOCOL_TCP;

/// One packet with all that is asked for its sake.
pub(crate) struct Judge<'a> {
    pub(crate) switch: &'a mut Switch,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) now: Moment,
    pub(crate) packet: &'a mut Packet,
    pub(crate) flow: &'a Waiting,
}

impl Judge<'_> {
    /// The verdict about the packet; if it is sent, it has been edited.
    #[inline]
    pub(crate) fn decide(&mut self) -> Result<Verdict, DropReason> {
        let Self { switch, flow, .. } = self;
        let parsed = &flow.parsed;
        let slot = match switch.flows.find(self.now, flow.hash, &parsed.key, parsed.expected) {
            Found::Fresh(slot) => slot,
            Found::Stale(slot) => return self.judge(Some(slot)),
            Found::Nothing => return self.judge(None),
        };
        switch.flow_counters.hits += 1;
        let entry = switch.flows.entry(slot);
        if entry.is_followed
            && let Some((connection, direction)) = entry.link.get()
            && self.follow(connection, direction)? == Followed::Reopens
        {
            return self.judge(Some(slot));
        }
        let flows = &mut self.switch.flows;
        flows.count(slot, self.packet.output_length());
        let entry = flows.entry(slot);
        let way = Way { action: entry.action, route: entry.route };
        carry_out(self.switch, self.snapshot, self.packet, way, self.flow)
    }

    /// Asks the stages. `found` is the packet's entry, whose decision does not hold.
    #[cold]
    #[inline(never)]
    fn judge(&mut self, found: Option<Slot>) -> Result<Verdict, DropReason> {
        self.switch.flow_counters.misses += 1;
        let decision = forward::judge(self.snapshot, self.packet.port(), self.flow)?;
        let ends = Ends::new(self.snapshot, self.packet.port(), decision.way.action);
        if matches!(decision.way.action, Action::Drop(_)) || !ends.are_filtered() {
            self.keep(&decision);
        } else {
            let link = found.and_then(|slot| self.switch.flows.entry(slot).link.get());
            let is_kept = match link {
                Some((connection, direction)) => self.again(connection, direction, &ends)?,
                None => false,
            };
            let slot = if is_kept { found } else { self.begin(&decision, &ends)? };
            if let Some(slot) = slot {
                self.settle(slot, &decision);
            }
        }
        carry_out(self.switch, self.snapshot, self.packet, decision.way, self.flow)
    }

    /// Keeps a decision that needs no connection; where there is no room, the packet is sent all
    /// the same.
    fn keep(&mut self, decision: &Decision) {
        let (hashed, expected) = (self.hashed(), self.flow.parsed.expected);
        let flows = &mut self.switch.flows;
        match flows.keep(self.now, &hashed, expected, decision.way, decision.owner) {
            Ok(slot) => {
                self.switch.flow_counters.made += 1;
                self.switch.flows.count(slot, self.packet.output_length());
            }
            Err(reason) => self.refused(reason),
        }
    }

    fn refused(&mut self, reason: NoRoom) {
        match reason {
            NoRoom::TableFull => self.switch.flow_counters.refused_table_full += 1,
            NoRoom::ShareUsed => self.switch.flow_counters.refused_share_used += 1,
        }
    }

    fn hashed(&self) -> Hashed {
        Hashed { key: self.flow.parsed.key, hash: self.flow.hash }
    }

    /// A packet of a connection that is there. Says whether it still is.
    fn again(
        &mut self,
        connection: ConnectionIndex,
        direction: Direction,
        ends: &Ends,
    ) -> Result<bool, DropReason> {
        let generation = self.switch.flows.generation();
        if self.switch.flows.connection(connection).generation != generation {
            self.still_allowed(connection, direction, ends)?;
            self.switch.flows.connection_mut(connection).generation = generation;
        }
        if self.switch.flows.connection(connection).tracked == Tracked::Tcp {
            if self.follow(connection, direction)? == Followed::Reopens {
                self.switch.flows.close(connection);
                return Ok(false);
            }
        } else if direction == Direction::Back {
            self.switch.flows.connection_mut(connection).is_answered = true;
        }
        Ok(true)
    }

    /// Judges a connection by the rules in force, as if it were begun now.
    fn still_allowed(
        &mut self,
        connection: ConnectionIndex,
        direction: Direction,
        ends: &Ends,
    ) -> Result<(), DropReason> {
        let key = &self.flow.parsed.key;
        let verdict = match direction {
            Direction::Forward => security::permit(self.snapshot, ends, key),
            Direction::Back => {
                let begun = key.answer(key.ingress()).ok_or(DropReason::SecurityGroupDenied)?;
                security::permit(self.snapshot, &ends.exchanged(), &begun)
            }
        };
        if verdict.is_err() {
            self.switch.flows.close(connection);
        }
        verdict
    }

    /// Lets the connection's TCP look at the packet.
    #[inline]
    fn follow(
        &mut self,
        connection: ConnectionIndex,
        direction: Direction,
    ) -> Result<Followed, DropReason> {
        let connection = self.switch.flows.connection_mut(connection);
        // Of the pieces of a packet, none says how long it is.
        if self.flow.is_piece {
            connection.tcp.is_loose = true;
            return Ok(Followed::Accepted);
        }
        let segment = segment(self.packet, self.flow)?;
        connection.tcp.follow(direction.number(), &segment)
    }

    /// The first packet of a connection, or of none. Gives the place of its entry, if it has one
    /// that is to be settled.
    fn begin(&mut self, decision: &Decision, ends: &Ends) -> Result<Option<Slot>, DropReason> {
        let key = &self.flow.parsed.key;
        let Some(answer) = key.answer(self.answers_come_in(decision.way.action)) else {
            // A message that nothing answers: the rules are asked about each of its kind.
            security::permit(self.snapshot, ends, key)?;
            self.keep(decision);
            return Ok(None);
        };
        let (tracked, tcp, direction) = self.beginning(ends)?;
        let made = milliseconds(self.now);
        let generation = self.switch.flows.generation();
        let connection = Connection::new(tracked, tcp, generation, made);
        let (own, answer) = (self.hashed(), self.switch.flows.hashed(answer));
        let flows = match direction {
            Direction::Forward => [own, answer],
            Direction::Back => [answer, own],
        };
        let index = match self.switch.flows.open(self.now, &flows, decision.owner, connection) {
            Ok(index) => index,
            Err(reason) => {
                self.refused(reason);
                return Err(DropReason::ConnectionTableFull);
            }
        };
        self.switch.flow_counters.made += 1;
        Ok(self.switch.flows.connection(index).entry(direction))
    }

    /// What kind of connection begins with the packet, if one may, and which way the packet goes
    /// in it.
    fn beginning(&self, ends: &Ends) -> Result<(Tracked, Tcp, Direction), DropReason> {
        let key = &self.flow.parsed.key;
        if key.protocol() != PROTOCOL_TCP {
            let [kind, _] = key.destination_port().to_be_bytes();
            if key.is_icmp() && !is_question(kind, key.is_ipv4()) {
                return Err(DropReason::IcmpUnrelated);
            }
            security::permit(self.snapshot, ends, key)?;
            let tracked = if key.is_icmp() { Tracked::Icmp } else { Tracked::Datagrams };
            return Ok((tracked, Tcp::NONE, Direction::Forward));
        }
        let segment = segment(self.packet, self.flow)?;
        if segment.is_nonsense() {
            return Err(DropReason::TcpFlagsInvalid);
        }
        if segment.opens() {
            security::permit(self.snapshot, ends, key)?;
            return Ok((Tracked::Tcp, Tcp::opened(&segment), Direction::Forward));
        }
        if self.now >= self.switch.grace_until || !segment.continues() {
            return Err(DropReason::TcpNoConnection);
        }
        let direction = self.picked_up(ends)?;
        Ok((Tracked::Tcp, Tcp::met(), direction))
    }

    /// Which way a packet goes in a connection whose beginning nobody saw: that which the rules
    /// allow.
    fn picked_up(&self, ends: &Ends) -> Result<Direction, DropReason> {
        let key = &self.flow.parsed.key;
        let refused = match security::permit(self.snapshot, ends, key) {
            Ok(()) => return Ok(Direction::Forward),
            Err(reason) => reason,
        };
        let begun = key.answer(key.ingress()).ok_or(refused)?;
        security::permit(self.snapshot, &ends.exchanged(), &begun)
            .map(|()| Direction::Back)
            .map_err(|_| refused)
    }

    /// Writes the decision down, and where the answers to it come in.
    fn settle(&mut self, slot: Slot, decision: &Decision) {
        let answers = self.answers_come_in(decision.way.action);
        let flows = &mut self.switch.flows;
        flows.renew(self.now, slot, self.flow.parsed.expected, decision.way);
        flows.count(slot, self.packet.output_length());
        let key = flows.entry(slot).key;
        if let Some((connection, direction)) = flows.entry(slot).link.get()
            && let Some(answer) = key.answer(answers)
        {
            let answer = flows.hashed(answer);
            flows.rebind(self.now, connection, direction.other(), &answer);
        }
    }

    /// The place at which answers to what goes this way come in. What goes into a tunnel is
    /// answered to the VPC that it came from.
    fn answers_come_in(&self, action: Action) -> Ingress {
        let (place, vni) = match action {
            Action::Deliver(to) => {
                (to, self.snapshot.port(to).map_or(self.flow.vni, |port| port.vni))
            }
            Action::Encapsulate { .. } | Action::Drop(_) => (PortIndex::UPLINK, self.flow.vni),
        };
        Ingress { place: place.0, incarnation: self.switch.incarnations[place.get()], vni }
    }
}

/// The TCP header of a packet that was parsed.
#[inline]
fn segment(packet: &Packet, flow: &Waiting) -> Result<Segment, DropReason> {
    let (upper, end) = (flow.parsed.upper as usize, flow.parsed.end as usize);
    let bytes = packet.head().get(upper..).unwrap_or_default();
    Segment::read(bytes, end - upper).ok_or(DropReason::Truncated)
}
