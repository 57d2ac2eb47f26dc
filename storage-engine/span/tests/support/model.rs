// SPDX-License-Identifier: Apache-2.0
//! The slow map of what must be in the pool.

use super::{CELLS, ENTRIES, EXISTS, Fallible, SIZE, is_log, rest};
use plinth_store::ObjectKey;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What was written where, by which request.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(super) cells: BTreeMap<(ObjectKey, u32), Vec<(u64, u64)>>,
    /// Requests on their way: their number, and the cells that they change.
    pub(super) pending: BTreeMap<u64, Vec<(ObjectKey, u32)>>,
    pub(super) acknowledged: BTreeMap<(ObjectKey, u32), u64>,
    pub(super) number: u64,
    /// The last request that changes an object.
    pub(super) touched: BTreeMap<ObjectKey, u64>,
    /// The highest version of an acknowledged change of an object, also of one that is gone.
    pub(super) highest: BTreeMap<ObjectKey, u64>,
    /// The version that an object has after this request.
    pub(super) versions: BTreeMap<ObjectKey, (u64, u64)>,
}

impl Model {
    pub(super) fn now(&self, key: ObjectKey, cell: u32) -> u64 {
        self.cells.get(&(key, cell)).and_then(|cell| cell.last()).map_or(0, |&(_, value)| value)
    }

    pub(super) fn set(&mut self, key: ObjectKey, cell: u32, value: u64) {
        let number = self.number;
        self.cells.entry((key, cell)).or_default().push((number, value));
        self.pending.entry(number).or_default().push((key, cell));
        self.touched.insert(key, number);
    }

    /// An acknowledged change's version is higher than all before it of the same objects.
    pub(super) fn note_version(&mut self, number: u64, version: u64) -> Fallible<()> {
        let cells = self.pending.get(&number).into_iter().flatten();
        let keys: BTreeSet<_> = cells.map(|(key, _)| *key).filter(|key| !is_log(key)).collect();
        for key in keys {
            let highest = self.highest.entry(key).or_default();
            ensure!(version > *highest, "{key} got version {version:#x} after {highest:#x}");
            *highest = version;
            self.versions.insert(key, (number, version));
        }
        Ok(())
    }

    /// Whether an object may have this version, when nothing is on its way.
    pub(super) fn check_version(&self, key: ObjectKey, version: u64) -> Fallible<()> {
        let highest = self.highest.get(&key).copied().unwrap_or(0);
        ensure!(version >= highest, "{key} is back at version {version:#x} from {highest:#x}");
        let Some((number, known)) = self.versions.get(&key) else { return Ok(()) };
        let is_newest = self.touched.get(&key) == Some(number);
        ensure!(
            !is_newest || version == *known,
            "{key} has version {version:#x} and not {known:#x}"
        );
        Ok(())
    }

    pub(super) fn set_range(&mut self, key: ObjectKey, start: u32, count: u32, value: u64) {
        for cell in start..start + count {
            self.set(key, cell, value);
        }
    }

    pub(super) fn make(&mut self, key: ObjectKey, size: u32) {
        self.set(key, EXISTS, 1);
        let size = u64::from(size).max(self.now(key, SIZE));
        self.set(key, SIZE, size);
    }

    pub(super) fn remove(&mut self, key: ObjectKey) {
        self.set_range(key, 0, CELLS, 0);
        for cell in rest() {
            self.set(key, cell, 0);
        }
    }

    pub(super) fn clone(&mut self, source: ObjectKey, target: ObjectKey) {
        for cell in (0..CELLS).chain(rest()) {
            let value = self.now(source, cell);
            self.set(target, cell, value);
        }
    }

    pub(super) fn set_keys(&mut self, key: ObjectKey, keys: Range<u32>, value: u64) {
        for cell in keys {
            self.set(key, cell, value);
        }
    }

    /// The entries that a log has, or had.
    pub(super) fn entries(&self, log: ObjectKey) -> Vec<u32> {
        let cells = self.cells.range((log, ENTRIES)..=(log, u32::MAX));
        cells.map(|((_, cell), _)| *cell).collect()
    }

    pub(super) fn trim(&mut self, log: ObjectKey, end: u32) {
        for cell in self.entries(log).into_iter().filter(|&cell| cell < end) {
            self.set(log, cell, 0);
        }
    }

    pub(super) fn acknowledge(&mut self, number: u64) {
        for at in self.pending.remove(&number).unwrap_or_default() {
            let floor = self.acknowledged.entry(at).or_default();
            *floor = (*floor).max(number);
        }
    }

    /// Whether a value may be seen by who asked when `number` was the newest request.
    pub(super) fn may_be(&self, key: ObjectKey, cell: u32, value: u64, number: u64) -> bool {
        let Some(history) = self.cells.get(&(key, cell)) else { return value == 0 };
        let newest = history.iter().rposition(|&(at, _)| at <= number);
        let after = &history[newest.unwrap_or(0)..];
        newest.is_none() && value == 0 || after.iter().any(|&(_, known)| known == value)
    }

    pub(super) fn floor(&self, key: ObjectKey, cell: u32) -> u64 {
        self.acknowledged.get(&(key, cell)).copied().unwrap_or(0)
    }

    /// What was seen after a cut is what there is.
    pub(super) fn settle(&mut self, key: ObjectKey, cell: u32, value: u64) {
        self.cells.insert((key, cell), vec![(0, value)]);
    }
}
