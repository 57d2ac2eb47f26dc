// SPDX-License-Identifier: Apache-2.0
//! What is done at a gate once it is known where an object's bytes are.

use crate::gate::{Next, Phase, Piece, SlowWork};
use crate::pending::part_tag;
use crate::request::VolumeRefusal;
use crate::table::Entry;
use crate::volumes::{Omit, Volumes};
use plinth_store::{
    BlockRange, IoBuffer, ObjectKey, ObjectStore, Operation, StoreAnswer, StoreRefusal,
    StoreRequest,
};

impl<S: ObjectStore> Volumes<S> {
    /// The table knows the head now.
    pub(crate) fn act(&mut self, number: u32, entry: Entry) -> Next {
        let pool = self.pool;
        let Some(gate) = self.gates.get_mut(number) else { return Next::Wait };
        let (at, index) = (gate.now.at, gate.now.index);
        let is_clear = matches!(gate.now.work, SlowWork::Clear { .. });
        let is_settle = matches!(gate.now.work, SlowWork::Settle { .. });
        let is_first = matches!(gate.now.work, SlowWork::Write { .. } | SlowWork::Clear { .. });
        let is_read = !gate.now.work.is_change();
        let is_whole = matches!(gate.now.work, SlowWork::Clear { piece } if piece.is_whole());
        let Some(volume) = self.place(at) else { return Next::Done };
        if !is_read && volume.is_recording && self.omit != Omit::Recording {
            self.set_phase(number, Phase::Start);
            return Next::Later;
        }
        let head = volume.key(pool, index, 0);
        match entry {
            Entry::Unknown => Next::Later,
            Entry::Inherited { level, number: copy } => {
                let source = volume.ancestor_key(pool, level, index, copy);
                if is_read {
                    return self.read_from(number, Some(source));
                }
                if is_whole && volume.newest == 0 {
                    // Nobody will read what was inherited: an empty head hides it.
                    return self.change(number, head, None, entry, None);
                }
                if self.omit == Omit::Settle {
                    return self.change(number, head, None, entry, None);
                }
                if !is_first {
                    return self.settle(number, at, source, head);
                }
                let must_keep = volume.newest > 0 && self.omit != Omit::Copy;
                let copy = must_keep.then_some(ObjectKey { snapshot: volume.newest, ..head });
                self.change(number, head, copy, entry, Some(source))
            }
            Entry::Own { .. } | Entry::Absent { .. } if is_read => {
                self.read_from(number, Some(head))
            }
            Entry::Own { .. } | Entry::Absent { .. } if is_settle => self.end_done(number),
            Entry::Absent { .. } if is_clear => self.end_done(number),
            Entry::Own { kept } | Entry::Absent { kept } => {
                let must_keep = volume.newest > kept && self.omit != Omit::Copy;
                let copy = must_keep.then_some(ObjectKey { snapshot: volume.newest, ..head });
                self.change(number, head, copy, entry, None)
            }
        }
    }

    fn end_done(&mut self, number: u32) -> Next {
        self.end_work(number, None, Ok(()));
        Next::Done
    }

    /// Gives the head what it inherits, for who wants nothing else or makes it anew afterwards.
    fn settle(&mut self, number: u32, at: u32, source: ObjectKey, head: ObjectKey) -> Next {
        self.hide(number, false);
        self.set_phase(number, Phase::Settling);
        if let Some(volume) = self.place_mut(at) {
            volume.changing += 1;
        }
        let transaction = vec![Operation::Clone { source, target: head }];
        self.send_gate(number, StoreRequest::Apply { transaction })
    }

    pub(crate) fn settled(
        &mut self,
        number: u32,
        result: Result<StoreAnswer, StoreRefusal>,
    ) -> Next {
        let Some(gate) = self.gates.get_mut(number) else { return Next::Wait };
        let (at, index) = (gate.now.at, gate.now.index);
        let Some(volume) = self.place_mut(at) else { return Next::Done };
        volume.changing -= 1;
        match result {
            Ok(StoreAnswer::Changed { units, objects, .. }) => {
                volume.heads.add(units, objects);
                // A volume without a head of an object has no copies of it either.
                volume.table.set(index, Entry::Own { kept: 0 });
                if self.store.room() < 2 { Next::Later } else { self.step_gate(number) }
            }
            Ok(_) => self.end_done(number),
            Err(refusal) => {
                self.end_work(number, None, Err(VolumeRefusal::Store(refusal)));
                Next::Done
            }
        }
    }

