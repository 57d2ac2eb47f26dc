// SPDX-License-Identifier: Apache-2.0
//! Finding where the bytes of an object are: in the volume, or in one that it was cloned from.
//!
//! A snapshot's bytes are in the copy with the lowest number that is not below the snapshot's;
//! if there is none, in the head; if that is not there either, where the parent has them for the
//! snapshot that the volume was cloned from.

use crate::gate::{Next, Phase};
use crate::key::versions;
use crate::request::VolumeRefusal;
use crate::table::Entry;
use crate::volumes::Volumes;
use plinth_store::{ObjectKey, ObjectStatus, ObjectStore, StoreAnswer, StoreRefusal, StoreRequest};

/// Keys that are listed at once: an object with more copies takes several listings.
const LIST: usize = 64;

/// A search, and what was found so far.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Search {
    /// 0 for the volume itself, 1 for its parent.
    level: u8,
    /// The snapshot whose bytes are looked for at this level; 0 is the head.
    view: u64,
    cursor: Option<ObjectKey>,
    /// The head, if it is there, and whether it has no units.
    head: Option<bool>,
    /// The copy with the snapshot's bytes, and whether it has no units.
    copy: Option<(u64, bool)>,
    /// The highest copy at this level.
    highest: u64,
    /// The highest copy of the volume itself.
    kept: u64,
}

impl Search {
    pub(crate) const fn new(view: u64) -> Self {
        Self { level: 0, view, cursor: None, head: None, copy: None, highest: 0, kept: 0 }
    }

    fn see(&mut self, object: &ObjectStatus) {
        let (number, is_blank) = (object.key.snapshot, object.units == 0);
        if number == 0 {
            self.head = Some(is_blank);
            return;
        }
        self.highest = self.highest.max(number);
        if self.view > 0 && number >= self.view && self.copy.is_none() {
            self.copy = Some((number, is_blank));
        }
    }

    /// The number and blankness of what has the bytes at this level.
    fn found(&self) -> Option<(u64, bool)> {
        self.copy.or(self.head.map(|is_blank| (0, is_blank)))
    }
}

impl<S: ObjectStore> Volumes<S> {
    pub(crate) fn send_search(&mut self, gate: u32, at: u32, index: u32, search: &Search) -> Next {
        let Some(volume) = self.place(at) else {
            self.end_work(gate, None, Err(VolumeRefusal::NotFound));
            return Next::Done;
        };
        let head = match search.level.checked_sub(1) {
            None => volume.key(self.pool, index, 0),
            Some(level) => volume.ancestor_key(self.pool, level, index, 0),
        };
        let all = versions(head);
        let range = search.cursor.unwrap_or(*all.start())..=*all.end();
        self.send_gate(gate, StoreRequest::List { range, limit: LIST })
    }

    /// Takes a listing in; `Ok(true)` when the search is over, `Ok(false)` when it goes on.
    fn look(
        &self,
        at: u32,
        search: &mut Search,
        result: Result<StoreAnswer, StoreRefusal>,
    ) -> Result<bool, VolumeRefusal> {
        let (objects, next) = match result {
            Ok(StoreAnswer::Listed { objects, next }) => (objects, next),
            Ok(_) => return Err(VolumeRefusal::Busy),
            Err(refusal) => return Err(VolumeRefusal::Store(refusal)),
        };
        objects.iter().for_each(|object| search.see(object));
        search.cursor = next;
        if next.is_some() {
            return Ok(false);
        }
        if search.level == 0 {
            search.kept = search.highest;
        }
        let chain = self.place(at).map_or(&[][..], |volume| &volume.chain);
        let (None, Some(link)) = (search.found(), chain.get(usize::from(search.level))) else {
            return Ok(true);
        };
        let (level, kept) = (search.level + 1, search.kept);
        *search = Search { level, kept, ..Search::new(link.number) };
        Ok(false)
    }

