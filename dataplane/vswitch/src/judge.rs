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

use crate::carry::{carry_out, check_alive};
use crate::external::OUTSIDE;
use crate::flow::{
    Action, Connection, ConnectionIndex, Direction, Edit, FlowKey, Followed, Found, Hashed,
    Ingress, Link, NoRoom, Segment, Slot, Tcp, Tracked, Way, is_question, milliseconds,
};
use crate::pipeline::{Waiting, Wholeness};
use crate::snapshot::Snapshot;
use crate::stages::forward::{self, Decision, Judgment};
use crate::stages::outward::{self, Translation};
use crate::stages::parse::Class;
use crate::stages::security::{self, Ends};
use crate::stages::{piece, related, router};
use crate::switch::Switch;
use crate::{DropReason, Packet, PortIndex, Verdict};
use plinth_ids::{Moment, Vni};
use plinth_wire::PROTOCOL_TCP;

/// One packet with all that is asked for its sake.
pub(crate) struct Judge<'a> {
    pub(crate) switch: &'a mut Switch,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) now: Moment,
    pub(crate) packet: &'a mut Packet,
    pub(crate) flow: &'a Waiting,
}

/// What a packet has to do with connections.
enum Connected {
    /// One's, or none's.
    By(Link),
    /// That of an ended one was found, which is gone now: the packet is to be judged as a first.
    Anew,
}

