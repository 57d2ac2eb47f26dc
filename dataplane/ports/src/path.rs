// SPDX-License-Identifier: Apache-2.0
//! From one port's burst to the ports that it goes to.

use crate::asking::ANSWERS_ROUND;
use crate::turns::Turns;
use crate::{AskingPort, Capture, Delivery, Frame, GuestPort, Port};
use plinth_backends::net::{BURST, HEAD_MAX, OutboundBurst, Payload, SegmentRequest};
use plinth_dpdk::Mbuf;
use plinth_ids::{Moment, PortId};
use plinth_rt::cycles;
use plinth_vswitch::{
    BURST_MAX, DropReason, HEADERS_MAX, Offload, Packet, PortIndex, Switch, Verdict,
};
use plinth_wire::Segmentation;
use plinth_wire::checksum::{PartialChecksum, rx_checksum};
use std::ops::Range;

const _: () = assert!(HEAD_MAX == HEADERS_MAX, "a head is copied whole");
const _: () = assert!(BURST == BURST_MAX, "a guest's burst is one of the switch's");

/// A port where the switch knows it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) index: PortIndex,
    pub(crate) port: Port,
    /// Where the last packets of a burst from here went: a guess for the next burst.
    last_target: PortIndex,
}

/// The worker's switch, its ports, and the buffers that every burst uses again.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) switch: Switch,
    /// By `PortIndex::get`; the uplink is the first.
    slots: Vec<Option<Slot>>,
    /// The places that are taken, lowest first.
    taken: Vec<usize>,
    packets: Box<[Packet]>,
    /// Absent only while a burst of it is on its way.
    burst: Option<Box<OutboundBurst>>,
    mbufs: Vec<Mbuf>,
    frames: Vec<Frame>,
    /// Places where something was put out or taken since they were flushed.
    touched: Vec<usize>,
    is_touched: Vec<bool>,
    turns: Turns,
    /// The queue pair that begins, of every port that has several.
    first_pair: usize,
    stages: StageCycles,
    /// Whose copies of packets are wanted.
    pub(crate) capture: Option<Box<Capture>>,
    /// To the thread that answers guests' questions, if there is one.
    pub(crate) asking: Option<AskingPort>,
}

/// Where the time of rounds that moved packets went, in cycles of the time-stamp counter. Five
/// looks at the counter a burst, some 4 cycles a packet of a full one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StageCycles {
    /// Packets of the bursts that were measured.
    pub packets: u64,
    /// Chains taken, headers copied in.
    pub receive: u64,
    /// `Switch::process`.
    pub decide: u64,
    /// Written to the ports that they go to.
    pub deliver: u64,
    /// Buffers given back to their sender.
    pub release: u64,
    /// Used indexes shown, frontends called, device sends.
    pub flush: u64,
}

/// Measures one burst, stage by stage.
#[derive(Debug)]
struct Lap {
    at: u64,
}

impl Lap {
    #[inline]
    fn begin() -> Self {
        Self { at: cycles() }
    }

    /// Adds the time since the last stage's end to `stage`.
    #[inline]
    fn end(&mut self, stage: &mut u64) {
        let now = cycles();
        *stage = stage.wrapping_add(now.wrapping_sub(self.at));
        self.at = now;
    }
}

impl Path {
    /// `places` is one more than the most guest ports.
    pub(crate) fn new(switch: Switch, places: usize) -> Self {
        Self {
            switch,
            slots: std::iter::repeat_with(|| None).take(places).collect(),
            taken: Vec::with_capacity(places),
            packets: vec![Packet::empty(); BURST_MAX].into(),
            burst: Some(Box::default()),
            mbufs: Vec::with_capacity(BURST_MAX),
            frames: Vec::with_capacity(BURST_MAX),
            touched: Vec::with_capacity(places),
            is_touched: vec![false; places],
            turns: Turns::new(places),
            first_pair: 0,
            stages: StageCycles::default(),
            capture: None,
            asking: None,
        }
    }

    /// Puts a port in its place. Gives back the one that was there.
    pub(crate) fn put(&mut self, index: PortIndex, port: Port) -> Option<Port> {
        let before = self.slots[index.get()].replace(Slot { index, port, last_target: index });
        self.turns.set_weight(index.get(), self.switch.weight(index));
        if before.is_none() {
            let at = self.taken.partition_point(|&place| place < index.get());
            self.taken.insert(at, index.get());
        }
        before.map(|slot| slot.port)
    }

    /// Takes the port out of a place.
    pub(crate) fn take(&mut self, place: usize) -> Option<Port> {
        self.taken.retain(|&taken| taken != place);
        self.slots[place].take().map(|slot| slot.port)
    }

    pub(crate) const fn stages(&self) -> StageCycles {
        self.stages
    }