    /// A listing for a read or a change has come.
    pub(crate) fn searched(
        &mut self,
        gate: u32,
        mut search: Search,
        result: Result<StoreAnswer, StoreRefusal>,
    ) -> Next {
        let Some((at, index)) = self.gates.get_mut(gate).map(|gate| (gate.now.at, gate.now.index))
        else {
            return Next::Wait;
        };
        let wants_head = self.gates.get_mut(gate).is_some_and(|gate| gate.now.work.view() == 0);
        match self.look(at, &mut search, result) {
            Ok(true) => {}
            Ok(false) => {
                self.set_phase(gate, Phase::Searching(search));
                // The next listing is sent with the next round if there is no room for it now.
                return if self.store.room() < 2 { Next::Later } else { self.step_gate(gate) };
            }
            Err(refusal) => {
                self.end_work(gate, None, Err(refusal));
                return Next::Done;
            }
        }
        let found = search.found();
        if !wants_head {
            let key = self.found_key(at, index, &search);
            return self.read_from(gate, key);
        }
        let entry = match (search.level.checked_sub(1), found) {
            (None, Some(_)) => Entry::Own { kept: search.kept },
            // What has no units reads as zeros, and need not be cloned.
            (Some(level), Some((number, false))) => Entry::Inherited { level, number },
            _ => Entry::Absent { kept: search.kept },
        };
        if let Some(volume) = self.place_mut(at)
            && !volume.is_plain
            && !volume.is_recording
        {
            volume.table.set(index, entry);
        }
        self.act(gate, entry)
    }

    /// The object that a search ended at.
    fn found_key(&self, at: u32, index: u32, search: &Search) -> Option<ObjectKey> {
        let (number, _) = search.found()?;
        let volume = self.place(at)?;
        Some(match search.level.checked_sub(1) {
            None => volume.key(self.pool, index, number),
            Some(level) => volume.ancestor_key(self.pool, level, index, number),
        })
    }

    /// A listing for one side of a comparison has come.
    pub(crate) fn side_searched(
        &mut self,
        gate: u32,
        from: Option<Option<ObjectKey>>,
        mut search: Search,
        result: Result<StoreAnswer, StoreRefusal>,
    ) -> Next {
        let Some((at, index)) = self.gates.get_mut(gate).map(|gate| (gate.now.at, gate.now.index))
        else {
            return Next::Wait;
        };
        let is_over = match self.look(at, &mut search, result) {
            Ok(is_over) => is_over,
            Err(refusal) => {
                self.end_work(gate, None, Err(refusal));
                return Next::Done;
            }
        };
        let phase = match (is_over, from) {
            (false, from) => Phase::Sides { from, search },
            (true, None) => {
                let from = Some(self.found_key(at, index, &search));
                let to = self.gates.get_mut(gate).map_or(0, |gate| gate.now.work.view());
                Phase::Sides { from, search: Search::new(to) }
            }
            (true, Some(from)) => {
                let to = self.found_key(at, index, &search);
                return self.compare(gate, from, to);
            }
        };
        self.set_phase(gate, phase);
        if self.store.room() < 2 { Next::Later } else { self.step_gate(gate) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_ids::PoolId;
    use plinth_store::{ObjectId, PgId};

    fn object(snapshot: u64, units: u32) -> ObjectStatus {
        let key = ObjectKey { pool: PoolId(1), pg: PgId(0), object: ObjectId(1), snapshot };
        ObjectStatus { key, size: 0, units }
    }

    fn found(view: u64, numbers: &[u64]) -> (Option<(u64, bool)>, u64) {
        let mut search = Search::new(view);
        numbers.iter().for_each(|&number| search.see(&object(number, 1)));
        (search.found(), search.highest)
    }

    #[test]
    fn a_snapshot_is_in_the_lowest_copy_not_below_it_or_in_the_head() {
        assert_eq!(found(0, &[0, 3, 5]), (Some((0, false)), 5));
        assert_eq!(found(2, &[0, 3, 5]), (Some((3, false)), 5));
        assert_eq!(found(3, &[0, 3, 5]), (Some((3, false)), 5));
        assert_eq!(found(4, &[0, 3, 5]), (Some((5, false)), 5));
        assert_eq!(found(6, &[0, 3, 5]), (Some((0, false)), 5));
        assert_eq!(found(6, &[3, 5]), (None, 5));
        assert_eq!(found(0, &[3]), (None, 3));
    }
}
