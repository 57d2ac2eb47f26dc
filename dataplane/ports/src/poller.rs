// SPDX-License-Identifier: Apache-2.0
//! One worker's rounds: messages, device events, bursts, timers, flush.

use crate::message::{PortSet, UplinkChange};
use crate::path::Path;
use crate::{
    Answer, AskingPort, Discarded, GuestPort, HandedStep, Message, Port, Question, Scanned,
};
use crossbeam_channel::{Receiver, Sender};
use plinth_backends::{DeviceToken, QueueEvent};
use plinth_dpdk::Registration;
use plinth_ids::Moment;
use plinth_rt::{Inbox, Poller, Wake};
use plinth_switch_api::{DropCount, PortStatus, UPLINK};
use plinth_vswitch::{Limits, PortIndex, Snapshot, Switch};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// Messages taken in one round, so that management does not hold up packets.
pub const MESSAGES_MAX: usize = 4;

/// Events of devices taken in one round.
pub const DEVICE_EVENTS_MAX: usize = 16;

/// How often the machine's deadline is looked at while packets keep the worker busy. Its timers
/// are seconds long.
const DEADLINE_CHECK: Duration = Duration::from_millis(5);

/// The switch, all ports, and the ways in.
#[derive(Debug)]
pub struct DataPath {
    inbox: Inbox<Message>,
    events: Receiver<QueueEvent>,
    path: Path,
    /// NICs that are in no port set (yet, or any more).
    adopted: BTreeMap<DeviceToken, Box<GuestPort>>,
    /// Where the NICs in force are.
    places: BTreeMap<DeviceToken, PortIndex>,
    /// Changes with every descriptor that came or went.
    watch_version: u64,
    deadline_check: Moment,
    is_held: bool,
    /// Since this round packets are not held any more.
    is_released: bool,
    /// The thread's place in DPDK, kept until the ports are gone.
    _registration: Option<Registration>,
}

impl DataPath {
    /// `events` is the other end of every device's `WorkerLink`, whose wake is `inbox`'s.
    pub fn new(
        inbox: Inbox<Message>,
        events: Receiver<QueueEvent>,
        limits: Limits,
        seed: u64,
        registration: Option<Registration>,
    ) -> Self {
        let places = usize::from(limits.ports) + 1;
        Self {
            inbox,
            events,
            path: Path::new(Switch::new(limits, seed), places),
            adopted: BTreeMap::new(),
            places: BTreeMap::new(),
            watch_version: 0,
            deadline_check: Moment::ZERO,
            is_held: false,
            is_released: false,
            _registration: registration,
        }
    }

    /// Hands questions of guests on to a thread that answers them.
    #[must_use]
    pub fn with_asking(mut self, port: AskingPort) -> Self {
        self.path.asking = Some(port);
        self
    }

    fn take_messages(&mut self, now: Moment) -> usize {
        let mut taken = 0;
        while taken < MESSAGES_MAX
            && let Some(message) = self.inbox.take()
        {
            self.carry_out(now, message);
            taken += 1;
        }
        taken
    }

    fn carry_out(&mut self, now: Moment, message: Message) {
        match message {
            Message::Adopt(port) => {
                self.adopted.insert(port.token(), port);
            }
            Message::Release { tokens, answer } => {
                let ports = tokens.iter().filter_map(|token| self.adopted.remove(token));
                let ports = ports.map(Port::Guest).collect();
                self.watch_version += 1;
                tell(&answer, Discarded { snapshot: None, ports });
            }
            Message::Install { snapshot, ports, answer } => {
                let discarded = self.install(now, snapshot, ports);
                tell(&answer, discarded);
            }
            Message::TakeUplink { answer } => {
                self.watch_version += 1;
                let ports = self.path.take(PortIndex::UPLINK.get()).into_iter().collect();
                tell(&answer, Discarded { snapshot: None, ports });
            }
            Message::Hold(is_held) => {
                self.is_released = self.is_held && !is_held;
                self.is_held = is_held;
            }
            Message::BeginGrace(length) => self.path.switch.begin_grace(now + length),
            Message::Ask { question, answer } => {
                let told = self.answer(now, question);
                // Whoever asked may have given up waiting.
                let _ = answer.try_send(told);
            }
            Message::HandOver { from, since, mut bytes, answer } => {
                let next = self.path.switch.hand_over(now, from, since, &mut bytes);
                let _ = answer.try_send(HandedStep { bytes, next, at: now });
            }
            Message::TakeOver { places, bytes, answer } => {
                let _ = answer.try_send(self.path.switch.take_over(now, &places, &bytes));
            }
            Message::Capture { capture, answer } => {
                let before = std::mem::replace(&mut self.path.capture, capture);
                let _ = answer.try_send(before);
            }
            Message::ScanFlows { from, filter, mut rows, answer } => {
                let next = self.path.switch.scan_flows(now, from, &filter, &mut rows);
                let _ = answer.try_send(Scanned { rows, next });
            }
        }
    }