    pub(crate) fn port(&self, place: usize) -> Option<&Port> {
        self.slots[place].as_ref().map(|slot| &slot.port)
    }

    pub(crate) fn guest_mut(&mut self, place: usize) -> Option<&mut GuestPort> {
        match &mut self.slots[place].as_mut()?.port {
            Port::Guest(port) => Some(port),
            Port::Ethernet(_) | Port::Memory(_) => None,
        }
    }

    pub(crate) fn ports(&self) -> impl Iterator<Item = (PortIndex, &Port)> {
        self.slots.iter().flatten().map(|slot| (slot.index, &slot.port))
    }

    pub(crate) fn ports_mut(&mut self) -> impl Iterator<Item = &mut Port> {
        self.slots.iter_mut().flatten().map(|slot| &mut slot.port)
    }

    /// Moves at most one burst out of every queue of every port whose turn it is.
    pub(crate) fn round(&mut self, now: Moment) -> usize {
        let moved = self.round_of_turns(now);
        if moved > 0 {
            self.turns.end();
            return moved;
        }
        // Only ports that were passed over have anything: there is nobody to pass them over for.
        if self.turns.catch_up() { self.round_of_turns(now) } else { 0 }
    }

    fn round_of_turns(&mut self, now: Moment) -> usize {
        let mut moved = 0;
        self.first_pair = self.first_pair.wrapping_add(1);
        for nth in 0..self.taken.len() {
            let place = self.taken[nth];
            let Some(slot) = &self.slots[place] else { continue };
            let index = slot.index;
            // What comes from the wire is everybody's: one burst a round, always.
            let is_guests = index != PortIndex::UPLINK;
            if is_guests && !self.turns.begin(place) {
                continue;
            }
            moved += match &slot.port {
                Port::Guest(port) => self.move_from_pairs(now, index, port.pair_count()),
                Port::Ethernet(_) => self.move_from_ethernet(now, index),
                Port::Memory(_) => self.move_from_memory(now, index),
            };
        }
        moved
    }

    /// One burst from each of a guest's queue pairs, while it has cycles left; each round another
    /// pair begins.
    fn move_from_pairs(&mut self, now: Moment, index: PortIndex, pairs: usize) -> usize {
        let mut moved = 0;
        for nth in 0..pairs {
            let pair = (self.first_pair.wrapping_add(nth)) % pairs;
            if nth > 0 && !self.turns.may_go_on(index.get()) {
                break;
            }
            moved += self.move_from_guest(now, index, pair);
        }
        moved
    }

    /// Sends what is due of the switch's own accord.
    pub(crate) fn tick(&mut self, now: Moment) {
        while let Some(frame) = self.switch.tick(now) {
            let delivery = Delivery {
                head: frame.bytes(),
                payload: Payload::EMPTY,
                partial: None,
                segmentation: None,
            };
            // A question that cannot be asked now is asked again by the machine's own timer.
            let _ = self.deliver(frame.port, &delivery);
        }
    }

    /// Gives guests the answers that came back. Says how many.
    pub(crate) fn tell(&mut self) -> usize {
        let mut told = 0;
        while told < ANSWERS_ROUND
            && let Some(slip) = self.asking.as_ref().and_then(AskingPort::next_answer)
        {
            told += 1;
            let frame = slip.frame();
            let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
            let origin = slip.origin();
            // A guest that is not there yet asks when it comes: it misses nothing.
            let is_heard = !origin.is_unasked() || self.is_up(origin.port);
            if is_heard && let Some(index) = self.switch.say(&origin, length) {
                let delivery = Delivery {
                    head: frame,
                    payload: Payload::EMPTY,
                    partial: None,
                    segmentation: None,
                };
                if let Err(reason) = self.deliver(index, &delivery) {
                    self.switch.unsaid(index, length, reason);
                }
            }
            if let Some(asking) = &self.asking {
                asking.give_back(slip);
            }
        }
        told
    }

    fn is_up(&self, port: PortId) -> bool {
        let index = self.switch.port_index(port);
        index.and_then(|index| self.port(index.get())).is_some_and(Port::is_up)
    }

    /// Shows every port's other side what it got. Once a round.
    pub(crate) fn flush(&mut self) {
        if let Some(asking) = &mut self.asking {
            asking.flush();
        }
        let mut lap = (!self.touched.is_empty()).then(Lap::begin);
        while let Some(place) = self.touched.pop() {
            self.is_touched[place] = false;
            if let Some(slot) = &mut self.slots[place] {
                slot.port.flush();
            }
        }
        // What the device did not take in an earlier round is offered again.
        if let Some(Slot { port: Port::Ethernet(port), .. }) =
            &mut self.slots[PortIndex::UPLINK.get()]
            && port.has_backlog()
        {
            port.flush();
        }
        if let Some(lap) = &mut lap {
            lap.end(&mut self.stages.flush);
        }
    }

