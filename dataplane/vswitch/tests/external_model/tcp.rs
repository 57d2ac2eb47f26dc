// SPDX-License-Identifier: Apache-2.0
//! TCP between guests and the outside: translated, and followed with its windows.

use super::support::follow::{self, Follow, Heard, Says};
use super::support::outside::*;
use super::support::*;
use super::{End, Flow, REMOTE_PORTS, REMOTES, Race};
use super::{NICS, OURS, PORTS};
use plinth_vswitch::DropReason;
use plinth_wire::PROTOCOL_TCP;

/// What is to become of a segment, by what its ends have said.
pub(crate) enum Judged {
    /// Of a connection that goes on.
    Known,
    /// It begins one, if it has somewhere to go.
    New,
    /// Nobody cares.
    Either,
    Refused(DropReason),
}

pub(crate) fn between(from: End, to: End, heard: &Heard) -> Ip {
    Ip::new(PROTOCOL_TCP, (from.0, to.0), follow::segment((from.1, to.1), heard))
}

/// What a connection says to a segment of a side; it is gone if it is over.
pub(crate) fn judge(stream: Option<&mut Follow>, side: usize, heard: &Heard) -> Judged {
    match stream.map(|stream| stream.follow(side, heard)) {
        Some(Says::Passes) => Judged::Known,
        Some(Says::Either) => Judged::Either,
        Some(Says::Drops(reason)) => Judged::Refused(reason),
        Some(Says::Begins) | None => Judged::New,
    }
}

impl Race {
    pub(crate) fn cut(&mut self, outcome: &Outcome, reason: DropReason, what: &str) {
        assert_eq!(*outcome, Outcome::Dropped(reason), "{what}");
        self.refused += 1;
        self.cut += 1;
    }

    /// What the flow's ends say; if it is over, it is forgotten.
    fn judge_segment(&mut self, known: Option<Flow>, side: usize, heard: &Heard) -> Judged {
        let stream = known.and_then(|flow| self.streams.get_mut(&flow));
        let judged = judge(stream, side, heard);
        if let (Judged::New, Some(flow)) = (&judged, known) {
            self.flows.retain(|other| *other != flow);
        }
        judged
    }

    /// A guest sends a segment to somebody outside.
    pub(crate) fn speak_tcp(&mut self) {
        let nic = self.random.pick(&NICS);
        let source = if self.random.below(8) == 0 { CARRIED } else { v4(nic) };
        let mut inside = (source, self.random.pick(&PORTS));
        let mut remote = (self.random.pick(&REMOTES), self.random.pick(&REMOTE_PORTS));
        if self.random.percent(30)
            && let Some(flow) = self.flows.iter().find(|flow| flow.is_inward && flow.nic == nic)
        {
            (inside, remote) = (flow.inside, flow.remote);
        }
        let known = self.standing(|flow| {
            let is_its = (flow.nic, flow.inside, flow.remote) == (nic, inside, remote);
            flow.protocol == PROTOCOL_TCP && is_its
        });
        let side = known.map_or(0, |flow| usize::from(flow.is_inward));
        let stream = known.and_then(|flow| self.streams.get(&flow));
        let heard = Follow::guess(stream, side, &mut self.random);
        let place = self.story.rig.index(nic.into());
        let going = between(inside, remote, &heard);
        let outcome = self.story.rig.once(place, going.frame((mac(nic), ROUTER), 64));
        let may = inside.0 != CARRIED || nic == 5;
        let Some((address, block)) = self.leaves_as(nic, inside.0).filter(|_| may) else {
            return self.refuse(&outcome, "a segment of nobody outside");
        };
        if inside.0 == CARRIED {
            // Neither translated nor filtered, so nobody looks at it.
            assert_eq!(outcome.sent(), going.left());
            self.passed += 1;
            return;
        }
        let known = match self.judge_segment(known, side, &heard) {
            Judged::Refused(reason) => return self.cut(&outcome, reason, "of a guest"),
            Judged::Either if matches!(outcome, Outcome::Dropped(_)) => return,
            Judged::Known | Judged::Either => known,
            Judged::New => None,
        };
        let Some(flow) = known else {
            if self.is_line_taken((PROTOCOL_TCP, nic, inside), remote) {
                return self.refuse(&outcome, "a segment whose answers are another's");
            }
            let begun = match Follow::begin(&heard, self.is_grace) {
                Ok(begun) => begun,
                Err(reason) => return self.cut(&outcome, reason, "the first of a guest"),
            };
            let (_, frame) = outcome.sent();
            let outside = (address, source_port(&frame));
            let protocol = PROTOCOL_TCP;
            let flow = Flow { protocol, nic, inside, outside, remote, is_inward: false };
            self.begin_outward(flow, block);
            self.streams.insert(flow, begun);
            assert_eq!((UPLINK, frame), between(outside, remote, &heard).left());
            self.passed += 1;
            return;
        };
        assert_eq!(outcome.sent(), between(flow.outside, remote, &heard).left());
        self.passed += 1;
    }