    /// Switches from one configuration to the next between two bursts. NICs that are in both
    /// keep their rings; those that are not are adopted ones again.
    fn install(&mut self, now: Moment, snapshot: Arc<Snapshot>, set: PortSet) -> Discarded {
        let mut ports = Vec::new();
        for (place, port) in self.take_all_but_uplink() {
            match port {
                Port::Guest(guest) => {
                    self.places.remove(&guest.token());
                    self.adopted.insert(guest.token(), guest);
                }
                other => {
                    debug_assert!(place != PortIndex::UPLINK.get(), "the uplink stays");
                    ports.push(other);
                }
            }
        }
        // Ports may come to a configuration that is in force: then no flow is in doubt, and no
        // port has taken another one's place.
        let is_in_force = Arc::ptr_eq(&snapshot, self.path.switch.snapshot());
        let before = if is_in_force { snapshot } else { self.path.switch.install(now, snapshot) };
        for (id, token) in set.guests {
            let index = self.path.switch.port_index(id);
            if let (Some(index), Some(guest)) = (index, self.adopted.remove(&token)) {
                self.places.insert(token, index);
                ports.extend(self.path.put(index, Port::Guest(guest)));
            }
        }
        for (id, port) in set.others {
            let index = if id == UPLINK {
                Some(PortIndex::UPLINK)
            } else {
                self.path.switch.port_index(id)
            };
            match index {
                Some(index) => ports.extend(self.path.put(index, port)),
                None => ports.push(port),
            }
        }
        if let UplinkChange::Replace(uplink) = set.uplink {
            ports.extend(self.path.take(PortIndex::UPLINK.get()));
            if let Some(port) = uplink {
                self.path.put(PortIndex::UPLINK, *port);
            }
        }
        self.watch_version += 1;
        self.deadline_check = Moment::ZERO;
        Discarded { snapshot: Some(before), ports }
    }

    fn take_all_but_uplink(&mut self) -> Vec<(usize, Port)> {
        let uplink = PortIndex::UPLINK.get();
        let places: Vec<usize> =
            self.path.ports().map(|(index, _)| index.get()).filter(|&at| at != uplink).collect();
        places.into_iter().filter_map(|place| Some((place, self.path.take(place)?))).collect()
    }

    fn answer(&self, now: Moment, question: Question) -> Answer {
        match question {
            Question::Ports => Answer::Ports(self.port_statuses()),
            Question::Flows { limit } => Answer::Flows(self.path.switch.flows(now, limit)),
            Question::Drops => {
                let mut all: BTreeMap<String, u64> = BTreeMap::new();
                let rings = self.path.ports().flat_map(|(_, port)| port.drops());
                for DropCount { reason, packets } in
                    self.path.switch.drops().into_iter().chain(rings)
                {
                    *all.entry(reason).or_default() += packets;
                }
                let counts = all.into_iter();
                Answer::Drops(
                    counts.map(|(reason, packets)| DropCount { reason, packets }).collect(),
                )
            }
            Question::Places => Answer::Places(self.path.switch.handed_places()),
            Question::Scene => Answer::Scene(Box::new(self.path.switch.scene())),
            Question::External => Answer::External(self.path.switch.external_addresses()),
            Question::BackendCounts => {
                Answer::BackendCounts(self.path.switch.backend_counts().to_vec())
            }
            Question::Stages => Answer::Stages(self.path.stages()),
            Question::FlowCounters => Answer::FlowCounters(self.path.switch.flow_counters()),
        }
    }