    fn move_from_guest(&mut self, now: Moment, index: PortIndex, pair: usize) -> usize {
        let Some(Slot { port: Port::Guest(port), .. }) = &mut self.slots[index.get()] else {
            return 0;
        };
        let most = self.switch.outbound_allowance(now, index);
        if most == 0 {
            return 0;
        }
        let mut burst = self.burst.take().expect("put back below, before any other burst");
        let mut lap = Lap::begin();
        let began = lap.at;
        let count = port.receive(pair, most, &mut burst);
        if count == 0 {
            // Chains that broke the rules may be there, and go back.
            port.release(&mut burst);
            self.burst = Some(burst);
            return 0;
        }
        for (packet, outbound) in self.packets.iter_mut().zip(burst.iter()) {
            let length = u32::try_from(outbound.length()).unwrap_or(u32::MAX);
            let partial = outbound
                .offload()
                .checksum
                .map(|asked| PartialChecksum { start: asked.start, offset: asked.offset });
            let offload = Offload { partial, ..Offload::default() };
            outbound.copy_head(packet.load(index, length, offload));
            if let Some(SegmentRequest { size, is_ipv6, has_ecn, .. }) = outbound.offload().segments
            {
                packet.ask_segmentation(size, is_ipv6, has_ecn);
            }
        }
        let longest = burst.iter().map(|outbound| outbound.length()).max().unwrap_or(0);
        self.expect(index, count, longest);
        lap.end(&mut self.stages.receive);
        self.decide(now, count);
        lap.end(&mut self.stages.decide);
        self.carry_out(count, |nth, tail| match tail.is_empty() {
            true => Payload::EMPTY,
            // The machine cuts only what came from the wire.
            false => burst.packet(nth).payload(tail.start),
        });
        if let Verdict::Send(target) = self.packets[count - 1].verdict()
            && let Some(slot) = &mut self.slots[index.get()]
        {
            slot.last_target = target;
        }
        lap.end(&mut self.stages.deliver);
        if let Some(Slot { port: Port::Guest(port), .. }) = &mut self.slots[index.get()] {
            port.release(&mut burst);
        }
        self.burst = Some(burst);
        self.touch(index);
        lap.end(&mut self.stages.release);
        self.turns.charge(index.get(), lap.at.wrapping_sub(began));
        self.stages.packets += count as u64;
        count
    }

    /// Lets the port to which the last burst of `from` went prepare for one more: while the switch
    /// decides, the lines come that it will write. A guess that is wrong costs the fetches.
    #[inline]
    fn expect(&mut self, from: PortIndex, count: usize, length: usize) {
        let Some(slot) = &self.slots[from.get()] else { return };
        let target = slot.last_target;
        if let Some(Slot { port: Port::Guest(port), .. }) = &mut self.slots[target.get()]
            && target != from
        {
            port.expect(count, length);
        }
    }

    fn move_from_ethernet(&mut self, now: Moment, index: PortIndex) -> usize {
        let Some(Slot { port: Port::Ethernet(port), .. }) = &mut self.slots[index.get()] else {
            return 0;
        };
        let mut mbufs = std::mem::take(&mut self.mbufs);
        let count = port.receive(&mut mbufs);
        for (packet, mbuf) in self.packets.iter_mut().zip(&mbufs) {
            let frame = mbuf.data();
            let offload = Offload { partial: None, udp: rx_checksum(frame) };
            load(packet, index, frame, offload);
        }
        self.decide(now, count);
        self.carry_out(count, |nth, tail| Payload::bytes(&mbufs[nth].data()[tail]));
        mbufs.clear();
        self.mbufs = mbufs;
        count
    }

    fn move_from_memory(&mut self, now: Moment, index: PortIndex) -> usize {
        let Some(Slot { port: Port::Memory(port), .. }) = &mut self.slots[index.get()] else {
            return 0;
        };
        let most = self.switch.outbound_allowance(now, index);
        let began = cycles();
        let mut frames = std::mem::take(&mut self.frames);
        let count = port.receive(most, &mut frames);
        for (packet, frame) in self.packets.iter_mut().zip(&frames) {
            let mut offload = frame.offload();
            if index == PortIndex::UPLINK {
                offload.udp = rx_checksum(&frame.bytes);
            }
            load(packet, index, &frame.bytes, offload);
            if let Some(Segmentation { size, is_ipv6, has_ecn, .. }) = frame.segmentation {
                packet.ask_segmentation(size, is_ipv6, has_ecn);
            }
        }
        self.decide(now, count);
        self.carry_out(count, |nth, tail| Payload::bytes(&frames[nth].bytes[tail]));
        frames.clear();
        self.frames = frames;
        if count > 0 {
            self.turns.charge(index.get(), cycles().wrapping_sub(began));
        }
        count
    }