    /// Where a segment from outside goes, and from where it comes.
    fn any_ends(&mut self) -> (End, End) {
        let random = &mut self.random;
        let remote = (random.pick(&REMOTES), random.pick(&REMOTE_PORTS));
        let streams: Vec<&Flow> =
            self.flows.iter().filter(|flow| flow.protocol == PROTOCOL_TCP).collect();
        match random.below(8) {
            0..5 if !streams.is_empty() => {
                let flow = streams[random.below(streams.len())];
                (flow.outside, flow.remote)
            }
            5 if !self.ends.is_empty() => {
                let nth = random.below(self.ends.len());
                (*self.ends.values().nth(nth).unwrap(), remote)
            }
            _ => {
                let any = u16::try_from(1024 + random.below(300)).unwrap();
                let port = random.pick(&[80, 1000, 8000, 8003, 8004, 8010, 1024, 1100]);
                let end = (random.pick(&OURS), port);
                (random.pick(&[(SHARED, any), end]), remote)
            }
        }
    }

    /// Somebody outside sends a segment.
    pub(crate) fn hear_tcp(&mut self) {
        let (outside, remote) = self.any_ends();
        let is_ours = self.is_ours(outside.0);
        let known = self.standing(|flow| {
            let is_its = (flow.outside, flow.remote) == (outside, remote);
            is_ours && flow.protocol == PROTOCOL_TCP && is_its
        });
        let side = known.map_or(0, |flow| usize::from(!flow.is_inward));
        let stream = known.and_then(|flow| self.streams.get(&flow));
        let heard = Follow::guess(stream, side, &mut self.random);
        let coming = between(remote, outside, &heard);
        let outcome = self.story.rig.once(UPLINK, coming.frame((GATEWAY_MAC, OUR_MAC), 64));
        if self.arrives(outside.0, &coming, &outcome) {
            return;
        }
        let known = match self.judge_segment(known, side, &heard) {
            Judged::Refused(reason) => return self.cut(&outcome, reason, "from outside"),
            Judged::Either if matches!(outcome, Outcome::Dropped(_)) => return,
            Judged::Known | Judged::Either => known,
            Judged::New => None,
        };
        let led = self.leads_to((PROTOCOL_TCP, outside.0, outside.1));
        let to = known.map(|flow| (flow.nic, flow.inside.0, flow.inside.1));
        let Some((nic, address, port)) = to.or(led) else {
            return self.refuse(&outcome, "a stranger's segment");
        };
        let inside = (address, port);
        if known.is_none() {
            let begun = match Follow::begin(&heard, self.is_grace) {
                Ok(begun) => begun,
                Err(reason) => return self.cut(&outcome, reason, "the first from outside"),
            };
            let protocol = PROTOCOL_TCP;
            let flow = Flow { protocol, nic, inside, outside, remote, is_inward: true };
            self.begin(flow);
            self.streams.insert(flow, begun);
        }
        let place = self.story.rig.index(nic.into());
        assert_eq!(outcome.sent(), between(remote, inside, &heard).arrived(place, nic));
        self.passed += 1;
    }
}