    fn port_statuses(&self) -> Vec<PortStatus> {
        let is_up = |index: PortIndex| self.path.port(index.get()).is_some_and(Port::is_up);
        let mut statuses = self.path.switch.ports(is_up);
        for status in &mut statuses {
            let index = if status.id == UPLINK {
                Some(PortIndex::UPLINK)
            } else {
                self.path.switch.port_index(status.id)
            };
            if let Some(port) = index.and_then(|index| self.path.port(index.get())) {
                status.drops.extend(port.drops());
            }
        }
        statuses
    }

    /// Whatever has come in. When packets move again from here on, every ring that was sent before
    /// the word that lets them move is taken first.
    fn take_changes(&mut self, now: Moment) -> usize {
        let mut taken = self.take_messages(now) + self.take_events(now);
        if std::mem::take(&mut self.is_released) {
            while !self.events.is_empty() {
                taken += self.take_events(now);
            }
        }
        taken
    }

    /// Queues that a device's thread hands over or asks back.
    fn take_events(&mut self, now: Moment) -> usize {
        let mut taken = 0;
        while taken < DEVICE_EVENTS_MAX
            && let Ok(event) = self.events.try_recv()
        {
            taken += 1;
            self.watch_version += 1;
            if !self.knows(event.device) {
                // The word on the NIC was sent before its device's first event, and may still be
                // behind others.
                while self.take_messages(now) > 0 {}
            }
            let guest = match self.places.get(&event.device) {
                Some(index) => self.path.guest_mut(index.get()),
                None => self.adopted.get_mut(&event.device).map(|guest| &mut **guest),
            };
            // An event for a NIC that is gone is dropped, and with it its ticket: its device's
            // thread then knows that nobody has the queue.
            if let Some(guest) = guest {
                guest.handle(event.change);
                guest.settle();
            }
        }
        taken
    }

    fn knows(&self, device: DeviceToken) -> bool {
        self.places.contains_key(&device) || self.adopted.contains_key(&device)
    }

    fn tick(&mut self, now: Moment) {
        if now >= self.deadline_check {
            self.deadline_check = now + DEADLINE_CHECK;
            if self.path.switch.deadline().is_some_and(|deadline| deadline <= now) {
                self.path.tick(now);
            }
        }
    }
}

/// Whoever asked may have given up waiting: then it is dropped here, late but not lost.
fn tell(answer: &Sender<Discarded>, discarded: Discarded) {
    let _ = answer.try_send(discarded);
}

impl Poller for DataPath {
    fn poll(&mut self, now: Moment) -> usize {
        let told = self.take_changes(now) + self.path.tell();
        let moved = if self.is_held { 0 } else { self.path.round(now) };
        self.tick(now);
        self.path.flush();
        told + moved
    }

    fn deadline(&self) -> Option<Moment> {
        // A deadline that passed is served at the next check and not in a spin until then.
        let due = self.path.switch.deadline().map(|deadline| deadline.max(self.deadline_check));
        due.into_iter().chain(self.path.switch.held_until()).min()
    }

    fn arm(&mut self) -> Wake {
        let mut all = true;
        for port in self.path.ports_mut() {
            all &= port.arm();
            if let Port::Guest(guest) = port {
                self.watch_version += u64::from(guest.settle());
            }
        }
        if all { Wake::Descriptors } else { Wake::Timer }
    }

    fn disarm(&mut self) {
        self.path.ports_mut().for_each(Port::disarm);
    }

    fn watch(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        watch(self.inbox.as_fd());
        for (_, port) in self.path.ports() {
            match port {
                Port::Guest(port) => port.watch(watch),
                Port::Ethernet(port) => port.watch(watch),
                Port::Memory(_) => {}
            }
        }
    }

    fn watch_version(&self) -> u64 {
        self.watch_version
    }
}