    /// Lets the machine judge the first `count` packets, and shows them to a capture.
    #[inline]
    fn decide(&mut self, now: Moment, count: usize) {
        let packets = &mut self.packets[..count];
        let Some(capture) = &mut self.capture else {
            self.switch.process(now, packets);
            return;
        };
        capture.before(now, packets);
        self.switch.process(now, packets);
        capture.after(now, packets);
    }

    /// Does what the machine says about the first `count` packets. `payload` gives the part of the
    /// `nth` incoming frame that follows its headers.
    ///
    /// What goes to one port is put out together, in its order, so that the port can prepare for all
    /// of it; the order between two ports is nobody's concern.
    fn carry_out<'a>(
        &mut self,
        count: usize,
        payload: impl Fn(usize, Range<usize>) -> Payload<'a>,
    ) {
        let mut order = [0u8; BURST_MAX];
        let (mut left, mut asks) = (0u32, 0u32);
        for (nth, packet) in self.packets[..count].iter().enumerate() {
            left |= u32::from(matches!(packet.verdict(), Verdict::Send(_))) << nth;
            asks |= u32::from(packet.verdict() == Verdict::Ask) << nth;
        }
        if asks != 0 {
            self.hand_on(asks, &payload);
        }
        while left != 0 {
            let first = &self.packets[left.trailing_zeros() as usize];
            let Verdict::Send(target) = first.verdict() else { return };
            let group = self.group(target, &mut left, &mut order);
            self.put_out(target, group, &payload);
        }
    }

    /// Hands the questions among the packets to whoever answers them.
    #[cold]
    fn hand_on<'a>(&mut self, asks: u32, payload: &impl Fn(usize, Range<usize>) -> Payload<'a>) {
        for nth in (0..BURST_MAX).filter(|nth| asks & (1 << nth) != 0) {
            let packet = &self.packets[nth];
            let (head, tail) = (packet.head(), payload(nth, packet.tail()));
            let length = head.len() + tail.len();
            let fill = |into: &mut [u8]| {
                let (front, back) = into.split_at_mut(head.len());
                front.copy_from_slice(head);
                tail.copy_to(back);
            };
            let origin = self.switch.origin(packet);
            let is_asked = self
                .asking
                .as_mut()
                .zip(origin)
                .is_some_and(|(asking, origin)| asking.ask(origin, length, fill));
            if !is_asked {
                self.switch.unasked(&self.packets[nth]);
            }
        }
    }

    /// Takes the packets for one port out of `left` and gives their numbers in `order`.
    #[inline]
    fn group<'o>(
        &self,
        target: PortIndex,
        left: &mut u32,
        order: &'o mut [u8; BURST_MAX],
    ) -> &'o [u8] {
        let (mut rest, mut count) = (*left, 0);
        while rest != 0 {
            let nth = rest.trailing_zeros();
            rest &= rest - 1;
            if self.packets[nth as usize].verdict() == Verdict::Send(target) {
                *left &= !(1 << nth);
                order[count] = u8::try_from(nth).expect("a burst has 32 packets");
                count += 1;
            }
        }
        &order[..count]
    }

    #[inline]
    fn put_out<'a>(
        &mut self,
        target: PortIndex,
        group: &[u8],
        payload: &impl Fn(usize, Range<usize>) -> Payload<'a>,
    ) {
        let (packets, switch) = (&self.packets, &mut self.switch);
        let mut refused = |nth: usize, reason| {
            switch.undelivered(&packets[usize::from(group[nth])], reason);
        };
        let Some(slot) = &mut self.slots[target.get()] else {
            (0..group.len()).for_each(|nth| refused(nth, DropReason::PortDown));
            return;
        };
        let delivery = |nth: usize| {
            let nth = usize::from(group[nth]);
            let packet = &packets[nth];
            let partial = packet.partial_checksum();
            let segmentation = packet.segmentation();
            let payload = payload(nth, packet.tail());
            Delivery { head: packet.head(), payload, partial, segmentation }
        };
        slot.port.deliver_burst(group.len(), delivery, refused);
        self.touch(target);
    }

    fn deliver(&mut self, target: PortIndex, delivery: &Delivery<'_>) -> Result<(), DropReason> {
        let slot = self.slots[target.get()].as_mut().ok_or(DropReason::PortDown)?;
        slot.port.deliver(delivery)?;
        self.touch(target);
        Ok(())
    }

    #[inline]
    fn touch(&mut self, index: PortIndex) {
        let place = index.get();
        if !self.is_touched[place] {
            self.is_touched[place] = true;
            self.touched.push(place);
        }
    }
}

/// Copies a frame's head into a slot of the burst.
#[inline]
fn load(packet: &mut Packet, index: PortIndex, frame: &[u8], offload: Offload) {
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    let head = packet.load(index, length, offload);
    let copied = head.len();
    head.copy_from_slice(&frame[..copied]);
}
