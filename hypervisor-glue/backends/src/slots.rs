// SPDX-License-Identifier: Apache-2.0
//! The queues that a worker has in its hands: how they come and how they go.
//!
//! ```text
//!   (none) ── Start ──▶ running ── fault ──▶ broken
//!     ▲                    │ Stop              │ Stop
//!     │                    ▼                   ▼
//!     └── nothing taken ── leaving ◀───────────┘
//! ```
//!
//! A queue that leaves gives out no more chains, and is given back when every chain that it gave
//! out has come back.

use crate::kicks::KickChange;
use plinth_vhost::{QueueChange, StartedQueue, StopTicket};
use plinth_virtio::RingState;
use plinth_virtio::{DeviceQueue, Notifier};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

/// One queue of a device.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) queue: DeviceQueue,
    pub(crate) features: u64,
    /// Tells this queue from one before it at the same index.
    pub(crate) generation: u32,
    kick: Option<File>,
    call: Option<Notifier>,
    error: Option<Notifier>,
    is_broken: bool,
    stop: Option<StopTicket>,
}

impl Slot {
    /// Whether chains may be taken from it.
    #[inline]
    pub(crate) const fn is_running(&self) -> bool {
        !self.is_broken && self.stop.is_none()
    }

    /// Gives the queue up: nothing more is taken from it until the driver starts it anew.
    pub(crate) fn mark_broken(&mut self) {
        if !std::mem::replace(&mut self.is_broken, true)
            && let Some(error) = &self.error
        {
            error.notify();
        }
    }

    /// Shows the driver what was given back. `true` when it was called.
    #[inline]
    pub(crate) fn flush(&mut self) -> bool {
        let is_wanted = self.queue.publish();
        match &self.call {
            Some(call) if is_wanted => {
                call.notify();
                true
            }
            _ => false,
        }
    }

    pub(crate) fn call(&self) {
        if let Some(call) = &self.call {
            call.notify();
        }
    }
}

/// What [`Slots::handle`] did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Handled {
    Started(u16),
    Other,
}

/// All queues of one device, by index.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: Vec<Option<Slot>>,
    kick_changes: VecDeque<KickChange>,
    generation: u32,
    /// Whether the kicks of a queue are waited for. Not those of receive queues: a driver that
    /// adds buffers brings no work.
    watches: fn(u16) -> bool,
}

impl Slots {
    pub(crate) fn new(count: u16, watches: fn(u16) -> bool) -> Self {
        let slots = (0..count).map(|_| None).collect();
        Self { slots, kick_changes: VecDeque::new(), generation: 0, watches }
    }

    pub(crate) fn count(&self) -> u16 {
        u16::try_from(self.slots.len()).expect("it was made from a u16")
    }

    #[inline]
    pub(crate) fn get(&self, index: u16) -> Option<&Slot> {
        self.slots.get(usize::from(index))?.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(index))?.as_mut()
    }

    #[inline]
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().flatten()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, &Slot)> {
        (0..).zip(&self.slots).filter_map(|(index, slot)| Some((index, slot.as_ref()?)))
    }

    pub(crate) fn handle(&mut self, change: QueueChange) -> Handled {
        match change {
            QueueChange::Start(started) => self.start(*started),
            QueueChange::Stop(ticket) => {
                let index = ticket.index();
                match self.get_mut(index) {
                    Some(slot) => slot.stop = Some(ticket),
                    // Nothing was started, so nothing is held.
                    None => ticket.answer(RingState::default()),
                }
                self.give_back_if_idle(index);
                Handled::Other
            }
            QueueChange::Call { index, call } => {
                if let Some(slot) = self.get_mut(index) {
                    slot.call = call;
                    // What was used while there was no eventfd may not have been seen.
                    slot.call();
                }
                Handled::Other
            }
        }
    }

    fn start(&mut self, started: StartedQueue) -> Handled {
        let StartedQueue { index, queue, kick, call, error, features } = started;
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let Some(place) = self.slots.get_mut(usize::from(index)) else {
            // The server hands out no index past the class's count; drop what cannot be served.
            return Handled::Other;
        };
        let is_broken = false;
        let slot = Slot { queue, features, generation, kick, call, error, is_broken, stop: None };
        // A process before this one may have shown used entries and died before it called.
        slot.call();
        *place = Some(slot);
        if (self.watches)(index) {
            self.kick_changes.push_back(KickChange::Added { queue: index });
        }
        Handled::Started(index)
    }

    /// Answers the ticket of a queue that leaves, if nothing of it is given out any more.
    #[inline]
    pub(crate) fn give_back_if_idle(&mut self, index: u16) {
        let Some(place) = self.slots.get_mut(usize::from(index)) else { return };
        let is_over =
            place.as_ref().is_some_and(|slot| slot.stop.is_some() && slot.queue.taken_count() == 0);
        if !is_over {
            return;
        }
        let Some(mut slot) = place.take() else { return };
        slot.flush();
        let state = slot.queue.state();
        let ticket = slot.stop.take();
        // The queue with its hold on the memory goes before the answer does.
        drop(slot);
        if let Some(ticket) = ticket {
            ticket.answer(state);
        }
        if (self.watches)(index) {
            self.kick_changes.push_back(KickChange::Removed { queue: index });
        }
    }

    pub(crate) fn take_kick_change(&mut self) -> Option<KickChange> {
        self.kick_changes.pop_front()
    }

    pub(crate) fn watch_kicks(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        for (index, slot) in self.iter() {
            if (self.watches)(index)
                && let Some(kick) = &slot.kick
            {
                watch(kick.as_fd());
            }
        }
    }

    /// Asks for kicks on all running queues that are watched. `true` when one has work already.
    /// A queue whose ring is nonsense is marked broken, and counted in `broken`.
    pub(crate) fn arm_kicks(&mut self, broken: &mut u64) -> bool {
        let (watches, mut has_work) = (self.watches, false);
        for (index, slot) in (0..).zip(&mut self.slots) {
            let Some(slot) = slot else { continue };
            if !slot.is_running() || !watches(index) {
                continue;
            }
            match slot.queue.arm_kicks() {
                Ok(has) => has_work |= has,
                Err(_) => {
                    slot.mark_broken();
                    *broken += 1;
                }
            }
        }
        has_work
    }

    pub(crate) fn disarm_kicks(&mut self) {
        for slot in self.iter_mut() {
            slot.queue.disarm_kicks();
        }
    }
}
