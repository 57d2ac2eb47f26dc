// SPDX-License-Identifier: Apache-2.0
//! From one port's burst to the ports that it goes to.

use crate::{Delivery, Frame, GuestPort, Port};
use plinth_backends::net::{BURST, HEAD_MAX, OutboundBurst, Payload};
use plinth_dpdk::Mbuf;
use plinth_ids::Moment;
use plinth_vswitch::{
    BURST_MAX, DropReason, HEADERS_MAX, Offload, Packet, PortIndex, Switch, Verdict,
};
use plinth_wire::checksum::{PartialChecksum, rx_checksum};

const _: () = assert!(HEAD_MAX == HEADERS_MAX, "a head is copied whole");
const _: () = assert!(BURST == BURST_MAX, "a guest's burst is one of the switch's");

/// A port where the switch knows it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) index: PortIndex,
    pub(crate) port: Port,
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
        }
    }

    /// Puts a port in its place. Gives back the one that was there.
    pub(crate) fn put(&mut self, index: PortIndex, port: Port) -> Option<Port> {
        let before = self.slots[index.get()].replace(Slot { index, port });
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

    /// Moves at most one burst out of every queue of every port.
    pub(crate) fn round(&mut self, now: Moment) -> usize {
        let mut moved = 0;
        for nth in 0..self.taken.len() {
            let place = self.taken[nth];
            let Some(slot) = &self.slots[place] else { continue };
            let index = slot.index;
            moved += match &slot.port {
                Port::Guest(port) => {
                    let pairs = port.pair_count();
                    (0..pairs).map(|pair| self.move_from_guest(now, index, pair)).sum()
                }
                Port::Ethernet(_) => self.move_from_ethernet(now, index),
                Port::Memory(_) => self.move_from_memory(now, index),
            };
        }
        moved
    }

    /// Sends what is due of the switch's own accord.
    pub(crate) fn tick(&mut self, now: Moment) {
        while let Some(frame) = self.switch.tick(now) {
            let delivery = Delivery { head: frame.bytes(), payload: Payload::EMPTY, partial: None };
            // A question that cannot be asked now is asked again by the machine's own timer.
            let _ = self.deliver(frame.port, &delivery);
        }
    }

    /// Shows every port's other side what it got. Once a round.
    pub(crate) fn flush(&mut self) {
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
    }

    fn move_from_guest(&mut self, now: Moment, index: PortIndex, pair: usize) -> usize {
        let Some(Slot { port: Port::Guest(port), .. }) = &mut self.slots[index.get()] else {
            return 0;
        };
        let mut burst = self.burst.take().expect("put back below, before any other burst");
        let count = port.receive(pair, &mut burst);
        for (packet, outbound) in self.packets.iter_mut().zip(burst.iter()) {
            let length = u32::try_from(outbound.length()).unwrap_or(u32::MAX);
            let partial = outbound
                .offload()
                .checksum
                .map(|asked| PartialChecksum { start: asked.start, offset: asked.offset });
            let offload = Offload { partial, ..Offload::default() };
            packet.load(index, length, offload).copy_from_slice(outbound.head());
        }
        self.switch.process(now, &mut self.packets[..count]);
        for (nth, outbound) in burst.iter().enumerate() {
            let tail = self.packets[nth].tail();
            let payload = match tail.is_empty() {
                true => Payload::EMPTY,
                // The machine cuts only what came from the wire.
                false => outbound.payload(tail.start),
            };
            self.carry_out(nth, payload);
        }
        if let Some(Slot { port: Port::Guest(port), .. }) = &mut self.slots[index.get()] {
            port.release(&mut burst);
        }
        self.burst = Some(burst);
        if count > 0 {
            self.touch(index);
        }
        count
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
        self.switch.process(now, &mut self.packets[..count]);
        for (nth, mbuf) in mbufs.iter().enumerate() {
            let tail = self.packets[nth].tail();
            self.carry_out(nth, Payload::bytes(&mbuf.data()[tail]));
        }
        mbufs.clear();
        self.mbufs = mbufs;
        count
    }

    fn move_from_memory(&mut self, now: Moment, index: PortIndex) -> usize {
        let Some(Slot { port: Port::Memory(port), .. }) = &mut self.slots[index.get()] else {
            return 0;
        };
        let mut frames = std::mem::take(&mut self.frames);
        let count = port.receive(&mut frames);
        for (packet, frame) in self.packets.iter_mut().zip(&frames) {
            let mut offload = frame.offload();
            if index == PortIndex::UPLINK {
                offload.udp = rx_checksum(&frame.bytes);
            }
            load(packet, index, &frame.bytes, offload);
        }
        self.switch.process(now, &mut self.packets[..count]);
        for (nth, frame) in frames.iter().enumerate() {
            let tail = self.packets[nth].tail();
            self.carry_out(nth, Payload::bytes(&frame.bytes[tail]));
        }
        frames.clear();
        self.frames = frames;
        count
    }

    /// Does what the machine says about the `nth` packet of the burst.
    #[inline]
    fn carry_out(&mut self, nth: usize, payload: Payload<'_>) {
        let Verdict::Send(target) = self.packets[nth].verdict() else { return };
        let packet = &self.packets[nth];
        let partial = packet.partial_checksum();
        let delivery = Delivery { head: packet.head(), payload, partial };
        let result = match &mut self.slots[target.get()] {
            Some(slot) => slot.port.deliver(&delivery),
            None => Err(DropReason::PortDown),
        };
        match result {
            Ok(()) => self.touch(target),
            Err(reason) => self.switch.undelivered(&self.packets[nth], reason),
        }
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
