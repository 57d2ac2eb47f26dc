// SPDX-License-Identifier: Apache-2.0
//! One volume in memory, and where its objects are.

use crate::header::{Header, Link, Snapshot, State};
use crate::key::{Kind, object_id};
use crate::table::{Entry, Table};
use plinth_ids::{Name, PoolId, SnapshotId, VolumeId};
use plinth_store::ObjectKey;

/// The most clones of clones above each other. A read of what nobody wrote looks at each once.
pub(crate) const DEPTH_MAX: u32 = 16;

/// The most snapshots of a volume.
pub(crate) const SNAPSHOTS_MAX: usize = 1024;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Kept {
    pub(crate) record: Snapshot,
    /// Handles and questions that read it.
    pub(crate) holders: u32,
}

impl Kept {
    pub(crate) const fn new(record: Snapshot) -> Self {
        Self { record, holders: 0 }
    }
}

/// A sum of objects.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Sum {
    pub(crate) units: i64,
    pub(crate) objects: i64,
}

impl Sum {
    pub(crate) const fn add(&mut self, units: i64, objects: i64) {
        self.units += units;
        self.objects += objects;
    }
}

#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    /// No live snapshot and no parent: requests go to the heads and nothing is looked up.
    pub(crate) is_plain: bool,
    /// The number of the newest live snapshot, 0 for none: heads with copies below it are not
    /// changed before they are copied.
    pub(crate) newest: u64,
    pub(crate) header: Header,
    pub(crate) table: Table,
    /// The parent, its parent, and so on.
    pub(crate) chain: Vec<Link>,
    /// Changes that the store has.
    pub(crate) changing: u32,
    /// Requests of clients.
    pub(crate) under_way: u32,
    pub(crate) heads: Sum,
    pub(crate) copies: Sum,
    /// The highest number of a copy of any object. Nothing has changed since the newest snapshot
    /// while it is below that.
    pub(crate) highest_copy: u64,
    pub(crate) attachments: u32,
    /// It may be the parent of others.
    pub(crate) has_clones: bool,
    /// A snapshot is being recorded: changes wait.
    pub(crate) is_recording: bool,
    pub(crate) name: Name,
    /// By number.
    pub(crate) snapshots: Vec<Kept>,
}

impl Volume {
    pub(crate) fn new(id: VolumeId, name: Name, header: Header) -> Self {
        let mut volume = Self {
            id,
            is_plain: true,
            newest: 0,
            header,
            table: Table::default(),
            chain: Vec::new(),
            changing: 0,
            under_way: 0,
            heads: Sum::default(),
            copies: Sum::default(),
            highest_copy: 0,
            attachments: 0,
            has_clones: false,
            is_recording: false,
            name,
            snapshots: Vec::new(),
        };
        volume.settle();
        volume
    }

    /// Whether users know of it.
    pub(crate) fn is_seen(&self) -> bool {
        matches!(self.header.state, State::Ready | State::RollingBack)
    }

    /// After its snapshots or its parent changed.
    pub(crate) fn settle(&mut self) {
        let live = self.snapshots.iter().rev().find(|kept| !kept.record.is_leaving);
        self.newest = live.map_or(0, |kept| kept.record.number);
        let is_plain = self.newest == 0 && self.header.parent.is_none();
        if is_plain != self.is_plain {
            // A plain volume changes without the table.
            self.table.clear();
            self.is_plain = is_plain;
        }
    }

    /// The newest snapshot, if only clones know it and the volume is what it is.
    pub(crate) fn unchanged(&self) -> Option<&Kept> {
        let kept = self.numbered(self.newest)?;
        let is_same = kept.record.size == self.header.size && self.highest_copy < self.newest;
        (is_same && kept.record.name.is_none()).then_some(kept)
    }

    /// A live snapshot that users know of.
    pub(crate) fn named(&self, snapshot: SnapshotId) -> Option<&Kept> {
        self.snapshots.iter().find(|kept| {
            kept.record.id == snapshot && kept.record.name.is_some() && !kept.record.is_leaving
        })
    }

    pub(crate) fn numbered(&self, number: u64) -> Option<&Kept> {
        self.snapshots.iter().find(|kept| kept.record.number == number)
    }

    pub(crate) fn numbered_mut(&mut self, number: u64) -> Option<&mut Kept> {
        self.snapshots.iter_mut().find(|kept| kept.record.number == number)
    }

    /// Whether a copy of this number is what some live snapshot reads, when the next lower copy
    /// of the same object is `below` (0 for none).
    pub(crate) fn needs(&self, below: u64, number: u64) -> bool {
        self.snapshots.iter().any(|kept| {
            !kept.record.is_leaving && kept.record.number > below && kept.record.number <= number
        })
    }

    #[inline]
    pub(crate) fn key(&self, pool: PoolId, index: u32, snapshot: u64) -> ObjectKey {
        let object = object_id(Kind::Data, self.id, index);
        ObjectKey { pool, pg: self.header.family.group(index), object, snapshot }
    }

    /// An object of an ancestor; level 0 is the parent.
    pub(crate) fn ancestor_key(
        &self,
        pool: PoolId,
        level: u8,
        index: u32,
        snapshot: u64,
    ) -> ObjectKey {
        let volume = self.chain.get(usize::from(level)).map_or(self.id, |link| link.volume);
        let object = object_id(Kind::Data, volume, index);
        ObjectKey { pool, pg: self.header.family.group(index), object, snapshot }
    }

    /// The object to read, or to change as it is: no copy must be made before, and nothing that
    /// the table says becomes wrong. `None` when somebody must look first.
    #[inline]
    pub(crate) fn direct(&self, pool: PoolId, index: u32, access: Access) -> Option<ObjectKey> {
        let is_read = access == Access::Read;
        if self.is_plain || (is_read && self.chain.is_empty()) {
            return Some(self.key(pool, index, 0));
        }
        match self.table.get(index) {
            Entry::Own { kept } if is_read || (kept >= self.newest && access == Access::Change) => {
                Some(self.key(pool, index, 0))
            }
            Entry::Absent { .. } if is_read => Some(self.key(pool, index, 0)),
            Entry::Inherited { level, number } if is_read => {
                Some(self.ancestor_key(pool, level, index, number))
            }
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    Read,
    Change,
    /// The head may be gone afterwards.
    Remove,
}