    /// Sends the change of the head, with the copy that must be kept of it before and with what
    /// the head `inherits`, as one transaction.
    fn change(
        &mut self,
        number: u32,
        head: ObjectKey,
        copy: Option<ObjectKey>,
        entry: Entry,
        inherits: Option<ObjectKey>,
    ) -> Next {
        let Some(gate) = self.gates.get_mut(number) else { return Next::Wait };
        let at = gate.now.at;
        let Some(volume) = self.place(at) else { return Next::Done };
        let has_parent = !volume.chain.is_empty() && self.omit != Omit::EmptyHead;
        // What the head is, or would be: the copy is made of the same as the head.
        let before = inherits.or(matches!(entry, Entry::Own { .. }).then_some(head));
        let copy = copy.filter(|_| before.is_some() || self.omit != Omit::AbsenceMark);
        let mut transaction = Vec::with_capacity(3);
        transaction.extend(copy.map(|copy| match before {
            Some(source) => Operation::Clone { source, target: copy },
            // A copy without units says that there was nothing.
            None => Operation::Touch { key: copy },
        }));
        transaction.extend(inherits.map(|source| Operation::Clone { source, target: head }));
        let kept = copy.map_or_else(|| kept_of(entry), |copy| copy.snapshot);
        let (operation, has_head) = self.head_operation(number, head, has_parent);
        transaction.push(operation);
        let entry = if has_head { Entry::Own { kept } } else { Entry::Absent { kept } };
        self.hide(number, copy.is_some());
        self.set_phase(number, Phase::Changing { entry, copy });
        if let Some(volume) = self.place_mut(at) {
            volume.changing += 1;
        }
        self.send_gate(number, StoreRequest::Apply { transaction })
    }

    /// The step that changes the head, and whether it is there afterwards.
    fn head_operation(
        &mut self,
        number: u32,
        key: ObjectKey,
        has_parent: bool,
    ) -> (Operation, bool) {
        let Some(gate) = self.gates.get_mut(number) else {
            return (Operation::Touch { key }, true);
        };
        match &mut gate.now.work {
            SlowWork::Write { piece, buffer } => {
                let (piece, length) = (*piece, buffer.capacity());
                let bytes = std::mem::replace(buffer, IoBuffer::zeroed(0));
                // The client gets a buffer of the same length back: a transaction keeps its own.
                let spare = self.store.take_buffer(length);
                if let Some(gate) = self.gates.get_mut(number)
                    && let SlowWork::Write { buffer, .. } = &mut gate.now.work
                {
                    *buffer = spare;
                }
                let Piece { offset, length, .. } = piece;
                (Operation::Write { key, offset, length, buffer: bytes }, true)
            }
            SlowWork::Clear { piece } => {
                let piece = *piece;
                let operation = self.clear_operation(key, piece, has_parent);
                (operation, has_parent || !piece.is_whole())
            }
            SlowWork::Return { copy, is_blank, .. } => {
                if *is_blank && !has_parent {
                    return (Operation::Remove { key }, false);
                }
                let source = ObjectKey { snapshot: *copy, ..key };
                (Operation::Clone { source, target: key }, true)
            }
            SlowWork::Read { .. }
            | SlowWork::Settle { .. }
            | SlowWork::Drop { .. }
            | SlowWork::Differ { .. } => {
                unreachable!("what changes nothing ends before")
            }
        }
    }