impl Judge<'_> {
    /// The verdict about the packet; if it is sent, it has been edited.
    #[inline]
    pub(crate) fn decide(&mut self) -> Result<Verdict, DropReason> {
        let Self { switch, flow, .. } = self;
        let parsed = &flow.parsed;
        if parsed.class == Class::Error {
            return self.judge(None);
        }
        let slot = match switch.flows.find(flow.place, flow.hash, &parsed.key, parsed.expected) {
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
        flows.count(self.now, slot, self.packet.output_length());
        let way = flows.entry(slot).way();
        carry_out(self.switch, self.snapshot, self.packet, way, (self.now, self.flow))
    }

    /// Asks the stages. `found` is the packet's entry, whose decision does not hold.
    #[cold]
    #[inline(never)]
    fn judge(&mut self, found: Option<Slot>) -> Result<Verdict, DropReason> {
        self.switch.flow_counters.misses += 1;
        let (snapshot, key) = (self.snapshot, &self.flow.parsed.key);
        let about = if self.flow.parsed.class == Class::Error { self.related() } else { None };
        let (found, standing) = self.standing(found, about);
        let ingress = self.packet.port();
        let decision =
            match forward::judge(self.switch, snapshot, self.now, ingress, self.flow, standing)? {
                Judgment::Forward(decision) => decision,
                Judgment::Pieces => return self.decide_piece(),
                Judgment::Question => {
                    self.switch.questions.spend(self.now, ingress)?;
                    return Ok(Verdict::Ask);
                }
                Judgment::Router => {
                    router::answer_echo(self.packet, &self.flow.parsed)?;
                    return Ok(Verdict::Send(self.packet.port()));
                }
            };
        if decision.way.route.is_some() {
            check_alive(self.packet, key.is_ipv4())?;
        }
        let ends = Ends::new(snapshot, self.packet.port(), decision.way.action);
        let is_filtered = ends.are_filtered() && !matches!(decision.way.action, Action::Drop(_));
        let mut way = decision.way;
        let is_tracked = is_filtered || decision.translation.is_some();
        match self.flow.parsed.class {
            Class::Error if is_tracked => {
                way.edit = self.check_related(about, &ends, &decision.way)?;
            }
            Class::Error => {}
            _ if !is_tracked => self.keep(&decision),
            _ if key.is_fragment() => return self.decide_piece(),
            _ => match self.connect(found, &decision, &ends)? {
                Connected::By(link) => way.edit = link,
                Connected::Anew => return self.judge(None),
            },
        }
        if decision.translation.is_some() && way.edit == Link::NONE {
            return Err(DropReason::ConnectionTableFull);
        }
        carry_out(self.switch, snapshot, self.packet, way, (self.now, self.flow))
    }

    /// The entry of the flow that an ICMP error is about, in the error's direction.
    fn related(&self) -> Option<Slot> {
        let parsed = &self.flow.parsed;
        let key = related::flow_of(self.packet.head(), parsed, parsed.key.ingress())?;
        let flow = self.switch.flows.hashed(key);
        self.switch.flows.locate(flow.hash, &flow.key)
    }

    /// What becomes of the packet by the connection that it belongs to, or that it is about, if
    /// that is translated and may still be so; else its entry is one of nothing.
    fn standing(
        &mut self,
        found: Option<Slot>,
        about: Option<Slot>,
    ) -> (Option<Slot>, Option<Translation>) {
        let flows = &self.switch.flows;
        let Some(slot) = about.or(found) else { return (found, None) };
        let entry = flows.entry(slot);
        let (key, link) = (entry.key, entry.link);
        let Some((connection, direction)) = link.get().filter(|_| entry.is_translated) else {
            return (found, None);
        };
        let edit = flows.edit(link);
        let going = edit.applied(&key);
        let opposite = flows.connection(connection).entry(direction.other());
        let translation = opposite.and_then(|opposite| {
            let opposite = flows.entry(opposite).key.ingress();
            // Who has begun it may be gone, and another have his place and address.
            let here = self.switch.incarnations[usize::from(opposite.place)];
            if direction == Direction::Back && here != opposite.incarnation {
                return None;
            }
            let is_judged = flows.connection(connection).generation == flows.generation();
            let (from, to, vni) = match direction {
                Direction::Forward => (key, going, opposite.vni),
                Direction::Back => {
                    (going.answer(opposite)?, key.answer(opposite)?, key.ingress().vni)
                }
            };
            let is_right = is_judged || self.holds(&from, &to, vni);
            is_right.then_some(opposite.vni)
        });
        let (_, nic) = going.addresses();
        let Some(vni) = translation else {
            self.switch.flows.close(connection);
            return (None, None);
        };
        let key = match about {
            None => going,
            Some(_) => edit.redirected(&self.flow.parsed.key),
        };
        (found, Some(Translation { key, vni, nic, backend: None }))
    }

    /// Whether a connection that was translated so may still be.
    fn holds(&self, from: &FlowKey, to: &FlowKey, vni: Vni) -> bool {
        let Snapshot { balancers, external, .. } = self.snapshot;
        let mapped = || outward::inward_mapped(self.switch, self.snapshot, from);
        balancers.holds(from, to, vni).unwrap_or_else(|| external.holds(from, to, vni, mapped))
    }

    /// Finds the packet its connection, or makes one. How the packets of one that is over were
    /// translated is no more than how another one's would be: the far end may not begin one because
    /// it was spoken to, and a balancer chooses once more.
    fn connect(
        &mut self,
        found: Option<Slot>,
        decision: &Decision,
        ends: &Ends<'_>,
    ) -> Result<Connected, DropReason> {
        let link = found.and_then(|slot| self.switch.flows.entry(slot).link.get());
        let is_other = |connection| {
            self.switch.flows.connection(connection).is_translated != decision.translation.is_some()
        };
        let is_kept = match link {
            Some((connection, _))
                if is_other(connection) || !self.is_openers(link, &decision.way) =>
            {
                self.switch.flows.close(connection);
                false
            }
            Some((connection, direction)) => {
                let is_kept = self.again(connection, direction, ends, &decision.way)?;
                if !is_kept && decision.translation.is_some() {
                    return Ok(Connected::Anew);
                }
                is_kept
            }
            None => false,
        };
        let slot = if is_kept { found } else { self.begin(decision, ends)? };
        let Some(slot) = slot else { return Ok(Connected::By(Link::NONE)) };
        self.settle(slot, decision);
        Ok(Connected::By(self.switch.flows.entry(slot).way().edit))
    }

    /// Whether a packet that goes this way goes to whoever has begun its connection, or is from
    /// him. Another port here that has his address now has asked for nothing; who comes or goes
    /// through a tunnel may have moved with what he is.
    fn is_openers(&self, link: Option<(ConnectionIndex, Direction)>, way: &Way) -> bool {
        let Some((connection, Direction::Back)) = link else { return true };
        let opener = self.switch.flows.connection(connection).entry(Direction::Forward);
        let Some(opener) = opener else { return true };
        let opener = self.switch.flows.entry(opener).key.ingress();
        let now = self.answers_come_in(way);
        let is_remote = |ingress: Ingress| ingress.place == PortIndex::UPLINK.0;
        opener == now || is_remote(opener) || is_remote(now)
    }

    /// An ICMP error passes if the packet that it is about is of a connection.
    /// Says where its edit record is, if it is translated.
    fn check_related(
        &mut self,
        about: Option<Slot>,
        ends: &Ends<'_>,
        way: &Way,
    ) -> Result<Link, DropReason> {
        let entry = *self.switch.flows.entry(about.ok_or(DropReason::IcmpUnrelated)?);
        let link = entry.link.get();
        let (connection, direction) = link.ok_or(DropReason::IcmpUnrelated)?;
        if !self.is_openers(link, way) {
            return Err(DropReason::IcmpUnrelated);
        }
        self.check_allowed((connection, direction), ends, &entry.key, way)?;
        Ok(entry.way().edit)
    }

    /// A piece of a packet has the fate of its flow, which the first piece names.
    fn decide_piece(&mut self) -> Result<Verdict, DropReason> {
        let parsed = &self.flow.parsed;
        let piece = piece::read(self.packet.head(), parsed)?;
        let mut key = parsed.key;
        let [a, b, c, d] = piece.number.to_be_bytes();
        key.set_ports(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let pieces = self.switch.flows.hashed(key);
        let (ports, wholeness) = match piece.ports {
            Some(ports) => (ports, Wholeness::First),
            None => {
                let found = self.switch.fragments.find(self.now, pieces.hash, &pieces.key);
                (found.ok_or(DropReason::FragmentUnmatched)?, Wholeness::Later)
            }
        };
        let mut whole = *self.flow;
        whole.parsed.key.set_whole();
        whole.parsed.key.set_ports(ports.0, ports.1);
        whole.hash = self.switch.flows.hash(&whole.parsed.key);
        whole.wholeness = wholeness;
        let Self { switch, snapshot, now, packet, .. } = self;
        let (snapshot, now) = (*snapshot, *now);
        let verdict = Judge { switch, snapshot, now, packet, flow: &whole }.decide()?;
        if wholeness == Wholeness::First && piece.has_others {
            self.switch.fragments.remember(now, pieces.hash, &pieces.key, ports);
        }
        Ok(verdict)
    }

    /// Keeps a decision that needs no connection; where there is no room, the packet is sent all
    /// the same.
    fn keep(&mut self, decision: &Decision) {
        let (hashed, expected) = (self.hashed(), self.flow.parsed.expected);
        let flows = &mut self.switch.flows;
        match flows.keep(self.now, &hashed, expected, decision.way, decision.owner) {
            Ok(slot) => {
                self.switch.flow_counters.made += 1;
                self.switch.flows.count(self.now, slot, self.packet.output_length());
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
        ends: &Ends<'_>,
        way: &Way,
    ) -> Result<bool, DropReason> {
        self.check_allowed((connection, direction), ends, &self.flow.parsed.key, way)?;
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

    /// Whether packets of a connection that go this way come to another place than before: whom a
    /// frame is for is said by its MAC, so the same addresses may be sent to anybody.
    fn is_moved(&self, connection: ConnectionIndex, direction: Direction, way: &Way) -> bool {
        let flows = &self.switch.flows;
        let receivers = flows.connection(connection).entry(direction.other());
        let known = receivers.map(|slot| flows.entry(slot).key.ingress());
        known != Some(self.answers_come_in(way))
    }

    /// Judges a connection by the rules in force, as if it were begun now; once for each
    /// configuration and receiver. `key` is that of its packets in this direction.
    fn check_allowed(
        &mut self,
        (connection, direction): (ConnectionIndex, Direction),
        ends: &Ends<'_>,
        key: &FlowKey,
        way: &Way,
    ) -> Result<(), DropReason> {
        let generation = self.switch.flows.generation();
        let is_judged = self.switch.flows.connection(connection).generation == generation;
        if is_judged && !self.is_moved(connection, direction, way) {
            return Ok(());
        }
        let is_translated = self.switch.flows.connection(connection).is_translated;
        let going = if is_translated {
            self.switch.flows.edit(Link::new(connection, direction)).applied(key)
        } else {
            *key
        };
        let verdict = match direction {
            Direction::Forward => security::permit(self.snapshot, ends, key, &going),
            Direction::Back => {
                let refused = DropReason::SecurityGroupDenied;
                self.permit_reversed(ends, key, &going).ok_or(refused).flatten()
            }
        };
        if verdict.is_err() {
            self.switch.flows.close(connection);
        } else {
            self.switch.flows.connection_mut(connection).generation = generation;
        }
        verdict
    }

    /// What the rules say of the connection to which a packet that comes as `key` and goes as
    /// `going` is an answer; `None` if it is none.
    fn permit_reversed(
        &self,
        ends: &Ends<'_>,
        key: &FlowKey,
        going: &FlowKey,
    ) -> Option<Result<(), DropReason>> {
        let (begun, went) = (going.answer(key.ingress())?, key.answer(key.ingress())?);
        Some(security::permit(self.snapshot, &ends.exchanged(), &begun, &went))
    }

    /// Lets the connection's TCP look at the packet.
    #[inline]
    fn follow(
        &mut self,
        connection: ConnectionIndex,
        direction: Direction,
    ) -> Result<Followed, DropReason> {
        let connection = self.switch.flows.connection_mut(connection);
        if self.flow.wholeness != Wholeness::Whole {
            // Of the pieces of a packet, none says how long it is.
            connection.tcp.is_loose = true;
            if self.flow.wholeness == Wholeness::Later {
                return Ok(Followed::Accepted);
            }
        }
        let segment = segment(self.packet, self.flow)?;
        connection.tcp.follow(direction.number(), &segment)
    }

    /// The first packet of a connection, or of none. Gives the place of its entry, if it has one
    /// that is to be settled.
    fn begin(&mut self, decision: &Decision, ends: &Ends<'_>) -> Result<Option<Slot>, DropReason> {
        if self.flow.wholeness == Wholeness::Later {
            return Err(DropReason::FragmentUnmatched);
        }
        let key = &self.flow.parsed.key;
        let going = decision.translation.map_or(*key, |translation| translation.key);
        let Some(answer) = going.answer(self.answers_come_in(&decision.way)) else {
            // A message that nothing answers: the rules are asked about each of its kind.
            if decision.translation.is_some() {
                return Err(DropReason::IcmpUnrelated);
            }
            security::permit(self.snapshot, ends, key, key)?;
            self.keep(decision);
            return Ok(None);
        };
        let answer = self.switch.flows.hashed(answer);
        if answer.hash ^ 1 != self.flow.hash {
            self.switch.flows.touch_buckets(answer.hash).end();
        }
        let (tracked, tcp, direction) = self.beginning(ends, &going)?;
        // Not before: what may not begin must not be reachable by its port either.
        self.map(decision, key, &going)?;
        let made = milliseconds(self.now);
        let generation = self.switch.flows.generation();
        let connection = Connection::new(tracked, tcp, generation, made);
        let own = self.hashed();
        let back = key.answer(key.ingress()).unwrap_or(*key);
        let (mut flows, mut edits) =
            ([own, answer], [Edit::new(key, &going), Edit::new(&answer.key, &back)]);
        let backend = decision.translation.and_then(|translation| translation.backend);
        if let Some(chosen) = backend {
            edits.iter_mut().for_each(|edit| edit.set_backend(chosen.backend));
        }
        if direction == Direction::Back {
            flows.reverse();
            edits.reverse();
        }
        let edits = decision.translation.map(|_| &edits);
        let opened = self.switch.flows.open(self.now, &flows, decision.owner, connection, edits);
        let index = match opened {
            Ok(index) => index,
            Err(reason) => {
                self.refused(reason);
                return Err(DropReason::ConnectionTableFull);
            }
        };
        self.switch.flow_counters.made += 1;
        if let Some(chosen) = backend {
            let Switch { balancers, flows, .. } = &mut *self.switch;
            balancers.begun(self.now, flows, key, &chosen);
        }
        Ok(self.switch.flows.connection(index).entry(direction))
    }

    /// Has the sender's end stand for itself outside whoever it speaks to, if its gateway wants it.
    fn map(
        &mut self,
        decision: &Decision,
        key: &FlowKey,
        going: &FlowKey,
    ) -> Result<(), DropReason> {
        if decision.translation.is_none() || key.ingress().vni == OUTSIDE {
            return Ok(());
        }
        let block = self.snapshot.external.mapped(key);
        if !block.is_some_and(|block| block.has(going.source_port())) {
            return Ok(());
        }
        let outside = self.switch.outside();
        let mapped = self.switch.flows.map(self.now, (key, going), outside, decision.owner);
        mapped.map_err(|reason| {
            self.refused(reason);
            DropReason::ConnectionTableFull
        })
    }

    /// What kind of connection begins with the packet, if one may, and which way the packet goes
    /// in it.
    fn beginning(
        &self,
        ends: &Ends<'_>,
        going: &FlowKey,
    ) -> Result<(Tracked, Tcp, Direction), DropReason> {
        let key = &self.flow.parsed.key;
        if key.protocol() != PROTOCOL_TCP {
            let [kind, _] = key.destination_port().to_be_bytes();
            if key.is_icmp() && !is_question(kind, key.is_ipv4()) {
                return Err(DropReason::IcmpUnrelated);
            }
            security::permit(self.snapshot, ends, key, going)?;
            let tracked = if key.is_icmp() { Tracked::Icmp } else { Tracked::Datagrams };
            return Ok((tracked, Tcp::NONE, Direction::Forward));
        }
        let segment = segment(self.packet, self.flow)?;
        if segment.is_nonsense() {
            return Err(DropReason::TcpFlagsInvalid);
        }
        if segment.opens() {
            security::permit(self.snapshot, ends, key, going)?;
            return Ok((Tracked::Tcp, Tcp::opened(&segment), Direction::Forward));
        }
        if self.now >= self.switch.grace_until || !segment.continues() {
            return Err(DropReason::TcpNoConnection);
        }
        let direction = self.picked_up(ends, going)?;
        Ok((Tracked::Tcp, Tcp::met(), direction))
    }

    /// Which way a packet goes in a connection whose beginning nobody saw: that which the rules
    /// allow.
    fn picked_up(&self, ends: &Ends<'_>, going: &FlowKey) -> Result<Direction, DropReason> {
        let key = &self.flow.parsed.key;
        let refused = match security::permit(self.snapshot, ends, key, going) {
            Ok(()) => return Ok(Direction::Forward),
            Err(reason) => reason,
        };
        self.permit_reversed(ends, key, going)
            .ok_or(refused)?
            .map(|()| Direction::Back)
            .map_err(|_| refused)
    }

    /// Writes the decision down, and where the answers to it come in.
    fn settle(&mut self, slot: Slot, decision: &Decision) {
        let answers = self.answers_come_in(&decision.way);
        let going = decision.translation.map(|translation| translation.key);
        let flows = &mut self.switch.flows;
        flows.renew(self.now, slot, self.flow.parsed.expected, decision.way);
        flows.count(self.now, slot, self.packet.output_length());
        let key = flows.entry(slot).key;
        if let Some((connection, direction)) = flows.entry(slot).link.get()
            && let Some(answer) = going.unwrap_or(key).answer(answers)
        {
            let answer = flows.hashed(answer);
            flows.rebind(self.now, connection, direction.other(), &answer);
        }
    }

    /// The place at which answers to what goes this way come in. What goes into a tunnel is
    /// answered to the VPC that it came from.
    fn answers_come_in(&self, way: &Way) -> Ingress {
        let (place, vni) = match way.action {
            Action::Deliver(to) => {
                (to, self.snapshot.port(to).map_or(self.flow.vni, |port| port.vni))
            }
            Action::External { .. } => (PortIndex::UPLINK, OUTSIDE),
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
