// SPDX-License-Identifier: Apache-2.0
//! Changes and reads that must look before they act, one at a time for each object of a family.
//!
//! ```text
//!   known? ──no──▶ list head and copies, then the parent's, …    ──▶ the table knows it
//!     │ yes                                                              │
//!     └──▶ read: straight to the object that has the bytes ◀─────────────┤
//!          change: one transaction:  clone the bytes to (object, newest snapshot), if no copy
//!                                    is as new, and to the head, if they are inherited;
//!                                    then the change of the head
//! ```
//!
//! While a change is under way the table says `Unknown`, so that everything else on that object
//! of that volume comes here and waits. What descendants know of the head is forgotten before
//! it changes under them; what they look up waits here too, since a family shares its gates.
//! So nobody reads a head that has moved on in place of the snapshot that he means.

use crate::key::OBJECT_SIZE;
use crate::request::VolumeRefusal;
use crate::search::Search;
use crate::table::Entry;
use crate::volumes::{GATE, Omit, Volumes};
use plinth_store::{
    BlockRange, IoBuffer, ObjectKey, ObjectStore, StoreAnswer, StoreRefusal, StoreRequest,
};
use std::collections::{BTreeMap, VecDeque};

/// A client's part of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) number: u32,
    pub(crate) part: usize,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

#[derive(Debug)]
pub(crate) enum SlowWork {
    Read {
        view: u64,
        piece: Piece,
        buffer: IoBuffer,
    },
    Write {
        piece: Piece,
        buffer: IoBuffer,
    },
    /// Zeroes a range; all of the object goes as a whole.
    Clear {
        piece: Piece,
    },
    /// Gives the head what it inherits.
    Settle {
        chore: u32,
    },
    /// Makes the head what a copy is.
    Return {
        chore: u32,
        copy: u64,
        is_blank: bool,
    },
    /// Removes a copy.
    Drop {
        chore: u32,
        key: ObjectKey,
    },
    /// Compares what two views read: snapshots by number, or 0 for the volume as it is.
    Differ {
        chore: u32,
        from: Option<u64>,
        to: u64,
    },
}

impl Piece {
    pub(crate) fn is_whole(self) -> bool {
        self.offset == 0 && u64::from(self.length) == OBJECT_SIZE
    }
}

impl SlowWork {
    pub(crate) const fn is_change(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Drop { .. } | Self::Differ { .. })
    }

    /// The snapshot that is looked for, or 0 for the head.
    pub(crate) const fn view(&self) -> u64 {
        match self {
            Self::Read { view, .. } | Self::Differ { to: view, .. } => *view,
            _ => 0,
        }
    }
}

/// Something to do with one object of a volume.
#[derive(Debug)]
pub(crate) struct Slow {
    pub(crate) at: u32,
    pub(crate) index: u32,
    pub(crate) work: SlowWork,
}

#[derive(Debug)]
pub(crate) enum Phase {
    Start,
    Searching(Search),
    /// The sides of a comparison are found one after the other; what the first one is, once it
    /// is known.
    Sides {
        from: Option<Option<ObjectKey>>,
        search: Search,
    },
    /// The head is given what it inherits; then the work begins again.
    Settling,
    /// A change is under way; what the table says afterwards, and the copy that it makes.
    Changing {
        entry: Entry,
        copy: Option<ObjectKey>,
    },
    /// How many units of a change went to the copy is asked.
    Counting {
        copy: ObjectKey,
        units: i64,
        objects: i64,
    },
    /// What differs, once that is known, and then what of it is written in the later state.
    Comparing {
        none: ObjectKey,
        to: ObjectKey,
        differs: Option<Vec<BlockRange>>,
    },
    Dropping,
}

#[derive(Debug)]
pub(crate) struct Gate {
    object: (u64, u32),
    pub(crate) now: Slow,
    pub(crate) phase: Phase,
    waiting: VecDeque<Slow>,
}

#[derive(Debug, Default)]
pub(crate) struct Gates {
    places: Vec<Option<Gate>>,
    free: Vec<u32>,
    by_object: BTreeMap<(u64, u32), u32>,
    /// Gates that wait for room in the store, or for a snapshot to be recorded.
    ready: Vec<u32>,
}

impl Gates {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_object.is_empty()
    }

    pub(crate) fn get_mut(&mut self, gate: u32) -> Option<&mut Gate> {
        self.places.get_mut(gate as usize)?.as_mut()
    }
}

/// Whether a gate goes on at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    /// An answer is on its way.
    Wait,
    /// Try again in the next round.
    Later,
    /// Nothing is left of the work.
    Done,
}