    /// Before a change is sent: the table forgets the object, and if a copy is made, so do the
    /// tables of descendants that read the head in its place.
    fn hide(&mut self, number: u32, is_copied: bool) {
        let Some(gate) = self.gates.get_mut(number) else { return };
        let (at, index) = (gate.now.at, gate.now.index);
        let is_hidden = self.omit != Omit::Hide;
        let Some(volume) = self.place_mut(at) else { return };
        volume.table.set(index, Entry::Unknown);
        let id = volume.id;
        if is_copied {
            volume.highest_copy = volume.highest_copy.max(volume.newest);
        }
        if !is_copied || !volume.has_clones || !is_hidden {
            return;
        }
        let places: Vec<u32> = self.ids.values().copied().collect();
        for at in places {
            let Some(volume) = self.place_mut(at) else { continue };
            if let Entry::Inherited { level, number: 0 } = volume.table.get(index)
                && volume.chain.get(usize::from(level)).is_some_and(|link| link.volume == id)
            {
                volume.table.set(index, Entry::Unknown);
            }
        }
    }

    pub(crate) fn changed(
        &mut self,
        number: u32,
        entry: Entry,
        copy: Option<ObjectKey>,
        result: Result<StoreAnswer, StoreRefusal>,
    ) -> Next {
        let Some(gate) = self.gates.get_mut(number) else { return Next::Wait };
        let (at, index) = (gate.now.at, gate.now.index);
        let Some(volume) = self.place_mut(at) else { return Next::Done };
        volume.changing -= 1;
        let (units, objects) = match result {
            Ok(StoreAnswer::Changed { units, objects, .. }) => (units, objects),
            Ok(_) => (0, 0),
            Err(refusal) => {
                self.end_work(number, None, Err(VolumeRefusal::Store(refusal)));
                return Next::Done;
            }
        };
        if !volume.is_plain {
            volume.table.set(index, entry);
        }
        let Some(copy) = copy else {
            volume.heads.add(units, objects);
            return self.end_done(number);
        };
        // The snapshot may have been deleted meanwhile, and its copies walked over already.
        let is_wanted = volume.numbered(copy.snapshot).is_some_and(|kept| !kept.record.is_leaving);
        if !is_wanted {
            self.trim_again(at);
        }
        self.end_work(number, None, Ok(()));
        self.set_phase(number, Phase::Counting { copy, units, objects });
        if self.store.room() < 2 { Next::Later } else { self.step_gate(number) }
    }

    /// What the copy has is known: the rest of the change was the head's.
    pub(crate) fn counted(
        &mut self,
        number: u32,
        copy: ObjectKey,
        (units, objects): (i64, i64),
        result: &Result<StoreAnswer, StoreRefusal>,
    ) {
        let Some(gate) = self.gates.get_mut(number) else { return };
        let at = gate.now.at;
        let found = match result {
            Ok(StoreAnswer::Listed { objects, .. }) => {
                objects.iter().find(|object| object.key == copy).map(|object| object.units)
            }
            _ => None,
        };
        let Some(volume) = self.place_mut(at) else { return };
        let of_copy = found.map_or(0, i64::from);
        volume.copies.add(of_copy, 1);
        volume.heads.add(units - of_copy, objects - 1);
    }

    /// Sends a read to the object that has the bytes; zeros are read from where nothing is.
    pub(crate) fn read_from(&mut self, number: u32, key: Option<ObjectKey>) -> Next {
        let pool = self.pool;
        let Some(gate) = self.gates.get_mut(number) else { return Next::Wait };
        let (at, index) = (gate.now.at, gate.now.index);
        let SlowWork::Read { piece, buffer, .. } = &mut gate.now.work else { return Next::Done };
        let piece = *piece;
        let buffer = std::mem::replace(buffer, IoBuffer::zeroed(0));
        let none = self.place(at).map(|volume| volume.key(pool, index, u64::MAX));
        let Some(key) = key.or(none) else { return Next::Done };
        let Piece { offset, length, .. } = piece;
        let request = StoreRequest::Read { key, offset, length, buffer };
        self.send(part_tag(piece.number, piece.part), request);
        Next::Done
    }