impl<S: ObjectStore> Volumes<S> {
    pub(crate) fn queue_slow(&mut self, slow: Slow) {
        let Some(volume) = self.place(slow.at) else { return };
        let object = (volume.header.family.root, slow.index);
        let gates = &mut self.gates;
        if let Some(gate) = gates.by_object.get(&object).copied().and_then(|at| gates.get_mut(at)) {
            gate.waiting.push_back(slow);
            return;
        }
        let gate = Gate { object, now: slow, phase: Phase::Start, waiting: VecDeque::new() };
        let number = match gates.free.pop() {
            Some(number) => {
                gates.places[number as usize] = Some(gate);
                number
            }
            None => {
                gates.places.push(Some(gate));
                u32::try_from(gates.places.len() - 1).expect("clients bound what is on its way")
            }
        };
        gates.by_object.insert(object, number);
        self.advance_gate(number);
    }

    pub(crate) fn advance_gates(&mut self) -> bool {
        let ready = std::mem::take(&mut self.gates.ready);
        let before = ready.len();
        for gate in ready {
            self.advance_gate(gate);
        }
        self.gates.ready.len() < before
    }

    fn advance_gate(&mut self, number: u32) {
        let next = if self.store.room() < 2 { Next::Later } else { self.step_gate(number) };
        self.follow(number, next);
    }

    /// Goes on as a step says, and with the next work when there is nothing left of this one.
    fn follow(&mut self, number: u32, mut next: Next) {
        loop {
            match next {
                Next::Wait => return,
                Next::Later => return self.gates.ready.push(number),
                Next::Done => {}
            }
            let Some(gate) = self.gates.get_mut(number) else { return };
            gate.phase = Phase::Start;
            let Some(slow) = gate.waiting.pop_front() else {
                let object = gate.object;
                self.gates.by_object.remove(&object);
                self.gates.places[number as usize] = None;
                self.gates.free.push(number);
                return;
            };
            gate.now = slow;
            next = if self.store.room() < 2 { Next::Later } else { self.step_gate(number) };
        }
    }

    pub(crate) fn set_phase(&mut self, number: u32, phase: Phase) {
        if let Some(gate) = self.gates.get_mut(number) {
            gate.phase = phase;
        }
    }

    pub(crate) fn send_gate(&mut self, number: u32, request: StoreRequest) -> Next {
        self.send(GATE | u64::from(number), request);
        Next::Wait
    }

    pub(crate) fn step_gate(&mut self, number: u32) -> Next {
        let Some(gate) = self.gates.get_mut(number) else { return Next::Wait };
        let (at, index) = (gate.now.at, gate.now.index);
        match &gate.phase {
            Phase::Start => self.begin_gate(number),
            Phase::Searching(search) | Phase::Sides { search, .. } => {
                let search = search.clone();
                self.send_search(number, at, index, &search)
            }
            Phase::Counting { copy, .. } => {
                let range = *copy..=*copy;
                self.send_gate(number, StoreRequest::List { range, limit: 1 })
            }
            Phase::Comparing { none, to, .. } => {
                let (a, b) = (*none, *to);
                self.send_gate(number, StoreRequest::Compare { a, b })
            }
            Phase::Settling | Phase::Changing { .. } | Phase::Dropping => Next::Wait,
        }
    }

    fn begin_gate(&mut self, number: u32) -> Next {
        let Some(gate) = self.gates.get_mut(number) else { return Next::Wait };
        let (at, index) = (gate.now.at, gate.now.index);
        let is_change = gate.now.work.is_change();
        let view = match &gate.now.work {
            SlowWork::Differ { from, to, .. } => {
                let (found, view) = from.map_or((Some(None), *to), |from| (None, from));
                gate.phase = Phase::Sides { from: found, search: Search::new(view) };
                return self.step_gate(number);
            }
            SlowWork::Drop { key, .. } => {
                let key = *key;
                return self.drop_copy(number, key);
            }
            work => work.view(),
        };
        let Some(volume) = self.place(at) else {
            self.end_work(number, None, Err(VolumeRefusal::NotFound));
            return Next::Done;
        };
        if is_change && volume.is_recording && self.omit != Omit::Recording {
            return Next::Later;
        }
        let known = if volume.is_plain { Entry::Unknown } else { volume.table.get(index) };
        if view == 0 && known != Entry::Unknown {
            return self.act(number, known);
        }
        self.set_phase(number, Phase::Searching(Search::new(view)));
        self.step_gate(number)
    }

    pub(crate) fn gate_answer(&mut self, number: u32, result: Result<StoreAnswer, StoreRefusal>) {
        let Some(gate) = self.gates.get_mut(number) else { return };
        let next = match std::mem::replace(&mut gate.phase, Phase::Start) {
            Phase::Start => Next::Wait,
            Phase::Searching(search) => self.searched(number, search, result),
            Phase::Sides { from, search } => self.side_searched(number, from, search, result),
            Phase::Settling => self.settled(number, result),
            Phase::Changing { entry, copy } => self.changed(number, entry, copy, result),
            Phase::Counting { copy, units, objects } => {
                self.counted(number, copy, (units, objects), &result);
                Next::Done
            }
            Phase::Comparing { none, to, differs } => {
                self.compared(number, (none, to), differs, result)
            }
            Phase::Dropping => {
                self.dropped(number, result);
                Next::Done
            }
        };
        self.follow(number, next);
    }
}