    /// Tells whoever waits that the work has ended.
    pub(crate) fn end_work(
        &mut self,
        number: u32,
        buffer: Option<IoBuffer>,
        result: Result<(), VolumeRefusal>,
    ) {
        let Some(gate) = self.gates.get_mut(number) else { return };
        match &mut gate.now.work {
            SlowWork::Read { piece, buffer: own, .. } | SlowWork::Write { piece, buffer: own } => {
                let own = std::mem::replace(own, IoBuffer::zeroed(0));
                let piece = *piece;
                self.part_done(piece.number, piece.part, Some(buffer.unwrap_or(own)), result);
            }
            SlowWork::Clear { piece } => {
                let piece = *piece;
                self.part_done(piece.number, piece.part, None, result);
            }
            SlowWork::Settle { chore }
            | SlowWork::Return { chore, .. }
            | SlowWork::Drop { chore, .. }
            | SlowWork::Differ { chore, .. } => {
                let chore = *chore;
                self.chore_work_done(chore, result);
            }
        }
    }

    /// Both sides of a comparison are found: `None` reads as zeros.
    pub(crate) fn compare(
        &mut self,
        number: u32,
        from: Option<ObjectKey>,
        to: Option<ObjectKey>,
    ) -> Next {
        let pool = self.pool;
        if from == to {
            return self.end_done(number);
        }
        let Some(gate) = self.gates.get_mut(number) else { return Next::Wait };
        let (at, index) = (gate.now.at, gate.now.index);
        let Some(none) = self.place(at).map(|volume| volume.key(pool, index, u64::MAX)) else {
            return self.end_done(number);
        };
        let (a, b) = (from.unwrap_or(none), to.unwrap_or(none));
        self.set_phase(number, Phase::Comparing { none, to: b, differs: None });
        self.send_gate(number, StoreRequest::Compare { a, b })
    }

    pub(crate) fn compared(
        &mut self,
        number: u32,
        (none, to): (ObjectKey, ObjectKey),
        differs: Option<Vec<BlockRange>>,
        result: Result<StoreAnswer, StoreRefusal>,
    ) -> Next {
        let Some(gate) = self.gates.get_mut(number) else { return Next::Wait };
        let index = gate.now.index;
        let SlowWork::Differ { chore, .. } = &gate.now.work else { return Next::Done };
        let chore = *chore;
        let result = match (result, differs) {
            (Ok(StoreAnswer::Compared { ranges }), None) => {
                let differs = Some(ranges);
                self.set_phase(number, Phase::Comparing { none, to, differs });
                if self.store.room() == 0 {
                    return Next::Later;
                }
                return self.send_gate(number, StoreRequest::Compare { a: none, b: to });
            }
            (Ok(StoreAnswer::Compared { ranges }), Some(differs)) => {
                self.chore_differs(chore, index, &differs, &ranges);
                Ok(())
            }
            (Ok(_), _) => Ok(()),
            (Err(refusal), _) => Err(VolumeRefusal::Store(refusal)),
        };
        self.end_work(number, None, result);
        Next::Done
    }

    /// Removes a copy that nobody reads.
    pub(crate) fn drop_copy(&mut self, number: u32, key: ObjectKey) -> Next {
        self.set_phase(number, Phase::Dropping);
        let transaction = vec![Operation::Remove { key }];
        self.send_gate(number, StoreRequest::Apply { transaction })
    }

    pub(crate) fn dropped(&mut self, number: u32, result: Result<StoreAnswer, StoreRefusal>) {
        let Some(gate) = self.gates.get_mut(number) else { return };
        let at = gate.now.at;
        if let (Ok(StoreAnswer::Changed { units, objects, .. }), Some(volume)) =
            (&result, self.place_mut(at))
        {
            volume.copies.add(*units, *objects);
        }
        let result = result.map(|_| ()).map_err(VolumeRefusal::Store);
        self.end_work(number, None, result);
    }
}

const fn kept_of(entry: Entry) -> u64 {
    match entry {
        Entry::Own { kept } | Entry::Absent { kept } => kept,
        Entry::Unknown | Entry::Inherited { .. } => 0,
    }
}
